/* SPDX-License-Identifier: Apache-2.0
 *
 * Decode attention on Hopper, two key tiles deep; the steps are in wgmma_steps.cuh.
 *
 *     keys         | K0 | K1 |      K2 |      K3 |     asked for when PV has left the stage
 *     warpgroup 2  |    S0 | S1, P0 | S2, P1 | S3, P2 |  two tiles of scores by turns
 *     warpgroup 0  |            PV0 | PV1 |   PV2 |    columns 0..255
 *     warpgroup 1  |            PV0 | PV1 |   PV2 |    columns 256..511
 *
 * P of a tile is computed beside the scores of the next one, whose keys must have come before.
 * Q lies in shared memory; four of its nine pieces are in registers too, and P lies where the first
 * two were.
 */
#ifndef AMLA_DECODE_WGMMA2_CUH
#define AMLA_DECODE_WGMMA2_CUH

#include "wgmma_steps.cuh"

namespace amla_kernel {

template <bool F16_, int D_QK> struct wgmma2 : wgmma_shape<F16_, D_QK, 2, 3 * D_QK * 128> {
  typedef wgmma_shape<F16_, D_QK, 2, 3 * D_QK * 128> shape;
  typedef wgmma2 S;
  using shape::PIECE_BYTES;
  static constexpr int EARLY_TILES = 2;
  static constexpr int Q_STEPS = 16; /* more than 20 spill; at least 8, where P goes */
  static constexpr int Q = 2 * shape::STAGE_BYTES, P = Q, P_STEP = PIECE_BYTES;

  static AMLA_DEVICE uint32_t query_piece(uint32_t shared, uint32_t, int32_t piece) {
    return shared + Q + (uint32_t)piece * PIECE_BYTES;
  }
  static AMLA_DEVICE uint32_t query_at(uint32_t shared, uint32_t, int32_t row, int32_t chunk) {
    return query_piece(shared, 0, chunk / 8) +
           amla_cuda_swizzle((uint32_t)row, (uint32_t)(chunk % 8), 128);
  }
  static AMLA_DEVICE uint64_t query_step(uint32_t shared, int32_t i) {
    return rows_descriptor(query_piece(shared, 0, i / 4) + 32 * (uint32_t)(i % 4));
  }

  /* While the scores of one tile, two groups, are in the making, P of the other is computed. */
  static AMLA_DEVICE void score_tiles(const amla_cuda_params &p, row_state (&r)[2],
                                      const uint32_t (&q)[Q_STEPS * 4], uint32_t shared,
                                      uint32_t tile, int32_t n) {
    float s0[32], s1[32];
#pragma unroll
    for (int32_t i = 0; i < 32; i++)
      s0[i] = s1[i] = 0.0f;
    auto finish = [&](float(&s)[32], int32_t j) {
      pin(s);
      make_p<S>(p, s, r, shared, tile + (uint32_t)j, j); /* 2. reference, 3. P */
    };
    issue_scores<S>(s0, q, shared, tile); /* 1. scores */
    int32_t j = 0;
#pragma unroll 1
    for (; j + 2 < n; j += 2) {
      issue_scores<S>(s1, q, shared, tile + (uint32_t)j + 1);
      wgmma_wait<2>();
      finish(s0, j);
      issue_scores<S>(s0, q, shared, tile + (uint32_t)j + 2);
      wgmma_wait<2>();
      finish(s1, j + 1);
    }
    if (j + 1 < n) {
      issue_scores<S>(s1, q, shared, tile + (uint32_t)j + 1);
      wgmma_wait<2>();
      finish(s0, j);
      wgmma_wait<0>();
      finish(s1, j + 1);
    } else {
      wgmma_wait<0>();
      finish(s0, j);
    }
  }

  static AMLA_DEVICE void value_tiles(const amla_cuda_params &p, const tensor_map *map,
                                      float (&o)[128], uint32_t shared, uint32_t tile,
                                      int32_t warpgroup) {
    const span s = read_span(shared + S::ITEM);
    const uint32_t last = tile + (uint32_t)(s.tile_end - s.tile_begin);
    int32_t visible = s.end - s.tile_begin * S::TILE; /* keys from this tile on that a row sees */
#pragma unroll 1
    for (; tile != last; tile++, visible -= S::TILE) {
      wait_for_values<S>(shared, tile, warpgroup);
      clear_hidden<S>(shared, tile, warpgroup, visible);
      rescale<S>(p, o, shared, tile);            /* 4. rescale O */
      add_values<S>(o, shared, tile, warpgroup); /* 5. PV */
      leave_tile<S>(p, map, shared, tile, warpgroup);
    }
  }
};

static_assert(wgmma2<false, 576>::SHARED_BYTES == 222164, "docs/cuda-kernel.md");

} // namespace amla_kernel
#endif
