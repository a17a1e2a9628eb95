/* SPDX-License-Identifier: Apache-2.0
 *
 * amla_plan_run calls no allocator: every call to malloc and its kin is counted while it runs, after a first run in which the
 * thread runtime may form its team. Stands in front of glibc's allocator; skipped elsewhere and under sanitizers, which own malloc.
 */
#include "test_run.h"

#include <errno.h>
#include <stdatomic.h>

#if defined(__GLIBC__) && !TEST_SANITIZED
#define COUNTS_ALLOCATIONS 1

void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t n, size_t bytes);
void *__libc_realloc(void *block, size_t bytes);
void *__libc_memalign(size_t alignment, size_t bytes);

static atomic_int counting, allocations;

static void count_one(void) {
  if (atomic_load(&counting)) atomic_fetch_add(&allocations, 1);
}

void *malloc(size_t bytes) { count_one(); return __libc_malloc(bytes); }
void *calloc(size_t n, size_t bytes) { count_one(); return __libc_calloc(n, bytes); }
void *realloc(void *block, size_t bytes) { count_one(); return __libc_realloc(block, bytes); }
void *aligned_alloc(size_t alignment, size_t bytes) { count_one(); return __libc_memalign(alignment, bytes); }
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
#else
#define COUNTS_ALLOCATIONS 0
static void start_counting(void) {}
static int stop_counting(void) { return 0; }
#endif

static void the_counter_counts(void **state) {
  (void)state;
  if (!COUNTS_ALLOCATIONS) skip();
  start_counting();
  void *volatile block = malloc(100);
  const int count = stop_counting();
  free(block);
  assert_int_equal(count, 1);
}

static void check_run(const amla_options *base) {
  static const char *const problems[] = {"b=1,h=128,sk=2000,dqk=64,dv=48", "b=4,sq=2,h=70,sk=900,dqk=64,dv=48,len=ragged,sinks=1"};
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
      if (i > 0 && count > 0) fail_msg("'%s' %s: %d allocations in run %d", problems[p], describe_options(&options), count, i);
    }
    free(scratch);
    amla_plan_destroy(plan);
    harness_free(&data);
  }
}

static void run_allocates_nothing(void **state) {
  (void)state;
  if (!COUNTS_ALLOCATIONS) skip();
  for_each_engine(check_run);
}

/* Refusals allocate nothing either. */
static void refusals_allocate_nothing(void **state) {
  (void)state;
  if (!COUNTS_ALLOCATIONS) skip();
  const amla_problem problem = AMLA_PROBLEM_INIT; /* no scale */
  amla_plan *plan;
  amla_detail detail;
  start_counting();
  const amla_status status = amla_plan_create(&plan, &problem, NULL, &detail);
  const int count = stop_counting();
  assert_int_equal(status, AMLA_INVALID_ARGUMENT);
  assert_int_equal(count, 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(the_counter_counts),
      cmocka_unit_test(run_allocates_nothing),
      cmocka_unit_test(refusals_allocate_nothing),
  };
  return cmocka_run_group_tests_name("allocation", tests, NULL, NULL);
}
