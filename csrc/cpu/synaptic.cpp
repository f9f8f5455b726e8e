#include "../neuron/synaptic.h"

#include "../op/neuron.h"
#include "backend.h"

SNNFAST_NEURON(CPU, Cpu, synaptic, Synaptic)
