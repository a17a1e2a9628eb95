/* SPDX-License-Identifier: Apache-2.0
 *
 * FMA peak of NEON in f32.
 */
#include "peak_fma.h"

#include <arm_neon.h>

enum { LANES = 4, CHAINS = 24 /* four pipes times a latency of 4 need 16 */ };

double harness_peak_fma__neon(int64_t iterations) {
  volatile float factor = 0.001f; /* volatile: unknown to the compiler. The chains stay small */
  const float32x4_t a = vdupq_n_f32(factor), b = a;
  float32x4_t x[CHAINS];
#pragma GCC unroll 24
  for (int c = 0; c < CHAINS; c++)
    x[c] = b;
  for (int64_t i = 0; i < iterations; i++)
#pragma GCC unroll 24
    for (int c = 0; c < CHAINS; c++) {
      x[c] = vfmaq_f32(x[c], a, b); /* FMLA adds in place */
      /* The compiler must not see that the chains are equal, nor drop one. */
      __asm__ volatile("" : "+w"(x[c]));
    }
#pragma GCC unroll 24
  for (int c = 1; c < CHAINS; c++)
    x[0] = vaddq_f32(x[0], x[c]);
  volatile float sink = vgetq_lane_f32(x[0], 0);
  (void)sink;
  return 2.0 * LANES * CHAINS * (double)iterations;
}
