/* SPDX-License-Identifier: Apache-2.0
 *
 * The strides of a KV cache and the memory that it spans, by type; for readers and writers.
 */
#ifndef AMLA_KV_LAYOUT_H
#define AMLA_KV_LAYOUT_H

#include "base/dtype.h"
#include "checks.h"

/* What messages call a cache. */
typedef struct cache_names {
  const char *cache, *stride_page, *stride_token;
} cache_names;

/* fp8_584: pages of tokens and a footer; a page is rounded up to whole tokens. */
static inline amla_status fill_584_strides(cache_names names, int64_t tokens, int64_t *page,
                                           int64_t *token, amla_detail *detail) {
  const int64_t row = AMLA_FP8_584_BYTES, bytes = tokens * (row + AMLA_FP8_584_SCALES);
  if (*token != 0 && *token != row)
    INVALID("%s=%lld: must be 0 or %lld for kv_type=fp8_584, whose scales are in the page's footer",
            names.stride_token, (long long)*token, (long long)row);
  *token = row;
  if (*page == 0)
    *page = (bytes + row - 1) / row * row;
  if (*page < bytes)
    INVALID("%s=%lld: must be >= %lld, %lld tokens of fp8_584", names.stride_page, (long long)*page,
            (long long)bytes, (long long)tokens);
  return AMLA_OK;
}

/* Fills in the strides of pages of so many tokens, rows of d elements, or refuses them. `of` is
 * what the rule calls d. */
static inline amla_status fill_kv_strides(cache_names names, amla_dtype type, int32_t d,
                                          const char *of, int64_t tokens, int64_t *page,
                                          int64_t *token, amla_detail *detail) {
  const int64_t row = amla_row_elems(type, d);
  if (type == AMLA_FP8_584)
    return fill_584_strides(names, tokens, page, token, detail);
  TRY(fill_stride(names.stride_token, token, row, 1, detail));
  if (tokens > 1 && *token < row && row != d)
    INVALID("%s=%lld: must be >= %lld bytes for kv_type=%s", names.stride_token, (long long)*token,
            (long long)row, amla_dtype_name(type));
  if (tokens > 1 && *token < row)
    INVALID("%s=%lld: must be >= %s=%d", names.stride_token, (long long)*token, of, d);
  return fill_stride(names.stride_page, page, tokens, *token, detail);
}

/* Elements from the first to one past the last of n_pages >= 1 pages of tokens >= 1; -1: leaves
 * int64. */
static inline int64_t kv_extent(amla_dtype type, int32_t d, int64_t n_pages, int64_t tokens,
                                int64_t page, int64_t token) {
  const axis axes[] = {{"", n_pages, page}, {"", tokens, token}};
  const int64_t footer = type == AMLA_FP8_584 ? tokens * AMLA_FP8_584_SCALES : 0;
  return extent_elems(axes, 2, amla_row_elems(type, d) + footer);
}

static inline amla_status check_kv_extent(const char *name, int64_t elems, amla_detail *detail) {
  if (elems < 0 || elems > INT64_MAX / 4)
    INVALID("%s: its size in bytes overflows 64 bits", name);
  return AMLA_OK;
}

/* What fp8 has beside its scales' values: 0 becomes 1. */
static inline amla_status fill_kv_scale(const char *name, amla_dtype type, float *scale,
                                        amla_detail *detail) {
  if (*scale == 0.0f)
    *scale = 1.0f;
  if (!(*scale > 0.0f && *scale <= 0x1.fffffep127f))
    INVALID("%s=%g: must be positive and finite, or 0 for 1", name, (double)*scale);
  if (*scale != 1.0f && type != AMLA_FP8_E4M3)
    INVALID("%s=%g: must be 0 or 1 for kv_type=%s, only fp8_e4m3 has one", name, (double)*scale,
            amla_dtype_name(type));
  return AMLA_OK;
}

/* Slots are int32 wherever they are listed. */
static inline amla_status check_slots(axis pages, axis tokens, amla_detail *detail) {
  if (tokens.n > 0 && pages.n > INT32_MAX / tokens.n)
    INVALID("%s=%lld, %s=%lld: their product must be <= %d", pages.name, (long long)pages.n,
            tokens.name, (long long)tokens.n, INT32_MAX);
  return AMLA_OK;
}

#endif
