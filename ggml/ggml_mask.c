/* SPDX-License-Identifier: Apache-2.0
 *
 * Reading masks. See ggml_mask.h.
 */
#include "ggml_mask.h"

#include <math.h>
#include <string.h>

enum { HIDDEN = 0xfc00, SIGN = 0x8000 }; /* -inf, and a zero's sign, in f16 */

int64_t ggml_mask_length(const ggml_mask_view *mask) {
  int64_t length = 0;
  for (int64_t i = mask->n_tokens - 1; i >= 0; i--) {
    const uint16_t *row = mask->rows + i * mask->stride_elems;
    int64_t n = mask->n_kv;
    while (n > length && row[n - 1] == HIDDEN)
      n--;
    length = n;
  }
  return length;
}

bool ggml_mask_is_causal(const ggml_mask_view *mask, int64_t length) {
  for (int64_t i = 0; i < mask->n_tokens; i++) {
    const uint16_t *row = mask->rows + i * mask->stride_elems;
    int64_t seen = length - mask->n_tokens + i + 1;
    unsigned wrong = 0;
    if (seen < 0)
      seen = 0;
    for (int64_t j = 0; j < seen; j++)
      wrong |= row[j] & ~(unsigned)SIGN;
    for (int64_t j = seen; j < length; j++)
      wrong |= row[j] ^ (unsigned)HIDDEN;
    if (wrong != 0)
      return false;
  }
  return true;
}

void ggml_mask_visible(const ggml_mask_view *mask, int32_t *visible) {
  for (int64_t i = 0; i < mask->n_tokens; i++) {
    ggml_mask_view row = *mask;
    row.rows += i * mask->stride_elems;
    row.n_tokens = 1;
    visible[i] = (int32_t)ggml_mask_length(&row);
  }
}

/* f16 to f32: the exponent is 112 smaller than in f32, which the product repairs in subnormals too.
 */
static float widen(uint16_t h) {
  uint32_t bits = (uint32_t)(h & 0x7fff) << 13;
  float x;
  if ((h & 0x7c00) == 0x7c00)
    bits |= 0x7f800000; /* an infinity or NaN, and stays one */
  memcpy(&x, &bits, sizeof x);
  if ((h & 0x7c00) != 0x7c00)
    x *= 0x1p112f;
  return h & SIGN ? -x : x;
}

void ggml_mask_add(const ggml_mask_view *mask, const int32_t *visible, float *scores) {
  for (int64_t i = 0; i < mask->n_tokens; i++, scores += mask->n_kv) {
    const uint16_t *row = mask->rows + i * mask->stride_elems;
    for (int32_t j = 0; j < visible[i]; j++)
      if (row[j] == HIDDEN)
        scores[j] = -INFINITY;
      else if (row[j] & ~(unsigned)SIGN)
        scores[j] += widen(row[j]);
  }
}
