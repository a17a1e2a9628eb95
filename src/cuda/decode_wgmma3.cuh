/* SPDX-License-Identifier: Apache-2.0
 *
 * Decode attention on Hopper, three key tiles deep; the steps are in wgmma_steps.cuh.
 *
 *     keys         | K0 K1 |  K2  |  K3   |  K4   |  asked for when PV has left the stage
 *     warpgroup 2  |    S0 | P0 S1 | P1 S2 | P2 S3 |
 *     warpgroup 0  |            | PV0   | PV1   |      columns 0..255
 *     warpgroup 1  |            | PV0   | PV1   |      columns 256..511
 *
 * PV of a tile begins when the scores of the next one are done, so that P of that one is computed
 * beside it; the tensor cores have one kind of product after the other and no gap. Shared memory
 * holds three tiles because Q is in registers: Q_STEPS of its 36 columns of 16. The others, one
 * column and the rope part, have places of their own. P of a tile lies where the rope part of its
 * keys was, which PV does not read. The next keys come there when both warpgroups have read P.
 * Where there is no rope part (512), P has its own place.
 */
#ifndef AMLA_DECODE_WGMMA3_CUH
#define AMLA_DECODE_WGMMA3_CUH

#include "wgmma_steps.cuh"

namespace amla_kernel {

constexpr int wgmma3_large_bytes(int pieces) { /* stages; Q's rope part, or three P; Q's column */
  return 8192 * (3 * pieces + (pieces > 8 ? 1 : 3)) + 2048;
}

template <bool F16_, int D_QK>
struct wgmma3 : wgmma_shape<F16_, D_QK, 3, wgmma3_large_bytes(D_QK / 64)> {
  typedef wgmma_shape<F16_, D_QK, 3, wgmma3_large_bytes(D_QK / 64)> shape;
  typedef wgmma3 S;
  using shape::PIECE_BYTES;
  using shape::STAGE_BYTES;
  static constexpr bool ROPE = shape::PIECES > 8;
  static constexpr int EARLY_TILES = 2; /* Q passes through the third stage */
  static constexpr int Q_STEPS = 31; /* with 32 scores 156 registers: all that 184 leave, less 28 */
  static constexpr int Q_ROPE = 3 * STAGE_BYTES;
  static constexpr int P = ROPE ? 8 * PIECE_BYTES : Q_ROPE;
  static constexpr int P_STEP = ROPE ? STAGE_BYTES : PIECE_BYTES;
  static constexpr int Q_LAST = Q_ROPE + (ROPE ? 1 : 3) * PIECE_BYTES; /* 64 x 16, not swizzled */
  static constexpr int NEXT = Q_LAST; /* between the last scores and the next Q */

  static AMLA_DEVICE uint32_t query_piece(uint32_t shared, uint32_t tile, int32_t piece) {
    return piece < 8 ? kv_piece<S>(shared, stage_of<S>(tile + 2), piece) : shared + Q_ROPE;
  }
  static AMLA_DEVICE uint32_t query_at(uint32_t shared, uint32_t tile, int32_t row, int32_t chunk) {
    const uint32_t last = (uint32_t)(row / 8 * 256 + (chunk & 1) * 128 + row % 8 * 16);
    return chunk / 2 == Q_STEPS ? shared + Q_LAST + last /* 8 x 16 bytes in one piece */
                                : query_piece(shared, tile, chunk / 8) +
                                      amla_cuda_swizzle((uint32_t)row, (uint32_t)(chunk % 8), 128);
  }
  static AMLA_DEVICE uint64_t query_step(uint32_t shared, int32_t i) {
    return i == Q_STEPS ? plain_descriptor(shared + Q_LAST, 128, 256)
                        : rows_descriptor(shared + Q_ROPE + 32 * (uint32_t)(i - 32));
  }

  /* All of the warpgroup has read the rope part, on which its P may lie. */
  static AMLA_DEVICE void scores_are_done(uint32_t shared, uint32_t tile) {
    mbarrier_arrive(scored<S>(shared, tile));
    mbarrier_wait(scored<S>(shared, tile), parity_of<S>(tile));
  }
  /* Scores go first. Both at once would end together, and the tensor cores wait for P. */
  static AMLA_DEVICE void wait_for_turn(uint32_t shared, uint32_t tile) {
    mbarrier_wait(scored<S>(shared, tile + 1), parity_of<S>(tile + 1));
  }
};

/* The same by clusters of two thread blocks: neighbouring row blocks of a split, whose keys come
 * from L2 once. */
template <bool F16_, int D_QK> struct wgmma3c : wgmma3<F16_, D_QK> {
  static constexpr int CLUSTER = 2;
};

static_assert(wgmma3<false, 576>::SHARED_BYTES == 232448, "docs/cuda-kernel.md");

} // namespace amla_kernel
#endif
