// The boundary between the operators (csrc/ops: schema, autograd, checks) and the code that computes them on a device
// (csrc/cpu, csrc/cuda). What is computed, and why in this form, is derived in csrc/README.md.
//
// For pair p = (m, n), with T = targets[n] (B, C_n, P pixels), S~ = sources[m] resized to T's height and width
// (bilinear, half-pixel centres, no antialias; S itself when the sizes agree), W = weights[p] (C_m, C_n),
// b = biases[p] (C_m) or 0, and a = p's columns of alpha (B, C_m):
//
//     D = W T + b - S~        loss = sum over p, sample, channel and pixel of a D^2
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

namespace l2t_fast {

struct Pair {
  int64_t source;
  int64_t target;
  int64_t alpha_begin;  // first of the pair's C_m columns in the packed alpha
};

// Everything the loss depends on. Already checked by checked_problem: shapes agree, indices are in range, one device.
struct MatchingProblem {
  std::vector<at::Tensor> sources;  // (B, C_m, H_m, W_m), any strides; float64, float32, bfloat16 or float16
  std::vector<at::Tensor> targets;  // (B, C_n, H_n, W_n), any strides; several pairs may share one
  std::vector<at::Tensor> weights;  // one a pair: (C_m, C_n) or (C_m, C_n, 1, 1), any strides
  std::vector<at::Tensor> biases;   // one a pair: (C_m,), or undefined for none
  at::Tensor alpha;                 // (B, sum over pairs of C_m), any strides; its dtype is the type of computation:
                                    // float64 when every other tensor is float64, else float32 (and none is float64)
  std::vector<Pair> pairs;          // duplicates allowed; may be empty; B, H and W may be 0
};

// Which derivatives are wanted. Work that only an unwanted one needs should be skipped.
struct Needs {
  std::vector<bool> targets;  // one a target tensor
  std::vector<bool> weights;  // one a pair
  std::vector<bool> biases;   // one a pair; never true where the pair has no bias
  bool alpha = false;
};

// One tensor per differentiable input, in the order of MatchingProblem. As a result (gradient, Hessian-vector
// product): undefined where Needs says no, otherwise as empty_gradient makes it, written in full (a target no pair
// uses gets zeros). As a direction: an undefined tensor stands for zero; a defined one has its input's shape and
// type, any strides (expanded ones too: autograd hands those over).
struct Tangents {
  std::vector<at::Tensor> targets;
  std::vector<at::Tensor> weights;
  std::vector<at::Tensor> biases;
  at::Tensor alpha;
};

using Gradient = Tangents;
using Direction = Tangents;
using HessianVector = Tangents;

struct LossAndGradient {
  at::Tensor loss;  // scalar of alpha's dtype; zeros({}) when nothing is summed
  Gradient gradient;
};

// The type of a gradient of an input: its own, but for float16, whose range small gradients leave. A loss scale is to
// save them from that, and reaches them when they have been made: so they are float32 until then. Autograd hands its
// caller the input's type.
inline at::ScalarType gradient_type(at::ScalarType input) { return input == at::kHalf ? at::kFloat : input; }

// The memory a gradient of `input` comes back in: same sizes and device, dense, channels_last where the input is laid
// out so and contiguous otherwise. Not initialised. One definition for every device and for fake tensors.
inline at::Tensor empty_gradient(const at::Tensor& input) {
  const auto options = input.options().dtype(gradient_type(input.scalar_type()));
  return at::empty_symint(input.sym_sizes(), options, input.suggest_memory_format());
}

// K1. loss, and with E = 2 a D:  targets sum_m W^T E,  weights sum_b E T^T,  biases sum E,  alpha Q = sum over pixels
// of D^2. With no need set: the loss alone.
LossAndGradient matching_forward_cpu(const MatchingProblem& problem, const Needs& needs);
LossAndGradient matching_forward_cuda(const MatchingProblem& problem, const Needs& needs);

// K2. The derivative of K1's gradient along `direction` v. With V = W vT + vW T + vb and E' = 2 a V + 2 va D:
//     targets sum_m W^T E' + vW^T E,  weights sum_b E' T^T + E vT^T,  biases sum E',  alpha 2 sum over pixels of D V.
// (The Hessian is symmetric, so this is K1's double backward and its forward-mode derivative alike.)
HessianVector matching_hvp_cpu(const MatchingProblem& problem, const Direction& direction, const Needs& needs);
HessianVector matching_hvp_cuda(const MatchingProblem& problem, const Direction& direction, const Needs& needs);

// Gradients times a scalar that is in the GPU's memory too, where they lie; without a pass over them where it is one.
// False, and nothing done, if some have no kernel: they are dense, of float32 or bfloat16.
bool scale_in_place_cuda(at::TensorList tensors, const at::Tensor& factor);

// The number of the capture, into a CUDA graph, that the device's current stream takes part in; 0 without one.
int64_t capture_cuda(c10::DeviceIndex device);

}  // namespace l2t_fast
