// A stack in training with batch norm: its passes, in their order.
#pragma once

#include "../kernels.h"
#include "train/backward.h"
#include "train/forward.h"
#include "train/lone.h"
#include "train/lone_dx.h"
#include "train/lone_gradient.h"
#include "train/lone_moments.h"
#include "train/sums.h"

namespace fastsep::FASTSEP_ISA {

template <class Pass>
constexpr TrainPass kTrainPass = {
    .weights_bytes = Pass::weights_bytes,
    .pack = Pass::pack,
    .scratch_bytes = Pass::scratch_bytes,
    .partial_bytes = Pass::partial_bytes,
    .run = Pass::run,
    .finish = Pass::finish,
};

template <class T>
constexpr TrainPass kTrainStatistics = {
    .weights_bytes = TrainForward<T>::weights_bytes,
    .pack = TrainForward<T>::pack,
    .scratch_bytes = TrainForward<T>::scratch_bytes,
    .partial_bytes = TrainForward<T>::partial_bytes,
    .run = TrainForward<T>::run_statistics,
    .finish = TrainForward<T>::finish_statistics,
};

template <class T>
constexpr TrainKernels kTrain = {
    .x_size =
        [](const Train& job, int64_t i) {
          if (i == 0) return is_lone(job, 0) ? LoneMoments<T>::kept_size(job) : 0;
          const int64_t clips = job.input.clips, size = kept_x<T>(job, i).size(clips);
          return size + (Counts<T>::are_kept(job, i) ? Counts<T>(job, i).size(clips) : 0);
        },
    .z_size =
        [](const Train& job, int64_t i) {
          const int64_t clips = job.input.clips;
          return is_lone(job, i) ? LonePassed<T>(job).size(clips) : kept_z<T>(job, i).size(clips);
        },
    .grad_size = [](const Train& job,
                    int64_t i) { return kept_grad<T>(job, i).size(job.input.clips); },
    .forward = kTrainPass<TrainForward<T>>,
    .statistics = kTrainStatistics<T>,
    .lone_statistics = kTrainPass<LoneStatistics<T>>,
    .needs_sums = [](const Train& job, int64_t i) { return !OutputSums<T>::are_found(job, i); },
    .sums = kTrainPass<TrainSums<T>>,
    .backward = kTrainPass<TrainBackward<T>>,
    .lone_backward = kTrainPass<LoneBackward<T>>,
    .lone_dx = kTrainPass<LoneDx<T>>,
};

inline const TrainKernels& train_kernels(const Train& job) {
  return job.dtype == DType::f64 ? kTrain<double> : kTrain<float>;
}

}  // namespace fastsep::FASTSEP_ISA
