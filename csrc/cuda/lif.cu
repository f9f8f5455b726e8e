#include "../neuron/lif.h"
#include "../op/dense.h"
#include "backend.cuh"

SNNFAST_NEURON(CUDA, Cuda, lif, Lif)
SNNFAST_RECURRENT_NEURON(CUDA, Cuda, lif_recurrent, LifRecurrent)
