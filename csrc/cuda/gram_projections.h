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
    L2T_FAST_UNROLL_BY(1)
    for (int line = m_.thread() / terms; line < height; line += threads / terms) {
      const int channel = first_channel + line;
      float sum = 0;
      if (channel < channels && term < channels) {
        sum = product_of(moves, sample, channel, term);
        if (moves) sum += product_of(moves, sample, term, channel);
      }
      tile[place<true, height, float>(line, within / vector<float>) + within % vector<float>] = sum;
    }
  }

  L2T_FAST_KERNEL float product_of(bool moves, int sample, int line, int channel) const {
    const Gram& gram = target_.gram;
    const int64_t channels = target_.channels, lines = channels + gram.own_rows;
    const float* from = gram.products[moves] + (sample * lines + line) * channels + channel;
    float sum = 0;
    for (int part = 0; part < gram.shares; ++part, from += problem_.batch * lines * channels) sum += *from;
    return sum;
  }

  // S~ T^T or S~ vT^T of a sample.
  L2T_FAST_KERNEL float cross(bool moves, int sample, int row, int channel) const {
    const Gram& gram = target_.gram;
    const int small_row = row - gram.own_rows;
    if (small_row < 0) return product_of(moves, sample, target_.channels + row, channel);
    return gram
        .small_products[moves]
                       [(int64_t(sample) * (target_.rows - gram.own_rows) + small_row) * target_.channels + channel];
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
  // What a row and channel add to the sums over channels, and to the gradient of the weight.
  struct Share {
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

  // Goes through a product's elements, a warp a row: share(row, row of the tile, channel, element) says what each adds,
  // and finish(row, row of the tile, sums) is for one thread, the same in every call. By way of shared memory, in a
  // short loop: unrolled over the registers of the sums the code would not fit into the instruction cache.
  template <class Function, class Finish>
  L2T_FAST_KERNEL void sum_up(const Sums<blocks>& sums, const Where& here, bool adds, const Function& share,
                              const Finish& finish) {
    constexpr int width = tile_width + 1, rows_of_warp = tile_width / (threads / 32);
    static_assert(height * width * sizeof(float) <= pipeline_bytes);
    float* const staged = reinterpret_cast<float*>(m_.shared());
    for_each_sum<blocks>(m_, sums, [=](int i, int j, float sum) { staged[i * width + j] = sum; });
    m_.barrier();
    const int lane = m_.thread() % 32, channels = target_.channels;
    L2T_FAST_UNROLL_BY(1)
    for (int turn = 0; turn < rows_of_warp; ++turn) {
      const int column = m_.thread() / 32 * rows_of_warp + turn, row = here.first_row + column;
      if (row >= target_.rows) break;
      RowSums own{};
      L2T_FAST_UNROLL_BY(1)
      for (int i = lane; i < height && here.first_channel + i < channels; i += 32) {
        const int channel = here.first_channel + i;
        const Share found = share(row, column, channel, staged[i * width + column]);
        L2T_FAST_UNROLL
        for (int k = 0; k < 3; ++k) own.values[k] += found.values[k];
        if (here.weight_sums) {
          float& to = here.weight_sums[int64_t(row) * channels + channel];
          to = adds ? to + found.gradient : found.gradient;
        }
      }
      L2T_FAST_UNROLL
      for (int mask = 1; mask < 32; mask *= 2) {
        L2T_FAST_UNROLL
        for (float& value : own.values) value += m_.exchange(value, mask);
      }
      if (lane == 0) finish(row, column, own);
    }
  }

  L2T_FAST_KERNEL void write_row_sums(const Where& here, int row, float square, float factor) {
    float* const to =
        row_sums_of(target_, 0, here.sample * target_.tiles_of_sample + here.channel_tile, 0) + 2 * int64_t(row);
    to[0] = square;
    to[1] = factor;
  }

  L2T_FAST_KERNEL float weight_at(bool moves, int row, int channel) const {
    const void* const weight = moves ? target_.weight_direction : target_.weight;
    return weight ? static_cast<const float*>(weight)[int64_t(row) * target_.stride + channel] : 0.f;
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
    const float *const planes = planes_of(here.sample), *const factors = twice(false, here.sample);
    sum_up(
        sums, here, here.adds,
        [=, this, &here](int row, int column, int channel, float sum) {
          const float with_source = cross(false, here.sample, row, channel), mean = planes[2 * channel];
          const float whole = sum + (biases(0)[column] * mean - with_source), weight = weight_at(false, row, channel);
          return Share{{weight * (whole - with_source), weight * mean, 0}, factors[row] * whole};
        },
        [=, this, &here](int row, int column, const RowSums& found) {
          const float bias = biases(0)[column], *const source = planes + 2 * (target_.channels + row);
          float square = found.values[0], difference = found.values[1];
          if (here.channel_tile == 0) {
            difference += float(target_.height * target_.width) * bias - source[0];
            square += source[1] - bias * source[0];
          }
          write_row_sums(here, row, square + bias * difference, factors[row] * difference);
        });
  }

  // hW; 2 sum D V and the sum of E'. With M as above, K = vT T^T, N = W (K + K^T) + vW T T^T:
  //   hW = 2 alpha (N + vb (sum T)^T + b (sum vT)^T - S~ vT^T) + 2 valpha M
  //   sum V = W sum vT + vW sum T + P vb
  //   sum D V = (W . N - vW . (W T T^T)) / 2 + b W sum vT - W . (S~ vT^T) + vW . M + vb sum D
  L2T_FAST_KERNEL void reduce_second(const Where& here) {
    const float *const planes = planes_of(here.sample), *const factors = twice(false, here.sample);
    const float* const factors_direction = target_.gram.coefficients[1] ? twice(true, here.sample) : nullptr;
    const bool maps_move = target_.direction.data;
    Sums<blocks> sums;
    clear<blocks>(sums);
    multiply_weights_by_product(sums, here, false);
    sum_up(
        sums, here, here.adds,
        [=, this, &here](int row, int column, int channel, float sum) {
          const float mean = planes[2 * channel], moved = weight_at(true, row, channel);
          const float whole = sum + (biases(0)[column] * mean - cross(false, here.sample, row, channel));
          return Share{{moved * (whole - sum / 2), weight_at(false, row, channel) * mean, moved * mean},
                       factors_direction ? factors_direction[row] * whole : 0.f};
        },
        [this](int /*row*/, int column, const RowSums& found) { kept()[column] = found; });
    m_.barrier();
    clear<blocks>(sums);
    multiply_weights_by_product(sums, here, true);
    sum_up(
        sums, here, true,
        [=, this, &here](int row, int column, int channel, float sum) {
          const float weight = weight_at(false, row, channel), mean = planes[2 * channel + 1];
          const float with_source = maps_move ? cross(true, here.sample, row, channel) : 0.f;
          const float change = biases(0)[column] * mean - with_source;
          return Share{{weight * (sum / 2 + change), 0, weight * mean},
                       factors[row] * (sum + change + biases(1)[column] * planes[2 * channel])};
        },
        [=, this, &here](int row, int column, const RowSums& moving) {
          const RowSums still = kept()[column];
          const float bias_direction = biases(1)[column];
          float difference = still.values[1], change = still.values[2] + moving.values[2];
          if (here.channel_tile == 0) {
            const float pixels = float(target_.height * target_.width);
            difference += pixels * biases(0)[column] - planes[2 * (target_.channels + row)];
            change += pixels * bias_direction;
          }
          write_row_sums(here, row, 2 * (still.values[0] + moving.values[0] + bias_direction * difference),
                         factors[row] * change + (factors_direction ? factors_direction[row] * difference : 0.f));
        });
  }
};

template <class M>
L2T_FAST_KERNEL void gram_projections(M& m, const Problem& problem, const Launch& launch) {
  const Segment& segment = segment_of(m, problem, launch);
  GramProjections<M>(m, problem, problem.targets[segment.index]).write_projections(m.block() - segment.first);
}

}  // namespace l2t_fast::cuda
