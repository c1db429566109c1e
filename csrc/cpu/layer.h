// What the kernels see of one target layer and all the pairs that share it: raw pointers, sizes and strides, no torch
// type.
//
// The kernels are compiled once per instruction set. No inline function with a body may stand here: the linker would
// keep one copy of it for all, and that copy could hold instructions the machine lacks.
#pragma once

#include <cstdint>

namespace l2t_fast::cpu {

enum class Element : int { float64, float32, bfloat16, float16 };

// A strided (B, C, H, W) tensor. Strides count elements.
struct Feature {
  void* data;  // null: not there (a gradient nobody wants, a direction that is zero)
  Element element;
  int64_t channels, height, width;
  int64_t batch_stride, channel_stride, row_stride, column_stride;
};

// A strided matrix.
struct Matrix {
  void* data;
  Element element;
  int64_t rows, columns;
  int64_t row_stride, column_stride;
};

// One axis of the bilinear resize: output i = (1 - weight[i]) input[low[i]] + weight[i] input[high[i]].
struct Axis {
  int64_t input, output;
  const int64_t* low;
  const int64_t* high;
  const double* weight;
  // The products that sums of squares of a resized map need, at the input's size (U^T U is tridiagonal, U^T 1 its row
  // sums):
  const double* sum;      // input: sum over outputs of each input's share
  const double* square;   // input: sum over outputs of share^2
  const double* product;  // input: sum over outputs of share(i - 1) share(i); [0] unused
};

enum class Resize : int { none, up, down, empty };  // up: the source has fewer pixels; empty: it has none

struct PairView {
  Feature source;
  Resize resize;
  const Axis* vertical;    // null for Resize::none
  const Axis* horizontal;  // null for Resize::none
  int64_t row;             // first of the pair's rows among the stacked source channels of the layer
  int64_t size_index;      // which of the layer's distinct up-sized source sizes (Resize::up)
  bool needs_weight;       // this pair's weight gradient is wanted
};

// Everything of type `void*` below is of the computation's type T (float or double). "Panel matrix" (rows, columns):
// columns in panels of NR, each panel a dense (rows, NR) array; columns past the last are zero.
struct Layer {
  int64_t batch, channels, pixels, width;  // of the target
  int64_t pair_count;
  const PairView* pairs;
  int64_t rows;  // stacked source channels, each pair padded to a multiple of the kernel's unit
  int64_t group_count;
  const int64_t* groups;  // group_count + 1: first pair of each group. A group's first row is a multiple of NR
  int64_t up_sizes;       // distinct sizes of sources with fewer pixels than the target
  Feature target;
  Feature target_gradient;
  const void* weight_rows;     // panel matrix (rows, channels): W
  const void* weight_columns;  // panel matrix (channels, rows): W^T
  const void* bias;            // (rows,)
  const void* alpha;           // (batch, rows): 2 alpha
  // The direction of a Hessian-vector product; the same forms, null where it is zero.
  Feature target_direction;
  const void* weight_direction_rows;
  const void* weight_direction_columns;
  const void* bias_direction;
  const void* alpha_direction;  // (batch, rows): 2 valpha
  // The Gram form may compute hT in float: V, which does not cancel, is part of it, and the caller's types are no
  // finer.
  bool single_product;
};

// What one chunk of the work leaves behind, summed by the host over chunks in a fixed order.
struct ChunkResult {
  void* weight;   // panel matrix (rows, channels) of T: dW, or hW; null if not wanted. Accumulates
  void* bias;     // (rows,) of double: db, or hb. Accumulates
  double* alpha;  // (samples of the chunk, rows): Q, or half of halpha. Accumulates
};

// What the double backward of batch normalisation reads: maps of one layout, and one value a channel.
struct BatchNormMaps {
  const void* adjoint;   // of the input's gradient
  const void* gradient;  // of the output
  const void* input;
  const void* mean;   // of a channel
  const void* scale;  // 1 / its standard deviation
  int64_t samples, channels, pixels;
};

// A dense (B, C, H, W) map of float32: NCHW or channels_last.
struct DenseMap {
  void* data;
  int64_t batch, channels, height, width;
  int64_t channel_stride, pixel_stride;
};

constexpr int winograd_positions = 16;  // of a 2x2 tile

// A panel matrix for each of the positions of a tile, and where the next panel and the next position begin.
struct Positions {
  float* data;
  int64_t panel, position;
};

// The taps of a 3x3 convolution as nine matrices of float32: rows are what is summed over, columns what comes out.
struct Taps {
  void* data;
  int64_t rows, columns;
  int64_t row_stride, column_stride, tap_stride;
  bool flipped;  // the last tap comes first
};

}  // namespace l2t_fast::cpu
