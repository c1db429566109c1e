// For tests: the operators of CPU tensors computed by the CUDA kernels, in the emulator.
#pragma once

#include <memory>

#include "runner.h"

namespace l2t_fast::cuda {

// From now on, or, without a chip, no more. Threads and blocks run in the opposite order if `reversed`.
void emulate_on_cpu(const Chip* chip, bool reversed);

// What runs CPU tensors now; null where the CPU's own kernels do.
Runner* emulated_runner();

}  // namespace l2t_fast::cuda
