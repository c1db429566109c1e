// The choice between the direct form and the Gram form of a target.
#include <algorithm>
#include <cmath>

#include "plan.h"
#include "tile.h"

namespace l2t_fast::cuda {
namespace {

// Beside its arithmetic, what moves between kernels counts: so many operations a byte, by the rates of an H100 in the
// kernels of the direct form.
constexpr double operations_of_byte = 30;

double padded(double length, double to) { return std::ceil(length / to) * to; }

std::optional<bool> forced_gram;

}  // namespace

bool gram_pays(int64_t batch, const Target& target, const std::vector<Pair>& pairs, const Wishes& wishes,
               Products products, const Chip& chip) {
  if (forced_gram) return *forced_gram;
  // Operations are counted in those of tf32, of which bfloat16 makes two in the time of one. What takes part in sums
  // that cancel is made of three products of tf32, or of the maps' own, or (T U) of two of these.
  const bool half = products == Products::bfloat16;
  const double own_product = half ? 0.5 : 1, exact = half ? 0.5 : 3, nearly_exact = half ? 1 : 3;
  const double element = double(element_bytes(products)), terms = row_bytes / element;
  const double channels = padded(target.channels, gram_height);  // as tiles have them
  const double pixels = double(target.height) * target.width, columns = padded(pixels, tile_width);
  // Of sources of the target's size, behind T's own, and of smaller ones at theirs: rows as products with T pad them, a
  // pair to half a tile, and as the sums over them do. `floats` are those of smaller maps.
  double rows = 0, own_rows = padded(target.channels, rows_of_half), own_terms = 0, small = 0, small_terms = 0;
  double floats = 0, groups = 0, group_pixels = 0, resized = 0, group_rows = 0;
  bool weights = false, weights_move = false;
  for (size_t p = 0; p < pairs.size(); ++p) {
    const Pair& pair = pairs[p];
    weights |= pair.weight_result.data != nullptr;
    weights_move |= pair.weight_direction.data != nullptr;
    rows += pair.channels;
    const double as_rows = padded(pair.channels, rows_of_half), as_terms = padded(pair.channels, terms);
    if (pair.resize == Pair::Resize::none) {
      own_rows += as_rows;
      own_terms += as_terms;
      continue;
    }
    const double own = double(pair.height) * pair.width;
    const bool begins = !p || pairs[p - 1].height != pair.height || pairs[p - 1].width != pair.width;
    if (begins) group_rows = 0;
    small += (padded(group_rows + as_rows, tile_width) - padded(group_rows, tile_width)) * padded(own, terms);
    group_rows += as_rows;
    small_terms += as_terms * padded(own, tile_width);
    floats += pair.channels * own;
    if (!begins) continue;
    // the source pixels that a tile of columns takes of: the rows it crosses, and their neighbours
    const double crossed = double(tile_width) / target.width * pair.height / target.height + 2;
    resized += padded(std::min<double>(crossed, pair.height) * pair.width, terms);
    group_pixels += own;
    ++groups;
  }
  const double all_rows = padded(rows, tile_width);
  const bool maps = target.result.data, maps_move = target.direction.data;
  // Terms of the sums: of maps; W's products with them; factors; scaled weights; dT's products with maps.
  const double of_maps = 1 + maps_move;
  const double of_projections = 1 + maps_move + weights_move;
  const double of_sources = !maps ? 0 : wishes.second ? weights_move + wishes.coefficients : 1;
  const double of_factors = !maps ? 0 : wishes.second ? maps_move + weights_move + of_sources : 1;
  const double of_targets = !maps ? 0 : wishes.second ? maps_move + (of_sources > 0) : 1;
  // Of the direct form: beside D stands V in a tile, and half of it is multiplied also where nothing of it moves.
  const double of_differences = wishes.second ? 2 * (1 + weights_move) : 1;
  const double direct_products =
      of_differences + (wishes.second ? maps * (1 + weights_move) + weights * (1 + maps_move) : maps + weights);
  const double direct_maps = !maps && !weights ? 0 : (wishes.second ? 2 : 1) * (1 + maps + weights);  // E, by passes

  const double direct = own_product * 2 * channels * direct_products * all_rows * columns +
                        element * operations_of_byte * direct_maps * rows * pixels;
  const double own_floats = own_terms * pixels;
  const double arithmetic =
      2 * channels *
      (of_maps * (exact * padded(own_rows, tile_width) * pixels + nearly_exact * small) +
       exact * of_sources * small_terms + 3 * (of_projections + of_factors) * channels * all_rows +
       own_product * columns * (of_targets * channels + of_sources * own_terms + (of_sources > 0) * resized));
  const double bytes = element * (((3 + 2 * groups) * of_maps + maps + of_targets) * target.channels * pixels +
                                  (1 + of_maps + of_sources) * (own_floats + floats)) +
                       sizeof(float) * (1 + 2 * of_maps) * target.channels * rows;
  const double gram = arithmetic + operations_of_byte * bytes;
  constexpr int launches = 4;
  const bool is_worth_it = double(batch) * (direct - gram) > launches * chip.launch;
  // Memory is bounded by the features: the more of it is kept between the kernels, against the maps that are read, the
  // larger a share of the direct form has to be saved.
  const double kept = target.channels * (sizeof(float) * of_maps * (rows + target.channels + group_pixels) +
                                         element * (of_targets * target.channels + (of_sources > 0) * group_pixels));
  const double read = element * (of_maps * target.channels * pixels + own_floats + floats);
  const double saved = 1 - gram / direct;
  return is_worth_it && saved > 0.25 && saved > 0.75 * kept / read;
}

void force_gram(std::optional<bool> pays) { forced_gram = pays; }

}  // namespace l2t_fast::cuda
