/* SPDX-License-Identifier: Apache-2.0
 *
 * How the Ascend kernel is cut: row block sizes, what they take of every buffer, and which core
 * computes what. Pure arithmetic, no instruction and no data. Used by the host (it checks a tiling
 * and makes the work list) and by both programs (they place their buffers with it).
 *
 * One sequence's rows (query-major: row = query * h_q + head) form blocks of at most 256; its keys
 * form tiles of 512; per tile and row block
 *     C1: S = Q K^T (cube)    V1: P = softmax part of S (vector)    C2: O += P V (cube)
 * A work item is one row block and a run of its tiles: all of them, or, where the keys are split,
 * one split. */
#ifndef ASCEND_TILING_H
#define ASCEND_TILING_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
  ASCEND_MAX_QK = 576, /* d_qk: Q takes two L1 pieces of 288 */
  ASCEND_MAX_V = 512,  /* d_v: width of a row of O in global memory */
  ASCEND_BLOCK_ROWS = 256,
  ASCEND_TILE_KEYS = 512, /* most keys of a tile: width of a row of S and P in global memory */
  ASCEND_HALF_ROWS = 128, /* of an L0C accumulator, and of what one vector core does */
  ASCEND_COLUMNS = 128,   /* of an L0C accumulator */
  ASCEND_CHUNK_ROWS = 16, /* of a vector core at a time */
  ASCEND_MAX_LAG = 2,
  ASCEND_MAX_COLUMN_TILES = 4 /* column tiles of a product */
};

/* How the two halves of a row block's rows take turns on a column tile: ascend_order.h. */
enum ascend_order {
  ASCEND_BY_PIECE, /* as published */
  ASCEND_SHARE_B   /* half 1 finds tiles of K and V in L0B where half 0 left them */
};

/* A schedule with its tiling. Lag: how many C1 run ahead of C2 on the cube; 0 = serial, 1 = the
 * Preload Pipeline. */
typedef struct ascend_tiling {
  int32_t lag;
  int32_t tile_keys;          /* 128, 256 or 512 */
  int32_t qk_l1, qk_l0;       /* C1: depth of a piece in L1, and of a step in L0 */
  int32_t pv_l1, pv_l0;       /* C2: the same, in keys */
  int32_t kv_slots, qp_slots; /* pieces that L1 holds of K or V, and of Q or P */
  int32_t l0_slots;           /* tiles that L0A and L0B hold */
  int32_t order;              /* ascend_order */
  /* 1: column tiles of C1(t) and C2(t - lag) alternate; lag must be 2, as P must be there from the
   * start */
  int32_t in_turns;
  /* 1: Q stays in L1 for all tiles of an item, in slots of its own; blocks have one half then */
  int32_t keep_q;
  /* 1: S goes from L0C to UB and P from UB to L1, on a chip that has these paths. UB then has room
   * for the scores of 64 rows, L1 for P of one key tile beside Q: blocks have one half, lag is 1 */
  int32_t in_core;
} ascend_tiling;

extern const ascend_tiling ascend_tiling_serial, ascend_tiling_preload, ascend_tiling_in_core;

/* The best known for blocks of so many rows. converts: the vector cores convert the cache. */
ascend_tiling ascend_tiling_best(int32_t block_rows, int32_t converts);

/* ---- Budgets, in bytes ---- */

static inline int32_t ascend_ceil(int32_t n, int32_t to) { return (n + to - 1) / to * to; }
static inline int32_t ascend_pieces(int32_t n, int32_t of) { return (n + of - 1) / of; }
static inline int32_t ascend_min(int32_t a, int32_t b) { return a < b ? a : b; }
static inline int32_t ascend_max(int32_t a, int32_t b) { return a > b ? a : b; }

/* Most rows of a row block. */
static inline int32_t ascend_most_rows(const ascend_tiling *t) {
  return t->in_core ? ASCEND_HALF_ROWS : ASCEND_BLOCK_ROWS;
}

static inline int32_t ascend_kv_slot_bytes(const ascend_tiling *t) {
  return ASCEND_COLUMNS * ascend_max(t->qk_l1, t->pv_l1) * 2;
}
static inline int32_t ascend_qp_slot_bytes(const ascend_tiling *t) {
  return ASCEND_HALF_ROWS * ascend_max(t->keep_q ? 0 : t->qk_l1, t->pv_l1) * 2;
}
static inline int32_t ascend_kept_q_bytes(const ascend_tiling *t) {
  return t->keep_q ? ascend_pieces(ASCEND_MAX_QK, t->qk_l1) * ASCEND_HALF_ROWS * t->qk_l1 * 2 : 0;
}
static inline int32_t ascend_l1_bytes(const ascend_tiling *t) {
  return t->kv_slots * ascend_kv_slot_bytes(t) + t->qp_slots * ascend_qp_slot_bytes(t) +
         ascend_kept_q_bytes(t);
}
/* L0A and L0B alike: blocks of 128 rows or columns. */
static inline int32_t ascend_l0_slot_bytes(const ascend_tiling *t) {
  return ASCEND_COLUMNS * ascend_ceil(ascend_max(t->qk_l0, t->pv_l0), 16) * 2;
}

/* Candidate i of a search for blocks of so many rows; all fit the buffers. 0 past the last, else 1.
 */
int32_t ascend_tiling_candidate(int32_t block_rows, int32_t i, ascend_tiling *t);

/* What is wrong with a tiling, or NULL. */
const char *ascend_tiling_error(const ascend_tiling *t);

/* ---- Work list ---- */

/* All numbers are int32 because cores read them from global memory one by one. */
typedef struct ascend_item {
  int32_t sequence, row_begin, rows; /* of the sequence's rows */
  int32_t length;                    /* of the sequence */
  int32_t tile_begin, tile_end;      /* tiles of keys; at least one */
  /* where its partial result goes; -1 = it has all keys and writes the result itself */
  int32_t split;
} ascend_item;

/* Tiles whose result is made of splits [split_begin, split_begin + splits); splits = 0: no row sees
 * a key. */
typedef struct ascend_merge {
  int32_t sequence, row_begin, rows, split_begin, splits;
} ascend_merge;

typedef struct ascend_shape {
  int32_t b, s_q, h_q, causal;
  int32_t cores;
  int32_t tile_keys, block_rows; /* most rows of a row block */
  /* most tiles per split; 0 = cut by equal shares of the cores: depends on the whole batch */
  int32_t split_tiles;
  const int32_t *seqlens_k; /* [b] */
} ascend_shape;

typedef struct ascend_work {
  ascend_item *items;   /* [n_items], in the order of cores */
  int32_t *core_items;  /* [cores + 1] first item of each core */
  ascend_merge *merges; /* [n_merges] */
  int32_t n_items, n_merges, n_splits;
} ascend_work;

/* Keys that query sees of a sequence of that length; and tiles that a row block of rows needs. */
static inline int32_t ascend_visible(int32_t causal, int32_t s_q, int32_t length, int32_t query) {
  const int32_t seen = causal ? length - s_q + query + 1 : length;
  return seen > 0 ? seen : 0;
}

/* Fills work, whose arrays it allocates; ascend_work_free. 0, or -1: out of memory. */
int ascend_work_create(const ascend_shape *shape, ascend_work *work);
void ascend_work_free(ascend_work *work);

/* Blocks per split when the length alone decides: splits of 8 tiles are long enough to hide their
 * start. */
int32_t ascend_split_tiles(int32_t split_tokens, int32_t tile_keys);

#ifdef __cplusplus
}
#endif
#endif
