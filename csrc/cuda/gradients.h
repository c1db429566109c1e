// From E: dT = sum over rows of W^T E, and dW = sum over columns of E T^T. In K2 E' takes E's place, and E with the
// directions of W and T is a second term of each sum.
#pragma once

#include "lines.h"
#include "tile.h"

namespace l2t_fast::cuda {

template <class Mode, class M>
class Gradients {
  using Element = typename Mode::Element;
  static constexpr int terms_of_tile = depth<Element>;

 public:
  L2T_FAST_KERNEL Gradients(M& m, const Problem& problem, const Part& part)
      : m_(m), part_(part), target_(problem.targets[part.target]) {}

  L2T_FAST_KERNEL void run_target(int item) {
    if (target_.channels > 64)
      target<4>(item);
    else
      target<2>(item);
  }

  L2T_FAST_KERNEL void run_projection(int item) {
    const bool last = target_.map.channels_last;
    if (target_.channels > 64)
      last ? projection<4, true>(item) : projection<4, false>(item);
    else
      last ? projection<2, true>(item) : projection<2, false>(item);
  }

 private:
  static L2T_FAST_KERNEL int tiles(int64_t length, int size) { return int((length + size - 1) / size); }

  // The factors of the sums' first term, or of the second: of what moves. Read from the records anew for every tile,
  // since registers are full of sums.
  L2T_FAST_KERNEL Packed weight(bool moves) const {
    return {moves ? target_.weight_direction : target_.weight, target_.stride, target_.rows};
  }
  L2T_FAST_KERNEL Packed differences(bool moves) const {
    return {part_.differences[moves ? 1 : 0], part_.stride, target_.rows};
  }

  // A tile of channels and columns of dT.
  template <int blocks>
  L2T_FAST_KERNEL void target(int item) {
    constexpr int height = 32 * blocks;
    const int channel_tiles = tiles(target_.channels, height);
    const int first_channel = item % channel_tiles * height;
    const int first_column = item / channel_tiles * tile_width;
    find_spots<tile_width>(m_, Line(target_, part_), first_column);
    const int count = tiles(target_.rows, terms_of_tile);
    Sums<blocks> sums;
    clear<blocks>(sums);
    multiply_tiles<Mode, Layout<false>, Layout<false>, blocks>(
        m_, sums, target_.weight_direction ? 2 * count : count,
        [=, this](int number, Element* a, Element* b) {
          const bool moves = number >= count;
          const int row = (moves ? number - count : number) * terms_of_tile;
          fill_packed<false, height>(m_, a, weight(moves), row, first_channel);
          fill_packed<false, tile_width>(m_, b, differences(moves), row, first_column);
        },
        [](int, Element*, Element*) {});
    const Map result = target_.result;
    const int channels = target_.channels;
    L2T_FAST_UNROLL
    for (int j = 0; j < 4; ++j) {
      L2T_FAST_UNROLL
      for (int e = 0; e < 2; ++e) {
        const Spot spot = spots(m_)[position<blocks>(m_.thread(), 0, j, e).column];
        if (spot.sample < 0) continue;
        const int64_t offset = offset_of(result, spot);
        L2T_FAST_UNROLL
        for (int i = 0; i < 2 * blocks; ++i) {
          const int channel = first_channel + position<blocks>(m_.thread(), i / 2, j, i % 2 * 2).row;
          if (channel < channels)
            store(m_, result.data, result.type, offset + channel * result.channel, sums[i / 2][j][i % 2 * 2 + e]);
        }
      }
    }
  }

  // A tile of channels and rows of dW, summed over a share of the part's columns, and added to the parts' before it.
  template <int blocks, bool channels_last>
  L2T_FAST_KERNEL void projection(int item) {
    constexpr int height = 32 * blocks;
    const int channel_tiles = tiles(target_.channels, height), row_tiles = tiles(target_.rows, tile_width);
    const int first_channel = item % channel_tiles * height;
    const int first_row = item / channel_tiles % row_tiles * tile_width, split = item / channel_tiles / row_tiles;
    const int count = tiles(part_.stride, terms_of_tile), all = target_.direction.data ? 2 * count : count;
    const int begin = int(int64_t(all) * split / target_.splits), end = int(int64_t(all) * (split + 1) / target_.splits);
    Sums<blocks> sums;
    clear<blocks>(sums);
    multiply_tiles<Mode, Layout<!channels_last>, Layout<true>, blocks>(
        m_, sums, end - begin,
        [=, this](int number, Element* a, Element* b) {
          const bool moves = begin + number >= count;
          const Map map = moves ? target_.direction : target_.map;
          const Line line(target_, part_);
          const int channels = target_.channels, first_column = (begin + number - (moves ? count : 0)) * terms_of_tile;
          const auto column = [=](int within) {
            const Spot spot = line.spot(first_column + within);
            return spot.sample < 0 ? int64_t(-1) : offset_of(map, spot);
          };
          const auto channel = [=](int within) {
            return first_channel + within < channels ? int64_t(first_channel + within) * map.channel : int64_t(-1);
          };
          if constexpr (channels_last)
            fill<false, height, height>(m_, a, 0, map.data, map.type, map.vectors, channel, column);
          else
            fill<true, height, height>(m_, a, 0, map.data, map.type, map.vectors, column, channel);
          fill_packed<true, tile_width>(m_, b, differences(moves), first_row, first_column);
        },
        [=, this](int number, Element* a, Element*) {
          const Map& map = begin + number >= count ? target_.direction : target_.map;
          round_filled<Mode, !channels_last, height, height>(m_, a, 0, map.vectors);
        });
    const int rows = target_.rows, channels = target_.channels;
    float* const to = target_.weight_sums + int64_t(split) * rows * channels;
    const bool adds = part_.number > 0;
    L2T_FAST_UNROLL
    for (int i = 0; i < blocks; ++i) {
      L2T_FAST_UNROLL
      for (int j = 0; j < 4; ++j) {
        L2T_FAST_UNROLL
        for (int e = 0; e < 4; ++e) {
          const Position where = position<blocks>(m_.thread(), i, j, e);
          const int channel = first_channel + where.row, row = first_row + where.column;
          if (channel >= channels || row >= rows) continue;
          float& sum = to[int64_t(row) * channels + channel];
          sum = adds ? sum + sums[i][j][e] : sums[i][j][e];
        }
      }
    }
  }

  M& m_;
  const Part& part_;
  const Target& target_;
};

template <class Mode, class M>
L2T_FAST_KERNEL void gradients(M& m, const Problem& problem, const Launch& launch) {
  const Segment& segment = segment_of(m, problem, launch);
  Gradients<Mode, M> item(m, problem, problem.parts[segment.index]);
  if (segment.kind == Segment::Kind::target)
    item.run_target(m.block() - segment.first);
  else
    item.run_projection(m.block() - segment.first);
}

}  // namespace l2t_fast::cuda
