#include "../neuron/lif.h"

#include "../op/neuron.h"
#include "backend.h"

SNNFAST_NEURON(CPU, Cpu, lif, Lif)
SNNFAST_NEURON(CPU, Cpu, lif_recurrent, LifRecurrent)
