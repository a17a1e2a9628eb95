/* SPDX-License-Identifier: Apache-2.0
 *
 * The vector program: what every AIV does. The two of a core share a tile's rows. Per block of
 * keys:
 *
 *     V1       S -> P, and the numbers per row (ascend_softmax.c)
 *     rescale  O of the blocks before, in global memory, follows the reference of this one: amla
 *              adds N to its bits, guarded, or as published (for study) with an int32 atomic;
 *              lazy does nothing, or shifts the rows whose reference moved
 *     V2       flash: O = O * factor + PV, in every block. At an item's last block, all modes:
 *              O / l, LSE, out
 *
 * Order, with lag 1: V1(t), rescale(t), V2(t - 1). O in global memory sees W(PV0), N1, PV1, N2,
 * PV2, ...
 * Rows are worked on in chunks of 16: MTE2 brings them to the ring `in`, V computes, MTE3 takes
 * them away from `out` or `p`. */
#include <math.h>

#include "ascend_job.h"
#include "ascend_ring.h"
#include "ascend_softmax.h"

/* ---- Unified buffer: what lies where, in bytes ---- */

enum {
  STAT_BYTES = ASCEND_HALF_ROWS * 4,
  CHUNK_BYTES = ASCEND_CHUNK_ROWS * ASCEND_WIDTH * 4,
  SLOT_BYTES =
      CHUNK_BYTES + ASCEND_CHUNK_ROWS * NPU_BLOCK_BYTES, /* a chunk, and one block per row */
  IN = 0,                                                /* 2 slots */
  OUT = IN + 2 * SLOT_BYTES,
  P_SLOT_BYTES = CHUNK_BYTES / 2 + ASCEND_PROBES * 64, /* bf16, and what a probe shows */
  P = OUT + 2 * SLOT_BYTES,                            /* 2 slots */
  STATS = P + 2 * P_SLOT_BYTES,                        /* [lag + 1 items][ASCEND_STATS][128] */
  FACTOR = STATS + (ASCEND_MAX_LAG + 1) * ASCEND_STATS * STAT_BYTES, /* [lag + 1 blocks][128] */
  ADD = FACTOR + (ASCEND_MAX_LAG + 1) * STAT_BYTES,
  MOVED = ADD + STAT_BYTES,
  MOVED_MAX = MOVED + STAT_BYTES, /* [16]: of every 8 rows */
  WORK = MOVED_MAX + 128,
  SPREAD = WORK + ASCEND_CHUNK_ROWS * (NPU_LANES + 8) * 4,
  TEMP = SPREAD + ASCEND_CHUNK_ROWS * NPU_BLOCK_BYTES, /* [12][16] */
  TEMP16 = TEMP + 12 * 64,
  BITS = TEMP16 + 32,
  LN2 = BITS + 32,
  ONE = LN2 + 64,
  UB_END = ONE + 64
};
typedef char ascend_ub_is_large_enough[UB_END <= (int)NPU_UB_BYTES ? 1 : -1];
enum { SMALL_ROWS = ASCEND_CHUNK_ROWS / 2 }; /* of a chunk where a slot holds two */

typedef struct vector {
  const ascend_job *j;
  int32_t blocks;
  ascend_walk walk;
  ascend_ring in, out, p;
} vector;

static ascend_vec ub(int32_t offset_bytes) { return NPU_UB_AT(float, (uint32_t)offset_bytes); }
static ascend_vec in_slot(int32_t slot) { return ub(IN + slot * SLOT_BYTES); }
static ascend_vec out_slot(int32_t slot) { return ub(OUT + slot * SLOT_BYTES); }
static ascend_vec tail_of(ascend_vec slot) {
  return slot + CHUNK_BYTES / 4;
} /* one block per row behind the chunk */

/* Zeros. Operations work on whole rows and on 16 numbers, whatever part of them is in use, so all
 * must be written once. */
static void clear(int32_t begin, int32_t end) {
  const int32_t most = NPU_MAX_REPEATS * NPU_LANES;
  for (int32_t at = begin; at < end; at += most * 4)
    npu_dup_f32(ub(at), 0.0f, npu_vec_count(ascend_min(most, (end - at) / 4)));
}

/* This vector core's rows of a tile: [begin, begin + n). */
static int32_t my_begin(const ascend_block *b) {
  return npu_subcore() * ascend_ceil(ascend_parts(b->rows, 2), 8);
}
static int32_t my_rows(const ascend_block *b) {
  const int32_t half = ascend_ceil(ascend_parts(b->rows, 2), 8);
  return ascend_max(0, ascend_min(half, b->rows - my_begin(b)));
}

/* Pointers at row r (of mine, a multiple of 8) of the numbers of this item and block. */
static ascend_chunk_state state_at(const vector *v, const ascend_block *b, int32_t block,
                                   int32_t r) {
  const int32_t ring = v->j->tiling.lag + 1, at = r * 4;
  ascend_chunk_state c;
  for (int32_t i = 0; i < ASCEND_STATS; i++)
    c.stat[i] = ub(STATS + (b->item % ring * ASCEND_STATS + i) * STAT_BYTES + at);
  for (int32_t i = 0; i < 8; i++)
    c.temp[i] = ub(TEMP + i * 64);
  c.factor = ub(FACTOR + block % ring * STAT_BYTES + at);
  c.add = (NPU_UB int32_t *)ub(ADD + at), c.moved = ub(MOVED + at);
  c.work = ub(WORK), c.spread = ub(SPREAD);
  c.temp16 = NPU_UB_AT(npu_bf16, TEMP16), c.bits = NPU_UB_AT(uint8_t, BITS);
  c.ln2 = ub(LN2), c.one = ub(ONE);
  return c;
}

/* ---- Moving chunks ---- */

/* n rows of `cols` f32, from global rows of 512 to local rows of 512. */
static void fetch(ascend_vec dst, NPU_GM const float *src, int32_t n, int32_t cols) {
  npu_copy_gm_ub(dst, src, n, cols * 4, ASCEND_WIDTH * 4, ASCEND_WIDTH * 4);
}

/* Rows of the tile at hand that see less than all of this block, and how much: they lie query by
 * query. */
static ascend_sight sight_of(const ascend_job *j, const ascend_block *b, int32_t row,
                             int32_t rows) {
  ascend_sight s;
  s.runs = 0;
  for (int32_t r = 0; r < rows;) {
    const int32_t at = b->row_begin + row + r, query = at / j->h_q;
    const int32_t keys =
        ascend_max(0, ascend_visible(j->causal, j->s_q, b->length, query) - b->key_begin);
    if (keys >= j->tiling.block_keys && j->tiling.block_keys == ASCEND_WIDTH)
      break; /* so do all that follow */
    s.row[s.runs] = r, s.keys[s.runs++] = ascend_min(keys, j->tiling.block_keys);
    r = ascend_min(rows, r + (query + 1) * j->h_q - at);
    s.row[s.runs] = r;
  }
  return s;
}

/* ---- V1 ---- */

static void fetch_scores(vector *v, const ascend_block *b, int32_t block, int32_t r) {
  const int32_t slot = ascend_ring_acquire(&v->in);
  const int64_t at = ascend_slot(v->j, block) + (int64_t)(my_begin(b) + r) * ASCEND_WIDTH;
  fetch(in_slot(slot), v->j->s + at, ascend_min(ASCEND_CHUNK_ROWS, my_rows(b) - r), b->keys);
  ascend_ring_commit(&v->in);
}

/* For tests: the numbers per row, behind P. */
static void show(const ascend_chunk_state *c, NPU_UB npu_bf16 *p, int32_t rows) {
  NPU_UB const float *const from[ASCEND_PROBES] = {c->stat[ASCEND_M], c->stat[ASCEND_N],
                                                   c->stat[ASCEND_S16], c->stat[ASCEND_L],
                                                   (NPU_UB const float *)c->add};
  NPU_UB int32_t *to = (NPU_UB int32_t *)(p + CHUNK_BYTES / 4);
  for (int32_t i = 0; i < ASCEND_PROBES; i++)
    npu_adds_s32(to + i * ASCEND_CHUNK_ROWS, (NPU_UB const int32_t *)from[i], 0,
                 ascend_per_row(rows));
}
static void store_probe(const ascend_job *j, NPU_UB npu_bf16 *p, int32_t block, int32_t row,
                        int32_t rows) {
  npu_copy_ub_gm(j->probe + (int64_t)block * ASCEND_PROBES * ASCEND_TILE_ROWS + row,
                 p + CHUNK_BYTES / 4, ASCEND_PROBES, rows * 4, ASCEND_TILE_ROWS * 4, 64);
  npu_copy_ub_gm(j->probe_p + ((int64_t)block * ASCEND_TILE_ROWS + row) * ASCEND_WIDTH, p, rows,
                 ASCEND_WIDTH * 2, ASCEND_WIDTH * 2, ASCEND_WIDTH * 2);
}

static void chunk_v1(vector *v, const ascend_block *b, int32_t block, int32_t r) {
  const int32_t rows = ascend_min(ASCEND_CHUNK_ROWS, my_rows(b) - r), row = my_begin(b) + r;
  const ascend_chunk_state c = state_at(v, b, block, r);
  const ascend_sight sight = sight_of(v->j, b, row, rows);
  ascend_vec s = in_slot(ascend_ring_take(&v->in));
  npu_muls_f32(s, s, v->j->scale, ascend_chunk(rows));
  NPU_UB npu_bf16 *p = (NPU_UB npu_bf16 *)ub(P + ascend_ring_acquire(&v->p) * P_SLOT_BYTES);
  if (v->j->mode == ASCEND_FLASH)
    ascend_softmax_flash(&c, s, p, &sight, rows);
  if (v->j->mode == ASCEND_AMLA)
    ascend_softmax_amla(&c, s, p, &sight, v->j->unguarded ? ASCEND_LEAST_PUBLISHED : ASCEND_LEAST,
                        rows);
  if (v->j->mode == ASCEND_LAZY)
    ascend_softmax_lazy(&c, s, p, &sight, rows);
  if (v->j->probe)
    show(&c, p, rows);
  ascend_ring_release(&v->in), ascend_ring_commit(&v->p);
  (void)ascend_ring_take(&v->p);
  if (v->j->probe)
    store_probe(v->j, p, block, row, rows);
  npu_copy_ub_gm(v->j->p + ascend_slot(v->j, block) + (int64_t)row * ASCEND_WIDTH, p, rows,
                 ASCEND_WIDTH * 2, ASCEND_WIDTH * 2, ASCEND_WIDTH * 2);
  ascend_ring_release(&v->p);
}

static void start_item(const vector *v, const ascend_block *b) {
  const npu_vec all = npu_vec_rows(STAT_BYTES / 256, NPU_MASK_ALL, 8, 8, 8);
  const ascend_chunk_state c = state_at(v, b, 0, 0);
  npu_dup_f32(c.stat[ASCEND_M], ASCEND_NONE, all);
  npu_dup_f32(c.stat[ASCEND_L], 0.0f, all);
  npu_dup_f32(c.stat[ASCEND_L_OUT], 0.0f, all);
  npu_dup_f32(c.moved, 0.0f, all);
}

static void v1(vector *v, const ascend_block *b, int32_t block) {
  const int32_t rows = my_rows(b);
  if (b->first)
    start_item(v, b);
  npu_cross_wait(NPU_PIPE_MTE2, ASCEND_S_READY);
  if (rows > 0)
    fetch_scores(v, b, block, 0);
  for (int32_t r = 0; r < rows; r += ASCEND_CHUNK_ROWS) {
    if (r + ASCEND_CHUNK_ROWS < rows)
      fetch_scores(v, b, block, r + ASCEND_CHUNK_ROWS);
    chunk_v1(v, b, block, r);
  }
  npu_cross_set(NPU_PIPE_MTE3, ASCEND_P_READY);
}

/* ---- Rescale: O in global memory ---- */

static NPU_GM float *o_rows(const vector *v, const ascend_block *b, int32_t r) {
  return v->j->o + ascend_slot(v->j, b->item) + (int64_t)(my_begin(b) + r) * ASCEND_MAX_V;
}

/* Rows that see nothing of this block keep their O. */
static void keep_unseen(const ascend_chunk_state *c, const ascend_sight *sight) {
  for (int32_t i = 0; i < sight->runs && sight->keys[i] == 0; i++)
    npu_dup_s32(c->add, 0, ascend_per_row(sight->row[i + 1]));
}

/* As published: right while O and its result are normal numbers, and only then. */
static void add_n_unguarded(vector *v, const ascend_block *b, int32_t block) {
  const int32_t row_bytes = v->j->d_v * 4;
  if (ascend_tells_pv_done(v->j))
    npu_cross_wait(NPU_PIPE_MTE3, ASCEND_PV_DONE);
  for (int32_t r = 0; r < my_rows(b); r += ASCEND_CHUNK_ROWS) {
    const int32_t rows = ascend_min(ASCEND_CHUNK_ROWS, my_rows(b) - r);
    const ascend_chunk_state c = state_at(v, b, block, r);
    const ascend_sight sight = sight_of(v->j, b, my_begin(b) + r, rows);
    NPU_UB int32_t *n = (NPU_UB int32_t *)out_slot(ascend_ring_acquire(&v->out));
    keep_unseen(&c, &sight);
    ascend_spread(c.spread, (NPU_UB const float *)c.add);
    ascend_fill_rows(n, (NPU_UB const int32_t *)c.spread, rows);
    ascend_ring_commit(&v->out);
    (void)ascend_ring_take(&v->out);
    npu_copy_ub_gm_add_s32((NPU_GM int32_t *)o_rows(v, b, r), n, rows, row_bytes, ASCEND_MAX_V * 4,
                           ASCEND_WIDTH * 4);
    ascend_ring_release(&v->out);
  }
}

/* Eight rows of O: read, add to the bits, write. */
static void shift_rows(vector *v, const ascend_block *b, int32_t block, int32_t r) {
  const int32_t rows = ascend_min(SMALL_ROWS, my_rows(b) - r), d_v = v->j->d_v;
  const ascend_chunk_state c = state_at(v, b, block, r);
  fetch(in_slot(ascend_ring_acquire(&v->in)), o_rows(v, b, r), rows, d_v);
  ascend_ring_commit(&v->in);
  ascend_vec x = in_slot(ascend_ring_take(&v->in)), y = out_slot(ascend_ring_acquire(&v->out));
  if (v->j->mode == ASCEND_AMLA)
    ascend_guarded_add(&c, y, x, x + SMALL_ROWS * ASCEND_WIDTH, rows);
  else
    ascend_guarded_shift(&c, y, x, x + SMALL_ROWS * ASCEND_WIDTH, rows);
  ascend_ring_release(&v->in), ascend_ring_commit(&v->out);
  (void)ascend_ring_take(&v->out);
  npu_copy_ub_gm(o_rows(v, b, r), y, rows, d_v * 4, ASCEND_MAX_V * 4, ASCEND_WIDTH * 4);
  ascend_ring_release(&v->out);
}

static void add_n(vector *v, const ascend_block *b, int32_t block) {
  if (ascend_tells_pv_done(v->j))
    npu_cross_wait(NPU_PIPE_MTE2, ASCEND_PV_DONE);
  for (int32_t r = 0; r < my_rows(b); r += SMALL_ROWS) {
    const ascend_chunk_state c = state_at(v, b, block, r);
    const ascend_sight sight =
        sight_of(v->j, b, my_begin(b) + r, ascend_min(SMALL_ROWS, my_rows(b) - r));
    keep_unseen(&c, &sight);
    shift_rows(v, b, block, r);
  }
}

/* The scalar unit looks whether any reference moved, then where. */
static void shift_moved(vector *v, const ascend_block *b, int32_t block) {
  const float assumed = b->block_of_item <= v->j->assume_bumps ? 1.0f : 0.0f;
  ascend_vec by_eight = ub(MOVED_MAX), all = ub(TEMP);
  npu_block_max_f32(by_eight, ub(MOVED), npu_vec_rows(STAT_BYTES / 256, NPU_MASK_ALL, 1, 8, 8));
  npu_block_max_f32(all, by_eight, npu_vec_rows(1, 0xffff, 1, 8, 8));
  npu_notify(NPU_PIPE_V, NPU_PIPE_S, 0);
  if (ascend_tells_pv_done(v->j))
    npu_cross_wait(NPU_PIPE_MTE2, ASCEND_PV_DONE);
  npu_wait(NPU_PIPE_V, NPU_PIPE_S, 0);
  if (!(npu_read_ub_f32(all, assumed) > 0.0f) && !(npu_read_ub_f32(all + 1, assumed) > 0.0f))
    return;
  for (int32_t r = 0; r < my_rows(b); r += SMALL_ROWS)
    if (npu_read_ub_f32(by_eight + r / SMALL_ROWS, assumed) > 0.0f)
      shift_rows(v, b, block, r);
}

static void rescale(vector *v, const ascend_block *b, int32_t block) {
  if (v->j->mode == ASCEND_FLASH)
    return;
  if (!b->first && v->j->mode == ASCEND_AMLA && v->j->unguarded)
    add_n_unguarded(v, b, block);
  if (!b->first && v->j->mode == ASCEND_AMLA && !v->j->unguarded)
    add_n(v, b, block);
  if (!b->first && v->j->mode == ASCEND_LAZY)
    shift_moved(v, b, block);
  npu_cross_set(NPU_PIPE_MTE3, ASCEND_O_READY);
}

/* ---- V2 and results ---- */

/* Where rows of results go: rows [row, row + rows) of a sequence, or of a part. */
typedef struct place {
  int32_t sequence, row, rows;
  int64_t part_row; /* of part_o and part_lse; -1: the caller's tensors */
} place;

static void store_part(const ascend_job *j, const place *at, ascend_vec o, ascend_vec lse) {
  npu_copy_ub_gm(j->part_o + at->part_row * ASCEND_MAX_V, o, at->rows, j->d_v * 4, ASCEND_MAX_V * 4,
                 ASCEND_WIDTH * 4);
  npu_copy_ub_gm(j->part_lse + at->part_row, lse, 1, at->rows * 4, NPU_BLOCK_BYTES * 2, 64);
}

/* Rows lie query by query in out [b][s_q][h_q][d_v] and lse [b][h_q][s_q]. lse_blocks: one block
 * per row. */
static void store_result(const ascend_job *j, const place *at, NPU_UB const void *o,
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

/* Sinks of the rows, one block per row, behind the chunk of an `in` slot. */
static void fetch_sinks(const ascend_job *j, const place *at, ascend_vec blocks) {
  for (int32_t r = 0, run; r < at->rows; r += run) {
    const int32_t head = (at->row + r) % j->h_q;
    run = ascend_min(at->rows - r, j->h_q - head);
    npu_copy_gm_ub(blocks + r * 8, j->sinks + head, run, 4, NPU_BLOCK_BYTES, 4);
  }
}

/* divisor *= 1 + exp(sink - lse), but for rows without keys (lse = -inf). */
static void apply_sinks(const ascend_chunk_state *c, ascend_vec blocks, ascend_vec divisor,
                        ascend_vec lse, int32_t rows) {
  const npu_vec v = ascend_per_row(rows);
  ascend_vec sink = c->temp[0], factor = c->temp[1];
  npu_block_max_f32(sink, blocks,
                    npu_vec_rows(ASCEND_CHUNK_ROWS / 8, 0x0101010101010101u, 1, 8, 8));
  npu_sub_f32(factor, sink, lse, v);
  npu_exp_f32(factor, factor, v);
  npu_adds_f32(factor, factor, 1.0f, v);
  npu_mul_f32(factor, factor, divisor, v);
  npu_cmps_f32(c->bits, lse, -INFINITY, NPU_CMP_NE, v);
  npu_sel_f32(divisor, c->bits, factor, divisor, v);
}

/* o [rows][512] / divisor -> global memory, through the `out` slot that has been acquired. o may be
 * destroyed. */
static void emit(vector *v, const ascend_chunk_state *c, const place *at, ascend_vec o,
                 ascend_vec out, ascend_vec sinks, ascend_vec divisor, ascend_vec lse) {
  const ascend_job *j = v->j;
  const int32_t whole = at->part_row < 0;
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
    ascend_spread(tail_of(out), lse);
  else
    npu_adds_f32(tail_of(out), lse, 0.0f, ascend_per_row(at->rows));
  ascend_ring_commit(&v->out);
  (void)ascend_ring_take(&v->out);
  if (whole)
    store_result(j, at, out, tail_of(out));
  else
    store_part(j, at, out, tail_of(out));
  ascend_ring_release(&v->out);
}

static place place_of(const ascend_block *b, int32_t row, int32_t rows) {
  const place at = {b->sequence, b->row_begin + row, rows,
                    b->part < 0 ? -1 : (int64_t)b->part * ASCEND_TILE_ROWS + row};
  return at;
}

static void finish_chunk(vector *v, const ascend_block *b, const ascend_chunk_state *c, int32_t r,
                         int32_t rows, ascend_vec o, ascend_vec sinks) {
  const place at = place_of(b, my_begin(b) + r, rows);
  ascend_vec out = out_slot(ascend_ring_acquire(&v->out)), divisor = ub(TEMP + 8 * 64),
             lse = ub(TEMP + 9 * 64);
  if (v->j->clamp > 0.0f)
    ascend_clamp(c, o, out, v->j->clamp, rows);
  ascend_divisor(c, v->j->mode, divisor, lse, rows);
  emit(v, c, &at, o, out, sinks, divisor, lse);
  ascend_ring_release(&v->in);
}

/* amla, lazy: the end of an item. */
static void finish(vector *v, const ascend_block *b, int32_t block) {
  npu_cross_wait(NPU_PIPE_MTE2, ASCEND_O_DONE);
  for (int32_t r = 0; r < my_rows(b); r += ASCEND_CHUNK_ROWS) {
    const int32_t rows = ascend_min(ASCEND_CHUNK_ROWS, my_rows(b) - r);
    const ascend_chunk_state c = state_at(v, b, block, r);
    const place at = place_of(b, my_begin(b) + r, rows);
    ascend_vec o = in_slot(ascend_ring_acquire(&v->in));
    fetch(o, o_rows(v, b, r), rows, v->j->d_v);
    if (v->j->sinks)
      fetch_sinks(v->j, &at, tail_of(o));
    ascend_ring_commit(&v->in);
    (void)ascend_ring_take(&v->in);
    finish_chunk(v, b, &c, r, rows, o, tail_of(o));
  }
}

/* O of a block must be written before the next block reads it. With lag 0 that follows from
 * P_READY; with more chunks than the rings have slots, from the rings. */
static int o_needs_flag(const ascend_job *j, const ascend_block *b) {
  return j->tiling.lag > 0 && b->rows <= ASCEND_HALF_ROWS && my_rows(b) > 0;
}

/* flash: O = O * factor + PV, and at the end of an item its result. */
static void v2_flash(vector *v, const ascend_block *b, int32_t block) {
  const ascend_job *j = v->j;
  NPU_GM float *o_tile = j->o_flash + ((int64_t)npu_block_index() * 2 + npu_subcore()) *
                                          ASCEND_HALF_ROWS * ASCEND_MAX_V;
  NPU_GM const float *pv_tile = (ascend_shares_s_and_pv(j) ? j->s : j->o) + ascend_slot(j, block) +
                                (int64_t)my_begin(b) * ASCEND_MAX_V;
  npu_cross_wait(NPU_PIPE_MTE2, b->last ? ASCEND_O_DONE : ASCEND_PV_DONE);
  if (!b->first && o_needs_flag(j, b))
    npu_wait(NPU_PIPE_MTE3, NPU_PIPE_MTE2, 0);
  for (int32_t r = 0; r < my_rows(b); r += SMALL_ROWS) {
    const int32_t rows = ascend_min(SMALL_ROWS, my_rows(b) - r);
    const ascend_chunk_state c = state_at(v, b, block, r);
    const place at = place_of(b, my_begin(b) + r, rows);
    ascend_vec pv = in_slot(ascend_ring_acquire(&v->in)), o = pv + SMALL_ROWS * ASCEND_WIDTH;
    fetch(pv, pv_tile + (int64_t)r * ASCEND_MAX_V, rows, j->d_v);
    if (!b->first)
      fetch(o, o_tile + (int64_t)r * ASCEND_MAX_V, rows, j->d_v);
    if (b->last && j->sinks)
      fetch_sinks(j, &at, tail_of(pv));
    ascend_ring_commit(&v->in);
    (void)ascend_ring_take(&v->in);
    if (!b->first) {
      ascend_spread(c.spread, c.factor);
      ascend_mul_rows(o, o, c.spread, rows);
      npu_add_f32(pv, o, pv, ascend_chunk(rows));
    }
    if (b->last) {
      finish_chunk(v, b, &c, r, rows, pv, tail_of(pv));
      continue;
    }
    ascend_vec out = out_slot(ascend_ring_acquire(&v->out));
    npu_adds_f32(out, pv, 0.0f, ascend_chunk(rows));
    ascend_ring_release(&v->in), ascend_ring_commit(&v->out);
    (void)ascend_ring_take(&v->out);
    npu_copy_ub_gm(o_tile + (int64_t)r * ASCEND_MAX_V, out, rows, j->d_v * 4, ASCEND_MAX_V * 4,
                   ASCEND_WIDTH * 4);
    ascend_ring_release(&v->out);
  }
  if (!b->last && o_needs_flag(j, b))
    npu_notify(NPU_PIPE_MTE3, NPU_PIPE_MTE2, 0);
  if (ascend_shares_s_and_pv(j) && block + 1 < v->blocks)
    npu_cross_set(NPU_PIPE_MTE3, ASCEND_O_READY);
}

static void v2(vector *v, const ascend_block *b, int32_t block) {
  if (v->j->mode == ASCEND_FLASH)
    v2_flash(v, b, block);
  else if (b->last)
    finish(v, b, block);
}

/* ---- Parts of split keys ---- */

/* A tile made of parts: LSE = log sum exp(LSE_p), O = sum exp(LSE_p - LSE) O_p, in the order of the
 * parts. */
typedef struct joint {
  int32_t part_begin, parts;
  int64_t row; /* of the tile */
} joint;

static ascend_vec fetch_part(vector *v, const joint *t, int32_t part, int32_t rows, int with_o) {
  const int64_t at = (int64_t)(t->part_begin + part) * ASCEND_TILE_ROWS + t->row;
  ascend_vec slot = in_slot(ascend_ring_acquire(&v->in));
  if (with_o)
    fetch(slot, v->j->part_o + at * ASCEND_MAX_V, rows, v->j->d_v);
  npu_copy_gm_ub(tail_of(slot), v->j->part_lse + at, 1, rows * 4, 64, 64);
  ascend_ring_commit(&v->in);
  (void)ascend_ring_take(&v->in);
  return slot;
}

static void merge_chunk(vector *v, const joint *t, const place *at) {
  const npu_vec one = ascend_per_row(at->rows);
  const ascend_block none = {0, 0, 0, 0, -1, 0, 0, 0, 0, 1, 1};
  const ascend_chunk_state c = state_at(v, &none, 0, 0);
  ascend_vec max = c.temp[2], sum = c.temp[3], weight = c.temp[4], divisor = ub(TEMP + 8 * 64),
             lse = ub(TEMP + 9 * 64);
  ascend_vec out = out_slot(ascend_ring_acquire(&v->out)), o = out + SMALL_ROWS * ASCEND_WIDTH;
  npu_dup_f32(max, ASCEND_NONE, one);
  npu_dup_f32(sum, 0.0f, one);
  npu_dup_f32(o, 0.0f, ascend_chunk(at->rows));
  for (int32_t i = 0; i < t->parts; i++) {
    ascend_vec slot = fetch_part(v, t, i, at->rows, 0);
    npu_max_f32(max, max, tail_of(slot), one);
    ascend_ring_release(&v->in);
  }
  for (int32_t i = 0; i < t->parts; i++) {
    ascend_vec slot = fetch_part(v, t, i, at->rows, 1);
    npu_sub_f32(weight, tail_of(slot), max, one);
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
  ascend_vec sinks = tail_of(in_slot(ascend_ring_acquire(&v->in)));
  if (v->j->sinks)
    fetch_sinks(v->j, at, sinks);
  ascend_ring_commit(&v->in);
  (void)ascend_ring_take(&v->in);
  emit(v, &c, at, o, out, sinks, divisor, lse);
  ascend_ring_release(&v->in);
}

/* All tiles that are made of parts, or of nothing; all vector cores share their chunks. */
static void merge_parts(vector *v) {
  const int32_t me = npu_block_index() * 2 + npu_subcore(), cores = npu_block_count() * 2;
  for (int32_t m = 0, chunk = 0; m < v->j->n_merges; m++) {
    NPU_GM const ascend_merge *g = v->j->merges + m;
    const int32_t rows = npu_read_gm_s32(&g->rows);
    for (int32_t r = 0; r < rows; r += SMALL_ROWS, chunk++) {
      if (chunk % cores != me)
        continue;
      const joint t = {npu_read_gm_s32(&g->part_begin), npu_read_gm_s32(&g->parts), r};
      const place at = {npu_read_gm_s32(&g->sequence), npu_read_gm_s32(&g->row_begin) + r,
                        ascend_min(SMALL_ROWS, rows - r), -1};
      merge_chunk(v, &t, &at);
    }
  }
}

/* ---- The program ---- */

void ascend_vector(const void *args) {
  const ascend_job *j = (const ascend_job *)args;
  const int32_t lag = j->tiling.lag;
  vector v;
  v.j = j, v.blocks = ascend_count_blocks(j);
  v.walk.known = v.walk.item = v.walk.block = 0;
  clear(IN, OUT), clear(STATS, LN2);
  v.in = ascend_ring_open(NPU_PIPE_MTE2, NPU_PIPE_V, 2, 0);
  v.out = ascend_ring_open(NPU_PIPE_V, NPU_PIPE_MTE3, 2, 0);
  v.p = ascend_ring_open(NPU_PIPE_V, NPU_PIPE_MTE3, 2, 2);
  npu_dup_f32(ub(LN2), 0.69314718055994530942f, ascend_per_row(16));
  npu_dup_f32(ub(ONE), 1.0f, ascend_per_row(16));

  for (int32_t t = 0; v.blocks > 0 && t < v.blocks + lag; t++) {
    if (t < v.blocks)
      v1(&v, ascend_block_at(j, &v.walk, t), t);
    if (t < v.blocks)
      rescale(&v, ascend_block_at(j, &v.walk, t), t);
    if (t >= lag)
      v2(&v, ascend_block_at(j, &v.walk, t - lag), t - lag);
  }
  if (j->n_merges > 0)
    npu_barrier_all(), merge_parts(&v);

  ascend_ring_close(&v.in), ascend_ring_close(&v.out), ascend_ring_close(&v.p);
}
