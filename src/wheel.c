/* SPDX-License-Identifier: Apache-2.0
 *
 * What only a Python wheel has, which is built once for many machines (CMakeLists.txt).
 *
 * OpenMP is bound late: gcc's code calls the functions below, which look for a runtime when
 * first called. The process's own comes first, PyTorch's or one that was preloaded, then the
 * system's libgomp.so.1. Where there is none a small pool does the work. So a wheel needs no OpenMP
 * runtime and never brings a second one.
 *
 * And stat for a glibc before 2.33, which had it under another name. base/old_glibc.h has the rest.
 */
#define _GNU_SOURCE /* RTLD_DEFAULT, sched_getaffinity */
#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/stat.h>

#ifndef AMLA_OPENMP /* tests ask for one that is nowhere */
#define AMLA_OPENMP "libgomp.so.1"
#endif

void GOMP_parallel(void (*task)(void *), void *data, unsigned n, unsigned flags);
int omp_get_max_threads(void);
int omp_get_num_threads(void);
int omp_get_thread_num(void);
int omp_get_proc_bind(void);
int omp_get_num_places(void);
int omp_get_place_num_procs(int place);
void omp_get_place_proc_ids(int place, int *ids);

/* ---- The pool: one team at a time; who finds it at work, or is in it, works alone ---- */

typedef struct {
  pthread_mutex_t busy, lock;
  pthread_cond_t start, done;
  void (*task)(void *);
  void *data;
  unsigned n, running, n_workers; /* threads of the team, of it without the caller, in all */
  uint64_t team;                  /* counts; 0: none yet */
} thread_pool;

#define NEW_POOL                                                                                   \
  {.busy = PTHREAD_MUTEX_INITIALIZER,                                                              \
   .lock = PTHREAD_MUTEX_INITIALIZER,                                                              \
   .start = PTHREAD_COND_INITIALIZER,                                                              \
   .done = PTHREAD_COND_INITIALIZER}
static thread_pool pool = NEW_POOL;
static _Thread_local unsigned team_size = 1, team_rank;

static void run_as(unsigned rank, unsigned n, void (*task)(void *), void *data) {
  unsigned size = team_size, old_rank = team_rank;
  team_size = n, team_rank = rank;
  task(data);
  team_size = size, team_rank = old_rank;
}

static void *work(void *argument) {
  unsigned rank = (unsigned)(uintptr_t)argument;
  uint64_t seen = 0;
  pthread_mutex_lock(&pool.lock);
  while (rank > 0) { /* always */
    while (pool.team == seen)
      pthread_cond_wait(&pool.start, &pool.lock);
    seen = pool.team;
    if (rank >= pool.n)
      continue;
    pthread_mutex_unlock(&pool.lock);
    run_as(rank, pool.n, pool.task, pool.data); /* which stay until all are done */
    pthread_mutex_lock(&pool.lock);
    if (--pool.running == 0)
      pthread_cond_signal(&pool.done);
  }
  return NULL;
}

/* Workers for a team of n, or as many as the system gives: the size of the team. */
static unsigned hire(unsigned n) {
  for (pthread_t thread; pool.n_workers + 1 < n; pool.n_workers++) {
    if (pthread_create(&thread, NULL, work, (void *)(uintptr_t)(pool.n_workers + 1)))
      break;
    pthread_detach(thread);
  }
  return pool.n_workers + 1 < n ? pool.n_workers + 1 : n;
}

static void pool_parallel(void (*task)(void *), void *data, unsigned n, unsigned flags) {
  (void)flags;
  if (n == 0)
    n = (unsigned)omp_get_max_threads();
  if (n == 1 || team_size > 1 || pthread_mutex_trylock(&pool.busy)) {
    run_as(0, 1, task, data);
    return;
  }
  pthread_mutex_lock(&pool.lock);
  pool.n = hire(n), pool.task = task, pool.data = data;
  pool.running = pool.n - 1, pool.team++;
  pthread_cond_broadcast(&pool.start);
  pthread_mutex_unlock(&pool.lock);
  run_as(0, pool.n, task, data);
  pthread_mutex_lock(&pool.lock);
  while (pool.running > 0)
    pthread_cond_wait(&pool.done, &pool.lock);
  pthread_mutex_unlock(&pool.lock);
  pthread_mutex_unlock(&pool.busy);
}

static int pool_num_threads(void) { return (int)team_size; }
static int pool_thread_num(void) { return (int)team_rank; }

/* OMP_NUM_THREADS, else the CPUs that the process may use. */
static int pool_max_threads(void) {
  const char *asked = getenv("OMP_NUM_THREADS");
  long n = asked ? strtol(asked, NULL, 10) : 0;
  cpu_set_t cpus;
  if (n < 1 && sched_getaffinity(0, sizeof cpus, &cpus) == 0)
    n = CPU_COUNT(&cpus);
  return n < 1 ? 1 : (int)n;
}

/* The pool binds no thread, and has no places. */
static int pool_none(void) { return 0; }
static int pool_place_num_procs(int place) { return (void)place, 0; }
static void pool_place_proc_ids(int place, int *ids) { (void)place, (void)ids; }

/* A child has the thread that forked, and none of the workers. */
static void forget_workers(void) { pool = (thread_pool)NEW_POOL; }

/* ---- Which runtime ---- */

typedef struct {
  void (*parallel)(void (*)(void *), void *, unsigned, unsigned);
  int (*max_threads)(void), (*num_threads)(void), (*thread_num)(void);
  int (*proc_bind)(void), (*num_places)(void), (*place_num_procs)(int);
  void (*place_proc_ids)(int, int *);
} openmp;

static const openmp own = {.parallel = pool_parallel,
                           .max_threads = pool_max_threads,
                           .num_threads = pool_num_threads,
                           .thread_num = pool_thread_num,
                           .proc_bind = pool_none,
                           .num_places = pool_none,
                           .place_num_procs = pool_place_num_procs,
                           .place_proc_ids = pool_place_proc_ids};
static openmp runtime;
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* A runtime has all of a struct's functions or is not taken. */
static int bind_to(void *library) {
  static const struct {
    const char *name;
    void **to;
  } functions[] = {{"GOMP_parallel", (void **)&runtime.parallel},
                   {"omp_get_max_threads", (void **)&runtime.max_threads},
                   {"omp_get_num_threads", (void **)&runtime.num_threads},
                   {"omp_get_thread_num", (void **)&runtime.thread_num},
                   {"omp_get_proc_bind", (void **)&runtime.proc_bind},
                   {"omp_get_num_places", (void **)&runtime.num_places},
                   {"omp_get_place_num_procs", (void **)&runtime.place_num_procs},
                   {"omp_get_place_proc_ids", (void **)&runtime.place_proc_ids}};
  for (size_t i = 0; i < sizeof functions / sizeof *functions; i++)
    if (!(*functions[i].to = dlsym(library, functions[i].name)))
      return 0;
  return 1;
}

static void find_runtime(void) {
  if (bind_to(RTLD_DEFAULT))
    return;
  void *library = dlopen(AMLA_OPENMP, RTLD_LAZY); /* the one that is loaded, if one is */
  if (library && bind_to(library))
    return;
  runtime = own;
  pthread_atfork(NULL, NULL, forget_workers);
}

void GOMP_parallel(void (*task)(void *), void *data, unsigned n, unsigned flags) {
  pthread_once(&once, find_runtime);
  runtime.parallel(task, data, n, flags);
}

int omp_get_max_threads(void) {
  pthread_once(&once, find_runtime);
  return runtime.max_threads();
}

int omp_get_proc_bind(void) {
  pthread_once(&once, find_runtime);
  return runtime.proc_bind();
}

int omp_get_num_places(void) {
  pthread_once(&once, find_runtime);
  return runtime.num_places();
}

/* Of a place, so after that. */
int omp_get_place_num_procs(int place) { return runtime.place_num_procs(place); }
void omp_get_place_proc_ids(int place, int *ids) { runtime.place_proc_ids(place, ids); }

/* Inside of GOMP_parallel only. */
int omp_get_num_threads(void) { return runtime.num_threads(); }
int omp_get_thread_num(void) { return runtime.thread_num(); }

/* ---- stat ---- */

#ifdef AMLA_OLD_STAT /* the version of struct stat: 1 on x86-64, 0 on aarch64 */
int __xstat(int version, const char *path, struct stat *found);

int stat(const char *restrict path, struct stat *restrict found) {
  return __xstat(AMLA_OLD_STAT, path, found);
}
#endif
