// First of the Gram form: sums over a map's pixels, and what smaller sources make of T.
#pragma once

#include "gram.h"
#include "resize.h"

namespace l2t_fast::cuda {

// Of the resize along one axis, in shared memory: for each target pixel the share of its upper neighbour among source
// pixels; for each of these the first target pixel of which it is the lower neighbour, and sums of its shares, of their
// squares, and of products with those of the pixel after it.
struct Moments {
  float sum, square, next;
};

// A warp's lines of columns' sums, as many of the result's rows as fit: at least one.
L2T_FAST_BOTH constexpr int line_length(int side) { return side > 1024 ? side : 1024; }
L2T_FAST_BOTH constexpr int axis_bytes(int side) {
  return side * int(sizeof(float)) + (side + 4) * int(sizeof(int32_t)) + (side + 4) * int(sizeof(Moments));
}
L2T_FAST_BOTH constexpr int planes_bytes(int side) {
  return threads / 32 * line_length(side) * int(sizeof(float)) + 2 * axis_bytes(side);
}

template <class M>
class GramPlanes {
  static constexpr int warps = threads / 32, at_once = 4;  // rows that are read before the first is used

 public:
  // `side`: of the longest target of the launch
  L2T_FAST_KERNEL GramPlanes(M& m, const Problem& problem, const Target& target, int side)
      : m_(m), problem_(problem), target_(target), side_(side) {}

  // Sums over the pixels of T, and of vT.
  L2T_FAST_KERNEL void sum_target(int item) {
    const int pixels = target_.height * target_.width;
    for_each_plane(item, planes_of_block, target_.channels, [=, this](int channel) {
      const float sum = sum_plane(target_.map, channel, pixels).sum;
      const float moved = target_.direction.data ? sum_plane(target_.direction, channel, pixels).sum : 0.f;
      write_sums(channel, {sum, moved});
    });
  }

  // Sums over the pixels of S~ and S~^2, for the rows of a group.
  L2T_FAST_KERNEL void sum_sources(const Group& group, int item) {
    const bool resized = group.shrunk[0];
    if (resized) {
      find_axes(group);
      find_squares(group);
    }
    for_each_plane(item, group.planes_of_block, group.rows, [=, this](int within) {
      const int row = group.first_row + within;
      const Pair& pair = problem_.pairs[last_that_begins(
          group.first_pair, group.pairs, [=, this](int p) { return problem_.pairs[p].first_row <= row; })];
      const int channel = row - pair.first_row;
      write_sums(target_.channels + row, resized ? sum_resized_plane(pair.source, channel, group.height, group.width)
                                                 : sum_plane(pair.source, channel, group.height * group.width));
    });
  }

  // T U, or vT U: what a source pixel takes of all target pixels, along columns first.
  L2T_FAST_KERNEL void shrink(const Group& group, int which, int item) {
    if (target_.map.type == Type::bfloat16)
      shrink<Type::bfloat16>(group, which, item);
    else
      shrink<Type::float32>(group, which, item);
  }

  template <Type type>
  L2T_FAST_KERNEL void shrink(const Group& group, int which, int item) {
    find_axes(group);
    const int lane = m_.thread() % 32, width = target_.width, pixels = group.height * group.width;
    float* const line = lines() + m_.thread() / 32 * line_length(side_);
    const int rows = tiles(group.height, tiles(group.height, line_length(side_) / width));
    const Map& map = which ? target_.direction : target_.map;
    for_each_turn(item, planes_of_block, target_.channels, [=, this, &group, &map](int channel, bool lives) {
      const auto* const plane = static_cast<const Stored<type>*>(plane_of(map, sample_, lives ? channel : 0));
      const int64_t begin = (int64_t(sample_) * target_.channels + channel) * group.stride;
      for (int y = 0; y < group.height; y += rows) {
        const int end = group.height - y < rows ? group.height : y + rows;
        for (int x = lane; x < width && lives; x += 64) gather_columns<type>(plane, x, y, end, line);
        m_.barrier();
        if (lives) {
          gather_lines(line, end - y, group.width, [=, this, &group](int row, int x, float value) {
            keep_shrunk<type>(group, which, begin + ((y + row) * group.width + x), value);
          });
        }
        m_.barrier();
      }
      if (lives && lane < group.stride - pixels) keep_shrunk<type>(group, which, begin + pixels + lane, 0);
    });
  }

  // W^T 2 alpha b of a sample; in K2 what it moves by. A row's factors are computed by one thread for all channels, and
  // a quarter of the rows summed up by one thread for a channel.
  L2T_FAST_KERNEL void constant(int item) {
    const int channels = target_.channels, chunks = (channels + constants_of_block - 1) / constants_of_block;
    const int sample = item / chunks, thread = m_.thread();
    const int channel = item % chunks * constants_of_block + thread % constants_of_block;
    const int64_t first_row = int64_t(sample) * target_.rows;
    const float* const twice = target_.gram.coefficients[0] + first_row;
    const float* const twice_direction =
        target_.gram.coefficients[1] ? target_.gram.coefficients[1] + first_row : nullptr;
    const auto* const weight = static_cast<const float*>(target_.weight);
    const auto* const moved = problem_.second ? static_cast<const float*>(target_.weight_direction) : nullptr;
    float* const factors = lines();  // of W's rows, then of vW's
    constexpr int shares = threads / constants_of_block, rows_of_share = threads / shares, at_once = 8;
    float sum = 0;
    for (int begin = 0; begin < target_.rows; begin += threads) {
      if (const int row = begin + thread; row < target_.rows) {
        const Pair& pair = *pair_of(problem_, target_, row);
        const float bias = value_at(m_, pair.bias, row - pair.first_row), still = twice[row] * bias;
        factors[thread] = still;
        if (problem_.second) {
          factors[thread] = twice[row] * value_at(m_, pair.bias_direction, row - pair.first_row) +
                            (twice_direction ? twice_direction[row] * bias : 0.f);
          factors[threads + thread] = still;
        }
      } else {
        factors[thread] = factors[threads + thread] = 0;
      }
      m_.barrier();
      const int share = thread / constants_of_block * rows_of_share;
      const int left = target_.rows - begin - share < rows_of_share ? target_.rows - begin - share : rows_of_share;
      for (int i = 0; i < left && channel < channels; i += at_once) {
        const auto add = [&](const float* from, const float* of_rows) {
          float values[at_once];
          L2T_FAST_UNROLL
          for (int k = 0; k < at_once; ++k) {
            const int row = begin + share + (i + k < left ? i + k : i);
            values[k] = from[row * target_.stride + channel];
          }
          L2T_FAST_UNROLL
          for (int k = 0; k < at_once; ++k) sum += i + k < left ? values[k] * of_rows[share + i + k] : 0.f;
        };
        add(weight, factors);
        if (moved) add(moved, factors + threads);
      }
      m_.barrier();
    }
    factors[thread] = sum;
    m_.barrier();
    if (thread >= constants_of_block || channel >= channels) return;
    for (int share = 1; share < shares; ++share) sum += factors[share * constants_of_block + thread];
    target_.gram.constant[sample * channels + channel] = sum;
  }

 private:
  // 0: rows, 1: columns
  L2T_FAST_KERNEL unsigned char* of_axis(int axis) const {
    return m_.shared() + warps * line_length(side_) * sizeof(float) + axis * axis_bytes(side_);
  }
  L2T_FAST_KERNEL float* uppers(int axis) const { return reinterpret_cast<float*>(of_axis(axis)); }
  L2T_FAST_KERNEL int32_t* begins(int axis) const { return reinterpret_cast<int32_t*>(uppers(axis) + side_); }
  L2T_FAST_KERNEL Moments* moments(int axis) const { return reinterpret_cast<Moments*>(begins(axis) + side_ + 4); }
  L2T_FAST_KERNEL float* lines() const { return reinterpret_cast<float*>(m_.shared()); }

  // Half of the block sees to the rows, half to the columns: function(axis, thread, threads, pixels of the source, and
  // of the target).
  template <class Function>
  L2T_FAST_KERNEL void for_both_axes(const Group& group, const Function& function) {
    constexpr int half = threads / 2;
    const int thread = m_.thread(), axis = thread / half;
    function(axis, thread % half, half, axis ? group.width : group.height, axis ? target_.width : target_.height);
    m_.barrier();
  }

  // The lower neighbours of target pixels do not skip a source pixel, because these are fewer.
  L2T_FAST_KERNEL void find_axes(const Group& group) {
    for_both_axes(group, [this](int axis, int thread, int step, int from, int to) {
      for (int t = thread; t < to; t += step) {
        const Tap at = tap(t, from, to);
        uppers(axis)[t] = at.inside ? at.share : 0.f;
        if (!t || tap(t - 1, from, to).lower < at.lower) begins(axis)[at.lower] = t;
      }
      if (thread == 0) begins(axis)[from] = to;
    });
  }

  // Behind the last pixel stand zeros.
  L2T_FAST_KERNEL void find_squares(const Group& group) {
    for_both_axes(group, [this](int axis, int thread, int step, int from, int) {
      const float* const upper = uppers(axis);
      for (int x = thread; x <= from; x += step) {
        const int32_t* const begin = begins(axis) + x;
        Moments sums{0, 0, 0};
        for (int t = x ? begin[-1] : begin[0]; t < begin[0] && x < from; ++t) {
          sums.sum += upper[t];
          sums.square += upper[t] * upper[t];
        }
        for (int t = begin[0]; x < from && t < begin[1]; ++t) {
          const float own = 1 - upper[t];
          sums.sum += own;
          sums.square += own * own;
          sums.next += own * upper[t];
        }
        moments(axis)[x] = sums;
      }
    });
  }

  // Of the columns x and x + 32, what the result's rows [first, last) take of the plane's rows, into lines of the
  // plane's width. A plane's row is read once, for the result's rows above and below it, and some rows at a time, so
  // that not each is waited for.
  template <Type type>
  L2T_FAST_KERNEL void gather_columns(const Stored<type>* plane, int x, int first, int last, float* line) const {
    const int width = target_.width, bottom = target_.height - 1, right = x + 32 < width ? 32 : 0;
    const int32_t* const begin = begins(0);
    int y = first ? first - 1 : 0, t = begin[y], end = begin[y + 1];  // the row above gives to the first one too
    const float* upper = uppers(0) + t;
    float* to = line + x;
    float here[2] = {}, below[2] = {};
    while (true) {
      Stored<type> values[at_once][2];
      L2T_FAST_UNROLL
      for (int k = 0; k < at_once; ++k) {
        const auto* const row = plane + ((t + k < bottom ? t + k : bottom) * width + x);
        values[k][0] = m_.read(row);
        values[k][1] = m_.read(row + right);
      }
      L2T_FAST_UNROLL
      for (int k = 0; k < at_once; ++k) {
        const float share = upper[k], own = 1 - share;
        L2T_FAST_UNROLL
        for (int side = 0; side < 2; ++side) {
          const float value = widened<type>(m_, values[k][side]);
          here[side] += own * value;
          below[side] += share * value;
        }
        if (t + k + 1 < end) continue;
        if (y >= first) {
          to[0] = here[0];
          if (right) to[32] = here[1];
          to += width;
        }
        if (++y == last) return;
        end = begin[y + 1];
        L2T_FAST_UNROLL
        for (int side = 0; side < 2; ++side) here[side] = below[side], below[side] = 0;
      }
      t += at_once;
      upper += at_once;
    }
  }

  // What `across` pixels of the result's rows take of as many lines: keep(row, pixel, value). Some rows share what is
  // asked of a pixel; where lines are short, a warp has several of them side by side.
  template <class Keep>
  L2T_FAST_KERNEL void gather_lines(const float* line, int rows, int across, const Keep& keep) const {
    const int lane = m_.thread() % 32, lanes = across < 32 ? across : 32, beside = 32 / lanes, width = target_.width;
    const float* const upper = uppers(1);
    const int begin_row = lane / lanes;
    for (int x = lane - begin_row * lanes; x < across && begin_row < beside; x += 32) {
      const int32_t* const begin = begins(1) + x;
      const int before = x ? begin[-1] : begin[0], own = begin[0], end = begin[1];
      for (int row = begin_row; row < rows; row += at_once * beside) {
        const float* from[at_once];
        float sums[at_once] = {};
        L2T_FAST_UNROLL
        for (int k = 0; k < at_once; ++k)
          from[k] = line + ((row + k * beside < rows ? row + k * beside : row) * width + before);
        const auto add = [&](float share) {
          L2T_FAST_UNROLL
          for (int k = 0; k < at_once; ++k) sums[k] += share * *from[k]++;
        };
        L2T_FAST_UNROLL_BY(1)
        for (int t = before; t < own; ++t) add(upper[t]);
        L2T_FAST_UNROLL_BY(1)
        for (int t = own; t < end; ++t) add(1 - upper[t]);
        L2T_FAST_UNROLL
        for (int k = 0; k < at_once; ++k)
          if (row + k * beside < rows) keep(row + k * beside, x, sums[k]);
      }
    }
  }

  // Planes of the item, a warp one at a time: function(plane, whether there is one).
  template <class Function>
  L2T_FAST_KERNEL void for_each_turn(int item, int of_block, int planes, const Function& function) {
    const int chunks = tiles(planes, of_block);
    sample_ = item / chunks;
    const int first = item % chunks * of_block;
    L2T_FAST_UNROLL_BY(1)
    for (int begin = first; begin < first + of_block && begin < planes; begin += warps) {
      const int plane = begin + m_.thread() / 32;
      function(plane, plane < planes);
    }
  }

  template <class Function>
  L2T_FAST_KERNEL void for_each_plane(int item, int of_block, int planes, const Function& function) {
    for_each_turn(item, of_block, planes, [&function](int plane, bool lives) {
      if (lives) function(plane);
    });
  }

  // A channel's pixels, in line.
  L2T_FAST_KERNEL const void* plane_of(const Map& map, int sample, int channel) const {
    const int64_t offset = sample * map.sample + int64_t(channel) * map.channel;
    return static_cast<const unsigned char*>(map.data) + offset * (map.type == Type::bfloat16 ? 2 : 4);
  }

  // In bfloat16 two of them, so that what cancels later has the digits of both.
  template <Type type>
  L2T_FAST_KERNEL void keep_shrunk(const Group& group, int which, int64_t at, float value) {
    auto* const to = static_cast<Stored<type>*>(group.shrunk[which]) + at;
    if constexpr (type == Type::float32) {
      *to = value;
    } else {
      const uint16_t bits = m_.to_bfloat16(value);
      to[0] = bits;
      to[problem_.batch * target_.channels * group.stride] = m_.to_bfloat16(value - widened<type>(m_, bits));
    }
  }

  struct PlaneSums {
    float sum, other;
  };

  template <Type type>
  L2T_FAST_KERNEL PlaneSums sum_plane(const void* plane, int pixels) {
    float sum = 0, square = 0;
    constexpr int at_once = 8;
    for (int i = m_.thread() % 32; i < pixels; i += 32 * at_once) {
      Stored<type> values[at_once];
      L2T_FAST_UNROLL
      for (int k = 0; k < at_once; ++k)
        values[k] = m_.read(static_cast<const Stored<type>*>(plane) + (i + 32 * k < pixels ? i + 32 * k : i));
      L2T_FAST_UNROLL
      for (int k = 0; k < at_once; ++k) {
        const float value = i + 32 * k < pixels ? widened<type>(m_, values[k]) : 0.f;
        sum += value;
        square += value * value;
      }
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
  // A lane walks down a column, and where rows are short a warp has several stretches of them side by side, each of
  // which looks at the row after its own, too. At the edge the share of the next one is 0, and any pixel will do.
  template <Type type>
  L2T_FAST_KERNEL PlaneSums sum_resized_plane(const void* data, int height, int width) {
    const int lane = m_.thread() % 32, lanes = width < 32 ? width : 32, stretch = lane / lanes;
    const int rows = tiles(height, 32 / lanes), begin = stretch * rows;
    const int end = begin + rows < height ? begin + rows : height;
    float sum = 0, square = 0;
    for (int x = lane - stretch * lanes; x < width && begin < height; x += 32) {
      const int right = x + 1 < width ? 1 : 0;
      const auto* const column = static_cast<const Stored<type>*>(data) + x;
      const Moments along = moments(1)[x];
      float of_column = 0, above = 0, beside_above = 0;
      for (int first = begin; first <= end; first += at_once) {
        Stored<type> values[at_once][2];
        L2T_FAST_UNROLL
        for (int k = 0; k < at_once; ++k) {
          const auto* const at = column + (first + k < height ? first + k : height - 1) * width;
          values[k][0] = m_.read(at);
          values[k][1] = m_.read(at + right);
        }
        L2T_FAST_UNROLL
        for (int k = 0; k < at_once; ++k) {
          const Moments of_row = moments(0)[first + k < end ? first + k : height];
          const float value = widened<type>(m_, values[k][0]);
          const float beside = along.next * widened<type>(m_, values[k][1]), next = along.square * value + beside;
          of_column += of_row.sum * value;
          square += (of_row.square * value) * (next + beside) + above * next + beside_above * value;
          above = 2 * of_row.next * value;
          beside_above = 2 * of_row.next * beside;
        }
      }
      sum += along.sum * of_column;
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
  const int side_;
  int sample_ = 0;
};

template <class M>
L2T_FAST_KERNEL void gram_planes(M& m, const Problem& problem, const Launch& launch) {
  using Kind = Segment::Kind;
  const Segment segment = segment_of(m, problem, launch);
  const int item = m.block() - segment.first;
  const bool of_group = segment.kind == Kind::source_planes || segment.kind == Kind::shrink;
  const Group* const group = of_group ? problem.groups + segment.index : nullptr;
  GramPlanes<M> planes(m, problem, problem.targets[segment.target], launch.side);
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
