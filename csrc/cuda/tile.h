// Tiles of 64 by 64 elements in shared memory, and products of them by the tensor cores.
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

inline constexpr int tile_elements = tile_size * tile_size;

// How products are computed. `Element` is what tiles hold, `depth` how many terms of a sum one instruction adds up.
struct Tf32 {
  using Element = float;
  static constexpr int depth = 8;
};
struct Tf32x3 : Tf32 {
};  // float32 nearly in full: each operand is the sum of two of tf32, of their products the smallest is left out
struct Bfloat16 {
  using Element = uint16_t;
  static constexpr int depth = 16;
};

template <class Element>
inline constexpr int tile_bytes = tile_elements * int(sizeof(Element));

// Where element (i, j) of a tile lies. Rows are cut into pieces of 16 bytes, whose order is permuted by row, so that a
// warp finds 32 different banks whether it reads 8 rows at 4 neighbouring words (an operand whose sum runs along j), or
// 4 rows at 8 neighbouring floats or 8 rows at 8 neighbouring bfloat16 (one whose sum runs along i).
template <class Element>
L2T_FAST_KERNEL int at(int i, int j) {
  constexpr int vector = 16 / int(sizeof(Element));
  const int turn = (i & 3) << 1 | (i >> 2 & 1);
  return i * tile_size + (((j / vector) ^ turn) * vector) + j % vector;
}

// Two registers of an operand: rows (or columns) `base` .. `base` + 8 of it, `depth` terms from `k` on. SumAlongI: the
// tile is laid out (terms, rows) instead of (rows, terms).
template <bool SumAlongI>
L2T_FAST_KERNEL void fragment(const float* tile, int base, int k, int lane, uint32_t& low, uint32_t& high) {
  const uint32_t* bits = reinterpret_cast<const uint32_t*>(tile);
  const int row = base + lane / 4, term = k + lane % 4;
  low = bits[SumAlongI ? at<float>(term, row) : at<float>(row, term)];
  high = bits[SumAlongI ? at<float>(term + 4, row) : at<float>(row, term + 4)];
}

template <bool SumAlongI>
L2T_FAST_KERNEL void fragment(const uint16_t* tile, int base, int k, int lane, uint32_t& low, uint32_t& high) {
  const int row = base + lane / 4, term = k + 2 * (lane % 4);
  if constexpr (SumAlongI) {
    low = tile[at<uint16_t>(term, row)] | uint32_t(tile[at<uint16_t>(term + 1, row)]) << 16;
    high = tile[at<uint16_t>(term + 8, row)] | uint32_t(tile[at<uint16_t>(term + 9, row)]) << 16;
  } else {
    low = *reinterpret_cast<const uint32_t*>(tile + at<uint16_t>(row, term));
    high = *reinterpret_cast<const uint32_t*>(tile + at<uint16_t>(row, term + 8));
  }
}

// A thread's part of a 64 by 64 product: [2 x 16 rows][4 x 8 columns][element]; position() says where it lies.
using Sums = float[2][4][4];

struct Position {
  int row, column;
};

// The thread's rows are position(..., 0, 0, 0 and 2) and (..., 1, 0, 0 and 2): four; its columns eight.
L2T_FAST_KERNEL Position position(int thread, int i, int j, int element) {
  const int warp = thread / 32, lane = thread % 32;
  return {warp / 2 * 32 + i * 16 + lane / 4 + element / 2 * 8, warp % 2 * 32 + j * 8 + lane % 4 * 2 + element % 2};
}

L2T_FAST_KERNEL void clear(Sums& sums) {
  L2T_FAST_UNROLL
  for (int i = 0; i < 2; ++i) {
    L2T_FAST_UNROLL
    for (int j = 0; j < 4; ++j) {
      L2T_FAST_UNROLL
      for (int e = 0; e < 4; ++e) sums[i][j][e] = 0;
    }
  }
}

template <class M>
L2T_FAST_KERNEL void multiply(M& m, Tf32, Sums& sums, uint32_t (&a)[2][4], uint32_t (&b)[4][2]) {
  L2T_FAST_UNROLL
  for (int i = 0; i < 2; ++i) {
    L2T_FAST_UNROLL
    for (int e = 0; e < 4; ++e) a[i][e] = m.tf32(a[i][e]);
  }
  L2T_FAST_UNROLL
  for (int j = 0; j < 4; ++j) {
    L2T_FAST_UNROLL
    for (int e = 0; e < 2; ++e) b[j][e] = m.tf32(b[j][e]);
  }
  m.multiply_tf32(sums, a, b);
}

template <class M>
L2T_FAST_KERNEL void multiply(M& m, Tf32x3, Sums& sums, uint32_t (&a)[2][4], uint32_t (&b)[4][2]) {
  uint32_t a_rest[2][4], b_rest[4][2];
  L2T_FAST_UNROLL
  for (int i = 0; i < 2; ++i) {
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

template <class M>
L2T_FAST_KERNEL void multiply(M& m, Bfloat16, Sums& sums, uint32_t (&a)[2][4], uint32_t (&b)[4][2]) {
  m.multiply_bfloat16(sums, a, b);
}

// sums += A B over 64 terms. A's rows and B's columns are the tiles' other axis. Unrolled in
// full, which makes constants of most of the addresses: a loop of two took one and a half times the instructions.
template <class Mode, bool SumAlongIOfA, bool SumAlongIOfB, class M>
L2T_FAST_KERNEL void product(M& m, Sums& sums, const typename Mode::Element* a, const typename Mode::Element* b) {
  const int thread = m.thread(), warp = thread / 32, lane = thread % 32;
  L2T_FAST_UNROLL
  for (int k = 0; k < tile_size; k += Mode::depth) {
    uint32_t from_a[2][4], from_b[4][2];
    L2T_FAST_UNROLL
    for (int i = 0; i < 2; ++i) {
      L2T_FAST_UNROLL
      for (int half = 0; half < 2; ++half)
        fragment<SumAlongIOfA>(a, warp / 2 * 32 + i * 16 + half * 8, k, lane, from_a[i][half], from_a[i][2 + half]);
    }
    L2T_FAST_UNROLL
    for (int j = 0; j < 4; ++j) fragment<SumAlongIOfB>(b, warp % 2 * 32 + j * 8, k, lane, from_b[j][0], from_b[j][1]);
    multiply(m, Mode{}, sums, from_a, from_b);
  }
}

// ---- between memory and tiles

template <Type type, class M>
L2T_FAST_KERNEL float load(M& m, const void* data, int64_t offset) {
  if constexpr (type == Type::float32)
    return static_cast<const float*>(data)[offset];
  else if constexpr (type == Type::bfloat16)
    return m.as_float(uint32_t(static_cast<const uint16_t*>(data)[offset]) << 16);
  else
    return m.from_half(static_cast<const uint16_t*>(data)[offset]);
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

template <class M>
L2T_FAST_KERNEL void put(M&, float* tile, int i, int j, float value) {
  tile[at<float>(i, j)] = value;
}

template <class M>
L2T_FAST_KERNEL void put(M& m, uint16_t* tile, int i, int j, float value) {
  tile[at<uint16_t>(i, j)] = m.to_bfloat16(value);
}

// A tile from memory, asynchronously where no type changes (but for bfloat16 that lies unfavourably). offset(i, j) is
// an element's place, or negative where there is none: that is 0 in the tile.
template <class Element, class M, class Offset>
L2T_FAST_KERNEL void fill(M& m, Element* tile, const void* data, Type type, bool vectors, const Offset& offset) {
  constexpr int vector = 16 / int(sizeof(Element)), pieces = tile_size / vector;
  constexpr Type own = sizeof(Element) == 4 ? Type::float32 : Type::bfloat16;
  if (vectors) {
    L2T_FAST_UNROLL_BY(2)
    for (int piece = m.thread(); piece < tile_size * pieces; piece += threads) {
      const int i = piece / pieces, j = piece % pieces * vector;
      const int64_t from = offset(i, j);
      m.copy16(tile + at<Element>(i, j), static_cast<const Element*>(data) + (from < 0 ? 0 : from), from >= 0);
    }
  } else if (sizeof(Element) == 4 && type == own) {
    L2T_FAST_UNROLL_BY(2)
    for (int element = m.thread(); element < tile_elements; element += threads) {
      const int i = element / tile_size, j = element % tile_size;
      const int64_t from = offset(i, j);
      m.copy4(tile + at<Element>(i, j), static_cast<const Element*>(data) + (from < 0 ? 0 : from), from >= 0);
    }
  } else {  // 2 bytes each: what is of one type with the tiles is copied, the rest is widened
    L2T_FAST_UNROLL_BY(4)
    for (int element = m.thread(); element < tile_elements; element += threads) {
      const int i = element / tile_size, j = element % tile_size;
      const int64_t from = offset(i, j);
      const uint16_t bits = from < 0 ? uint16_t(0) : static_cast<const uint16_t*>(data)[from];
      if constexpr (sizeof(Element) == 4)
        tile[at<float>(i, j)] = type == Type::float16 ? m.from_half(bits) : m.as_float(uint32_t(bits) << 16);
      else
        tile[at<uint16_t>(i, j)] = bits;
    }
  }
}

}  // namespace l2t_fast::cuda
