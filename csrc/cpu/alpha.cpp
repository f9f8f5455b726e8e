#include "../neuron/alpha.h"

#include "../op/neuron.h"
#include "backend.h"

SNNFAST_NEURON(CPU, Cpu, alpha, Alpha)
