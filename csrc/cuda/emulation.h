// For tests: the operators of CPU tensors computed by the CUDA kernels, in the emulator.
#pragma once

#include <memory>

#include "runner.h"

namespace l2t_fast::cuda {

enum class Emulation {
  in_order,
  reversed,    // threads and blocks in the opposite order
  host_alone,  // kernels are left out: for what the host takes by itself, in time and memory
};

// From now on, or, without a chip, no more.
void emulate_on_cpu(const Chip* chip, Emulation emulation);

// What runs CPU tensors now; null where the CPU's own kernels do.
Runner* emulated_runner();

}  // namespace l2t_fast::cuda
