/* SPDX-License-Identifier: Apache-2.0
 *
 * amla_options.cancel: asked before every key tile, in the caller's floating-point environment; it
 * ends the run wherever it says so, and leaves plan and scratch fit for the next one.
 */
#include <fenv.h>
#include <stdatomic.h>
#include <time.h>

#include "test_run.h"

typedef struct caller {
  atomic_int asked, in_other_environment;
  int rounding; /* the caller's, which every thread of its pool has */
  int end_at;   /* the question that is answered with yes; 0: none */
} caller;

/* Questions after the end wait until that answer has had time to arrive: a thread may lose its core
 * between its answer and the library's note of it. */
static int ask(void *context) {
  static const struct timespec patience = {.tv_nsec = 20000000};
  caller *c = context;
  if (fegetround() != c->rounding)
    atomic_fetch_add(&c->in_other_environment, 1);
  const int at = atomic_fetch_add(&c->asked, 1) + 1;
  if (c->end_at > 0 && at > c->end_at)
    nanosleep(&patience, NULL);
  return at == c->end_at;
}

/* The caller's pool: its one thread, from the last share to the first. */
static void run_in_reverse(void *context, int32_t n, void (*task)(void *argument, int32_t i),
                           void *argument) {
  (void)context;
  while (n > 0)
    task(argument, --n);
}

typedef struct prepared {
  harness_dataset data;
  amla_plan *plan;
  void *scratch;
  size_t scratch_bytes;
} prepared;

static prepared prepare(const char *problem, const amla_options *options) {
  prepared p;
  amla_detail detail;
  generate(&p.data, problem);
  if (amla_plan_create(&p.plan, &p.data.problem, options, &detail) != AMLA_OK)
    fail_msg("%s", detail.text);
  p.scratch_bytes = amla_plan_scratch_bytes(p.plan);
  p.scratch = malloc(p.scratch_bytes + 1);
  assert_non_null(p.scratch);
  return p;
}

static amla_status run_again(prepared *p, int rounding, amla_detail *detail) {
  memset(p->data.out, GUARD_PATTERN, p->data.tensors.out_bytes);
  fesetround(rounding);
  const amla_status status =
      amla_plan_run(p->plan, &p->data.tensors, p->scratch, p->scratch_bytes, detail);
  fesetround(FE_TONEAREST);
  return status;
}

static void discard(prepared *p) {
  amla_plan_destroy(p->plan);
  free(p->scratch);
  harness_free(&p->data);
}

static void expect_rows(const harness_dataset *want, const harness_dataset *got,
                        const char *problem, const amla_options *o) {
  for (int64_t row = 0; row < n_rows(want); row++)
    if (!same_row(want, row, got, row))
      fail_msg("%s, %s: row %lld has other bits", problem, describe_options(o), (long long)row);
}

static const char *const problems[] = {"b=2,sq=2,h=17,sk=700,dqk=48,dv=32,len=700/333,causal=1",
                                       "b=1,sq=3,h=5,sk=900,dqk=48,dv=32,mask=1",
                                       "b=1,sq=2,h=5,sk=900,dqk=48,dv=32,topk=500"};

static int tile_tokens(const prepared *p) {
  amla_plan_info info = AMLA_PLAN_INFO_INIT;
  assert_int_equal(amla_plan_query(p->plan, &info, NULL), AMLA_OK);
  return info.tile_tokens;
}

static void check_cancel_of(const char *problem, const amla_options *options, bool pool) {
  caller c = {.rounding = FE_TONEAREST};
  amla_options o = *options, plain = *options;
  amla_detail detail;
  o.threads = plain.threads = 3;
  o.cancel = ask, o.cancel_context = &c;
  if (pool)
    o.parallel = plain.parallel = run_in_reverse, c.rounding = FE_UPWARD;
  harness_dataset want;
  generate(&want, problem);
  run(&want, problem, &plain);
  prepared p = prepare(problem, &o);
  assert_int_equal(run_again(&p, c.rounding, &detail), AMLA_OK);
  expect_rows(&want, &p.data, problem, &o);
  const int asked = c.asked, fewest = p.data.seqlens_k[0] / 2 / tile_tokens(&p);
  if (asked < fewest)
    fail_msg("%s, %s: asked %d times, %d at least", problem, describe_options(&o), asked, fewest);
  for (int end_at = 1; end_at <= asked; end_at += 1 + asked / 7) {
    atomic_store(&c.asked, 0);
    c.end_at = end_at;
    const amla_status status = run_again(&p, c.rounding, &detail);
    if (status != AMLA_CANCELLED || !strstr(detail.text, "cancel"))
      fail_msg("%s, %s: end at %d of %d: %s, '%s'", problem, describe_options(&o), end_at, asked,
               amla_status_name(status), detail.text);
    if (c.asked >= end_at + o.threads)
      fail_msg("%s, %s: asked %d times after the end", problem, describe_options(&o),
               c.asked - end_at);
    c.end_at = 0;
    assert_int_equal(run_again(&p, c.rounding, &detail), AMLA_OK);
    assert_string_equal(detail.text, "");
    expect_rows(&want, &p.data, problem, &o);
  }
  assert_int_equal(c.in_other_environment, 0);
  discard(&p);
  harness_free(&want);
}

static void check_cancel(const amla_options *options) {
  for (int i = 0; i < 2 * LENGTH(problems); i++)
    check_cancel_of(problems[i / 2], options, i % 2);
}

static void a_run_ends_when_told(void **state) {
  (void)state;
  for_each_engine(check_cancel);
}

static void it_is_called_cancelled(void **state) {
  (void)state;
  assert_int_equal(AMLA_CANCELLED, 5);
  assert_string_equal(amla_status_name(AMLA_CANCELLED), "cancelled");
}

static void other_backends_refuse_it(void **state) {
  amla_problem p = AMLA_PROBLEM_INIT;
  amla_options o = AMLA_OPTIONS_INIT;
  amla_backend_info info = AMLA_BACKEND_INFO_INIT;
  amla_detail detail;
  amla_plan *plan = NULL;
  (void)state;
  p.sk = 16, p.scale = 0.1f;
  o.backend = AMLA_BACKEND_NPU;
  o.cancel = ask;
  if (amla_backend_query(AMLA_BACKEND_NPU, &info, &detail) != AMLA_OK || !info.available)
    skip();
  assert_int_equal(amla_plan_create(&plan, &p, &o, &detail), AMLA_UNSUPPORTED);
  assert_string_equal(detail.text, "cancel: must be NULL, npu does not have it yet");
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(a_run_ends_when_told),
                                     cmocka_unit_test(it_is_called_cancelled),
                                     cmocka_unit_test(other_backends_refuse_it)};
  return cmocka_run_group_tests_name("cancel", tests, NULL, NULL);
}
