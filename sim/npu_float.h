/* SPDX-License-Identifier: Apache-2.0
 *
 * 16-bit types of the simulated NPU. bf16 is f32 cut to 16 bits; f16 is IEEE's, subnormals kept. A
 * NaN stays a NaN (quieted).
 */
#ifndef NPU_FLOAT_H
#define NPU_FLOAT_H

#include "npu_isa.h"

#include <math.h>
#include <string.h>

static inline float npu_bf16_f32(npu_bf16 x) {
  const uint32_t bits = (uint32_t)x << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

static inline npu_bf16 npu_bf16_cut(float x, uint32_t half_if_even, uint32_t half_if_odd) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  if (x != x)
    return (npu_bf16)(bits >> 16 | 0x40);
  return (npu_bf16)((bits + (bits >> 16 & 1 ? half_if_odd : half_if_even)) >> 16);
}

static inline npu_bf16 npu_bf16_rne(float x) {
  return npu_bf16_cut(x, 0x7fff, 0x8000);
} /* halves to even */
static inline npu_bf16 npu_bf16_rna(float x) {
  return npu_bf16_cut(x, 0x8000, 0x8000);
} /* halves away from zero */

static inline float npu_f16_f32(npu_f16 x) {
  const int32_t exponent = x >> 10 & 31, mantissa = x & 1023;
  float f = ldexpf((float)mantissa, -24); /* exact */
  if (exponent == 31) {
    const uint32_t bits = 0x7f800000u | (uint32_t)mantissa << 13;
    memcpy(&f, &bits, 4);
  } else if (exponent > 0)
    f = ldexpf((float)(1024 + mantissa), exponent - 25);
  return x >> 15 ? -f : f;
}

/* Halves to even; beyond range inf. */
static inline npu_f16 npu_f16_rne(float x) {
  const npu_f16 sign = signbit(x) ? 0x8000 : 0;
  const float a = fabsf(x);
  if (x != x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (npu_f16)(sign | 0x7e00 | (bits >> 13 & 0x1ff));
  }
  if (a >= 65520.0f)
    return (npu_f16)(sign | 0x7c00);
  int exponent = -14;
  if (a >= 0x1p-14f)
    exponent = ilogbf(a);
  /* In units of the last place: an integer of 11 bits, the smallest exponent's without the 1. */
  const int32_t units = (int32_t)nearbyintf(ldexpf(a, 10 - exponent));
  return (npu_f16)(sign | (((exponent + 14) << 10) + units));
}

#endif
