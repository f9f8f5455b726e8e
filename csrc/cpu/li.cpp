#include "../neuron/li.h"

#include "../op/neuron.h"
#include "backend.h"

SNNFAST_NEURON(CPU, Cpu, li, Li)
