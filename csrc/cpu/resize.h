// The bilinear resize and its adjoint on panel matrices: channels lie along vectors, so neither needs a gather.
#pragma once

#include "block.h"

namespace l2t_fast::cpu::L2T_ISA {

// The two source rows in use, as panel matrices (W_m, padded channels); a source row is turned to panels once.
template <class T>
struct RowCache {
  T* rows[2];
  int64_t sample[2], y[2];
  int64_t panel_stride;

  static int64_t size(const PairView& pair) { return 2 * pair.source.width * round_up(pair.source.channels, panel<T>); }
  RowCache(const PairView& pair, T* memory)
      : rows{memory, memory + size(pair) / 2}, sample{-1, -1}, y{-1, -1}, panel_stride(pair.source.width * panel<T>) {}

  const T* row(const PairView& pair, int64_t b, int64_t index) {
    const int slot = index & 1;  // the rows above and below a pixel differ by one, or are the same
    if (sample[slot] != b || y[slot] != index) {
      load_pixels<T>(pair.source, b, index * pair.source.width, pair.source.width, rows[slot], panel_stride, 0,
                     round_up(pair.source.channels, unit<T>));
      sample[slot] = b;
      y[slot] = index;
    }
    return rows[slot];
  }
};

// S~ at the target's pixels [first, first + count) of sample b, into columns column0 .. of `panels`.
template <class T>
void resized_pixels(const PairView& pair, RowCache<T>& cache, int64_t b, int64_t first, int64_t count, T* panels,
                    int64_t panel_stride, int64_t column0) {
  constexpr int NR = panel<T>, L = lanes<T>;
  const int64_t padded = round_up(pair.source.channels, unit<T>), width = pair.horizontal->output;
  const int64_t* low = pair.horizontal->low;
  const int64_t* high = pair.horizontal->high;
  const double* weight = pair.horizontal->weight;
  for (int64_t done = 0; done < count;) {
    const int64_t y = (first + done) / width, x = (first + done) % width, n = minimum(width - x, count - done);
    const T* above = cache.row(pair, b, pair.vertical->low[y]);
    const T* below = cache.row(pair, b, pair.vertical->high[y]);
    const T down = T(pair.vertical->weight[y]), up = T(1 - pair.vertical->weight[y]);
    for (int64_t c = 0; c < padded; c += L) {
      const int64_t from = c / NR * cache.panel_stride + c % NR, column = column0 + c;
      T* out = panels + column / NR * panel_stride + column % NR + done * NR;
      for (int64_t i = 0; i < n; ++i) {
        const int64_t left = from + low[x + i] * NR, right = from + high[x + i] * NR;
        const T r = T(weight[x + i]), l = T(1 - weight[x + i]);
        store(out + i * NR, up * (l * load(above + left) + r * load(above + right)) +
                                down * (l * load(below + left) + r * load(below + right)));
      }
    }
    done += n;
  }
}

// Adds U^T t to `sums` (input.height * input.width rows): t holds the whole target row y. Target pixels between the
// same two source pixels follow each other, so their sums stay in registers.
template <class T>
void add_adjoint_row(const Axis& vertical, const Axis& horizontal, int64_t y, int64_t columns, const T* t,
                     int64_t t_panel, T* sums, int64_t sums_panel) {
  constexpr int NR = panel<T>, L = lanes<T>;
  const T down = T(vertical.weight[y]), up = T(1 - vertical.weight[y]);
  for (int64_t n = 0; n < columns; n += NR, t += t_panel, sums += sums_panel) {
    T* above = sums + vertical.low[y] * horizontal.input * NR;
    T* below = sums + vertical.high[y] * horizontal.input * NR;
    int64_t at = horizontal.low[0];  // sums for this source pixel, and for the next one
    vec<T> here[2] = {}, next[2] = {};
    const auto put_away = [&] {
      for (int j = 0; j < 2; ++j) {
        T* a = above + at * NR + j * L;
        T* b = below + at * NR + j * L;
        store(a, load(a) + up * here[j]);
        store(b, load(b) + down * here[j]);
        here[j] = next[j];
        next[j] = vec<T>{};
      }
      ++at;
    };
    for (int64_t x = 0; x < horizontal.output; ++x) {
      while (at < horizontal.low[x]) put_away();
      const bool last = horizontal.high[x] == at;
      const T r = T(horizontal.weight[x]), l = T(last ? 1 : 1 - horizontal.weight[x]);
      for (int j = 0; j < 2; ++j) {
        const vec<T> v = load(t + x * NR + j * L);
        here[j] += l * v;
        if (!last) next[j] += r * v;
      }
    }
    put_away();
    if (at < horizontal.input) put_away();
  }
}

// Adds the resized map to the target's row y: out (width, NR) += U s for one panel of s.
template <class T>
void add_resized_row(const Axis& vertical, const Axis& horizontal, int64_t y, const T* s, T* out) {
  constexpr int NR = panel<T>, L = lanes<T>;
  const T down = T(vertical.weight[y]), up = T(1 - vertical.weight[y]);
  const T* above = s + vertical.low[y] * horizontal.input * NR;
  const T* below = s + vertical.high[y] * horizontal.input * NR;
  for (int64_t x = 0; x < horizontal.output; ++x) {
    const int64_t left = horizontal.low[x] * NR, right = horizontal.high[x] * NR;
    const T r = T(horizontal.weight[x]), l = T(1 - horizontal.weight[x]);
    for (int64_t j = 0; j < NR; j += L)
      store(out + x * NR + j, load(out + x * NR + j) + up * (l * load(above + left + j) + r * load(above + right + j)) +
                                  down * (l * load(below + left + j) + r * load(below + right + j)));
  }
}

}  // namespace l2t_fast::cpu::L2T_ISA
