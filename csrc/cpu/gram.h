// The Gram form: the reductions over pixels from T T^T and S~ T^T, fewer products where pixels are many and channels
// few.
//
// Sums over pixels of D D or D T are differences of large numbers when D is small against S~, and so is dT, so
// everything here is double; the planner counts that. hT alone may be float (Layer::single_product says when).
#pragma once

#include <type_traits>

#include "gram_gradient.h"

namespace l2t_fast::cpu::L2T_ISA {

using Real = double;

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
  Real* line;                                    // one row of a smaller source, for the sums of squares
  Real* gradient;                                // of a block
  Real* scaled;                                  // the projection times its coefficients: (rows, channels)
  Real *source_sum, *source_square, *cross_dot;  // (rows,): sum S~, sum S~^2, W (S~ F^T)
  Real* constant;                                // (channels,)
  struct {
    float *weight, *product, *direction_product, *scaled, *constant;
  } single;  // for hT in float
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
    const int64_t factor = layer.single_product && layer.target_gradient.data ? round_up(channels, panel<float>) : 0;
    single.weight = arena.take<float>(layer.rows * factor);
    single.product = arena.take<float>(channel_rows * factor);
    single.direction_product = arena.take<float>(layer.target_direction.data ? channel_rows * factor : 0);
    single.scaled = arena.take<float>(layer.rows * factor);
    single.constant = arena.take<float>(factor);
  }

  // The second pass in double, on the memory of the first.
  GramGradient<Real> double_pass(const Layer& layer) const {
    return {.layer = layer,
            .weight = static_cast<const Real*>(layer.weight_rows),
            .target = target.block,
            .direction = direction.block,
            .source = source,
            .cache = cache,
            .gradient = gradient,
            .small = target.small,
            .product = target.product,
            .direction_product = direction.product,
            .scaled = scaled,
            .constant = constant,
            .block = block,
            .source_block = source_block,
            .product_rows = channel_rows};
  }
  // The same in float, with matrices of its own; its blocks lie where those of the first pass did.
  GramGradient<float> single_pass(const Layer& layer) const {
    const auto shared = [](Real* piece) { return reinterpret_cast<float*>(piece); };
    return {.layer = layer,
            .weight = single.weight,
            .target = shared(target.block),
            .direction = shared(direction.block),
            .source = shared(source),
            .cache = shared(cache),
            .gradient = shared(gradient),
            .small = shared(target.small),
            .product = single.product,
            .direction_product = single.direction_product,
            .scaled = single.scaled,
            .constant = single.constant,
            .block = block,
            .source_block = source_block,
            .product_rows = channel_rows};
  }
};

inline size_t gram_scratch(const Layer& layer) {
  Arena arena{nullptr};
  GramScratch(layer, arena);
  return arena.used;
}

// The upper triangle of a symmetric panel matrix from the lower.
template <class T>
void mirror(T* matrix, int64_t size, int64_t panel_stride) {
  constexpr int NR = panel<T>;
  for (int64_t i = 0; i < size; ++i)
    for (int64_t j = i + 1; j < size; ++j)
      matrix[j / NR * panel_stride + i * NR + j % NR] = matrix[i / NR * panel_stride + j * NR + i % NR];
}

// M + M^T in place.
template <class T>
void add_transpose(T* matrix, int64_t size, int64_t panel_stride) {
  constexpr int NR = panel<T>;
  for (int64_t i = 0; i < size; ++i)
    for (int64_t j = 0; j <= i; ++j) {
      T& lower = matrix[j / NR * panel_stride + i * NR + j % NR];
      T& upper = matrix[i / NR * panel_stride + j * NR + i % NR];
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
      fill_zero(all[k]->small, small_size(layer) * scratch.channels);
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
          const PairView& pair = pair_of_size(layer, s);
          for (int64_t i = 0; i < rows; ++i)
            add_adjoint_row<Real>(*pair.vertical, *pair.horizontal, y + i, C, moments.block + i * width * NR,
                                  target_panel(), small_of(moments, s), small_panel(pair));
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
    weighted_sums(cross, scratch.cross_dot);
    rows_times_square<Store::subtract_from>(weight, scratch.target.product, cross);
    for (int64_t first = 0; first < R; first += row_block) {
      RowSums mean, dot;
      for_each_place(first, [&](int i, int64_t c, int64_t at) {
        const vec<Real> w = load(weight + at), s = load(sum + c);
        const vec<Real> value = load(cross + at) + bias[first + i] * s;  // sum over pixels of D T^T
        mean[i] += w * s;
        dot[i] += w * value;
        if (weight_gradient) store(weight_gradient + at, load(weight_gradient + at) + alpha[first + i] * value);
      });
      for (int i = 0; i < row_block; ++i) {
        const int64_t r = first + i;
        const Real difference_sum = sum_of_difference(r, sum_of<Real>(mean[i]));
        const Real square = sum_of<Real>(dot[i]) + bias[r] * difference_sum - scratch.cross_dot[r] -
                            bias[r] * scratch.source_sum[r] + scratch.source_square[r];
        q[r] += square < 0 ? 0 : square;  // what rounding leaves of a sum of squares
        bias_gradient[r] += alpha[r] * difference_sum;
      }
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
      weighted_sums(change, scratch.cross_dot);
      rows_times_square<Store::subtract_from>(weight, scratch.direction.product, change);
    }
    for (int64_t first = 0; first < R; first += row_block) {
      RowSums mean, shift, change_dot, direction_mean, direction_dot;
      Real along_sum[row_block], along_cross[row_block];
      for (int i = 0; i < row_block; ++i) {
        const int64_t r = first + i;
        along_cross[i] = alpha_direction ? alpha_direction[r] : 0;
        along_sum[i] = alpha[r] * (bias_direction ? bias_direction[r] : 0) + along_cross[i] * bias[r];
      }
      for_each_place(first, [&](int i, int64_t c, int64_t at) {
        const vec<Real> w = load(weight + at), s = load(sum + c), x = load(cross + at);
        vec<Real> value = along_sum[i] * s + along_cross[i] * x;
        mean[i] += w * s;
        if (change) {
          const vec<Real> y = load(change + at), h = load(direction_sum + c);
          shift[i] += w * h;
          change_dot[i] += w * y;
          value += alpha[first + i] * (y + bias[first + i] * h);
        }
        if (weight_direction) {
          const vec<Real> v = load(weight_direction + at);
          direction_mean[i] += v * s;
          direction_dot[i] += v * x;
        }
        if (weight_product) store(weight_product + at, load(weight_product + at) + value);
      });
      for (int i = 0; i < row_block; ++i) {
        const int64_t r = first + i;
        const Real difference_sum = sum_of_difference(r, sum_of<Real>(mean[i]));
        const Real bias_change = bias_direction ? bias_direction[r] : 0;
        Real change_sum = bias_change * Real(layer.pixels);  // sum of V
        Real dot = bias_change * difference_sum;
        if (change) {
          const Real moved = sum_of<Real>(shift[i]);
          change_sum += moved;
          dot += (sum_of<Real>(change_dot[i]) - scratch.cross_dot[r]) / 2 + bias[r] * moved;
        }
        if (weight_direction) {
          const Real moved = sum_of<Real>(direction_mean[i]);
          change_sum += moved;
          dot += sum_of<Real>(direction_dot[i]) + bias[r] * moved;
        }
        dot_products[r] += dot;
        bias_product[r] += alpha[r] * change_sum + along_cross[i] * difference_sum;
      }
    }
    if (!weight_product || !weight_direction) return;
    // The rest of hW: (2 alpha vW) G, with the left factor in cross's place.
    for (int64_t first = 0; first < R; first += row_block)
      for_each_place(first, [&](int i, int64_t, int64_t at) {
        store(cross + at, alpha[first + i] * load(weight_direction + at));
      });
    rows_times_square<Store::accumulate>(cross, scratch.target.product, weight_product);
  }

  // dT = (W^T 2 alpha W) T - (2 alpha W)^T S~ + W^T 2 alpha b, over the pixels once more.
  void target_gradient() {
    const GramGradient<Real> pass = scratch.double_pass(layer);
    const auto coefficient = [&](int64_t r, int64_t at) { return alpha[r] * load(weight + at); };
    scale_rows(pass, coefficient);
    weight_square(pass, pass.product);
    fill_source_factor(pass, coefficient, [&](int64_t r, int64_t, vec<Real> value) { return bias[r] * value; });
    pass.write(b, false);
  }

  // hT = (W^T 2 alpha W) vT + (J + J^T) T - (2 alpha vW + 2 valpha W)^T S~ + constant, J = W^T (2 alpha vW + valpha W).
  template <class T>
  void target_product(const GramGradient<T>& pass, bool direction) {
    if (direction) {
      scale_rows(pass, [&](int64_t r, int64_t at) { return alpha[r] * load(weight + at); });
      weight_square(pass, pass.direction_product);
    }
    const auto coefficients = [&](Real share) {
      return [&, share](int64_t r, int64_t at) {
        vec<Real> value{};
        if (weight_direction) value += alpha[r] * load(weight_direction + at);
        if (alpha_direction) value += share * alpha_direction[r] * load(weight + at);
        return value;
      };
    };
    // Of J, what valpha scales cancels against S~: its rounding has to be no worse than that of the pixels' pass.
    const GramGradient<Real> exact = scratch.double_pass(layer);
    if (alpha_direction) {
      scale_rows(exact, coefficients(0.5));
      weight_times_scaled(exact, exact.product, /*lower=*/false);
      add_transpose(exact.product, C, square_stride);
      if constexpr (!std::is_same_v<T, Real>)
        convert_panels<T>(exact.product, scratch.channel_rows, scratch.channels, pass.product);
    } else {
      scale_rows(pass, coefficients(0.5));
      weight_times_scaled(pass, pass.product, /*lower=*/false);
      add_transpose(pass.product, C, scratch.channel_rows * panel<T>);
    }
    fill_source_factor(pass, coefficients(1), [&](int64_t r, int64_t at, vec<Real> value) {
      vec<Real> shift = bias[r] * value;
      if (bias_direction) shift += alpha[r] * bias_direction[r] * load(weight + at);
      return shift;
    });
    pass.write(b, direction);
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
    return moments.small + small_before(layer, size_index) * scratch.channels;
  }
  int64_t place(int64_t row, int64_t column) const { return column / NR * stride + row * NR + column % NR; }
  // The last panel of the channels fills one vector only.
  bool is_half(int64_t c) const { return C - c <= lanes<Real>; }

  // `mean` is row r of W h.
  Real sum_of_difference(int64_t r, Real mean) const {
    return mean + Real(layer.pixels) * bias[r] - scratch.source_sum[r];
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

  // Visits (row, place, the same place in T's panels) for every pair of vectors of a (rows, channels) panel matrix.
  template <class T, class Visit>
  void for_each_panel_row(T* matrix, const Visit& visit) const {
    for (int64_t c = 0; c < scratch.channels; c += NR) {
      T* out = matrix + c / panel<T> * panel<T> * R + c % panel<T>;
      for (int64_t r = 0; r < R; ++r) visit(r, c, place(r, c), out + r * panel<T>);
    }
  }

  // out = the two vectors at `values`, one of float.
  template <class T>
  static void store_row(T* out, const Real* values) {
    for (int j = 0; j < NR; j += lanes<T>) store(out + j, load_as<T>(values + j));
  }

  // pass.scaled (rows, channels) = value(row, place).
  template <class T, class Value>
  void scale_rows(const GramGradient<T>& pass, const Value& value) const {
    for_each_panel_row(pass.scaled, [&](int64_t r, int64_t, int64_t at, T* out) {
      Real values[NR];
      for (int j = 0; j < NR; j += lanes<Real>) store(values + j, value(r, at + j));
      store_row(out, values);
    });
  }

  // product = W^T scaled; its lower triangle alone where it is symmetric.
  template <class T>
  void weight_times_scaled(const GramGradient<T>& pass, T* product, bool lower) const {
    fill_zero(product, scratch.channel_rows * round_up(scratch.channels, panel<T>));
    outer_product<T>(R, 0, scratch.channel_rows, 0, C, pass.weight, R * panel<T>, pass.scaled, R * panel<T>, product,
                     scratch.channel_rows * panel<T>, lower);
  }
  template <class T>
  void weight_square(const GramGradient<T>& pass, T* square) const {
    weight_times_scaled(pass, square, /*lower=*/true);
    mirror(square, C, scratch.channel_rows * panel<T>);
  }

  // pass.scaled = -value(row, place), the factor of S~, and pass.constant = sum over rows of shift(row, place, value).
  template <class T, class Value, class Shift>
  void fill_source_factor(const GramGradient<T>& pass, const Value& value, const Shift& shift) const {
    fill_zero(pass.constant, round_up(scratch.channels, panel<T>));
    vec<Real> sums[2] = {};
    for_each_panel_row(pass.scaled, [&](int64_t r, int64_t c, int64_t at, T* out) {
      Real values[NR];
      for (int j = 0; j < 2; ++j) {
        const vec<Real> v = value(r, at + j * lanes<Real>);
        sums[j] += shift(r, at + j * lanes<Real>, v);
        store(values + j * lanes<Real>, -v);
      }
      store_row(out, values);
      if (r + 1 < R) return;
      for (int j = 0; j < 2; ++j) {
        store(values + j * lanes<Real>, sums[j]);
        sums[j] = vec<Real>{};
      }
      store_row(pass.constant + c, values);
    });
  }

  // S~ F^T = S (U^T F)^T, and the sums of S~ and S~^2 from the source alone.
  void small_source_statistics(const PairView& pair, bool direction, bool squares) {
    const int64_t width = pair.source.width, padded = round_up(pair.source.channels, unit<Real>);
    const Axis &vertical = *pair.vertical, &horizontal = *pair.horizontal;
    Real* sums = scratch.source_sum + pair.row;
    Real* square_sums = scratch.source_square + pair.row;
    Real* filtered = scratch.line;  // U_x^T U_x applied to a row; at first, that of the row above
    for_each_small_block<Real>(pair, b, scratch.source, source_panel(), [&](int64_t first, int64_t rows) {
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

  // Rows are taken so many at a time, that memory is read in order; R is a multiple.
  static constexpr int row_block = unit<Real>;
  struct RowSums {
    vec<Real> sums[row_block] = {};
    vec<Real>& operator[](int i) { return sums[i]; }
  };

  // Calls visit(i, column, place) for row first + i.
  template <class Visit>
  void for_each_place(int64_t first, const Visit& visit) const {
    for (int64_t c = 0; c < scratch.channels; c += lanes<Real>)
#pragma GCC unroll 8
      for (int i = 0; i < row_block; ++i) visit(i, c, place(first + i, c));
  }

  // sums[r] = row r of W times row r of x.
  void weighted_sums(const Real* x, Real* sums) const {
    for (int64_t first = 0; first < R; first += row_block) {
      RowSums dot;
      for_each_place(first, [&](int i, int64_t, int64_t at) { dot[i] += load(weight + at) * load(x + at); });
      for (int i = 0; i < row_block; ++i) sums[first + i] = sum_of<Real>(dot[i]);
    }
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
  if (layer.single_product && layer.target_gradient.data)
    convert_panels<float>(static_cast<const Real*>(layer.weight_rows), layer.rows, scratch.channels,
                          scratch.single.weight);
  for (int64_t b = begin; b < end; ++b) {
    GramSample sample(layer, scratch, b);
    sample.statistics(direction, /*squares=*/false);
    sample.reduce_direction(result.alpha + (b - begin) * layer.rows, static_cast<Real*>(result.weight),
                            static_cast<double*>(result.bias));
    if (!layer.target_gradient.data) continue;
    if (layer.single_product)
      sample.target_product(scratch.single_pass(layer), direction);
    else
      sample.target_product(scratch.double_pass(layer), direction);
  }
}

}  // namespace l2t_fast::cpu::L2T_ISA
