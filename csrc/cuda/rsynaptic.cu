#include "../neuron/synaptic.h"
#include "../op/dense.h"
#include "backend.cuh"

SNNFAST_RECURRENT_NEURON(CUDA, Cuda, rsynaptic, RSynaptic)
SNNFAST_NEURON(CUDA, Cuda, rsynaptic_one_to_one, RSynapticOneToOne)
