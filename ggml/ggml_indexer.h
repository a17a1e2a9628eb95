/* SPDX-License-Identifier: Apache-2.0
 *
 * One LIGHTNING_INDEXER of ggml by amla_index_topk's scorer: which ones we take, and how.
 */
#ifndef AMLA_GGML_INDEXER_H
#define AMLA_GGML_INDEXER_H

#include "ggml_attention.h"

typedef struct ggml_indexer { /* what one backend object keeps between operations */
  ggml_buffer scratch;
  ggml_buffer visible; /* [tokens] int32_t: keys up to the last one that a token sees */
} ggml_indexer;

/* As of attention (ggml_attention.h); `a` has ggml's abort callback. */
const char *ggml_indexer_refusal(const ggml_abi_tensor *op);
bool ggml_indexer_is_small(const ggml_abi_tensor *op);
int ggml_indexer_run(ggml_indexer *x, const ggml_attention *a, const ggml_abi_tensor *op,
                     int32_t threads, amla_parallel parallel, void *context);
void ggml_indexer_free(ggml_indexer *x);

#endif
