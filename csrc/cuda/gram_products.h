// Second of the Gram form: products of maps and of weights, a sample at a time. And last: dT from them.
#pragma once

#include <type_traits>

#include "gram.h"
#include "resize.h"

namespace l2t_fast::cuda {

// `Mode` is that of maps' products.
template <class Mode, class M>
class GramProducts : GramTiles<M> {
  using Tiles = GramTiles<M>;
  using Tiles::blocks, Tiles::height, Tiles::m_, Tiles::next, Tiles::problem_, Tiles::target_, Tiles::twice,
      Tiles::weights_from;
  using Element = typename Mode::Element;
  using Kept = std::conditional_t<std::is_same_v<Mode, Tf32x3>, Tf32, Mode>;  // how dT's factors are rounded
  static constexpr bool is_bfloat16 = sizeof(Element) == 2;
  static constexpr Type map_type = is_bfloat16 ? Type::bfloat16 : Type::float32;
  static constexpr int terms = depth<Element>;

 public:
  using Tiles::Tiles;

  // T T^T and S T^T of sources of the target's size, or of a group of smaller ones S (T U)^T; of T or its direction: a
  // tile of rows and T's channels, in shares of the pixels.
  L2T_FAST_KERNEL void multiply_maps(const Group* small, int which, int item) {
    const Gram& gram = target_.gram;
    const int channels = target_.channels;
    const int pixels = small ? small->height * small->width : target_.height * target_.width;
    const int shares = small ? 1 : gram.shares;
    const int first_channel = next(item, tiles(channels, height)) * height;
    const int first_half = next(item, tiles(small ? small->halves : gram.halves, 2)) * 2;
    const int part = next(item, shares), sample = item;
    if (const int h = m_.thread(); h < 2)
      halves()[h] = half_of(small, first_half + h, sample);
    else if (h == 2)
      halves()[2] = channels_of(small, which, first_channel, sample);
    m_.barrier();
    const int count = tiles(pixels, terms);
    const int begin = int(int64_t(count) * part / shares),
              of_pixels = int(int64_t(count) * (part + 1) / shares) - begin;
    const int all = small && is_bfloat16 ? 2 * of_pixels : of_pixels;  // T U, and its rest
    // Q is a small difference of these sums, also where products of bfloat16 are exact.
    Sums<blocks> sums;
    clear<blocks>(sums);
    multiply_tiles_in_chains<Mode, Layout<true>, Layout<true>, blocks>(
        m_, sums, all,
        [=, this](int number, Element* a, Element* b) {
          const bool of_rest = is_bfloat16 && number >= of_pixels;
          const int pixel = (begin + (of_rest ? number - of_pixels : number)) * terms;
          const Half of_channels = halves()[2];
          const int64_t place = of_rest ? problem_.batch * channels * small->stride : 0;
          fill_lines<true, height, height>(a, 0, of_channels.from + place + pixel, of_channels.by_row,
                                           of_channels.at_once, of_channels.rows, pixels - pixel);
          L2T_FAST_UNROLL
          for (int h = 0; h < 2; ++h) {
            const Half half = halves()[h];
            fill_lines<true, tile_width, rows_of_half>(b, h, half.from + pixel, half.by_row, half.at_once, half.rows,
                                                       pixels - pixel);
          }
        },
        [](int, Element*, Element*) {});
    float* const to = small ? gram.small_products[which] + int64_t(sample) * (target_.rows - gram.own_rows) * channels
                            : gram.products[which] +
                                  (int64_t(part) * problem_.batch + sample) * (channels + gram.own_rows) * channels;
    for_each_sum<blocks>(m_, sums, [=, this](int i, int j, float sum) {
      const Half& half = halves()[half_at(j)];
      const int channel = first_channel + i, row = row_of_half(j);
      if (channel < channels && row < half.rows) to[int64_t(half.first + row) * channels + channel] = sum;
    });
  }

  // W^T 2 alpha W of a sample; or what it moves by, vW^T 2 alpha W + W^T 2 alpha vW + W^T 2 valpha W.
  L2T_FAST_KERNEL void multiply_weights(int which, int item) {
    constexpr int terms = depth<float>;  // of a tile of weights
    const int channels = target_.channels, rows = target_.rows, count = tiles(rows, terms);
    const int first_channel = next(item, tiles(channels, height)) * height;
    const int first_column = next(item, tiles(channels, tile_width)) * tile_width, sample = item;
    const int moving_weights = which && target_.weight_direction ? 2 : 0;  // terms of the sum
    const int all = which ? moving_weights + (target_.gram.coefficients[1] ? 1 : 0) : 1;
    Sums<blocks> sums;
    clear<blocks>(sums);
    multiply_tiles_in_chains<Tf32x3, Layout<false>, Layout<false>, blocks>(
        m_, sums, all * count,
        [=, this](int number, float* a, float* b) {
          const int term = number / count, row = (number - term * count) * terms;
          feed_packed<false, height, float>(m_, weights_from(term < moving_weights && term == 0, row), 0, first_channel)
              .next(m_, a);
          feed_packed<false, tile_width, float>(m_, weights_from(term < moving_weights && term == 1, row), 0,
                                                first_column)
              .next(m_, b);
        },
        [=, this](int number, float* a, float*) {
          const int term = number / count, row = (number - term * count) * terms;
          scale_lines<Tf32x3>(a, twice(which && term == moving_weights, sample) + row, rows - row, 1);
        });
    const int stride = target_.stride;
    auto* const to =
        static_cast<typename Kept::Element*>(target_.gram.factors[which]) + int64_t(sample) * channels * stride;
    for_each_sum<blocks>(m_, sums, [=, this](int i, int j, float sum) {
      const int channel = first_channel + i, column = first_column + j;
      if (channel < channels && column < channels) keep<Kept>(m_, to, int64_t(channel) * stride + column, sum);
    });
  }

  // W^T 2 alpha S of a group of smaller sources, or what it moves by.
  L2T_FAST_KERNEL void grow(const Group& group, int item) {
    const int channels = target_.channels, pixels = group.height * group.width;
    const int first_channel = next(item, tiles(channels, height)) * height;
    const int first_pixel = next(item, tiles(group.stride, tile_width)) * tile_width, sample = item;
    Sums<blocks> sums;
    clear<blocks>(sums);
    multiply_tiles<Mode, Layout<false>, Layout<false>, blocks>(
        m_, sums, scaled_terms() * count_of(group),
        [=, this, &group](int number, Element* a, Element* b) {
          fill_scaled(a, b, group, number, sample, first_channel, first_pixel, pixels);
        },
        [=, this, &group](int number, Element* a, Element* b) { settle_scaled(a, b, group, number, sample, 1); });
    const int stride = group.stride;
    auto* const to = static_cast<Element*>(group.grown) + int64_t(sample) * channels * stride;
    for_each_sum<blocks>(m_, sums, [=, this](int i, int j, float sum) {
      const int channel = first_channel + i, pixel = first_pixel + j;
      if (channel < channels && pixel < stride) keep<Mode>(m_, to, int64_t(channel) * stride + pixel, sum);
    });
  }

  // dT, or hT: a tile of channels and of a sample's pixels.
  L2T_FAST_KERNEL void write_target(int item) {
    begin_tile(item);
    Sums<blocks> sums;
    clear<blocks>(sums);
    multiply_tiles<Mode, Layout<false>, Layout<false>, blocks>(
        m_, sums, here().of_maps + here().of_sources,
        [this](int number, Element* a, Element* b) { fill_target(number, a, b); },
        [this](int number, Element* a, Element* b) { settle_target(number, a, b); });
    const int end = target_.gram.first_group + target_.gram.groups;
    for (int g = target_.gram.first_group + (target_.gram.own_rows ? 1 : 0); scaled_terms() && g < end; ++g) {
      const Group& group = problem_.groups[g];
      subtract_resized<Mode, blocks, tile_width>(
          m_, sums, group, target_, here().live,
          [this, &group](Element* tile, int pixel) {
            const Packed grown{
                static_cast<const Element*>(group.grown) + int64_t(here().sample) * target_.channels * group.stride,
                group.stride, target_.channels};
            feed_packed<true, height, Element>(m_, grown, here().first_channel, pixel).next(m_, tile);
          },
          [this](Element* tile) { round_filled<Mode, true, height, height>(m_, tile, 0, vector<Element>); });
    }
    const Map result = target_.result;
    const int first_channel = here().first_channel, channels_left = target_.channels - first_channel;
    const float* const constant = target_.gram.constant + int64_t(here().sample) * target_.channels + first_channel;
    const bool adds = target_.gram.adds;
    for_each_sum<blocks>(m_, sums, [=, this](int i, int j, float sum) {
      if (i >= channels_left || j >= here().live) return;
      const int64_t at = offset_of(result, spots(m_)[j]) + int64_t(first_channel + i) * result.channel;
      sum += constant[i];
      if (adds) sum += widened<map_type>(m_, static_cast<const Stored<map_type>*>(result.data)[at]);
      store(m_, result.data, map_type, at, sum);
    });
  }

 private:
  // Rows of one map that a half of a tile has, of T or of a pair's source, or the other operand's: none beyond the
  // last.
  struct Half {
    const Element* from;  // the sample's, in its first row
    int by_row, at_once, rows;
    int first;  // among the lines of the products
  };
  // The block's two, and its T's or T U's, in shared memory, because registers are full of sums.
  L2T_FAST_KERNEL Half* halves() const {
    static_assert(3 * sizeof(Half) <= reserved_bytes);
    return reinterpret_cast<Half*>(m_.shared() + pipeline_bytes);
  }
  // From a channel on.
  L2T_FAST_KERNEL Half channels_of(const Group* small, int which, int first_channel, int sample) const {
    const int channels = target_.channels, rows = channels - first_channel;
    if (small) {
      const auto* const shrunk = static_cast<const Element*>(small->shrunk[which]);
      return {shrunk + (int64_t(sample) * channels + first_channel) * small->stride, small->stride, vector<Element>,
              rows, first_channel};
    }
    const Map& map = which ? target_.direction : target_.map;
    return {at(map, sample, first_channel), map.channel, map.at_once, rows, first_channel};
  }
  L2T_FAST_KERNEL Half half_of(const Group* small, int number, int sample) const {
    const Gram& gram = target_.gram;
    const Group* const group = small ? small : gram.own_rows ? &own_group() : nullptr;
    const bool of_target = !group || (!small && number < tiles(target_.channels, rows_of_half));
    const Pair* const pair =
        of_target ? nullptr : problem_.pairs + last_that_begins(group->first_pair, group->pairs, [=, this](int p) {
                                return problem_.pairs[p].first_half <= number;
                              });
    const Map& map = pair ? pair->source : target_.map;
    const int row = (pair ? number - pair->first_half : number) * rows_of_half;
    const int rows = (pair ? pair->channels : target_.channels) - row;
    const int before = !pair ? 0 : pair->first_row + (small ? -gram.own_rows : target_.channels);
    return {at(map, sample, rows > 0 ? row : 0), map.channel, map.at_once, rows, before + row};
  }

  // A tile of dT, and of what sums its products are: tiles of a factor times T (in K2 another one times vT before it),
  // then of scaled rows and sources of the target's size. In shared memory, as Work is, because registers are full of
  // sums.
  struct Place {
    int32_t sample, first_channel, first_pixel, live, pixels, of_factor, of_maps, of_sources;
  };
  L2T_FAST_KERNEL Place& here() const {
    static_assert(tile_width * (sizeof(Spot) + sizeof(Shares)) + sizeof(Place) <= reserved_bytes);
    return reinterpret_cast<Place&>(work(m_));
  }
  L2T_FAST_KERNEL void begin_tile(int item) {
    const int pixels = target_.height * target_.width;
    const int first_channel = next(item, tiles(target_.channels, height)) * height;
    const int first_pixel = next(item, tiles(pixels, tile_width)) * tile_width, sample = item;
    const int live = pixels - first_pixel < tile_width ? pixels - first_pixel : tile_width;
    const int thread = m_.thread();
    if (thread == 0) {
      const Gram& gram = target_.gram;
      const int of_factor = tiles(target_.channels, terms);
      here() = {sample,
                first_channel,
                first_pixel,
                live,
                pixels,
                of_factor,
                of_factor * ((gram.factors[0] ? 1 : 0) + (gram.factors[1] ? 1 : 0)),
                gram.own_rows ? scaled_terms() * count_of(own_group()) : 0};
    }
    if (thread < tile_width) {
      const int pixel = first_pixel + thread, row = divide(pixel, target_.by_width);
      spots(m_)[thread] = thread < live ? Spot{sample, row, pixel - row * target_.width} : Spot{-1, 0, 0};
    }
    m_.barrier();
  }
  L2T_FAST_KERNEL const Group& own_group() const { return problem_.groups[target_.gram.first_group]; }

  // Whether a tile is of the second factor, which stands alone or last, and what it is multiplied with.
  L2T_FAST_KERNEL bool is_last(int number) const {
    return target_.gram.factors[1] && number >= here().of_maps - here().of_factor;
  }
  L2T_FAST_KERNEL const Map& factor_map(int number) const {
    return problem_.second && !is_last(number) ? target_.direction : target_.map;
  }

  L2T_FAST_KERNEL void fill_target(int number, Element* a, Element* b) {
    if (number >= here().of_maps) {
      fill_scaled(a, b, own_group(), number - here().of_maps, here().sample, here().first_channel, here().first_pixel,
                  here().pixels);
      return;
    }
    const int channels = target_.channels, term = number % here().of_factor * terms;
    const Packed factor{static_cast<const Element*>(target_.gram.factors[is_last(number)]) +
                            (int64_t(here().sample) * channels + term) * target_.stride,
                        target_.stride, channels - term};
    feed_packed<false, height, Element>(m_, factor, 0, here().first_channel).next(m_, a);
    fill_map<false, tile_width>(b, factor_map(number), here().sample, term, channels, here().first_pixel,
                                here().pixels);
  }

  L2T_FAST_KERNEL void settle_target(int number, Element* a, Element* b) {
    if (number >= here().of_maps)
      settle_scaled(a, b, own_group(), number - here().of_maps, here().sample, -1);
    else
      round_filled<Mode, false, tile_width, tile_width>(m_, b, 0, factor_map(number).at_once);
  }

  // A tile of a sample, from a channel and a pixel on: `along_pixels` if these are the terms of the sum, else channels.
  template <bool along_pixels, int length>
  L2T_FAST_KERNEL void fill_map(Element* tile, const Map& map, int sample, int first_channel, int channels,
                                int first_pixel, int pixels) {
    fill_lines<along_pixels, length, length>(tile, 0, at(map, sample, first_channel) + first_pixel, map.channel,
                                             map.at_once, channels - first_channel, pixels - first_pixel);
  }
  // The same, or a half of it, from its first element on.
  template <bool along_pixels, int length, int count>
  L2T_FAST_KERNEL void fill_lines(Element* tile, int half, const Element* from, int by_channel, int at_once,
                                  int channels, int pixels) {
    fill<along_pixels, length, count>(
        m_, tile, half, from, map_type, at_once, [=](int within) { return within < pixels ? within : -1; },
        [=](int line) { return line < channels ? line * by_channel : -1; });
  }
  static L2T_FAST_KERNEL const Element* at(const Map& map, int sample, int channel) {
    return static_cast<const Element*>(map.data) + sample * map.sample + int64_t(channel) * map.channel;
  }

  // The sum over a group's rows of 2 alpha W and S, in tiles of one pair each. In K2 it moves by two such sums: by that
  // of 2 alpha vW, and of 2 valpha W.
  L2T_FAST_KERNEL int scaled_terms() const {
    return problem_.second ? (target_.weight_direction ? 1 : 0) + (target_.gram.coefficients[1] ? 1 : 0) : 1;
  }
  struct Stretch {
    const Pair* pair;
    int first;  // of the pair's channels
    bool weights_move, coefficients_move;
  };
  L2T_FAST_KERNEL int count_of(const Group& group) const {
    const Pair& last = problem_.pairs[group.first_pair + group.pairs - 1];
    return last.first_tile + tiles(last.channels, terms);
  }
  L2T_FAST_KERNEL Stretch stretch_of(const Group& group, int number) const {
    const int count = count_of(group);
    const bool again = number >= count;
    if (again) number -= count;
    const Pair& pair = problem_.pairs[last_that_begins(
        group.first_pair, group.pairs, [=, this](int p) { return problem_.pairs[p].first_tile <= number; })];
    const bool weights_move = problem_.second && target_.weight_direction && !again;
    return {&pair, (number - pair.first_tile) * terms, weights_move, problem_.second && !weights_move};
  }
  L2T_FAST_KERNEL void fill_scaled(Element* a, Element* b, const Group& group, int number, int sample,
                                   int first_channel, int first_pixel, int pixels) {
    const Stretch found = stretch_of(group, number);
    const int64_t first = int64_t(found.pair->first_row + found.first) * target_.stride;
    const void* const weights = is_bfloat16          ? target_.gram.weights[found.weights_move]
                                : found.weights_move ? target_.weight_direction
                                                     : target_.weight;
    const Packed weight{static_cast<const Element*>(weights) + first, target_.stride,
                        found.pair->channels - found.first};
    feed_packed<false, height, Element>(m_, weight, 0, first_channel).next(m_, a);
    fill_map<false, tile_width>(b, found.pair->source, sample, found.first, found.pair->channels, first_pixel, pixels);
  }
  L2T_FAST_KERNEL void settle_scaled(Element* a, Element* b, const Group& group, int number, int sample, float sign) {
    const Stretch found = stretch_of(group, number);
    scale_lines<Mode>(a, twice(found.coefficients_move, sample) + found.pair->first_row + found.first,
                      found.pair->channels - found.first, sign);
    round_filled<Mode, false, tile_width, tile_width>(m_, b, 0, found.pair->source.at_once);
  }

  // The lines of a tile of packed weights, each times its number: by the threads that brought them (Feed).
  template <class TileMode>
  L2T_FAST_KERNEL void scale_lines(typename TileMode::Element* tile, const float* factors, int count, float sign) {
    using TileElement = typename TileMode::Element;
    constexpr int pieces = height / vector<TileElement>;
    const int thread = m_.thread();
    L2T_FAST_UNROLL
    for (int line = thread / pieces; line < depth<TileElement>; line += threads / pieces) {
      const float factor = line < count ? sign * factors[line] : 0.f;
      auto* const piece = tile + place<false, height, TileElement>(line, thread % pieces);
      float values[4];
      m_.read4(values, reinterpret_cast<const float*>(piece));
      if constexpr (sizeof(TileElement) == 2) {
        uint32_t bits[4];
        L2T_FAST_UNROLL
        for (int i = 0; i < 4; ++i) {
          const uint32_t both = m_.as_bits(values[i]);
          const float low = m_.as_float(both << 16) * factor, high = m_.as_float(both & 0xffff0000) * factor;
          bits[i] = uint32_t(m_.to_bfloat16(low)) | uint32_t(m_.to_bfloat16(high)) << 16;
        }
        m_.write16(piece, bits);
      } else {
        L2T_FAST_UNROLL
        for (float& value : values) value *= factor;
        keep_vector<TileMode>(m_, piece, 0, values);
      }
    }
  }
};

// Mode: of maps' products, Tf32x3 or Bfloat16.
template <class Mode, class M>
L2T_FAST_KERNEL void gram_products(M& m, const Problem& problem, const Launch& launch) {
  using Kind = Segment::Kind;
  const Segment segment = segment_of(m, problem, launch);
  const int item = m.block() - segment.first;
  const bool of_group = segment.kind == Kind::source_products || segment.kind == Kind::grow;
  const Group* const group = of_group ? problem.groups + segment.index : nullptr;
  GramProducts<Mode, M> products(m, problem, problem.targets[segment.target]);
  if (segment.kind == Kind::factor)
    products.multiply_weights(segment.which, item);
  else if (segment.kind == Kind::grow)
    products.grow(*group, item);
  else
    products.multiply_maps(group, segment.which, item);
}

// Mode: Tf32 or Bfloat16.
template <class Mode, class M>
L2T_FAST_KERNEL void gram_targets(M& m, const Problem& problem, const Launch& launch) {
  const Segment segment = segment_of(m, problem, launch);
  GramProducts<Mode, M>(m, problem, problem.targets[segment.target]).write_target(m.block() - segment.first);
}

}  // namespace l2t_fast::cuda
