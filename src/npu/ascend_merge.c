/* SPDX-License-Identifier: Apache-2.0
 *
 * Splits of one sequence's keys meet, after a barrier, in their order.
 */
#include "ascend_ub.h"

/* A row block made of splits: LSE = log sum exp(LSE_p), O = sum exp(LSE_p - LSE) O_p, in the order
 * of the splits. */
typedef struct joint {
  int32_t split_begin, splits;
  int64_t row; /* of the row block */
} joint;

static ascend_vec fetch_split(ascend_vectors *v, const joint *t, int32_t split, int32_t rows,
                              int with_o) {
  const int64_t at = (int64_t)(t->split_begin + split) * ASCEND_BLOCK_ROWS + t->row;
  ascend_vec slot = ascend_in_slot(ascend_ring_acquire(&v->in));
  if (with_o)
    ascend_fetch(slot, v->j->split_o + at * ASCEND_MAX_V, rows, v->j->d_v);
  npu_copy_gm_ub(ascend_tail(slot), v->j->split_lse + at, 1, rows * 4, 64, 64);
  ascend_ring_commit(&v->in);
  (void)ascend_ring_take(&v->in);
  return slot;
}

static void merge_chunk(ascend_vectors *v, const joint *t, const ascend_place *at) {
  const npu_vec one = ascend_per_row(at->rows);
  const ascend_tile none = {0, 0, 0, 0, -1, 0, 0, 0, 0, 1, 1};
  const ascend_chunk_state c = ascend_state_at(v, &none, 0, 0);
  ascend_vec max = c.temp[2], sum = c.temp[3], weight = c.temp[4], divisor = ascend_ub_divisor(),
             lse = ascend_ub_lse();
  ascend_vec out = ascend_out_slot(ascend_ring_acquire(&v->out)),
             o = out + ASCEND_SMALL_ROWS * ASCEND_WIDTH;
  npu_dup_f32(max, ASCEND_NONE, one);
  npu_dup_f32(sum, 0.0f, one);
  npu_dup_f32(o, 0.0f, ascend_chunk(at->rows));
  for (int32_t i = 0; i < t->splits; i++) {
    ascend_vec slot = fetch_split(v, t, i, at->rows, 0);
    npu_max_f32(max, max, ascend_tail(slot), one);
    ascend_ring_release(&v->in);
  }
  for (int32_t i = 0; i < t->splits; i++) {
    ascend_vec slot = fetch_split(v, t, i, at->rows, 1);
    npu_sub_f32(weight, ascend_tail(slot), max, one);
    npu_exp_f32(weight, weight, one);
    npu_add_f32(sum, sum, weight, one);
    ascend_spread(c.spread, weight);
    ascend_mul_rows(slot, slot, c.spread, at->rows);
    npu_add_f32(o, o, slot, ascend_chunk(at->rows));
    ascend_ring_release(&v->in);
  }
  npu_ln_f32(lse, sum, one);
  npu_add_f32(lse, lse, max, one);
  npu_cmps_f32(c.bits, sum, 0.0f, NPU_CMP_NE, one);
  npu_sels_f32(divisor, c.bits, sum, 1.0f, one);
  ascend_vec sinks = ascend_tail(ascend_in_slot(ascend_ring_acquire(&v->in)));
  if (v->j->sinks)
    ascend_fetch_sinks(v->j, at, sinks);
  ascend_ring_commit(&v->in);
  (void)ascend_ring_take(&v->in);
  ascend_emit(v, &c, at, o, out, sinks, divisor, lse);
  ascend_ring_release(&v->in);
}

/* All blocks that are made of splits, or of nothing; all vector cores share their chunks. */
void ascend_merge_splits(ascend_vectors *v) {
  const int32_t me = npu_block_index() * 2 + npu_subcore(), cores = npu_block_count() * 2;
  for (int32_t m = 0, chunk = 0; m < v->j->n_merges; m++) {
    NPU_GM const ascend_merge *g = v->j->merges + m;
    const int32_t rows = npu_read_gm_s32(&g->rows);
    for (int32_t r = 0; r < rows; r += ASCEND_SMALL_ROWS, chunk++) {
      if (chunk % cores != me)
        continue;
      const joint t = {npu_read_gm_s32(&g->split_begin), npu_read_gm_s32(&g->splits), r};
      const ascend_place at = {npu_read_gm_s32(&g->sequence), npu_read_gm_s32(&g->row_begin) + r,
                               ascend_min(ASCEND_SMALL_ROWS, rows - r), -1};
      merge_chunk(v, &t, &at);
    }
  }
}
