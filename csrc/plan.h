// The cost model: which algorithm a target layer takes, and what it costs. Knows sizes only.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace l2t_fast::plan {

enum class Algorithm { direct, gram };
enum class Work { gradient, hessian_vector };

struct Source {
  int64_t channels, height, width;
};

// One target layer and the sources it is paired with.
struct LayerShape {
  int64_t batch, channels, height, width;
  std::vector<Source> sources;
  bool needs_target, needs_weights;
};

// Multiplications and additions of one pass, counted as two; padding is not in it.
struct Cost {
  double flops = 0;
  double bytes = 0;  // that must move between memory and caches: every feature map in once, gradients out
};

// What is decided for one target layer.
struct LayerPlan {
  int64_t target;
  std::vector<int64_t> pairs;
  Algorithm algorithm;
  double flops, bytes;
  int64_t workspace;  // bytes held while the layer is computed, results not counted
};

inline int64_t pixels(const Source& source) { return source.height * source.width; }

// The Gram form's flops: `sums` for all but the target's result, which has a pass of its own.
struct GramFlops {
  double sums = 0, target = 0;
};

inline GramFlops gram_flops(const LayerShape& layer, Work work) {
  const double B = layer.batch, C = layer.channels, P = layer.height * layer.width;
  double rows = 0, cross = 0;
  for (const Source& source : layer.sources) {
    rows += source.channels;
    // X = S~ T^T costs the source's pixels where those are fewer, because the resize's adjoint is applied to T once.
    cross += 2 * B * std::min<double>(pixels(source), P) * source.channels * C;
  }
  const double square = 2 * B * P * C * C, small = 2 * B * rows * C * C;
  const bool hvp = work == Work::hessian_vector;
  GramFlops flops{.sums = hvp ? square * 1.5 + 2 * cross + 3 * small : square * 0.5 + cross + small};
  if (layer.needs_target) flops.target = hvp ? 2 * square + cross + 1.5 * small : square + cross + 0.5 * small;
  return flops;
}

inline Cost cost(const LayerShape& layer, Algorithm algorithm, Work work, int64_t element_size) {
  const bool hvp = work == Work::hessian_vector;
  const double B = layer.batch, C = layer.channels, P = layer.height * layer.width;
  double rows = 0, source_elements = 0;
  for (const Source& source : layer.sources) {
    rows += source.channels;
    source_elements += B * pixels(source) * source.channels;
  }
  Cost result;
  if (algorithm == Algorithm::direct) {
    const double product = 2 * B * P * C * rows;
    result.flops = hvp ? product * (3 + 2 * layer.needs_target + 2 * layer.needs_weights)
                       : product * (1 + layer.needs_target + layer.needs_weights);
  } else {
    const GramFlops flops = gram_flops(layer, work);
    result.flops = flops.sums + flops.target;
  }
  const double target_elements = B * P * C;
  result.bytes = element_size * (source_elements + target_elements * (1 + hvp + layer.needs_target));
  return result;
}

// In float's flops. Gram's sums cancel, so it computes in double, at half float's rate, all but hT; and its samples are
// whole, so it can use no more threads than samples. Measured: its many small steps cost a third more a flop than the
// plain products of the direct form.
inline double relative_time(const LayerShape& layer, Algorithm algorithm, Work work, int64_t threads) {
  if (algorithm == Algorithm::direct) return cost(layer, algorithm, work, 4).flops;
  const GramFlops flops = gram_flops(layer, work);
  const double in_double = 2, last = work == Work::hessian_vector ? 1 : in_double;
  const int64_t turns = (layer.batch + threads - 1) / std::max<int64_t>(threads, 1);
  const double idle = double(turns) * threads / std::max<int64_t>(layer.batch, 1);
  return 1.3 * idle * (in_double * flops.sums + last * flops.target);
}

// For float64 features no type is left in which Gram's sums may cancel.
inline Algorithm choose(const LayerShape& layer, Work work, bool float64, int64_t threads) {
  if (float64) return Algorithm::direct;
  const double direct = relative_time(layer, Algorithm::direct, work, threads);
  return relative_time(layer, Algorithm::gram, work, threads) < direct ? Algorithm::gram : Algorithm::direct;
}

}  // namespace l2t_fast::plan
