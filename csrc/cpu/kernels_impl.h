// The kernel table of one instruction set. Included once by each kernels_<isa>.cpp.
#pragma once

#include "batch_norm.h"
#include "gram.h"
#include "kernels.h"
#include "winograd.h"

namespace l2t_fast::cpu::L2T_ISA {

template <class T>
void pack(const Matrix& matrix, bool transposed, void* panels, int64_t rows, int64_t row0, int64_t column0) {
  // A matrix is a block whose "pixels" are the packed rows.
  const int64_t row_count = transposed ? matrix.columns : matrix.rows,
                columns = transposed ? matrix.rows : matrix.columns;
  load_block<T>(matrix.data, matrix.element, transposed ? matrix.row_stride : matrix.column_stride,
                transposed ? matrix.column_stride : matrix.row_stride, columns, row_count,
                static_cast<T*>(panels) + row0 * panel<T>, rows * panel<T>, column0, round_up(columns, unit<T>));
}

template <class T>
void unpack(const Matrix& out, const void* panels, int64_t rows, int64_t row0) {
  for (int64_t c = 0; c < out.columns; c += panel<T>)
    store_block<T>(static_cast<char*>(out.data) + c * out.column_stride * element_size(out.element), out.element,
                   out.column_stride, out.row_stride, minimum(panel<T>, out.columns - c), out.rows,
                   static_cast<const T*>(panels) + c * rows + row0 * panel<T>);
}

constexpr Kernels table(const char* name) {
  return {
      .name = name,
      .unit_float = unit<float>,
      .unit_double = unit<double>,
      .panel_float = panel<float>,
      .panel_double = panel<double>,
      .pack_float = pack<float>,
      .pack_double = pack<double>,
      .unpack_float = unpack<float>,
      .unpack_double = unpack<double>,
      .direct_scratch_float = direct_scratch<float>,
      .direct_scratch_double = direct_scratch<double>,
      .gram_scratch = gram_scratch,
      .direct_forward_float = direct_forward<float>,
      .direct_forward_double = direct_forward<double>,
      .gram_forward = gram_forward,
      .direct_hvp_float = direct_hvp<float>,
      .direct_hvp_double = direct_hvp<double>,
      .gram_hvp = gram_hvp,
      .batch_norm_sums_rows_float = batch_norm_sums_rows<float>,
      .batch_norm_sums_rows_double = batch_norm_sums_rows<double>,
      .batch_norm_sums_planes_float = batch_norm_sums_planes<float>,
      .batch_norm_sums_planes_double = batch_norm_sums_planes<double>,
      .batch_norm_apply_rows_float = batch_norm_apply_rows<float>,
      .batch_norm_apply_rows_double = batch_norm_apply_rows<double>,
      .batch_norm_apply_planes_float = batch_norm_apply_planes<float>,
      .batch_norm_apply_planes_double = batch_norm_apply_planes<double>,
      .winograd_stage = winograd_stage,
      .winograd_input = winograd_input,
      .winograd_gradient = winograd_gradient,
      .winograd_weight = winograd_weight,
      .winograd_product = winograd_product,
      .winograd_outer_product = winograd_outer_product,
      .winograd_output = winograd_output,
      .winograd_weight_gradient = winograd_weight_gradient,
  };
}

}  // namespace l2t_fast::cpu::L2T_ISA
