/* SPDX-License-Identifier: Apache-2.0
 *
 * Rows of q and kv as f32, in portable C. Exact for every type.
 */
#ifndef AMLA_BASE_LOAD_H
#define AMLA_BASE_LOAD_H

#include "dtype.h"
#include "float16.h"

/* dst [n] = src [n], n a multiple of the type's block. */
static inline void amla_load_row(amla_dtype type, int32_t n, const void *src, float *dst) {
  const uint16_t *h = (const uint16_t *)src; /* the cast is for C++ */
  switch (type) {
  case AMLA_F32: memcpy(dst, src, (size_t)n * sizeof *dst); return;
  case AMLA_BF16:
    for (int32_t i = 0; i < n; i++)
      dst[i] = amla_bf16_to_f32(h[i]);
    return;
  case AMLA_F16:
    for (int32_t i = 0; i < n; i++)
      dst[i] = amla_f16_to_f32(h[i]);
    return;
  case AMLA_Q8_0: amla_q8_0_to_f32(n, src, dst); return;
  }
}

#endif
