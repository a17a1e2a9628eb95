/* SPDX-License-Identifier: Apache-2.0
 *
 * Decode attention with warp matrices (mma.sync, cp.async): every NVIDIA GPU since Ampere, any page
 * size, strides and alignment. The five steps of spec/amla.c in their order: scores, reference, P,
 * rescale O, PV.
 *
 * A thread block takes items (cuda_params.h) until none is left. An item has ROWS rows of Q in
 * shared memory and walks over tiles of TILE keys, STAGES of them in flight. Its warps split the
 * scores as [ROWS / 32][TILE / 16][KSPLIT], each 32 rows x 16 keys of a KSPLIT-th of d_qk; the
 * softmax as four threads per row; and O as WARPS column stripes that each hold all rows, so that V
 * is read from shared memory once. docs/cuda-kernel.md has the budgets.
 */
#ifndef AMLA_DECODE_MMA_CUH
#define AMLA_DECODE_MMA_CUH

#include "decode_common.cuh"

namespace amla_kernel {

template <int ROWS_, int TILE_, int KSPLIT_, bool F16_, int D_QK_> struct mma_shape {
  static constexpr bool F16 = F16_;
  static constexpr int ROWS = ROWS_, TILE = TILE_, KSPLIT = KSPLIT_, D_QK = D_QK_, STAGES = 2;
  static constexpr int WARPS = ROWS / 32 * (TILE / 16) * KSPLIT, THREADS = 32 * WARPS;
  static constexpr int ROW_BYTES = D_QK * 2, CHUNKS = D_QK / 8;
  static constexpr int THREADS_PER_ROW = THREADS / ROWS, THREADS_PER_TOKEN = THREADS / TILE;
  static constexpr int SCORE_STRIDE =
      (TILE + 4) *
      4; /* bytes; an odd multiple of 16, so that eight rows lie in eight bank groups */
  static constexpr int COLUMNS = AMLA_CUDA_D_V / WARPS, M_TILES = ROWS / 16, N_TILES = COLUMNS / 8;
  /* shared memory */
  static constexpr int Q = 0, KV = Q + ROWS * ROW_BYTES, TILE_BYTES = TILE * ROW_BYTES;
  /* KSPLIT of them; P lies in the first. */
  static constexpr int SCORES = KV + STAGES * TILE_BYTES, SCORES_BYTES = ROWS * SCORE_STRIDE;
  static constexpr int FACTORS = SCORES + KSPLIT * SCORES_BYTES; /* [ROWS] pairs of f32 */
  static constexpr int ITEM = FACTORS + ROWS * 8, FLAG = ITEM + WORK_BYTES, BAD_PAGE = FLAG + 4,
                       SHARED_BYTES = BAD_PAGE + 4;
  static_assert(THREADS_PER_ROW == 4 && CHUNKS % THREADS_PER_TOKEN == 0 &&
                    D_QK / 16 % KSPLIT == 0 && SCORE_STRIDE / 16 % 2 == 1,
                "");
};

/* Eight elements that need not lie at a multiple of 16 bytes. */
AMLA_DEVICE vec4 load_unaligned(const uint16_t *from) {
  return {from[0] | (uint32_t)from[1] << 16, from[2] | (uint32_t)from[3] << 16,
          from[4] | (uint32_t)from[5] << 16, from[6] | (uint32_t)from[7] << 16};
}

/* One thread's part of bringing rows to shared memory: 16-byte chunks of a row, every
 * THREADS_PER_TOKEN-th; from == NULL: zeros. */
template <class S>
AMLA_DEVICE void copy_row(uint32_t to, int32_t row, const uint16_t *from, const void *valid,
                          int32_t first_chunk, int32_t step, bool vector) {
#pragma unroll 9
  for (int32_t c = first_chunk; c < S::CHUNKS; c += step) {
    const uint32_t at = to + amla_cuda_swizzle((uint32_t)row, (uint32_t)c, S::ROW_BYTES);
    const void *source = from ? from + 8 * c : valid;
    if (vector)
      copy_async16(at, source, from ? 16 : 0);
    else
      sts_vec4(at, from ? load_unaligned(from + 8 * c) : vec4{0, 0, 0, 0});
  }
}

template <class S>
AMLA_DEVICE void load_queries(const amla_cuda_params &p, uint32_t shared, const item &w,
                              const span &s) {
  const int32_t t = thread_id(), row = t / S::THREADS_PER_ROW;
  const uint16_t *from =
      row < s.n_rows ? (const uint16_t *)p.q + amla_cuda_q_offset(&p, w.sequence, s.first_row + row)
                     : nullptr;
  copy_row<S>(shared + S::Q, row, from, p.q, t % S::THREADS_PER_ROW, S::THREADS_PER_ROW,
              p.vector_q != 0);
}

/* The token that this thread brings of a tile, and its page: the table is read one tile ahead of
 * the keys. */
struct token_ref {
  int32_t token, page; /* page < 0: not to be read */
};

template <class S>
AMLA_DEVICE token_ref look_up(const amla_cuda_params &p, uint32_t shared, const item &w,
                              const span &s, int32_t tile) {
  token_ref r = {tile * S::TILE + thread_id() / S::THREADS_PER_TOKEN, -1};
  if (tile >= s.tile_end || r.token >= s.end)
    return r;
  r.page = page_of(p, w.sequence, r.token);
  if (r.page < 0)
    sts_u32(shared + S::BAD_PAGE, 1);
  return r;
}

/* Tokens that no row sees are zero, whatever lies in the cache: in PV their weight 0 must not meet
 * a NaN. */
template <class S>
AMLA_DEVICE void load_tile(const amla_cuda_params &p, uint32_t shared, const token_ref &r,
                           int32_t tile) {
  const int32_t t = thread_id(), slot = p.page_size > 0 ? r.token % p.page_size : r.token;
  const uint16_t *from =
      r.page < 0 ? nullptr : (const uint16_t *)p.kv + amla_cuda_token_offset(&p, r.page, slot);
  copy_row<S>(shared + S::KV + (uint32_t)(tile % S::STAGES) * S::TILE_BYTES,
              t / S::THREADS_PER_TOKEN, from, p.kv, t % S::THREADS_PER_TOKEN, S::THREADS_PER_TOKEN,
              p.vector_kv != 0);
}

/* 1. Scores: each warp 32 rows x 16 keys of its part of d_qk, to shared memory as f32. */
template <class S> AMLA_DEVICE void compute_scores(uint32_t shared, int32_t stage) {
  const int32_t lane = thread_id() & 31, warp = thread_id() >> 5;
  const int32_t part = warp % S::KSPLIT, rows = warp / S::KSPLIT % (S::ROWS / 32) * 32,
                keys = warp / S::KSPLIT / (S::ROWS / 32) * 16;
  const uint32_t q_row = (uint32_t)(rows + (lane & 15)), q_chunk = (uint32_t)(lane >> 4);
  const uint32_t k_row = (uint32_t)(keys + (lane >> 4) * 8 + (lane & 7)),
                 k_chunk = (uint32_t)(lane >> 3 & 1);
  const uint32_t k_at = shared + S::KV + (uint32_t)stage * S::TILE_BYTES;
  float s[2][2][4] = {};
#pragma unroll 3
  for (int32_t i = 0; i < S::D_QK / 16 / S::KSPLIT; i++) {
    const uint32_t chunk = 2u * (uint32_t)(part * (S::D_QK / 16 / S::KSPLIT) + i);
    uint32_t q0[4], q1[4], k[4];
    ldmatrix(q0, shared + S::Q + amla_cuda_swizzle(q_row, chunk + q_chunk, S::ROW_BYTES));
    ldmatrix(q1, shared + S::Q + amla_cuda_swizzle(q_row + 16, chunk + q_chunk, S::ROW_BYTES));
    ldmatrix(k, k_at + amla_cuda_swizzle(k_row, chunk + k_chunk, S::ROW_BYTES));
    mma<S::F16>(s[0][0], q0, k[0], k[1]);
    mma<S::F16>(s[0][1], q0, k[2], k[3]);
    mma<S::F16>(s[1][0], q1, k[0], k[1]);
    mma<S::F16>(s[1][1], q1, k[2], k[3]);
  }
  const uint32_t at = shared + S::SCORES + (uint32_t)part * S::SCORES_BYTES;
#pragma unroll
  for (int32_t m = 0; m < 2; m++)
#pragma unroll
    for (int32_t n = 0; n < 2; n++)
#pragma unroll
      for (int32_t half = 0; half < 2; half++) {
        const int32_t row = rows + 16 * m + amla_cuda_fragment_row(lane, half),
                      column = keys + 8 * n + amla_cuda_fragment_column(lane, half);
        sts_f32x2(at + (uint32_t)(row * S::SCORE_STRIDE + column * 4), s[m][n][2 * half],
                  s[m][n][2 * half + 1]);
      }
}

/* 2. and 3. Reference and P of a row by four threads: thread c has keys 16 i + 4 c .. + 3. True
 * when O must be shifted. */
template <class S>
AMLA_DEVICE bool compute_weights(const amla_cuda_params &p, uint32_t shared, row_state &state,
                                 int32_t limit, int32_t first_key) {
  constexpr int N = S::TILE / 4;
  const int32_t row = thread_id() / 4, c = thread_id() % 4;
  const uint32_t at = shared + S::SCORES + (uint32_t)(row * S::SCORE_STRIDE);
  float t[N], max = -INFINITY;
#pragma unroll
  for (int32_t i = 0; i < N; i += 4)
    lds_f32x4(at + (uint32_t)(16 * i + 16 * c), t + i);
#pragma unroll
  for (int32_t part = 1; part < S::KSPLIT; part++)
#pragma unroll
    for (int32_t i = 0; i < N; i += 4) {
      float more[4];
      lds_f32x4(at + (uint32_t)part * S::SCORES_BYTES + (uint32_t)(16 * i + 16 * c), more);
#pragma unroll
      for (int32_t j = 0; j < 4; j++)
        t[i + j] += more[j];
    }
#pragma unroll
  for (int32_t i = 0; i < N; i++) {
    t[i] *= p.scale_log2;
    if (first_key + 4 * i - 3 * (i % 4) + 4 * c < limit)
      max = fmaxf(max, t[i]); /* key 16 (i / 4) + 4 c + i % 4 */
  }
  max = fmaxf(max, shuffle_xor(max, 1));
  max = fmaxf(max, shuffle_xor(max, 2));
  const float shift = advance<S::F16>(state, max, p.flash != 0);
  sync_warp(); /* all four have read their scores: P may overwrite them */
  float sum = 0.0f, sum_rounded = 0.0f;
#pragma unroll
  for (int32_t i = 0; i < N; i += 2) {
    const int32_t key = first_key + 4 * (i / 4 * 4) + 4 * c + i % 4;
    const float x = weight(t[i], state.ref, key < limit),
                y = weight(t[i + 1], state.ref, key + 1 < limit);
    const uint32_t both = pack<S::F16>(x, y);
    sts_u32(at + (uint32_t)(2 * (4 * (i / 4 * 4) + 4 * c + i % 4)), both);
    sum += x + y;
    sum_rounded += unpack_low<S::F16>(both) + unpack_high<S::F16>(both);
  }
  sum += shuffle_xor(sum, 1);
  sum_rounded += shuffle_xor(sum_rounded, 1);
  state.sum += sum + shuffle_xor(sum, 2);
  state.sum_rounded += sum_rounded + shuffle_xor(sum_rounded, 2);
  if (c == 0) {
    const amla_cuda_factor f = factor_of(shift, p.flash != 0);
    sts_f32x2(shared + S::FACTORS + (uint32_t)row * 8, f.a, f.b);
  }
  return shift != 0.0f;
}

template <class S> using output = float[S::M_TILES][S::N_TILES][4];

/* 4. Rescale O. */
template <class S> AMLA_DEVICE void rescale_output(output<S> &o, uint32_t shared) {
  const int32_t lane = thread_id() & 31;
#pragma unroll
  for (int32_t m = 0; m < S::M_TILES; m++)
#pragma unroll
    for (int32_t half = 0; half < 2; half++) {
      const uint32_t at =
          shared + S::FACTORS + (uint32_t)(16 * m + amla_cuda_fragment_row(lane, half)) * 8;
      const float a = lds_f32(at), b = lds_f32(at + 4);
#pragma unroll
      for (int32_t n = 0; n < S::N_TILES; n++) {
        o[m][n][2 * half] *= a, o[m][n][2 * half + 1] *= a;
        o[m][n][2 * half] *= b, o[m][n][2 * half + 1] *= b;
      }
    }
}

/* 5. O += P V: each warp all rows of its columns. */
template <class S> AMLA_DEVICE void add_values(output<S> &o, uint32_t shared, int32_t stage) {
  const int32_t lane = thread_id() & 31, warp = thread_id() >> 5;
  const uint32_t v_at = shared + S::KV + (uint32_t)stage * S::TILE_BYTES, p_at = shared + S::SCORES;
#pragma unroll
  for (int32_t k = 0; k < S::TILE / 16; k++) {
    uint32_t weights[S::M_TILES][4];
#pragma unroll
    for (int32_t m = 0; m < S::M_TILES; m++)
      ldmatrix(weights[m], p_at + (uint32_t)((16 * m + (lane & 15)) * S::SCORE_STRIDE + 32 * k +
                                             16 * (lane >> 4)));
#pragma unroll
    for (int32_t n = 0; n < S::N_TILES; n += 2) {
      uint32_t v[4];
      ldmatrix_trans(v,
                     v_at + amla_cuda_swizzle((uint32_t)(16 * k + (lane & 15)),
                                              (uint32_t)(warp * (S::COLUMNS / 8) + n + (lane >> 4)),
                                              S::ROW_BYTES));
#pragma unroll
      for (int32_t m = 0; m < S::M_TILES; m++) {
        mma<S::F16>(o[m][n], weights[m], v[0], v[1]);
        mma<S::F16>(o[m][n + 1], weights[m], v[2], v[3]);
      }
    }
  }
}

/* O to its rows, or to the item's slot, not normalised. */
template <class S>
AMLA_DEVICE void store_output(const amla_cuda_params &p, const item &w, const span &s,
                              const output<S> &o, uint32_t shared) {
  const int32_t lane = thread_id() & 31, warp = thread_id() >> 5;
#pragma unroll
  for (int32_t m = 0; m < S::M_TILES; m++)
#pragma unroll
    for (int32_t half = 0; half < 2; half++) {
      const int32_t r = 16 * m + amla_cuda_fragment_row(lane, half),
                    column = warp * S::COLUMNS + amla_cuda_fragment_column(lane, half);
      if (r >= s.n_rows)
        continue;
      const float factor = lds_f32(shared + S::FACTORS + (uint32_t)r * 8);
      const int64_t at = amla_cuda_out_offset(&p, w.sequence, s.first_row + r) + column;
      float *part = w.n_splits > 1 ? slot_o(p, slot_of(p, w.place), r) + column : nullptr;
#pragma unroll
      for (int32_t n = 0; n < S::N_TILES; n++) {
        const float x = o[m][n][2 * half], y = o[m][n][2 * half + 1];
        if (part)
          part[8 * n] = x, part[8 * n + 1] = y;
        else
          store_pair(p, at + 8 * n, times(x, factor), times(y, factor));
      }
    }
}

/* The row's reference and sums to its slot; or its LSE to its place, and the factor of O to shared
 * memory. */
template <class S>
AMLA_DEVICE void finish_state(const amla_cuda_params &p, const item &w, const span &s,
                              row_state state, uint32_t shared) {
  const int32_t r = thread_id() / 4, row = s.first_row + r;
  if (thread_id() % 4 != 0 || r >= s.n_rows)
    return;
  if (lds_u32(shared + S::BAD_PAGE) != 0)
    state.sum = state.sum_rounded = NAN;
  if (w.n_splits > 1) {
    float *refs = slot_refs(p, slot_of(p, w.place));
    refs[r] = state.ref;
    refs[p.block_rows + r] = state.sum;
    refs[2 * p.block_rows + r] = state.sum_rounded;
    return;
  }
  const row_result result = finish_row(p, row % p.h_q, state);
  sts_f32(shared + S::FACTORS + (uint32_t)r * 8, result.factor);
  store_lse(p, w, row, result.lse);
}

template <class S>
AMLA_DEVICE void run_item(const amla_cuda_params &p, uint32_t shared, const item &w) {
  const span s = read_span(shared + S::ITEM);
  const int32_t limit = row_limit(p, w.length, s, thread_id() / S::THREADS_PER_ROW);
  row_state state = empty_row();
  output<S> o = {};
  if (thread_id() == 0)
    sts_u32(shared + S::BAD_PAGE, 0);
  sync_block();
  load_queries<S>(p, shared, w, s);
  load_tile<S>(p, shared, look_up<S>(p, shared, w, s, s.tile_begin), s.tile_begin);
  copy_async_commit();
  token_ref ahead = look_up<S>(p, shared, w, s, s.tile_begin + 1);
#pragma unroll 1
  for (int32_t tile = s.tile_begin; tile < s.tile_end; tile++) {
    const int32_t stage = tile % S::STAGES;
    copy_async_wait<0>();
    sync_block(); /* the tile is there, and everybody has left the one before */
    load_tile<S>(p, shared, ahead, tile + 1);
    copy_async_commit();
    ahead = look_up<S>(p, shared, w, s, tile + 2);
    compute_scores<S>(shared, stage);
    sync_block();
    const bool shifted = compute_weights<S>(p, shared, state, limit, tile * S::TILE);
    if (sync_block_or(shifted))
      rescale_output<S>(o, shared);
    add_values<S>(o, shared, stage);
  }
  copy_async_wait<0>();
  sync_block();
  if (w.n_splits > 1)
    wait_for_slot(p, w.place);
  finish_state<S>(p, w, s, state, shared);
  sync_block();
  store_output<S>(p, w, s, o, shared);
  if (w.n_splits > 1)
    arrive_and_merge(p, w, s, shared + S::FLAG);
}

template <class S> AMLA_DEVICE void decode_mma(const amla_cuda_params &p) {
  const uint32_t shared = shared_base();
  if (thread_id() < 32)
    start_finding(p, shared + S::ITEM);
  for (;;) {
    if (thread_id() < 32)
      take_item(p, shared + S::ITEM, shared + S::ITEM);
    sync_block();
    if (!has_item(p, shared + S::ITEM))
      break;
    run_item<S>(p, shared, read_item(shared + S::ITEM));
    sync_block(); /* all have read the item and the flag */
  }
  help_to_merge(p, shared + S::ITEM);
}

/* 64 rows x 32 keys need 163 KB of shared memory (sm_80, 90, 100); 32 rows x 16 keys fit the 99 KB
 * of the others. */
template <bool F16, int D_QK> using mma_large = mma_shape<64, 32, 2, F16, D_QK>;
template <bool F16, int D_QK> using mma_small = mma_shape<32, 16, 4, F16, D_QK>;
static_assert(mma_large<false, 576>::SHARED_BYTES <= 163 * 1024, "sm_80");
static_assert(mma_small<false, 576>::SHARED_BYTES <= 99 * 1024, "sm_86, sm_89, sm_120");
static_assert(mma_large<false, 576>::SHARED_BYTES == 166476, "docs/cuda-kernel.md");
static_assert(mma_small<false, 576>::SHARED_BYTES == 84300, "docs/cuda-kernel.md");

} // namespace amla_kernel
#endif
