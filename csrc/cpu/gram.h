// Loss and gradient from G = T T^T and X = S~ T^T: fewer products where pixels are many and channels few.
//
// Sums over pixels of D D, D T are differences of large numbers when D is small against S~, so everything here is
// double; the planner counts that.
#pragma once

#include "direct.h"

namespace l2t_fast::cpu::L2T_ISA {

using Real = double;

// Whole rows a block, of the target or of a smaller source.
inline int64_t gram_block_rows(const Feature& feature) {
  return maximum(1, minimum(feature.height, 224 / feature.width));
}

struct GramScratch {
  Real *target, *source, *cache;
  Real* line;      // one row of a smaller source: one panel in the adjoint, all of them in the sums of squares
  Real* gradient;  // dT of a block
  Real* gram;      // G, then A: (channels, channels)
  Real* cross;     // X, then sum over pixels of D T^T: (rows, channels)
  Real* scaled;    // -2 alpha W: (rows, channels)
  Real* small;     // per distinct smaller source size: U^T T, then the gradient at that size
  Real *source_sum, *source_square, *cross_dot;  // (rows,): sum S~, sum S~^2, W X
  Real *target_sum, *constant;                   // (channels,)
  int64_t block, source_block, channels, channel_rows;

  GramScratch(const Layer& layer, Arena& arena) {
    channels = round_up(layer.channels, panel<Real>);
    channel_rows = round_up(layer.channels, outer_tile_rows);
    int64_t source_channels = 0, cache_size = 0, widest = 0;
    block = gram_block_rows(layer.target) * layer.width;
    source_block = block;
    for (int64_t p = 0; p < layer.pair_count; ++p) {
      const PairView& pair = layer.pairs[p];
      source_channels = maximum(source_channels, pair.source.channels);
      if (pair.resize == Resize::down) cache_size = maximum(cache_size, RowCache<Real>::size(pair));
      if (pair.resize != Resize::up) continue;
      source_block = maximum(source_block, gram_block_rows(pair.source) * pair.source.width);
      widest = maximum(widest, pair.source.width);
    }
    target = arena.take<Real>(block * channels);
    source = arena.take<Real>(source_block * round_up(source_channels, panel<Real>));
    cache = arena.take<Real>(cache_size);
    line = arena.take<Real>(widest * round_up(source_channels, panel<Real>));
    gradient = arena.take<Real>(layer.target_gradient.data ? block * channels : 0);
    gram = arena.take<Real>(channel_rows * channels);
    cross = arena.take<Real>(layer.rows * channels);
    scaled = arena.take<Real>(layer.target_gradient.data ? layer.rows * channels : 0);
    small = arena.take<Real>(small_size(layer) * channels);
    source_sum = arena.take<Real>(layer.rows);
    source_square = arena.take<Real>(layer.rows);
    cross_dot = arena.take<Real>(layer.rows);
    target_sum = arena.take<Real>(channels);
    constant = arena.take<Real>(channels);
  }

  // Pixels of the distinct smaller source sizes, together.
  static int64_t small_size(const Layer& layer) {
    int64_t size = 0;
    for (int64_t k = 0; k < layer.up_sizes; ++k)
      size += pair_of_size(layer, k).source.height * pair_of_size(layer, k).source.width;
    return size;
  }
  static const PairView& pair_of_size(const Layer& layer, int64_t k) {
    int64_t p = 0;
    while (layer.pairs[p].resize != Resize::up || layer.pairs[p].size_index != k) ++p;
    return layer.pairs[p];
  }
  Real* small_of(const Layer& layer, int64_t k) const {
    Real* at = small;
    for (int64_t i = 0; i < k; ++i)
      at += pair_of_size(layer, i).source.height * pair_of_size(layer, i).source.width * channels;
    return at;
  }
};

inline size_t gram_scratch(const Layer& layer) {
  Arena arena{nullptr};
  GramScratch(layer, arena);
  return arena.used;
}

// The upper triangle of a symmetric panel matrix from the lower.
inline void mirror(Real* matrix, int64_t size, int64_t panel_stride) {
  constexpr int NR = panel<Real>;
  for (int64_t i = 0; i < size; ++i)
    for (int64_t j = i + 1; j < size; ++j)
      matrix[j / NR * panel_stride + i * NR + j % NR] = matrix[i / NR * panel_stride + j * NR + i % NR];
}

// sums[c] += sum over rows of a[., c] b[., c], for padded columns.
inline void add_column_products(const Real* a, int64_t a_panel, const Real* b, int64_t b_panel, int64_t rows,
                                int64_t padded, Real scale, Real* sums) {
  constexpr int NR = panel<Real>, L = lanes<Real>;
  for (int64_t c = 0; c < padded; c += L) {
    const Real* x = a + c / NR * a_panel + c % NR;
    const Real* y = b + c / NR * b_panel + c % NR;
    vec<Real> sum{};
    for (int64_t i = 0; i < rows; ++i) sum += load(x + i * NR) * load(y + i * NR);
    store(sums + c, load(sums + c) + scale * sum);
  }
}

inline void add_column_sums(const Real* a, int64_t a_panel, int64_t rows, int64_t padded, Real* sums) {
  constexpr int NR = panel<Real>, L = lanes<Real>;
  for (int64_t c = 0; c < padded; c += L) {
    const Real* x = a + c / NR * a_panel + c % NR;
    vec<Real> sum{};
    for (int64_t i = 0; i < rows; ++i) sum += load(x + i * NR);
    store(sums + c, load(sums + c) + sum);
  }
}

class GramSample {
 public:
  GramSample(const Layer& layer, const GramScratch& scratch, int64_t sample)
      : layer(layer), scratch(scratch), b(sample) {}

  // G, sum T, X, sum S~ and sum S~^2.
  void statistics() {
    const int64_t C = layer.channels, width = layer.width, step = gram_block_rows(layer.target);
    fill_zero(scratch.gram, scratch.channel_rows * scratch.channels);
    fill_zero(scratch.cross, layer.rows * scratch.channels);
    fill_zero(scratch.small, GramScratch::small_size(layer) * scratch.channels);
    fill_zero(scratch.source_sum, layer.rows);
    fill_zero(scratch.source_square, layer.rows);
    fill_zero(scratch.target_sum, scratch.channels);
    for (int64_t y = 0; y < layer.target.height; y += step) {
      const int64_t rows = minimum(step, layer.target.height - y), count = rows * width;
      load_target(y * width, count);
      add_column_sums(scratch.target, target_panel(), count, scratch.channels, scratch.target_sum);
      outer_product<Real>(count, 0, scratch.channel_rows, 0, C, scratch.target, target_panel(), scratch.target,
                          target_panel(), scratch.gram, scratch.channel_rows * NR, /*lower=*/true);
      for (int64_t p = 0; p < layer.pair_count; ++p) {
        const PairView& pair = layer.pairs[p];
        if (pair.resize == Resize::up || pair.resize == Resize::empty) continue;
        const int64_t padded = load_source(pair, y * width, count);
        add_cross(pair, count, scratch.source, source_panel(), scratch.target, target_panel());
        add_column_sums(scratch.source, source_panel(), count, padded, scratch.source_sum + pair.row);
        add_column_products(scratch.source, source_panel(), scratch.source, source_panel(), count, padded, 1,
                            scratch.source_square + pair.row);
      }
      for (int64_t k = 0; k < layer.up_sizes; ++k) {
        const PairView& pair = GramScratch::pair_of_size(layer, k);
        const int64_t size = pair.source.height * pair.source.width;
        for (int64_t i = 0; i < rows; ++i)
          add_adjoint_row<Real>(*pair.vertical, *pair.horizontal, y + i, C, scratch.target + i * width * NR,
                                target_panel(), scratch.small_of(layer, k), size * NR, scratch.line);
      }
    }
    mirror(scratch.gram, C, scratch.channel_rows * NR);
    for (int64_t p = 0; p < layer.pair_count; ++p)
      if (layer.pairs[p].resize == Resize::up) small_source_statistics(layer.pairs[p]);
  }

  // From the statistics: Q, dW, db.
  void reduce(Real* q, Real* weight_gradient, double* bias_gradient) {
    const int64_t R = layer.rows, stride = R * NR;
    const Real* weight = static_cast<const Real*>(layer.weight_rows);
    const Real* bias = static_cast<const Real*>(layer.bias);
    const Real* alpha = static_cast<const Real*>(layer.alpha) + b * R;
    for (int64_t r = 0; r < R; ++r) scratch.cross_dot[r] = row_dot(weight, scratch.cross, r);
    for (int64_t c = 0; c < layer.channels; c += NR)
      rows_product<Real, Store::subtract_from>(R, layer.channels, is_half(c), weight, stride,
                                               scratch.gram + c * scratch.channel_rows, scratch.cross + c * R);
    // A row at a time: cross becomes sum over pixels of D T^T.
    for (int64_t r = 0; r < R; ++r) {
      const Real difference_sum =
          vector_dot(weight, scratch.target_sum, r) + Real(layer.pixels) * bias[r] - scratch.source_sum[r];
      vec<Real> sum{};
      for (int64_t c = 0; c < scratch.channels; c += lanes<Real>) {
        Real* at = scratch.cross + c / NR * stride + r * NR + c % NR;
        const vec<Real> value = load(at) + bias[r] * load(scratch.target_sum + c);
        sum += value * load(weight + c / NR * stride + r * NR + c % NR);
        if (weight_gradient) {
          Real* out = weight_gradient + c / NR * stride + r * NR + c % NR;
          store(out, load(out) + alpha[r] * value);
        }
      }
      q[r] += sum_of<Real>(sum) + bias[r] * difference_sum - scratch.cross_dot[r] - bias[r] * scratch.source_sum[r] +
              scratch.source_square[r];
      bias_gradient[r] += alpha[r] * difference_sum;
    }
  }

  // dT, over the pixels once more.
  void target_gradient() {
    const int64_t C = layer.channels, R = layer.rows, stride = R * NR, width = layer.width,
                  step = gram_block_rows(layer.target);
    const Real* weight = static_cast<const Real*>(layer.weight_rows);
    const Real* bias = static_cast<const Real*>(layer.bias);
    const Real* alpha = static_cast<const Real*>(layer.alpha) + b * R;
    for (int64_t c = 0; c < scratch.channels; c += lanes<Real>) {
      vec<Real> constant{};
      for (int64_t r = 0; r < R; ++r) {
        const int64_t at = c / NR * stride + r * NR + c % NR;
        const vec<Real> scaled = alpha[r] * load(weight + at);
        store(scratch.scaled + at, -scaled);
        constant += bias[r] * scaled;
      }
      store(scratch.constant + c, constant);
    }
    fill_zero(scratch.gram, scratch.channel_rows * scratch.channels);
    outer_product<Real>(R, 0, scratch.channel_rows, 0, C, weight, stride, scratch.scaled, stride, scratch.gram,
                        scratch.channel_rows * NR, /*lower=*/true);
    for (int64_t i = 0; i < scratch.channel_rows * scratch.channels; i += lanes<Real>)
      store(scratch.gram + i, -load(scratch.gram + i));
    mirror(scratch.gram, C, scratch.channel_rows * NR);
    fill_zero(scratch.small, GramScratch::small_size(layer) * scratch.channels);
    for (int64_t p = 0; p < layer.pair_count; ++p)
      if (layer.pairs[p].resize == Resize::up) small_source_gradient(layer.pairs[p]);

    for (int64_t y = 0; y < layer.target.height; y += step) {
      const int64_t rows = minimum(step, layer.target.height - y), count = rows * width;
      load_target(y * width, count);
      for (int64_t c = 0; c < C; c += NR) {
        Real* out = gradient_panel(c);
        for (int64_t i = 0; i < count; ++i)
          for (int64_t j = 0; j < NR; j += lanes<Real>) store(out + i * NR + j, load(scratch.constant + c + j));
        rows_product<Real, Store::accumulate>(count, C, is_half(c), scratch.target, target_panel(),
                                              scratch.gram + c * scratch.channel_rows, out);
      }
      for (int64_t p = 0; p < layer.pair_count; ++p) {
        const PairView& pair = layer.pairs[p];
        if (pair.resize == Resize::up || pair.resize == Resize::empty) continue;
        load_source(pair, y * width, count);
        for (int64_t c = 0; c < C; c += NR)
          rows_product<Real, Store::accumulate>(count, pair.source.channels, is_half(c), scratch.source, source_panel(),
                                                scratch.scaled + c * R + pair.row * NR, gradient_panel(c));
      }
      for (int64_t c = 0; c < C; c += NR) {
        for (int64_t k = 0; k < layer.up_sizes; ++k) {
          const PairView& pair = GramScratch::pair_of_size(layer, k);
          const Real* small = scratch.small_of(layer, k) + c * pair.source.height * pair.source.width;
          for (int64_t i = 0; i < rows; ++i)
            add_resized_row<Real>(*pair.vertical, *pair.horizontal, y + i, small, gradient_panel(c) + i * width * NR);
        }
        store_pixels<Real>(layer.target_gradient, b, y * width, count, c, gradient_panel(c));
      }
    }
  }

 private:
  static constexpr int NR = panel<Real>;
  const Layer& layer;
  const GramScratch& scratch;
  const int64_t b;

  int64_t target_panel() const { return scratch.block * NR; }
  int64_t source_panel() const { return scratch.source_block * NR; }
  Real* gradient_panel(int64_t c) const { return scratch.gradient + c * scratch.block; }
  // The last panel of the channels fills one vector only.
  bool is_half(int64_t c) const { return layer.channels - c <= lanes<Real>; }

  void load_target(int64_t first, int64_t count) {
    load_pixels<Real>(layer.target, b, first, count, scratch.target, target_panel(), 0, scratch.channels);
  }

  // S~ of a pair whose source is as large as the target or larger; the padded number of channels.
  int64_t load_source(const PairView& pair, int64_t first, int64_t count) {
    load_source_block<Real>(layer, pair, b * layer.pixels + first, count, scratch.cache, scratch.source, source_panel(),
                            0);
    return round_up(pair.source.channels, unit<Real>);
  }

  void add_cross(const PairView& pair, int64_t count, const Real* source, int64_t source_panel, const Real* target,
                 int64_t panel_stride) {
    outer_product<Real>(count, pair.row, pair.row + round_up(pair.source.channels, outer_tile_rows), -pair.row,
                        layer.channels, source, source_panel, target, panel_stride, scratch.cross, layer.rows * NR);
  }

  // Blocks of whole rows of a smaller source, loaded to scratch.source: visit(first row, rows).
  template <class Visit>
  void for_each_small_block(const PairView& pair, const Visit& visit) {
    const int64_t step = gram_block_rows(pair.source), width = pair.source.width;
    for (int64_t y = 0; y < pair.source.height; y += step) {
      const int64_t rows = minimum(step, pair.source.height - y);
      load_pixels<Real>(pair.source, b, y * width, rows * width, scratch.source, source_panel(), 0,
                        round_up(pair.source.channels, unit<Real>));
      visit(y, rows);
    }
  }

  // X = S (U^T T)^T, and the sums of S~ and S~^2 from the source alone.
  void small_source_statistics(const PairView& pair) {
    const int64_t width = pair.source.width, size = pair.source.height * width;
    const int64_t padded = round_up(pair.source.channels, unit<Real>);
    const Axis &vertical = *pair.vertical, &horizontal = *pair.horizontal;
    const Real* small = scratch.small_of(layer, pair.size_index);
    Real* sums = scratch.source_sum + pair.row;
    Real* squares = scratch.source_square + pair.row;
    Real* filtered = scratch.line;  // U_x^T U_x applied to a row; at first, that of the row above
    for_each_small_block(pair, [&](int64_t first, int64_t rows) {
      add_cross(pair, rows * width, scratch.source, source_panel(), small + first * width * NR, size * NR);
      for (int64_t y = first; y < first + rows; ++y) {
        const Real* row = scratch.source + (y - first) * width * NR;
        if (y > 0)
          add_column_products(filtered, width * NR, row, source_panel(), width, padded, 2 * vertical.product[y],
                              squares);
        for (int64_t c = 0; c < padded; c += lanes<Real>) {
          const Real* in = row + c / NR * source_panel() + c % NR;
          Real* out = filtered + c / NR * width * NR + c % NR;
          vec<Real> sum{};
          for (int64_t x = 0; x < width; ++x) {
            vec<Real> value = horizontal.square[x] * load(in + x * NR);
            if (x > 0) value += horizontal.product[x] * load(in + (x - 1) * NR);
            if (x + 1 < width) value += horizontal.product[x + 1] * load(in + (x + 1) * NR);
            store(out + x * NR, value);
            sum += horizontal.sum[x] * load(in + x * NR);
          }
          store(sums + c, load(sums + c) + vertical.sum[y] * sum);
        }
        add_column_products(filtered, width * NR, row, source_panel(), width, padded, vertical.square[y], squares);
      }
    });
  }

  // Adds S (-2 alpha W) at the source's size.
  void small_source_gradient(const PairView& pair) {
    const int64_t width = pair.source.width, size = pair.source.height * width;
    Real* small = scratch.small_of(layer, pair.size_index);
    for_each_small_block(pair, [&](int64_t first, int64_t rows) {
      for (int64_t c = 0; c < layer.channels; c += NR)
        rows_product<Real, Store::accumulate>(rows * width, pair.source.channels, is_half(c), scratch.source,
                                              source_panel(), scratch.scaled + c * layer.rows + pair.row * NR,
                                              small + c * size + first * width * NR);
    });
  }

  // Row r of the panel matrices (rows, channels) a and b.
  Real row_dot(const Real* x, const Real* y, int64_t r) const {
    vec<Real> sum{};
    for (int64_t c = 0; c < scratch.channels; c += lanes<Real>) {
      const int64_t at = c / NR * layer.rows * NR + r * NR + c % NR;
      sum += load(x + at) * load(y + at);
    }
    return sum_of<Real>(sum);
  }
  Real vector_dot(const Real* x, const Real* v, int64_t r) const {
    vec<Real> sum{};
    for (int64_t c = 0; c < scratch.channels; c += lanes<Real>)
      sum += load(x + c / NR * layer.rows * NR + r * NR + c % NR) * load(v + c);
    return sum_of<Real>(sum);
  }
};

inline void gram_forward(const Layer& layer, int64_t begin, int64_t end, const ChunkResult& result, void* memory) {
  Arena arena{static_cast<char*>(memory)};
  const GramScratch scratch(layer, arena);
  for (int64_t b = begin; b < end; ++b) {
    GramSample sample(layer, scratch, b);
    sample.statistics();
    sample.reduce(result.alpha + (b - begin) * layer.rows,
                  layer.needs_weights ? static_cast<Real*>(result.weight) : nullptr, static_cast<double*>(result.bias));
    if (layer.target_gradient.data) sample.target_gradient();
  }
}

}  // namespace l2t_fast::cpu::L2T_ISA
