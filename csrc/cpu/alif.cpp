#include "../neuron/alif.h"

#include "../op/neuron.h"
#include "backend.h"

SNNFAST_NEURON(CPU, Cpu, alif, Alif)
