/* SPDX-License-Identifier: Apache-2.0
 *
 * V2: flash rescales O and adds PV, in every key tile. At an item's last one, all modes: O / l,
 * LSE, out.
 */
#include "ascend_ub.h"

static ascend_place place_of(const ascend_tile *t, int32_t row, int32_t rows) {
  const ascend_place at = {t->sequence, t->row_begin + row, rows,
                           t->split < 0 ? -1 : (int64_t)t->split * ASCEND_BLOCK_ROWS + row};
  return at;
}

static void finish_chunk(ascend_vectors *v, const ascend_tile *t, const ascend_chunk_state *c,
                         int32_t r, int32_t rows, ascend_vec o, ascend_vec sinks) {
  const ascend_place at = place_of(t, ascend_my_begin(t) + r, rows);
  ascend_vec out = ascend_out_slot(ascend_ring_acquire(&v->out)), divisor = ascend_ub_divisor(),
             lse = ascend_ub_lse();
  if (v->j->clamp > 0.0f)
    ascend_clamp(c, o, out, v->j->clamp, rows);
  ascend_divisor(c, v->j->mode, divisor, lse, rows);
  ascend_emit(v, c, &at, o, out, sinks, divisor, lse);
  ascend_ring_release(&v->in);
}

/* amla, lazy: the end of an item. */
static void finish(ascend_vectors *v, const ascend_tile *t, int32_t tile) {
  npu_cross_wait(NPU_PIPE_MTE2, ASCEND_O_DONE);
  for (int32_t r = 0; r < ascend_my_rows(t); r += ASCEND_CHUNK_ROWS) {
    const int32_t rows = ascend_min(ASCEND_CHUNK_ROWS, ascend_my_rows(t) - r);
    const ascend_chunk_state c = ascend_state_at(v, t, tile, r);
    const ascend_place at = place_of(t, ascend_my_begin(t) + r, rows);
    ascend_vec o = ascend_in_slot(ascend_ring_acquire(&v->in));
    ascend_fetch(o, ascend_o_rows(v, t, r), rows, v->j->d_v);
    if (v->j->sinks)
      ascend_fetch_sinks(v->j, &at, ascend_tail(o));
    ascend_ring_commit(&v->in);
    (void)ascend_ring_take(&v->in);
    finish_chunk(v, t, &c, r, rows, o, ascend_tail(o));
  }
}

/* O of a tile must be written before the next tile reads it. With lag 0 that follows from
 * P_READY; with more chunks than the rings have slots, from the rings. */
static int o_needs_flag(const ascend_job *j, const ascend_tile *t) {
  return j->tiling.lag > 0 && t->rows <= ASCEND_HALF_ROWS && ascend_my_rows(t) > 0;
}

/* flash: O = O * factor + PV, and at the end of an item its result. */
static void v2_flash(ascend_vectors *v, const ascend_tile *t, int32_t tile) {
  const ascend_job *j = v->j;
  NPU_GM float *o_tile = j->o_flash + ((int64_t)npu_block_index() * 2 + npu_subcore()) *
                                          ASCEND_HALF_ROWS * ASCEND_MAX_V;
  NPU_GM const float *pv_tile = (ascend_shares_s_and_pv(j) ? j->s : j->o) + ascend_slot(j, tile) +
                                (int64_t)ascend_my_begin(t) * ASCEND_MAX_V;
  npu_cross_wait(NPU_PIPE_MTE2, t->last ? ASCEND_O_DONE : ASCEND_PV_DONE);
  if (!t->first && o_needs_flag(j, t))
    npu_wait(NPU_PIPE_MTE3, NPU_PIPE_MTE2, 0);
  for (int32_t r = 0; r < ascend_my_rows(t); r += ASCEND_SMALL_ROWS) {
    const int32_t rows = ascend_min(ASCEND_SMALL_ROWS, ascend_my_rows(t) - r);
    const ascend_chunk_state c = ascend_state_at(v, t, tile, r);
    const ascend_place at = place_of(t, ascend_my_begin(t) + r, rows);
    ascend_vec pv = ascend_in_slot(ascend_ring_acquire(&v->in)),
               o = pv + ASCEND_SMALL_ROWS * ASCEND_WIDTH;
    ascend_fetch(pv, pv_tile + (int64_t)r * ASCEND_MAX_V, rows, j->d_v);
    if (!t->first)
      ascend_fetch(o, o_tile + (int64_t)r * ASCEND_MAX_V, rows, j->d_v);
    if (t->last && j->sinks)
      ascend_fetch_sinks(j, &at, ascend_tail(pv));
    ascend_ring_commit(&v->in);
    (void)ascend_ring_take(&v->in);
    if (!t->first) {
      ascend_spread(c.spread, c.factor);
      ascend_mul_rows(o, o, c.spread, rows);
      npu_add_f32(pv, o, pv, ascend_chunk(rows));
    }
    if (t->last) {
      finish_chunk(v, t, &c, r, rows, pv, ascend_tail(pv));
      continue;
    }
    ascend_vec out = ascend_out_slot(ascend_ring_acquire(&v->out));
    npu_adds_f32(out, pv, 0.0f, ascend_chunk(rows));
    ascend_ring_release(&v->in), ascend_ring_commit(&v->out);
    (void)ascend_ring_take(&v->out);
    npu_copy_ub_gm(o_tile + (int64_t)r * ASCEND_MAX_V, out, rows, j->d_v * 4, ASCEND_MAX_V * 4,
                   ASCEND_WIDTH * 4);
    ascend_ring_release(&v->out);
  }
  if (!t->last && o_needs_flag(j, t))
    npu_notify(NPU_PIPE_MTE3, NPU_PIPE_MTE2, 0);
  if (ascend_shares_s_and_pv(j) && tile + 1 < v->tiles)
    npu_cross_set(NPU_PIPE_MTE3, ASCEND_O_READY);
}

void ascend_v2(ascend_vectors *v, const ascend_tile *t, int32_t tile) {
  if (v->j->mode == ASCEND_FLASH)
    v2_flash(v, t, tile);
  else if (t->last)
    finish(v, t, tile);
}
