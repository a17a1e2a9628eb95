/* SPDX-License-Identifier: Apache-2.0
 *
 * The Hopper kernels (wgmma, TMA, mbarrier): everything but the places of Q and P, and who waits
 * for whom. Three warpgroups share the five steps of spec/amla.c and meet at barriers only:
 *
 *     warpgroup 2      1. scores, 2. reference, 3. P
 *     warpgroups 0, 1  4. rescale O, 5. PV: 256 columns of O each in registers; each brings the KV
 *                      columns that it has read last
 *
 * An item has 64 rows of Q. A key tile has 64 keys, in pieces of 64 columns with the 128-byte
 * swizzle. A shift of O is an exception that each warp of warpgroups 0 and 1 skips by one flag.
 *
 * The loops over the key tiles of an item are score_tiles and value_tiles. A schedule S is a
 * wgmma_shape and these: where P, Q and the next item lie (P, P_STEP, query_piece, query_at,
 * query_step, NEXT), how many tiles are asked for before Q is in registers (EARLY_TILES), and what
 * a warpgroup says or waits for between scores and P, and before PV (scores_are_done,
 * wait_for_turn): decode_wgmma2.cuh and decode_wgmma3.cuh. decode_wgmma16.cuh has its own loops and
 * these loads, items and barriers. docs/cuda-kernel.md has the budgets.
 */
#ifndef AMLA_WGMMA_STEPS_CUH
#define AMLA_WGMMA_STEPS_CUH

#include "decode_common.cuh"

namespace amla_kernel {

/* Behind a block's work: the item's first tile, whether it has a bad page, and the places [2]
 * {table index, token, page} from which its next keys come. */
enum { FIRST_TILE = WORK_BYTES, BAD_PAGE = FIRST_TILE + 4, CURSORS = BAD_PAGE + 4 };
enum { ITEM_BYTES = CURSORS + 2 * 12 };

/* Sizes, and where things lie in shared memory: STAGES key tiles from 0 on, then what the schedule
 * wants, then from SMALL on the rest. Pieces begin at multiples of 1024. */
template <bool F16_, int D_QK, int STAGES_, int SMALL> struct wgmma_shape {
  static constexpr int CLUSTER = 1; /* thread blocks that share keys; or 2 */
  static constexpr bool F16 = F16_;
  static constexpr int ROWS = 64, TILE = 64, THREADS = 384, STAGES = STAGES_;
  static constexpr int PIECES = D_QK / 64, STEPS = D_QK / 16; /* steps: 16 columns, one product */
  static constexpr int PIECE_BYTES = TILE * 128, STAGE_BYTES = PIECES * PIECE_BYTES;
  /* mbarriers */
  static constexpr int KV_FULL = SMALL;                   /* [STAGES][2]: halves of the columns */
  static constexpr int P_FULL = KV_FULL + STAGES * 2 * 8; /* [STAGES] */
  static constexpr int SCORED = P_FULL + STAGES * 8;      /* [STAGES]: Q K is done */
  static constexpr int EMPTY = SCORED + STAGES * 8;       /* [STAGES]: PV is done */
  /* words */
  static constexpr int SHIFTS = EMPTY + STAGES * 8;     /* [2][64] f32, of the rows */
  static constexpr int FACTORS = SHIFTS;                /* [64] f32, after the last shift */
  static constexpr int SHIFTED = SHIFTS + 2 * ROWS * 4; /* [2][4] flags, of the warps */
  static constexpr int LIMITS = SHIFTED + 2 * 16;       /* [64]: keys that the row sees */
  static constexpr int ITEM = LIMITS + ROWS * 4, FLAG = ITEM + ITEM_BYTES;
  static constexpr int SHARED_BYTES = FLAG + 4;
  static_assert(SHARED_BYTES <= 227 * 1024, "");
};

enum { BARRIER_VALUES = 1 }; /* named barriers of warpgroups 0 and 1: BARRIER_VALUES + warpgroup */

/* Tiles are counted through all items of the block; FIRST_TILE is the count where one begins. */
template <class S> AMLA_DEVICE int32_t stage_of(uint32_t tile) {
  return (int32_t)(tile % S::STAGES);
}
template <class S> AMLA_DEVICE uint32_t parity_of(uint32_t tile) { return tile / S::STAGES & 1; }

template <class S> AMLA_DEVICE uint32_t kv_piece(uint32_t shared, int32_t stage, int32_t piece) {
  return shared + (uint32_t)(stage * S::STAGE_BYTES + piece * S::PIECE_BYTES);
}
template <class S> AMLA_DEVICE uint32_t kv_full(uint32_t shared, int32_t stage, int32_t half) {
  return shared + S::KV_FULL + (uint32_t)(stage * 2 + half) * 8;
}
template <class S> AMLA_DEVICE uint32_t stage_empty(uint32_t shared, uint32_t tile) {
  return shared + S::EMPTY + 8 * (uint32_t)stage_of<S>(tile);
}
template <class S> AMLA_DEVICE uint32_t shifted_at(uint32_t shared, uint32_t tile, int32_t warp) {
  return shared + S::SHIFTED + ((tile & 1) * 4 + (uint32_t)warp) * 4;
}
template <class S> AMLA_DEVICE uint32_t scored(uint32_t shared, uint32_t tile) {
  return shared + S::SCORED + 8 * (uint32_t)stage_of<S>(tile);
}

AMLA_DEVICE uint64_t rows_descriptor(uint32_t at) { return matrix_descriptor(at, 16, 1024); }

/* A word of the item or its span, read again each time: registers are O's and the scores'. */
template <class S> AMLA_DEVICE int32_t item_word(uint32_t shared, uint32_t at) {
  return (int32_t)lds_u32(shared + S::ITEM + at);
}
enum {
  SEQUENCE = ITEM_AT,
  N_SPLITS = ITEM_AT + 12,
  PLACE = ITEM_AT + 16,
  FIRST_ROW = SPAN_AT,
  N_ROWS = SPAN_AT + 4,
  END = SPAN_AT + 8,
  COMMON = SPAN_AT + 12,
  TILE_BEGIN = SPAN_AT + 16,
  TILE_END = SPAN_AT + 20
};

/* Lane and warp of a thread within its warpgroup; row and first column of its half h (0, 1). */
struct position {
  int32_t lane, warp;
};
AMLA_DEVICE position where() { return {thread_id() & 31, thread_id() >> 5 & 3}; }
AMLA_DEVICE position where_again() { return {thread_id_again() & 31, thread_id_again() >> 5 & 3}; }
AMLA_DEVICE int32_t row_of(const position &at, int32_t h) {
  return 16 * at.warp + amla_cuda_fragment_row(at.lane, h);
}
/* Where ldmatrix and stmatrix want a lane of a warp's 16 rows, 16 * step columns into a piece. */
AMLA_DEVICE uint32_t fragment_at(const position &at, int32_t step) {
  return amla_cuda_swizzle((uint32_t)(16 * at.warp + (at.lane & 15)),
                           (uint32_t)(2 * step + (at.lane >> 4)), 128);
}

/* ---- Loads of keys: one thread of warpgroup 0 and one of warpgroup 1, each its columns ---- */

/* The table's entry of the next box on its way to the cursor, where boxes are tiles: none waits. */
AMLA_DEVICE void look_ahead(const amla_cuda_params &p, uint32_t words, uint32_t cursor) {
  if (p.page_size == 0 || p.page_size % 64 != 0)
    return;
  const int32_t index = amla_cuda_min((int32_t)lds_u32(cursor), p.max_pages - 1);
  const int64_t row = (int64_t)(int32_t)lds_u32(words + SEQUENCE) * p.max_pages;
  copy_async4(cursor + 8, p.block_table + row + index);
  copy_async_commit();
}

/* The first box of an item. From here on pages are walked without a division. */
template <class S>
AMLA_DEVICE void start_cursor(const amla_cuda_params &p, uint32_t words, int32_t warpgroup) {
  const int32_t key = (int32_t)lds_u32(words + TILE_BEGIN) * S::TILE;
  const uint32_t cursor = words + CURSORS + 12 * (uint32_t)warpgroup;
  sts_u32(cursor, (uint32_t)(p.page_size > 0 ? key / p.page_size : 0));
  sts_u32(cursor + 4, (uint32_t)(p.page_size > 0 ? key % p.page_size : key));
  look_ahead(p, words, cursor);
}

/* The page of the cursor's box; without pages, the sequence. Outside the map TMA fills in zeros. */
AMLA_DEVICE int32_t cursor_page(const amla_cuda_params &p, uint32_t words, uint32_t cursor,
                                int32_t box) {
  const int32_t sequence = (int32_t)lds_u32(words + SEQUENCE);
  if (p.page_size == 0)
    return sequence;
  copy_async_wait<0>();
  const int32_t *row = p.block_table + (int64_t)sequence * p.max_pages;
  const int32_t entry = box == 64 ? (int32_t)lds_u32(cursor + 8) : row[(int32_t)lds_u32(cursor)];
  const int32_t page = valid_page(p, entry);
  if (page < 0)
    sts_u32(words + BAD_PAGE, 1);
  return page;
}

/* In a cluster one thread block asks for the even pieces and the other one for the odd ones, for
 * both. */
template <class S>
AMLA_DEVICE void load_box(uint32_t to, const tensor_map *map, uint32_t full, int32_t piece,
                          int32_t slot, int32_t page) {
  if constexpr (S::CLUSTER == 1)
    tma_load(to, map, full, 64 * piece, slot, page);
  else if ((piece & 1) == cluster_rank())
    tma_load_both(to, map, full, 64 * piece, slot, page);
}

/* Brings a warpgroup's pieces of a tile, if the item at `words` has it. Boxes that no row sees stay
 * away. */
template <class S>
AMLA_DEVICE void load_pieces(const amla_cuda_params &p, const tensor_map *map, uint32_t shared,
                             uint32_t words, uint32_t tile, int32_t warpgroup) {
  const int32_t of_item = (int32_t)(tile - lds_u32(words + FIRST_TILE));
  const int32_t at = (int32_t)lds_u32(words + TILE_BEGIN) + of_item;
  if (at >= (int32_t)lds_u32(words + TILE_END))
    return;
  const int32_t box = amla_cuda_box_tokens(p.page_size); /* 16, 32 or 64 */
  const int32_t keys = amla_cuda_min((int32_t)lds_u32(words + END) - at * S::TILE, S::TILE);
  const int32_t first = 4 * warpgroup, last = warpgroup == 0 ? 4 : S::PIECES;
  const uint32_t full = kv_full<S>(shared, stage_of<S>(tile), warpgroup);
  const uint32_t cursor = words + CURSORS + 12 * (uint32_t)warpgroup;
  uint32_t to = kv_piece<S>(shared, stage_of<S>(tile), first);
  mbarrier_expect(full, (uint32_t)((keys + box - 1) & -box) * 128 * (uint32_t)(last - first));
#pragma unroll 1
  for (int32_t key = 0; key < keys; key += box, to += (uint32_t)box * 128) {
    const int32_t slot = (int32_t)lds_u32(cursor + 4);
    const int32_t page = cursor_page(p, words, cursor, box);
#pragma unroll 1
    for (int32_t i = first; i < last; i++)
      load_box<S>(to + (uint32_t)(i - first) * S::PIECE_BYTES, map, full, i, slot, page);
    const bool next = p.page_size > 0 && slot + box == p.page_size;
    sts_u32(cursor + 4, (uint32_t)(next ? 0 : slot + box));
    if (next)
      sts_u32(cursor, lds_u32(cursor) + 1);
  }
  look_ahead(p, words, cursor);
}

/* By warpgroup 2's first warp: the next item, and its first tiles as soon as PV has left their
 * stages, while this one is still at work. */
template <class S>
AMLA_DEVICE void take_next(const amla_cuda_params &p, const tensor_map *map, uint32_t shared,
                           uint32_t first_tile) {
  const uint32_t words = shared + S::NEXT;
  take_item(p, shared + S::ITEM, words);
  sync_warp();
  if ((thread_id() & 31) != 0 || !has_item(p, shared + S::ITEM))
    return;
  sts_u32(words + FIRST_TILE, first_tile);
  sts_u32(words + BAD_PAGE, 0);
#pragma unroll 1
  for (int32_t warpgroup = 0; warpgroup < 2; warpgroup++)
    start_cursor<S>(p, words, warpgroup);
#pragma unroll 1
  for (uint32_t i = 0; i < 2 * S::EARLY_TILES; i++) {
    const uint32_t tile = first_tile + i / 2;
    if (tile >= S::STAGES)
      mbarrier_wait(stage_empty<S>(shared, tile), parity_of<S>(tile - S::STAGES));
    load_pieces<S>(p, map, shared, words, tile, (int32_t)(i & 1));
  }
  copy_async_wait<0>(); /* others go on from here */
}

/* ---- Beginning and end of an item, by all threads ---- */

/* By one thread, before a barrier of the block. */
template <class S> AMLA_DEVICE void init_mbarriers(uint32_t shared) {
  for (uint32_t i = 0; i < S::STAGES * 2; i++)
    mbarrier_init(shared + S::KV_FULL + 8 * i, 1);
  for (uint32_t i = 0; i < S::STAGES; i++) {
    mbarrier_init(shared + S::P_FULL + 8 * i, 128);
    mbarrier_init(shared + S::SCORED + 8 * i, 128);
    mbarrier_init(shared + S::EMPTY + 8 * i, 2 * S::CLUSTER);
  }
  mbarrier_init_fence();
}

/* All thread blocks that the keys come to. */
template <class S> AMLA_DEVICE void sync_sharers() {
  if constexpr (S::CLUSTER == 1)
    sync_block();
  else
    sync_cluster();
}

template <class S> AMLA_DEVICE void init_block(const amla_cuda_params &p, uint32_t shared) {
  if (thread_id() < 32)
    start_finding(p, shared + S::ITEM);
  if (thread_id() == 0)
    init_mbarriers<S>(shared);
  sync_sharers<S>();
}

/* Eight elements of any alignment. */
AMLA_DEVICE vec4 load_eight(const amla_cuda_params &p, const uint16_t *from) {
  if (p.vector_q)
    return load_global(from);
  return {from[0] | (uint32_t)from[1] << 16, from[2] | (uint32_t)from[3] << 16,
          from[4] | (uint32_t)from[5] << 16, from[6] | (uint32_t)from[7] << 16};
}

/* Rows of any stride; rows past the last are zero. */
template <class S>
AMLA_DEVICE void load_queries_swizzled(const amla_cuda_params &p, uint32_t shared, const item &w,
                                       const span &s) {
  const uint32_t tile = (uint32_t)item_word<S>(shared, FIRST_TILE);
#pragma unroll 4
  for (int32_t i = thread_id_again(); i < S::ROWS * S::PIECES * 8; i += S::THREADS) {
    const int32_t row = i / (S::PIECES * 8), chunk = i % (S::PIECES * 8);
    vec4 v = {0, 0, 0, 0};
    if (row < s.n_rows) {
      const int64_t from = amla_cuda_q_offset(&p, w.sequence, s.first_row + row) + 8 * chunk;
      v = load_eight(p, (const uint16_t *)p.q + from);
    }
    sts_vec4(S::query_at(shared, tile, row, chunk), v);
  }
  fence_async_shared();
}

/* The next item and its Q in shared memory; false: none is left. */
template <class S> AMLA_DEVICE bool begin_item(const amla_cuda_params &p, uint32_t shared) {
  sync_block(); /* all have done with the item before, and the next one is known */
  if (!has_item(p, shared + S::ITEM))
    return false;
  const uint32_t at = 4 * (uint32_t)thread_id_again();
  if (at < ITEM_BYTES && (at < FINDER_AT || at >= WORK_BYTES))
    sts_u32(shared + S::ITEM + at, lds_u32(shared + S::NEXT + at));
  sync_block();
  const item w = read_item(shared + S::ITEM);
  const span s = read_span(shared + S::ITEM);
  if (thread_id() < S::ROWS)
    sts_u32(shared + S::LIMITS + 4 * (uint32_t)thread_id(),
            (uint32_t)row_limit(p, w.length, s, thread_id()));
  load_queries_swizzled<S>(p, shared, w, s);
  sync_block();
  return true;
}

template <class S> AMLA_DEVICE int32_t tiles_of_item(uint32_t shared) {
  return item_word<S>(shared, TILE_END) - item_word<S>(shared, TILE_BEGIN);
}

template <class S> AMLA_DEVICE void end_item(const amla_cuda_params &p, uint32_t shared) {
  const item w = read_item(shared + S::ITEM);
  const span s = read_span(shared + S::ITEM);
  if (w.n_splits > 1)
    arrive_and_merge(p, w, s, shared + S::FLAG);
}

/* All meet when an item's products are done: warpgroup 2, which takes the next item first, */
template <class S>
AMLA_DEVICE void meet_after_scores(const amla_cuda_params &p, const tensor_map *map,
                                   uint32_t shared, uint32_t next_tile) {
  if (thread_id() % 128 < 32)
    take_next<S>(p, map, shared, next_tile);
  sync_block(); /* every page has been looked up, every shift is done */
  if (item_word<S>(shared, N_SPLITS) > 1)
    wait_for_slot(p, item_word<S>(shared, PLACE));
}
/* and the others, which go on when the factors of O are there. */
template <class S> AMLA_DEVICE void meet_after_values(const amla_cuda_params &p, uint32_t shared) {
  copy_async_wait<0>(); /* what was looked ahead for */
  sync_block();
  if (item_word<S>(shared, N_SPLITS) > 1)
    wait_for_slot(p, item_word<S>(shared, PLACE));
  sync_block();
}

/* Where Q lies in a stage of the keys, everybody waits until it is in registers. */
template <class S> AMLA_DEVICE void sync_if_queries_in_stage() {
  if constexpr (S::EARLY_TILES < S::STAGES)
    sync_sharers<S>();
}

/* ---- Warpgroup 2: scores, reference, P ---- */

/* The first Q_STEPS steps of Q. */
template <class S>
AMLA_DEVICE void load_query_registers(uint32_t (&q)[S::Q_STEPS * 4], uint32_t shared,
                                      uint32_t tile) {
  const position at = where();
#pragma unroll
  for (int32_t i = 0; i < S::Q_STEPS; i++) {
    uint32_t part[4];
    ldmatrix(part, S::query_piece(shared, tile, i / 4) + fragment_at(at, i % 4));
#pragma unroll
    for (int32_t j = 0; j < 4; j++)
      q[4 * i + j] = part[j];
  }
}

/* 1. Scores of a tile, issued as two groups, one for each half of the columns. No branch stands
 * between the products of a group: ptxas would end the group there, and so wait for too much. */
template <class S>
AMLA_DEVICE void issue_scores(float (&s)[32], const uint32_t (&q)[S::Q_STEPS * 4], uint32_t shared,
                              uint32_t tile) {
  const int32_t stage = stage_of<S>(tile);
  pin(s);
#pragma unroll
  for (int32_t half = 0; half < 2; half++) {
    mbarrier_wait(kv_full<S>(shared, stage, half), parity_of<S>(tile));
    wgmma_fence();
#pragma unroll
    for (int32_t i = 16 * half; i < (half == 0 ? 16 : S::STEPS); i++) {
      const uint32_t at = kv_piece<S>(shared, stage, i / 4) + 32 * (uint32_t)(i % 4);
      const uint64_t keys = rows_descriptor(at);
      const uint32_t *a = q + 4 * (i < S::Q_STEPS ? i : 0);
      if (i < S::Q_STEPS)
        wgmma_scores_reg<S::F16>(s, a, keys, i != 0);
      else
        wgmma_scores<S::F16>(s, S::query_step(shared, i), keys, 1);
    }
    wgmma_commit();
  }
}

/* Scores to log2 units, hidden ones to -inf; a visible one that is not finite poisons the row's sum
 * of rounded P. `j` counts the item's tiles. */
template <class S>
AMLA_DEVICE void scale_and_hide(const amla_cuda_params &p, float (&s)[32], row_state (&r)[2],
                                uint32_t shared, int32_t j) {
  const int32_t first_key = (item_word<S>(shared, TILE_BEGIN) + j) * S::TILE;
#pragma unroll
  for (int32_t i = 0; i < 32; i++)
    s[i] *= p.scale_log2;
  if (first_key + S::TILE > item_word<S>(shared, COMMON)) { /* rare */
    const position at = where();
    int32_t limit[2];
#pragma unroll
    for (int32_t h = 0; h < 2; h++)
      limit[h] = (int32_t)lds_u32(shared + S::LIMITS + 4 * (uint32_t)row_of(at, h)) - first_key -
                 amla_cuda_fragment_column(at.lane, 0);
#pragma unroll
    for (int32_t i = 0; i < 32; i++) {
      row_state &row = r[i >> 1 & 1];
      const bool visible = amla_cuda_fragment_column(0, i / 2) + (i & 1) < limit[i >> 1 & 1];
      row.sum_rounded = fmaf(0.0f, visible ? s[i] : 0.0f, row.sum_rounded);
      if (!visible)
        s[i] = -INFINITY;
    }
  } else {
#pragma unroll
    for (int32_t i = 0; i < 32; i++)
      r[i >> 1 & 1].sum_rounded = fmaf(0.0f, s[i], r[i >> 1 & 1].sum_rounded);
  }
}

/* The largest score of row h of a thread, over the four lanes that share the row. */
AMLA_DEVICE float max_of_row(const float (&s)[32], int32_t h) {
  float m[2]; /* two chains of eight */
#pragma unroll
  for (int32_t i = 0; i < 2; i++) {
    m[i] = fmaxf(s[2 * h + i], s[2 * h + 4 + i]);
#pragma unroll
    for (int32_t k = 2; k < 8; k++)
      m[i] = fmaxf(m[i], s[4 * k + 2 * h + i]);
  }
  m[0] = fmaxf(m[0], m[1]);
  m[0] = fmaxf(m[0], shuffle_xor(m[0], 1));
  return fmaxf(m[0], shuffle_xor(m[0], 2));
}

/* 2. The reference of a thread's two rows. The shifts of O go to one of two buffers. */
template <class S>
AMLA_DEVICE void advance_rows(const amla_cuda_params &p, const float (&s)[32], row_state (&r)[2],
                              uint32_t shared, uint32_t tile) {
  const position at = where_again();
  bool shifted = false;
#pragma unroll
  for (int32_t h = 0; h < 2; h++) {
    const float shift = advance<S::F16>(r[h], max_of_row(s, h), p.flash != 0);
    const uint32_t row = (tile & 1) * S::ROWS + (uint32_t)row_of(at, h);
    shifted = shifted || shift != 0.0f;
    if ((at.lane & 3) == 0)
      sts_f32(shared + S::SHIFTS + 4 * row, shift);
  }
  shifted = vote(shifted) != 0;
  if (at.lane == 0)
    sts_u32(shifted_at<S>(shared, tile, at.warp), shifted);
}

/* 3. P, to its place of the tile's stage. */
template <class S>
AMLA_DEVICE void store_p(const float (&s)[32], row_state (&r)[2], uint32_t shared, uint32_t tile) {
  const int32_t stage = stage_of<S>(tile);
  const position at = where_again();
#pragma unroll
  for (int32_t c = 0; c < 4; c++) {
    uint32_t both[4];
#pragma unroll
    for (int32_t i = 0; i < 4; i++) {
      row_state &row = r[i & 1];
      const float x = exp2_approx(s[8 * c + 2 * i] - row.ref);
      const float y = exp2_approx(s[8 * c + 2 * i + 1] - row.ref);
      both[i] = pack<S::F16>(x, y);
      row.sum += x + y;
      row.sum_rounded += unpack_low<S::F16>(both[i]) + unpack_high<S::F16>(both[i]);
    }
    stmatrix(shared + S::P + (uint32_t)(stage * S::P_STEP) + fragment_at(at, c), both);
  }
  fence_async_shared();
  mbarrier_arrive(shared + S::P_FULL + 8 * (uint32_t)stage);
}

/* 2. and 3. of a tile whose scores are there. */
template <class S>
AMLA_DEVICE void make_p(const amla_cuda_params &p, float (&s)[32], row_state (&r)[2],
                        uint32_t shared, uint32_t tile, int32_t j) {
  if (tile >= 2) /* the shifts before the last ones have been read */
    mbarrier_wait(stage_empty<S>(shared, tile - 2), parity_of<S>(tile - 2));
  scale_and_hide<S>(p, s, r, shared, j);
  advance_rows<S>(p, s, r, shared, tile);
  store_p<S>(s, r, shared, tile);
}

/* P of a tile comes before the scores of the next one, whose keys may still be on their way. */
template <class S>
AMLA_DEVICE void score_tiles(const amla_cuda_params &p, row_state (&r)[2],
                             const uint32_t (&q)[S::Q_STEPS * 4], uint32_t shared, uint32_t tile,
                             int32_t n) {
  float s[32];
#pragma unroll
  for (int32_t i = 0; i < 32; i++)
    s[i] = 0.0f;
#pragma unroll 1
  for (int32_t j = 0; j < n; j++, tile++) {
    issue_scores<S>(s, q, shared, tile); /* 1. scores */
    wgmma_wait<0>();
    pin(s);
    S::scores_are_done(shared, tile);
    make_p<S>(p, s, r, shared, tile, j); /* 2. reference, 3. P */
  }
}

/* The item's end for a row of the block: its sums to the slot, or the factor of O and the LSE. */
template <class S>
AMLA_DEVICE void finish_row_of_item(const amla_cuda_params &p, const item &w, const span &s,
                                    row_state state, int32_t at, uint32_t shared) {
  const bool bad = item_word<S>(shared, BAD_PAGE) != 0;
  const int32_t row = s.first_row + at;
  state.sum = bad ? NAN : fmaf(0.0f, state.sum_rounded, state.sum); /* poisoned together */
  if (bad)
    state.sum_rounded = NAN;
  if (w.n_splits > 1) {
    float *refs = slot_refs(p, slot_of(p, w.place));
    refs[at] = state.ref;
    refs[p.block_rows + at] = state.sum;
    refs[2 * p.block_rows + at] = state.sum_rounded;
  } else {
    const row_result result = finish_row(p, row % p.h_q, state);
    sts_f32(shared + S::FACTORS + (uint32_t)at * 4, result.factor);
    store_lse(p, w, row, result.lse);
  }
}

template <class S>
AMLA_DEVICE void finish_rows(const amla_cuda_params &p, const row_state (&r)[2], uint32_t shared) {
  const item w = read_item(shared + S::ITEM);
  const span s = read_span(shared + S::ITEM);
  const position here = where();
#pragma unroll
  for (int32_t h = 0; h < 2; h++) {
    row_state state = r[h];
    state.sum += shuffle_xor(state.sum, 1);
    state.sum += shuffle_xor(state.sum, 2);
    state.sum_rounded += shuffle_xor(state.sum_rounded, 1);
    state.sum_rounded += shuffle_xor(state.sum_rounded, 2);
    const int32_t at = row_of(here, h);
    if ((here.lane & 3) == 0 && at < s.n_rows)
      finish_row_of_item<S>(p, w, s, state, at, shared);
  }
}

/* An item's part of warpgroup 2. */
template <class S>
AMLA_DEVICE void score_item(const amla_cuda_params &p, const tensor_map *map, uint32_t shared) {
  const uint32_t tile = (uint32_t)item_word<S>(shared, FIRST_TILE);
  const row_state unseen = {-1e30f, 0.0f, 0.0f}; /* a hidden score, -inf, less this is still -inf */
  row_state r[2] = {unseen, unseen};
  uint32_t q[S::Q_STEPS * 4];
  load_query_registers<S>(q, shared, tile);
  sync_if_queries_in_stage<S>();
  const int32_t n = tiles_of_item<S>(shared);
  if (n > 0)
    score_tiles<S>(p, r, q, shared, tile, n);
  meet_after_scores<S>(p, map, shared, tile + (uint32_t)n);
  finish_rows<S>(p, r, shared);
  sync_block();
  end_item<S>(p, shared);
}

/* ---- Warpgroups 0 and 1: rescale O, PV ---- */

/* A tile's keys in this warpgroup's columns, and its P. Of the last tile the keys that no row sees
 * become zero: their weight 0 must not meet a NaN. */
template <class S>
AMLA_DEVICE void wait_for_values(uint32_t shared, uint32_t tile, int32_t warpgroup) {
  const int32_t stage = stage_of<S>(tile);
  mbarrier_wait(kv_full<S>(shared, stage, warpgroup), parity_of<S>(tile));
  mbarrier_wait(shared + S::P_FULL + 8 * (uint32_t)stage, parity_of<S>(tile));
}
template <class S>
AMLA_DEVICE void clear_hidden(uint32_t shared, uint32_t tile, int32_t warpgroup, int32_t visible) {
  if (visible >= S::TILE)
    return;
  for (int32_t i = visible * 8 + (thread_id() & 127); i < S::TILE * 8; i += 128)
#pragma unroll
    for (int32_t j = 4 * warpgroup; j < 4 * warpgroup + 4; j++)
      sts_vec4(kv_piece<S>(shared, stage_of<S>(tile), j) + 16 * (uint32_t)i, vec4{0, 0, 0, 0});
  fence_async_shared();
  sync_named(BARRIER_VALUES + warpgroup, 128);
}

/* 4. Rescale O, if a row of this warp moves. */
template <class S>
AMLA_DEVICE void rescale(const amla_cuda_params &p, float (&o)[128], uint32_t shared,
                         uint32_t tile) {
  const position at = where();
  if (lds_u32(shifted_at<S>(shared, tile, at.warp)) == 0)
    return;
#pragma unroll
  for (int32_t h = 0; h < 2; h++) {
    const uint32_t row = (tile & 1) * S::ROWS + (uint32_t)row_of(at, h);
    const amla_cuda_factor f = factor_of(lds_f32(shared + S::SHIFTS + row * 4), p.flash != 0);
#pragma unroll
    for (int32_t i = 0; i < 128; i++)
      if ((i >> 1 & 1) == h)
        o[i] = o[i] * f.a * f.b;
  }
}

/* 5. O += P V, to its end. */
template <class S>
AMLA_DEVICE void add_values(float (&o)[128], uint32_t shared, uint32_t tile, int32_t warpgroup) {
  const int32_t stage = stage_of<S>(tile);
  const uint32_t weights = shared + S::P + (uint32_t)(stage * S::P_STEP);
  const uint32_t values = kv_piece<S>(shared, stage, 4 * warpgroup);
  pin(o);
  wgmma_fence();
#pragma unroll
  for (uint32_t k = 0; k < 4; k++)
    wgmma_output<S::F16>(o, rows_descriptor(weights + 32 * k),
                         matrix_descriptor(values + 2048 * k, S::PIECE_BYTES, 1024));
  wgmma_commit();
  wgmma_wait<0>();
  pin(o);
}

/* The tile's place is the next one's, once all four warps have read V and P. Where P lies on the
 * keys, warpgroup 1 brings the piece that it lies on, and the other warpgroup must have read P too.
 * In a cluster all four warpgroups must have left the tile. */
template <class S>
AMLA_DEVICE void leave_tile(const amla_cuda_params &p, const tensor_map *map, uint32_t shared,
                            uint32_t tile, int32_t warpgroup) {
  sync_named(BARRIER_VALUES + warpgroup, 128);
  if ((thread_id() & 127) != 0)
    return;
  mbarrier_arrive(stage_empty<S>(shared, tile));
  if constexpr (S::CLUSTER > 1)
    mbarrier_arrive_peer(stage_empty<S>(shared, tile));
  if (S::CLUSTER > 1 || (S::P < S::STAGES * S::STAGE_BYTES && warpgroup == 1))
    mbarrier_wait(stage_empty<S>(shared, tile), parity_of<S>(tile));
  load_pieces<S>(p, map, shared, shared + S::ITEM, tile + S::STAGES, warpgroup);
}

template <class S>
AMLA_DEVICE void value_tiles(const amla_cuda_params &p, const tensor_map *map, float (&o)[128],
                             uint32_t shared, uint32_t tile, int32_t warpgroup) {
  const span s = read_span(shared + S::ITEM);
  const uint32_t last = tile + (uint32_t)(s.tile_end - s.tile_begin);
  int32_t visible = s.end - s.tile_begin * S::TILE; /* keys from this tile on that a row sees */
#pragma unroll 1
  for (; tile != last; tile++, visible -= S::TILE) {
    wait_for_values<S>(shared, tile, warpgroup);
    if (tile + 1 != last)
      S::wait_for_turn(shared, tile);
    clear_hidden<S>(shared, tile, warpgroup, visible);
    rescale<S>(p, o, shared, tile);            /* 4. rescale O */
    add_values<S>(o, shared, tile, warpgroup); /* 5. PV */
    leave_tile<S>(p, map, shared, tile, warpgroup);
  }
}

/* Row r of O, half h of a thread's registers. */
template <class S>
AMLA_DEVICE void store_row(const amla_cuda_params &p, const float (&o)[128], uint32_t shared,
                           int32_t r, int32_t column, int32_t h) {
  if (item_word<S>(shared, N_SPLITS) > 1) {
    float *part = slot_o(p, slot_of(p, item_word<S>(shared, PLACE)), r) + column;
#pragma unroll
    for (int32_t n = 0; n < 32; n++)
      store_f32x2(part + 8 * n, o[4 * n + 2 * h], o[4 * n + 2 * h + 1]);
  } else {
    const float f = lds_f32(shared + S::FACTORS + (uint32_t)r * 4);
    const int32_t row = item_word<S>(shared, FIRST_ROW) + r;
    const int64_t at = amla_cuda_out_offset(&p, item_word<S>(shared, SEQUENCE), row) + column;
#pragma unroll
    for (int32_t n = 0; n < 32; n++)
      store_pair(p, at + 8 * n, times(o[4 * n + 2 * h], f), times(o[4 * n + 2 * h + 1], f));
  }
}

/* O of 16 bits to whole rows: each warp its 16 rows, through shared memory where Q was. Half a row
 * of the block is 32 x 16 bytes there, turned by its number, so that eight rows lie in eight bank
 * groups, and goes to its place in two parts. */
template <bool F16>
AMLA_DEVICE void stage_rows(const float (&o)[128], const float (&f)[2], uint32_t to,
                            const position &at) {
  const uint32_t row = (uint32_t)(16 * at.warp + (at.lane & 15));
#pragma unroll
  for (int32_t n = 0; n < 32; n += 2) {
    uint32_t both[4];
#pragma unroll
    for (int32_t i = 0; i < 4; i++) {
      const float *pair = o + 4 * (n + i / 2) + 2 * (i & 1);
      both[i] = pack<F16>(times(pair[0], f[i & 1]), times(pair[1], f[i & 1]));
    }
    stmatrix(to + row * 512 + ((uint32_t)(n + (at.lane >> 4)) + row) % 32 * 16, both);
  }
}
template <class S>
AMLA_DEVICE void store_rows_in_bulk(const amla_cuda_params &p, const float (&o)[128],
                                    uint32_t shared, int32_t warpgroup) {
  const position at = where_again();
  const int32_t next = item_word<S>(shared, FIRST_TILE) + tiles_of_item<S>(shared);
  const uint32_t place = S::query_piece(shared, (uint32_t)next, 4 * warpgroup);
  float f[2];
#pragma unroll
  for (int32_t h = 0; h < 2; h++)
    f[h] = lds_f32(shared + S::FACTORS + (uint32_t)row_of(at, h) * 4);
  if (p.out_type == AMLA_F16)
    stage_rows<true>(o, f, place, at);
  else
    stage_rows<false>(o, f, place, at);
  fence_async_shared();
  sync_warp();
  const int32_t r = 16 * at.warp + at.lane;
  if (at.lane < 16 && r < item_word<S>(shared, N_ROWS)) {
    const int32_t row = item_word<S>(shared, FIRST_ROW) + r;
    uint16_t *to = (uint16_t *)p.out + 256 * warpgroup +
                   amla_cuda_out_offset(&p, item_word<S>(shared, SEQUENCE), row);
    const uint32_t from = place + (uint32_t)r * 512, turn = (uint32_t)r % 32 * 16;
    bulk_store(to, from + turn, 512 - turn);
    if (turn > 0)
      bulk_store(to + (512 - turn) / 2, from, turn);
    bulk_wait_read(); /* before Q of the next item comes there */
  }
}

template <class S>
AMLA_DEVICE void store_values(const amla_cuda_params &p, const float (&o)[128], uint32_t shared,
                              int32_t warpgroup) {
  if (p.bulk_out && item_word<S>(shared, N_SPLITS) == 1)
    return store_rows_in_bulk<S>(p, o, shared, warpgroup);
  const position at = where_again();
#pragma unroll
  for (int32_t h = 0; h < 2; h++) {
    const int32_t r = row_of(at, h);
    const int32_t column = 256 * warpgroup + amla_cuda_fragment_column(at.lane, h);
    if (r < item_word<S>(shared, N_ROWS))
      store_row<S>(p, o, shared, r, column, h);
  }
}

/* An item's part of warpgroups 0 and 1. */
template <class S>
AMLA_DEVICE void value_item(const amla_cuda_params &p, const tensor_map *map, uint32_t shared,
                            int32_t warpgroup) {
  const uint32_t tile = (uint32_t)item_word<S>(shared, FIRST_TILE);
  sync_if_queries_in_stage<S>();
  if (thread_id() % 128 == 0)
    for (uint32_t i = S::EARLY_TILES; i < S::STAGES; i++)
      load_pieces<S>(p, map, shared, shared + S::ITEM, tile + i, warpgroup);
  float o[128];
#pragma unroll
  for (int32_t i = 0; i < 128; i++)
    o[i] = 0.0f;
  value_tiles<S>(p, map, o, shared, tile, warpgroup);
  meet_after_values<S>(p, shared);
  store_values<S>(p, o, shared, warpgroup);
  end_item<S>(p, shared);
}

/* ---- The kernel ---- */

template <class S> AMLA_DEVICE void decode_wgmma(const amla_cuda_params &p, const tensor_map *map) {
  const uint32_t shared = shared_base();
  const int32_t warpgroup = warpgroup_id();
  init_block<S>(p, shared);
  if (warpgroup == 2) {
    registers_up<184>();
    if (thread_id() % 128 < 32)
      take_next<S>(p, map, shared, 0);
    while (begin_item<S>(p, shared))
      score_item<S>(p, map, shared);
  } else {
    registers_down<160>();
    while (begin_item<S>(p, shared))
      value_item<S>(p, map, shared, warpgroup);
  }
  help_to_merge(p, shared + S::ITEM);
  if constexpr (S::CLUSTER > 1)
    sync_cluster(); /* the other one may still arrive here */
}

} // namespace amla_kernel
#endif
