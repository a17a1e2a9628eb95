/* SPDX-License-Identifier: Apache-2.0
 *
 * See ranks_job.h.
 */
#include "ranks_job.h"

#include <stdlib.h>
#include <unistd.h>

#include "harness/safetensors.h"
#include "harness/seen_data.h"

/* ---- Data ---- */

void *ranks_allocate(size_t bytes) {
  void *at = malloc(bytes + 1);
  if (!at)
    ranks_die("results", "no memory");
  return at;
}

static void repeat_table(ranks_job *j) {
  amla_problem *p = &j->data.problem;
  const int32_t pages = p->page_size > 0 ? p->sk / p->page_size : 0, n = j->a.repeat;
  if (p->b != 1 || p->page_size == 0 || p->sk % p->page_size || p->topk || p->extra_sk)
    ranks_leave(1, "--repeat", "needs b=1, whole pages and neither lists nor a second scope");
  j->long_table = malloc((size_t)pages * (size_t)n * 4);
  if (!j->long_table)
    ranks_die("--repeat", "no memory");
  for (int32_t i = 0; i < pages * n; i++)
    j->long_table[i] = j->data.block_table[i % pages];
  p->sk *= n, p->max_pages = pages * n;
  j->data.tensors.block_table = j->long_table;
  j->data.tensors.block_table_bytes = (size_t)p->max_pages * 4;
  j->data.seqlens_k[0] = p->sk;
}

/* Shards are of pages, and a contiguous part of a cache is one: `*held`, a table of the data's. */
static void make_pages(int32_t b, int32_t sk, int32_t *page_size, int32_t *max_pages,
                       int64_t *n_pages, int32_t **held) {
  if (*page_size > 0 || sk == 0)
    return;
  free(*held);
  *held = malloc((size_t)b * 4 + 4);
  if (!*held)
    ranks_die("pages", "no memory");
  for (int32_t i = 0; i < b; i++)
    (*held)[i] = i;
  *page_size = sk, *max_pages = 1, *n_pages = b;
}

static void page_caches(harness_dataset *data) {
  amla_problem *p = &data->problem;
  amla_tensors *t = &data->tensors;
  const int first = p->page_size == 0, second = p->extra_page_size == 0;
  make_pages(p->b, p->sk, &p->page_size, &p->max_pages, &p->n_pages, &data->block_table);
  make_pages(p->b, p->extra_sk, &p->extra_page_size, &p->extra_max_pages, &p->extra_n_pages,
             &data->extra_block_table);
  if (first)
    t->block_table = data->block_table, t->block_table_bytes = (size_t)p->b * 4;
  if (second)
    t->extra_block_table = data->extra_block_table, t->extra_block_table_bytes = (size_t)p->b * 4;
}

/* A file, or a problem string. */
static void load(ranks_job *j) {
  harness_case c;
  char error[256];
  int failed, any;
  if (access(j->a.problem, F_OK) == 0)
    failed = harness_read_problem(j->a.problem, &j->data, error, sizeof error);
  else
    failed = harness_parse_problem(j->a.problem, &c, error, sizeof error) ||
             harness_generate(&c, &j->data, error, sizeof error);
  MPI_Allreduce(&failed, &any, 1, MPI_INT, MPI_BOR, MPI_COMM_WORLD);
  if (any)
    ranks_leave(1, j->a.problem, failed ? error : "another rank cannot load it");
}

void ranks_generate(ranks_job *j) {
  load(j);
  page_caches(&j->data);
  if (!harness_sort_lists(&j->data))
    ranks_die("lists", "no memory");
  if (j->a.repeat > 1)
    repeat_table(j);
  j->options = j->data.options;
  j->options.threads = j->a.threads;
  j->options.split_tokens = j->a.split;
  j->data.options = j->options; /* what comparisons go by */
  if (j->a.max_logits) {
    j->data.tensors.max_logits_bytes = j->data.tensors.lse_bytes;
    j->data.tensors.max_logits = j->max_logits = malloc(j->data.tensors.lse_bytes + 1);
  }
}

/* ---- Shards ---- */

static int32_t *bounds(const ranks_job *j) {
  int32_t *at = malloc((size_t)j->data.problem.b * 4 + 4);
  if (!at)
    ranks_die("bounds", "no memory");
  return at;
}

/* The rank's own tokens, in a cache of their own. */
static void interleave(ranks_job *j) {
  const char *why;
  if (ranks_cache_create(&j->data, j->a.interleave, j->rank, j->ranks, &j->cache, &why) != 0)
    ranks_die("--interleave", why);
  j->problem = j->cache.problem, j->tensors = j->cache.tensors;
}

/* Even shards by the sequences' lengths. */
static void share_out(ranks_job *j) {
  const amla_problem *p = &j->data.problem;
  const size_t bytes = (size_t)p->b * 4;
  j->begin = bounds(j), j->end = bounds(j), j->extra_begin = bounds(j), j->extra_end = bounds(j);
  for (int32_t i = 0; i < p->b; i++) {
    const int32_t n = j->data.seqlens_k ? j->data.seqlens_k[i] : p->sk;
    const int32_t extra = j->data.extra_seqlens_k ? j->data.extra_seqlens_k[i] : p->extra_sk;
    j->begin[i] = amla_mpi_even_begin(j->info.split_tokens, n, j->rank, j->ranks);
    j->end[i] = amla_mpi_even_begin(j->info.split_tokens, n, j->rank + 1, j->ranks);
    j->extra_begin[i] = amla_mpi_even_begin(j->info.split_tokens, extra, j->rank, j->ranks);
    j->extra_end[i] = amla_mpi_even_begin(j->info.split_tokens, extra, j->rank + 1, j->ranks);
  }
  j->shard = (amla_shard)AMLA_SHARD_INIT;
  j->shard.begin = j->begin, j->shard.end = j->end;
  j->shard.begin_bytes = j->shard.end_bytes = bytes;
  if (p->extra_sk > 0 || p->extra_topk > 0) {
    j->shard.extra_begin = j->extra_begin, j->shard.extra_end = j->extra_end;
    j->shard.extra_begin_bytes = j->shard.extra_end_bytes = bytes;
  }
}

/* ---- Plans and runs ---- */

/* All ranks of the communicator are told the same. */
static void refuse(const ranks_job *j, const char *what, amla_status status, const char *why) {
  if (status != AMLA_OK && j->comm == MPI_COMM_WORLD)
    ranks_leave(1, what, why);
  if (status != AMLA_OK)
    ranks_die(what, why);
}

amla_status ranks_try_create(ranks_job *j, amla_detail *why) {
  amla_mpi_options o = AMLA_MPI_OPTIONS_INIT;
  o.interleave_tokens = j->a.interleave;
  o.trace_blocks = MAX_BLOCKS;
  j->problem = j->data.problem, j->tensors = j->data.tensors;
  if (j->a.interleave > 0)
    interleave(j);
  return amla_mpi_create(&j->mpi, j->comm, &j->problem, &j->options, &o, why);
}

void ranks_create(ranks_job *j) {
  amla_detail why;
  refuse(j, "amla_mpi_create", ranks_try_create(j, &why), why.text);
  j->info = (amla_mpi_info)AMLA_MPI_INFO_INIT;
  amla_mpi_query(j->mpi, &j->info, NULL);
  share_out(j);
}

void ranks_destroy(ranks_job *j) {
  amla_mpi_destroy(j->mpi);
  ranks_cache_free(&j->cache);
  free(j->begin), free(j->end), free(j->extra_begin), free(j->extra_end);
  j->mpi = NULL, j->cache = (ranks_cache){0};
  j->begin = j->end = j->extra_begin = j->extra_end = NULL;
}

amla_status ranks_try_run(ranks_job *j, amla_detail *why) {
  return amla_mpi_run(j->mpi, &j->tensors, j->a.interleave ? NULL : &j->shard, why);
}

void ranks_run(ranks_job *j) {
  amla_detail why;
  refuse(j, "amla_mpi_run", ranks_try_run(j, &why), why.text);
  amla_mpi_query(j->mpi, &j->info, NULL);
}
