// Register-tiled matrix products on panel matrices (see layer.h). Compiled once per instruction set, in that set's
// namespace.
#pragma once

#include "isa.h"

namespace l2t_fast::cpu::L2T_ISA {

enum class Store { overwrite, accumulate, subtract_from };  // C = AB, C += AB, C = AB - C

// C (MR rows, NV vectors) from A's rows (panel matrix, k along its columns) and B's rows k.
template <class T, int MR, int NV, Store mode>
void rows_tile(const T* a, int64_t a_panel, int64_t depth, const T* b, T* c) {
  constexpr int NR = panel<T>;
  vec<T> sum[MR][NV];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j) sum[i][j] = vec<T>{};
  for (int64_t k0 = 0; k0 < depth; k0 += NR, a += a_panel) {
    const int64_t count = depth - k0 < NR ? depth - k0 : NR;
    for (int64_t k = 0; k < count; ++k, b += NR) {
      vec<T> right[NV];
#pragma GCC unroll 2
      for (int j = 0; j < NV; ++j) right[j] = load(b + j * lanes<T>);
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i)
#pragma GCC unroll 2
        for (int j = 0; j < NV; ++j) sum[i][j] += a[i * NR + k] * right[j];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j) {
      T* out = c + i * NR + j * lanes<T>;
      if constexpr (mode == Store::overwrite)
        store(out, sum[i][j]);
      else
        store(out, mode == Store::accumulate ? load(out) + sum[i][j] : sum[i][j] - load(out));
    }
}

template <class T, int NV, Store mode, int MR>
void rows_tail(int64_t rows, const T* a, int64_t a_panel, int64_t depth, const T* b, T* c) {
  if constexpr (MR > 0) {
    if (rows == MR)
      rows_tile<T, MR, NV, mode>(a, a_panel, depth, b, c);
    else
      rows_tail<T, NV, mode, MR - 1>(rows, a, a_panel, depth, b, c);
  }
}

template <class T, int NV, Store mode>
void rows_panel(int64_t rows, int64_t depth, const T* a, int64_t a_panel, const T* b, T* c) {
  constexpr int NR = panel<T>, MR = row_tile;
  int64_t r = 0;
  for (; r + MR <= rows; r += MR) rows_tile<T, MR, NV, mode>(a + r * NR, a_panel, depth, b, c + r * NR);
  rows_tail<T, NV, mode, MR - 1>(rows - r, a + r * NR, a_panel, depth, b, c + r * NR);
}

// One panel of C (rows, up to NR columns; with `half`, one vector): A (rows, depth), its panels a_panel apart, times
// B's panel (depth, NR). The sum over depth is cut into pieces: rounding errors grow with the length of a chain of
// additions, and B's piece stays in the L1 cache.
template <class T, Store mode>
void rows_product(int64_t rows, int64_t depth, bool half, const T* a, int64_t a_panel, const T* b, T* c) {
  for (int64_t k = 0; k == 0 || k < depth; k += chain) {
    const int64_t piece = depth - k < chain ? depth - k : chain;
    const T* left = a + k / panel<T> * a_panel;
    const T* right = b + k * panel<T>;
    if (k == 0)
      half ? rows_panel<T, 1, mode>(rows, piece, left, a_panel, right, c)
           : rows_panel<T, 2, mode>(rows, piece, left, a_panel, right, c);
    else
      half ? rows_panel<T, 1, Store::accumulate>(rows, piece, left, a_panel, right, c)
           : rows_panel<T, 2, Store::accumulate>(rows, piece, left, a_panel, right, c);
  }
}

// C (MR rows, NV vectors) += sum over k of A[k, i] B[k, :]; A and B are panels, C's rows are NR apart.
template <class T, int MR, int NV>
void outer_tile(const T* a, const T* b, int64_t depth, T* c) {
  constexpr int NR = panel<T>;
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) __builtin_prefetch(c + i * NR, 1);
  vec<T> sum[MR][NV] = {};
  for (int64_t k = 0; k < depth; ++k, a += NR, b += NR) {
    vec<T> right[NV];
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j) right[j] = load(b + j * lanes<T>);
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 2
      for (int j = 0; j < NV; ++j) sum[i][j] += a[i] * right[j];
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j) {
      T* out = c + i * NR + j * lanes<T>;
      store(out, load(out) + sum[i][j]);
    }
}

// Rows [first, last) of C (panel matrix with c_panel elements a panel) += A^T B over `depth` rows of A and B. first is
// a multiple of outer_tile_rows; row i of C is column a_column + i of A. With `lower`, only tiles that touch i >=
// column.
template <class T>
void outer_product(int64_t depth, int64_t first, int64_t last, int64_t a_column, int64_t columns, const T* a,
                   int64_t a_panel, const T* b, int64_t b_panel, T* c, int64_t c_panel, bool lower = false) {
  constexpr int NR = panel<T>, MR = outer_tile_rows;
  for (; depth > 2 * chain; depth -= 2 * chain, a += 2 * chain * NR, b += 2 * chain * NR)
    outer_product(2 * chain, first, last, a_column, columns, a, a_panel, b, b_panel, c, c_panel, lower);
  for (int64_t n = 0; n < columns; n += NR, b += b_panel, c += c_panel) {
    const bool half = columns - n <= lanes<T>;
    for (int64_t i = lower && n > first ? n : first; i < last; i += MR) {
      const int64_t column = a_column + i;
      const T* left = a + column / NR * a_panel + column % NR;
      if (half)
        outer_tile<T, MR, 1>(left, b, depth, c + i * NR);
      else
        outer_tile<T, MR, 2>(left, b, depth, c + i * NR);
    }
  }
}

}  // namespace l2t_fast::cpu::L2T_ISA
