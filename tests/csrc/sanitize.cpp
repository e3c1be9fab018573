// Runs every kernel on awkward shapes with buffers of exactly the right size, for a build with
// -fsanitize=address,undefined or -fsanitize=thread to watch, and checks that spans of time that
// run together, and masked copies that share work, give the bits of whole clips. Usage: sanitize
// SEED. FASTSEP_AVX512: a build for AVX-512 is linked too.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "../../csrc/ops/fft_tables.h"
#include "../../csrc/cpu/kernels.h"

using namespace fastsep;

namespace {

std::mt19937 generator;

int64_t draw(int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(generator);
}

int together = 0, separate = 0;

void check(bool same, const char* what) {
  if (same) return;
  std::fprintf(stderr, "%s differ from whole clips\n", what);
  std::abort();
}

// Exactly `bytes` bytes: an access one past the end is an error, not slack.
struct Buffer {
  explicit Buffer(size_t bytes) {
    if (bytes == 0) return;
    if (posix_memalign(&data, 64, bytes) != 0) std::abort();
    std::memset(data, 0, bytes);  // 0 is a number in every dtype
  }
  Buffer(Buffer&& other) : data(other.data) { other.data = nullptr; }
  ~Buffer() { std::free(data); }
  void* data = nullptr;
};

// Ordinary numbers of the dtype of this size; for two bytes, of both.
void fill(const Buffer& buffer, size_t bytes, size_t size) {
  std::uniform_real_distribution<double> number(-1, 1);
  for (size_t i = 0; i < bytes / size; ++i) {
    if (size == 8) {
      static_cast<double*>(buffer.data)[i] = number(generator);
    } else if (size == 4) {
      static_cast<float*>(buffer.data)[i] = float(number(generator));
    } else {
      static_cast<uint16_t*>(buffer.data)[i] = uint16_t(draw(0x3000, 0x3fff));
    }
  }
}

// Now and then puts infinity or NaN somewhere.
void spoil(const Buffer& buffer, size_t bytes, size_t size) {
  if (bytes == 0 || draw(0, 3) > 0) return;
  const size_t i = size_t(draw(0, int64_t(bytes / size) - 1));
  const double value = draw(0, 1) == 0 ? __builtin_inf() : __builtin_nan("");
  if (size == 8) {
    static_cast<double*>(buffer.data)[i] = value;
  } else if (size == 4) {
    static_cast<float*>(buffer.data)[i] = float(value);
  } else {
    static_cast<uint16_t*>(buffer.data)[i] = draw(0, 1) == 0 ? 0x7f80 : 0x7c00;  // of either type
  }
}

struct Tensor {
  Tensor(size_t size, int64_t n, int64_t c, int64_t t, int64_t f, bool channels_last)
      : bytes(size_t(n * c * t * f) * size), buffer(bytes) {
    fill(buffer, bytes, size);
    map = channels_last ? Map{buffer.data, t * f * c, 1, f * c, c}
                        : Map{buffer.data, c * t * f, t * f, f, 1};
  }
  size_t bytes;
  Buffer buffer;
  Map map;
};

struct Weights {
  Weights(size_t size, int64_t in, int64_t out)
      : pointwise(size_t(in * out) * size),
        time(size_t(3 * out) * size),
        freq(size_t(3 * out) * size),
        bias(size_t(out) * size) {
    fill(pointwise, size_t(in * out) * size, size);
    fill(time, size_t(3 * out) * size, size);
    fill(freq, size_t(3 * out) * size, size);
    fill(bias, size_t(out) * size, size);
  }
  Buffer pointwise, time, freq, bias;
};

// Linear layers of a head, none or some.
struct Layers {
  Layers(size_t size, int64_t channels) : width(channels) {
    for (int64_t i = draw(0, 3); i > 0; --i) {
      const int64_t out = draw(0, 40);
      for (const int64_t values : {out * width, out}) {
        buffers.emplace_back(size_t(values) * size);
        fill(buffers.back(), size_t(values) * size, size);
      }
      list.push_back({buffers[buffers.size() - 2].data, buffers.back().data, width, out});
      width = out;
    }
  }
  Head job(DType dtype, int64_t channels, int64_t frames, int64_t bins, const Buffer& y) const {
    return {dtype, {}, channels, frames, bins, list.data(), int64_t(list.size()), y.data};
  }
  std::vector<Buffer> buffers;
  std::vector<Linear> list;
  int64_t width;
};

size_t padded(size_t bytes) { return (bytes + 63) / 64 * 64; }

// All spans at the same time, each through all clips; whether merged taps were right for all.
bool run_together(const InferKernels& k, const Infer& job, const void* weights) {
  std::atomic<bool> right{true};
  const Buffer seams(padded(k.seams_bytes(job)));
  k.clear_seams(job, seams.data);
  std::vector<std::thread> threads;
  for (int64_t span = 0; span < job.spans; ++span) {
    threads.emplace_back([&, span] {
      const Buffer scratch(padded(k.scratch_bytes(job)));
      for (int64_t clip = 0; clip < job.input.clips; ++clip) {
        if (!k.run(job, weights, scratch.data, seams.data, clip, span)) right = false;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return right;
}

void infer(const Kernels& kernels, DType dtype, size_t size) {
  // Long and slim maps, deep enough for every kind of place where spans can meet; or short ones.
  const bool is_long = draw(0, 1) == 0;
  const int64_t n = draw(1, is_long ? 2 : 3), t = is_long ? draw(20, 300) : draw(1, 20);
  const int64_t f = is_long ? draw(1, 16) : draw(1, 40);
  const bool single = draw(0, 1) == 0;
  std::vector<Weights> weights;
  std::vector<Block> blocks;
  int64_t channels = draw(0, 2) == 0 ? 1 : draw(0, 40), frames = t, bins = f;
  const int64_t first = channels;
  for (int64_t i = draw(is_long ? 2 : 1, 3); i > 0; --i) {
    const int64_t out = draw(1, is_long ? 4 : 90), pool = draw(1, 4);
    if (frames / pool == 0 || bins / pool == 0) continue;
    frames /= pool;
    bins /= pool;
    weights.emplace_back(size, channels, out);
    const Weights& w = weights.back();
    blocks.push_back({w.pointwise.data, w.time.data, w.freq.data, single ? nullptr : w.bias.data,
                      channels, out, draw(1, 8) == 8 ? 1000 : draw(1, is_long ? 2 : 3), pool,
                      true});
    channels = out;
  }
  if (blocks.empty()) return;
  const Tensor x(size, n, first, t, f, draw(0, 1)), y(size, n, channels, frames, bins, draw(0, 1));
  spoil(x.buffer, x.bytes, size);
  spoil(weights.back().time, size_t(3 * channels) * size, size);
  const Buffer scale(size_t(f) * size), shift(size_t(f) * size);
  for (const Buffer* buffer : {&scale, &shift}) fill(*buffer, size_t(f) * size, size);
  const int32_t stripes[] = {0, -5, 3, 1, 9, 1000, 1, 5, 2, 7, 0, 9};
  std::vector<int32_t> all;
  for (int64_t i = 0; i < n; ++i) all.insert(all.end(), stripes, stripes + 12);
  Infer job{};
  job.dtype = dtype;
  job.input = {x.map, n, first, t, f, scale.data, shift.data, all.data(), 4};
  job.blocks = blocks.data();
  job.num_blocks = int64_t(blocks.size());
  job.y = y.map;
  job.bf16 = draw(0, 1) == 1;
  const InferKernels& k = kernels.infer(job);
  bool right = true;
  const auto run_alone = [&](const Buffer& packed) {
    right = true;
    for (int64_t clip = 0; clip < n; ++clip) {
      for (int64_t span = 0; span < job.spans; ++span) {
        const Buffer scratch(padded(k.scratch_bytes(job)));
        right &= k.run(job, packed.data, scratch.data, nullptr, clip, span);
      }
    }
    std::vector<char> bytes(y.bytes);
    std::memcpy(bytes.data(), y.buffer.data, y.bytes);
    return bytes;
  };
  const auto compare = [&] {
    const Buffer packed(padded(k.weights_bytes(job)));
    k.pack(job, packed.data);
    job.spans = draw(1, frames);
    const std::vector<char> in_spans = run_alone(packed);
    const bool right_in_spans = right;
    job.spans = 1;
    const std::vector<char> whole = run_alone(packed);
    const bool right_whole = right;
    check(right_in_spans == right_whole, "limits of spans alone");
    if (right) check(in_spans == whole, "spans alone");
    job.spans = k.most_spans(job, is_long ? draw(2, 8) : draw(2, 3));
    if (job.spans > 1) {
      std::memset(y.buffer.data, 0, y.bytes);
      check(run_together(k, job, packed.data) == right_whole, "limits of spans together");
      if (right) {
        check(std::memcmp(y.buffer.data, whole.data(), y.bytes) == 0, "spans together");
      }
      ++together;
    }
    return right;
  };
  if (compare()) return;
  job.separate = true;
  check(compare(), "separate taps");
  ++separate;
}

// Masked copies have the bits of each computed by itself, however many are computed together.
void masked(const Kernels& kernels, DType dtype, size_t size) {
  const int64_t n = draw(1, 2), t = draw(4, 70), f = draw(4, 140), copies = draw(1, 6);
  std::vector<Weights> weights;
  std::vector<Block> blocks;
  int64_t channels = 1, frames = t, bins = f;
  for (int64_t i = draw(1, 4); i > 0 && frames > 1 && bins > 1; --i) {
    const int64_t out = draw(2, 40);
    weights.emplace_back(size, channels, out);
    const Weights& w = weights.back();
    blocks.push_back(
        {w.pointwise.data, w.time.data, w.freq.data, w.bias.data, channels, out, 2, 2, true});
    channels = out;
    frames /= 2;
    bins /= 2;
  }
  const Tensor x(size, n, 1, t, f, false), y(size, n * copies, channels, frames, bins, true);
  const Buffer scale(size_t(f) * size), shift(size_t(f) * size);
  for (const Buffer* buffer : {&scale, &shift}) fill(*buffer, size_t(f) * size, size);
  std::vector<int32_t> stripes;
  for (int64_t i = 0; i < n * copies * 3; ++i) {
    const int64_t axis = draw(-1, 2), sides = axis == 0 ? t : f, start = draw(-4, sides);
    const int64_t stop = draw(0, 5) == 0 ? draw(-4, 1000) : start + draw(0, sides / 2);
    for (const int64_t value : {axis, start, stop}) stripes.push_back(int32_t(value));
  }
  Masked job{};
  job.infer.dtype = dtype;
  job.infer.input = {x.map, n, 1, t, f, scale.data, shift.data, stripes.data(), 3};
  job.infer.blocks = blocks.data();
  job.infer.num_blocks = int64_t(blocks.size());
  job.infer.y = y.map;
  job.infer.bf16 = draw(0, 1) == 1;
  job.infer.spans = 1;
  job.copies = copies;
  job.together = draw(1, copies);
  job.keep = draw(0, 1) == 1;
  const MaskedKernels& k = kernels.masked(job);
  if (!k.takes(job)) return;
  const Buffer packed(padded(k.weights_bytes(job)));
  k.pack(job, packed.data);
  for (int64_t clip = 0; clip < n; ++clip) {
    const Buffer scratch(padded(k.scratch_bytes(job)));
    check(k.run(job, packed.data, scratch.data, clip, 0, copies), "limits of masked copies");
  }
  std::vector<char> shared(y.bytes);
  std::memcpy(shared.data(), y.buffer.data, y.bytes);

  Infer each = job.infer;
  each.input.clips = n * copies;
  const InferKernels& direct = kernels.infer(each);
  const Buffer scratch(padded(direct.scratch_bytes(each)));
  for (int64_t clip = 0; clip < n; ++clip) {
    each.input.x = x.map;
    each.input.x.data = static_cast<char*>(x.buffer.data) + clip * t * f * int64_t(size);
    each.input.x.n = 0;
    each.input.stripes = stripes.data() + clip * copies * 9;
    each.y.data = static_cast<char*>(y.buffer.data) +
                  clip * copies * channels * frames * bins * int64_t(size);
    for (int64_t copy = 0; copy < copies; ++copy) {
      direct.run(each, packed.data, scratch.data, nullptr, copy, 0);
    }
  }
  check(std::memcmp(y.buffer.data, shared.data(), y.bytes) == 0, "masked copies");

  // The head behind the sweep, and on the maps that are there now.
  const Layers layers(size, channels);
  const size_t bytes = size_t(n * copies * layers.width) * size;
  const Buffer behind(bytes), alone(bytes);
  Head head = layers.job(dtype, channels, frames, bins, alone);
  head.x = y.map;
  const HeadKernels& of_maps = kernels.head(head);
  for (int64_t i = 0; i < n * copies; ++i) {
    const Buffer own(padded(of_maps.scratch_bytes(head)));
    of_maps.run(head, own.data, i);
  }
  head = layers.job(dtype, channels, frames, bins, behind);
  job.head = &head;
  job.infer.y = {};
  for (int64_t clip = 0; clip < n; ++clip) {
    const Buffer own(padded(k.scratch_bytes(job)));
    k.run(job, packed.data, own.data, clip, 0, copies);
  }
  check(bytes == 0 || std::memcmp(behind.data, alone.data, bytes) == 0,
        "masked copies with a head");
}

void gradient(const Kernels& kernels, DType dtype, size_t size) {
  const int64_t n = draw(1, 3), t = draw(1, 20), f = draw(1, 40);
  const int64_t in = draw(0, 2) == 0 ? 1 : draw(0, 40), out = draw(0, 90);
  const bool relu = draw(0, 1);
  const int64_t pool = relu ? draw(1, 3) : 1;
  const Weights w(size, in, out), d(size, in, out);
  const Tensor x(size, n, in, t, f, draw(0, 1)), dx(size, n, in, t, f, draw(0, 1)),
      grad(size, n, out, t / pool, f / pool, draw(0, 1));
  for (const Tensor* t : {&x, &grad}) spoil(t->buffer, t->bytes, size);
  spoil(w.time, size_t(3 * out) * size, size);
  Gradient job{};
  job.dtype = dtype;
  job.input = {x.map, n, in, t, f, nullptr, nullptr, nullptr, 0};
  job.block = {w.pointwise.data, w.time.data, w.freq.data, w.bias.data, in, out,
               draw(1, 5),       pool,        relu};
  job.grad = grad.map;
  job.dx = dx.map;
  job.d_pointwise = d.pointwise.data;
  job.d_time_taps = d.time.data;
  job.d_freq_taps = d.freq.data;
  job.d_bias = d.bias.data;
  job.spans = draw(1, t);
  job.groups = draw(1, n * job.spans);
  const GradientKernels& k = kernels.gradient(job);
  const Buffer packed(padded(k.weights_bytes(job)));
  k.pack(job, packed.data);
  const size_t partial = k.partial_bytes(job);
  const Buffer partials(partial * size_t(job.groups));
  for (int64_t group = 0; group < job.groups; ++group) {
    const Buffer scratch(padded(k.scratch_bytes(job)));
    k.run(job, packed.data, scratch.data,
          static_cast<char*>(partials.data) + size_t(group) * partial, group);
  }
  k.reduce(job, partials.data);
}

// A stack in training forward and backward, clips whole and in spans: sums are then added in
// another order, so nothing is compared.
void train(const Kernels& kernels, DType dtype, size_t size) {
  const int64_t n = draw(1, 3), t = draw(1, 40), f = draw(1, 40), first = draw(0, 1) * draw(1, 20);
  std::vector<Weights> weights, gradients;
  std::vector<Buffer> buffers;
  std::vector<TrainBlock> blocks;
  const auto doubles = [&](int64_t count) {
    buffers.emplace_back(size_t(count) * sizeof(double));
    return static_cast<double*>(buffers.back().data);
  };
  int64_t channels = std::max<int64_t>(first, 1), frames = t, bins = f;
  for (int64_t i = draw(1, 3); i > 0; --i) {
    const int64_t out = draw(1, 40), pool = draw(1, 3);
    for (auto* all : {&weights, &gradients}) all->emplace_back(size, channels, out);
    const Weights &w = weights.back(), &d = gradients.back();
    TrainBlock b{};
    b.block = {w.pointwise.data,
               w.time.data,
               w.freq.data,
               nullptr,
               channels,
               out,
               draw(1, 8) == 8 ? 1000 : draw(1, 3),
               pool,
               true};
    for (const void** per_channel : {&b.gamma, &b.beta}) {
      buffers.emplace_back(size_t(out) * size);
      fill(buffers.back(), size_t(out) * size, size);
      *per_channel = buffers.back().data;
    }
    b.eps = 1e-5;
    b.frozen = draw(0, 3) == 0;
    b.statistics = doubles(2 * out);
    b.sums = doubles(2 * out);
    b.d_pointwise = draw(0, 3) == 0 ? nullptr : d.pointwise.data;
    b.d_time_taps = d.time.data;
    b.d_freq_taps = d.freq.data;
    for (void** per_channel : {&b.d_gamma, &b.d_beta}) {
      buffers.emplace_back(size_t(out) * size);
      *per_channel = buffers.back().data;
    }
    blocks.push_back(b);
    channels = out;
    frames /= pool;
    bins /= pool;
  }
  const int64_t in = blocks[0].block.in;
  const Tensor x(size, n, in, t, f, draw(0, 1)), dx(size, n, in, t, f, draw(0, 1));
  const Tensor y(size, n, channels, frames, bins, draw(0, 1));
  const Buffer scale(size_t(f) * size), shift(size_t(f) * size);
  const Buffer d_scale(size_t(f) * size), d_shift(size_t(f) * size);
  for (const Buffer* buffer : {&scale, &shift}) fill(*buffer, size_t(f) * size, size);
  const int32_t stripes[] = {0, -5, 3, 1, 9, 1000, 1, 5, 2, 7, 0, 9};
  std::vector<int32_t> all;
  for (int64_t i = 0; i < n; ++i) all.insert(all.end(), stripes, stripes + 12);
  const bool affine = draw(0, 1) == 1;
  Train job{};
  job.dtype = dtype;
  job.input = {
      x.map,      n, in, t, f, affine ? scale.data : nullptr, affine ? shift.data : nullptr,
      all.data(), 4};
  job.blocks = blocks.data();
  job.num_blocks = int64_t(blocks.size());
  job.y = y.map;
  if (draw(0, 1) == 1) job.dx = dx.map;
  if (affine) {
    job.d_scale = d_scale.data;
    job.d_shift = d_shift.data;
  }
  job.spans = draw(1, t);
  job.groups = draw(1, n * job.spans);
  const TrainKernels& k = kernels.train(job);
  const bool lone = in == 1;
  const int64_t wanted = affine || job.dx.data != nullptr ? 0 : draw(0, job.num_blocks - 1);
  for (int64_t i = 0; i < job.num_blocks; ++i) {
    TrainBlock& b = blocks[size_t(i)];
    const auto keep = [&](int64_t elements) {
      buffers.emplace_back(size_t(elements) * size);
      return buffers.back().data;
    };
    b.x = keep(k.x_size(job, i));
    b.z = keep(k.z_size(job, i));
    b.wanted = i >= wanted;
    const bool keeps_grad = i > 0 || !lone || job.dx.data != nullptr;
    if (i + 1 < job.num_blocks && b.wanted && keeps_grad) b.grad = keep(k.grad_size(job, i));
  }
  const auto run = [&](const TrainPass& pass, int64_t i) {
    const Buffer packed(padded(pass.weights_bytes(job, i)));
    pass.pack(job, i, packed.data);
    const size_t partial = pass.partial_bytes(job, i);
    const Buffer partials(partial * size_t(job.groups));
    for (int64_t group = 0; group < job.groups; ++group) {
      const Buffer scratch(padded(pass.scratch_bytes(job, i)));
      pass.run(job, i, packed.data, scratch.data,
               static_cast<char*>(partials.data) + size_t(group) * partial, group);
    }
    pass.finish(job, i, partials.data);
  };
  for (int64_t i = 0; i <= job.num_blocks; ++i) {
    const bool is_lone = i == 0 && lone;
    if (!is_lone) run(k.forward, i);
    if (i == job.num_blocks || blocks[size_t(i)].frozen) continue;
    if (is_lone) run(k.lone_statistics, i);
    if (!is_lone && job.spans > 1) run(k.statistics, i);
  }
  for (int64_t i = job.num_blocks - 1; i >= wanted; --i) {
    if (i == 0 && lone) {
      if (job.num_blocks == 1) run(k.lone_backward, 0);
      if (job.dx.data != nullptr) run(k.lone_dx, 0);
    } else {
      if (k.needs_sums(job, i)) run(k.sums, i);
      run(k.backward, i);
    }
  }
}

void head(const Kernels& kernels, DType dtype, size_t size) {
  const int64_t n = draw(1, 3), c = draw(0, 70), t = draw(1, 9), f = draw(1, 40);
  const Tensor x(size, n, c, t, f, draw(0, 1));
  const Layers layers(size, c);
  const Buffer y(size_t(n * layers.width) * size);
  Head job = layers.job(dtype, c, t, f, y);
  job.x = x.map;
  const HeadKernels& k = kernels.head(job);
  const Buffer scratch(padded(k.scratch_bytes(job)));
  for (int64_t clip = 0; clip < n; ++clip) k.run(job, scratch.data, clip);
}

void bins(const Kernels& kernels, DType dtype, size_t size) {
  const int64_t f = draw(0, 70), rows = draw(0, 50), groups = std::min(rows, draw(1, 5));
  const Buffer x(size_t(rows * f) * size), partials(size_t(2 * groups * f) * sizeof(double));
  const Buffer mean(size_t(f) * sizeof(double)), variance(size_t(f) * sizeof(double));
  fill(x, size_t(rows * f) * size, size);
  const Bins job{dtype, x.data, rows, f, groups, static_cast<double*>(partials.data)};
  const BinsKernels& k = kernels.bins(job);
  for (int64_t group = 0; group < groups; ++group) k.run(job, group);
  k.finish(job, static_cast<double*>(mean.data), static_cast<double*>(variance.data));
}

void logmel(const Kernels& kernels) {
  const int64_t size = kLeastFft << draw(0, 4), f = size / 2 + 1, filters = draw(0, 40);
  const int64_t n = draw(1, 3), samples = draw(f, 3000), hop = draw(size / 8, 2 * size);
  const int64_t t = 1 + samples / hop;
  const size_t bytes = size_t(n * samples) * sizeof(float);
  const Buffer waveform(bytes), window(size_t(size) * sizeof(float));
  fill(waveform, bytes, sizeof(float));
  spoil(waveform, bytes, sizeof(float));
  fill(window, size_t(size) * sizeof(float), sizeof(float));
  const FftTables tables(size);
  std::vector<int32_t> bands;
  int64_t total = 0;
  for (int64_t m = 0; m < filters; ++m) {
    const int64_t start = draw(0, f), stop = draw(start, f);
    bands.insert(bands.end(), {int32_t(start), int32_t(stop)});
    total += stop - start;
  }
  const Buffer weights(size_t(total) * sizeof(float)), y(size_t(n * t * filters) * sizeof(float));
  fill(weights, size_t(total) * sizeof(float), sizeof(float));
  const LogMel job{static_cast<const float*>(waveform.data),
                   samples,
                   t,
                   hop,
                   static_cast<const float*>(window.data),
                   size,
                   tables.twiddles.data(),
                   tables.turns.data(),
                   tables.places.data(),
                   bands.data(),
                   static_cast<const float*>(weights.data),
                   filters,
                   static_cast<float*>(y.data)};
  const LogMelKernels& k = kernels.logmel(job);
  const Buffer scratch(padded(k.scratch_bytes(job)));
  for (int64_t clip = 0; clip < n; ++clip) {
    for (int64_t group = 0; group < k.groups(job); ++group) k.run(job, scratch.data, clip, group);
  }
}

}  // namespace

int main(int, char** argv) {
  generator.seed(unsigned(std::atoi(argv[1])));
  std::vector<const Kernels*> builds = {&kernels_baseline()};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    builds.push_back(&kernels_avx2());
  }
#if defined(FASTSEP_AVX512)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
    builds.push_back(&kernels_avx512bf16());  // with emulated_bf16.h
  }
#endif
#endif
  const struct {
    DType dtype;
    size_t size;
  } dtypes[] = {{DType::f32, 4}, {DType::f64, 8}, {DType::bf16, 2}, {DType::f16, 2}};
  int runs = 0;
  for (int i = 0; i < 100; ++i) {
    for (const Kernels* kernels : builds) {
      for (const auto& [dtype, size] : dtypes) {
        infer(*kernels, dtype, size);
        masked(*kernels, dtype, size);
        gradient(*kernels, dtype, size);
        if (size > 2) train(*kernels, dtype, size);
        head(*kernels, dtype, size);
        bins(*kernels, dtype, size);
        runs += size > 2 ? 5 : 4;
      }
      logmel(*kernels);
      ++runs;
    }
  }
  std::printf("%d in spans together, %d with separate taps, %d runs\n", together, separate, runs);
  if (together == 0 || separate == 0) std::abort();
}
