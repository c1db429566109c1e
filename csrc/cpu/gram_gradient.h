// The Gram form's second pass over the pixels of a sample, which writes dT or hT.
#pragma once

#include "direct.h"

namespace l2t_fast::cpu::L2T_ISA {

// Whole rows a block, of the target or of a smaller source.
inline int64_t gram_block_rows(const Feature& feature) {
  return maximum(1, minimum(feature.height, 224 / feature.width));
}

// Pixels of the layer's distinct smaller source sizes, and of those before the k-th.
inline const PairView& pair_of_size(const Layer& layer, int64_t k) {
  int64_t p = 0;
  while (layer.pairs[p].resize != Resize::up || layer.pairs[p].size_index != k) ++p;
  return layer.pairs[p];
}
inline int64_t small_before(const Layer& layer, int64_t k) {
  int64_t size = 0;
  for (int64_t i = 0; i < k; ++i) {
    const Feature& source = pair_of_size(layer, i).source;
    size += source.height * source.width;
  }
  return size;
}
inline int64_t small_size(const Layer& layer) { return small_before(layer, layer.up_sizes); }

// Blocks of whole rows of a smaller source, loaded to `block`: visit(first row, rows).
template <class T, class Visit>
void for_each_small_block(const PairView& pair, int64_t sample, T* block, int64_t block_panel, const Visit& visit) {
  const int64_t step = gram_block_rows(pair.source), width = pair.source.width;
  for (int64_t y = 0; y < pair.source.height; y += step) {
    const int64_t rows = minimum(step, pair.source.height - y);
    load_pixels<T>(pair.source, sample, y * width, rows * width, block, block_panel, 0,
                   round_up(pair.source.channels, unit<T>));
    visit(y, rows);
  }
}

// `to` = `from`, a panel matrix (rows, columns) of double as one of T; columns a multiple of the panel of double.
template <class T>
void convert_panels(const double* from, int64_t rows, int64_t columns, T* to) {
  static_assert(lanes<float> == panel<double>);
  for (int64_t c = 0; c < columns; c += panel<double>) {
    const double* in = from + c * rows;
    T* out = to + c / panel<T> * panel<T> * rows + c % panel<T>;
    for (int64_t r = 0; r < rows; ++r) store(out + r * panel<T>, load_as<T>(in + r * panel<double>));
  }
}

// result = product T + direction_product vT + scaled^T S~ + constant for the pixels of a sample.
template <class T>
struct GramGradient {
  const Layer& layer;
  const T* weight;                 // W
  T *target, *direction, *source;  // blocks of T, vT, S~: (block, channels), (source_block, source channels)
  T *cache, *gradient;             // source rows of the resize; the result's block
  T* small;                        // (pixels of the smaller source sizes, channels): scaled^T S, not resized yet
  T *product, *direction_product;  // panel matrices (product_rows, channels)
  T* scaled;                       // panel matrix (rows, channels)
  T* constant;                     // (channels padded to panels,)
  int64_t block, source_block, product_rows;

  void write(int64_t b, bool with_direction) const {
    const int64_t C = layer.channels, width = layer.width, step = gram_block_rows(layer.target),
                  panel_stride = block * NR;
    fill_zero(small, small_size(layer) * round_up(C, NR));
    for (int64_t p = 0; p < layer.pair_count; ++p)
      if (layer.pairs[p].resize == Resize::up) add_small(layer.pairs[p], b);

    for (int64_t y = 0; y < layer.target.height; y += step) {
      const int64_t rows = minimum(step, layer.target.height - y), count = rows * width;
      load_pixels<T>(layer.target, b, y * width, count, target, panel_stride, 0, round_up(C, lanes<T>));
      if (with_direction)
        load_pixels<T>(layer.target_direction, b, y * width, count, direction, panel_stride, 0, round_up(C, lanes<T>));
      for (int64_t c = 0; c < C; c += NR) {
        T* out = gradient + c * block;
        for (int64_t i = 0; i < count; ++i)
          for (int64_t j = 0; j < NR; j += lanes<T>) store(out + i * NR + j, load(constant + c + j));
        rows_product<T, Store::accumulate>(count, C, is_half(c), target, panel_stride, product + c * product_rows, out);
        if (with_direction)
          rows_product<T, Store::accumulate>(count, C, is_half(c), direction, panel_stride,
                                             direction_product + c * product_rows, out);
      }
      for (int64_t p = 0; p < layer.pair_count; ++p) {
        const PairView& pair = layer.pairs[p];
        if (pair.resize == Resize::up || pair.resize == Resize::empty) continue;
        load_source_block<T>(layer, pair, b * layer.pixels + y * width, count, cache, source, source_block * NR, 0);
        for (int64_t c = 0; c < C; c += NR)
          rows_product<T, Store::accumulate>(count, pair.source.channels, is_half(c), source, source_block * NR,
                                             scaled + c * layer.rows + pair.row * NR, gradient + c * block);
      }
      for (int64_t c = 0; c < C; c += NR) {
        for (int64_t s = 0; s < layer.up_sizes; ++s) {
          const PairView& pair = pair_of_size(layer, s);
          for (int64_t i = 0; i < rows; ++i)
            add_resized_row<T>(*pair.vertical, *pair.horizontal, y + i, small_of(pair, c),
                               gradient + c * block + i * width * NR);
        }
        store_pixels<T>(layer.target_gradient, b, y * width, count, c, gradient + c * block);
      }
    }
  }

 private:
  static constexpr int NR = panel<T>;

  bool is_half(int64_t c) const { return layer.channels - c <= lanes<T>; }

  // The panel of column c.
  T* small_of(const PairView& pair, int64_t c) const {
    return small + small_before(layer, pair.size_index) * round_up(layer.channels, NR) +
           c * pair.source.height * pair.source.width;
  }

  // scaled^T S at the source's size.
  void add_small(const PairView& pair, int64_t b) const {
    const int64_t width = pair.source.width;
    for_each_small_block<T>(pair, b, source, source_block * NR, [&](int64_t first, int64_t rows) {
      for (int64_t c = 0; c < layer.channels; c += NR)
        rows_product<T, Store::accumulate>(rows * width, pair.source.channels, is_half(c), source, source_block * NR,
                                           scaled + c * layer.rows + pair.row * NR,
                                           small_of(pair, c) + first * width * NR);
    });
  }
};

}  // namespace l2t_fast::cpu::L2T_ISA
