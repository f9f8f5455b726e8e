#include "../neuron/synaptic.h"
#include "../op/neuron.h"
#include "backend.h"

SNNFAST_NEURON(CPU, Cpu, rsynaptic, RSynaptic)
SNNFAST_NEURON(CPU, Cpu, rsynaptic_one_to_one, RSynapticOneToOne)
