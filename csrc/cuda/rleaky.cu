#include "../neuron/rleaky.h"
#include "../op/neuron.h"
#include "backend.cuh"

SNNFAST_NEURON(CUDA, Cuda, rleaky, RLeaky)
SNNFAST_NEURON(CUDA, Cuda, rleaky_one_to_one, RLeakyOneToOne)
