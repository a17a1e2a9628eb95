/* SPDX-License-Identifier: Apache-2.0
 *
 * The vector core's words: operations on a chunk of up to 16 rows of f32 in the unified buffer, on
 * one number per row, and between the two. A chunk is [rows][512], whatever part of a row is in
 * use; its per-row numbers are [16], contiguous.
 */
#ifndef ASCEND_ROWS_H
#define ASCEND_ROWS_H

#include "../../sim/npu_isa.h"
#include "ascend_tiling.h"

typedef NPU_UB float *ascend_vec; /* [16], or a chunk */

enum {
  ASCEND_WIDTH = ASCEND_TILE_KEYS, /* of a row of a chunk, in elements */
  ASCEND_ROW_BLOCKS = ASCEND_WIDTH * 4 / NPU_BLOCK_BYTES,
  ASCEND_GROUPS = ASCEND_WIDTH / NPU_LANES /* vector repeats per row */
};

#define ASCEND_NONE (-3.402823466e38f) /* a score that is not there: the most negative number */

/* One number per row. */
static inline npu_vec ascend_per_row(int32_t rows) {
  return npu_vec_rows(1, ((uint64_t)1 << rows) - 1, 8, 8, 8);
}

/* One number per row, of all rows of a vector core. */
static inline npu_vec ascend_all_rows(int32_t rows) {
  if (rows % NPU_LANES)
    return npu_vec_count(rows);
  return npu_vec_rows(rows / NPU_LANES, NPU_MASK_ALL, 8, 8, 8);
}

/* All of a chunk, contiguous; for operations of one source, or of two chunks. */
static inline npu_vec ascend_chunk(int32_t rows) {
  return npu_vec_rows(rows * ASCEND_GROUPS, NPU_MASK_ALL, 8, 8, 8);
}

/* Column group g of all rows, with one block of eight equal numbers per row as second source. */
static inline npu_vec ascend_by_row(int32_t rows) {
  return npu_vec_rows_by_block(rows, NPU_MASK_ALL, ASCEND_ROW_BLOCKS, ASCEND_ROW_BLOCKS, 1);
}

/* One number per row -> one block per row, eight times the number. rows <= 16. */
static inline void ascend_spread(ascend_vec blocks, NPU_UB const float *per_row) {
  npu_brcb_f32(blocks, per_row, npu_vec_rows(ASCEND_CHUNK_ROWS / 8, NPU_MASK_ALL, 8, 8, 8));
}

static inline void ascend_sub_rows(ascend_vec chunk, NPU_UB const float *blocks, int32_t rows) {
  for (int32_t g = 0; g < ASCEND_GROUPS; g++)
    npu_sub_f32(chunk + g * NPU_LANES, chunk + g * NPU_LANES, blocks, ascend_by_row(rows));
}
static inline void ascend_mul_rows(ascend_vec dst, NPU_UB const float *chunk,
                                   NPU_UB const float *blocks, int32_t rows) {
  for (int32_t g = 0; g < ASCEND_GROUPS; g++)
    npu_mul_f32(dst + g * NPU_LANES, chunk + g * NPU_LANES, blocks, ascend_by_row(rows));
}
static inline void ascend_div_rows(ascend_vec dst, NPU_UB const float *chunk,
                                   NPU_UB const float *blocks, int32_t rows) {
  for (int32_t g = 0; g < ASCEND_GROUPS; g++)
    npu_div_f32(dst + g * NPU_LANES, chunk + g * NPU_LANES, blocks, ascend_by_row(rows));
}

/* Every row times the same [512] numbers. */
static inline void ascend_mul_columns(ascend_vec chunk, NPU_UB const float *numbers, int32_t rows) {
  for (int32_t g = 0; g < ASCEND_GROUPS; g++)
    npu_mul_f32(chunk + g * NPU_LANES, chunk + g * NPU_LANES, numbers + g * NPU_LANES,
                npu_vec_rows(rows, NPU_MASK_ALL, ASCEND_ROW_BLOCKS, ASCEND_ROW_BLOCKS, 0));
}

/* [rows][ASCEND_COLUMNS]: every column = its row's number. */
static inline void ascend_fill_rows(NPU_UB int32_t *dst, NPU_UB const int32_t *blocks,
                                    int32_t rows) {
  npu_vec v = npu_vec_rows(rows, NPU_MASK_ALL, ASCEND_COLUMNS * 4 / NPU_BLOCK_BYTES, 1, 0);
  v.src0_block = 0;
  for (int32_t at = 0; at < ASCEND_COLUMNS; at += NPU_LANES)
    npu_adds_s32(dst + at, blocks, 0, v);
}

/* Row maxima and row sums: 512 -> 64 -> 8 -> 1. work: [16][64] + [16][8]. */
static inline void ascend_row_max(ascend_vec per_row, NPU_UB const float *chunk, ascend_vec work,
                                  int32_t rows) {
  ascend_vec work8 = work + ASCEND_CHUNK_ROWS * NPU_LANES;
  npu_block_max_f32(work, chunk, npu_vec_rows(rows * ASCEND_GROUPS, NPU_MASK_ALL, 1, 8, 0));
  npu_block_max_f32(work8, work, npu_vec_rows(rows, NPU_MASK_ALL, 1, 8, 0));
  npu_block_max_f32(per_row, work8, npu_vec_rows(ASCEND_CHUNK_ROWS / 8, NPU_MASK_ALL, 1, 8, 0));
}
static inline void ascend_row_sum(ascend_vec per_row, NPU_UB const float *chunk, ascend_vec work,
                                  int32_t rows) {
  ascend_vec work8 = work + ASCEND_CHUNK_ROWS * NPU_LANES;
  npu_block_sum_f32(work, chunk, npu_vec_rows(rows * ASCEND_GROUPS, NPU_MASK_ALL, 1, 8, 0));
  npu_block_sum_f32(work8, work, npu_vec_rows(rows, NPU_MASK_ALL, 1, 8, 0));
  npu_block_sum_f32(per_row, work8, npu_vec_rows(ASCEND_CHUNK_ROWS / 8, NPU_MASK_ALL, 1, 8, 0));
}

/* 0 in rows whose scores are finite, NaN in others: a score of -inf would otherwise pass for a key
 * of no weight. */
static inline void ascend_row_poison(ascend_vec per_row, NPU_UB const float *chunk, ascend_vec work,
                                     int32_t rows) {
  ascend_vec work8 = work + ASCEND_CHUNK_ROWS * NPU_LANES;
  npu_block_sum_f32(work, chunk, npu_vec_rows(rows * ASCEND_GROUPS, NPU_MASK_ALL, 1, 8, 0));
  npu_muls_f32(work, work, 0.0f, npu_vec_rows(rows, NPU_MASK_ALL, 8, 8, 0));
  npu_block_sum_f32(work8, work, npu_vec_rows(rows, NPU_MASK_ALL, 1, 8, 0));
  npu_block_sum_f32(per_row, work8, npu_vec_rows(ASCEND_CHUNK_ROWS / 8, NPU_MASK_ALL, 1, 8, 0));
}

/* Columns [from, 512) of rows = value. */
static inline void ascend_fill_from(ascend_vec row, int32_t from, int32_t rows, float value) {
  for (int32_t g = from / NPU_LANES; g < ASCEND_GROUPS; g++) {
    const int32_t skip = ascend_max(0, from - g * NPU_LANES);
    npu_dup_f32(row + g * NPU_LANES, value,
                npu_vec_rows(rows, NPU_MASK_ALL << skip, ASCEND_ROW_BLOCKS, 0, 0));
  }
}

#endif
