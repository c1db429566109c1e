// The Gram form: the reductions over pixels from T T^T and S~ T^T, fewer products where pixels are many and channels
// few.
//
// Sums over pixels of D D or D T are differences of large numbers when D is small against S~, so everything here is
// double; the planner counts that.
#pragma once

#include "direct.h"

namespace l2t_fast::cpu::L2T_ISA {

using Real = double;

// Whole rows a block, of the target or of a smaller source.
inline int64_t gram_block_rows(const Feature& feature) {
  return maximum(1, minimum(feature.height, 224 / feature.width));
}

// What one sample's pixels leave of a map F of the target's shape: T, or its direction vT.
struct Moments {
  Real* block;    // F of a block of pixels: (pixels, channels)
  Real* product;  // (channels, channels): T T^T, or vT T^T
  Real* cross;    // S~ F^T: (rows, channels)
  Real* sum;      // (channels,): F summed over pixels
  Real* small;    // per distinct smaller source size, U^T F
};

struct GramScratch {
  Moments target, direction;
  Real *source, *cache;
  Real* line;      // one row of a smaller source: one panel in the adjoint, all of them in the sums of squares
  Real* gradient;  // of a block
  Real* scaled;    // the projection times its coefficients: (rows, channels)
  Real *source_sum, *source_square, *cross_dot;  // (rows,): sum S~, sum S~^2, W (S~ F^T)
  Real* constant;                                // (channels,)
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
    const auto moments = [&](bool there) {
      const int64_t factor = there ? channels : 0;
      return Moments{.block = arena.take<Real>(block * factor),
                     .product = arena.take<Real>(channel_rows * factor),
                     .cross = arena.take<Real>(layer.rows * factor),
                     .sum = arena.take<Real>(factor),
                     .small = arena.take<Real>(small_size(layer) * factor)};
    };
    target = moments(true);
    direction = moments(layer.target_direction.data);
    source = arena.take<Real>(source_block * round_up(source_channels, panel<Real>));
    cache = arena.take<Real>(cache_size);
    line = arena.take<Real>(widest * round_up(source_channels, panel<Real>));
    gradient = arena.take<Real>(layer.target_gradient.data ? block * channels : 0);
    scaled = arena.take<Real>(layer.target_gradient.data ? layer.rows * channels : 0);
    source_sum = arena.take<Real>(layer.rows);
    source_square = arena.take<Real>(layer.rows);
    cross_dot = arena.take<Real>(layer.rows);
    constant = arena.take<Real>(channels);
  }

  // Pixels of the distinct smaller source sizes before the k-th.
  static int64_t small_before(const Layer& layer, int64_t k) {
    int64_t size = 0;
    for (int64_t i = 0; i < k; ++i) {
      const Feature& source = pair_of_size(layer, i).source;
      size += source.height * source.width;
    }
    return size;
  }
  static int64_t small_size(const Layer& layer) { return small_before(layer, layer.up_sizes); }
  static const PairView& pair_of_size(const Layer& layer, int64_t k) {
    int64_t p = 0;
    while (layer.pairs[p].resize != Resize::up || layer.pairs[p].size_index != k) ++p;
    return layer.pairs[p];
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

// M + M^T in place.
inline void add_transpose(Real* matrix, int64_t size, int64_t panel_stride) {
  constexpr int NR = panel<Real>;
  for (int64_t i = 0; i < size; ++i)
    for (int64_t j = 0; j <= i; ++j) {
      Real& lower = matrix[j / NR * panel_stride + i * NR + j % NR];
      Real& upper = matrix[i / NR * panel_stride + j * NR + i % NR];
      lower = upper = lower + upper;
    }
}

// sums[c] += scale * sum over rows of a[., c] b[., c], for padded columns.
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

// One sample of one layer.
class GramSample {
 public:
  GramSample(const Layer& layer, const GramScratch& scratch, int64_t sample)
      : layer(layer),
        scratch(scratch),
        b(sample),
        C(layer.channels),
        R(layer.rows),
        stride(layer.rows * NR),
        square_stride(scratch.channel_rows * NR),
        weight(static_cast<const Real*>(layer.weight_rows)),
        bias(static_cast<const Real*>(layer.bias)),
        alpha(static_cast<const Real*>(layer.alpha) + sample * layer.rows),
        weight_direction(static_cast<const Real*>(layer.weight_direction_rows)),
        bias_direction(static_cast<const Real*>(layer.bias_direction)),
        alpha_direction(layer.alpha_direction ? static_cast<const Real*>(layer.alpha_direction) + sample * layer.rows
                                              : nullptr) {}

  // The products and sums over pixels of T and S~, and with `direction` of vT.
  void statistics(bool direction, bool squares) {
    const Moments* const all[] = {&scratch.target, &scratch.direction};
    const int count_of_moments = direction ? 2 : 1;
    const int64_t width = layer.width, step = gram_block_rows(layer.target);
    fill_zero(scratch.source_sum, R);
    fill_zero(scratch.source_square, R);
    for (int k = 0; k < count_of_moments; ++k) {
      fill_zero(all[k]->product, scratch.channel_rows * scratch.channels);
      fill_zero(all[k]->cross, R * scratch.channels);
      fill_zero(all[k]->sum, scratch.channels);
      fill_zero(all[k]->small, GramScratch::small_size(layer) * scratch.channels);
    }
    for (int64_t y = 0; y < layer.target.height; y += step) {
      const int64_t rows = minimum(step, layer.target.height - y), count = rows * width;
      load_target(y * width, count, direction);
      for (int k = 0; k < count_of_moments; ++k) {
        const Moments& moments = *all[k];
        add_column_sums(moments.block, target_panel(), count, scratch.channels, moments.sum);
        outer_product<Real>(count, 0, scratch.channel_rows, 0, C, moments.block, target_panel(), scratch.target.block,
                            target_panel(), moments.product, square_stride, /*lower=*/k == 0);
        for (int64_t s = 0; s < layer.up_sizes; ++s) {
          const PairView& pair = GramScratch::pair_of_size(layer, s);
          for (int64_t i = 0; i < rows; ++i)
            add_adjoint_row<Real>(*pair.vertical, *pair.horizontal, y + i, C, moments.block + i * width * NR,
                                  target_panel(), small_of(moments, s), small_panel(pair), scratch.line);
        }
      }
      for (int64_t p = 0; p < layer.pair_count; ++p) {
        const PairView& pair = layer.pairs[p];
        if (pair.resize == Resize::up || pair.resize == Resize::empty) continue;
        const int64_t padded = load_source(pair, y * width, count);
        for (int k = 0; k < count_of_moments; ++k) add_cross(pair, count, all[k]->block, target_panel(), all[k]->cross);
        add_column_sums(scratch.source, source_panel(), count, padded, scratch.source_sum + pair.row);
        if (squares)
          add_column_products(scratch.source, source_panel(), scratch.source, source_panel(), count, padded, 1,
                              scratch.source_square + pair.row);
      }
    }
    mirror(scratch.target.product, C, square_stride);
    if (direction) add_transpose(scratch.direction.product, C, square_stride);
    for (int64_t p = 0; p < layer.pair_count; ++p)
      if (layer.pairs[p].resize == Resize::up) small_source_statistics(layer.pairs[p], direction, squares);
  }

  // From the statistics: Q, dW, db. Adds to all three.
  void reduce_forward(Real* q, Real* weight_gradient, double* bias_gradient) {
    const Real* sum = scratch.target.sum;
    Real* cross = scratch.target.cross;
    for (int64_t r = 0; r < R; ++r) scratch.cross_dot[r] = row_dot(weight, cross, r);
    rows_times_square<Store::subtract_from>(weight, scratch.target.product, cross);
    for (int64_t r = 0; r < R; ++r) {
      const Real difference_sum = sum_of_difference(r);
      vec<Real> dot{};
      for (int64_t c = 0; c < scratch.channels; c += lanes<Real>) {
        const int64_t at = place(r, c);
        const vec<Real> value = load(cross + at) + bias[r] * load(sum + c);  // sum over pixels of D T^T
        dot += value * load(weight + at);
        if (weight_gradient) store(weight_gradient + at, load(weight_gradient + at) + alpha[r] * value);
      }
      q[r] += sum_of<Real>(dot) + bias[r] * difference_sum - scratch.cross_dot[r] - bias[r] * scratch.source_sum[r] +
              scratch.source_square[r];
      bias_gradient[r] += alpha[r] * difference_sum;
    }
  }

  // From the statistics: sum D V, hW, hb. Adds to all three. With X' = W G + b h^T - X, the sum over pixels of D T^T:
  //   hW = 2 alpha (W (K + K^T) + vW G + vb h^T + b vh^T - Y) + 2 valpha X',  K = vT T^T,  Y = S~ vT^T
  //   D V = D vT^T W^T + X' vW^T + vb D,  whose first part is (W (K + K^T) W^T) / 2 + b W vh - W Y^T on the diagonal.
  void reduce_direction(Real* dot_products, Real* weight_product, double* bias_product) {
    const Real *sum = scratch.target.sum, *direction_sum = scratch.direction.sum;
    Real *cross = scratch.target.cross, *change = scratch.direction.cross;
    rows_times_square<Store::subtract_from>(weight, scratch.target.product, cross);
    if (change) {
      for (int64_t r = 0; r < R; ++r) scratch.cross_dot[r] = row_dot(weight, change, r);
      rows_times_square<Store::subtract_from>(weight, scratch.direction.product, change);
    }
    for (int64_t r = 0; r < R; ++r) {
      const Real difference_sum = sum_of_difference(r);
      const Real bias_change = bias_direction ? bias_direction[r] : 0;
      const Real alpha_change = alpha_direction ? alpha_direction[r] : 0;
      Real change_sum = bias_change * Real(layer.pixels);  // sum of V
      Real dot = bias_change * difference_sum;
      if (change) {
        const Real shift = vector_dot(weight, direction_sum, r);
        change_sum += shift;
        dot += (row_dot(weight, change, r) - scratch.cross_dot[r]) / 2 + bias[r] * shift;
      }
      if (weight_direction) {
        change_sum += vector_dot(weight_direction, sum, r);
        dot += row_dot(weight_direction, cross, r) + bias[r] * vector_dot(weight_direction, sum, r);
      }
      dot_products[r] += dot;
      bias_product[r] += alpha[r] * change_sum + alpha_change * difference_sum;
      if (!weight_product) continue;
      for (int64_t c = 0; c < scratch.channels; c += lanes<Real>) {
        const int64_t at = place(r, c);
        vec<Real> value =
            (alpha[r] * bias_change + alpha_change * bias[r]) * load(sum + c) + alpha_change * load(cross + at);
        if (change) value += alpha[r] * (load(change + at) + bias[r] * load(direction_sum + c));
        store(weight_product + at, load(weight_product + at) + value);
      }
    }
    if (!weight_product || !weight_direction) return;
    // The rest of hW, 2 alpha vW G, in cross's place.
    rows_times_square<Store::overwrite>(weight_direction, scratch.target.product, cross);
    for (int64_t r = 0; r < R; ++r)
      for (int64_t c = 0; c < scratch.channels; c += lanes<Real>) {
        const int64_t at = place(r, c);
        store(weight_product + at, load(weight_product + at) + alpha[r] * load(cross + at));
      }
  }

  // dT = (W^T 2 alpha W) T - (2 alpha W)^T S~ + W^T 2 alpha b, over the pixels once more.
  void target_gradient() {
    scale_rows([&](int64_t r, int64_t at) { return alpha[r] * load(weight + at); });
    weight_square(scratch.target.product);
    mirror(scratch.target.product, C, square_stride);
    fill_constant([&](int64_t r, int64_t at) { return bias[r] * load(scratch.scaled + at); });
    write_gradient(false);
  }

  // hT = (W^T 2 alpha W) vT + (J + J^T) T - (2 alpha vW + 2 valpha W)^T S~ + constant, J = W^T (2 alpha vW + valpha W).
  void target_product(bool direction) {
    if (direction) {
      scale_rows([&](int64_t r, int64_t at) { return alpha[r] * load(weight + at); });
      weight_square(scratch.direction.product);
      mirror(scratch.direction.product, C, square_stride);
    }
    const auto coefficients = [&](Real share) {
      return [&, share](int64_t r, int64_t at) {
        vec<Real> value{};
        if (weight_direction) value += alpha[r] * load(weight_direction + at);
        if (alpha_direction) value += share * alpha_direction[r] * load(weight + at);
        return value;
      };
    };
    scale_rows(coefficients(0.5));
    fill_zero(scratch.target.product, scratch.channel_rows * scratch.channels);
    outer_product<Real>(R, 0, scratch.channel_rows, 0, C, weight, stride, scratch.scaled, stride,
                        scratch.target.product, square_stride);
    add_transpose(scratch.target.product, C, square_stride);
    scale_rows(coefficients(1));
    fill_constant([&](int64_t r, int64_t at) {
      vec<Real> value = bias[r] * load(scratch.scaled + at);
      if (bias_direction) value += alpha[r] * bias_direction[r] * load(weight + at);
      return value;
    });
    write_gradient(direction);
  }

 private:
  static constexpr int NR = panel<Real>;
  const Layer& layer;
  const GramScratch& scratch;
  const int64_t b, C, R;
  const int64_t stride, square_stride;  // between panels of (rows, channels) and (channels, channels)
  const Real *weight, *bias, *alpha;
  const Real *weight_direction, *bias_direction, *alpha_direction;  // null where zero

  int64_t target_panel() const { return scratch.block * NR; }
  int64_t source_panel() const { return scratch.source_block * NR; }
  int64_t small_panel(const PairView& pair) const { return pair.source.height * pair.source.width * NR; }
  Real* small_of(const Moments& moments, int64_t size_index) const {
    return moments.small + GramScratch::small_before(layer, size_index) * scratch.channels;
  }
  Real* gradient_panel(int64_t c) const { return scratch.gradient + c * scratch.block; }
  int64_t place(int64_t row, int64_t column) const { return column / NR * stride + row * NR + column % NR; }
  // The last panel of the channels fills one vector only.
  bool is_half(int64_t c) const { return C - c <= lanes<Real>; }

  Real sum_of_difference(int64_t r) const {
    return vector_dot(weight, scratch.target.sum, r) + Real(layer.pixels) * bias[r] - scratch.source_sum[r];
  }

  void load_target(int64_t first, int64_t count, bool direction) {
    load_pixels<Real>(layer.target, b, first, count, scratch.target.block, target_panel(), 0, scratch.channels);
    if (direction)
      load_pixels<Real>(layer.target_direction, b, first, count, scratch.direction.block, target_panel(), 0,
                        scratch.channels);
  }

  // S~ of a pair whose source is as large as the target or larger; the padded number of channels.
  int64_t load_source(const PairView& pair, int64_t first, int64_t count) {
    load_source_block<Real>(layer, pair, b * layer.pixels + first, count, scratch.cache, scratch.source, source_panel(),
                            0);
    return round_up(pair.source.channels, unit<Real>);
  }

  // Adds the loaded source's products with `map` to the pair's rows of `cross`.
  void add_cross(const PairView& pair, int64_t count, const Real* map, int64_t map_panel, Real* cross) {
    outer_product<Real>(count, pair.row, pair.row + round_up(pair.source.channels, outer_tile_rows), -pair.row, C,
                        scratch.source, source_panel(), map, map_panel, cross, stride);
  }

  // out (rows, channels) from a (rows, channels) times a symmetric (channels, channels).
  template <Store mode>
  void rows_times_square(const Real* a, const Real* square, Real* out) {
    for (int64_t c = 0; c < C; c += NR)
      rows_product<Real, mode>(R, C, is_half(c), a, stride, square + c * scratch.channel_rows, out + c * R);
  }

  // scratch.scaled (rows, channels) = value(row, place).
  template <class Value>
  void scale_rows(const Value& value) {
    for (int64_t c = 0; c < scratch.channels; c += lanes<Real>)
      for (int64_t r = 0; r < R; ++r) store(scratch.scaled + place(r, c), value(r, place(r, c)));
  }

  // The lower triangle of W^T scaled, which is symmetric.
  void weight_square(Real* square) {
    fill_zero(square, scratch.channel_rows * scratch.channels);
    outer_product<Real>(R, 0, scratch.channel_rows, 0, C, weight, stride, scratch.scaled, stride, square, square_stride,
                        /*lower=*/true);
  }

  // scratch.constant = sum over rows of value(row, place); then scaled changes sign, for the product with S~.
  template <class Value>
  void fill_constant(const Value& value) {
    for (int64_t c = 0; c < scratch.channels; c += lanes<Real>) {
      vec<Real> sum{};
      for (int64_t r = 0; r < R; ++r) sum += value(r, place(r, c));
      store(scratch.constant + c, sum);
    }
    for (int64_t i = 0; i < R * scratch.channels; i += lanes<Real>)
      store(scratch.scaled + i, -load(scratch.scaled + i));
  }

  // Writes target.product T + scaled^T S~ + constant, and with `direction` + direction.product vT.
  void write_gradient(bool direction) {
    const int64_t width = layer.width, step = gram_block_rows(layer.target);
    fill_zero(scratch.target.small, GramScratch::small_size(layer) * scratch.channels);
    for (int64_t p = 0; p < layer.pair_count; ++p)
      if (layer.pairs[p].resize == Resize::up) small_source_gradient(layer.pairs[p]);

    for (int64_t y = 0; y < layer.target.height; y += step) {
      const int64_t rows = minimum(step, layer.target.height - y), count = rows * width;
      load_target(y * width, count, direction);
      for (int64_t c = 0; c < C; c += NR) {
        Real* out = gradient_panel(c);
        for (int64_t i = 0; i < count; ++i)
          for (int64_t j = 0; j < NR; j += lanes<Real>) store(out + i * NR + j, load(scratch.constant + c + j));
        rows_product<Real, Store::accumulate>(count, C, is_half(c), scratch.target.block, target_panel(),
                                              scratch.target.product + c * scratch.channel_rows, out);
        if (direction)
          rows_product<Real, Store::accumulate>(count, C, is_half(c), scratch.direction.block, target_panel(),
                                                scratch.direction.product + c * scratch.channel_rows, out);
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
        for (int64_t s = 0; s < layer.up_sizes; ++s) {
          const PairView& pair = GramScratch::pair_of_size(layer, s);
          const Real* small = small_of(scratch.target, s) + c / NR * small_panel(pair);
          for (int64_t i = 0; i < rows; ++i)
            add_resized_row<Real>(*pair.vertical, *pair.horizontal, y + i, small, gradient_panel(c) + i * width * NR);
        }
        store_pixels<Real>(layer.target_gradient, b, y * width, count, c, gradient_panel(c));
      }
    }
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

  // S~ F^T = S (U^T F)^T, and the sums of S~ and S~^2 from the source alone.
  void small_source_statistics(const PairView& pair, bool direction, bool squares) {
    const int64_t width = pair.source.width, padded = round_up(pair.source.channels, unit<Real>);
    const Axis &vertical = *pair.vertical, &horizontal = *pair.horizontal;
    Real* sums = scratch.source_sum + pair.row;
    Real* square_sums = scratch.source_square + pair.row;
    Real* filtered = scratch.line;  // U_x^T U_x applied to a row; at first, that of the row above
    for_each_small_block(pair, [&](int64_t first, int64_t rows) {
      const auto add_small_cross = [&](const Moments& moments) {
        add_cross(pair, rows * width, small_of(moments, pair.size_index) + first * width * NR, small_panel(pair),
                  moments.cross);
      };
      add_small_cross(scratch.target);
      if (direction) add_small_cross(scratch.direction);
      for (int64_t y = first; y < first + rows; ++y) {
        const Real* row = scratch.source + (y - first) * width * NR;
        for (int64_t c = 0; c < padded; c += lanes<Real>) {
          const Real* in = row + c / NR * source_panel() + c % NR;
          vec<Real> sum{};
          for (int64_t x = 0; x < width; ++x) sum += horizontal.sum[x] * load(in + x * NR);
          store(sums + c, load(sums + c) + vertical.sum[y] * sum);
        }
        if (!squares) continue;
        if (y > 0)
          add_column_products(filtered, width * NR, row, source_panel(), width, padded, 2 * vertical.product[y],
                              square_sums);
        for (int64_t c = 0; c < padded; c += lanes<Real>) {
          const Real* in = row + c / NR * source_panel() + c % NR;
          Real* out = filtered + c / NR * width * NR + c % NR;
          for (int64_t x = 0; x < width; ++x) {
            vec<Real> value = horizontal.square[x] * load(in + x * NR);
            if (x > 0) value += horizontal.product[x] * load(in + (x - 1) * NR);
            if (x + 1 < width) value += horizontal.product[x + 1] * load(in + (x + 1) * NR);
            store(out + x * NR, value);
          }
        }
        add_column_products(filtered, width * NR, row, source_panel(), width, padded, vertical.square[y], square_sums);
      }
    });
  }

  // Adds S scaled at the source's size.
  void small_source_gradient(const PairView& pair) {
    const int64_t width = pair.source.width;
    Real* small = small_of(scratch.target, pair.size_index);
    for_each_small_block(pair, [&](int64_t first, int64_t rows) {
      for (int64_t c = 0; c < C; c += NR)
        rows_product<Real, Store::accumulate>(rows * width, pair.source.channels, is_half(c), scratch.source,
                                              source_panel(), scratch.scaled + c * R + pair.row * NR,
                                              small + c / NR * small_panel(pair) + first * width * NR);
    });
  }

  // Row r of the panel matrices (rows, channels) x and y, or of x and a vector.
  Real row_dot(const Real* x, const Real* y, int64_t r) const {
    vec<Real> sum{};
    for (int64_t c = 0; c < scratch.channels; c += lanes<Real>) sum += load(x + place(r, c)) * load(y + place(r, c));
    return sum_of<Real>(sum);
  }
  Real vector_dot(const Real* x, const Real* v, int64_t r) const {
    vec<Real> sum{};
    for (int64_t c = 0; c < scratch.channels; c += lanes<Real>) sum += load(x + place(r, c)) * load(v + c);
    return sum_of<Real>(sum);
  }
};

// Samples [begin, end).
inline void gram_forward(const Layer& layer, int64_t begin, int64_t end, const ChunkResult& result, void* memory) {
  Arena arena{static_cast<char*>(memory)};
  const GramScratch scratch(layer, arena);
  for (int64_t b = begin; b < end; ++b) {
    GramSample sample(layer, scratch, b);
    sample.statistics(/*direction=*/false, /*squares=*/true);
    sample.reduce_forward(result.alpha + (b - begin) * layer.rows, static_cast<Real*>(result.weight),
                          static_cast<double*>(result.bias));
    if (layer.target_gradient.data) sample.target_gradient();
  }
}

inline void gram_hvp(const Layer& layer, int64_t begin, int64_t end, const ChunkResult& result, void* memory) {
  Arena arena{static_cast<char*>(memory)};
  GramScratch scratch(layer, arena);
  const bool direction = layer.target_direction.data;
  if (!direction) scratch.direction.cross = nullptr;
  for (int64_t b = begin; b < end; ++b) {
    GramSample sample(layer, scratch, b);
    sample.statistics(direction, /*squares=*/false);
    sample.reduce_direction(result.alpha + (b - begin) * layer.rows, static_cast<Real*>(result.weight),
                            static_cast<double*>(result.bias));
    if (layer.target_gradient.data) sample.target_product(direction);
  }
}

}  // namespace l2t_fast::cpu::L2T_ISA
