// The choice between the direct form and the Gram form of a target.
#include <algorithm>

#include "plan.h"

namespace l2t_fast::cuda {
namespace {

// Beside its arithmetic, what moves between kernels counts: so many operations a byte, by the rates of an H100 in the
// kernels of the direct form.
constexpr double operations_of_byte = 30;

std::optional<bool> forced_gram;

}  // namespace

bool gram_pays(int64_t batch, const Target& target, const std::vector<Pair>& pairs, const Wishes& wishes,
               const Chip& chip) {
  if (forced_gram) return *forced_gram;
  const double channels = target.channels, pixels = double(target.height) * target.width;
  double rows = 0, own_rows = 0, small = 0, resized = 0, groups = 0;
  bool weights = false, weights_move = false;
  for (size_t p = 0; p < pairs.size(); ++p) {
    const Pair& pair = pairs[p];
    weights |= pair.weight_result.data != nullptr;
    weights_move |= pair.weight_direction.data != nullptr;
    rows += pair.channels;
    if (pair.resize == Pair::Resize::none) {
      own_rows += pair.channels;
      continue;
    }
    small += double(pair.channels) * pair.height * pair.width;
    if (p && pairs[p - 1].height == pair.height && pairs[p - 1].width == pair.width) continue;
    // the source pixels that a tile of columns takes of: the rows it crosses, and their neighbours
    const double crossed = double(tile_width) / target.width * pair.height / target.height + 2;
    resized += std::min<double>(crossed, pair.height) * pair.width + row_bytes / sizeof(float);
    ++groups;
  }
  const bool maps = target.result.data, maps_move = target.direction.data;
  // Terms of the sums: of maps; W's products with them; factors; scaled weights; dT's products with maps.
  const double of_maps = 1 + maps_move;
  const double of_projections = 1 + maps_move + weights_move;
  const double of_sources = !maps ? 0 : wishes.second ? weights_move + wishes.coefficients : 1;
  const double of_factors = !maps ? 0 : wishes.second ? maps_move + weights_move + of_sources : 1;
  const double of_targets = !maps ? 0 : wishes.second ? maps_move + (of_sources > 0) : 1;
  const double direct_products =
      wishes.second ? 1 + maps_move + weights_move + maps * (1 + weights_move) + weights * (1 + maps_move)
                    : 1 + maps + weights;
  const double direct_maps = wishes.second ? 2 * (1 + maps + weights) : 1 + maps + weights;  // E, written and read

  const double direct = (2 * channels * direct_products + 4 * operations_of_byte * direct_maps) * rows * pixels;
  const double arithmetic =
      3 * 2 * channels *
          (of_maps * ((channels + own_rows) * pixels + small) + of_sources * small +
           (of_projections + of_factors) * channels * rows) +
      2 * channels * pixels * (of_targets * channels + of_sources * own_rows + (of_sources > 0) * resized);
  const double bytes =
      4 * (((3 + 2 * groups) * of_maps + maps + of_targets) * channels * pixels +
           (1 + of_maps + of_sources) * (own_rows * pixels + small) + (1 + 2 * of_maps) * channels * rows);
  const double gram = arithmetic + operations_of_byte * bytes;
  constexpr int launches = 4;
  return gram<0.75 * direct&& double(batch) * (direct - gram)> launches * chip.launch;
}

void force_gram(std::optional<bool> pays) { forced_gram = pays; }

}  // namespace l2t_fast::cuda
