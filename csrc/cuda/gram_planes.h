// First of the Gram form: sums over a map's pixels, and what smaller sources make of T.
#pragma once

#include "gram.h"
#include "resize.h"

namespace l2t_fast::cuda {

template <class M>
class GramPlanes {
  static constexpr int warps = threads / 32;
  static constexpr int planes_of_warp = planes_of_block / warps;

 public:
  L2T_FAST_KERNEL GramPlanes(M& m, const Problem& problem, const Target& target)
      : m_(m), problem_(problem), target_(target) {}

  // Sums over the pixels of T, and of vT.
  L2T_FAST_KERNEL void sum_target(int item) {
    const int first = begin(item, target_.channels), pixels = target_.height * target_.width;
    for_each_plane(first, target_.channels, [=, this](int channel) {
      const float sum = sum_plane(target_.map, channel, pixels).sum;
      const float moved = target_.direction.data ? sum_plane(target_.direction, channel, pixels).sum : 0.f;
      write_sums(channel, {sum, moved});
    });
  }

  // Sums over the pixels of S~ and S~^2, for the rows of a group.
  L2T_FAST_KERNEL void sum_sources(const Group& group, int item) {
    const int first = begin(item, group.rows);
    const bool resized = group.shrunk[0];
    if (resized) {
      find_axis(0, group.height, target_.height);
      find_axis(1, group.width, target_.width);
      find_squares(0, group.height);
      find_squares(1, group.width);
      m_.barrier();
    }
    for_each_plane(first, group.rows, [=, this](int within) {
      const int row = group.first_row + within;
      const Pair& pair = *pair_of(problem_, target_, row);
      const int channel = row - pair.first_row;
      write_sums(target_.channels + row, resized ? sum_resized_plane(pair.source, channel, group.height, group.width)
                                                 : sum_plane(pair.source, channel, group.height * group.width));
    });
  }

  // T U, or vT U: what a source pixel takes of all target pixels, along columns first, a row of the result at a time.
  L2T_FAST_KERNEL void shrink(const Group& group, int which, int item) {
    if (target_.map.type == Type::bfloat16)
      shrink<Type::bfloat16>(group, which, item);
    else
      shrink<Type::float32>(group, which, item);
  }

  template <Type type>
  L2T_FAST_KERNEL void shrink(const Group& group, int which, int item) {
    const int first = begin(item, target_.channels), lane = m_.thread() % 32, warp = m_.thread() / 32;
    find_axis(0, group.height, target_.height);
    find_axis(1, group.width, target_.width);
    float* const line = lines() + warp * most_side;
    const int width = target_.width, pixels = group.height * group.width;
    for (int turn = 0; turn < planes_of_warp && first + turn * warps < target_.channels; ++turn) {
      const int channel = first + turn * warps + warp;
      const bool lives = channel < target_.channels;
      const auto* const plane = static_cast<const Stored<type>*>(
          plane_of(which ? target_.direction : target_.map, sample_, lives ? channel : first));
      const int64_t begin = (int64_t(sample_) * target_.channels + channel) * group.stride;
      for (int y = 0; y < group.height; ++y) {
        for (int x = lane; x < width; x += 32)
          line[x] = gather(0, y, plane + x, width, [this](const Stored<type>* at) { return load<type>(m_, at, 0); });
        m_.barrier();
        for (int x = lane; x < group.width && lives; x += 32)
          keep_shrunk(group, which, begin + y * group.width + x,
                      gather(1, x, line, 1, [](const float* at) { return *at; }));
        m_.barrier();
      }
      if (lives && lane < group.stride - pixels) keep_shrunk(group, which, begin + pixels + lane, 0);
    }
  }

  // W^T 2 alpha b; in K2 what it moves by.
  L2T_FAST_KERNEL void constant(int item) {
    const int element = item * threads + m_.thread(), channels = target_.channels;
    if (element >= int(problem_.batch) * channels) return;
    const int sample = element / channels, channel = element - sample * channels;
    const int64_t first_row = int64_t(sample) * target_.rows;
    const float* const twice = target_.gram.coefficients[0] + first_row;
    const float* const twice_direction =
        target_.gram.coefficients[1] ? target_.gram.coefficients[1] + first_row : nullptr;
    float sum = 0;
    for (int p = target_.first_pair; p < target_.first_pair + target_.pairs; ++p) {
      const Pair& pair = problem_.pairs[p];
      if (!pair.bias.data && !pair.bias_direction.data) continue;
      for (int own = 0; own < pair.channels; ++own) {
        const int row = pair.first_row + own;
        const int64_t at = int64_t(row) * target_.stride + channel;
        const float bias = value_at(m_, pair.bias, own), weight = static_cast<const float*>(target_.weight)[at];
        if (!problem_.second) {
          sum += weight * (twice[row] * bias);
          continue;
        }
        sum += weight * (twice[row] * value_at(m_, pair.bias_direction, own) +
                         (twice_direction ? twice_direction[row] * bias : 0.f));
        if (target_.weight_direction)
          sum += static_cast<const float*>(target_.weight_direction)[at] * (twice[row] * bias);
      }
    }
    target_.gram.constant[element] = sum;
  }

 private:
  // Of the resize along one axis (0: rows, 1: columns), in shared memory: for each target pixel the share of its upper
  // neighbour among source pixels; for each of these the first target pixel of which it is the lower neighbour, and
  // sums of its shares, of their squares, and of products with those of the pixel after it.
  struct Moments {
    float sum, square, next;
  };
  static constexpr int upper_bytes = most_side * int(sizeof(float)),
                       begin_bytes = (most_side + 4) * int(sizeof(int32_t)),
                       axis_bytes = upper_bytes + begin_bytes + most_side * int(sizeof(Moments)),
                       line_bytes = warps * most_side * int(sizeof(float));
  static_assert(2 * axis_bytes + line_bytes == planes_bytes);

  L2T_FAST_KERNEL unsigned char* of_axis(int axis) const { return m_.shared() + line_bytes + axis * axis_bytes; }
  L2T_FAST_KERNEL float* uppers(int axis) const { return reinterpret_cast<float*>(of_axis(axis)); }
  L2T_FAST_KERNEL int32_t* begins(int axis) const { return reinterpret_cast<int32_t*>(of_axis(axis) + upper_bytes); }
  L2T_FAST_KERNEL Moments* moments(int axis) const {
    return reinterpret_cast<Moments*>(of_axis(axis) + upper_bytes + begin_bytes);
  }
  L2T_FAST_KERNEL float* lines() const { return reinterpret_cast<float*>(m_.shared()); }

  // The lower neighbours of target pixels do not skip a source pixel, because these are fewer.
  L2T_FAST_KERNEL void find_axis(int axis, int from, int to) {
    for (int t = m_.thread(); t < to; t += threads) {
      const Tap at = tap(t, from, to);
      uppers(axis)[t] = at.inside ? at.share : 0.f;
      if (!t || tap(t - 1, from, to).lower < at.lower) begins(axis)[at.lower] = t;
    }
    if (m_.thread() == 0) begins(axis)[from] = to;
    m_.barrier();
  }

  // The sum over the target pixels that take of source pixel x, times what they take: first those that have it as their
  // upper neighbour. The first target pixel's value stands at `first`, the others' `step` apart.
  template <class Value, class Load>
  L2T_FAST_KERNEL float gather(int axis, int x, const Value* first, int step, const Load& load) const {
    const float* const upper = uppers(axis);
    const int32_t* const begin = begins(axis) + x;
    const int own = begin[0], end = begin[1];
    int t = x ? begin[-1] : own;
    const Value* at = first + t * step;
    float sum = 0;
    for (; t < own; ++t, at += step) sum += upper[t] * load(at);
    for (; t < end; ++t, at += step) sum += (1 - upper[t]) * load(at);
    return sum;
  }

  L2T_FAST_KERNEL void find_squares(int axis, int from) {
    const float* const upper = uppers(axis);
    for (int x = m_.thread(); x < from; x += threads) {
      const int32_t* const begin = begins(axis) + x;
      Moments sums{0, 0, 0};
      for (int t = x ? begin[-1] : begin[0]; t < begin[0]; ++t) {
        sums.sum += upper[t];
        sums.square += upper[t] * upper[t];
      }
      for (int t = begin[0]; t < begin[1]; ++t) {
        const float own = 1 - upper[t];
        sums.sum += own;
        sums.square += own * own;
        sums.next += own * upper[t];
      }
      moments(axis)[x] = sums;
    }
  }

  L2T_FAST_KERNEL int begin(int item, int planes) {
    const int chunks = (planes + planes_of_block - 1) / planes_of_block;
    sample_ = item / chunks;
    return item % chunks * planes_of_block;
  }

  template <class Function>
  L2T_FAST_KERNEL void for_each_plane(int first, int planes, const Function& function) {
    L2T_FAST_UNROLL_BY(1)
    for (int turn = 0; turn < planes_of_warp; ++turn) {
      const int plane = first + turn * warps + m_.thread() / 32;
      if (plane < planes) function(plane);
    }
  }

  // A channel's pixels, in line.
  L2T_FAST_KERNEL const void* plane_of(const Map& map, int sample, int channel) const {
    const int64_t offset = sample * map.sample + int64_t(channel) * map.channel;
    return static_cast<const unsigned char*>(map.data) + offset * (map.type == Type::bfloat16 ? 2 : 4);
  }

  // In bfloat16 two of them, so that what cancels later has the digits of both.
  L2T_FAST_KERNEL void keep_shrunk(const Group& group, int which, int64_t at, float value) {
    if (target_.map.type == Type::float32) {
      static_cast<float*>(group.shrunk[which])[at] = value;
      return;
    }
    auto* const to = static_cast<uint16_t*>(group.shrunk[which]);
    to[at] = m_.to_bfloat16(value);
    const float rest = value - m_.as_float(uint32_t(to[at]) << 16);
    to[problem_.batch * target_.channels * group.stride + at] = m_.to_bfloat16(rest);
  }

  struct PlaneSums {
    float sum, other;
  };

  template <Type type>
  L2T_FAST_KERNEL PlaneSums sum_plane(const void* plane, int pixels) {
    float sum = 0, square = 0;
    for (int i = m_.thread() % 32; i < pixels; i += 32) {
      const float value = load<type>(m_, plane, i);
      sum += value;
      square += value * value;
    }
    return sum_of_warp({sum, square});
  }

  L2T_FAST_KERNEL PlaneSums sum_plane(const Map& map, int channel, int pixels) {
    const void* const plane = plane_of(map, sample_, channel);
    return map.type == Type::bfloat16 ? sum_plane<Type::bfloat16>(plane, pixels)
                                      : sum_plane<Type::float32>(plane, pixels);
  }

  L2T_FAST_KERNEL PlaneSums sum_resized_plane(const Map& map, int channel, int height, int width) {
    const void* const plane = plane_of(map, sample_, channel);
    return map.type == Type::bfloat16 ? sum_resized_plane<Type::bfloat16>(plane, height, width)
                                      : sum_resized_plane<Type::float32>(plane, height, width);
  }

  // Each pixel times what it becomes: sum S~^2 = s^T (U^T U) s, where U^T U reaches to the next pixel along each axis.
  template <Type type>
  L2T_FAST_KERNEL PlaneSums sum_resized_plane(const void* plane, int height, int width) {
    float sum = 0, square = 0;
    for (int i = m_.thread() % 32; i < height * width; i += 32) {
      const int y = i / width, x = i - y * width;
      const Moments down = moments(0)[y], along = moments(1)[x];
      const float value = load<type>(m_, plane, i);
      float row = along.square * value, below = 0;
      if (x + 1 < width) row += 2 * along.next * load<type>(m_, plane, i + 1);
      if (y + 1 < height) {
        below = along.square * load<type>(m_, plane, i + width);
        if (x + 1 < width) below += along.next * load<type>(m_, plane, i + width + 1);
        if (x > 0) below += moments(1)[x - 1].next * load<type>(m_, plane, i + width - 1);
      }
      sum += down.sum * along.sum * value;
      square += value * (down.square * row + 2 * down.next * below);
    }
    return sum_of_warp({sum, square});
  }

  L2T_FAST_KERNEL PlaneSums sum_of_warp(PlaneSums own) {
    L2T_FAST_UNROLL
    for (int mask = 16; mask > 0; mask /= 2) {
      own.sum += m_.exchange(own.sum, mask);
      own.other += m_.exchange(own.other, mask);
    }
    return own;
  }

  L2T_FAST_KERNEL void write_sums(int index, const PlaneSums& found) {
    if (m_.thread() % 32) return;
    float* const to = target_.gram.plane_sums + (int64_t(sample_) * (target_.channels + target_.rows) + index) * 2;
    to[0] = found.sum;
    to[1] = found.other;
  }

  M& m_;
  const Problem& problem_;
  const Target& target_;
  int sample_ = 0;
};

template <class M>
L2T_FAST_KERNEL void gram_planes(M& m, const Problem& problem, const Launch& launch) {
  using Kind = Segment::Kind;
  const Segment& segment = segment_of(m, problem, launch);
  const int item = m.block() - segment.first;
  const bool of_group = segment.kind == Kind::source_planes || segment.kind == Kind::shrink;
  const Group* const group = of_group ? problem.groups + segment.index : nullptr;
  GramPlanes<M> planes(m, problem, problem.targets[group ? group->target : segment.index]);
  if (segment.kind == Kind::target_planes)
    planes.sum_target(item);
  else if (segment.kind == Kind::source_planes)
    planes.sum_sources(*group, item);
  else if (segment.kind == Kind::shrink)
    planes.shrink(*group, segment.which, item);
  else
    planes.constant(item);
}

}  // namespace l2t_fast::cuda
