// The table of problems that the kernels work through: plain numbers and pointers, the same on host and device.
#pragma once

#include <cstdint>

namespace l2t_fast::cuda {

inline constexpr int tile_size = 64;         // rows, pixels and channels alike
inline constexpr int threads = 128;          // a block: 4 warps, 2 by 2, each with 32 by 32 of a tile's products
inline constexpr int channel_blocks = 2;     // tiles of channels whose sums one item keeps in registers
inline constexpr int reserved_bytes = 3072;  // of shared memory, beside tiles: struct Small in kernel.h

enum class Type : int32_t { float32, bfloat16, float16 };

// Strides are in elements. data is null where there is no tensor: a direction that is zero, a result nobody wants.
struct Map {  // (batch, channels, height, width)
  void* data;
  int64_t sample, channel, row, column;
  Type type;
  bool channels_last;  // neighbours in memory are channels, not pixels
  bool vectors;        // 16 bytes in a row have the tiles' type, are aligned, and live or not together
};

struct Matrix {  // (source channels, target channels)
  void* data;
  int64_t row, column;
  Type type;
  bool vectors;
};

struct Vector {
  void* data;
  int64_t step;
  Type type;
};

struct Coefficients {  // (batch, source channels of all pairs), float32
  const float* data;
  int64_t sample, column;
};

struct Target {
  Map map, direction, result;
  int32_t channels, height, width;
  int32_t first_pair, pairs;  // its own lie together in the table
};

struct Pair {
  Map source;
  Matrix weight, weight_direction, weight_result;
  Vector bias, bias_direction, bias_result;
  int32_t channels, height, width;  // of the source
  int32_t target;
  int64_t column;       // first of its columns in the coefficients
  int64_t weight_sums;  // where its partial sums of weight_result begin: (runs, row blocks, channel blocks, 64, 64)
  int64_t bias_sums, loss_sums;  // (runs, row blocks, 64) and (runs, row blocks)
  int32_t runs;
};

// A stretch of items (thread blocks) of one kind.
struct Segment {
  enum class Kind : int32_t { target, projection, weight, bias, loss };
  Kind kind;
  int32_t first;   // number of its first item in the launch
  int32_t index;   // of the target or pair
  int32_t groups;  // of channel blocks
};

struct Problem {
  int64_t batch;
  Coefficients alpha, alpha_direction;
  float* squares;  // Q or its derivative, (batch, columns) contiguous; null where nobody wants it
  int64_t columns;
  float *weight_sums, *bias_sums, *loss_sums;  // partial sums
  int32_t loss_count;
  float* loss;
  const Target* targets;
  const Pair* pairs;
  const Segment* segments;
};

// What one launch works on: `count` segments of the table from `first` on.
struct Launch {
  int32_t first, count;
  int32_t blocks;
  int32_t hold;  // targets of so many channel blocks or fewer keep one operand's tiles for the whole item
  int64_t shared_bytes;
};

}  // namespace l2t_fast::cuda
