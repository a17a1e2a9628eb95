/* SPDX-License-Identifier: Apache-2.0
 *
 * V1's arithmetic: a chunk of scores becomes a chunk of P, and the numbers kept per row move on.
 * One function per rescale mode; which formula comes from where is in ascend_softmax.c.
 */
#ifndef ASCEND_SOFTMAX_H
#define ASCEND_SOFTMAX_H

#include "ascend_job.h"
#include "ascend_rows.h"

/* Numbers per row of an item, [ASCEND_HALF_ROWS] each. */
enum {
  ASCEND_M, /* flash, amla: running maximum of the scores; lazy: the reference e, an integer in log2
               units */
  ASCEND_L, /* sum of P before rounding */
  ASCEND_L_OUT, /* lazy: sum of the rounded P */
  ASCEND_N,     /* amla: n, S16 and c = S32 / S16 */
  ASCEND_S16,
  ASCEND_C,
  ASCEND_STATS
};

/* Where a chunk's numbers are: pointers into the unified buffer, at the chunk's first row. Numbers
 * of one row block and key tile are [ASCEND_HALF_ROWS], so that what does not depend on the chunk
 * is done for all rows at once, after the last chunk. */
enum { ASCEND_WIDE = 6 };
typedef struct ascend_chunk_state {
  ascend_vec stat[ASCEND_STATS];
  ascend_vec factor;            /* flash: what O is multiplied by in this key tile */
  NPU_UB int32_t *add;          /* amla: N; lazy: what the shift adds to the bits of O */
  ascend_vec moved;             /* lazy: > 0 in rows whose reference moved although they had one */
  ascend_vec m_old;             /* flash, amla: m before this key tile */
  ascend_vec next;              /* amla: n, lazy: e, of this key tile */
  ascend_vec s32;               /* amla */
  ascend_vec sum, sum_out;      /* of this key tile's P, as l and l_out */
  ascend_vec wide[ASCEND_WIDE]; /* [128] each, work space */
  ascend_vec work, spread;      /* [16][72] and [16][8] of work space */
  ascend_vec temp[8];           /* [16] each */
  int32_t f16;                  /* P is f16, else bf16 */
  int32_t p_nz;                 /* P is an NZ matrix of the chunk's rows, else rows of 512 */
  NPU_UB const float *scales;   /* [512] of V, per key, that P takes on; NULL = 1 */
  NPU_UB npu_bf16 *temp16;      /* [16] */
  NPU_UB uint8_t *bits;         /* [8] */
  NPU_UB const float *ln2;      /* [16] = ln 2 */
  NPU_UB const float *one;      /* [16] = 1 */
} ascend_chunk_state;

/* Columns of a chunk that its rows see, where that is not all: `runs` of rows, each with its number
 * of keys. */
typedef struct ascend_sight {
  int32_t runs;
  int32_t row[ASCEND_CHUNK_ROWS + 1],
      keys[ASCEND_CHUNK_ROWS]; /* run i: rows [row[i], row[i + 1]) */
} ascend_sight;

/* amla: the most that n falls by in one tile. As published, which leaves 2^-30 of an old O; and
 * what takes any number to zero. */
#define ASCEND_LEAST_PUBLISHED (-30.0f)
#define ASCEND_LEAST (-254.0f)

/* One key tile of a row block: begin, chunks, end. begin and end: c at row 0, rows of all chunks.
 */
void ascend_softmax_begin(const ascend_chunk_state *c, int32_t rows);
/* s: scaled scores [rows][512], destroyed; p [rows][512]. */
void ascend_softmax_chunk(ascend_mode mode, const ascend_chunk_state *c, ascend_vec s,
                          NPU_UB npu_bf16 *p, const ascend_sight *sight, int32_t rows);
/* least: of amla. Then l, factor, add and moved are those of this key tile. */
void ascend_softmax_end(ascend_mode mode, const ascend_chunk_state *c, float least, int32_t rows);

/* O's divisor and the natural-log LSE of the rows; a row that has seen no key: 1 and -inf. */
void ascend_divisor(const ascend_chunk_state *c, ascend_mode mode, ascend_vec divisor,
                    ascend_vec lse, int32_t rows);

/* y = x with add, per row <= 0, added to its bits, except that zero, subnormals and what would
 * become one give zero of x's sign; inf and NaN stay. For add = k * 2^23 that is x * 2^k. x, y, z:
 * [rows][512]; z is work space. rows <= 8. */
void ascend_guarded_shift(const ascend_chunk_state *c, ascend_vec y, NPU_UB const float *x,
                          ascend_vec z, int32_t rows);

/* The same for an add of either sign, at most 2^23: what would overflow becomes inf of x's sign. */
void ascend_guarded_add(const ascend_chunk_state *c, ascend_vec y, NPU_UB const float *x,
                        ascend_vec z, int32_t rows);

/* What one published kernel does at the end: |x| > limit, and NaN, become 0. work: a chunk. */
void ascend_clamp(const ascend_chunk_state *c, ascend_vec x, ascend_vec work, float limit,
                  int32_t rows);

#endif
