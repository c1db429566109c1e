// Before the products: weights side by side, in the tiles' type. After them: partial sums, added in order. Items are
// counted in 32 bits, as matching.cpp checks.
#pragma once

#include "lines.h"

namespace l2t_fast::cuda {

// Twice the coefficient of a sample and row, and of its direction, for the Gram form.
template <class M>
L2T_FAST_KERNEL void pack_coefficients(M& m, const Problem& problem, const Target& target, int element) {
  if (element >= int(problem.batch) * target.rows) return;
  const int sample = element / target.rows, row = element - sample * target.rows;
  const Pair& pair = *pair_of(problem, target, row);
  const int64_t column = pair.column + row - pair.first_row;
  const auto twice = [&](const Coefficients& alpha) {
    return 2 * m.read(alpha.data + sample * alpha.sample + column * alpha.column);
  };
  target.gram.coefficients[0][element] = twice(problem.alpha);
  if (target.gram.coefficients[1]) target.gram.coefficients[1][element] = twice(problem.alpha_direction);
}

template <class Mode, class M>
L2T_FAST_KERNEL void pack(M& m, const Problem& problem, const Launch& launch) {
  const Segment segment = segment_of(m, problem, launch);
  const int block = m.block() - segment.first;
  if (segment.kind == Segment::Kind::coefficients) {
    pack_coefficients(m, problem, problem.targets[segment.target], block * threads + m.thread());
    return;
  }
  const Pair& pair = problem.pairs[segment.index];
  const Target& target = problem.targets[segment.target];
  const int channels = target.channels, stride = target.stride, count = pair.channels * stride;
  const int first = block * weights_of_thread * threads + m.thread();
  const int64_t place = int64_t(pair.first_row) * stride;
  const bool rounds = target.gram.groups == 0;
  const auto pack_matrix = [&](const Matrix& matrix, void* to, void* to_rounded) {
    if (!to && !to_rounded) return;
    // all are read before the first is written: each would be waited for
    float values[weights_of_thread] = {};
    if (matrix.data && channels)
      with_type(matrix.type, [&](auto type) {
        bool live[weights_of_thread];
        L2T_FAST_UNROLL
        for (int i = 0; i < weights_of_thread; ++i) {
          const int element = first + i * threads, row = element / stride, channel = element - row * stride;
          live[i] = element < count && channel < channels;
          const int64_t offset = row * matrix.row + channel * matrix.column;
          values[i] = load<decltype(type)::value>(m, matrix.data, live[i] ? offset : 0);
        }
        L2T_FAST_UNROLL
        for (int i = 0; i < weights_of_thread; ++i) values[i] = live[i] ? values[i] : 0.f;
      });
    L2T_FAST_UNROLL
    for (int i = 0; i < weights_of_thread; ++i) {
      const int element = first + i * threads;
      if (element >= count) continue;
      if (to && rounds)
        keep<Mode>(m, to, place + element, values[i]);
      else if (to)
        static_cast<float*>(to)[place + element] = values[i];
      if (to_rounded) keep<Mode>(m, to_rounded, place + element, values[i]);
    }
  };
  pack_matrix(pair.weight, target.weight, target.gram.weights[0]);
  pack_matrix(pair.weight_direction, target.weight_direction, target.gram.weights[1]);
}

// The sum of a number a thread.
template <class M>
L2T_FAST_KERNEL float sum_of_block(M& m, float value) {
  float* const parts = reinterpret_cast<float*>(m.shared());
  L2T_FAST_UNROLL
  for (int mask = 1; mask < 32; mask *= 2) value += m.exchange(value, mask);
  if (m.thread() % 32 == 0) parts[m.thread() / 32] = value;
  m.barrier();
  float sum = 0;
  L2T_FAST_UNROLL
  for (int warp = 0; warp < threads / 32; ++warp) sum += parts[warp];
  return sum;
}

// read(0) + read(1) + ..., in order. Some are read before the first is added: each would be waited for.
template <class Read>
L2T_FAST_KERNEL float sum_in_order(int count, const Read& read) {
  constexpr int at_once = 8;
  float sum = 0;
  for (int i = 0; i < count; i += at_once) {
    float values[at_once];
    L2T_FAST_UNROLL
    for (int k = 0; k < at_once; ++k) values[k] = read(i + k < count ? i + k : i);
    L2T_FAST_UNROLL
    for (int k = 0; k < at_once; ++k) sum += i + k < count ? values[k] : 0.f;
  }
  return sum;
}

// The same for 32 sums a block, each by a lane of every warp: a warp adds every eighth number.
template <class M, class Read>
L2T_FAST_KERNEL float sum_by_all_warps(M& m, int count, const Read& read) {
  constexpr int warps = threads / sums_of_block;
  float* const parts = reinterpret_cast<float*>(m.shared());
  const int thread = m.thread(), warp = thread / sums_of_block;
  parts[thread] = sum_in_order((count - warp + warps - 1) / warps, [&](int i) { return read(i * warps + warp); });
  m.barrier();
  float sum = 0;
  L2T_FAST_UNROLL
  for (int w = 0; w < warps; ++w) sum += parts[thread % sums_of_block + w * sums_of_block];
  return sum;
}

// Q of a sample and row (or its derivative), the sum of E for the bias, and the loss of the block's samples and rows.
template <class M>
L2T_FAST_KERNEL void finish_squares(M& m, const Problem& problem, const Target& target, int block) {
  const int element = block * threads + m.thread();
  float loss = 0;
  if (element < int(problem.batch) * target.rows) {
    const int sample = element / target.rows, row = element - sample * target.rows;
    const int part = sample / target.part_samples, local = sample - part * target.part_samples;
    const int pixels = target.height * target.width;
    const int ahead = target.tiles_of_sample, first_column = ahead ? 0 : local * pixels;
    const int step = target.step, begin = ahead ? local * ahead : first_column / step;
    const int end = ahead ? begin + ahead : (first_column + pixels - 1) / step + 1;
    const Divisor by_pixels = target.by_pixels;
    const Pair& pair = *pair_of(problem, target, row);
    const int64_t column = pair.column + row - pair.first_row;
    const Coefficients& alpha = problem.alpha;
    const float coefficient = problem.loss ? alpha.data[sample * alpha.sample + column * alpha.column] : 0.f;
    constexpr int at_once = 4;  // as in sum_in_order
    float square = 0, factor = 0;
    for (int tile = begin; tile < end; tile += at_once) {
      float squares[at_once], factors[at_once];
      L2T_FAST_UNROLL
      for (int k = 0; k < at_once; ++k) {
        const int here = tile + k < end ? tile + k : tile, first = ahead ? local : divide(here * step, by_pixels);
        const float* const from = row_sums_of(target, part, here, local - first) + 2 * int64_t(row);
        squares[k] = from[0];
        factors[k] = from[1];
      }
      L2T_FAST_UNROLL
      for (int k = 0; k < at_once; ++k) {
        square += tile + k < end ? squares[k] : 0.f;
        factor += tile + k < end ? factors[k] : 0.f;
      }
    }
    if (problem.loss && square < 0) square = 0;  // what rounding leaves of the Gram form's sum of squares
    target.bias_sums[element] = factor;
    if (problem.squares) problem.squares[sample * problem.columns + column] = square;
    loss = coefficient * square;
  }
  if (!problem.loss) return;
  const float sum = sum_of_block(m, loss);
  if (m.thread() == 0) problem.loss_sums[m.block()] = sum;
}

// dT, where its sums over rows are cut into shares.
template <class M>
L2T_FAST_KERNEL void finish_target(M& m, const Target& target, const Part& part, int block) {
  const Line line(target, part);
  const Map& result = target.result;
  const int64_t step = target.channels * part.stride;
  for (int i = 0; i < weights_of_thread; ++i) {
    const int64_t element = (int64_t(block) * weights_of_thread + i) * threads + m.thread();
    if (element >= step) return;
    const auto channel = int(element / part.stride);
    const Spot spot = line.spot(int(element - channel * part.stride));
    if (spot.sample < 0) continue;
    const float sum =
        sum_in_order(part.target_shares, [&](int share) { return part.target_sums[share * step + element]; });
    store(m, result.data, result.type, offset_of(result, spot) + channel * result.channel, sum);
  }
}

template <class M>
L2T_FAST_KERNEL void finish(M& m, const Problem& problem, const Launch& launch) {
  const Segment segment = segment_of(m, problem, launch);
  const int block = m.block() - segment.first;
  if (segment.kind == Segment::Kind::squares) {
    finish_squares(m, problem, problem.targets[segment.target], block);
    return;
  }
  if (segment.kind == Segment::Kind::target_sums) {
    finish_target(m, problem.targets[segment.target], problem.parts[segment.index], block);
    return;
  }
  if (segment.kind == Segment::Kind::loss) {
    const int thread = m.thread(), count = (problem.loss_count - thread + threads - 1) / threads;
    const float* const sums = problem.loss_sums + thread;
    const float loss = sum_of_block(m, sum_in_order(count, [=](int i) { return sums[i * threads]; }));
    if (thread == 0) *problem.loss = loss;
    return;
  }
  const Pair& pair = problem.pairs[segment.index];
  const Target& target = problem.targets[segment.target];
  if (segment.kind == Segment::Kind::bias) {
    const int element = block * sums_of_block + m.thread() % sums_of_block, channels = pair.channels;
    const int64_t rows = target.rows;
    const float* const sums = target.bias_sums + pair.first_row + (element < channels ? element : 0);
    const float sum = sum_by_all_warps(m, int(problem.batch), [=](int sample) { return sums[sample * rows]; });
    if (m.thread() >= sums_of_block || element >= channels) return;
    store(m, pair.bias_result.data, pair.bias_result.type, element * pair.bias_result.step, sum);
    return;
  }
  const int channels = target.channels, count = pair.channels * channels;
  const float* const from = target.weight_sums + int64_t(pair.first_row) * channels;
  const int64_t step = int64_t(target.rows) * channels;
  const auto put = [&, result = pair.weight_result](int element, float sum) {
    const int row = element / channels, channel = element - row * channels;
    store(m, result.data, result.type, int64_t(row) * result.row + channel * result.column, sum);
  };
  if (target.splits > many_splits) {
    const int element = block * sums_of_block + m.thread() % sums_of_block;
    const float* const shares = from + (element < count ? element : 0);
    const float sum = sum_by_all_warps(m, target.splits, [=](int split) { return shares[split * step]; });
    if (m.thread() < sums_of_block && element < count) put(element, sum);
    return;
  }
  // The thread's elements side by side, and some shares of each: one after the other, each would be waited for.
  constexpr int at_once = 4;
  int elements[weights_of_thread];
  float sums[weights_of_thread] = {};
  L2T_FAST_UNROLL
  for (int i = 0; i < weights_of_thread; ++i) elements[i] = (block * weights_of_thread + i) * threads + m.thread();
  L2T_FAST_UNROLL_BY(1)
  for (int split = 0; split < target.splits; split += at_once) {
    float values[at_once][weights_of_thread];
    L2T_FAST_UNROLL
    for (int k = 0; k < at_once; ++k) {
      const float* const share = from + (split + k < target.splits ? split + k : split) * step;
      L2T_FAST_UNROLL
      for (int i = 0; i < weights_of_thread; ++i) values[k][i] = share[elements[i] < count ? elements[i] : 0];
    }
    L2T_FAST_UNROLL
    for (int k = 0; k < at_once; ++k) {
      L2T_FAST_UNROLL
      for (int i = 0; i < weights_of_thread; ++i) sums[i] += split + k < target.splits ? values[k][i] : 0.f;
    }
  }
  L2T_FAST_UNROLL
  for (int i = 0; i < weights_of_thread; ++i) {
    if (elements[i] >= count) return;
    put(elements[i], sums[i]);
  }
}

}  // namespace l2t_fast::cuda
