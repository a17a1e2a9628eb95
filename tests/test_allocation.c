/* SPDX-License-Identifier: Apache-2.0
 *
 * amla_plan_run calls no allocator: every call to malloc and its kin is counted while it runs,
 * after a first run in which the thread runtime may form its team. Stands in front of glibc's
 * allocator; skipped elsewhere and under sanitizers, which own malloc.
 */
#include "test_run.h"

#include "harness/index_data.h"

#include <errno.h>
#include <stdatomic.h>

#if defined(__GLIBC__) && !TEST_SANITIZED
#define COUNTS_ALLOCATIONS 1

void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t n, size_t bytes);
void *__libc_realloc(void *block, size_t bytes);
void *__libc_memalign(size_t alignment, size_t bytes);

static atomic_int counting, allocations, failing;

static void count_one(void) {
  if (atomic_load(&counting))
    atomic_fetch_add(&allocations, 1);
}

void *malloc(size_t bytes) {
  count_one();
  return atomic_load(&failing) ? NULL : __libc_malloc(bytes);
}
void *calloc(size_t n, size_t bytes) {
  count_one();
  return __libc_calloc(n, bytes);
}
void *realloc(void *block, size_t bytes) {
  count_one();
  return __libc_realloc(block, bytes);
}
void *aligned_alloc(size_t alignment, size_t bytes) {
  count_one();
  return __libc_memalign(alignment, bytes);
}
int posix_memalign(void **block, size_t alignment, size_t bytes) {
  count_one();
  *block = __libc_memalign(alignment, bytes);
  return *block ? 0 : ENOMEM;
}

static void start_counting(void) {
  atomic_store(&allocations, 0);
  atomic_store(&counting, 1);
}
static int stop_counting(void) {
  atomic_store(&counting, 0);
  return atomic_load(&allocations);
}
static void set_failing(int value) { atomic_store(&failing, value); }
#else
#define COUNTS_ALLOCATIONS 0
static void start_counting(void) {}
static int stop_counting(void) { return 0; }
static void set_failing(int value) { (void)value; }
#endif

static void the_counter_counts(void **state) {
  (void)state;
  if (!COUNTS_ALLOCATIONS)
    skip();
  start_counting();
  void *volatile block = malloc(100);
  const int count = stop_counting();
  free(block);
  assert_int_equal(count, 1);
}

static void check_run(const amla_options *base) {
  static const char *const problems[] = {
      "b=1,h=128,sk=2000,dqk=64,dv=48", "b=4,sq=2,h=70,sk=900,dqk=64,dv=48,len=ragged,sinks=1",
      "b=3,sq=2,h=17,sk=900,topk=700,topklen=query,scope2=topk:90/sk:300/page:5,ragged=1",
      "b=3,sq=2,h=9,sk=700,dqk=512,kv=fp8_584,window=128,scope2=sk:300/page:0",
      "b=2,sq=3,h=9,sk=700,kv=fp8_656,visible=1,csr=1,qrope=64"};
  for (int p = 0; p < LENGTH(problems); p++) {
    amla_options options = *base;
    amla_plan *plan;
    harness_dataset data;
    options.threads = 3;
    generate(&data, problems[p]);
    assert_int_equal(amla_plan_create(&plan, &data.problem, &options, NULL), AMLA_OK);
    const size_t bytes = amla_plan_scratch_bytes(plan);
    void *scratch = malloc(bytes);
    assert_non_null(scratch);
    for (int i = 0; i < 3; i++) {
      amla_detail detail;
      start_counting();
      const amla_status status = amla_plan_run(plan, &data.tensors, scratch, bytes, &detail);
      const int count = stop_counting();
      assert_int_equal(status, AMLA_OK);
      if (i > 0 && count > 0)
        fail_msg("'%s' %s: %d allocations in run %d", problems[p], describe_options(&options),
                 count, i);
    }
    free(scratch);
    amla_plan_destroy(plan);
    harness_free(&data);
  }
}

static void run_allocates_nothing(void **state) {
  (void)state;
  if (!COUNTS_ALLOCATIONS)
    skip();
  for_each_engine(check_run);
}

static void the_indexer_allocates_nothing(void **state) {
  (void)state;
  if (!COUNTS_ALLOCATIONS)
    skip();
  amla_options o = make_options(AMLA_BACKEND_AUTO, AMLA_RESCALE_DEFAULT, AMLA_ISA_AUTO, 3, 0);
  amla_index_args a = AMLA_INDEX_ARGS_INIT;
  harness_index_data data;
  size_t bytes;
  a.b = 3, a.sk = 2000, a.topk = 100;
  assert_true(harness_index_create(&data, &a, 1, false));
  assert_int_equal(amla_index_scratch_bytes(&data.args, &o, &bytes, NULL), AMLA_OK);
  void *scratch = malloc(bytes);
  for (int i = 0; i < 3; i++) {
    amla_detail detail;
    start_counting();
    const amla_status status = amla_index_topk(&data.args, &o, scratch, bytes, &detail);
    const int count = stop_counting();
    assert_int_equal(status, AMLA_OK);
    assert_true(i == 0 || count == 0);
  }
  free(scratch);
  harness_index_free(&data);
}

/* Refusals allocate nothing either. */
static void refusals_allocate_nothing(void **state) {
  (void)state;
  if (!COUNTS_ALLOCATIONS)
    skip();
  const amla_problem problem = AMLA_PROBLEM_INIT; /* no scale */
  amla_plan *plan;
  amla_detail detail;
  start_counting();
  const amla_status status = amla_plan_create(&plan, &problem, NULL, &detail);
  const int count = stop_counting();
  assert_int_equal(status, AMLA_INVALID_ARGUMENT);
  assert_int_equal(count, 0);
}

/* Without memory for the plan: refused, no plan, and what the backend has prepared is released. */
static void a_plan_without_memory_is_refused(void **state) {
  (void)state;
  if (!COUNTS_ALLOCATIONS)
    skip();
  static const amla_backend backends[] = {AMLA_BACKEND_REF, AMLA_BACKEND_CPU, AMLA_BACKEND_NPU};
  for (int i = 0; i < LENGTH(backends); i++) {
    amla_problem p = AMLA_PROBLEM_INIT;
    const amla_options o = make_options(backends[i], AMLA_RESCALE_LAZY, AMLA_ISA_AUTO, 1, 0);
    amla_plan *plan, *good;
    amla_detail d;
    char somewhere, text[256];
    p.sk = 1;
    p.scale = 1.0f;
    /* what loads and registers once has done so */
    assert_int_equal(amla_plan_create(&good, &p, &o, &d), AMLA_OK);
    plan = (amla_plan *)(void *)&somewhere;
    set_failing(1);
    const amla_status status = amla_plan_create(&plan, &p, &o, &d);
    set_failing(0);
    assert_int_equal(status, AMLA_OUT_OF_MEMORY);
    assert_null(plan);
    assert_non_null(strstr(d.text, "plan: no memory for "));
    amla_plan_describe(good, text, sizeof text);
    if (backends[i] == AMLA_BACKEND_NPU)
      assert_string_equal(text, "fake, 2 prepared, 1 released");
    amla_plan_destroy(good);
  }
}

int main(void) {
  setenv("AMLA_BACKEND_DIR", FAKE_BACKENDS, 1);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(the_counter_counts),
      cmocka_unit_test(run_allocates_nothing),
      cmocka_unit_test(the_indexer_allocates_nothing),
      cmocka_unit_test(refusals_allocate_nothing),
      cmocka_unit_test(a_plan_without_memory_is_refused),
  };
  return cmocka_run_group_tests_name("allocation", tests, NULL, NULL);
}
