/* SPDX-License-Identifier: Apache-2.0
 *
 * The vector program: what every AIV does. Per key tile
 *
 *     V0       kv8 only, one key tile ahead: keys and values -> f16 (ascend_v0.c)
 *     V1       S -> P, and the numbers per row (ascend_v1.c)
 *     rescale  O of the key tiles before, in global memory, follows (ascend_rescale.c)
 *     V2       flash: O = O * factor + PV; at an item's end, all modes: results (ascend_v2.c)
 *
 * Order, with lag 1: V1(t), rescale(t), V2(t - 1). O in global memory sees W(PV0), N1, PV1, N2,
 * PV2, ...
 */
#include "ascend_ub.h"

/* Zeros. Operations work on whole rows and on 16 numbers, whatever part of them is in use, so all
 * must be written once. */
static void clear(int32_t begin, int32_t end) {
  const int32_t most = NPU_MAX_REPEATS * NPU_LANES;
  for (int32_t at = begin; at < end; at += most * 4)
    npu_dup_f32(ascend_ub(at), 0.0f, npu_vec_count(ascend_min(most, (end - at) / 4)));
}

static ascend_vectors open(const ascend_job *j) {
  ascend_vectors v;
  v.j = j, v.tiles = ascend_count_tiles(j);
  v.walk.known = v.walk.item = v.walk.tile = 0;
  const int32_t in_core = j->tiling.in_core, slots = in_core ? 1 : 2;
  clear(ASCEND_UB_IN, ASCEND_UB_OUT);
  if (in_core)
    clear(ASCEND_S_IN_UB, (int)NPU_UB_BYTES_950);
  else
    clear(ASCEND_UB_IN_1, ASCEND_UB_IN_1 + ASCEND_SLOT_BYTES);
  clear(ASCEND_UB_STATS, ASCEND_UB_LN2);
  if (in_core && v.tiles > 0)
    npu_cross_set(NPU_PIPE_V, ASCEND_S_FREE);
  v.in = ascend_ring_open(NPU_PIPE_MTE2, NPU_PIPE_V, slots, 0);
  v.out = ascend_ring_open(NPU_PIPE_V, NPU_PIPE_MTE3, slots, 0);
  v.p = ascend_ring_open(NPU_PIPE_V, NPU_PIPE_MTE3, 2, 2);
  if (j->kv8) /* before MTE2 is told that it may write there */
    clear(ASCEND_UB_SCALES, ASCEND_UB_END);
  v.scales = ascend_ring_open(NPU_PIPE_MTE2, NPU_PIPE_V, j->kv8 ? 1 : 0, 2);
  npu_dup_f32(ascend_ub(ASCEND_UB_LN2), 0.69314718055994530942f, ascend_per_row(16));
  npu_dup_f32(ascend_ub(ASCEND_UB_ONE), 1.0f, ascend_per_row(16));
  return v;
}

void ascend_vector(const void *args) {
  const ascend_job *j = (const ascend_job *)args;
  const int32_t lag = j->tiling.lag;
  ascend_vectors v = open(j);
  if (v.tiles > 0)
    ascend_v0(&v, ascend_tile_at(j, &v.walk, 0), 0);
  for (int32_t t = 0; v.tiles > 0 && t < v.tiles + lag; t++) {
    if (t + 1 < v.tiles)
      ascend_v0(&v, ascend_tile_at(j, &v.walk, t + 1), t + 1);
    if (t < v.tiles) {
      ascend_v1(&v, ascend_tile_at(j, &v.walk, t), t);
      ascend_rescale(&v, ascend_tile_at(j, &v.walk, t), t);
    }
    if (t >= lag)
      ascend_v2(&v, ascend_tile_at(j, &v.walk, t - lag), t - lag);
  }
  if (j->n_merges > 0)
    npu_barrier_all(), ascend_merge_splits(&v);
  ascend_ring_close(&v.in), ascend_ring_close(&v.out), ascend_ring_close(&v.p);
  ascend_ring_close(&v.scales);
}
