#include "../neuron/rleaky.h"

#include "../op/dense.h"
#include "backend.h"

SNNFAST_RECURRENT_NEURON(CPU, Cpu, rleaky, RLeaky)
SNNFAST_NEURON(CPU, Cpu, rleaky_one_to_one, RLeakyOneToOne)
