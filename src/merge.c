/* SPDX-License-Identifier: Apache-2.0
 *
 * amla_merge: partial (O, LSE) rows over disjoint keys to one. Both inputs are normalised, so
 * nothing of a rescale mode is left in them and f32 weights exp(LSE_p - LSE) suffice.
 */
#include <math.h>
#include <stdint.h>

#include "refuse.h"
#include "float_environment.h"

static amla_status check(const char *name, const void *pointer, size_t bytes, uint64_t elems,
                         amla_detail *detail) {
  if (!pointer)
    INVALID("%s=NULL: must point to %llu floats", name, (unsigned long long)elems);
  if ((uintptr_t)pointer % sizeof(float))
    INVALID("%s=%p: must be aligned to 4 bytes", name, pointer);
  if (bytes / sizeof(float) < elems)
    INVALID("%s_bytes=%zu: must be >= %llu", name, bytes,
            (unsigned long long)(elems * sizeof(float)));
  return AMLA_OK;
}

/* The LSE of the row and the weight of each part relative to it are taken in fp64: a few operations
 * per row. */
static void merge_row(int32_t n_parts, int64_t n_rows, int32_t d_v, int base2, const float *o,
                      const float *lse_parts, float *out, float *lse) {
  const int64_t part_elems = n_rows * d_v;
  double max = -INFINITY, sum = 0.0;
  for (int32_t p = 0; p < n_parts; p++) {
    const double x = (double)lse_parts[p * n_rows];
    if (isnan(x) || x > max)
      max = x; /* a NaN stays: both tests are false after it */
  }
  for (int32_t p = 0; p < n_parts; p++) {
    const double x = (double)lse_parts[p * n_rows] - max;
    if (max != -INFINITY)
      sum += base2 ? exp2(x) : exp(x);
  }
  float total = -INFINITY;
  if (max != -INFINITY)
    total = (float)(max + (base2 ? log2(sum) : log(sum)));

  int first = 1; /* until a part has been written: out may be the first part, or hold anything */
  for (int32_t p = 0; p < n_parts; p++) {
    const float l = lse_parts[p * n_rows];
    if (l == -INFINITY)
      continue;
    const double x = (double)l - max;
    const float weight = (float)((base2 ? exp2(x) : exp(x)) / sum);
    for (int32_t d = 0; d < d_v; d++)
      out[d] = weight * o[p * part_elems + d] + (first ? 0.0f : out[d]);
    first = 0;
  }
  for (int32_t d = 0; first && d < d_v; d++)
    out[d] = 0.0f;
  if (lse)
    *lse = total;
}

typedef struct span {
  const char *name;
  const float *at; /* or NULL */
  uint64_t elems;
} span;

/* Results may take the place of the first part; nothing else may lie where a result does. */
static amla_status check_overlaps(span o, span lse_parts, span out, span lse, amla_detail *detail) {
  const span pairs[][2] = {{out, o}, {lse, lse_parts}, {out, lse_parts}, {lse, o}, {out, lse}};
  for (int i = 0; i < 5; i++) {
    const span *a = &pairs[i][0], *b = &pairs[i][1];
    if (i < 2 && a->at == b->at)
      continue;
    const amla_status status = amla_check_overlap(a->name, a->at, a->elems * sizeof(float), b->name,
                                                  b->at, b->elems * sizeof(float), detail);
    if (status != AMLA_OK)
      return status;
  }
  return AMLA_OK;
}

amla_status amla_merge(int32_t n_parts, int64_t n_rows, int32_t d_v, amla_lse_base base,
                       const float *o, size_t o_bytes, const float *lse_parts,
                       size_t lse_parts_bytes, float *out, size_t out_bytes, float *lse,
                       size_t lse_bytes, amla_detail *detail) {
  uint64_t rows, elems;
  if (n_parts < 1)
    INVALID("n_parts=%d: must be >= 1", n_parts);
  if (n_rows < 0)
    INVALID("n_rows=%lld: must be >= 0", (long long)n_rows);
  if (d_v < 1)
    INVALID("d_v=%d: must be >= 1", d_v);
  if (base != AMLA_LSE_NATURAL && base != AMLA_LSE_BASE2)
    INVALID("base=%d: must be 0 (natural) or 1 (base 2)", (int)base);
  if (__builtin_mul_overflow((uint64_t)n_parts, (uint64_t)n_rows, &rows) ||
      __builtin_mul_overflow(rows, (uint64_t)d_v, &elems) || elems > INT64_MAX / sizeof(float))
    INVALID("n_parts=%d, n_rows=%lld, d_v=%d: their product overflows", n_parts, (long long)n_rows,
            d_v);
  if (n_rows == 0)
    return amla_accept(detail);

  amla_status status = check("o", o, o_bytes, elems, detail);
  if (status == AMLA_OK)
    status = check("lse_parts", lse_parts, lse_parts_bytes, rows, detail);
  if (status == AMLA_OK)
    status = check("out", out, out_bytes, (uint64_t)n_rows * (uint64_t)d_v, detail);
  if (status == AMLA_OK && lse)
    status = check("lse", lse, lse_bytes, (uint64_t)n_rows, detail);
  if (status == AMLA_OK)
    status = check_overlaps((span){"o", o, elems}, (span){"lse_parts", lse_parts, rows},
                            (span){"out", out, elems / (uint64_t)n_parts},
                            (span){"lse", lse, (uint64_t)n_rows}, detail);
  if (status != AMLA_OK)
    return status;

  const fenv_t callers = amla_enter_environment();
  for (int64_t r = 0; r < n_rows; r++)
    merge_row(n_parts, n_rows, d_v, base == AMLA_LSE_BASE2, o + r * d_v, lse_parts + r,
              out + r * d_v, lse ? lse + r : NULL);
  amla_leave_environment(&callers);
  return amla_accept(detail);
}
