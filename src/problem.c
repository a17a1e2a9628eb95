/* SPDX-License-Identifier: Apache-2.0
 *
 * Validation: every rule of amla.h, in the order of its fields. See problem.h.
 */
#include "problem.h"

#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/dtype.h"
#include "base/isa.h"
#include "checks.h"
#include "rows.h"

enum { MAX_D = 65536, MAX_ROWS = 1 << 24, MAX_THREADS = 1024 };

static amla_status check_q_and_out(amla_problem *p, amla_detail *detail) {
  TRY(fill_stride("q_stride_head", &p->q_stride_head, p->d_qk, 1, detail));
  TRY(fill_stride("q_stride_query", &p->q_stride_query, p->h_q, p->q_stride_head, detail));
  TRY(fill_stride("q_stride_batch", &p->q_stride_batch, p->s_q, p->q_stride_query, detail));
  TRY(fill_stride("out_stride_head", &p->out_stride_head, p->d_v, 1, detail));
  TRY(fill_stride("out_stride_query", &p->out_stride_query, p->h_q, p->out_stride_head, detail));
  TRY(fill_stride("out_stride_batch", &p->out_stride_batch, p->s_q, p->out_stride_query, detail));
  const int64_t b = p->b > 0 ? p->b : 1;
  const axis q[] = {
      {"", b, p->q_stride_batch}, {"", p->s_q, p->q_stride_query}, {"", p->h_q, p->q_stride_head}};
  axis out[] = {{"out_stride_head", p->h_q, p->out_stride_head},
                {"out_stride_query", p->s_q, p->out_stride_query},
                {"out_stride_batch", b, p->out_stride_batch}};
  TRY(check_extent("q", q, 3, p->d_qk, detail));
  TRY(check_extent("out", out, 3, p->d_v, detail));
  return check_disjoint("out", out, 3, p->d_v, detail);
}

/* Quantised rows begin and end at blocks. */
static amla_status check_blocks(const amla_problem *p, amla_detail *detail) {
  const struct {
    const char *name;
    int64_t value;
  } sizes[] = {{"d_qk", p->d_qk},
               {"kv_stride_token", p->kv_stride_token},
               {"kv_stride_page", p->kv_stride_page}};
  const int32_t block = amla_block_elems(p->kv_type);
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
    if (sizes[i].value % block != 0)
      INVALID("%s=%lld: must be a multiple of %d for this kv_type", sizes[i].name,
              (long long)sizes[i].value, block);
  return AMLA_OK;
}

static amla_status check_mask(amla_problem *p, amla_detail *detail) {
  TRY(fill_stride("mask_stride_query", &p->mask_stride_query, p->sk, 1, detail));
  TRY(fill_stride("mask_stride_batch", &p->mask_stride_batch, p->s_q, p->mask_stride_query,
                  detail));
  return AMLA_OK; /* its extent is checked if there is one */
}

static amla_status check_kv(amla_problem *p, amla_detail *detail) {
  const int paged = p->page_size > 0;
  const int64_t tokens = paged ? p->page_size : p->sk;
  const int64_t pages = paged ? p->n_pages : p->b;
  const int32_t needed = paged ? (int32_t)(((int64_t)p->sk + p->page_size - 1) / p->page_size) : 0;
  TRY(check_range("n_pages", p->n_pages, 0, INT64_MAX, detail));
  if (!paged && p->n_pages != 0)
    INVALID("n_pages=%lld: must be 0 when page_size is 0 (contiguous)", (long long)p->n_pages);
  if (!paged && p->max_pages != 0)
    INVALID("max_pages=%d: must be 0 when page_size is 0 (contiguous)", p->max_pages);
  if (p->max_pages == 0)
    p->max_pages = needed;
  if (p->max_pages < needed)
    INVALID("max_pages=%d: must be >= %d to hold sk=%d tokens in pages of %d", p->max_pages, needed,
            p->sk, p->page_size);
  TRY(fill_stride("kv_stride_token", &p->kv_stride_token, p->d_qk, 1, detail));
  if (tokens > 1 && p->kv_stride_token < p->d_qk)
    INVALID("kv_stride_token=%lld: must be >= d_qk=%d", (long long)p->kv_stride_token, p->d_qk);
  TRY(fill_stride("kv_stride_page", &p->kv_stride_page, tokens, p->kv_stride_token, detail));
  TRY(check_blocks(p, detail));
  if (p->kv_stride_token >
      INT64_MAX / 8) /* where it spans nothing (one token) the extent does not see it */
    INVALID("kv_stride_token=%lld: its size in bytes overflows 64 bits",
            (long long)p->kv_stride_token);
  const axis kv[] = {{"", pages > 0 ? pages : 1, p->kv_stride_page},
                     {"", tokens > 0 ? tokens : 1, p->kv_stride_token}};
  TRY(check_extent("kv", kv, 2, p->d_qk, detail));
  const axis table[] = {{"", p->b > 0 ? p->b : 1, p->max_pages}};
  return check_extent("block_table", table, 1, p->max_pages, detail);
}

static amla_status check_unbuilt_fields(const amla_problem *p, amla_detail *detail) {
  const struct {
    const char *name;
    double value;
  } later[] = {{"topk", p->topk},
               {"index_kind", p->index_kind},
               {"topk_length_per_query", p->topk_length_per_query},
               {"window", p->window},
               {"q_d_rope", p->q_d_rope},
               {"kv_d_rope", p->kv_d_rope},
               {"extra_sk", p->extra_sk},
               {"extra_topk", p->extra_topk},
               {"extra_page_size", p->extra_page_size},
               {"extra_max_pages", p->extra_max_pages},
               {"kv_scale", (double)p->kv_scale},
               {"kv_rope_scale", (double)p->kv_rope_scale},
               {"extra_n_pages", (double)p->extra_n_pages},
               {"extra_kv_stride_page", (double)p->extra_kv_stride_page},
               {"extra_kv_stride_token", (double)p->extra_kv_stride_token},
               {"indices_stride_batch", (double)p->indices_stride_batch},
               {"indices_stride_query", (double)p->indices_stride_query},
               {"extra_indices_stride_batch", (double)p->extra_indices_stride_batch},
               {"extra_indices_stride_query", (double)p->extra_indices_stride_query},
               {"q_rope_stride_batch", (double)p->q_rope_stride_batch},
               {"q_rope_stride_query", (double)p->q_rope_stride_query},
               {"q_rope_stride_head", (double)p->q_rope_stride_head},
               {"kv_rope_stride_page", (double)p->kv_rope_stride_page},
               {"kv_rope_stride_token", (double)p->kv_rope_stride_token}};
  for (size_t i = 0; i < sizeof later / sizeof *later; i++)
    if (later[i].value != 0.0)
      UNSUPPORTED("%s=%g: must be 0, not built yet", later[i].name, later[i].value);
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
  TRY(check_range("sk", p->sk, 0, INT32_MAX, detail));
  TRY(check_range("d_qk", p->d_qk, 1, MAX_D, detail));
  TRY(check_range("d_v", p->d_v, 1, MAX_D, detail));
  if (p->d_v > p->d_qk)
    INVALID("d_v=%d: must be <= d_qk=%d, the value is the first part of the KV row", p->d_v,
            p->d_qk);
  TRY(check_range("page_size", p->page_size, 0, INT32_MAX, detail));
  TRY(check_range("max_pages", p->max_pages, 0, INT32_MAX, detail));
  TRY(check_range("q_type", p->q_type, AMLA_F32, AMLA_N_FLOAT_DTYPES - 1, detail));
  TRY(check_range("kv_type", p->kv_type, AMLA_F32, AMLA_N_DTYPES - 1, detail));
  TRY(check_range("out_type", p->out_type, AMLA_F32, AMLA_N_FLOAT_DTYPES - 1, detail));
  TRY(check_range("causal", p->causal, 0, 1, detail));
  if (!isfinite(p->scale * 1.4426951f) || p->scale == 0.0f)
    INVALID("scale=%g: must be finite and not 0, also times log2(e); models use d^-0.5 times a "
            "YaRN factor, set it",
            (double)p->scale);
  TRY(check_range("memory", p->memory, AMLA_MEMORY_HOST, AMLA_MEMORY_DEVICE, detail));
  TRY(check_unbuilt_fields(p, detail));
  TRY(check_q_and_out(p, detail));
  TRY(check_mask(p, detail));
  return check_kv(p, detail);
}

/* ---- Options ---- */

static amla_status threads_from_environment(int32_t *threads, amla_detail *detail) {
  const char *text = getenv("AMLA_NUM_THREADS");
  if (!text || !*text) {
    *threads = omp_get_max_threads() < MAX_THREADS ? omp_get_max_threads() : MAX_THREADS;
    return AMLA_OK;
  }
  char *end;
  const long n = strtol(text, &end, 10);
  if (*end || n < 1 || n > MAX_THREADS)
    INVALID("AMLA_NUM_THREADS=%.40s: must be a number in 1..%d", text, MAX_THREADS);
  *threads = (int32_t)n;
  return AMLA_OK;
}

static amla_status isa_from_environment(amla_isa *isa, amla_detail *detail) {
  const char *text = getenv("AMLA_ISA");
  if (!text || !*text)
    return AMLA_OK;
  for (int i = AMLA_ISA_AUTO + 1; i < AMLA_N_ISAS; i++)
    if (strcmp(text, amla_isa_name((amla_isa)i)) == 0) {
      if (*isa == AMLA_ISA_AUTO || i < (int)*isa)
        *isa = (amla_isa)i;
      return AMLA_OK;
    }
  char names[128] = "";
  for (int i = AMLA_ISA_AUTO + 1; i < AMLA_N_ISAS; i++) {
    const char *before = i + 1 < AMLA_N_ISAS ? ", " : " or ";
    const size_t n = strlen(names);
    snprintf(names + n, sizeof names - n, "%s%s", n > 0 ? before : "", amla_isa_name((amla_isa)i));
  }
  INVALID("AMLA_ISA=%.40s: must be %s", text, names);
}

amla_status amla_options_check(const amla_options *options, amla_options *o, amla_detail *detail) {
  static const amla_options defaults = AMLA_OPTIONS_INIT;
  TRY(copy_struct("options", options ? options : &defaults, o, sizeof *o,
                  offsetof(amla_options, lse_base) + sizeof o->lse_base, detail));
  TRY(check_range("backend", o->backend, AMLA_BACKEND_AUTO, AMLA_BACKEND_NPU, detail));
  TRY(check_range("rescale", o->rescale, AMLA_RESCALE_DEFAULT, AMLA_RESCALE_FLASH, detail));
  TRY(check_range("threads", o->threads, 0, MAX_THREADS, detail));
  TRY(check_range("isa", o->isa, AMLA_ISA_AUTO, AMLA_N_ISAS - 1, detail));
  TRY(check_range("split_tokens", o->split_tokens, AMLA_SPLIT_AUTO, INT32_MAX, detail));
  TRY(check_range("lse_base", o->lse_base, AMLA_LSE_NATURAL, AMLA_LSE_BASE2, detail));
  TRY(check_range("lse_sink", o->lse_sink, AMLA_LSE_WITHOUT_SINK, AMLA_LSE_WITH_SINK, detail));
  if (o->lse_sink)
    UNSUPPORTED("lse_sink=%d: must be 0, not built yet", o->lse_sink);
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

static amla_status check_unsupported(const amla_tensors *t, amla_detail *detail) {
  const struct {
    const char *name;
    const void *pointer;
  } later[] = {{"q_rope", t->q_rope},
               {"kv_rope", t->kv_rope},
               {"indices", t->indices},
               {"topk_length", t->topk_length},
               {"visible_k", t->visible_k},
               {"q_indptr", t->q_indptr},
               {"kv_indptr", t->kv_indptr},
               {"kv_indices", t->kv_indices},
               {"max_logits", t->max_logits},
               {"extra_kv", t->extra_kv},
               {"extra_block_table", t->extra_block_table},
               {"extra_seqlens_k", t->extra_seqlens_k},
               {"extra_visible_k", t->extra_visible_k},
               {"extra_indices", t->extra_indices},
               {"extra_topk_length", t->extra_topk_length}};
  for (size_t i = 0; i < sizeof later / sizeof *later; i++)
    if (later[i].pointer)
      UNSUPPORTED("%s=%p: must be NULL, not built yet", later[i].name, later[i].pointer);
  return AMLA_OK;
}

static amla_status check_lengths_and_pages(const amla_problem *p, const amla_tensors *t,
                                           amla_detail *detail) {
  for (int32_t i = 0; i < p->b; i++) {
    const int32_t n = amla_seqlen(p, t, i);
    if (n < 0 || n > p->sk)
      INVALID("seqlens_k[%d]=%d: must be in [0, sk=%d]", i, n, p->sk);
    if (p->page_size == 0)
      continue;
    const int32_t used = (int32_t)(((int64_t)n + p->page_size - 1) / p->page_size);
    for (int32_t j = 0; j < used; j++) {
      const int32_t id = t->block_table[(int64_t)i * p->max_pages + j];
      if (id < 0 || id >= p->n_pages)
        INVALID("block_table[%d][%d]=%d: a used page id must be in [0, n_pages=%lld)", i, j, id,
                (long long)p->n_pages);
    }
  }
  return AMLA_OK;
}

/* Elements touched: of kv, all pages that exist. Of no keys, none. */
static int64_t kv_elems(const amla_problem *p) {
  const int paged = p->page_size > 0;
  if (p->sk == 0)
    return 0;
  const axis kv[] = {{"", paged ? p->n_pages : p->b, p->kv_stride_page},
                     {"", paged ? p->page_size : p->sk, p->kv_stride_token}};
  return paged && p->n_pages == 0 ? 0 : extent_elems(kv, 2, p->d_qk);
}

static int64_t table_bytes(const amla_problem *p) {
  return p->page_size > 0 && p->sk > 0 ? (int64_t)p->b * p->max_pages * 4 : 0;
}

amla_status amla_tensors_check(const amla_problem *p, const amla_tensors *tensors, amla_tensors *t,
                               amla_detail *detail) {
  static const size_t first_bytes = offsetof(amla_tensors, stream) + sizeof t->stream; /* of 0.1 */
  TRY(copy_struct("tensors", tensors, t, sizeof *t, first_bytes, detail));
  TRY(check_unsupported(t, detail));
  if (p->memory == AMLA_MEMORY_HOST && t->stream)
    INVALID("stream=%p: must be NULL for tensors in host memory", t->stream);
  if (p->b == 0)
    return AMLA_OK;

  const axis q[] = {{"", p->b, p->q_stride_batch},
                    {"", p->s_q, p->q_stride_query},
                    {"", p->h_q, p->q_stride_head}};
  const axis out[] = {{"", p->b, p->out_stride_batch},
                      {"", p->s_q, p->out_stride_query},
                      {"", p->h_q, p->out_stride_head}};
  const axis mask[] = {{"", p->b, p->mask_stride_batch}, {"", p->s_q, p->mask_stride_query}};
  if (t->mask)
    TRY(check_extent("mask", mask, 2, p->sk, detail));
  const extent extents[] = {
      {"out", t->out, t->out_bytes, amla_elems_bytes(p->out_type, extent_elems(out, 3, p->d_v)),
       amla_dtype_align(p->out_type)},
      {"lse", t->lse, t->lse_bytes, t->lse ? (int64_t)p->b * p->s_q * p->h_q * 4 : 0, 4},
      {"q", t->q, t->q_bytes, amla_elems_bytes(p->q_type, extent_elems(q, 3, p->d_qk)),
       amla_dtype_align(p->q_type)},
      {"kv", t->kv, t->kv_bytes, amla_elems_bytes(p->kv_type, kv_elems(p)),
       amla_dtype_align(p->kv_type)},
      {"block_table", t->block_table, t->block_table_bytes, table_bytes(p), 4},
      {"seqlens_k", t->seqlens_k, t->seqlens_k_bytes, t->seqlens_k ? (int64_t)p->b * 4 : 0, 4},
      {"sinks", t->sinks, t->sinks_bytes, t->sinks ? (int64_t)p->h_q * 4 : 0, 4},
      {"mask", t->mask, t->mask_bytes, t->mask ? extent_elems(mask, 2, p->sk) * 2 : 0, 2}};
  const size_t n_extents = sizeof extents / sizeof *extents, n_outputs = 2;
  if (p->page_size == 0 && t->block_table)
    INVALID("block_table=%p: must be NULL when page_size is 0 (contiguous)",
            (const void *)t->block_table);
  for (size_t i = 0; i < n_extents; i++)
    TRY(check_buffer(&extents[i], detail));
  for (size_t i = 0; i < n_outputs; i++)
    for (size_t j = n_outputs; j < n_extents; j++)
      TRY(check_overlap(&extents[i], &extents[j], detail));
  TRY(check_overlap(&extents[1], &extents[0], detail));
  return p->memory == AMLA_MEMORY_DEVICE
             ? AMLA_OK
             : check_lengths_and_pages(p, t, detail); /* the device clamps them */
}
