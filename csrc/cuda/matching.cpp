#include "matching.h"

#include <ATen/Context.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <numeric>
#include <utility>

#include "../results.h"
#include "plan.h"

namespace l2t_fast::cuda {
namespace {

Type type_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return Type::float32;
    case at::kBFloat16:
      return Type::bfloat16;
    case at::kHalf:
      return Type::float16;
    default:
      TORCH_CHECK_TYPE(false, "a tensor has dtype ", tensor.scalar_type(),
                       "; the cuda backend takes float32, bfloat16 and float16");
  }
}

void* data_of(const at::Tensor& tensor, bool written) {
  return written ? tensor.mutable_data_ptr() : const_cast<void*>(tensor.const_data_ptr());
}

int32_t small(int64_t size) {
  TORCH_CHECK_VALUE(size < int64_t(1) << 31, "a size of ", size,
                    " is too large; the cuda backend takes maps of fewer than 2^31 elements a sample, and fewer than "
                    "2^31 weights and "
                    "coefficients a target");
  return int32_t(size);
}

// So many elements can be copied into tiles at once: rows of `length` elements lie `steps` apart.
int32_t at_once(const at::Tensor& tensor, Products products, int64_t length, at::IntArrayRef steps) {
  if (tensor.scalar_type() != (products == Products::bfloat16 ? at::kBFloat16 : at::kFloat)) return 1;
  const int64_t element = tensor.element_size();
  int64_t bytes =
      std::gcd(std::gcd(16, length * element), int64_t(reinterpret_cast<uintptr_t>(tensor.const_data_ptr())));
  for (const int64_t step : steps) bytes = std::gcd(bytes, step * element);
  return bytes < 8 ? 1 : int32_t(bytes / element);
}

// Whether neighbours in memory are channels rather than pixels.
bool channels_last(const at::Tensor& tensor) {
  const int64_t by_channel = tensor.stride(1), by_column = tensor.stride(3);
  return by_channel == 1 ? by_column != 1 || tensor.size(1) > 1 : by_channel < by_column;
}

// `last`: tiles are filled along channels. A map that lies otherwise is read element by element.
Map map_of(const at::Tensor& tensor, Products products, bool last, bool written = false) {
  if (!tensor.defined()) return {};
  const int64_t by_sample = tensor.stride(0), by_channel = tensor.stride(1), by_row = tensor.stride(2),
                by_column = tensor.stride(3), channels = tensor.size(1), height = tensor.size(2),
                width = tensor.size(3);
  small((channels - 1) * by_channel + (height - 1) * by_row + (width - 1) * by_column);
  Map map{data_of(tensor, written),
          by_sample,
          int32_t(by_channel),
          int32_t(by_row),
          int32_t(by_column),
          type_of(tensor),
          last,
          1};
  if (last && by_channel == 1)
    map.at_once = at_once(tensor, products, channels, {by_sample, by_row, by_column});
  else if (!last && by_column == 1 && (height == 1 || by_row == width))
    map.at_once = at_once(tensor, products, height * width, {by_sample, by_channel});
  return map;
}

Matrix matrix_of(const at::Tensor& tensor, bool written = false) {
  if (!tensor.defined()) return {};
  return {data_of(tensor, written), tensor.stride(0), tensor.stride(1), type_of(tensor)};
}

Vector vector_of(const at::Tensor& tensor, bool written = false) {
  if (!tensor.defined()) return {};
  return {data_of(tensor, written), tensor.stride(0), type_of(tensor)};
}

Coefficients coefficients_of(const at::Tensor& tensor) {
  if (!tensor.defined()) return {};
  return {tensor.const_data_ptr<float>(), tensor.stride(0), tensor.stride(1)};
}

// What convolutions of float32 are told, this holds to: a 1x1 convolution is what it replaces. Products of bfloat16 are
// exact, but E is rounded to it too, and only where it may be; so are projections of float32, as autocast rounds a
// convolution's weights, with errors of the size that the features have already.
Products products_of(const MatchingProblem& problem) {
  if (!at::globalContext().allowTF32CuDNN(at::Float32Op::CONV)) return Products::tf32x3;
  const auto is_bfloat16 = [](const at::Tensor& map) { return map.scalar_type() == at::kBFloat16; };
  return std::all_of(problem.targets.begin(), problem.targets.end(), is_bfloat16) ? Products::bfloat16 : Products::tf32;
}

class Call {
 public:
  Call(Runner& runner, const MatchingProblem& problem, const Direction* direction, const Needs& needs)
      : runner_(runner),
        problem_(problem),
        direction_(direction),
        needs_(needs),
        products_(products_of(problem)),
        wishes_{direction != nullptr, direction && direction->alpha.defined(), false} {
    TORCH_CHECK_TYPE(problem.alpha.scalar_type() == at::kFloat, "alpha has dtype ", problem.alpha.scalar_type(),
                     "; the cuda backend needs float32");
  }

  LossAndGradient run() {
    const at::AutoDispatchBelowAutograd below_autograd;
    result_ = empty_results(problem_, needs_, empty_gradient);
    describe();
    if (records_.pairs.empty()) return {at::zeros({}, problem_.alpha.options()), std::move(result_)};
    at::Tensor loss;
    if (!direction_) loss = at::empty({}, problem_.alpha.options());
    launch(loss);
    return {std::move(loss), std::move(result_)};
  }

 private:
  at::Tensor direction(const std::vector<at::Tensor> Direction::* which, size_t index) const {
    return direction_ ? (direction_->*which)[index] : at::Tensor();
  }

  // The records, pairs in the order of their targets.
  void describe() {
    for (const auto* maps : {&problem_.sources, &problem_.targets, direction_ ? &direction_->targets : nullptr})
      if (maps)
        for (const at::Tensor& map : *maps) records_.bytes_of_maps += map.defined() ? int64_t(map.nbytes()) : 0;
    for (const auto& [n, numbers] : pairs_by_target(problem_, needs_, result_)) {
      const at::Tensor& map = problem_.targets[n];
      const bool last = channels_last(map);
      Target target{};
      target.map = map_of(map, products_, last);
      target.direction = map_of(direction(&Direction::targets, n), products_, last);
      target.result = map_of(result_.targets[n], products_, last, /*written=*/true);
      target.channels = small(map.size(1));
      target.height = small(map.size(2));
      target.width = small(map.size(3));
      small(map.size(2) * map.size(3) + tile_width);
      std::vector<Pair> direct, gram;
      for (const int64_t p : numbers) direct.push_back(describe_pair(p, target));
      // those that are resized tap by tap together: each tile of rows that has one takes the longer way
      std::stable_partition(direct.begin(), direct.end(),
                            [](const Pair& pair) { return pair.resize != Pair::Resize::taps; });
      std::copy_if(direct.begin(), direct.end(), std::back_inserter(gram),
                   [&](const Pair& pair) { return can_take_gram(pair, target); });
      std::stable_sort(gram.begin(), gram.end(), [](const Pair& a, const Pair& b) {
        return std::pair(int64_t(a.height) * a.width, a.height) > std::pair(int64_t(b.height) * b.width, b.height);
      });
      if (gram.empty() || !gram_pays(problem_.alpha.size(0), target, gram, wishes_, products_, runner_.chip())) {
        add(target, direct);
        continue;
      }
      std::erase_if(direct, [&](const Pair& pair) { return can_take_gram(pair, target); });
      if (!direct.empty()) add(target, direct);
      target.gram.adds = !direct.empty();
      add_groups(target, gram);
      add(target, gram);
    }
  }

  // Of the pairs that are added next, one for each size of their sources.
  void add_groups(Target& target, const std::vector<Pair>& pairs) {
    target.gram.first_group = int32_t(records_.groups.size());
    for (size_t p = 0; p < pairs.size(); ++p) {
      const Pair& pair = pairs[p];
      if (!p || pair.height != pairs[p - 1].height || pair.width != pairs[p - 1].width) {
        ++target.gram.groups;
        Group& group = records_.groups.emplace_back();
        group.target = int32_t(records_.targets.size());
        group.first_pair = int32_t(records_.pairs.size() + p);
        group.height = pair.height;
        group.width = pair.width;
      }
      ++records_.groups.back().pairs;
    }
  }

  void add(Target target, std::vector<Pair>& pairs) {
    target.first_pair = int32_t(records_.pairs.size());
    target.pairs = int32_t(pairs.size());
    int64_t rows = 0;
    wishes_.differences |= target.direction.data != nullptr;
    for (Pair& pair : pairs) {
      pair.target = int32_t(records_.targets.size());
      rows += pair.channels;
      wishes_.differences |= pair.weight_direction.data != nullptr;
    }
    small(rows * (std::max<int64_t>(problem_.alpha.size(0), target.channels) + tile_width) + tile_width);
    if (target.gram.groups) small(problem_.alpha.size(0) * target.channels + threads);
    records_.targets.push_back(target);
    records_.pairs.insert(records_.pairs.end(), pairs.begin(), pairs.end());
  }

  Pair describe_pair(int64_t p, const Target& target) const {
    const at::Tensor& source = problem_.sources[problem_.pairs[p].source];
    Pair pair{};
    // A single pixel lies in line either way, and as the Gram form reads it.
    pair.source = map_of(source, products_, channels_last(source) && source.size(2) * source.size(3) > 1);
    pair.weight = matrix_of(problem_.weights[p]);
    pair.weight_direction = matrix_of(direction(&Direction::weights, p));
    pair.weight_result = matrix_of(result_.weights[p], /*written=*/true);
    pair.bias = vector_of(problem_.biases[p]);
    pair.bias_direction = vector_of(direction(&Direction::biases, p));
    pair.bias_result = vector_of(result_.biases[p], /*written=*/true);
    pair.channels = small(source.size(1));
    pair.height = small(source.size(2));
    pair.width = small(source.size(3));
    pair.column = problem_.pairs[p].alpha_begin;
    pair.resize = resize_of(pair, target);
    // Within a tile of columns a source's elements are counted in 32 bits; so many samples it may touch.
    const int64_t touched = std::min(source.size(0), (tile_width - 1) / (int64_t(target.height) * target.width) + 2);
    TORCH_CHECK_VALUE(touched * std::max<int64_t>(pair.source.sample, 1) <= int64_t(1) << 32, "source feature ",
                      problem_.pairs[p].source, " has samples ", pair.source.sample,
                      " elements apart, which is too far for the cuda backend");
    return pair;
  }

  // The Gram form's sums cancel, so it is not for who asks for all of float32; its products are of maps of the tiles'
  // type whose pixels stand in line, and sources of at most the target's size.
  bool can_take_gram(const Pair& pair, const Target& target) const {
    const auto in_line = [this, &target](const Map& map) {
      return map.type == own_type() && map.column == 1 && map.row == target.width;
    };
    return products_ != Products::tf32x3 && target.channels > 0 && in_line(target.map) &&
           (!target.direction.data || in_line(target.direction)) &&
           std::max(target.height, target.width) <= most_side && pair.resize != Pair::Resize::taps &&
           pair.source.type == own_type();
  }

  Type own_type() const { return products_ == Products::bfloat16 ? Type::bfloat16 : Type::float32; }

  // Where the source has fewer pixels, a tile of columns is made of few of them: a short sum, of a map that lies in
  // memory as tiles do.
  Pair::Resize resize_of(const Pair& pair, const Target& target) const {
    const Map& map = pair.source;
    if (map.channels_last || map.column != 1 || map.row != pair.width) return Pair::Resize::taps;
    if (pair.height == target.height && pair.width == target.width) return Pair::Resize::none;
    const bool smaller = pair.height <= target.height && pair.width <= target.width &&
                         std::max(target.height, target.width) < longest_side;
    return smaller && map.type == own_type() ? Pair::Resize::products : Pair::Resize::taps;
  }

  // One workspace: what the plan places there, then the table.
  void launch(const at::Tensor& loss) {
    Plan plan = make_plan(problem_.alpha.size(0), records_, wishes_, products_, runner_.chip());
    const auto bytes_of = [](const auto& list) { return (list.size() * sizeof(list[0]) + 15) / 16 * 16; };
    const size_t pairs_at = bytes_of(records_.targets);
    const size_t groups_at = pairs_at + bytes_of(records_.pairs), parts_at = groups_at + bytes_of(records_.groups);
    const size_t segments_at = parts_at + bytes_of(plan.parts);
    const size_t table_bytes = segments_at + bytes_of(plan.segments);
    const at::Tensor workspace =
        at::empty({plan.bytes + int64_t(table_bytes)}, problem_.alpha.options().dtype(at::kByte));
    auto* const base = workspace.mutable_data_ptr<uint8_t>();
    bind(plan, records_, base);
    auto* const on_device = base + plan.bytes;

    Problem problem{};
    problem.batch = problem_.alpha.size(0);
    problem.second = direction_;
    problem.alpha = coefficients_of(problem_.alpha);
    if (direction_) problem.alpha_direction = coefficients_of(direction_->alpha);
    problem.squares = result_.alpha.defined() ? result_.alpha.mutable_data_ptr<float>() : nullptr;
    problem.columns = problem_.alpha.size(1);
    problem.loss_sums = reinterpret_cast<float*>(base + plan.loss_sums);
    problem.loss_count = small(plan.loss_count);
    problem.loss = loss.defined() ? loss.mutable_data_ptr<float>() : nullptr;
    problem.targets = reinterpret_cast<const Target*>(on_device);
    problem.pairs = reinterpret_cast<const Pair*>(on_device + pairs_at);
    problem.groups = reinterpret_cast<const Group*>(on_device + groups_at);
    problem.parts = reinterpret_cast<const Part*>(on_device + parts_at);
    problem.segments = reinterpret_cast<const Segment*>(on_device + segments_at);

    std::vector<uint8_t> table(table_bytes);
    const auto put = [&table](size_t at, const auto& list) {
      if (!list.empty()) std::memcpy(table.data() + at, list.data(), list.size() * sizeof(list[0]));
    };
    put(0, records_.targets);
    put(pairs_at, records_.pairs);
    put(groups_at, records_.groups);
    put(parts_at, plan.parts);
    put(segments_at, plan.segments);
    runner_.upload(on_device, table.data(), table.size());
    for (const Launch& launch : plan.launches) runner_.run(products_, direction_ != nullptr, problem, launch);
  }

  Runner& runner_;
  const MatchingProblem& problem_;
  const Direction* const direction_;
  const Needs& needs_;
  const Products products_;
  Wishes wishes_;
  Tangents result_;
  Records records_;
};

}  // namespace

LossAndGradient matching_forward(Runner& runner, const MatchingProblem& problem, const Needs& needs) {
  return Call(runner, problem, nullptr, needs).run();
}

HessianVector matching_hvp(Runner& runner, const MatchingProblem& problem, const Direction& direction,
                           const Needs& needs) {
  return Call(runner, problem, &direction, needs).run().gradient;
}

}  // namespace l2t_fast::cuda
