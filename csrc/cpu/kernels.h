// The kernels of one instruction set, as a table of functions; chosen at run time.
#pragma once

#include <cstddef>
#include <cstdint>

#include "layer.h"

namespace l2t_fast::cpu {

struct Kernels {
  const char* name;
  int64_t unit_float, unit_double;    // a pair's rows are padded to a multiple of this
  int64_t panel_float, panel_double;  // columns of a panel (NR)

  // Copies `matrix` into rows row0.. and columns column0.. of a panel matrix with `rows` rows. column0 is a multiple of
  // the unit.
  void (*pack_float)(const Matrix& matrix, bool transposed, void* panels, int64_t rows, int64_t row0, int64_t column0);
  void (*pack_double)(const Matrix& matrix, bool transposed, void* panels, int64_t rows, int64_t row0, int64_t column0);

  // The inverse for rows row0 .. of a panel matrix: writes all of `out`.
  void (*unpack_float)(const Matrix& out, const void* panels, int64_t rows, int64_t row0);
  void (*unpack_double)(const Matrix& out, const void* panels, int64_t rows, int64_t row0);

  // Direct: the pixels [begin, end) of all samples, counted through the batch. Gram: the samples [begin, end); it
  // always computes in double. `forward` is the loss and gradient, `hvp` the Hessian-vector product; each needs
  // `scratch` bytes.
  using Run = void (*)(const Layer& layer, int64_t begin, int64_t end, const ChunkResult& result, void* scratch);
  size_t (*direct_scratch_float)(const Layer& layer, bool hvp);
  size_t (*direct_scratch_double)(const Layer& layer, bool hvp);
  size_t (*gram_scratch)(const Layer& layer);
  Run direct_forward_float, direct_forward_double, gram_forward;
  Run direct_hvp_float, direct_hvp_double, gram_hvp;

  // Double backward of batch normalisation: five sums a channel (see batch_norm.h) are added to `sums`, then both
  // results are combinations of the maps with seven coefficients a channel. `rows`: channels innermost, [begin, end)
  // counts batch x pixels; `planes`: pixels innermost, [begin, end) counts channels.
  using Sums = void (*)(const BatchNormMaps& maps, int64_t begin, int64_t end, double* sums);
  using Apply = void (*)(const BatchNormMaps& maps, const void* coefficients, int64_t begin, int64_t end,
                         void* gradient_bar, void* input_bar);
  Sums batch_norm_sums_rows_float, batch_norm_sums_rows_double, batch_norm_sums_planes_float,
      batch_norm_sums_planes_double;
  Apply batch_norm_apply_rows_float, batch_norm_apply_rows_double, batch_norm_apply_planes_float,
      batch_norm_apply_planes_double;

  // The steps of a 3x3 convolution (winograd.h says what they compute). Each is of one panel of channels; tile rows are
  // counted through the batch; the sixteen positions of a tile lie position_stride elements apart.
  int64_t (*winograd_stage)(int64_t width);  // floats of `stage`
  using Transform = void (*)(const DenseMap& map, int64_t channel, int64_t begin, int64_t end, float* tiles,
                             int64_t position_stride, float* stage);
  Transform winograd_input, winograd_gradient;
  void (*winograd_weight)(const Taps& taps, int64_t column, float* weight, int64_t position_stride, float* stage);
  // C (rows, columns) = A (rows, depth) B (depth, columns), and rows [first, last) of C += A^T B, for every position.
  void (*winograd_product)(int64_t rows, int64_t depth, int64_t columns, const Positions& a, const Positions& b,
                           const Positions& c);
  void (*winograd_outer_product)(int64_t depth, int64_t first, int64_t last, int64_t columns, const Positions& a,
                                 const Positions& b, const Positions& c);
  void (*winograd_output)(const DenseMap& map, const float* bias, int64_t channel, int64_t begin, int64_t end,
                          const float* sums, int64_t position_stride, float* stage);
  void (*winograd_weight_gradient)(const Taps& taps, int64_t column, int64_t first, int64_t last, const float* sums,
                                   int64_t position_stride, float* stage);
};

extern const Kernels portable_kernels;
extern const Kernels avx2_kernels;    // where the build defines L2T_FAST_AVX2
extern const Kernels avx512_kernels;  // where it defines L2T_FAST_AVX512

}  // namespace l2t_fast::cpu
