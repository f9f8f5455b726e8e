#include "../neuron/lapicque.h"

#include "../op/neuron.h"
#include "backend.h"

SNNFAST_NEURON(CPU, Cpu, lapicque, Lapicque)
