// The bilinear resize of sources with fewer pixels, as a part of the products.
#pragma once

#include "lines.h"
#include "tile.h"

namespace l2t_fast::cuda {

// Half-pixel centres, as torch.nn.functional.interpolate(align_corners=False), in integers: exact to one rounding.
struct Tap {
  int32_t lower;
  bool inside;    // whether there is an upper neighbour
  float share;    // of the upper one
  uint16_t rest;  // the share's numerator, over 2 size_out, of sides below longest_side
};

template <class Integer>
L2T_FAST_KERNEL Tap tap_in(int position, int size_in, int size_out) {
  const Integer ahead = Integer(2 * Integer(position) + 1) * Integer(size_in);
  const Integer twice = ahead > Integer(size_out) ? ahead - Integer(size_out) : 0, whole = 2 * Integer(size_out);
  const Integer lower = twice / whole, rest = twice - lower * whole;
  return {int32_t(lower), int32_t(lower) + 1 < size_in, float(rest) / float(whole), uint16_t(rest)};
}

L2T_FAST_KERNEL Tap tap(int position, int size_in, int size_out) {
  const bool small = size_in < 1 << 15 && size_out < 1 << 15;  // 32 bits hold all products
  return small ? tap_in<uint32_t>(position, size_in, size_out) : tap_in<uint64_t>(position, size_in, size_out);
}

// sums -= M U^T: M has the tile's rows and the pixels of a smaller map, U the bilinear shares that a column takes of
// them. The columns that the block's spots name, `live` of them, are of one sample and consecutive: they take of a
// stretch of pixels. fill(tile, pixel) requests M's tile from a pixel on, settle(tile) is for when it is there.
// `from` and `to` have a height and a width, and stay where they are: registers are full of sums.
// `columns`: of a whole tile, or of the left half of one (see spread()).
template <class Mode, int blocks, int columns, class M, class From, class To, class Fill, class Settle>
L2T_FAST_KERNEL void subtract_resized(M& m, Sums<blocks>& sums, const From& from, const To& to, int live,
                                      const Fill& fill, const Settle& settle) {
  using Element = typename Mode::Element;
  constexpr int terms_of_tile = depth<Element>, half = terms_of_tile / 2;  // two threads a column
  const Tap bottom = tap(spots(m)[live - 1].row, from.height, to.height);
  const int begin = tap(spots(m)[0].row, from.height, to.height).lower * from.width / vector<Element> * vector<Element>;
  const int end = (bottom.lower + (bottom.inside ? 2 : 1)) * from.width;
  if (const int column = m.thread(); column < live) {
    const Spot spot = spots(m)[column];
    const Tap down = tap(spot.row, from.height, to.height), along = tap(spot.column, from.width, to.width);
    shares(m)[column] = {down.lower * from.width + along.lower, along.inside ? along.rest : uint16_t(0),
                         down.inside ? down.rest : uint16_t(0)};
  }
  m.barrier();
  multiply_tiles<Mode, Layout<true>, Layout<true>, blocks>(
      m, sums, (end - begin + terms_of_tile - 1) / terms_of_tile,
      [=, &m, &from, &to, &fill](int number, Element* a, Element* b) {
        const int pixel = begin + number * terms_of_tile;
        fill(a, pixel);
        const int line = m.thread() / 2, part = m.thread() % 2 * half;
        const int column = columns == tile_width ? line : half_at(line) ? tile_width : row_of_half(line);
        L2T_FAST_UNROLL
        for (int piece = 0; piece < half / vector<Element>; ++piece)
          m.zero16(b + place<true, tile_width, Element>(line, part / vector<Element> + piece));
        if (column >= live) return;
        const Shares found = shares(m)[column];
        const auto put = [=, &m](int at, float share) {
          const int within = at - pixel;
          if (within >= part && within < part + half)
            keep<Mode>(m, b,
                       place<true, tile_width, Element>(line, within / vector<Element>) + within % vector<Element>,
                       -share);
        };
        const float right = float(found.right) / float(2 * to.width), lower = float(found.lower) / float(2 * to.height);
        put(found.first, (1 - lower) * (1 - right));
        if (right > 0) put(found.first + 1, (1 - lower) * right);
        if (lower > 0) {
          put(found.first + from.width, lower * (1 - right));
          if (right > 0) put(found.first + from.width + 1, lower * right);
        }
      },
      [&settle](int, Element* a, Element*) { settle(a); });
}

}  // namespace l2t_fast::cuda
