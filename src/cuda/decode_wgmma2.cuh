/* SPDX-License-Identifier: Apache-2.0
 *
 * Decode attention on Hopper, two key tiles deep; the steps are in wgmma_steps.cuh.
 *
 *     keys         | K0 K1 |    |  K2  |    |  K3  |    asked for when PV has left the stage
 *     warpgroup 2  |    S0 | P0 | S1   | P1 | S2   | P2 |
 *     warpgroup 0  |            | PV0  |    | PV1  |    |    columns 0..255
 *     warpgroup 1  |            | PV0  |    | PV1  |    |    columns 256..511
 *
 * PV of a tile and the scores of the next one share the tensor cores, which wait while P is made; P
 * does not wait for the keys of the next tile.
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
  static constexpr int Q_STEPS = 16; /* at least 8, where P goes */
  static constexpr int Q = 2 * shape::STAGE_BYTES, P = Q, P_STEP = PIECE_BYTES;
  static constexpr int NEXT = shape::SHARED_BYTES, SHARED_BYTES = NEXT + ITEM_BYTES;

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

  static AMLA_DEVICE void scores_are_done(uint32_t, uint32_t) {}
  static AMLA_DEVICE void wait_for_turn(uint32_t, uint32_t) {}
};

static_assert(wgmma2<false, 576>::SHARED_BYTES == 222268, "docs/cuda-kernel.md");

} // namespace amla_kernel
#endif
