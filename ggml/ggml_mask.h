/* SPDX-License-Identifier: Apache-2.0
 *
 * What a mask of ggml says. Mostly it is plain causality, over the tokens in use of a cache that is
 * rounded up: then no mask is needed, and no key is computed in vain.
 */
#ifndef AMLA_GGML_MASK_H
#define AMLA_GGML_MASK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct ggml_mask_view { /* of one stream */
  const uint16_t *rows;         /* [n_tokens][stride_elems], f16; the first n_kv count */
  int64_t stride_elems, n_tokens, n_kv;
} ggml_mask_view;

/* The number of keys up to the last one that any token sees. */
int64_t ggml_mask_length(const ggml_mask_view *mask);

/* Does token i see exactly the first length - n_tokens + i + 1 keys, and none of them with a bias?
 */
bool ggml_mask_is_causal(const ggml_mask_view *mask, int64_t length);

/* visible [n_tokens]: the keys up to the last one that a token sees. */
void ggml_mask_visible(const ggml_mask_view *mask, int32_t *visible);

/* scores [n_tokens][n_kv] += the mask, of the first visible keys of each; -inf where it hides. */
void ggml_mask_add(const ggml_mask_view *mask, const int32_t *visible, float *scores);

#endif
