// Fourier transforms, one in each lane.
#pragma once

#include <cstdint>

#include "vec.h"

namespace fastsep::FASTSEP_ISA {

// Four complex numbers `step` elements apart become those from which each of four transforms of a
// quarter of the length goes on; turning: by exp(-2 pi i r j / length), r = 1, 2, 3, which is w.
template <bool turning, class T>
FASTSEP_INLINE void quarter(T* a, int64_t step, const T* w) {
  constexpr int64_t L = kLanes<T>;
  T *const b = a + step, *const c = b + step, *const d = c + step;
  const Vec<T> a_real = load(a), a_imag = load(a + L), b_real = load(b), b_imag = load(b + L);
  const Vec<T> c_real = load(c), c_imag = load(c + L), d_real = load(d), d_imag = load(d + L);
  const Vec<T> sum_real = a_real + c_real, sum_imag = a_imag + c_imag;
  const Vec<T> others_real = b_real + d_real, others_imag = b_imag + d_imag;
  const Vec<T> rest_real = a_real - c_real, rest_imag = a_imag - c_imag;
  const Vec<T> turned_real = b_imag - d_imag, turned_imag = d_real - b_real;  // (b - d) / i
  const auto put = [&](T* to, Vec<T> real, Vec<T> imag, int64_t r) __attribute__((always_inline)) {
    if constexpr (turning) {
      store(to, real * w[2 * r] - imag * w[2 * r + 1]);
      store(to + L, real * w[2 * r + 1] + imag * w[2 * r]);
    } else {
      store(to, real);
      store(to + L, imag);
    }
  };
  store(a, sum_real + others_real);
  store(a + L, sum_imag + others_imag);
  put(b, rest_real + turned_real, rest_imag + turned_imag, 0);
  put(c, sum_real - others_real, sum_imag - others_imag, 1);
  put(d, rest_real - turned_real, rest_imag - turned_imag, 2);
}

// Z[k] = sum_m z[m] exp(-2 pi i k m / count) of complex numbers [m][real, imaginary][L], in place;
// count is a power of two from kLeastFft / 2 on. Z ends up in the order of FftTables. Each quarter
// is finished before the next, so that all but the first stages stay in the first cache.
template <class T>
void transform(T* z, int64_t count, const T* twiddles) {
  constexpr int64_t L = kLanes<T>, kNumber = 2 * L;
  const int64_t step = count / 4 * kNumber;
  if (count == 16) {  // without calls
#pragma GCC unroll 4
    for (int64_t j = 0; j < 4; ++j) quarter<true>(z + j * kNumber, 4 * kNumber, twiddles + 6 * j);
#pragma GCC unroll 4
    for (int64_t r = 0; r < 4; ++r) quarter<false>(z + r * 4 * kNumber, kNumber, twiddles);
  } else if (count > 4) {
    for (int64_t j = 0; j < count / 4; ++j) quarter<true>(z + j * kNumber, step, twiddles + 6 * j);
    for (int64_t r = 0; r < 4; ++r) transform(z + r * step, count / 4, twiddles + 6 * (count / 4));
  } else if (count == 2) {
    const Vec<T> real = load(z), imag = load(z + L);
    store(z, real + load(z + kNumber));
    store(z + L, imag + load(z + kNumber + L));
    store(z + kNumber, real - load(z + kNumber));
    store(z + kNumber + L, imag - load(z + kNumber + L));
  }
}

// Power of real signals of 2 count samples: (count + 1, L). Halves of them were transformed as
// count complex numbers, the even samples real and the odd ones imaginary.
template <class T>
void power_spectrum(const T* z, int64_t count, const T* turns, const int32_t* places, T* power) {
  constexpr int64_t L = kLanes<T>;
  for (int64_t k = 0; k <= count / 2; ++k) {
    const T* const a = z + places[k] * 2 * L;
    const T* const b = z + places[k == 0 ? 0 : count - k] * 2 * L;
    // The spectra of the even and of the odd samples, the latter turned to their places.
    const Vec<T> even_real = load(a) + load(b), even_imag = load(a + L) - load(b + L);
    const Vec<T> odd_real = load(a + L) + load(b + L), odd_imag = load(b) - load(a);
    const T cosine = turns[2 * k], sine = turns[2 * k + 1];
    const Vec<T> real = odd_real * cosine - odd_imag * sine;
    const Vec<T> imag = odd_real * sine + odd_imag * cosine;
    const auto square = [](Vec<T> re, Vec<T> im) { return re * re + im * im; };
    store(power + k * L, square(even_real + real, even_imag + imag));
    store(power + (count - k) * L, square(even_real - real, even_imag - imag));
  }
}

}  // namespace fastsep::FASTSEP_ISA
