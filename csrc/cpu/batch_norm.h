// The double backward of batch normalisation in training mode, in two passes over the feature maps. Formulas:
// csrc/batch_norm.h. Included once by each kernels_<isa>.cpp.
#pragma once

#include "isa.h"

namespace l2t_fast::cpu::L2T_ISA {

// One value x of the map, normalised: (x - mean) scale.
template <class V, class T>
inline V normalised(V x, T mean, T scale) {
  return (x - mean) * scale;
}

// Sums over the elements of one channel in float would lose digits: what a run of `chain` elements or rows adds up goes
// into double.
enum Sum { sum_adjoint, sum_gradient, sum_adjoint_input, sum_gradient_input, sum_adjoint_gradient, sums_count };

// One element's part of a channel's sums.
template <class V>
inline void batch_norm_add(V a, V g, V x, V* sum) {
  sum[sum_adjoint] += a;
  sum[sum_gradient] += g;
  sum[sum_adjoint_input] += a * x;
  sum[sum_gradient_input] += g * x;
  sum[sum_adjoint_gradient] += a * g;
}

// A single element goes into double at once.
template <class T>
inline void batch_norm_add_to(double* sums, int64_t channels, T a, T g, T x) {
  T sum[sums_count] = {};
  batch_norm_add(a, g, x, sum);
  for (int k = 0; k < sums_count; ++k) sums[k * channels] += double(sum[k]);
}

// Rows of channels: elements [begin, end) of the batch x pixels, `channels` values each.
template <class T>
void batch_norm_sums_rows(const BatchNormMaps& maps, int64_t begin, int64_t end, double* sums) {
  const T *gradient = static_cast<const T*>(maps.gradient), *input = static_cast<const T*>(maps.input),
          *adjoint = static_cast<const T*>(maps.adjoint), *mean = static_cast<const T*>(maps.mean),
          *scale = static_cast<const T*>(maps.scale);
  const int64_t channels = maps.channels;
  for (int64_t row = begin; row < end; row += chain) {
    const int64_t rows_end = minimum(end, row + chain);
    int64_t c = 0;
    for (; c + lanes<T> <= channels; c += lanes<T>) {
      vec<T> sum[sums_count] = {};
      const vec<T> m = load(mean + c), s = load(scale + c);
      for (int64_t r = row; r < rows_end; ++r) {
        const int64_t at = r * channels + c;
        const vec<T> a = load(adjoint + at), g = load(gradient + at), x = normalised(load(input + at), m, s);
        batch_norm_add(a, g, x, sum);
      }
      for (int k = 0; k < sums_count; ++k)
        for (int i = 0; i < lanes<T>; ++i) sums[k * channels + c + i] += double(sum[k][i]);
    }
    for (; c < channels; ++c) {
      for (int64_t r = row; r < rows_end; ++r) {
        const int64_t at = r * channels + c;
        const T a = adjoint[at], g = gradient[at], x = normalised(input[at], mean[c], scale[c]);
        batch_norm_add_to(sums + c, channels, a, g, x);
      }
    }
  }
}

// Planes of pixels: channels [begin, end), every sample.
template <class T>
void batch_norm_sums_planes(const BatchNormMaps& maps, int64_t begin, int64_t end, double* sums) {
  const T *mean = static_cast<const T*>(maps.mean), *scale = static_cast<const T*>(maps.scale);
  const int64_t channels = maps.channels, pixels = maps.pixels;
  for (int64_t c = begin; c < end; ++c) {
    for (int64_t b = 0; b < maps.samples; ++b) {
      const int64_t plane = (b * channels + c) * pixels;
      const T *gradient = static_cast<const T*>(maps.gradient) + plane,
              *input = static_cast<const T*>(maps.input) + plane,
              *adjoint = static_cast<const T*>(maps.adjoint) + plane;
      int64_t i = 0;
      while (i + lanes<T> <= pixels) {
        const int64_t stop = minimum(pixels, i + chain * lanes<T>);
        vec<T> sum[sums_count] = {};
        for (; i + lanes<T> <= stop; i += lanes<T>) {
          const vec<T> a = load(adjoint + i), g = load(gradient + i),
                       x = normalised(load(input + i), mean[c], scale[c]);
          batch_norm_add(a, g, x, sum);
        }
        for (int k = 0; k < sums_count; ++k)
          for (int l = 0; l < lanes<T>; ++l) sums[k * channels + c] += double(sum[k][l]);
      }
      for (; i < pixels; ++i) {
        const T a = adjoint[i], g = gradient[i], x = normalised(input[i], mean[c], scale[c]);
        batch_norm_add_to(sums + c, channels, a, g, x);
      }
    }
  }
}

// One element of both results; k is a channel's coefficients.
template <class V, class T>
inline void batch_norm_combine(V a, V g, V x, const T& k, V* gradient_bar, V* input_bar) {
  *gradient_bar = a * k.gradient_adjoint + x * k.gradient_input + k.gradient_constant;
  *input_bar = a * k.input_adjoint + g * k.input_gradient + x * k.input_input + k.input_constant;
}

template <class V>
struct BatchNormCoefficients {
  V gradient_adjoint, gradient_input, gradient_constant;
  V input_adjoint, input_gradient, input_input, input_constant;
};

// Coefficients lie in rows of `channels` values, in the order of BatchNormCoefficients.
template <class T>
inline BatchNormCoefficients<vec<T>> coefficients_of_channels(const T* k, int64_t channels) {
  return {load(k),
          load(k + channels),
          load(k + 2 * channels),
          load(k + 3 * channels),
          load(k + 4 * channels),
          load(k + 5 * channels),
          load(k + 6 * channels)};
}
template <class T>
inline BatchNormCoefficients<T> coefficients_of_channel(const T* k, int64_t channels) {
  return {k[0], k[channels], k[2 * channels], k[3 * channels], k[4 * channels], k[5 * channels], k[6 * channels]};
}

template <class T>
void batch_norm_apply_rows(const BatchNormMaps& maps, const void* coefficients, int64_t begin, int64_t end,
                           void* gradient_bar, void* input_bar) {
  const T *gradient = static_cast<const T*>(maps.gradient), *input = static_cast<const T*>(maps.input),
          *adjoint = static_cast<const T*>(maps.adjoint), *mean = static_cast<const T*>(maps.mean),
          *scale = static_cast<const T*>(maps.scale), *k = static_cast<const T*>(coefficients);
  T *to_gradient = static_cast<T*>(gradient_bar), *to_input = static_cast<T*>(input_bar);
  const int64_t channels = maps.channels;
  for (int64_t row = begin; row < end; row += chain) {  // a block's coefficients are loaded once
    const int64_t rows_end = minimum(end, row + chain);
    int64_t c = 0;
    for (; c + lanes<T> <= channels; c += lanes<T>) {
      const auto of = coefficients_of_channels(k + c, channels);
      const vec<T> m = load(mean + c), s = load(scale + c);
      for (int64_t r = row; r < rows_end; ++r) {
        const int64_t at = r * channels + c;
        vec<T> gradient_value, input_value;
        batch_norm_combine(load(adjoint + at), load(gradient + at), normalised(load(input + at), m, s), of,
                           &gradient_value, &input_value);
        store(to_gradient + at, gradient_value);
        store(to_input + at, input_value);
      }
    }
    for (; c < channels; ++c) {
      const auto of = coefficients_of_channel(k + c, channels);
      for (int64_t r = row; r < rows_end; ++r) {
        const int64_t at = r * channels + c;
        batch_norm_combine(adjoint[at], gradient[at], normalised(input[at], mean[c], scale[c]), of, to_gradient + at,
                           to_input + at);
      }
    }
  }
}

template <class T>
void batch_norm_apply_planes(const BatchNormMaps& maps, const void* coefficients, int64_t begin, int64_t end,
                             void* gradient_bar, void* input_bar) {
  const T *mean = static_cast<const T*>(maps.mean), *scale = static_cast<const T*>(maps.scale),
          *k = static_cast<const T*>(coefficients);
  const int64_t channels = maps.channels, pixels = maps.pixels;
  for (int64_t c = begin; c < end; ++c) {
    const auto of = coefficients_of_channel(k + c, channels);
    const BatchNormCoefficients<vec<T>> wide{vec<T>{} + of.gradient_adjoint,  vec<T>{} + of.gradient_input,
                                             vec<T>{} + of.gradient_constant, vec<T>{} + of.input_adjoint,
                                             vec<T>{} + of.input_gradient,    vec<T>{} + of.input_input,
                                             vec<T>{} + of.input_constant};
    for (int64_t b = 0; b < maps.samples; ++b) {
      const int64_t plane = (b * channels + c) * pixels;
      const T *gradient = static_cast<const T*>(maps.gradient) + plane,
              *input = static_cast<const T*>(maps.input) + plane,
              *adjoint = static_cast<const T*>(maps.adjoint) + plane;
      T *to_gradient = static_cast<T*>(gradient_bar) + plane, *to_input = static_cast<T*>(input_bar) + plane;
      int64_t i = 0;
      for (; i + lanes<T> <= pixels; i += lanes<T>) {
        vec<T> gradient_value, input_value;
        batch_norm_combine(load(adjoint + i), load(gradient + i), normalised(load(input + i), mean[c], scale[c]), wide,
                           &gradient_value, &input_value);
        store(to_gradient + i, gradient_value);
        store(to_input + i, input_value);
      }
      for (; i < pixels; ++i)
        batch_norm_combine(adjoint[i], gradient[i], normalised(input[i], mean[c], scale[c]), of, to_gradient + i,
                           to_input + i);
    }
  }
}

}  // namespace l2t_fast::cpu::L2T_ISA
