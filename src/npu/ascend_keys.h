/* SPDX-License-Identifier: Apache-2.0
 *
 * From global memory to L1: keys and queries, wherever the caller's layout has them. A destination
 * is an NZ matrix of `height` rows; columns count elements of a row of d_qk.
 */
#ifndef ASCEND_KEYS_H
#define ASCEND_KEYS_H

#include "ascend_job.h"

/* A rectangle of rows x columns of a tensor, to be placed at the same columns of `dst`. */
typedef struct ascend_rectangle {
  NPU_L1 npu_bf16 *dst;
  int32_t height;    /* of dst */
  int32_t col, cols; /* [col, col + cols) */
} ascend_rectangle;

/* The part of it that lies in columns [begin, end), counted from begin; 0 columns if none does. */
static inline ascend_rectangle ascend_columns_of(ascend_rectangle r, int32_t begin, int32_t end) {
  const int32_t from = ascend_max(r.col, begin), to = ascend_min(r.col + r.cols, end);
  r.dst += (from - r.col) / 16 * r.height * 16;
  r.col = from - begin, r.cols = ascend_max(0, to - from);
  return r;
}

/* Tokens [slot, slot + run) of a page of `page_size` tokens, to row `row` of the rectangle. nz: the
 * page is columns of 16, [d / 16][page_size][16]; else rows `stride` apart. */
static inline void ascend_load_run(ascend_rectangle r, NPU_GM const npu_bf16 *page,
                                   int32_t page_size, int32_t stride, int32_t nz, int32_t slot,
                                   int32_t run, int32_t row) {
  if (r.cols == 0)
    return;
  if (nz)
    npu_copy_gm_l1(r.dst + row * 16, page + ((int64_t)r.col / 16 * page_size + slot) * 16,
                   r.cols / 16, run * 32, r.height * 32, page_size * 32);
  else
    npu_copy_gm_l1_nd2nz_bf16(r.dst + row * 16, page + (int64_t)slot * stride + r.col, run, r.cols,
                              ascend_max(stride, r.cols), r.height);
}

/* Keys [key, key + n) of a sequence, page by page; latent and rope columns may be two tensors. */
static inline void ascend_load_pages(const ascend_job *j, int32_t sequence, int32_t key, int32_t n,
                                     ascend_rectangle r) {
  const int64_t table = (int64_t)sequence * j->max_pages;
  const ascend_rectangle latent = ascend_columns_of(r, 0, j->d_latent),
                         rope = ascend_columns_of(r, j->d_latent, j->d_qk);
  for (int32_t i = 0, run; i < n; i += run) {
    const int32_t slot = (key + i) % j->page_size;
    int64_t page = sequence;
    if (j->block_table)
      page = npu_read_gm_s32(j->block_table + table + (key + i) / j->page_size);
    run = ascend_min(n - i, j->page_size - slot);
    ascend_load_run(latent, j->kv + page * j->kv_stride_page, j->page_size, j->kv_stride_token,
                    j->kv_nz, slot, run, i);
    ascend_load_run(rope, j->kv_rope + page * j->kv_rope_stride_page, j->page_size,
                    j->kv_rope_stride_token, j->kv_nz, slot, run, i);
  }
}

/* Rows [row, row + n) of a sequence's queries, query by query. */
static inline void ascend_load_queries(const ascend_job *j, int32_t sequence, int32_t row,
                                       int32_t n, ascend_rectangle r) {
  const ascend_rectangle latent = ascend_columns_of(r, 0, j->d_latent),
                         rope = ascend_columns_of(r, j->d_latent, j->d_qk);
  for (int32_t i = 0, run; i < n; i += run) {
    const int32_t query = (row + i) / j->h_q, head = (row + i) % j->h_q;
    run = ascend_min(n - i, j->h_q - head);
    ascend_load_run(latent, j->q + sequence * j->q_stride_batch + query * j->q_stride_query, 0,
                    j->q_stride_head, 0, head, run, i);
    ascend_load_run(rope,
                    j->q_rope + sequence * j->q_rope_stride_batch + query * j->q_rope_stride_query,
                    0, j->q_rope_stride_head, 0, head, run, i);
  }
}

#endif
