/* SPDX-License-Identifier: Apache-2.0
 *
 * Rescale: O in global memory follows the reference of this key tile. amla adds N to its bits,
 * guarded, or as published (for study) with an int32 atomic; lazy does nothing, or shifts the rows
 * whose reference moved; flash rescales in V2.
 */
#include "ascend_ub.h"

/* Rows that see nothing of this tile keep their O. */
static void keep_unseen(const ascend_chunk_state *c, const ascend_sight *sight) {
  for (int32_t i = 0; i < sight->runs && sight->keys[i] == 0; i++)
    npu_dup_s32(c->add, 0, ascend_per_row(sight->row[i + 1]));
}

/* As published: right while O and its result are normal numbers, and only then. */
static void add_n_unguarded(ascend_vectors *v, const ascend_tile *t, int32_t tile) {
  const int32_t d_v = v->j->d_v;
  if (ascend_tells_pv_done(v->j))
    npu_cross_wait(NPU_PIPE_MTE3, ASCEND_PV_DONE);
  for (int32_t r = 0; r < ascend_my_rows(t); r += ASCEND_CHUNK_ROWS) {
    const int32_t rows = ascend_min(ASCEND_CHUNK_ROWS, ascend_my_rows(t) - r);
    const ascend_chunk_state c = ascend_state_at(v, t, tile, r);
    const ascend_sight sight = ascend_sight_of(v->j, t, ascend_my_begin(t) + r, rows);
    NPU_UB int32_t *n = (NPU_UB int32_t *)ascend_out_slot(ascend_ring_acquire(&v->out));
    keep_unseen(&c, &sight);
    ascend_spread(c.spread, (NPU_UB const float *)c.add);
    ascend_fill_rows(n, (NPU_UB const int32_t *)c.spread, rows);
    ascend_ring_commit(&v->out);
    (void)ascend_ring_take(&v->out);
    for (int32_t col = 0; col < d_v; col += ASCEND_COLUMNS)
      npu_copy_ub_gm_add_s32((NPU_GM int32_t *)ascend_o_rows(v, t, r) + col, n, rows,
                             ascend_min(ASCEND_COLUMNS, d_v - col) * 4, ASCEND_MAX_V * 4,
                             ASCEND_COLUMNS * 4);
    ascend_ring_release(&v->out);
  }
}

/* Eight rows of O: read, add to the bits, write. */
static void shift_rows(ascend_vectors *v, const ascend_tile *t, int32_t tile, int32_t r) {
  const int32_t rows = ascend_min(ASCEND_SMALL_ROWS, ascend_my_rows(t) - r), d_v = v->j->d_v;
  const ascend_chunk_state c = ascend_state_at(v, t, tile, r);
  ascend_fetch(ascend_in_slot(ascend_ring_acquire(&v->in)), ascend_o_rows(v, t, r), rows, d_v);
  ascend_ring_commit(&v->in);
  ascend_vec x = ascend_in_slot(ascend_ring_take(&v->in)),
             y = ascend_out_slot(ascend_ring_acquire(&v->out));
  if (v->j->mode == ASCEND_AMLA)
    ascend_guarded_add(&c, y, x, x + ASCEND_SMALL_ROWS * ASCEND_WIDTH, rows);
  else
    ascend_guarded_shift(&c, y, x, x + ASCEND_SMALL_ROWS * ASCEND_WIDTH, rows);
  ascend_ring_release(&v->in), ascend_ring_commit(&v->out);
  (void)ascend_ring_take(&v->out);
  npu_copy_ub_gm(ascend_o_rows(v, t, r), y, rows, d_v * 4, ASCEND_MAX_V * 4, ASCEND_WIDTH * 4);
  ascend_ring_release(&v->out);
}

static void add_n(ascend_vectors *v, const ascend_tile *t, int32_t tile) {
  if (ascend_tells_pv_done(v->j))
    npu_cross_wait(NPU_PIPE_MTE2, ASCEND_PV_DONE);
  for (int32_t r = 0; r < ascend_my_rows(t); r += ASCEND_SMALL_ROWS) {
    const ascend_chunk_state c = ascend_state_at(v, t, tile, r);
    const ascend_sight sight = ascend_sight_of(
        v->j, t, ascend_my_begin(t) + r, ascend_min(ASCEND_SMALL_ROWS, ascend_my_rows(t) - r));
    keep_unseen(&c, &sight);
    shift_rows(v, t, tile, r);
  }
}

/* The scalar unit looks whether any reference moved, then where. */
static void shift_moved(ascend_vectors *v, const ascend_tile *t, int32_t tile) {
  const float assumed = t->tile_of_item <= v->j->assume_bumps ? 1.0f : 0.0f;
  ascend_vec by_eight = ascend_ub(ASCEND_UB_MOVED_MAX), all = ascend_ub(ASCEND_UB_TEMP);
  npu_block_max_f32(by_eight, ascend_state_at(v, t, tile, 0).moved,
                    npu_vec_rows(ASCEND_STAT_BYTES / 256, NPU_MASK_ALL, 1, 8, 8));
  npu_block_max_f32(all, by_eight, npu_vec_rows(1, 0xffff, 1, 8, 8));
  npu_notify(NPU_PIPE_V, NPU_PIPE_S, 0);
  if (ascend_tells_pv_done(v->j))
    npu_cross_wait(NPU_PIPE_MTE2, ASCEND_PV_DONE);
  npu_wait(NPU_PIPE_V, NPU_PIPE_S, 0);
  if (!(npu_read_ub_f32(all, assumed) > 0.0f) && !(npu_read_ub_f32(all + 1, assumed) > 0.0f))
    return;
  for (int32_t r = 0; r < ascend_my_rows(t); r += ASCEND_SMALL_ROWS)
    if (npu_read_ub_f32(by_eight + r / ASCEND_SMALL_ROWS, assumed) > 0.0f)
      shift_rows(v, t, tile, r);
}

void ascend_rescale(ascend_vectors *v, const ascend_tile *t, int32_t tile) {
  if (v->j->mode == ASCEND_FLASH)
    return;
  if (!t->first && v->j->mode == ASCEND_AMLA && v->j->unguarded)
    add_n_unguarded(v, t, tile);
  if (!t->first && v->j->mode == ASCEND_AMLA && !v->j->unguarded)
    add_n(v, t, tile);
  if (!t->first && v->j->mode == ASCEND_LAZY)
    shift_moved(v, t, tile);
  npu_cross_set(NPU_PIPE_MTE3, ASCEND_O_READY);
}
