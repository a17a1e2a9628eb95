/* SPDX-License-Identifier: Apache-2.0
 *
 * The GEMM that the timing model is held against (sim/npu_gemm.h): right, free of races, and each
 * of its waits needed. How fast it is, beside published profiles: test_npu_sim.c.
 */
#include "test_sim_support.h"

#include "sim/npu_gemm.h"

static npu_report run_gemm(const char *preset, npu_mode mode, npu_gemm *g, int drop_wait,
                           int *status) {
  npu_chip *chip = make_chip(preset, mode);
  const size_t elems = (size_t)g->n * (size_t)g->n;
  npu_launch_options o = {0};
  npu_report r;
  float *c = make_gm(chip, elems * 4, "c");
  if (mode == NPU_FUNCTIONAL) {
    assert_int_equal(npu_gm_register_const(chip, g->a, elems * 2, "a") |
                         npu_gm_register_const(chip, g->b, elems * 2, "b"),
                     0);
  } else {
    g->a = make_gm(chip, elems * 2, "a"), g->b = make_gm(chip, elems * 2, "b");
  }
  const npu_gemm inside = {g->n, g->grid_m, g->grid_n, g->a, g->b, c};
  o.drop_wait = drop_wait, o.cores = g->grid_m * g->grid_n;
  *status = npu_launch(chip, npu_gemm_cube, NULL, &inside, &o, &r);
  if (g->c)
    memcpy(g->c, c, elems * 4);
  npu_chip_destroy(chip);
  return r;
}

static float widen(npu_bf16 h) { return of_bits((uint32_t)h << 16); }

static void gemm_is_right_and_free_of_races(void **state) {
  (void)state;
  enum { N = 512 };
  npu_bf16 *a = malloc(N * N * 2), *b = malloc(N * N * 2);
  float *c = malloc(N * N * 4), *column = malloc(N * 4);
  assert_true(a && b && c && column);
  uint64_t seed = 9;
  for (int i = 0; i < N * N; i++)
    a[i] = (npu_bf16)(to_bits(random_normal(&seed)) >> 16),
    b[i] = (npu_bf16)(to_bits(random_normal(&seed)) >> 16);
  npu_gemm g = {N, 2, 2, a, b, c};
  int status;
  const npu_report r = run_gemm("910b2", NPU_FUNCTIONAL, &g, 0, &status);
  expect_clean("gemm", status, &r);
  assert_true(r.products == (double)N * N * N / 4096);
  for (int j = 0; j < N; j += 5) {
    for (int k = 0; k < N; k++)
      column[k] = widen(b[k * N + j]);
    for (int i = 0; i < N; i += 3) {
      float want = 0;
      for (int k = 0; k < N; k++)
        want += widen(a[i * N + k]) * column[k];
      if (c[i * N + j] != want)
        fail_msg("C(%d, %d) is %g, want %g", i, j, c[i * N + j], want);
    }
  }
  g.c = NULL;
  for (int drop = 1; drop <= r.wait_sites;
       drop++) { /* the last five take back what is free at the end */
    const npu_report dropped = run_gemm("910b2", NPU_FUNCTIONAL, &g, drop, &status);
    if (drop <= r.wait_sites - 5 && dropped.errors[NPU_ERROR_RACE] == 0)
      fail_msg("dropped wait %d of %d: no race", drop, r.wait_sites);
    assert_int_equal(status, 1);
  }
  free(a), free(b), free(c), free(column);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(gemm_is_right_and_free_of_races),
  };
  return cmocka_run_group_tests_name("sim_gemm", tests, NULL, NULL);
}
