// Moves blocks between the caller's tensors (any strides, any element type) and panel matrices whose rows are pixels.
#pragma once

#include <utility>

#include "isa.h"

namespace l2t_fast::cpu::L2T_ISA {

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

// The type a vector of E is loaded as: float holds every 16-bit value.
template <class E>
struct wide_of {
  using type = float;
};
template <>
struct wide_of<double> {
  using type = double;
};
template <class E>
using wide = typename wide_of<E>::type;

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

inline double widen(double value) { return value; }
inline float widen(float value) { return value; }
inline float widen(BFloat16 value) { return from_bits(uint32_t(value.bits) << 16); }
inline float widen(Half value) {
  const uint32_t sign = uint32_t(value.bits & 0x8000) << 16, rest = uint32_t(value.bits & 0x7fff);
  // A subnormal half is read beside 0.5: a subnormal float would be 0 where the processor is told to flush them.
  const uint32_t rebias = rest >= 0x7c00 ? 224u << 23 : 112u << 23;
  const float magnitude = rest < 0x400 ? from_bits(0x3f000000 | rest) - 0.5f : from_bits((rest << 13) + rebias);
  return from_bits(sign | to_bits(magnitude));
}

// Round to nearest even.
template <class E>
inline E narrow(wide<E> value) {
  return value;
}
template <>
inline BFloat16 narrow<BFloat16>(float value) {
  const uint32_t bits = to_bits(value);
  if (value != value) return {uint16_t(bits >> 16 | 0x40)};
  return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
template <>
inline Half narrow<Half>(float value) {
  const uint32_t bits = to_bits(value), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
  if (rest > 0x7f800000) return {uint16_t(sign | 0x7e00)};
  if (rest >= 0x47800000) return {uint16_t(sign | 0x7c00)};
  if (rest < 0x38800000) {  // subnormal: the addition rounds at the last bit of a half
    return {uint16_t(sign | (to_bits(from_bits(rest) + 0.5f) - to_bits(0.5f)))};
  }
  return {uint16_t(sign | (rest - (112u << 23) + 0xfff + (rest >> 13 & 1)) >> 13)};
}

template <class E>
inline vec<wide<E>> load_wide(const E* p) {
  if constexpr (sizeof(E) == sizeof(wide<E>)) {
    return load(reinterpret_cast<const wide<E>*>(p));
  } else {
    vec<wide<E>> v;
    for (int i = 0; i < lanes<wide<E>>; ++i) v[i] = widen(p[i]);
    return v;
  }
}
template <class E>
inline void store_wide(E* p, vec<wide<E>> v) {
  if constexpr (sizeof(E) == sizeof(wide<E>)) {
    store(reinterpret_cast<wide<E>*>(p), v);
  } else {
    for (int i = 0; i < lanes<wide<E>>; ++i) p[i] = narrow<E>(v[i]);
  }
}

// Stores a vector of U as T, or loads T as U: float and double panels for float inputs.
template <class T, class U>
inline void store_as(T* p, vec<U> v) {
  if constexpr (sizeof(T) == sizeof(U)) {
    store(p, v);
  } else {
    typedef T wide_vector __attribute__((vector_size(lanes<U> * sizeof(T))));
    const wide_vector converted = __builtin_convertvector(v, wide_vector);
    std::memcpy(p, &converted, sizeof converted);
  }
}
template <class U, class T>
inline vec<U> load_as(const T* p) {
  if constexpr (sizeof(T) == sizeof(U)) {
    return load(p);
  } else {
    typedef T wide_vector __attribute__((vector_size(lanes<U> * sizeof(T))));
    wide_vector v;
    std::memcpy(&v, p, sizeof v);
    return __builtin_convertvector(v, vec<U>);
  }
}

template <class U, int step, int... lane>
inline void exchange(vec<U>& a, vec<U>& b, std::integer_sequence<int, lane...>) {
  constexpr int L = lanes<U>;
  const vec<U> first = __builtin_shufflevector(a, b, (lane & step ? L + lane - step : lane)...);
  b = __builtin_shufflevector(a, b, (lane & step ? L + lane : lane + step)...);
  a = first;
}

// Transposes a square of lanes<U> vectors in place.
template <class U, int step = 1>
inline void transpose(vec<U>* rows) {
  constexpr int L = lanes<U>;
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i)
    if (!(i & step)) exchange<U, step>(rows[i], rows[i + step], std::make_integer_sequence<int, L>());
  if constexpr (step * 2 < L) transpose<U, step * 2>(rows);
}

template <class T, class E>
void load_block_of(const E* source, int64_t channel_stride, int64_t pixel_stride, int64_t channels, int64_t pixels,
                   T* panels, int64_t panel_stride, int64_t column0, int64_t padded) {
  using U = wide<E>;
  constexpr int L = lanes<U>, NR = panel<T>;
  const auto place = [&](int64_t column) { return panels + column / NR * panel_stride + column % NR; };
  int64_t c = 0;
  const bool aligned = column0 % L == 0;  // a vector of U stays within a panel
  if (pixel_stride == 1 && pixels >= L && aligned && padded % L == 0) {
    // A square of L channels by L pixels in registers; the last square overlaps the one before it.
    for (; c < channels; c += L) {
      T* out = place(column0 + c);
      const int64_t count = minimum(L, channels - c);
      for (int64_t p = 0; p < pixels; p += L) {
        const int64_t at = minimum(p, pixels - L);
        vec<U> square[L];
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i)
          square[i] = i < count ? load_wide(source + (c + i) * channel_stride + at) : vec<U>{};
        transpose<U>(square);
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i) store_as<T, U>(out + (at + i) * NR, square[i]);
      }
    }
    c = round_up(channels, L);
  } else if (channel_stride == 1 && aligned) {
    for (; c + L <= channels; c += L) {
      T* out = place(column0 + c);
      for (int64_t p = 0; p < pixels; ++p) store_as<T, U>(out + p * NR, load_wide(source + p * pixel_stride + c));
    }
  }
  for (; c < padded; ++c) {
    T* out = place(column0 + c);
    if (c < channels)
      for (int64_t p = 0; p < pixels; ++p) out[p * NR] = T(widen(source[c * channel_stride + p * pixel_stride]));
    else
      for (int64_t p = 0; p < pixels; ++p) out[p * NR] = 0;
  }
}

// Rows 0 .. pixels of the columns column0 .. column0 + padded of `panels`; columns past `channels` become zero.
template <class T>
void load_block(const void* source, Element element, int64_t channel_stride, int64_t pixel_stride, int64_t channels,
                int64_t pixels, T* panels, int64_t panel_stride, int64_t column0, int64_t padded) {
  const auto load_from = [&](const auto* p) {
    load_block_of<T>(p, channel_stride, pixel_stride, channels, pixels, panels, panel_stride, column0, padded);
  };
  switch (element) {
    case Element::float64:
      return load_from(static_cast<const double*>(source));
    case Element::float32:
      return load_from(static_cast<const float*>(source));
    case Element::bfloat16:
      return load_from(static_cast<const BFloat16*>(source));
    case Element::float16:
      return load_from(static_cast<const Half*>(source));
  }
}

template <class T, class E>
void store_block_of(E* target, int64_t channel_stride, int64_t pixel_stride, int64_t channels, int64_t pixels,
                    const T* rows) {
  using U = wide<E>;
  constexpr int L = lanes<U>, NR = panel<T>;
  int64_t c = 0;
  if (pixel_stride == 1 && pixels >= L) {
    for (; c + L <= round_up(channels, L) && c + L <= NR; c += L) {
      const int64_t count = minimum(L, channels - c);
      for (int64_t p = 0; p < pixels; p += L) {
        const int64_t at = minimum(p, pixels - L);
        vec<U> square[L];
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i) square[i] = load_as<U, T>(rows + (at + i) * NR + c);
        transpose<U>(square);
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i)
          if (i < count) store_wide(target + (c + i) * channel_stride + at, square[i]);
      }
    }
  } else if (channel_stride == 1) {
    for (; c + L <= channels; c += L)
      for (int64_t p = 0; p < pixels; ++p) store_wide(target + p * pixel_stride + c, load_as<U, T>(rows + p * NR + c));
  }
  for (; c < channels; ++c)
    for (int64_t p = 0; p < pixels; ++p)
      target[c * channel_stride + p * pixel_stride] = narrow<E>(wide<E>(rows[p * NR + c]));
}

// Writes one panel's rows (at most NR channels) to the caller's tensor.
template <class T>
void store_block(void* target, Element element, int64_t channel_stride, int64_t pixel_stride, int64_t channels,
                 int64_t pixels, const T* rows) {
  const auto store_to = [&](auto* p) { store_block_of<T>(p, channel_stride, pixel_stride, channels, pixels, rows); };
  switch (element) {
    case Element::float64:
      return store_to(static_cast<double*>(target));
    case Element::float32:
      return store_to(static_cast<float*>(target));
    case Element::bfloat16:
      return store_to(static_cast<BFloat16*>(target));
    case Element::float16:
      return store_to(static_cast<Half*>(target));
  }
}

inline int64_t element_size(Element element) {
  return element == Element::float64 ? 8 : element == Element::float32 ? 4 : 2;
}

// Calls visit(address, pixel stride, count, offset) for stretches of constant stride that cover the pixels [first,
// first + count) of one sample. `visit` sees the whole range at once where rows follow each other without a gap.
template <class Visit>
inline void for_each_stretch(const Feature& feature, int64_t sample, int64_t first, int64_t count, const Visit& visit) {
  char* base = static_cast<char*>(feature.data) + sample * feature.batch_stride * element_size(feature.element);
  const int64_t size = element_size(feature.element), width = feature.width;
  if (feature.row_stride == width * feature.column_stride || feature.height == 1) {
    visit(base + first * feature.column_stride * size, feature.column_stride, count, 0);
    return;
  }
  for (int64_t done = 0; done < count;) {
    const int64_t y = (first + done) / width, x = (first + done) % width, n = minimum(width - x, count - done);
    visit(base + (y * feature.row_stride + x * feature.column_stride) * size, feature.column_stride, n, done);
    done += n;
  }
}

template <class T>
void load_pixels(const Feature& feature, int64_t sample, int64_t first, int64_t count, T* panels, int64_t panel_stride,
                 int64_t column0, int64_t padded) {
  for_each_stretch(feature, sample, first, count, [&](char* at, int64_t stride, int64_t n, int64_t offset) {
    load_block<T>(at, feature.element, feature.channel_stride, stride, feature.channels, n, panels + offset * panel<T>,
                  panel_stride, column0, padded);
  });
}

// Writes the channels [channel, channel + NR) from one panel.
template <class T>
void store_pixels(const Feature& feature, int64_t sample, int64_t first, int64_t count, int64_t channel,
                  const T* rows) {
  const int64_t channels = minimum(panel<T>, feature.channels - channel);
  for_each_stretch(feature, sample, first, count, [&](char* at, int64_t stride, int64_t n, int64_t offset) {
    store_block<T>(at + channel * feature.channel_stride * element_size(feature.element), feature.element,
                   feature.channel_stride, stride, channels, n, rows + offset * panel<T>);
  });
}

}  // namespace l2t_fast::cpu::L2T_ISA
