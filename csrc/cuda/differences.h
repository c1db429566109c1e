// E = 2 alpha D, with D = W T + b - S~, and what is summed over a sample's pixels: D^2 and E. With `second` the
// direction derivatives V = W vT + vW T + vb and E' = 2 alpha V + 2 valpha D beside them, and sums of 2 D V and E'.
#pragma once

#include "lines.h"
#include "resize.h"
#include "tile.h"

namespace l2t_fast::cuda {

// Of a block's tile, which takes the pipeline's place once the products are done: rows of columns, and room that makes
// the banks of eight rows differ.
inline constexpr int staged_width = tile_width + 8;

template <class Mode, bool second, class M>
class Differences {
  using Element = typename Mode::Element;
  // Of the tile: beside those of D stand those of V.
  static constexpr int columns = second ? tile_width / 2 : tile_width;
  static constexpr int own = columns / 32;  // of a lane, when a warp goes through a row
  static constexpr int rows_of_warp = tile_width / (threads / 32);
  // Of a warp, in go_through_rows and subtract_taps: so many are read before the first is used.
  static constexpr int rows_at_once = second ? 4 : 3;

 public:
  L2T_FAST_KERNEL Differences(M& m, const Problem& problem) : m_(m), problem_(problem) {}

  L2T_FAST_KERNEL void run(int item) {
    const int row_tiles = (target().rows + tile_width - 1) / tile_width;
    const int tile = item / row_tiles, first_row = item % row_tiles * tile_width;
    const Line line(target(), part());
    const int ahead = target().tiles_of_sample, step = target().step;
    const int begin = ahead ? tile / ahead * line.pixels : 0, end = ahead ? begin + line.pixels : line.columns;
    const int first_column = begin + (ahead ? tile % ahead : tile) * step;
    const int live = end - first_column < step ? end - first_column : step;
    // samples, counted from the part's first
    const int first = line.sample(first_column), last = line.sample(first_column + live - 1);
    if (m_.thread() == 0) tile_of(m_) = {first_row, first_column, live, tile, first, last};
    find_spots<columns>(m_, line, first_column, live);
    Sums<4> sums;
    clear<4>(sums);
    if (target().map.channels_last)
      multiply<true>(sums, first_row);
    else
      multiply<false>(sums, first_row);
    const Tile& here = tile_of(m_);
    if (here.first == here.last && finishes_at_once(sums, here)) return;
    find_row_facts(here.first_row);
    stage(sums);
    go_through_rows(here);
    m_.barrier();
    sum_rows(here);
  }

 private:
  L2T_FAST_KERNEL const Part& part() const { return work(m_).part; }
  L2T_FAST_KERNEL const Target& target() const { return work(m_).target; }
  struct Tile {
    int first_row, first_column, live, number;  // live: its columns
    int first, last;                            // samples it touches, counted from the part's first

    // Whether E has a column there: its own, and zeros between the last column and the stride.
    L2T_FAST_KERNEL bool keeps(int column, int columns_of_part, int64_t stride) const {
      return column < live || (first_column + column >= columns_of_part && first_column + column < stride);
    }
  };

  // In shared memory, beside Work, because registers are full of sums.
  static L2T_FAST_KERNEL Tile& tile_of(M& m) { return *reinterpret_cast<Tile*>(&work(m) + 1); }
  static_assert(tile_width * (sizeof(Spot) + sizeof(Shares)) + sizeof(Work) + sizeof(Tile) <= reserved_bytes);

  L2T_FAST_KERNEL float* staged() const { return reinterpret_cast<float*>(m_.shared()); }

  // Half of a tile (or all of it): the map's columns that the block's spots name, from a channel on.
  template <bool channels_last>
  L2T_FAST_KERNEL void fill_columns(Element* tile, int half, const Map& map, bool lives, int first_channel) {
    const Spot* const found = spots(m_);
    const Map from = map;
    const int channels = target().channels;
    const auto column = [=](int number) {
      const Spot spot = found[number];
      return spot.sample < 0 || !lives ? int64_t(-1) : offset_of(from, spot);
    };
    const auto channel = [=](int number) {
      return first_channel + number < channels ? (first_channel + number) * from.channel : -1;
    };
    if constexpr (channels_last)
      fill<true, tile_width, columns>(m_, tile, half, from.data, from.type, from.at_once, channel, column);
    else
      fill<false, tile_width, columns>(m_, tile, half, from.data, from.type, from.at_once, column, channel);
  }

  // Tiles of consecutive channels at the block's spots, where pieces are of one sample.
  using ColumnsFeed = Feed<false, tile_width, columns, Element>;
  L2T_FAST_KERNEL ColumnsFeed feed_columns(const Map& map, bool lives) const {
    constexpr int pieces = columns / vector<Element>;
    const int thread = m_.thread(), within = thread % pieces * vector<Element>;
    const Spot spot = spots(m_)[within];
    if (!lives || spot.sample < 0) return {};
    const auto* const from = static_cast<const Element*>(map.data) + offset_of(map, spot);
    return {thread, from - within, map.channel, target().channels, columns};
  }

  // The map beside T: in W vT its direction; in vW T, or where it has none, itself.
  L2T_FAST_KERNEL const Map& of_second_half(bool moves) const {
    return !moves && target().direction.data ? target().direction : target().map;
  }

  // A tile of one sample: small sources join the products, and sources that lie as the target does are read four
  // pixels at a time, eight lanes to a row. All others, and in other tiles all, are resized tap by tap.
  L2T_FAST_KERNEL bool finishes_at_once(Sums<4>& sums, const Tile& tile) {
    if (!target().keeps) return false;
    const int after = end_of(tile);
    int taps = after;  // the first row of those that are resized so, which come last
    for (const Pair* pair = pair_of(problem_, target(), tile.first_row);; ++pair) {
      const int begin = pair->first_row, end = begin + pair->channels;
      if (pair->resize == Pair::Resize::products) subtract_source(sums, *pair, tile.first_row, tile.live);
      if (pair->resize == Pair::Resize::taps && begin < taps) taps = begin > tile.first_row ? begin : tile.first_row;
      if (end >= after) break;
    }
    finish_sums(sums, tile, taps);
    return true;
  }

  L2T_FAST_KERNEL void stage(const Sums<4>& sums) {
    for_each_sum<4>(m_, sums, [this](int i, int j, float sum) { staged()[i * staged_width + j] = sum; });
    m_.barrier();
  }

  // Of a tile's row, for go_through_rows: b, vb, and its column in the coefficients. Found by all rows at once.
  struct RowFacts {
    float shift, shift_direction;
    int64_t column;
  };
  L2T_FAST_KERNEL RowFacts* row_facts() const {
    return reinterpret_cast<RowFacts*>(staged() + tile_width * staged_width);
  }
  static_assert(tile_width * (staged_width * sizeof(float) + sizeof(RowFacts)) <= pipeline_bytes);

  L2T_FAST_KERNEL void find_row_facts(int first_row) {
    const int thread = m_.thread(), row = first_row + thread;
    if (thread >= tile_width || row >= target().rows) return;
    const Pair& pair = *pair_of(problem_, target(), row);
    const int own_row = row - pair.first_row;
    row_facts()[thread] = {value_at(m_, pair.bias, own_row), second ? value_at(m_, pair.bias_direction, own_row) : 0.f,
                           pair.column + own_row};
  }

  // What a row of the tile adds to its products; `source` is its first pixel of the sample where S~ is S.
  struct Facts {
    float shift, shift_direction, twice, twice_direction;
    const void* source;
    Type type;
    bool in_fours, lives;  // in_fours: four pixels of the source are read at once
  };

  L2T_FAST_KERNEL Facts facts_of(int row) {
    if (row >= target().rows) return {0, 0, 0, 0, nullptr, Type::float32, false, false};
    const Pair& pair = *pair_of(problem_, target(), row);
    const int own = row - pair.first_row, sample = spots(m_)[0].sample;
    const int64_t column = pair.column + own;
    const void* source = nullptr;
    if (pair.resize == Pair::Resize::none)
      source = static_cast<const unsigned char*>(pair.source.data) +
               (sample * pair.source.sample + int64_t(own) * pair.source.channel +
                (spots(m_)[0].row * target().width + spots(m_)[0].column)) *
                   (pair.source.type == Type::float32 ? 4 : 2);
    return {value_at(m_, pair.bias, own),
            second ? value_at(m_, pair.bias_direction, own) : 0.f,
            coefficient(problem_.alpha, sample, column),
            second ? coefficient(problem_.alpha_direction, sample, column) : 0.f,
            source,
            pair.source.type,
            pair.source.at_once >= 4,
            true};
  }

  // D = products + b (- S), E and the sums, of a tile of one sample: eight lanes a row, four columns at a time. A loop
  // that fits into the processor's instruction cache: unrolled over the registers of the sums, its code took longer to
  // arrive than to run.
  L2T_FAST_KERNEL void finish_sums(const Sums<4>& sums, const Tile tile, int taps) {
    auto* const facts = reinterpret_cast<Facts*>(staged() + tile_width * staged_width);
    static_assert(tile_width * (staged_width * sizeof(float) + sizeof(Facts)) <= pipeline_bytes);
    const int thread = m_.thread(), lane = thread % 32;
    if (thread < tile_width) facts[thread] = facts_of(tile.first_row + thread);
    stage(sums);
    if (taps < end_of(tile)) subtract_taps(tile, taps);
    const int64_t stride = part().stride;
    const int columns_of_part = part().samples * target().height * target().width;
    void *const differences = part().differences[0], *const others = part().differences[1];
    float* const row_sums = row_sums_of_tile(tile, 0);
    const bool aligned = tile.first_column % 4 == 0;
    const int first_row = thread / 32 * rows_of_warp + lane / 8;
    // the next row's, so that they are on their way while this one's columns are gone through
    float next[columns / 32][4] = {};
    read_sources(facts[first_row], lane, tile.live, aligned, next);
    L2T_FAST_UNROLL_BY(1)
    for (int turn = 0; turn < rows_of_warp / 4; ++turn) {
      const int row = first_row + 4 * turn;
      const Facts own = facts[row];
      const int64_t place = (tile.first_row + row) * stride + tile.first_column;
      const float* const products = staged() + row * staged_width;
      float square = 0, factor = 0, sources[columns / 32][4];
      L2T_FAST_UNROLL
      for (int k = 0; k < columns / 32; ++k) {
        L2T_FAST_UNROLL
        for (int i = 0; i < 4; ++i) sources[k][i] = next[k][i];
      }
      if (turn + 1 < rows_of_warp / 4) read_sources(facts[row + 4], lane, tile.live, aligned, next);
      L2T_FAST_UNROLL
      for (int turn_of_columns = 0; turn_of_columns < columns / 32; ++turn_of_columns) {
        const int column = 4 * (lane % 8) + 32 * turn_of_columns;
        const float* const from = products + spread<tile_width, columns>(column, 0);
        float d[4], e[4], v[4];
        m_.read4(d, from);
        if constexpr (second) m_.read4(v, from + 16);
        if (own.source) {
          L2T_FAST_UNROLL
          for (int i = 0; i < 4; ++i) d[i] -= sources[turn_of_columns][i];
        }
        L2T_FAST_UNROLL
        for (int i = 0; i < 4; ++i) {
          const bool lives = column + i < tile.live;
          d[i] = lives ? d[i] + own.shift : 0.f;
          e[i] = own.twice * d[i];
          if constexpr (second) v[i] = lives ? v[i] + own.shift_direction : 0.f;
          square += second ? 2 * d[i] * v[i] : d[i] * d[i];
        }
        const bool whole = aligned && own.lives && column + 4 <= tile.live;
        if constexpr (second) {
          keep_four(others, place + column, e, whole, own.lives, tile, column, columns_of_part, stride);
          L2T_FAST_UNROLL
          for (int i = 0; i < 4; ++i) e[i] = own.twice * v[i] + own.twice_direction * d[i];
        }
        keep_four(differences, place + column, e, whole, own.lives, tile, column, columns_of_part, stride);
        factor += e[0] + e[1] + e[2] + e[3];
      }
      L2T_FAST_UNROLL
      for (int mask = 1; mask < 8; mask *= 2) {
        square += m_.exchange(square, mask);
        factor += m_.exchange(factor, mask);
      }
      if (lane % 8 == 0 && own.lives) write_row_sums(row_sums + 2 * row, square, factor);
    }
  }

  // S~ at the lane's columns of a row, where it is S: all is read before any of it is looked at. Beyond the end any
  // pixel will do.
  L2T_FAST_KERNEL void read_sources(const Facts& of, int lane, int live, bool aligned,
                                    float (&values)[columns / 32][4]) {
    if (!of.source) return;
    const auto column_of = [lane](int turn) { return 4 * (lane % 8) + 32 * turn; };
    if (aligned && of.in_fours) {
      L2T_FAST_UNROLL
      for (int turn = 0; turn < columns / 32; ++turn) {
        const int column = column_of(turn);
        read_four<Mode>(m_, of.source, column < live ? column : 0, values[turn]);
      }
      return;
    }
    with_type(of.type, [&](auto type) {
      L2T_FAST_UNROLL
      for (int turn = 0; turn < columns / 32; ++turn) {
        L2T_FAST_UNROLL
        for (int i = 0; i < 4; ++i) {
          const int column = column_of(turn) + i;
          values[turn][i] = load<decltype(type)::value>(m_, of.source, column < live ? column : 0);
        }
      }
    });
  }

  L2T_FAST_KERNEL void keep_four(void* to, int64_t place, const float (&values)[4], bool whole, bool lives,
                                 const Tile& tile, int column, int columns_of_part, int64_t stride) {
    if (whole) {
      keep_vector<Mode>(m_, to, place, values);
      return;
    }
    if (!lives) return;
    // most columns beyond a tile's last are the next tile's
    const int first = tile.first_column + column;
    if (column >= tile.live && (first + 4 <= columns_of_part || first >= stride)) return;
    L2T_FAST_UNROLL_BY(1)
    for (int i = 0; i < 4; ++i)
      if (tile.keeps(column + i, columns_of_part, stride)) keep<Mode>(m_, to, place + i, at_index(values, i));
  }

  // An array in registers has no place that a variable could name.
  static L2T_FAST_KERNEL float at_index(const float (&values)[4], int i) {
    return i == 0 ? values[0] : i == 1 ? values[1] : i == 2 ? values[2] : values[3];
  }

  // Of the tile's rows, for one of the samples that it touches.
  L2T_FAST_KERNEL float* row_sums_of_tile(const Tile& tile, int slot) const {
    return row_sums_of(target(), part().number, tile.number, slot) + 2 * int64_t(tile.first_row);
  }
  static L2T_FAST_KERNEL void write_row_sums(float* to, float square, float factor) {
    to[0] = square;
    to[1] = factor;
  }

  // sums += W T, and in V's half W vT + vW T.
  template <bool channels_last>
  L2T_FAST_KERNEL void multiply(Sums<4>& sums, int first_row) {
    constexpr int terms_of_tile = depth<Element>;
    const int count = (target().channels + terms_of_tile - 1) / terms_of_tile;
    const bool weights_move = second && target().weight_direction;
    const bool feeds = !channels_last && in_vectors<Element>(target().map) &&
                       (!second || !target().direction.data || in_vectors<Element>(target().direction));
    multiply_tiles<Mode, Layout<true>, Layout<channels_last>, 4>(
        m_, sums, weights_move ? 2 * count : count,
        [=, this, from_a = Feed<true, tile_width, tile_width, Element>(), left = ColumnsFeed(), right = ColumnsFeed()](
            int number, Element* a, Element* b) mutable {
          const bool moves = second && number >= count;  // then vW T, which is V's alone
          const int first_channel = (moves ? number - count : number) * terms_of_tile;
          if (number == 0 || (second && number == count)) {
            const Packed weight{moves ? target().weight_direction : target().weight, target().stride, target().rows};
            from_a = feed_packed<true, tile_width, Element>(m_, weight, first_row, 0);
            if (feeds) {
              left = feed_columns(target().map, !moves);
              if constexpr (second) right = feed_columns(of_second_half(moves), moves || target().direction.data);
            }
          }
          from_a.next(m_, a);
          if (feeds) {
            left.next(m_, b);
            if constexpr (second) right.next(m_, b, 1);
            return;
          }
          fill_columns<channels_last>(b, 0, target().map, !moves, first_channel);
          if constexpr (second) {
            const bool lives = moves || target().direction.data;
            fill_columns<channels_last>(b, 1, of_second_half(moves), lives, first_channel);
          }
        },
        [=, this](int number, Element*, Element* b) {
          round_filled<Mode, channels_last, tile_width, columns>(m_, b, 0, target().map.at_once);
          if constexpr (second)
            round_filled<Mode, channels_last, tile_width, columns>(m_, b, 1, of_second_half(number >= count).at_once);
        });
  }

  // sums -= S~ of the pair's rows in the tile.
  L2T_FAST_KERNEL void subtract_source(Sums<4>& sums, const Pair& pair, int first_row, int live) {
    subtract_resized<Mode, 4, columns>(
        m_, sums, pair, target(), live,
        [=, this, &pair](Element* tile, int pixel) { fill_source(tile, pair, first_row, pixel); },
        [=, this, &pair](Element* tile) {
          round_filled<Mode, true, tile_width, tile_width>(m_, tile, 0, pair.source.at_once);
        });
  }

  // The pair's rows in the tile at some pixels of the tile's sample.
  L2T_FAST_KERNEL void fill_source(Element* tile, const Pair& pair, int first_row, int pixel) {
    const Map map = pair.source;
    const auto* const from = static_cast<const Element*>(map.data) + spots(m_)[0].sample * map.sample + pixel;
    const int left = pair.height * pair.width - pixel, before = first_row - pair.first_row, channels = pair.channels;
    fill<true, tile_width, tile_width>(
        m_, tile, 0, from, map.type, map.at_once, [=](int within) { return within < left ? within : -1; },
        [=](int row) {
          const int channel = before + row;
          return channel >= 0 && channel < channels ? channel * map.channel : -1;
        });
  }

  // What a lane knows of its columns: where they lie in the source of the pair at hand, counted from the tile's first
  // sample, whether they have right and lower neighbours (a bit each), and the neighbours' shares.
  struct Columns {
    uint32_t offset[own], beside, below;
    float along[own], down[own];
  };

  L2T_FAST_KERNEL Columns find_columns(const Pair& pair, bool resized, int first_sample) const {
    const int lane = m_.thread() % 32, height = target().height, width = target().width;
    const Map map = pair.source;
    Columns found;
    found.beside = found.below = 0;
    L2T_FAST_UNROLL
    for (int i = 0; i < own; ++i) {
      const Spot spot = spots(m_)[lane + 32 * i];
      Tap row{spot.row, false, 0, 0}, column{spot.column, false, 0, 0};
      if (resized) {
        row = tap(spot.row, pair.height, height);
        column = tap(spot.column, pair.width, width);
      }
      // beyond the end any element will do
      found.offset[i] =
          spot.sample < 0 ? 0 : uint32_t(offset_of(map, {spot.sample - first_sample, row.lower, column.lower}));
      found.below |= uint32_t(row.inside) << i;
      found.beside |= uint32_t(column.inside) << i;
      found.down[i] = row.share;
      found.along[i] = column.share;
    }
    return found;
  }

  // How a warp reads a pair's source tap by tap.
  struct Source {
    bool resized;
    Type type;
    int64_t row_bytes;
    Columns columns;
  };
  L2T_FAST_KERNEL Source source_of(const Pair& pair, int first_sample) const {
    const bool resized = pair.height != target().height || pair.width != target().width;
    const Map& map = pair.source;
    return {resized, map.type, map.channel * bytes_of(map.type), find_columns(pair, resized, first_sample)};
  }

  L2T_FAST_KERNEL void resize(const void* const (&data)[rows_at_once], const Map& map, const Source& from,
                              float (&values)[rows_at_once][own]) {
    with_type(from.type,
              [&](auto type) { resize<decltype(type)::value>(data, map, from.columns, from.resized, values); });
  }

  // S~ at the lane's columns of the rows that begin at `data`. All is read before any of it is looked at.
  template <Type type>
  L2T_FAST_KERNEL void resize(const void* const (&data)[rows_at_once], const Map& map, const Columns& at, bool resized,
                              float (&values)[rows_at_once][own]) {
    const int32_t by_row = map.row, by_column = map.column;
    L2T_FAST_UNROLL
    for (int r = 0; r < rows_at_once; ++r) {
      L2T_FAST_UNROLL
      for (int i = 0; i < own; ++i) values[r][i] = load<type>(m_, data[r], at.offset[i]);
    }
    if (!resized) return;
    float right[rows_at_once][own], below[rows_at_once][own], both[rows_at_once][own];
    L2T_FAST_UNROLL
    for (int i = 0; i < own; ++i) {
      const uint32_t upper = at.offset[i], lower = upper + (at.below >> i & 1 ? by_row : 0);
      const uint32_t beside = at.beside >> i & 1 ? by_column : 0;
      L2T_FAST_UNROLL
      for (int r = 0; r < rows_at_once; ++r) {
        right[r][i] = load<type>(m_, data[r], upper + beside);
        below[r][i] = load<type>(m_, data[r], lower);
        both[r][i] = load<type>(m_, data[r], lower + beside);
      }
    }
    L2T_FAST_UNROLL
    for (int r = 0; r < rows_at_once; ++r) {
      L2T_FAST_UNROLL
      for (int i = 0; i < own; ++i) {
        const float first = values[r][i] + at.along[i] * (right[r][i] - values[r][i]);
        values[r][i] = first + at.down[i] * (below[r][i] + at.along[i] * (both[r][i] - below[r][i]) - first);
      }
    }
  }

  // A source's rows from one of a tile's on, at the tile's first sample.
  L2T_FAST_KERNEL const unsigned char* rows_of_source(const Pair& pair, int row, int first_sample) const {
    const Map& map = pair.source;
    return static_cast<const unsigned char*>(map.data) +
           (first_sample * map.sample + int64_t(row - pair.first_row) * map.channel) * bytes_of(map.type);
  }
  static L2T_FAST_KERNEL int64_t bytes_of(Type type) { return type == Type::float32 ? 4 : 2; }

  // The row behind a tile's last.
  L2T_FAST_KERNEL int end_of(const Tile& tile) const {
    const int rows = target().rows;
    return tile.first_row + tile_width < rows ? tile.first_row + tile_width : rows;
  }

  // function(pair, first row, the row behind its last) for the pairs of a warp's share of some rows.
  template <class Function>
  L2T_FAST_KERNEL void for_each_pair(int begin, int end, const Function& function) const {
    constexpr int warps = threads / 32;
    const int share = (end - begin + warps - 1) / warps, begin_row = begin + m_.thread() / 32 * share;
    const int end_row = begin_row + share < end ? begin_row + share : end;
    if (begin_row >= end_row) return;
    const Pair* pair = pair_of(problem_, target(), begin_row);
    for (int first_row = begin_row; first_row < end_row; ++pair) {
      const int pair_end = pair->first_row + pair->channels, until = pair_end < end_row ? pair_end : end_row;
      function(*pair, first_row, until);
      first_row = until;
    }
  }

  // staged() -= S~ where it is resized tap by tap, in the rows from `begin` on of a tile of one sample; a warp some
  // rows at a time.
  L2T_FAST_KERNEL void subtract_taps(const Tile tile, int begin) {
    const int lane = m_.thread() % 32, first_sample = part().first_sample + tile.first;
    for_each_pair(begin, end_of(tile), [&](const Pair& pair, int first_row, int until) {
      const Source from = source_of(pair, first_sample);
      const auto* source = rows_of_source(pair, first_row, first_sample);
      for (int row = first_row; row < until; row += rows_at_once, source += rows_at_once * from.row_bytes) {
        const void* data[rows_at_once];
        float values[rows_at_once][own];
        L2T_FAST_UNROLL
        for (int r = 0; r < rows_at_once; ++r) data[r] = source + (row + r < until ? r : 0) * from.row_bytes;
        resize(data, pair.source, from, values);
        L2T_FAST_UNROLL
        for (int r = 0; r < rows_at_once; ++r) {
          if (row + r >= until) break;
          float* const to = staged() + (row + r - tile.first_row) * staged_width + spread<tile_width, columns>(lane, 0);
          L2T_FAST_UNROLL
          for (int i = 0; i < own; ++i) to[spread<tile_width, columns>(32 * i, 0)] -= values[r][i];
        }
      }
    });
    m_.barrier();
  }

  // Twice the coefficient.
  L2T_FAST_KERNEL float coefficient(const Coefficients& coefficients, int sample, int64_t column) const {
    if (!coefficients.data) return 0;
    return 2 * m_.read(coefficients.data + sample * coefficients.sample + column * coefficients.column);
  }

  // Of a row, at the lane's columns.
  L2T_FAST_KERNEL void coefficients(const Coefficients& of, const int (&sample)[own], int64_t column,
                                    float (&values)[own]) const {
    L2T_FAST_UNROLL
    for (int i = 0; i < own; ++i)
      values[i] = of.data ? m_.read(of.data + sample[i] * of.sample + column * of.column) : 0.f;
  }

  // A warp some rows at a time, from staged(), where D and V are left.
  L2T_FAST_KERNEL void go_through_rows(const Tile tile) {
    const int lane = m_.thread() % 32, first_sample = part().first_sample + tile.first;
    int sample[own];
    uint32_t live = 0, kept = 0;
    const int64_t stride = part().stride;
    const int columns_of_part = part().samples * target().height * target().width;
    L2T_FAST_UNROLL
    for (int i = 0; i < own; ++i) {
      sample[i] = spots(m_)[lane + 32 * i].sample;
      live |= uint32_t(sample[i] >= 0) << i;
      kept |= uint32_t(target().keeps && tile.keeps(lane + 32 * i, columns_of_part, stride)) << i;
      if (sample[i] < 0) sample[i] = part().first_sample + tile.last;
    }
    void *const differences = part().differences[0], *const others = part().differences[1];
    const Coefficients alpha = problem_.alpha, alpha_direction = problem_.alpha_direction;

    for_each_pair(tile.first_row, end_of(tile), [&](const Pair& pair, int first_row, int until) {
      const Source from = source_of(pair, first_sample);
      const auto* source = rows_of_source(pair, first_row, first_sample);
      const int64_t first_alpha = pair.column - pair.first_row;
      for (int row = first_row; row < until; row += rows_at_once, source += rows_at_once * from.row_bytes) {
        const void* data[rows_at_once];
        float values[rows_at_once][own], alphas[rows_at_once][own], alphas_direction[rows_at_once][own];
        L2T_FAST_UNROLL
        for (int r = 0; r < rows_at_once; ++r) {
          const int here = row + r < until ? r : 0;
          data[r] = source + here * from.row_bytes;
          coefficients(alpha, sample, first_alpha + row + here, alphas[r]);
          if constexpr (second) coefficients(alpha_direction, sample, first_alpha + row + here, alphas_direction[r]);
        }
        resize(data, pair.source, from, values);
        L2T_FAST_UNROLL
        for (int r = 0; r < rows_at_once; ++r) {
          if (row + r >= until) break;
          const int row_of_tile = row + r - tile.first_row;
          const RowFacts facts = row_facts()[row_of_tile];
          float* const products = staged() + row_of_tile * staged_width + spread<tile_width, columns>(lane, 0);
          const int64_t place = (row + r) * stride + tile.first_column + lane;
          L2T_FAST_UNROLL
          for (int i = 0; i < own; ++i) {
            const int at_products = spread<tile_width, columns>(32 * i, 0);
            const bool lives = live >> i & 1;
            const float difference = lives ? products[at_products] + (facts.shift - values[r][i]) : 0.f;
            float factor = 2 * alphas[r][i] * difference;
            products[at_products] = difference;
            if constexpr (second) {
              const float moved = lives ? products[at_products + 16] + facts.shift_direction : 0.f;
              products[at_products + 16] = moved;
              if (kept >> i & 1) keep<Mode>(m_, others, place + 32 * i, factor);
              factor = 2 * (alphas[r][i] * moved + alphas_direction[r][i] * difference);
            }
            if (kept >> i & 1) keep<Mode>(m_, differences, place + 32 * i, factor);
          }
        }
      }
    });
  }

  // Of each row and sample: sums of D^2 and of E, in which alpha is the same for all; in K2 of 2 D V and E'.
  L2T_FAST_KERNEL void sum_rows(const Tile tile) {
    constexpr int chains = 4;  // of additions, side by side
    const int rows = target().rows - tile.first_row < tile_width ? target().rows - tile.first_row : tile_width;
    const int row = m_.thread() % tile_width, pixels = target().height * target().width;
    if (row >= rows) return;
    const RowFacts facts = row_facts()[row];
    for (int sample = tile.first + m_.thread() / tile_width; sample <= tile.last; sample += threads / tile_width) {
      const int before = sample * pixels - tile.first_column, after = before + pixels;
      const int begin = before > 0 ? before : 0, end = after < tile.live ? after : tile.live;
      const int64_t of_sample = part().first_sample + sample;
      const Coefficients &alpha = problem_.alpha, &direction = problem_.alpha_direction;
      const float twice = coefficient(alpha, of_sample, facts.column),
                  twice_direction = second ? coefficient(direction, of_sample, facts.column) : 0.f;
      float squares[chains] = {}, sums[chains] = {}, moved[chains] = {};
      // Each of eight rows begins elsewhere, so that a warp finds all banks.
      const int count = end - begin;
      int column = begin + row / 4 % 8 % count;
      for (int n = 0; n < count; n += chains) {
        float differences[chains], changes[chains];
        L2T_FAST_UNROLL
        for (int k = 0; k < chains; ++k) {
          const float* const at = staged() + row * staged_width + spread<tile_width, columns>(column, 0);
          differences[k] = at[0];
          changes[k] = second ? at[16] : differences[k];
          column = column + 1 == end ? begin : column + 1;
        }
        L2T_FAST_UNROLL
        for (int k = 0; k < chains; ++k) {
          const float difference = n + k < count ? differences[k] : 0.f, change = n + k < count ? changes[k] : 0.f;
          squares[k] += difference * change;
          sums[k] += difference;
          moved[k] += change;
        }
      }
      float* const row_sums = row_sums_of_tile(tile, sample - tile.first) + 2 * row;
      const auto whole = [](const float (&of)[chains]) { return (of[0] + of[1]) + (of[2] + of[3]); };
      if constexpr (second)
        write_row_sums(row_sums, 2 * whole(squares), twice * whole(moved) + twice_direction * whole(sums));
      else
        write_row_sums(row_sums, whole(squares), twice * whole(sums));
    }
  }

  M& m_;
  const Problem& problem_;
};

template <class Mode, bool second, class M>
L2T_FAST_KERNEL void differences(M& m, const Problem& problem, const Launch& launch) {
  const Segment segment = segment_of(m, problem, launch);
  const int item = m.block() - segment.first;
  begin_work(m, problem, segment);
  Differences<Mode, second, M>(m, problem).run(item);
}

}  // namespace l2t_fast::cuda
