#include "plan.h"

#include <algorithm>

namespace l2t_fast::cuda {
namespace {

// Items of projections there should be for each processor: so many that an uneven end costs little, and so few
// that their partial sums are small beside the maps.
constexpr int64_t items_per_processor = 6;
constexpr int64_t fewest_pixels = 256;  // of a run: below that, writing the partial sums is what takes the time

int64_t cut(int64_t length, int64_t into) { return (length + into - 1) / into; }
int64_t tiles_of(int64_t length) { return cut(length, tile_size); }

struct Cut {
  Segment segment;
  int64_t items;
  int64_t work;  // of an item, in products of tiles
};

class Planner {
 public:
  Planner(int64_t batch, const std::vector<Target>& targets, std::vector<Pair>& pairs, bool wants_squares, bool second,
          Products products, const Chip& chip)
      : batch_(batch),
        targets_(targets),
        pairs_(pairs),
        wants_squares_(wants_squares),
        second_(second),
        chip_(chip),
        slot_bytes_((second ? 2 : 1) * tile_size * tile_size * element_bytes(products)),
        fixed_bytes_(reserved_bytes + std::max<int64_t>(slot_bytes_, tile_size * tile_size * sizeof(float))) {}

  Plan plan() {
    for (Pair& pair : pairs_) place_sums(pair);
    // Targets of one tile of channels need less shared memory, so that more blocks run at once: a launch of their own.
    std::vector<Cut> narrow, wide;
    for (size_t n = 0; n < targets_.size(); ++n) cut_target(int(n), channel_tiles(int(n)) > 1 ? wide : narrow);
    launch(wide, hold_of_wide());
    launch(narrow, 1);
    add_sums();
    return std::move(plan_);
  }

 private:
  int64_t channel_tiles(int target) const { return tiles_of(targets_[target].channels); }
  int64_t pixels(int target) const { return int64_t(targets_[target].height) * targets_[target].width; }
  bool wants_sums(const Pair& pair) const { return pair.weight_result.data || pair.bias_result.data; }
  bool projected(const Pair& pair) const { return !second_ || wants_squares_ || wants_sums(pair); }

  // Blocks of channels that a projection's items are cut into; without dW one is enough for Q.
  int64_t groups(const Pair& pair) const {
    return pair.weight_result.data ? std::max<int64_t>(1, cut(channel_tiles(pair.target), channel_blocks)) : 1;
  }

  // Products of tiles for each tile of pixels: those of D, and those with E.
  int64_t products(const Pair& pair) const {
    const int64_t all = channel_tiles(pair.target);
    return all + (pair.weight_result.data ? std::min<int64_t>(all, channel_blocks) : 0) + 1;
  }

  int64_t work_of_sample(const Pair& pair) const { return pixels(pair.target) * products(pair); }

  void place_sums(Pair& pair) {
    if (!projected(pair)) return;
    if (!total_work_)
      for (const Pair& each : pairs_)
        if (projected(each)) total_work_ += work_of_sample(each) * batch_ * tiles_of(each.channels) * groups(each);
    const int64_t of_item = total_work_ / (items_per_processor * chip_.processors);
    const int64_t samples = std::clamp(of_item / work_of_sample(pair), cut(fewest_pixels, pixels(pair.target)),
                                       std::max(batch_, cut(fewest_pixels, pixels(pair.target))));
    pair.runs = int32_t(cut(batch_, samples));
    const int64_t parts = pair.runs * tiles_of(pair.channels);
    pair.weight_sums = plan_.weight_sums;
    pair.bias_sums = plan_.bias_sums;
    pair.loss_sums = plan_.loss_sums;
    if (pair.weight_result.data) plan_.weight_sums += parts * channel_tiles(pair.target) * tile_size * tile_size;
    if (pair.bias_result.data) plan_.bias_sums += parts * tile_size;
    if (!second_) plan_.loss_sums += parts;
  }

  void cut_target(int index, std::vector<Cut>& cuts) const {
    const Target& target = targets_[index];
    int64_t row_tiles = 0;
    for (int p = target.first_pair; p < target.first_pair + target.pairs; ++p) {
      const Pair& pair = pairs_[p];
      row_tiles += tiles_of(pair.channels);
      if (!projected(pair)) continue;
      const int64_t steps = tiles_of(cut(batch_, pair.runs) * pixels(index));
      cuts.push_back({{Segment::Kind::projection, 0, p, int32_t(groups(pair))},
                      pair.runs * tiles_of(pair.channels) * groups(pair),
                      steps * products(pair)});
    }
    if (!target.result.data || !target.channels) return;
    const int64_t groups = cut(channel_tiles(index), channel_blocks);
    cuts.push_back({{Segment::Kind::target, 0, index, int32_t(groups)},
                    tiles_of(batch_ * pixels(index)) * groups,
                    row_tiles * (channel_tiles(index) + std::min<int64_t>(channel_tiles(index), channel_blocks) + 1)});
  }

  // A held target of k tiles of channels takes 2 k + 1 slots, one that is not held 4.
  int64_t shared_bytes(int64_t slots) const { return fixed_bytes_ + slots * slot_bytes_; }

  // As many as leave room for a second block on the processor, if that is possible at all.
  int hold_of_wide() const {
    const int64_t half = chip_.shared_per_processor / 2 - 1024;  // the driver keeps 1 KB a block for itself
    const int64_t limit = std::min(shared_bytes(4) <= half ? half : chip_.shared_per_block, chip_.shared_per_block);
    int hold = 1;
    while (shared_bytes(2 * (hold + 1) + 1) <= limit) ++hold;
    return hold;
  }

  // The hardware hands out blocks in order, as others end: the longest go first.
  void launch(std::vector<Cut>& cuts, int hold) {
    if (cuts.empty()) return;
    std::stable_sort(cuts.begin(), cuts.end(), [](const Cut& a, const Cut& b) { return a.work > b.work; });
    int64_t blocks = 0, slots = 3;
    const int first = int(plan_.segments.size());
    for (Cut& cut : cuts) {
      cut.segment.first = int32_t(blocks);
      blocks += cut.items;
      plan_.segments.push_back(cut.segment);
      const int target =
          cut.segment.kind == Segment::Kind::target ? cut.segment.index : pairs_[cut.segment.index].target;
      const int64_t tiles = channel_tiles(target);
      slots = std::max<int64_t>(slots, tiles <= hold ? 2 * tiles + 1 : 4);
    }
    plan_.launches.push_back({first, int32_t(cuts.size()), int32_t(blocks), hold, shared_bytes(slots)});
  }

  void add_sums() {
    int64_t blocks = 0;
    const int first = int(plan_.segments.size());
    const auto add = [&](Segment::Kind kind, size_t index, int64_t elements) {
      plan_.segments.push_back({kind, int32_t(blocks), int32_t(index), 1});
      blocks += cut(elements, threads);
    };
    for (size_t p = 0; p < pairs_.size(); ++p) {
      const Pair& pair = pairs_[p];
      if (pair.weight_result.data && targets_[pair.target].channels)
        add(Segment::Kind::weight, p, int64_t(pair.channels) * targets_[pair.target].channels);
      if (pair.bias_result.data) add(Segment::Kind::bias, p, pair.channels);
    }
    if (!second_) add(Segment::Kind::loss, 0, 1);
    plan_.sums = {first, int32_t(plan_.segments.size()) - first, int32_t(blocks), 0, threads * sizeof(float)};
  }

  const int64_t batch_;
  const std::vector<Target>& targets_;
  std::vector<Pair>& pairs_;
  const bool wants_squares_, second_;
  const Chip chip_;
  const int64_t slot_bytes_, fixed_bytes_;
  int64_t total_work_ = 0;
  Plan plan_;
};

}  // namespace

Plan make_plan(int64_t batch, const std::vector<Target>& targets, std::vector<Pair>& pairs, bool wants_squares,
               bool second, Products products, const Chip& chip) {
  return Planner(batch, targets, pairs, wants_squares, second, products, chip).plan();
}

}  // namespace l2t_fast::cuda
