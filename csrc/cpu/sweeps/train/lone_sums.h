// What the gradients of a lone first block follow from: sums of da and da x over the cross, and
// moments of x. With dy = scale da + by_v (w x - mean) + constant, the gradient of the product w[k]
// is the sum of dy x[k]; those of the per-bin affine are the same sums taken bin by bin, with x as
// it was before the affine (raw) and with u, which is 1 where x is there: in the map, under no
// stripe.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../../kernels.h"
#include "../../parts/scratch.h"
#include "../../parts/vec.h"
#include "lone.h"
#include "norm_gradient.h"

namespace fastsep::FASTSEP_ISA {

constexpr int64_t kLonePairs = kTaps * (kTaps + 1) / 2;

// Where tap k of a cross stands along the bins.
FASTSEP_INLINE int64_t bin_of_tap(int64_t k, int64_t reach) {
  return k == 1 ? -reach : k == 3 ? reach : 0;
}
// Which of the rows above, at and below the centre it stands in.
FASTSEP_INLINE int64_t row_of_tap(int64_t k) { return k == 0 ? 0 : k == 4 ? 2 : 1; }

// Of a group of work, in double. Per channel: of da x[k] and da. Per bin, of the centre of the
// cross: sums over channels of w scale da raw[k] and of w scale da u[k], and moments of raw and u.
template <class T>
struct LoneSums {
  LoneSums(Bump& bump, const Train& job)
      : channels(ceil_div(job.blocks[0].block.out, kLanes<T>) * kLanes<T>),
        bins(job.input.bins),
        by_channel(bump.take<double>((kTaps + 1) * channels)),
        pairs(bump.take<double>(kLonePairs * bins)),
        x(bump.take<double>(kTaps * bins)),
        by_scale(bump.take<double>(job.input.scale != nullptr ? kTaps * bins : 0)),
        by_shift(bump.take<double>(job.input.scale != nullptr ? kTaps * bins : 0)),
        ux(bump.take<double>(job.input.scale != nullptr ? kTaps * kTaps * bins : 0)),
        uu(bump.take<double>(job.input.scale != nullptr ? kTaps * kTaps * bins : 0)) {}
  int64_t channels, bins;
  double *by_channel, *pairs, *x, *by_scale, *by_shift, *ux, *uu;

  static void finish(const Train& job, void* partials) {
    Bump bump(partials);
    const LoneSums s(bump, job);
    const size_t stride = bump.used();
    double* first = static_cast<double*>(partials);
    for (int64_t g = 1; g < job.groups; ++g) {
      const double* other = first + size_t(g) * stride / sizeof(double);
      for (size_t i = 0; i < stride / sizeof(double); ++i) first[i] += other[i];
    }
    const TrainBlock& b = job.blocks[0];
    const Block& block = b.block;
    const int64_t bins = job.input.bins;
    const Moments moments(job, s);
    double total_x[kTaps] = {}, total_xx[kTaps][kTaps] = {};  // over all bins
    for (int64_t k = 0; k < kTaps; ++k) {
      for (int64_t f = 0; f < bins; ++f) {
        total_x[k] += moments.of_x(k, f, moments.raw(k, f), moments.u(k, f));
        for (int64_t j = 0; j < kTaps; ++j) {
          total_xx[j][k] += moments.of_x(k, f, moments.x_raw(j, k, f), moments.x_u(j, k, f));
        }
      }
    }
    double matrix[kTaps][kTaps] = {}, vector[kTaps] = {};  // by_v w w and constant w, over channels
    for (int64_t c = 0; c < block.out; ++c) {
      const auto sum = [&](int64_t k) {
        return s.by_channel[k * s.channels + c] / double(block.pool * block.pool);
      };
      const Norm norm = norm_of<T>(b, c);
      double w[kTaps], taps[kTaps], dw[kTaps], by_v = -norm.mean * sum(kTaps);
      LoneTaps<T>::products(block, c, 1, w);
      cross_taps<T>(block, c, taps);
      for (int64_t k = 0; k < kTaps; ++k) by_v += w[k] * sum(k);
      b.sums[c] = sum(kTaps);
      b.sums[block.out + c] = by_v;
      const auto terms = NormGradient<T>::terms(job, 0, c);
      const double constant = terms.constant - terms.by_v * norm.mean;
      double d_pointwise = 0;
      for (int64_t k = 0; k < kTaps; ++k) {
        dw[k] = terms.scale * sum(k) + constant * total_x[k];
        for (int64_t j = 0; j < kTaps; ++j) {
          dw[k] += terms.by_v * w[j] * total_xx[j][k];
          matrix[j][k] += w[k] * terms.by_v * w[j];
        }
        vector[k] += w[k] * constant;
        d_pointwise += taps[k] * dw[k];
      }
      if (b.d_beta != nullptr) static_cast<T*>(b.d_beta)[c] = T(b.sums[c]);
      if (b.d_gamma != nullptr) static_cast<T*>(b.d_gamma)[c] = T(norm.rstd * by_v);
      if (b.d_pointwise != nullptr) static_cast<T*>(b.d_pointwise)[c] = T(d_pointwise);
      if (b.d_time_taps != nullptr) {
        const double p = double(static_cast<const T*>(block.pointwise)[c]);
        T* time = static_cast<T*>(b.d_time_taps) + 3 * c;
        T* freq = static_cast<T*>(b.d_freq_taps) + 3 * c;
        time[0] = T(p * dw[0]);
        freq[0] = T(p * dw[1]);
        time[1] = freq[1] = T(p * dw[2]);
        freq[2] = T(p * dw[3]);
        time[2] = T(p * dw[4]);
      }
    }
    if (job.d_scale == nullptr) return;
    const int64_t reach = sizes_of(job, 0).reach_f;
    for (int64_t f = 0; f < bins; ++f) {  // of x; the cross that reads it as tap k is around f - k
      double scale = 0, shift = 0;
      for (int64_t k = 0; k < kTaps; ++k) {
        const int64_t at = f - bin_of_tap(k, reach);
        if (at < 0 || at >= bins) continue;
        scale += s.by_scale[k * bins + at] + vector[k] * moments.raw(k, at);
        shift += s.by_shift[k * bins + at] + vector[k] * moments.u(k, at);
        for (int64_t j = 0; j < kTaps; ++j) {
          scale += matrix[j][k] * moments.x_raw(j, k, at);
          shift += matrix[j][k] * moments.x_u(j, k, at);
        }
      }
      static_cast<T*>(job.d_scale)[f] = T(scale);
      static_cast<T*>(job.d_shift)[f] = T(shift);
    }
  }

 private:
  // Moments of the bins, read off the sums. x: as the block sees it; raw: before the affine.
  struct Moments {
    Moments(const Train& job, const LoneSums& sums)
        : s(sums),
          affine(job.input.scale != nullptr),
          bins(job.input.bins),
          reach(sizes_of(job, 0).reach_f),
          scale(static_cast<const T*>(job.input.scale)),
          shift(static_cast<const T*>(job.input.shift)) {}

    // Where tap k of the cross around bin f reads, or -1 outside the map.
    int64_t bin_of(int64_t k, int64_t f) const {
      const int64_t at = f + bin_of_tap(k, reach);
      return at < bins ? at : -1;
    }
    double raw(int64_t k, int64_t f) const { return s.x[k * bins + f]; }
    double u(int64_t k, int64_t f) const { return affine ? s.uu[(k * kTaps + k) * bins + f] : 0; }
    double x_raw(int64_t j, int64_t k, int64_t f) const {
      const int64_t pair = j >= k ? j * (j + 1) / 2 + k : k * (k + 1) / 2 + j;
      return of_x(j, f, s.pairs[pair * bins + f], affine ? s.ux[(j * kTaps + k) * bins + f] : 0);
    }
    double x_u(int64_t j, int64_t k, int64_t f) const {
      if (!affine) return 0;
      return of_x(j, f, s.ux[(k * kTaps + j) * bins + f], s.uu[(j * kTaps + k) * bins + f]);
    }
    // From what tap j's raw x and its u give to what its x gives.
    double of_x(int64_t j, int64_t f, double of_raw, double of_u) const {
      const int64_t at = bin_of(j, f);
      if (!affine) return of_raw;
      return at < 0 ? 0 : double(scale[at]) * of_raw + double(shift[at]) * of_u;
    }

    const LoneSums& s;
    bool affine;
    int64_t bins, reach;
    const T *scale, *shift;
  };
};

}  // namespace fastsep::FASTSEP_ISA
