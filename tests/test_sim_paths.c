/* SPDX-License-Identifier: Apache-2.0
 *
 * The paths within an AI core of chip 950: L0C to UB and UB to L1. What they move, that nothing
 * orders them but flags, that bytes nobody wrote are seen across them, how large the buffers are,
 * and that other chips have no such path.
 */
#include "test_sim_support.h"

enum {
  M = 40,
  N = 24,
  STRIDE = 32,
  HALF = M / 2,
  UNTOLD,
  UNANSWERED,
  HALF_WRITTEN,
  TOO_FAR,
  WHOLE
};
enum { TELL, ANSWER, END }; /* flags */

typedef struct job {
  int variant;
  const npu_bf16 *a, *b; /* [M][16], [N][16] */
  float *c;              /* [M][N] = c: what the AIC sent, in f32 */
  float *back;           /* [M][16] = what it got back: columns [0, 16) as bf16, times 1 */
} job;

static npu_bf16 *l1(uint32_t at) { return NPU_L1_AT(npu_bf16, at); }
static float *ub(uint32_t at) { return NPU_UB_AT(float, at); }
static float *l0c(uint32_t at) { return NPU_L0C_AT(float, at); }

enum { L1_A = 0, L1_B = 4096, L1_ONE = 8192, L1_P = 16384, UB_P = 16384 };

/* L0C [m][n] = A [m][16] B [n][16]. */
static void multiply(uint32_t a, uint32_t b, int32_t m, int32_t n, int32_t a_rows) {
  npu_load_l0a_bf16(NPU_L0A_AT(npu_bf16, 0), l1(a), m, 16, a_rows);
  npu_load_l0b_bf16(NPU_L0B_AT(npu_bf16, 0), l1(b), n, 16, 32);
  sync_pipes(NPU_PIPE_MTE1, NPU_PIPE_M);
  npu_mmad_bf16(l0c(0), NPU_L0A_AT(npu_bf16, 0), NPU_L0B_AT(npu_bf16, 0), m, n, 16, 0);
  sync_pipes(NPU_PIPE_M, NPU_PIPE_FIX);
}

/* Sends half of the rows to each AIV, gets 16 columns of all back in L1, multiplies them by B. */
static void cube(const void *args) {
  const job *j = args;
  npu_copy_gm_l1_nd2nz_bf16(l1(L1_A), j->a, M, 16, 16, 48);
  npu_copy_gm_l1_nd2nz_bf16(l1(L1_B), j->b, N, 16, 16, 32);
  sync_pipes(NPU_PIPE_MTE2, NPU_PIPE_MTE1);
  multiply(L1_A, L1_B, M, N, 48);
  for (int32_t sub = 0; sub < 2; sub++) {
    const uint32_t at = j->variant == TOO_FAR ? NPU_UB_BYTES_950 - 64 : 0;
    const int32_t rows = j->variant == HALF_WRITTEN ? HALF / 2 : HALF;
    npu_copy_l0c_ub_f32((float *)npu_ub_of(sub, at), l0c(0) + sub * HALF * 16, rows, N, STRIDE, 48);
  }
  npu_cross_set(NPU_PIPE_FIX, TELL);
  if (j->variant != UNANSWERED)
    npu_cross_wait(NPU_PIPE_MTE1, ANSWER);
  sync_pipes(NPU_PIPE_FIX, NPU_PIPE_M);
  npu_barrier(NPU_PIPE_MTE1);
  sync_pipes(NPU_PIPE_M, NPU_PIPE_MTE1);
  multiply(L1_P, L1_B, M, N, 48);
  npu_copy_l0c_gm_f32(j->back, l0c(0), M, N, N, 48);
  if (j->variant == UNANSWERED)
    npu_cross_wait(NPU_PIPE_FIX, ANSWER);
}

static void vector(const void *args) {
  const job *j = args;
  const int32_t row = npu_subcore() * HALF;
  npu_vec v = npu_vec_rows(HALF, 0xffff, 1, STRIDE * 4 / 32, 0);
  if (j->variant != UNTOLD)
    npu_cross_wait(NPU_PIPE_V, TELL);
  npu_cast_f32_bf16_rne(NPU_UB_AT(npu_bf16, UB_P), ub(0), v); /* one column of 16: NZ */
  sync_pipes(NPU_PIPE_V, NPU_PIPE_MTE3);
  npu_copy_ub_gm(j->c + row * N, ub(0), HALF, N * 4, N * 4, STRIDE * 4);
  npu_copy_ub_l1(l1(L1_P) + row * 16, NPU_UB_AT(npu_bf16, UB_P), 1, HALF * 32, 0, 0);
  npu_cross_set(NPU_PIPE_MTE3, ANSWER);
  if (j->variant == UNTOLD)
    npu_cross_wait(NPU_PIPE_V, TELL);
}

static npu_report run_on(const char *preset, int variant, int *status) {
  npu_chip *chip = make_chip(preset, NPU_FUNCTIONAL);
  npu_report r;
  job j = {.variant = variant};
  npu_bf16 *a = make_gm(chip, M * 16 * 2, "a"), *b = make_gm(chip, N * 16 * 2, "b");
  j.c = make_gm(chip, M * N * 4, "c"), j.back = make_gm(chip, M * N * 4, "back");
  for (int i = 0; i < M * 16; i++) /* A = small integers, B = the first N rows of a unit matrix */
    a[i] = (npu_bf16)(0x3f80 + (i * 7 % 5) * 0x80);
  for (int i = 0; i < N * 16; i++)
    b[i] = i / 16 == i % 16 ? 0x3f80 : 0;
  j.a = a, j.b = b;
  *status = launch_one(chip, cube, vector, &j, &r);
  for (int i = 0; *status == 0 && i < M * N; i++) { /* C = A, and zeros behind 16 columns */
    const uint32_t bits = (uint32_t)a[i / N * 16 + i % N % 16] << 16;
    float want;
    memcpy(&want, &bits, sizeof want);
    want = i % N < 16 ? want : 0;
    if (j.c[i] != want || j.back[i] != want)
      fail_msg("%d: %g and back %g, not %g", i, (double)j.c[i], (double)j.back[i], (double)want);
  }
  npu_chip_destroy(chip);
  return r;
}

static void expect_error(const char *preset, int variant, npu_error kind, const char *text) {
  int status;
  const npu_report r = run_on(preset, variant, &status);
  if (status != 1 || r.errors[kind] == 0 || strstr(r.message[0], text) == NULL)
    fail_msg("variant %d: '%s' should say '%s'", variant, r.message[0], text);
}

static void what_is_sent_arrives(void **state) {
  (void)state;
  int status;
  const npu_report r = run_on("950", WHOLE, &status);
  expect_clean("paths", status, &r);
}

static void nothing_but_a_flag_orders_the_paths(void **state) {
  (void)state;
  expect_error("950", UNTOLD, NPU_ERROR_RACE, "UB [0");
  expect_error("950", UNANSWERED, NPU_ERROR_RACE, "L1 [16384");
}

static void bytes_that_the_other_core_did_not_write_are_seen(void **state) {
  (void)state;
  expect_error("950", HALF_WRITTEN, NPU_ERROR_UNWRITTEN, "UB [1280");
}

static void bounds_are_the_other_core_s(void **state) {
  (void)state;
  expect_error("950", TOO_FAR, NPU_ERROR_OPERAND, "the offset in UB, of 253952 bytes");
}

static void other_chips_have_no_such_path(void **state) {
  (void)state;
  expect_error("910b2", WHOLE, NPU_ERROR_OPERAND,
               "core_paths=0: this chip has no path from L0C to UB or UB to L1");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(what_is_sent_arrives), cmocka_unit_test(nothing_but_a_flag_orders_the_paths),
      cmocka_unit_test(bytes_that_the_other_core_did_not_write_are_seen),
      cmocka_unit_test(bounds_are_the_other_core_s),
      cmocka_unit_test(other_chips_have_no_such_path)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
