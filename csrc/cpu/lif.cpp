#include "../neuron/lif.h"

#include "../op/dense.h"
#include "backend.h"

SNNFAST_NEURON(CPU, Cpu, lif, Lif)
SNNFAST_RECURRENT_NEURON(CPU, Cpu, lif_recurrent, LifRecurrent)
