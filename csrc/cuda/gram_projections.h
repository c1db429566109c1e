// Third of the Gram form: from the products of maps, the gradients of weights and coefficients.
#pragma once

#include "gram.h"

namespace l2t_fast::cuda {

template <class M>
class GramProjections : GramTiles<M> {
  using Tiles = GramTiles<M>;
  using Tiles::blocks, Tiles::height, Tiles::m_, Tiles::next, Tiles::problem_, Tiles::target_, Tiles::twice,
      Tiles::weights_from;
  static constexpr int terms = depth<float>;

 public:
  using Tiles::Tiles;

  // dW or hW of a tile of rows and channels, for a share of the samples one after the other; and of each sample what
  // row_sums holds.
  L2T_FAST_KERNEL void write_projections(int item) {
    const int channels = target_.channels, rows = target_.rows;
    const int channel_tile = next(item, tiles(channels, height)), first_channel = channel_tile * height;
    const int first_row = next(item, tiles(rows, tile_width)) * tile_width, split = item;
    const int begin = int(problem_.batch * split / target_.splits),
              end = int(problem_.batch * (split + 1) / target_.splits);
    if (const int thread = m_.thread(); thread < tile_width) {
      const int row = first_row + thread;
      biases(0)[thread] = biases(1)[thread] = 0;
      if (row < rows) {
        const Pair& pair = *pair_of(problem_, target_, row);
        biases(0)[thread] = value_at(m_, pair.bias, row - pair.first_row);
        biases(1)[thread] = value_at(m_, pair.bias_direction, row - pair.first_row);
      }
    }
    float* const to = target_.weight_sums ? target_.weight_sums + int64_t(split) * rows * channels : nullptr;
    for (int sample = begin; sample < end; ++sample) {
      const Where here{sample, first_row, first_channel, channel_tile, to, sample > begin};
      if (problem_.second)
        reduce_second(here);
      else
        reduce_first(here);
      m_.barrier();
    }
  }

 private:
  // T T^T of a sample, or vT T^T and its transpose, the shares added up: lines are channels, and so are the terms.
  L2T_FAST_KERNEL void fill_product(float* tile, bool moves, int sample, int first_channel, int first_term) {
    const int channels = target_.channels, within = m_.thread() % terms, term = first_term + within;
    constexpr int step = threads / terms, own = height / step;
    const Gram& gram = target_.gram;
    const int64_t lines = channels + gram.own_rows, between = problem_.batch * lines * channels;
    const float* const from = gram.products[moves] + sample * lines * channels;
    float sums[own] = {}, turned[own] = {};
    // Those of a share are read before any of them is used. Beyond the end any will do.
    const auto place_of = [=, this](int i) {
      const int channel = first_channel + m_.thread() / terms + i * step;
      return channel < channels && term < channels ? channel : -1;
    };
    for (int part = 0; part < gram.shares; ++part) {
      L2T_FAST_UNROLL
      for (int i = 0; i < own; ++i) {
        const int channel = place_of(i);
        sums[i] += from[part * between + (channel < 0 ? 0 : channel * channels + term)];
        if (moves) turned[i] += from[part * between + (channel < 0 ? 0 : term * channels + channel)];
      }
    }
    L2T_FAST_UNROLL
    for (int i = 0; i < own; ++i) {
      const int line = m_.thread() / terms + i * step;
      tile[place<true, height, float>(line, within / vector<float>) + within % vector<float>] =
          place_of(i) < 0 ? 0.f : sums[i] + turned[i];
    }
  }

  // Where S~ T^T or S~ vT^T of a sample's row begins, and in how many shares it is.
  struct Cross {
    const float* begin;
    int shares;
  };
  L2T_FAST_KERNEL Cross cross(bool moves, int sample, int row) const {
    const Gram& gram = target_.gram;
    const int small_row = row - gram.own_rows, channels = target_.channels, lines = channels + gram.own_rows;
    const bool is_small = small_row >= 0;
    const int64_t line = is_small ? int64_t(sample) * (target_.rows - gram.own_rows) + small_row
                                  : int64_t(sample) * lines + channels + row;
    return {(is_small ? gram.small_products : gram.products)[moves] + line * channels, is_small ? 1 : gram.shares};
  }

  // Beside the pipeline, of the tile's rows: b, vb, and in K2 the sums over channels of its first half.
  L2T_FAST_KERNEL float* biases(int which) const {
    return reinterpret_cast<float*>(m_.shared() + pipeline_bytes) + which * tile_width;
  }
  struct RowSums {
    float values[3];
  };
  L2T_FAST_KERNEL RowSums* kept() const { return reinterpret_cast<RowSums*>(biases(2)); }
  static_assert(tile_width * (2 * sizeof(float) + sizeof(RowSums)) <= reserved_bytes);

  struct Where {
    int sample, first_row, first_channel, channel_tile;
    float* weight_sums;  // (rows, channels); null where nobody wants them
    bool adds;           // to those of the samples before
  };
  // What is known of a row and channel: a product's element, S~ T^T, W and vW, and the sums over pixels of T and vT.
  struct Element {
    float product, with_source, weight, moved, mean, mean_moved;
  };
  // Of a row and sample: twice alpha and its direction, and the sums over pixels of S~ and S~^2.
  struct Row {
    float twice, twice_direction, source, source_square;
  };
  // What it adds to the sums over channels, and to the gradient of the weight.
  struct Added {
    float values[3], gradient;
  };

  // sums += W T T^T; with `moves` W (K + K^T) + vW T T^T.
  L2T_FAST_KERNEL void multiply_weights_by_product(Sums<blocks>& sums, const Where& here, bool moves) {
    const int count = tiles(target_.channels, terms);
    const int products = moves ? (target_.direction.data ? 1 : 0) + (target_.weight_direction ? 1 : 0) : 1;
    multiply_tiles<Tf32x3, Layout<true>, Layout<true>, blocks, false>(
        m_, sums, count * products,
        [=, this, &here](int number, float* a, float* b) {
          const bool of_direction = moves && target_.direction.data && number < count;
          const int term = number % count * terms;
          fill_product(a, of_direction, here.sample, here.first_channel, term);
          feed_packed<true, tile_width, float>(m_, weights_from(moves && !of_direction, 0), here.first_row, term)
              .next(m_, b);
        },
        [](int, float*, float*) {}, [](int) {});  // a chain would take registers, and channels are few
  }

  // Goes through a product's elements, a warp a row: contribution(what is known of the row, row of the tile, element)
  // says what each adds, and finish(row, row of the tile, what is known of it, sums) is for one thread, the same in
  // every call. By way of shared memory, in a short loop: unrolled over the registers of the sums the code would not
  // fit into the instruction cache. What a lane needs of some rows is read before any of it is used. `cross_moves`: S~
  // vT^T in S~ T^T's place.
  template <class Function, class Finish>
  L2T_FAST_KERNEL void sum_up(const Sums<blocks>& sums, const Where& here, bool adds, bool cross_moves,
                              const Function& contribution, const Finish& finish) {
    constexpr int width = tile_width + 1, rows_of_warp = tile_width / (threads / 32), own = height / 32;
    constexpr int rows_at_once = 4;
    static_assert(rows_of_warp % rows_at_once == 0);
    static_assert(height * width * sizeof(float) <= pipeline_bytes);
    float* const staged = reinterpret_cast<float*>(m_.shared());
    for_each_sum<blocks>(m_, sums, [=](int i, int j, float sum) { staged[i * width + j] = sum; });
    m_.barrier();
    const int lane = m_.thread() % 32, channels = target_.channels, live = channels - here.first_channel;
    const auto* const weight = static_cast<const float*>(target_.weight);
    const auto* const moved = static_cast<const float*>(target_.weight_direction);
    const float* const planes = planes_of(here.sample);
    const int64_t step = problem_.batch * (channels + target_.gram.own_rows) * channels;  // from share to share
    const bool has_cross = !cross_moves || target_.direction.data;
    const bool reads = adds && here.weight_sums;  // a lane its own alone: the others write theirs
    const float* const factors = twice(false, here.sample);
    const float* const factors_direction = target_.gram.coefficients[1] ? twice(true, here.sample) : nullptr;
    int channel[own];
    float mean[own], mean_moved[own];
    L2T_FAST_UNROLL
    for (int k = 0; k < own; ++k) {
      channel[k] = here.first_channel + (lane + 32 * k < live ? lane + 32 * k : 0);  // beyond the end any will do
      mean[k] = planes[2 * channel[k]];
      mean_moved[k] = planes[2 * channel[k] + 1];
    }
    L2T_FAST_UNROLL_BY(1)
    for (int turn = 0; turn < rows_of_warp; turn += rows_at_once) {
      const int first = m_.thread() / 32 * rows_of_warp + turn, rows = target_.rows - here.first_row;
      if (first >= rows) break;
      Row of_row[rows_at_once];
      Element found[rows_at_once][own];
      float before[rows_at_once][own];
      L2T_FAST_UNROLL
      for (int r = 0; r < rows_at_once; ++r) {
        const int row = here.first_row + (first + r < rows ? first + r : first);
        of_row[r] = {factors[row], factors_direction ? factors_direction[row] : 0.f, planes[2 * (channels + row)],
                     planes[2 * (channels + row) + 1]};
        const Cross from = cross(cross_moves, here.sample, row);
        L2T_FAST_UNROLL
        for (int k = 0; k < own; ++k) {
          const int64_t at = int64_t(row) * target_.stride + channel[k];
          found[r][k] = {
              0, has_cross ? from.begin[channel[k]] : 0.f, weight[at], moved ? moved[at] : 0.f, mean[k], mean_moved[k]};
          before[r][k] = reads && lane + 32 * k < live ? here.weight_sums[int64_t(row) * channels + channel[k]] : 0.f;
        }
        for (int part = 1; has_cross && part < from.shares; ++part) {
          L2T_FAST_UNROLL
          for (int k = 0; k < own; ++k) found[r][k].with_source += from.begin[part * step + channel[k]];
        }
      }
      L2T_FAST_UNROLL
      for (int r = 0; r < rows_at_once; ++r) {
        if (first + r >= rows) break;
        const int column = first + r, row = here.first_row + column;
        RowSums own_sums{};
        L2T_FAST_UNROLL
        for (int k = 0; k < own; ++k) {
          if (lane + 32 * k >= live) continue;
          found[r][k].product = staged[(lane + 32 * k) * width + column];
          const Added added = contribution(of_row[r], column, found[r][k]);
          L2T_FAST_UNROLL
          for (int i = 0; i < 3; ++i) own_sums.values[i] += added.values[i];
          if (here.weight_sums) here.weight_sums[int64_t(row) * channels + channel[k]] = before[r][k] + added.gradient;
        }
        L2T_FAST_UNROLL
        for (int mask = 1; mask < 32; mask *= 2) {
          L2T_FAST_UNROLL
          for (float& value : own_sums.values) value += m_.exchange(value, mask);
        }
        if (lane == 0) finish(row, column, of_row[r], own_sums);
      }
    }
  }

  L2T_FAST_KERNEL void write_row_sums(const Where& here, int row, float square, float factor) {
    float* const to =
        row_sums_of(target_, 0, here.sample * target_.tiles_of_sample + here.channel_tile, 0) + 2 * int64_t(row);
    to[0] = square;
    to[1] = factor;
  }

  // The sums over the pixels of T and vT (first those of channels), of S~ and S~^2.
  L2T_FAST_KERNEL const float* planes_of(int sample) const {
    return target_.gram.plane_sums + int64_t(sample) * (target_.channels + target_.rows) * 2;
  }

  // dW; Q and the sum of E. With M = W T T^T + b (sum T)^T - S~ T^T:
  //   sum D = W sum T + P b - sum S~,   Q = W . (M - S~ T^T) + b (sum D - sum S~) + sum S~^2
  L2T_FAST_KERNEL void reduce_first(const Where& here) {
    Sums<blocks> sums;
    clear<blocks>(sums);
    multiply_weights_by_product(sums, here, false);
    sum_up(
        sums, here, here.adds, false,
        [this](const Row& of, int column, const Element& at) {
          const float whole = at.product + (biases(0)[column] * at.mean - at.with_source);
          return Added{{at.weight * (whole - at.with_source), at.weight * at.mean, 0}, of.twice * whole};
        },
        [this, &here](int row, int column, const Row& of, const RowSums& found) {
          const float bias = biases(0)[column];
          float square = found.values[0], difference = found.values[1];
          if (here.channel_tile == 0) {
            difference += float(target_.height * target_.width) * bias - of.source;
            square += of.source_square - bias * of.source;
          }
          write_row_sums(here, row, square + bias * difference, of.twice * difference);
        });
  }

  // hW; 2 sum D V and the sum of E'. With M as above, K = vT T^T, N = W (K + K^T) + vW T T^T:
  //   hW = 2 alpha (N + vb (sum T)^T + b (sum vT)^T - S~ vT^T) + 2 valpha M
  //   sum V = W sum vT + vW sum T + P vb
  //   sum D V = (W . N - vW . (W T T^T)) / 2 + b W sum vT - W . (S~ vT^T) + vW . M + vb sum D
  L2T_FAST_KERNEL void reduce_second(const Where& here) {
    const bool coefficients_move = target_.gram.coefficients[1] != nullptr;
    Sums<blocks> sums;
    clear<blocks>(sums);
    multiply_weights_by_product(sums, here, false);
    sum_up(
        sums, here, here.adds, false,
        [=, this](const Row& of, int column, const Element& at) {
          const float whole = at.product + (biases(0)[column] * at.mean - at.with_source);
          return Added{{at.moved * (whole - at.product / 2), at.weight * at.mean, at.moved * at.mean},
                       coefficients_move ? of.twice_direction * whole : 0.f};
        },
        [this](int /*row*/, int column, const Row&, const RowSums& found) { kept()[column] = found; });
    m_.barrier();
    clear<blocks>(sums);
    multiply_weights_by_product(sums, here, true);
    sum_up(
        sums, here, true, true,
        [this](const Row& of, int column, const Element& at) {
          const float change = biases(0)[column] * at.mean_moved - at.with_source;
          return Added{{at.weight * (at.product / 2 + change), 0, at.weight * at.mean_moved},
                       of.twice * (at.product + change + biases(1)[column] * at.mean)};
        },
        [=, this, &here](int row, int column, const Row& of, const RowSums& moving) {
          const RowSums still = kept()[column];
          const float bias_direction = biases(1)[column];
          float difference = still.values[1], change = still.values[2] + moving.values[2];
          if (here.channel_tile == 0) {
            const float pixels = float(target_.height * target_.width);
            difference += pixels * biases(0)[column] - of.source;
            change += pixels * bias_direction;
          }
          write_row_sums(here, row, 2 * (still.values[0] + moving.values[0] + bias_direction * difference),
                         of.twice * change + (coefficients_move ? of.twice_direction * difference : 0.f));
        });
  }
};

template <class M>
L2T_FAST_KERNEL void gram_projections(M& m, const Problem& problem, const Launch& launch) {
  const Segment segment = segment_of(m, problem, launch);
  GramProjections<M>(m, problem, problem.targets[segment.target]).write_projections(m.block() - segment.first);
}

}  // namespace l2t_fast::cuda
