#include "../neuron/lif.h"
#include "../op/neuron.h"
#include "backend.cuh"

SNNFAST_NEURON(CUDA, Cuda, lif, Lif)
SNNFAST_NEURON(CUDA, Cuda, lif_recurrent, LifRecurrent)
