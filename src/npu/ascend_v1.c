/* SPDX-License-Identifier: Apache-2.0
 *
 * V1: a key tile of scores becomes P, and the numbers per row move on (ascend_softmax.c).
 */
#include "ascend_ub.h"

/* Rows of the row block at hand that see less than all of this tile, and how much: they lie query
 * by query. */
ascend_sight ascend_sight_of(const ascend_job *j, const ascend_tile *t, int32_t row, int32_t rows) {
  ascend_sight s;
  s.runs = 0;
  for (int32_t r = 0; r < rows;) {
    const int32_t at = t->row_begin + row + r, query = at / j->h_q;
    const int32_t keys =
        ascend_max(0, ascend_visible(j->causal, j->s_q, t->length, query) - t->key_begin);
    if (keys >= j->tiling.tile_keys && j->tiling.tile_keys == ASCEND_WIDTH)
      break; /* so do all that follow */
    s.row[s.runs] = r, s.keys[s.runs++] = ascend_min(keys, j->tiling.tile_keys);
    r = ascend_min(rows, r + (query + 1) * j->h_q - at);
    s.row[s.runs] = r;
  }
  return s;
}

static void fetch_scores(ascend_vectors *v, const ascend_tile *t, int32_t tile, int32_t r) {
  const int32_t slot = ascend_ring_acquire(&v->in);
  const int64_t at = ascend_slot(v->j, tile) + (int64_t)(ascend_my_begin(t) + r) * ASCEND_WIDTH;
  ascend_fetch(ascend_in_slot(slot), v->j->s + at,
               ascend_min(ASCEND_CHUNK_ROWS, ascend_my_rows(t) - r), t->keys);
  ascend_ring_commit(&v->in);
}

static void store_p(ascend_vectors *v, int32_t tile, int32_t row, int32_t rows,
                    NPU_UB const npu_bf16 *p) {
  const ascend_tiling *tiling = &v->j->tiling;
  if (tiling->in_core)
    npu_copy_ub_l1(NPU_L1_AT(npu_bf16, (uint32_t)ascend_p_begin(tiling)) + row * 16, p,
                   ASCEND_WIDTH / 16, rows * 32, ASCEND_HALF_ROWS * 32, rows * 32);
  else
    npu_copy_ub_gm(v->j->p + ascend_slot(v->j, tile) + (int64_t)row * ASCEND_WIDTH, p, rows,
                   ASCEND_WIDTH * 2, ASCEND_WIDTH * 2, ASCEND_WIDTH * 2);
}

static void chunk(ascend_vectors *v, const ascend_tile *t, int32_t tile, int32_t r) {
  const int32_t rows = ascend_min(ASCEND_CHUNK_ROWS, ascend_my_rows(t) - r),
                row = ascend_my_begin(t) + r;
  const ascend_chunk_state c = ascend_state_at(v, t, tile, r);
  const ascend_sight sight = ascend_sight_of(v->j, t, row, rows);
  const int32_t in_core = v->j->tiling.in_core;
  ascend_vec s = in_core ? ascend_ub(ASCEND_S_IN_UB) + r * ASCEND_WIDTH
                         : ascend_in_slot(ascend_ring_take(&v->in));
  npu_muls_f32(s, s, v->j->scale, ascend_chunk(rows));
  if (c.scales)
    ascend_mul_columns(s, c.scales, rows);
  NPU_UB npu_bf16 *p = (NPU_UB npu_bf16 *)ascend_ub(ASCEND_UB_P + ascend_ring_acquire(&v->p) *
                                                                      ASCEND_CHUNK_BYTES / 2);
  ascend_softmax_chunk(v->j->mode, &c, s, p, &sight, rows);
  if (!in_core)
    ascend_ring_release(&v->in);
  ascend_ring_commit(&v->p);
  (void)ascend_ring_take(&v->p);
  store_p(v, tile, row, rows, p);
  ascend_ring_release(&v->p);
}

static void start_item(const ascend_vectors *v, const ascend_tile *t) {
  const npu_vec all = npu_vec_rows(ASCEND_STAT_BYTES / 256, NPU_MASK_ALL, 8, 8, 8);
  const ascend_chunk_state c = ascend_state_at(v, t, 0, 0);
  npu_dup_f32(c.stat[ASCEND_M], ASCEND_NONE, all);
  npu_dup_f32(c.stat[ASCEND_L], 0.0f, all);
  npu_dup_f32(c.stat[ASCEND_L_OUT], 0.0f, all);
  npu_dup_f32(c.moved, 0.0f, all);
}

/* in_core: V works where FIX has put the scores, and MTE3 writes where C2 has read. */
static void wait_in_core(int32_t tile) {
  npu_cross_wait(NPU_PIPE_V, ASCEND_S_READY);
  if (tile > 0)
    npu_cross_wait(NPU_PIPE_MTE3, ASCEND_P_FREE);
}

void ascend_v1(ascend_vectors *v, const ascend_tile *t, int32_t tile) {
  const int32_t rows = ascend_my_rows(t), in_core = v->j->tiling.in_core;
  const ascend_chunk_state c = ascend_state_at(v, t, tile, 0);
  if (t->first)
    start_item(v, t);
  if (v->j->kv8 && rows > 0)
    ascend_fetch_scales(v, t);
  if (in_core)
    wait_in_core(tile);
  else
    npu_cross_wait(NPU_PIPE_MTE2, ASCEND_S_READY);
  if (rows > 0)
    ascend_softmax_begin(&c, rows);
  if (rows > 0 && !in_core)
    fetch_scores(v, t, tile, 0);
  for (int32_t r = 0; r < rows; r += ASCEND_CHUNK_ROWS) {
    if (r + ASCEND_CHUNK_ROWS < rows && !in_core)
      fetch_scores(v, t, tile, r + ASCEND_CHUNK_ROWS);
    chunk(v, t, tile, r);
  }
  if (in_core && tile + 1 < v->tiles)
    npu_cross_set(NPU_PIPE_V, ASCEND_S_FREE);
  if (v->j->kv8 && rows > 0)
    ascend_ring_release(&v->scales);
  npu_cross_set(NPU_PIPE_MTE3, ASCEND_P_READY);
  if (rows > 0)
    ascend_softmax_end(v->j->mode, &c, v->j->unguarded ? ASCEND_LEAST_PUBLISHED : ASCEND_LEAST,
                       rows);
}
