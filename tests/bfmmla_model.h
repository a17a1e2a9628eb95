/* SPDX-License-Identifier: Apache-2.0
 *
 * BFDOT and BFMMLA of Arm in portable C, as they are without FPCR.EBF. Source: Arm Architecture
 * Reference Manual, pseudocode of BFMatMulAdd, BFDotAdd, BFMulH, BFAdd and BFRound. Products of
 * bf16 and sums of f32 are exact in fp64, or known with their error; what is inexact there is
 * rounded to odd: cut, with the last bit set. Subnormal operands and results are zeros of their
 * sign, overflow is infinity, any NaN is the default one.
 */
#ifndef AMLA_BFMMLA_MODEL_H
#define AMLA_BFMMLA_MODEL_H

#include <math.h>
#include <stdint.h>
#include <string.h>

static inline float bf_of_bits(uint32_t u) {
  float x;
  memcpy(&x, &u, sizeof x);
  return x;
}

static inline float bf_flush(float x) {
  uint32_t u;
  memcpy(&u, &x, sizeof u);
  return (u & 0x7f800000u) ? x : bf_of_bits(u & 0x80000000u);
}

static inline float bf_widen(uint16_t x) { return bf_flush(bf_of_bits((uint32_t)x << 16)); }

/* 2^e in fp64, as an integer. */
static inline uint64_t bf_power(int e) { return (uint64_t)(1023 + e) << 52; }

/* x + error, |error| at most half an ulp of x, in f32. */
static inline float bf_round_to_odd(double x, double error) {
  uint64_t u;
  if (isnan(x))
    return bf_of_bits(0x7fc00000u);
  memcpy(&u, &x, sizeof u);
  const uint32_t sign = (uint32_t)(u >> 32) & 0x80000000u;
  const uint64_t magnitude = u & ~(UINT64_C(1) << 63), low = magnitude & 0x1fffffff;
  const int below = error != 0 && signbit(error) != signbit(x); /* |x| is too large */
  if (magnitude < bf_power(-126))
    return bf_of_bits(sign);
  if (magnitude >= bf_power(128))
    return bf_of_bits(sign | 0x7f800000u);
  const uint32_t cut = (uint32_t)((magnitude - bf_power(-127)) >> 29);
  const uint32_t inexact = low != 0 || error != 0;
  return bf_of_bits(sign | (cut - (low == 0 && below)) | inexact);
}

static inline float bf_mul(uint16_t a, uint16_t b) {
  return bf_round_to_odd((double)bf_widen(a) * (double)bf_widen(b), 0);
}

static inline float bf_add(float x, float y) {
  const double a = (double)bf_flush(x), b = (double)bf_flush(y), sum = a + b;
  if (!isfinite(sum))
    return bf_round_to_odd(sum, 0);
  const double of_b = sum - a, error = (a - (sum - of_b)) + (b - of_b);
  return bf_round_to_odd(sum, error);
}

/* sum + a . b of pairs: a lane of BFDOT, and half an element of BFMMLA. */
static inline float bf_dot(float sum, const uint16_t a[2], const uint16_t b[2]) {
  return bf_add(sum, bf_add(bf_mul(a[0], b[0]), bf_mul(a[1], b[1])));
}

/* The same of fours: an element of BFMMLA. */
static inline float bf_dot_4(float sum, const uint16_t a[4], const uint16_t b[4]) {
  return bf_dot(bf_dot(sum, a, b), a + 2, b + 2);
}

#endif
