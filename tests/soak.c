/* SPDX-License-Identifier: Apache-2.0
 *
 * Random use for minutes, to be built with sanitizers (./dev soak). Each round drops one of the
 * kept plans and makes another of a random problem, checks its first result against fp64, refuses a
 * spoilt run, and writes, reads and truncates its file. Now and then an allocation fails. Meanwhile
 * up to 32 threads run the other kept plans and compare every byte with the first result. What was
 * done is counted: a check that checked nothing is a failure.
 *
 * Everything but the threads' timing follows from --seed and the round. The linker gives --wrap for
 * each allocator.
 */
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "harness/random_problem.h"
#include "harness/safetensors.h"
#include "harness/truth.h"

enum { N_KEPT = 8, MAX_CALLERS = 32, MAX_THREADS = 64, TEXT = 1024, GUARD = 0xA5 };

/* ---- Counts and failures ---- */

enum {
  PROBLEMS,
  PLANS_DROPPED,
  RUNS,
  COMPARED,
  REFUSED,
  INJECTED,
  OUT_OF_MEMORY,
  WRITTEN,
  READ,
  TRUNCATED,
  N_COUNTS
};
static const char *const count_names[N_COUNTS] = {"problems within the bound of fp64",
                                                  "plans dropped",
                                                  "runs",
                                                  "results of threads compared",
                                                  "refusals, outputs untouched",
                                                  "allocations failed",
                                                  "calls refused for that",
                                                  "files written",
                                                  "files read, same bits",
                                                  "files truncated, refused"};
static atomic_llong counts[N_COUNTS];
static atomic_int most_threads;

static void count(int what) { atomic_fetch_add(&counts[what], 1); }

static uint64_t seed;
static atomic_llong current_round;

static void say_where(void) {
  fprintf(stderr, "soak: this was --seed %" PRIu64 " --round %lld\n", seed,
          atomic_load(&current_round));
}

__attribute__((format(printf, 1, 2), noreturn)) static void fail(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fputs("soak: ", stderr);
  vfprintf(stderr, format, arguments);
  fputc('\n', stderr);
  va_end(arguments);
  say_where();
  abort();
}

/* Absent without a sanitizer. */
__attribute__((weak)) void __sanitizer_set_death_callback(void (*callback)(void));

/* ---- Allocations that fail ---- */

void *__real_malloc(size_t bytes);
void *__real_calloc(size_t n, size_t bytes);
void *__real_realloc(void *block, size_t bytes);
int __real_posix_memalign(void **block, size_t alignment, size_t bytes);
char *__real_strdup(const char *text);
void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t n, size_t bytes);
void *__wrap_realloc(void *block, size_t bytes);
int __wrap_posix_memalign(void **block, size_t alignment, size_t bytes);
char *__wrap_strdup(const char *text);

static _Thread_local int allocations_left = -1; /* until one fails; -1: none does */
static _Thread_local bool all_further_fail;
static _Thread_local int n_failed;

static bool fails(void) {
  if (allocations_left != 0) {
    if (allocations_left > 0)
      allocations_left--;
    return false;
  }
  if (!all_further_fail)
    allocations_left = -1;
  n_failed++;
  count(INJECTED);
  errno = ENOMEM;
  return true;
}

void *__wrap_malloc(size_t bytes) { return fails() ? NULL : __real_malloc(bytes); }
void *__wrap_calloc(size_t n, size_t bytes) { return fails() ? NULL : __real_calloc(n, bytes); }
void *__wrap_realloc(void *block, size_t bytes) {
  return fails() ? NULL : __real_realloc(block, bytes);
}
int __wrap_posix_memalign(void **block, size_t alignment, size_t bytes) {
  return fails() ? ENOMEM : __real_posix_memalign(block, alignment, bytes);
}
char *__wrap_strdup(const char *text) { return fails() ? NULL : __real_strdup(text); }

static int below(uint64_t *state, int n) { return (int)(harness_random(state) % (uint64_t)n); }

/* One of the next n allocations of this thread fails, and perhaps all after it. */
static void start_failing(uint64_t *state, int n) {
  all_further_fail = below(state, 2);
  allocations_left = below(state, n);
}

/* Whether any has failed since, if it started at all. */
static bool stop_failing(void) {
  const bool any = n_failed > 0;
  allocations_left = -1;
  n_failed = 0;
  return any;
}

/* A call that was refused while allocations failed: with a reason, and only if one did. */
static void expect_out_of_memory(const char *what, bool failed, const char *reason) {
  if (!failed)
    fail("%s: refused (%s), though no allocation failed", what, reason);
  if (!*reason)
    fail("%s: out of memory, without a reason", what);
  count(OUT_OF_MEMORY);
}

static void *allocate(size_t bytes) {
  void *block = malloc(bytes ? bytes : 1);
  if (!block)
    fail("no memory for %zu bytes", bytes);
  return block;
}

/* ---- Random problems and options ---- */

static const char *pick(uint64_t *state, const char *const *names, int n) {
  return names[below(state, n)];
}
#define PICK(...)                                                                                  \
  pick(state, (const char *const[]){__VA_ARGS__},                                                  \
       (int)(sizeof(const char *[]){__VA_ARGS__} / sizeof(char *)))

static int random_page(uint64_t *state) {
  return (const int[]){0, 0, 1, 3, 16, 64, 128}[below(state, 7)];
}

static void random_problem(uint64_t *state, char text[TEXT]) {
  const bool blocks = below(state, 8) == 0;
  const int b = below(state, 5), sq = 1 + below(state, 4), h = 1 + below(state, 40),
            sk = 1 + below(state, 400);
  const int dqk = blocks ? 32 * (1 + below(state, 4)) : 1 + below(state, 96),
            dv = 1 + below(state, dqk), page = random_page(state);
  const char *q = PICK("f32", "bf16", "f16"),
             *kv = blocks ? PICK("q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl")
                          : PICK("f32", "bf16", "f16", "fp8_e4m3"),
             *out = PICK("f32", "f32", "bf16", "f16");
  const char *dist = PICK("normal:1", "normal:0.1", "uniform:2", "rising", "outlier", "onehot",
                          "peaked", "zerov", "masked");
  const char *len = PICK("fixed", "uniform", "ragged"), *lse = PICK("e", "2"),
             *scale = PICK("0.1352", "0.25", "-0.1", "0.01");
  const int sinks = below(state, 2), pad = blocks ? 32 * below(state, 2) : below(state, 4);
  char seen[HARNESS_RANDOM_SEEN];
  harness_random_seen(state, sk, page, dqk, blocks ? 32 : 1, seen);
  snprintf(text, TEXT,
           "b=%d,sq=%d,h=%d,sk=%d,dqk=%d,dv=%d,page=%d,q=%s,kv=%s,out=%s,scale=%s,lse=%s,sinks=%d,"
           "pad=%d%s,dist=%s,len=%s,seed=%d",
           b, sq, h, sk, dqk, dv, page, q, kv, out, scale, lse, sinks, pad, seen, dist, len,
           below(state, 1 << 20));
}

/* The caller's pool: its one thread, from the last share to the first. */
static void run_in_reverse(void *context, int32_t n, void (*task)(void *argument, int32_t i),
                           void *argument) {
  (void)context;
  while (n > 0)
    task(argument, --n);
}

static amla_options random_options(uint64_t *state, const harness_case *c) {
  amla_options o = AMLA_OPTIONS_INIT;
  o.backend = (amla_backend)below(state, 3); /* auto, ref, cpu */
  o.rescale = (amla_rescale)below(state, 4);
  o.isa = (amla_isa)below(state, AMLA_ISA_AMXBF16 + 1);
  o.p_form = (amla_p_form)below(state, 4);
  o.q_form = (amla_q_form)below(state, 3);
  o.kv_round = (amla_kv_round)below(state, 2);
  o.threads = (const int[]){0, 1, 2, 2, 3, 4, 7, 32}[below(state, 8)];
  o.split_tokens = below(state, 3) ? below(state, 3) - 1 : 1 + below(state, 200);
  harness_take_options(&o, &c->options);
  o.parallel = below(state, 4) ? NULL : run_in_reverse;
  return o;
}

/* ---- Kept plans ---- */

typedef struct kept {
  char problem[TEXT];
  harness_dataset data; /* out and lse: the first result */
  amla_options options;
  amla_plan *plan; /* NULL: none kept here */
} kept;

static kept plans[N_KEPT];

static void run_into(const kept *k, const amla_tensors *tensors) {
  amla_detail detail;
  const size_t bytes = amla_plan_scratch_bytes(k->plan);
  char *scratch = allocate(bytes + 1);
  const amla_status status =
      amla_plan_run(k->plan, tensors, scratch + 1, bytes, &detail); /* of any alignment */
  if (status != AMLA_OK)
    fail("%s: %s", k->problem, detail.text);
  free(scratch);
  count(RUNS);
}

static void check_first_result(const kept *k) {
  harness_truth truth;
  if (harness_truth_compute(&k->data, &truth) != 0)
    fail("%s: no memory for the truth", k->problem);
  amla_plan_info info = AMLA_PLAN_INFO_INIT;
  if (amla_plan_query(k->plan, &info, NULL) != AMLA_OK)
    fail("%s: the plan does not answer", k->problem);
  const harness_error error = harness_compare_plan(&k->data, &truth, &info);
  if (!error.ok)
    fail("%s rescale=%d isa=%d threads=%d split_tokens=%d: row %lld is %.3g of its bound away",
         k->problem, (int)k->options.rescale, (int)k->options.isa, k->options.threads,
         k->options.split_tokens, (long long)error.worst_row, error.worst_of_bound);
  harness_truth_free(&truth);
  count(PROBLEMS);
}

static void drop(kept *k) {
  if (!k->plan)
    return;
  amla_plan_destroy(k->plan);
  harness_free(&k->data);
  k->plan = NULL;
  count(PLANS_DROPPED);
}

/* Data and plan, once while allocations fail and then, if that was refused, again. */
static void generate(kept *k, const harness_case *c, uint64_t *state) {
  char error[256] = "";
  start_failing(state, 40);
  const int status = harness_generate(c, &k->data, error, sizeof error);
  const bool failed = stop_failing();
  if (status == 0)
    return;
  expect_out_of_memory("generate", failed, error);
  if (harness_generate(c, &k->data, error, sizeof error) != 0)
    fail("%s: %s", k->problem, error);
}

static void create_plan(kept *k, uint64_t *state) {
  amla_detail detail;
  if (below(state, 2))
    start_failing(state, 2);
  const amla_status status = amla_plan_create(&k->plan, &k->data.problem, &k->options, &detail);
  const bool failed = stop_failing();
  if (status == AMLA_OK)
    return;
  if (status != AMLA_OUT_OF_MEMORY || k->plan)
    fail("%s: %s: %s", k->problem, amla_status_name(status), detail.text);
  expect_out_of_memory("plan", failed, detail.text);
  if (amla_plan_create(&k->plan, &k->data.problem, &k->options, &detail) != AMLA_OK)
    fail("%s: %s", k->problem, detail.text);
}

static void replace(kept *k, uint64_t *state) {
  char error[256];
  harness_case c;
  drop(k);
  random_problem(state, k->problem);
  if (harness_parse_problem(k->problem, &c, error, sizeof error) != 0)
    fail("%s: %s", k->problem, error);
  k->options = random_options(state, &c);
  generate(k, &c, state);
  create_plan(k, state);
  run_into(k, &k->data.tensors);
  check_first_result(k);
}

/* ---- Refusals: one thing is wrong, and no byte of the outputs changes ---- */

static bool is_filled(const void *buffer, size_t bytes) {
  const unsigned char *at = buffer;
  return bytes == 0 || (at[0] == GUARD && memcmp(at, at + 1, bytes - 1) == 0);
}

/* One length out of range, in a copy that begins at `words`. */
static bool spoil_length(uint64_t *state, const amla_problem *p, amla_tensors *t, int32_t *words) {
  if (p->b == 0 || t->seqlens_k == NULL)
    return false;
  memcpy(words, t->seqlens_k, t->seqlens_k_bytes);
  words[below(state, p->b)] = below(state, 2) ? -1 - below(state, 1 << 30) : p->sk + 1;
  t->seqlens_k = words;
  return true;
}

/* The first entry of the first list out of range, likewise. It counts in every problem. */
static bool spoil_list(uint64_t *state, const amla_problem *p, amla_tensors *t, int32_t *words) {
  if (p->b == 0 || t->indices == NULL)
    return false;
  memcpy(words, t->indices, t->indices_bytes);
  words[0] = INT32_MAX - below(state, 100);
  t->indices = words;
  return true;
}

/* Spoils a copy of the tensors, of lengths or lists (at `words`), or the capacity of the scratch;
 * false where that cannot be done to this problem. */
static bool spoil(uint64_t *state, const kept *k, amla_tensors *t, int32_t *words,
                  size_t *scratch_bytes) {
  const amla_problem *p = &k->data.problem;
  switch (below(state, 9)) {
  case 0: return (*scratch_bytes)-- > 0;
  case 1: return t->out_bytes-- > 0;
  case 2: return t->q = NULL, p->b > 0;
  case 3: return t->q_bytes-- > 0;
  case 4: return t->struct_bytes = (uint32_t)below(state, 4), true;
  case 5: return t->lse_bytes-- > 0;
  case 6: /* must not be there, or must */
    t->q_rope = p->q_d_rope == 0 ? t->kv : NULL;
    return p->q_d_rope == 0 || p->b > 0;
  case 7: return spoil_list(state, p, t, words);
  default: return spoil_length(state, p, t, words);
  }
}

static void refuse_spoilt(const kept *k, uint64_t *state) {
  amla_tensors t = k->data.tensors;
  amla_detail detail;
  size_t scratch_bytes = amla_plan_scratch_bytes(k->plan);
  void *out = allocate(t.out_bytes), *scratch = allocate(scratch_bytes);
  float *lse = allocate(t.lse_bytes);
  int32_t *words = allocate(t.seqlens_k_bytes + t.indices_bytes);
  memset(out, GUARD, t.out_bytes);
  memset(lse, GUARD, t.lse_bytes);
  t.out = out;
  t.lse = lse;
  const amla_tensors whole = t;
  if (spoil(state, k, &t, words, &scratch_bytes)) {
    if (amla_plan_run(k->plan, &t, scratch, scratch_bytes, &detail) == AMLA_OK)
      fail("%s: a spoilt run was not refused", k->problem);
    if (!*detail.text)
      fail("%s: refused without a reason", k->problem);
    if (!is_filled(out, whole.out_bytes) || !is_filled(lse, whole.lse_bytes))
      fail("%s: refused (%s), but written", k->problem, detail.text);
    count(REFUSED);
  }
  free(out);
  free(lse);
  free(words);
  free(scratch);
}

/* ---- Files ---- */

static char folder[256];

/* A problem from a file gives the bits that it gave before it was written. */
static void expect_same_bits(const kept *k, harness_dataset *read) {
  const amla_problem *p = &k->data.problem;
  kept copy = *k;
  copy.data = *read;
  if (read->problem.b != p->b || read->problem.s_q != p->s_q || read->problem.h_q != p->h_q ||
      read->problem.d_qk != p->d_qk || read->problem.d_v != p->d_v)
    fail("%s: other sizes in its file", k->problem);
  if (amla_plan_create(&copy.plan, &read->problem, &k->options, NULL) != AMLA_OK)
    fail("%s: no plan for its file", k->problem);
  run_into(&copy, &read->tensors);
  amla_plan_destroy(copy.plan);
  if (k->options.split_tokens != AMLA_SPLIT_AUTO &&
      memcmp(read->lse, k->data.lse, read->tensors.lse_bytes) != 0)
    fail("%s: other bits of lse from its file", k->problem);
  if (k->options.split_tokens != AMLA_SPLIT_AUTO &&
      read->tensors.out_bytes == k->data.tensors.out_bytes &&
      memcmp(read->out, k->data.out, read->tensors.out_bytes) != 0)
    fail("%s: other bits of out from its file", k->problem);
  count(READ);
}

/* Reads the file, perhaps while allocations fail. */
static void read_back(const kept *k, const char *path, uint64_t *state) {
  harness_dataset read;
  char error[512] = "";
  if (below(state, 2))
    start_failing(state, 160);
  const int status = harness_read_problem(path, &read, error, sizeof error);
  const bool failed = stop_failing();
  if (status != 0) {
    expect_out_of_memory("read", failed, error);
    return;
  }
  expect_same_bits(k, &read);
  harness_free(&read);
}

static void truncate_and_read(const kept *k, const char *path, uint64_t *state) {
  harness_dataset read;
  struct stat about;
  char error[512] = "";
  if (stat(path, &about) != 0)
    fail("%s: %s", path, strerror(errno));
  const int header = below(state, 2) ? 400 : INT32_MAX; /* half of the cuts are near the header */
  const int length = below(state, about.st_size < header ? (int)about.st_size : header);
  if (truncate(path, length) != 0)
    fail("%s: %s", path, strerror(errno));
  if (harness_read_problem(path, &read, error, sizeof error) == 0)
    fail("%s: its file was read, cut to %d bytes", k->problem, length);
  if (!*error)
    fail("%s: refused without a reason, cut to %d bytes", k->problem, length);
  count(TRUNCATED);
}

static void through_a_file(const kept *k, uint64_t *state) {
  char path[300], error[512] = "";
  const harness_dataset *d = &k->data;
  const bool can_be_written = harness_dtype_bytes(d->problem.kv_type) > 0 && !d->mask &&
                              !d->q_indptr && !d->kv_indptr && d->problem.q_d_rope == 0 &&
                              d->problem.kv_d_rope == 0;
  snprintf(path, sizeof path, "%s/problem.safetensors", folder);
  if (below(state, 3) == 0)
    start_failing(state, 100);
  const int status = harness_write_problem(path, &k->data, error, sizeof error);
  const bool failed = stop_failing();
  if (status != 0) {
    if (!*error || (can_be_written && !failed))
      fail("%s: not written: %s", k->problem, error);
    if (access(path, F_OK) == 0)
      fail("%s: %s left behind", error, path);
    if (failed)
      count(OUT_OF_MEMORY);
    return;
  }
  count(WRITTEN);
  read_back(k, path, state);
  truncate_and_read(k, path, state);
  unlink(path);
}

/* ---- Threads that run the kept plans ---- */

typedef struct caller {
  pthread_t thread;
  uint64_t state;
  const kept *not_this; /* is being replaced */
  int n_callers;
} caller;

static void compare_run(const kept *k) {
  amla_tensors t = k->data.tensors;
  t.out = allocate(t.out_bytes);
  t.lse = allocate(t.lse_bytes);
  memset(t.out, GUARD, t.out_bytes);
  memset(t.lse, GUARD, t.lse_bytes);
  run_into(k, &t);
  if (memcmp(t.out, k->data.out, t.out_bytes) != 0 || memcmp(t.lse, k->data.lse, t.lse_bytes) != 0)
    fail("%s rescale=%d isa=%d threads=%d split_tokens=%d: other bits than the first time",
         k->problem, (int)k->options.rescale, (int)k->options.isa, k->options.threads,
         k->options.split_tokens);
  free(t.out);
  free(t.lse);
  count(COMPARED);
}

static void *call(void *argument) {
  caller *c = argument;
  const int n_runs = 1 + below(&c->state, 3);
  for (int i = 0; i < n_runs; i++) {
    const kept *k = &plans[below(&c->state, N_KEPT)];
    if (k != c->not_this && k->plan && k->options.threads * c->n_callers <= MAX_THREADS)
      compare_run(k);
  }
  return NULL;
}

static void start_callers(caller *callers, int n, const kept *not_this, uint64_t *state) {
  if (n > atomic_load(&most_threads))
    atomic_store(&most_threads, n);
  for (int i = 0; i < n; i++) {
    callers[i] = (caller){.state = harness_random(state), .not_this = not_this, .n_callers = n};
    if (pthread_create(&callers[i].thread, NULL, call, &callers[i]) != 0)
      fail("no thread");
  }
}

/* ---- Rounds ---- */

/* Its draws follow from the seed and its number. The plans that its threads run are those that
 * earlier rounds left. */
static void run_round(int64_t number) {
  caller callers[MAX_CALLERS];
  uint64_t state = seed * 0x9e3779b97f4a7c15u + (uint64_t)number;
  harness_random(&state);
  atomic_store(&current_round, number);
  kept *k = &plans[number % N_KEPT];
  const int n_callers = below(&state, 4) ? 1 + below(&state, 4) : 1 + below(&state, MAX_CALLERS);
  start_callers(callers, n_callers, k, &state);
  replace(k, &state);
  refuse_spoilt(k, &state);
  if (k->data.problem.out_type == AMLA_F32)
    through_a_file(k, &state);
  for (int i = 0; i < n_callers; i++)
    pthread_join(callers[i].thread, NULL);
}

static int report(bool all_needed) {
  int missing = 0;
  for (int i = 0; i < N_COUNTS; i++) {
    printf("%10lld %s\n", atomic_load(&counts[i]), count_names[i]);
    if (all_needed && atomic_load(&counts[i]) == 0)
      missing++;
  }
  printf("%10d threads at a time, at most\n", atomic_load(&most_threads));
  if (missing)
    printf("soak: FAILED: %d of these checked nothing\n", missing);
  return missing > 0;
}

static double number(const char *text) {
  char *end;
  const double x = strtod(text, &end);
  if (end == text || *end || !(x >= 0))
    fail("'%s': must be a number >= 0. Use: soak [MINUTES] [--seed N] [--round N]", text);
  return x;
}

int main(int argc, char **argv) {
  double minutes = 1;
  int64_t only = -1;
  seed = (uint64_t)time(NULL);
  for (int i = 1; i < argc; i++) {
    const bool more = i + 1 < argc;
    if (strcmp(argv[i], "--seed") == 0 && more)
      seed = strtoull(argv[++i], NULL, 10);
    else if (strcmp(argv[i], "--round") == 0 && more)
      only = (int64_t)number(argv[++i]);
    else
      minutes = number(argv[i]);
  }
  if (__sanitizer_set_death_callback)
    __sanitizer_set_death_callback(say_where);
  json_set_alloc_funcs(__wrap_malloc, free);
  const char *temporary = getenv("TMPDIR");
  snprintf(folder, sizeof folder, "%s/amla-soak-XXXXXX", temporary ? temporary : "/tmp");
  if (!mkdtemp(folder))
    fail("%s: %s", folder, strerror(errno));
  printf("soak: %g minutes, --seed %" PRIu64 "\n", minutes, seed);
  fflush(stdout);

  struct timespec start, now;
  clock_gettime(CLOCK_MONOTONIC, &start);
  for (int64_t i = only < 0 ? 0 : only;; i++) {
    run_round(i);
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (only >= 0 || (double)(now.tv_sec - start.tv_sec) >= 60 * minutes)
      break;
  }
  for (int i = 0; i < N_KEPT; i++)
    drop(&plans[i]);
  rmdir(folder);
  return report(only < 0);
}
