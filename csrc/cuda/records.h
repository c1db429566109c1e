// The table of problems that the kernels work through: plain numbers and pointers, the same on host and device.
#pragma once

#include <cstdint>

namespace l2t_fast::cuda {

inline constexpr int threads = 256;     // a block: 8 warps, 2 by 4, each with 32 or 64 rows by 32 columns of a tile
inline constexpr int tile_width = 128;  // columns of a block's tile; its rows are 128 or 64
inline constexpr int row_bytes = 128;   // of a tile along the sum: 32 floats or 64 bfloat16
inline constexpr int pipeline_bytes = 3 * 2 * tile_width * row_bytes;  // tiles on their way, and being worked on
// Of shared memory, beside tiles: see lines.h. With it a block takes the 99 KiB that GPUs of 8.6, 8.9 and 12.0 give
// one.
inline constexpr int reserved_bytes = 3072;

inline constexpr int longest_side = 1 << 15;   // a map with a side of so many pixels is resized tap by tap
inline constexpr int gram_height = 64;         // of the Gram form: channels of a tile
inline constexpr int rows_of_half = 64;        // of the Gram form: of one map, in products with T
inline constexpr int planes_of_block = 16;     // of the Gram form: T's channels that a block sums up or shrinks
inline constexpr int constants_of_block = 64;  // of the Gram form: channels whose constants a block sums up
inline constexpr int most_side = 1024;         // of the Gram form: a map's height and width, by the room for an axis
inline constexpr int weights_of_thread = 4;    // that it packs, or whose gradients it sums up
inline constexpr int sums_of_block = 32;       // that it adds up with all its warps, where each is of many numbers
inline constexpr int many_splits = 48;         // more of them are added up so

enum class Type : int32_t { float32, bfloat16, float16 };

// Strides are in elements. data is null where there is no tensor: a direction that is zero, a result nobody wants.
struct Map {  // (batch, channels, height, width)
  void* data;
  int64_t sample;
  int32_t channel, row, column;  // a sample's elements are fewer than 2^31
  Type type;
  bool channels_last;  // neighbours in memory are channels, not pixels
  int32_t at_once;     // elements in a row that have the tiles' type, are aligned, and live or not together: those of
                       // 16 bytes, of 8, or one
};

struct Matrix {  // (source channels, target channels)
  void* data;
  int64_t row, column;
  Type type;
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

struct Pair {
  Map source;
  Matrix weight, weight_direction, weight_result;
  Vector bias, bias_direction, bias_result;
  int32_t channels, height, width;  // of the source
  int32_t target;
  int32_t first_row;  // among the rows of its target
  // In the Gram form the rows of its group, for a target's size with T's before them, are cut pair by pair:
  int32_t first_tile;  // of those along a sum
  int32_t first_half;  // of halves of tiles in products with T
  int64_t column;      // first of its columns in the coefficients
  enum class Resize : int32_t { none, products, taps };
  Resize resize;  // none: the map lies as the target's tiles do; products: a small source, by the tensor cores
};

// Division by a number known beforehand, of numbers below 2^31: a product and a shift. magic is 2^shift over the
// divisor, rounded up, with so large a shift that the rounding does not show.
struct Divisor {
  uint32_t magic;
  int32_t shift;
};

// The Gram form of a target (gram.h): what its kernels leave for each other, float32, or where it says so of the tiles'
// type. Of two, the first is of the maps and coefficients, the second, in K2, of their directions; null what nobody
// needs.
struct Gram {
  float* coefficients[2];       // (batch, rows): 2 alpha, and of its direction
  float* plane_sums;            // (batch, channels + rows, 2): of T and vT, then of S~ and S~^2
  float* products[2];           // (shares, batch, channels + rows of the target's size, channels): T T^T, then S T^T
  float* small_products[2];     // (batch, rows of smaller sources, channels): S~ T^T
  void* weights[2];             // packed as Target::weight is, of the tiles' type: W, vW
  void* factors[2];             // (batch, channels, stride), of the tiles' type: W^T 2 alpha W, and what it moves by
  float* constant;              // (batch, channels): W^T 2 alpha b, or what it moves by
  int32_t shares;               // that the pixels of T T^T and S T^T are summed in
  int32_t own_rows;             // of sources of the target's size, which come first
  int32_t halves;               // of tiles, of rows of T and of these sources
  int32_t first_group, groups;  // no groups: the direct form
  bool adds;                    // dT is added to what the direct form has left of other pairs
};

// The sources of one size, whose pairs and rows lie together.
struct Group {
  int32_t target, first_pair, pairs;
  int32_t first_row, rows;
  int32_t height, width;
  int32_t halves;           // of tiles, of rows
  int32_t planes_of_block;  // that a block sums up
  int32_t stride;           // of a row of the following: the pixels, up to a multiple of 16 bytes; zeros beyond them
  void* shrunk[2];  // (batch, channels, stride): T U, vT U; in bfloat16 (2, batch, channels, stride), it and its rest.
                    // Null, as the next, for sources of the target's size
  void* grown;      // (batch, channels, stride): W^T 2 alpha S, or what it moves by; of the tiles' type
};

// A row is a source channel of one of the target's pairs, which lie together in the table. A column is a pixel of a
// sample; those of all samples of a part stand in one line.
struct Target {
  Map map, direction, result;
  int32_t channels, height, width;
  Divisor by_pixels, by_width;
  int32_t first_pair, pairs;
  int32_t rows;
  int32_t stride;                   // of a row of the packed weights
  bool keeps;                       // E is kept for the gradients
  void *weight, *weight_direction;  // packed: (rows, stride) of the tiles' type, zeros beyond the channels; for the
                                    // Gram form float32, not rounded
  float* weight_sums;               // (splits, rows, channels)
  float* row_sums;                  // (parts, tiles, slots, rows, 2): of D^2 and of E by sample, for each tile
  float* bias_sums;                 // (batch, rows): of E over a sample
  int32_t splits;
  int32_t part_samples, tiles, slots;  // of a part: samples, tiles of columns (in the Gram form of channels), samples
                                       // that a tile touches at most
  int32_t tiles_of_sample, step;       // tiles that end with their sample, and their columns; 0: they run over samples
  Gram gram;
};

// Some samples of a target, whose E is in memory at one time.
struct Part {
  int32_t target, number;
  int32_t first_sample, samples;
  int64_t stride;         // of a row of E: the columns, up to a multiple of 16 bytes; zeros beyond them
  void* differences[2];   // E, the factor of W and T; in K2 E' is, and E, the factor of their directions, is the second
  float* target_sums;     // (target_shares, channels, stride): of dT, where its sums over rows are cut into shares
  int32_t target_shares;  // 1: dT is written at once
};

// A stretch of items (thread blocks) of one kind.
struct Segment {
  enum class Kind : int32_t {
    pack,
    coefficients,
    differences,
    target,
    projection,
    target_planes,
    source_planes,
    shrink,
    constant,
    target_products,
    source_products,
    factor,
    grow,
    projections,
    gram_target,
    target_sums,
    squares,
    weight,
    bias,
    loss
  };
  Kind kind;
  int32_t first;   // number of its first item in the launch
  int32_t index;   // of a part (differences, target, projection, target_sums), a group (source_planes, source_products,
                   // shrink, grow), a pair (pack, weight, bias) or a target
  int32_t which;   // 1: of a direction (shrink, target_products, source_products, factor)
  int32_t target;  // that all of it belongs to; of the loss, none
};

struct Problem {
  int64_t batch;
  bool second;  // K2
  Coefficients alpha, alpha_direction;
  float* squares;  // Q or its derivative, (batch, columns) contiguous; null where nobody wants it
  int64_t columns;
  float* loss_sums;
  int32_t loss_count;
  float* loss;
  const Target* targets;
  const Pair* pairs;
  const Group* groups;
  const Part* parts;
  const Segment* segments;
};

enum class Kernel : int32_t {
  pack,
  differences,
  gradients,
  gram_planes,
  gram_products,
  gram_projections,
  gram_targets,
  finish
};

// Their products are of one kind.
constexpr bool is_gram(Kernel kernel) { return kernel >= Kernel::gram_planes && kernel <= Kernel::gram_targets; }

// What one launch works on: `count` segments of the table from `first` on. Few come with the launch, as the problem
// does: what a block asks for first it then has without waiting for memory.
struct Launch {
  static constexpr int few = 8;
  Kernel kernel;
  int32_t first, count;
  int32_t blocks;
  int32_t side;  // the longest of the targets' heights and widths, by which gram_planes takes shared memory
  Segment segments[few];
};

}  // namespace l2t_fast::cuda
