/* SPDX-License-Identifier: Apache-2.0
 *
 * amla_ranks: a problem over the ranks of mpirun, by itself or as `amla run|check|bench --ranks`.
 * Rank 0 prints.
 *
 *     mpirun -n 4 amla_ranks run examples/deepseek_v3_decode.safetensors
 *     mpirun -n 4 amla_ranks check h=16,sk=4000          fp64, and the bits of 1, 2 and 4 ranks
 *     mpirun -n 4 amla_ranks check h=16,sk=4000 --interleave 1   fp64 and the bound
 *     mpirun -n 4 amla_ranks bench h=16,sk=4096 --repeat 256 --split 4096
 *     mpirun -n 4 amla_ranks time h=16,sk=4000           the time of a step alone, as JSON
 *     mpirun -n 4 amla_ranks bench h=128 --trace FILE    and when blocks were computed and came
 *     mpirun -n 2 amla_ranks duel h=128      against as many threads in one process, in turn
 *     mpirun -n 4 amla_ranks overlap h=64,sq=6,sk=3072,dqk=20,dv=16   messages come between key
 * tiles mpirun -n 4 amla_ranks steps h=2,sk=3000 --steps 2000 mpirun -n 4 amla_ranks fault page
 * h=2,sk=3000      one rank errs: all say the same, by name
 *
 * --repeat N: the page table N times over, as one long sequence: a million tokens in a small cache.
 */
#include <amla/amla_mpi.h>

#include <limits.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "harness/safetensors.h"
#include "harness/truth.h"
#include "ranks_cache.h"

typedef struct arguments {
  const char *command, *fault, *problem, *trace;
  int split, repeat, steps, threads, rounds, interleave, max_logits;
} arguments;

typedef struct job {
  arguments a;
  MPI_Comm comm; /* the ranks at work: all, or the first ones */
  int rank, ranks;
  harness_dataset data;
  harness_truth truth;  /* of rank 0 */
  ranks_cache cache;    /* of --interleave */
  amla_problem problem; /* of this rank: the whole one, or with pages of its own */
  amla_tensors tensors;
  int32_t *long_table; /* of --repeat */
  float *max_logits;
  amla_options options;
  amla_mpi *mpi;
  amla_mpi_info info;
  int32_t *begin, *end, *extra_begin, *extra_end;
  amla_shard shard;
} job;

enum { EXIT_USAGE = 2, EXIT_MISMATCH = 3, MAX_BLOCKS = 256 /* of a trace */ };

/* What this rank alone cannot do ends all. */
static _Noreturn void die(const char *what, const char *why) {
  fprintf(stderr, "amla_ranks: %s: %s\n", what, why);
  MPI_Abort(MPI_COMM_WORLD, 1);
  abort();
}

/* What all ranks find alike, one says, and MPI is left in peace. */
static _Noreturn void leave(int status, const char *what, const char *why) {
  int rank;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  if (rank == 0)
    fprintf(stderr, "amla_ranks: %s: %s\n", what, why);
  MPI_Finalize();
  exit(status);
}

/* ---- Allocations of ours that fail when told to ---- */

static int failing;
void *__real_calloc(size_t n, size_t bytes);
void *__wrap_calloc(size_t n, size_t bytes);
void *__wrap_calloc(size_t n, size_t bytes) {
  return failing && --failing == 0 ? NULL : __real_calloc(n, bytes);
}

/* ---- Arguments and data ---- */

static const char usage[] =
    "mpirun -n N amla_ranks run|check|bench|time|duel|overlap|steps|fault WHAT FILE|PROBLEM "
    "[--split N] "
    "[--interleave N] [--max-logits 1] [--repeat N] [--steps N] [--threads N] [--rounds N] "
    "[--trace FILE]";

static int number(const char *name, const char *text) {
  char *end;
  const long n = text ? strtol(text, &end, 10) : 0;
  if (!text || *end || n < 1 || n > INT_MAX)
    leave(EXIT_USAGE, name, "must be a number >= 1");
  return (int)n;
}

/* The option that an argument begins with: its number, and in *text what stands behind a "=". */
static int *find_option(arguments *a, const char *argument, const char **text) {
  const struct {
    const char *name;
    int *value;
  } all[] = {{"--split", &a->split},          {"--repeat", &a->repeat},
             {"--steps", &a->steps},          {"--threads", &a->threads},
             {"--rounds", &a->rounds},        {"--interleave", &a->interleave},
             {"--max-logits", &a->max_logits}};
  *text = NULL;
  for (size_t k = 0; k < sizeof all / sizeof *all; k++) {
    const size_t n = strlen(all[k].name);
    if (strncmp(argument, all[k].name, n) != 0 || (argument[n] != '\0' && argument[n] != '='))
      continue;
    *text = argument[n] ? argument + n + 1 : NULL;
    return all[k].value;
  }
  return NULL;
}

static arguments parse(int argc, char **argv) {
  arguments a = {.split = 1, .repeat = 1, .steps = 100, .threads = 1, .rounds = 5};
  int i = 1;
  if (argc < 3)
    leave(EXIT_USAGE, "usage", usage);
  a.command = argv[i++];
  if (strcmp(a.command, "fault") == 0)
    a.fault = argv[i++];
  for (; i < argc; i++) {
    const char *text;
    int *value = find_option(&a, argv[i], &text);
    if (value && text)
      *value = number(argv[i], text);
    else if (value)
      *value = number(argv[i], argv[i + 1]), i++;
    else if (strcmp(argv[i], "--trace") == 0 && argv[i + 1])
      a.trace = argv[++i];
    else if (a.problem || strncmp(argv[i], "--", 2) == 0)
      leave(EXIT_USAGE, argv[i], "more than one problem, or no such option");
    else
      a.problem = argv[i];
  }
  if (!a.problem)
    leave(EXIT_USAGE, "FILE or PROBLEM is missing", usage);
  return a;
}

static void repeat_table(job *j) {
  amla_problem *p = &j->data.problem;
  const int32_t pages = p->page_size > 0 ? p->sk / p->page_size : 0, n = j->a.repeat;
  if (p->b != 1 || p->page_size == 0 || p->sk % p->page_size || p->topk || p->extra_sk)
    leave(1, "--repeat", "needs b=1, whole pages and neither lists nor a second scope");
  j->long_table = malloc((size_t)pages * (size_t)n * 4);
  if (!j->long_table)
    die("--repeat", "no memory");
  for (int32_t i = 0; i < pages * n; i++)
    j->long_table[i] = j->data.block_table[i % pages];
  p->sk *= n, p->max_pages = pages * n;
  j->data.tensors.block_table = j->long_table;
  j->data.tensors.block_table_bytes = (size_t)p->max_pages * 4;
  j->data.seqlens_k[0] = p->sk;
}

static int compare_entries(const void *a, const void *b) {
  const int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
  return (x > y) - (x < y);
}

/* Shards need lists that ascend. Those of the generator have no order; -1 is as good in front. */
static void sort_lists(int32_t *lists, int64_t n, int32_t topk) {
  for (int64_t i = 0; lists && i < n; i++)
    qsort(lists + i * topk, (size_t)topk, sizeof *lists, compare_entries);
}

/* Shards are of pages, and a contiguous part of a cache is one: `*held`, a table of the data's. */
static void make_pages(int32_t b, int32_t sk, int32_t *page_size, int32_t *max_pages,
                       int64_t *n_pages, int32_t **held) {
  if (*page_size > 0 || sk == 0)
    return;
  free(*held);
  *held = malloc((size_t)b * 4 + 4);
  if (!*held)
    die("pages", "no memory");
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
static void load(job *j) {
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
    leave(1, j->a.problem, failed ? error : "another rank cannot load it");
}

static void generate(job *j) {
  load(j);
  const amla_problem *p = &j->data.problem;
  page_caches(&j->data);
  sort_lists(j->data.indices, harness_rows(&j->data) / p->h_q, p->topk);
  sort_lists(j->data.extra_indices, harness_rows(&j->data) / p->h_q, p->extra_topk);
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

static int32_t *bounds(const job *j) {
  int32_t *at = malloc((size_t)j->data.problem.b * 4 + 4);
  if (!at)
    die("bounds", "no memory");
  return at;
}

/* The rank's own tokens, in a cache of their own. */
static void interleave(job *j) {
  const char *why;
  if (ranks_cache_create(&j->data, j->a.interleave, j->rank, j->ranks, &j->cache, &why) != 0)
    die("--interleave", why);
  j->problem = j->cache.problem, j->tensors = j->cache.tensors;
}

/* Even shards by the sequences' lengths. */
static void share_out(job *j) {
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

/* All ranks of the communicator are told the same. */
static void refuse(const job *j, const char *what, amla_status status, const char *why) {
  if (status != AMLA_OK && j->comm == MPI_COMM_WORLD)
    leave(1, what, why);
  if (status != AMLA_OK)
    die(what, why);
}

static amla_status try_create(job *j, amla_detail *why) {
  amla_mpi_options o = AMLA_MPI_OPTIONS_INIT;
  o.interleave_tokens = j->a.interleave;
  o.trace_blocks = MAX_BLOCKS;
  j->problem = j->data.problem, j->tensors = j->data.tensors;
  if (j->a.interleave > 0)
    interleave(j);
  return amla_mpi_create(&j->mpi, j->comm, &j->problem, &j->options, &o, why);
}

static void create(job *j) {
  amla_detail why;
  refuse(j, "amla_mpi_create", try_create(j, &why), why.text);
  j->info = (amla_mpi_info)AMLA_MPI_INFO_INIT;
  amla_mpi_query(j->mpi, &j->info, NULL);
  share_out(j);
}

static void destroy(job *j) {
  amla_mpi_destroy(j->mpi);
  ranks_cache_free(&j->cache);
  free(j->begin), free(j->end), free(j->extra_begin), free(j->extra_end);
  j->mpi = NULL, j->cache = (ranks_cache){0};
  j->begin = j->end = j->extra_begin = j->extra_end = NULL;
}

/* ---- One process, for comparison ---- */

/* What a run makes, of all rows. */
typedef struct results {
  void *out, *lse, *max_logits;
} results;

static void *allocate(size_t bytes) {
  void *at = malloc(bytes + 1);
  if (!at)
    die("results", "no memory");
  return at;
}

static results make_results(const job *j) {
  const amla_tensors *t = &j->data.tensors;
  return (results){allocate(t->out_bytes), allocate(t->lse_bytes), allocate(t->lse_bytes)};
}

static void free_results(results *r) { free(r->out), free(r->lse), free(r->max_logits); }

static void copy_results(const job *j, results *r) {
  memcpy(r->out, j->data.out, j->data.tensors.out_bytes);
  memcpy(r->lse, j->data.lse, j->data.tensors.lse_bytes);
  if (j->max_logits)
    memcpy(r->max_logits, j->max_logits, j->data.tensors.lse_bytes);
}

static void reset_outputs(job *j) {
  harness_reset_outputs(&j->data);
  if (j->max_logits)
    memset(j->max_logits, 0xA5, j->data.tensors.lse_bytes);
}

/* Rank 0 runs the whole problem, and all ranks get its result. */
static void run_whole(job *j, results *r) {
  const amla_tensors *t = &j->data.tensors;
  amla_detail why = {""};
  if (j->rank == 0) {
    amla_plan *plan;
    if (amla_plan_create(&plan, &j->data.problem, &j->options, &why) != AMLA_OK)
      die("one process", why.text);
    const size_t bytes = amla_plan_scratch_bytes(plan);
    void *scratch = malloc(bytes);
    if (!scratch || amla_plan_run(plan, t, scratch, bytes, &why) != AMLA_OK)
      die("one process", why.text);
    amla_plan_destroy(plan);
    free(scratch);
    copy_results(j, r);
  }
  MPI_Bcast(r->out, (int)t->out_bytes, MPI_BYTE, 0, j->comm);
  MPI_Bcast(r->lse, (int)t->lse_bytes, MPI_BYTE, 0, j->comm);
  MPI_Bcast(r->max_logits, (int)t->lse_bytes, MPI_BYTE, 0, j->comm);
}

static int is_own(const job *j, int64_t row) {
  const int64_t head = row % j->data.problem.h_q;
  return head >= j->info.head_begin && head < j->info.head_end;
}

static int differs(const void *got, const void *want, size_t bytes, int own) {
  unsigned char guard[1 << 16];
  memset(guard, 0xA5, bytes);
  return memcmp(got, own ? want : guard, bytes) != 0;
}

/* Rows with other bits, over all ranks: of the rank's heads those of `want`, of others the guard
 * pattern. */
static int count_differences(const job *j, const results *want) {
  const amla_problem *p = &j->data.problem;
  const size_t size = harness_dtype_bytes(p->out_type), bytes = (size_t)p->d_v * size;
  int different = 0, all;
  for (int64_t row = 0; row < harness_rows(&j->data); row++) {
    const size_t at = (size_t)harness_out_offset(p, row) * size;
    const size_t sum_at = (size_t)harness_lse_offset(&j->data, row) * sizeof(float);
    const int own = is_own(j, row);
    different += differs((char *)j->data.out + at, (char *)want->out + at, bytes, own);
    different +=
        differs((char *)j->data.lse + sum_at, (char *)want->lse + sum_at, sizeof(float), own);
    if (j->max_logits)
      different += differs((char *)j->max_logits + sum_at, (char *)want->max_logits + sum_at,
                           sizeof(float), own);
  }
  MPI_Allreduce(&different, &all, 1, MPI_INT, MPI_SUM, j->comm);
  return all;
}

static amla_status try_run(job *j, amla_detail *why) {
  return amla_mpi_run(j->mpi, &j->tensors, j->a.interleave ? NULL : &j->shard, why);
}

static void run(job *j) {
  amla_detail why;
  refuse(j, "amla_mpi_run", try_run(j, &why), why.text);
  amla_mpi_query(j->mpi, &j->info, NULL);
}

/* ---- fp64 ---- */

static void compute_truth(job *j) {
  if (j->rank == 0 && harness_truth_compute(&j->data, &j->truth) != 0)
    die("fp64", "no memory");
}

static void sum_bytes(const job *j, void *at, size_t bytes) {
  if (j->rank == 0)
    MPI_Reduce(MPI_IN_PLACE, at, (int)bytes, MPI_BYTE, MPI_BOR, 0, j->comm);
  else
    MPI_Reduce(at, NULL, (int)bytes, MPI_BYTE, MPI_BOR, 0, j->comm);
}

/* Rank 0 gets the rows of all. Those of others are cleared, so that bytes add up. */
static void gather(job *j) {
  const amla_problem *p = &j->data.problem;
  const size_t size = harness_dtype_bytes(p->out_type);
  for (int64_t row = 0; row < harness_rows(&j->data); row++) {
    const int64_t at = harness_lse_offset(&j->data, row);
    if (is_own(j, row))
      continue;
    memset((char *)j->data.out + (size_t)harness_out_offset(p, row) * size, 0,
           (size_t)p->d_v * size);
    j->data.lse[at] = 0.0f;
    if (j->max_logits)
      j->max_logits[at] = 0.0f;
  }
  sum_bytes(j, j->data.out, j->data.tensors.out_bytes);
  sum_bytes(j, j->data.lse, j->data.tensors.lse_bytes);
  if (j->max_logits)
    sum_bytes(j, j->max_logits, j->data.tensors.lse_bytes);
}

/* Rank 0's outputs against fp64: by the bound of one process, or by that of merged results. */
static harness_error judge(const job *j, int merged) {
  amla_plan_info info = AMLA_PLAN_INFO_INIT;
  amla_plan *plan;
  if (amla_plan_create(&plan, &j->data.problem, &j->options, NULL) != AMLA_OK)
    die("fp64", "no plan");
  amla_plan_query(plan, &info, NULL);
  amla_plan_destroy(plan);
  if (merged)
    return harness_compare_merged(&j->data, &j->truth, &info, j->ranks);
  return harness_compare_plan(&j->data, &j->truth, &info);
}

/* Largest scores are within the bound of a score, on either side. */
static int same_max_logits(const job *j, const results *whole) {
  const float *want = whole->max_logits;
  int ok = 1;
  for (int64_t row = 0; j->max_logits && row < harness_rows(&j->data); row++) {
    const int64_t at = harness_lse_offset(&j->data, row);
    const double limit = 0x1p-23 * (4 + sqrt(j->data.problem.d_qk)) * j->truth.score_abs[row];
    ok = ok && (j->max_logits[at] == want[at] ||
                fabs((double)j->max_logits[at] - (double)want[at]) <= limit);
  }
  return ok;
}

/* ---- Report ---- */

static void print_work(const job *j) {
  double work[3] = {(double)j->info.n_row_keys, (double)j->info.sent_bytes, j->info.wait_seconds};
  double sum[3], max[3];
  MPI_Reduce(work, sum, 3, MPI_DOUBLE, MPI_SUM, 0, j->comm);
  MPI_Reduce(work, max, 3, MPI_DOUBLE, MPI_MAX, 0, j->comm);
  if (j->rank == 0)
    printf(
        "work     %.0f row-keys a rank, max / mean %.3f; sent %.0f bytes a rank, %d records of a "
        "row, %d blocks; %d of %d messages not waited for\n",
        sum[0] / j->ranks, sum[0] > 0 ? max[0] * j->ranks / sum[0] : 1.0, sum[1] / j->ranks,
        j->info.max_entries, j->info.blocks, j->info.messages_early, j->info.messages);
}

static void print_error(const char *name, const harness_error *e) {
  printf("%-8s %.2e relative, LSE %.2e largest, %.2g of the bound: %s\n", name, e->rel_error,
         e->lse_max_abs_error, e->worst_of_bound, e->ok ? "ok" : "MISMATCH");
}

/* The first n ranks do what is to be done on them, and the others wait. */
static int on_ranks(job *j, int n, const results *whole, int (*what)(job *, const results *)) {
  int rank, ok = 1, all;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_split(MPI_COMM_WORLD, rank < n ? 0 : 1, rank, &j->comm);
  MPI_Comm_rank(j->comm, &j->rank);
  MPI_Comm_size(j->comm, &j->ranks);
  if (rank < n)
    ok = what(j, whole);
  MPI_Comm_free(&j->comm);
  j->comm = MPI_COMM_WORLD;
  MPI_Comm_rank(j->comm, &j->rank);
  MPI_Comm_size(j->comm, &j->ranks);
  MPI_Allreduce(&ok, &all, 1, MPI_INT, MPI_MIN, j->comm);
  return all;
}

/* Runs of whole splits: the bits of one process. */
static int check_runs(job *j, const results *whole) {
  create(j);
  reset_outputs(j);
  run(j);
  const int different = count_differences(j, whole);
  print_work(j);
  if (j->rank == 0)
    printf("ranks    %d ranks against one process, split %lld: %s\n", j->ranks,
           (long long)j->info.split_tokens, different ? "OTHER BITS" : "the same bits");
  destroy(j);
  return different == 0;
}

/* Interleaved shards: fp64 within their bound, and the same bits whatever the threads. */
static int check_interleaved(job *j, const results *whole) {
  results first = make_results(j);
  int ok = 1;
  create(j);
  reset_outputs(j);
  run(j);
  copy_results(j, &first);
  const int strays = count_differences(j, &first);
  print_work(j);
  destroy(j);
  j->options.threads++;
  create(j);
  reset_outputs(j);
  run(j);
  const int different = count_differences(j, &first);
  destroy(j);
  j->options.threads--;
  gather(j);
  if (j->rank == 0) {
    const harness_error e = judge(j, 1);
    const int same = same_max_logits(j, whole);
    print_error("merged", &e);
    printf("ranks    %d ranks interleaved by %d, bits with another thread: %s; %s\n", j->ranks,
           j->a.interleave, different ? "OTHER" : "the same",
           strays ? "WROTE ROWS OF OTHERS" : "no other row written");
    if (!same)
      printf("ranks    max_logits: MISMATCH\n");
    ok = e.ok && same && !different && !strays;
  }
  free_results(&first);
  return ok;
}

/* On all ranks, which say what they refuse, then on 1, 2, 4, ... of them. */
static int check_counts(job *j, const results *whole) {
  int (*what)(job *, const results *) = j->a.interleave ? check_interleaved : check_runs;
  const int all = j->ranks;
  int ok = what(j, whole);
  for (int n = 1; n < all; n *= 2)
    ok &= on_ranks(j, n, whole, what);
  return ok;
}

/* One process against fp64, then ranks. Of a table many times over fp64 would take too long. */
static int check(job *j) {
  results whole = make_results(j);
  int ok = 1;
  run_whole(j, &whole);
  if (j->a.repeat == 1)
    compute_truth(j);
  if (j->rank == 0 && j->a.repeat == 1) {
    const harness_error e = judge(j, 0);
    print_error("fp64", &e);
    ok = e.ok;
  }
  ok &= check_counts(j, &whole);
  free_results(&whole);
  return ok;
}

/* The best round: of its slowest rank seconds, seconds of waiting, messages and bytes sent. */
enum { SECONDS, WAITING, MESSAGES, SENT_BYTES, N_MEASURES };

static void measure(job *j, double best[N_MEASURES]) {
  best[SECONDS] = 1e30;
  for (int i = 0; i < j->a.rounds; i++) {
    MPI_Barrier(MPI_COMM_WORLD);
    run(j);
    const double mine[N_MEASURES] = {j->info.seconds, j->info.wait_seconds, j->info.messages,
                                     (double)j->info.sent_bytes};
    double slowest[N_MEASURES];
    MPI_Allreduce(mine, slowest, N_MEASURES, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    if (slowest[SECONDS] < best[SECONDS])
      memcpy(best, slowest, sizeof slowest);
  }
}

static void print_measures(job *j) {
  double best[N_MEASURES], bytes, sum;
  measure(j, best);
  bytes = (double)j->info.sent_bytes;
  MPI_Reduce(&bytes, &sum, 1, MPI_DOUBLE, MPI_SUM, 0, MPI_COMM_WORLD);
  if (j->rank == 0)
    printf("time     %.6f s best of %d, slowest rank; %.0f bytes a rank sent, %.1f %% of the time "
           "not hidden\n",
           best[SECONDS], j->a.rounds, sum / j->ranks, 100.0 * best[WAITING] / best[SECONDS]);
}

static int time_only(job *j) {
  double best[N_MEASURES];
  create(j);
  measure(j, best);
  if (j->rank == 0)
    printf("{\"ranks\": %d, \"seconds\": %.9f, \"wait_seconds\": %.9f, \"messages\": %.0f, "
           "\"sent_bytes\": %.0f, \"entries\": %d}\n",
           j->ranks, best[SECONDS], best[WAITING], best[MESSAGES], best[SENT_BYTES],
           j->info.max_entries);
  destroy(j);
  return 1;
}

/* ---- Trace ---- */

static int32_t get_trace(const job *j, amla_mpi_block *blocks) {
  int32_t n;
  amla_mpi_trace(j->mpi, MAX_BLOCKS, blocks, &n, NULL);
  return n;
}

static void print_block(FILE *to, int rank, int block, const amla_mpi_block *b) {
  fprintf(to, "%d %d %lld-%lld %.6f %.6f %.6f %.6f %.6f %.6f %d %d\n", rank, block,
          (long long)b->row_begin, (long long)b->row_end, b->compute_begin, b->compute_end, b->sent,
          b->first_message, b->last_message, b->finished, b->messages, b->messages_within);
}

/* The last run's blocks of all ranks. */
static void write_trace(const job *j) {
  amla_mpi_block mine[MAX_BLOCKS], *all = allocate((size_t)j->ranks * sizeof mine);
  const int32_t n = get_trace(j, mine);
  MPI_Gather(mine, (int)sizeof mine, MPI_BYTE, all, (int)sizeof mine, MPI_BYTE, 0, j->comm);
  FILE *to = j->rank == 0 ? fopen(j->a.trace, "w") : NULL;
  if (j->rank == 0 && !to)
    die(j->a.trace, "cannot be written");
  if (to)
    fprintf(to, "# rank block rows compute_begin compute_end sent first_message last_message "
                "finished messages within; seconds since the rank's run began\n");
  for (int32_t i = 0; to && i < n * j->ranks; i++)
    print_block(to, i / n, i % n, &all[i / n * MAX_BLOCKS + i % n]);
  if (to && fclose(to) != 0)
    die(j->a.trace, "cannot be written");
  free(all);
}

/* Questions of options.cancel, at which each rank meets each other one. So all have computed a
 * block and sent what goes before one of them goes on to the second key tile of the next block, and
 * what they sent has come before what they say here. */
static int meetings, asks;
static int meet(void *context) {
  const job *j = context;
  for (int k = 0; asks < meetings && k < j->ranks; k++) {
    int mine = asks, other;
    MPI_Sendrecv(&mine, 1, MPI_INT, k, 0, &other, 1, MPI_INT, k, 0, MPI_COMM_WORLD,
                 MPI_STATUS_IGNORE);
  }
  asks++;
  return 0;
}

static int has_own_rows(const job *j, const amla_mpi_block *b) {
  int any = 0;
  for (int64_t row = b->row_begin; row < b->row_end; row++)
    any |= is_own(j, row);
  return any;
}

/* Every block but the last came while the next one was computed: nothing else fits the order of
 * events. It needs as many key tiles a block on each rank, eight or so for MPI to bring them in. */
static int came_meanwhile(const job *j) {
  amla_mpi_block blocks[MAX_BLOCKS];
  const int32_t n = get_trace(j, blocks);
  int ok = 1, came = 0;
  for (int32_t i = 0; i + 1 < n; i++) {
    const amla_mpi_block *b = &blocks[i];
    ok = ok && b->compute_end <= b->sent && b->sent <= b[1].compute_begin;
    if (!has_own_rows(j, b))
      continue;
    ok = ok && b->messages == j->ranks - 1 && b->messages_within == b->messages &&
         b[1].compute_begin <= b->first_message && b->last_message <= b[1].compute_end;
    came++;
  }
  for (int32_t i = 0; !ok && i < n; i++)
    print_block(stderr, j->rank, i, &blocks[i]);
  return ok && came > 0;
}

static int overlap(job *j) {
  results whole = make_results(j);
  int ok, all;
  run_whole(j, &whole);
  j->options.cancel = meet, j->options.cancel_context = j;
  create(j);
  asks = 0;
  run(j);
  MPI_Allreduce(&asks, &meetings, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
  asks = 0;
  reset_outputs(j);
  run(j);
  ok = came_meanwhile(j);
  MPI_Allreduce(&ok, &all, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
  all = all && (j->a.interleave || count_differences(j, &whole) == 0);
  if (j->rank == 0)
    printf("overlap  %d blocks on %d ranks, each came while the next one was computed: %s\n",
           j->info.blocks, j->ranks, all ? "ok" : "NOT SO");
  free_results(&whole);
  return all;
}

/* On all ranks only. */
static int bench(job *j) {
  results whole = make_results(j);
  run_whole(j, &whole);
  if (j->a.interleave)
    compute_truth(j);
  int ok = (j->a.interleave ? check_interleaved : check_runs)(j, &whole);
  MPI_Bcast(&ok, 1, MPI_INT, 0, j->comm);
  free_results(&whole);
  if (!ok)
    return 0;
  create(j);
  print_measures(j);
  if (j->a.trace)
    write_trace(j);
  destroy(j);
  return 1;
}

/* ---- Ranks of one thread against threads of one process ---- */

typedef struct one_process {
  amla_plan *plan;
  void *scratch;
  size_t bytes;
} one_process;

static one_process make_one_process(const job *j) {
  one_process one = {0};
  amla_options o = j->options;
  amla_detail why;
  o.threads = j->ranks * j->a.threads;
  if (amla_plan_create(&one.plan, &j->data.problem, &o, &why) != AMLA_OK)
    die("one process", why.text);
  one.bytes = amla_plan_scratch_bytes(one.plan);
  one.scratch = allocate(one.bytes);
  return one;
}

/* OpenMP's workers stop spinning meanwhile, and neither side starts warmer than the other. */
static void rest(void) { nanosleep(&(struct timespec){0, 10000000}, NULL); }

/* Seconds of a run on rank 0, while others sleep: a barrier of MPI's would keep a core busy. */
static double time_one_process(const job *j, const one_process *one) {
  MPI_Request all_done;
  int done = 0;
  rest();
  MPI_Barrier(j->comm);
  const double before = MPI_Wtime();
  if (j->rank == 0 &&
      amla_plan_run(one->plan, &j->data.tensors, one->scratch, one->bytes, NULL) != AMLA_OK)
    die("one process", "refused");
  const double seconds = MPI_Wtime() - before;
  MPI_Ibarrier(j->comm, &all_done);
  while (MPI_Test(&all_done, &done, MPI_STATUS_IGNORE), !done)
    nanosleep(&(struct timespec){0, 200000}, NULL);
  return seconds;
}

static double time_ranks(job *j) {
  double slowest;
  rest();
  MPI_Barrier(j->comm);
  run(j);
  MPI_Allreduce(&j->info.seconds, &slowest, 1, MPI_DOUBLE, MPI_MAX, j->comm);
  return slowest;
}

static int compare_doubles(const void *a, const void *b) {
  const double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static void print_duel(const job *j, double *one, double *ranks) {
  const size_t n = (size_t)j->a.rounds;
  qsort(one, n, sizeof *one, compare_doubles);
  qsort(ranks, n, sizeof *ranks, compare_doubles);
  printf("duel     %s: one process, %d threads: %.1f us best, %.1f median; %d ranks: %.1f best, "
         "%.1f median\n",
         j->a.problem, j->ranks * j->a.threads, one[0] * 1e6, one[n / 2] * 1e6, j->ranks,
         ranks[0] * 1e6, ranks[n / 2] * 1e6);
  printf("duel     ranks have %.3f of its speed by the best, %.3f by the median; they add %.1f us "
         "to the median\n",
         one[0] / ranks[0], one[n / 2] / ranks[n / 2], (ranks[n / 2] - one[n / 2]) * 1e6);
}

/* Turn and turn about, after the bits have been compared. */
static int duel(job *j) {
  results whole = make_results(j);
  const size_t n = (size_t)j->a.rounds;
  double *one = allocate(n * sizeof *one), *ranks = allocate(n * sizeof *ranks);
  run_whole(j, &whole);
  int ok = check_runs(j, &whole);
  free_results(&whole);
  one_process process = make_one_process(j);
  create(j);
  for (size_t i = 0; ok && i < n; i++) {
    one[i] = time_one_process(j, &process);
    ranks[i] = time_ranks(j);
  }
  if (ok && j->rank == 0)
    print_duel(j, one, ranks);
  amla_plan_destroy(process.plan);
  free(process.scratch), free(one), free(ranks);
  return ok;
}

/* One run against fp64 or what the file has, and its time. */
static int run_once(job *j) {
  int ok = 1;
  compute_truth(j);
  create(j);
  reset_outputs(j);
  run(j);
  print_work(j);
  gather(j);
  if (j->rank == 0) {
    const harness_error e = judge(j, j->a.interleave > 0);
    print_error("fp64", &e);
    ok = e.ok;
  }
  if (j->rank == 0 && (j->data.out_ref || j->data.lse_ref)) {
    const harness_error e = harness_compare_ref(&j->data, &j->truth);
    print_error("file", &e);
    ok = ok && e.ok;
  }
  print_measures(j);
  destroy(j);
  return ok;
}

/* A growing sequence: no key moves, of runs the last shard grows. */
static int step(job *j, results *whole) {
  int wrong;
  run_whole(j, whole);
  reset_outputs(j);
  run(j);
  if (!j->a.interleave)
    return count_differences(j, whole) == 0;
  gather(j);
  compute_truth(j);
  wrong = j->rank == 0 && !judge(j, 1).ok;
  harness_truth_free(&j->truth);
  j->truth = (harness_truth){0};
  return !wrong;
}

static int steps(job *j) {
  results whole = make_results(j);
  const int32_t last = j->data.problem.sk;
  int wrong = 0;
  if (j->a.steps > last)
    leave(1, "--steps", "must be <= sk");
  if (j->a.interleave)
    create(j); /* caches of the longest */
  for (int32_t i = 0; i < j->data.problem.b; i++)
    j->data.seqlens_k[i] = last - j->a.steps + 1;
  if (!j->a.interleave)
    create(j);
  for (int n = 0; n < j->a.steps; n++) {
    wrong += !step(j, &whole);
    for (int32_t i = 0; i < j->data.problem.b; i++)
      j->data.seqlens_k[i]++;
  }
  if (j->rank == 0 && j->a.interleave)
    printf("steps    %d steps on %d ranks, interleaved by %d, no key moved: %d beyond the bound\n",
           j->a.steps, j->ranks, j->a.interleave, wrong);
  else if (j->rank == 0)
    printf("steps    %d steps on %d ranks, split %lld, no key moved: %d with other bits than one "
           "process\n",
           j->a.steps, j->ranks, (long long)j->info.split_tokens, wrong);
  free_results(&whole);
  destroy(j);
  return wrong == 0;
}

/* ---- Faults of the last rank ---- */

static int same_words(amla_status status, const char *text, const char *named) {
  char first[256];
  snprintf(first, sizeof first, "%d %.240s", (int)status, text);
  char mine[256];
  memcpy(mine, first, sizeof mine);
  MPI_Bcast(first, sizeof first, MPI_CHAR, 0, MPI_COMM_WORLD);
  return status != AMLA_OK && strcmp(first, mine) == 0 && strstr(text, named) != NULL;
}

static int same_everywhere(const job *j, amla_status status, const char *text, const char *named) {
  int ok = same_words(status, text, named), all;
  for (size_t i = 0; i < j->data.tensors.out_bytes; i++)
    ok = ok && ((const unsigned char *)j->data.out)[i] == 0xA5;
  MPI_Allreduce(&ok, &all, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
  if (j->rank == 0)
    printf("fault    %s: %s, on all ranks, nothing written: %s\n", amla_status_name(status), text,
           all ? "ok" : "NOT SO");
  return all;
}

static int fault_of_plan(job *j, const char *named) {
  amla_detail why;
  const amla_status status = try_create(j, &why);
  return same_everywhere(j, status, why.text, named);
}

static int fault_of_run(job *j, const char *named) {
  amla_detail why;
  const amla_status status = try_run(j, &why);
  return same_everywhere(j, status, why.text, named);
}

/* Questions of options.cancel until one is answered with yes, and all of them. */
static int asks_left, asked;
static int ask(void *context) {
  (void)context;
  asked++;
  return asks_left > 0 && --asks_left == 0;
}

/* In the midst of its run the last rank is told to end. The next run is as ever. */
static int fault_of_cancel(job *j) {
  results whole = make_results(j);
  amla_detail why;
  int ok, all;
  run_whole(j, &whole);
  if (j->rank == j->ranks - 1)
    j->options.cancel = ask;
  create(j);
  run(j);
  asks_left = asked / 2;
  const amla_status status = try_run(j, &why);
  ok = same_words(status, why.text, "cancel") && status == AMLA_CANCELLED;
  MPI_Allreduce(&ok, &all, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
  reset_outputs(j);
  run(j);
  all = all && count_differences(j, &whole) == 0;
  if (j->rank == 0)
    printf("fault    %s: %s, on all ranks; the next run has the same bits: %s\n",
           amla_status_name(status), why.text, all ? "ok" : "NOT SO");
  free_results(&whole);
  return all;
}

/* Of what a plan is made of. -1: it is none of these. */
static int fault_before(job *j, const char *f, int here) {
  amla_problem *p = &j->data.problem;
  if (strcmp(f, "scale") == 0)
    return p->scale = here ? 0.0f / 0.0f : p->scale, fault_of_plan(j, "scale");
  if (strcmp(f, "problem") == 0)
    return p->causal ^= here, fault_of_plan(j, "causal");
  if (strcmp(f, "memory") == 0)
    return failing = here ? 3 : 0, fault_of_plan(j, "memory");
  if (strcmp(f, "interleave") == 0)
    return j->a.interleave += here, fault_of_plan(j, "interleave_tokens");
  if (strcmp(f, "negative") == 0)
    return j->a.interleave = here ? -1 : 0, fault_of_plan(j, "interleave_tokens=-1");
  return -1;
}

static void spoil_page(job *j) {
  if (j->a.interleave)
    ((int32_t *)j->cache.owned[0])[0] += 1 << 30;
  else
    j->data.block_table[j->begin[0] / j->data.problem.page_size] += 1 << 30;
}

/* Of what a run is given. */
static int fault(job *j) {
  const char *f = j->a.fault;
  const int here = j->rank == j->ranks - 1, before = fault_before(j, f, here);
  amla_tensors *t = &j->tensors;
  if (before >= 0)
    return before;
  if (strcmp(f, "cancel") == 0)
    return fault_of_cancel(j);
  create(j);
  if (here && strcmp(f, "page") == 0)
    spoil_page(j);
  if (strcmp(f, "page") == 0)
    return fault_of_run(j, "block_table");
  if (strcmp(f, "buffer") == 0)
    return t->kv_bytes -= here, fault_of_run(j, "kv_bytes");
  if (strcmp(f, "lengths") == 0)
    return j->data.seqlens_k[0] -= here, fault_of_run(j, "seqlens_k");
  if (strcmp(f, "hole") == 0)
    return j->begin[0] += here ? (int32_t)j->info.split_tokens : 0, fault_of_run(j, "begin");
  if (strcmp(f, "mask") == 0)
    return t->mask = here ? t->q : NULL, fault_of_run(j, "mask");
  if (strcmp(f, "shard") == 0)
    return j->a.interleave *= !here, fault_of_run(j, "shard");
  if (strcmp(f, "kill") == 0)
    return here ? raise(SIGKILL) : 0, run(j), 0;
  leave(EXIT_USAGE, f,
        "must be scale, problem, memory, interleave, negative, page, buffer, lengths, "
        "hole, mask, shard, cancel or kill");
}

typedef struct command {
  const char *name;
  int (*run)(job *);
} command;

static const command commands[] = {{"run", run_once},   {"check", check}, {"bench", bench},
                                   {"time", time_only}, {"duel", duel},   {"overlap", overlap},
                                   {"steps", steps},    {"fault", fault}};

static int run_command(job *j) {
  for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
    if (strcmp(j->a.command, commands[i].name) == 0)
      return commands[i].run(j);
  leave(EXIT_USAGE, j->a.command, "must be run, check, bench, duel, overlap, steps or fault");
}

int main(int argc, char **argv) {
  int level;
  job j = {.comm = MPI_COMM_WORLD};
  MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &level);
  MPI_Comm_rank(MPI_COMM_WORLD, &j.rank);
  MPI_Comm_size(MPI_COMM_WORLD, &j.ranks);
  j.a = parse(argc, argv);
  generate(&j);
  int ok = run_command(&j);
  MPI_Bcast(&ok, 1, MPI_INT, 0, MPI_COMM_WORLD);
  destroy(&j);
  free(j.long_table), free(j.max_logits);
  harness_truth_free(&j.truth);
  harness_free(&j.data);
  MPI_Finalize();
  return ok ? 0 : EXIT_MISMATCH;
}
