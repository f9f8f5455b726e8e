#include "../neuron/lapicque.h"
#include "../op/neuron.h"
#include "backend.cuh"

SNNFAST_NEURON(CUDA, Cuda, lapicque, Lapicque)
