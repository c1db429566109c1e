// What the host side asks of whatever runs the kernels: a GPU (gpu/matching.cpp) or the emulator (emulation.cpp).
#pragma once

#include <cstddef>
#include <cstdint>

#include "coefficients.h"
#include "records.h"

namespace l2t_fast::cuda {

enum class Products { tf32, tf32x3, bfloat16 };

inline constexpr int64_t element_bytes(Products products) { return products == Products::bfloat16 ? 2 : 4; }

// What a block takes of shared memory, in every kernel that multiplies.
inline constexpr int64_t shared_bytes = pipeline_bytes + reserved_bytes;

struct Chip {
  int processors;
  double launch;  // so much arithmetic is worth a launch less, in floating-point operations
};

// Of a processor, in the 5 us of a launch.
inline constexpr double operations_of_launch = 4e6;

class Runner {
 public:
  virtual ~Runner() = default;
  virtual Chip chip() const = 0;
  // Bytes into memory of the device; the source is free again when this returns.
  virtual void upload(void* to, const void* from, size_t bytes) = 0;
  virtual void run(Products products, bool second, const Problem& problem, const Launch& launch) = 0;
  virtual void run(const PairColumns* pairs, const CoefficientCall& call) = 0;
};

}  // namespace l2t_fast::cuda
