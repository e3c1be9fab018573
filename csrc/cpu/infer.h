// The inference sweep: clips stream through all blocks depth first along time. A row of input is
// projected into the first block's ring of z rows; as soon as a pooled row can be finished it is
// passed on to the next block, so that no map between blocks is ever written to memory. Fewer clips
// than threads are cut into strips of time, which stream at the same time.
#pragma once

namespace fastsep::FASTSEP_ISA {

// dot: products of bfloat16 pairs, for which rows are rounded on their way into each block.
template <class S, bool dot = false>
class Inference {
  using T = Compute<S>;
  static constexpr int64_t L = kLanes<T>;

  struct Packed {
    Packed(Bump& bump, const Block& block)
        : panels{nullptr, dot ? ceil_div(block.in, 2) : block.in, block.out},
          taps(bump.take<T>(ceil_div(block.out, L) * Taps<T>::kSize)) {
      panels.base = bump.take<T>(Panels<T>::size(panels.in, panels.out));
    }

    Panels<T> panels;
    T* taps;
  };

  struct Stage {
    Stage(const Block& b, int64_t t, int64_t f, Bump& weights, Bump& scratch)
        : block(b),
          frames(t),
          bins(f),
          frames_out(t / b.pool),
          bins_out(f / b.pool),
          reach_t(least(b.dilation, t)),
          reach_f(least(b.dilation, f)),
          direct(b.in == 1),
          batch(!direct && b.relu && b.pool == 2 && reach_t == 2 && reach_f == 2 ? 2 : 1),
          packed(weights, b),
          z(scratch, least(most(batch * b.pool + 2 * reach_t, 2 * b.pool + reach_t), t),
            direct ? 1 : b.out, f, t, reach_f, direct ? 1 : L),
          pairs(scratch.take<uint32_t>(dot ? row_size<T>(b.in, f) : 0)),
          y_size(row_size<T>(b.out, bins_out)),
          y(scratch.take<T>(batch * y_size)),
          window(scratch.take<Cross<T>>(b.pool)) {}

    // How often the work on one row of input or output stops to look ahead.
    int64_t steps_in() const { return direct ? 0 : packed.panels.steps(bins); }
    int64_t steps_out() const {
      const int64_t panels = ceil_div(block.out, kTileVectors * L);
      return direct ? panels * bins_out : block.pool * steps_in();
    }

    Block block;
    int64_t frames, bins, frames_out, bins_out;
    int64_t reach_t, reach_f;  // dilation, but never past the map
    bool direct;               // one input channel: the cross reads x itself and there is no z
    int64_t batch;             // how many pooled rows are finished at once, if there are as many
    Packed packed;
    // Of z, or of x if direct. As many rows as the pooled rows finished at once reach; or, where a
    // strip starts, as it may take (reach + 2 pool - 1) with the first of its own.
    Ring<T> z;
    uint32_t* pairs;  // the row to project, if dot
    int64_t y_size;
    T* y;              // the finished rows, blocked, no padding
    Cross<T>* window;  // the crosses of one pooled row

    int64_t begin = 0, end = 0;  // input rows of this strip
    int64_t next = 0, left = 0;  // pooled rows of this strip: the next one, and how many are left
    bool fresh = true;           // none of them is finished

    // Rows next to the seams at the strip's lower and upper end (in time), and how many are given.
    struct {
      Seam<T> give, take;
      int64_t given = 0;
    } seams[2];
  };

 public:
  static size_t weights_bytes(const Forward& job) {
    Bump bump(nullptr);
    for (int64_t i = 0; i < job.num_blocks; ++i) Packed(bump, job.blocks[i]);
    return bump.used();
  }

  static void pack(const Forward& job, void* buffer) {
    Bump bump(buffer);
    for (int64_t i = 0; i < job.num_blocks; ++i) {
      const Block& block = job.blocks[i];
      const Packed packed(bump, block);
      const S* p = static_cast<const S*>(block.pointwise);
      if constexpr (dot) {
        packed.panels.pack_each([&](int64_t o, int64_t k) {
          BFloat16 low, high = {0};
          narrow(widen(p[o * block.in + 2 * k]), low);
          if (2 * k + 1 < block.in) narrow(widen(p[o * block.in + 2 * k + 1]), high);
          return float_of(uint32_t{high.bits} << 16 | low.bits);
        });
      } else {
        packed.panels.pack(p, block.in, 1);
      }
      // A lone input channel's pointwise weights go into the taps, and so does what the sum over a
      // pooling window is divided by.
      Taps<T>::template pack<S>(
          block, packed.taps, [&](int64_t c) { return block.in == 1 ? widen(p[c]) : T(1); },
          T(1) / T(block.pool * block.pool));
    }
  }

  static size_t scratch_bytes(const Forward& job) {
    Bump weights(nullptr), scratch(nullptr);
    Inference(job, weights, scratch);
    return scratch.used();
  }

  static void run(const Forward& job, const void* weights, void* scratch, void* seams, int64_t clip,
                  int64_t strip) {
    Bump packed(const_cast<void*>(weights)), bump(scratch);
    Inference sweep(job, packed, bump);
    if (seams != nullptr) {
      sweep.plan_together(seams, strip);
    } else {
      sweep.plan_alone(strip);
    }
    sweep.strip(clip);
  }

  static size_t seams_bytes(const Forward& job) {
    Bump weights(nullptr), scratch(nullptr), bump(nullptr);
    Inference(job, weights, scratch).each_seam(bump, [](auto...) {});
    return bump.used();
  }

  static void clear_seams(const Forward& job, void* seams) {
    Bump weights(nullptr), scratch(nullptr), bump(seams);
    Inference(job, weights, scratch)
        .each_seam(bump, [](int64_t, int64_t, int64_t, const Seam<T>& seam) { seam.clear(); });
  }

  // A strip has to have all rows that its neighbours reach, in every block, and some of the output.
  static int64_t strips(const Forward& job, int64_t wanted) {
    const auto long_enough = [&](int64_t strips) {
      for (int64_t s = 0; s < strips; ++s) {
        int64_t frames = job.frames;
        for (int64_t i = 0; i < job.num_blocks; ++i) {
          const Block& block = job.blocks[i];
          const int64_t rows = cut(frames, s + 1, strips, i) - cut(frames, s, strips, i);
          if (rows < least(block.dilation, frames) + 2 * block.pool) return false;
          frames /= block.pool;
        }
        if (frames < strips) return false;
      }
      return true;
    };
    while (wanted > 1 && !long_enough(wanted)) --wanted;
    return wanted;
  }

 private:
  Inference(const Forward& job, Bump& weights, Bump& scratch)
      : job_(job),
        stages_(scratch.take<Stage>(job.num_blocks)),
        x_(scratch.take<T>(row_size<T>(job.blocks[0].in, job.bins))) {
    int64_t frames = job.frames, bins = job.bins;
    for (int64_t i = 0; i < job.num_blocks; ++i) {
      const Stage stage(job.blocks[i], frames, bins, weights, scratch);
      if (stages_ != nullptr) new (stages_ + i) Stage(stage);
      frames = stage.frames_out;
      bins = stage.bins_out;
    }
  }

  // The first of the `frames` rows that go into block i (or come out of the last one) which belongs
  // to strip k. Rounded down and up in turns, lest one strip have the longer part in every block.
  static int64_t cut(int64_t frames, int64_t k, int64_t strips, int64_t i) {
    return (frames * k + (i % 2 == 0 ? 0 : strips - 1)) / strips;
  }

  // All seams, in the order of their buffer: f(number of the strip above, stage, whether that strip
  // is the one that gives, seam).
  template <class F>
  void each_seam(Bump& bump, F f) const {
    Bump none(nullptr);
    for (int64_t k = 1; k < job_.strips; ++k) {
      int64_t frames = job_.frames, bins = job_.bins;
      for (int64_t i = 0; i < job_.num_blocks; ++i) {
        const Stage stage(job_.blocks[i], frames, bins, none, none);
        const int64_t at = cut(frames, k, job_.strips, i), size = stage.z.row_size();
        const int64_t centre = cut(stage.frames_out, k, job_.strips, i + 1) * stage.block.pool;
        f(k, i, 0, Seam<T>(bump, least(centre - stage.reach_t, at), at, size));
        f(k, i, 1, Seam<T>(bump, at, least(centre + stage.reach_t, frames), size));
        frames = stage.frames_out;
        bins = stage.bins_out;
      }
    }
  }

  // Strips that run at the same time cut every map at the same places and give each other the rows
  // next to the cuts. Pairs of them start at the cut between them, where they wait for each other
  // before either has done much, and run apart.
  void plan_together(void* seams, int64_t strip) {
    step_ = strip % 2 == 0 ? -1 : 1;
    for (int64_t i = 0; i < job_.num_blocks; ++i) {
      Stage& stage = stages_[i];
      stage.begin = cut(stage.frames, strip, job_.strips, i);
      stage.end = cut(stage.frames, strip + 1, job_.strips, i);
      const int64_t first = cut(stage.frames_out, strip, job_.strips, i + 1);
      const int64_t stop = cut(stage.frames_out, strip + 1, job_.strips, i + 1);
      stage.left = stop - first;
      stage.next = step_ > 0 ? first : stop - 1;
    }
    Bump bump(seams);
    each_seam(bump, [&](int64_t k, int64_t i, int64_t above_gives, const Seam<T>& seam) {
      if (k != strip && k != strip + 1) return;
      auto& own = stages_[i].seams[k - strip];
      const bool above = k == strip;
      (above == (above_gives == 1) ? own.give : own.take) = seam;
    });
  }

  // Alone, a strip computes all that its share of the last block's output needs, block by block
  // backwards.
  void plan_alone(int64_t strip) {
    const int64_t frames_out = stages_[job_.num_blocks - 1].frames_out;
    int64_t first = cut(frames_out, strip, job_.strips, job_.num_blocks);
    int64_t stop = cut(frames_out, strip + 1, job_.strips, job_.num_blocks);
    for (int64_t i = job_.num_blocks - 1; i >= 0; --i) {
      Stage& stage = stages_[i];
      stage.next = first;
      stage.left = stop - first;
      stage.begin = first = most(first * stage.block.pool - stage.reach_t, 0);
      stage.end = stop = least(stop * stage.block.pool + stage.reach_t, stage.frames);
    }
  }

  void strip(int64_t n) {
    for (int64_t i = 0; i < job_.num_blocks; ++i) stages_[i].z.clear();
    const Stage& first = stages_[0];
    const bool planar = first.direct || (job_.x.c != 1 && !dot);
    look_ahead(n);
    for (int64_t i = 0; i < first.end - first.begin; ++i) {
      const int64_t t = step_ > 0 ? first.begin + i : first.end - 1 - i;
      x_ahead_ = i + 1 == first.end - first.begin
                     ? Ahead()
                     : Ahead::rows<S>(job_.x, n, t + step_, 1, first.block.in, job_.bins,
                                      first.steps_in());
      if (first.direct) x_ahead_.step();  // at once: there is no product to spread it over
      if (planar) {
        const int64_t stride = planar_stride<T>(job_.bins);
        T* x = first.direct ? first.z[t] : x_;
        load_planar<S>(job_.x, n, t, first.block.in, job_.bins, x);
        prepare(n, t, [&](int64_t f, int64_t c) -> T& { return x[c * stride + f]; });
        push(0, n, t, Planar<T>{x, stride});
      } else {
        const int64_t stride = blocked_stride<T>(job_.bins);
        load_blocked<S>(job_.x, n, t, first.block.in, job_.bins, x_, stride);
        prepare(n, t,
                [&](int64_t f, int64_t c) -> T& { return x_[c / L * stride + f * L + c % L]; });
        push(0, n, t, Blocked<T>{x_, stride});
      }
    }
    for (int64_t i = 0; i < job_.num_blocks; ++i) {
      cross_seam(i, n, step_ > 0 ? 1 : 0, true);
    }
  }

  // Takes the rows beyond a seam; at the end of the strip they let the stage's last rows finish.
  void cross_seam(int64_t index, int64_t n, int64_t side, bool at_end) {
    const Stage& stage = stages_[index];
    const Seam<T>& seam = stage.seams[side].take;
    if (seam.rows() == 0) return;
    seam.await_given(n + 1);
    for (int64_t i = 0; i < seam.rows(); ++i) {
      const int64_t t = step_ > 0 ? seam.begin() + i : seam.stop() - 1 - i;
      seam.take(t, stage.z.row(t));
      if (at_end) finish_until(index, n, t);
    }
    seam.announce_taken(n + 1);
  }

  // The per-bin affine, then the stripes: masked values become 0 whatever they were.
  template <class Element>
  void prepare(int64_t n, int64_t t, Element element) {
    const int64_t channels = job_.blocks[0].in;
    if (job_.scale != nullptr) {
      const S* scale = static_cast<const S*>(job_.scale);
      const S* shift = static_cast<const S*>(job_.shift);
      for (int64_t c = 0; c < channels; ++c) {
        for (int64_t f = 0; f < job_.bins; ++f) {
          element(f, c) = element(f, c) * widen(scale[f]) + widen(shift[f]);
        }
      }
    }
    for (int64_t s = 0; s < job_.num_stripes; ++s) {
      const int32_t* stripe = job_.stripes + (n * job_.num_stripes + s) * 3;
      int64_t start = most(stripe[1], 0), stop = stripe[2];
      if (stripe[0] == 0) {
        if (t < start || t >= stop) continue;
        start = 0;
        stop = job_.bins;
      } else if (stripe[0] != 1) {
        continue;
      }
      for (int64_t c = 0; c < channels; ++c) {
        for (int64_t f = start; f < least(stop, job_.bins); ++f) element(f, c) = 0;
      }
    }
  }

  template <class Row>
  void push(int64_t index, int64_t n, int64_t t, Row row) {
    Stage& stage = stages_[index];
    const auto ahead = [&, first = index == 0, last = index + 1 == job_.num_blocks] {
      if (first) x_ahead_.step();
      if (last) y_ahead_.step();
    };
    if (stage.direct) {
      if constexpr (!std::is_same_v<Row, Planar<T>>) {  // else it is there already
        for (int64_t f = 0; f < stage.bins; ++f) stage.z[t][f] = row.at(f, 0);
      }
    } else if constexpr (dot && std::is_same_v<Row, Blocked<T>>) {
      round_to_pairs(row, stage.block.in, stage.bins, stage.pairs);
      project(BlockedPairs{stage.pairs, pairs_stride(stage.bins)}, stage.bins, stage.packed.panels,
              stage.z[t], stage.z.group_stride(), ahead);
    } else {
      project(row, stage.bins, stage.packed.panels, stage.z[t], stage.z.group_stride(), ahead);
    }
    for (auto& seam : stage.seams) {
      if (!seam.give.holds(t)) continue;
      if (seam.given == 0) seam.give.await_taken(n);
      seam.give.give(t, stage.z.row(t));
      if (++seam.given == seam.give.rows()) seam.give.announce_given(n + 1);
    }
    finish_until(index, n, t);
  }

  // Row t of z was the last to come: finishes the pooled rows that reach no further.
  void finish_until(int64_t index, int64_t n, int64_t t) {
    Stage& stage = stages_[index];
    const int64_t pool = stage.block.pool;
    while (stage.left > 0) {
      const int64_t count = least(stage.batch, stage.left);
      const int64_t first = step_ > 0 ? stage.next : stage.next - count + 1;
      if (step_ > 0 ? least((first + count) * pool - 1 + stage.reach_t, stage.frames - 1) > t
                    : most(first * pool - stage.reach_t, 0) < t) {
        return;
      }
      if (stage.fresh) cross_seam(index, n, step_ > 0 ? 0 : 1, false);
      stage.fresh = false;
      stage.next += count * step_;
      stage.left -= count;
      finish(stage, first, count);
      const int64_t stride = blocked_stride<T>(stage.bins_out);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t row = step_ > 0 ? i : count - 1 - i;
        const T* y = stage.y + row * stage.y_size;
        if (index + 1 < job_.num_blocks) {
          push(index + 1, n, first + row, Blocked<T>{y, stride});
        } else {
          store_blocked<S>(y, stride, job_.y, n, first + row, stage.block.out, stage.bins_out);
        }
      }
      if (index + 1 == job_.num_blocks) look_ahead(n);
    }
  }

  // To the pooled rows that the last block will finish next.
  void look_ahead(int64_t n) {
    const Stage& last = stages_[job_.num_blocks - 1];
    const int64_t count = least(last.batch, last.left);
    if (count == 0) return;
    const int64_t steps = count * last.steps_out();
    y_ahead_ = Ahead::rows<S>(job_.y, n, step_ > 0 ? last.next : last.next - count + 1, count,
                              last.block.out, last.bins_out, steps);
  }

  // Pooled rows q to q + count - 1.
  void finish(const Stage& stage, int64_t q, int64_t count) {
    const int64_t pool = stage.block.pool, d = stage.reach_t;
    if (count == 2) {
      const T* rows[8];
      for (int64_t i = 0; i < 8; ++i) rows[i] = stage.z[2 * q - 2 + i];
      pooled_cross_pair<T>(stage.packed.taps, ceil_div(stage.block.out, L), rows,
                           stage.z.group_stride(), stage.bins_out, stage.y,
                           blocked_stride<T>(stage.bins_out), stage.y_size);
      return;
    }
    for (int64_t i = 0; i < pool; ++i) {
      const int64_t t = q * pool + i;
      stage.window[i] = {stage.z[t - d], stage.z[t], stage.z[t + d],
                         stage.reach_f * (stage.direct ? 1 : L)};
    }
    if (!stage.block.relu) {
      finish<1, false>(stage);
    } else if (pool == 1) {
      finish<1, true>(stage);
    } else if (pool == 2) {
      finish<2, true>(stage);
    } else {
      finish<0, true>(stage);
    }
  }

  template <int P, bool rectify>
  void finish(const Stage& stage) {
    const int64_t groups = ceil_div(stage.block.out, L), stride = blocked_stride<T>(stage.bins_out);
    const int64_t pool = stage.block.pool;
    if (stage.direct) {
      const bool last = &stage == stages_ + job_.num_blocks - 1;
      for (int64_t g = 0; g < groups; g += kTileVectors) {
        with_count<kTileVectors>(least(kTileVectors, groups - g), [&](auto nv) {
          pooled_direct<T, P, rectify, decltype(nv)::value>(stage.packed.taps + g * Taps<T>::kSize,
                                                            stage.window, pool, stage.bins_out,
                                                            stage.y + g * stride, stride, [&] {
                                                              if (last) y_ahead_.step();
                                                            });
        });
      }
      return;
    }
    pooled_cross<T, P, rectify>(stage.packed.taps, groups, stage.window, stage.z.group_stride(),
                                pool, stage.bins_out, stage.y, stride);
  }

  const Forward& job_;
  Stage* stages_;
  T* x_;
  int64_t step_ = 1;  // along time
  Ahead x_ahead_, y_ahead_;
};

}  // namespace fastsep::FASTSEP_ISA
