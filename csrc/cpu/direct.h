// Loss and gradient by tiles of D that never leave the cache.
#pragma once

#include "resize.h"
#include "tile.h"

namespace l2t_fast::cpu::L2T_ISA {

// Bytes of a block's panels: they, and the weights streaming past them, share the L2 cache.
constexpr int64_t block_bytes = 600 << 10;

template <class T>
int64_t row_end(const PairView& pair) {
  return pair.row + round_up(pair.source.channels, unit<T>);
}

template <class T>
int64_t widest_group(const Layer& layer) {
  int64_t widest = 0;
  for (int64_t g = 0; g < layer.group_count; ++g)
    widest = maximum(widest, row_end<T>(layer.pairs[layer.groups[g + 1] - 1]) - layer.pairs[layer.groups[g]].row);
  return widest;
}

// Pixels a block, a multiple of the tile. `panels` of each kind: 1 for loss and gradient, 2 with a direction.
template <class T>
int64_t block_rows(const Layer& layer, int64_t kinds) {
  const int64_t row_bytes = kinds * (widest_group<T>(layer) + layer.channels) * int64_t(sizeof(T));
  return minimum(16, maximum(2, block_bytes / row_bytes / row_tile)) * row_tile;
}

// A stretch of a block's rows that lies within one sample.
struct Segment {
  int64_t sample, first_pixel, row, count;
};

template <class Visit>
inline void for_each_segment(const Layer& layer, int64_t begin, int64_t count, const Visit& visit) {
  for (int64_t row = 0; row < count;) {
    const int64_t at = begin + row, pixel = at % layer.pixels, n = minimum(layer.pixels - pixel, count - row);
    visit(Segment{at / layer.pixels, pixel, row, n});
    row += n;
  }
}

// Sums over pixels are kept in double, a strip of pixels at a time in T.
template <class T>
struct doubles_of {
  typedef double type __attribute__((vector_size(lanes<T> * sizeof(double))));
};
template <class T>
using doubles = typename doubles_of<T>::type;

// By reference: the vector may be wider than the instruction set's registers.
template <class T>
inline void add_to(doubles<T>& sum, const vec<T>& v) {
  sum += __builtin_convertvector(v, doubles<T>);
}
template <class T>
inline void add_to(double* sums, const doubles<T>& v) {
  doubles<T> old;
  std::memcpy(&old, sums, sizeof old);
  old += v;
  std::memcpy(sums, &old, sizeof old);
}
template <class Visit>
inline void for_each_strip(int64_t count, const Visit& visit) {
  constexpr int64_t strip = 16;
  for (int64_t i = 0; i < count; i += strip) visit(minimum(strip, count - i));
}

// Visits the runs of neighbouring pairs in [first, last) whose weight gradient is wanted, as row ranges.
template <class T, class Visit>
void for_each_wanted_rows(const Layer& layer, int64_t first, int64_t last, const Visit& visit) {
  for (int64_t p = first; p < last; ++p) {
    if (!layer.pairs[p].needs_weight) continue;
    int64_t q = p + 1;
    while (q < last && layer.pairs[q].needs_weight) ++q;
    visit(layer.pairs[p].row, row_end<T>(layer.pairs[q - 1]));
    p = q;
  }
}

template <class T>
struct DirectScratch {
  T* target;      // T: (block, channels)
  T* direction;   // vT, where there is one
  T* difference;  // S~, then D, then E: (block, rows of a group)
  T* change;      // V, then E'; for the Hessian-vector product
  T* gradient;    // dT: one panel, or all of them where several groups add up
  T* cache;       // source rows for the resize
  int64_t block;

  DirectScratch(const Layer& layer, Arena& arena, bool hvp) : block(block_rows<T>(layer, hvp ? 2 : 1)) {
    target = arena.take<T>(block * round_up(layer.channels, panel<T>));
    direction = arena.take<T>(layer.target_direction.data ? block * round_up(layer.channels, panel<T>) : 0);
    difference = arena.take<T>(block * round_up(widest_group<T>(layer), panel<T>));
    change = arena.take<T>(hvp ? block * round_up(widest_group<T>(layer), panel<T>) : 0);
    gradient = arena.take<T>(block * (layer.group_count > 1 ? round_up(layer.channels, panel<T>) : panel<T>));
    int64_t cache_size = 0;
    for (int64_t p = 0; p < layer.pair_count; ++p)
      if (layer.pairs[p].horizontal) cache_size = maximum(cache_size, RowCache<T>::size(layer.pairs[p]));
    cache = arena.take<T>(cache_size);
  }
};

template <class T>
size_t direct_scratch(const Layer& layer, bool hvp) {
  Arena arena{nullptr};
  DirectScratch<T>(layer, arena, hvp);
  return arena.used;
}

// S~ of pair for the block [begin, begin + count), at `column0` of `panels`.
template <class T>
void load_source_block(const Layer& layer, const PairView& pair, int64_t begin, int64_t count, T* cache, T* panels,
                       int64_t panel_stride, int64_t column0) {
  const int64_t padded = round_up(pair.source.channels, unit<T>);
  if (pair.resize == Resize::empty) {
    for (int64_t c = column0; c < column0 + padded; c += lanes<T>)
      for (int64_t r = 0; r < count; ++r)
        store(panels + c / panel<T> * panel_stride + c % panel<T> + r * panel<T>, vec<T>{});
    return;
  }
  if (!pair.horizontal) {
    for_each_segment(layer, begin, count, [&](const Segment& s) {
      load_pixels<T>(pair.source, s.sample, s.first_pixel, s.count, panels + s.row * panel<T>, panel_stride, column0,
                     padded);
    });
    return;
  }
  RowCache<T> rows(pair, cache);
  for_each_segment(layer, begin, count, [&](const Segment& s) {
    resized_pixels(pair, rows, s.sample, s.first_pixel, s.count, panels + s.row * panel<T>, panel_stride, column0);
  });
}

// Turns one panel of W T - S~ into E, adding up Q and db: rows [row, row + NR) of the stack.
template <class T>
void finish_panel(const Layer& layer, int64_t begin, int64_t count, int64_t row, int vectors, T* panel_rows,
                  int64_t first_sample, const ChunkResult& result) {
  constexpr int NR = panel<T>, L = lanes<T>;
  for (int j = 0; j < vectors; ++j) {
    const int64_t r = row + j * L;
    const vec<T> bias = load(static_cast<const T*>(layer.bias) + r);
    doubles<T> errors{};
    for_each_segment(layer, begin, count, [&](const Segment& s) {
      const vec<T> alpha = load(static_cast<const T*>(layer.alpha) + s.sample * layer.rows + r);
      T* d = panel_rows + s.row * NR + j * L;
      doubles<T> squares{};
      for_each_strip(s.count, [&](int64_t rows) {
        vec<T> strip_squares{}, strip_errors{};
        for (int64_t i = 0; i < rows; ++i, d += NR) {
          const vec<T> difference = load(d) + bias, error = alpha * difference;
          strip_squares += difference * difference;
          strip_errors += error;
          store(d, error);
        }
        add_to<T>(squares, strip_squares);
        add_to<T>(errors, strip_errors);
      });
      add_to<T>(result.alpha + (s.sample - first_sample) * layer.rows + r, squares);
    });
    add_to<T>(static_cast<double*>(result.bias) + r, errors);
  }
}

template <class T>
void direct_forward(const Layer& layer, int64_t begin, int64_t end, const ChunkResult& result, void* memory) {
  constexpr int NR = panel<T>, L = lanes<T>;
  Arena arena{static_cast<char*>(memory)};
  const DirectScratch<T> scratch(layer, arena, /*hvp=*/false);
  const int64_t panel_stride = scratch.block * NR, first_sample = begin / layer.pixels, channels = layer.channels;
  const T* weight_rows = static_cast<const T*>(layer.weight_rows);
  const T* weight_columns = static_cast<const T*>(layer.weight_columns);
  const bool needs_target = layer.target_gradient.data;

  for (int64_t at = begin; at < end; at += scratch.block) {
    const int64_t count = minimum(scratch.block, end - at);
    for_each_segment(layer, at, count, [&](const Segment& s) {
      load_pixels<T>(layer.target, s.sample, s.first_pixel, s.count, scratch.target + s.row * NR, panel_stride, 0,
                     round_up(channels, NR));
    });
    for (int64_t g = 0; g < layer.group_count; ++g) {
      const int64_t first = layer.groups[g], last = layer.groups[g + 1], row0 = layer.pairs[first].row;
      const int64_t row1 = row_end<T>(layer.pairs[last - 1]);
      for (int64_t p = first; p < last; ++p)
        load_source_block<T>(layer, layer.pairs[p], at, count, scratch.cache, scratch.difference, panel_stride,
                             layer.pairs[p].row - row0);
      for (int64_t row = row0; row < row1; row += NR) {
        T* rows = scratch.difference + (row - row0) / NR * panel_stride;
        const bool half = row1 - row <= L;
        rows_product<T, Store::subtract_from>(count, channels, half, scratch.target, panel_stride,
                                              weight_columns + row * channels, rows);
        finish_panel<T>(layer, at, count, row, half ? 1 : 2, rows, first_sample, result);
      }
      if (needs_target) {
        for (int64_t c = 0; c < channels; c += NR) {
          T* out = scratch.gradient + (layer.group_count > 1 ? c / NR * panel_stride : 0);
          const T* weight = weight_rows + c * layer.rows + row0 * NR;
          const bool half = channels - c <= L;
          if (g == 0)
            rows_product<T, Store::overwrite>(count, row1 - row0, half, scratch.difference, panel_stride, weight, out);
          else
            rows_product<T, Store::accumulate>(count, row1 - row0, half, scratch.difference, panel_stride, weight, out);
          if (g + 1 == layer.group_count)
            for_each_segment(layer, at, count, [&](const Segment& s) {
              store_pixels<T>(layer.target_gradient, s.sample, s.first_pixel, s.count, c, out + s.row * NR);
            });
        }
      }
      if (result.weight)
        for_each_wanted_rows<T>(layer, first, last, [&](int64_t from, int64_t to) {
          outer_product<T>(count, from, to, -row0, channels, scratch.difference, panel_stride, scratch.target,
                           panel_stride, static_cast<T*>(result.weight), layer.rows * NR);
        });
    }
  }
}

// Turns one panel each of W T - S~ and V - vb into E and E', adding up sum D V and hb.
template <class T>
void finish_direction_panel(const Layer& layer, int64_t begin, int64_t count, int64_t row, int vectors, T* differences,
                            T* changes, int64_t first_sample, const ChunkResult& result) {
  constexpr int NR = panel<T>, L = lanes<T>;
  for (int j = 0; j < vectors; ++j) {
    const int64_t r = row + j * L;
    const vec<T> bias = load(static_cast<const T*>(layer.bias) + r);
    const vec<T> bias_change = layer.bias_direction ? load(static_cast<const T*>(layer.bias_direction) + r) : vec<T>{};
    doubles<T> errors{};
    for_each_segment(layer, begin, count, [&](const Segment& s) {
      const int64_t at = s.sample * layer.rows + r;
      const vec<T> alpha = load(static_cast<const T*>(layer.alpha) + at);
      const vec<T> alpha_change =
          layer.alpha_direction ? load(static_cast<const T*>(layer.alpha_direction) + at) : vec<T>{};
      T* d = differences + s.row * NR + j * L;
      T* v = changes + s.row * NR + j * L;
      doubles<T> products{};
      for_each_strip(s.count, [&](int64_t rows) {
        vec<T> strip_products{}, strip_errors{};
        for (int64_t i = 0; i < rows; ++i, d += NR, v += NR) {
          const vec<T> difference = load(d) + bias, change = load(v) + bias_change;
          const vec<T> error_change = alpha * change + alpha_change * difference;
          strip_products += difference * change;
          strip_errors += error_change;
          store(d, alpha * difference);
          store(v, error_change);
        }
        add_to<T>(products, strip_products);
        add_to<T>(errors, strip_errors);
      });
      add_to<T>(result.alpha + (s.sample - first_sample) * layer.rows + r, products);
    });
    add_to<T>(static_cast<double*>(result.bias) + r, errors);
  }
}

// The pixels [begin, end) of the Hessian-vector product.
template <class T>
void direct_hvp(const Layer& layer, int64_t begin, int64_t end, const ChunkResult& result, void* memory) {
  constexpr int NR = panel<T>, L = lanes<T>;
  Arena arena{static_cast<char*>(memory)};
  const DirectScratch<T> scratch(layer, arena, /*hvp=*/true);
  const int64_t panel_stride = scratch.block * NR, first_sample = begin / layer.pixels, channels = layer.channels;
  const T* weight_rows = static_cast<const T*>(layer.weight_rows);
  const T* weight_columns = static_cast<const T*>(layer.weight_columns);
  const T* direction_rows = static_cast<const T*>(layer.weight_direction_rows);        // null: zero
  const T* direction_columns = static_cast<const T*>(layer.weight_direction_columns);  // null: zero
  const bool moves_target = layer.target_direction.data, needs_target = layer.target_gradient.data;

  for (int64_t at = begin; at < end; at += scratch.block) {
    const int64_t count = minimum(scratch.block, end - at);
    for_each_segment(layer, at, count, [&](const Segment& s) {
      load_pixels<T>(layer.target, s.sample, s.first_pixel, s.count, scratch.target + s.row * NR, panel_stride, 0,
                     round_up(channels, NR));
      if (moves_target)
        load_pixels<T>(layer.target_direction, s.sample, s.first_pixel, s.count, scratch.direction + s.row * NR,
                       panel_stride, 0, round_up(channels, NR));
    });
    for (int64_t g = 0; g < layer.group_count; ++g) {
      const int64_t first = layer.groups[g], last = layer.groups[g + 1], row0 = layer.pairs[first].row;
      const int64_t row1 = row_end<T>(layer.pairs[last - 1]);
      for (int64_t p = first; p < last; ++p)
        load_source_block<T>(layer, layer.pairs[p], at, count, scratch.cache, scratch.difference, panel_stride,
                             layer.pairs[p].row - row0);
      for (int64_t row = row0; row < row1; row += NR) {
        const int64_t offset = (row - row0) / NR * panel_stride;
        T* differences = scratch.difference + offset;
        T* changes = scratch.change + offset;
        const bool half = row1 - row <= L;
        rows_product<T, Store::subtract_from>(count, channels, half, scratch.target, panel_stride,
                                              weight_columns + row * channels, differences);
        fill_zero(changes, count * NR);
        if (moves_target)
          rows_product<T, Store::accumulate>(count, channels, half, scratch.direction, panel_stride,
                                             weight_columns + row * channels, changes);
        if (direction_columns)
          rows_product<T, Store::accumulate>(count, channels, half, scratch.target, panel_stride,
                                             direction_columns + row * channels, changes);
        finish_direction_panel<T>(layer, at, count, row, half ? 1 : 2, differences, changes, first_sample, result);
      }
      if (needs_target) {
        for (int64_t c = 0; c < channels; c += NR) {
          T* out = scratch.gradient + (layer.group_count > 1 ? c / NR * panel_stride : 0);
          const int64_t weight = c * layer.rows + row0 * NR;
          const bool half = channels - c <= L;
          if (g == 0) fill_zero(out, count * NR);
          rows_product<T, Store::accumulate>(count, row1 - row0, half, scratch.change, panel_stride,
                                             weight_rows + weight, out);
          if (direction_rows)
            rows_product<T, Store::accumulate>(count, row1 - row0, half, scratch.difference, panel_stride,
                                               direction_rows + weight, out);
          if (g + 1 == layer.group_count)
            for_each_segment(layer, at, count, [&](const Segment& s) {
              store_pixels<T>(layer.target_gradient, s.sample, s.first_pixel, s.count, c, out + s.row * NR);
            });
        }
      }
      if (result.weight)
        for_each_wanted_rows<T>(layer, first, last, [&](int64_t from, int64_t to) {
          outer_product<T>(count, from, to, -row0, channels, scratch.change, panel_stride, scratch.target, panel_stride,
                           static_cast<T*>(result.weight), layer.rows * NR);
          if (moves_target)
            outer_product<T>(count, from, to, -row0, channels, scratch.difference, panel_stride, scratch.direction,
                             panel_stride, static_cast<T*>(result.weight), layer.rows * NR);
        });
    }
  }
}

}  // namespace l2t_fast::cpu::L2T_ISA
