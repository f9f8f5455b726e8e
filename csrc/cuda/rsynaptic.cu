#include "../neuron/synaptic.h"
#include "../op/neuron.h"
#include "backend.cuh"

SNNFAST_NEURON(CUDA, Cuda, rsynaptic, RSynaptic)
SNNFAST_NEURON(CUDA, Cuda, rsynaptic_one_to_one, RSynapticOneToOne)
