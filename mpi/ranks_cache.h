/* SPDX-License-Identifier: Apache-2.0
 *
 * The caches of a rank that has every ranks-th block of tokens: its own tokens of a dataset, closed
 * up. What it does not have is not there.
 */
#ifndef AMLA_RANKS_CACHE_H
#define AMLA_RANKS_CACHE_H

#include "harness/dataset.h"

typedef struct ranks_cache {
  amla_problem problem; /* the dataset's, with pages of the rank's own */
  amla_tensors tensors; /* likewise */
  void *owned[5];
} ranks_cache;

/* 0, or -1 with a reason. */
int ranks_cache_create(const harness_dataset *data, int32_t interleave_tokens, int32_t rank,
                       int32_t ranks, ranks_cache *cache, const char **why);
void ranks_cache_free(ranks_cache *cache);

#endif
