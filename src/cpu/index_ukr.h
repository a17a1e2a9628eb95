/* SPDX-License-Identifier: Apache-2.0
 *
 * What the indexer needs per instruction set beside the kernels of ukernels.h, whose score tiles
 * (pack, qk) it shares: fp8 keys to f32, and the weighted sum over heads.
 */
#ifndef AMLA_CPU_INDEX_UKR_H
#define AMLA_CPU_INDEX_UKR_H

#include <amla/amla.h>

enum { AMLA_INDEX_LANES = 16 }; /* partial sums of a token's score */

typedef struct amla_index_ukr {
  amla_isa isa;

  /* dst [n] = src [n], e4m3fn, exactly; n a multiple of 32. */
  void (*load_e4m3)(int32_t n, const void *src, float *dst);

  /* For token j < n and row r < rows of the scores s [n][rows] of a panel
   *     sum[j][r % 16] += w[r] * max(0, s[j][r] * scale[j])
   * by rising r, NaN kept; scale NULL = 1. rows is a multiple of 8; s 64-byte aligned; sum
   * [n][AMLA_INDEX_LANES]. */
  void (*weigh)(int32_t n, int32_t rows, const float *s, const float *w, const float *scale,
                float *sum);
} amla_index_ukr;

/* The best one for that instruction set: its own, else portable C. */
const amla_index_ukr *amla_index_ukr_for(amla_isa isa);

#endif
