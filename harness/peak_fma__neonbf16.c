/* SPDX-License-Identifier: Apache-2.0
 *
 * Peak of bf16 products in f32 sums: BFMMLA, 2 x 2 sums of 4 products each.
 */
#include "peak_fma.h"

#include <arm_neon.h>

enum { MULTIPLY_ADDS = 16, CHAINS = 24 /* four pipes times a latency of 5 or 6 need 24 */ };

double harness_peak_fma__neonbf16(int64_t iterations) {
  volatile uint16_t factor = 0x3b80; /* 2^-8; volatile: unknown to the compiler */
  const bfloat16x8_t a = vreinterpretq_bf16_u16(vdupq_n_u16(factor)), b = a;
  float32x4_t x[CHAINS];
#pragma GCC unroll 24
  for (int c = 0; c < CHAINS; c++)
    x[c] = vdupq_n_f32(1);
  for (int64_t i = 0; i < iterations; i++)
#pragma GCC unroll 24
    for (int c = 0; c < CHAINS; c++) {
      x[c] = vbfmmlaq_f32(x[c], a, b);
      /* The compiler must not see that the chains are equal, nor drop one. */
      __asm__ volatile("" : "+w"(x[c]));
    }
#pragma GCC unroll 24
  for (int c = 1; c < CHAINS; c++)
    x[0] = vaddq_f32(x[0], x[c]);
  volatile float sink = vgetq_lane_f32(x[0], 0);
  (void)sink;
  return 2.0 * MULTIPLY_ADDS * CHAINS * (double)iterations;
}
