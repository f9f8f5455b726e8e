#include "../neuron/leaky.h"
#include "../op/neuron.h"
#include "backend.cuh"

SNNFAST_NEURON(CUDA, Cuda, leaky, Leaky)
