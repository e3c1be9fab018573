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

struct HeadKernels {
  size_t (*scratch_bytes)(const Head&);
  void (*run)(const Head&, void* scratch, int64_t clip);
};

// The tables of an instruction set, of which the job's dtype chooses.
struct Kernels {
  const InferKernels& (*infer)(const Infer&);
  const GradientKernels& (*gradient)(const Gradient&);
  const HeadKernels& (*head)(const Head&);
};

const Kernels& kernels_avx512bf16();
const Kernels& kernels_avx512();
const Kernels& kernels_avx2();
const Kernels& kernels_baseline();

}  // namespace fastsep
