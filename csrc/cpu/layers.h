// Between the operators' tensors and the kernels' layers: stacks the pairs of a target, packs weights, sums up chunks.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "../matching.h"
#include "../plan.h"
#include "kernels.h"

namespace l2t_fast::cpu {

// The best kernels that both the build and the machine have (ATEN_CPU_CAPABILITY lowers the choice, as everywhere in
// PyTorch).
const Kernels& kernels();

// For tests: every layer takes `algorithm` instead of the planner's choice, until called with nothing.
void force_algorithm(std::optional<plan::Algorithm> algorithm);
// For tests: cut every layer into a chunk a thread, however small it is.
void force_chunks(bool always);

// One axis of a resize, and the memory its view points to.
struct ResizeAxis {
  ResizeAxis(int64_t input, int64_t output);
  ResizeAxis(const ResizeAxis&) = delete;
  ResizeAxis& operator=(const ResizeAxis&) = delete;

  std::vector<int64_t> low, high;
  std::vector<double> weight, sum, square, product;
  Axis view;
};

// One target, with the pairs that share it, ready for the kernels. Owns what its `layer` points to.
class StackedLayer {
 public:
  // `direction` is null for the loss and gradient.
  StackedLayer(const MatchingProblem& problem, const Direction* direction, const Needs& needs, int64_t target,
               std::vector<int64_t> pairs);
  StackedLayer(const StackedLayer&) = delete;
  StackedLayer& operator=(const StackedLayer&) = delete;

  plan::LayerPlan plan() const;
  // Writes the gradient, or with a direction the Hessian-vector product; returns the layer's part of the loss, or 0.
  double run(const Tangents& result);

 private:
  // How the work is cut: `chunks` pieces, each with its own scratch memory and sums.
  struct Schedule {
    Kernels::Run kernel;
    int64_t chunks, scratch_bytes, weight_size;
  };
  Schedule schedule() const;
  void stack();
  bool any_defined(const std::vector<at::Tensor>& tensors) const;
  bool needs_any_weight() const;
  const void* packed(const std::vector<at::Tensor>& weights, bool transposed);
  const void* stacked_bias(const std::vector<at::Tensor>& biases);
  const void* stacked_alpha(const at::Tensor& alpha);
  const Axis* axis(int64_t input, int64_t output);
  void write_alpha(const at::Tensor& sums, double factor, const at::Tensor& result) const;
  void write_weights(const at::Tensor& chunks, const std::vector<at::Tensor>& result) const;
  void write_biases(const at::Tensor& sums, const std::vector<at::Tensor>& results) const;
  double loss(const at::Tensor& squares) const;

  const Kernels& kernels_;
  const MatchingProblem& problem_;
  const Direction* direction_;
  const Needs& needs_;
  int64_t target_;
  std::vector<int64_t> pair_indices_;
  plan::LayerShape shape_;
  plan::Work work_;
  plan::Algorithm algorithm_;
  at::ScalarType type_;  // of the kernels' numbers: double for Gram
  int64_t unit_, panel_;

  Layer layer_{};
  std::vector<PairView> pairs_;
  std::vector<int64_t> groups_;
  std::vector<std::unique_ptr<ResizeAxis>> axes_;
  std::vector<at::Tensor> storage_;
};

}  // namespace l2t_fast::cpu
