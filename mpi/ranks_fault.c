/* SPDX-License-Identifier: Apache-2.0
 *
 * fault: the last rank errs, and all say the same, by name.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "harness/scopes.h"
#include "ranks_commands.h"

/* ---- Allocations of ours that fail when told to ---- */

static int failing;
void *__real_calloc(size_t n, size_t bytes);
void *__wrap_calloc(size_t n, size_t bytes);
void *__wrap_calloc(size_t n, size_t bytes) {
  return failing && --failing == 0 ? NULL : __real_calloc(n, bytes);
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

static int same_everywhere(const ranks_job *j, amla_status status, const char *text,
                           const char *named) {
  int ok = same_words(status, text, named), all;
  for (size_t i = 0; i < j->data.tensors.out_bytes; i++)
    ok = ok && ((const unsigned char *)j->data.out)[i] == 0xA5;
  MPI_Allreduce(&ok, &all, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
  if (j->rank == 0)
    printf("fault    %s: %s, on all ranks, nothing written: %s\n", amla_status_name(status), text,
           all ? "ok" : "NOT SO");
  return all;
}

static int fault_of_plan(ranks_job *j, const char *named) {
  amla_detail why;
  const amla_status status = ranks_try_create(j, &why);
  return same_everywhere(j, status, why.text, named);
}

static int fault_of_run(ranks_job *j, const char *named) {
  amla_detail why;
  const amla_status status = ranks_try_run(j, &why);
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
static int fault_of_cancel(ranks_job *j) {
  ranks_results whole = ranks_make_results(j);
  amla_detail why;
  int ok, all;
  ranks_run_whole(j, &whole);
  if (j->rank == j->ranks - 1)
    j->options.cancel = ask;
  ranks_create(j);
  ranks_run(j);
  asks_left = asked / 2;
  const amla_status status = ranks_try_run(j, &why);
  ok = same_words(status, why.text, "cancel") && status == AMLA_CANCELLED;
  MPI_Allreduce(&ok, &all, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
  ranks_reset_outputs(j);
  ranks_run(j);
  all = all && ranks_count_differences(j, &whole) == 0;
  if (j->rank == 0)
    printf("fault    %s: %s, on all ranks; the next run has the same bits: %s\n",
           amla_status_name(status), why.text, all ? "ok" : "NOT SO");
  ranks_free_results(&whole);
  return all;
}

/* Room behind a tensor's end is there already, but the capacity of the last rank says so. */
static void make_slack(ranks_job *j) {
  const amla_problem *p = &j->data.problem;
  amla_tensors *t = &j->tensors;
  const int64_t queries = harness_all_queries(p, t);
  for (int64_t i = 0; i < queries; i++) {
    const int32_t n = t->topk_length[p->topk_length_per_query ? i : i / p->s_q];
    for (int32_t k = n; k < p->topk; k++)
      j->data.indices[i * p->topk + k] = j->rank;
  }
  t->seqlens_k_bytes += 4, t->topk_length_bytes += 4, t->indices_bytes += 4;
}

/* What nobody reads may differ from rank to rank: capacities, and entries behind a list's length.
 */
static int slack(ranks_job *j) {
  ranks_results whole = ranks_make_results(j);
  if (!j->data.topk_length)
    ranks_leave(EXIT_USAGE, "slack", "needs lists with lengths");
  ranks_run_whole(j, &whole);
  ranks_create(j);
  if (j->rank == j->ranks - 1)
    make_slack(j);
  ranks_reset_outputs(j);
  ranks_run(j);
  const int different = ranks_count_differences(j, &whole);
  if (j->rank == 0)
    printf("slack    on %d ranks, of capacities and lists of their own: %s\n", j->ranks,
           different ? "OTHER BITS" : "the same bits");
  ranks_free_results(&whole);
  return different == 0;
}

/* Of what a plan is made of. -1: it is none of these. */
static int fault_before(ranks_job *j, const char *f, int here) {
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

static void spoil_page(ranks_job *j) {
  if (j->a.interleave)
    ((int32_t *)j->cache.owned[0])[0] += 1 << 30;
  else
    j->data.block_table[j->begin[0] / j->data.problem.page_size] += 1 << 30;
}

/* Of what a run is given. */
int ranks_fault(ranks_job *j) {
  const char *f = j->a.fault;
  const int here = j->rank == j->ranks - 1, before = fault_before(j, f, here);
  amla_tensors *t = &j->tensors;
  if (before >= 0)
    return before;
  if (strcmp(f, "cancel") == 0)
    return fault_of_cancel(j);
  if (strcmp(f, "slack") == 0)
    return slack(j);
  ranks_create(j);
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
    return here ? raise(SIGKILL) : 0, ranks_run(j), 0;
  ranks_leave(EXIT_USAGE, f,
              "must be scale, problem, memory, interleave, negative, page, buffer, lengths, "
              "hole, mask, shard, slack, cancel or kill");
}
