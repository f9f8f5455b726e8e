#include "../neuron/alpha.h"
#include "../op/neuron.h"
#include "backend.cuh"

SNNFAST_NEURON(CUDA, Cuda, alpha, Alpha)
