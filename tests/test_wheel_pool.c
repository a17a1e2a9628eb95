/* SPDX-License-Identifier: Apache-2.0
 *
 * The pool of src/wheel.c, in a program without an OpenMP runtime: every member of a team runs
 * once, teams of any size follow each other, a team within a team and callers side by side work
 * alone, and a child begins anew.
 */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

void GOMP_parallel(void (*task)(void *), void *data, unsigned n, unsigned flags);
int omp_get_max_threads(void);
int omp_get_num_threads(void);
int omp_get_thread_num(void);

enum { MOST = 9 };
typedef struct {
  atomic_int ran[MOST], sizes[MOST + 1];
} team;

static void member(void *data) {
  team *t = data;
  atomic_fetch_add(&t->ran[omp_get_thread_num()], 1);
  atomic_fetch_add(&t->sizes[omp_get_num_threads()], 1);
}

static void expect_team(unsigned n, int rounds) {
  team t = {0};
  for (int i = 0; i < rounds; i++)
    GOMP_parallel(member, &t, n, 0);
  for (unsigned i = 0; i < MOST; i++)
    assert_int_equal(t.ran[i], i < n ? rounds : 0);
  assert_int_equal(t.sizes[n], (int)n * rounds);
}

static void test_teams(void **state) {
  (void)state;
  for (unsigned n = 1; n <= MOST; n++)
    expect_team(n, 200);
  for (unsigned n = MOST; n >= 1; n--)
    expect_team(n, 20);
}

static void outer(void *data) { GOMP_parallel(member, data, 4, 0); }

static void test_team_in_a_team_works_alone(void **state) {
  (void)state;
  team t = {0};
  GOMP_parallel(outer, &t, 3, 0);
  assert_int_equal(t.ran[0], 3);
  assert_int_equal(t.sizes[1], 3);
}

static void *caller(void *rounds) {
  for (int i = 0; i < *(int *)rounds; i++) {
    team t = {0};
    GOMP_parallel(member, &t, 3, 0);
    int alone = t.sizes[1] == 1 && t.ran[0] == 1;
    int together = t.sizes[3] == 3 && t.ran[0] + t.ran[1] + t.ran[2] == 3 && t.ran[2] == 1;
    if (alone == together)
      return rounds;
  }
  return NULL;
}

static void test_callers_side_by_side(void **state) {
  (void)state;
  int rounds = 2000;
  pthread_t threads[3];
  for (int i = 0; i < 3; i++)
    assert_int_equal(pthread_create(&threads[i], NULL, caller, &rounds), 0);
  for (int i = 0; i < 3; i++) {
    void *failed;
    pthread_join(threads[i], &failed);
    assert_null(failed);
  }
}

static void test_child(void **state) {
  (void)state;
#ifdef __SANITIZE_THREAD__
  skip(); /* it gives a child no threads */
#endif
  pid_t child = fork();
  if (child == 0) {
    team t = {0};
    GOMP_parallel(member, &t, 3, 0);
    _exit(t.sizes[3] == 3 && t.ran[2] == 1 ? 0 : 1);
  }
  int status;
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_int_equal(status, 0);
}

static void test_size(void **state) {
  (void)state;
  setenv("OMP_NUM_THREADS", "5", 1);
  assert_int_equal(omp_get_max_threads(), 5);
  team t = {0};
  GOMP_parallel(member, &t, 0, 0);
  assert_int_equal(t.sizes[5], 5);
  setenv("OMP_NUM_THREADS", "none", 1);
  assert_true(omp_get_max_threads() >= 1);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_teams),
      cmocka_unit_test(test_team_in_a_team_works_alone),
      cmocka_unit_test(test_callers_side_by_side),
      cmocka_unit_test(test_child),
      cmocka_unit_test(test_size),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
