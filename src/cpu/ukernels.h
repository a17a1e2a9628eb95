/* SPDX-License-Identifier: Apache-2.0
 *
 * The micro-kernels of the CPU backend: one table per instruction set, chosen at run time. decode.c
 * has the loop and no ISA code; the ukr__*.c files have ISA code and no loop over the problem.
 *
 * Lanes run along query rows for scores, so that softmax needs no horizontal step, and along d_v
 * for the output. Rows come in panels of `rows` lanes. A tile's scores S^T and weights P^T are
 * [token][rows] per panel, contiguous.
 * Each function computes each element in an order that depends on its own arguments only, never on
 * where the element stands in a register tile. That, and the fixed orders above it, is why results
 * are bit-identical for any thread count.
 */
#ifndef AMLA_CPU_UKERNELS_H
#define AMLA_CPU_UKERNELS_H

#include "../base/dtype.h"
#include "../base/load.h"
#include "../base/store.h"

/* A KV row to be converted: row [d_qk] of kv_type, to [ldk] of tile_type, 64-byte aligned. */
typedef struct amla_ukr_move {
  const void *row, *scales; /* as in amla_token_ref */
  void *to;
} amla_ukr_move;

/* The rows that qk converts on the side: loads, shifts and stores fill the slots that its FMAs
 * leave. The row `tokens` moves later, with the panel's tokens, is fetched into cache meanwhile.
 * The panel's `ahead` says whether these are k's own rows (moves[i].to is its row i) or others. */
typedef struct amla_ukr_stage {
  const amla_row_format *format; /* d is d_qk; NULL where n_rows is 0 */
  int32_t n_rows;
  const amla_ukr_move *moves; /* [n_rows + tokens] */
} amla_ukr_stage;

/* Rows of a type that is `even_odd` have, in the tile, each whole 32 columns as 16 even ones, then
 * 16 odd ones, which saves the conversion half its shuffles. Q^T is packed alike, and O comes out
 * alike until it is stored. */

/* Rows whose tile_type is bf16 multiply keys as they are: a bf16 product is exact, and sums are
 * f32. Numbers below 2^-126 count as 0 in products of bf16, and their sums below it become 0.
 *     Q^T   [q_parts][d / depth, rounded up][rows][depth] bf16, columns that are missing 0; then
 *           the factor, [rows] f32, by which qk multiplies its sums: q itself is not rounded. Its
 *           parts, the least first, are what bf16 leaves of it, each rounded to nearest even
 *     keys  columns from d_qk on are 0
 *     P     with p_type bf16, in place of the scores: [n / 2, rounded up][rows][2] bf16, a token
 *           that is missing 0
 *     O     columns in an order of pv's own, which store undoes
 * tests/ukr_model_bf16.c has all of it in C. A row may have other orders of its own, between its qk
 * and `turn` for keys, `turn` and pv for values, exp and pv for P: ukr__neonbf16.c. */

/* A partial result that pv adds its own to: row r of the sum is of_a[r] * a + of_b[r] * o, rounded
 * as by merge. */
typedef struct amla_ukr_merge {
  const float *a, *of_a, *of_b; /* a [pv_rows][pv_cols] */
} amla_ukr_merge;

enum {
  AMLA_UKR_MAX_ROWS = 32,
  AMLA_UKR_MAX_QK_TOKENS = 16,
  AMLA_UKR_MAX_TILE_TOKENS = 128,
  AMLA_UKR_MAX_DEPTH = 4
};

/* Kernels whose lanes are the rows of one panel. */
typedef struct amla_ukr_panel {
  int32_t rows;   /* lanes: a multiple of pv_rows, at most AMLA_UKR_MAX_ROWS */
  int32_t tokens; /* of a score register tile; divides tile_tokens; wide's divides narrow's */
  int32_t depth;  /* columns of Q^T side by side: Q^T is [d / depth][rows][depth], then a rest of
                     columns [d % depth][rows]; at most AMLA_UKR_MAX_DEPTH */
  int32_t ahead;  /* 0: qk's stage is its own n rows, converted before they are read; 1: the next
                     call's, in parts */

  /* qt = factor * Q^T: column i of row r < n is factor * element i of q[r], or stands where
   * `even_odd` wants it; rows from n on are 0.
   *   q [n] -> [d] of f32, bf16 or f16 (tile_type bf16, one part: of bf16);  qt of tile_type */
  void (*pack)(int32_t n, int32_t d, amla_dtype type, const void *const *q, float factor,
               int even_odd, void *qt);

  /* s [n][rows] = K Q^T: s[i][r] = sum_d k[i * ldk + d] * column d of row r; 1 <= n <= tokens. Up
   * to `tokens` rows may be read and written. Does the stage too. k [tokens][ldk] and qt of
   * tile_type, 64-byte aligned like s */
  void (*qk)(int32_t n, int32_t d_qk, const void *k, int64_t ldk, const void *qt, float *s,
             const amla_ukr_stage *stage);

  /* max [rows]: max[r] = max over tokens j < min(n, visible[r]) of s[j][r], ignoring NaN; -inf if
   * there is none. */
  void (*max)(int32_t n, const float *s, const int32_t *visible, float *max);

  /* P = 2^(s - ref) in place of s, of p_type, and its sum in f32; for j < n:
   *     p = j < visible[r] ? exp2(s[j][r] - ref[r]) + 0 * s[j][r] : 0
   *     sum[r] = sum_j p        P[j][r] = p * mul[r]
   * 0 * s carries NaN and inf into the row whatever the exponential makes of them. exp2 is within
   * 2 ulp on [AMLA_EXP2_MIN, 16]; below it is 0. s - ref <= 16. P in bf16 is rounded to nearest
   * even, and sum [2][rows]: sum[rows + r] = sum_j P[j][r] as rounded. */
  void (*exp)(int32_t n, float *s, const float *ref, const float *mul, const int32_t *visible,
              float *sum);
} amla_ukr_panel;

/* out [pv_rows][pv_cols] contiguous = P V, plus o unless first: o[r][c] + sum_j p[j * ldp + r] *
 * v[j * ldv + c], the sum over j < n in order, from 0; that then merged with the n_merges partial
 * results, one after the other. out may be o or any of them.
 *   p of p_type, in bf16 the pair of token j at p + j / 2 * ldp, ldp in pairs; v of tile_type; v, o
 *   and out aligned to whole vectors, ldv a multiple of 16 */
typedef void amla_ukr_pv(int32_t n, const void *p, int64_t ldp, const void *v, int64_t ldv,
                         int first, const float *o, int32_t n_merges, const amla_ukr_merge *merges,
                         float *out);

/* An output register tile for the last columns: the same sums for `rows` rows, of which only the
 * first `cols` of pv_cols columns are read and written. */
typedef struct amla_ukr_pv_end {
  int32_t rows, cols; /* rows: a multiple of pv_rows that divides those of panels */
  amla_ukr_pv *pv;    /* NULL: there is none */
} amla_ukr_pv_end;

typedef struct amla_ukernels {
  amla_isa isa;
  amla_dtype tile_type; /* what keys are converted to: Q^T, K and V */
  amla_dtype p_type;    /* what P is on its way to V */
  amla_p_form p_form;   /* where p_type is not f32: one bf16, or two */
  int32_t q_in_parts;   /* tile_type bf16: q of other types too, as amla_q_parts bf16 */
  int32_t q_parts;      /* the same, but in exactly so many; 0: 1 */
  int32_t tile_tokens;  /* KV tokens per tile: part of the bits */
  int32_t grain_tokens; /* splits begin at multiples of it: part of the bits; 0: of 4 */
  int32_t split_tiles;  /* least tiles of a split, where a merge costs 1.5 %: likewise; 0: 3 */
  int32_t pv_rows;      /* rows of an output register tile */
  int32_t pv_cols;      /* columns of an output register tile: a multiple of 8 */

  amla_ukr_panel wide, narrow; /* the last rows of a block may use a narrow panel */

  int32_t even_odd[AMLA_N_DTYPES]; /* are rows of that kv type, once converted */

  /* Once the scores of a tile's n keys are there: makes of each row's first d_v columns, in place,
   * what pv wants of values; `v_width` elements of tile_type a value, which for 2 are read as f32.
   * NULL and 0: nothing, pv reads the keys. */
  void (*turn)(int32_t n, int32_t d_v, void *tile, int64_t ld);
  int32_t v_width;

  /* dst [format->d] of tile_type = a row, as amla_load_kv_row has it for f32, even_odd or not. dst
   * 64-byte aligned. */
  void (*load)(const amla_row_format *format, const void *row, const void *scales, void *dst);

  /* Element d + i of row r's out = ends[r].factor * o[r][i], i < cols, o [rows][pv_cols], even_odd
   * or not. Rows without `out` are left out. */
  void (*store)(amla_dtype type, int32_t rows, int32_t cols, const float *o, int even_odd,
                const amla_row_end *ends, int32_t d);

  amla_ukr_pv *pv;
  amla_ukr_pv_end pv_end;

  /* o [rows][pv_cols]: row r times f[r]; or times 2^k[r] as amla_expshift, k in [-512, 512], rows
   * with k[r] = 0 left alone; or row r = f[r] * o + g[r] * b, rounded twice (portable C: three
   * times), exact but for the sum where f and g are powers of 2. */
  void (*scale)(int32_t rows, float *o, const float *f);
  void (*shift)(int32_t rows, float *o, const int32_t *k);
  void (*merge)(int32_t rows, float *o, const float *f, const float *b, const float *g);

  /* A loop of its own (decode.h); NULL: decode.c's. Then wide and narrow say its shapes, but have
   * no kernels; load and pv are missing too. */
  const struct amla_own_loop *own;
} amla_ukernels;

/* A `store` of rows that are not even_odd, by one that stores a row. */
static inline __attribute__((always_inline)) void
amla_ukr_store_rows(amla_store_row_fn *store_row, amla_dtype type, int32_t rows, int32_t cols,
                    const float *o, int32_t pv_cols, const amla_row_end *ends, int32_t d) {
  for (int32_t r = 0; r < rows; r++) {
    if (!ends[r].out)
      continue;
    char *out = (char *)ends[r].out + amla_elems_bytes(type, d);
    store_row(type, cols, o + r * pv_cols, ends[r].factor, out);
  }
}

/* The table's rows, in rising order; NULL-terminated. Those that this build contains, not those
 * that this CPU can run. */
extern const amla_ukernels *const amla_ukernels_all[];

/* The best row that the CPU can run and the cap allows, whatever types it takes. */
const amla_ukernels *amla_ukernels_select(amla_isa cap);

/* The best of those that take the problem's types, are as exact as the options ask, and gain on
 * this core or are named as the cap. Types decide, never data. */
const amla_ukernels *amla_ukernels_choose(const amla_problem *p, const amla_options *o);

/* The form of P with this row. */
amla_p_form amla_ukernels_p_form(const amla_ukernels *u);

/* The least exact form of P that the options allow. */
amla_p_form amla_p_form_allowed(const amla_problem *p, const amla_options *o);

/* In how many bf16 an element of q goes, on rows that multiply those. */
int32_t amla_q_parts(const amla_problem *p, const amla_options *o);

static inline int32_t amla_ukr_q_parts(const amla_ukernels *u) {
  return u->q_parts > 0 ? u->q_parts : 1;
}

/* Bytes of Q^T for one row of the block. */
static inline int64_t amla_ukr_qt_bytes(const amla_ukernels *u, int32_t d) {
  if (u->tile_type == AMLA_F32)
    return amla_elems_bytes(AMLA_F32, d);
  const int32_t whole = (d + AMLA_UKR_MAX_DEPTH - 1) / AMLA_UKR_MAX_DEPTH * AMLA_UKR_MAX_DEPTH;
  const int64_t factor_bytes = sizeof(float);
  return amla_ukr_q_parts(u) * amla_elems_bytes(u->tile_type, whole) + factor_bytes;
}

/* Does the row keep what decode.c counts on? NULL, or the first rule that it breaks. Tests ask it
 * of every row; builds with assertions of the row that is selected. */
const char *amla_ukernels_flaw(const amla_ukernels *u);

extern const amla_ukernels amla_ukernels__c; /* the others are ukernels.c's affair */

#endif
