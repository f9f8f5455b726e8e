#include "../neuron/synaptic.h"
#include "../op/neuron.h"
#include "backend.cuh"

SNNFAST_NEURON(CUDA, Cuda, synaptic, Synaptic)
