// Back through a lone first block: everything follows from sums of da and da x over the cross, and
// from the moments of x. With dy = scale da + by_v (w x - mean) + constant, the gradient of the
// product w[k] is the sum of dy x[k]; those of the per-bin affine are the same sums taken bin by
// bin, with raw and u in place of x (see lone_moments.h). So no gradient of x is needed for them.
#pragma once

#include <cstdint>

#include "../../kernels.h"
#include "../../parts/scratch.h"
#include "../../parts/vec.h"
#include "lone.h"
#include "lone_moments.h"
#include "norm_gradient.h"

namespace fastsep::FASTSEP_ISA {

// Of a group of work, in double. Per channel: of da x[k] and da. Per bin, of the centre of the
// cross: sums over channels of w scale da raw[k] and of w scale da u[k].
template <class T>
struct LoneSums {
  LoneSums(Bump& bump, const Train& job)
      : channels(ceil_div(job.blocks[0].block.out, kLanes<T>) * kLanes<T>),
        bins(job.input.bins),
        by_channel(bump.take<double>((kTaps + 1) * channels)),
        by_scale(bump.take<double>(job.input.scale != nullptr ? kTaps * bins : 0)),
        by_shift(bump.take<double>(job.input.scale != nullptr ? kTaps * bins : 0)) {}
  int64_t channels, bins;
  double *by_channel, *by_scale, *by_shift;

  // total(p): what p points at, summed over the groups of work.
  template <class Total>
  void finish(const Train& job, Total total) const {
    const TrainBlock& b = job.blocks[0];
    const Block& block = b.block;
    double matrix[kTaps][kTaps] = {}, vector[kTaps] = {};  // by_v w w and constant w, over channels
    typename LoneMoments<T>::Totals x;
    if (!b.frozen) x = LoneMoments<T>::kept(job).totals();
    for (int64_t c = 0; c < block.out; ++c) {
      const Norm norm = norm_of<T>(b, c);
      double sum[kTaps + 1], w[kTaps], taps[kTaps], dw[kTaps];
      for (int64_t k = 0; k <= kTaps; ++k) {
        sum[k] = total(by_channel + k * channels + c) / double(block.pool * block.pool);
      }
      LoneTaps<T>::products(block, c, 1, w);
      cross_taps<T>(block, c, taps);
      double by_v = -norm.mean * sum[kTaps];
      for (int64_t k = 0; k < kTaps; ++k) by_v += w[k] * sum[k];
      b.sums[c] = sum[kTaps];
      b.sums[block.out + c] = by_v;
      const auto terms = NormGradient<T>::terms(job, 0, c);
      const double constant = terms.constant - terms.by_v * norm.mean;
      double d_pointwise = 0;
      for (int64_t k = 0; k < kTaps; ++k) {
        dw[k] = terms.scale * sum[k] + constant * x.x[k];
        for (int64_t j = 0; j < kTaps; ++j) {
          dw[k] += terms.by_v * w[j] * x.xx[j][k];
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
    if (job.d_scale != nullptr) finish_affine(job, total, matrix, vector);
  }

 private:
  template <class Total>
  void finish_affine(const Train& job, Total total, const double (&matrix)[kTaps][kTaps],
                     const double (&vector)[kTaps]) const {
    const int64_t reach = sizes_of(job, 0).reach_f;
    const bool frozen = job.blocks[0].frozen;
    const auto moments = LoneMoments<T>::kept(job);
    for (int64_t f = 0; f < bins; ++f) {  // of x; the cross that reads it as tap k is around f - k
      double scale = 0, shift = 0;
      for (int64_t k = 0; k < kTaps; ++k) {
        const int64_t at = f - bin_of_tap(k, reach);
        if (at < 0 || at >= bins) continue;
        scale += total(by_scale + k * bins + at);
        shift += total(by_shift + k * bins + at);
        if (frozen) continue;
        scale += vector[k] * moments.of_raw(k, at);
        shift += vector[k] * moments.of_u(k, at);
        for (int64_t j = 0; j < kTaps; ++j) {
          scale += matrix[j][k] * moments.of_x_raw(j, k, at);
          shift += matrix[j][k] * moments.of_x_u(j, k, at);
        }
      }
      static_cast<T*>(job.d_scale)[f] = T(scale);
      static_cast<T*>(job.d_shift)[f] = T(shift);
    }
  }
};

}  // namespace fastsep::FASTSEP_ISA
