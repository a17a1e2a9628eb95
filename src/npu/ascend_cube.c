/* SPDX-License-Identifier: Apache-2.0
 *
 * The cube program: what every AIC does. Two products per key tile and row block, of the same form
 * C[m][n] = A[m][k] B[k][n]:
 *
 *     C1: S = Q K^T    A = Q [rows][d_qk]   B = K [keys][d_qk], transposed   to global memory
 *     C2: O += P V     A = P [rows][keys]   B = V [keys][d_v]                added to O there
 *
 * The order of column tiles is at the end of this file, that of L0 steps in ascend_order.h. MTE2
 * brings a piece of B for each column tile and piece of depth, and with the first column tile the
 * pieces of A, which then stay in L1 for all columns. MTE1 cuts pieces into L0 tiles. Each half of
 * the rows has an accumulator, which FIX drains.
 */
#include "ascend_job.h"
#include "ascend_keys.h"
#include "ascend_order.h"
#include "ascend_ring.h"

enum { ASCEND_C1, ASCEND_C2 };

/* A column tile of a product. */
typedef struct column {
  const ascend_tile *t;
  int32_t product, tile; /* which key tile of this core */
  int32_t n, n_columns;  /* which column tile, of how many */
  int32_t cols;
  ascend_depths depths;
} column;

/* Column tiles wait in a queue: B of the later ones is loaded before the first is multiplied. */
enum { QUEUE = 16 };

typedef struct cube {
  const ascend_job *j;
  int32_t tiles;
  ascend_walk walk;
  ascend_ring kv, q, p, l0, l0c; /* with keep_q, q has slots of its own; else p is for both */
  column queue[QUEUE];           /* column tile i at i % QUEUE */
  int32_t queued, multiplied;    /* column tiles so far */
  int32_t loading, k;            /* the next piece of B to load: of that column tile, piece k */
  int32_t ahead;                 /* pieces of B loaded and not yet multiplied */
  int32_t a_slot[2][8];          /* L1 slot of A piece half * 4 + k, of C1 and of C2 */
  int32_t kv_slot[4];            /* of B piece k of the column tile at hand */
  int32_t acc[2];                /* L0C slot of each half */
  int32_t steps;                 /* L0 steps so far */
  int32_t b_loads, b_begin;      /* tiles that L0B has had, and had before this column tile */
  int32_t b_used[8];             /* the last step that used a slot of L0B */
} cube;

static column column_of(cube *c, int32_t product, int32_t tile, int32_t n) {
  const ascend_tiling *tiling = &c->j->tiling;
  column x;
  x.product = product, x.tile = tile, x.n = n;
  x.t = ascend_tile_at(c->j, &c->walk, tile);
  int32_t width = x.t->keys;
  x.depths.total = c->j->d_qk, x.depths.piece = tiling->qk_l1, x.depths.step = tiling->qk_l0;
  if (product == ASCEND_C2) {
    width = c->j->d_v;
    x.depths.total = x.t->keys, x.depths.piece = tiling->pv_l1, x.depths.step = tiling->pv_l0;
  }
  x.depths.pieces = ascend_pieces(x.depths.total, x.depths.piece);
  x.depths.halves = ascend_pieces(x.t->rows, ASCEND_HALF_ROWS);
  x.depths.l0_slots = tiling->l0_slots;
  x.n_columns = ascend_pieces(width, ASCEND_COLUMNS);
  x.cols = ascend_min(ASCEND_COLUMNS, width - n * ASCEND_COLUMNS);
  return x;
}

static int32_t rows_of_half(const column *x, int32_t half) {
  return ascend_min(ASCEND_HALF_ROWS, x->t->rows - half * ASCEND_HALF_ROWS);
}

/* ---- L1: where pieces lie ---- */

static NPU_L1 npu_bf16 *l1(int32_t offset_bytes) {
  return NPU_L1_AT(npu_bf16, (uint32_t)offset_bytes);
}

static NPU_L1 npu_bf16 *b_piece(const cube *c, int32_t slot) {
  return l1(slot * ascend_kv_slot_bytes(&c->j->tiling));
}

static int keeps_q(const cube *c, const column *x) {
  return x->product == ASCEND_C1 && c->j->tiling.keep_q;
}

static NPU_L1 npu_bf16 *a_piece(const cube *c, const column *x, int32_t slot) {
  const ascend_tiling *t = &c->j->tiling;
  const int32_t p_begin = ascend_p_begin(t);
  const int32_t q_begin = p_begin + t->qp_slots * ascend_qp_slot_bytes(t);
  if (keeps_q(c, x))
    return l1(q_begin + slot * ASCEND_HALF_ROWS * t->qk_l1 * 2);
  return l1(p_begin + slot * ascend_qp_slot_bytes(t));
}

static ascend_ring *a_ring(cube *c, const column *x) { return keeps_q(c, x) ? &c->q : &c->p; }

/* in_core: the vector cores put P there. */
static int p_is_here(const cube *c, const column *x) {
  return x->product == ASCEND_C2 && c->j->tiling.in_core;
}

/* Q that is kept is loaded for the first key tile of an item and freed after the last. */
static int loads_a(const cube *c, const column *x) {
  return x->n == 0 && (!keeps_q(c, x) || x->t->first) && !p_is_here(c, x);
}
static int frees_a(const cube *c, const column *x) {
  return x->n == x->n_columns - 1 && (!keeps_q(c, x) || x->t->last) && !p_is_here(c, x);
}

/* ---- MTE2: global memory -> L1 ---- */

static void load_b(cube *c, const column *x, int32_t k) {
  const int32_t n_begin = x->n * ASCEND_COLUMNS, k_begin = k * x->depths.piece,
                depth = ascend_depth_of_piece(&x->depths, k);
  ascend_rectangle r = {b_piece(c, ascend_ring_acquire(&c->kv)), ASCEND_COLUMNS, k_begin, depth};
  int32_t key = n_begin, keys = x->cols;
  if (x->product == ASCEND_C2) {
    r.height = x->depths.piece, r.col = n_begin, r.cols = x->cols;
    key = k_begin, keys = depth;
  }
  if (c->j->kv8)
    npu_copy_gm_l1_nd2nz_bf16(r.dst,
                              ascend_kv_slot(c->j, x->tile) + (int64_t)key * c->j->d_qk + r.col,
                              keys, r.cols, c->j->d_qk, r.height);
  else
    ascend_load_pages(c->j, x->t->sequence, x->t->key_begin + key, keys, r);
  ascend_ring_commit(&c->kv);
}

/* kv8: the vector cores convert a key tile before C1 reads it. */
static void wait_for_kv(const cube *c, const column *x, int32_t k) {
  if (c->j->kv8 && x->product == ASCEND_C1 && x->n == 0 && k == 0)
    npu_cross_wait(NPU_PIPE_MTE2, ASCEND_KV_READY);
}

static void load_a(cube *c, const column *x, int32_t half, int32_t k) {
  ascend_ring *ring = a_ring(c, x);
  const int32_t row = half * ASCEND_HALF_ROWS, rows = rows_of_half(x, half),
                k_begin = k * x->depths.piece, depth = ascend_depth_of_piece(&x->depths, k);
  const ascend_rectangle r = {a_piece(c, x, ascend_ring_acquire(ring)), ASCEND_HALF_ROWS, k_begin,
                              depth};
  if (x->product == ASCEND_C1)
    ascend_load_queries(c->j, x->t->sequence, x->t->row_begin + row, rows, r);
  else
    npu_copy_gm_l1_nd2nz_bf16(
        r.dst, c->j->p + ascend_slot(c->j, x->tile) + (int64_t)row * ASCEND_TILE_KEYS + k_begin,
        rows, depth, ASCEND_TILE_KEYS, ASCEND_HALF_ROWS);
  ascend_ring_commit(ring);
}

static void load_piece(cube *c, const column *x, int32_t k) {
  wait_for_kv(c, x, k);
  load_b(c, x, k);
  if (!loads_a(c, x))
    return;
  if (x->product == ASCEND_C2 && k == 0)
    npu_cross_wait(NPU_PIPE_MTE2, ASCEND_P_READY);
  for (int32_t half = 0; half < x->depths.halves; half++)
    load_a(c, x, half, k);
}

/* Not far into the next product, whose A pieces wait for products that are not issued yet (for
 * slots, or for P): behind them the queue of 32 must not fill. */
static int may_load(const cube *c, const column *load, const column *at) {
  if (c->loading == c->multiplied)
    return 1;
  if (c->ahead >= c->j->tiling.kv_slots)
    return 0;
  if (load->n > 0)
    return 1;
  const int32_t at_c1 = at->product == ASCEND_C1 ? at->tile : at->tile + c->j->tiling.lag + 1;
  const int32_t p_may_come = load->product == ASCEND_C1 || at_c1 > load->tile;
  return c->k == 0 && p_may_come && c->j->h_q >= ASCEND_CHUNK_ROWS;
}

/* Loads are issued before the products that use them, kv_slots pieces ahead. */
static void load_ahead(cube *c) {
  while (c->loading < c->queued) {
    const column *load = &c->queue[c->loading % QUEUE];
    if (!may_load(c, load, &c->queue[c->multiplied % QUEUE]))
      return;
    load_piece(c, load, c->k);
    c->ahead++;
    if (++c->k == load->depths.pieces)
      c->k = 0, c->loading++;
  }
}

/* ---- MTE1 and M: L1 -> L0 -> product ---- */

static NPU_L0A npu_bf16 *l0a(const cube *c, int32_t slot) {
  return NPU_L0A_AT(npu_bf16, (uint32_t)(slot * ascend_l0_slot_bytes(&c->j->tiling)));
}
static NPU_L0B npu_bf16 *l0b(const cube *c, int32_t slot) {
  return NPU_L0B_AT(npu_bf16, (uint32_t)(slot * ascend_l0_slot_bytes(&c->j->tiling)));
}
static NPU_L0C float *accumulator(int32_t slot) {
  return NPU_L0C_AT(float, (uint32_t)(slot * ASCEND_HALF_ROWS * ASCEND_COLUMNS * 4));
}

static void load_l0b(const cube *c, const column *x, const ascend_l0_step *s, int32_t depth,
                     int32_t slot) {
  NPU_L1 const npu_bf16 *b = b_piece(c, c->kv_slot[s->k]);
  if (x->product == ASCEND_C1)
    npu_load_l0b_bf16(l0b(c, slot), b + s->k0 * ASCEND_COLUMNS, x->cols, depth, ASCEND_COLUMNS);
  else
    npu_load_l0b_t_bf16(l0b(c, slot), b + s->k0 * 16, x->cols, depth, x->depths.piece);
}

/* Takes the pieces that the step is the first to use. */
static void take_pieces(cube *c, const column *x, const ascend_l0_step *s) {
  if (s->half == 0 && s->k0 == 0)
    c->kv_slot[s->k] = ascend_ring_take(&c->kv);
  if (p_is_here(c, x))
    c->a_slot[x->product][s->k] = s->k;
  if (p_is_here(c, x) && x->n == 0 && s->k == 0 && s->k0 == 0)
    npu_cross_wait(NPU_PIPE_MTE1, ASCEND_P_READY);
  if (loads_a(c, x) && s->k0 == 0)
    c->a_slot[x->product][s->half * 4 + s->k] = ascend_ring_take(a_ring(c, x));
}

/* Gives back the pieces that the step, which ends its piece, is the last to use. */
static void release_pieces(cube *c, const column *x, const ascend_l0_step *s) {
  if (frees_a(c, x))
    ascend_ring_release(a_ring(c, x));
  if (s->half == x->depths.halves - 1)
    ascend_ring_release(&c->kv);
  if (p_is_here(c, x) && x->n == x->n_columns - 1 && s->k == x->depths.pieces - 1 &&
      x->tile + 1 < c->tiles)
    npu_cross_set(NPU_PIPE_MTE1, ASCEND_P_FREE);
}

/* Loads the step's tile of B, unless half 0 has left it. `early`: before a slot of L0A is waited
 * for, where the slot of L0B is known to be free: its last step was waited for already. */
static void fill_l0b(cube *c, const column *x, const ascend_l0_step *s, int32_t depth,
                     int32_t early) {
  const int32_t slots = c->j->tiling.l0_slots, tile = c->b_begin + s->b;
  if (tile < c->b_loads || early != (c->b_used[tile % slots] < c->steps - slots))
    return;
  load_l0b(c, x, s, depth, tile % slots);
  c->b_loads++;
}

static void multiply(cube *c, const column *x, const ascend_l0_step *s) {
  const int32_t of_piece = ascend_depth_of_piece(&x->depths, s->k),
                depth = ascend_min(x->depths.step, of_piece - s->k0),
                rows = rows_of_half(x, s->half), starts = s->k == 0 && s->k0 == 0,
                b_slot = (c->b_begin + s->b) % c->j->tiling.l0_slots;
  take_pieces(c, x, s);
  fill_l0b(c, x, s, depth, 1);
  const int32_t a_slot = ascend_ring_acquire(&c->l0);
  fill_l0b(c, x, s, depth, 0);
  c->b_used[b_slot] = c->steps++;
  NPU_L1 const npu_bf16 *a = a_piece(c, x, c->a_slot[x->product][s->half * 4 + s->k]);
  npu_load_l0a_bf16(l0a(c, a_slot), a + s->k0 * ASCEND_HALF_ROWS, rows, depth, ASCEND_HALF_ROWS);
  ascend_ring_commit(&c->l0);
  if (s->k0 + depth == of_piece)
    release_pieces(c, x, s);

  (void)ascend_ring_take(&c->l0);
  if (starts)
    c->acc[s->half] = ascend_ring_acquire(&c->l0c);
  NPU_L0C float *acc = accumulator(c->acc[s->half]);
  if (c->j->f16)
    npu_mmad_f16(acc, l0a(c, a_slot), l0b(c, b_slot), rows, x->cols, depth, !starts);
  else
    npu_mmad_bf16(acc, l0a(c, a_slot), l0b(c, b_slot), rows, x->cols, depth, !starts);
  ascend_ring_release(&c->l0);
}

/* ---- FIX: accumulator -> global memory ---- */

/* Must the first copy of this product wait until the vector cores are done with its target? */
static int waits_for_o(const cube *c, const column *x) {
  if (ascend_shares_s_and_pv(c->j))
    return x->product == ASCEND_C1 && x->tile > 0;
  return x->product == ASCEND_C2 && c->j->mode != ASCEND_FLASH;
}

/* flash keeps PV apart, per key tile; amla and lazy add it to O, which an item's first one writes.
 */
static void store_pv(const cube *c, const column *x, NPU_L0C const float *src, int64_t at,
                     int32_t rows) {
  const ascend_job *j = c->j;
  const int32_t flash = j->mode == ASCEND_FLASH;
  NPU_GM float *o = ascend_shares_s_and_pv(j) ? j->s : j->o;
  o += ascend_slot(j, flash ? x->tile : x->t->item) + at;
  if (flash || x->t->first)
    npu_copy_l0c_gm_f32(o, src, rows, x->cols, ASCEND_MAX_V, ascend_ceil(rows, 16));
  else
    npu_copy_l0c_gm_add_f32(o, src, rows, x->cols, ASCEND_MAX_V, ascend_ceil(rows, 16));
}

static void tell_stored(const cube *c, const column *x) {
  if (x->product == ASCEND_C1)
    npu_cross_set(NPU_PIPE_FIX, ASCEND_S_READY);
  else if (x->t->last)
    npu_cross_set(NPU_PIPE_FIX, ASCEND_O_DONE);
  else if (ascend_tells_pv_done(c->j))
    npu_cross_set(NPU_PIPE_FIX, ASCEND_PV_DONE);
}

/* Scores, half 0 only: each vector core's rows to its UB. */
static void store_in_core(const column *x, NPU_L0C const float *src, int32_t rows) {
  const int32_t of_first = ascend_rows_of_first(rows);
  for (int32_t sub = 0, row = 0; row < rows; sub++, row += of_first) {
    NPU_UB float *s = (NPU_UB float *)npu_ub_of(sub, ASCEND_S_IN_UB);
    npu_copy_l0c_ub_f32(s + x->n * ASCEND_COLUMNS, src + row * 16, ascend_min(of_first, rows - row),
                        x->cols, ASCEND_TILE_KEYS, ascend_ceil(rows, 16));
  }
}

static void store_s(const cube *c, const column *x, NPU_L0C const float *src, int64_t at,
                    int32_t rows) {
  if (c->j->tiling.in_core)
    store_in_core(x, src, rows);
  else
    npu_copy_l0c_gm_f32(c->j->s + ascend_slot(c->j, x->tile) + at, src, rows, x->cols,
                        ASCEND_TILE_KEYS, ascend_ceil(rows, 16));
}

static void store(cube *c, const column *x, int32_t half) {
  const int64_t at = (int64_t)half * ASCEND_HALF_ROWS * ASCEND_TILE_KEYS + x->n * ASCEND_COLUMNS;
  const int32_t rows = rows_of_half(x, half);
  if (waits_for_o(c, x) && x->n == 0 && half == 0)
    npu_cross_wait(NPU_PIPE_FIX, ASCEND_O_READY);
  if (c->j->tiling.in_core && x->product == ASCEND_C1 && x->n == 0)
    npu_cross_wait(NPU_PIPE_FIX, ASCEND_S_FREE);
  NPU_L0C const float *src = accumulator(ascend_ring_take(&c->l0c));
  if (x->product == ASCEND_C1)
    store_s(c, x, src, at, rows);
  else
    store_pv(c, x, src, at, rows);
  ascend_ring_release(&c->l0c);
  if (x->n == x->n_columns - 1 && half == x->depths.halves - 1)
    tell_stored(c, x);
}

/* ---- A column tile ---- */

static void multiply_column(cube *c, const column *x) {
  ascend_l0_step list[ASCEND_MAX_L0_STEPS];
  const int32_t steps = ascend_l0_order(c->j->tiling.order, &x->depths, list);
  c->b_begin = c->b_loads;
  for (int32_t i = 0; i < steps; i++) {
    multiply(c, x, &list[i]);
    const int32_t of_piece = ascend_depth_of_piece(&x->depths, list[i].k);
    if (list[i].k == x->depths.pieces - 1 && list[i].k0 + x->depths.step >= of_piece) {
      ascend_ring_commit(&c->l0c);
      store(c, x, list[i].half);
    }
  }
}

static void multiply_next(cube *c) {
  const column *x = &c->queue[c->multiplied % QUEUE];
  load_ahead(c);
  multiply_column(c, x);
  c->ahead -= x->depths.pieces, c->multiplied++;
}

/* Column tile n of C1 or C2 of a key tile, if there is one: queued, and multiplied when as many as
 * L1 has slots for are behind it. */
static void do_column(cube *c, int32_t product, int32_t tile, int32_t n) {
  if (tile < 0 || tile >= c->tiles)
    return;
  const column x = column_of(c, product, tile, n);
  if (n >= x.n_columns)
    return;
  c->queue[c->queued++ % QUEUE] = x;
  if (c->queued - c->multiplied > c->j->tiling.kv_slots)
    multiply_next(c);
}

/* ---- The program ---- */

/* As published. With lag 1, C1 runs one key tile ahead (Preload Pipeline):
 *
 *     C1(0) | C1(1) C2(0) | C1(2) C2(1) | ... | C2(last)
 *
 * with lag 0 nothing overlaps: C1(0) C2(0) | C1(1) C2(1) | ... */
static void do_in_sequence(cube *c, int32_t lag) {
  for (int32_t t = 0; t < c->tiles + lag; t++) {
    for (int32_t n = 0; n < ASCEND_MAX_COLUMN_TILES; n++)
      do_column(c, ASCEND_C1, t, n);
    for (int32_t n = 0; n < ASCEND_MAX_COLUMN_TILES; n++)
      do_column(c, ASCEND_C2, t - lag, n);
  }
}

/* Ours, for few rows: K comes from HBM and V from L2, so the products take turns, and every other
 * core starts with the other one. */
static void do_in_turns(cube *c, int32_t lag, int32_t c2_first) {
  for (int32_t t = 0; t < c->tiles + lag; t++)
    for (int32_t n = 0; n < ASCEND_MAX_COLUMN_TILES; n++)
      for (int32_t turn = 0; turn < 2; turn++)
        if (turn == c2_first)
          do_column(c, ASCEND_C1, t, n);
        else
          do_column(c, ASCEND_C2, t - lag, n);
}

static cube open(const ascend_job *j) {
  const ascend_tiling *t = &j->tiling;
  const int32_t q_slots = t->keep_q ? ascend_pieces(j->d_qk, t->qk_l1) : 0;
  cube c;
  c.j = j, c.tiles = ascend_count_tiles(j);
  c.walk.known = c.walk.item = c.walk.tile = 0;
  c.queued = c.multiplied = c.loading = c.k = c.ahead = 0;
  c.steps = c.b_loads = 0;
  for (int32_t i = 0; i < t->l0_slots; i++)
    c.b_used[i] = -t->l0_slots;
  c.kv = ascend_ring_open(NPU_PIPE_MTE2, NPU_PIPE_MTE1, t->kv_slots, 0);
  c.p = ascend_ring_open(NPU_PIPE_MTE2, NPU_PIPE_MTE1, t->in_core ? 0 : t->qp_slots, t->kv_slots);
  c.q = ascend_ring_open(NPU_PIPE_MTE2, NPU_PIPE_MTE1, q_slots, t->kv_slots + t->qp_slots);
  c.l0 = ascend_ring_open(NPU_PIPE_MTE1, NPU_PIPE_M, t->l0_slots, 0);
  c.l0c = ascend_ring_open(NPU_PIPE_M, NPU_PIPE_FIX, t->in_core ? 4 : 2, 0);
  return c;
}

static void close(cube *c) {
  ascend_ring_close(&c->kv), ascend_ring_close(&c->p), ascend_ring_close(&c->q);
  ascend_ring_close(&c->l0), ascend_ring_close(&c->l0c);
}

void ascend_cube(const void *args) {
  const ascend_job *j = (const ascend_job *)args;
  cube c = open(j);
  if (j->tiling.in_turns)
    do_in_turns(&c, j->tiling.lag, npu_block_index() % 2);
  else
    do_in_sequence(&c, j->tiling.lag);
  while (c.multiplied < c.queued)
    multiply_next(&c);
  close(&c);
  if (j->n_merges > 0)
    npu_barrier_all();
}
