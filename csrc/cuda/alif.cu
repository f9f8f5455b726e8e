#include "../neuron/alif.h"
#include "../op/neuron.h"
#include "backend.cuh"

SNNFAST_NEURON(CUDA, Cuda, alif, Alif)
