/* SPDX-License-Identifier: Apache-2.0
 *
 * Peak of AVX512-BF16: two products of bf16 a lane, summed in f32.
 */
#include "peak_fma.h"

#include <immintrin.h>

enum { LANES = 16, PAIR = 2, CHAINS = 12 };

double harness_peak_fma__avx512bf16(int64_t iterations) {
  volatile float half = 0.5f; /* volatile: unknown to the compiler */
  const __m512 x = _mm512_set1_ps(half);
  const __m512bh a = _mm512_cvtne2ps_pbh(x, x);
  __m512 sum[CHAINS];
#pragma GCC unroll 12
  for (int i = 0; i < CHAINS; i++)
    sum[i] = x;
  for (int64_t n = 0; n < iterations; n++)
#pragma GCC unroll 12
    for (int i = 0; i < CHAINS; i++) {
      sum[i] = _mm512_dpbf16_ps(sum[i], a, a);
      __asm__ volatile("" : "+v"(sum[i])); /* the compiler must not see that the chains are equal */
    }
#pragma GCC unroll 12
  for (int i = 1; i < CHAINS; i++)
    sum[0] = _mm512_add_ps(sum[0], sum[i]);
  volatile float sink = _mm512_cvtss_f32(sum[0]);
  (void)sink;
  return 2.0 * LANES * PAIR * CHAINS * (double)iterations;
}
