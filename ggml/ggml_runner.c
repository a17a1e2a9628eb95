/* SPDX-License-Identifier: Apache-2.0
 *
 * Work on ggml's threads. See ggml_runner.h; what it saves: docs/llama.cpp.md.
 */
#define _GNU_SOURCE 1 /* sched_yield */
#include "ggml_runner.h"

#include <sched.h>
#include <string.h>

#define PROC(r, type, name)                                                                        \
  ((type)(uintptr_t)(r)->host->ggml_backend_reg_get_proc_address((r)->registry, name))

typedef void (*set_n_threads_proc)(void *backend, int n_threads);
typedef void *(*pool_new_proc)(ggml_abi_pool_params *params);
typedef void (*pool_free_proc)(void *pool);
typedef void (*set_pool_proc)(void *backend, void *pool);
typedef const ggml_abi_feature *(*features_proc)(void *registry);

/* ---- Parts ---- */

enum { WORK_DONE = -1 };

static void take_tasks(ggml_runner *r) {
  for (int i; (i = atomic_fetch_add(&r->next, 1)) < r->n;)
    r->task(r->task_argument, i);
}

/* ggml's own threads spin like this between two nodes of a graph. */
static void relax(int spins) {
  enum { SPINS_BEFORE_YIELD = 20000 }; /* about a millisecond */
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
  if (spins > SPINS_BEFORE_YIELD)
    sched_yield();
}

static void help(ggml_runner *r) {
  for (int seen = 0, part;; seen = part) {
    for (int spins = 0; (part = atomic_load(&r->part)) == seen; spins++)
      relax(spins);
    if (part == WORK_DONE)
      return;
    take_tasks(r);
    atomic_fetch_sub(&r->at_work, 1);
  }
}

void ggml_runner_parallel(void *runner, int32_t n, void (*task)(void *argument, int32_t i),
                          void *argument) {
  ggml_runner *r = runner;
  r->task = task;
  r->task_argument = argument;
  r->n = n;
  atomic_store(&r->next, 0);
  atomic_store(&r->at_work, r->team - 1);
  atomic_fetch_add(&r->part, 1);
  take_tasks(r);
  for (int spins = 0; atomic_load(&r->at_work) > 0; spins++)
    relax(spins);
}

/* The custom node, on all threads of ggml at once. */
static void run_node(ggml_abi_tensor *dst, int ith, int nth, void *runner) {
  ggml_runner *r = runner;
  (void)dst;
  if (ith > 0) {
    help(r);
    return;
  }
  r->team = nth;
  r->work(r->work_argument);
  atomic_store(&r->part, WORK_DONE);
}

void ggml_runner_run(ggml_runner *r, void (*work)(void *argument), void *argument) {
  r->work = work;
  r->work_argument = argument;
  r->team = 1;
  atomic_store(&r->part, 0);
  if (r->threads > 1 && r->host->ggml_backend_graph_compute(r->cpu, r->graph) == GGML_ABI_SUCCESS)
    return;
  work(argument); /* one thread, or ggml had no memory for its own and ran nothing */
}

/* ---- Threads ---- */

static bool host_uses_openmp(const ggml_runner *r) {
  const features_proc features = PROC(r, features_proc, "ggml_backend_get_features");
  for (const ggml_abi_feature *f = features ? features(r->registry) : NULL;
       f != NULL && f->name != NULL; f++)
    if (strcmp(f->name, "OPENMP") == 0)
      return true;
  return false;
}

bool ggml_runner_create(ggml_runner *r, const ggml_host *host) {
  enum { ALL_THREADS = -1, GRAPH_NODES = 16, CONTEXT_BYTES = 1 << 16 };
  void *device = host->ggml_backend_dev_by_type(GGML_ABI_CPU);
  *r = (ggml_runner){.host = host};
  if (device == NULL)
    return false;
  r->registry = host->ggml_backend_dev_backend_reg(device);
  r->cpu = host->ggml_backend_dev_init(device, NULL);
  r->context = host->ggml_init((ggml_abi_init_params){CONTEXT_BYTES, NULL, false});
  if (r->cpu == NULL || r->context == NULL)
    return false;
  ggml_abi_tensor *node =
      host->ggml_custom_4d(r->context, GGML_ABI_F32, 1, 1, 1, 1, NULL, 0, run_node, ALL_THREADS, r);
  r->graph = host->ggml_new_graph_custom(r->context, GRAPH_NODES, false);
  host->ggml_build_forward_expand(r->graph, node);
  ggml_runner_set_threads(r, 1);
  return true;
}

static void free_pool(ggml_runner *r) {
  const set_pool_proc set_pool = PROC(r, set_pool_proc, "ggml_backend_cpu_set_threadpool");
  const pool_free_proc pool_free = PROC(r, pool_free_proc, "ggml_threadpool_free");
  if (r->pool == NULL)
    return;
  set_pool(r->cpu, NULL);
  pool_free(r->pool);
  r->pool = NULL;
}

/* Without OpenMP and without a pool ggml starts its threads anew for every graph. Ours are kept,
 * and sleep when idle: spinning ones would hold the cores that ggml's threads then need. */
static void make_pool(ggml_runner *r) {
  const pool_new_proc pool_new = PROC(r, pool_new_proc, "ggml_threadpool_new");
  const set_pool_proc set_pool = PROC(r, set_pool_proc, "ggml_backend_cpu_set_threadpool");
  const pool_free_proc pool_free = PROC(r, pool_free_proc, "ggml_threadpool_free");
  union {
    ggml_abi_pool_params params;
    char room[2048]; /* should it have grown */
  } u = {0};
  if (r->threads < 2 || host_uses_openmp(r) || !pool_new || !set_pool || !pool_free)
    return;
  r->host->ggml_threadpool_params_init(&u.params, r->threads);
  if (u.params.n_threads != r->threads || u.params.poll != 50)
    return; /* laid out otherwise: do without */
  u.params.poll = 0;
  r->pool = pool_new(&u.params);
  if (r->pool != NULL)
    set_pool(r->cpu, r->pool);
}

void ggml_runner_set_threads(ggml_runner *r, int32_t threads) {
  const set_n_threads_proc set_n_threads =
      PROC(r, set_n_threads_proc, "ggml_backend_set_n_threads");
  if (threads == r->threads)
    return;
  free_pool(r);
  r->threads = threads;
  if (set_n_threads != NULL)
    set_n_threads(r->cpu, threads);
  make_pool(r);
}

void ggml_runner_free(ggml_runner *r) {
  if (r->cpu != NULL) {
    free_pool(r);
    r->host->ggml_backend_free(r->cpu);
  }
  if (r->context != NULL)
    r->host->ggml_free(r->context);
}
