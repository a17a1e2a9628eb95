/* SPDX-License-Identifier: Apache-2.0
 *
 * What the indexer needs per instruction set beside the kernels of ukernels.h, whose score tiles
 * (pack, qk) it shares: keys to f32, the weighted sum over heads, and the pass of the selection.
 */
#ifndef AMLA_CPU_INDEX_UKR_H
#define AMLA_CPU_INDEX_UKR_H

#include <amla/amla.h>

enum { AMLA_INDEX_LANES = 16 }; /* partial sums of a token's score */

typedef struct amla_index_ukr {
  amla_isa isa;

  /* dst [n] = src [n], exactly; n a multiple of 32, dst 64-byte aligned. */
  void (*load_bf16)(int32_t n, const void *src, float *dst);
  void (*load_e4m3)(int32_t n, const void *src, float *dst); /* e4m3fn */

  /* For token j < n and row r < rows of the scores s [n][rows] of a panel
   *     sums[j][r % 16] += w[r] * max(0, s[j][r] * scales[j])
   * by rising r, NaN kept; scales NULL = 1. rows is a multiple of 8; s 64-byte aligned; sums
   * [n][AMLA_INDEX_LANES]. */
  void (*weigh)(int32_t n, int32_t rows, const float *s, const float *w, const float *scales,
                float *sums);

  /* scores [n]: the lanes of sums [n][AMLA_INDEX_LANES], by halves: 0 + 8 and so on, 0 + 4, ... */
  void (*add_lanes)(int32_t n, const float *sums, float *scores);

  /* How many of keys [n] are > bound. */
  int32_t (*count_above)(int32_t n, const int32_t *keys, int32_t bound);
} amla_index_ukr;

/* The best one for that instruction set: its own, else portable C. */
const amla_index_ukr *amla_index_ukr_for(amla_isa isa);

#endif
