/* SPDX-License-Identifier: Apache-2.0
 *
 * bf16 of the simulated NPU: f32 cut to 16 bits. A NaN stays a NaN (quieted).
 */
#ifndef NPU_FLOAT_H
#define NPU_FLOAT_H

#include "npu_isa.h"

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

#endif
