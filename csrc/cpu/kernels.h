// What the kernels of one instruction set offer to csrc/ops: jobs as plain data and, for each
// sweep, a small table of functions. No torch types, no allocation: buffers come from the caller,
// aligned to 64 bytes and of the size that the table's *_bytes functions say.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastsep {

enum class DType { f32, f64, bf16, f16 };

// A (N, C, T, F) tensor with strides in elements; 0 strides are allowed for inputs.
struct Map {
  void* data;
  int64_t n, c, t, f;
};

// What the first block reads: x, then scale x + shift in every bin, then the stripes set to 0.
struct Input {
  Map x;
  int64_t clips, channels, frames, bins;
  const void* scale;  // (F,), or null
  const void* shift;
  const int32_t* stripes;  // (N, num_stripes, 3) of (axis, start, stop), or null
  int64_t num_stripes;
};

// One block; weights are contiguous and of the maps' dtype.
struct Block {
  const void* pointwise;  // (out, in)
  const void* time_taps;  // (out, 3)
  const void* freq_taps;  // (out, 3)
  const void* bias;       // (out,), or null
  int64_t in, out, dilation, pool;
  bool relu;
};

// A stack of blocks without gradients.
struct Infer {
  DType dtype;
  Input input;
  const Block* blocks;
  int64_t num_blocks;
  Map y;
  bool bf16;      // whether float32 maps may be rounded to bfloat16 for the products
  int64_t spans;  // each clip is cut into this many spans of time
  bool separate;  // whether taps are applied as they are: slower, and right whatever x is
};

struct InferKernels {
  size_t (*weights_bytes)(const Infer&);
  void (*pack)(const Infer&, void* weights);
  size_t (*scratch_bytes)(const Infer&);
  // One span of one clip. With seams, spans take what they need of each other's rows: all spans
  // have to run at the same time, each through all clips in order. Without, they compute it.
  // Returns false where x is too large for merged taps: then the clip has to be run `separate`.
  bool (*run)(const Infer&, const void* weights, void* scratch, void* seams, int64_t clip,
              int64_t span);
  size_t (*seams_bytes)(const Infer&);
  void (*clear_seams)(const Infer&, void* seams);
  int64_t (*most_spans)(const Infer&, int64_t wanted);  // that are all long enough to have seams
};

struct Linear {
  const void* weight;  // (out, in), contiguous
  const void* bias;    // (out,)
  int64_t in, out;
};

// The network's head: global pooling, then linear layers with a ReLU between them.
struct Head {
  DType dtype;
  Map x;
  int64_t channels, frames, bins;  // frames and bins at least 1
  const Linear* layers;
  int64_t num_layers;
  void* y;  // (N, out of the last layer, or channels), contiguous
};

// A stack without gradients on masked copies of each clip: infer.input holds the clips once, with
// `copies` sets of stripes for each, infer.y a map for each copy, its channels next to each other.
// Blocks of dilation 2 and pooling 2, of which the first is lone and no other. Float32.
struct Masked {
  Infer infer;
  int64_t copies;
  int64_t together;  // how many copies of a clip are computed at the same time
  bool keep;         // the clip's own maps, from one such group of copies to the next
  const Head* head;  // put behind the copies' maps, which are then not written; or null
};

struct MaskedKernels {
  bool (*takes)(const Masked&);  // whether the blocks are such
  size_t (*weights_bytes)(const Masked&);
  void (*pack)(const Masked&, void* weights);
  size_t (*scratch_bytes)(const Masked&);
  // So many copies of one clip, from `first` on. Returns false where x is too large for merged
  // taps: then they have to be run by themselves.
  bool (*run)(const Masked&, const void* weights, void* scratch, int64_t clip, int64_t first,
              int64_t count);
};

// Gradients of a single block. Work is summed in `groups` partial sums, so that the result depends
// on shapes only, not on threads.
struct Gradient {
  DType dtype;
  Input input;
  Block block;
  Map grad, dx;  // dx.data is null when it is not wanted
  void *d_pointwise, *d_time_taps, *d_freq_taps, *d_bias;
  int64_t spans, groups;
};

struct GradientKernels {
  size_t (*weights_bytes)(const Gradient&);
  void (*pack)(const Gradient&, void* weights);
  size_t (*scratch_bytes)(const Gradient&);
  size_t (*partial_bytes)(const Gradient&);  // of one group
  void (*run)(const Gradient&, const void* weights, void* scratch, void* partial, int64_t group);
  void (*reduce)(const Gradient&, const void* partials);
};

struct HeadKernels {
  size_t (*scratch_bytes)(const Head&);
  void (*run)(const Head&, void* scratch, int64_t clip);
};

// Log-mels of waveforms: frames, centred, with their ends reflected; window, power spectrum,
// filters over its bins, decibels.
struct LogMel {
  const float* samples;  // (N, num_samples), contiguous; more than size / 2
  int64_t num_samples;
  int64_t frames, hop;
  const float* window;            // (size)
  int64_t size;                   // a power of two, kLeastFft or more
  const float *twiddles, *turns;  // see FftTables
  const int32_t* places;
  const int32_t* bands;  // (filters, 2): each filter's bins, from start to before stop
  const float* weights;  // those of each filter's bins, filter after filter
  int64_t filters;
  float* y;  // (N, frames, filters), contiguous
};

constexpr int64_t kLeastFft = 32;  // two vectors of samples

struct LogMelKernels {
  int64_t (*groups)(const LogMel&);  // of neighbouring frames, into which a clip is cut
  size_t (*scratch_bytes)(const LogMel&);
  void (*run)(const LogMel&, void* scratch, int64_t clip, int64_t group);
};

// Mean and variance of a map's bins over clips, channels and frames.
struct Bins {
  DType dtype;
  const void* x;  // (rows, bins), contiguous
  int64_t rows, bins;
  int64_t groups;    // of neighbouring rows; none of them is empty
  double* partials;  // (groups, 2, bins)
};

struct BinsKernels {
  void (*run)(const Bins&, int64_t group);
  void (*finish)(const Bins&, double* mean, double* variance);  // biased
};

// A block in training: batch norm, of the batch or frozen, between the cross and ReLU. What
// backward needs of a block is kept as blocked rows; see parts/kept.h.
struct TrainBlock {
  Block block;  // without a bias
  const void *gamma, *beta;
  double eps;
  bool frozen;         // the statistics are given; else they are found
  double* statistics;  // (2, out): mean and biased variance
  void* x;             // the block's input, and what helps the block before; see x_size
  void* z;             // of a lone first block, which has none: what its ReLU let through
  // Of the backward pass only.
  bool wanted;   // a gradient of it or of a block before it
  void* grad;    // of the block's output; null for the last block, and for a lone one if no dx asks
  double* sums;  // (2, out): of da and of da (y - mean), where a is what ReLU is applied to
  void *d_pointwise, *d_time_taps, *d_freq_taps, *d_gamma, *d_beta;  // null: not wanted
};

// A stack in training, which takes several passes over the maps: statistics are known only after
// all of a map was seen. Float32 and float64.
struct Train {
  DType dtype;
  Input input;
  const TrainBlock* blocks;
  int64_t num_blocks;
  Map y;   // or its gradient
  Map dx;  // data is null when it is not wanted, as are these:
  void *d_scale, *d_shift;
  int64_t spans, groups;
};

// A pass over the maps around block i; work is summed in groups as for Gradient.
struct TrainPass {
  size_t (*weights_bytes)(const Train&, int64_t i);
  void (*pack)(const Train&, int64_t i, void* weights);
  size_t (*scratch_bytes)(const Train&, int64_t i);
  size_t (*partial_bytes)(const Train&, int64_t i);
  void (*run)(const Train&, int64_t i, const void* weights, void* scratch, void* partial,
              int64_t group);
  void (*finish)(const Train&, int64_t i, void* partials);
};

struct TrainKernels {
  // Elements that a block keeps. Of the first block's input nothing, but if it is lone, moments:
  // unless its statistics are frozen.
  int64_t (*x_size)(const Train&, int64_t i);
  int64_t (*z_size)(const Train&, int64_t i);
  int64_t (*grad_size)(const Train&, int64_t i);
  // Forward: for i from 0 to the number of blocks: block i - 1's output, which is block i's input,
  // block i's z and, where a clip is a single span, its statistics.
  TrainPass forward;
  TrainPass statistics;  // of z, where clips are cut
  TrainPass lone_statistics;
  // Backward, from the last block to the first. sums: unless the block behind has found them.
  // lone_backward: of a stack of one block, else the block behind does that, too.
  bool (*needs_sums)(const Train&, int64_t i);
  TrainPass sums;
  TrainPass backward;
  TrainPass lone_backward;
  TrainPass lone_dx;  // after it
};

// The tables of an instruction set, of which the job's dtype chooses.
struct Kernels {
  const InferKernels& (*infer)(const Infer&);
  const MaskedKernels& (*masked)(const Masked&);
  const GradientKernels& (*gradient)(const Gradient&);
  const TrainKernels& (*train)(const Train&);
  const HeadKernels& (*head)(const Head&);
  const LogMelKernels& (*logmel)(const LogMel&);
  const BinsKernels& (*bins)(const Bins&);
};

const Kernels& kernels_avx512bf16();
const Kernels& kernels_avx512();
const Kernels& kernels_avx2();
const Kernels& kernels_baseline();

}  // namespace fastsep
