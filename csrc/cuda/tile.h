// Tiles in shared memory, and products of them by the tensor cores.
//
// Everything here is written for a Machine: gpu/device.h, whose operations are the GPU's instructions, or emulator.h,
// which runs the same code on the CPU. Registers of a warp's matrix products are laid out as PTX defines for mma.sync.
#pragma once

#include <type_traits>

#include "records.h"

#ifdef __CUDACC__
#define L2T_FAST_KERNEL __device__ __forceinline__
#define L2T_FAST_BOTH __host__ __device__
#define L2T_FAST_UNROLL _Pragma("unroll")
#define L2T_FAST_PRAGMA(text) _Pragma(#text)
#define L2T_FAST_UNROLL_BY(n) L2T_FAST_PRAGMA(unroll n)
#else
#define L2T_FAST_KERNEL inline
#define L2T_FAST_BOTH
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
// order is permuted by line, so that a warp that reads 8 rows at 4 neighbouring words finds 32 different banks. Lines
// that run along the rows are permuted by the piece as well: 8 threads that copy a half of the rows, which is 16 rows
// of every 32 (see `spread`), are to write to 32 different banks too.
template <class Element>
L2T_FAST_KERNEL int permuted(int line, int piece) {
  if constexpr (sizeof(Element) == 4)
    return piece ^ ((line & 3) << 1) ^ ((piece >> 1) & 4);
  else
    return piece ^ (line & 7) ^ ((piece >> 2) & 2);
}

template <bool AlongSum, int length, class Element>
L2T_FAST_KERNEL int place(int line, int piece) {
  if constexpr (AlongSum)
    return line * depth<Element> + (piece ^ (line & 7)) * vector<Element>;
  else
    return line * length + permuted<Element>(line, piece) * vector<Element>;
}

// One operand of a product of tiles: whether lines of its tiles run along the sum. Where those of the first one do not
// and are of floats, its rows may be taken `in_pairs`: of 16, those that a thread gets are neighbours, and read at
// once. The second one's would arrive in registers that its products cannot take.
template <bool along_sum_, bool in_pairs_ = false>
struct Layout {
  static constexpr bool along_sum = along_sum_, in_pairs = in_pairs_;
};

// Four registers of an operand: of 16 rows first .. (a multiple of 32) + 16 block, step `step` of the four. Register e
// holds row 8 (e % 2) + lane / 4, in pairs 2 (lane / 4) + e % 2, half e / 2 of the step; with `of_b` row 8 (e / 2) +
// lane / 4, half e % 2. A register is a float, or two neighbouring terms of bfloat16. `lane` names the rows that the
// thread hands to the warp's loads.
template <class Layout, int length, bool of_b, class Element, class M>
L2T_FAST_KERNEL void fragments(M& m, const Element* tile, int first, int block, int step, int lane,
                               uint32_t (&registers)[4]) {
  constexpr bool AlongSum = Layout::along_sum;
  static_assert(!Layout::in_pairs || (!AlongSum && !of_b && sizeof(Element) == 4));
  const int matrix = lane / 8, line = lane % 8;
  const int rows = of_b ? matrix / 2 : matrix % 2, half = of_b ? matrix % 2 : matrix / 2;
  const int row = first + 16 * block + 8 * rows;
  if constexpr (AlongSum) {
    m.load_matrices(registers, tile + (row + line) * depth<Element> + ((2 * step + half) ^ line) * vector<Element>);
  } else if constexpr (sizeof(Element) == 2) {
    m.load_transposed(registers, tile + place<false, length, Element>(16 * step + 8 * half + line, row / 8));
  } else if constexpr (Layout::in_pairs) {
    const int piece = first / 4 + 4 * block + lane / 8;
    L2T_FAST_UNROLL
    for (int h = 0; h < 2; ++h) {
      uint32_t two[2];
      m.read8(two, tile + (8 * step + 4 * h + lane % 4) * length + permuted<Element>(lane % 4, piece) * 4 +
                       lane / 4 % 2 * 2);
      registers[2 * h] = two[0];
      registers[2 * h + 1] = two[1];
    }
  } else {
    const uint32_t* const bits = reinterpret_cast<const uint32_t*>(tile);
    L2T_FAST_UNROLL
    for (int e = 0; e < 4; ++e) {
      const int piece = first / 4 + 4 * block + 2 * (of_b ? e / 2 : e % 2) + lane / 16;
      registers[e] = bits[(8 * step + 4 * (of_b ? e % 2 : e / 2) + lane % 4) * length +
                          permuted<Element>(lane % 4, piece) * 4 + lane / 4 % 4];
    }
  }
}

// A thread's part of a product of 32 * blocks rows and 128 columns: [16 rows][8 columns][element]. Warps stand 2 by 4.
template <int blocks>
using Sums = float[blocks][4][4];

struct Position {
  int row, column;
};

// Where a thread's sums stand in the tile; with rows of an operand that is taken in pairs.
template <int blocks, bool in_pairs = false>
L2T_FAST_KERNEL Position position(int thread, int i, int j, int element) {
  const int warp = thread / 32, lane = thread % 32;
  const int row = in_pairs ? lane / 4 * 2 + element / 2 : lane / 4 + element / 2 * 8;
  return {warp / 4 * 16 * blocks + i * 16 + row, warp % 4 * 32 + j * 8 + lane % 4 * 2 + element % 2};
}

// function(i, j, e) for each of a thread's Sums.
template <int blocks, class Function>
L2T_FAST_KERNEL void for_each_index(const Function& function) {
  L2T_FAST_UNROLL
  for (int i = 0; i < blocks; ++i) {
    L2T_FAST_UNROLL
    for (int j = 0; j < 4; ++j) {
      L2T_FAST_UNROLL
      for (int e = 0; e < 4; ++e) function(i, j, e);
    }
  }
}

template <int blocks>
L2T_FAST_KERNEL void clear(Sums<blocks>& sums) {
  for_each_index<blocks>([&](int i, int j, int e) { sums[i][j][e] = 0; });
}

// Adds sums to others, and begins them anew.
template <int blocks>
L2T_FAST_KERNEL void put_away(Sums<blocks>& sums, Sums<blocks>& whole) {
  for_each_index<blocks>([&](int i, int j, int e) {
    whole[i][j][e] += sums[i][j][e];
    sums[i][j][e] = 0;
  });
}

// function(row, column, sum) for each of a thread's sums: where it stands in the tile.
template <int blocks, bool in_pairs = false, class M, class Function>
L2T_FAST_KERNEL void for_each_sum(M& m, const Sums<blocks>& sums, const Function& function) {
  const int thread = m.thread();
  for_each_index<blocks>([&](int i, int j, int e) {
    const Position where = position<blocks, in_pairs>(thread, i, j, e);
    function(where.row, where.column, sums[i][j][e]);
  });
}

// Tiles of a size that a length takes.
L2T_FAST_KERNEL int tiles(int64_t length, int size) { return int((length + size - 1) / size); }

template <int blocks, class M>
L2T_FAST_KERNEL void multiply(M& m, Tf32, Sums<blocks>& sums, uint32_t (&a)[blocks][4], uint32_t (&b)[2][4]) {
  m.multiply_tf32(sums, a, b);
}

template <int lines, class M>
L2T_FAST_KERNEL void split(M& m, uint32_t (&whole)[lines][4], uint32_t (&rest)[lines][4]) {
  L2T_FAST_UNROLL
  for (int i = 0; i < lines; ++i) {
    L2T_FAST_UNROLL
    for (int e = 0; e < 4; ++e) rest[i][e] = m.split_tf32(whole[i][e]);
  }
}

template <int blocks, class M>
L2T_FAST_KERNEL void multiply(M& m, Tf32x3, Sums<blocks>& sums, uint32_t (&a)[blocks][4], uint32_t (&b)[2][4]) {
  uint32_t a_rest[blocks][4], b_rest[2][4];
  split<blocks>(m, a, a_rest);
  split<2>(m, b, b_rest);
  m.multiply_tf32(sums, a_rest, b);
  m.multiply_tf32(sums, a, b_rest);
  m.multiply_tf32(sums, a, b);
}

// Tensor cores cut off what a float does not hold, always towards zero. So each step's products, 8 terms a sum, are
// added by an addition that rounds; a row of blocks at a time, for want of registers.
template <int blocks, class M>
L2T_FAST_KERNEL void multiply_apart(M& m, Sums<blocks>& sums, uint32_t (&a)[blocks][4], uint32_t (&b)[2][4]) {
  uint32_t b_rest[2][4];
  split<2>(m, b, b_rest);
  L2T_FAST_UNROLL
  for (int i = 0; i < blocks; ++i) {
    uint32_t own[1][4] = {{a[i][0], a[i][1], a[i][2], a[i][3]}}, rest[1][4];
    split<1>(m, own, rest);
    Sums<1> some;
    clear<1>(some);
    m.multiply_tf32(some, rest, b);
    m.multiply_tf32(some, own, b_rest);
    m.multiply_tf32(some, own, b);
    for_each_index<1>([&](int, int j, int e) { sums[i][j][e] += some[0][j][e]; });
  }
}

template <int blocks, class M>
L2T_FAST_KERNEL void multiply(M& m, Bfloat16, Sums<blocks>& sums, uint32_t (&a)[blocks][4], uint32_t (&b)[2][4]) {
  m.multiply_bfloat16(sums, a, b);
}

// sums += A B^T over the terms of two tiles, A of 32 * blocks rows, B of 128; with `apart` by multiply_apart.
template <class Mode, class A, class B, int blocks, bool apart, class M>
L2T_FAST_KERNEL void product(M& m, int thread, Sums<blocks>& sums, const typename Mode::Element* a,
                             const typename Mode::Element* b) {
  const int warp = thread / 32, lane = thread % 32;
  // Unrolled, the additions of four steps would stand side by side, and take more registers than there are.
  L2T_FAST_UNROLL_BY((apart ? 1 : 4))
  for (int step = 0; step < 4; ++step) {
    uint32_t from_a[blocks][4], from_b[2][4];
    L2T_FAST_UNROLL
    for (int i = 0; i < blocks; ++i)
      fragments<A, 32 * blocks, false>(m, a, warp / 4 * 16 * blocks, i, step, lane, from_a[i]);
    L2T_FAST_UNROLL
    for (int j = 0; j < 2; ++j) fragments<B, tile_width, true>(m, b, warp % 4 * 32, j, step, lane, from_b[j]);
    if constexpr (apart)
      multiply_apart<blocks>(m, sums, from_a, from_b);
    else
      multiply(m, Mode{}, sums, from_a, from_b);
  }
}

// sums += the products of `count` pairs of tiles. fill(number, a, b) requests a pair; while one is worked on, the next
// ones are on their way. settle(number, a, b) is what a thread does to what it requested, once that is there, and
// after(number) follows a pair's product. Ends with shared memory free again for all threads.
template <class Mode, class A, class B, int blocks, bool apart, class M, class Fill, class Settle, class After>
L2T_FAST_KERNEL void multiply_tiles(M& m, Sums<blocks>& sums, int count, Fill fill, const Settle& settle,
                                    const After& after) {
  using Element = typename Mode::Element;
  // Lower tiles take less room, and less time for their products: more of them are under way.
  constexpr int bytes = (32 * blocks + tile_width) * row_bytes, stages = pipeline_bytes / bytes;
  const auto tile = [&m](int slot) { return reinterpret_cast<Element*>(m.shared() + slot * bytes); };
  constexpr int second = 32 * blocks * row_bytes / int(sizeof(Element));
  L2T_FAST_UNROLL
  for (int number = 0; number < stages - 1; ++number) {
    if (number < count) fill(number, tile(number), tile(number) + second);
    m.commit();
  }
  // Where its fragments lie is computed once for all tiles; in bfloat16, whose tiles have twice the terms, and in the
  // Gram form's three products of tf32 for each, for want of registers.
  constexpr bool asks_again = std::is_same_v<Mode, Bfloat16> || (std::is_same_v<Mode, Tf32x3> && !apart);
  const int thread = m.thread();
  int slot = 0, free = stages - 1;
  for (int number = 0; number < count; ++number) {
    m.template wait_for_all_but<stages - 2>();
    settle(number, tile(slot), tile(slot) + second);
    m.barrier();
    if (number + stages - 1 < count) fill(number + stages - 1, tile(free), tile(free) + second);
    m.commit();
    product<Mode, A, B, blocks, apart>(m, asks_again ? m.thread() : thread, sums, tile(slot), tile(slot) + second);
    after(number);
    free = slot;
    slot = slot + 1 == stages ? 0 : slot + 1;
  }
  m.barrier();
}

// So many tiles' sums are put away at a time, by additions that round, so that what is cut off does not add up over
// thousands of terms.
template <class Element>
inline constexpr int tiles_of_chain = 128 / depth<Element>;

template <class Mode, class A, class B, int blocks, class M, class Fill, class Settle>
L2T_FAST_KERNEL void multiply_tiles_in_chains(M& m, Sums<blocks>& sums, int count, const Fill& fill,
                                              const Settle& settle) {
  constexpr int chain = tiles_of_chain<typename Mode::Element>;
  Sums<blocks> some;
  clear<blocks>(some);
  multiply_tiles<Mode, A, B, blocks, false>(m, some, count, fill, settle, [&some, &sums, last = count - 1](int number) {
    if (number % chain == chain - 1 || number == last) put_away<blocks>(some, sums);
  });
}

template <class Mode, class A, class B, int blocks, class M, class Fill, class Settle>
L2T_FAST_KERNEL void multiply_tiles(M& m, Sums<blocks>& sums, int count, const Fill& fill, const Settle& settle) {
  multiply_tiles<Mode, A, B, blocks, std::is_same_v<Mode, Tf32x3>>(m, sums, count, fill, settle, [](int) {});
}

// ---- between memory and tiles

template <Type type>
using Stored = std::conditional_t<type == Type::float32, float, uint16_t>;

template <Type type, class M>
L2T_FAST_KERNEL float widened(M& m, Stored<type> stored) {
  if constexpr (type == Type::float32)
    return stored;
  else if constexpr (type == Type::bfloat16)
    return m.as_float(uint32_t(stored) << 16);
  else
    return m.from_half(stored);
}

// Of the caller's tensors, which no kernel of the launch writes.
template <Type type, class M>
L2T_FAST_KERNEL float load(M& m, const void* data, int64_t offset) {
  return widened<type>(m, m.read(static_cast<const Stored<type>*>(data) + offset));
}

// function(a constant that holds the type)
template <class Function>
L2T_FAST_KERNEL auto with_type(Type type, const Function& function) {
  if (type == Type::float32) return function(std::integral_constant<Type, Type::float32>());
  if (type == Type::bfloat16) return function(std::integral_constant<Type, Type::bfloat16>());
  return function(std::integral_constant<Type, Type::float16>());
}

template <class M>
L2T_FAST_KERNEL float load(M& m, const void* data, Type type, int64_t offset) {
  return with_type(type, [&](auto own) { return load<decltype(own)::value>(m, data, offset); });
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

// Four elements of the tiles' type in a row, which are aligned, of the caller's tensors.
template <class Mode, class M>
L2T_FAST_KERNEL void read_four(M& m, const void* data, int64_t offset, float (&values)[4]) {
  if constexpr (sizeof(typename Mode::Element) == 4) {
    m.read4(values, static_cast<const float*>(data) + offset);
  } else {
    uint32_t bits[2];
    m.read8(bits, static_cast<const uint16_t*>(data) + offset);
    L2T_FAST_UNROLL
    for (int i = 0; i < 4; ++i) values[i] = m.as_float(i % 2 ? bits[i / 2] & 0xffff0000 : bits[i / 2] << 16);
  }
}

// What a kernel leaves for the next one's tiles. The offset of four elements is a multiple of 4.
template <class Mode, class M>
L2T_FAST_KERNEL void keep_vector(M& m, void* data, int64_t offset, const float (&values)[4]) {
  uint32_t bits[4];
  L2T_FAST_UNROLL
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(typename Mode::Element) == 2)
      bits[i] = m.to_bfloat16(values[i]);
    else
      bits[i] = Mode::rounds ? m.tf32(m.as_bits(values[i])) : m.as_bits(values[i]);
  }
  if constexpr (sizeof(typename Mode::Element) == 2)
    m.write8(static_cast<uint16_t*>(data) + offset, bits[0] | bits[1] << 16, bits[2] | bits[3] << 16);
  else
    m.write16(static_cast<float*>(data) + offset, bits);
}

template <class Mode, class M>
L2T_FAST_KERNEL void keep(M& m, void* data, int64_t offset, float value) {
  if constexpr (sizeof(typename Mode::Element) == 2)
    static_cast<uint16_t*>(data)[offset] = m.to_bfloat16(value);
  else
    static_cast<float*>(data)[offset] = Mode::rounds ? m.as_float(m.tf32(m.as_bits(value))) : value;
}

// Where row `row` of a tile's `count` ones lies. A half of the rows takes every other 16, so that a warp has both
// halves.
template <int length, int count>
L2T_FAST_KERNEL int spread(int row, int half) {
  if constexpr (count == length)
    return row;
  else
    return row / 16 * 32 + row % 16 + 16 * half;
}

// The half that such a row of the tile is of, and which of its rows it is.
L2T_FAST_KERNEL int half_at(int row) { return row / 16 % 2; }
L2T_FAST_KERNEL int row_of_half(int row) { return row / 32 * 16 + row % 16; }

// Where the piece lies that holds place `within` of line `line`, of a tile or of a half of it.
template <bool AlongSum, int length, int count, class Element>
L2T_FAST_KERNEL int place_of(int line, int within, int half) {
  if constexpr (AlongSum)
    return place<true, length, Element>(spread<length, count>(line, half), within / vector<Element>);
  else
    return place<false, length, Element>(line, spread<length, count>(within, half) / vector<Element>);
}

// pieces(line, its address in the tile) for the pieces of so many elements of a tile, or of a half of it, that are a
// thread's own: those at one place of every line that is a multiple of `step` behind the first. Where these lines are
// permuted alike, a piece's address follows from the one before.
template <bool AlongSum, int length, int count, int elements, class Element, class Function>
L2T_FAST_KERNEL void for_each_piece(Element* tile, int half, int thread, const Function& piece) {
  constexpr int lines = AlongSum ? count : depth<Element>, width = (AlongSum ? depth<Element> : count) / elements;
  constexpr int step = threads / width, period = AlongSum || sizeof(Element) == 2 ? 8 : 4;
  constexpr bool alike = step % period == 0 && (!AlongSum || count == length);
  const int within = thread % width * elements;
  const auto at = [=](int line) {
    return tile + place_of<AlongSum, length, count, Element>(line, within, half) + within % vector<Element>;
  };
  Element* place = at(thread / width);
  L2T_FAST_UNROLL_BY(4)
  for (int line = thread / width; line < lines; line += step) {
    piece(line, alike ? place : at(line));
    place += step * (AlongSum ? depth<Element> : length);
  }
}

// A tile, or a half of it, from memory: so many elements at once, asynchronously unless a type changes or it is single
// elements of 16 bits. An element lies at along(its place in the line) + across(line), of which those of one sample fit
// into 32 bits; where either is negative there is none, and the tile gets 0.
template <bool AlongSum, int length, int count, class Element, class M, class Along, class Across>
L2T_FAST_KERNEL void fill(M& m, Element* tile, int half, const void* data, Type type, int at_once, const Along& along,
                          const Across& across) {
  constexpr int lines = AlongSum ? count : depth<Element>;
  constexpr int width = AlongSum ? depth<Element> : count, pieces = width / vector<Element>;
  constexpr int few = vector<Element> / 2;
  const auto at = [half](int line, int within) {
    return place_of<AlongSum, length, count, Element>(line, within, half);
  };
  const int thread = m.thread();
  const auto* const from = static_cast<const Element*>(data);
  if (at_once == vector<Element>) {
    const int piece = thread % pieces;
    const auto begin = along(piece * vector<Element>);
    L2T_FAST_UNROLL
    for (int line = thread / pieces; line < lines; line += threads / pieces) {
      const auto rest = across(line);
      const bool lives = begin >= 0 && rest >= 0;
      m.copy16(tile + at(line, piece * vector<Element>), from + (lives ? begin + rest : 0), lives);
    }
    return;
  }
  if (at_once == few) {
    const auto begin = along(thread % (width / few) * few);
    for_each_piece<AlongSum, length, count, few>(tile, half, thread, [&](int line, Element* to) {
      const auto rest = across(line);
      const bool lives = begin >= 0 && rest >= 0;
      m.copy8(to, from + (lives ? begin + rest : 0), lives);
    });
    return;
  }
  const auto begin = along(thread % width);
  if constexpr (sizeof(Element) == 4) {
    if (type == Type::float32) {
      for_each_piece<AlongSum, length, count, 1>(tile, half, thread, [&](int line, Element* to) {
        const auto rest = across(line);
        const bool lives = begin >= 0 && rest >= 0;
        m.copy4(to, from + (lives ? begin + rest : 0), lives);
      });
      return;
    }
  }
  // By way of registers: some are read before the first is written, since each would be waited for.
  constexpr int step = threads / width, some = lines / step < 4 ? lines / step : 4;
  static_assert(lines % (step * some) == 0);
  const auto each = [&](auto own) {
    L2T_FAST_UNROLL_BY(1)
    for (int first = thread / width; first < lines; first += step * some) {
      float values[some];
      bool live[some];
      L2T_FAST_UNROLL
      for (int k = 0; k < some; ++k) {
        const auto rest = across(first + k * step);
        live[k] = begin >= 0 && rest >= 0;
        values[k] = load<decltype(own)::value>(m, data, live[k] ? begin + rest : 0);
      }
      L2T_FAST_UNROLL
      for (int k = 0; k < some; ++k) {
        Element& to = tile[at(first + k * step, thread % width) + thread % width % vector<Element>];
        const float value = live[k] ? values[k] : 0.f;
        if constexpr (sizeof(Element) == 4)
          to = value;
        else
          to = uint16_t(m.as_bits(value) >> 16);  // of bfloat16, which it came from
      }
    }
  };
  if constexpr (sizeof(Element) == 4) {
    if (type == Type::float16) {
      each(std::integral_constant<Type, Type::float16>());
      return;
    }
  }
  each(std::integral_constant<Type, Type::bfloat16>());
}

// Rounds what the thread filled in with the same arguments, where products take tf32.
template <class Mode, bool AlongSum, int length, int count, class M>
L2T_FAST_KERNEL void round_filled(M& m, typename Mode::Element* tile, int half, int at_once) {
  if constexpr (Mode::rounds) {
    constexpr int lines = AlongSum ? count : depth<float>, width = AlongSum ? depth<float> : count;
    constexpr int pieces = width / vector<float>;
    const auto at = [half](int line, int within) {
      return place_of<AlongSum, length, count, float>(line, within, half);
    };
    const int thread = m.thread();
    if (at_once == vector<float>) {
      L2T_FAST_UNROLL
      for (int line = thread / pieces; line < lines; line += threads / pieces)
        m.round_to_tf32(tile + at(line, thread % pieces * vector<float>));
      return;
    }
    // some are read before the first is written: each would be waited for
    const auto round = [&](auto elements) {
      constexpr int of_piece = decltype(elements)::value, step = threads * of_piece / width;
      constexpr int some = lines / step < 4 ? lines / step : 4;
      static_assert(lines % (step * some) == 0);
      const int within = thread * of_piece % width;
      L2T_FAST_UNROLL_BY(1)
      for (int line = thread * of_piece / width; line < lines; line += step * some) {
        float* places[some];
        float values[some][of_piece];
        L2T_FAST_UNROLL
        for (int k = 0; k < some; ++k) {
          places[k] = tile + at(line + k * step, within) + within % vector<float>;
          L2T_FAST_UNROLL
          for (int i = 0; i < of_piece; ++i) values[k][i] = places[k][i];
        }
        L2T_FAST_UNROLL
        for (int k = 0; k < some; ++k) {
          L2T_FAST_UNROLL
          for (int i = 0; i < of_piece; ++i) places[k][i] = m.as_float(m.tf32(m.as_bits(values[k][i])));
        }
      }
    };
    if (at_once == 2)
      round(std::integral_constant<int, 2>());
    else
      round(std::integral_constant<int, 1>());
  }
}

template <class Element>
L2T_FAST_KERNEL bool in_vectors(const Map& map) {
  return map.at_once == vector<Element>;
}

// An operand's tiles one after the other along the sum, in whole pieces. All that decides where a thread reads next is
// in registers, so that little stands between two products.
template <bool AlongSum, int length, int count, class Element>
class Feed {
  static constexpr int pieces = (AlongSum ? depth<Element> : count) / vector<Element>;  // of a line
  static constexpr int step = threads / pieces;  // between the lines that a thread copies
  static constexpr int lines = (AlongSum ? count : depth<Element>) / step;

 public:
  // Of zeros alone.
  L2T_FAST_KERNEL Feed() : from_(nullptr), stride_(0), terms_(0), others_(0) {}

  // `from`: the first line's first element; lines lie `stride` apart. AlongSum: of `lines` lines with `terms` elements;
  // else of `terms` lines with `others` elements.
  L2T_FAST_KERNEL Feed(int thread, const void* from, int64_t stride, int terms, int others)
      : from_(static_cast<const Element*>(from) + thread / pieces * stride + thread % pieces * vector<Element>),
        stride_(stride) {
    const int line = thread / pieces, place = thread % pieces * vector<Element>;
    terms_ = terms - (AlongSum ? place : line);
    others_ = others - (AlongSum ? line : place);
  }

  template <class M>
  L2T_FAST_KERNEL void next(M& m, Element* tile, int half = 0) {
    static_assert(!AlongSum || count == length);
    const int thread = m.thread(), line = thread / pieces;
    const int piece =
        AlongSum ? thread % pieces : spread<length, count>(thread % pieces * vector<Element>, half) / vector<Element>;
    const Element* at = from_;
    L2T_FAST_UNROLL
    for (int i = 0; i < lines; ++i) {
      const bool lives = AlongSum ? terms_ > 0 && i * step < others_ : i * step < terms_ && others_ > 0;
      m.copy16(tile + place<AlongSum, length, Element>(line + i * step, piece), at, lives);
      at += step * stride_;
    }
    from_ += AlongSum ? depth<Element> : depth<Element> * stride_;
    terms_ -= depth<Element>;
  }

 private:
  const Element* from_;
  int64_t stride_;
  int terms_, others_;  // left from the thread's first on
};

// A matrix that a kernel packed or kept, (lines, stride).
struct Packed {
  const void* data;
  int64_t stride;
  int lines;
};

// Its tiles from a line and a place in it on.
template <bool AlongSum, int length, class Element, class M>
L2T_FAST_KERNEL Feed<AlongSum, length, length, Element> feed_packed(M& m, const Packed& matrix, int line, int begin) {
  const auto* const from = static_cast<const Element*>(matrix.data) + line * matrix.stride + begin;
  const int lines = matrix.lines - line, within = int(matrix.stride) - begin;
  return {m.thread(), from, matrix.stride, AlongSum ? within : lines, AlongSum ? lines : within};
}

}  // namespace l2t_fast::cuda
