/* SPDX-License-Identifier: Apache-2.0
 *
 * amla_ranks: a problem over the ranks of mpirun. Rank 0 prints.
 *
 *     mpirun -n 4 amla_ranks check h=16,sk=4000          the bits of one process, and fp64
 *     mpirun -n 4 amla_ranks bench h=16,sk=4096 --repeat 256 --split 4096
 *     mpirun -n 4 amla_ranks time h=16,sk=4000           the time of a step alone, as JSON
 *     mpirun -n 4 amla_ranks steps h=2,sk=3000 --steps 2000
 *     mpirun -n 4 amla_ranks fault page h=2,sk=3000      one rank errs: all say the same, by name
 *
 * --repeat N: the page table N times over, as one long sequence: a million tokens in a small cache.
 */
#include <amla/amla_mpi.h>

#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "harness/truth.h"

typedef struct arguments {
  const char *command, *fault, *problem;
  int split, repeat, steps, threads, rounds;
} arguments;

typedef struct job {
  arguments a;
  int rank, ranks;
  harness_dataset data;
  int32_t *long_table; /* of --repeat */
  amla_options options;
  amla_mpi *mpi;
  amla_mpi_info info;
  int32_t *begin, *end, *extra_begin, *extra_end;
  amla_shard shard;
} job;

static _Noreturn void die(const char *what, const char *why) {
  fprintf(stderr, "amla_ranks: %s: %s\n", what, why);
  MPI_Abort(MPI_COMM_WORLD, 1);
  abort();
}

/* ---- Allocations of ours that fail when told to ---- */

static int failing;
void *__real_calloc(size_t n, size_t bytes);
void *__wrap_calloc(size_t n, size_t bytes);
void *__wrap_calloc(size_t n, size_t bytes) {
  return failing && --failing == 0 ? NULL : __real_calloc(n, bytes);
}

/* ---- Arguments and data ---- */

static int number(const char *name, const char *text) {
  char *end;
  const long n = text ? strtol(text, &end, 10) : 0;
  if (!text || *end || n < 1 || n > INT_MAX)
    die(name, "must be a number >= 1");
  return (int)n;
}

static arguments parse(int argc, char **argv) {
  arguments a = {.split = 1, .repeat = 1, .steps = 100, .threads = 1, .rounds = 5};
  int i = 1;
  if (argc < 3)
    die("usage", "mpirun -n N amla_ranks check|bench|time|steps|fault WHAT PROBLEM [--split N] "
                 "[--repeat N] [--steps N] [--threads N] [--rounds N]");
  a.command = argv[i++];
  if (strcmp(a.command, "fault") == 0)
    a.fault = argv[i++];
  for (; i < argc; i++) {
    const struct {
      const char *name;
      int *value;
    } all[] = {{"--split", &a.split},
               {"--repeat", &a.repeat},
               {"--steps", &a.steps},
               {"--threads", &a.threads},
               {"--rounds", &a.rounds}};
    int *value = NULL;
    for (size_t k = 0; k < sizeof all / sizeof *all; k++)
      if (strcmp(argv[i], all[k].name) == 0)
        value = all[k].value;
    if (value)
      *value = number(argv[i], argv[i + 1]), i++;
    else if (a.problem)
      die(argv[i], "more than one problem, or no such option");
    else
      a.problem = argv[i];
  }
  if (!a.problem)
    die("PROBLEM", "is missing");
  return a;
}

static void repeat_table(job *j) {
  amla_problem *p = &j->data.problem;
  const int32_t pages = p->page_size > 0 ? p->sk / p->page_size : 0, n = j->a.repeat;
  if (p->b != 1 || p->page_size == 0 || p->sk % p->page_size || p->topk || p->extra_sk)
    die("--repeat", "needs b=1, whole pages and neither lists nor a second scope");
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

static void generate(job *j) {
  harness_case c;
  char error[256];
  if (harness_parse_problem(j->a.problem, &c, error, sizeof error) != 0 ||
      harness_generate(&c, &j->data, error, sizeof error) != 0)
    die(j->a.problem, error);
  const amla_problem *p = &j->data.problem;
  sort_lists(j->data.indices, harness_rows(&j->data) / p->h_q, p->topk);
  sort_lists(j->data.extra_indices, harness_rows(&j->data) / p->h_q, p->extra_topk);
  if (j->a.repeat > 1)
    repeat_table(j);
  j->options = j->data.options;
  j->options.threads = j->a.threads;
  j->options.split_tokens = j->a.split;
}

static int32_t *bounds(const job *j) {
  int32_t *at = malloc((size_t)j->data.problem.b * 4 + 4);
  if (!at)
    die("bounds", "no memory");
  return at;
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

static void create(job *j) {
  amla_detail why;
  if (amla_mpi_create(&j->mpi, MPI_COMM_WORLD, &j->data.problem, &j->options, &why) != AMLA_OK)
    die("amla_mpi_create", why.text);
  j->info = (amla_mpi_info)AMLA_MPI_INFO_INIT;
  amla_mpi_query(j->mpi, &j->info, NULL);
}

/* ---- One process, for comparison ---- */

/* Rank 0 runs the whole problem, and all ranks get its result in place of their outputs. */
static void run_whole(job *j, void *out, void *lse) {
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
    memcpy(out, j->data.out, t->out_bytes);
    memcpy(lse, j->data.lse, t->lse_bytes);
  }
  MPI_Bcast(out, (int)t->out_bytes, MPI_BYTE, 0, MPI_COMM_WORLD);
  MPI_Bcast(lse, (int)t->lse_bytes, MPI_BYTE, 0, MPI_COMM_WORLD);
}

/* Rows with other bits, over all ranks: of the rank's heads those of one process, of others the
 * guard pattern. */
static int count_differences(const job *j, const void *out, const void *lse) {
  const amla_problem *p = &j->data.problem;
  const size_t size = harness_dtype_bytes(p->out_type), bytes = (size_t)p->d_v * size;
  int different = 0, all;
  unsigned char guard[1 << 16];
  memset(guard, 0xA5, sizeof guard);
  for (int64_t row = 0; row < harness_rows(&j->data); row++) {
    const int64_t head = row % p->h_q, at = harness_out_offset(p, row);
    const int own = head >= j->info.head_begin && head < j->info.head_end;
    const char *want_out = (const char *)out + (size_t)at * size;
    const float *want_lse = (const float *)lse + harness_lse_offset(&j->data, row);
    different += memcmp((const char *)j->data.out + (size_t)at * size,
                        own ? want_out : (const char *)guard, bytes) != 0;
    different += memcmp(j->data.lse + harness_lse_offset(&j->data, row),
                        own ? (const void *)want_lse : guard, sizeof(float)) != 0;
  }
  MPI_Allreduce(&different, &all, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
  return all;
}

static void *allocate(size_t bytes) {
  void *at = malloc(bytes + 1);
  if (!at)
    die("results", "no memory");
  return at;
}

static void run(job *j) {
  amla_detail why;
  if (amla_mpi_run(j->mpi, &j->data.tensors, &j->shard, &why) != AMLA_OK)
    die("amla_mpi_run", why.text);
  amla_mpi_query(j->mpi, &j->info, NULL);
}

/* ---- Report ---- */

static void print_work(const job *j) {
  double work[3] = {(double)j->info.n_row_keys, (double)j->info.sent_bytes, j->info.wait_seconds};
  double sum[3], max[3];
  MPI_Reduce(work, sum, 3, MPI_DOUBLE, MPI_SUM, 0, MPI_COMM_WORLD);
  MPI_Reduce(work, max, 3, MPI_DOUBLE, MPI_MAX, 0, MPI_COMM_WORLD);
  if (j->rank == 0)
    printf(
        "work     %.0f row-keys a rank, max / mean %.3f; sent %.0f bytes a rank, %d records of a "
        "row, %d blocks; %d of %d messages not waited for\n",
        sum[0] / j->ranks, sum[0] > 0 ? max[0] * j->ranks / sum[0] : 1.0, sum[1] / j->ranks,
        j->info.max_entries, j->info.blocks, j->info.messages_early, j->info.messages);
}

static int check(job *j) {
  const amla_tensors *t = &j->data.tensors;
  void *out = allocate(t->out_bytes), *lse = allocate(t->lse_bytes);
  int ok = 1;
  run_whole(j, out, lse);
  if (j->rank == 0 && j->a.repeat == 1) {
    harness_truth truth;
    if (harness_truth_compute(&j->data, &truth) != 0)
      die("fp64", "no memory");
    const harness_error e = harness_compare(&j->data, &truth);
    printf("fp64     %.2e relative, LSE %.2e largest: %s\n", e.rel_error, e.lse_max_abs_error,
           e.ok ? "ok" : "MISMATCH");
    ok = e.ok;
    harness_truth_free(&truth);
  }
  harness_reset_outputs(&j->data);
  run(j);
  const int different = count_differences(j, out, lse);
  print_work(j);
  if (j->rank == 0)
    printf("ranks    %d ranks against one process, split %lld: %s\n", j->ranks,
           (long long)j->info.split_tokens, different ? "OTHER BITS" : "the same bits");
  free(out), free(lse);
  return ok && different == 0;
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

static int bench(job *j) {
  double best[N_MEASURES];
  const int ok = check(j);
  measure(j, best);
  if (j->rank == 0)
    printf("time     %.6f s best of %d, slowest rank; %.1f %% of it waiting for messages\n",
           best[SECONDS], j->a.rounds, 100.0 * best[WAITING] / best[SECONDS]);
  return ok;
}

static int time_only(job *j) {
  double best[N_MEASURES];
  measure(j, best);
  if (j->rank == 0)
    printf("{\"ranks\": %d, \"seconds\": %.9f, \"wait_seconds\": %.9f, \"messages\": %.0f, "
           "\"sent_bytes\": %.0f, \"entries\": %d}\n",
           j->ranks, best[SECONDS], best[WAITING], best[MESSAGES], best[SENT_BYTES],
           j->info.max_entries);
  return 1;
}

/* A growing sequence: shards stay where they are, the last one grows. */
static int steps(job *j) {
  const amla_tensors *t = &j->data.tensors;
  void *out = allocate(t->out_bytes), *lse = allocate(t->lse_bytes);
  const int32_t last = j->data.problem.sk;
  int wrong = 0;
  if (j->a.steps > last)
    die("--steps", "must be <= sk");
  for (int32_t i = 0; i < j->data.problem.b; i++)
    j->data.seqlens_k[i] = last - j->a.steps + 1;
  share_out(j);
  for (int step = 0; step < j->a.steps; step++) {
    run_whole(j, out, lse);
    harness_reset_outputs(&j->data);
    run(j);
    wrong += count_differences(j, out, lse) > 0;
    for (int32_t i = 0; i < j->data.problem.b; i++)
      j->data.seqlens_k[i]++;
  }
  if (j->rank == 0)
    printf("steps    %d steps on %d ranks, split %lld, no key moved: %d with other bits than one "
           "process\n",
           j->a.steps, j->ranks, (long long)j->info.split_tokens, wrong);
  free(out), free(lse);
  return wrong == 0;
}

/* ---- Faults of the last rank ---- */

static int same_words(amla_status status, const char *text, const char *named) {
  char first[256];
  snprintf(first, sizeof first, "%d %s", (int)status, text);
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
  const amla_status status =
      amla_mpi_create(&j->mpi, MPI_COMM_WORLD, &j->data.problem, &j->options, &why);
  return same_everywhere(j, status, why.text, named);
}

static int fault_of_run(job *j, const char *named) {
  amla_detail why;
  const amla_status status = amla_mpi_run(j->mpi, &j->data.tensors, &j->shard, &why);
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
  const amla_tensors *t = &j->data.tensors;
  void *out = allocate(t->out_bytes), *lse = allocate(t->lse_bytes);
  amla_detail why;
  int ok, all;
  run_whole(j, out, lse);
  if (j->rank == j->ranks - 1)
    j->options.cancel = ask;
  create(j);
  share_out(j);
  run(j);
  asks_left = asked / 2;
  const amla_status status = amla_mpi_run(j->mpi, t, &j->shard, &why);
  ok = same_words(status, why.text, "cancel") && status == AMLA_CANCELLED;
  MPI_Allreduce(&ok, &all, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
  harness_reset_outputs(&j->data);
  run(j);
  all = all && count_differences(j, out, lse) == 0;
  if (j->rank == 0)
    printf("fault    %s: %s, on all ranks; the next run has the same bits: %s\n",
           amla_status_name(status), why.text, all ? "ok" : "NOT SO");
  free(out), free(lse);
  return all;
}

static int fault(job *j) {
  const char *f = j->a.fault;
  const int here = j->rank == j->ranks - 1;
  amla_problem *p = &j->data.problem;
  amla_tensors *t = &j->data.tensors;
  if (strcmp(f, "scale") == 0)
    return p->scale = here ? 0.0f / 0.0f : p->scale, fault_of_plan(j, "scale");
  if (strcmp(f, "problem") == 0)
    return p->causal ^= here, fault_of_plan(j, "causal");
  if (strcmp(f, "memory") == 0)
    return failing = here ? 3 : 0, fault_of_plan(j, "memory");
  if (strcmp(f, "cancel") == 0)
    return fault_of_cancel(j);
  create(j);
  share_out(j);
  if (here && strcmp(f, "page") == 0)
    j->data.block_table[j->begin[0] / p->page_size] += 1 << 30;
  if (strcmp(f, "page") == 0)
    return fault_of_run(j, "block_table");
  if (strcmp(f, "buffer") == 0)
    return t->kv_bytes -= here, fault_of_run(j, "kv_bytes");
  if (strcmp(f, "lengths") == 0)
    return j->data.seqlens_k[0] -= here, fault_of_run(j, "seqlens_k");
  if (strcmp(f, "hole") == 0)
    return j->begin[0] += here ? (int32_t)j->info.split_tokens : 0, fault_of_run(j, "begin");
  if (strcmp(f, "kill") == 0)
    return here ? raise(SIGKILL) : 0, run(j), 0;
  die(f, "must be scale, problem, memory, page, buffer, lengths, hole, cancel or kill");
}

static int command(job *j) {
  if (strcmp(j->a.command, "check") == 0)
    return check(j);
  if (strcmp(j->a.command, "bench") == 0)
    return bench(j);
  if (strcmp(j->a.command, "time") == 0)
    return time_only(j);
  if (strcmp(j->a.command, "steps") == 0)
    return steps(j);
  die(j->a.command, "must be check, bench, time, steps or fault");
}

int main(int argc, char **argv) {
  int level;
  job j = {0};
  MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &level);
  MPI_Comm_rank(MPI_COMM_WORLD, &j.rank);
  MPI_Comm_size(MPI_COMM_WORLD, &j.ranks);
  j.a = parse(argc, argv);
  generate(&j);
  int ok;
  if (j.a.fault) {
    ok = fault(&j);
  } else {
    create(&j);
    share_out(&j);
    ok = command(&j);
  }
  MPI_Bcast(&ok, 1, MPI_INT, 0, MPI_COMM_WORLD);
  amla_mpi_destroy(j.mpi);
  free(j.begin), free(j.end), free(j.extra_begin), free(j.extra_end), free(j.long_table);
  harness_free(&j.data);
  MPI_Finalize();
  return ok ? 0 : 3;
}
