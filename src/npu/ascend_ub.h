/* SPDX-License-Identifier: Apache-2.0
 *
 * What the stages of the vector program share: the map of the unified buffer, rings, and the rows
 * that are this vector core's. The two of an AI core share a row block's rows. Rows are worked on
 * in chunks of 16: MTE2 brings them to the ring `in`, V computes, MTE3 takes them away from `out`
 * or `p`.
 */
#ifndef ASCEND_UB_H
#define ASCEND_UB_H

#include <stddef.h>

#include "ascend_job.h"
#include "ascend_ring.h"
#include "ascend_softmax.h"

/* What lies where, in bytes. in_core: one slot of `in` and of `out`; S lies over the others. */
enum {
  ASCEND_STAT_BYTES = ASCEND_HALF_ROWS * 4,
  ASCEND_CHUNK_BYTES = ASCEND_CHUNK_ROWS * ASCEND_WIDTH * 4,
  ASCEND_SLOT_BYTES = /* a chunk, and one block per row */
  ASCEND_CHUNK_BYTES + ASCEND_CHUNK_ROWS * NPU_BLOCK_BYTES,
  ASCEND_UB_STATS = 0, /* [lag + 1 items][ASCEND_STATS][128] */
  ASCEND_UB_FACTOR =   /* [lag + 1 tiles][128] */
  ASCEND_UB_STATS + (ASCEND_MAX_LAG + 1) * ASCEND_STATS * ASCEND_STAT_BYTES,
  ASCEND_UB_ROWS = /* [..][128]: m_old, next, s32, sum, sum_out, add, moved, wide */
  ASCEND_UB_FACTOR + (ASCEND_MAX_LAG + 1) * ASCEND_STAT_BYTES,
  ASCEND_UB_MOVED_MAX =
      ASCEND_UB_ROWS + (7 + ASCEND_WIDE) * ASCEND_STAT_BYTES, /* [16]: of 8 rows */
  ASCEND_UB_WORK = ASCEND_UB_MOVED_MAX + 128,
  ASCEND_UB_SPREAD = ASCEND_UB_WORK + ASCEND_CHUNK_ROWS * (NPU_LANES + 8) * 4,
  ASCEND_UB_TEMP = ASCEND_UB_SPREAD + ASCEND_CHUNK_ROWS * NPU_BLOCK_BYTES, /* [10][16] */
  ASCEND_UB_TEMP16 = ASCEND_UB_TEMP + 10 * 64,
  ASCEND_UB_BITS = ASCEND_UB_TEMP16 + 32,
  ASCEND_UB_LN2 = ASCEND_UB_BITS + 32,
  ASCEND_UB_ONE = ASCEND_UB_LN2 + 64,
  ASCEND_UB_P = ASCEND_UB_ONE + 64,                        /* 2 slots of bf16 */
  ASCEND_UB_IN = ASCEND_UB_P + 2 * ASCEND_CHUNK_BYTES / 2, /* slots of in and out take turns */
  ASCEND_UB_OUT = ASCEND_UB_IN + ASCEND_SLOT_BYTES,
  ASCEND_UB_IN_1 = ASCEND_UB_IN + 2 * ASCEND_SLOT_BYTES,
  ASCEND_UB_END_IN_CORE = ASCEND_UB_IN_1,
  ASCEND_UB_SCALES = ASCEND_UB_IN + 4 * ASCEND_SLOT_BYTES, /* [512] of the key tile, with kv8 */
  ASCEND_UB_END = ASCEND_UB_SCALES + ASCEND_TILE_KEYS * 4
};
typedef char ascend_ub_is_large_enough[ASCEND_UB_END <= (int)NPU_UB_BYTES ? 1 : -1];
typedef char ascend_ub_has_room_for_s[ASCEND_UB_END_IN_CORE <= (int)ASCEND_S_IN_UB ? 1 : -1];
enum { ASCEND_SMALL_ROWS = ASCEND_CHUNK_ROWS / 2 }; /* of a chunk where a slot holds two */

typedef struct ascend_vectors {
  const ascend_job *j;
  int32_t tiles;
  ascend_walk walk;
  ascend_ring in, out, p, scales;
} ascend_vectors;

static inline ascend_vec ascend_ub(int32_t offset_bytes) {
  return NPU_UB_AT(float, (uint32_t)offset_bytes);
}
static inline ascend_vec ascend_in_slot(int32_t slot) {
  return ascend_ub(ASCEND_UB_IN + slot * 2 * ASCEND_SLOT_BYTES);
}
static inline ascend_vec ascend_out_slot(int32_t slot) {
  return ascend_ub(ASCEND_UB_OUT + slot * 2 * ASCEND_SLOT_BYTES);
}
/* One block per row, behind the chunk. */
static inline ascend_vec ascend_tail(ascend_vec slot) { return slot + ASCEND_CHUNK_BYTES / 4; }

/* Temporary numbers per row that outlive a call of ascend_softmax.h. */
static inline ascend_vec ascend_ub_divisor(void) { return ascend_ub(ASCEND_UB_TEMP + 8 * 64); }
static inline ascend_vec ascend_ub_lse(void) { return ascend_ub(ASCEND_UB_TEMP + 9 * 64); }

/* This vector core's rows of a row block: [begin, begin + n). */
static inline int32_t ascend_my_begin(const ascend_tile *t) {
  return npu_subcore() * ascend_rows_of_first(t->rows);
}
static inline int32_t ascend_my_rows(const ascend_tile *t) {
  return ascend_max(0, ascend_min(ascend_rows_of_first(t->rows), t->rows - ascend_my_begin(t)));
}

/* Pointers at row r (of mine, a multiple of 8) of the numbers of this item and key tile. */
static inline ascend_chunk_state ascend_state_at(const ascend_vectors *v, const ascend_tile *t,
                                                 int32_t tile, int32_t r) {
  const int32_t ring = v->j->tiling.lag + 1, at = r * 4;
  ascend_vec rows[7 + ASCEND_WIDE];
  ascend_chunk_state c;
  for (int32_t i = 0; i < 7 + ASCEND_WIDE; i++)
    rows[i] = ascend_ub(ASCEND_UB_ROWS + i * ASCEND_STAT_BYTES + at);
  for (int32_t i = 0; i < ASCEND_STATS; i++)
    c.stat[i] =
        ascend_ub(ASCEND_UB_STATS + (t->item % ring * ASCEND_STATS + i) * ASCEND_STAT_BYTES + at);
  c.factor = ascend_ub(ASCEND_UB_FACTOR + tile % ring * ASCEND_STAT_BYTES + at);
  c.m_old = rows[0], c.next = rows[1], c.s32 = rows[2], c.sum = rows[3], c.sum_out = rows[4];
  c.add = (NPU_UB int32_t *)rows[5], c.moved = rows[6];
  for (int32_t i = 0; i < ASCEND_WIDE; i++)
    c.wide[i] = rows[7 + i];
  for (int32_t i = 0; i < 8; i++)
    c.temp[i] = ascend_ub(ASCEND_UB_TEMP + i * 64);
  c.work = ascend_ub(ASCEND_UB_WORK), c.spread = ascend_ub(ASCEND_UB_SPREAD);
  c.temp16 = NPU_UB_AT(npu_bf16, ASCEND_UB_TEMP16), c.bits = NPU_UB_AT(uint8_t, ASCEND_UB_BITS);
  c.f16 = v->j->f16, c.p_nz = v->j->tiling.in_core;
  c.scales = v->j->kv8 ? ascend_ub(ASCEND_UB_SCALES) : NULL;
  c.ln2 = ascend_ub(ASCEND_UB_LN2), c.one = ascend_ub(ASCEND_UB_ONE);
  return c;
}

/* n rows of `cols` f32, from global rows of 512 to local rows of 512. */
static inline void ascend_fetch(ascend_vec dst, NPU_GM const float *src, int32_t n, int32_t cols) {
  npu_copy_gm_ub(dst, src, n, cols * 4, ASCEND_WIDTH * 4, ASCEND_WIDTH * 4);
}

/* This core's rows of O of an item, from row r of mine. */
static inline NPU_GM float *ascend_o_rows(const ascend_vectors *v, const ascend_tile *t,
                                          int32_t r) {
  return v->j->o + ascend_slot(v->j, t->item) + (int64_t)(ascend_my_begin(t) + r) * ASCEND_MAX_V;
}

/* ---- The stages ---- */

void ascend_v0(ascend_vectors *v, const ascend_tile *t, int32_t tile);      /* ascend_v0.c */
void ascend_v1(ascend_vectors *v, const ascend_tile *t, int32_t tile);      /* ascend_v1.c */
void ascend_rescale(ascend_vectors *v, const ascend_tile *t, int32_t tile); /* ascend_rescale.c */
void ascend_v2(ascend_vectors *v, const ascend_tile *t, int32_t tile);      /* ascend_v2.c */
void ascend_merge_splits(ascend_vectors *v);                                /* ascend_merge.c */

/* kv8: the key tile's scales, to ASCEND_UB_SCALES. */
void ascend_fetch_scales(ascend_vectors *v, const ascend_tile *t);

/* Columns of a key tile that rows [row, row + rows) of the row block see, where that is not all. */
ascend_sight ascend_sight_of(const ascend_job *j, const ascend_tile *t, int32_t row, int32_t rows);

/* ---- Results: ascend_result.c ---- */

/* Where rows of results go: rows [row, row + rows) of a sequence, or of a split. */
typedef struct ascend_place {
  int32_t sequence, row, rows;
  int64_t split_row; /* of split_o and split_lse; -1: the caller's tensors */
} ascend_place;

/* Sinks of the rows, one block per row. */
void ascend_fetch_sinks(const ascend_job *j, const ascend_place *at, ascend_vec blocks);

/* o [rows][512] / divisor -> global memory, through the `out` slot that has been acquired. o may be
 * destroyed. */
void ascend_emit(ascend_vectors *v, const ascend_chunk_state *c, const ascend_place *at,
                 ascend_vec o, ascend_vec out, ascend_vec sinks, ascend_vec divisor,
                 ascend_vec lse);

#endif
