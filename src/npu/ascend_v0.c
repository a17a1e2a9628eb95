/* SPDX-License-Identifier: Apache-2.0
 *
 * V0: a key tile of an int8 cache becomes f16 in global memory, where the cube core reads it. The
 * conversion is exact; the tokens' scales go to scores and P instead (ascend_v1.c). The two vector
 * cores share the tokens.
 */
#include "ascend_ub.h"

/* Keys at a time: their f16 rows fill a slot, and a cast has at most 255 repeats. */
enum { MY_KEYS = ASCEND_TILE_KEYS / 2, RUN_KEYS = 28 };
typedef char run_fits_a_slot[RUN_KEYS * ASCEND_MAX_QK * 2 <= ASCEND_CHUNK_BYTES ? 1 : -1];

typedef struct run {
  int64_t token; /* of the cache: page * page_size + slot */
  int32_t n;
} run;

/* Keys from `key` on, at most n, that lie together. */
static run run_at(const ascend_job *j, int32_t sequence, int32_t key, int32_t n) {
  const int32_t slot = key % j->page_size;
  int64_t page = sequence;
  if (j->block_table)
    page = npu_read_gm_s32(j->block_table + (int64_t)sequence * j->max_pages + key / j->page_size);
  const run r = {page * j->page_size + slot, ascend_min(n, j->page_size - slot)};
  return r;
}

void ascend_fetch_scales(ascend_vectors *v, const ascend_tile *t) {
  (void)ascend_ring_acquire(&v->scales);
  for (int32_t i = 0; i < t->keys;) {
    const run r = run_at(v->j, t->sequence, t->key_begin + i, t->keys - i);
    npu_copy_gm_ub(ascend_ub(ASCEND_UB_SCALES) + i, v->j->kv_scales + r.token, 1, r.n * 4, 64, 64);
    i += r.n;
  }
  /* The scores that MTE2 fetches behind them tell V that they are there. */
}

/* Keys [key, key + n) of the key tile, n at most RUN_KEYS. */
static void convert(ascend_vectors *v, const ascend_tile *t, int32_t tile, int32_t key, int32_t n) {
  const int32_t d = v->j->d_qk;
  NPU_UB int8_t *in = (NPU_UB int8_t *)ascend_in_slot(ascend_ring_acquire(&v->in));
  for (int32_t i = 0; i < n;) {
    const run r = run_at(v->j, t->sequence, t->key_begin + key + i, n - i);
    npu_copy_gm_ub(in + i * d, v->j->kv8 + r.token * d, 1, r.n * d, d, d);
    i += r.n;
  }
  ascend_ring_commit(&v->in);
  (void)ascend_ring_take(&v->in);
  NPU_UB npu_f16 *out = (NPU_UB npu_f16 *)ascend_out_slot(ascend_ring_acquire(&v->out));
  npu_cast_s8_f16(out, in, npu_vec_rows(n * d / NPU_LANES, NPU_MASK_ALL, 4, 2, 0));
  ascend_ring_release(&v->in), ascend_ring_commit(&v->out);
  (void)ascend_ring_take(&v->out);
  npu_copy_ub_gm(ascend_kv_slot(v->j, tile) + (int64_t)key * d, out, 1, n * d * 2, 64, 64);
  ascend_ring_release(&v->out);
}

void ascend_v0(ascend_vectors *v, const ascend_tile *t, int32_t tile) {
  if (!v->j->kv8)
    return;
  const int32_t begin = npu_subcore() * MY_KEYS, end = ascend_min(t->keys, begin + MY_KEYS);
  for (int32_t key = begin; key < end; key += RUN_KEYS)
    convert(v, t, tile, key, ascend_min(RUN_KEYS, end - key));
  npu_cross_set(NPU_PIPE_MTE3, ASCEND_KV_READY);
}
