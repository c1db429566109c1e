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
  const Segment& segment = segment_of(m, problem, launch);
  const int block = m.block() - segment.first;
  if (segment.kind == Segment::Kind::coefficients) {
    pack_coefficients(m, problem, problem.targets[segment.index], block * threads + m.thread());
    return;
  }
  const Pair& pair = problem.pairs[segment.index];
  const Target& target = problem.targets[pair.target];
  for (int i = 0; i < weights_of_thread; ++i) {
    const int element = (block * weights_of_thread + i) * threads + m.thread();
    if (element >= pair.channels * target.stride) return;
    const int row = element / target.stride, channel = element - row * target.stride;
    const int place = pair.first_row * target.stride + element;
    const auto value = [&](const Matrix& matrix) {
      if (!matrix.data || channel >= target.channels) return 0.f;
      return load(m, matrix.data, matrix.type, row * matrix.row + channel * matrix.column);
    };
    const auto put = [&](void* to, const Matrix& matrix) {
      if (target.gram.groups)  // not rounded
        static_cast<float*>(to)[place] = value(matrix);
      else
        keep<Mode>(m, to, place, value(matrix));
    };
    put(target.weight, pair.weight);
    if (target.weight_direction) put(target.weight_direction, pair.weight_direction);
    if (target.gram.weights[0]) keep<Mode>(m, target.gram.weights[0], place, value(pair.weight));
    if (target.gram.weights[1]) keep<Mode>(m, target.gram.weights[1], place, value(pair.weight_direction));
  }
}

// The sum of a number a thread, in the first thread; the others get parts of it.
template <class M>
L2T_FAST_KERNEL float sum_of_block(M& m, float value) {
  float* const parts = reinterpret_cast<float*>(m.shared());
  parts[m.thread()] = value;
  for (int half = threads / 2; half > 0; half /= 2) {
    m.barrier();
    if (m.thread() < half) parts[m.thread()] += parts[m.thread() + half];
  }
  return parts[m.thread()];
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
    const int begin = ahead ? local * ahead : first_column / target.step;
    const int end = ahead ? begin + ahead : (first_column + pixels - 1) / target.step + 1;
    float square = 0, factor = 0;
    for (int tile = begin; tile < end; ++tile) {
      const int first = ahead ? local : tile * target.step / pixels;
      const float* const from = row_sums_of(target, part, tile, local - first) + 2 * int64_t(row);
      square += from[0];
      factor += from[1];
    }
    target.bias_sums[element] = factor;
    const Pair& pair = *pair_of(problem, target, row);
    const int64_t column = pair.column + row - pair.first_row;
    if (problem.squares) problem.squares[sample * problem.columns + column] = square;
    if (problem.loss) loss = problem.alpha.data[sample * problem.alpha.sample + column * problem.alpha.column] * square;
  }
  if (!problem.loss) return;
  const float sum = sum_of_block(m, loss);
  if (m.thread() == 0) problem.loss_sums[m.block()] = sum;
}

// dT, where its sums over rows are cut into shares.
template <class M>
L2T_FAST_KERNEL void finish_target(M& m, const Problem& problem, const Part& part, int block) {
  const Target& target = problem.targets[part.target];
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
  const Segment& segment = segment_of(m, problem, launch);
  const int block = m.block() - segment.first;
  if (segment.kind == Segment::Kind::squares) {
    finish_squares(m, problem, problem.targets[segment.index], block);
    return;
  }
  if (segment.kind == Segment::Kind::target_sums) {
    finish_target(m, problem, problem.parts[segment.index], block);
    return;
  }
  if (segment.kind == Segment::Kind::loss) {
    float own = 0;
    for (int i = m.thread(); i < problem.loss_count; i += threads) own += problem.loss_sums[i];
    const float loss = sum_of_block(m, own);
    if (m.thread() == 0) *problem.loss = loss;
    return;
  }
  const Pair& pair = problem.pairs[segment.index];
  const Target& target = problem.targets[pair.target];
  if (segment.kind == Segment::Kind::bias) {
    const int element = block * threads + m.thread();
    if (element >= pair.channels) return;
    const float* const sums = target.bias_sums + pair.first_row + element;
    const float sum = sum_in_order(int(problem.batch), [&](int sample) { return sums[sample * target.rows]; });
    store(m, pair.bias_result.data, pair.bias_result.type, element * pair.bias_result.step, sum);
    return;
  }
  const int channels = target.channels, count = pair.channels * channels;
  const Matrix& result = pair.weight_result;
  const float* const from = target.weight_sums + int64_t(pair.first_row) * channels;
  const int64_t step = int64_t(target.rows) * channels;
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
    const int row = elements[i] / channels, channel = elements[i] - row * channels;
    store(m, result.data, result.type, int64_t(row) * result.row + channel * result.column, sums[i]);
  }
}

}  // namespace l2t_fast::cuda
