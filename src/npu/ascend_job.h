/* SPDX-License-Identifier: Apache-2.0
 *
 * What the two programs of the Ascend kernel are given, and what they share: arguments, workspace,
 * cross-core flags, and the walk over a core's tiles. Common subset of C and C++.
 */
#ifndef ASCEND_JOB_H
#define ASCEND_JOB_H

#include "../../sim/npu_isa.h"
#include "ascend_tiling.h"

typedef enum ascend_mode { ASCEND_FLASH, ASCEND_AMLA, ASCEND_LAZY } ascend_mode;

/* Arguments of a launch. Strides in elements. */
typedef struct ascend_job {
  ascend_mode mode;
  ascend_tiling tiling;
  int32_t s_q, h_q, d_qk, d_v, causal;
  float scale;

  /* Rows of d_qk = d_latent + d_rope elements. Without rope tensors d_latent = d_qk. */
  NPU_GM const npu_bf16 *q;       /* [b][s_q][h_q][d_latent] */
  NPU_GM const npu_bf16 *q_rope;  /* [b][s_q][h_q][d_rope] */
  NPU_GM const npu_bf16 *kv;      /* [pages][page_size][d_latent]; kv_nz: NZ, see ascend_keys.h */
  NPU_GM const npu_bf16 *kv_rope; /* [pages][page_size][d_rope] */
  NPU_GM const int8_t *kv8;       /* [pages][page_size][d_qk], instead of kv; NULL = none */
  NPU_GM const float *kv_scales;  /* [pages][page_size], with kv8 */
  NPU_GM const int32_t *block_table; /* [b][max_pages]; NULL = contiguous, one page per sequence */
  NPU_GM const float *sinks;         /* [h_q] or NULL */
  NPU_GM void *out;                  /* [b][s_q][h_q][d_v] f32, or bf16 if out_is_bf16 */
  NPU_GM float *lse;                 /* [b][h_q][s_q] or NULL */
  int64_t q_stride_batch, q_stride_query, kv_stride_page, out_stride_batch, out_stride_query;
  int64_t q_rope_stride_batch, q_rope_stride_query, kv_rope_stride_page;
  int32_t q_stride_head, kv_stride_token, out_stride_head, page_size, max_pages;
  int32_t q_rope_stride_head, kv_rope_stride_token, d_latent, kv_nz;
  int32_t f16; /* q, kv and P are f16, else bf16 */
  int32_t out_is_bf16, lse_base2;

  NPU_GM const ascend_item *items; /* work list: ascend_work */
  NPU_GM const int32_t *core_items;
  NPU_GM const ascend_merge *merges;
  int32_t n_merges;

  /* Workspace, per core; rings of lag + 1. All of it fits L2. */
  NPU_GM float *s;    /* [cores][lag + 1][256][512] scores */
  NPU_GM npu_bf16 *p; /* [cores][lag + 1][256][512] */
  NPU_GM float *o;    /* [cores][lag + 1][256][512] amla, lazy: O of an item; flash: PV of a tile */
  NPU_GM npu_f16 *kv_work; /* [cores][ascend_kv_slots][512][d_qk] key tiles of kv8, converted */
  NPU_GM float *o_flash;   /* [cores][2][128][512] flash: O, by vector core */
  NPU_GM float *split_o;   /* [splits][256][512] normalised O of splits */
  NPU_GM float *split_lse; /* [splits][256] their natural-log LSE */

  int32_t unguarded; /* amla: adds N in memory, as published: wrong where O is 0 or tiny. Study */
  /* > 0: |O| beyond it becomes 0 before the division, as one published kernel does. For study; 0 =
   * off */
  float clamp;
  int32_t assume_bumps; /* timing only: in how many tiles of an item lazy shifts all rows */
} ascend_job;

/* The two programs. args: ascend_job. */
void ascend_cube(const void *args);
void ascend_vector(const void *args);

/* Cross-core flags. Each is set at most once per tile by one side and waited for as often by the
 * other. */
enum {
  ASCEND_S_READY, /* AIC -> AIV: C1 has written S */
  ASCEND_P_READY, /* AIV -> AIC: V1 has written P */
  ASCEND_PV_DONE, /* AIC -> AIV: C2 has added PV to O, and more tiles follow */
  /* AIC -> AIV: the same, of an item's last tile. A flag of its own, as another pipe may wait for
   * it */
  ASCEND_O_DONE,
  ASCEND_KV_READY, /* AIV -> AIC: a key tile of kv8 is converted */
  /* AIV -> AIC: O is rescaled for this tile, C2 may add to it. Serial flash: V2 is done, C1 may
   * overwrite PV */
  ASCEND_O_READY,
  ASCEND_S_FREE, /* in_core: AIV -> AIC: V1 has read S in UB, FIX may write the next there */
  ASCEND_P_FREE  /* in_core: AIC -> AIV: C2 has read P in L1 */
};

/* in_core: where a vector core's rows of S lie in UB, [64][512] f32; and where P lies in L1, an NZ
 * matrix of ASCEND_HALF_ROWS rows. */
enum { ASCEND_S_IN_UB = NPU_UB_BYTES_950 - ASCEND_HALF_ROWS / 2 * ASCEND_TILE_KEYS * 4 };
static inline int32_t ascend_p_begin(const ascend_tiling *t) {
  return t->kv_slots * ascend_kv_slot_bytes(t);
}
/* The first vector core's share of a row block of so many rows. */
static inline int32_t ascend_rows_of_first(int32_t rows) {
  return ascend_ceil(ascend_pieces(rows, 2), 8);
}

/* ---- A core's tiles, in order ---- */

typedef struct ascend_tile {
  int32_t item; /* of this core, counted from 0 */
  int32_t sequence, row_begin, rows, split;
  int32_t key_begin, keys; /* keys that any row of the row block sees */
  int32_t length;
  int32_t tile_of_item, first, last;
} ascend_tile;

/* Is PV_DONE of a tile that is not the last of its item set and waited for? With lag 0, S_READY of
 * the next tile comes later and tells as much, but flash does not wait for that. */
static inline int ascend_tells_pv_done(const ascend_job *j) {
  return j->tiling.lag > 0 || j->mode == ASCEND_FLASH;
}

/* Serial flash keeps S and PV in the same memory: nothing of a tile may overlap the next. */
static inline int ascend_shares_s_and_pv(const ascend_job *j) {
  return j->tiling.lag == 0 && j->mode == ASCEND_FLASH;
}

/* The tiles around the one at work: schedules look ahead and behind. */
enum { ASCEND_WINDOW = 8 };
typedef struct ascend_walk {
  int32_t known;      /* tiles read so far */
  int32_t item, tile; /* where the next one is */
  ascend_tile window[ASCEND_WINDOW];
} ascend_walk;

static inline int32_t ascend_item_tiles(const ascend_job *j, int32_t item) {
  NPU_GM const ascend_item *it = j->items + item;
  return npu_read_gm_s32(&it->tile_end) - npu_read_gm_s32(&it->tile_begin);
}

/* Blocks of this core. */
static inline int32_t ascend_count_tiles(const ascend_job *j) {
  const int32_t begin = npu_read_gm_s32(j->core_items + npu_block_index()),
                end = npu_read_gm_s32(j->core_items + npu_block_index() + 1);
  int32_t n = 0;
  for (int32_t i = begin; i < end; i++)
    n += ascend_item_tiles(j, i);
  return n;
}

static inline void ascend_read_tile(const ascend_job *j, ascend_walk *w, ascend_tile *b) {
  const int32_t first_item = npu_read_gm_s32(j->core_items + npu_block_index());
  NPU_GM const ascend_item *it = j->items + first_item + w->item;
  const int32_t tile = npu_read_gm_s32(&it->tile_begin) + w->tile,
                end = npu_read_gm_s32(&it->tile_end);
  b->item = w->item;
  b->sequence = npu_read_gm_s32(&it->sequence), b->split = npu_read_gm_s32(&it->split),
  b->length = npu_read_gm_s32(&it->length);
  b->row_begin = npu_read_gm_s32(&it->row_begin), b->rows = npu_read_gm_s32(&it->rows);
  b->key_begin = tile * j->tiling.tile_keys;
  const int32_t seen =
      ascend_visible(j->causal, j->s_q, b->length, (b->row_begin + b->rows - 1) / j->h_q);
  b->keys = ascend_min(seen - b->key_begin, j->tiling.tile_keys);
  b->tile_of_item = w->tile, b->first = w->tile == 0, b->last = tile + 1 == end;
  w->tile = b->last ? 0 : w->tile + 1;
  w->item += b->last;
}

/* Block i of this core, i at most ASCEND_WINDOW behind the furthest asked for. */
static inline const ascend_tile *ascend_tile_at(const ascend_job *j, ascend_walk *w, int32_t i) {
  for (; w->known <= i; w->known++)
    ascend_read_tile(j, w, &w->window[w->known % ASCEND_WINDOW]);
  return &w->window[i % ASCEND_WINDOW];
}

/* Slot of tile i, or of its item, in this core's ring of workspace [lag + 1][256][512]. */
static inline int64_t ascend_slot(const ascend_job *j, int32_t i) {
  const int32_t ring = j->tiling.lag + 1;
  return ((int64_t)npu_block_index() * ring + i % ring) * ASCEND_BLOCK_ROWS * ASCEND_TILE_KEYS;
}

/* Slots of converted key tiles, and where key tile i of this core is. V0 runs one ahead of C1.
 * Before V0(t + 1) the vector core has learnt from S_READY or PV_DONE that C2(t - 1 - lag) has read
 * its tile, and with lag 0 that C2(t - 2) has: so many slots need no flag of their own. */
static inline int32_t ascend_kv_slots(const ascend_job *j) {
  return ascend_max(j->tiling.lag, 1) + 2;
}
static inline NPU_GM npu_f16 *ascend_kv_slot(const ascend_job *j, int32_t i) {
  const int64_t slot = (int64_t)npu_block_index() * ascend_kv_slots(j) + i % ascend_kv_slots(j);
  return j->kv_work + slot * ASCEND_TILE_KEYS * j->d_qk;
}

#endif
