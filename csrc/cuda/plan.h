// How the work of a call is cut: parts of targets, items, launches, workspace. Knows records, no torch type.
#pragma once

#include <optional>
#include <vector>

#include "runner.h"

namespace l2t_fast::cuda {

// Where a record's pointers begin in the workspace, in bytes.
struct Places {
  struct Gram {
    int64_t coefficients[2] = {-1, -1}, plane_sums = -1, products[2] = {-1, -1}, small_products[2] = {-1, -1},
            weights[2] = {-1, -1}, factors[2] = {-1, -1}, constant = -1;
  };

  int64_t weight = -1, weight_direction = -1, weight_sums = -1, row_sums = -1, bias_sums = -1;
  Gram gram;
};

struct GroupPlaces {
  int64_t shrunk[2] = {-1, -1}, grown = -1;
};

struct Plan {
  std::vector<Part> parts;  // their `differences` hold places, as offsets, until bind()
  std::vector<Segment> segments;
  std::vector<Launch> launches;
  std::vector<Places> places;             // one a target
  std::vector<GroupPlaces> group_places;  // one a group
  int64_t loss_sums = 0, loss_count = 0;
  int64_t bytes = 0;  // of the workspace
};

struct Wishes {
  bool second;        // Hessian-vector product instead of loss and gradient
  bool coefficients;  // the coefficients move
  bool differences;   // E, the factor of directions, is wanted beside E': some direction of a map or weight is not zero
};

// What a call computes, in the order of the table. Targets with groups take the Gram form.
struct Records {
  std::vector<Target> targets;
  std::vector<Pair> pairs;
  std::vector<Group> groups;
  int64_t bytes_of_maps = 0;  // that are read
};

// Whether the Gram form takes clearly less than the direct one, for those of a target's pairs that can take it, sorted
// by the sources' sizes, the largest first.
bool gram_pays(int64_t batch, const Target& target, const std::vector<Pair>& pairs, const Wishes& wishes,
               Products products, const Chip& chip);

// For tests: the answer of gram_pays from now on, or its own again.
void force_gram(std::optional<bool> pays);

// Sets what the records say of the cut; every target has pairs, rows, pixels and samples.
Plan make_plan(int64_t batch, Records& records, const Wishes& wishes, Products products, const Chip& chip);

// Offsets become addresses.
void bind(Plan& plan, Records& records, unsigned char* workspace);

}  // namespace l2t_fast::cuda
