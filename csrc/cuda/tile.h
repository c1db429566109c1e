// Tiles in shared memory, and products of them by the tensor cores.
//
// Everything here is written for a Machine: gpu/device.h, whose operations are the GPU's instructions, or emulator.h,
// which runs the same code on the CPU. Registers of a warp's matrix products are laid out as PTX defines for mma.sync.
#pragma once

#include "records.h"

#ifdef __CUDACC__
#define L2T_FAST_KERNEL __device__ __forceinline__
#define L2T_FAST_UNROLL _Pragma("unroll")
#define L2T_FAST_PRAGMA(text) _Pragma(#text)
#define L2T_FAST_UNROLL_BY(n) L2T_FAST_PRAGMA(unroll n)
#else
#define L2T_FAST_KERNEL inline
#define L2T_FAST_UNROLL
#define L2T_FAST_UNROLL_BY(n)
#endif

namespace l2t_fast::cuda {

// How products are computed. `Element` is what tiles hold. What is packed or kept in memory between two kernels is
// rounded there (`rounds`: to tf32); what comes from the caller's maps is rounded when it has arrived in a tile.
struct Tf32 {
  using Element = float;
  static constexpr bool rounds = true;
};
struct Tf32x3 {
  using Element = float;
  static constexpr bool rounds = false;
};  // float32 nearly in full: each operand is the sum of two of tf32, of their products the smallest is left out
struct Bfloat16 {
  using Element = uint16_t;
  static constexpr bool rounds = false;
};

template <class Element>
inline constexpr int depth = row_bytes / int(sizeof(Element));  // terms of the sum that a tile holds
template <class Element>
inline constexpr int vector = 16 / int(sizeof(Element));  // elements copied at a time

// A tile holds `length` rows (or columns) of an operand and `depth` terms of the sum. Its lines run along the sum
// (AlongSum: one a row of the operand) or along the rows (one a term). Lines are cut into pieces of 16 bytes, whose
// order is permuted by line, so that a warp that reads 8 rows at 4 neighbouring words finds 32 different banks.
template <bool AlongSum, int length, class Element>
L2T_FAST_KERNEL int place(int line, int piece) {
  if constexpr (AlongSum)
    return line * depth<Element> + (piece ^ (line & 7)) * vector<Element>;
  else
    return line * length + (piece ^ (sizeof(Element) == 4 ? (line & 3) << 1 : line & 7)) * vector<Element>;
}

// A register of an operand: rows first + 8 block + lane / 4 (first: a multiple of 32), of step `step` of the four the
// half `half`. A word is a float, or two neighbouring terms of bfloat16.
template <bool AlongSum, int length>
L2T_FAST_KERNEL uint32_t fragment(const float* tile, int first, int block, int step, int half, int lane) {
  const uint32_t* const bits = reinterpret_cast<const uint32_t*>(tile);
  if constexpr (AlongSum)
    return bits[(first + 8 * block + lane / 4) * 32 + (((2 * step + half) ^ (lane / 4)) * 4) + lane % 4];
  else
    return bits[(8 * step + 4 * half + lane % 4) * length +
                ((first / 4 + 2 * block + lane / 16) ^ ((lane % 4) << 1)) * 4 + lane / 4 % 4];
}

template <bool AlongSum, int length>
L2T_FAST_KERNEL uint32_t fragment(const uint16_t* tile, int first, int block, int step, int half, int lane) {
  if constexpr (AlongSum) {
    return fragment<true, length>(reinterpret_cast<const float*>(tile), first, block, step, half, lane);
  } else {
    const int term = 16 * step + 8 * half + 2 * (lane % 4), piece = first / 8 + block;
    const uint16_t* const line = tile + term * length + lane / 4;
    return line[(piece ^ (term & 7)) * 8] | uint32_t(line[length + (piece ^ (term & 7 | 1)) * 8]) << 16;
  }
}

// A thread's part of a product of 32 * blocks rows and 128 columns: [16 rows][8 columns][element]. Warps stand 2 by 4.
template <int blocks>
using Sums = float[blocks][4][4];

struct Position {
  int row, column;
};

template <int blocks>
L2T_FAST_KERNEL Position position(int thread, int i, int j, int element) {
  const int warp = thread / 32, lane = thread % 32;
  return {warp / 4 * 16 * blocks + i * 16 + lane / 4 + element / 2 * 8,
          warp % 4 * 32 + j * 8 + lane % 4 * 2 + element % 2};
}

template <int blocks>
L2T_FAST_KERNEL void clear(Sums<blocks>& sums) {
  L2T_FAST_UNROLL
  for (int i = 0; i < blocks; ++i) {
    L2T_FAST_UNROLL
    for (int j = 0; j < 4; ++j) {
      L2T_FAST_UNROLL
      for (int e = 0; e < 4; ++e) sums[i][j][e] = 0;
    }
  }
}

template <int blocks, class M>
L2T_FAST_KERNEL void multiply(M& m, Tf32, Sums<blocks>& sums, uint32_t (&a)[blocks][4], uint32_t (&b)[4][2]) {
  m.multiply_tf32(sums, a, b);
}

template <int blocks, class M>
L2T_FAST_KERNEL void multiply(M& m, Tf32x3, Sums<blocks>& sums, uint32_t (&a)[blocks][4], uint32_t (&b)[4][2]) {
  uint32_t a_rest[blocks][4], b_rest[4][2];
  L2T_FAST_UNROLL
  for (int i = 0; i < blocks; ++i) {
    L2T_FAST_UNROLL
    for (int e = 0; e < 4; ++e) a_rest[i][e] = m.split_tf32(a[i][e]);
  }
  L2T_FAST_UNROLL
  for (int j = 0; j < 4; ++j) {
    L2T_FAST_UNROLL
    for (int e = 0; e < 2; ++e) b_rest[j][e] = m.split_tf32(b[j][e]);
  }
  m.multiply_tf32(sums, a_rest, b);
  m.multiply_tf32(sums, a, b_rest);
  m.multiply_tf32(sums, a, b);
}

template <int blocks, class M>
L2T_FAST_KERNEL void multiply(M& m, Bfloat16, Sums<blocks>& sums, uint32_t (&a)[blocks][4], uint32_t (&b)[4][2]) {
  m.multiply_bfloat16(sums, a, b);
}

// One operand of a product of tiles: whether lines of its tiles run along the sum.
template <bool along_sum_>
struct Layout {
  static constexpr bool along_sum = along_sum_;
};

// sums += A B^T over the terms of two tiles, A of 32 * blocks rows, B of 128.
template <class Mode, class A, class B, int blocks, class M>
L2T_FAST_KERNEL void product(M& m, Sums<blocks>& sums, const typename Mode::Element* a,
                             const typename Mode::Element* b) {
  const int thread = m.thread(), warp = thread / 32, lane = thread % 32;
  L2T_FAST_UNROLL
  for (int step = 0; step < 4; ++step) {
    uint32_t from_a[blocks][4], from_b[4][2];
    L2T_FAST_UNROLL
    for (int i = 0; i < blocks; ++i) {
      L2T_FAST_UNROLL
      for (int e = 0; e < 4; ++e)
        from_a[i][e] =
            fragment<A::along_sum, 32 * blocks>(a, warp / 4 * 16 * blocks, 2 * i + e % 2, step, e / 2, lane);
    }
    L2T_FAST_UNROLL
    for (int j = 0; j < 4; ++j) {
      L2T_FAST_UNROLL
      for (int e = 0; e < 2; ++e)
        from_b[j][e] = fragment<B::along_sum, tile_width>(b, warp % 4 * 32, j, step, e, lane);
    }
    multiply(m, Mode{}, sums, from_a, from_b);
  }
}

// sums += the products of `count` pairs of tiles. fill(number, a, b) requests a pair; while one is worked on, the next
// ones are on their way. settle(number, a, b) is what a thread does to what it requested, once that is there. Ends with shared
// memory free again for all threads.
template <class Mode, class A, class B, int blocks, class M, class Fill, class Settle>
L2T_FAST_KERNEL void multiply_tiles(M& m, Sums<blocks>& sums, int count, const Fill& fill, const Settle& settle) {
  using Element = typename Mode::Element;
  const auto tile = [&m](int slot) { return reinterpret_cast<Element*>(m.shared() + slot * 2 * tile_bytes); };
  constexpr int second = tile_bytes / int(sizeof(Element));
  L2T_FAST_UNROLL
  for (int number = 0; number < stages - 1; ++number) {
    if (number < count) fill(number, tile(number), tile(number) + second);
    m.commit();
  }
  int slot = 0, free = stages - 1;
  for (int number = 0; number < count; ++number) {
    m.template wait_for_all_but<stages - 2>();
    settle(number, tile(slot), tile(slot) + second);
    m.barrier();
    if (number + stages - 1 < count) fill(number + stages - 1, tile(free), tile(free) + second);
    m.commit();
    product<Mode, A, B>(m, sums, tile(slot), tile(slot) + second);
    free = slot;
    slot = slot + 1 == stages ? 0 : slot + 1;
  }
  m.barrier();
}

// ---- between memory and tiles

template <Type type>
struct Stored {
  using Element = uint16_t;
};
template <>
struct Stored<Type::float32> {
  using Element = float;
};
template <Type type>
using Storage = typename Stored<type>::Element;

// Of the caller's tensors, which no kernel writes.
template <Type type, class M>
L2T_FAST_KERNEL float load(M& m, const void* data, int64_t offset) {
  if constexpr (type == Type::float32)
    return m.read(static_cast<const float*>(data) + offset);
  else if constexpr (type == Type::bfloat16)
    return m.as_float(uint32_t(m.read(static_cast<const uint16_t*>(data) + offset)) << 16);
  else
    return m.from_half(m.read(static_cast<const uint16_t*>(data) + offset));
}

template <class M>
L2T_FAST_KERNEL float load(M& m, const void* data, Type type, int64_t offset) {
  if (type == Type::float32) return load<Type::float32>(m, data, offset);
  if (type == Type::bfloat16) return load<Type::bfloat16>(m, data, offset);
  return load<Type::float16>(m, data, offset);
}

template <class M>
L2T_FAST_KERNEL void store(M& m, void* data, Type type, int64_t offset, float value) {
  if (type == Type::float32)
    static_cast<float*>(data)[offset] = value;
  else if (type == Type::bfloat16)
    static_cast<uint16_t*>(data)[offset] = m.to_bfloat16(value);
  else
    static_cast<uint16_t*>(data)[offset] = m.to_half(value);
}

// What a kernel leaves for the next one's tiles.
template <class Mode, class M>
L2T_FAST_KERNEL void keep(M& m, void* data, int64_t offset, float value) {
  if constexpr (sizeof(typename Mode::Element) == 2)
    static_cast<uint16_t*>(data)[offset] = m.to_bfloat16(value);
  else
    static_cast<float*>(data)[offset] = Mode::rounds ? m.as_float(m.tf32(m.as_bits(value))) : value;
}

// Rows first .. first + count of a tile, from memory: asynchronously where no type changes. An element lies at
// along(its place in the line) + across(line); where either is negative there is none, and the tile gets 0.
template <bool AlongSum, int length, int count, class Element, class M, class Along, class Across>
L2T_FAST_KERNEL void fill(M& m, Element* tile, int first, const void* data, Type type, bool vectors, const Along& along,
                          const Across& across) {
  constexpr int lines = AlongSum ? count : depth<Element>;
  constexpr int width = AlongSum ? depth<Element> : count, pieces = width / vector<Element>;
  const int first_line = AlongSum ? first : 0, first_piece = AlongSum ? 0 : first / vector<Element>;
  const int thread = m.thread();
  const auto* const from = static_cast<const Element*>(data);
  if (vectors) {
    const int piece = thread % pieces;
    const int64_t begin = along(piece * vector<Element>);
    L2T_FAST_UNROLL
    for (int line = thread / pieces; line < lines; line += threads / pieces) {
      const int64_t rest = across(line);
      const bool lives = begin >= 0 && rest >= 0;
      m.copy16(tile + place<AlongSum, length, Element>(first_line + line, first_piece + piece),
               from + (lives ? begin + rest : 0), lives);
    }
    return;
  }
  const int within = thread % width, piece = first_piece + within / vector<Element>;
  const int64_t begin = along(within);
  L2T_FAST_UNROLL_BY(4)
  for (int line = thread / width; line < lines; line += threads / width) {
    const int64_t rest = across(line), offset = begin + rest;
    const bool lives = begin >= 0 && rest >= 0;
    Element* const to =
        tile + place<AlongSum, length, Element>(first_line + line, piece) + within % vector<Element>;
    if constexpr (sizeof(Element) == 4) {
      if (type == Type::float32)
        m.copy4(to, from + (lives ? offset : 0), lives);
      else
        *to = lives ? load(m, data, type, offset) : 0.f;
    } else {
      *to = lives ? from[offset] : uint16_t(0);
    }
  }
}

// Rounds what the thread filled in with the same arguments, where products take tf32.
template <class Mode, bool AlongSum, int length, int count, class M>
L2T_FAST_KERNEL void round_filled(M& m, typename Mode::Element* tile, int first, bool vectors) {
  if constexpr (Mode::rounds) {
    constexpr int lines = AlongSum ? count : depth<float>, width = AlongSum ? depth<float> : count;
    constexpr int pieces = width / vector<float>;
    const int first_line = AlongSum ? first : 0, first_piece = AlongSum ? 0 : first / vector<float>;
    const int thread = m.thread();
    if (vectors) {
      L2T_FAST_UNROLL
      for (int line = thread / pieces; line < lines; line += threads / pieces)
        m.round_to_tf32(tile + place<AlongSum, length, float>(first_line + line, first_piece + thread % pieces));
      return;
    }
    const int within = thread % width, piece = first_piece + within / vector<float>;
    L2T_FAST_UNROLL_BY(4)
    for (int line = thread / width; line < lines; line += threads / width) {
      float& element = tile[place<AlongSum, length, float>(first_line + line, piece) + within % vector<float>];
      element = m.as_float(m.tf32(m.as_bits(element)));
    }
  }
}

// A matrix that a kernel packed or kept, (lines, stride), in whole pieces.
struct Packed {
  const void* data;
  int64_t stride;
  int lines;
};

// From its line `line` and place `begin` on.
template <bool AlongSum, int length, class Element, class M>
L2T_FAST_KERNEL void fill_packed(M& m, Element* tile, const Packed& matrix, int line, int begin) {
  const int64_t stride = matrix.stride;
  const int lines = matrix.lines;
  fill<AlongSum, length, length>(
      m, tile, 0, matrix.data, sizeof(Element) == 4 ? Type::float32 : Type::bfloat16, true,
      [=](int within) { return begin + within < stride ? int64_t(begin + within) : int64_t(-1); },
      [=](int number) { return line + number < lines ? (line + number) * stride : int64_t(-1); });
}

}  // namespace l2t_fast::cuda
