// The double backward of batch normalisation in training mode: the boundary between the operator (csrc/ops) and the
// code that computes it on a device (csrc/cpu, csrc/cuda).
//
// With xh = (input - mean) scale, M values a channel and means over a channel's values written <.>, the backward is
//
//     dInput = w scale (g - <g> - xh <g xh>),   dWeight = M <g xh>,   dBias = M <g>
//
// For adjoints a of dInput, p of dWeight and q of dBias, and u = w scale, its transpose is, by g, input and w:
//
//     g:      u (a - <a> - xh <a xh>) + p xh + q
//     input:  scale (k - <k> - xh (<k xh> + u r)),   k = p g - u (a <g xh> + g <a xh>)
//     w:      scale M r,                             r = <a g> - <a> <g> - <a xh> <g xh>
#pragma once

#include <ATen/ATen.h>

#include <tuple>

namespace l2t_fast {

// adjoint, gradient, input: (B, C, ...) of one shape and layout, float32 or float64; weight, mean, scale,
// weight_adjoint, bias_adjoint: (C,) of the same dtype, contiguous; the undefined ones stand for 1, 0 and 0.
// Returns the three lines above. Same bits whatever the number of threads.
std::tuple<at::Tensor, at::Tensor, at::Tensor> batch_norm_double_backward_cpu(
    const at::Tensor& adjoint, const at::Tensor& gradient, const at::Tensor& input, const at::Tensor& weight,
    const at::Tensor& mean, const at::Tensor& scale, const at::Tensor& weight_adjoint, const at::Tensor& bias_adjoint);

// The same on the current stream of the tensors' GPU, of float32 alone; same bits from run to run.
std::tuple<at::Tensor, at::Tensor, at::Tensor> batch_norm_double_backward_cuda(
    const at::Tensor& adjoint, const at::Tensor& gradient, const at::Tensor& input, const at::Tensor& weight,
    const at::Tensor& mean, const at::Tensor& scale, const at::Tensor& weight_adjoint, const at::Tensor& bias_adjoint);

}  // namespace l2t_fast
