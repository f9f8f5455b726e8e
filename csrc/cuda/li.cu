#include "../neuron/li.h"
#include "../op/neuron.h"
#include "backend.cuh"

SNNFAST_NEURON(CUDA, Cuda, li, Li)
