/* SPDX-License-Identifier: Apache-2.0
 *
 * Reading masks. See ggml_mask.h.
 */
#include "ggml_mask.h"

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
