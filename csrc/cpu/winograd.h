// The steps of a 3x3 convolution in Winograd's form. Formulas: csrc/convolution.h. Included once by each
// kernels_<isa>.cpp.
//
// Everything is a panel matrix: maps are taken apart into panels of NR channels, so that every step works on whole
// vectors whatever the layout of the map, and the products are those of the matching loss (tile.h).
#pragma once

#include "block.h"
#include "tile.h"

namespace l2t_fast::cpu::L2T_ISA {

constexpr int taps_count = 9;
constexpr int64_t staged_taps_rows = 32;  // rows of taps at a time

// Tile rows (two rows of pixels each) that are staged at a time: some 64 KiB.
inline int64_t staged_tile_rows(int64_t width) { return maximum(1, (1024 / width - 2) / 2); }

inline int64_t winograd_stage(int64_t width) {
  const int64_t of_pixels = (2 * staged_tile_rows(width) + 2) * width;
  return maximum(of_pixels, staged_taps_rows * taps_count) * panel<float>;
}

// Calls visit(image, first tile row, number of them, tiles before them) for stretches of tile rows within one image.
template <class Visit>
inline void for_each_strip(const DenseMap& map, int64_t begin, int64_t end, const Visit& visit) {
  const int64_t down = (map.height + 1) / 2, across = (map.width + 1) / 2, most = staged_tile_rows(map.width);
  for (int64_t done = begin; done < end;) {
    const int64_t row = done % down, count = minimum(minimum(end - done, down - row), most);
    visit(done / down, row, count, (done - begin) * across);
    done += count;
  }
}

// Where rows of pixels from `row` on of NR channels begin.
inline float* pixel_rows(const DenseMap& map, int64_t image, int64_t channel, int64_t row) {
  return static_cast<float*>(map.data) + image * map.channels * map.height * map.width + channel * map.channel_stride +
         row * map.width * map.pixel_stride;
}

inline void stage_pixels(const DenseMap& map, int64_t image, int64_t channel, int64_t first, int64_t last,
                         float* stage) {
  load_block<float>(pixel_rows(map, image, channel, first), Element::float32, map.channel_stride, map.pixel_stride,
                    minimum(panel<float>, map.channels - channel), (last - first) * map.width, stage, 0, 0,
                    panel<float>);
}

// B^T d B of every 4x4 patch d, whose corner is a pixel above and to the left of its tile; 0 outside of the map.
inline void winograd_input(const DenseMap& map, int64_t channel, int64_t begin, int64_t end, float* tiles,
                           int64_t position_stride, float* stage) {
  constexpr int NR = panel<float>, L = lanes<float>;
  alignas(64) static const float zeros[NR] = {};
  const int64_t across = (map.width + 1) / 2;
  for_each_strip(map, begin, end, [&](int64_t image, int64_t row, int64_t count, int64_t before) {
    const int64_t first = maximum(0, 2 * row - 1), last = minimum(map.height, 2 * (row + count) + 1);
    stage_pixels(map, image, channel, first, last, stage);
    float* out = tiles + before * NR;
    for (int64_t tile_y = row; tile_y < row + count; ++tile_y)
      for (int64_t tile_x = 0; tile_x < across; ++tile_x, out += NR) {
        const float* at[16];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i)
#pragma GCC unroll 4
          for (int j = 0; j < 4; ++j) {
            const int64_t y = 2 * tile_y - 1 + i, x = 2 * tile_x - 1 + j;
            const bool inside = y >= first && y < last && x >= 0 && x < map.width;
            at[4 * i + j] = inside ? stage + ((y - first) * map.width + x) * NR : zeros;
          }
        for (int c = 0; c < NR; c += L) {
          vec<float> t[16];
#pragma GCC unroll 4
          for (int j = 0; j < 4; ++j) {
            const vec<float> d0 = load(at[j] + c), d1 = load(at[4 + j] + c), d2 = load(at[8 + j] + c),
                             d3 = load(at[12 + j] + c);
            t[j] = d0 - d2;
            t[4 + j] = d1 + d2;
            t[8 + j] = d2 - d1;
            t[12 + j] = d1 - d3;
          }
#pragma GCC unroll 4
          for (int i = 0; i < 4; ++i) {
            float* to = out + 4 * i * position_stride + c;
            store(to, t[4 * i] - t[4 * i + 2]);
            store(to + position_stride, t[4 * i + 1] + t[4 * i + 2]);
            store(to + 2 * position_stride, t[4 * i + 2] - t[4 * i + 1]);
            store(to + 3 * position_stride, t[4 * i + 1] - t[4 * i + 3]);
          }
        }
      }
  });
}

// A y A^T of every 2x2 tile y of an output's gradient; 0 outside of the map.
inline void winograd_gradient(const DenseMap& map, int64_t channel, int64_t begin, int64_t end, float* tiles,
                              int64_t position_stride, float* stage) {
  constexpr int NR = panel<float>, L = lanes<float>;
  alignas(64) static const float zeros[NR] = {};
  const int64_t across = (map.width + 1) / 2;
  for_each_strip(map, begin, end, [&](int64_t image, int64_t row, int64_t count, int64_t before) {
    const int64_t first = 2 * row, last = minimum(map.height, 2 * (row + count));
    stage_pixels(map, image, channel, first, last, stage);
    float* out = tiles + before * NR;
    for (int64_t tile_y = row; tile_y < row + count; ++tile_y)
      for (int64_t tile_x = 0; tile_x < across; ++tile_x, out += NR) {
        const float* at = stage + ((2 * tile_y - first) * map.width + 2 * tile_x) * NR;
        const bool right = 2 * tile_x + 1 < map.width, below = 2 * tile_y + 1 < last;
        for (int c = 0; c < NR; c += L) {
          const vec<float> y00 = load(at + c), y01 = load((right ? at + NR : zeros) + c),
                           y10 = load((below ? at + map.width * NR : zeros) + c),
                           y11 = load((below && right ? at + (map.width + 1) * NR : zeros) + c);
          const vec<float> t0[4] = {y00, y00 + y10, y00 - y10, -y10}, t1[4] = {y01, y01 + y11, y01 - y11, -y11};
#pragma GCC unroll 4
          for (int i = 0; i < 4; ++i) {
            float* to = out + 4 * i * position_stride + c;
            store(to, t0[i]);
            store(to + position_stride, t0[i] + t1[i]);
            store(to + 2 * position_stride, t0[i] - t1[i]);
            store(to + 3 * position_stride, -t1[i]);
          }
        }
      }
  });
}

// The taps of `count` rows from `row` on as a panel; row r's tap t is at (r first + t then) NR.
struct StagedTaps {
  int64_t first, then;
};
inline StagedTaps staged_taps(const Taps& taps, int64_t count) {
  return taps.tap_stride == 1 ? StagedTaps{taps_count, 1} : StagedTaps{1, count};
}

// Calls visit(address, pixel stride, pixels, offset in the stage) for stretches of constant stride that cover the taps.
template <class Visit>
inline void for_each_taps_stretch(const Taps& taps, int64_t column, int64_t row, int64_t count, const Visit& visit) {
  float* from = static_cast<float*>(taps.data) + column * taps.column_stride + row * taps.row_stride;
  if (taps.tap_stride != 1)
    for (int64_t t = 0; t < taps_count; ++t) visit(from + t * taps.tap_stride, taps.row_stride, count, t * count);
  else if (taps.row_stride == taps_count)
    visit(from, 1, count * taps_count, 0);
  else
    for (int64_t r = 0; r < count; ++r) visit(from + r * taps.row_stride, 1, taps_count, r * taps_count);
}

// G g G^T of the taps g of every row, (positions, rows, NR).
inline void winograd_weight(const Taps& taps, int64_t column, float* weight, int64_t position_stride, float* stage) {
  constexpr int NR = panel<float>, L = lanes<float>;
  const int64_t columns = minimum(NR, taps.columns - column);
  for (int64_t row = 0; row < taps.rows; row += staged_taps_rows) {
    const int64_t count = minimum(staged_taps_rows, taps.rows - row);
    const auto [first, then] = staged_taps(taps, count);
    for_each_taps_stretch(taps, column, row, count, [&](float* at, int64_t stride, int64_t n, int64_t offset) {
      load_block<float>(at, Element::float32, taps.column_stride, stride, columns, n, stage + offset * NR, 0, 0, NR);
    });
    float* out = weight + row * NR;
    for (int64_t r = 0; r < count; ++r, out += NR)
      for (int c = 0; c < NR; c += L) {
        vec<float> g[taps_count];
#pragma GCC unroll 9
        for (int t = 0; t < taps_count; ++t)
          g[t] = load(stage + (r * first + (taps.flipped ? taps_count - 1 - t : t) * then) * NR + c);
        const auto spread = [](vec<float> a, vec<float> b, vec<float> d, vec<float>* to) {
          const vec<float> outer = 0.5f * (a + d), inner = 0.5f * b;
          to[0] = a;
          to[1] = outer + inner;
          to[2] = outer - inner;
          to[3] = d;
        };
        vec<float> columns_of[3][4];
#pragma GCC unroll 3
        for (int j = 0; j < 3; ++j) spread(g[j], g[3 + j], g[6 + j], columns_of[j]);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          vec<float> rows_of[4];
          spread(columns_of[0][i], columns_of[1][i], columns_of[2][i], rows_of);
#pragma GCC unroll 4
          for (int j = 0; j < 4; ++j) store(out + (4 * i + j) * position_stride + c, rows_of[j]);
        }
      }
  }
}

inline void winograd_product(int64_t rows, int64_t depth, int64_t columns, const Positions& a, const Positions& b,
                             const Positions& c) {
  constexpr int NR = panel<float>;
  for (int k = 0; k < winograd_positions; ++k)
    for (int64_t n = 0; n < columns; n += NR)  // A's position stays in the L2 cache
      rows_product<float, Store::overwrite>(rows, depth, columns - n <= lanes<float>, a.data + k * a.position, a.panel,
                                            b.data + k * b.position + n / NR * b.panel,
                                            c.data + k * c.position + n / NR * c.panel);
}

inline void winograd_outer_product(int64_t depth, int64_t first, int64_t last, int64_t columns, const Positions& a,
                                   const Positions& b, const Positions& c) {
  for (int k = 0; k < winograd_positions; ++k)
    outer_product<float>(depth, first, last, 0, columns, a.data + k * a.position, a.panel, b.data + k * b.position,
                         b.panel, c.data + k * c.position, c.panel);
}

// A^T m A of every tile's sums m, plus the bias (null for none), into the map.
inline void winograd_output(const DenseMap& map, const float* bias, int64_t channel, int64_t begin, int64_t end,
                            const float* sums, int64_t position_stride, float* stage) {
  constexpr int NR = panel<float>, L = lanes<float>;
  const int64_t across = (map.width + 1) / 2, channels = minimum(NR, map.channels - channel);
  const int used = channels <= L ? L : NR;  // half panels have half the sums
  alignas(64) float shift[NR] = {};
  if (bias) std::memcpy(shift, bias + channel, size_t(channels) * sizeof(float));
  for_each_strip(map, begin, end, [&](int64_t image, int64_t row, int64_t count, int64_t before) {
    const int64_t first = 2 * row, last = minimum(map.height, 2 * (row + count));
    const float* in = sums + before * NR;
    for (int64_t tile_y = row; tile_y < row + count; ++tile_y)
      for (int64_t tile_x = 0; tile_x < across; ++tile_x, in += NR) {
        float* to = stage + ((2 * tile_y - first) * map.width + 2 * tile_x) * NR;
        const bool right = 2 * tile_x + 1 < map.width, below = 2 * tile_y + 1 < last;
        for (int c = 0; c < used; c += L) {
          const vec<float> b = load(shift + c);
          vec<float> upper[4], lower[4];
#pragma GCC unroll 4
          for (int j = 0; j < 4; ++j) {
            const float* at = in + j * position_stride + c;
            const vec<float> m1 = load(at + 4 * position_stride), m2 = load(at + 8 * position_stride);
            upper[j] = load(at) + m1 + m2;
            lower[j] = m1 - m2 - load(at + 12 * position_stride);
          }
          store(to + c, upper[0] + upper[1] + upper[2] + b);
          if (right) store(to + NR + c, upper[1] - upper[2] - upper[3] + b);
          if (below) store(to + map.width * NR + c, lower[0] + lower[1] + lower[2] + b);
          if (below && right) store(to + (map.width + 1) * NR + c, lower[1] - lower[2] - lower[3] + b);
        }
      }
    store_block<float>(pixel_rows(map, image, channel, first), Element::float32, map.channel_stride, map.pixel_stride,
                       channels, (last - first) * map.width, stage);
  });
}

// G^T s G of the rows [first, last) of sums (positions, rows, NR), into those rows' taps.
inline void winograd_weight_gradient(const Taps& taps, int64_t column, int64_t first, int64_t last, const float* sums,
                                     int64_t position_stride, float* stage) {
  constexpr int NR = panel<float>, L = lanes<float>;
  const int64_t columns = minimum(NR, taps.columns - column);
  for (int64_t row = first; row < last; row += staged_taps_rows) {
    const int64_t count = minimum(staged_taps_rows, last - row);
    const auto [by_row, by_tap] = staged_taps(taps, count);
    const float* in = sums + row * NR;
    for (int64_t r = 0; r < count; ++r, in += NR)
      for (int c = 0; c < NR; c += L) {
        const auto gather = [](vec<float> a, vec<float> b, vec<float> d, vec<float> e, vec<float>* to) {
          const vec<float> sum = 0.5f * (b + d);
          to[0] = a + sum;
          to[1] = 0.5f * (b - d);
          to[2] = sum + e;
        };
        vec<float> columns_of[4][3];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
          const float* at = in + j * position_stride + c;
          gather(load(at), load(at + 4 * position_stride), load(at + 8 * position_stride),
                 load(at + 12 * position_stride), columns_of[j]);
        }
#pragma GCC unroll 3
        for (int i = 0; i < 3; ++i) {
          vec<float> rows_of[3];
          gather(columns_of[0][i], columns_of[1][i], columns_of[2][i], columns_of[3][i], rows_of);
#pragma GCC unroll 3
          for (int j = 0; j < 3; ++j) store(stage + (r * by_row + (3 * i + j) * by_tap) * NR + c, rows_of[j]);
        }
      }
    for_each_taps_stretch(taps, column, row, count, [&](float* at, int64_t stride, int64_t n, int64_t offset) {
      store_block<float>(at, Element::float32, taps.column_stride, stride, columns, n, stage + offset * NR);
    });
  }
}

}  // namespace l2t_fast::cpu::L2T_ISA
