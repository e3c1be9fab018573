// The second backward pass of a block in training: dy, from it the taps' gradients and dz, and from
// dz the pointwise weights' gradient and dx.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>

#include "../../kernels.h"
#include "../../parts/ahead.h"
#include "../../parts/dtypes.h"
#include "../../parts/kept.h"
#include "../../parts/product.h"
#include "../../parts/rows.h"
#include "../../parts/scratch.h"
#include "../../parts/vec.h"
#include "../load.h"
#include "lone_gradient.h"
#include "norm.h"
#include "norm_gradient.h"
#include "sums.h"

namespace fastsep::FASTSEP_ISA {

template <class T>
class TrainBackward {
  static constexpr int64_t L = kLanes<T>;

  struct Packed {
    Packed(Bump& bump, const Train& job, int64_t i) : Packed(bump, job.blocks[i].block) {
      if (finds_sums(job, i)) before = bump.take<T>(OutputSums<T>::packed_size(job.blocks[i - 1]));
      if (ends_lone(job, i)) before = bump.take<T>(LoneGradient<T>::packed_size(job));
    }
    Packed(Bump& bump, const Block& block)
        : panels{bump.take<T>(Panels<T>::size(block.out, block.in)), block.out, block.in},
          norm(bump.take<T>(ceil_div(block.out, L) * NormTaps<T>::kSize)),
          gradient(bump.take<T>(ceil_div(block.out, L) * NormGradient<T>::kSize)),
          flipped(bump.take<T>(ceil_div(block.out, L) * Taps<T>::kSize)) {}

    Panels<T> panels;
    T *norm, *gradient, *flipped;
    T* before = nullptr;  // for the sums, or all gradients, of the block before
  };

  static bool finds_sums(const Train& job, int64_t i) {
    return i > 0 && OutputSums<T>::are_found(job, i - 1);
  }
  // Whether this pass goes through the block before as well.
  static bool ends_lone(const Train& job, int64_t i) {
    return i == 1 && is_lone(job, 0) && job.blocks[0].wanted;
  }

 public:
  static size_t weights_bytes(const Train& job, int64_t i) {
    Bump bump(nullptr);
    Packed(bump, job, i);
    return bump.used();
  }

  static void pack(const Train& job, int64_t i, void* buffer) {
    Bump bump(buffer);
    const TrainBlock& b = job.blocks[i];
    const Packed packed(bump, job, i);
    packed.panels.pack(static_cast<const T*>(b.block.pointwise), 1, b.block.in);
    NormTaps<T>::pack(b, packed.norm);
    NormGradient<T>::pack(job, i, packed.gradient);
    Taps<T>::template pack<T>(b.block, packed.flipped, [](int64_t) { return T(1); });
    Taps<T>::flip(packed.flipped, ceil_div(b.block.out, L), packed.flipped);
    if (finds_sums(job, i)) OutputSums<T>::pack(job.blocks[i - 1], packed.before);
    if (ends_lone(job, i)) LoneGradient<T>::pack(job, packed.before);
  }

  static size_t scratch_bytes(const Train& job, int64_t i) {
    Bump weights(nullptr), scratch(nullptr), partial(nullptr);
    TrainBackward(job, i, weights, scratch, partial);
    return scratch.used();
  }

  static size_t partial_bytes(const Train& job, int64_t i) {
    Bump weights(nullptr), scratch(nullptr), partial(nullptr);
    TrainBackward(job, i, weights, scratch, partial);
    return partial.used();
  }

  static void run(const Train& job, int64_t i, const void* weights, void* scratch, void* partial,
                  int64_t group) {
    Bump packed(const_cast<void*>(weights)), bump(scratch), sums(partial);
    TrainBackward pass(job, i, packed, bump, sums);
    if (sums.used() > 0) std::memset(partial, 0, sums.used());
    pass.z_.clear();
    pass.dy_.clear();
    const int64_t items = job.input.clips * job.spans;
    for (int64_t k = items * group / job.groups; k < items * (group + 1) / job.groups; ++k) {
      pass.run_span(k / job.spans, k % job.spans);
    }
  }

  // Adds the groups' sums in their order and rounds once.
  static void finish(const Train& job, int64_t i, void* partials) {
    const TrainBlock& b = job.blocks[i];
    const int64_t groups_out = ceil_div(b.block.out, L), in = b.block.in;
    const size_t stride = partial_bytes(job, i);
    Bump weights(nullptr), scratch(nullptr), sums(partials);
    const TrainBackward first(job, i, weights, scratch, sums);
    const auto total = [&](const auto* p) { return over_groups(job, p, stride); };
    if (b.d_pointwise != nullptr) {
      T* to = static_cast<T*>(b.d_pointwise);
      constexpr int64_t lanes = kLanes<double>;
      for (int64_t k = 0; k < in; ++k) {
        for (int64_t c = 0; c < b.block.out; c += lanes) {
          Vec<double> sum = {};
          const T* p = first.d_pointwise_ + k * groups_out * L + c;
          for (int64_t g = 0; g < job.groups; ++g) sum += widened(after(p, size_t(g) * stride));
          const int64_t count = least(lanes, b.block.out - c);
          for (int64_t l = 0; l < count; ++l) to[(c + l) * in + k] = T(sum[l]);
        }
      }
    }
    if (b.d_time_taps != nullptr) {
      T *time = static_cast<T*>(b.d_time_taps), *freq = static_cast<T*>(b.d_freq_taps);
      for (int64_t c = 0; c < b.block.out; ++c) {
        const T* lane = first.d_taps_ + c / L * Taps<T>::kSize + c % L;
        time[3 * c] = T(total(lane));
        freq[3 * c] = T(total(lane + L));
        time[3 * c + 1] = freq[3 * c + 1] = T(total(lane + 2 * L));
        freq[3 * c + 2] = T(total(lane + 3 * L));
        time[3 * c + 2] = T(total(lane + 4 * L));
      }
    }
    if (first.before_) first.before_->finish(total);
    if (first.lone_) first.lone_->finish(job, total);
    if (i == 0 && job.d_scale != nullptr) {
      for (int64_t f = 0; f < job.input.bins; ++f) {
        static_cast<T*>(job.d_scale)[f] = T(total(first.d_scale_ + f));
        static_cast<T*>(job.d_shift)[f] = T(total(first.d_shift_ + f));
      }
    }
  }

 private:
  TrainBackward(const Train& job, int64_t i, Bump& weights, Bump& scratch, Bump& partial)
      : job_(job),
        index_(i),
        b_(job.blocks[i]),
        wants_affine_(i == 0 && job.d_scale != nullptr),
        wants_dx_(i > 0 ? job.blocks[i - 1].wanted : job.dx.data != nullptr || wants_affine_),
        sizes_(sizes_of(job, i)),
        groups_(ceil_div(sizes_.block.out, L)),
        stride_(blocked_stride<T>(sizes_.bins)),
        packed_(weights, job, i),
        load_(job.input, i > 0 || job.input.x.c != 1, scratch),
        z_(job, i, scratch),
        grad_(job, i, 1, scratch),
        dy_(scratch, least(2 * sizes_.reach_t + 1, sizes_.frames), sizes_.block.out, sizes_.bins,
            sizes_.frames, sizes_.reach_f),
        dz_(scratch.take<T>(row_size<T>(sizes_.block.out, sizes_.bins))),
        d_pointwise_(
            partial.take<T>(b_.d_pointwise == nullptr ? 0 : sizes_.block.in * groups_ * L)),
        d_taps_(partial.take<T>(groups_ * Taps<T>::kSize)),
        d_scale_(partial.take<double>(wants_affine_ ? sizes_.bins : 0)),
        d_shift_(partial.take<double>(wants_affine_ ? sizes_.bins : 0)) {
    if (i > 0) {
      x_ = kept_x<T>(job, i);
      if (wants_dx_) into_ = kept_grad<T>(job, i - 1);
    }
    if (finds_sums(job, i)) before_.emplace(job, i - 1, packed_.before, partial);
    if (ends_lone(job, i)) {
      lone_.emplace(job, packed_.before, scratch, partial);
      dx_rows_ = LoneGradient<T>::most_rows(job);
    }
    dx_size_ = ceil_div(sizes_.block.in, L) * stride_;
    const bool is_kept = i > 0 && wants_dx_ && job.blocks[i - 1].grad != nullptr;
    if (!is_kept) dx_ = scratch.take<T>(dx_rows_ * dx_size_);
  }

  void run_span(int64_t n, int64_t span) {
    const int64_t frames = sizes_.frames, reach = sizes_.reach_t;
    own_begin_ = frames * span / job_.spans;
    own_end_ = frames * (span + 1) / job_.spans;
    grad_row_ = -1;
    if (lone_) lone_->start(n, own_begin_);
    first_dx_ = own_begin_;
    int64_t next = most(own_begin_ - reach, 0);
    for (int64_t t = own_begin_; t < own_end_; ++t) {
      for (; next < least(t + reach + 1, frames); ++next) find_dy(n, next);
      const Cross<T> dy{dy_[t - reach], dy_[t], dy_[t + reach], sizes_.reach_f * L};
      pooled_cross<T, 1, false>(packed_.flipped, groups_, &dy, dy_.group_stride(), 1, sizes_.bins,
                                dz_, stride_);
      if (b_.d_pointwise != nullptr) with_x(n, t);
      if (wants_dx_) find_dx(n, t);
      if (lone_ && (t + 1 == own_end_ || t + 1 == first_dx_ + dx_rows_)) {
        lone_->add(first_dx_, t + 1 - first_dx_, dx_row(n, first_dx_));
        first_dx_ = t + 1;
      }
    }
    if (lone_) lone_->end();
  }

  T* dx_row(int64_t n, int64_t t) const {
    if (dx_ == nullptr) return into_.row(n, t);
    return dx_ + (lone_ ? t - first_dx_ : 0) * dx_size_;
  }

  void find_dy(int64_t n, int64_t t) {
    const int64_t pool = sizes_.block.pool;
    const bool used = t / pool < sizes_.frames_out;  // else pooling dropped the row
    if (used && t / pool != grad_row_) {
      grad_row_ = t / pool;
      grad_data_ = grad_.row(n, grad_row_);
    }
    const Cross<T> z = z_(n, t);
    const bool own = t >= own_begin_ && t < own_end_;
    const auto find = pool == 2 ? (own ? &TrainBackward::template find_group<2, true>
                                       : &TrainBackward::template find_group<2, false>)
                                : (own ? &TrainBackward::template find_group<0, true>
                                       : &TrainBackward::template find_group<0, false>);
    for (int64_t g = 0; g < groups_; ++g) {
      (this->*find)(g, z.from(g * z_.group_stride()),
                    used ? grad_data_ + g * grad_.group_stride() : nullptr,
                    dy_[t] + g * dy_.group_stride());
    }
  }

  // A row of dy; of an own row what it adds to the taps' gradients, too.
  template <int P, bool own>
  void find_group(int64_t g, const Cross<T>& z, const T* grad, T* dy) {
    const int64_t p = P > 0 ? P : sizes_.block.pool;
    const NormTaps<T> norm = NormTaps<T>::read(packed_.norm + g * NormTaps<T>::kSize);
    const auto back = NormGradient<T>::read(packed_.gradient + g * NormGradient<T>::kSize);
    const Vec<T> zero = {};
    TapSums<T> sums;
    int64_t at = 0;
    const auto find = [&](Vec<T> full) __attribute__((always_inline)) {
      const auto values = CrossValues<T>::read(z, at);
      const Vec<T> v = norm.taps.apply(values);
      const Vec<T> result = (norm.a(v) <= zero ? zero : full) + (back.constant + back.by_v * v);
      store(dy + at, result);
      if constexpr (own) sums.add(values, result);
      at += L;
    };
    for (int64_t f = 0; grad != nullptr && f < sizes_.bins_out; ++f) {
      const Vec<T> full = load(grad + f * L) * back.by_da;
      for (int64_t k = 0; k < p; ++k) find(full);
    }
    while (at < sizes_.bins * L) find(zero);
    if constexpr (own) sums.add_to(d_taps_ + g * Taps<T>::kSize);
  }

  void with_x(int64_t n, int64_t t) {
    const auto add = [&](auto x) {
      correlate(x, sizes_.block.in, dz_, stride_, sizes_.block.out, sizes_.bins, d_pointwise_);
    };
    if (index_ == 0) {
      load_.row(n, t, add);
    } else {
      add(Blocked<T>{x_.row(n, t), stride_});
    }
  }

  // To what row t will read and write, for the product of the row before it.
  void look_ahead(int64_t n, int64_t t) {
    const int64_t row = (t + sizes_.reach_t) / sizes_.block.pool;
    ahead_.clear();
    z_.fetch(ahead_, n, t + sizes_.reach_t, 1);
    if (row != grad_row_ && row < sizes_.frames_out) grad_.fetch(ahead_, n, row);
    x_.fetch(ahead_, n, t, 1);
    into_.fetch(ahead_, n, t, 1);
    if (before_) before_->fetch(ahead_, n, t);
    if (lone_) lone_->fetch(ahead_, n, t);
    ahead_.spread(packed_.panels.steps(sizes_.bins, L));
  }

  void find_dx(int64_t n, int64_t t) {
    T* const to = dx_row(n, t);
    look_ahead(n, t + 1);
    project(Blocked<T>{dz_, stride_}, sizes_.bins, packed_.panels, to, stride_,
            [&] { ahead_.step(); });
    if (before_) before_->add(n, t, x_.row(n, t), to, stride_);
    if (index_ > 0) return;
    const Input& input = job_.input;
    const bool masked = load_.masks(n, 0, t);
    const T* x = row_of<T>(input.x, n, t);
    for (int64_t f = 0; f < sizes_.bins; ++f) {
      const bool none = masked || load_.masks(n, 1, f);
      for (int64_t c = 0; c < sizes_.block.in; ++c) {
        T& dx = to[c / L * stride_ + f * L + c % L];
        if (none) dx = 0;
        if (wants_affine_ && !none) {
          d_scale_[f] += double(dx) * double(x[c * input.x.c + f * input.x.f]);
          d_shift_[f] += double(dx);
        }
        if (input.scale != nullptr) dx *= static_cast<const T*>(input.scale)[f];
      }
    }
    if (job_.dx.data != nullptr) {
      store_blocked<T>(to, stride_, job_.dx, n, t, sizes_.block.in, sizes_.bins);
    }
  }

  const Train& job_;
  int64_t index_;
  const TrainBlock& b_;
  bool wants_affine_, wants_dx_;
  Sizes sizes_;
  int64_t groups_, stride_;
  Packed packed_;
  Load<T> load_;
  KeptCross<T> z_;
  OutputGradient<T> grad_;
  Ring<T> dy_;
  T *dz_, *dx_ = nullptr;     // dx_: rows of dx, where it is not kept
  T *d_pointwise_, *d_taps_;  // sums: [in][groups][L], and laid out as Taps
  double *d_scale_, *d_shift_;
  Kept<T> x_, into_;
  std::optional<OutputSums<T>> before_;  // one of these two at most
  std::optional<LoneGradient<T>> lone_;
  int64_t dx_size_ = 0, dx_rows_ = 1, first_dx_ = 0;  // so many rows are in dx_, from that one on
  Ahead ahead_;
  const T* grad_data_ = nullptr;
  int64_t own_begin_ = 0, own_end_ = 0, grad_row_ = -1;
};

}  // namespace fastsep::FASTSEP_ISA
