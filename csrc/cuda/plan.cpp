#include "plan.h"

#include <algorithm>
#include <utility>

namespace l2t_fast::cuda {
namespace {

// Of E, in memory at one time: the more, the fewer launches wait for their last blocks, if less of it is read from the
// L2 cache. Memory is bounded by the maps that are read and by the E of all pairs, which plain PyTorch holds several
// times: it may be a share of either; but never so little that processors are idle.
constexpr int64_t most_differences = int64_t(80) << 20;
constexpr int64_t share_of_maps = 6;
constexpr int64_t share_of_differences = 12;
constexpr int64_t most_columns = int64_t(1) << 30;  // of a part: kernels count them in 32 bits
constexpr int64_t weights_of_block = threads * weights_of_thread;
constexpr int64_t fewest_tiles = 10;  // of a sum that is split: below that, writing the partial sums takes the time

int64_t cut(int64_t length, int64_t into) { return (length + into - 1) / into; }

struct Cut {
  Segment segment;
  int64_t items;
  int64_t work;  // of an item, in products of tiles
};

class Planner {
 public:
  Planner(int64_t batch, Records& records, const Wishes& wishes, Products products, const Chip& chip)
      : batch_(batch),
        targets_(records.targets),
        pairs_(records.pairs),
        groups_(records.groups),
        wishes_(wishes),
        chip_(chip),
        element_(element_bytes(products)),
        bytes_of_maps_(records.bytes_of_maps) {}

  Plan plan() {
    plan_.places.resize(targets_.size());
    for_each(true, [this](Target& target, Places& places) {
      place(target, places);
      place_gram(target, places);
      place_weights(target, places);
    });
    for_each(false, [this](Target& target, Places& places) { place(target, places); });
    limit_differences();
    for_each(false, [this](Target& target, Places& places) { place_direct(target, places); });
    pack();
    const int64_t begin = plan_.bytes;
    for_each(false, [this](Target& target, Places& places) { place_weights(target, places); });
    cut_into_phases();
    const int64_t end = std::exchange(plan_.bytes, begin);
    place_products();
    plan_.bytes = std::max(plan_.bytes, end);
    gram();
    finish();
    return std::move(plan_);
  }

 private:
  int64_t resident() const { return 2 * chip_.processors; }  // blocks that run at a time, on sm_90
  int64_t terms() const { return row_bytes / element_; }     // of a tile
  bool is_bfloat16() const { return element_ == element_bytes(Products::bfloat16); }
  int64_t columns_of_tile() const { return wishes_.second ? tile_width / 2 : tile_width; }
  static int64_t height(const Target& target) { return target.channels > 64 ? 128 : 64; }  // of a tile of gradients
  static int64_t pixels(const Target& target) { return int64_t(target.height) * target.width; }
  int kept() const { return wishes_.second && wishes_.differences ? 2 : 1; }

  static bool takes_gram(const Target& target) { return target.gram.groups > 0; }

  // Whether some pair of the target's has such a matrix.
  bool any(const Target& target, Matrix Pair::* matrix) const {
    for (int p = target.first_pair; p < target.first_pair + target.pairs; ++p)
      if ((pairs_[p].*matrix).data) return true;
    return false;
  }
  bool wants_weights(const Target& target) const { return any(target, &Pair::weight_result); }

  int64_t take(int64_t bytes) {
    const int64_t at = plan_.bytes;
    plan_.bytes += cut(bytes, 256) * 256;
    return at;
  }

  int64_t stride_of(int64_t columns) const { return cut(columns * element_, 16) * 16 / element_; }
  int64_t bytes_of(const Target& target, int64_t samples) const {
    return cut(stride_of(samples * pixels(target)) * target.rows * element_, 256) * 256;
  }

  static Divisor divisor(int64_t by) {
    int shift = 31;
    while (int64_t(1) << (shift - 31) < by) ++shift;
    return {uint32_t(((uint64_t(1) << shift) + uint64_t(by) - 1) / uint64_t(by)), shift};
  }

  void place(Target& target, Places& places) {
    target.by_pixels = divisor(pixels(target));
    target.by_width = divisor(target.width);
    int32_t row = 0;
    for (int p = target.first_pair; p < target.first_pair + target.pairs; ++p) {
      pairs_[p].first_row = row;
      row += pairs_[p].channels;
    }
    target.rows = row;
    target.stride = int32_t(stride_of(target.channels));
    target.keeps = !takes_gram(target) && target.channels > 0 && (target.result.data || wants_weights(target));
    places.bias_sums = take_floats(batch_ * target.rows);
  }

  void place_weights(const Target& target, Places& places) {
    const int64_t element = takes_gram(target) ? int64_t(sizeof(float)) : element_;
    const int64_t bytes = std::max<int64_t>(1, int64_t(target.rows) * target.stride * element);
    places.weight = take(bytes);
    if (any(target, &Pair::weight_direction)) places.weight_direction = take(bytes);
  }

  template <class Place>
  void for_each(bool gram, const Place& place) {
    for (size_t n = 0; n < targets_.size(); ++n)
      if (takes_gram(targets_[n]) == gram) place(targets_[n], plan_.places[n]);
  }

  int64_t take_floats(int64_t count) { return take(count * int64_t(sizeof(float))); }
  int64_t take_row_sums(const Target& target, int64_t parts) {
    return take_floats(parts * target.tiles * target.slots * target.rows * 2);
  }

  // Tiles of one sample take a shorter way, if every sample has such; it pays unless much of a tile is left empty. The
  // part's last one writes the zeros between the last column and the stride too, so there has to be room in it.
  int32_t tiles_of_sample(int64_t pixels) const {
    if (4 * pixels < 3 * columns_of_tile()) return 0;
    const auto tiles = int32_t(cut(pixels, columns_of_tile()));
    const int64_t of_last = pixels - int64_t(tiles - 1) * step_of_sample(pixels, tiles), vector = 16 / element_;
    const int64_t most_zeros = pixels % vector ? vector - 1 : 0;
    return of_last + most_zeros <= columns_of_tile() ? tiles : 0;
  }
  static int32_t step_of_sample(int64_t pixels, int32_t tiles) { return int32_t(cut(cut(pixels, tiles), 8) * 8); }

  void place_direct(Target& target, Places& places) {
    const int64_t per_sample = bytes_of(target, 1) * kept();
    const int64_t samples =
        std::min(target.keeps ? bytes_of_differences_ / per_sample : batch_, most_columns / pixels(target));
    const int64_t fewest_parts = cut(batch_, std::clamp<int64_t>(samples, 1, batch_));
    target.part_samples = int32_t(cut(batch_, fewest_parts));
    const int64_t parts = cut(batch_, target.part_samples);
    target.tiles_of_sample = tiles_of_sample(pixels(target));
    if (target.tiles_of_sample) {
      target.step = step_of_sample(pixels(target), target.tiles_of_sample);
      target.tiles = target.part_samples * target.tiles_of_sample;
      target.slots = 1;
    } else {
      target.step = int32_t(columns_of_tile());
      target.tiles = int32_t(cut(target.part_samples * pixels(target), target.step));
      target.slots = int32_t(std::min<int64_t>(target.part_samples, (target.step - 1) / pixels(target) + 2));
    }
    places.row_sums = take_row_sums(target, parts);

    if (target.keeps && wants_weights(target)) {
      // so many that, with those of dT, every processor has its two blocks and none waits for a third
      const int64_t channel_tiles = cut(target.channels, height(target));
      const int64_t of_target =
          target.result.data ? channel_tiles * cut(target.part_samples * pixels(target), tile_width) : 0;
      const int64_t wanted = std::max<int64_t>(resident() - of_target, chip_.processors);
      const int64_t sum = cut(target.part_samples * pixels(target), terms());
      target.splits = int32_t(std::clamp<int64_t>(wanted / (channel_tiles * cut(target.rows, tile_width)), 1,
                                                  std::max<int64_t>(1, sum / fewest_tiles)));
      places.weight_sums = take_floats(int64_t(target.splits) * target.rows * target.channels);
    }
  }

  static int64_t channel_tiles(const Target& target) { return cut(target.channels, gram_height); }
  static int64_t pixels(const Group& group) { return int64_t(group.height) * group.width; }
  bool is_small(const Group& group) const { return group.first_row >= targets_[group.target].gram.own_rows; }

  void place_gram(Target& target, Places& places) {
    Gram& gram = target.gram;
    const int64_t rows = target.rows, channels = target.channels;
    const auto end = groups_.begin() + gram.first_group + gram.groups;
    gram.own_rows = 0;
    gram.halves = int32_t(cut(channels, rows_of_half));
    for (auto group = end - gram.groups; group != end; ++group) {
      group->first_row = pairs_[group->first_pair].first_row;
      const bool own = group->height == target.height && group->width == target.width;
      int32_t tiles = 0;
      group->halves = own ? gram.halves : 0;
      for (int p = group->first_pair; p < group->first_pair + group->pairs; ++p) {
        pairs_[p].first_tile = tiles;
        pairs_[p].first_half = group->halves;
        tiles += int32_t(cut(pairs_[p].channels, terms()));
        group->halves += int32_t(cut(pairs_[p].channels, rows_of_half));
      }
      const Pair& last = pairs_[group->first_pair + group->pairs - 1];
      group->rows = last.first_row + last.channels - group->first_row;
      group->stride = int32_t(stride_of(pixels(*group)));
      // Of small maps more, as long as every processor has its blocks: what a block finds out first is the same for
      // all.
      const auto blocks = [&](int32_t planes) { return batch_ * cut(group->rows, planes); };
      group->planes_of_block = planes_of_block;
      while (group->planes_of_block * pixels(*group) < 1 << 13 && blocks(2 * group->planes_of_block) >= resident())
        group->planes_of_block *= 2;
      if (own) gram.own_rows = group->rows, gram.halves = group->halves;
    }
    // A sample's Q and sums of E have a part for each tile of channels.
    target.part_samples = int32_t(batch_);
    target.tiles_of_sample = int32_t(channel_tiles(target));
    target.tiles = int32_t(batch_ * target.tiles_of_sample);
    target.slots = 1;
    places.row_sums = take_row_sums(target, 1);
    target.splits =
        int32_t(std::clamp<int64_t>(resident() / (channel_tiles(target) * cut(rows, tile_width)), 1, batch_));
    if (wants_weights(target)) places.weight_sums = take_floats(target.splits * rows * channels);
    gram.shares = int32_t(std::clamp<int64_t>(chip_.processors / (batch_ * channel_tiles(target) * cut(gram.halves, 2)),
                                              1, std::max<int64_t>(1, cut(pixels(target), terms()) / fewest_tiles)));
    const Terms terms = terms_of(target);
    for (int which = 0; which < 2; ++which) {
      if (!which || wishes_.coefficients) places.gram.coefficients[which] = take_floats(batch_ * rows);
      if (is_bfloat16() && terms.sources && (!which || any(target, &Pair::weight_direction)))
        places.gram.weights[which] = take(rows * target.stride * element_);
    }
  }

  // What the Gram form's kernels leave for each other takes the place of what the direct form's, which come before
  // them, have left: so E may be as large as that, whatever else would allow.
  void limit_differences() {
    const int64_t begin = plan_.bytes;
    place_products();
    const int64_t of_products = plan_.bytes - begin;
    plan_.bytes = begin;
    int64_t all = 0, rows = 0;
    for (const Target& target : targets_) {
      all += bytes_of(target, batch_) * kept();
      rows = std::max<int64_t>(rows, target.rows);
    }
    const int64_t of_tiles = resident() * tile_width * std::min<int64_t>(rows, tile_width) * element_;
    bytes_of_differences_ =
        std::min(most_differences,
                 std::max({bytes_of_maps_ / share_of_maps, all / share_of_differences, of_tiles, of_products}));
  }

  void place_products() {
    plan_.group_places.clear();
    for_each(true, [this](Target& target, Places& places) { place_products(target, places.gram); });
  }

  void place_products(const Target& target, Places::Gram& places) {
    const Gram& gram = target.gram;
    const int64_t rows = target.rows, channels = target.channels;
    const Terms terms = terms_of(target);
    places.plane_sums = take_floats(batch_ * (channels + rows) * 2);
    if (target.result.data) places.constant = take_floats(batch_ * channels);
    for (int which = 0; which < 2; ++which) {
      if (terms.factors[which]) places.factors[which] = take(batch_ * channels * target.stride * element_);
      if (!terms.maps[which]) continue;
      places.products[which] = take_floats(gram.shares * batch_ * (channels + gram.own_rows) * channels);
      places.small_products[which] = take_floats(batch_ * (rows - gram.own_rows) * channels);
    }
    for (int g = gram.first_group; g < gram.first_group + gram.groups; ++g) {
      GroupPlaces& own = plan_.group_places.emplace_back();
      if (!is_small(groups_[g])) continue;
      const int64_t bytes = batch_ * channels * groups_[g].stride * element_;
      for (int which = 0; which < 2; ++which)
        if (terms.maps[which]) own.shrunk[which] = take(is_bfloat16() ? 2 * bytes : bytes);
      if (terms.sources) own.grown = take(bytes);
    }
  }

  // What the Gram form of a target is made of: of maps and their directions, and for dT or hT, of their factors and of
  // sources.
  struct Terms {
    bool maps[2], factors[2], sources;
  };
  Terms terms_of(const Target& target) const {
    const bool result = target.result.data, maps_move = target.direction.data;
    const bool factors_move = wishes_.coefficients || any(target, &Pair::weight_direction);
    if (!wishes_.second) return {{true, false}, {result, false}, result};
    return {{true, maps_move}, {result && maps_move, result && factors_move}, result && factors_move};
  }

  void begin(Kernel kernel) { plan_.launches.push_back({kernel, int32_t(plan_.segments.size()), 0, 0, 0, {}}); }

  int32_t target_of(Segment::Kind kind, size_t index) const {
    using Kind = Segment::Kind;
    switch (kind) {
      case Kind::differences:
      case Kind::target:
      case Kind::projection:
      case Kind::target_sums:
        return plan_.parts[index].target;
      case Kind::source_planes:
      case Kind::source_products:
      case Kind::shrink:
      case Kind::grow:
        return groups_[index].target;
      case Kind::pack:
      case Kind::weight:
      case Kind::bias:
        return pairs_[index].target;
      default:
        return int32_t(index);
    }
  }

  void add(Segment::Kind kind, size_t index, int64_t items, int32_t which = 0) {
    Launch& launch = plan_.launches.back();
    if (!items) return;
    plan_.segments.push_back({kind, launch.blocks, int32_t(index), which, target_of(kind, index)});
    if (launch.count < Launch::few) launch.segments[launch.count] = plan_.segments.back();
    ++launch.count;
    launch.blocks += int32_t(items);
  }

  void pack() {
    begin(Kernel::pack);
    for (size_t p = 0; p < pairs_.size(); ++p)
      add(Segment::Kind::pack, p,
          cut(int64_t(pairs_[p].channels) * targets_[pairs_[p].target].stride, weights_of_block));
    for (size_t n = 0; n < targets_.size(); ++n)
      if (takes_gram(targets_[n])) add(Segment::Kind::coefficients, n, cut(batch_ * targets_[n].rows, threads));
    end();
  }

  void end() {
    if (!plan_.launches.back().blocks) plan_.launches.pop_back();
  }

  // Parts are taken together as long as their E fits; each such phase is a launch of E and one of the gradients, and
  // one more where these have shares to be added up. Parts of one target never are taken together: a part's dW is added
  // to that of the part before it.
  void cut_into_phases() {
    std::vector<std::vector<int>> phases;
    int64_t filled = 0, most = 0;
    std::vector<int64_t> places;
    for (size_t n = 0; n < targets_.size(); ++n) {
      const Target& target = targets_[n];
      if (takes_gram(target)) continue;
      for (int64_t first = 0; first < batch_; first += target.part_samples) {
        const int64_t samples = std::min<int64_t>(target.part_samples, batch_ - first);
        const int64_t bytes = target.keeps ? bytes_of(target, samples) * kept() : 0;
        if (phases.empty() || first > 0 || filled + bytes > bytes_of_differences_) {
          if (phases.empty() || !phases.back().empty()) phases.emplace_back();
          filled = 0;
        }
        phases.back().push_back(int(plan_.parts.size()));
        places.push_back(filled);
        plan_.parts.push_back({int32_t(n),
                               int32_t(first / target.part_samples),
                               int32_t(first),
                               int32_t(samples),
                               stride_of(samples * pixels(target)),
                               {},
                               nullptr,
                               1});
        filled += bytes;
        most = std::max(most, filled);
      }
    }
    const int64_t differences = take(most);
    for (size_t i = 0; i < plan_.parts.size(); ++i) {
      Part& part = plan_.parts[i];
      const Target& target = targets_[part.target];
      const int64_t at = differences + places[i];
      part.differences[0] = reinterpret_cast<void*>(at);
      // nobody reads E where no map or weight moves, and E' is written after it
      part.differences[1] = reinterpret_cast<void*>(at + (kept() > 1 ? bytes_of(target, part.samples) : 0));
    }
    int64_t most_sums = 0;
    const int64_t sums = plan_.bytes;
    for (const auto& phase : phases) {
      std::vector<Cut> first, then, last;
      for (const int i : phase) cut_part(i, first, then);
      most_sums = std::max(most_sums, share_out_the_longest(then, last, sums));
      launch(Kernel::differences, first);
      launch(Kernel::gradients, then);
      launch(Kernel::finish, last);
    }
    take(most_sums);
  }

  void cut_part(int index, std::vector<Cut>& first, std::vector<Cut>& then) const {
    const Part& part = plan_.parts[index];
    const Target& target = targets_[part.target];
    const int64_t columns = part.samples * pixels(target), terms_of_w = cut(target.channels, terms());
    const int64_t row_tiles = cut(target.rows, tile_width), channel_tiles = cut(target.channels, height(target));
    const int64_t tiles =
        target.tiles_of_sample ? int64_t(part.samples) * target.tiles_of_sample : cut(columns, target.step);
    first.push_back({{Segment::Kind::differences, 0, index, 0, 0}, tiles * row_tiles, terms_of_w});
    if (!target.keeps) return;
    const int64_t heights = height(target) / 64;  // a product of lower tiles takes less
    if (target.result.data)
      then.push_back({{Segment::Kind::target, 0, index, 0, 0},
                      cut(columns, tile_width) * channel_tiles,
                      cut(target.rows, terms()) * heights});
    if (target.splits)
      then.push_back({{Segment::Kind::projection, 0, index, 0, 0},
                      row_tiles * channel_tiles * target.splits,
                      cut(part.stride, terms()) / target.splits * heights});
  }

  // Where a tile of dT, a sum over all rows, would take longer than all else of a launch, shared out, its sum is cut
  // into shares, which a launch more adds up: of 128 pairs there are thousands of rows, so the E of a phase has few
  // columns, and few such tiles. Returns the bytes that their sums take, from a place on.
  int64_t share_out_the_longest(std::vector<Cut>& cuts, std::vector<Cut>& sums, int64_t place) {
    int64_t all = 0, bytes = 0;
    for (const Cut& part : cuts) all += part.items * part.work;
    for (Cut& longest : cuts) {
      if (longest.segment.kind != Segment::Kind::target || longest.work * chip_.processors <= all) continue;
      Part& part = plan_.parts[longest.segment.index];
      const Target& target = targets_[part.target];
      // each as long as what a block gets of all: shorter ones write more partial sums than they fill gaps
      const int64_t wanted = cut(longest.work * resident(), all), terms_of_sum = cut(target.rows, terms());
      part.target_shares = int32_t(std::clamp<int64_t>(wanted, 1, std::max<int64_t>(1, terms_of_sum / fewest_tiles)));
      if (part.target_shares == 1) continue;
      longest.items *= part.target_shares;
      longest.work = cut(longest.work, part.target_shares);
      part.target_sums = reinterpret_cast<float*>(place + bytes);
      const int64_t elements = target.channels * part.stride;
      bytes += cut(part.target_shares * elements * int64_t(sizeof(float)), 256) * 256;
      sums.push_back({{Segment::Kind::target_sums, 0, longest.segment.index, 0, 0},
                      cut(elements, weights_of_block),
                      part.target_shares});
    }
    return bytes;
  }

  // The longest items first, so that the last ones to end are short.
  void launch(Kernel kernel, std::vector<Cut>& cuts, int side = 0) {
    std::stable_sort(cuts.begin(), cuts.end(), [](const Cut& a, const Cut& b) { return a.work > b.work; });
    begin(kernel);
    plan_.launches.back().side = side;
    for (const Cut& part : cuts) add(part.segment.kind, part.segment.index, part.items, part.segment.which);
    end();
  }

  // After the direct form, to whose dT it adds.
  void gram() {
    using Kind = Segment::Kind;
    std::vector<Cut> planes, products, projections, targets;
    int32_t which = 0, side = 0;
    const auto put = [&which](std::vector<Cut>& cuts, Kind kind, size_t index, int64_t items, int64_t work) {
      cuts.push_back({{kind, 0, int32_t(index), which, 0}, items, work});
    };
    for (size_t n = 0; n < targets_.size(); ++n) {
      const Target& target = targets_[n];
      if (!takes_gram(target)) continue;
      const Terms terms = terms_of(target);
      side = std::max({side, target.height, target.width});
      const int64_t channels = target.channels, chunks = batch_ * cut(channels, planes_of_block);
      const int64_t tiles = batch_ * channel_tiles(target), row_tiles = cut(target.rows, tile_width);
      const int64_t shares = target.gram.shares, sum_of_pixels = cut(pixels(target), this->terms()) / shares;
      put(planes, Kind::target_planes, n, chunks, 1);
      put(projections, Kind::projections, n, channel_tiles(target) * row_tiles * target.splits, batch_ / target.splits);
      if (target.result.data) {
        put(planes, Kind::constant, n, batch_ * cut(channels, constants_of_block), cut(target.rows, threads));
        put(targets, Kind::gram_target, n, tiles * cut(pixels(target), tile_width), 1);
      }
      for (int g = target.gram.first_group; g < target.gram.first_group + target.gram.groups; ++g) {
        const Group& group = groups_[g];
        put(planes, Kind::source_planes, g, batch_ * cut(group.rows, group.planes_of_block), 1);
        if (is_small(group) && terms.sources)
          put(products, Kind::grow, g, tiles * cut(group.stride, tile_width), cut(group.rows, this->terms()));
      }
      for (which = 0; which < 2; ++which) {
        if (terms.factors[which])
          put(products, Kind::factor, n, tiles * cut(channels, tile_width), cut(target.rows, this->terms()));
        if (!terms.maps[which]) continue;
        put(products, Kind::target_products, n, tiles * cut(target.gram.halves, 2) * shares, sum_of_pixels);
        for (int g = target.gram.first_group; g < target.gram.first_group + target.gram.groups; ++g) {
          const Group& group = groups_[g];
          if (!is_small(group)) continue;
          put(planes, Kind::shrink, g, chunks, 4);
          put(products, Kind::source_products, g, tiles * cut(group.halves, 2), cut(pixels(group), this->terms()));
        }
      }
      which = 0;
    }
    launch(Kernel::gram_planes, planes, side);
    launch(Kernel::gram_products, products);
    launch(Kernel::gram_projections, projections);
    launch(Kernel::gram_targets, targets);
  }

  void finish() {
    begin(Kernel::finish);
    for (size_t n = 0; n < targets_.size(); ++n)
      add(Segment::Kind::squares, n, cut(batch_ * targets_[n].rows, threads));
    plan_.loss_count = plan_.launches.back().blocks;
    plan_.loss_sums = take(plan_.loss_count * int64_t(sizeof(float)));
    for (size_t p = 0; p < pairs_.size(); ++p) {
      if (!pairs_[p].weight_result.data) continue;
      const Target& target = targets_[pairs_[p].target];
      const int64_t of_block = target.splits > many_splits ? sums_of_block : weights_of_block;
      add(Segment::Kind::weight, p, cut(int64_t(pairs_[p].channels) * target.channels, of_block));
    }
    begin(Kernel::finish);
    for (size_t p = 0; p < pairs_.size(); ++p)
      if (pairs_[p].bias_result.data) add(Segment::Kind::bias, p, cut(pairs_[p].channels, sums_of_block));
    if (!wishes_.second) add(Segment::Kind::loss, 0, 1);
    end();
  }

  const int64_t batch_;
  std::vector<Target>& targets_;
  std::vector<Pair>& pairs_;
  std::vector<Group>& groups_;
  const Wishes wishes_;
  const Chip chip_;
  const int64_t element_, bytes_of_maps_;
  int64_t bytes_of_differences_ = 0;
  Plan plan_;
};

}  // namespace

Plan make_plan(int64_t batch, Records& records, const Wishes& wishes, Products products, const Chip& chip) {
  return Planner(batch, records, wishes, products, chip).plan();
}

void bind(Plan& plan, Records& records, unsigned char* workspace) {
  const auto bytes = [workspace](int64_t at) { return at < 0 ? nullptr : workspace + at; };
  const auto floats = [bytes](int64_t at) { return reinterpret_cast<float*>(bytes(at)); };
  for (size_t n = 0; n < records.targets.size(); ++n) {
    Target& target = records.targets[n];
    const Places& places = plan.places[n];
    target.weight = bytes(places.weight);
    target.weight_direction = bytes(places.weight_direction);
    target.weight_sums = floats(places.weight_sums);
    target.row_sums = floats(places.row_sums);
    target.bias_sums = floats(places.bias_sums);
    target.gram.plane_sums = floats(places.gram.plane_sums);
    target.gram.constant = floats(places.gram.constant);
    for (int which = 0; which < 2; ++which) {
      target.gram.coefficients[which] = floats(places.gram.coefficients[which]);
      target.gram.products[which] = floats(places.gram.products[which]);
      target.gram.small_products[which] = floats(places.gram.small_products[which]);
      target.gram.weights[which] = bytes(places.gram.weights[which]);
      target.gram.factors[which] = bytes(places.gram.factors[which]);
    }
  }
  for (size_t g = 0; g < records.groups.size(); ++g) {
    for (int which = 0; which < 2; ++which) records.groups[g].shrunk[which] = bytes(plan.group_places[g].shrunk[which]);
    records.groups[g].grown = bytes(plan.group_places[g].grown);
  }
  for (Part& part : plan.parts) {
    for (void*& differences : part.differences) differences = workspace + reinterpret_cast<int64_t>(differences);
    part.target_sums = floats(reinterpret_cast<int64_t>(part.target_sums));
  }
}

}  // namespace l2t_fast::cuda
