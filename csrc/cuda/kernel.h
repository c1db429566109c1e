// The kernels. What they compute is derived in csrc/README.md, how the work is cut in README.md beside this file.
//
// A block of 128 threads works on one item. All of an item's steps are the same for both kinds:
//
//     D = b - S~ (+ sum over k of W_k T_k)     E = 2 a D, into shared memory     sums_c += W_c^T E   or   E T_c^T
//
// with k and c numbering blocks of 64 target channels. A target's item stays at 64 pixels and walks over blocks of 64
// rows (source channels) of all its pairs; a projection's stays at 64 rows and walks over the pixels of a run of
// samples.
#pragma once

#include "tile.h"

namespace l2t_fast::cuda {

// Where a tile's pixel lies; sample -1: beyond the end.
struct Spot {
  int32_t sample, row, column;
};

// Where the bilinear resize finds a pixel in the source: upper left neighbour, shares of the lower and the right one.
struct Tap {
  int32_t row, column;
  float down, along;
};

struct Small {
  Spot spots[2][tile_size];
  Tap taps[tile_size];
  float rows[2][tile_size];  // for sums over rows, of the left and the right warps; until then bias and its direction
};
static_assert(sizeof(Small) == reserved_bytes);

// S~ lies, as float32, where E will lie when it is used up.
template <class Element, bool second>
inline constexpr int staging_bytes =
    tile_bytes<float> > (second ? 2 : 1) * tile_bytes<Element> ? tile_bytes<float>
                                                               : (second ? 2 : 1) * tile_bytes<Element>;

L2T_FAST_KERNEL int blocks_of(int length) { return (length + tile_size - 1) / tile_size; }

// Half-pixel centres, as torch.nn.functional.interpolate(align_corners=False), in integers: exact to one rounding.
L2T_FAST_KERNEL void tap(int position, int size_in, int size_out, int32_t& lower, float& share) {
  const int64_t twice = int64_t(2 * position + 1) * size_in - size_out;
  const uint64_t numerator = twice > 0 ? uint64_t(twice) : 0, denominator = 2 * uint64_t(size_out);
  lower = int32_t(numerator / denominator);
  share = float(numerator % denominator) / float(denominator);
}

L2T_FAST_KERNEL int64_t offset_of(const Map& map, const Spot& spot) {
  return spot.sample * map.sample + spot.row * map.row + spot.column * map.column;
}

// A tile of a map for the tensor cores: (channels, pixels), or (pixels, channels) where the map is channels_last.
template <class Element, class M>
L2T_FAST_KERNEL void fill_map(M& m, Element* tile, const Map& map, const Spot* spots, int first_channel, int channels) {
  const bool last = map.channels_last;
  fill(m, tile, map.data, map.type, map.vectors, [&, last](int i, int j) {
    const int channel = first_channel + (last ? j : i);
    const Spot& spot = spots[last ? i : j];
    if (spot.sample < 0 || channel >= channels) return int64_t(-1);
    return offset_of(map, spot) + channel * map.channel;
  });
}

template <class Element, class M>
L2T_FAST_KERNEL void fill_matrix(M& m, Element* tile, const Matrix& matrix, int first_row, int rows, int first_column,
                                 int columns) {
  fill(m, tile, matrix.data, matrix.type, matrix.vectors, [&](int i, int j) {
    const int row = first_row + i, column = first_column + j;
    return row < rows && column < columns ? row * matrix.row + column * matrix.column : int64_t(-1);
  });
}

// S~, (rows, pixels).
template <Type type, class M>
L2T_FAST_KERNEL void stage_source(M& m, float* tile, const Pair& pair, int first_row, const Spot* spots,
                                  const Tap* taps, bool resized) {
  const Map& map = pair.source;
  L2T_FAST_UNROLL_BY(4)
  for (int element = m.thread(); element < tile_elements; element += threads) {
    const int fast = element % tile_size, slow = element / tile_size;
    const int i = map.channels_last ? fast : slow, j = map.channels_last ? slow : fast;
    const Spot spot = spots[j];
    float value = 0;
    if (spot.sample >= 0 && first_row + i < pair.channels) {
      const int64_t channel = (first_row + i) * map.channel;
      if (resized) {
        const Tap tap = taps[j];
        const int64_t upper_left = offset_of(map, {spot.sample, tap.row, tap.column}) + channel;
        const int64_t below = tap.row + 1 < pair.height ? map.row : 0,
                      beside = tap.column + 1 < pair.width ? map.column : 0;
        const float upper = (1 - tap.along) * load<type>(m, map.data, upper_left) +
                            tap.along * load<type>(m, map.data, upper_left + beside);
        const float lower = (1 - tap.along) * load<type>(m, map.data, upper_left + below) +
                            tap.along * load<type>(m, map.data, upper_left + below + beside);
        value = (1 - tap.down) * upper + tap.down * lower;
      } else {
        value = load<type>(m, map.data, offset_of(map, spot) + channel);
      }
    }
    tile[at<float>(i, j)] = value;
  }
}

// One item, a target's or a projection's; K1, or K2 with `second`.
template <class Mode, bool second, bool projection, class M>
class Item {
  using Element = typename Mode::Element;
  static constexpr int operands = second ? 2 : 1;  // W and T, and their directions
  static constexpr int slot_elements = operands * tile_elements;

 public:
  L2T_FAST_KERNEL Item(M& m, const Problem& problem, const Target& target, int group, int hold)
      : m_(m),
        problem_(problem),
        target_(target),
        channel_tiles_(blocks_of(target.channels)),
        held_(channel_tiles_ <= hold),
        slots_(held_ ? channel_tiles_ + 1 : 2),
        first_tile_(group * channel_blocks),
        pixels_(target.height * target.width) {}

  // A target's pixels `tile` * 64 and following, of all samples in one line.
  L2T_FAST_KERNEL void run_target(int tile) {
    first_sample_ = 0;
    length_ = problem_.batch * pixels_;
    tiles_ = least(channel_blocks, channel_tiles_ - first_tile_);
    const Pair* const first = problem_.pairs + target_.first_pair;
    end_ = first + target_.pairs;
    walk({first, 0, int64_t(tile) * tile_size, 0});
    write_target();
  }

  // Rows `row` and following of a pair, and a run of whole samples.
  L2T_FAST_KERNEL void run_projection(const Pair& pair, int row_tile, int run, bool writes) {
    first_sample_ = problem_.batch * run / pair.runs;
    length_ = (problem_.batch * (run + 1) / pair.runs - first_sample_) * pixels_;
    tiles_ = pair.weight_result.data ? least(channel_blocks, channel_tiles_ - first_tile_) : 0;
    writes_ = writes;
    walk({&pair, row_tile * tile_size, 0, 0});
    const int64_t row_tiles = blocks_of(pair.channels), partial = run * row_tiles + row_tile;
    if (pair.weight_result.data) write_weight_sums(pair, partial);
    if (writes_) write_row_sums(pair, partial);
  }

 private:
  struct Step {
    const Pair* pair;
    int row;        // first of the step's
    int64_t start;  // first of its pixels, counted from first_sample_
    int parity;     // which of the two lists of spots
  };

  // Shared memory: Small, S~ and then E, the operand that stays, slots for the one that passes by. Computed where they
  // are used, from a constant: held in registers they would be too many.
  L2T_FAST_KERNEL Small& small() const { return *reinterpret_cast<Small*>(m_.shared()); }
  L2T_FAST_KERNEL float* staging() const { return reinterpret_cast<float*>(m_.shared() + reserved_bytes); }
  L2T_FAST_KERNEL Element* stays() const {
    return reinterpret_cast<Element*>(m_.shared() + reserved_bytes + staging_bytes<Element, second>);
  }
  L2T_FAST_KERNEL Element* passes() const { return stays() + (held_ ? channel_tiles_ : 2) * slot_elements; }

  static L2T_FAST_KERNEL int least(int a, int b) { return a < b ? a : b; }

  L2T_FAST_KERNEL Step after(Step step) const {
    if constexpr (projection) {
      step.start += tile_size;
      step.parity ^= 1;
    } else {
      step.row += tile_size;
      if (step.row >= step.pair->channels) {
        ++step.pair;
        step.row = 0;
      }
    }
    return step;
  }

  L2T_FAST_KERNEL bool exists(const Step& step) const {
    if constexpr (projection) return step.start < length_;
    return step.pair < end_;
  }

  // ---- tiles on their way in

  // Tiles pass by in an order known beforehand, a stage at a time: a step's operands of D, then, unless they were kept,
  // those of the sums. While one is worked on, the next is on its way. `first`: of the item.
  L2T_FAST_KERNEL void request(const Step& step, int stage, bool first) {
    const int k = stage < channel_tiles_ ? stage : first_tile_ + stage - channel_tiles_;
    request_operand<projection>(step, k, passes() + slot_ * slot_elements);
    if (held_ ? !first : stage >= channel_tiles_) return;
    const int begin = held_ ? 0 : stage, end = held_ ? channel_tiles_ : stage + 1;
    for (int tile = begin; tile < end; ++tile)
      request_operand<!projection>(step, tile, stays() + (held_ ? tile : slot_) * slot_elements);
  }

  template <bool map>
  L2T_FAST_KERNEL void request_operand(const Step& step, int k, Element* tile) {
    const int channel = k * tile_size;
    if constexpr (map) {
      const Spot* const spots = small().spots[step.parity];
      fill_map(m_, tile, target_.map, spots, channel, target_.channels);
      if (second && target_.direction.data)
        fill_map(m_, tile + tile_elements, target_.direction, spots, channel, target_.channels);
    } else {
      const Pair& pair = *step.pair;
      fill_matrix(m_, tile, pair.weight, step.row, pair.channels, channel, target_.channels);
      if (second && pair.weight_direction.data)
        fill_matrix(m_, tile + tile_elements, pair.weight_direction, step.row, pair.channels, channel,
                    target_.channels);
    }
  }

  // ---- the steps

  L2T_FAST_KERNEL void find_spots(const Step& step, int pixel) const {
    const int64_t line = step.start + pixel;
    Spot spot{-1, 0, 0};
    if (line < length_) {
      const int64_t samples = step.start / pixels_;
      const int rest = int(step.start - samples * pixels_) + pixel, more = rest / pixels_,
                place = rest - more * pixels_;
      spot = {int32_t(first_sample_ + samples) + more, place / target_.width, place % target_.width};
    }
    small().spots[step.parity][pixel] = spot;
  }

  L2T_FAST_KERNEL void find_taps(const Step& step, int pixel) const {
    const Spot spot = small().spots[step.parity][pixel];
    Tap found;
    tap(spot.row, step.pair->height, target_.height, found.row, found.down);
    tap(spot.column, step.pair->width, target_.width, found.column, found.along);
    small().taps[pixel] = found;
  }

  L2T_FAST_KERNEL void walk(Step step) {
    L2T_FAST_UNROLL
    for (int c = 0; c < channel_blocks; ++c) clear(sums_[c]);
    L2T_FAST_UNROLL
    for (int r = 0; r < 4; ++r) row_sums_[r] = squares_[r] = 0;
    loss_ = 0;
    if (const int thread = m_.thread(); thread < tile_size) find_spots(step, thread);
    m_.barrier();

    // Slots are taken in turn. Only one place requests tiles, and so on: every call is compiled where it stands.
    const int requested_stages = channel_tiles_ + (held_ ? 0 : tiles_);
    Step next = after(step);
    const Pair* tapped = nullptr;  // whose size the taps are for
    int first_slot = 0, here = 0;  // of the step, of the stage
    slot_ = 0;
    Sums d, v;
    for (int stage = requested_stages ? -1 : 0;; ++stage) {
      if (stage == 0) {
        first_slot = slot_;
        begin_differences(step, next, tapped, d, v);
      }
      if (stage == channel_tiles_) {
        finish_differences(step, d, v);
        m_.barrier();
      }
      if (stage == channel_tiles_ + tiles_) {
        step = next;
        if (!exists(step)) return;
        next = after(step);
        stage = -1;
        m_.barrier();  // nobody reads E, taps or the other spots any more
        continue;
      }
      if (stage < requested_stages) {
        const bool first = stage < 0;
        if (!first) {
          m_.wait();
          m_.barrier();
          here = slot_;
          slot_ = here + 1 == slots_ ? 0 : here + 1;
        }
        const bool same = stage + 1 < requested_stages;
        // field by field: a choice between two objects would put them into memory
        const Step wanted{same ? step.pair : next.pair, same ? step.row : next.row, same ? step.start : next.start,
                          same ? step.parity : next.parity};
        if (exists(wanted)) request(wanted, same ? stage + 1 : 0, first);
        if (first) continue;
      }
      if (stage < channel_tiles_) {
        const Element* const passing = passes() + here * slot_elements;
        const Element* const staying = stays() + (held_ ? stage : here) * slot_elements;
        add_to_differences(*step.pair, d, v, projection ? staying : passing, projection ? passing : staying);
      } else {
        const int c = stage - channel_tiles_, kept = first_slot + first_tile_ + c;
        const int slot = !held_ ? here : kept < slots_ ? kept : kept - slots_;
        if (c == 0)
          add_to_sums(*step.pair, sums_[0], passes() + slot * slot_elements);
        else
          add_to_sums(*step.pair, sums_[1], passes() + slot * slot_elements);
      }
    }
  }

  // D += W T and V += W vT + vW T, of a block of channels.
  L2T_FAST_KERNEL void add_to_differences(const Pair& pair, Sums& d, Sums& v, const Element* w, const Element* t) {
    multiply_map(d, w, t, target_.map.channels_last);
    if constexpr (second)
      for (int term = 0; term < 2; ++term) {
        const bool of_target = term == 0;
        if (of_target ? target_.direction.data : pair.weight_direction.data)
          multiply_map(v, of_target ? w : w + tile_elements, of_target ? t + tile_elements : t,
                       of_target ? target_.direction.channels_last : target_.map.channels_last);
      }
  }

  // sums += W^T E' + vW^T E, or E' T^T + E vT^T (K1: with E in the place of E', and that alone), of a block of
  // channels.
  L2T_FAST_KERNEL void add_to_sums(const Pair& pair, Sums& sums, const Element* passes) {
    const Element* const e = reinterpret_cast<const Element*>(staging());
    for (int term = 0; term < operands; ++term) {
      const Map& map = term ? target_.direction : target_.map;
      const Matrix& matrix = term ? pair.weight_direction : pair.weight;
      const int at = term * tile_elements;
      if (!(projection ? map.data : matrix.data)) continue;
      if constexpr (projection)
        multiply_by_map(sums, e + at, passes + at, map.channels_last);
      else
        product<Mode, true, true>(m_, sums, passes + at, e + at);
    }
  }

  // sums += W T, the sum over channels.
  L2T_FAST_KERNEL void multiply_map(Sums& sums, const Element* w, const Element* t, bool channels_last) {
    if (channels_last)
      product<Mode, false, false>(m_, sums, w, t);
    else
      product<Mode, false, true>(m_, sums, w, t);
  }

  // sums += E T^T, the sum over pixels.
  L2T_FAST_KERNEL void multiply_by_map(Sums& sums, const Element* e, const Element* t, bool channels_last) {
    if (channels_last)
      product<Mode, false, true>(m_, sums, e, t);
    else
      product<Mode, false, false>(m_, sums, e, t);
  }

  L2T_FAST_KERNEL float vector_at(const Vector& vector, int index) {
    return vector.data ? load(m_, vector.data, vector.type, index * vector.step) : 0.f;
  }

  // D = b - S~, V = vb: what the products are added to. Zero beyond the last row and pixel.
  L2T_FAST_KERNEL void begin_differences(const Step& step, const Step& next, const Pair*& tapped, Sums& d, Sums& v) {
    const Pair& pair = *step.pair;
    const Spot* const spots = small().spots[step.parity];
    const int thread = m_.thread();
    const bool resized = pair.height != target_.height || pair.width != target_.width;
    if (projection || tapped != &pair) {
      if (resized && thread < tile_size) find_taps(step, thread);
      if (projection && exists(next) && thread >= tile_size) find_spots(next, thread - tile_size);
      m_.barrier();
      tapped = &pair;
    }
    if (pair.source.type == Type::float32)
      stage_source<Type::float32>(m_, staging(), pair, step.row, spots, small().taps, resized);
    else if (pair.source.type == Type::bfloat16)
      stage_source<Type::bfloat16>(m_, staging(), pair, step.row, spots, small().taps, resized);
    else
      stage_source<Type::float16>(m_, staging(), pair, step.row, spots, small().taps, resized);
    if (thread < tile_size) {
      const bool lives = step.row + thread < pair.channels;
      small().rows[0][thread] = lives ? vector_at(pair.bias, step.row + thread) : 0.f;
      if constexpr (second) small().rows[1][thread] = lives ? vector_at(pair.bias_direction, step.row + thread) : 0.f;
    }
    m_.barrier();
    L2T_FAST_UNROLL
    for (int j = 0; j < 4; ++j) {
      L2T_FAST_UNROLL
      for (int e = 0; e < 4; ++e) {
        const int column = position(thread, 0, j, e).column;
        const bool within = spots[column].sample >= 0;
        L2T_FAST_UNROLL
        for (int i = 0; i < 2; ++i) {
          const int row = position(thread, i, j, e).row;
          d[i][j][e] = within ? small().rows[0][row] - staging()[at<float>(row, column)] : 0.f;
          if constexpr (second) v[i][j][e] = within ? small().rows[1][row] : 0.f;
        }
      }
    }
  }

  L2T_FAST_KERNEL float coefficient(const Coefficients& coefficients, int64_t sample, int64_t column) const {
    return coefficients.data ? coefficients.data[sample * coefficients.sample + column * coefficients.column] : 0.f;
  }

  // From D (and V): E (or E' and E) into shared memory, sums over rows, Q (or its derivative) as samples end. Goes
  // through the tile's samples, of which there is one in most tiles.
  L2T_FAST_KERNEL void finish_differences(const Step& step, const Sums& d, const Sums& v) {
    const Pair& pair = *step.pair;
    const Spot* const spots = small().spots[step.parity];
    Element* const e_tile = reinterpret_cast<Element*>(staging());
    const int64_t end = step.start + tile_size < length_ ? step.start + tile_size : length_;
    const int first = int(step.start / pixels_), last = int((end - 1) / pixels_);  // counted from first_sample_
    for (int here = first; here <= last; ++here) {
      const int thread = m_.thread();
      float alpha[4], direction[4];  // twice the coefficients of the thread's rows
      L2T_FAST_UNROLL
      for (int r = 0; r < 4; ++r) {
        const int row = step.row + position(thread, r / 2, 0, r % 2 * 2).row;
        const int64_t sample = first_sample_ + here, column = pair.column + row;
        alpha[r] = row < pair.channels ? 2 * coefficient(problem_.alpha, sample, column) : 0.f;
        if constexpr (second)
          direction[r] = row < pair.channels ? 2 * coefficient(problem_.alpha_direction, sample, column) : 0.f;
      }
      L2T_FAST_UNROLL
      for (int j = 0; j < 8; ++j) {
        const int column = position(thread, 0, j / 2, j % 2).column, found = spots[column].sample;
        // beyond the end, which belongs to the last sample here, D is zero, and so is E
        if ((found < 0 ? last : found - int(first_sample_)) != here) continue;
        L2T_FAST_UNROLL
        for (int r = 0; r < 4; ++r) {
          const int row = position(thread, r / 2, 0, r % 2 * 2).row, element = r % 2 * 2 + j % 2;
          const float difference = d[r / 2][j / 2][element];
          float e = alpha[r] * difference, square = difference * difference;
          if constexpr (second) {
            const float moved = v[r / 2][j / 2][element];
            if (tiles_ > 0) put(m_, e_tile + tile_elements, row, column, e);
            e = alpha[r] * moved + direction[r] * difference;
            square = 2 * difference * moved;
          }
          if (tiles_ > 0) put(m_, e_tile, row, column, e);
          if constexpr (projection) {
            row_sums_[r] += e;
            squares_[r] += square;
          }
        }
      }
      if constexpr (projection)
        if (writes_ && int64_t(here + 1) * pixels_ <= end) end_sample(pair, step.row, first_sample_ + here);
    }
  }

  // A sample ends in its run, so its sums of squares are complete, and go out.
  L2T_FAST_KERNEL void end_sample(const Pair& pair, int first_row, int64_t sample) {
    const float square = sum_over_row(squares_);
    const int thread = m_.thread();
    const int row = first_row + thread;
    if (thread < tile_size && row < pair.channels) {
      const int64_t column = pair.column + row;
      if (problem_.squares) problem_.squares[sample * problem_.columns + column] = square;
      if constexpr (!second) loss_ += coefficient(problem_.alpha, sample, column) * square;
    }
    L2T_FAST_UNROLL
    for (int r = 0; r < 4; ++r) squares_[r] = 0;
  }

  // The sum of a row's parts, one a thread, for thread number `row` < 64; others get nothing of use.
  L2T_FAST_KERNEL float sum_over_row(const float (&parts)[4]) {
    const int thread = m_.thread();
    m_.barrier();
    L2T_FAST_UNROLL
    for (int r = 0; r < 4; ++r) {
      float part = parts[r];
      part += m_.exchange(part, 1);
      part += m_.exchange(part, 2);
      if (thread % 4 == 0) small().rows[thread / 32 % 2][position(thread, r / 2, 0, r % 2 * 2).row] = part;
    }
    m_.barrier();
    return small().rows[0][thread % tile_size] + small().rows[1][thread % tile_size];
  }

  // ---- results

  // Through shared memory, so that neighbouring threads write neighbouring elements.
  L2T_FAST_KERNEL void write_target() {
    const Map& result = target_.result;
    const int thread = m_.thread();
    for (int c = 0; c < tiles_; ++c) {
      m_.barrier();
      L2T_FAST_UNROLL
      for (int i = 0; i < 2; ++i) {
        L2T_FAST_UNROLL
        for (int j = 0; j < 4; ++j) {
          L2T_FAST_UNROLL
          for (int e = 0; e < 4; ++e) {
            const Position where = position(thread, i, j, e);
            staging()[at<float>(where.row, where.column)] = c == 0 ? sums_[0][i][j][e] : sums_[1][i][j][e];
          }
        }
      }
      m_.barrier();
      L2T_FAST_UNROLL_BY(2)
      for (int element = thread; element < tile_elements; element += threads) {
        const int fast = element % tile_size, slow = element / tile_size;
        const int local = result.channels_last ? fast : slow, pixel = result.channels_last ? slow : fast;
        const int channel = (first_tile_ + c) * tile_size + local;
        const Spot& spot = small().spots[0][pixel];
        if (spot.sample >= 0 && channel < target_.channels)
          store(m_, result.data, result.type, offset_of(result, spot) + channel * result.channel,
                staging()[at<float>(local, pixel)]);
      }
    }
  }

  L2T_FAST_KERNEL void write_weight_sums(const Pair& pair, int64_t partial) {
    const int thread = m_.thread();
    L2T_FAST_UNROLL
    for (int c = 0; c < channel_blocks; ++c) {
      if (c >= tiles_) break;
      float* const to =
          problem_.weight_sums + pair.weight_sums + (partial * channel_tiles_ + first_tile_ + c) * tile_elements;
      L2T_FAST_UNROLL
      for (int i = 0; i < 2; ++i) {
        L2T_FAST_UNROLL
        for (int j = 0; j < 4; ++j) {
          L2T_FAST_UNROLL
          for (int e = 0; e < 4; ++e) {
            const Position where = position(thread, i, j, e);
            to[where.row * tile_size + where.column] = sums_[c][i][j][e];
          }
        }
      }
    }
  }

  L2T_FAST_KERNEL void write_row_sums(const Pair& pair, int64_t partial) {
    const int thread = m_.thread();
    if (pair.bias_result.data) {
      const float sum = sum_over_row(row_sums_);
      if (thread < tile_size) problem_.bias_sums[pair.bias_sums + partial * tile_size + thread] = sum;
    }
    if constexpr (second) return;
    m_.barrier();
    if (thread < tile_size) small().rows[0][thread] = loss_;
    m_.barrier();
    if (thread > 0) return;
    float sum = 0;
    for (int row = 0; row < tile_size; ++row) sum += small().rows[0][row];
    problem_.loss_sums[pair.loss_sums + partial] = sum;
  }

  M& m_;
  const Problem& problem_;
  const Target& target_;
  const int channel_tiles_;  // of the whole target
  const bool held_;
  const int slots_;
  const int first_tile_;  // of channels, of this item
  const int pixels_;      // of a sample
  int tiles_ = 0;         // of channels, whose sums this item makes
  int64_t first_sample_ = 0, length_ = 0;
  const Pair* end_ = nullptr;
  bool writes_ = false;  // Q, the loss, the bias: one of the items that share rows and samples does

  int slot_ = 0;

  Sums sums_[channel_blocks];
  float row_sums_[4], squares_[4], loss_ = 0;
};

// The segment of the launch that a block's item is in.
template <class M>
L2T_FAST_KERNEL const Segment& segment_of(M& m, const Problem& problem, const Launch& launch) {
  int low = launch.first, high = launch.first + launch.count - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (problem.segments[middle].first <= m.block())
      low = middle;
    else
      high = middle - 1;
  }
  return problem.segments[low];
}

template <class Mode, bool second, class M>
L2T_FAST_KERNEL void matching(M& m, const Problem& problem, const Launch& launch) {
  const Segment& segment = segment_of(m, problem, launch);
  const int item = m.block() - segment.first, group = item % segment.groups, rest = item / segment.groups;
  if (segment.kind == Segment::Kind::target) {
    Item<Mode, second, false, M>(m, problem, problem.targets[segment.index], group, launch.hold).run_target(rest);
  } else {
    const Pair& pair = problem.pairs[segment.index];
    const int row_tiles = blocks_of(pair.channels);
    Item<Mode, second, true, M>(m, problem, problem.targets[pair.target], group, launch.hold)
        .run_projection(pair, rest % row_tiles, rest / row_tiles, group == 0);
  }
}

// The second stage of the sums: partial ones are added in order, a thread an element.
template <class M>
L2T_FAST_KERNEL void add_up(M& m, const Problem& problem, const Launch& launch) {
  const Segment& segment = segment_of(m, problem, launch);
  const int64_t element = int64_t(m.block() - segment.first) * threads + m.thread();
  if (segment.kind == Segment::Kind::loss) {
    float sum = 0;
    for (int i = m.thread(); i < problem.loss_count; i += threads) sum += problem.loss_sums[i];
    float* const parts = reinterpret_cast<float*>(m.shared());
    parts[m.thread()] = sum;
    for (int half = threads / 2; half > 0; half /= 2) {
      m.barrier();
      if (m.thread() < half) parts[m.thread()] += parts[m.thread() + half];
    }
    if (m.thread() == 0) *problem.loss = parts[0];
    return;
  }
  const Pair& pair = problem.pairs[segment.index];
  const int64_t row_tiles = blocks_of(pair.channels);
  float sum = 0;
  if (segment.kind == Segment::Kind::bias) {
    if (element >= pair.channels) return;
    for (int run = 0; run < pair.runs; ++run)
      sum += problem.bias_sums[pair.bias_sums + run * row_tiles * tile_size + element];
    store(m, pair.bias_result.data, pair.bias_result.type, element * pair.bias_result.step, sum);
    return;
  }
  const int channels = problem.targets[pair.target].channels;
  if (element >= int64_t(pair.channels) * channels) return;
  const int64_t row = element / channels, channel = element % channels, channel_tiles = blocks_of(channels);
  const float* part = problem.weight_sums + pair.weight_sums +
                      (row / tile_size * channel_tiles + channel / tile_size) * tile_elements +
                      row % tile_size * tile_size + channel % tile_size;
  for (int run = 0; run < pair.runs; ++run, part += row_tiles * channel_tiles * tile_elements) sum += *part;
  const Matrix& result = pair.weight_result;
  store(m, result.data, result.type, row * result.row + channel * result.column, sum);
}

}  // namespace l2t_fast::cuda
