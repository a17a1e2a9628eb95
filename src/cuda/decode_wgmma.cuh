/* SPDX-License-Identifier: Apache-2.0
 *
 * Decode attention with warpgroup matrices (wgmma, TMA, mbarrier): Hopper. The five steps of spec/amla.c in their order, divided between
 * three warpgroups that meet only at barriers:
 *
 *     warpgroup 2      1. scores, 2. reference, 3. P: two tiles of scores in registers by turns, P to one of two buffers
 *     warpgroups 0, 1  4. rescale O, 5. PV: 256 columns of O each in registers; each brings the KV columns it has read last
 *
 * An item has 64 rows of Q: Q_REGS of its 64 x 64 tiles stay in registers of warpgroup 2, and P lies where the first two of them were. A
 * KV tile has 64 keys, in 64-column pieces with the 128-byte swizzle, two tiles deep. A shift of O is an exception that each warp of
 * warpgroups 0 and 1 skips by one flag. docs/cuda-kernel.md has the budgets.
 */
#ifndef AMLA_DECODE_WGMMA_CUH
#define AMLA_DECODE_WGMMA_CUH

#include "decode_common.cuh"

namespace amla_kernel {

template <bool F16_, int D_QK_> struct wgmma_shape {
  static constexpr bool F16 = F16_;
  static constexpr int ROWS = 64, TILE = 64, D_QK = D_QK_, THREADS = 384, STAGES = 2;
  static constexpr int PIECES = D_QK / 64, PIECE_BYTES = 64 * 128; /* 64 keys or rows x 64 elements */
  static constexpr int Q_REGS = 4;                                 /* more than 5 spill; at least 2, where P goes */
  /* shared memory; pieces begin at multiples of 1024 */
  static constexpr int Q = 0, P = Q, KV = Q + PIECES * PIECE_BYTES, BARRIERS = KV + STAGES * PIECES * PIECE_BYTES;
  static constexpr int KV_FULL = BARRIERS, P_FULL = KV_FULL + STAGES * PIECES * 8, P_EMPTY = P_FULL + STAGES * 8;
  static constexpr int SHIFTS = P_EMPTY + STAGES * 8; /* [STAGES][64] f32, of the rows */
  static constexpr int SHIFTED = SHIFTS + STAGES * ROWS * 4; /* [STAGES][4] flags, of the warps */
  static constexpr int FACTORS = SHIFTED + STAGES * 16;      /* [64] f32 */
  static constexpr int ITEM = FACTORS + ROWS * 4, FLAG = ITEM + WORK_BYTES, BAD_PAGE = FLAG + 4, FIRST_TILE = BAD_PAGE + 4, SHARED_BYTES = FIRST_TILE + 4;
  static_assert(Q_REGS >= STAGES && SHARED_BYTES <= 227 * 1024, "");
};

template <class S> AMLA_DEVICE uint32_t kv_piece(uint32_t shared, int32_t stage, int32_t piece) {
  return shared + S::KV + (uint32_t)(stage * S::PIECES + piece) * S::PIECE_BYTES;
}
template <class S> AMLA_DEVICE uint32_t kv_full(uint32_t shared, int32_t stage, int32_t piece) {
  return shared + S::KV_FULL + (uint32_t)(stage * S::PIECES + piece) * 8;
}

/* Tiles are counted through all items of the block; FIRST_TILE is the count at the first of the item. */
AMLA_DEVICE int32_t stage_of(uint32_t tile) { return (int32_t)(tile & 1); }
AMLA_DEVICE uint32_t parity_of(uint32_t tile) { return tile >> 1 & 1; }

enum { BARRIER_VALUES = 1 }; /* named barriers of warpgroups 0 and 1: BARRIER_VALUES + warpgroup */

/* ---- Beginning and end of an item, by all threads; the loads ---- */

template <class S> AMLA_DEVICE void init_barriers(const amla_cuda_params &p, uint32_t shared) {
  if (thread_id() < 32) start_finding(p, shared + S::ITEM);
  if (thread_id() == 0) {
    sts_u32(shared + S::FIRST_TILE, 0);
    for (int32_t i = 0; i < S::STAGES * S::PIECES; i++) mbarrier_init(shared + S::KV_FULL + 8 * (uint32_t)i, 1);
    for (int32_t i = 0; i < S::STAGES; i++) {
      mbarrier_init(shared + S::P_FULL + 8 * (uint32_t)i, 128);
      mbarrier_init(shared + S::P_EMPTY + 8 * (uint32_t)i, 2);
    }
    mbarrier_init_fence();
  }
  sync_block();
}

/* Rows of any stride and alignment; rows past the last are zero. */
template <class S> AMLA_DEVICE void load_queries_swizzled(const amla_cuda_params &p, uint32_t shared, const item &w, const span &s) {
#pragma unroll 4
  for (int32_t i = thread_id_again(); i < S::ROWS * S::PIECES * 8; i += S::THREADS) {
    const int32_t row = i / (S::PIECES * 8), chunk = i % (S::PIECES * 8);
    vec4 v = {0, 0, 0, 0};
    if (row < s.n_rows) {
      const uint16_t *from = (const uint16_t *)p.q + amla_cuda_q_offset(&p, w.sequence, s.first_row + row) + 8 * chunk;
      if (p.vector_q) v = load_global(from);
      else v = {from[0] | (uint32_t)from[1] << 16, from[2] | (uint32_t)from[3] << 16, from[4] | (uint32_t)from[5] << 16, from[6] | (uint32_t)from[7] << 16};
    }
    sts_vec4(shared + S::Q + (uint32_t)(chunk / 8) * S::PIECE_BYTES + amla_cuda_swizzle((uint32_t)row, (uint32_t)(chunk % 8), 128), v);
  }
  fence_async_shared();
}

/* Brings a warpgroup's pieces of a tile, if the item has it, box by box; by one thread. Boxes that no row sees are left out. */
template <class S> AMLA_DEVICE void load_pieces(const amla_cuda_params &p, const tensor_map *map, uint32_t shared, uint32_t tile, int32_t warpgroup) {
  const int32_t first = 4 * warpgroup, last = warpgroup == 0 ? 4 : S::PIECES;
  const span s = read_span(shared + S::ITEM);
  const int32_t at = s.tile_begin + (int32_t)(tile - lds_u32(shared + S::FIRST_TILE));
  if (at >= s.tile_end) return;
  const int32_t first_key = at * S::TILE, sequence = (int32_t)lds_u32(shared + S::ITEM); /* the item's first word */
  const int32_t box = amla_cuda_box_tokens(p.page_size), end = first_key + amla_cuda_min(s.end - first_key, S::TILE), stage = stage_of(tile);
#pragma unroll 1
  for (int32_t i = first; i < last; i++) mbarrier_expect(kv_full<S>(shared, stage, i), (uint32_t)(amla_cuda_ceil_div(end - first_key, box) * box) * 128);
#pragma unroll 1
  for (int32_t key = first_key; key < end; key += box) {
    const int32_t page = page_of(p, sequence, key), slot = p.page_size > 0 ? key % p.page_size : key;
    if (page < 0) sts_u32(shared + S::BAD_PAGE, 1); /* the map fills in zeros there */
#pragma unroll 1
    for (int32_t i = first; i < last; i++)
      tma_load(kv_piece<S>(shared, stage, i) + (uint32_t)(key - first_key) * 128, map, kv_full<S>(shared, stage, i), 64 * i, slot, page);
  }
}

/* The next item and its Q, in shared memory, and its first tiles on their way; false: none is left. */
template <class S> AMLA_DEVICE bool begin_item(const amla_cuda_params &p, const tensor_map *map, uint32_t shared, int32_t warpgroup) {
  sync_block(); /* all have done with the item before */
  if (thread_id() < 32) take_item(p, shared + S::ITEM);
  if (thread_id() == 32) sts_u32(shared + S::BAD_PAGE, 0);
  sync_block();
  const item w = read_item(shared + S::ITEM);
  if (w.n_splits == 0) return false;
  if (warpgroup < 2 && (thread_id() & 127) == 0)
    for (uint32_t i = 0; i < S::STAGES; i++) load_pieces<S>(p, map, shared, lds_u32(shared + S::FIRST_TILE) + i, warpgroup);
  load_queries_swizzled<S>(p, shared, w, read_span(shared + S::ITEM));
  sync_block();
  return true;
}

template <class S> AMLA_DEVICE void end_item(const amla_cuda_params &p, uint32_t shared, const item &w, const span &s) {
  if (w.n_splits > 1) arrive_and_merge(p, w, s, shared + S::FLAG, S::THREADS);
}

/* ---- Warpgroup 2: scores, reference, P ---- */

/* 1. Scores of one tile, issued. */
template <class S> AMLA_DEVICE void issue_scores(float (&s)[32], const uint32_t (&q)[S::Q_REGS * 16], uint32_t shared, uint32_t tile) {
  const int32_t stage = stage_of(tile);
  pin(s);
#pragma unroll
  for (int32_t i = 0; i < S::PIECES; i++) {
    mbarrier_wait(kv_full<S>(shared, stage, i), parity_of(tile));
    wgmma_fence();
#pragma unroll
    for (int32_t k = 0; k < 4; k++) {
      const uint64_t keys = matrix_descriptor(kv_piece<S>(shared, stage, i) + 32 * (uint32_t)k, 16, 1024);
      if (i < S::Q_REGS) wgmma_scores_reg<S::F16>(s, q + (i < S::Q_REGS ? 16 * i + 4 * k : 0), keys, (i | k) != 0);
      else wgmma_scores<S::F16>(s, matrix_descriptor(shared + S::Q + (uint32_t)i * S::PIECE_BYTES + 32 * (uint32_t)k, 16, 1024), keys, (i | k) != 0);
    }
  }
  wgmma_commit();
}

/* What a thread of warpgroup 2 knows of its two rows; the sums are over its own columns until the end. */
struct score_rows {
  row_state state[2];
};

/* Scores to log2 units, hidden ones to -inf; `poison` becomes NaN where a visible one is not finite. */
template <class S> AMLA_DEVICE void scale_and_hide(const amla_cuda_params &p, float (&s)[32], uint32_t shared, int32_t j, float (&max)[2], float (&poison)[2]) {
  const int32_t lane = thread_id() & 31, warp = thread_id() >> 5 & 3;
  const int32_t first_key = ((int32_t)lds_u32(shared + S::ITEM + SPAN_AT + 16) + j) * S::TILE, common = (int32_t)lds_u32(shared + S::ITEM + SPAN_AT + 12);
#pragma unroll
  for (int32_t i = 0; i < 32; i++) s[i] *= p.scale_log2;
  if (first_key + S::TILE > common) { /* rare; the item is read again, as registers are the scores' */
    const item w = read_item(shared + S::ITEM);
    const span sp = read_span(shared + S::ITEM);
    int32_t limit[2];
#pragma unroll
    for (int32_t h = 0; h < 2; h++) limit[h] = row_limit(p, w.length, sp, 16 * warp + amla_cuda_fragment_row(lane, h)) - first_key;
#pragma unroll
    for (int32_t i = 0; i < 32; i++) {
      const bool visible = amla_cuda_fragment_column(lane, i / 2) + (i & 1) < limit[i >> 1 & 1];
      poison[i >> 1 & 1] = fmaf(0.0f, visible ? s[i] : 0.0f, poison[i >> 1 & 1]);
      if (!visible) s[i] = -INFINITY;
    }
  } else {
#pragma unroll
    for (int32_t i = 0; i < 32; i++) poison[i >> 1 & 1] = fmaf(0.0f, s[i], poison[i >> 1 & 1]);
  }
#pragma unroll
  for (int32_t i = 0; i < 32; i++) max[i >> 1 & 1] = fmaxf(max[i >> 1 & 1], s[i]);
}

/* 2. and 3. of a tile whose scores are there: P and the shifts to the stage's buffers. */
template <class S> AMLA_DEVICE void compute_p(const amla_cuda_params &p, float (&s)[32], score_rows &r, uint32_t shared, uint32_t first_tile, int32_t j) {
  const uint32_t tile = first_tile + (uint32_t)j;
  const int32_t lane = thread_id() & 31, warp = thread_id() >> 5 & 3, stage = stage_of(tile);
  float max[2] = {-INFINITY, -INFINITY}, poison[2] = {0.0f, 0.0f}, shift[2], ref[2];
  scale_and_hide<S>(p, s, shared, j, max, poison);
#pragma unroll
  for (int32_t h = 0; h < 2; h++) {
    max[h] = fmaxf(max[h], shuffle_xor(max[h], 1));
    max[h] = fmaxf(max[h], shuffle_xor(max[h], 2));
    shift[h] = advance<S::F16>(r.state[h], max[h], p.flash != 0);
    ref[h] = r.state[h].ref == -INFINITY ? 0.0f : r.state[h].ref; /* nothing seen yet: every score is -inf, and 2^(-inf) is wanted */
    r.state[h].sum += poison[h];
    r.state[h].sum_rounded += poison[h];
  }
  const bool shifted = vote(shift[0] != 0.0f || shift[1] != 0.0f) != 0;

  /* True already while KV has as many stages as P: these keys came after PV of that tile. Said all the same, as a load orders nothing. */
  mbarrier_wait(shared + S::P_EMPTY + 8 * (uint32_t)stage, parity_of(tile) ^ 1);
  if ((lane & 3) == 0)
    for (int32_t h = 0; h < 2; h++) sts_f32(shared + S::SHIFTS + (uint32_t)(stage * S::ROWS + 16 * warp + amla_cuda_fragment_row(lane, h)) * 4, shift[h]);
  if (lane == 0) sts_u32(shared + S::SHIFTED + (uint32_t)(stage * 4 + warp) * 4, shifted);
#pragma unroll
  for (int32_t c = 0; c < 4; c++) {
    uint32_t both[4];
#pragma unroll
    for (int32_t i = 0; i < 4; i++) {
      const float x = exp2_approx(s[8 * c + 2 * i] - ref[i & 1]), y = exp2_approx(s[8 * c + 2 * i + 1] - ref[i & 1]);
      both[i] = pack<S::F16>(x, y);
      r.state[i & 1].sum += x + y;
      r.state[i & 1].sum_rounded += unpack_low<S::F16>(both[i]) + unpack_high<S::F16>(both[i]);
    }
    stmatrix(shared + S::P + (uint32_t)stage * S::PIECE_BYTES + amla_cuda_swizzle((uint32_t)(16 * warp + (lane & 15)), (uint32_t)(2 * c + (lane >> 4)), 128), both);
  }
  fence_async_shared();
  mbarrier_arrive(shared + S::P_FULL + 8 * (uint32_t)stage);
}

template <class S> AMLA_DEVICE void finish_rows(const amla_cuda_params &p, const item &w, const span &s, score_rows &r, uint32_t shared) {
  const int32_t lane = thread_id() & 31, warp = thread_id() >> 5 & 3;
  const bool bad = lds_u32(shared + S::BAD_PAGE) != 0;
#pragma unroll
  for (int32_t h = 0; h < 2; h++) {
    row_state state = r.state[h];
    state.sum += shuffle_xor(state.sum, 1);
    state.sum += shuffle_xor(state.sum, 2);
    state.sum_rounded += shuffle_xor(state.sum_rounded, 1);
    state.sum_rounded += shuffle_xor(state.sum_rounded, 2);
    if (bad) state.sum = state.sum_rounded = NAN;
    const int32_t at = 16 * warp + amla_cuda_fragment_row(lane, h), row = s.first_row + at;
    if ((lane & 3) != 0 || at >= s.n_rows) continue;
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
}

/* Two tiles of scores by turns: while one is in the making, P of the other is computed. */
template <class S>
AMLA_DEVICE void score_tiles(const amla_cuda_params &p, score_rows &r, const uint32_t (&q)[S::Q_REGS * 16], uint32_t shared, uint32_t tile, int32_t n) {
  float s0[32], s1[32];
#pragma unroll
  for (int32_t i = 0; i < 32; i++) s0[i] = s1[i] = 0.0f;
  auto finish = [&](float (&s)[32], int32_t j) {
    pin(s);
    compute_p<S>(p, s, r, shared, tile, j);
  };
  issue_scores<S>(s0, q, shared, tile);
  int32_t j = 0;
#pragma unroll 1
  for (; j + 2 < n; j += 2) {
    issue_scores<S>(s1, q, shared, tile + (uint32_t)j + 1);
    wgmma_wait<1>();
    finish(s0, j);
    issue_scores<S>(s0, q, shared, tile + (uint32_t)j + 2);
    wgmma_wait<1>();
    finish(s1, j + 1);
  }
  if (j + 1 < n) {
    issue_scores<S>(s1, q, shared, tile + (uint32_t)j + 1);
    wgmma_wait<1>();
    finish(s0, j);
    wgmma_wait<0>();
    finish(s1, j + 1);
  } else {
    wgmma_wait<0>();
    finish(s0, j);
  }
}

/* An item's part of warpgroup 2. The item is read again at the end, to leave registers to the loop. */
template <class S> AMLA_DEVICE void score_item(const amla_cuda_params &p, uint32_t shared) {
  const int32_t lane = thread_id() & 31, warp = thread_id() >> 5 & 3;
  const span sp = read_span(shared + S::ITEM);
  const int32_t n = sp.tile_end - sp.tile_begin;
  score_rows r = {{empty_row(), empty_row()}};
  uint32_t q[S::Q_REGS * 16]; /* a warp reads the rows that it will overwrite with P: no barrier */
#pragma unroll
  for (int32_t i = 0; i < S::Q_REGS * 4; i++) {
    uint32_t part[4];
    ldmatrix(part, shared + S::Q + (uint32_t)(i / 4) * S::PIECE_BYTES + amla_cuda_swizzle((uint32_t)(16 * warp + (lane & 15)), (uint32_t)(i % 4 * 2 + (lane >> 4)), 128));
#pragma unroll
    for (int32_t j = 0; j < 4; j++) q[4 * i + j] = part[j];
  }
  const uint32_t tile = lds_u32(shared + S::FIRST_TILE);
  if (n > 0) score_tiles<S>(p, r, q, shared, tile, n);
  sync_block(); /* every page has been looked up */
  if (thread_id() % 128 == 0) sts_u32(shared + S::FIRST_TILE, tile + (uint32_t)n);
  const item again = read_item(shared + S::ITEM);
  const span span_again = read_span(shared + S::ITEM);
  if (again.n_splits > 1) wait_for_slot(p, again.place);
  finish_rows<S>(p, again, span_again, r, shared);
  sync_block();
  end_item<S>(p, shared, again, span_again);
}

/* ---- Warpgroups 0 and 1: rescale O, PV ---- */

/* Keys that no row sees are zero in V: their weight 0 must not meet a NaN. By a warpgroup, in its four pieces. */
template <class S> AMLA_DEVICE void clear_values(uint32_t shared, int32_t stage, int32_t first_piece, int32_t first_key_hidden, int32_t barrier) {
  for (int32_t i = first_key_hidden * 8 + (thread_id() & 127); i < 64 * 8; i += 128)
#pragma unroll
    for (int32_t piece = 0; piece < 4; piece++) sts_vec4(kv_piece<S>(shared, stage, first_piece + piece) + 16 * (uint32_t)i, vec4{0, 0, 0, 0});
  fence_async_shared();
  sync_named(barrier, 128);
}

/* 4. Rescale O. */
template <class S> AMLA_DEVICE void rescale(const amla_cuda_params &p, float (&o)[128], uint32_t shared, int32_t stage) {
  const int32_t lane = thread_id() & 31, warp = thread_id() >> 5 & 3;
#pragma unroll
  for (int32_t h = 0; h < 2; h++) {
    const float shift = lds_f32(shared + S::SHIFTS + (uint32_t)(stage * S::ROWS + 16 * warp + amla_cuda_fragment_row(lane, h)) * 4);
    const amla_cuda_factor f = factor_of(shift, p.flash != 0);
#pragma unroll
    for (int32_t i = 0; i < 128; i++)
      if ((i >> 1 & 1) == h) o[i] = o[i] * f.a * f.b;
  }
}

/* 5. O += P V. */
template <class S> AMLA_DEVICE void add_values(float (&o)[128], uint32_t shared, int32_t stage, int32_t first_piece) {
  pin(o);
  wgmma_fence();
#pragma unroll
  for (int32_t k = 0; k < 4; k++)
    wgmma_output<S::F16>(o, matrix_descriptor(shared + S::P + (uint32_t)stage * S::PIECE_BYTES + 32 * (uint32_t)k, 16, 1024),
                         matrix_descriptor(kv_piece<S>(shared, stage, first_piece) + 2048 * (uint32_t)k, S::PIECE_BYTES, 1024));
  wgmma_commit();
  wgmma_wait<0>();
  pin(o);
}

template <class S> AMLA_DEVICE void store_values(const amla_cuda_params &p, const item &w, const span &s, const float (&o)[128], uint32_t shared, int32_t warpgroup) {
  const int32_t lane = thread_id() & 31, warp = thread_id() >> 5 & 3;
#pragma unroll
  for (int32_t h = 0; h < 2; h++) {
    const int32_t r = 16 * warp + amla_cuda_fragment_row(lane, h), column = 256 * warpgroup + amla_cuda_fragment_column(lane, h);
    if (r >= s.n_rows) continue;
    if (w.n_splits > 1) {
      float *part = slot_o(p, slot_of(p, w.place), r) + column;
#pragma unroll
      for (int32_t n = 0; n < 32; n++) part[8 * n] = o[4 * n + 2 * h], part[8 * n + 1] = o[4 * n + 2 * h + 1];
    } else {
      const float factor = lds_f32(shared + S::FACTORS + (uint32_t)r * 4);
      const int64_t at = amla_cuda_out_offset(&p, w.sequence, s.first_row + r) + column;
#pragma unroll
      for (int32_t n = 0; n < 32; n++) store_pair(p, at + 8 * n, times(o[4 * n + 2 * h], factor), times(o[4 * n + 2 * h + 1], factor));
    }
  }
}

/* An item's part of warpgroups 0 and 1. The item is read again where it is needed, to leave registers to O. */
template <class S> AMLA_DEVICE void value_item(const amla_cuda_params &p, const tensor_map *map, uint32_t shared, int32_t warpgroup) {
  const int32_t t = thread_id() & 127, warp = t >> 5, first_piece = 4 * warpgroup;
  uint32_t tile = lds_u32(shared + S::FIRST_TILE), last;
  int32_t visible; /* keys from this tile on that some row sees */
  {
    const span s = read_span(shared + S::ITEM);
    last = tile + (uint32_t)(s.tile_end - s.tile_begin);
    visible = s.end - s.tile_begin * S::TILE;
  }
  float o[128];
#pragma unroll
  for (int32_t i = 0; i < 128; i++) o[i] = 0.0f;
#pragma unroll 1
  for (; tile != last; tile++, visible -= S::TILE) {
    const int32_t stage = stage_of(tile);
#pragma unroll 1
    for (int32_t i = 0; i < 4; i++) mbarrier_wait(kv_full<S>(shared, stage, first_piece + i), parity_of(tile));
    mbarrier_wait(shared + S::P_FULL + 8 * (uint32_t)stage, parity_of(tile));
    if (visible < S::TILE) clear_values<S>(shared, stage, first_piece, visible, BARRIER_VALUES + warpgroup);
    if (lds_u32(shared + S::SHIFTED + (uint32_t)(stage * 4 + warp) * 4) != 0) rescale<S>(p, o, shared, stage);
    add_values<S>(o, shared, stage, first_piece);
    sync_named(BARRIER_VALUES + warpgroup, 128); /* all four warps have read V and P */
    if (t == 0) {
      mbarrier_arrive(shared + S::P_EMPTY + 8 * (uint32_t)stage);
      load_pieces<S>(p, map, shared, tile + S::STAGES, warpgroup);
    }
  }
  sync_block();
  const item w = read_item(shared + S::ITEM);
  if (w.n_splits > 1) wait_for_slot(p, w.place);
  sync_block();
  const span s = read_span(shared + S::ITEM);
  store_values<S>(p, w, s, o, shared, warpgroup);
  end_item<S>(p, shared, w, s);
}

/* ---- The kernel ---- */

template <class S> AMLA_DEVICE void decode_wgmma(const amla_cuda_params &p, const tensor_map *map) {
  const uint32_t shared = shared_base();
  const int32_t warpgroup = warpgroup_id();
  init_barriers<S>(p, shared);
  if (warpgroup == 2) {
    registers_up<184>();
    while (begin_item<S>(p, map, shared, warpgroup)) score_item<S>(p, shared);
  } else {
    registers_down<160>();
    while (begin_item<S>(p, map, shared, warpgroup)) value_item<S>(p, map, shared, warpgroup);
  }
}

}  // namespace amla_kernel
#endif
