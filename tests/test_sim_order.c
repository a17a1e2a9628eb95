/* SPDX-License-Identifier: Apache-2.0
 *
 * What the simulated NPU says about order: races in every memory, and none where synchronisation
 * orders; deadlocks, overflows, events left set; flags with two pipes at one end; reads of what
 * nobody wrote; wait sites and dropped waits; refusals with field, value and rule; values that do
 * not depend on time. Each kernel here is a few instructions; most are wrong on purpose.
 */
#include "test_sim_support.h"

#include <jansson.h>

typedef struct memory { /* args of every kernel */
  char *gm;             /* writable, [GM_BYTES] */
  const char *constant; /* read-only */
  int variant;
} memory;

enum { GM_BYTES = 1 << 20 };

static float *ub(uint32_t at) { return NPU_UB_AT(float, at); }
static float *gm_f32(const memory *m, size_t at) { return (float *)(void *)(m->gm + at); }
static int32_t *gm_s32(const memory *m, size_t at) { return (int32_t *)(void *)(m->gm + at); }

static npu_report run_on(npu_mode mode, int cores, npu_kernel *aic, npu_kernel *aiv, int variant,
                         int drop_wait, int *status) {
  npu_chip *chip = make_chip("910b2", mode);
  static char constant[4096];
  npu_report report;
  memory m = {make_gm(chip, GM_BYTES, "work"), constant, variant};
  npu_launch_options o = {0};
  assert_int_equal(npu_gm_register_const(chip, constant, sizeof constant, "constant"), 0);
  o.cores = cores, o.check_races = 1, o.drop_wait = drop_wait;
  o.check_written = -1; /* order only */
  *status = npu_launch(chip, aic, aiv, &m, &o, &report);
  report.trace = NULL;
  npu_chip_destroy(chip);
  return report;
}

/* Runs in both modes and wants exactly `count` errors of `kind` and no others, the first of which
 * says `words`. */
static void expect_error(int cores, npu_kernel *aic, npu_kernel *aiv, int variant, npu_error kind,
                         int64_t count, const char *words) {
  static const npu_mode modes[] = {NPU_FUNCTIONAL, NPU_TIMING_ONLY};
  for (int mode = 0; mode < 2; mode++) {
    int status;
    const npu_report r = run_on(modes[mode], cores, aic, aiv, variant, 0, &status);
    assert_int_equal(status, 1);
    for (int e = 0; e < NPU_ERRORS; e++) {
      const int64_t want = (int)kind == e ? count : 0;
      if (r.errors[e] != want)
        fail_msg("variant %d: %lld errors of kind %d, want %lld: %s", variant,
                 (long long)r.errors[e], e, (long long)want, r.n_messages ? r.message[0] : "");
    }
    if (!strstr(r.message[0], words))
      fail_msg("variant %d: \"%s\" does not say \"%s\"", variant, r.message[0], words);
  }
}

static void expect_no_error(int cores, npu_kernel *aic, npu_kernel *aiv, int variant) {
  static const npu_mode modes[] = {NPU_FUNCTIONAL, NPU_TIMING_ONLY};
  for (int mode = 0; mode < 2; mode++) {
    int status;
    const npu_report r = run_on(modes[mode], cores, aic, aiv, variant, 0, &status);
    if (status)
      fail_msg("variant %d: status %d: %s", variant, status, r.message[0]);
  }
}

/* ---- Races inside a core: two accesses of two pipes to one buffer ---- */

/* variant % 2 = 1: with the wait that orders them. */

static void order(int variant, npu_pipe from, npu_pipe to) {
  if (variant % 2)
    sync_pipes(from, to);
}

static void cube_pairs(const void *args) {
  const memory *m = args;
  npu_bf16 *l1 = NPU_L1_AT(npu_bf16, 0), *l0a = NPU_L0A_AT(npu_bf16, 0),
           *l0b = NPU_L0B_AT(npu_bf16, 0);
  float *l0c = NPU_L0C_AT(float, 0);
  switch (m->variant / 2) {
  case 0: /* L1: write, read */
    npu_copy_gm_l1(l1, m->gm, 1, 512, 512, 512);
    order(m->variant, NPU_PIPE_MTE2, NPU_PIPE_MTE1);
    npu_load_l0a_bf16(l0a, l1, 16, 16, 16);
    break;
  case 1: /* L1: read, write */
    npu_load_l0a_bf16(l0a, l1, 16, 16, 16);
    order(m->variant, NPU_PIPE_MTE1, NPU_PIPE_MTE2);
    npu_copy_gm_l1(l1, m->gm, 1, 512, 512, 512);
    break;
  case 2: /* L0A: write, read */
    npu_load_l0a_bf16(l0a, l1, 16, 16, 16);
    order(m->variant, NPU_PIPE_MTE1, NPU_PIPE_M);
    npu_mmad_bf16(l0c, l0a, l0b, 16, 16, 16, 0);
    break;
  case 3: /* L0B: read, write */
    npu_mmad_bf16(l0c, l0a, l0b, 16, 16, 16, 0);
    order(m->variant, NPU_PIPE_M, NPU_PIPE_MTE1);
    npu_load_l0b_t_bf16(l0b, l1, 16, 16, 16);
    break;
  case 4: /* L0C: write, read */
    npu_mmad_bf16(l0c, l0a, l0b, 16, 16, 16, 0);
    order(m->variant, NPU_PIPE_M, NPU_PIPE_FIX);
    npu_copy_l0c_gm_f32(gm_f32(m, 0), l0c, 16, 16, 16, 16);
    break;
  case 5: /* GM: write, read */
    npu_copy_l0c_gm_f32(gm_f32(m, 0), l0c, 16, 16, 16, 16);
    order(m->variant, NPU_PIPE_FIX, NPU_PIPE_MTE2);
    npu_copy_gm_l1(l1, m->gm + 992, 1, 512, 512, 512); /* the last 32 bytes of the 1024 */
    break;
  default: break;
  }
}

static void vector_pairs(const void *args) {
  const memory *m = args;
  if (npu_subcore())
    return;
  switch (m->variant / 2) {
  case 0: /* UB: write, write, one byte in common */
    npu_copy_gm_ub(ub(0), m->gm, 1, 1025, 1056, 1025);
    order(m->variant, NPU_PIPE_MTE2, NPU_PIPE_V);
    npu_dup_f32(ub(1024), 1.0f, npu_vec_rows(1, 1, 8, 8, 8));
    break;
  case 1: /* UB: write, read */
    npu_dup_f32(ub(0), 1.0f, npu_vec_count(64));
    order(m->variant, NPU_PIPE_V, NPU_PIPE_MTE3);
    npu_copy_ub_gm(m->gm, ub(0), 1, 4, 4, 32);
    break;
  case 2: /* UB: read by the C code */
    npu_dup_f32(ub(0), 1.0f, npu_vec_count(64));
    order(m->variant, NPU_PIPE_V, NPU_PIPE_S);
    npu_read_ub_f32(ub(32), 0.0f);
    break;
  case 3: /* GM: atomic add, then overwrite */
    npu_copy_ub_gm_add_s32(gm_s32(m, 0), NPU_UB_AT(int32_t, 0), 1, 64, 64, 64);
    order(m->variant, NPU_PIPE_MTE3, NPU_PIPE_MTE2);
    npu_copy_gm_ub(ub(1024), m->gm + 60, 1, 4, 32, 4);
    break;
  case 4: /* UB: lanes that the mask leaves out are not touched */
    npu_dup_f32(ub(0), 1.0f, npu_vec_rows(2, m->variant % 2 ? 0x0201 : 0x0301, 8, 8, 8));
    npu_copy_ub_gm(m->gm, ub(32), 1, 4, 4, 32);
    break;
  default: break;
  }
}

static void unordered_pairs_race_and_ordered_ones_do_not(void **state) {
  (void)state;
  static const char *const cube[] = {"L1 [0, 512)",  "L1 [0, 512)",   "L0A [0, 512)",
                                     "L0B [0, 512)", "L0C [0, 1024)", "GM work [992, 1024)"};
  static const char *const vector[] = {"UB [1024, 1025)", "UB [0, 4)", "UB [32, 36)",
                                       "GM work [60, 64)", "UB [32, 36)"};
  for (int c = 0; c < LENGTH(cube); c++) {
    expect_error(1, cube_pairs, NULL, 2 * c, NPU_ERROR_RACE, 1, cube[c]);
    expect_no_error(1, cube_pairs, NULL, 2 * c + 1);
  }
  for (int c = 0; c < LENGTH(vector); c++) {
    expect_error(1, NULL, vector_pairs, 2 * c, NPU_ERROR_RACE, 1, vector[c]);
    expect_no_error(1, NULL, vector_pairs, 2 * c + 1);
  }
}

static void a_race_names_both_instructions(void **state) {
  (void)state;
  int status;
  const npu_report r = run_on(NPU_FUNCTIONAL, 1, cube_pairs, NULL, 0, 0, &status);
  static const char *const words[] = {
      "AIC 0 MTE1 load_l0a_bf16 #1 (test_sim_order.c:", "reads L1 [0, 512)",
      "AIC 0 MTE2 copy_gm_l1 #1 (test_sim_order.c:", "writes: nothing orders them"};
  for (int w = 0; w < LENGTH(words); w++)
    if (!strstr(r.message[0], words[w]))
      fail_msg("\"%s\" does not say \"%s\"", r.message[0], words[w]);
}

/* ---- Races between cores ---- */

static void write_own_or_shared(const void *args) { /* variant: bytes between the places that two
                                                       AIVs write, and what they do */
  const memory *m = args;
  const size_t at = (size_t)npu_subcore() * (size_t)(m->variant % 100);
  switch (m->variant / 100) {
  case 0: npu_copy_ub_gm(m->gm + at, ub(0), 1, 6, 6, 32); break;
  case 1: npu_copy_ub_gm_add_s32(gm_s32(m, at), NPU_UB_AT(int32_t, 0), 1, 64, 64, 64); break;
  case 2: npu_copy_ub_gm_add_f32(gm_f32(m, at), ub(0), 1, 64, 64, 64); break;
  case 3: npu_copy_gm_ub(ub(0), m->gm, 1, 64, 64, 64); break;
  case 4: /* one reads what the other adds to */
    if (npu_subcore())
      npu_copy_ub_gm_add_s32(gm_s32(m, 0), NPU_UB_AT(int32_t, 0), 1, 64, 64, 64);
    else
      npu_copy_gm_ub(ub(0), m->gm, 1, 64, 64, 64);
    break;
  case 5: /* added to, read in order, later read elsewhere without: the add must not be forgotten */
    if (npu_subcore()) {
      npu_copy_gm_ub(ub(4096), m->gm + 65536, 1, 65536, 65536, 65536);
    } else {
      npu_copy_ub_gm_add_s32(gm_s32(m, 0), NPU_UB_AT(int32_t, 0), 1, 64, 64, 64);
      sync_pipes(NPU_PIPE_MTE3, NPU_PIPE_MTE2);
    }
    npu_copy_gm_ub(ub(0), m->gm, 1, 64, 64, 64);
    break;
  default: break;
  }
}

static void races_between_cores(void **state) {
  (void)state;
  expect_error(1, NULL, write_own_or_shared, 5, NPU_ERROR_RACE, 1, "GM work [5, 6)");
  expect_no_error(1, NULL, write_own_or_shared, 6);   /* next to each other in one word */
  expect_no_error(1, NULL, write_own_or_shared, 100); /* integer adds commute */
  expect_error(1, NULL, write_own_or_shared, 200, NPU_ERROR_RACE, 1,
               "adds f32 to"); /* f32 adds do not */
  expect_no_error(1, NULL, write_own_or_shared, 264);
  expect_no_error(1, NULL, write_own_or_shared, 300); /* readers */
  expect_error(1, NULL, write_own_or_shared, 400, NPU_ERROR_RACE, 1, "GM work [0, 64)");
  expect_error(1, NULL, write_own_or_shared, 500, NPU_ERROR_RACE, 1, "GM work [0, 64)");
}

/* AIC writes S, AIVs read it and write P, AIC reads P, then writes S again: the ring of an
 * attention kernel. variant = what is left out. */
enum { RING_WHOLE, NO_S_READY, NO_P_READY, NO_S_FREE };

static void ring_cube(const void *args) {
  const memory *m = args;
  for (int i = 0; i < 6; i++) {
    if (i > 0 && m->variant != NO_S_FREE)
      npu_cross_wait(NPU_PIPE_FIX, 2);
    npu_copy_l0c_gm_f32(gm_f32(m, 0), NPU_L0C_AT(float, 0), 16, 16, 16, 16);
    npu_cross_set(NPU_PIPE_FIX, 0);
    if (m->variant != NO_P_READY)
      npu_cross_wait(NPU_PIPE_MTE2, 1);
    npu_copy_gm_l1(NPU_L1_AT(void, 0), m->gm + 4096, 1, 1024, 1024, 1024);
  }
  npu_cross_wait(NPU_PIPE_FIX, 2);
  if (m->variant == NO_S_FREE)
    for (int i = 0; i < 5; i++)
      npu_cross_wait(NPU_PIPE_MTE1, 2);
  if (m->variant == NO_P_READY)
    for (int i = 0; i < 6; i++)
      npu_cross_wait(NPU_PIPE_MTE1, 1);
}

static void ring_vector(const void *args) {
  const memory *m = args;
  const size_t half = 512 * (size_t)npu_subcore();
  for (int i = 0; i < 6; i++) {
    if (m->variant != NO_S_READY)
      npu_cross_wait(NPU_PIPE_MTE2, 0);
    if (i > 0)
      npu_wait(NPU_PIPE_MTE3, NPU_PIPE_MTE2, 0);
    npu_copy_gm_ub(ub(0), m->gm + half, 1, 512, 512, 512);
    npu_cross_set(NPU_PIPE_MTE2, 2);
    npu_notify(NPU_PIPE_MTE2, NPU_PIPE_MTE3, 0), npu_wait(NPU_PIPE_MTE2, NPU_PIPE_MTE3, 0);
    npu_copy_ub_gm(m->gm + 4096 + half, ub(0), 1, 512, 512, 512);
    npu_cross_set(NPU_PIPE_MTE3, 1);
    npu_notify(NPU_PIPE_MTE3, NPU_PIPE_MTE2, 0);
  }
  npu_wait(NPU_PIPE_MTE3, NPU_PIPE_MTE2, 0);
  if (m->variant == NO_S_READY)
    for (int i = 0; i < 6; i++)
      npu_cross_wait(NPU_PIPE_V, 0);
}

/* As the ring is, P of round i may be overwritten while the AIC still reads P of round i - 1? No:
 * V's next write of P waits for S of round i + 1, which FIX writes without waiting for MTE2's read
 * of P. So the whole ring has one race, and ordering FIX after MTE2 mends it. */
static void mended_ring_cube(const void *args) {
  const memory *m = args;
  for (int i = 0; i < 6; i++) {
    if (i > 0)
      npu_cross_wait(NPU_PIPE_FIX, 2), npu_wait(NPU_PIPE_MTE2, NPU_PIPE_FIX, 0);
    npu_copy_l0c_gm_f32(gm_f32(m, 0), NPU_L0C_AT(float, 0), 16, 16, 16, 16);
    npu_cross_set(NPU_PIPE_FIX, 0);
    npu_cross_wait(NPU_PIPE_MTE2, 1);
    npu_copy_gm_l1(NPU_L1_AT(void, 0), m->gm + 4096, 1, 1024, 1024, 1024);
    npu_notify(NPU_PIPE_MTE2, NPU_PIPE_FIX, 0);
  }
  npu_cross_wait(NPU_PIPE_FIX, 2), npu_wait(NPU_PIPE_MTE2, NPU_PIPE_FIX, 0);
}

static void flags_between_cores_order_and_their_absence_races(void **state) {
  (void)state;
  int status;
  expect_no_error(2, NULL, NULL, 0);
  expect_no_error(1, mended_ring_cube, ring_vector, RING_WHOLE);
  for (int left_out = RING_WHOLE; left_out <= NO_S_FREE; left_out++) {
    const npu_report r = run_on(NPU_FUNCTIONAL, 1, ring_cube, ring_vector, left_out, 0, &status);
    if (r.errors[NPU_ERROR_RACE] == 0)
      fail_msg("ring without %d: no race: %s", left_out, r.message[0]);
  }
}

/* Two slots of UB that MTE2 fills and V uses, events per slot. Right, or with one slip. */
enum { SLOTS_RIGHT, USES_THE_OTHER, FILLS_THE_OTHER, FREES_TOO_EARLY, SLOTS_OVERLAP, SLOT = 1024 };

static void slots_vector(const void *args) {
  const memory *m = args;
  const uint32_t apart = m->variant == SLOTS_OVERLAP ? SLOT - 32 : SLOT;
  for (int e = 0; e < 2; e++)
    npu_notify(NPU_PIPE_V, NPU_PIPE_MTE2, e);
  for (uint32_t i = 0; i < 6; i++) {
    const int event = (int)i % 2;
    const uint32_t fill = (i + (m->variant == FILLS_THE_OTHER)) % 2,
                   use = (i + (m->variant == USES_THE_OTHER)) % 2;
    npu_wait(NPU_PIPE_V, NPU_PIPE_MTE2, event);
    npu_copy_gm_ub(ub(fill * apart), m->gm, 1, SLOT, SLOT, SLOT);
    npu_notify(NPU_PIPE_MTE2, NPU_PIPE_V, event);
    npu_wait(NPU_PIPE_MTE2, NPU_PIPE_V, event);
    if (m->variant == FREES_TOO_EARLY)
      npu_notify(NPU_PIPE_V, NPU_PIPE_MTE2, event);
    npu_adds_f32(ub(4096), ub(use * apart), 1, npu_vec_count(SLOT / 4));
    if (m->variant != FREES_TOO_EARLY)
      npu_notify(NPU_PIPE_V, NPU_PIPE_MTE2, event);
  }
  for (int e = 0; e < 2; e++)
    npu_wait(NPU_PIPE_V, NPU_PIPE_MTE2, e);
}

static void a_wrong_slot_races(void **state) {
  (void)state;
  expect_no_error(1, NULL, slots_vector, SLOTS_RIGHT);
  for (int slip = USES_THE_OTHER; slip <= SLOTS_OVERLAP; slip++) {
    int status;
    const npu_report r = run_on(NPU_FUNCTIONAL, 1, NULL, slots_vector, slip, 0, &status);
    if (r.errors[NPU_ERROR_RACE] == 0)
      fail_msg("slip %d: no race: %s", slip, r.n_messages ? r.message[0] : "clean");
  }
}

static void both_cores_barrier(const void *args) { /* everyone writes its own, then reads the
                                                      neighbour's; variant 1: with the barrier */
  const memory *m = args;
  const int me = npu_block_index() * 2 + npu_subcore(), n = npu_block_count() * 2;
  npu_copy_ub_gm(m->gm + 64 * me, ub(0), 1, 64, 64, 64);
  if (m->variant == 1)
    npu_barrier_all();
  npu_copy_gm_ub(ub(1024), m->gm + 64 * ((me + 1) % n), 1, 64, 64, 64);
}

static void only_barrier(const void *args) {
  const memory *m = args;
  if (m->variant == 1)
    npu_barrier_all();
}

static void the_barrier_of_all_cores_orders(void **state) {
  (void)state;
  expect_no_error(3, only_barrier, both_cores_barrier, 1);
  expect_error(3, only_barrier, both_cores_barrier, 0, NPU_ERROR_RACE, 6, "GM work");
}

static void
drained_pipe(const void *args) { /* npu_barrier(ALL) orders pipes that have no event between them */
  const memory *m = args;
  if (npu_subcore())
    return;
  npu_copy_gm_ub(ub(0), m->gm, 1, 256, 256, 256);
  npu_barrier(m->variant ? NPU_PIPE_ALL : NPU_PIPE_MTE2);
  npu_abs_f32(ub(0), ub(0), npu_vec_count(64));
}

static void a_full_pipe_barrier_orders_and_one_pipe_s_does_not(void **state) {
  (void)state;
  expect_no_error(1, NULL, drained_pipe, 1);
  expect_error(1, NULL, drained_pipe, 0, NPU_ERROR_RACE, 1, "UB [0, 256)");
}

/* ---- Two pipes at one end of a flag ---- */

/* A token goes round: the AIC sets flag 0, an AIV takes it and sets flag 1, twice. On AIV 0 two
 * pipes take it, one to read gm[0] and one to write it: each order is enforced by the token, so
 * nothing races, and time decides which it is. */
static void token_cube(const void *args) {
  (void)args;
  for (int i = 0; i < 2; i++)
    npu_cross_set(NPU_PIPE_FIX, 0), npu_cross_wait(NPU_PIPE_FIX, 1);
}

static void token_vector(const void *args) {
  const memory *m = args;
  if (npu_subcore()) {
    for (int i = 0; i < 2; i++)
      npu_cross_wait(NPU_PIPE_V, 0), npu_cross_set(NPU_PIPE_V, 1);
    return;
  }
  npu_dup_f32(ub(1024), 7.0f, npu_vec_count(64));
  sync_pipes(NPU_PIPE_V, NPU_PIPE_MTE3);
  npu_copy_gm_ub(ub(2048), m->gm + 8192, 1, 64, 64, 64); /* how long this takes decides */
  npu_cross_wait(NPU_PIPE_MTE2, 0);
  npu_copy_gm_ub(ub(0), m->gm, 1, 64, 64, 64);
  npu_cross_set(NPU_PIPE_MTE2, 1);
  npu_cross_wait(NPU_PIPE_MTE3, 0);
  npu_copy_ub_gm(m->gm, ub(1024), 1, 64, 64, 64);
  npu_cross_set(NPU_PIPE_MTE3, 1);
  sync_pipes(NPU_PIPE_MTE2, NPU_PIPE_MTE3);
  npu_copy_ub_gm(m->gm + 4096, ub(0), 1, 64, 64, 64);
}

static float run_token(double mte2_fixed_cycles, npu_report *report) {
  npu_chip *chip = make_chip("910b2", NPU_FUNCTIONAL);
  memory m = {make_gm(chip, GM_BYTES, "work"), NULL, 0};
  *gm_f32(&m, 0) = 3.0f;
  assert_int_equal(npu_chip_set_cost(chip, "MTE2", "copy_gm_ub", mte2_fixed_cycles, 1, 0), 0);
  launch_one(chip, token_cube, token_vector, &m, report);
  const float read = *gm_f32(&m, 4096);
  npu_chip_destroy(chip);
  return read;
}

static void a_value_that_depends_on_time_is_reported(void **state) {
  (void)state;
  npu_report quick, slow;
  const float first = run_token(1, &quick), second = run_token(1e6, &slow);
  if (first == second)
    fail_msg("both times read %g: this kernel should depend on time", (double)first);
  for (int i = 0; i < 2; i++) { /* whatever the costs were */
    const npu_report *r = i ? &slow : &quick;
    if (r->errors[NPU_ERROR_RACE] || r->errors[NPU_ERROR_AMBIGUOUS] != 2)
      fail_msg("%lld races, %lld ambiguous ends of flags: %s", (long long)r->errors[NPU_ERROR_RACE],
               (long long)r->errors[NPU_ERROR_AMBIGUOUS], r->message[0]);
  }
}

enum { TWO_WAIT, TWO_SET, C_CODE_WAITS_TOO, ONE_EACH };

static void ends_cube(const void *args) {
  (void)args;
  npu_cross_set(NPU_PIPE_FIX, 3), npu_cross_set(NPU_PIPE_FIX, 3);
  for (int i = 0; i < 2; i++)
    npu_cross_wait(NPU_PIPE_MTE1, 4);
}

static void ends_vector(const void *args) {
  const memory *m = args;
  static const npu_pipe waits[] = {NPU_PIPE_MTE2, NPU_PIPE_V, NPU_PIPE_S, NPU_PIPE_V};
  static const npu_pipe sets[] = {NPU_PIPE_MTE3, NPU_PIPE_V, NPU_PIPE_MTE3, NPU_PIPE_MTE3};
  const int variant = npu_subcore() ? ONE_EACH : m->variant;
  npu_cross_wait(NPU_PIPE_V, 3), npu_cross_wait(waits[variant], 3);
  npu_cross_set(NPU_PIPE_MTE3, 4), npu_cross_set(sets[variant], 4);
}

static void a_flag_has_one_setting_and_one_waiting_pipe(void **state) {
  (void)state;
  static const char *const words[] = {"ambiguous waiter: AIV 0.0, flag 3: V (test_sim_order.c:",
                                      "ambiguous setter: AIV 0.0, flag 4: MTE3 (test_sim_order.c:",
                                      "ambiguous waiter: AIV 0.0, flag 3: V (test_sim_order.c:"};
  static const char *const others[] = {
      " and MTE2 (test_sim_order.c:", " and V (test_sim_order.c:", " and S (test_sim_order.c:"};
  for (int variant = 0; variant < ONE_EACH; variant++) {
    expect_error(1, ends_cube, ends_vector, variant, NPU_ERROR_AMBIGUOUS, 1, words[variant]);
    expect_error(1, ends_cube, ends_vector, variant, NPU_ERROR_AMBIGUOUS, 1, others[variant]);
  }
  expect_no_error(1, ends_cube, ends_vector, ONE_EACH);
}

/* ---- Deadlock, overflow, left set ---- */

static void bad_sync(const void *args) {
  const memory *m = args;
  if (npu_subcore() > 0)
    return;
  switch (m->variant) {
  case 0: npu_wait(NPU_PIPE_MTE2, NPU_PIPE_V, 3); break;
  case 1: npu_wait(NPU_PIPE_V, NPU_PIPE_S, 1); break;
  case 2: npu_cross_wait(NPU_PIPE_MTE2, 9); break;
  case 3: npu_barrier_all(); break; /* subcore 1 does not come */
  case 4: npu_wait(NPU_PIPE_V, NPU_PIPE_MTE3, 0), npu_barrier(NPU_PIPE_ALL); break;
  case 5: npu_notify(NPU_PIPE_V, NPU_PIPE_MTE3, 5); break;
  case 6:
    npu_notify(NPU_PIPE_V, NPU_PIPE_MTE3, 5), npu_notify(NPU_PIPE_V, NPU_PIPE_MTE3, 5);
    npu_copy_ub_gm(m->gm, ub(0), 1, 65536, 65536, 65536); /* both are set before it is done */
    npu_wait(NPU_PIPE_V, NPU_PIPE_MTE3, 5);
    break;
  case 7:
    for (int i = 0; i <= NPU_QUEUE_DEPTH; i++)
      npu_wait(NPU_PIPE_V, NPU_PIPE_MTE3, 0);
    break;
  default: break;
  }
}

static void deadlocks_say_who_waits_for_what(void **state) {
  (void)state;
  expect_error(1, NULL, bad_sync, 0, NPU_ERROR_DEADLOCK, 1,
               "deadlock: AIV 0.0 waits for: V: event MTE2->V 3 (test_sim_order.c:");
  expect_error(1, NULL, bad_sync, 1, NPU_ERROR_DEADLOCK, 1,
               "deadlock: AIV 0.0 waits for: S: event V->S 1");
  expect_error(1, NULL, bad_sync, 2, NPU_ERROR_DEADLOCK, 1,
               "deadlock: AIV 0.0 waits for: MTE2: flag 9");
  expect_error(1, NULL, bad_sync, 3, NPU_ERROR_DEADLOCK, 1, "S: the barrier of all cores");
  expect_error(1, NULL, bad_sync, 4, NPU_ERROR_DEADLOCK, 1,
               "S: its pipes to drain; MTE3: event V->MTE3 0");
  expect_error(1, NULL, bad_sync, 7, NPU_ERROR_DEADLOCK, 1,
               "S: room in the queue of MTE3; MTE3: event V->MTE3 0");
}

static void misused_events_are_reported(void **state) {
  (void)state;
  expect_error(1, NULL, bad_sync, 5, NPU_ERROR_LEFT_SET, 1, "left set: AIV 0.0, event V->MTE3 5");
  expect_error(1, NULL, bad_sync, 6, NPU_ERROR_OVERFLOW, 1,
               "overflow: AIV 0.0, event V->MTE3 5: set 2 times without a wait, at most 1");
}

/* The C code is held up by a full queue until both events of MTE2 have come: the second finds the
 * first not taken. */
static void late_wait(const void *args) {
  const memory *m = args;
  if (npu_subcore())
    return;
  for (int i = 0; i < 4; i++) /* longer than the two of MTE2 */
    npu_copy_ub_gm(m->gm, ub(0), 1, 65536, 65536, 65536);
  npu_notify(NPU_PIPE_MTE3, NPU_PIPE_V, 0);
  for (int i = 0; i < 2; i++) {
    npu_copy_gm_ub(ub(65536), m->gm + 131072 + i * 65536, 1, 8192, 8192, 8192);
    npu_notify(NPU_PIPE_MTE2, NPU_PIPE_S, 0);
  }
  npu_wait(NPU_PIPE_MTE3, NPU_PIPE_V, 0);
  for (int i = 0; i < NPU_QUEUE_DEPTH; i++)
    npu_dup_f32(ub(131072), 0, npu_vec_count(64));
  npu_wait(NPU_PIPE_MTE2, NPU_PIPE_S, 0);
}

static void a_wait_of_the_c_code_waits_for_its_turn(void **state) {
  (void)state;
  expect_error(1, NULL, late_wait, 0, NPU_ERROR_OVERFLOW, 1, "event MTE2->S 0: set 2 times");
}

static void set_flags(const void *args) {
  const memory *m = args;
  for (int i = 0; i < m->variant; i++)
    npu_cross_set(NPU_PIPE_FIX, 4);
  npu_cross_wait(NPU_PIPE_MTE1, 5);
}

static void wait_flags(const void *args) {
  const memory *m = args;
  for (int i = 0; i < 20000; i += 4)
    npu_dup_f32(ub(0), 0.0f, npu_vec_count(64)); /* not before all are set */
  for (int i = 0; i < m->variant && i < NPU_FLAG_MAX; i++)
    npu_cross_wait(NPU_PIPE_V, 4);
  npu_cross_set(NPU_PIPE_V, 5);
}

static void a_flag_counts_to_15(void **state) {
  (void)state;
  expect_no_error(1, set_flags, wait_flags, 15);
  expect_error(1, set_flags, wait_flags, 16, NPU_ERROR_OVERFLOW, 2,
               "flag 4: set 16 times without a wait, at most 15"); /* of both AIVs */
}

static void one_aiv_sets(const void *args) {
  const memory *m = args;
  if (npu_subcore() <= m->variant)
    npu_cross_set(NPU_PIPE_V, 5);
}
static void aic_waits(const void *args) {
  (void)args;
  npu_cross_wait(NPU_PIPE_M, 5);
}

static void the_aic_waits_for_both_aivs(void **state) {
  (void)state;
  expect_no_error(1, aic_waits, one_aiv_sets, 1);
  expect_error(1, aic_waits, one_aiv_sets, 0, NPU_ERROR_DEADLOCK, 1, "AIC 0 waits for: M: flag 5");
}

/* ---- Bytes that nobody wrote ---- */

static void fresh_cube(const void *args) {
  const memory *m = args;
  const npu_bf16 *given = (const npu_bf16 *)(const void *)m->constant;
  npu_bf16 *l1 = NPU_L1_AT(npu_bf16, 0), *l0a = NPU_L0A_AT(npu_bf16, 0),
           *l0b = NPU_L0B_AT(npu_bf16, 0);
  float *l0c = NPU_L0C_AT(float, 0);
  const int rows = m->variant == 6 ? 6 : 5; /* of 5 in L1 */
  npu_copy_gm_l1_nd2nz_bf16(l1, m->variant == 0 ? (const npu_bf16 *)(const void *)m->gm : given, 5,
                            17, 17, 16);
  sync_pipes(NPU_PIPE_MTE2, NPU_PIPE_MTE1);
  npu_load_l0a_bf16(l0a, l1 + (m->variant == 1 ? 512 : 0), rows, 17, 16);
  if (m->variant != 2)
    npu_load_l0b_bf16(l0b, l1, 5, 17, 16);
  sync_pipes(NPU_PIPE_MTE1, NPU_PIPE_M);
  if (m->variant == 3)
    npu_mmad_bf16(l0c, l0a + 512, l0b, 5, 5, 17, 0);
  if (m->variant != 4)
    npu_mmad_bf16(l0c, l0a, l0b, 5, 5, 17, m->variant == 5);
  sync_pipes(NPU_PIPE_M, NPU_PIPE_FIX);
  npu_copy_l0c_gm_f32(gm_f32(m, 4096), l0c, 5, 5, 5, 16);
  if (m->variant == 7)
    npu_copy_l0c_gm_add_f32(gm_f32(m, 4096), l0c, 5, 5, 6, 16);
}

static void fresh_vector(const void *args) {
  const memory *m = args;
  if (npu_subcore())
    return;
  npu_copy_gm_ub(ub(0), m->constant, 1, 100, 100, 100);
  sync_pipes(NPU_PIPE_MTE2, NPU_PIPE_V);
  npu_abs_f32(ub(1024), ub(0), npu_vec_count(m->variant == 0 ? 26 : 25));
  npu_sel_f32(ub(2048), NPU_UB_AT(uint8_t, m->variant == 1 ? 96 : 0), ub(1024), ub(1024),
              npu_vec_rows(1, 7, 8, 8, 8));
  sync_pipes(NPU_PIPE_V, NPU_PIPE_MTE3);
  npu_copy_ub_gm(m->gm, ub(1024), 1, m->variant == 2 ? 101 : 100, 128, 128);
  npu_copy_ub_gm_add_s32(gm_s32(m, 0), NPU_UB_AT(int32_t, 1024), 1, m->variant == 3 ? 4 : 100, 128,
                         128);
  if (m->variant == 3)
    npu_copy_ub_gm_add_s32(gm_s32(m, 96), NPU_UB_AT(int32_t, 1024), 1, 8, 128, 128);
  sync_pipes(NPU_PIPE_MTE3, NPU_PIPE_S);
  npu_read_ub_f32(ub(m->variant == 4 ? 1124 : 1120), 0.0f);
  npu_read_gm_s32(gm_s32(m, m->variant == 5 ? 100 : 96));
}

/* Words NULL: clean. The work piece is fresh, the constant one given. */
static void expect_unwritten(npu_mode mode, npu_kernel *aic, npu_kernel *aiv, int variant,
                             const char *words) {
  static const char given[4096];
  npu_chip *chip = make_chip("910b2", mode);
  memory m = {npu_gm_alloc(chip, GM_BYTES, "work"), given, variant};
  npu_report r;
  const npu_launch_options o = {.cores = 1, .check_races = 1};
  assert_non_null(m.gm);
  assert_int_equal(npu_gm_register_const(chip, given, sizeof given, "given"), 0);
  for (int launch = 0; launch < (words ? 1 : 2); launch++) { /* what a launch wrote stays written */
    const int status = npu_launch(chip, aic, aiv, &m, &o, &r);
    if (!words)
      expect_clean("fresh", status, &r);
  }
  if (words &&
      (r.errors[NPU_ERROR_UNWRITTEN] != 1 || r.n_messages != 1 || !strstr(r.message[0], words)))
    fail_msg("variant %d: %lld errors, \"%s\" does not say \"%s\"", variant,
             (long long)r.errors[NPU_ERROR_UNWRITTEN], r.message[0], words);
  npu_chip_destroy(chip);
}

static void reads_of_what_nobody_wrote_are_reported(void **state) {
  (void)state;
  static const char *const cube[] = {
      "unwritten: AIC 0 MTE2 copy_gm_l1_nd2nz_bf16 #1 (test_sim_order.c:",
      "MTE1 load_l0a_bf16 #2 (test_sim_order.c:",
      "reads b=L0B [0, 1024), which nobody wrote",
      "reads a=L0A [1024, 2048)",
      "reads src=L0C [0, 320)",
      "reads c=L0C [0, 320)",
      "reads src=L1 [160, 704)", /* row 5 of both columns of fractals; rows 6 to 15 do not matter */
      "reads dst=GM work [4196, 4212)"};
  static const char *const vector[] = {"V abs_f32 #2 (test_sim_order.c:",
                                       "V sel_f32 #3 (test_sim_order.c:",
                                       "reads src=UB [1124, 1125), which nobody wrote",
                                       "reads dst=GM work [100, 104)",
                                       "S read_ub",
                                       "reads src=GM work [100, 104)"};
  for (int mode = NPU_FUNCTIONAL; mode <= NPU_TIMING_ONLY; mode++) {
    for (int v = 0; v < LENGTH(cube); v++)
      expect_unwritten((npu_mode)mode, fresh_cube, NULL, v, cube[v]);
    for (int v = 0; v < LENGTH(vector); v++)
      expect_unwritten((npu_mode)mode, NULL, fresh_vector, v, vector[v]);
    expect_unwritten((npu_mode)mode, fresh_cube, NULL, LENGTH(cube), NULL);
    expect_unwritten((npu_mode)mode, NULL, fresh_vector, LENGTH(vector), NULL);
  }
}

static void read_gm(const void *args) {
  const memory *m = args;
  npu_copy_gm_l1(NPU_L1_AT(void, 0), m->gm, 1, 512, 512, 512);
}

static void write_gm(const void *args) {
  const memory *m = args;
  npu_copy_ub_gm(m->gm + 256 * npu_subcore(), ub(0), 1, 256, 256, 256);
}

/* GM that the host has written, or a launch that did not look. */
static void what_the_checker_did_not_see_counts_as_written(void **state) {
  (void)state;
  const npu_launch_options looks = {.cores = 1}, blind = {.cores = 1, .check_written = -1};
  for (int by_host = 0; by_host < 2; by_host++) {
    npu_chip *chip = make_chip("910b2", NPU_FUNCTIONAL);
    memory m = {npu_gm_alloc(chip, GM_BYTES, "work"), NULL, 0};
    npu_report r;
    assert_int_equal(npu_launch(chip, read_gm, NULL, &m, &looks, &r), 1);
    assert_int_equal(r.errors[NPU_ERROR_UNWRITTEN], 1);
    if (by_host)
      npu_gm_written(chip, m.gm);
    if (!by_host)
      expect_clean("blind", npu_launch(chip, NULL, write_gm, &m, &blind, &r), &r);
    expect_clean("after", npu_launch(chip, read_gm, NULL, &m, &looks, &r), &r);
    npu_chip_destroy(chip);
  }
}

/* ---- Dropped waits ---- */

static void chain(const void *args) {
  const memory *m = args;
  if (npu_subcore())
    return;
  for (int i = 0; i < 4; i++) {
    if (i)
      npu_wait(NPU_PIPE_MTE3, NPU_PIPE_MTE2, i % 2);
    npu_copy_gm_ub(ub(0), m->gm, 1, 256, 256, 256);
    npu_notify(NPU_PIPE_MTE2, NPU_PIPE_V, 0), npu_wait(NPU_PIPE_MTE2, NPU_PIPE_V, 0);
    npu_abs_f32(ub(0), ub(0), npu_vec_count(64));
    npu_notify(NPU_PIPE_V, NPU_PIPE_MTE3, 0), npu_wait(NPU_PIPE_V, NPU_PIPE_MTE3, 0);
    npu_copy_ub_gm(m->gm, ub(0), 1, 256, 256, 256);
    npu_notify(NPU_PIPE_MTE3, NPU_PIPE_MTE2, (i + 1) % 2);
  }
  npu_wait(NPU_PIPE_MTE3, NPU_PIPE_MTE2, 0);
}

static void every_dropped_wait_races(void **state) {
  (void)state;
  int status;
  const npu_report whole = run_on(NPU_FUNCTIONAL, 1, NULL, chain, 0, 0, &status);
  assert_int_equal(status, 0);
  assert_int_equal(whole.wait_sites,
                   5); /* two ids at one line are two sites; the last wait is another line */
  assert_int_equal(whole.waits, 12);
  for (int drop = 1; drop <= whole.wait_sites; drop++) {
    const npu_report r = run_on(NPU_FUNCTIONAL, 1, NULL, chain, 0, drop, &status);
    assert_int_equal(status, 1);
    const bool last =
        r.errors[NPU_ERROR_RACE] == 0; /* the wait at the end only takes the event back */
    if (last != (drop == 5))
      fail_msg("dropped wait %d: %lld races", drop, (long long)r.errors[NPU_ERROR_RACE]);
    const int64_t unwaited = r.errors[NPU_ERROR_LEFT_SET] + r.errors[NPU_ERROR_OVERFLOW];
    assert_true(unwaited > 0);
    if (drop == 1)
      assert_int_equal(unwaited, 4); /* all four executions of this site, and no other's */
  }
}

static void wait_sites_have_names(void **state) {
  (void)state;
  npu_chip *chip = make_chip("910b2", NPU_FUNCTIONAL);
  memory m = {make_gm(chip, GM_BYTES, "work"), NULL, 0};
  npu_report report;
  expect_clean("chain", launch_one(chip, NULL, chain, &m, &report), &report);
  assert_non_null(strstr(npu_wait_site(chip, 1), "test_sim_order.c:"));
  assert_non_null(strstr(npu_wait_site(chip, 1), " wait MTE2->V 0"));
  assert_string_equal(npu_wait_site(chip, 0), "");
  assert_string_equal(npu_wait_site(chip, 6), "");
  npu_chip_destroy(chip);
}

/* ---- Refusals ---- */

static npu_vec changed(npu_vec v, int field, int32_t value) {
  int32_t *const fields[] = {&v.repeats,    &v.count,      &v.dst_block,   &v.src0_block,
                             &v.src1_block, &v.dst_repeat, &v.src0_repeat, &v.src1_repeat};
  *fields[field] = value;
  return v;
}

static void bad_vector(const void *args) {
  const memory *m = args;
  const npu_vec v = npu_vec_rows(4, NPU_MASK_ALL, 8, 8, 8);
  switch (m->variant) {
  case 0: npu_add_f32(ub(0), ub(0), ub(0), changed(v, 0, 0)); break;
  case 1: npu_add_f32(ub(0), ub(0), ub(0), changed(v, 0, 256)); break;
  case 2: npu_add_f32(ub(0), ub(0), ub(0), changed(v, 1, 16321)); break;
  case 3: npu_add_f32(ub(0), ub(0), ub(0), changed(v, 2, 0)); break;
  case 4: npu_add_f32(ub(0), ub(0), ub(0), changed(v, 3, -1)); break;
  case 5: npu_add_f32(ub(0), ub(0), ub(0), changed(v, 4, 256)); break;
  case 6: npu_add_f32(ub(0), ub(0), ub(0), changed(v, 5, 256)); break;
  case 7: npu_add_f32(ub(0), ub(0), ub(0), changed(v, 6, 256)); break;
  case 8: npu_add_f32(ub(0), ub(0), ub(0), changed(v, 7, 256)); break;
  case 9: npu_add_f32(ub(4), ub(0), ub(0), v); break;
  case 10: npu_add_f32(ub(0), ub(16), ub(0), v); break;
  case 11: npu_add_f32(ub(NPU_UB_BYTES - 992), ub(0), ub(0), v); break;
  case 12: npu_add_f32(ub(0), ub(0), ub(NPU_UB_BYTES - 64), npu_vec_count(17)); break;
  case 13: npu_shl_s32(NPU_UB_AT(int32_t, 0), NPU_UB_AT(int32_t, 0), 32, v); break;
  case 14: npu_cmp_f32(NPU_UB_AT(uint8_t, 0), ub(0), ub(0), (npu_cmp)6, v); break;
  case 15: npu_sel_f32(ub(0), NPU_UB_AT(uint8_t, NPU_UB_BYTES), ub(0), ub(0), v); break;
  case 16: npu_copy_gm_ub(ub(0), m->gm, 0, 32, 32, 32); break;
  case 17: npu_copy_gm_ub(ub(0), m->gm, 2, 64, 32, 64); break;
  case 18: npu_copy_gm_ub(ub(0), m->gm, 2, 20, 36, 20); break;
  case 19: npu_copy_gm_ub(ub(0), m->gm + GM_BYTES - 31, 1, 32, 32, 32); break;
  case 20: npu_copy_gm_ub(ub(0), "elsewhere", 1, 4, 32, 4); break;
  case 21: npu_copy_ub_gm((char *)(uintptr_t)m->constant, ub(0), 1, 32, 32, 32); break;
  case 22: npu_copy_ub_gm_add_f32(gm_f32(m, 0), ub(0), 1, 30, 32, 32); break;
  case 23:
    npu_copy_ub_gm_add_s32((int32_t *)(uintptr_t)(m->gm + 2), NPU_UB_AT(int32_t, 0), 1, 32, 32, 32);
    break;
  case 24: npu_mmad_bf16(NULL, NULL, NULL, 1, 1, 1, 0); break;
  case 25: npu_notify(NPU_PIPE_V, NPU_PIPE_FIX, 0); break;
  case 26: npu_wait(NPU_PIPE_V, NPU_PIPE_V, 0); break;
  case 27: npu_wait(NPU_PIPE_V, NPU_PIPE_MTE3, 8); break;
  case 28: npu_cross_set(NPU_PIPE_M, 0); break;
  case 29: npu_cross_wait(NPU_PIPE_V, -1); break;
  case 30: npu_barrier(NPU_PIPE_MTE1); break;
  case 31: npu_read_ub_s32(NPU_UB_AT(int32_t, NPU_UB_BYTES), 0); break;
  case 32: npu_read_gm_s32(gm_s32(m, GM_BYTES)); break;
  case 33: npu_brcb_f32(ub(0), ub(NPU_UB_BYTES - 32), npu_vec_rows(2, 0, 8, 0, 0)); break;
  case 36: npu_abs_f32((float *)((uintptr_t)ub(0) - 32), ub(0), v); break;
  case 35: { /* the last repeat is short, the one before is not */
    npu_vec v35 = changed(npu_vec_count(65), 6, 1);
    npu_adds_f32(ub(0), ub(NPU_UB_BYTES - 224), 1, v35);
    break;
  }
  case 34:
    npu_block_max_f32(ub(0), ub(NPU_UB_BYTES - 512), npu_vec_rows(3, NPU_MASK_ALL, 1, 8, 0));
    break;
  default: break;
  }
}

static void bad_cube(const void *args) {
  const memory *m = args;
  npu_bf16 *l1 = NPU_L1_AT(npu_bf16, 0), *l0a = NPU_L0A_AT(npu_bf16, 0),
           *l0b = NPU_L0B_AT(npu_bf16, 0);
  const npu_bf16 *gm = (const npu_bf16 *)(const void *)m->gm;
  float *l0c = NPU_L0C_AT(float, 0);
  switch (m->variant) {
  case 0: npu_copy_gm_l1(l1, gm, 1, 48, 64, 64); break;
  case 1: npu_copy_gm_l1(l1, gm, 2, 64, 80, 64); break;
  case 2: npu_copy_gm_l1_nd2nz_bf16(l1, gm, 0, 16, 16, 16); break;
  case 3: npu_copy_gm_l1_nd2nz_bf16(l1, gm, 16, 0, 16, 16); break;
  case 4: npu_copy_gm_l1_nd2nz_bf16(l1, gm, 16, 16, 15, 16); break;
  case 5: npu_copy_gm_l1_nd2nz_bf16(l1, gm, 17, 16, 16, 16); break;
  case 6: npu_copy_gm_l1_nd2nz_bf16(l1, gm, 17, 16, 16, 24); break;
  case 7:
    npu_copy_gm_l1_nd2nz_bf16(NPU_L1_AT(npu_bf16, NPU_L1_BYTES - 512), gm, 16, 17, 32, 16);
    break;
  case 8:
    npu_copy_gm_l1_nd2nz_bf16(l1, (const npu_bf16 *)(const void *)(m->gm + 1), 16, 16, 16, 16);
    break;
  case 9: npu_fill_l1_bf16(l1, 0, 1, 16, 32); break;
  case 10: npu_load_l0a_bf16(l0a, l1, 0, 16, 16); break;
  case 11: npu_load_l0a_bf16(l0a, l1, 17, 16, 16); break;
  case 12: npu_load_l0a_t_bf16(l0a, l1, 16, 17, 16); break;
  case 13: npu_load_l0b_bf16(l0b, l1, 16, 16, 24); break;
  case 14: npu_load_l0a_bf16(l0a, l1, 256, 144, 256); break;
  case 15: npu_load_l0b_bf16(NPU_L0B_AT(npu_bf16, 256), l1, 16, 16, 16); break;
  case 16: npu_mmad_bf16(l0c, l0a, l0b, 16, 16, 0, 0); break;
  case 17: npu_mmad_bf16(l0c, l0a, l0b, 256, 144, 16, 0); break;
  case 18: npu_mmad_bf16(NPU_L0C_AT(float, 32), l0a, l0b, 16, 16, 16, 0); break;
  case 19: npu_copy_l0c_gm_f32(gm_f32(m, 0), l0c, 16, 16, 15, 16); break;
  case 20: npu_copy_l0c_gm_f32(gm_f32(m, 0), l0c, 32, 16, 16, 16); break;
  case 21: npu_copy_l0c_gm_f32((float *)(uintptr_t)(m->gm + 2), l0c, 16, 16, 16, 16); break;
  case 22: npu_copy_l0c_gm_add_f32(gm_f32(m, GM_BYTES - 1020), l0c, 16, 16, 16, 16); break;
  case 23: npu_abs_f32(NULL, NULL, npu_vec_count(1)); break;
  case 24: npu_read_ub_s32(NULL, 0); break;
  case 25: npu_notify_unit(NPU_PIPE_MTE1, NPU_PIPE_M, 0); break;
  default: break;
  }
}

/* What bad_vector and bad_cube are refused with, by variant. */
static const char *const vector_refusals[] = {
    "v.repeats=0: 1 to 255",
    "v.repeats=256: 1 to 255",
    "v.count=16321: 1 to 16320, or 0",
    "v.dst_block=0: 1 to 255",
    "v.src0_block=-1: 0 to 255",
    "v.src1_block=256: 0 to 255",
    "v.dst_repeat=256: 0 to 255",
    "v.src0_repeat=256: 0 to 255",
    "v.src1_repeat=256: 0 to 255",
    "dst=4: the address in UB must be a multiple of 32",
    "src0=16: the address in UB must be a multiple of 32",
    "dst=195616: the offset in UB, of 196608 bytes; this touches 1024 bytes from there",
    "src1=196544: the offset in UB, of 196608 bytes; this touches 68 bytes from there",
    "shift=32: 0 to 31",
    "op=6: NPU_CMP_LT to NPU_CMP_NE",
    "bits=196608: the offset in UB",
    "n_bursts=0: 1 to 4095",
    "dst_stride_bytes=32: at least burst_bytes",
    "dst_stride_bytes=36: a multiple of 32",
    "src=1048545: the offset in GM piece work, of 1048576 bytes; this touches 32 bytes from there",
    "not in any piece of global memory",
    "dst=0: the offset in GM piece constant, which is read-only",
    "burst_bytes=30: a multiple of 4",
    "the address in GM must be a multiple of 4",
    "an instruction of the AIC",
    "to=5: not a pipe of this core",
    "to=6: must be another pipe than from",
    "event=8: 0 to 7",
    "pipe=4: not a pipe of this core",
    "flag=-1: 0 to 15",
    "pipe=1: not a pipe of this core",
    "src=196608: the offset in UB",
    "not in any piece of global memory",
    "src=196576: the offset in UB, of 196608 bytes; this touches 64 bytes",
    "this touches 768 bytes from there",
    "src=196384: the offset in UB, of 196608 bytes; this touches 256 bytes from there",
    "dst=-32: the offset in UB",
};

static const char *const cube_refusals[] = {
    "burst_bytes=48: a multiple of 32",
    "dst_stride_bytes=80: a multiple of 32",
    "rows=0: 1 to 16384",
    "cols=0: 1 to 65535",
    "src_stride=15: cols to 16777216",
    "dst_rows=16: rows to 16384",
    "dst_rows=24: a multiple of 16",
    "dst=523776: the offset in L1, of 524288 bytes; this touches 1024 bytes from there",
    "the address in GM must be a multiple of 2",
    "burst_bytes=16: a multiple of 32",
    "m=0: 1 to 4095",
    "src_rows=16: at least the tile's rows, rounded up to 16",
    "src_rows=16: at least the tile's rows, rounded up to 16",
    "src_rows=24: a multiple of 16",
    "dst=0: the offset in L0A, of 65536 bytes; this touches 73728 bytes from there",
    "dst=256: the address in L0B must be a multiple of 512",
    "k=0: 1 to 4095",
    "c=0: the offset in L0C, of 131072 bytes; this touches 147456 bytes from there",
    "c=32: the address in L0C must be a multiple of 64",
    "dst_stride=15: n to 16777216",
    "src_rows=16: m to 4096",
    "the address in GM must be a multiple of 4",
    "dst=1047556: the offset in GM piece work",
    "an instruction of the AIV",
    "an instruction of the AIV",
    "from=1: a unit flag is between M and FIX",
};

static void operands_outside_the_rules_are_refused(void **state) {
  (void)state;
  for (int v = 0; v < LENGTH(vector_refusals); v++) {
    int status;
    const npu_report r = run_on(NPU_FUNCTIONAL, 1, NULL, bad_vector, v, 0, &status);
    if (status != 1 || r.errors[NPU_ERROR_OPERAND] != 1 ||
        !strstr(r.message[0], vector_refusals[v]))
      fail_msg("vector %d: status %d, \"%s\" does not say \"%s\"", v, status, r.message[0],
               vector_refusals[v]);
    if (!strstr(r.message[0], "AIV 0."))
      fail_msg("vector %d: \"%s\" names no core", v, r.message[0]);
  }
  for (int v = 0; v < LENGTH(cube_refusals); v++)
    expect_error(1, bad_cube, NULL, v, NPU_ERROR_OPERAND, 1, cube_refusals[v]);
}

static void impossible_launches_and_memory_are_refused(void **state) {
  (void)state;
  npu_chip *chip = make_chip("910b3", NPU_FUNCTIONAL);
  static char bytes[64];
  npu_report report;
  npu_launch_options o = {0};
  o.cores = 21;
  assert_int_equal(npu_launch(chip, NULL, NULL, NULL, &o, &report), -1);
  assert_string_equal(report.message[0], "cores=21: 1 to 20 on this chip, or 0 for all");
  o.cores = -1;
  assert_int_equal(npu_launch(chip, NULL, NULL, NULL, &o, &report), -1);
  assert_int_equal(npu_gm_register(chip, bytes, 64, "a", 1), 0);
  assert_int_equal(npu_gm_register(chip, bytes + 63, 1, "b", 1), -1);
  npu_gm_forget_all(chip);
  assert_int_equal(npu_gm_register(chip, bytes + 63, 1, "b", 1), 0);
  assert_int_equal(npu_chip_set_cost(chip, "M", "mmad", 6, 0, 0), -1);
  assert_int_equal(npu_chip_set_cost(chip, "M", "mmad", -1, 1, 0), -1);
  assert_int_equal(npu_chip_set_cost(chip, "M", "nothing", 6, 1, 0), -1);
  assert_null(npu_find_preset("910c"));
  npu_chip_destroy(chip);
  npu_chip_destroy(NULL);
}

/* ---- Time only observes; the trace ---- */

static void
work_a_bit(const void *args) { /* the ring, with values: S grows by what the AIVs make of it */
  const memory *m = args;
  const size_t base = (size_t)npu_block_index() * 8192, half = 512 * (size_t)npu_subcore();
  for (int i = 0; i < 6; i++) {
    if (i)
      npu_wait(NPU_PIPE_MTE3, NPU_PIPE_MTE2, 0);
    npu_copy_gm_ub(ub(0), m->gm + base + half, 1, 512, 512, 512);
    sync_pipes(NPU_PIPE_MTE2, NPU_PIPE_V);
    npu_exp_f32(ub(0), ub(0), npu_vec_count(128));
    npu_adds_f32(ub(0), ub(0), 0.25f * (float)i, npu_vec_count(128));
    npu_muls_f32(ub(0), ub(0), -0.5f, npu_vec_count(128));
    sync_pipes(NPU_PIPE_V, NPU_PIPE_MTE3);
    npu_copy_ub_gm_add_f32(gm_f32(m, base + half), ub(0), 1, 512, 512, 512);
    npu_notify(NPU_PIPE_MTE3, NPU_PIPE_MTE2, 0);
  }
  npu_wait(NPU_PIPE_MTE3, NPU_PIPE_MTE2, 0);
  npu_barrier_all();
  const size_t other = ((size_t)npu_block_index() + 1) % (size_t)npu_block_count() * 8192;
  npu_copy_gm_ub(ub(4096), m->gm + other + half, 1, 512, 512, 512);
  sync_pipes(NPU_PIPE_MTE2, NPU_PIPE_MTE3);
  npu_copy_ub_gm(m->gm + base + 4096 + half, ub(4096), 1, 512, 512, 512);
}

static void values_do_not_depend_on_time(void **state) {
  (void)state;
  static char first[GM_BYTES];
  static const char *const presets[] = {"910b2", "910",   "910b1", "910b4",
                                        "910b2", "910b2", "910b2"};
  uint64_t seed = 8;
  int64_t cycles[LENGTH(presets)];
  for (int p = 0; p < LENGTH(presets); p++) {
    npu_chip *chip = make_chip(presets[p], NPU_FUNCTIONAL);
    memory m = {make_gm(chip, GM_BYTES, "work"), NULL, 0};
    for (int i = 0; i < GM_BYTES / 4; i++)
      gm_f32(&m, 0)[i] = (float)(i % 1000) / 999.0f;
    for (int c = 0; p > 3 && c < npu_cost_count(); c++) {
      const npu_cost *cost = npu_chip_cost(chip, c);
      assert_int_equal(npu_chip_set_cost(chip, cost->unit, cost->operation,
                                         random_below(&seed, 2000), 0.01 + random_below(&seed, 500),
                                         random_below(&seed, 2000)),
                       0);
    }
    npu_launch_options o = {0};
    npu_report report;
    o.cores = 5;
    expect_clean("work",
                 npu_launch(chip, only_barrier, work_a_bit, &(memory){m.gm, NULL, 1}, &o, &report),
                 &report);
    cycles[p] = report.cycles;
    if (p == 0)
      memcpy(first, m.gm, sizeof first);
    else
      assert_memory_equal(first, m.gm, sizeof first);
    npu_chip_destroy(chip);
  }
  assert_int_not_equal(cycles[0], cycles[4]); /* the costs did change */
  assert_int_not_equal(cycles[4], cycles[5]);
}

static void same_launch_same_report(void **state) {
  (void)state;
  int status;
  const npu_report a = run_on(NPU_FUNCTIONAL, 3, mended_ring_cube, ring_vector, 0, 0, &status);
  const npu_report b = run_on(NPU_FUNCTIONAL, 3, mended_ring_cube, ring_vector, 0, 0, &status);
  const npu_report timed = run_on(NPU_TIMING_ONLY, 3, mended_ring_cube, ring_vector, 0, 0, &status);
  assert_memory_equal(&a, &b, sizeof a);
  assert_int_equal(a.cycles, timed.cycles); /* and both modes have the same time */
  assert_int_equal(a.instructions, timed.instructions);
}

static void the_trace_is_json_and_covers_what_ran(void **state) {
  (void)state;
  npu_chip *chip = make_chip("910b2", NPU_TIMING_ONLY);
  memory m = {make_gm(chip, GM_BYTES, "work"), NULL, 0};
  npu_report report;
  npu_launch_options o = {0};
  o.cores = 2, o.trace = 1;
  expect_clean("ring", npu_launch(chip, NULL, chain, &m, &o, &report), &report);
  assert_int_equal(report.n_trace, report.instructions);
  assert_int_equal(report.n_trace, 2 * 12);
  int64_t busy = 0;
  for (int64_t e = 0; e < report.n_trace; e++) {
    const npu_trace_event *t = &report.trace[e];
    assert_true(t->start_cycle < t->end_cycle &&
                t->end_cycle <= report.cycles - report.launch_cycles);
    if (t->pipe == NPU_PIPE_V)
      busy += t->end_cycle - t->start_cycle;
  }
  const double share =
      (double)busy / (double)(report.cycles - report.launch_cycles) / 4; /* four AIVs */
  assert_true(fabs(share - report.aiv_busy[NPU_PIPE_V]) < 1e-9);

  FILE *file = tmpfile();
  assert_non_null(file);
  assert_int_equal(npu_write_chrome_trace(&report, npu_find_preset("910b2"), file), 0);
  rewind(file);
  json_error_t error;
  json_t *root = json_loadf(file, 0, &error);
  if (!root)
    fail_msg("trace: line %d: %s", error.line, error.text);
  const json_t *events = json_object_get(root, "traceEvents");
  size_t spans = 0;
  for (size_t e = 0; e < json_array_size(events); e++) {
    const json_t *event = json_array_get(events, e);
    if (strcmp(json_string_value(json_object_get(event, "ph")), "X"))
      continue;
    spans++;
    assert_true(json_number_value(json_object_get(event, "dur")) > 0);
  }
  assert_int_equal(spans, report.n_trace);
  json_decref(root);
  fclose(file);
  npu_chip_destroy(chip);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(unordered_pairs_race_and_ordered_ones_do_not),
      cmocka_unit_test(a_race_names_both_instructions),
      cmocka_unit_test(races_between_cores),
      cmocka_unit_test(flags_between_cores_order_and_their_absence_races),
      cmocka_unit_test(a_wrong_slot_races),
      cmocka_unit_test(the_barrier_of_all_cores_orders),
      cmocka_unit_test(a_full_pipe_barrier_orders_and_one_pipe_s_does_not),
      cmocka_unit_test(a_value_that_depends_on_time_is_reported),
      cmocka_unit_test(a_flag_has_one_setting_and_one_waiting_pipe),
      cmocka_unit_test(deadlocks_say_who_waits_for_what),
      cmocka_unit_test(misused_events_are_reported),
      cmocka_unit_test(a_wait_of_the_c_code_waits_for_its_turn),
      cmocka_unit_test(a_flag_counts_to_15),
      cmocka_unit_test(the_aic_waits_for_both_aivs),
      cmocka_unit_test(reads_of_what_nobody_wrote_are_reported),
      cmocka_unit_test(what_the_checker_did_not_see_counts_as_written),
      cmocka_unit_test(every_dropped_wait_races),
      cmocka_unit_test(wait_sites_have_names),
      cmocka_unit_test(operands_outside_the_rules_are_refused),
      cmocka_unit_test(impossible_launches_and_memory_are_refused),
      cmocka_unit_test(values_do_not_depend_on_time),
      cmocka_unit_test(same_launch_same_report),
      cmocka_unit_test(the_trace_is_json_and_covers_what_ran),
  };
  return cmocka_run_group_tests_name("sim_order", tests, NULL, NULL);
}
