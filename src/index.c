/* SPDX-License-Identifier: Apache-2.0
 *
 * amla_index_topk: what it refuses, in the order of its fields, and the call of the kernel.
 */
#include <limits.h>
#include <stddef.h>

#include "base/blocks.h"
#include "checks.h"
#include "cpu/index_topk.h"
#include "forked.h"
#include "problem.h"

enum { MAX_D = 65536, MAX_HEADS = 65536, MAX_QUERIES = 1 << 24, SCALE_BYTES = 4 };

/* ---- Shapes ---- */

/* Are keys rows of k_type? Strides of others count bytes. */
static int is_typed(const amla_index_args *a) {
  return a->keys == AMLA_INDEX_KEYS_BF16 || a->keys == AMLA_INDEX_KEYS_TYPED;
}

static int32_t page_tokens(const amla_index_args *a) {
  return a->page_size > 0 ? a->page_size : a->sk;
}

/* From the first byte of a page to the last one that its tokens have, in units of its strides. */
static int64_t page_span(const amla_index_args *a, int64_t tokens) {
  const int64_t row = is_typed(a) ? a->d : a->d + SCALE_BYTES;
  if (tokens == 0)
    return 0;
  if (a->keys == AMLA_INDEX_KEYS_FP8_PAGE)
    return tokens * row;
  const axis axes[] = {{"", tokens, a->k_stride_token}};
  return extent_elems(axes, 1, row);
}

static amla_status check_pages(amla_index_args *a, amla_detail *detail) {
  const int paged = a->page_size > 0;
  const int32_t needed = paged ? (int32_t)(((int64_t)a->sk + a->page_size - 1) / a->page_size) : 0;
  TRY(check_range("page_size", a->page_size, 0, INT32_MAX, detail));
  TRY(check_range("max_pages", a->max_pages, 0, INT32_MAX, detail));
  TRY(check_range("n_pages", a->n_pages, 0, INT64_MAX, detail));
  if (!paged && a->n_pages != 0)
    INVALID("n_pages=%lld: must be 0 when page_size is 0 (contiguous)", (long long)a->n_pages);
  if (!paged && a->max_pages != 0)
    INVALID("max_pages=%d: must be 0 when page_size is 0 (contiguous)", a->max_pages);
  if (a->max_pages == 0)
    a->max_pages = needed;
  if (a->max_pages < needed)
    INVALID("max_pages=%d: must be >= %d to hold sk=%d tokens in pages of %d", a->max_pages, needed,
            a->sk, a->page_size);
  const axis table[] = {{"", a->b > 0 ? a->b : 1, a->max_pages}};
  return check_extent("block_table", table, 1, a->max_pages, detail);
}

/* A slot is an int32. */
static amla_status check_slots(const amla_index_args *a, amla_detail *detail) {
  const int64_t pages = a->page_size > 0 ? a->n_pages : a->b, limit = (int64_t)INT32_MAX + 1;
  if (a->index_kind == AMLA_INDEX_SLOT && page_tokens(a) > 0 && pages > limit / page_tokens(a))
    INVALID("%s=%lld: slots of %d tokens each leave int32, use positions",
            a->page_size > 0 ? "n_pages" : "b", (long long)pages, page_tokens(a));
  return AMLA_OK;
}

static amla_status check_key_strides(amla_index_args *a, amla_detail *detail) {
  const int fp8_page = a->keys == AMLA_INDEX_KEYS_FP8_PAGE;
  const int32_t row = is_typed(a) || fp8_page ? a->d : a->d + SCALE_BYTES;
  const int64_t pages = a->page_size > 0 ? a->n_pages : a->b, tokens = page_tokens(a);
  TRY(fill_stride("k_stride_token", &a->k_stride_token, row, 1, detail));
  if (fp8_page && a->k_stride_token != a->d)
    INVALID("k_stride_token=%lld: must be 0 or d=%d, tokens of such pages lie side by side",
            (long long)a->k_stride_token, a->d);
  if (tokens > 1 && a->k_stride_token < row)
    INVALID("k_stride_token=%lld: must be >= %d", (long long)a->k_stride_token, row);
  const int64_t packed_row = fp8_page ? a->d + SCALE_BYTES : a->k_stride_token;
  TRY(fill_stride("k_stride_page", &a->k_stride_page, tokens, packed_row, detail));
  if (is_typed(a) && amla_is_block(a->k_type) && a->k_stride_token % amla_block_elems(a->k_type))
    INVALID("k_stride_token=%lld: must be a multiple of %d for k_type=%s",
            (long long)a->k_stride_token, amla_block_elems(a->k_type), amla_dtype_name(a->k_type));
  if (is_typed(a) && amla_is_block(a->k_type) && a->k_stride_page % amla_block_elems(a->k_type))
    INVALID("k_stride_page=%lld: must be a multiple of %d for k_type=%s",
            (long long)a->k_stride_page, amla_block_elems(a->k_type), amla_dtype_name(a->k_type));
  const int64_t span = page_span(a, tokens);
  const axis k[] = {{"", pages > 0 ? pages : 1, a->k_stride_page}};
  if (span < 0)
    INVALID("k: its size in bytes overflows 64 bits");
  /* Where it spans nothing (one token) the span does not see it. */
  if (a->k_stride_token > INT64_MAX / 8)
    INVALID("k_stride_token=%lld: its size in bytes overflows 64 bits",
            (long long)a->k_stride_token);
  return check_extent("k", k, 1, span, detail);
}

static amla_status check_q_strides(amla_index_args *a, amla_detail *detail) {
  TRY(fill_stride("q_stride_head", &a->q_stride_head, a->d, 1, detail));
  TRY(fill_stride("q_stride_query", &a->q_stride_query, a->heads, a->q_stride_head, detail));
  TRY(fill_stride("q_stride_batch", &a->q_stride_batch, a->s_q, a->q_stride_query, detail));
  const axis q[] = {{"", a->b > 0 ? a->b : 1, a->q_stride_batch},
                    {"", a->s_q, a->q_stride_query},
                    {"", a->heads, a->q_stride_head}};
  const int64_t rows = a->s_q * (int64_t)a->heads;
  const axis weights[] = {{"", a->b > 0 ? a->b : 1, rows}};
  TRY(check_extent("q", q, 3, a->d, detail));
  return check_extent("weights", weights, 1, rows, detail);
}

static amla_status check_key_type(amla_index_args *a, amla_detail *detail) {
  TRY(check_range("keys", a->keys, AMLA_INDEX_KEYS_BF16, AMLA_INDEX_KEYS_TYPED, detail));
  TRY(check_range("k_type", a->k_type, AMLA_F32, AMLA_N_DTYPES - 1, detail));
  if (a->keys != AMLA_INDEX_KEYS_TYPED && a->k_type != AMLA_F32)
    INVALID("k_type=%s: must be 0 unless keys is typed", amla_dtype_name(a->k_type));
  if (a->k_type > AMLA_F16 && !amla_is_block(a->k_type))
    UNSUPPORTED("k_type=%s: the indexer's keys are f32, bf16, f16 or blocks",
                amla_dtype_name(a->k_type));
  if (a->keys == AMLA_INDEX_KEYS_BF16)
    a->k_type = AMLA_BF16;
  return AMLA_OK;
}

/* Copies args to a with every default filled in. */
static amla_status check_shapes(const amla_index_args *args, amla_index_args *a,
                                amla_detail *detail) {
  TRY(copy_struct("args", args, a, sizeof *a, offsetof(amla_index_args, k_type), detail));
  TRY(check_range("b", a->b, 0, INT32_MAX, detail));
  TRY(check_range("s_q", a->s_q, 1, MAX_QUERIES, detail));
  TRY(check_range("heads", a->heads, 1, MAX_HEADS, detail));
  TRY(check_range("d", a->d, 32, MAX_D, detail));
  if (a->d % 32 != 0)
    INVALID("d=%d: must be a multiple of 32", a->d);
  TRY(check_range("sk", a->sk, 0, INT32_MAX, detail));
  TRY(check_range("topk", a->topk, 0, INT32_MAX, detail));
  TRY(check_pages(a, detail));
  if (a->q_type != AMLA_FP8_E4M3)
    TRY(check_range("q_type", a->q_type, AMLA_F32, AMLA_N_FLOAT_DTYPES - 1, detail));
  TRY(check_key_type(a, detail));
  TRY(check_range("index_kind", a->index_kind, AMLA_INDEX_SLOT, AMLA_INDEX_POSITION, detail));
  TRY(check_range("causal", a->causal, 0, 1, detail));
  TRY(check_slots(a, detail));
  TRY(check_q_strides(a, detail));
  TRY(check_key_strides(a, detail));
  const axis indices[] = {{"", a->b > 0 ? a->b : 1, a->s_q * (int64_t)a->topk}};
  const axis scores[] = {{"", a->b > 0 ? a->b : 1, a->s_q * (int64_t)a->sk}};
  TRY(check_extent("indices", indices, 1, a->s_q * (int64_t)a->topk, detail));
  return check_extent("scores", scores, 1, a->s_q * (int64_t)a->sk, detail);
}

static amla_status check_options(const amla_options *options, amla_options *o,
                                 amla_detail *detail) {
  TRY(amla_options_check(options, o, detail));
  if (o->backend != AMLA_BACKEND_AUTO && o->backend != AMLA_BACKEND_CPU)
    UNSUPPORTED("backend=%s: the indexer runs on cpu", amla_backend_name(o->backend));
  return AMLA_OK;
}

/* ---- Memory ---- */

static int64_t q_bytes(const amla_index_args *a) {
  const axis q[] = {{"", a->b, a->q_stride_batch},
                    {"", a->s_q, a->q_stride_query},
                    {"", a->heads, a->q_stride_head}};
  const int64_t elems = extent_elems(q, 3, a->d);
  return a->q_type == AMLA_FP8_E4M3 ? elems : amla_elems_bytes(a->q_type, elems);
}

/* Of all pages that exist, as for kv; of no keys, none. */
static int64_t k_bytes(const amla_index_args *a) {
  const int64_t pages = a->page_size > 0 ? a->n_pages : a->b;
  const axis k[] = {{"", pages, a->k_stride_page}};
  if (a->sk == 0 || pages == 0)
    return 0;
  const int64_t elems = extent_elems(k, 1, page_span(a, page_tokens(a)));
  return is_typed(a) ? amla_elems_bytes(a->k_type, elems) : elems;
}

static amla_status check_buffers(const amla_index_args *a, amla_detail *detail) {
  const int64_t queries = (int64_t)a->b * a->s_q, rows = queries * a->heads;
  const int fp8_q = a->q_type == AMLA_FP8_E4M3;
  const int64_t table = a->page_size > 0 && a->sk > 0 ? (int64_t)a->b * a->max_pages * 4 : 0;
  const extent all[] = {
      {"indices", a->indices, a->indices_bytes, queries * a->topk * 4, 4},
      {"scores", a->scores, a->scores_bytes, a->scores ? queries * a->sk * 4 : 0, 4},
      {"q", a->q, a->q_bytes, q_bytes(a), fp8_q ? 1 : amla_dtype_align(a->q_type)},
      {"q_scales", a->q_scales, a->q_scales_bytes, a->q_scales ? rows * 4 : 0, 4},
      {"weights", a->weights, a->weights_bytes, rows * 4, 4},
      {"k", a->k, a->k_bytes, k_bytes(a), is_typed(a) ? amla_dtype_align(a->k_type) : 1},
      {"block_table", a->block_table, a->block_table_bytes, table, 4},
      {"seqlens_k", a->seqlens_k, a->seqlens_k_bytes, a->seqlens_k ? (int64_t)a->b * 4 : 0, 4},
      {"visible_k", a->visible_k, a->visible_k_bytes, a->visible_k ? queries * 4 : 0, 4}};
  const size_t n = sizeof all / sizeof *all, n_outputs = 2;
  for (size_t i = 0; i < n; i++)
    TRY(check_buffer(&all[i], detail));
  for (size_t i = 0; i < n_outputs; i++)
    for (size_t j = i + 1; j < n; j++)
      TRY(check_overlap(&all[i], &all[j], detail));
  return AMLA_OK;
}

static amla_status check_sequence(const amla_index_args *a, int32_t i, amla_detail *detail) {
  const int32_t n = a->seqlens_k ? a->seqlens_k[i] : a->sk;
  if (n < 0 || n > a->sk)
    INVALID("seqlens_k[%d]=%d: must be in [0, sk=%d]", i, n, a->sk);
  for (int32_t query = 0; a->visible_k && query < a->s_q; query++) {
    const int32_t visible = a->visible_k[(int64_t)i * a->s_q + query];
    if (visible < 0 || visible > n)
      INVALID("visible_k[%d][%d]=%d: must be in [0, %d], the sequence's length", i, query, visible,
              n);
  }
  const int64_t used = a->page_size > 0 ? ((int64_t)n + a->page_size - 1) / a->page_size : 0;
  for (int64_t j = 0; j < used; j++) {
    const int32_t id = a->block_table[(int64_t)i * a->max_pages + j];
    if (id < 0 || id >= a->n_pages)
      INVALID("block_table[%d][%lld]=%d: a used page id must be in [0, n_pages=%lld)", i,
              (long long)j, id, (long long)a->n_pages);
  }
  return AMLA_OK;
}

static amla_status check_memory(const amla_index_args *a, amla_detail *detail) {
  if (a->topk == 0 && !a->scores)
    INVALID("topk=0: must be >= 1, unless scores are wanted");
  if (a->q_scales && a->q_type != AMLA_FP8_E4M3)
    INVALID("q_scales=%p: must be NULL, only fp8 q has scales", (const void *)a->q_scales);
  if (a->visible_k && a->causal)
    INVALID("visible_k=%p: must be NULL when causal is 1", (const void *)a->visible_k);
  if (a->page_size == 0 && a->block_table)
    INVALID("block_table=%p: must be NULL when page_size is 0 (contiguous)",
            (const void *)a->block_table);
  TRY(check_buffers(a, detail));
  for (int32_t i = 0; i < a->b; i++)
    TRY(check_sequence(a, i, detail));
  return AMLA_OK;
}

/* ---- Calls ---- */

amla_status amla_index_scratch_bytes(const amla_index_args *args, const amla_options *options,
                                     size_t *scratch_bytes, amla_detail *detail) {
  amla_index_args a;
  amla_options o;
  if (!scratch_bytes)
    INVALID("scratch_bytes=NULL: must point to where the size goes");
  TRY(check_shapes(args, &a, detail));
  TRY(check_options(options, &o, detail));
  amla_watch_forks();
  *scratch_bytes = amla_index_run_scratch_bytes(&a, &o);
  return amla_accept(detail);
}

amla_status amla_index_topk(const amla_index_args *args, const amla_options *options, void *scratch,
                            size_t scratch_bytes, amla_detail *detail) {
  amla_index_args a;
  amla_options o;
  TRY(check_shapes(args, &a, detail));
  TRY(check_options(options, &o, detail));
  if (a.b == 0)
    return amla_accept(detail);
  TRY(check_memory(&a, detail));
  const size_t needed = amla_index_run_scratch_bytes(&a, &o);
  if (!scratch)
    INVALID("scratch=NULL: must point to %zu bytes", needed);
  if (scratch_bytes < needed)
    INVALID("scratch_bytes=%zu: must be >= %zu (amla_index_scratch_bytes)", scratch_bytes, needed);
  amla_index_run(&a, &o, scratch);
  return amla_accept(detail);
}
