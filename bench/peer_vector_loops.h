/* SPDX-License-Identifier: Apache-2.0
 *
 * The loops behind peer_vector.h, in C that compilers vectorise; each peer_vector__*.c compiles
 * them with its own flags. Checked on the compiled code with GCC 12: every inner loop uses the full
 * vector width.
 *
 * 2^x: x = n + f, n the nearest integer, |f| <= 1/2; 2^f by its Taylor series to f^7 (coefficients
 * ln(2)^k / k!), whose rest is below (ln 2 / 2)^8 / 8! * 1.05 = 5.5e-9; n goes to the exponent.
 * Below -126 it gives 2^-126, which no sum of f32 sees.
 */
#ifndef AMLA_BENCH_PEER_VECTOR_LOOPS_H
#define AMLA_BENCH_PEER_VECTOR_LOOPS_H

#include "peer_vector.h"

#include <string.h>

static inline float exp2_of_negative(float x) {
  /* 1.5 * 2^23: adding it leaves the nearest integer in the low bits. */
  const float to_integer = 12582912.0f;
  x = x > -126.0f ? x : -126.0f;
  const float shifted = x + to_integer, f = x - (shifted - to_integer);
  float p = 1.5252734e-5f;
  p = p * f + 1.5403530e-4f;
  p = p * f + 1.3333558e-3f;
  p = p * f + 9.6181291e-3f;
  p = p * f + 5.5504109e-2f;
  p = p * f + 2.4022651e-1f;
  p = p * f + 6.9314718e-1f;
  p = p * f + 1.0f;
  uint32_t n, bits;
  memcpy(&n, &shifted, sizeof n);
  memcpy(&bits, &p, sizeof bits);
  bits += n << 23;
  memcpy(&p, &bits, sizeof p);
  return p;
}

static void widen_bf16(int n, const uint16_t *restrict from, float *restrict to) {
#pragma omp simd
  for (int i = 0; i < n; i++) {
    const uint32_t bits = (uint32_t)from[i] << 16;
    memcpy(&to[i], &bits, sizeof bits);
  }
}

static void max_columns(int tokens, int rows, const float *restrict s, float *restrict max) {
  for (int t = 0; t < tokens; t++, s += rows)
#pragma omp simd
    for (int r = 0; r < rows; r++)
      max[r] = s[r] > max[r] ? s[r] : max[r];
}

static void exp2_columns(int tokens, int rows, float *restrict s, const float *restrict max,
                         float *restrict sum) {
  for (int t = 0; t < tokens; t++, s += rows)
#pragma omp simd
    for (int r = 0; r < rows; r++) {
      s[r] = exp2_of_negative(s[r] - max[r]);
      sum[r] += s[r];
    }
}

static void exp2_each(int n, float *x) {
#pragma omp simd
  for (int i = 0; i < n; i++)
    x[i] = exp2_of_negative(x[i]);
}

static void scale_row(int n, float factor, float *row) {
#pragma omp simd
  for (int i = 0; i < n; i++)
    row[i] *= factor;
}

#endif
