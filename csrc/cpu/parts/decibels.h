// 10 log10 of a vector, to an ulp or two of the result.
#pragma once

#include <cstdint>

#include "vec.h"

namespace fastsep::FASTSEP_ISA {

// Of normal numbers, infinity and NaN: x = 2^e (1 + r) with 1 + r between sqrt(1/2) and sqrt(2),
// and log(1 + r) = r - r^2 / 2 + r^3 p(r). p is the polynomial whose largest relative error of the
// logarithm is least, 6e-9. r is multiplied by 10 / log(10) in two parts, as e is by 10 log10(2),
// of which the first has so few bits that its product is exact: near x = 1 and far from it nothing
// but the last additions rounds.
FASTSEP_INLINE Vec<float> decibels(Vec<float> x) {
  constexpr float kPerLog = 4.3429448190f, kPerLogRest = float(4.342944819032518 - double(kPerLog));
  constexpr float kPerOctave = 3.0102539f,
                  kPerOctaveRest = float(3.010299956639812 - 3.01025390625);
  constexpr int32_t kRootHalf = 0x3f3504f3;  // the bits of sqrt(1/2)
  const Vec<int32_t> bits = Vec<int32_t>(x);
  const Vec<int32_t> octave = (bits - kRootHalf) >> 23;
  const Vec<int32_t> mantissa = bits - (octave << 23);
  const Vec<float> e = __builtin_convertvector(octave, Vec<float>);
  const Vec<float> r = Vec<float>(mantissa) - 1.0f;
  Vec<float> p = -0.07634496688842773f * r + 0.1276157647371292f;
  p = p * r - 0.13160182535648346f;
  p = p * r + 0.14201757311820984f;
  p = p * r - 0.16623356938362122f;
  p = p * r + 0.20001226663589478f;
  p = p * r - 0.2500081956386566f;
  p = p * r + 0.3333333134651184f;
  const Vec<float> curved = (p * r - 0.5f) * (r * r);
  const Vec<float> small = curved * kPerLog + (r * kPerLogRest + e * kPerOctaveRest);
  const Vec<float> y = e * kPerOctave + (r * kPerLog + small);
  const Vec<float> infinity = Vec<float>{} + __builtin_inff();
  return x < infinity ? y : x;
}

}  // namespace fastsep::FASTSEP_ISA
