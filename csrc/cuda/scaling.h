// Tensors times a scalar, where they lie. The scalar is in the GPU's memory, which nobody waits for: where it is one,
// as behind a plain backward pass, blocks read it and nothing else.
#pragma once

#include "lines.h"

namespace l2t_fast::cuda {

inline constexpr int elements_of_thread = 16;
inline constexpr int elements_of_block = threads * elements_of_thread;

struct Scaled {
  void* data;     // contiguous
  int64_t count;  // of elements
  int32_t first;  // number of its first item
  Type type;
};

// They travel as a kernel's parameters, in 4 KB.
inline constexpr int most_scaled = 160;

struct SomeScaled {
  Scaled items[most_scaled];
  int32_t count;
  const float* factor;
};

template <Type type, class M>
L2T_FAST_KERNEL void scale_block(M& m, const Scaled& own, int64_t begin, float factor) {
  constexpr int at_once = 4;  // are read before the first is written
  auto* const data = static_cast<Stored<type>*>(own.data);
  L2T_FAST_UNROLL_BY(1)
  for (int turn = 0; turn < elements_of_thread; turn += at_once) {
    float values[at_once];
    L2T_FAST_UNROLL
    for (int i = 0; i < at_once; ++i) {
      const int64_t at = begin + (turn + i) * threads + m.thread();
      values[i] = at < own.count ? widened<type>(m, data[at]) : 0.0f;
    }
    L2T_FAST_UNROLL
    for (int i = 0; i < at_once; ++i) {
      const int64_t at = begin + (turn + i) * threads + m.thread();
      if (at < own.count) store(m, data, type, at, factor * values[i]);
    }
  }
}

// Items: so many elements of a tensor a block.
template <class M>
L2T_FAST_KERNEL void scale(M& m, const SomeScaled& some) {
  const float factor = m.read(some.factor);
  if (factor == 1) return;
  const int number = last_that_begins(0, some.count, [&](int i) { return some.items[i].first <= m.block(); });
  const Scaled own = some.items[number];
  const int64_t begin = int64_t(m.block() - own.first) * elements_of_block;
  with_type(own.type, [&](auto type) { scale_block<decltype(type)::value>(m, own, begin, factor); });
}

}  // namespace l2t_fast::cuda
