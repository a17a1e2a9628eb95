/* SPDX-License-Identifier: Apache-2.0
 *
 * What threads may not change and may not break: the bits of a result for any number of threads,
 * and one const plan run by several threads at a time, each with its own scratch and outputs. Also
 * built with ThreadSanitizer.
 */
#include "test_run.h"

#include <pthread.h>

#include "src/cpu/schedule.h"

/* ---- Thread counts ---- */

static const char *const problems[] = {
    "b=1,h=128,sk=3000,dqk=64,dv=48,page=16", /* one sequence: threads share its splits */
    "b=3,sq=3,h=60,sk=1500,dqk=48,dv=40,page=64,len=ragged",         /* two blocks of rows, an empty
                                                                        sequence */
    "b=9,h=16,sk=700,dqk=576,dv=512,page=0,len=uniform,dist=rising", /* more sequences than threads
                                                                      */
    "b=2,sq=2,h=31,sk=1203,dqk=100,dv=100,page=3,dist=outlier,sinks=1",
    "b=1,sq=900,h=2,sk=900,dqk=24,dv=16,page=0", /* prefill: blocks see 64 to 900 keys, or 16 to 900
                                                  */
    "b=1,sq=5,h=30,sk=800,dqk=64,dv=64,page=0,mask=1,causal=0", /* blocks of 128 rows, or of 32
                                                                   across queries */
};

/* Under a sanitizer, a run takes ten times as long: the first two problems and three counts. */
enum { N_PROBLEMS = TEST_SLOW ? 2 : LENGTH(problems) };
static const int32_t threads[] = {1, 3, 16, 2, 4, 7};
enum { N_THREADS = TEST_SLOW ? 3 : LENGTH(threads) };

/* Threads share work of more than about 4 MFLOP each: all of these have that. */
static void expect_same_bits(const char *problem, const amla_options *base) {
  harness_dataset one, many;
  generate(&one, problem);
  generate(&many, problem);
  for (int i = 0; i < N_THREADS; i++) {
    amla_options options = *base;
    options.threads = threads[i];
    run(i == 0 ? &one : &many, problem, &options);
    for (int64_t row = 0; i > 0 && row < n_rows(&one); row++)
      if (!same_row(&one, row, &many, row))
        fail_msg("'%s' %s: row %lld has other bits than on one thread", problem,
                 describe_options(&options), (long long)row);
  }
  harness_free(&one);
  harness_free(&many);
}

static void check_thread_counts(const amla_options *base) {
  for (int p = 0; p < N_PROBLEMS && base->backend == AMLA_BACKEND_CPU; p++)
    for (int split = 0; split < 2; split++) {
      amla_options options = *base;
      options.split_tokens = split ? 100 : AMLA_SPLIT_BY_LENGTH;
      expect_same_bits(problems[p], &options);
    }
}

static void thread_count_does_not_change_a_bit(void **state) {
  (void)state;
  for_each_engine(check_thread_counts);
}

/* Every number up to 41 of threads: of one sequence of 13 splits or more, of three, and of none
 * that every thread gets a split of. */
static void no_thread_count_changes_a_bit(void **state) {
  (void)state;
  static const char *const shapes[] = {"b=1,h=128,sk=12700,dqk=64,dv=48,page=16",
                                       "b=3,h=100,sk=6000,dqk=64,dv=48,page=64,len=uniform",
                                       "b=2,h=128,sk=700,dqk=576,dv=512,page=0"};
  for (int p = 0; p < (TEST_SLOW ? 1 : LENGTH(shapes)); p++) {
    harness_dataset one, many;
    generate(&one, shapes[p]);
    generate(&many, shapes[p]);
    for (int32_t n = 1; n <= 41; n += TEST_SLOW ? 20 : 1) {
      const amla_options options =
          make_options(AMLA_BACKEND_CPU, AMLA_RESCALE_LAZY, AMLA_ISA_AUTO, n, 0);
      run(n == 1 ? &one : &many, shapes[p], &options);
      for (int64_t row = 0; n > 1 && row < n_rows(&one); row++)
        if (!same_row(&one, row, &many, row))
          fail_msg("'%s': row %lld has other bits on %d threads", shapes[p], (long long)row, n);
    }
    harness_free(&one);
    harness_free(&many);
  }
}

/* ---- How many partial results a share holds ---- */

/* A stack of tree nodes of one group of n leaves. */
typedef struct nodes {
  int64_t first[64], n[64];
  int count;
} nodes;

static void push_leaf(nodes *s, int64_t leaf, int64_t n_leaves) {
  s->first[s->count] = leaf;
  s->n[s->count++] = 1;
  for (; s->count > 1; s->count--) {
    const int a = s->count - 2, b = s->count - 1;
    const bool cut_short = s->first[b] + s->n[b] == n_leaves && s->n[b] < s->n[a];
    if ((s->n[a] != s->n[b] && !cut_short) || s->first[a] % (2 * s->n[a]) != 0)
      return;
    s->n[a] += s->n[b];
  }
}

/* Groups that each compute leaves [from, to) of their tree of `leaves`: all, but in a shard. */
typedef struct groups {
  int64_t leaves, from, to;
} groups;

/* Most nodes at a time of a share: leaves [at, at + n) of the line of those that groups compute. */
static int64_t count_peak(int64_t at, int64_t n, groups g) {
  const int64_t each = g.to - g.from;
  int64_t peak = 0, kept = 0;
  for (int64_t end = at + n; at < end;) {
    const int64_t group = at / each * each, from = at - group;
    nodes s = {.count = 0};
    for (; at < end && at < group + each; at++) {
      peak = kept + s.count + 1 > peak ? kept + s.count + 1 : peak;
      push_leaf(&s, g.from + at - group, g.leaves);
    }
    if (from > 0 || at < group + each)
      kept += s.count;
  }
  return peak;
}

/* Shares of any lengths, of groups of any number of splits: each fits what is counted for it, and
 * all of them what is counted for a plan. Some need just that. */
static void shares_fit_the_slots_counted(void **state) {
  (void)state;
  uint64_t seed = 11;
  int tight[2] = {0, 0};
  for (int i = 0; i < 20000; i++) {
    const int sharded = i % 2, ends = sharded ? 4 : 2;
    const int64_t leaves = 1 + random_below(&seed, 40), n_groups = 1 + random_below(&seed, 8);
    const int32_t n_shares = 2 + random_below(&seed, 40);
    const amla_schedule s = {.max_splits = leaves, .max_leaves = leaves * n_groups};
    groups g = {leaves, 0, leaves};
    if (sharded) {
      g.from = random_below(&seed, (int)leaves);
      g.to = g.from + 1 + random_below(&seed, (int)(leaves - g.from));
    }
    const int64_t all = (g.to - g.from) * n_groups;
    int64_t at = 0, sum = 0;
    for (int32_t t = 0; t < n_shares; t++) {
      const int64_t left = all - at;
      const int64_t n =
          t + 1 < n_shares ? random_below(&seed, (int)(left < 20 ? left : 20) + 1) : left;
      const int64_t peak = count_peak(at, n, g), slots = amla_count_slots(&s, n, ends);
      assert_in_range(peak, n > 0, slots);
      tight[sharded] += peak > 3 && peak == slots;
      at += n;
      sum += slots;
    }
    assert_in_range(sum, 1, amla_count_slots(&s, s.max_leaves, ends * n_shares));
    assert_in_range(count_peak(0, all, g), 1, amla_count_slots(&s, s.max_leaves, ends / 2));
  }
  assert_in_range(tight[0], 100, INT32_MAX);
  assert_in_range(tight[1], 100, INT32_MAX);
}

/* 0.64 GB they were, 19 for each thread. */
static void partial_results_of_128_threads_are_few(void **state) {
  (void)state;
  harness_case c;
  char error[256];
  amla_options options = AMLA_OPTIONS_INIT;
  assert_int_equal(harness_parse_problem("b=1,h=128,sk=131072", &c, error, sizeof error), 0);
  options.threads = 128;
  const amla_schedule s = amla_schedule_create(&c.problem, &options, 96, 0, 0);
  const int64_t slots = amla_count_slots(&s, s.max_leaves, 2 * options.threads);
  assert_in_range(slots * s.block_rows * 512 * (int64_t)sizeof(float), 1, 64000000);
}

/* ---- Who touches scratch first ---- */

enum { PAGE = 4096, MAX_PAGES = 1 << 12, UNTOUCHED = -2, BEFORE = -1 };

typedef struct pages {
  unsigned char *scratch, *last; /* as it is, and as it was when we last looked */
  size_t n;
  int by[MAX_PAGES]; /* the task that wrote the page */
  int n_before, n_shared;
  bool second_step;
} pages;

/* Whatever has changed was written by that task. Pages that were written before any task, where
 * the threads' states are, are everybody's. */
static void see_pages(pages *p, int task) {
  for (size_t i = 0; i < p->n; i++) {
    if (memcmp(p->scratch + i * PAGE, p->last + i * PAGE, PAGE) == 0)
      continue;
    memcpy(p->last + i * PAGE, p->scratch + i * PAGE, PAGE);
    p->n_before += task == BEFORE;
    p->n_shared += p->by[i] >= 0 && p->by[i] != task;
    if (p->by[i] == UNTOUCHED)
      p->by[i] = task;
  }
}

static void watch_pages(void *context, int32_t n, void (*task)(void *argument, int32_t i),
                        void *argument) {
  pages *p = context;
  if (!p->second_step)
    see_pages(p, BEFORE);
  for (int32_t i = 0; i < n; i++) {
    task(argument, i);
    if (!p->second_step)
      see_pages(p, i);
  }
  p->second_step = true;
}

/* No page of one thread's memory is written by another one, the caller's included. */
static void threads_touch_their_scratch_first(void **state) {
  (void)state;
  enum { THREADS = 8 };
  static pages p;
  amla_options options =
      make_options(AMLA_BACKEND_CPU, AMLA_RESCALE_LAZY, AMLA_ISA_AUTO, THREADS, 0);
  options.parallel = watch_pages;
  options.parallel_context = &p;
  fixture f = fixture_create("b=1,h=128,sk=9000,dqk=64,dv=48,page=16", &options);
  const size_t bytes = amla_plan_scratch_bytes(f.plan);
  p.n = bytes / PAGE + 1;
  assert_in_range(p.n, 1, MAX_PAGES);
  p.scratch = aligned_alloc(PAGE, p.n * PAGE);
  p.last = malloc(p.n * PAGE);
  assert_true(p.scratch != NULL && p.last != NULL);
  memset(p.scratch, 0xa5, p.n * PAGE);
  memset(p.last, 0xa5, p.n * PAGE);
  for (size_t i = 0; i < p.n; i++)
    p.by[i] = UNTOUCHED;
  assert_int_equal(amla_plan_run(f.plan, &f.data.tensors, p.scratch, bytes, NULL), AMLA_OK);
  assert_true(p.second_step);
  assert_in_range(p.n_before, 1, 8); /* 2 kB a thread */
  assert_int_equal(p.n_shared, 0);
  free(p.scratch);
  free(p.last);
  fixture_free(&f);
}

/* The share of a thread that leaves most behind. Six sequences of 125, 128, 128, 128, 125 and 128
 * splits for three threads of 254 each: the second has all but the first split of one sequence and
 * all but the last of another, 7 nodes of the merge tree each. They must fit its part of the
 * scratch: run() has guard bytes behind all of it, and bits show when threads overlap. */
static void the_worst_share_fits_the_scratch(void **state) {
  (void)state;
  static const int leaves[] = {125, 128, 128, 128, 125, 128};
  for (int e = 1; e < N_ENGINES; e++) {
    if (!engine_runs_here(e))
      continue;
    const amla_options options = engine_options(e, AMLA_RESCALE_LAZY, 1, 1);
    const int tile = amla_ukernels_select(options.isa)->tile_tokens;
    char problem[256];
    int used = snprintf(problem, sizeof problem,
                        "b=6,h=16,sk=%d,dqk=8,dv=8,page=0,causal=0,len=", 128 * tile);
    for (int i = 0; i < 6; i++)
      used += snprintf(problem + used, sizeof problem - (size_t)used, i ? "/%d" : "%d",
                       leaves[i] * tile);
    expect_same_bits(problem, &options);
  }
}

/* A token that is not finite reaches the same rows whatever the threads: in the last key, which
 * causality hides from the first query, and in a tile that the mask hides from all. */
static void check_poison(const amla_options *base) {
  static const char *const shapes[] = {"b=1,sq=2,h=64,sk=90,page=0,kv=f32",
                                       "b=1,sq=2,h=128,sk=90,page=0,kv=f32",
                                       "b=1,h=128,sk=4096,page=0,kv=f32,dqk=64,dv=48"};
  for (int p = 0; p < LENGTH(shapes) && base->backend == AMLA_BACKEND_CPU; p++) {
    harness_dataset one, many;
    uint16_t *mask = calloc(4096, sizeof *mask);
    generate(&one, shapes[p]);
    generate(&many, shapes[p]);
    assert_non_null(mask);
    for (int j = 480; j < 512; j++)
      mask[j] = 0xfc00; /* -inf */
    harness_dataset *const both[] = {&one, &many};
    for (int i = 0; i < 2; i++) {
      const amla_problem *problem = &both[i]->problem;
      float *kv = both[i]->kv;
      for (int64_t d = 0; d < problem->d_qk; d++)
        kv[(problem->sk == 4096 ? 490 : problem->sk - 1) * problem->d_qk + d] = NAN;
      if (problem->sk != 4096)
        continue;
      both[i]->tensors.mask = mask;
      both[i]->tensors.mask_bytes = 4096 * sizeof *mask;
    }
    for (int32_t n = 1; n <= 8; n++) {
      amla_options options = *base;
      options.threads = n;
      run(n == 1 ? &one : &many, shapes[p], &options);
      for (int64_t row = 0; n > 1 && row < n_rows(&one); row++)
        if (!same_row(&one, row, &many, row))
          fail_msg("'%s' %s: poison reaches row %lld or not, by threads", shapes[p],
                   describe_options(&options), (long long)row);
    }
    harness_free(&one);
    harness_free(&many);
    free(mask);
  }
}

static void poison_reaches_the_same_rows(void **state) {
  (void)state;
  for_each_engine(check_poison);
}

/* A thread pool of the caller: here its one thread, which takes the tasks in reverse order. */
typedef struct pool {
  int32_t calls, tasks, most; /* most tasks allowed */
} pool;

static void run_in_reverse(void *context, int32_t n, void (*task)(void *argument, int32_t i),
                           void *argument) {
  pool *p = context;
  p->calls++;
  p->tasks += n;
  assert_in_range(n, 2, p->most);
  for (int32_t i = n - 1; i >= 0; i--)
    task(argument, i);
}

static void check_callers_threads(const amla_options *base) {
  for (int p = 0; p < N_PROBLEMS && base->backend == AMLA_BACKEND_CPU; p++) {
    harness_dataset ours, theirs;
    generate(&ours, problems[p]);
    generate(&theirs, problems[p]);
    run(&ours, problems[p], base);
    for (int i = 0; i < N_THREADS; i++) {
      amla_options options = *base;
      pool caller = {0, 0, threads[i]};
      options.threads = threads[i];
      options.parallel = run_in_reverse;
      options.parallel_context = &caller;
      run(&theirs, problems[p], &options);
      assert_in_range(caller.calls, threads[i] > 1, threads[i] > 1 ? 2 : 0);
      for (int64_t row = 0; row < n_rows(&ours); row++)
        if (!same_row(&ours, row, &theirs, row))
          fail_msg("'%s' %s: row %lld on the caller's threads", problems[p],
                   describe_options(&options), (long long)row);
    }
    harness_free(&ours);
    harness_free(&theirs);
  }
}

static void tasks_run_on_the_callers_threads(void **state) {
  (void)state;
  for_each_engine(check_callers_threads);
}

/* AMLA_SPLIT_AUTO cuts by occupancy: other bits, same bound. */
static void check_auto_splits(const amla_options *base) {
  for (int p = 0; p < N_PROBLEMS && base->backend == AMLA_BACKEND_CPU; p++) {
    harness_dataset data;
    harness_truth truth;
    generate(&data, problems[p]);
    compute_truth_of(&data, &truth);
    for (int i = 0; i < N_THREADS; i++) {
      amla_options options = *base;
      options.threads = threads[i];
      options.split_tokens = AMLA_SPLIT_AUTO;
      run(&data, problems[p], &options);
      expect_within_bound(&data, &truth, problems[p], &options);
    }
    harness_truth_free(&truth);
    harness_free(&data);
  }
}

static void automatic_splits_are_within_the_bound(void **state) {
  (void)state;
  for_each_engine(check_auto_splits);
}

/* The same run again and again: no bit depends on who was faster. */
static void repeated_runs_have_the_same_bits(void **state) {
  (void)state;
  const amla_options options =
      make_options(AMLA_BACKEND_CPU, AMLA_RESCALE_LAZY, AMLA_ISA_AUTO, 4, 0);
  harness_dataset first, again;
  generate(&first, problems[1]);
  generate(&again, problems[1]);
  run(&first, problems[1], &options);
  for (int i = 0; i < 20; i++) {
    run(&again, problems[1], &options);
    for (int64_t row = 0; row < n_rows(&first); row++)
      if (!same_row(&first, row, &again, row))
        fail_msg("repetition %d: row %lld", i, (long long)row);
  }
  harness_free(&first);
  harness_free(&again);
}

/* ---- One plan, many threads ---- */

enum { CALLERS = 4, REPEATS = 5 };

typedef struct caller {
  const amla_plan *plan;
  harness_dataset data;
  pthread_t thread;
  amla_status status;
} caller;

static void *run_repeatedly(void *argument) {
  caller *c = argument;
  const size_t bytes = amla_plan_scratch_bytes(c->plan);
  void *scratch = malloc(bytes);
  c->status = scratch ? AMLA_OK : AMLA_OUT_OF_MEMORY;
  for (int i = 0; i < REPEATS && c->status == AMLA_OK; i++)
    c->status = amla_plan_run(c->plan, &c->data.tensors, scratch, bytes, NULL);
  free(scratch);
  return NULL;
}

static void check_concurrent_runs(const amla_options *base) {
  const char *problem = "b=3,sq=2,h=40,sk=800,dqk=64,dv=48,page=16,len=ragged";
  amla_options options = *base;
  amla_plan *plan = NULL;
  caller callers[CALLERS];
  harness_dataset alone;
  options.threads = 3;
  generate(&alone, problem);
  run(&alone, problem, &options);
  harness_take_options(&options, &alone.options);
  assert_int_equal(amla_plan_create(&plan, &alone.problem, &options, NULL), AMLA_OK);
  for (int i = 0; i < CALLERS; i++) {
    callers[i].plan = plan;
    generate(&callers[i].data, problem);
  }
  for (int i = 0; i < CALLERS; i++)
    assert_int_equal(pthread_create(&callers[i].thread, NULL, run_repeatedly, &callers[i]), 0);
  for (int i = 0; i < CALLERS; i++)
    assert_int_equal(pthread_join(callers[i].thread, NULL), 0);
  for (int i = 0; i < CALLERS; i++) {
    assert_int_equal(callers[i].status, AMLA_OK);
    for (int64_t row = 0; row < n_rows(&alone); row++)
      if (!same_row(&alone, row, &callers[i].data, row))
        fail_msg("%s: caller %d: row %lld has other bits than alone", describe_options(&options), i,
                 (long long)row);
    harness_free(&callers[i].data);
  }
  amla_plan_destroy(plan);
  harness_free(&alone);
}

static void a_plan_runs_concurrently(void **state) {
  (void)state;
  for_each_engine(check_concurrent_runs);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(thread_count_does_not_change_a_bit),
      cmocka_unit_test(no_thread_count_changes_a_bit),
      cmocka_unit_test(shares_fit_the_slots_counted),
      cmocka_unit_test(partial_results_of_128_threads_are_few),
      cmocka_unit_test(threads_touch_their_scratch_first),
      cmocka_unit_test(the_worst_share_fits_the_scratch),
      cmocka_unit_test(poison_reaches_the_same_rows),
      cmocka_unit_test(tasks_run_on_the_callers_threads),
      cmocka_unit_test(automatic_splits_are_within_the_bound),
      cmocka_unit_test(repeated_runs_have_the_same_bits),
      cmocka_unit_test(a_plan_runs_concurrently),
  };
  return cmocka_run_group_tests_name("threads", tests, NULL, NULL);
}
