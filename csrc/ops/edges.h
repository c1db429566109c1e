// What a running backward pass asks of a node.
#pragma once

#include <torch/csrc/autograd/custom_function.h>

#include <vector>

namespace l2t_fast {

// Whether it wants the derivatives by a node's inputs. Those that are there have an edge each, in their order, the
// first of them edge number `edge`.
inline std::vector<bool> wanted_now(const torch::autograd::AutogradContext* ctx, const std::vector<bool>& there,
                                    size_t edge) {
  std::vector<bool> wanted;
  for (const bool is_there : there) wanted.push_back(is_there && ctx->needs_input_grad(edge++));
  return wanted;
}

}  // namespace l2t_fast
