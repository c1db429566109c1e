// The 3x3 convolution of stride 1 and padding 1, and its gradients, in Winograd's form F(2x2, 3x3): the boundary
// between the operators (csrc/ops) and the code that computes them (csrc/cpu).
//
// A tile is 2x2 pixels of the output, which depend on the 4x4 patch of the input around it. Patch d and taps g become
// sixteen numbers each, whose products, summed over the input's channels, become the tile:
//
//     y = A^T [ (G g G^T) . (B^T d B) ] A
//
//           1  0 -1  0          1    0    0
//     B^T = 0  1  1  0     G = 1/2  1/2  1/2      A^T = 1  1  1  0
//           0 -1  1  0         1/2 -1/2  1/2            0  1 -1 -1
//           0  1  0 -1          0    0    1
//
// So a pixel takes 4 multiplications for an input channel and an output channel, not 9. Every entry is 0, 1, -1 or 1/2:
// rounding is that of an ordinary convolution, relative to the largest value of a patch (the larger forms, F(4x4, 3x3)
// and up, lose digits). An infinity, or a value near the largest float, makes NaN of its whole patch. Position by
// position the sums are matrix products,
//
//     m (tiles, columns) = v (tiles, depth) u (depth, columns)
//
// The gradient of the input is the same convolution of the output's gradient, with channels exchanged and taps in
// reverse order. The gradient of the taps is the transpose by g:
//
//     dg = G^T [ sum over tiles of (A dy A^T) . (B^T d B) ] G
//
// (Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016.)
#pragma once

#include <ATen/ATen.h>

namespace l2t_fast {

// input (B, C, H, W) and weight (C_out, C_in, 3, 3): float32, each dense in NCHW or channels_last; bias (C_out,)
// contiguous or undefined. Returns (B, C_out, H, W) in the layout of the input. `transposed`: input is the gradient of
// an output, and what is returned is that of its input, (B, C_in, H, W). Same bits whatever the number of threads.
at::Tensor convolution3x3_cpu(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& bias,
                              bool transposed);

// gradient (B, C_out, H, W), input (B, C_in, H, W), as above. Returns (C_out, C_in, 3, 3) in the layout of the input.
// Same bits whatever the number of threads.
at::Tensor convolution3x3_weight_gradient_cpu(const at::Tensor& gradient, const at::Tensor& input);

}  // namespace l2t_fast
