// The sweep of a stack on masked copies of a clip. Away from its stripes a copy is like the clip,
// and inside of them like a clip of zeros:
//
//   base      every input that the position depends on is unmasked, or outside the map
//   constant  every such input is masked, or outside
//   mixed     neither
//
// Only mixed positions are a copy's own to compute. A cell of z with positions of both kinds is its
// own too, filled from the clip (the base), from zeros' maps, and with its mixed products; or it is
// that of another copy, see twins.h. As stripes lie along the axes, the kinds of a row are two sets
// of bits, which grow from block to block as the cross reaches.
//
// Rows of cells stream through the blocks as rows do in infer.h, all copies at once: what the base
// and all copies need of a row is one list of outputs, crossed into a list of positions, which the
// next block's product reads; it stores each where its cell lies.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>

#include "../kernels.h"
#include "../parts/bits.h"
#include "../parts/cells.h"
#include "../parts/dtypes.h"
#include "../parts/product.h"
#include "../parts/rows.h"
#include "../parts/scratch.h"
#include "../parts/twins.h"
#include "../parts/vec.h"
#include "head.h"
#include "infer.h"
#include "limit.h"
#include "load.h"
#include "packed.h"
#include "sizes.h"

namespace fastsep::FASTSEP_ISA {

// dot: as for InferSweep.
template <class S, bool dot = false>
class MaskedSweep {
  using T = Compute<S>;
  static constexpr int64_t L = kLanes<T>;
  static constexpr int64_t kChunk = 12 * kTileRows;  // outputs between a cross and the product
  static_assert(kChunk % 4 == 0);                    // whole cells are not cut
  static constexpr int64_t kLive = 4;                // rows of cells that two rows of output reach
  static constexpr int64_t kBase = -1;               // as a copy

  struct Stage : Sizes {
    Stage(const Sizes& sizes, const Masked& job, Bump& weights, Bump& scratch)
        : Sizes(sizes),
          in(frames, bins),
          result(frames_out, bins_out),
          packed(weights, block, false),
          groups(ceil_div(block.out, L)),
          constants(lone ? 0 : in.samples()),
          base_rows(job.keep ? in.rows : least(kLive, in.rows)),
          own(job.together * in.cols),
          cells(scratch, own_slots(0) + kLive * own, lone ? 1 : block.out, lone ? 1 : L),
          constant_places(scratch.take<int32_t>(Samples(in.rows).count() * in.cols)),
          places(scratch.take<int32_t>((job.together + 1) * kLive * (in.cols + 2))),
          bits(scratch.take<uint64_t>(job.together * kLive * 2 * words_of(in.cols))),
          kinds(scratch.take<uint64_t>(job.together * 4 * words_of(in.bins))),
          partial(scratch.take<uint64_t>(job.together * words_of(in.cols))),
          twins(scratch, in, job.together) {}

    // The order of the slots. Of zeros, a lone block's cells are all the zero cell.
    int64_t constant_slot(int64_t row, int64_t col) const {
      return lone ? 0 : 1 + in.sample(row, col);
    }
    int64_t base_slots(int64_t row) const { return 1 + constants + row % base_rows * in.cols; }
    int64_t own_slots(int64_t row) const {
      return 1 + constants + base_rows * in.cols + row % kLive * own;
    }

    Grid in, result;  // what goes in and what comes out
    Packed<S, dot> packed;
    int64_t groups;                     // of output channels
    int64_t constants, base_rows, own;  // cells; rows of cells; cells a row
    Cells<T> cells;                     // of z, or of x if lone
    int32_t* constant_places;           // [sample of a row][col]
    int32_t* places;                    // [copy, base first][row % kLive][col]: a cell's place
    uint64_t* bits;                     // [copy][row % kLive][not base, not constant][col]
    uint64_t *kinds, *partial;          // of each copy's last row, as kinds_; cells of two kinds
    Twins twins;
    int64_t next = 0;  // row of cells to be made from this stage's output
  };

 public:
  static bool takes(const Masked& job) {
    bool all = job.infer.dtype == DType::f32 && job.infer.input.bins <= kMostBins;
    for (int64_t i = 0; i < job.infer.num_blocks; ++i) {
      const Block& block = job.infer.blocks[i];
      all &= block.dilation == 2 && block.pool == 2 && block.relu && (block.in == 1) == (i == 0);
    }
    return all;
  }

  static size_t weights_bytes(const Masked& job) {
    return InferSweep<S, dot>::weights_bytes(job.infer);
  }

  static void pack(const Masked& job, void* weights) {
    InferSweep<S, dot>::pack(job.infer, weights);
  }

  static size_t scratch_bytes(const Masked& job) {
    Bump weights(nullptr), scratch(nullptr);
    MaskedSweep(job, weights, scratch);
    return scratch.used();
  }

  static bool run(const Masked& job, const void* weights, void* scratch, int64_t clip,
                  int64_t first, int64_t count) {
    Bump packed(const_cast<void*>(weights)), bump(scratch);
    MaskedSweep sweep(job, packed, bump);
    sweep.clip_ = clip;
    sweep.find_constants();
    for (int64_t done = 0; done < count; done += job.together) {
      sweep.first_ = first + done;
      sweep.count_ = least(job.together, count - done);
      sweep.with_base_ = done == 0 || !job.keep;
      if (!sweep.run_copies()) return false;
    }
    return true;
  }

 private:
  static constexpr int64_t kMostBins = 1 << 16;  // places of cells are 32-bit numbers

  MaskedSweep(const Masked& job, Bump& weights, Bump& scratch)
      : job_(job),
        limit_(weights.take<T>(1)),
        stages_(scratch.take<Stage>(job.infer.num_blocks)),
        load_(unmasked(job.infer.input), true, scratch) {
    int64_t outputs = 0, moves = 0, list = 0, pairs = 0, cols = 0, rows = 0;
    each_block(job.infer.blocks, job.infer.num_blocks, job.infer.input.frames, job.infer.input.bins,
               [&](int64_t i, const Sizes& sizes) {
                 const Stage stage(sizes, job_, weights, scratch);
                 if (stages_ != nullptr) new (stages_ + i) Stage(stage);
                 outputs = most(outputs, (job_.together + 1) * 2 * stage.bins_out);
                 moves = most(moves, (4 * job_.together + 4) * stage.in.cols + 1);
                 cols = most(cols, stage.in.cols);
                 rows = most(rows, stage.in.rows);
                 list = most(list, stage.groups * kListStride);
                 if (dot) pairs = most(pairs, row_size<T>(stage.block.in, kChunk));
                 last_ = stage.result;
                 out_ = stage.groups * L;
               });
    outputs_ = Outputs(scratch, most(outputs, 4 * kMostSamples));
    moves_ = scratch.take<Move>(moves);
    list_ = scratch.take<T>(list);
    pairs_ = scratch.take<uint32_t>(pairs);
    outside_ = scratch.take<int32_t>(cols + 2);
    nothing_ = scratch.take<uint64_t>(words_of(most(cols, rows)));
    shared_ = scratch.take<uint64_t>(words_of(cols));
    set_ = scratch.take<uint64_t>(words_of(2 * most(cols, rows)));
    reach_ = scratch.take<uint64_t>(words_of(most(cols, rows)));
    kinds_ = scratch.take<uint64_t>(4 * words_of(2 * cols));
    either_ = scratch.take<uint64_t>(words_of(2 * cols));
    masked_frames_ = scratch.take<uint64_t>(job_.together * words_of(job_.infer.input.frames));
    masked_bins_ = scratch.take<uint64_t>(job_.together * words_of(job_.infer.input.bins));
    if (job_.head != nullptr) {
      heads_ = FrameByFrame<S>(*job_.head, job_.together, scratch);
      copies_y_ = scratch.take<T>(job_.together * 2 * last_.bins * out_);
      frame_ = scratch.take<const T*>(last_.bins);
    }
    base_y_ = scratch.take<T>(last_.frames * last_.bins * out_);
    constant_y_ = scratch.take<T>(4 * last_.samples() * out_);
  }

  static Input unmasked(Input input) {
    input.stripes = nullptr;
    input.num_stripes = 0;
    return input;
  }

  // A clip of zeros: all that the copies may need of it.
  void find_constants() {
    const int64_t n = job_.infer.num_blocks;
    const Grid& input = stages_[0].in;
    std::memset(nothing_, 0, size_t(words_of(most(input.cols, input.rows))) * sizeof *nothing_);
    std::memset(outside_, 0, size_t(stages_[0].in.cols + 2) * sizeof *outside_);
    for (int64_t i = 0; i < n; ++i) {
      const Stage& stage = stages_[i];
      stage.cells.clear(1 + stage.constants);
      const Samples rows(stage.in.rows);
      for (int64_t k = 0; k < rows.count() * stage.in.cols; ++k) {
        const int64_t row = rows.cell(k / stage.in.cols), col = k % stage.in.cols;
        stage.constant_places[k] = stage.cells.place(stage.constant_slot(row, col));
      }
      std::memset(stage.places, 0,
                  size_t((job_.together + 1) * kLive * (stage.in.cols + 2)) * sizeof(int32_t));
    }
    for (int64_t i = 0; i < n; ++i) {
      const Stage& stage = stages_[i];
      const Grid& grid = stage.result;
      outputs_.clear();
      const Samples rows(grid.rows), cols(grid.cols);
      for (int64_t k = 0; k < 4 * grid.samples(); ++k) {
        const int64_t row = rows.cell(k / 4 / cols.count()), col = cols.cell(k / 4 % cols.count());
        if (!grid.inside(row, col, k % 4)) continue;
        const int64_t t = 2 * row + k % 4 / 2, f = 2 * col + k % 2;
        const Around around = {constant(stage, t - 1, f), constant(stage, t, f - 1),
                               constant(stage, t, f), constant(stage, t, f + 1),
                               constant(stage, t + 1, f)};
        outputs_.add(around, int32_t(i + 1 < n ? stages_[i + 1].cells.place(1 + k / 4, k % 4) : k));
      }
      if (i + 1 < n) {
        project(i + 1);
      } else {
        cross(stage, [&](int64_t from, int64_t count) {
          for (int64_t k = 0; k < count; ++k) keep(constant_y_, outputs_.targets()[from + k], k);
        });
      }
    }
  }

  int32_t constant(const Stage& stage, int64_t row, int64_t col) const {
    const bool inside = row >= 0 && row < stage.in.rows && col >= 0 && col < stage.in.cols;
    return inside ? stage.cells.place(stage.constant_slot(row, col)) : 0;
  }

  bool run_copies() {
    for (int64_t i = 0; i < job_.infer.num_blocks; ++i) stages_[i].next = 0;
    for (int64_t copy = 0; copy < count_; ++copy) {
      find_masked_along(copy, true, masked_frames(copy));
      find_masked_along(copy, false, masked_bins(copy));
    }
    find_twins();
    for (int64_t row = 0; row < stages_[0].in.rows; ++row) {
      if (with_base_ && !load_row(row)) return false;
      moves_count_ = 0;
      own_slot_ = stages_[0].own_slots(row);
      place_base(0, row);
      for (int64_t copy = 0; copy < count_; ++copy) {
        find_kinds(0, copy, row);
        place(0, copy, row);
      }
      stages_[0].cells.move(moves_, moves_count_);
      pass_on(0, row);
    }
    for (int64_t copy = 0; job_.head != nullptr && copy < count_; ++copy) {
      heads_.finish(copy, clip_ * job_.copies + first_ + copy);
    }
    return true;
  }

  // The base's x.
  bool load_row(int64_t row) {
    const Stage& stage = stages_[0];
    T* const cells = stage.cells.base() + stage.cells.place(stage.base_slots(row));
    bool right = true;
    for (int64_t a = 0; a < 2; ++a) {
      T* const to = cells + 2 * a;
      const int64_t t = 2 * row + a;
      const int64_t bins = t < stage.frames ? stage.bins : 0;
      if (bins > 0) {
        load_.row(clip_, t, [&](const auto& x) {
          right = within(x, 1, bins, *limit_);
          for (int64_t f = 0; f < bins; ++f) to[4 * (f / 2) + f % 2] = x.at(f, 0);
        });
      }
      for (int64_t f = bins; f < 2 * stage.in.cols; ++f) to[4 * (f / 2) + f % 2] = 0;
      if (!right) return false;
    }
    return true;
  }

  // Row `row` of stage i's cells is there: makes the rows of the next that need no other.
  void pass_on(int64_t i, int64_t row) {
    Stage& stage = stages_[i];
    while (stage.next < stage.result.rows) {
      const int64_t last_output = least(2 * stage.next + 1, stage.frames_out - 1);
      if (least(last_output + 1, stage.in.rows - 1) > row) return;
      const int64_t next = stage.next++;
      if (i + 1 < job_.infer.num_blocks) {
        make_row(i + 1, next);
        pass_on(i + 1, next);
      } else {
        put_out(next);
      }
    }
  }

  // Cells that go into stage i, from the outputs of the stage before.
  void make_row(int64_t i, int64_t row) {
    outputs_.clear();
    moves_count_ = 0;
    own_slot_ = stages_[i].own_slots(row);
    place_base(i, row);
    if (with_base_) list_base(i, row);
    for (int64_t copy = 0; copy < count_; ++copy) {
      find_kinds(i, copy, row);
      place(i, copy, row);
      const int32_t* const to = places(stages_[i], copy, row);
      list_mixed(i, copy, row, shared_, [&](int64_t a, int64_t f) {
        return to[f / 2] + stages_[i].cells.place(0, 2 * a + f % 2);
      });
    }
    project(i);
    stages_[i].cells.move(moves_, moves_count_);
  }

  // Two rows of the result.
  void put_out(int64_t row) {
    const int64_t n = job_.infer.num_blocks;
    const Stage& stage = stages_[n - 1];
    outputs_.clear();
    if (with_base_) list_base(n, row);
    cross(stage, [&](int64_t from, int64_t count) {
      for (int64_t k = 0; k < count; ++k) keep(base_y_, outputs_.targets()[from + k], k);
    });
    outputs_.clear();
    for (int64_t copy = 0; copy < count_; ++copy) {
      find_kinds(n, copy, row);
      if (job_.head == nullptr) put_known(copy, row);
      list_mixed(n, copy, row, nothing_,
                 [&](int64_t a, int64_t f) { return int32_t((copy * 2 + a) * last_.bins + f); });
    }
    cross(stage, [&](int64_t from, int64_t count) {
      for (int64_t k = 0; k < count; ++k) {
        const int64_t at = outputs_.targets()[from + k], copy_row = at / last_.bins;
        if (job_.head != nullptr) {
          keep(copies_y_, at, k);
        } else {
          put(list_ + k * L, kListStride, copy_row / 2, 2 * row + copy_row % 2, at % last_.bins);
        }
      }
    });
    for (int64_t copy = 0; job_.head != nullptr && copy < count_; ++copy) pool(copy, row);
  }

  // f(position, its vectors) of those in a row of two that are the base's or constant.
  template <class F>
  FASTSEP_INLINE void each_known(int64_t row, int64_t a, F f) const {
    const int64_t t = 2 * row + a;
    for (int64_t bin = 0; bin < last_.bins; ++bin) {
      if (!has_bit(not_base_[a], bin)) {
        f(bin, base_y_ + (t * last_.bins + bin) * out_);
      } else if (!has_bit(not_constant_[a], bin)) {
        f(bin, constant_y_ + (4 * last_.sample(row, bin / 2) + 2 * a + bin % 2) * out_);
      }
    }
  }

  // Those positions of a copy's two rows that are not its own.
  void put_known(int64_t copy, int64_t row) const {
    for (int64_t a = 0; a < rows_in(last_, row); ++a) {
      each_known(row, a, [&](int64_t f, const T* y) { put(y, L, copy, 2 * row + a, f); });
    }
  }

  // Two rows of a copy's result, into its head.
  void pool(int64_t copy, int64_t row) {
    find_kinds(job_.infer.num_blocks, copy, row);
    for (int64_t a = 0; a < rows_in(last_, row); ++a) {
      for (int64_t f = 0; f < last_.bins; ++f) {
        frame_[f] = copies_y_ + ((copy * 2 + a) * last_.bins + f) * out_;
      }
      each_known(row, a, [&](int64_t f, const T* y) { frame_[f] = y; });
      heads_.add(copy, row == 0 && a == 0, frame_);
    }
  }

  static int64_t rows_in(const Grid& grid, int64_t row) { return least(2, grid.frames - 2 * row); }

  const Grid& grid(int64_t i) const { return i < job_.infer.num_blocks ? stages_[i].in : last_; }

  int32_t* places(const Stage& stage, int64_t copy, int64_t row) const {
    if (row < 0 || row >= stage.in.rows) return outside_ + 1;
    return stage.places + ((copy + 1) * kLive + row % kLive) * (stage.in.cols + 2) + 1;
  }

  uint64_t* bits(const Stage& stage, int64_t copy, int64_t row, int64_t kind) const {
    if (row < 0 || row >= stage.in.rows) return nothing_;
    return stage.bits + ((copy * kLive + row % kLive) * 2 + kind) * words_of(stage.in.cols);
  }

  // Of the positions in a row of cells of grid i.
  void find_kinds(int64_t i, int64_t copy, int64_t row) {
    const Grid& map = grid(i);
    for (int64_t a = 0; a < 2; ++a) {
      not_base_[a] = kinds_ + a * words_of(map.bins);
      not_constant_[a] = kinds_ + (2 + a) * words_of(map.bins);
      const int64_t t = 2 * row + a;
      if (t >= map.frames) {
        for (int64_t w = 0; w < words_of(map.bins); ++w) not_base_[a][w] = not_constant_[a][w] = 0;
      } else if (i == 0) {
        find_masked(copy, t, not_base_[a]);
        for (int64_t w = 0; w < words_of(map.bins); ++w) {
          not_constant_[a][w] = bits_below(map.bins, w) & ~not_base_[a][w];
        }
      } else {
        const Stage& from = stages_[i - 1];
        for (int64_t kind = 0; kind < 2; ++kind) {
          reached_from(bits(from, copy, t, kind), bits(from, copy, t - 1, kind),
                       bits(from, copy, t + 1, kind), from.in.cols, map.bins,
                       (kind == 0 ? not_base_ : not_constant_)[a]);
        }
      }
    }
  }

  // (num_stripes, 3) of a copy.
  const int32_t* stripes_of(int64_t copy) const {
    const Input& input = job_.infer.input;
    return input.stripes + (clip_ * job_.copies + first_ + copy) * input.num_stripes * 3;
  }

  uint64_t* masked_frames(int64_t copy) const {
    return masked_frames_ + copy * words_of(job_.infer.input.frames);
  }

  uint64_t* masked_bins(int64_t copy) const {
    return masked_bins_ + copy * words_of(job_.infer.input.bins);
  }

  // The frames or bins that stripes of a copy cover all along.
  void find_masked_along(int64_t copy, bool frames, uint64_t* set) const {
    const Input& input = job_.infer.input;
    const int64_t positions = frames ? input.frames : input.bins;
    for (int64_t w = 0; w < words_of(positions); ++w) set[w] = 0;
    const int32_t* stripe = stripes_of(copy);
    for (int64_t s = 0; s < input.num_stripes; ++s, stripe += 3) {
      const int64_t start = most(stripe[1], 0), stop = least(stripe[2], positions);
      if (stripe[0] == (frames ? 0 : 1) && start < stop) add_bits(set, start, stop);
    }
  }

  // f(twins, cells) of each stage, for the rows or columns of cells that depend on a set of frames
  // or bins, which is overwritten.
  template <class F>
  void each_reach(uint64_t* set, bool along_time, F f) const {
    for (int64_t i = 0; i < job_.infer.num_blocks; ++i) {
      const Stage& stage = stages_[i];
      pairs_of(set, along_time ? stage.in.frames : stage.in.bins, reach_);
      f(stage.twins, reach_);
      reached_from(reach_, nothing_, nothing_, along_time ? stage.in.rows : stage.in.cols,
                   along_time ? stage.frames_out : stage.bins_out, set);
    }
  }

  // Each copy against those before it.
  void find_twins() const {
    const Input& input = job_.infer.input;
    const int64_t words = words_of(input.bins);
    for (int64_t copy = 0; copy < count_; ++copy) {
      std::memcpy(set_, masked_frames(copy), size_t(words_of(input.frames)) * sizeof *set_);
      each_reach(set_, true,
                 [&](const Twins& twins, const uint64_t* rows) { twins.add(copy, rows); });
      const uint64_t* const bins = masked_bins(copy);
      const auto mix = [&](const Twins& twins, const uint64_t* cols) { twins.mix(copy, cols); };
      for (int64_t w = 0; w < words; ++w) set_[w] = bins[w];
      each_reach(set_, false, mix);
      for (int64_t w = 0; w < words; ++w) set_[w] = bits_below(input.bins, w) & ~bins[w];
      each_reach(set_, false, mix);
      for (int64_t other = 0; other < copy; ++other) {
        for (int64_t w = 0; w < words; ++w) set_[w] = bins[w] ^ masked_bins(other)[w];
        each_reach(set_, false, [&](const Twins& twins, const uint64_t* differ) {
          twins.compare(copy, other, differ);
        });
      }
    }
  }

  // The bins of frame t that the copy's stripes cover.
  void find_masked(int64_t copy, int64_t t, uint64_t* set) const {
    const Input& input = job_.infer.input;
    const bool all = has_bit(masked_frames(copy), uint64_t(t));
    const uint64_t* const bins = masked_bins(copy);
    for (int64_t w = 0; w < words_of(input.bins); ++w) {
      set[w] = all ? bits_below(input.bins, w) : bins[w];
    }
  }

  void place_base(int64_t i, int64_t row) const {
    const Stage& stage = stages_[i];
    int32_t* const to = places(stage, kBase, row);
    for (int64_t col = 0; col < stage.in.cols; ++col) {
      to[col] = stage.cells.place(stage.base_slots(row) + col);
    }
  }

  // The kinds of a row's cells, from those of its positions: often as in the row before.
  void find_cells(const Stage& stage, int64_t copy, int64_t row) {
    const int64_t bins = stage.in.bins, words = words_of(bins), cells = words_of(stage.in.cols);
    const size_t size = size_t(4 * words) * sizeof *kinds_;
    uint64_t* const last = stage.kinds + copy * 4 * words;
    if (row > 0 && std::memcmp(last, kinds_, size) == 0) {
      std::memcpy(bits(stage, copy, row, 0), bits(stage, copy, row - 1, 0),
                  size_t(2 * cells) * sizeof *kinds_);
      return;
    }
    std::memcpy(last, kinds_, size);
    for (int64_t kind = 0; kind < 2; ++kind) {
      const uint64_t* const* const rows = kind == 0 ? not_base_ : not_constant_;
      for (int64_t w = 0; w < words; ++w) either_[w] = rows[0][w] | rows[1][w];
      pairs_of(either_, bins, bits(stage, copy, row, kind));
    }
    // What a cell's own products do not fill.
    for (int64_t w = 0; w < words; ++w) {
      either_[w] = ~(not_base_[0][w] & not_constant_[0][w] & not_base_[1][w] & not_constant_[1][w]);
    }
    pairs_of(either_, bins, stage.partial + copy * cells);
  }

  // Where a copy's cells are: the base's, constant ones, or its own, of which it lists what is to
  // be filled in.
  void place(int64_t i, int64_t copy, int64_t row) {
    const Stage& stage = stages_[i];
    const Grid& map = stage.in;
    const int32_t* const base = places(stage, kBase, row);
    const int32_t* const constant = stage.constant_places + Samples(map.rows).of(row) * map.cols;
    int32_t* const to = places(stage, copy, row);
    std::memcpy(to, base, size_t(map.cols) * sizeof *to);
    find_cells(stage, copy, row);
    const uint64_t* const partial = stage.partial + copy * words_of(map.cols);
    const uint64_t* const not_base = bits(stage, copy, row, 0);
    const uint64_t* const not_constant = bits(stage, copy, row, 1);
    for (int64_t w = 0; w < words_of(map.cols); ++w) shared_[w] = 0;
    stage.twins.each(copy, row, [&](int64_t twin, const uint64_t* cols) {
      const int32_t* const from = places(stage, twin, row);
      for (int64_t w = 0; w < words_of(map.cols); ++w) {
        each_bit(cols[w] & ~shared_[w], w, [&](int64_t col) { to[col] = from[col]; });
        shared_[w] |= cols[w];
      }
    });
    for (int64_t w = 0; w < words_of(map.cols); ++w) {
      each_run(not_base[w] & ~not_constant[w], w, [&](int64_t col, int64_t stop) {
        for (; col < stop; ++col) to[col] = constant[col];
      });
      const uint64_t own = not_base[w] & not_constant[w] & ~shared_[w];
      each_bit(own, w, [&](int64_t col) { to[col] = stage.cells.place(own_slot_++); });
      each_bit(own & partial[w], w, [&](int64_t col) {
        // Without branches, which could not be predicted. Outside the map the base has its zeros.
        const uint64_t masked = bits_of_cell(not_base_, col),
                       not_all = bits_of_cell(not_constant_, col);
        const int32_t from[] = {base[col], constant[col]};
        for (int64_t p = 0; p < 4; ++p) {
          const int32_t offset = stage.cells.place(0, p);
          moves_[moves_count_] = {to[col] + offset, from[masked >> p & 1] + offset};
          moves_count_ += (~(masked & not_all) >> p) & 1;  // the others are its own products
        }
      });
    }
  }

  // Of sets of two rows, the four positions of a cell.
  static uint64_t bits_of_cell(const uint64_t* const* rows, int64_t col) {
    const auto of_row = [&](int64_t a) { return rows[a][col / 32] >> 2 * col % 64 & 3; };
    return of_row(0) | of_row(1) << 2;
  }

  // All of the base's outputs that become a row of cells of grid i, and what is zero beside them.
  void list_base(int64_t i, int64_t row) {
    const Grid& map = grid(i);
    const Near near[] = {around(i, kBase, 2 * row), around(i, kBase, 2 * row + 1)};
    const auto target = [&](int64_t a, int64_t f) {
      if (i == job_.infer.num_blocks) return int32_t((2 * row + a) * map.bins + f);
      return places(stages_[i], kBase, row)[f / 2] + stages_[i].cells.place(0, 2 * a + f % 2);
    };
    for (int64_t w = 0; w < words_of(map.bins); ++w) {
      const uint64_t all = bits_below(map.bins, w);
      list_word(near, w, all, rows_in(map, row) == 2 ? all : 0, target);
    }
    if (i == job_.infer.num_blocks) return;
    for (int64_t col = 0; col < map.cols; ++col) {
      for (int64_t p = 0; p < 4; ++p) {
        if (map.inside(row, col, p)) continue;
        const int32_t offset = stages_[i].cells.place(0, p);
        moves_[moves_count_++] = {places(stages_[i], kBase, row)[col] + offset, offset};
      }
    }
  }

  // A copy's own, but for cells that it shares: target(row of two, position) says where it goes.
  template <class Target>
  void list_mixed(int64_t i, int64_t copy, int64_t row, const uint64_t* shared, Target target) {
    const Near near[] = {around(i, copy, 2 * row), around(i, copy, 2 * row + 1)};
    for (int64_t w = 0; w < words_of(grid(i).bins); ++w) {
      const uint64_t rest = ~doubled(shared[w / 2] >> w % 2 * 32);
      list_word(near, w, not_base_[0][w] & not_constant_[0][w] & rest,
                not_base_[1][w] & not_constant_[1][w] & rest, target);
    }
  }

  // What an output row of the stage before grid i reads.
  Near around(int64_t i, int64_t copy, int64_t t) const {
    const Stage& stage = stages_[i - 1];
    return {places(stage, copy, t - 1), places(stage, copy, t), places(stage, copy, t + 1)};
  }

  // Outputs of two rows, as word w of their sets has them: whole cells apart.
  template <class Target>
  void list_word(const Near* near, int64_t w, uint64_t upper, uint64_t lower, Target target) {
    constexpr uint64_t even = 0x5555555555555555;
    const uint64_t both = upper & lower, whole = both & both >> 1 & even;
    each_bit(whole, w, [&](int64_t f) { outputs_.add_four(near, f, target); });
    const uint64_t rest[] = {upper & ~(whole | whole << 1), lower & ~(whole | whole << 1)};
    for (int64_t a = 0; a < 2; ++a) {
      each_bit(rest[a], w, [&](int64_t f) { outputs_.add(near[a].at(f), target(a, f)); });
    }
  }

  // The listed outputs of a stage, piece by piece: take(first, count) finds a piece in list_.
  template <class Take>
  void cross(const Stage& stage, Take take) {
    outputs_.close();
    for (int64_t first = 0; first < outputs_.count(); first += kChunk) {
      const int64_t count = least(kChunk, outputs_.count() - first);
      const int64_t before = least(first / 4, outputs_.num_fours());
      const int64_t num_fours = least(count / 4, outputs_.num_fours() - before);
      const AroundFour* const fours = outputs_.fours() + before;
      const Around* const singles = outputs_.singles() + first - 4 * before;
      const int64_t num_singles = count - 4 * num_fours;
      if (stage.lone) {
        for (int64_t g = 0; g < stage.groups; g += kTileVectors) {
          with_count<kTileVectors>(least(kTileVectors, stage.groups - g), [&](auto nv) {
            pooled_lone_cells<T, decltype(nv)::value>(
                stage.packed.taps + g * Taps<T>::kSize, stage.cells, fours, num_fours, singles,
                num_singles, list_ + g * kListStride, kListStride);
          });
        }
      } else {
        pooled_cells(stage.packed.taps, stage.cells, stage.groups, fours, num_fours, singles,
                     num_singles, list_, kListStride);
      }
      take(first, count);
    }
  }

  // The listed outputs of the stage before, through stage i's product to where their cells lie.
  void project(int64_t i) {
    const Stage& stage = stages_[i];
    const Blocked<T> list{list_, kListStride};
    cross(stages_[i - 1], [&](int64_t first, int64_t count) {
      const AsListed place{outputs_.targets() + first};
      T* const z = stage.cells.base();
      const int64_t stride = 4 * L;
      if constexpr (dot) {
        round_to_pairs(list, stage.block.in, count, pairs_);
        project_to(place, BlockedPairs{pairs_, pairs_stride(count)}, count, stage.packed.panels, z,
                   stride, [] {});
      } else {
        project_to(place, list, count, stage.packed.panels, z, stride, [] {});
      }
    });
  }

  // Output k of the list, as position `at` of a map of all channels.
  void keep(T* map, int64_t at, int64_t k) const {
    for (int64_t g = 0; g < out_ / L; ++g) {
      store(map + at * out_ + g * L, load(list_ + g * kListStride + k * L));
    }
  }

  // One position of a copy's result, from vectors `step` elements apart.
  void put(const T* from, int64_t step, int64_t copy, int64_t t, int64_t f) const {
    Map y = job_.infer.y;
    y.data = static_cast<S*>(y.data) + f * y.f;
    store_blocked<S>(from, step, y, clip_ * job_.copies + first_ + copy, t,
                     stages_[job_.infer.num_blocks - 1].block.out, 1);
  }

  static constexpr int64_t kListStride = (kChunk | 1) * L;
  static constexpr int64_t kMostSamples = 16;

  const Masked& job_;
  const T* limit_;
  Stage* stages_;
  Load<S> load_;
  Grid last_{0, 0};  // the result
  int64_t out_ = 0;  // its channels, in whole vectors
  T *base_y_, *constant_y_;
  // With a head: two rows of each copy, [copy][row of two][bin][C], and where a row's bins are.
  FrameByFrame<S> heads_;
  T* copies_y_ = nullptr;
  const T** frame_ = nullptr;

  int64_t clip_ = 0, first_ = 0, count_ = 0;  // the copies that are computed
  bool with_base_ = true;

  Outputs outputs_;
  Move* moves_;
  int64_t moves_count_ = 0;
  int64_t own_slot_ = 0;
  T* list_;
  uint32_t* pairs_;
  int32_t* outside_;                          // places in a row outside the map
  uint64_t* nothing_;                         // bits of such a row
  uint64_t* kinds_;                           // of a copy's positions in a row of cells:
  uint64_t *not_base_[2], *not_constant_[2];  // sets in each of its two rows
  uint64_t* either_;
  uint64_t *masked_frames_, *masked_bins_;  // [copy][frame], [copy][bin]
  uint64_t* shared_;                        // of a copy's cells in a row: those of a twin
  uint64_t *set_, *reach_;                  // while twins are looked for
};

template <class S, bool dot>
constexpr MaskedKernels kMasked = {
    .takes = MaskedSweep<S, dot>::takes,
    .weights_bytes = MaskedSweep<S, dot>::weights_bytes,
    .pack = MaskedSweep<S, dot>::pack,
    .scratch_bytes = MaskedSweep<S, dot>::scratch_bytes,
    .run = MaskedSweep<S, dot>::run,
};

inline const MaskedKernels& masked_kernels(const Masked& job) {
  return kDotBf16 && job.infer.bf16 ? kMasked<float, kDotBf16> : kMasked<float, false>;
}

}  // namespace fastsep::FASTSEP_ISA
