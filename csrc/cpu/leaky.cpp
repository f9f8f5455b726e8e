#include "../neuron/leaky.h"

#include "../op/neuron.h"
#include "backend.h"

SNNFAST_NEURON(CPU, Cpu, leaky, Leaky)
