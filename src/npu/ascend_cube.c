/* SPDX-License-Identifier: Apache-2.0
 *
 * The cube program: what every AIC does. Two products per block and tile, of the same form
 * C[m][n] = A[m][k] B[k][n]:
 *
 *     C1: S = Q K^T    A = Q [rows][d_qk]   B = K [keys][d_qk], transposed   to global memory
 *     C2: O += P V     A = P [rows][keys]   B = V [keys][d_v]                added to O there
 *
 * Order on this core, with lag 1 (Preload Pipeline): C1(0), C1(1) C2(0), C1(2) C2(1), ..., C2(n-1);
 * with lag 0 (serial): C1(0) C2(0) C1(1) ... With in_turns, the column tiles of a trip's two
 * products alternate, so that K comes from HBM all the time and not half of it. A product is cut
 * into steps: one tile of 128 columns times one piece of depth. MTE2 brings the B piece of a step,
 * and with the first column tile the A pieces, which then stay in L1 for all columns; MTE1 cuts
 * pieces into L0 tiles; each half of the rows has an accumulator. */
#include "ascend_job.h"
#include "ascend_ring.h"

enum { C1, C2 };

/* A place in the sequence of steps of this core. */
typedef struct cursor {
  int32_t trip, product; /* trip t: C1(t), then C2(t - lag) */
  int32_t n, k;          /* column tile, piece of depth */
} cursor;

typedef struct cube {
  const ascend_job *j;
  int32_t blocks;
  ascend_walk walk;
  ascend_ring kv, q, p, l0,
      l0c;              /* with keep_q, q has slots of its own; else q and p are one ring, p */
  int32_t a_slot[2][8]; /* L1 slot of A piece half * 4 + k of C1 and of C2 */
  int32_t kv_slot[4];   /* of B piece k of the tile at hand */
  int32_t acc[2];       /* L0C slot of each half */
  int32_t b_loads;      /* tiles that L0B has had */
} cube;

static NPU_L1 npu_bf16 *l1(int32_t offset_bytes) {
  return NPU_L1_AT(npu_bf16, (uint32_t)offset_bytes);
}

/* ---- Sizes of a step ---- */

typedef struct step {
  const ascend_block *b;
  int32_t block, product;
  int32_t n, k, n_tiles, k_pieces; /* where in the product, and of how many */
  int32_t cols, depth;             /* of this column tile and this piece */
  int32_t k_begin, piece, k_l0; /* first depth of the piece; full depth of a piece, of an L0 tile */
  int32_t halves;               /* of the rows */
} step;

static step step_at(cube *c, const cursor *at) {
  const ascend_tiling *t = &c->j->tiling;
  step s;
  s.product = at->product, s.n = at->n, s.k = at->k;
  s.block = at->product == C1 ? at->trip : at->trip - t->lag;
  s.b = ascend_block_at(c->j, &c->walk, s.block);
  const int32_t width = s.product == C1 ? s.b->keys : c->j->d_v,
                deep = s.product == C1 ? c->j->d_qk : s.b->keys;
  s.piece = s.product == C1 ? t->qk_l1 : t->pv_l1, s.k_l0 = s.product == C1 ? t->qk_l0 : t->pv_l0;
  s.n_tiles = ascend_parts(width, ASCEND_TILE_COLS), s.k_pieces = ascend_parts(deep, s.piece);
  s.k_begin = s.k * s.piece;
  s.cols = ascend_min(ASCEND_TILE_COLS, width - s.n * ASCEND_TILE_COLS);
  s.depth = ascend_min(s.piece, deep - s.k_begin);
  s.halves = ascend_parts(s.b->rows, ASCEND_HALF_ROWS);
  return s;
}

static int32_t half_rows(const step *s, int32_t half) {
  return ascend_min(ASCEND_HALF_ROWS, s->b->rows - half * ASCEND_HALF_ROWS);
}

/* Moves on to the next step; trip past the end = done. */
static int at_end(const cube *c, const cursor *at) {
  return c->blocks == 0 || at->trip >= c->blocks + c->j->tiling.lag;
}
static int does_work(const cube *c, const cursor *at) {
  return at->product == C1 ? at->trip < c->blocks : at->trip >= c->j->tiling.lag;
}
/* Does the trip have this tile? */
static int is_tile(cube *c, const cursor *at) {
  return does_work(c, at) && at->n < step_at(c, at).n_tiles;
}

/* The trip's first product: C1, but C2 on every other core when they take turns, so that half of
 * the cores read HBM while the others read L2. */
static int32_t first_product(const cube *c) {
  return c->j->tiling.in_turns && npu_block_index() % 2 ? C2 : C1;
}

/* To the next tile that the trip may have: all of the first product and then of the second, or in
 * turns. */
static void next_tile(const cube *c, cursor *at) {
  const int32_t first = first_product(c), in_turns = c->j->tiling.in_turns,
                ends = in_turns ? at->product != first : at->n == ASCEND_MAX_TILES - 1;
  at->n = in_turns ? at->n + ends : ends ? 0 : at->n + 1;
  if (in_turns || ends)
    at->product = at->product == C1 ? C2 : C1;
  if (in_turns ? at->n == ASCEND_MAX_TILES : ends && at->product == first)
    at->trip++, at->product = first, at->n = 0;
}

static void skip_to_tile(cube *c, cursor *at) {
  while (!at_end(c, at) && !is_tile(c, at))
    next_tile(c, at);
}

static void advance(cube *c, cursor *at) {
  if (++at->k < step_at(c, at).k_pieces)
    return;
  at->k = 0;
  next_tile(c, at);
  skip_to_tile(c, at);
}

/* ---- MTE2: global memory -> L1 ---- */

/* Elements [col, col + cols) of tokens [token, token + n) of a sequence, page by page, to an NZ
 * tile of that height. */
static void load_tokens(const ascend_job *j, const ascend_block *b, int32_t token, int32_t n,
                        int32_t col, int32_t cols, NPU_L1 npu_bf16 *dst, int32_t height) {
  const int64_t table = (int64_t)b->sequence * j->max_pages;
  for (int32_t i = 0, run; i < n; i += run) {
    const int32_t slot = (token + i) % j->page_size;
    const int64_t page = j->block_table
                             ? npu_read_gm_s32(j->block_table + table + (token + i) / j->page_size)
                             : b->sequence;
    run = ascend_min(n - i, j->page_size - slot);
    npu_copy_gm_l1_nd2nz_bf16(
        dst + i * 16, j->kv + page * j->kv_stride_page + (int64_t)slot * j->kv_stride_token + col,
        run, cols, ascend_max(j->kv_stride_token, cols), height);
  }
}

/* The same of query rows [row, row + n), query by query. */
static void load_q(const ascend_job *j, const ascend_block *b, int32_t row, int32_t n, int32_t col,
                   int32_t cols, NPU_L1 npu_bf16 *dst, int32_t height) {
  for (int32_t i = 0, run; i < n; i += run) {
    const int32_t query = (row + i) / j->h_q, head = (row + i) % j->h_q;
    run = ascend_min(n - i, j->h_q - head);
    npu_copy_gm_l1_nd2nz_bf16(dst + i * 16,
                              j->q + b->sequence * j->q_stride_batch + query * j->q_stride_query +
                                  (int64_t)head * j->q_stride_head + col,
                              run, cols, ascend_max(j->q_stride_head, cols), height);
  }
}

/* Is the A piece of this step Q, and is it kept from block to block? */
static ascend_ring *a_ring(cube *c, const step *s) {
  return s->product == C1 && c->j->tiling.keep_q ? &c->q : &c->p;
}
static int loads_a(const cube *c, const step *s) {
  return s->n == 0 && (s->product == C2 || !c->j->tiling.keep_q || s->b->first);
}
static int frees_a(const cube *c, const step *s) {
  return s->n == s->n_tiles - 1 && (s->product == C2 || !c->j->tiling.keep_q || s->b->last);
}

static int32_t kv_at(const cube *c, int32_t slot) {
  return slot * ascend_kv_slot_bytes(&c->j->tiling);
}
static int32_t a_at(const cube *c, const step *s, int32_t slot) {
  const ascend_tiling *t = &c->j->tiling;
  const int32_t p_begin = t->kv_slots * ascend_kv_slot_bytes(t),
                q_begin = p_begin + t->qp_slots * ascend_qp_slot_bytes(t);
  return s->product == C1 && t->keep_q ? q_begin + slot * ASCEND_HALF_ROWS * t->qk_l1 * 2
                                       : p_begin + slot * ascend_qp_slot_bytes(t);
}

static void load_b(cube *c, const step *s) {
  const int32_t slot = ascend_ring_acquire(&c->kv), n_begin = s->n * ASCEND_TILE_COLS;
  NPU_L1 npu_bf16 *dst = l1(kv_at(c, slot));
  if (s->product == C1)
    load_tokens(c->j, s->b, s->b->key_begin + n_begin, s->cols, s->k_begin, s->depth, dst,
                ASCEND_TILE_COLS);
  else
    load_tokens(c->j, s->b, s->b->key_begin + s->k_begin, s->depth, n_begin, s->cols, dst,
                s->piece);
  ascend_ring_commit(&c->kv);
}

static void load_a(cube *c, const step *s, int32_t half) {
  ascend_ring *ring = a_ring(c, s);
  NPU_L1 npu_bf16 *dst = l1(a_at(c, s, ascend_ring_acquire(ring)));
  const int32_t row = half * ASCEND_HALF_ROWS, rows = half_rows(s, half);
  if (s->product == C1)
    load_q(c->j, s->b, s->b->row_begin + row, rows, s->k_begin, s->depth, dst, ASCEND_HALF_ROWS);
  else
    npu_copy_gm_l1_nd2nz_bf16(
        dst, c->j->p + ascend_slot(c->j, s->block) + (int64_t)row * ASCEND_BLOCK_KEYS + s->k_begin,
        rows, s->depth, ASCEND_BLOCK_KEYS, ASCEND_HALF_ROWS);
  ascend_ring_commit(ring);
}

static void load_step(cube *c, const cursor *at) {
  const step s = step_at(c, at);
  load_b(c, &s);
  if (!loads_a(c, &s))
    return;
  if (s.product == C2 && s.k == 0)
    npu_cross_wait(NPU_PIPE_MTE2, ASCEND_P_READY);
  const int32_t staggered =
      c->j->tiling.order == ASCEND_STAGGER; /* the order in which they are used */
  for (int32_t half = 0; half < (staggered ? 1 : s.halves); half++)
    load_a(c, &s, half);
  cursor piece = *at;
  for (piece.k = 0; staggered && s.halves > 1 && s.k == s.k_pieces - 1 && piece.k < s.k_pieces;
       piece.k++) {
    const step second = step_at(c, &piece);
    load_a(c, &second, 1);
  }
}

/* ---- MTE1 and M: L1 -> L0 -> product ---- */

/* L0 tiles of depth [k, k + depth) of the pieces: A of one half, and B unless it is there already.
 */
static void load_l0(const cube *c, const step *s, int32_t a_slot, int32_t kv_slot, int32_t l0a_slot,
                    int32_t l0b_slot, int32_t half, int32_t k, int32_t depth, int with_b) {
  const int32_t slot_bytes = ascend_l0_slot_bytes(&c->j->tiling);
  const NPU_L1 npu_bf16 *a = l1(a_at(c, s, a_slot)) + k * ASCEND_HALF_ROWS,
                        *b = l1(kv_at(c, kv_slot));
  NPU_L0B npu_bf16 *l0b = NPU_L0B_AT(npu_bf16, (uint32_t)(l0b_slot * slot_bytes));
  if (with_b && s->product == C1)
    npu_load_l0b_bf16(l0b, b + k * ASCEND_TILE_COLS, s->cols, depth, ASCEND_TILE_COLS);
  if (with_b && s->product == C2)
    npu_load_l0b_t_bf16(l0b, b + k * 16, s->cols, depth, s->piece);
  npu_load_l0a_bf16(NPU_L0A_AT(npu_bf16, (uint32_t)(l0a_slot * slot_bytes)), a, half_rows(s, half),
                    depth, ASCEND_HALF_ROWS);
}

static NPU_L0C float *accumulator(int32_t slot) {
  return NPU_L0C_AT(float, (uint32_t)(slot * ASCEND_HALF_ROWS * ASCEND_TILE_COLS * 4));
}

/* One L0 step: depth [k, k + k_l0) of the pieces for one half of the rows. */
static void multiply(cube *c, const step *s, int32_t half, int32_t k) {
  const int32_t depth = ascend_min(s->k_l0, s->depth - k),
                share = c->j->tiling.order == ASCEND_SHARE_B, slots = c->j->tiling.l0_slots;
  const int32_t starts = s->k == 0 && k == 0, with_b = !share || half == 0;
  int32_t *a_slot = &c->a_slot[s->product][half * 4 + s->k];
  if (half == 0 && k == 0)
    c->kv_slot[s->k] = ascend_ring_take(&c->kv);
  if (loads_a(c, s) && k == 0)
    *a_slot = ascend_ring_take(a_ring(c, s));

  const int32_t l0 = ascend_ring_acquire(&c->l0);
  c->b_loads += with_b;
  const int32_t l0b = share ? c->b_loads % slots : l0;
  load_l0(c, s, *a_slot, c->kv_slot[s->k], l0, l0b, half, k, depth, with_b);
  ascend_ring_commit(&c->l0);
  if (frees_a(c, s) && k + depth == s->depth)
    ascend_ring_release(a_ring(c, s));
  if (half == s->halves - 1 && k + depth == s->depth)
    ascend_ring_release(&c->kv);

  const int32_t slot_bytes = ascend_l0_slot_bytes(&c->j->tiling);
  (void)ascend_ring_take(&c->l0);
  if (starts)
    c->acc[half] = ascend_ring_acquire(&c->l0c);
  npu_mmad_bf16(accumulator(c->acc[half]), NPU_L0A_AT(npu_bf16, (uint32_t)(l0 * slot_bytes)),
                NPU_L0B_AT(npu_bf16, (uint32_t)(l0b * slot_bytes)), half_rows(s, half), s->cols,
                depth, !starts);
  ascend_ring_release(&c->l0);
}

/* ---- FIX: accumulator -> global memory ---- */

/* Where C2 puts PV: flash keeps it apart, per block; amla and lazy add it to O, which the first
 * block of an item writes. */
static void store(cube *c, const step *s, int32_t half) {
  const ascend_job *j = c->j;
  const int64_t at = (int64_t)half * ASCEND_HALF_ROWS * ASCEND_BLOCK_KEYS + s->n * ASCEND_TILE_COLS;
  const int32_t rows = half_rows(s, half), height = ascend_ceil(rows, 16),
                add = j->mode != ASCEND_FLASH && !s->b->first;
  const int32_t waits = ascend_shares_s_and_pv(j) ? s->product == C1 && s->block > 0
                                                  : s->product == C2 && j->mode != ASCEND_FLASH;
  if (waits && s->n == 0 && half == 0)
    npu_cross_wait(NPU_PIPE_FIX, ASCEND_O_READY);
  NPU_L0C const float *src = accumulator(ascend_ring_take(&c->l0c));
  NPU_GM float *o = (ascend_shares_s_and_pv(j) ? j->s : j->o) +
                    ascend_slot(j, j->mode == ASCEND_FLASH ? s->block : s->b->item) + at;
  if (s->product == C1)
    npu_copy_l0c_gm_f32(j->s + ascend_slot(j, s->block) + at, src, rows, s->cols, ASCEND_BLOCK_KEYS,
                        height);
  else if (add)
    npu_copy_l0c_gm_add_f32(o, src, rows, s->cols, ASCEND_MAX_V, height);
  else
    npu_copy_l0c_gm_f32(o, src, rows, s->cols, ASCEND_MAX_V, height);
  ascend_ring_release(&c->l0c);
  if (s->n < s->n_tiles - 1 || half < s->halves - 1)
    return;
  if (s->product == C1)
    npu_cross_set(NPU_PIPE_FIX, ASCEND_S_READY);
  if (s->product == C2 && s->b->last)
    npu_cross_set(NPU_PIPE_FIX, ASCEND_O_DONE);
  if (s->product == C2 && !s->b->last && ascend_tells_pv_done(j))
    npu_cross_set(NPU_PIPE_FIX, ASCEND_PV_DONE);
}

/* ---- The program ---- */

/* One column tile, in the tiling's order: halves outermost, in the middle, or innermost. */
static void multiply_tile(cube *c, const cursor *at) {
  const int32_t order = c->j->tiling.order, n_pieces = step_at(c, at).k_pieces,
                halves = step_at(c, at).halves;
  const int32_t outer = order == ASCEND_STAGGER ? 1 : halves,
                inner = order == ASCEND_SHARE_B ? halves : 1;
  cursor piece = *at;
  for (int32_t h0 = 0; h0 < halves; h0 += outer)
    for (piece.k = 0; piece.k < n_pieces; piece.k++) {
      const step s = step_at(c, &piece);
      for (int32_t h1 = h0; h1 < h0 + outer; h1 += inner)
        for (int32_t k = 0; k < s.depth; k += s.k_l0)
          for (int32_t half = h1; half < h1 + inner; half++) {
            multiply(c, &s, half, k);
            if (s.k == n_pieces - 1 && k + s.k_l0 >= s.depth)
              ascend_ring_commit(&c->l0c), store(c, &s, half);
          }
    }
}

/* Loads are issued before the products that use them, and kv_slots pieces ahead; but not far into
 * the next product, whose A pieces wait for products not yet issued (slots, or P): behind them the
 * queue of 32 must not fill. */
static int may_load(cube *c, const cursor *load, const cursor *at, int32_t ahead) {
  if (at_end(c, load))
    return 0;
  if (load->trip == at->trip && load->product == at->product && load->n == at->n)
    return 1;
  if (ahead >= c->j->tiling.kv_slots)
    return 0;
  if (load->n > 0)
    return 1;
  const int32_t block = load->trip - c->j->tiling.lag,
                c1_issued = at->trip > block || (at->trip == block && at->product == C2);
  return load->k == 0 && (load->product == C1 || c1_issued) && c->j->h_q >= ASCEND_CHUNK_ROWS;
}

void ascend_cube(const void *args) {
  const ascend_job *j = (const ascend_job *)args;
  cube c;
  c.j = j, c.blocks = ascend_count_blocks(j), c.b_loads = 0;
  c.walk.known = c.walk.item = c.walk.block = 0;
  c.kv = ascend_ring_open(NPU_PIPE_MTE2, NPU_PIPE_MTE1, j->tiling.kv_slots, 0);
  c.p = ascend_ring_open(NPU_PIPE_MTE2, NPU_PIPE_MTE1, j->tiling.qp_slots, j->tiling.kv_slots);
  c.q = ascend_ring_open(NPU_PIPE_MTE2, NPU_PIPE_MTE1,
                         j->tiling.keep_q ? ascend_parts(j->d_qk, j->tiling.qk_l1) : 0,
                         j->tiling.kv_slots + j->tiling.qp_slots);
  c.l0 = ascend_ring_open(NPU_PIPE_MTE1, NPU_PIPE_M, j->tiling.l0_slots, 0);
  c.l0c = ascend_ring_open(NPU_PIPE_M, NPU_PIPE_FIX, 2, 0);

  cursor load = {0, first_product(&c), 0, 0}, at;
  skip_to_tile(&c, &load);
  at = load;
  for (int32_t ahead = 0; !at_end(&c, &at);) {
    for (; may_load(&c, &load, &at, ahead); ahead++)
      load_step(&c, &load), advance(&c, &load);
    multiply_tile(&c, &at);
    for (int32_t i = step_at(&c, &at).k_pieces; i > 0; i--, ahead--)
      advance(&c, &at);
  }

  ascend_ring_close(&c.kv), ascend_ring_close(&c.p), ascend_ring_close(&c.q),
      ascend_ring_close(&c.l0), ascend_ring_close(&c.l0c);
  if (j->n_merges > 0)
    npu_barrier_all();
}
