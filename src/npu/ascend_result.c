/* SPDX-License-Identifier: Apache-2.0
 *
 * Results: rows of O and their LSE, to the caller's tensors or to a split's.
 */
#include <math.h>

#include "ascend_ub.h"

static void store_split(const ascend_job *j, const ascend_place *at, ascend_vec o, ascend_vec lse) {
  npu_copy_ub_gm(j->split_o + at->split_row * ASCEND_MAX_V, o, at->rows, j->d_v * 4,
                 ASCEND_MAX_V * 4, ASCEND_WIDTH * 4);
  npu_copy_ub_gm(j->split_lse + at->split_row, lse, 1, at->rows * 4, NPU_BLOCK_BYTES * 2, 64);
}

/* Rows lie query by query in out [b][s_q][h_q][d_v] and lse [b][h_q][s_q]. lse_blocks: one tile
 * per row. */
static void store_result(const ascend_job *j, const ascend_place *at, NPU_UB const void *o,
                         ascend_vec lse_blocks) {
  const int32_t bytes = j->out_is_bf16 ? 2 : 4;
  for (int32_t r = 0, run; r < at->rows; r += run) {
    const int32_t query = (at->row + r) / j->h_q, head = (at->row + r) % j->h_q;
    const int64_t out = at->sequence * j->out_stride_batch + query * j->out_stride_query +
                        (int64_t)head * j->out_stride_head;
    run = ascend_min(at->rows - r, j->h_q - head);
    npu_copy_ub_gm((NPU_GM char *)j->out + out * bytes,
                   (NPU_UB const char *)o + r * ASCEND_WIDTH * bytes, run, j->d_v * bytes,
                   run == 1 ? j->d_v * bytes : j->out_stride_head * bytes, ASCEND_WIDTH * bytes);
    if (j->lse)
      npu_copy_ub_gm(j->lse + ((int64_t)at->sequence * j->h_q + head) * j->s_q + query,
                     lse_blocks + r * 8, run, 4, j->s_q * 4, NPU_BLOCK_BYTES);
  }
}

/* Sinks of the rows, one tile per row, behind the chunk of an `in` slot. */
void ascend_fetch_sinks(const ascend_job *j, const ascend_place *at, ascend_vec tiles) {
  for (int32_t r = 0, run; r < at->rows; r += run) {
    const int32_t head = (at->row + r) % j->h_q;
    run = ascend_min(at->rows - r, j->h_q - head);
    npu_copy_gm_ub(tiles + r * 8, j->sinks + head, run, 4, NPU_BLOCK_BYTES, 4);
  }
}

/* divisor *= 1 + exp(sink - lse), but for rows without keys (lse = -inf). */
static void apply_sinks(const ascend_chunk_state *c, ascend_vec tiles, ascend_vec divisor,
                        ascend_vec lse, int32_t rows) {
  const npu_vec v = ascend_per_row(rows);
  ascend_vec sink = c->temp[0], factor = c->temp[1];
  npu_block_max_f32(sink, tiles, npu_vec_rows(ASCEND_CHUNK_ROWS / 8, 0x0101010101010101u, 1, 8, 8));
  npu_sub_f32(factor, sink, lse, v);
  npu_exp_f32(factor, factor, v);
  npu_adds_f32(factor, factor, 1.0f, v);
  npu_mul_f32(factor, factor, divisor, v);
  npu_cmps_f32(c->bits, lse, -INFINITY, NPU_CMP_NE, v);
  npu_sel_f32(divisor, c->bits, factor, divisor, v);
}

/* o [rows][512] / divisor -> global memory, through the `out` slot that has been acquired. o may be
 * destroyed. */
void ascend_emit(ascend_vectors *v, const ascend_chunk_state *c, const ascend_place *at,
                 ascend_vec o, ascend_vec out, ascend_vec sinks, ascend_vec divisor,
                 ascend_vec lse) {
  const ascend_job *j = v->j;
  const int32_t whole = at->split_row < 0;
  if (whole && j->sinks)
    apply_sinks(c, sinks, divisor, lse, at->rows);
  if (whole && j->lse_base2)
    npu_muls_f32(lse, lse, 1.44269504088896340736f, ascend_per_row(at->rows));
  ascend_spread(c->spread, divisor);
  if (whole && j->out_is_bf16) {
    ascend_div_rows(o, o, c->spread, at->rows);
    npu_cast_f32_bf16_rne((NPU_UB npu_bf16 *)out, o,
                          npu_vec_rows(at->rows * ASCEND_GROUPS, NPU_MASK_ALL, 4, 8, 0));
  } else {
    ascend_div_rows(out, o, c->spread, at->rows);
  }
  if (whole)
    ascend_spread(ascend_tail(out), lse);
  else
    npu_adds_f32(ascend_tail(out), lse, 0.0f, ascend_per_row(at->rows));
  ascend_ring_commit(&v->out);
  (void)ascend_ring_take(&v->out);
  if (whole)
    store_result(j, at, out, ascend_tail(out));
  else
    store_split(j, at, out, ascend_tail(out));
  ascend_ring_release(&v->out);
}
