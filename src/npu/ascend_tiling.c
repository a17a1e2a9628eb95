/* SPDX-License-Identifier: Apache-2.0
 *
 * The tilings, their budgets, and the work list. See ascend_tiling.h.
 */
#include "ascend_tiling.h"

#include <stdlib.h>

/* The buffers of a core, as sim/npu_isa.h has them. */
enum { L1_BYTES = 512 * 1024, L0_BYTES = 64 * 1024 };

/* As published: L1 4 x 72 KB + 3 x 72 KB = 504 KB, L0A and L0B 2 x 32 KB. */
const ascend_tiling ascend_tiling_serial = {0, 512, 288, 96, 256, 128, 3, 4, 2, ASCEND_BY_PIECE,
                                            0, 0,   0};
const ascend_tiling ascend_tiling_preload = {1, 512, 288, 96, 256, 128, 3, 4, 2, ASCEND_BY_PIECE,
                                             0, 0,   0};
const ascend_tiling ascend_tiling_in_core = {1, 512, 288, 96, 256, 128, 3, 2, 2, ASCEND_BY_PIECE,
                                             0, 1,   1};

static const ascend_tiling best_256 = {2, 512, 288, 96, 256, 128, 3, 4, 2, ASCEND_SHARE_B, 0, 0, 0};
static const ascend_tiling best_128 = {2, 512, 288, 96, 256, 128, 3, 2, 2, ASCEND_BY_PIECE,
                                       1, 1,   0};

/* A vector core that converts is late with P as it is: a second C1 ahead would wait for it too. */
ascend_tiling ascend_tiling_best(int32_t block_rows, int32_t converts) {
  ascend_tiling t = block_rows > ASCEND_HALF_ROWS ? best_256 : best_128;
  if (converts)
    t.lag = 1, t.in_turns = 0;
  return t;
}

const char *ascend_tiling_error(const ascend_tiling *t) {
  if (t->lag < 0 || t->lag > ASCEND_MAX_LAG)
    return "lag: must be in 0..2";
  if (t->tile_keys < 128 || t->tile_keys > ASCEND_TILE_KEYS || t->tile_keys % 128)
    return "tile_keys: must be a multiple of 128 up to 512";
  if (t->qk_l1 < 16 || t->qk_l1 % 16 || t->qk_l0 < 16 || t->qk_l0 % 16)
    return "qk_l1, qk_l0: must be multiples of 16";
  if (t->pv_l1 < 16 || t->pv_l1 % 16 || t->pv_l0 < 16 || t->pv_l0 % 16)
    return "pv_l1, pv_l0: must be multiples of 16";
  if (t->in_turns && (t->lag != 2 || !t->keep_q))
    return "in_turns: needs lag=2 and keep_q=1, slots for Q and P at a time";
  if (t->in_core && (t->lag != 1 || !t->keep_q || t->in_turns))
    return "in_core: needs lag=1, keep_q=1 and in_turns=0";
  if (t->order < ASCEND_BY_PIECE || t->order > ASCEND_SHARE_B)
    return "order: must be in 0..1";
  const int32_t pieces =
      ascend_max(ascend_pieces(ASCEND_MAX_QK, t->qk_l1), ascend_pieces(t->tile_keys, t->pv_l1));
  if (pieces > 4 || t->kv_slots < pieces || t->kv_slots > 8)
    return "kv_slots: must hold all pieces of a column tile, at most 4, and be at most 8 (events)";
  const int32_t q_pieces = 2 * ascend_pieces(ASCEND_MAX_QK, t->qk_l1),
                p_pieces = 2 * ascend_pieces(t->tile_keys, t->pv_l1);
  const int32_t needed = t->keep_q ? p_pieces / 2 : ascend_max(q_pieces, p_pieces);
  if (t->qp_slots < needed || t->qp_slots > 8)
    return "qp_slots: must hold all pieces of Q or P of a row block, and be at most 8 (events)";
  if (ascend_l1_bytes(t) > L1_BYTES)
    return "L1: needs more than 512 KB";
  if (t->l0_slots < 2 || t->l0_slots > 8)
    return "l0_slots: must be in 2..8 (events)";
  if (t->l0_slots * ascend_l0_slot_bytes(t) > L0_BYTES)
    return "L0A, L0B: their slots need more than 64 KB";
  return NULL;
}

/* Varies one list of choices per field, like the digits of a number. */
int32_t ascend_tiling_candidate(int32_t block_rows, int32_t i, ascend_tiling *t) {
  static const int32_t lags[] = {1, 2}, qk_l0[] = {48, 64, 96, 112}, pv_l0[] = {64, 96, 128},
                       kv_slots[] = {2, 3, 4}, l0_slots[] = {2, 3, 4};
  for (int32_t code = 0;; code++) {
    int32_t digits = code;
    const int32_t two = block_rows > ASCEND_HALF_ROWS;
    ascend_tiling c = {0, 512, 288, 0, 256, 0, 0, two ? 4 : 2, 0, 0, 0, 0, 0};
    c.lag = lags[digits % 2], digits /= 2;
    c.qk_l0 = qk_l0[digits % 4], digits /= 4;
    c.pv_l0 = pv_l0[digits % 3], digits /= 3;
    c.kv_slots = kv_slots[digits % 3], digits /= 3;
    c.l0_slots = l0_slots[digits % 3], digits /= 3;
    if (two)
      c.order = digits % 2, digits /= 2;
    else
      c.keep_q = digits % 2, digits /= 2, c.in_turns = digits % 2, digits /= 2;
    if (digits > 0)
      return 0;
    if (!c.keep_q && !two)
      c.qp_slots = 4;
    if (ascend_tiling_error(&c))
      continue;
    if (i-- == 0) {
      *t = c;
      return 1;
    }
  }
}

/* ---- Work list ---- */

int32_t ascend_split_tiles(int32_t split_tokens, int32_t tile_keys) {
  return split_tokens > 0 ? (int32_t)(((int64_t)split_tokens + tile_keys - 1) / tile_keys)
                          : 8 * ASCEND_TILE_KEYS / tile_keys;
}

/* A row block of a sequence. */
typedef struct row_block {
  int32_t sequence, row_begin, rows, tiles;
  int32_t halves; /* what a key tile of it costs: as many accumulators */
} row_block;

static int32_t blocks_per_sequence(const ascend_shape *s) {
  return ascend_pieces(s->s_q * s->h_q, s->block_rows);
}

/* Row blocks of a sequence are as equal as multiples of 16 rows can be, unless whole halves make
 * fewer halves of them: a half takes the time of its loads, however few its rows are. */
static int32_t rows_of_block(const ascend_shape *s, int32_t rows, int32_t n) {
  const int32_t equal = ascend_min(s->block_rows, ascend_ceil(ascend_pieces(rows, n), 16));
  if (n * ascend_pieces(equal, ASCEND_HALF_ROWS) <= ascend_pieces(rows, ASCEND_HALF_ROWS))
    return equal;
  return ascend_min(s->block_rows, ascend_ceil(equal, ASCEND_HALF_ROWS));
}

static row_block block_at(const ascend_shape *s, int64_t i) {
  const int32_t rows = s->s_q * s->h_q, n = blocks_per_sequence(s), sequence = (int32_t)(i / n);
  const int32_t step = rows_of_block(s, rows, n), begin = (int32_t)(i % n) * step;
  const int32_t end = ascend_min(rows, begin + step);
  const int32_t seen =
      ascend_visible(s->causal, s->s_q, s->seqlens_k[sequence], (end - 1) / s->h_q);
  const row_block t = {sequence, begin, end - begin, ascend_pieces(seen, s->tile_keys),
                       ascend_pieces(end - begin, ASCEND_HALF_ROWS)};
  return t;
}

static void add_merge(ascend_work *w, const row_block *t, int32_t split_begin, int32_t splits) {
  const ascend_merge m = {t->sequence, t->row_begin, t->rows, split_begin, splits};
  w->merges[w->n_merges++] = m;
}

/* The next cut of a row block behind tile `at`: where its split ends, or where the core's share of
 * the line does. */
static int32_t next_cut(const ascend_shape *s, const row_block *t, int32_t at, int64_t line,
                        int64_t share_end) {
  if (s->split_tiles == 0) {
    const int64_t fit = (share_end - line + t->halves - 1) / t->halves;
    return fit < t->tiles - at ? at + (int32_t)fit : t->tiles;
  }
  const int32_t splits = ascend_pieces(t->tiles, s->split_tiles),
                split = (int32_t)(((int64_t)at * splits + t->tiles - 1) / t->tiles);
  return (int32_t)((int64_t)(split + 1) * t->tiles / splits);
}

/* Walks the line of all tiles, by what they cost; core i takes those whose item starts in the i-th
 * equal share of it.
 */
static void lay_out(const ascend_shape *s, int64_t n_blocks, int64_t total, ascend_work *w) {
  int64_t line = 0;
  int32_t core = 0;
  w->core_items[0] = 0;
  for (int64_t i = 0; i < n_blocks; i++) {
    const row_block t = block_at(s, i);
    const int32_t split_begin = w->n_splits, first = w->n_items;
    for (int32_t at = 0; at < t.tiles;) {
      while (line >= (core + 1) * total / s->cores)
        w->core_items[++core] = w->n_items;
      const int32_t end = next_cut(s, &t, at, line, (core + 1) * total / s->cores);
      const ascend_item item = {t.sequence,
                                t.row_begin,
                                t.rows,
                                s->seqlens_k[t.sequence],
                                at,
                                end,
                                at == 0 && end == t.tiles ? -1 : w->n_splits++};
      w->items[w->n_items++] = item;
      line += (int64_t)(end - at) * t.halves, at = end;
    }
    if (w->n_items - first != 1)
      add_merge(w, &t, split_begin, w->n_splits - split_begin);
  }
  while (core < s->cores)
    w->core_items[++core] = w->n_items;
}

int ascend_work_create(const ascend_shape *s, ascend_work *w) {
  const int64_t n_blocks = (int64_t)s->b * blocks_per_sequence(s);
  int64_t total = 0, items = s->cores;
  for (int64_t i = 0; i < n_blocks; i++) {
    const row_block t = block_at(s, i);
    total += (int64_t)t.tiles * t.halves;
    items += 1 + (s->split_tiles > 0 ? ascend_pieces(t.tiles, s->split_tiles) : 0);
  }
  w->items = (ascend_item *)calloc((size_t)items + 1, sizeof *w->items);
  w->core_items = (int32_t *)calloc((size_t)s->cores + 1, sizeof *w->core_items);
  w->merges = (ascend_merge *)calloc((size_t)n_blocks + 1, sizeof *w->merges);
  w->n_items = w->n_merges = w->n_splits = 0;
  if (!w->items || !w->core_items || !w->merges || items > INT32_MAX || n_blocks > INT32_MAX) {
    ascend_work_free(w);
    return -1;
  }
  lay_out(s, n_blocks, total, w);
  return 0;
}

void ascend_work_free(ascend_work *w) {
  free(w->items), free(w->core_items), free(w->merges);
  w->items = NULL, w->core_items = NULL, w->merges = NULL;
}
