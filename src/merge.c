/* SPDX-License-Identifier: Apache-2.0
 *
 * amla_merge_parts, and amla_merge as its simplest case: partial (O, LSE) rows over disjoint keys
 * to one. Inputs are normalised, so nothing of a rescale mode is left in them and f32 weights
 * exp(LSE_p - LSE) suffice.
 */
#include <math.h>
#include <stdint.h>

#include "base/store.h"
#include "checks.h"
#include "float_environment.h"

/* ---- Arithmetic: `a` is checked, its strides are filled in ---- */

static double power(const amla_merge_args *a, double x) {
  return a->base == AMLA_LSE_BASE2 ? exp2(x) : exp(x);
}

static int is_empty(const amla_merge_args *a, float lse) {
  return lse == -INFINITY || (a->empty == AMLA_EMPTY_PLUS_INF && lse == INFINITY);
}

static float part_lse(const amla_merge_args *a, int32_t part, int64_t row) {
  return a->lse_parts[part * a->lse_parts_stride_part + row * a->lse_parts_stride_row];
}

/* In the units of the LSE; -inf without sinks. */
static double row_sink(const amla_merge_args *a, int64_t row) {
  const double log2e = 1.4426950408889634;
  if (!a->sinks)
    return -INFINITY;
  const double sink = (double)a->sinks[row / a->head_rows % a->n_heads];
  return a->base == AMLA_LSE_BASE2 ? sink * log2e : sink;
}

/* The parts of a row together: sum_p exp(LSE_p) = exp(max) * sum. */
typedef struct row_sum {
  double max, sum;
} row_sum;

static row_sum sum_row(const amla_merge_args *a, int64_t row) {
  row_sum s = {-INFINITY, 0.0};
  for (int32_t p = 0; p < a->n_parts; p++) {
    const float x = part_lse(a, p, row);
    if (!is_empty(a, x) && (isnan(x) || (double)x > s.max))
      s.max = (double)x; /* a NaN stays: both tests are false after it */
  }
  for (int32_t p = 0; p < a->n_parts; p++) {
    const float x = part_lse(a, p, row);
    if (!is_empty(a, x))
      s.sum += power(a, (double)x - s.max);
  }
  return s;
}

/* log (exp x + exp y) in the base of the LSE; NaN if either is. */
static double log_of_sum(const amla_merge_args *a, double x, double y) {
  const double ln2 = 0.6931471805599453;
  const double high = x > y ? x : y;
  const double low = x > y ? y : x;
  if (high == -INFINITY || high == INFINITY)
    return isnan(low) ? low : high;
  const double rest = log1p(power(a, low - high));
  return high + (a->base == AMLA_LSE_BASE2 ? rest / ln2 : rest);
}

static float row_lse(const amla_merge_args *a, int64_t row, row_sum s) {
  const int base2 = a->base == AMLA_LSE_BASE2, none = s.max == -INFINITY;
  const double sink = a->lse_sink ? row_sink(a, row) : -INFINITY;
  if (none && sink == -INFINITY)
    return a->empty == AMLA_EMPTY_PLUS_INF ? INFINITY : -INFINITY;
  double lse = -INFINITY;
  if (!none)
    lse = s.max + (base2 ? log2(s.sum) : log(s.sum));
  return (float)(a->lse_sink ? log_of_sum(a, lse, sink) : lse);
}

/* Weights are relative to all that is summed, the sink included: fp64, a few operations per part.
 * Columns go through a tile, so that out may be of another type, or the first part itself. */
static void merge_row(const amla_merge_args *a, int64_t row) {
  enum { TILE = 512 };
  float tile[TILE];
  const row_sum s = sum_row(a, row);
  const double total = s.sum + (a->sinks ? power(a, row_sink(a, row) - s.max) : 0.0);
  for (int32_t d = 0; d < a->d_v; d += TILE) {
    const int32_t n = a->d_v - d < TILE ? a->d_v - d : TILE;
    memset(tile, 0, sizeof tile);
    for (int32_t p = 0; p < a->n_parts; p++) {
      const float l = part_lse(a, p, row);
      const float *o = a->o + p * a->o_stride_part + row * a->o_stride_row + d;
      if (is_empty(a, l))
        continue;
      const float weight = (float)(power(a, (double)l - s.max) / total);
      for (int32_t i = 0; i < n; i++)
        tile[i] = weight * o[i] + tile[i];
    }
    const int64_t at = amla_elems_bytes(a->out_type, row * a->out_stride_row + d);
    amla_store_row(a->out_type, n, tile, 1.0f, (char *)a->out + at);
  }
  if (a->lse)
    a->lse[row * a->lse_stride_row] = row_lse(a, row, s);
}

/* ---- Refusals ---- */

static amla_status check_fields(amla_merge_args *a, amla_detail *detail) {
  int64_t elems;
  TRY(check_range("n_parts", a->n_parts, 1, INT32_MAX, detail));
  TRY(check_range("n_rows", a->n_rows, 0, INT64_MAX, detail));
  TRY(check_range("d_v", a->d_v, 1, INT32_MAX, detail));
  if (a->base != AMLA_LSE_NATURAL && a->base != AMLA_LSE_BASE2)
    INVALID("base=%d: must be 0 (natural) or 1 (base 2)", (int)a->base);
  if (a->empty != AMLA_EMPTY_MINUS_INF && a->empty != AMLA_EMPTY_PLUS_INF)
    INVALID("empty=%d: must be 0 (-inf) or 1 (+inf)", (int)a->empty);
  TRY(check_range("out_type", a->out_type, AMLA_F32, AMLA_N_FLOAT_DTYPES - 1, detail));
  TRY(check_range("n_heads", a->n_heads, a->sinks ? 1 : 0, INT32_MAX, detail));
  TRY(check_range("head_rows", a->head_rows, 0, INT32_MAX, detail));
  TRY(check_range("lse_sink", a->lse_sink, 0, 1, detail));
  if (a->lse_sink && !a->sinks)
    INVALID("lse_sink=1: needs sinks, which are NULL");
  if (a->head_rows == 0)
    a->head_rows = 1;
  if (__builtin_mul_overflow(a->n_parts, a->n_rows, &elems) ||
      __builtin_mul_overflow(elems, a->d_v, &elems) || elems > INT64_MAX / 4)
    INVALID("n_parts=%d, n_rows=%lld, d_v=%d: their product overflows", a->n_parts,
            (long long)a->n_rows, a->d_v);
  TRY(fill_stride("o_stride_row", &a->o_stride_row, a->d_v, 1, detail));
  TRY(fill_stride("o_stride_part", &a->o_stride_part, a->n_rows, a->o_stride_row, detail));
  TRY(fill_stride("lse_parts_stride_row", &a->lse_parts_stride_row, 1, 1, detail));
  TRY(fill_stride("lse_parts_stride_part", &a->lse_parts_stride_part, a->n_rows,
                  a->lse_parts_stride_row, detail));
  TRY(fill_stride("out_stride_row", &a->out_stride_row, a->d_v, 1, detail));
  return fill_stride("lse_stride_row", &a->lse_stride_row, 1, 1, detail);
}

/* Results may take the place of the first part, if no other part lies there too. */
static amla_status check_in_place(const extent *in, const extent *out, axis *axes, int64_t run,
                                  int same_rows, amla_detail *detail) {
  if (same_rows && in->at == out->at)
    return check_disjoint(in->name, axes, 2, run, detail);
  return check_overlap(out, in, detail);
}

/* How rows lie, and the memory that they span. */
typedef struct layout {
  axis o[2], lse_parts[2], out, lse;
} layout;

static layout layout_of(const amla_merge_args *a) {
  return (layout){.o = {{"o_stride_part", a->n_parts, a->o_stride_part},
                        {"o_stride_row", a->n_rows, a->o_stride_row}},
                  .lse_parts = {{"lse_parts_stride_part", a->n_parts, a->lse_parts_stride_part},
                                {"lse_parts_stride_row", a->n_rows, a->lse_parts_stride_row}},
                  .out = {"out_stride_row", a->n_rows, a->out_stride_row},
                  .lse = {"lse_stride_row", a->n_rows, a->lse_stride_row}};
}

static amla_status check_layout(const amla_merge_args *a, layout *l, amla_detail *detail) {
  TRY(check_extent("o", l->o, 2, a->d_v, detail));
  TRY(check_extent("lse_parts", l->lse_parts, 2, 1, detail));
  TRY(check_extent("out", &l->out, 1, a->d_v, detail));
  TRY(check_extent("lse", &l->lse, 1, 1, detail));
  return check_disjoint("out", &l->out, 1, a->d_v, detail);
}

enum { O, LSE_PARTS, SINKS, OUT, LSE, N_BUFFERS };

static void list_buffers(const amla_merge_args *a, const layout *l, extent buffers[N_BUFFERS]) {
  const int64_t o = extent_elems(l->o, 2, a->d_v) * 4, parts = extent_elems(l->lse_parts, 2, 1) * 4;
  const int64_t out = amla_elems_bytes(a->out_type, extent_elems(&l->out, 1, a->d_v));
  const int64_t lse = a->lse ? extent_elems(&l->lse, 1, 1) * 4 : 0;
  const int64_t sinks = a->sinks ? (int64_t)a->n_heads * 4 : 0;
  buffers[O] = (extent){"o", a->o, a->o_bytes, o, 4};
  buffers[LSE_PARTS] = (extent){"lse_parts", a->lse_parts, a->lse_parts_bytes, parts, 4};
  buffers[SINKS] = (extent){"sinks", a->sinks, a->sinks_bytes, sinks, 4};
  buffers[OUT] = (extent){"out", a->out, a->out_bytes, out, amla_dtype_align(a->out_type)};
  buffers[LSE] = (extent){"lse", a->lse, a->lse_bytes, lse, 4};
}

static amla_status check_memory(const amla_merge_args *a, amla_detail *detail) {
  static const int apart[][2] = {
      {OUT, LSE_PARTS}, {LSE, O}, {OUT, SINKS}, {LSE, SINKS}, {OUT, LSE}};
  const int same_o = a->out_type == AMLA_F32 && a->out_stride_row == a->o_stride_row;
  const int same_lse = a->lse_stride_row == a->lse_parts_stride_row;
  layout l = layout_of(a);
  extent e[N_BUFFERS];
  TRY(check_layout(a, &l, detail));
  list_buffers(a, &l, e);
  for (int i = 0; i < N_BUFFERS; i++)
    TRY(check_buffer(&e[i], detail));
  TRY(check_in_place(&e[O], &e[OUT], l.o, a->d_v, same_o, detail));
  TRY(check_in_place(&e[LSE_PARTS], &e[LSE], l.lse_parts, 1, same_lse, detail));
  for (size_t i = 0; i < sizeof apart / sizeof *apart; i++)
    TRY(check_overlap(&e[apart[i][0]], &e[apart[i][1]], detail));
  return AMLA_OK;
}

amla_status amla_merge_parts(const amla_merge_args *args, amla_detail *detail) {
  amla_merge_args a;
  TRY(copy_struct("args", args, &a, sizeof a, sizeof a, detail));
  TRY(check_fields(&a, detail));
  if (a.n_rows == 0)
    return amla_accept(detail);
  TRY(check_memory(&a, detail));
  const fenv_t callers = amla_enter_environment();
  for (int64_t row = 0; row < a.n_rows; row++)
    merge_row(&a, row);
  amla_leave_environment(&callers);
  return amla_accept(detail);
}

amla_status amla_merge(int32_t n_parts, int64_t n_rows, int32_t d_v, amla_lse_base base,
                       const float *o, size_t o_bytes, const float *lse_parts,
                       size_t lse_parts_bytes, float *out, size_t out_bytes, float *lse,
                       size_t lse_bytes, amla_detail *detail) {
  amla_merge_args a = AMLA_MERGE_ARGS_INIT;
  a.n_parts = n_parts, a.n_rows = n_rows, a.d_v = d_v, a.base = base;
  a.o = o, a.o_bytes = o_bytes, a.lse_parts = lse_parts, a.lse_parts_bytes = lse_parts_bytes;
  a.out = out, a.out_bytes = out_bytes, a.lse = lse, a.lse_bytes = lse_bytes;
  return amla_merge_parts(&a, detail);
}
