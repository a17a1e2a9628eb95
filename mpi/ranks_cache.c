/* SPDX-License-Identifier: Apache-2.0
 *
 * See ranks_cache.h. Unused slots are NaN and unused entries of tables leave the cache, as in
 * harness/dataset.h.
 */
#include "ranks_cache.h"

#include <amla/amla_mpi.h>
#include <stdlib.h>
#include <string.h>

#include "harness/kv_rows.h"
#include "harness/scopes.h"

typedef struct sharing {
  int32_t tokens, rank, ranks;
} sharing;

static int32_t own(const sharing *x, int32_t position) {
  return amla_mpi_own_tokens(x->tokens, position, x->rank, x->ranks);
}

/* ---- One scope ---- */

/* Pages of the rank's own tokens, those of a sequence in falling order. */
static int32_t *fill_table(amla_problem *p, const int32_t *lengths, const sharing *x,
                           int64_t *n_pages) {
  int32_t *table = malloc((size_t)p->b * (size_t)p->max_pages * 4 + 4);
  int64_t used = 0;
  for (int32_t i = 0; table && i < p->b; i++) {
    const int32_t n = own(x, lengths[i]), pages = (n + p->page_size - 1) / p->page_size;
    for (int32_t k = 0; k < p->max_pages; k++)
      table[i * p->max_pages + k] = k < pages ? (int32_t)(used + pages - 1 - k) : 2147480000;
    used += pages;
  }
  *n_pages = used;
  return table;
}

static size_t bytes_of(const amla_problem *p, int64_t elems) {
  return (size_t)harness_bytes(p->kv_type, elems);
}

/* Rows of `from` in the places that `to` gives them. */
static void *copy_rows(const amla_problem *from, const void *kv, const int32_t *table,
                       const amla_problem *to, const int32_t *own_table, const int32_t *lengths,
                       const sharing *x, size_t *bytes) {
  const size_t row = (size_t)harness_token_bytes(to->kv_type, to->d_qk - to->kv_d_rope);
  *bytes = (size_t)to->n_pages * bytes_of(to, harness_page_elems(to));
  char *copy = aligned_alloc(64, (*bytes + 64) / 64 * 64);
  if (!copy)
    return NULL;
  memset(copy, 0xff, *bytes);
  for (int32_t i = 0; i < from->b; i++)
    for (int32_t j = 0; j < lengths[i]; j++) {
      if (j / x->tokens % x->ranks != x->rank)
        continue;
      const int64_t at = harness_token_offset(from, table, i, j);
      const int64_t own_at = harness_token_offset(to, own_table, i, own(x, j));
      memcpy(copy + bytes_of(to, own_at), (const char *)kv + bytes_of(from, at), row);
    }
  return copy;
}

/* The scope's problem, with pages of the rank's own. */
static amla_problem own_pages(const amla_problem *p, const sharing *x) {
  amla_problem o = *p;
  const int32_t most = amla_mpi_own_tokens(x->tokens, p->sk, 0, x->ranks);
  o.max_pages = (most + p->page_size - 1) / p->page_size;
  o.kv_stride_page = o.kv_stride_token = o.kv_rope_stride_page = o.kv_rope_stride_token = 0;
  return o;
}

/* ---- Both ---- */

static int copy_first(ranks_cache *c, const harness_dataset *data, const sharing *x) {
  const amla_problem *p = &data->problem;
  amla_problem o = own_pages(p, x);
  int32_t *table = fill_table(&o, data->seqlens_k, x, &o.n_pages);
  c->owned[0] = table;
  if (!table)
    return -1;
  c->owned[1] = copy_rows(p, data->kv, data->block_table, &o, table, data->seqlens_k, x,
                          &c->tensors.kv_bytes);
  c->tensors.kv = c->owned[1];
  if (p->kv_d_rope > 0) {
    const amla_problem from = harness_rope_problem(p), to = harness_rope_problem(&o);
    c->owned[2] = copy_rows(&from, data->kv_rope, data->block_table, &to, table, data->seqlens_k, x,
                            &c->tensors.kv_rope_bytes);
    c->tensors.kv_rope = c->owned[2];
  }
  c->tensors.block_table = table;
  c->tensors.block_table_bytes = (size_t)o.b * (size_t)o.max_pages * 4;
  c->tensors.kv_indptr = c->tensors.kv_indices = NULL;
  c->problem = o;
  return c->owned[1] && (p->kv_d_rope == 0 || c->owned[2]) ? 0 : -1;
}

static int copy_second(ranks_cache *c, const harness_dataset *data, const sharing *x) {
  const amla_problem from = harness_second_problem(&data->problem);
  amla_problem to = own_pages(&from, x);
  int32_t *table = fill_table(&to, data->extra_seqlens_k, x, &to.n_pages);
  c->owned[3] = table;
  if (!table)
    return -1;
  c->owned[4] = copy_rows(&from, data->extra_kv, data->extra_block_table, &to, table,
                          data->extra_seqlens_k, x, &c->tensors.extra_kv_bytes);
  c->tensors.extra_kv = c->owned[4];
  c->tensors.extra_block_table = table;
  c->tensors.extra_block_table_bytes = (size_t)to.b * (size_t)to.max_pages * 4;
  c->problem.extra_max_pages = to.max_pages, c->problem.extra_n_pages = to.n_pages;
  c->problem.extra_kv_stride_page = c->problem.extra_kv_stride_token = 0;
  return c->owned[4] ? 0 : -1;
}

int ranks_cache_create(const harness_dataset *data, int32_t interleave_tokens, int32_t rank,
                       int32_t ranks, ranks_cache *cache, const char **why) {
  const sharing x = {interleave_tokens, rank, ranks};
  const amla_problem *p = &data->problem;
  *cache = (ranks_cache){.problem = *p, .tensors = data->tensors};
  *why = "--interleave: not of fp8_584 here, nor of lists of slots or a mask";
  if (p->kv_type == AMLA_FP8_584 || harness_has_slots(p) || data->mask || !data->seqlens_k)
    return -1;
  *why = "no memory for a rank's own cache";
  if (copy_first(cache, data, &x) != 0)
    return -1;
  return harness_has_second_scope(p) ? copy_second(cache, data, &x) : 0;
}

void ranks_cache_free(ranks_cache *cache) {
  for (size_t i = 0; i < sizeof cache->owned / sizeof *cache->owned; i++)
    free(cache->owned[i]);
}
