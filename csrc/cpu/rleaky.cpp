#include "../neuron/rleaky.h"

#include "../op/neuron.h"
#include "backend.h"

SNNFAST_NEURON(CPU, Cpu, rleaky, RLeaky)
SNNFAST_NEURON(CPU, Cpu, rleaky_one_to_one, RLeakyOneToOne)
