/* SPDX-License-Identifier: Apache-2.0
 *
 * The indexer's arithmetic: scores of a few keys for one query.
 */
#ifndef AMLA_CPU_INDEX_SCORES_H
#define AMLA_CPU_INDEX_SCORES_H

#include "../base/arena.h"
#include "index_ukr.h"
#include "ukernels.h"

/* A thread's buffers, from the scratch. */
typedef struct amla_index_scorer {
  const amla_index_args *args; /* checked, with every default filled in */
  const amla_ukernels *ukernels;
  const amla_index_ukr *ukr;
  int32_t sequence, rows_padded;
  int32_t tile_tokens; /* most keys of a call, converted once; below AMLA_INDEX_BATCH */
  int64_t ld;          /* of keys */
  float *q;            /* [heads][d], of fp8 q */
  const void **q_rows; /* [heads] */
  float *qt;           /* panels of Q^T */
  float *weights;      /* [rows_padded], 0 behind the last head */
  float *keys;         /* [tile_tokens][ld] */
  float *scales;       /* [tile_tokens] */
  float *s;            /* [tile_tokens][rows] of a panel */
  float *sums;         /* [tile_tokens][AMLA_INDEX_LANES] */
} amla_index_scorer;

/* Takes its buffers from the arena, or only counts. */
amla_index_scorer amla_index_scorer_create(const amla_index_args *args, amla_isa isa,
                                           amla_arena *arena);

/* Which query the next scores are of. */
void amla_index_scorer_begin(amla_index_scorer *scorer, int32_t sequence, int32_t query);

/* scores [n] of keys first, first + 1, ... of the sequence; 1 <= n <= tile_tokens. A key's bits do
 * not depend on its neighbours. */
void amla_index_scorer_run(const amla_index_scorer *scorer, int32_t first, int32_t n,
                           float *scores);

/* Where position j of a sequence lies: page * page_size + offset. */
int64_t amla_index_slot(const amla_index_args *args, int32_t sequence, int32_t j);

#endif
