/* SPDX-License-Identifier: Apache-2.0
 *
 * Validation: every rule of amla.h, in the order of its fields. See problem.h.
 */
#include "problem.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/dtype.h"
#include "base/isa.h"
#include "checks.h"
#include "default_threads.h"
#include "environment.h"
#include "key_check.h"
#include "keys.h"
#include "kv_layout.h"

enum { MAX_D = 65536, MAX_ROWS = 1 << 24, MAX_THREADS = 1024 };

static amla_status check_q_and_out(amla_problem *p, amla_detail *detail) {
  TRY(fill_stride("q_stride_head", &p->q_stride_head, amla_q_elems(p), 1, detail));
  TRY(fill_stride("q_stride_query", &p->q_stride_query, p->h_q, p->q_stride_head, detail));
  TRY(fill_stride("q_stride_batch", &p->q_stride_batch, p->s_q, p->q_stride_query, detail));
  TRY(fill_stride("q_rope_stride_head", &p->q_rope_stride_head, p->q_d_rope, 1, detail));
  TRY(fill_stride("q_rope_stride_query", &p->q_rope_stride_query, p->h_q, p->q_rope_stride_head,
                  detail));
  TRY(fill_stride("q_rope_stride_batch", &p->q_rope_stride_batch, p->s_q, p->q_rope_stride_query,
                  detail));
  TRY(fill_stride("out_stride_head", &p->out_stride_head, p->d_v, 1, detail));
  TRY(fill_stride("out_stride_query", &p->out_stride_query, p->h_q, p->out_stride_head, detail));
  TRY(fill_stride("out_stride_batch", &p->out_stride_batch, p->s_q, p->out_stride_query, detail));
  const int64_t b = p->b > 0 ? p->b : 1;
  const axis q[] = {
      {"", b, p->q_stride_batch}, {"", p->s_q, p->q_stride_query}, {"", p->h_q, p->q_stride_head}};
  const axis q_rope[] = {{"", b, p->q_rope_stride_batch},
                         {"", p->s_q, p->q_rope_stride_query},
                         {"", p->h_q, p->q_rope_stride_head}};
  axis out[] = {{"out_stride_head", p->h_q, p->out_stride_head},
                {"out_stride_query", p->s_q, p->out_stride_query},
                {"out_stride_batch", b, p->out_stride_batch}};
  TRY(check_extent("q", q, 3, p->d_qk, detail));
  TRY(check_extent("q_rope", q_rope, 3, p->q_d_rope, detail));
  TRY(check_extent("out", out, 3, p->d_v, detail));
  return check_disjoint("out", out, 3, p->d_v, detail);
}

/* ---- Scopes: of the second one every field's name begins with `prefix` ---- */

/* The name of a field of the second scope, without its prefix for the first. */
static const char *name_of(const char *prefix, const char *extra_name) {
  return *prefix ? extra_name : extra_name + strlen("extra_");
}

/* Quantised rows begin and end at blocks. */
static amla_status check_blocks(const amla_problem *p, const char *prefix, amla_detail *detail) {
  const struct {
    const char *name;
    int64_t value;
  } sizes[] = {{"d_qk", p->d_qk},
               {"kv_d_rope", p->kv_d_rope},
               {"kv_rope_stride_token", p->kv_rope_stride_token},
               {"kv_rope_stride_page", p->kv_rope_stride_page},
               {"kv_stride_token", p->kv_stride_token},
               {"kv_stride_page", p->kv_stride_page}};
  const int32_t block = amla_block_elems(p->kv_type);
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
    if (sizes[i].value % block != 0)
      INVALID("%s%s=%lld: must be a multiple of %d for this kv_type", i == 0 ? "" : prefix,
              sizes[i].name, (long long)sizes[i].value, block);
  return AMLA_OK;
}

static amla_status check_mask(amla_problem *p, amla_detail *detail) {
  TRY(fill_stride("mask_stride_query", &p->mask_stride_query, p->sk, 1, detail));
  TRY(fill_stride("mask_stride_batch", &p->mask_stride_batch, p->s_q, p->mask_stride_query,
                  detail));
  return AMLA_OK; /* its extent is checked if there is one */
}

/* Records have the dimensions of their models. */
static amla_status check_fp8(amla_problem *p, amla_detail *detail) {
  const int is_656 = p->kv_type == AMLA_FP8_656, is_record = is_656 || p->kv_type == AMLA_FP8_584;
  const int32_t d_qk = is_656 ? 576 : 512, d_v = 512;
  const char *name = amla_dtype_name(p->kv_type);
  TRY(fill_kv_scale("kv_scale", p->kv_type, &p->kv_scale, detail));
  TRY(fill_kv_scale("kv_rope_scale", p->kv_type, &p->kv_rope_scale, detail));
  if (!is_record)
    return AMLA_OK;
  if (p->d_qk != d_qk)
    INVALID("d_qk=%d: must be %d for kv_type=%s", p->d_qk, d_qk, name);
  if (p->d_v != d_v)
    INVALID("d_v=%d: must be %d for kv_type=%s", p->d_v, d_v, name);
  if (p->kv_d_rope != 0)
    INVALID("kv_d_rope=%d: must be 0 for kv_type=%s, whose records have it", p->kv_d_rope, name);
  return AMLA_OK;
}

static amla_status check_pages(amla_problem *p, const char *prefix, amla_detail *detail) {
  const int paged = p->page_size > 0;
  const int32_t needed = paged ? (int32_t)(((int64_t)p->sk + p->page_size - 1) / p->page_size) : 0;
  TRY(check_range(name_of(prefix, "extra_n_pages"), p->n_pages, 0, INT64_MAX, detail));
  if (!paged && p->n_pages != 0)
    INVALID("%sn_pages=%lld: must be 0 when %spage_size is 0 (contiguous)", prefix,
            (long long)p->n_pages, prefix);
  if (!paged && p->max_pages != 0)
    INVALID("%smax_pages=%d: must be 0 when %spage_size is 0 (contiguous)", prefix, p->max_pages,
            prefix);
  if (p->max_pages == 0)
    p->max_pages = needed;
  if (p->max_pages < needed)
    INVALID("%smax_pages=%d: must be >= %d to hold %ssk=%d tokens in pages of %d", prefix,
            p->max_pages, needed, prefix, p->sk, p->page_size);
  const axis table[] = {{"", p->b > 0 ? p->b : 1, p->max_pages}};
  return check_extent(name_of(prefix, "extra_block_table"), table, 1, p->max_pages, detail);
}

/* A cache of rows of `elems` elements, or of the rope parts of its rows. */
static amla_status check_cache(const amla_problem *p, cache_names names, int64_t *stride_page,
                               int64_t *stride_token, int32_t elems, amla_detail *detail) {
  const int64_t tokens = amla_page_tokens(p);
  const int64_t pages = p->page_size > 0 ? p->n_pages : p->b;
  const int64_t some_pages = pages > 0 ? pages : 1;
  const int64_t some_tokens = tokens > 0 ? tokens : 1;
  TRY(fill_kv_strides(names, p->kv_type, elems, elems == p->d_qk ? "d_qk" : "a row", tokens,
                      stride_page, stride_token, detail));
  /* Where it spans nothing (one token) the extent does not see it. */
  if (*stride_token > INT64_MAX / 8)
    INVALID("%s=%lld: its size in bytes overflows 64 bits", names.stride_token,
            (long long)*stride_token);
  const int64_t spanned =
      kv_extent(p->kv_type, elems, some_pages, some_tokens, *stride_page, *stride_token);
  return check_kv_extent(names.cache, spanned, detail);
}

static amla_status check_list(amla_problem *p, const char *prefix, amla_detail *detail) {
  TRY(fill_stride(name_of(prefix, "extra_indices_stride_query"), &p->indices_stride_query, p->topk,
                  1, detail));
  TRY(fill_stride(name_of(prefix, "extra_indices_stride_batch"), &p->indices_stride_batch, p->s_q,
                  p->indices_stride_query, detail));
  const axis axes[] = {{"", p->b > 0 ? p->b : 1, p->indices_stride_batch},
                       {"", p->s_q, p->indices_stride_query}};
  return check_extent(name_of(prefix, "extra_indices"), axes, 2, p->topk, detail);
}

static amla_status check_record_slots(const amla_problem *p, const char *prefix,
                                      amla_detail *detail) {
  const axis pages = {name_of(prefix, "extra_n_pages"), p->n_pages, 0}, sequences = {"b", p->b, 0};
  const axis page = {name_of(prefix, "extra_page_size"), p->page_size, 0};
  const axis length = {name_of(prefix, "extra_sk"), p->sk, 0};
  if (p->page_size > 0)
    return check_slots(pages, page, detail);
  return check_slots(sequences, length, detail);
}

static amla_status check_scope(amla_problem *p, const char *prefix, amla_detail *detail) {
  TRY(check_range(name_of(prefix, "extra_sk"), p->sk, 0, INT32_MAX, detail));
  TRY(check_range(name_of(prefix, "extra_topk"), p->topk, 0, INT32_MAX, detail));
  TRY(check_range(name_of(prefix, "extra_page_size"), p->page_size, 0, INT32_MAX, detail));
  TRY(check_range(name_of(prefix, "extra_max_pages"), p->max_pages, 0, INT32_MAX, detail));
  TRY(check_pages(p, prefix, detail));
  if (amla_row_elems(p->kv_type, 0) > 0) /* records */
    TRY(check_record_slots(p, prefix, detail));
  const cache_names kv = {name_of(prefix, "extra_kv"), name_of(prefix, "extra_kv_stride_page"),
                          name_of(prefix, "extra_kv_stride_token")};
  static const cache_names rope = {"kv_rope", "kv_rope_stride_page", "kv_rope_stride_token"};
  TRY(check_cache(p, kv, &p->kv_stride_page, &p->kv_stride_token, p->d_qk - p->kv_d_rope, detail));
  if (p->kv_d_rope > 0)
    TRY(check_cache(p, rope, &p->kv_rope_stride_page, &p->kv_rope_stride_token, p->kv_d_rope,
                    detail));
  else
    p->kv_rope_stride_page = p->kv_rope_stride_token = 0;
  TRY(check_blocks(p, prefix, detail));
  return check_list(p, prefix, detail);
}

/* Its strides and pages are filled in. */
static amla_status check_second_scope(amla_problem *p, amla_detail *detail) {
  const int64_t fields[] = {p->extra_page_size, p->extra_max_pages, p->extra_n_pages};
  static const char *const names[] = {"extra_page_size", "extra_max_pages", "extra_n_pages"};
  TRY(check_range("extra_sk", p->extra_sk, 0, INT32_MAX, detail));
  TRY(check_range("extra_topk", p->extra_topk, 0, INT32_MAX, detail));
  for (int i = 0; !amla_has_second_scope(p) && i < 3; i++)
    if (fields[i] != 0)
      INVALID("%s=%lld: must be 0 without a second scope (extra_sk or extra_topk > 0)", names[i],
              (long long)fields[i]);
  if (!amla_has_second_scope(p))
    return AMLA_OK;
  if (p->kv_d_rope > 0)
    UNSUPPORTED("kv_d_rope=%d: must be 0 with a second scope, whose rows have no kv_rope",
                p->kv_d_rope);
  amla_problem second = amla_second_problem(p);
  TRY(check_scope(&second, "extra_", detail));
  p->extra_max_pages = second.max_pages;
  p->extra_kv_stride_page = second.kv_stride_page;
  p->extra_kv_stride_token = second.kv_stride_token;
  p->extra_indices_stride_batch = second.indices_stride_batch;
  p->extra_indices_stride_query = second.indices_stride_query;
  return AMLA_OK;
}

static amla_status check_what_is_seen(const amla_problem *p, amla_detail *detail) {
  TRY(check_range("causal", p->causal, 0, 1, detail));
  TRY(check_range("index_kind", p->index_kind, AMLA_INDEX_SLOT, AMLA_INDEX_POSITION, detail));
  TRY(check_range("topk_length_per_query", p->topk_length_per_query, 0, 1, detail));
  TRY(check_range("window", p->window, 0, INT32_MAX, detail));
  if (p->topk > 0 && p->causal)
    INVALID("causal=1: must be 0 with topk > 0, where the list says which keys are seen");
  if (p->topk > 0 && p->window > 0)
    INVALID("window=%d: must be 0 with topk > 0, where the list says which keys are seen",
            p->window);
  const int64_t first_keys = p->topk > 0 ? p->topk : p->sk;
  const int64_t keys = first_keys + (p->extra_topk > 0 ? p->extra_topk : p->extra_sk);
  if (keys > INT32_MAX)
    INVALID("sk or topk, and extra_sk or extra_topk: their sum, %lld, must be <= %d",
            (long long)keys, INT32_MAX);
  return AMLA_OK;
}

amla_status amla_problem_check(const amla_problem *problem, amla_problem *p, amla_detail *detail) {
  static const size_t first_bytes =
      offsetof(amla_problem, mask_stride_query) + sizeof p->mask_stride_query; /* of 0.1 */
  TRY(copy_struct("problem", problem, p, sizeof *p, first_bytes, detail));
  TRY(check_range("b", p->b, 0, INT32_MAX, detail));
  TRY(check_range("s_q", p->s_q, 1, MAX_ROWS, detail));
  TRY(check_range("h_q", p->h_q, 1, MAX_ROWS, detail));
  if ((int64_t)p->s_q * p->h_q > MAX_ROWS)
    INVALID("s_q=%d, h_q=%d: their product must be <= %d", p->s_q, p->h_q, MAX_ROWS);
  if (p->h_kv != 0 && p->h_kv != 1)
    INVALID("h_kv=%d: MLA decode needs 1", p->h_kv);
  p->h_kv = 1;
  TRY(check_range("d_qk", p->d_qk, 1, MAX_D, detail));
  TRY(check_range("d_v", p->d_v, 1, MAX_D, detail));
  if (p->d_v > p->d_qk)
    INVALID("d_v=%d: must be <= d_qk=%d, the value is the first part of the KV row", p->d_v,
            p->d_qk);
  TRY(check_range("k_begin", p->k_begin, 0, p->d_qk - 1, detail));
  if (p->k_begin % 32 != 0)
    INVALID("k_begin=%lld: must be a multiple of 32", (long long)p->k_begin);
  TRY(check_range("q_d_rope", p->q_d_rope, 0, p->d_qk - p->k_begin - 1, detail));
  TRY(check_range("kv_d_rope", p->kv_d_rope, 0, p->d_qk - 1, detail));
  TRY(check_range("q_type", p->q_type, AMLA_F32, AMLA_N_FLOAT_DTYPES - 1, detail));
  TRY(check_range("kv_type", p->kv_type, AMLA_F32, AMLA_N_DTYPES - 1, detail));
  TRY(check_range("out_type", p->out_type, AMLA_F32, AMLA_N_FLOAT_DTYPES - 1, detail));
  if (!isfinite(p->scale * 1.4426951f) || p->scale == 0.0f)
    INVALID("scale=%g: must be finite and not 0, also times log2(e); models use d^-0.5 times a "
            "YaRN factor, set it",
            (double)p->scale);
  TRY(check_range("memory", p->memory, AMLA_MEMORY_HOST, AMLA_MEMORY_DEVICE, detail));
  TRY(check_q_and_out(p, detail));
  TRY(check_fp8(p, detail));
  TRY(check_scope(p, "", detail));
  TRY(check_second_scope(p, detail));
  TRY(check_what_is_seen(p, detail));
  return check_mask(p, detail);
}

/* ---- Options ---- */

static amla_status threads_from_environment(int32_t *threads, amla_detail *detail) {
  int64_t n;
  TRY(amla_environment_number("AMLA_NUM_THREADS", MAX_THREADS, &n, detail));
  if (n == 0)
    n = amla_default_threads();
  *threads = (int32_t)(n < MAX_THREADS ? n : MAX_THREADS);
  return AMLA_OK;
}

typedef struct isa_names {
  char text[64];
} isa_names;

/* "c, avx2 or avx512": what a cap may be on this architecture. */
static isa_names list_isas(void) {
  isa_names list = {""};
  int last = AMLA_N_ISAS - 1;
  while (!amla_isa_is_native((amla_isa)last))
    last--;
  for (int i = AMLA_ISA_AUTO + 1; i <= last; i++) {
    const size_t n = strlen(list.text);
    const char *before = i == last ? " or " : ", ";
    if (amla_isa_is_native((amla_isa)i))
      snprintf(list.text + n, sizeof list.text - n, "%s%s", n ? before : "",
               amla_isa_name((amla_isa)i));
  }
  return list;
}

/* A cap of another architecture would leave portable C there, or cap nothing. */
static amla_status check_native(const char *field, amla_isa isa, amla_detail *detail) {
  if (!amla_isa_is_native(isa))
    UNSUPPORTED("%s=%s: is of another architecture, must be %s", field, amla_isa_name(isa),
                list_isas().text);
  return AMLA_OK;
}

static amla_status isa_from_environment(amla_isa *isa, amla_detail *detail) {
  const char *text = getenv("AMLA_ISA");
  if (!text || !*text)
    return AMLA_OK;
  for (int i = AMLA_ISA_AUTO + 1; i < AMLA_N_ISAS; i++)
    if (strcmp(text, amla_isa_name((amla_isa)i)) == 0) {
      TRY(check_native("AMLA_ISA", (amla_isa)i, detail));
      if (*isa == AMLA_ISA_AUTO || i < (int)*isa)
        *isa = (amla_isa)i;
      return AMLA_OK;
    }
  INVALID("AMLA_ISA=%.40s: must be %s", text, list_isas().text);
}

amla_status amla_options_check(const amla_options *options, amla_options *o, amla_detail *detail) {
  static const amla_options defaults = AMLA_OPTIONS_INIT;
  TRY(copy_struct("options", options ? options : &defaults, o, sizeof *o,
                  offsetof(amla_options, lse_base) + sizeof o->lse_base, detail));
  TRY(check_range("backend", o->backend, AMLA_BACKEND_AUTO, AMLA_BACKEND_NPU, detail));
  TRY(check_range("rescale", o->rescale, AMLA_RESCALE_DEFAULT, AMLA_RESCALE_FLASH, detail));
  TRY(check_range("threads", o->threads, 0, MAX_THREADS, detail));
  TRY(check_range("isa", o->isa, AMLA_ISA_AUTO, AMLA_N_ISAS - 1, detail));
  TRY(check_native("isa", o->isa, detail));
  TRY(check_range("split_tokens", o->split_tokens, AMLA_SPLIT_AUTO, INT32_MAX, detail));
  TRY(check_range("lse_base", o->lse_base, AMLA_LSE_NATURAL, AMLA_LSE_BASE2, detail));
  TRY(check_range("lse_sink", o->lse_sink, AMLA_LSE_WITHOUT_SINK, AMLA_LSE_WITH_SINK, detail));
  TRY(check_range("p_form", o->p_form, AMLA_P_DEFAULT, AMLA_P_BF16, detail));
  TRY(check_range("q_form", o->q_form, AMLA_Q_DEFAULT, AMLA_Q_BF16X3, detail));
  TRY(check_range("kv_round", o->kv_round, AMLA_KV_EXACT, AMLA_KV_BF16, detail));
  if (o->rescale == AMLA_RESCALE_DEFAULT)
    o->rescale = AMLA_RESCALE_LAZY;
  if (o->threads == 0)
    TRY(threads_from_environment(&o->threads, detail));
  return isa_from_environment(&o->isa, detail);
}

/* ---- Tensors ---- */

/* ---- Memory that tensors touch ---- */

enum { MAX_EXTENTS = 24, N_OUTPUTS = 3 };

/* The outputs come first. */
typedef struct extents {
  extent at[MAX_EXTENTS];
  int n;
} extents;

static void add(extents *e, const char *name, const void *at, size_t capacity_bytes,
                int64_t used_bytes, size_t align) {
  assert(e->n < MAX_EXTENTS);
  e->at[e->n++] = (extent){name, at, capacity_bytes, used_bytes, align};
}

/* 4-byte numbers that may be left out. */
static void add_words(extents *e, const char *name, const void *at, size_t capacity_bytes,
                      int64_t n) {
  add(e, name, at, capacity_bytes, at ? n * 4 : 0, 4);
}

/* Queries of the run. */
static int64_t count_queries(const amla_problem *p, const amla_tensors *t) {
  return amla_query_index(p, t, p->b, 0);
}

/* Elements touched of a [b][s_q][n_rows] tensor of runs; -1: too many. */
static int64_t query_elems(const amla_problem *p, const amla_tensors *t, int64_t stride_batch,
                           int64_t stride_query, int32_t n_rows, int64_t stride_row, int64_t run) {
  const int64_t n = count_queries(p, t);
  const axis axes[] = {{"", t->q_indptr ? 1 : p->b, stride_batch},
                       {"", t->q_indptr ? n : p->s_q, stride_query},
                       {"", n_rows, stride_row}};
  const int64_t elems = n > 0 ? extent_elems(axes, 3, run) : 0;
  return elems > INT64_MAX / 4 ? -1 : elems;
}

/* Of a cache, all pages that exist; of no keys, none. */
static int64_t cache_elems(const amla_problem *p, int64_t stride_page, int64_t stride_token,
                           int32_t run) {
  const int64_t pages = p->page_size > 0 ? p->n_pages : p->b, tokens = amla_page_tokens(p);
  const int unused = p->sk == 0 && !amla_has_slots(p);
  if (unused || pages == 0 || tokens == 0)
    return 0;
  return kv_extent(p->kv_type, run, pages, tokens, stride_page, stride_token);
}

static int64_t table_bytes(const amla_problem *p, const amla_tensors *t) {
  if (p->page_size == 0 || p->sk == 0 || amla_has_slots(p) || t->kv_indptr)
    return 0;
  return (int64_t)p->b * p->max_pages * 4;
}

static void add_scope(extents *e, const char *prefix, const amla_problem *p,
                      const amla_tensors *t) {
  const int64_t queries = count_queries(p, t);
  const int64_t kv = cache_elems(p, p->kv_stride_page, p->kv_stride_token, p->d_qk - p->kv_d_rope);
  const int64_t rope =
      cache_elems(p, p->kv_rope_stride_page, p->kv_rope_stride_token, p->kv_d_rope);
  const int64_t indices =
      query_elems(p, t, p->indices_stride_batch, p->indices_stride_query, 1, 0, p->topk);
  const size_t align = amla_dtype_align(p->kv_type);
  add(e, name_of(prefix, "extra_kv"), t->kv, t->kv_bytes, amla_elems_bytes(p->kv_type, kv), align);
  if (p->kv_d_rope > 0)
    add(e, "kv_rope", t->kv_rope, t->kv_rope_bytes, amla_elems_bytes(p->kv_type, rope), align);
  add(e, name_of(prefix, "extra_block_table"), t->block_table, t->block_table_bytes,
      table_bytes(p, t), 4);
  if (!amla_has_slots(p))
    add_words(e, name_of(prefix, "extra_seqlens_k"), t->seqlens_k, t->seqlens_k_bytes, p->b);
  add_words(e, name_of(prefix, "extra_visible_k"), t->visible_k, t->visible_k_bytes, queries);
  add(e, name_of(prefix, "extra_indices"), t->indices, t->indices_bytes,
      p->topk > 0 ? indices * 4 : 0, 4);
  add_words(e, name_of(prefix, "extra_topk_length"), t->topk_length, t->topk_length_bytes,
            p->topk_length_per_query ? queries : p->b);
}

static void list_extents(const amla_problem *p, const amla_tensors *t, extents *e) {
  const int64_t rows = count_queries(p, t) * p->h_q;
  const int64_t out = query_elems(p, t, p->out_stride_batch, p->out_stride_query, p->h_q,
                                  p->out_stride_head, p->d_v);
  const int64_t q = query_elems(p, t, p->q_stride_batch, p->q_stride_query, p->h_q,
                                p->q_stride_head, amla_q_elems(p));
  const int64_t q_rope = query_elems(p, t, p->q_rope_stride_batch, p->q_rope_stride_query, p->h_q,
                                     p->q_rope_stride_head, p->q_d_rope);
  const axis mask[] = {{"", p->b, p->mask_stride_batch}, {"", p->s_q, p->mask_stride_query}};
  e->n = 0;
  add(e, "out", t->out, t->out_bytes, amla_elems_bytes(p->out_type, out),
      amla_dtype_align(p->out_type));
  add_words(e, "lse", t->lse, t->lse_bytes, rows);
  add_words(e, "max_logits", t->max_logits, t->max_logits_bytes, rows);
  add(e, "q", t->q, t->q_bytes, amla_elems_bytes(p->q_type, q), amla_dtype_align(p->q_type));
  if (p->q_d_rope > 0)
    add(e, "q_rope", t->q_rope, t->q_rope_bytes, amla_elems_bytes(p->q_type, q_rope),
        amla_dtype_align(p->q_type));
  add_scope(e, "", p, t);
  add_words(e, "sinks", t->sinks, t->sinks_bytes, p->h_q);
  add(e, "mask", t->mask, t->mask_bytes, t->mask ? extent_elems(mask, 2, p->sk) * 2 : 0, 2);
  if (amla_has_second_scope(p)) {
    const amla_problem second = amla_second_problem(p);
    const amla_tensors tensors = amla_second_tensors(t);
    add_scope(e, "extra_", &second, &tensors);
  }
  if (t->q_indptr)
    add_words(e, "q_indptr", t->q_indptr, t->q_indptr_bytes, (int64_t)p->b + 1);
  if (t->kv_indptr) {
    add_words(e, "kv_indptr", t->kv_indptr, t->kv_indptr_bytes, (int64_t)p->b + 1);
    add(e, "kv_indices", t->kv_indices, t->kv_indices_bytes, (int64_t)t->kv_indptr[p->b] * 4, 4);
  }
}

static amla_status check_overlaps(const extents *e, amla_detail *detail) {
  for (int i = 0; i < N_OUTPUTS; i++)
    for (int j = 0; j < e->n; j++)
      if (j < i || j >= N_OUTPUTS)
        TRY(check_overlap(&e->at[i], &e->at[j], detail));
  return AMLA_OK;
}

/* With q_indptr the queries of all sequences are one axis, of which the plan knew only s_q. */
static amla_status check_ragged_out(const amla_problem *p, const amla_tensors *t,
                                    amla_detail *detail) {
  axis out[] = {{"out_stride_head", p->h_q, p->out_stride_head},
                {"out_stride_query", count_queries(p, t), p->out_stride_query}};
  return t->q_indptr ? check_disjoint("out", out, 2, p->d_v, detail) : AMLA_OK;
}

/* ---- Tensors that others rule out ---- */

static amla_status check_absent(const amla_problem *p, const amla_tensors *t, amla_detail *detail) {
  const int lines = amla_has_lines(p), slots = amla_has_slots(p), second = amla_has_second_scope(p);
  const struct {
    const char *name;
    const void *pointer;
    int refused;
    const char *when;
  } rules[] = {
      {"q_rope", t->q_rope, p->q_d_rope == 0, "when q_d_rope is 0"},
      {"kv_rope", t->kv_rope, p->kv_d_rope == 0, "when kv_d_rope is 0"},
      {"indices", t->indices, p->topk == 0, "when topk is 0"},
      {"topk_length", t->topk_length, p->topk == 0, "when topk is 0"},
      {"visible_k", t->visible_k, p->topk > 0, "with topk > 0, where the list says it"},
      {"visible_k", t->visible_k, p->causal, "with causal=1"},
      {"mask", t->mask, lines, "with topk, window or a second scope"},
      {"mask", t->mask, t->q_indptr != NULL, "with q_indptr"},
      {"block_table", t->block_table, p->page_size == 0 && !slots,
       "when page_size is 0 (contiguous)"},
      {"kv_indptr", t->kv_indptr, p->page_size == 0, "when page_size is 0 (contiguous)"},
      {"kv_indptr", t->kv_indptr, slots, "with lists of slots"},
      {"block_table", t->block_table, t->kv_indptr != NULL, "with kv_indptr"},
      {"kv_indices", t->kv_indices, !t->kv_indptr, "without kv_indptr"},
      {"extra_kv", t->extra_kv, !second, "without a second scope (extra_sk or extra_topk > 0)"},
      {"extra_block_table", t->extra_block_table, !second, "without a second scope"},
      {"extra_block_table", t->extra_block_table, second && p->extra_page_size == 0,
       "when extra_page_size is 0 (contiguous)"},
      {"extra_seqlens_k", t->extra_seqlens_k, !second, "without a second scope"},
      {"extra_visible_k", t->extra_visible_k, !second, "without a second scope"},
      {"extra_visible_k", t->extra_visible_k, p->extra_topk > 0, "with extra_topk > 0"},
      {"extra_indices", t->extra_indices, p->extra_topk == 0, "when extra_topk is 0"},
      {"extra_topk_length", t->extra_topk_length, p->extra_topk == 0, "when extra_topk is 0"}};
  for (size_t i = 0; i < sizeof rules / sizeof *rules; i++)
    if (rules[i].pointer && rules[i].refused)
      INVALID("%s=%p: must be NULL %s", rules[i].name, rules[i].pointer, rules[i].when);
  if (p->window > 0 && !p->causal && !t->visible_k)
    INVALID("window=%d: needs causal=1 or visible_k", p->window);
  if (p->memory == AMLA_MEMORY_HOST && t->stream)
    INVALID("stream=%p: must be NULL for tensors in host memory", t->stream);
  return AMLA_OK;
}

/* What the use leaves alone may be NULL. */
static void leave_out(amla_use use, extents *e) {
  static const char *const of_keys[] = {
      "q",          "q_rope", "kv", "kv_rope", "block_table", "extra_kv", "extra_block_table",
      "kv_indices", "mask"};
  for (int i = 0; use == AMLA_USE_SHARD && i < N_OUTPUTS; i++)
    e->at[i].used_bytes = 0;
  for (int i = 0; use == AMLA_USE_RECORDS && i < e->n; i++)
    for (size_t k = 0; k < sizeof of_keys / sizeof *of_keys; k++)
      if (strcmp(e->at[i].name, of_keys[k]) == 0)
        e->at[i].used_bytes = 0;
}

/* Of device memory nothing is read: its lengths and page ids are clamped there. */
amla_status amla_tensors_check(const amla_problem *p, const amla_tensors *tensors, amla_tensors *t,
                               amla_detail *detail) {
  static const amla_key_range all[2] = {{NULL, NULL}, {NULL, NULL}};
  TRY(amla_tensors_check_for(AMLA_USE_RUN, p, tensors, t, detail));
  return p->memory == AMLA_MEMORY_DEVICE ? AMLA_OK : amla_keys_check(p, t, all, NULL, detail);
}

amla_status amla_tensors_check_apart(amla_use use, const amla_problem *p, const amla_tensors *t,
                                     const extent *others, int n, amla_detail *detail) {
  extents e;
  list_extents(p, t, &e);
  leave_out(use, &e);
  for (int i = 0; i < (use == AMLA_USE_RECORDS ? N_OUTPUTS : e.n); i++)
    for (int k = 0; k < n; k++)
      TRY(check_overlap(&e.at[i], &others[k], detail));
  return AMLA_OK;
}

amla_status amla_tensors_check_for(amla_use use, const amla_problem *p, const amla_tensors *tensors,
                                   amla_tensors *t, amla_detail *detail) {
  static const size_t first_bytes = offsetof(amla_tensors, stream) + sizeof t->stream; /* of 0.1 */
  TRY(copy_struct("tensors", tensors, t, sizeof *t, first_bytes, detail));
  TRY(check_absent(p, t, detail));
  if (p->memory == AMLA_MEMORY_DEVICE)
    TRY(amla_tensors_check_dense("device memory", t, detail));
  if (p->b == 0)
    return AMLA_OK;
  const extent indptrs[] = {
      {"q_indptr", t->q_indptr, t->q_indptr_bytes, t->q_indptr ? ((int64_t)p->b + 1) * 4 : 0, 4},
      {"kv_indptr", t->kv_indptr, t->kv_indptr_bytes, t->kv_indptr ? ((int64_t)p->b + 1) * 4 : 0,
       4}};
  for (int i = 0; i < 2; i++)
    TRY(check_buffer(&indptrs[i], detail));
  TRY(amla_indptrs_check(p, t, detail));

  const axis mask[] = {{"", p->b, p->mask_stride_batch}, {"", p->s_q, p->mask_stride_query}};
  if (t->mask)
    TRY(check_extent("mask", mask, 2, p->sk, detail));
  extents e;
  list_extents(p, t, &e);
  leave_out(use, &e);
  for (int i = 0; i < e.n; i++)
    TRY(check_buffer(&e.at[i], detail));
  TRY(check_overlaps(&e, detail));
  return check_ragged_out(p, t, detail);
}

/* ---- Backends that know dense attention only ---- */

amla_status amla_plan_check_dense(const char *who, const amla_problem *p, const amla_options *o,
                                  amla_detail *detail) {
  const struct {
    const char *name;
    int32_t value;
  } fields[] = {{"topk", p->topk},         {"window", p->window},
                {"q_d_rope", p->q_d_rope}, {"kv_d_rope", p->kv_d_rope},
                {"extra_sk", p->extra_sk}, {"extra_topk", p->extra_topk},
                {"lse_sink", o->lse_sink}, {"k_begin", (int32_t)p->k_begin}};
  for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
    if (fields[i].value != 0)
      UNSUPPORTED("%s=%d: must be 0, %s does not have it yet", fields[i].name, fields[i].value,
                  who);
  if (o->cancel)
    UNSUPPORTED("cancel: must be NULL, %s does not have it yet", who);
  return AMLA_OK;
}

amla_status amla_tensors_check_dense(const char *who, const amla_tensors *t, amla_detail *detail) {
  const struct {
    const char *name;
    const void *pointer;
  } tensors[] = {{"visible_k", t->visible_k},
                 {"q_indptr", t->q_indptr},
                 {"kv_indptr", t->kv_indptr},
                 {"max_logits", t->max_logits}};
  for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++)
    if (tensors[i].pointer)
      UNSUPPORTED("%s=%p: must be NULL, %s does not have it yet", tensors[i].name,
                  tensors[i].pointer, who);
  return AMLA_OK;
}
