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
  L2T_FAST_KERNEL explicit Gradients(M& m) : m_(m) {}

  L2T_FAST_KERNEL void run_target(int item) {
    if (target().channels > 64)
      gradient_of_target<4>(item);
    else
      gradient_of_target<2>(item);
  }

  L2T_FAST_KERNEL void run_projection(int item) {
    const bool last = target().map.channels_last;
    if (target().channels > 64)
      last ? projection<4, true>(item) : projection<4, false>(item);
    else
      last ? projection<2, true>(item) : projection<2, false>(item);
  }

 private:
  L2T_FAST_KERNEL const Part& part() const { return work(m_).part; }
  L2T_FAST_KERNEL const Target& target() const { return work(m_).target; }

  // Tiles of a map's channels and consecutive columns, where pieces are of one sample.
  template <int height>
  class ColumnFeed {
    static constexpr int pieces = terms_of_tile / vector<Element>, step = threads / pieces;

   public:
    bool vectors = false;

    ColumnFeed() = default;
    L2T_FAST_KERNEL ColumnFeed(int thread, const Map& map, const Line& line, int first_column, int first_channel,
                               int channels)
        : vectors(in_vectors<Element>(map)),
          from_(static_cast<const Element*>(map.data) + int64_t(first_channel + thread / pieces) * map.channel +
                line.first_sample * map.sample),
          by_sample_(map.sample),
          by_channel_(map.channel),
          pixels_(line.pixels),
          columns_(line.columns),
          by_pixels_(line.by_pixels),
          column_(first_column + thread % pieces * vector<Element>),
          channels_(channels - first_channel - thread / pieces) {}

    L2T_FAST_KERNEL void next(M& m, Element* tile) {
      const int thread = m.thread(), sample = divide(column_, by_pixels_);
      const bool lives = column_ < columns_;
      const Element* at = from_ + (lives ? sample * by_sample_ + (column_ - sample * pixels_) : 0);
      L2T_FAST_UNROLL
      for (int i = 0; i < height / step; ++i) {
        m.copy16(tile + place<true, height, Element>(thread / pieces + i * step, thread % pieces), at,
                 lives && i * step < channels_);
        at += step * by_channel_;
      }
      column_ += terms_of_tile;
    }

   private:
    const Element* from_;
    int64_t by_sample_;
    int by_channel_, pixels_, columns_;
    Divisor by_pixels_;
    int column_, channels_;
  };

  // The factors of the sums' first term, or of the second: of what moves.
  L2T_FAST_KERNEL Packed weight(bool moves) const {
    return {moves ? target().weight_direction : target().weight, target().stride, target().rows};
  }
  L2T_FAST_KERNEL Packed differences(bool moves) const {
    return {part().differences[moves ? 1 : 0], part().stride, target().rows};
  }

  // A tile of channels and columns of dT, or of a share of its sum.
  template <int blocks>
  L2T_FAST_KERNEL void gradient_of_target(int item) {
    constexpr int height = 32 * blocks;
    const int channel_tiles = tiles(target().channels, height);
    const int column_tiles = tiles(Line(target(), part()).columns, tile_width);
    const int first_channel = item % channel_tiles * height;
    const int first_column = item / channel_tiles % column_tiles * tile_width;
    const int share = item / channel_tiles / column_tiles, shares = part().target_shares;
    find_spots<tile_width>(m_, Line(target(), part()), first_column, tile_width);
    const int count = tiles(target().rows, terms_of_tile), all = target().weight_direction ? 2 * count : count;
    const int begin = int(int64_t(all) * share / shares), end = int(int64_t(all) * (share + 1) / shares);
    Sums<blocks> sums;
    clear<blocks>(sums);
    constexpr bool pairs = sizeof(Element) == 4;
    multiply_tiles<Mode, Layout<false, pairs>, Layout<false>, blocks>(
        m_, sums, end - begin,
        [=, this, from_a = Feed<false, height, height, Element>(),
         from_b = Feed<false, tile_width, tile_width, Element>()](int number, Element* a, Element* b) mutable {
          if (number == 0 || begin + number == count) {
            const bool moves = begin + number >= count;
            const int row = (begin + number - (moves ? count : 0)) * terms_of_tile;
            from_a = feed_packed<false, height, Element>(m_, weight(moves), row, first_channel);
            from_b = feed_packed<false, tile_width, Element>(m_, differences(moves), row, first_column);
          }
          from_a.next(m_, a);
          from_b.next(m_, b);
        },
        [](int, Element*, Element*) {});
    const int channels = target().channels;
    if (shares > 1) {
      const int64_t stride = part().stride;
      float* const to = part().target_sums + int64_t(share) * channels * stride;
      for_each_sum<blocks, pairs>(m_, sums, [=](int i, int j, float sum) {
        if (first_channel + i < channels && first_column + j < stride)
          to[(first_channel + i) * stride + first_column + j] = sum;
      });
      return;
    }
    const Map result = target().result;
    L2T_FAST_UNROLL
    for (int j = 0; j < 4; ++j) {
      L2T_FAST_UNROLL
      for (int e = 0; e < 2; ++e) {
        const Spot spot = spots(m_)[position<blocks>(m_.thread(), 0, j, e).column];
        if (spot.sample < 0) continue;
        const int64_t offset = offset_of(result, spot);
        L2T_FAST_UNROLL
        for (int i = 0; i < 2 * blocks; ++i) {
          const int channel = first_channel + position<blocks, pairs>(m_.thread(), i / 2, j, i % 2 * 2).row;
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
    const int channel_tiles = tiles(target().channels, height), row_tiles = tiles(target().rows, tile_width);
    const int first_channel = item % channel_tiles * height;
    const int first_row = item / channel_tiles % row_tiles * tile_width, split = item / channel_tiles / row_tiles;
    const int count = tiles(part().stride, terms_of_tile), all = target().direction.data ? 2 * count : count;
    const int begin = int(int64_t(all) * split / target().splits),
              end = int(int64_t(all) * (split + 1) / target().splits);
    Sums<blocks> sums;
    clear<blocks>(sums);
    multiply_tiles<Mode, Layout<!channels_last>, Layout<true>, blocks>(
        m_, sums, end - begin,
        [=, this, from_a = ColumnFeed<height>(), from_b = Feed<true, tile_width, tile_width, Element>()](
            int number, Element* a, Element* b) mutable {
          const bool moves = begin + number >= count;
          const int first_column = (begin + number - (moves ? count : 0)) * terms_of_tile;
          if (number == 0 || begin + number == count) {
            from_b = feed_packed<true, tile_width, Element>(m_, differences(moves), first_row, first_column);
            if (!channels_last)
              from_a = {m_.thread(),
                        moves ? target().direction : target().map,
                        Line(target(), part()),
                        first_column,
                        first_channel,
                        target().channels};
          }
          from_b.next(m_, b);
          if (!channels_last && from_a.vectors) {
            from_a.next(m_, a);
            return;
          }
          const Map map = moves ? target().direction : target().map;
          const Line line(target(), part());
          const int channels = target().channels;
          const auto column = [=](int within) {
            const Spot spot = line.spot(first_column + within);
            return spot.sample < 0 ? int64_t(-1) : offset_of(map, spot);
          };
          const auto channel = [=](int within) {
            return first_channel + within < channels ? (first_channel + within) * map.channel : -1;
          };
          if constexpr (channels_last)
            fill<false, height, height>(m_, a, 0, map.data, map.type, map.at_once, channel, column);
          else
            fill<true, height, height>(m_, a, 0, map.data, map.type, map.at_once, column, channel);
        },
        [=, this](int number, Element* a, Element*) {
          const Map& map = begin + number >= count ? target().direction : target().map;
          round_filled<Mode, !channels_last, height, height>(m_, a, 0, map.at_once);
        });
    const int rows = target().rows, channels = target().channels;
    float* const to = target().weight_sums + int64_t(split) * rows * channels;
    const bool adds = part().number > 0;
    // What is added to is read for a row of blocks at once: one after the other, each would be waited for.
    L2T_FAST_UNROLL
    for (int i = 0; i < blocks; ++i) {
      float* at[4][4];
      float before[4][4];
      for_each_index<1>([&](int, int j, int e) {
        const Position where = position<blocks>(m_.thread(), i, j, e);
        const int channel = first_channel + where.row, row = first_row + where.column;
        at[j][e] = channel < channels && row < rows ? to + (int64_t(row) * channels + channel) : nullptr;
      });
      if (adds) {
        for_each_index<1>([&](int, int j, int e) { before[j][e] = at[j][e] ? *at[j][e] : 0.f; });
        for_each_index<1>([&](int, int j, int e) { sums[i][j][e] += before[j][e]; });
      }
      for_each_index<1>([&](int, int j, int e) {
        if (at[j][e]) *at[j][e] = sums[i][j][e];
      });
    }
  }

  M& m_;
};

template <class Mode, class M>
L2T_FAST_KERNEL void gradients(M& m, const Problem& problem, const Launch& launch) {
  const Segment segment = segment_of(m, problem, launch);
  const int item = m.block() - segment.first;
  const bool of_target = segment.kind == Segment::Kind::target;
  begin_work(m, problem, segment);
  if (of_target)
    Gradients<Mode, M>(m).run_target(item);
  else
    Gradients<Mode, M>(m).run_projection(item);
}

}  // namespace l2t_fast::cuda
