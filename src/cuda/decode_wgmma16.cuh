/* SPDX-License-Identifier: Apache-2.0
 *
 * Decode attention on Hopper for at most 16 rows: keys and columns of V are the M of the products,
 * and the rows are the N, so that nothing of m64 is empty:
 *
 *     warpgroup 2      1. S' = K Q', 64 keys x 16 rows, 2. reference, 3. P, as rows x keys
 *     warpgroups 0, 1  4. rescale O', 5. O' += V' P': 4 x 64 columns x 16 rows each
 *
 * Loads, items and barriers are those of wgmma_steps.cuh; Q lies in shared memory, two key tiles
 * deep. A thread has four rows: row_of_thread below.
 */
#ifndef AMLA_DECODE_WGMMA16_CUH
#define AMLA_DECODE_WGMMA16_CUH

#include "wgmma_steps.cuh"

namespace amla_kernel {

constexpr int wgmma16_large_bytes(int pieces) { /* stages; Q and two P in pieces of 16 rows */
  return 8192 * 2 * pieces + 2048 * (pieces + 2);
}

template <bool F16_, int D_QK>
struct wgmma16 : wgmma_shape<F16_, D_QK, 2, wgmma16_large_bytes(D_QK / 64)> {
  typedef wgmma_shape<F16_, D_QK, 2, wgmma16_large_bytes(D_QK / 64)> shape;
  static constexpr int ROWS = 16, EARLY_TILES = 2, Q_PIECE = ROWS * 128;
  static constexpr int Q = 2 * shape::STAGE_BYTES, P = Q + shape::PIECES * Q_PIECE;
  static constexpr int P_STEP = Q_PIECE;
  static constexpr int NEXT = shape::SHARED_BYTES;
  /* [2][4 warps][16] f32, then [4][16] pairs of sums */
  static constexpr int MAXIMA = (NEXT + ITEM_BYTES + 7) / 8 * 8;
  static constexpr int SHARED_BYTES = MAXIMA + 2 * 4 * ROWS * 4;

  static AMLA_DEVICE uint32_t query_at(uint32_t shared, uint32_t, int32_t row, int32_t chunk) {
    return shared + Q + (uint32_t)(chunk / 8 * Q_PIECE) +
           amla_cuda_swizzle((uint32_t)row, (uint32_t)(chunk % 8), 128);
  }
};

enum { BARRIER_SCORES = BARRIER_VALUES + 2 };

/* Row h (0 to 3) of a thread; key or column of the half of its pairs. */
AMLA_DEVICE int32_t row_of_thread(const position &at, int32_t h) {
  return amla_cuda_fragment_column(at.lane, h & 2) + (h & 1);
}
AMLA_DEVICE int32_t place_of_thread(const position &at, int32_t half) {
  return 16 * at.warp + amla_cuda_fragment_row(at.lane, half);
}
/* Where element i of eight belongs. */
AMLA_DEVICE int32_t h_of(int32_t i) { return i / 4 * 2 + i % 2; }
AMLA_DEVICE int32_t half_of(int32_t i) { return i / 2 % 2; }

/* Over the eight lanes that have the same rows. */
AMLA_DEVICE float max_of_lanes(float x) {
#pragma unroll
  for (int32_t mask = 4; mask < 32; mask *= 2)
    x = fmaxf(x, shuffle_xor(x, mask));
  return x;
}
AMLA_DEVICE float sum_of_lanes(float x) {
#pragma unroll
  for (int32_t mask = 4; mask < 32; mask *= 2)
    x += shuffle_xor(x, mask);
  return x;
}

/* ---- Warpgroup 2 ---- */

/* 1. Scores, two groups as in wgmma_steps.cuh. */
template <class S>
AMLA_DEVICE void compute_scores16(float (&s)[8], uint32_t shared, uint32_t tile) {
  const int32_t stage = stage_of<S>(tile);
  pin(s);
#pragma unroll
  for (int32_t half = 0; half < 2; half++) {
    mbarrier_wait(kv_full<S>(shared, stage, half), parity_of<S>(tile));
    wgmma_fence();
#pragma unroll
    for (int32_t i = 16 * half; i < (half == 0 ? 16 : S::STEPS); i++) {
      const uint32_t in_piece = 32 * (uint32_t)(i % 4);
      const uint32_t queries = shared + S::Q + (uint32_t)(i / 4 * S::Q_PIECE) + in_piece;
      wgmma_keys<S::F16>(s, rows_descriptor(kv_piece<S>(shared, stage, i / 4) + in_piece),
                         rows_descriptor(queries), i != 0);
    }
    wgmma_commit();
  }
  wgmma_wait<0>();
  pin(s);
}

/* Log2 units, hidden ones -inf; a visible one that is not finite poisons its row. */
template <class S>
AMLA_DEVICE void hide_scores16(const amla_cuda_params &p, float (&s)[8], row_state (&r)[4],
                               uint32_t shared, int32_t j) {
  const position at = where();
  const int32_t first_key = (item_word<S>(shared, TILE_BEGIN) + j) * S::TILE;
#pragma unroll
  for (int32_t i = 0; i < 8; i++) {
    const uint32_t row = (uint32_t)row_of_thread(at, h_of(i));
    const int32_t limit = (int32_t)lds_u32(shared + S::LIMITS + 4 * row);
    const bool visible = first_key + place_of_thread(at, half_of(i)) < limit;
    s[i] *= p.scale_log2;
    row_state &state = r[h_of(i)];
    state.sum_rounded = fmaf(0.0f, visible ? s[i] : 0.0f, state.sum_rounded);
    if (!visible)
      s[i] = -INFINITY;
  }
}

/* 2. The reference, from the maxima of four warps. */
template <class S>
AMLA_DEVICE void advance_rows16(const amla_cuda_params &p, const float (&s)[8], row_state (&r)[4],
                                uint32_t shared, uint32_t tile) {
  const position at = where();
  const uint32_t maxima = shared + S::MAXIMA + (tile & 1) * 4 * S::ROWS * 4;
#pragma unroll
  for (int32_t h = 0; h < 4; h++) {
    const int32_t i = h / 2 * 4 + h % 2;
    const float max = max_of_lanes(fmaxf(s[i], s[i + 2]));
    if (at.lane < 4)
      sts_f32(maxima + (uint32_t)(at.warp * S::ROWS + row_of_thread(at, h)) * 4, max);
  }
  sync_named(BARRIER_SCORES, 128);
  bool shifted = false;
#pragma unroll
  for (int32_t h = 0; h < 4; h++) {
    const uint32_t row = (uint32_t)row_of_thread(at, h);
    float max = lds_f32(maxima + row * 4);
#pragma unroll
    for (uint32_t warp = 1; warp < 4; warp++)
      max = fmaxf(max, lds_f32(maxima + (warp * S::ROWS + row) * 4));
    const float shift = advance<S::F16>(r[h], max, p.flash != 0);
    shifted = shifted || shift != 0.0f;
    if (at.warp == 0 && at.lane < 4)
      sts_f32(shared + S::SHIFTS + 4 * ((tile & 1) * S::ROWS + row), shift);
  }
  shifted = vote(shifted) != 0;
  if (at.warp == 0 && at.lane == 0)
    sts_u32(shifted_at<S>(shared, tile, 0), shifted);
}

/* 3. P, turned to rows x keys. */
template <class S>
AMLA_DEVICE void store_p16(const float (&s)[8], row_state (&r)[4], uint32_t shared, uint32_t tile) {
  const int32_t stage = stage_of<S>(tile);
  const position at = where();
  uint32_t both[4];
#pragma unroll
  for (int32_t pair = 0; pair < 4; pair++) {
    row_state &a = r[h_of(2 * pair)], &b = r[h_of(2 * pair + 1)];
    const float x = exp2_approx(s[2 * pair] - a.ref), y = exp2_approx(s[2 * pair + 1] - b.ref);
    both[pair] = pack<S::F16>(x, y);
    a.sum += x, b.sum += y;
    a.sum_rounded += unpack_low<S::F16>(both[pair]);
    b.sum_rounded += unpack_high<S::F16>(both[pair]);
  }
  const uint32_t row = (uint32_t)(at.lane / 16 * 8 + at.lane % 8);
  const uint32_t chunk = (uint32_t)(2 * at.warp + at.lane / 8 % 2);
  const uint32_t to = shared + S::P + (uint32_t)(stage * S::P_STEP);
  stmatrix_trans(to + amla_cuda_swizzle(row, chunk, 128), both);
  fence_async_shared();
  mbarrier_arrive(shared + S::P_FULL + 8 * (uint32_t)stage);
}

template <class S>
AMLA_DEVICE void score_tiles16(const amla_cuda_params &p, row_state (&r)[4], uint32_t shared,
                               uint32_t tile, int32_t n) {
  float s[8];
#pragma unroll
  for (int32_t i = 0; i < 8; i++)
    s[i] = 0.0f;
#pragma unroll 1
  for (int32_t j = 0; j < n; j++, tile++) {
    compute_scores16<S>(s, shared, tile); /* 1. scores */
    if (tile >= 2)
      mbarrier_wait(stage_empty<S>(shared, tile - 2), parity_of<S>(tile - 2));
    hide_scores16<S>(p, s, r, shared, j);
    advance_rows16<S>(p, s, r, shared, tile); /* 2. reference */
    store_p16<S>(s, r, shared, tile);         /* 3. P */
  }
}

/* Row states to partial results, or to factors of O and the LSE. */
template <class S>
AMLA_DEVICE void finish_rows16(const amla_cuda_params &p, const row_state (&r)[4],
                               uint32_t shared) {
  const position at = where();
  const uint32_t sums = shared + S::MAXIMA; /* [4 warps][16] pairs */
#pragma unroll
  for (int32_t h = 0; h < 4; h++) {
    const float sum = sum_of_lanes(r[h].sum), rounded = sum_of_lanes(r[h].sum_rounded);
    if (at.lane < 4)
      sts_f32x2(sums + (uint32_t)(at.warp * S::ROWS + row_of_thread(at, h)) * 8, sum, rounded);
  }
  sync_named(BARRIER_SCORES, 128);
  const item w = read_item(shared + S::ITEM);
  const span item_span = read_span(shared + S::ITEM);
#pragma unroll
  for (int32_t h = 0; h < 4; h++) {
    const int32_t row = row_of_thread(at, h);
    if (at.warp != 0 || at.lane >= 4 || row >= item_span.n_rows)
      continue;
    row_state total = {r[h].ref, 0.0f, 0.0f};
    for (int32_t warp = 0; warp < 4; warp++) {
      const uint32_t from = sums + (uint32_t)(warp * S::ROWS + row) * 8;
      total.sum += lds_f32(from), total.sum_rounded += lds_f32(from + 4);
    }
    finish_row_of_item<S>(p, w, item_span, total, row, shared);
  }
}

template <class S>
AMLA_DEVICE void score_item16(const amla_cuda_params &p, const tensor_map *map, uint32_t shared) {
  const uint32_t tile = (uint32_t)item_word<S>(shared, FIRST_TILE);
  const int32_t n = tiles_of_item<S>(shared);
  const row_state unseen = {-1e30f, 0.0f, 0.0f};
  row_state r[4] = {unseen, unseen, unseen, unseen};
  score_tiles16<S>(p, r, shared, tile, n);
  meet_after_scores<S>(p, map, shared, tile + (uint32_t)n);
  finish_rows16<S>(p, r, shared);
  sync_block();
  end_item<S>(p, shared);
}

/* ---- Warpgroups 0 and 1 ---- */

/* 4. Rescale O', if a row moves. */
template <class S>
AMLA_DEVICE void rescale16(const amla_cuda_params &p, float (&o)[4][8], uint32_t shared,
                           uint32_t tile) {
  const position at = where();
  if (lds_u32(shifted_at<S>(shared, tile, 0)) == 0)
    return;
#pragma unroll
  for (int32_t h = 0; h < 4; h++) {
    const uint32_t row = (tile & 1) * S::ROWS + (uint32_t)row_of_thread(at, h);
    const amla_cuda_factor f = factor_of(lds_f32(shared + S::SHIFTS + row * 4), p.flash != 0);
#pragma unroll
    for (int32_t m = 0; m < 4; m++)
#pragma unroll
      for (int32_t i = 0; i < 8; i++)
        if (h_of(i) == h)
          o[m][i] = o[m][i] * f.a * f.b;
  }
}

/* 5. O' += V' P'. */
template <class S>
AMLA_DEVICE void add_values16(float (&o)[4][8], uint32_t shared, uint32_t tile, int32_t warpgroup) {
  const int32_t stage = stage_of<S>(tile);
  const uint32_t weights = shared + S::P + (uint32_t)(stage * S::P_STEP);
#pragma unroll
  for (int32_t m = 0; m < 4; m++)
    pin(o[m]);
  wgmma_fence();
#pragma unroll
  for (uint32_t k = 0; k < 4; k++)
#pragma unroll
    for (int32_t m = 0; m < 4; m++) {
      const uint32_t values = kv_piece<S>(shared, stage, 4 * warpgroup + m) + 2048 * k;
      wgmma_columns<S::F16>(o[m], matrix_descriptor(values, S::PIECE_BYTES, 1024),
                            rows_descriptor(weights + 32 * k));
    }
  wgmma_commit();
  wgmma_wait<0>();
#pragma unroll
  for (int32_t m = 0; m < 4; m++)
    pin(o[m]);
}

template <class S>
AMLA_DEVICE void value_tiles16(const amla_cuda_params &p, const tensor_map *map, float (&o)[4][8],
                               uint32_t shared, uint32_t tile, int32_t warpgroup) {
  const span s = read_span(shared + S::ITEM);
  const uint32_t last = tile + (uint32_t)(s.tile_end - s.tile_begin);
  int32_t visible = s.end - s.tile_begin * S::TILE; /* keys from this tile on that a row sees */
#pragma unroll 1
  for (; tile != last; tile++, visible -= S::TILE) {
    wait_for_values<S>(shared, tile, warpgroup);
    clear_hidden<S>(shared, tile, warpgroup, visible);
    rescale16<S>(p, o, shared, tile);            /* 4. rescale O */
    add_values16<S>(o, shared, tile, warpgroup); /* 5. PV */
    leave_tile<S>(p, map, shared, tile, warpgroup);
  }
}

template <class S>
AMLA_DEVICE void store_values16(const amla_cuda_params &p, const float (&o)[4][8], uint32_t shared,
                                int32_t warpgroup) {
  const position at = where();
  const item w = read_item(shared + S::ITEM);
  const int32_t first_row = item_word<S>(shared, FIRST_ROW);
#pragma unroll
  for (int32_t h = 0; h < 4; h++) {
    const int32_t row = row_of_thread(at, h);
    if (row >= item_word<S>(shared, N_ROWS))
      continue;
    const float f = w.n_splits > 1 ? 1.0f : lds_f32(shared + S::FACTORS + (uint32_t)row * 4);
    const int64_t out = amla_cuda_out_offset(&p, w.sequence, first_row + row);
#pragma unroll
    for (int32_t i = 0; i < 16; i++) {
      const int32_t m = i / 4, half = i % 2;
      if (i % 4 >= 2)
        continue;
      const float x = o[m][h / 2 * 4 + half * 2 + h % 2];
      const int32_t column = 256 * warpgroup + 64 * m + place_of_thread(at, half);
      if (w.n_splits > 1)
        slot_o(p, slot_of(p, w.place), row)[column] = x;
      else
        store_one(p, out + column, times(x, f));
    }
  }
}

template <class S>
AMLA_DEVICE void value_item16(const amla_cuda_params &p, const tensor_map *map, uint32_t shared,
                              int32_t warpgroup) {
  const uint32_t tile = (uint32_t)item_word<S>(shared, FIRST_TILE);
  float o[4][8];
#pragma unroll
  for (int32_t i = 0; i < 32; i++)
    o[i / 8][i % 8] = 0.0f;
  value_tiles16<S>(p, map, o, shared, tile, warpgroup);
  meet_after_values<S>(p, shared);
  store_values16<S>(p, o, shared, warpgroup);
  end_item<S>(p, shared);
}

template <class S>
AMLA_DEVICE void decode_wgmma16(const amla_cuda_params &p, const tensor_map *map) {
  const uint32_t shared = shared_base();
  const int32_t warpgroup = warpgroup_id();
  init_block<S>(p, shared);
  if (warpgroup == 2) {
    if (thread_id() % 128 < 32)
      take_next<S>(p, map, shared, 0);
    while (begin_item<S>(p, shared))
      score_item16<S>(p, map, shared);
  } else {
    while (begin_item<S>(p, shared))
      value_item16<S>(p, map, shared, warpgroup);
  }
  help_to_merge(p, shared + S::ITEM);
}

} // namespace amla_kernel
#endif
