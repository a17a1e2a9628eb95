/* SPDX-License-Identifier: Apache-2.0
 *
 * The products of a schedule S (wgmma_steps.cuh) and nothing else: its very shapes, operands,
 * groups and order, each behind what it waits for in the kernel. Keys are there as soon as PV has
 * left their stage; P is there as soon as the scores are. So this is what the schedule reaches when
 * loads and softmax cost nothing.
 */
#ifndef AMLA_PEAK_MIX_CUH
#define AMLA_PEAK_MIX_CUH

#include "wgmma_steps.cuh"

namespace amla_kernel {

template <class S> constexpr double mix_flops_of_tile() {
  return 2.0 * S::ROWS * S::TILE * (16.0 * S::STEPS + AMLA_CUDA_D_V);
}

template <int N> AMLA_DEVICE float sum_of(const float (&x)[N]) {
  float sum = 0.0f;
  for (int i = 0; i < N; i++)
    sum += x[i];
  return sum;
}

template <class S> AMLA_DEVICE float mix_scores(uint32_t shared, uint32_t tiles) {
  float s[32] = {};
  uint32_t q[S::Q_STEPS * 4];
  load_query_registers<S>(q, shared, 0);
#pragma unroll 1
  for (uint32_t tile = 0; tile < tiles; tile++) {
    issue_scores<S>(s, q, shared, tile);
    wgmma_wait<0>();
    pin(s);
    S::scores_are_done(shared, tile);
    mbarrier_arrive(shared + S::P_FULL + 8 * (uint32_t)stage_of<S>(tile));
  }
  return sum_of(s);
}

template <class S>
AMLA_DEVICE float mix_values(uint32_t shared, uint32_t tiles, int32_t warpgroup) {
  float o[128] = {};
#pragma unroll 1
  for (uint32_t tile = 0; tile < tiles; tile++) {
    wait_for_values<S>(shared, tile, warpgroup);
    if (tile + 1 != tiles)
      S::wait_for_turn(shared, tile);
    add_values<S>(o, shared, tile, warpgroup);
    sync_named(BARRIER_VALUES + warpgroup, 128);
    if ((thread_id() & 127) == 0)
      mbarrier_arrive(kv_full<S>(shared, stage_of<S>(tile), warpgroup));
  }
  return sum_of(o);
}

/* By the whole block, from what lies in shared memory before S::KV_FULL. A sum, so that all is
 * computed. */
template <class S> AMLA_DEVICE float mix_tiles(uint32_t shared, uint32_t tiles) {
  const int32_t warpgroup = warpgroup_id();
  if (thread_id() == 0) {
    init_mbarriers<S>(shared);
    for (uint32_t i = 0; i < S::STAGES * 2; i++)
      mbarrier_arrive(shared + S::KV_FULL + 8 * i);
  }
  fence_async_shared();
  sync_block();
  if (warpgroup == 2) {
    registers_up<184>();
    return mix_scores<S>(shared, tiles);
  }
  registers_down<160>();
  return mix_values<S>(shared, tiles, warpgroup);
}

} // namespace amla_kernel
#endif
