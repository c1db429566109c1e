// Vectors of the instruction set this file is compiled for. L2T_ISA names the namespace, L2T_VECTOR_BYTES the register.
// GCC's and Clang's vector extension, so that one source serves every instruction set; a * b + c contracts to an FMA.
#pragma once

#include <cstdint>
#include <cstring>

#include "layer.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

#ifndef L2T_ISA
#error "include this from a kernels_<isa>.cpp that defines L2T_ISA and L2T_VECTOR_BYTES"
#endif

namespace l2t_fast::cpu::L2T_ISA {

template <class T>
struct vector_of {
  typedef T type __attribute__((vector_size(L2T_VECTOR_BYTES)));
  typedef T unaligned __attribute__((vector_size(L2T_VECTOR_BYTES), aligned(alignof(T)), may_alias));
};
template <class T>
using vec = typename vector_of<T>::type;

template <class T>
constexpr int lanes = L2T_VECTOR_BYTES / int(sizeof(T));
template <class T>
constexpr int panel = 2 * lanes<T>;  // NR

// 32 vector registers hold 14 x 2 sums, 2 of B and a broadcast of A; 16 hold 6 x 2. NEON has 32, but its
// broadcasts are ahead of their use, so that from 12 rows on GCC spills sums (docs/tuning_cpu.md).
constexpr int row_tile = L2T_VECTOR_BYTES == 64 ? 14 : 6;
constexpr int outer_tile_rows = L2T_VECTOR_BYTES == 64 ? 8 : 4;  // divides NR, so that a tile stays within a panel
// Additions in a row before a partial sum is put away; a multiple of every NR.
constexpr int chain = 64;
// A pair's rows start at a multiple of this: whole vectors, and whole tiles of the outer product.
template <class T>
constexpr int unit = lanes<T> > outer_tile_rows ? lanes<T> : outer_tile_rows;

template <class T>
inline vec<T> load(const T* p) {
  return *reinterpret_cast<const typename vector_of<T>::unaligned*>(p);
}
template <class T>
inline void store(T* p, vec<T> v) {
  *reinterpret_cast<typename vector_of<T>::unaligned*>(p) = v;
}
template <class T>
inline T sum_of(vec<T> v) {
  T sum = 0;
  for (int i = 0; i < lanes<T>; ++i) sum += v[i];
  return sum;
}

inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }
inline int64_t minimum(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t maximum(int64_t a, int64_t b) { return a > b ? a : b; }

// Hands out aligned pieces of the caller's scratch memory; with a null base it only counts them.
struct Arena {
  char* base;
  size_t used = 0;

  template <class T>
  T* take(int64_t count) {
    T* piece = base ? reinterpret_cast<T*>(base + used) : nullptr;
    const size_t bytes = size_t(count) * sizeof(T), padded = (bytes + 63) / 64 * 64;
#ifdef __SANITIZE_ADDRESS__
    // A piece ends in a zone that may not be touched: the sanitizer sees the caller's memory as one.
    constexpr size_t zone = 64;
    if (base) {
      ASAN_UNPOISON_MEMORY_REGION(piece, padded + zone);
      ASAN_POISON_MEMORY_REGION(base + used + bytes, padded - bytes + zone);
    }
    used += zone;
#endif
    used += padded;
    return piece;
  }
};

template <class T>
inline void fill_zero(T* p, int64_t count) {
  std::memset(p, 0, size_t(count) * sizeof(T));
}

}  // namespace l2t_fast::cpu::L2T_ISA
