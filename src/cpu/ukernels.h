/* SPDX-License-Identifier: Apache-2.0
 *
 * The micro-kernels of the CPU backend: one table per instruction set, chosen at run time. decode.c has the loop and no
 * ISA code; the ukr__*.c files have ISA code and no loop over the problem.
 *
 * Lanes run along query rows for scores (so that softmax needs no horizontal step) and along d_v for the output. Rows come
 * in panels of `rows` lanes; a tile's scores S^T and weights P^T are [token][rows] per panel, contiguous.
 * All arithmetic is f32. Each function computes each element in an order that depends on its own arguments only, never on where the
 * element stands in a register tile: that, and fixed orders above, is why results are bit-identical for any thread count.
 */
#ifndef AMLA_CPU_UKERNELS_H
#define AMLA_CPU_UKERNELS_H

#include "../base/dtype.h"
#include "../base/store.h"

/* KV rows that qk converts to f32 on the side: loads, shifts and stores fill the slots that its FMAs leave. Row i at src[i] goes to
 * dst + i * ldk; that at src[tokens + i], with the panel's tokens, is fetched into cache meanwhile. The panel's `ahead` says whether these are
 * k's own rows (dst = k) or others. */
typedef struct amla_ukr_stage {
  amla_dtype type;
  int32_t n_rows;
  const void *const *src; /* -> [d_qk] */
  float *dst;             /* [n_rows][ldk], 64-byte aligned rows */
} amla_ukr_stage;

/* f32 rows of a type that is `split` have each whole 32 columns as 16 even ones, then 16 odd ones, which saves the conversion half its
 * shuffles. Q^T is packed alike, and O comes out alike until it is stored. */

/* A partial result that pv adds its own to: row r of the sum is of_a[r] * a + of_b[r] * o, rounded as by merge. */
typedef struct amla_ukr_merge {
  const float *a, *of_a, *of_b; /* a [pv_rows][pv_cols] */
} amla_ukr_merge;

/* Kernels whose lanes are the rows of one panel. */
typedef struct amla_ukr_panel {
  int32_t rows;   /* lanes: a multiple of pv_rows, at most AMLA_UKR_MAX_ROWS */
  int32_t tokens; /* of a score register tile; divides tile_tokens; that of narrow is a multiple of that of wide */
  int32_t depth;  /* columns of Q^T that lie side by side: Q^T is [d / depth][rows][depth], then a rest of columns [d % depth][rows] */

  int32_t ahead;  /* 0: the stage of qk has its own n rows, converted before they are read; 1: the next call's, in parts */

  /* qt = factor * Q^T: column i of row r < n is factor * element i of q[r], or stands where `split` wants it; rows from n on are 0.
   *   q [n] -> [d] of f32, bf16 or f16 */
  void (*pack)(int32_t n, int32_t d, amla_dtype type, const void *const *q, float factor, int split, float *qt);

  /* s [n][rows] = K Q^T: s[i][r] = sum_d k[i * ldk + d] * column d of row r; 1 <= n <= tokens. Up to `tokens` rows may be read and written.
   * Does the stage too.
   *   k [tokens][ldk], qt as packed, 64-byte aligned like s */
  void (*qk)(int32_t n, int32_t d_qk, const float *k, int64_t ldk, const float *qt, float *s, const amla_ukr_stage *stage);

  /* max [rows]: max[r] = max over tokens j < min(n, visible[r]) of s[j][r], ignoring NaN; -inf if there is none. */
  void (*max)(int32_t n, const float *s, const int32_t *visible, float *max);

  /* P = 2^(s - ref) in place, and its sum; for j < n:
   *     p = j < visible[r] ? exp2(s[j][r] - ref[r]) + 0 * s[j][r] : 0     sum[r] = sum_j p     s[j][r] = p * mul[r]
   * 0 * s carries NaN and inf into the row whatever the exponential makes of them. exp2 is within 2
   * ulp on [-86, 16]; below (AMLA_EXP2_MIN) it is 0.
   * s - ref <= 16. */
  void (*exp)(int32_t n, float *s, const float *ref, const float *mul, const int32_t *visible, float *sum);
} amla_ukr_panel;

enum { AMLA_UKR_MAX_ROWS = 32 };

/* out [pv_rows][pv_cols] contiguous = P V, plus o unless first: o[r][c] + sum_j p[j * ldp + r] * v[j * ldv + c], the sum over
 * j < n in order, from 0; that then merged with the n_merges partial results, one after the other. out may be o or any of them.
 * v, o and out aligned to whole vectors, ldv a multiple of 16. */
typedef void amla_ukr_pv(int32_t n, const float *p, int64_t ldp, const float *v, int64_t ldv, int first, const float *o, int32_t n_merges,
                         const amla_ukr_merge *merges, float *out);

/* An output register tile for the last columns: the same sums for `rows` rows, of which only the first `cols` of pv_cols columns are read and
 * written. */
typedef struct amla_ukr_pv_end {
  int32_t rows, cols; /* rows: a multiple of pv_rows that divides those of panels */
  amla_ukr_pv *pv;    /* NULL: there is none */
} amla_ukr_pv_end;

typedef struct amla_ukernels {
  amla_isa isa;
  const char *name;     /* "c", "avx2", "avx512" */
  int32_t tile_tokens;  /* KV tokens per tile */
  int32_t pv_rows;      /* rows of an output register tile */
  int32_t pv_cols;      /* columns of an output register tile: a multiple of 8 */

  amla_ukr_panel wide, narrow; /* wide.rows >= narrow.rows; the last rows of a block may use a narrow panel */

  int32_t split[4]; /* by amla_dtype: are its rows split */

  /* dst [n] f32 = src [n] of that amla_dtype, exactly, split or not; n a multiple of its block. dst 64-byte aligned. */
  void (*load[4])(int32_t n, const void *src, float *dst);

  /* By amla_dtype: element d + i of row r's out = ends[r].factor * o[r][i], i < cols, o [rows][pv_cols], split or not. Rows without `out` are
   * left out. */
  void (*store[3])(int32_t rows, int32_t cols, const float *o, int split, const amla_row_end *ends, int32_t d);

  amla_ukr_pv *pv;
  amla_ukr_pv_end pv_end;

  /* o [rows][pv_cols]: row r times f[r]; or times 2^k[r] as amla_expshift, k in [-512, 512], rows with k[r] = 0 left
   * alone; or row r = f[r] * o + g[r] * b, rounded twice (portable C: three times), exact but for the sum where f and g are powers of 2. */
  void (*scale)(int32_t rows, float *o, const float *f);
  void (*shift)(int32_t rows, float *o, const int32_t *k);
  void (*merge)(int32_t rows, float *o, const float *f, const float *b, const float *g);
} amla_ukernels;

/* A `store` for rows that are not split, by one that stores a row. */
static inline void amla_ukr_store_rows(amla_store store, amla_dtype type, int32_t rows, int32_t cols, const float *o, int32_t pv_cols,
                                       const amla_row_end *ends, int32_t d) {
  for (int32_t r = 0; r < rows; r++)
    if (ends[r].out) store(cols, o + r * pv_cols, ends[r].factor, (char *)ends[r].out + amla_elems_bytes(type, d));
}

/* The table's rows, in rising order; NULL-terminated. Those that this build contains, not those that this CPU can run. */
extern const amla_ukernels *const amla_ukernels_all[];

/* The best row that the CPU can run and the cap allows. */
const amla_ukernels *amla_ukernels_select(amla_isa cap);

extern const amla_ukernels amla_ukernels__c;
extern const amla_ukernels amla_ukernels__avx2;
extern const amla_ukernels amla_ukernels__avx512;

#endif
