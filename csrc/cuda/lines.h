// Rows and columns: which pair and which pixel they are. A row is a source channel of a pair, a column a pixel of a
// sample; records.h says how they stand in line.
#pragma once

#include "tile.h"

namespace l2t_fast::cuda {

// Where a tile's column lies; sample -1: beyond the end.
struct Spot {
  int32_t sample, row, column;
};

// What a column takes of a pair's source: its upper left pixel, and the shares of the right one, times twice the
// target's width, and of the lower one, times twice its height: whole numbers, which 16 bits hold where no side has
// longest_side pixels.
struct alignas(8) Shares {
  int32_t first;
  uint16_t right, lower;
};

L2T_FAST_KERNEL int64_t offset_of(const Map& map, const Spot& spot) {
  return spot.sample * map.sample + (spot.row * map.row + spot.column * map.column);
}

L2T_FAST_KERNEL int divide(int number, const Divisor& by) {
  return int(uint64_t(uint32_t(number)) * by.magic >> by.shift);
}

// How a part's columns stand in line. Fields of records are copied before they are used in a loop: between copies into
// shared memory the compiler would read them again from memory.
struct Line {
  int pixels, width, first_sample, columns;  // columns of a part are fewer than 2^31
  Divisor by_pixels, by_width;

  L2T_FAST_KERNEL Line(const Target& target, const Part& part)
      : pixels(target.height * target.width),
        width(target.width),
        first_sample(part.first_sample),
        columns(part.samples * pixels),
        by_pixels(target.by_pixels),
        by_width(target.by_width) {}

  L2T_FAST_KERNEL int sample(int column) const { return divide(column, by_pixels); }

  L2T_FAST_KERNEL Spot spot(int column) const {
    if (column >= columns) return {-1, 0, 0};
    const int before = sample(column), pixel = column - before * pixels, row = divide(pixel, by_width);
    return {first_sample + before, row, pixel - row * width};
  }
};

// Those of the block's tile, in shared memory.
template <class M>
L2T_FAST_KERNEL Spot* spots(M& m) {
  return reinterpret_cast<Spot*>(m.shared() + pipeline_bytes);
}

template <class M>
L2T_FAST_KERNEL Shares* shares(M& m) {
  return reinterpret_cast<Shares*>(m.shared() + pipeline_bytes + tile_width * sizeof(Spot));
}

// What a block works on, copied from the table: its fields are asked for all along, each line of memory would be waited
// for when it is first, and registers are full of sums.
struct Work {
  Target target;
  Part part;
};
static_assert(tile_width * (sizeof(Spot) + sizeof(Shares)) + sizeof(Work) <= reserved_bytes);

template <class M>
L2T_FAST_KERNEL Work& work(M& m) {
  return *reinterpret_cast<Work*>(m.shared() + pipeline_bytes + tile_width * (sizeof(Spot) + sizeof(Shares)));
}

template <class M>
L2T_FAST_KERNEL void begin_work(M& m, const Problem& problem, const Segment& segment) {
  constexpr int of_target = sizeof(Target) / 8, of_part = sizeof(Part) / 8;
  static_assert(sizeof(Target) % 8 == 0 && sizeof(Part) % 8 == 0 && of_target + of_part <= threads);
  const int thread = m.thread();
  const auto copy = [&](void* to, const void* from, int piece) {
    m.copy8(static_cast<unsigned char*>(to) + 8 * piece, static_cast<const unsigned char*>(from) + 8 * piece, true);
  };
  if (thread < of_target)
    copy(&work(m).target, problem.targets + segment.target, thread);
  else if (thread < of_target + of_part)
    copy(&work(m).part, problem.parts + segment.index, thread - of_target);
  m.commit();
  m.template wait_for_all_but<0>();
  m.barrier();
}

template <int columns, class M>
L2T_FAST_KERNEL void find_spots(M& m, const Line& line, int first_column, int live) {
  if (const int thread = m.thread(); thread < columns)
    spots(m)[thread] = thread < live ? line.spot(first_column + thread) : Spot{-1, 0, 0};
  m.barrier();
}

// The last of `count` numbers from `first` on that begins(number) holds for; it holds for the first, and for none after
// one that it does not hold for. Some are asked at once, since each answer comes from memory.
template <class Begins>
L2T_FAST_KERNEL int last_that_begins(int first, int count, const Begins& begins) {
  constexpr int at_once = 3;
  while (count > 1) {
    const int step = (count + at_once) / (at_once + 1);
    int held = 0;
    L2T_FAST_UNROLL
    for (int i = 1; i <= at_once; ++i) held += begins(i * step < count ? first + i * step : first) && i * step < count;
    first += held * step;
    count = count - held * step < step ? count - held * step : step;
  }
  return first;
}

L2T_FAST_KERNEL const Pair* pair_of(const Problem& problem, const Target& target, int row) {
  return problem.pairs +
         last_that_begins(target.first_pair, target.pairs, [&](int p) { return problem.pairs[p].first_row <= row; });
}

template <class M>
L2T_FAST_KERNEL float value_at(M& m, const Vector& vector, int64_t index) {
  return vector.data ? load(m, vector.data, vector.type, index * vector.step) : 0.f;
}

L2T_FAST_KERNEL float* row_sums_of(const Target& target, int part, int tile, int slot) {
  return target.row_sums + ((int64_t(part) * target.tiles + tile) * target.slots + slot) * target.rows * 2;
}

// The segment of the launch that a block's item is in.
template <class M>
L2T_FAST_KERNEL Segment segment_of(M& m, const Problem& problem, const Launch& launch) {
  const int block = m.block();
  if (launch.count <= Launch::few) {
    int found = 0;
    L2T_FAST_UNROLL
    for (int i = 1; i < Launch::few; ++i) found += i < launch.count && launch.segments[i].first <= block;
    return launch.segments[found];
  }
  return problem.segments[last_that_begins(launch.first, launch.count,
                                           [&](int segment) { return problem.segments[segment].first <= block; })];
}

}  // namespace l2t_fast::cuda
