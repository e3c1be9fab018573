// What the compiled kernels of one instruction set offer to register.cpp: plain data, no torch
// types.
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

// One block; weights are contiguous and of the maps' dtype. bias may be null.
struct Block {
  const void* pointwise;  // (out, in)
  const void* time_taps;  // (out, 3)
  const void* freq_taps;  // (out, 3)
  const void* bias;       // (out,)
  int64_t in, out, dilation, pool;
  bool relu;
};

struct Forward {
  DType dtype;
  int64_t clips, frames, bins;
  const Block* blocks;
  int64_t num_blocks;
  Map x, y;
  const void* scale;  // per-bin affine, (F,), or null
  const void* shift;
  const int32_t* stripes;  // (N, num_stripes, 3) of (axis, start, stop), or null
  int64_t num_stripes;
  bool bf16;       // whether float32 maps may be rounded to bfloat16 for the products
  int64_t strips;  // each clip is cut into this many strips of time
};

// Gradients of a single block. Work is summed in `groups` partial sums, so that the result depends
// on shapes only, not on threads.
struct Backward {
  DType dtype;
  int64_t clips, frames, bins;
  Block block;
  Map x, grad, dx;  // dx.data is null when it is not wanted
  void *d_pointwise, *d_time_taps, *d_freq_taps, *d_bias;
  int64_t strips, groups;
};

struct Linear {
  const void* weight;  // (out, in), contiguous
  const void* bias;    // (out,)
  int64_t in, out;
};

// The network's tail: global pooling, then linear layers with a ReLU between them.
struct Tail {
  DType dtype;
  int64_t channels, frames, bins;  // frames and bins at least 1
  Map x;
  const Linear* layers;
  int64_t num_layers;
  void* y;  // (N, out of the last layer, or channels), contiguous
};

// Each sweep packs its weights once, then runs work items that need a scratch buffer each.
// All buffers are aligned to 64 bytes.
struct Kernels {
  size_t (*forward_weights_bytes)(const Forward&);
  size_t (*forward_scratch_bytes)(const Forward&);
  void (*forward_pack)(const Forward&, void* weights);
  // One strip of one clip. With seams, strips take what they need of each other's rows: all strips
  // have to run at the same time, each through all clips in order. Without, they compute it.
  void (*forward_run)(const Forward&, const void* weights, void* scratch, void* seams, int64_t clip,
                      int64_t strip);
  size_t (*forward_seams_bytes)(const Forward&);
  void (*forward_clear_seams)(const Forward&, void* seams);
  int64_t (*forward_strips)(const Forward&, int64_t wanted);  // the most that are long enough

  size_t (*backward_weights_bytes)(const Backward&);
  size_t (*backward_scratch_bytes)(const Backward&);
  size_t (*backward_partial_bytes)(const Backward&);  // of one group
  void (*backward_pack)(const Backward&, void* weights);
  void (*backward_run)(const Backward&, const void* weights, void* scratch, void* partial,
                       int64_t group);
  void (*backward_reduce)(const Backward&, const void* partials);

  size_t (*tail_scratch_bytes)(const Tail&);
  void (*tail_run)(const Tail&, void* scratch, int64_t clip);
};

const Kernels& kernels_avx512bf16();
const Kernels& kernels_avx512();
const Kernels& kernels_avx2();
const Kernels& kernels_baseline();

}  // namespace fastsep
