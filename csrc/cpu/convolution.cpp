// Host side of the 3x3 convolution: cuts it into tasks, gives them memory.
#include "../convolution.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>

#include "layers.h"
#include "memory.h"

namespace l2t_fast {
namespace {

constexpr int64_t padding = 80;  // between positions, which would fall on the same lines of a cache at powers of two
constexpr int64_t chunk_floats = 1 << 20;  // of transformed patches at a time, some 4 MiB
constexpr int64_t tiles_at_once = 128;
constexpr int64_t panels_at_once = 4;  // of a task: patches come from the L3 cache once for all of them

int64_t divided(int64_t value, int64_t by) { return (value + by - 1) / by; }

cpu::DenseMap map_of(const at::Tensor& map) {
  const int64_t channels = map.size(1), pixels = map.size(2) * map.size(3);
  const bool last = !map.is_contiguous();  // channels_last
  return {const_cast<void*>(map.const_data_ptr()),
          map.size(0),
          channels,
          map.size(2),
          map.size(3),
          last ? 1 : pixels,
          last ? channels : 1};
}

// transposed: rows are the output's channels.
cpu::Taps taps_of(const at::Tensor& weight, bool transposed) {
  const bool last = !weight.is_contiguous();
  const int64_t out = weight.size(0), in = weight.size(1), out_stride = 9 * in, in_stride = last ? 1 : 9;
  void* data = const_cast<void*>(weight.const_data_ptr());
  const int64_t tap_stride = last ? in : 1;
  return transposed ? cpu::Taps{data, out, in, out_stride, in_stride, tap_stride, true}
                    : cpu::Taps{data, in, out, in_stride, out_stride, tap_stride, false};
}

// The tile rows of a batch, in chunks whose transformed patches are in memory at once.
struct Chunks {
  Chunks(const cpu::DenseMap& map, int64_t panel)
      : rows(map.batch * ((map.height + 1) / 2)),
        across((map.width + 1) / 2),
        panels(divided(map.channels, panel)),
        panel(panel) {
    const int64_t of_a_row = cpu::winograd_positions * panels * panel * across;
    count = divided(rows, std::clamp<int64_t>(chunk_floats / of_a_row, 1, rows));
    most_rows = divided(rows, count);
    panel_stride = most_rows * across * panel;
    position_stride = panels * panel_stride + padding;
    rows_at_once = std::max<int64_t>(1, tiles_at_once / across);
  }
  at::Tensor memory() const { return cpu::pooled_empty({cpu::winograd_positions * position_stride}, at::kFloat); }
  int64_t begin(int64_t chunk) const { return std::min(rows, chunk * most_rows); }
  // The patches from the chunk's tile row `row` on.
  cpu::Positions at(float* tiles, int64_t row) const {
    return {tiles + row * across * panel, panel_stride, position_stride};
  }

  int64_t rows, across, panels, panel, count, most_rows, panel_stride, position_stride;
  int64_t rows_at_once;  // of a task
};

// Sizes of Positions of (rows, columns).
struct PanelSizes {
  PanelSizes(int64_t rows, int64_t columns, int64_t panel)
      : panel(rows * panel),
        position(divided(columns, panel) * this->panel + padding),
        all(cpu::winograd_positions * position) {}
  cpu::Positions at(float* data) const { return {data, panel, position}; }

  int64_t panel, position, all;
};

// A piece of memory for each thread.
struct PerThread {
  explicit PerThread(int64_t size)
      : size(size), memory(cpu::pooled_empty({at::get_num_threads() * size}, at::kFloat)) {}
  float* get() const { return memory.data_ptr<float>() + at::get_thread_num() * size; }

  int64_t size;
  at::Tensor memory;
};

// Into how many pieces each of `panels` is cut, so that all threads have work.
int64_t pieces_of(int64_t panels, int64_t most) {
  const int64_t threads = at::get_num_threads();
  return threads == 1 ? 1 : std::clamp<int64_t>(divided(2 * threads, panels), 1, std::max<int64_t>(1, most));
}

// Transforms the patches of tile rows [begin, end), all panels. Each thread's scratch begins with the kernels' stage.
void transform_input(const cpu::Kernels& kernels, const cpu::DenseMap& map, const Chunks& chunks, int64_t begin,
                     int64_t end, float* tiles, const PerThread& scratch) {
  const int64_t pieces = pieces_of(chunks.panels, end - begin);
  at::parallel_for(0, chunks.panels * pieces, 1, [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const int64_t panel = task / pieces, piece = task % pieces, rows = end - begin;
      const int64_t from = piece * rows / pieces, to = (piece + 1) * rows / pieces;
      kernels.winograd_input(map, panel * chunks.panel, begin + from, begin + to,
                             chunks.at(tiles + panel * chunks.panel_stride, from).data, chunks.position_stride,
                             scratch.get());
    }
  });
}

}  // namespace

at::Tensor convolution3x3_cpu(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& bias,
                              bool transposed) {
  const cpu::Kernels& kernels = cpu::kernels();
  const cpu::Taps taps = taps_of(weight, transposed);
  const int64_t panel = kernels.panel_float;
  at::Tensor output = at::empty({input.size(0), taps.columns, input.size(2), input.size(3)}, input.options(),
                                input.suggest_memory_format());
  if (output.numel() == 0) return output;
  if (taps.rows == 0) return bias.defined() ? output.copy_(bias.view({1, -1, 1, 1})) : output.zero_();

  const cpu::DenseMap from = map_of(input), to = map_of(output);
  const Chunks chunks(from, panel);
  const at::Tensor tiles = chunks.memory();
  float* patches = tiles.data_ptr<float>();
  const float* shift = bias.defined() ? bias.const_data_ptr<float>() : nullptr;

  // A task has some panels of columns and a piece of the tile rows.
  const int64_t most_columns = std::min(panels_at_once * panel, taps.columns);
  const int64_t groups = divided(taps.columns, most_columns);
  const PanelSizes weight_sizes(taps.rows, most_columns, panel);
  const PanelSizes sums_sizes(chunks.rows_at_once * chunks.across, most_columns, panel);
  const int64_t stage_size = kernels.winograd_stage(from.width);
  const PerThread scratch(stage_size + weight_sizes.all + sums_sizes.all);
  for (int64_t chunk = 0; chunk < chunks.count; ++chunk) {
    const int64_t begin = chunks.begin(chunk), rows = chunks.begin(chunk + 1) - begin;
    transform_input(kernels, from, chunks, begin, begin + rows, patches, scratch);
    const int64_t pieces = pieces_of(groups, divided(rows, chunks.rows_at_once));
    at::parallel_for(0, groups * pieces, 1, [&](int64_t first, int64_t last) {
      float* stage = scratch.get();
      const cpu::Positions transformed = weight_sizes.at(stage + stage_size);
      const cpu::Positions sums = sums_sizes.at(transformed.data + weight_sizes.all);
      for (int64_t task = first; task < last; ++task) {
        const int64_t column = task / pieces * most_columns, piece = task % pieces;
        const int64_t columns = std::min(most_columns, taps.columns - column);
        if (task == first || piece == 0)
          for (int64_t c = 0; c < columns; c += panel)
            kernels.winograd_weight(taps, column + c, transformed.data + c / panel * transformed.panel,
                                    transformed.position, stage);
        const int64_t piece_end = (piece + 1) * rows / pieces;
        for (int64_t row = piece * rows / pieces; row < piece_end; row += chunks.rows_at_once) {
          const int64_t row_end = std::min(piece_end, row + chunks.rows_at_once);
          kernels.winograd_product((row_end - row) * chunks.across, taps.rows, columns, chunks.at(patches, row),
                                   transformed, sums);
          for (int64_t c = 0; c < columns; c += panel)
            kernels.winograd_output(to, shift, column + c, begin + row, begin + row_end,
                                    sums.data + c / panel * sums.panel, sums.position, stage);
        }
      }
    });
  }
  return output;
}

at::Tensor convolution3x3_weight_gradient_cpu(const at::Tensor& gradient, const at::Tensor& input) {
  const cpu::Kernels& kernels = cpu::kernels();
  const int64_t panel = kernels.panel_float, unit = kernels.unit_float;
  at::Tensor result =
      at::empty({gradient.size(1), input.size(1), 3, 3}, input.options(), input.suggest_memory_format());
  if (result.numel() == 0) return result;
  if (input.numel() == 0) return result.zero_();

  const cpu::DenseMap from = map_of(input), outer = map_of(gradient);
  const cpu::Taps taps = taps_of(result, false);
  const Chunks chunks(from, panel);
  const at::Tensor tiles = chunks.memory();
  float* patches = tiles.data_ptr<float>();

  // A task has some panels of the output's channels and a piece of the input's. Its sums go on from chunk to chunk.
  const int64_t most_columns = std::min(panels_at_once * panel, taps.columns);
  const int64_t groups = divided(taps.columns, most_columns), units = divided(taps.rows, unit);
  const int64_t units_of_a_piece = divided(units, pieces_of(groups, units));
  const int64_t pieces = divided(units, units_of_a_piece), rows_of_a_piece = units_of_a_piece * unit;
  const PanelSizes gradient_sizes(chunks.rows_at_once * chunks.across, most_columns, panel);
  const PanelSizes sums_sizes(rows_of_a_piece, most_columns, panel);
  const bool kept = chunks.count > 1;
  const int64_t stage_size = kernels.winograd_stage(from.width);
  const PerThread scratch(stage_size + gradient_sizes.all + (kept ? 0 : sums_sizes.all));
  const at::Tensor all_sums = cpu::pooled_empty({kept ? groups * pieces * sums_sizes.all : 0}, at::kFloat);
  for (int64_t chunk = 0; chunk < chunks.count; ++chunk) {
    const int64_t begin = chunks.begin(chunk), rows = chunks.begin(chunk + 1) - begin;
    transform_input(kernels, from, chunks, begin, begin + rows, patches, scratch);
    at::parallel_for(0, groups * pieces, 1, [&](int64_t first, int64_t last) {
      float* stage = scratch.get();
      const cpu::Positions transformed = gradient_sizes.at(stage + stage_size);
      for (int64_t task = first; task < last; ++task) {
        cpu::Positions sums = sums_sizes.at(kept ? all_sums.data_ptr<float>() + task * sums_sizes.all
                                                 : transformed.data + gradient_sizes.all);
        if (chunk == 0) std::fill_n(sums.data, sums_sizes.all, 0.0f);
        const int64_t column = task / pieces * most_columns, low = task % pieces * rows_of_a_piece;
        const int64_t columns = std::min(most_columns, taps.columns - column);
        const int64_t high = std::min(taps.rows, low + rows_of_a_piece);
        sums.data -= low * panel;  // rows are counted from the first of all
        for (int64_t row = 0; row < rows; row += chunks.rows_at_once) {
          const int64_t row_end = std::min(rows, row + chunks.rows_at_once);
          for (int64_t c = 0; c < columns; c += panel)
            kernels.winograd_gradient(outer, column + c, begin + row, begin + row_end,
                                      transformed.data + c / panel * transformed.panel, transformed.position, stage);
          kernels.winograd_outer_product((row_end - row) * chunks.across, low, high, columns, chunks.at(patches, row),
                                         transformed, sums);
        }
        if (chunk + 1 == chunks.count)
          for (int64_t c = 0; c < columns; c += panel)
            kernels.winograd_weight_gradient(taps, column + c, low, high, sums.data + c / panel * sums.panel,
                                             sums.position, stage);
      }
    });
  }
  return result;
}

}  // namespace l2t_fast
