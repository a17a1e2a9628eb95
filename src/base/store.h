/* SPDX-License-Identifier: Apache-2.0
 *
 * Rows of results in an output type, in portable C.
 */
#ifndef AMLA_BASE_STORE_H
#define AMLA_BASE_STORE_H

#include "dtype.h"
#include "float16.h"

/* Where a row of results goes and what its O is to be multiplied by. */
typedef struct amla_row_end {
  void *out; /* NULL: the row saw no key, and is 0 there already */
  float factor;
} amla_row_end;

/* out [n] = o [n] * factor, rounded to nearest even. */
typedef void amla_store_row_fn(amla_dtype type, int32_t n, const float *o, float factor, void *out);

static inline void amla_store_row(amla_dtype type, int32_t n, const float *o, float factor,
                                  void *out) {
  switch (type) {
  case AMLA_BF16:
    for (int32_t d = 0; d < n; d++)
      ((uint16_t *)out)[d] = amla_f32_to_bf16(o[d] * factor);
    return;
  case AMLA_F16:
    for (int32_t d = 0; d < n; d++)
      ((uint16_t *)out)[d] = amla_f32_to_f16(o[d] * factor);
    return;
  default:
    for (int32_t d = 0; d < n; d++)
      ((float *)out)[d] = o[d] * factor;
  }
}

#endif
