/* SPDX-License-Identifier: Apache-2.0
 *
 * The checks that argument structs have in common: the struct's own size, ranges of fields,
 * strides and extents, buffers. Each refuses by returning; see refuse.h.
 */
#ifndef AMLA_CHECKS_H
#define AMLA_CHECKS_H

#include <stdint.h>
#include <string.h>

#include "refuse.h"

/* Structs only grow: an older caller's is shorter than ours, a newer caller's longer and usable if
 * the rest is zero. */
static inline amla_status copy_struct(const char *name, const void *from, void *to,
                                      size_t our_bytes, size_t first_bytes, amla_detail *detail) {
  uint32_t bytes;
  memset(to, 0, our_bytes);
  if (!from)
    INVALID("%s=NULL: must point to a struct", name);
  memcpy(&bytes, from, sizeof bytes);
  const int cut =
      bytes > first_bytes && bytes < our_bytes && bytes % sizeof(void *); /* a pointer */
  if (bytes < first_bytes || bytes > 4096 || cut)
    INVALID("%s.struct_bytes=%u: must be sizeof the struct (>= %zu), use its INIT macro", name,
            bytes, first_bytes);
  for (size_t i = our_bytes; i < bytes; i++)
    if (((const unsigned char *)from)[i])
      UNSUPPORTED("%s.struct_bytes=%u: byte %zu is set, but this library (%s) knows %zu bytes",
                  name, bytes, i, amla_version(), our_bytes);
  memcpy(to, from, bytes < our_bytes ? bytes : our_bytes);
  return AMLA_OK;
}

static inline amla_status check_range(const char *name, int64_t value, int64_t low, int64_t high,
                                      amla_detail *detail) {
  if (value < low)
    INVALID("%s=%lld: must be >= %lld", name, (long long)value, (long long)low);
  if (value > high)
    INVALID("%s=%lld: must be <= %lld", name, (long long)value, (long long)high);
  return AMLA_OK;
}

/* ---- Extents ---- */

typedef struct axis {
  const char *name;
  int64_t n, stride;
} axis;

/* Elements from the first to one past the last, for axes of n >= 1 and a contiguous innermost run.
 * -1: leaves int64. */
static inline int64_t extent_elems(const axis *axes, int n_axes, int64_t run) {
  int64_t total = run, span;
  for (int i = 0; i < n_axes; i++)
    if (__builtin_mul_overflow(axes[i].n - 1, axes[i].stride, &span) ||
        __builtin_add_overflow(total, span, &total))
      return -1;
  return total;
}

static inline amla_status check_extent(const char *name, const axis *axes, int n_axes, int64_t run,
                                       amla_detail *detail) {
  const int64_t elems = extent_elems(axes, n_axes, run);
  if (elems < 0 || elems > INT64_MAX / 4)
    INVALID("%s: its size in bytes overflows 64 bits", name);
  return AMLA_OK;
}

/* 0 becomes the packed stride; negative ones are refused. */
static inline amla_status fill_stride(const char *name, int64_t *stride, int64_t n,
                                      int64_t inner_stride, amla_detail *detail) {
  if (*stride < 0)
    INVALID("%s=%lld: must be >= 0 (0 = packed)", name, (long long)*stride);
  if (*stride == 0 && __builtin_mul_overflow(n, inner_stride, stride))
    INVALID("%s: the packed stride overflows 64 bits", name);
  return AMLA_OK;
}

/* Rows of out must be disjoint: with the axes sorted by stride, each steps over all that lies
 * inside it. */
static inline amla_status check_disjoint(const char *name, axis *axes, int n_axes, int64_t run,
                                         amla_detail *detail) {
  for (int i = 1; i < n_axes; i++)
    for (int j = i; j > 0 && axes[j].stride < axes[j - 1].stride; j--) {
      const axis swap = axes[j];
      axes[j] = axes[j - 1];
      axes[j - 1] = swap;
    }
  for (int i = 0; i < n_axes; i++) {
    if (axes[i].n > 1 && axes[i].stride < run)
      INVALID("%s=%lld: rows of %s would overlap, must be >= %lld", axes[i].name,
              (long long)axes[i].stride, name, (long long)run);
    if (axes[i].n > 1)
      run += (axes[i].n - 1) * axes[i].stride;
  }
  return AMLA_OK;
}

/* Memory that a tensor touches. */
typedef struct extent {
  const char *name;
  const void *at;
  size_t capacity_bytes;
  int64_t used_bytes;
  size_t align; /* bytes */
} extent;

static inline amla_status check_buffer(const extent *e, amla_detail *detail) {
  if (e->used_bytes == 0)
    return AMLA_OK;
  if (e->used_bytes < 0)
    INVALID("%s: its size in bytes overflows 64 bits", e->name);
  if (!e->at)
    INVALID("%s=NULL: must point to %lld bytes", e->name, (long long)e->used_bytes);
  if ((uintptr_t)e->at % e->align)
    INVALID("%s=%p: must be aligned to %zu bytes", e->name, e->at, e->align);
  if (e->capacity_bytes < (uint64_t)e->used_bytes)
    INVALID("%s_bytes=%zu: must be >= %lld", e->name, e->capacity_bytes, (long long)e->used_bytes);
  return AMLA_OK;
}

static inline amla_status check_overlap(const extent *a, const extent *b, amla_detail *detail) {
  const uint64_t a_bytes = (uint64_t)a->used_bytes, b_bytes = (uint64_t)b->used_bytes;
  return amla_check_overlap(a->name, a->at, a_bytes, b->name, b->at, b_bytes, detail);
}

#endif
