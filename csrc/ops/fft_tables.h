// What cpu/parts/fft.h needs to know of a size, the same for every instruction set.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

namespace fastsep {

struct FftTables {
  // size: of the real signals, a power of two, kLeastFft or more.
  explicit FftTables(int64_t size) : places(static_cast<size_t>(size / 2)) {
    const int64_t count = size / 2;
    for (int64_t stage = count; stage > 4; stage /= 4) {
      for (int64_t j = 0; j < stage / 4; ++j) {
        for (int64_t r = 1; r < 4; ++r) add_turn(twiddles, r * j, stage);
      }
    }
    for (int64_t k = 0; k <= count / 2; ++k) add_turn(turns, k, size);
    place(0, 0, 1, count);
  }

  // For each stage of a quarter q > 1, and j < q: exp(-2 pi i r j / (4 q)) for r = 1, 2, 3.
  std::vector<float> twiddles;
  std::vector<float> turns;     // exp(-2 pi i k / size) for k to size / 4
  std::vector<int32_t> places;  // where the transform leaves Z[k]

 private:
  static void add_turn(std::vector<float>& to, int64_t k, int64_t of) {
    const double angle = -2 * std::acos(-1.0) * double(k) / double(of);
    to.push_back(float(std::cos(angle)));
    to.push_back(float(std::sin(angle)));
  }

  // The transform of `count` numbers from `first` on gives Z[k], Z[k + step], ...
  void place(int64_t first, int64_t k, int64_t step, int64_t count) {
    const int64_t parts = count % 4 == 0 ? 4 : count;
    for (int64_t r = 0; r < parts; ++r) {
      const int64_t at = first + r * count / parts;
      if (count == parts) {
        places[size_t(k + r * step)] = int32_t(at);
      } else {
        place(at, k + r * step, parts * step, count / parts);
      }
    }
  }
};

}  // namespace fastsep
