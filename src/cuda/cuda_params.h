/* SPDX-License-Identifier: Apache-2.0
 *
 * What a CUDA kernel sees of a plan and its tensors, and how it cuts the work: pure arithmetic that
 * compiles as C, as C++ and as device code, so that the CPU tests run the very functions that the
 * kernels run.
 *
 * A sequence's rows (row = query * h_q + head) form blocks of block_rows; a (sequence, block) is a
 * group; a group's keys form splits of whole tiles. An item is one split of one group. Items stand
 * in one line: sequence by sequence, within a sequence split by split, within a split block by
 * block, so that neighbours read the same keys while they are in L2. Thread blocks take items in
 * that order from a ticket counter. A split's place depends on the rows and on the sequence's own
 * length, never on the batch.
 */
#ifndef AMLA_CUDA_PARAMS_H
#define AMLA_CUDA_PARAMS_H

#include <stdint.h>

#ifdef __CUDACC__
#define AMLA_HD __host__ __device__ __forceinline__
#else
#define AMLA_HD static inline
#endif

enum { AMLA_CUDA_D_V = 512 };

/* Of a group with several splits: those that are in their slots, and the pieces of its merge that
 * have been taken and that are done. */
enum { AMLA_CUDA_ARRIVED, AMLA_CUDA_TAKEN, AMLA_CUDA_MERGED, AMLA_CUDA_GROUP_WORDS };

typedef struct amla_cuda_params {
  /* tensors; strides in elements */
  const void *q, *kv;
  const int32_t *block_table; /* [b][max_pages] or NULL */
  const int32_t *seqlens_k;   /* [b] or NULL */
  const float *sinks;         /* [h_q] or NULL */
  void *out;
  float *lse;
  int64_t q_stride_batch, q_stride_query, q_stride_head;
  int64_t out_stride_batch, out_stride_query, out_stride_head;
  int64_t kv_stride_page, kv_stride_token;
  int64_t n_pages;
  int32_t b, s_q, h_q, sk, d_qk;
  int32_t page_size, max_pages; /* page_size 0: contiguous, one page of sk tokens per sequence */
  int32_t causal, flash, lse_base2;
  int32_t out_type; /* amla_dtype */
  /* rows start at multiples of 16 bytes (vector_out: of two elements) */
  int32_t vector_q, vector_kv, vector_out, bulk_out;
  float scale_log2; /* scale * log2(e) */

  /* scratch; the first four are zeroed on the stream before the kernel starts */
  uint32_t *status; /* include/amla/amla_cuda.h */
  uint32_t *ticket; /* next item */
  uint32_t *groups; /* [b][n_blocks][AMLA_CUDA_GROUP_WORDS] */
  uint32_t *freed; /* [n_slots]: one more than the place in line of the last tenant that has left */
  float *partial_o;   /* [n_slots][block_rows][512], not normalised */
  float *partial_ref; /* [n_slots][3][block_rows]: reference, sum of P, sum of rounded P */
  int32_t n_slots;

  /* cuts */
  int32_t rows, block_rows, n_blocks, tile_tokens;
  /* at most max_splits of at least about split_base_tokens; multiple of tile_tokens */
  int32_t split_base_tokens, max_splits;
  int32_t n_clusters; /* > 0: of two thread blocks each, which take neighbouring row blocks */
  int32_t auto_items; /* > 0: AMLA_SPLIT_AUTO, aim at so many items of the whole batch */
} amla_cuda_params;

AMLA_HD int32_t amla_cuda_min(int32_t a, int32_t b) { return a < b ? a : b; }
AMLA_HD int32_t amla_cuda_max(int32_t a, int32_t b) { return a > b ? a : b; }
AMLA_HD int32_t amla_cuda_ceil_div(int32_t a, int32_t b) {
  return (int32_t)(((uint32_t)a + (uint32_t)b - 1u) / (uint32_t)b);
} /* a, b >= 0 */

/* The length that is used: whatever stands in device memory, it stays inside the cache. */
AMLA_HD int32_t amla_cuda_clamp_length(int32_t n, int32_t sk) {
  return amla_cuda_min(amla_cuda_max(n, 0), sk);
}

/* Keys that query `query` sees of a sequence of that length: [0, result). */
AMLA_HD int32_t amla_cuda_visible(int32_t length, int32_t s_q, int32_t query, int32_t causal) {
  const int64_t n = causal ? (int64_t)length - s_q + query + 1 : length;
  return n > 0 ? (int32_t)n : 0;
}

/* Splits of a sequence of that length; base = least tokens of a split. */
AMLA_HD int32_t amla_cuda_n_splits(int32_t length, int32_t base, int32_t max_splits) {
  const int32_t n = amla_cuda_ceil_div(length, base);
  return n < 1 ? 1 : amla_cuda_min(n, max_splits);
}

/* AMLA_SPLIT_AUTO: least tokens of a split when the batch has so many tokens times blocks. */
AMLA_HD int32_t amla_cuda_auto_base(int64_t block_tokens, int32_t auto_items, int32_t tile_tokens) {
  const int64_t per_item = block_tokens / auto_items / tile_tokens * tile_tokens + tile_tokens;
  const int64_t least = 2 * (int64_t)tile_tokens, most = 1 << 30;
  if (per_item < least)
    return (int32_t)least;
  return (int32_t)(per_item < most ? per_item : most);
}

/* First tile of split i of n: as equal in number as whole tiles can be. */
AMLA_HD int32_t amla_cuda_split_begin(int32_t n_tiles, int32_t n_splits, int32_t i) {
  return (int32_t)((int64_t)i * n_tiles / n_splits);
}

/* The default rule. A split writes and reads back block_rows x 512 f32 through L2, which costs as
 * much as about 4 % of the keys at 64 tokens per row; fewer rows can have shorter splits. Sequences
 * with many rows have enough blocks to fill a GPU with fewer splits. */
AMLA_HD int32_t amla_cuda_rule_base(int32_t rows, int32_t block_rows) {
  return amla_cuda_max(512, 64 * amla_cuda_min(rows, block_rows));
}
AMLA_HD int32_t amla_cuda_rule_max_splits(int32_t rows) {
  return amla_cuda_min(64, amla_cuda_max(1, 1024 / rows));
}

/* ---- Where things lie ---- */

/* Element offset of token j of a sequence, given its page (a table entry, or the sequence itself).
 */
AMLA_HD int64_t amla_cuda_token_offset(const amla_cuda_params *p, int64_t page, int32_t slot) {
  return page * p->kv_stride_page + slot * p->kv_stride_token;
}
AMLA_HD int64_t amla_cuda_q_offset(const amla_cuda_params *p, int32_t sequence, int32_t row) {
  return sequence * p->q_stride_batch + row / p->h_q * p->q_stride_query +
         row % p->h_q * p->q_stride_head;
}
AMLA_HD int64_t amla_cuda_out_offset(const amla_cuda_params *p, int32_t sequence, int32_t row) {
  return sequence * p->out_stride_batch + row / p->h_q * p->out_stride_query +
         row % p->h_q * p->out_stride_head;
}
AMLA_HD int64_t amla_cuda_lse_offset(const amla_cuda_params *p, int32_t sequence, int32_t row) {
  return ((int64_t)sequence * p->h_q + row % p->h_q) * p->s_q + row / p->h_q;
}

/* Tokens of one box of the tensor map over the cache, for the wgmma kernel; 0 when that kernel does
 * not take such pages. Contiguous: 64. */
AMLA_HD int32_t amla_cuda_box_tokens(int32_t page_size) {
  if (page_size % 64 == 0)
    return 64;
  return page_size == 16 || page_size == 32 ? page_size : 0;
}

/* ---- Layouts of tiles in shared memory ---- */

/* Byte of 16-byte chunk `chunk` of row `row` in rows of row_bytes (a multiple of 128): chunks are
 * permuted within 128 bytes by the row's low three bits, so that eight rows of one column of chunks
 * lie in eight different bank groups. In 128-byte rows this is the TMA's and wgmma's 128-byte
 * swizzle. */
AMLA_HD uint32_t amla_cuda_swizzle(uint32_t row, uint32_t chunk, uint32_t row_bytes) {
  return row * row_bytes + ((chunk ^ (row & 7u)) << 4);
}

/* The 128-byte swizzle as hardware applies it: to the address bits of an array that starts at a
 * multiple of 1024. */
AMLA_HD uint32_t amla_cuda_swizzle_address(uint32_t address) {
  return address ^ ((address >> 7 & 7u) << 4);
}

/* Row and first of two columns of the f32 pair i of a lane in a 16-row fragment of an m16n8
 * accumulator row of tiles: pairs 0, 1 belong to columns 0..7, pairs 2, 3 to columns 8..15, ...
 * (PTX ISA, mma.m16n8k16; wgmma has the same in each warp's 16 rows). */
AMLA_HD int32_t amla_cuda_fragment_row(int32_t lane, int32_t pair) {
  return (lane >> 2) + 8 * (pair & 1);
}
AMLA_HD int32_t amla_cuda_fragment_column(int32_t lane, int32_t pair) {
  return 2 * (lane & 3) + 8 * (pair >> 1);
}

/* ---- References ---- */

/* The lazy rule: the next integer reference for a row whose largest score (log2 units) in this tile
 * is max. -inf before the first visible key. With f16 P it stays 7 lower, so that small weights do
 * not vanish, and moves at 15 instead of 8 above. */
AMLA_HD float amla_cuda_next_reference(float reference, float max, float ceil_max, int32_t f16_p) {
  const float tau = f16_p ? 15.0f : 8.0f;
  const float headroom = f16_p ? 7.0f : 0.0f;
  return max > reference + tau ? ceil_max - headroom : reference;
}

/* 2^k for integers k in [-126, 127]; 0 below, which also is what -inf and NaN give. */
AMLA_HD float amla_cuda_pow2(float k) {
  const union {
    uint32_t u;
    float f;
  } x = {k >= -126.0f ? (uint32_t)((int32_t)k + 127) << 23 : 0u};
  return x.f;
}

/* A power of two down to 2^-252 as two factors, each exact: one factor would lose what is 2^127
 * times smaller than the new reference, and a V that is as much larger could show that. */
typedef struct amla_cuda_factor {
  float a, b;
} amla_cuda_factor;
AMLA_HD amla_cuda_factor amla_cuda_shift_factor(float k) {
  const float rest = k < -126.0f ? k + 126.0f : 0.0f;
  const amla_cuda_factor f = {amla_cuda_pow2(k < -126.0f && k >= -252.0f ? -126.0f : k),
                              amla_cuda_pow2(rest)};
  return f;
}

#endif
