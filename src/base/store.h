/* SPDX-License-Identifier: Apache-2.0
 *
 * Storing results in an output type, in portable C.
 */
#ifndef AMLA_BASE_STORE_H
#define AMLA_BASE_STORE_H

#include "float16.h"

/* Where a row of results goes and what its O is to be multiplied by. */
typedef struct amla_row_end {
  void *out; /* NULL: the row saw no key, and is 0 there already */
  float factor;
} amla_row_end;

/* out [n] = o [n] * factor, rounded to nearest even. */
typedef void (*amla_store)(int32_t n, const float *o, float factor, void *out);

static inline void amla_store_f32(int32_t n, const float *o, float factor, void *out) {
  for (int32_t d = 0; d < n; d++) ((float *)out)[d] = o[d] * factor;
}

static inline void amla_store_bf16(int32_t n, const float *o, float factor, void *out) {
  for (int32_t d = 0; d < n; d++) ((uint16_t *)out)[d] = amla_f32_to_bf16(o[d] * factor);
}

static inline void amla_store_f16(int32_t n, const float *o, float factor, void *out) {
  for (int32_t d = 0; d < n; d++) ((uint16_t *)out)[d] = amla_f32_to_f16(o[d] * factor);
}

#endif
