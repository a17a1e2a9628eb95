/* SPDX-License-Identifier: Apache-2.0
 *
 * The simulated NPU's clock. Every cost row is a gate, and each gate is tight: the next instruction
 * starts at fixed + ceil(work / rate), not before; who waits for the result goes on latency later,
 * not before; and one cycle more in the row is one cycle more in the trace. Then the shared
 * resources: one transfer alone takes what the formula says, all cores together get the peak and no
 * more, and L2 keeps what was used last.
 */
#include "test_sim_support.h"

enum { GM_BYTES = 64 << 20, WORK = 12288 };

typedef struct memory {
  char *gm;
  int variant;
} memory;

static float *ub(uint32_t at) { return NPU_UB_AT(float, at); }
static npu_bf16 *l1(uint32_t at) { return NPU_L1_AT(npu_bf16, at); }

static const npu_cost *find_cost(const npu_chip *chip, const char *unit, const char *operation) {
  for (int32_t i = 0; i < npu_cost_count(); i++) {
    const npu_cost *c = npu_chip_cost(chip, i);
    if (!strcmp(c->unit, unit) && !strcmp(c->operation, operation))
      return c;
  }
  fail_msg("no cost row %s %s", unit, operation);
  return NULL;
}

static int64_t fixed_of(const npu_chip *chip, const char *unit, const char *operation) {
  return (int64_t)find_cost(chip, unit, operation)->fixed_cycles;
}
static int64_t latency_of(const npu_chip *chip, const char *unit, const char *operation) {
  return (int64_t)find_cost(chip, unit, operation)->latency_cycles;
}

/* ---- Every instruction's gate ---- */

static void in_l1(const memory *m) { npu_copy_gm_l1(l1(0), m->gm, 1, WORK, WORK, WORK); }
static void in_l1_nz(const memory *m) {
  npu_copy_gm_l1_nd2nz_bf16(l1(0), (const npu_bf16 *)(const void *)m->gm, 96, 64, 64, 96);
}
static void fill(const memory *m) { (void)m, npu_fill_l1_bf16(l1(0), 0, 1, WORK, WORK); }
static void load_a(const memory *m) {
  (void)m, npu_load_l0a_bf16(NPU_L0A_AT(npu_bf16, 0), l1(0), 64, 96, 64);
}
static void load_a_t(const memory *m) {
  (void)m, npu_load_l0a_t_bf16(NPU_L0A_AT(npu_bf16, 0), l1(0), 64, 96, 96);
}
static void load_b(const memory *m) {
  (void)m, npu_load_l0b_bf16(NPU_L0B_AT(npu_bf16, 0), l1(0), 64, 96, 64);
}
static void load_b_t(const memory *m) {
  (void)m, npu_load_l0b_t_bf16(NPU_L0B_AT(npu_bf16, 0), l1(0), 64, 96, 96);
}
static void product(const memory *m) {
  (void)m, npu_mmad_bf16(NPU_L0C_AT(float, 0), NPU_L0A_AT(npu_bf16, 0), NPU_L0B_AT(npu_bf16, 0),
                         100, 120, 90, 0);
}
static void out_c(const memory *m) {
  npu_copy_l0c_gm_f32((float *)(void *)m->gm, NPU_L0C_AT(float, 0), 48, 64, 64, 48);
}
static void out_c_add(const memory *m) {
  npu_copy_l0c_gm_add_f32((float *)(void *)m->gm, NPU_L0C_AT(float, 0), 48, 64, 64, 48);
}
static void out_c_bf16(const memory *m) {
  npu_copy_l0c_gm_bf16((npu_bf16 *)(void *)m->gm, NPU_L0C_AT(float, 0), 48, 64, 64, 48);
}
static void out_c_ub(const memory *m) {
  (void)m, npu_copy_l0c_ub_f32((float *)npu_ub_of(0, 0), NPU_L0C_AT(float, 0), 48, 64, 64, 48);
}
static void in_ub(const memory *m) { npu_copy_gm_ub(ub(0), m->gm, 1, WORK, WORK, WORK); }
static void out_ub(const memory *m) { npu_copy_ub_gm(m->gm, ub(0), 1, WORK, WORK, WORK); }
static void out_ub_add_f(const memory *m) {
  npu_copy_ub_gm_add_f32((float *)(void *)m->gm, ub(0), 1, WORK, WORK, WORK);
}
static void out_ub_add_s(const memory *m) {
  npu_copy_ub_gm_add_s32((int32_t *)(void *)m->gm, NPU_UB_AT(int32_t, 0), 1, WORK, WORK, WORK);
}

static void out_ub_l1(const memory *m) {
  (void)m, npu_copy_ub_l1(l1(0), ub(0), 1, WORK, WORK, WORK);
}

static npu_vec rows48(void) { return npu_vec_rows(48, NPU_MASK_ALL, 8, 8, 8); }
static void two(const memory *m) { (void)m, npu_add_f32(ub(0), ub(0), ub(0), rows48()); }
static void two_s(const memory *m) {
  (void)m,
      npu_or_s32(NPU_UB_AT(int32_t, 0), NPU_UB_AT(int32_t, 0), NPU_UB_AT(int32_t, 0), rows48());
}
static void scalar(const memory *m) { (void)m, npu_muls_f32(ub(0), ub(0), 1, rows48()); }
static void shift(const memory *m) {
  (void)m, npu_shl_s32(NPU_UB_AT(int32_t, 0), NPU_UB_AT(int32_t, 0), 1, rows48());
}
static void dup(const memory *m) { (void)m, npu_dup_f32(ub(0), 1, rows48()); }
static void exponential(const memory *m) { (void)m, npu_exp_f32(ub(0), ub(0), rows48()); }
static void quotient(const memory *m) { (void)m, npu_div_f32(ub(0), ub(0), ub(0), rows48()); }
static void reduce(const memory *m) {
  (void)m, npu_block_max_f32(ub(0), ub(32768), npu_vec_rows(48, NPU_MASK_ALL, 1, 8, 8));
}
static void cast(const memory *m) {
  (void)m, npu_cast_f32_bf16_rna(NPU_UB_AT(npu_bf16, 0), ub(32768),
                                 npu_vec_rows(48, NPU_MASK_ALL, 4, 8, 8));
}
static void brcb(const memory *m) { (void)m, npu_brcb_f32(ub(0), ub(32768), rows48()); }
static void compare(const memory *m) {
  (void)m, npu_cmps_f32(NPU_UB_AT(uint8_t, 0), ub(32768), 0, NPU_CMP_LT, rows48());
}
static void select_(const memory *m) {
  (void)m, npu_sels_f32(ub(0), NPU_UB_AT(uint8_t, 32768), ub(0), 0, rows48());
}

typedef struct gate {
  const char *unit, *operation;
  void (*run)(const memory *m);
  npu_pipe pipe;
  bool on_aiv;
  int64_t work; /* in the row's unit, by hand */
} gate;

static const gate gates[] = {
    {"MTE2", "copy_gm_l1", in_l1, NPU_PIPE_MTE2, false, WORK},
    {"MTE2", "copy_gm_l1_nd2nz", in_l1_nz, NPU_PIPE_MTE2, false, WORK},
    {"MTE2", "fill_l1", fill, NPU_PIPE_MTE2, false, WORK},
    {"MTE1", "load_l0a", load_a, NPU_PIPE_MTE1, false, WORK},
    {"MTE1", "load_l0a", load_a_t, NPU_PIPE_MTE1, false, WORK},
    {"MTE1", "load_l0b", load_b, NPU_PIPE_MTE1, false, WORK},
    {"MTE1", "load_l0b", load_b_t, NPU_PIPE_MTE1, false, WORK},
    {"M", "mmad", product, NPU_PIPE_M, false, 7 * 8 * 6},
    {"FIX", "copy_l0c_gm_f32", out_c, NPU_PIPE_FIX, false, WORK},
    {"FIX", "copy_l0c_gm_add_f32", out_c_add, NPU_PIPE_FIX, false, WORK},
    {"FIX", "copy_l0c_gm_bf16", out_c_bf16, NPU_PIPE_FIX, false, WORK},
    {"FIX", "copy_l0c_ub_f32", out_c_ub, NPU_PIPE_FIX, false, WORK},
    {"MTE3", "copy_ub_l1", out_ub_l1, NPU_PIPE_MTE3, true, WORK},
    {"MTE2", "copy_gm_ub", in_ub, NPU_PIPE_MTE2, true, WORK},
    {"MTE3", "copy_ub_gm", out_ub, NPU_PIPE_MTE3, true, WORK},
    {"MTE3", "copy_ub_gm_add", out_ub_add_f, NPU_PIPE_MTE3, true, WORK},
    {"MTE3", "copy_ub_gm_add", out_ub_add_s, NPU_PIPE_MTE3, true, WORK},
    {"V", "add sub mul max min, two sources", two, NPU_PIPE_V, true, 48},
    {"V", "add sub mul max min, two sources", two_s, NPU_PIPE_V, true, 48},
    {"V", "add mul max min shift, scalar; abs, dup", scalar, NPU_PIPE_V, true, 48},
    {"V", "add mul max min shift, scalar; abs, dup", shift, NPU_PIPE_V, true, 48},
    {"V", "add mul max min shift, scalar; abs, dup", dup, NPU_PIPE_V, true, 48},
    {"V", "exp ln", exponential, NPU_PIPE_V, true, 48},
    {"V", "div", quotient, NPU_PIPE_V, true, 48},
    {"V", "block reduce", reduce, NPU_PIPE_V, true, 48},
    {"V", "cast", cast, NPU_PIPE_V, true, 48},
    {"V", "broadcast-8", brcb, NPU_PIPE_V, true, 48},
    {"V", "compare select", compare, NPU_PIPE_V, true, 48},
    {"V", "compare select", select_, NPU_PIPE_V, true, 48},
};

static void marker(bool on_aiv, npu_pipe other_than,
                   const memory *m) { /* something on a pipe that was idle */
  if (!on_aiv && other_than != NPU_PIPE_M)
    product(m);
  else if (!on_aiv)
    fill(m);
  else if (other_than != NPU_PIPE_V)
    dup(m);
  else
    in_ub(m);
}

static void twice_and_marker(const void *args) { /* once to warm L2, drained; twice; then wait for
                                                    the result in the C code, and a marker */
  const memory *m = args;
  const gate *g = &gates[m->variant];
  if (npu_subcore())
    return;
  g->run(m);
  npu_barrier(NPU_PIPE_ALL);
  g->run(m);
  g->run(m);
  sync_pipes(g->pipe, NPU_PIPE_S);
  marker(g->on_aiv, g->pipe, m);
}

typedef struct measured {
  int64_t hold,
      ready; /* of the second: how long the pipe was held; from its start to the marker's */
} measured;

static measured measure(npu_chip *chip, const memory *m) {
  const gate *g = &gates[m->variant];
  npu_launch_options o = {0};
  npu_report r;
  o.cores = 1, o.trace = 1, o.check_races = -1;
  npu_kernel *aic = g->on_aiv ? NULL : twice_and_marker;
  npu_kernel *aiv = g->on_aiv ? twice_and_marker : NULL;
  expect_clean(g->operation, npu_launch(chip, aic, aiv, m, &o, &r), &r);
  assert_int_equal(r.n_trace, 4);
  assert_int_equal(r.trace[2].end_cycle - r.trace[2].start_cycle,
                   r.trace[2].start_cycle - r.trace[1].start_cycle);
  return (measured){r.trace[2].start_cycle - r.trace[1].start_cycle,
                    r.trace[3].start_cycle - r.trace[2].start_cycle};
}

static void expect_gate(npu_chip *chip, const memory *m, const char *what, int64_t hold,
                        int64_t latency) {
  const gate *g = &gates[m->variant];
  const measured got = measure(chip, m);
  const int64_t ready =
      hold + latency + latency_of(chip, "EVENT", "notify_to_wait") + fixed_of(chip, "S", "issue");
  if (got.hold != hold || got.ready != ready)
    fail_msg("%s %s (row %d), %s: held %lld cycles, want %lld; ready after %lld, want %lld",
             g->unit, g->operation, m->variant, what, (long long)got.hold, (long long)hold,
             (long long)got.ready, (long long)ready);
}

static void every_instruction_s_gate_is_tight(void **state) {
  (void)state;
  for (int n = 0; n < LENGTH(gates); n++) {
    npu_chip *chip = make_chip("950", NPU_TIMING_ONLY); /* which has all of them */
    const gate *g = &gates[n];
    const memory m = {make_gm(chip, 1 << 20, "gm"), n};
    const npu_cost row = *find_cost(chip, g->unit, g->operation);
    const int64_t fixed = (int64_t)row.fixed_cycles, latency = (int64_t)row.latency_cycles;
    const int64_t units = (int64_t)ceil((double)g->work / row.rate);
    expect_gate(chip, &m, "as it is", fixed + units, latency);
    npu_chip_set_cost(chip, g->unit, g->operation, row.fixed_cycles + 1, row.rate,
                      row.latency_cycles);
    expect_gate(chip, &m, "one more fixed", fixed + 1 + units, latency);
    npu_chip_set_cost(chip, g->unit, g->operation, row.fixed_cycles, row.rate,
                      row.latency_cycles + 1);
    expect_gate(chip, &m, "one more of latency", fixed + units, latency + 1);
    npu_chip_set_cost(chip, g->unit, g->operation, row.fixed_cycles, (double)g->work / 1000,
                      row.latency_cycles);
    expect_gate(chip, &m, "work takes 1000", fixed + 1000, latency);
    npu_chip_set_cost(chip, g->unit, g->operation, row.fixed_cycles, (double)g->work / 1000.001,
                      row.latency_cycles);
    expect_gate(chip, &m, "work takes 1000.001", fixed + 1001, latency);
    npu_chip_destroy(chip);
  }
}

static void every_row_of_an_instruction_has_a_gate(void **state) {
  (void)state;
  npu_chip *chip = make_chip("910b2", NPU_TIMING_ONLY);
  static const char *const others[] = {
      "launch", "barrier_all", "set_to_wait", "notify_to_wait", "miss",
      "issue",  "read_ub",     "read_gm",     "counted mode",   "atomic_add"};
  for (int32_t i = 0; i < npu_cost_count(); i++) {
    const npu_cost *c = npu_chip_cost(chip, i);
    bool seen = false;
    for (int g = 0; g < LENGTH(gates); g++)
      seen |= !strcmp(gates[g].unit, c->unit) && !strcmp(gates[g].operation, c->operation);
    for (int o = 0; o < LENGTH(others); o++)
      seen |= !strcmp(others[o], c->operation); /* tested below */
    if (!seen)
      fail_msg("cost row %s %s is not tested", c->unit, c->operation);
    assert_true(strlen(c->source) > 4 && strlen(c->rate_unit) > 0);
    assert_true(!strcmp(c->confidence, "low") || !strcmp(c->confidence, "medium") ||
                !strcmp(c->confidence, "high"));
  }
  npu_chip_destroy(chip);
}

static void documented_costs(
    void **state) { /* the facts of the machine, as numbers, where they are well known */
  (void)state;
  npu_chip *chip = make_chip("910b2", NPU_TIMING_ONLY);
  assert_int_equal(fixed_of(chip, "M", "mmad"), 12);
  assert_int_equal(fixed_of(chip, "MTE1", "load_l0a"), 46);
  assert_true(find_cost(chip, "M", "mmad")->rate == 1); /* 4096 multiplications per cycle */
  assert_true(find_cost(chip, "MTE1", "load_l0a")->rate == 256 &&
              find_cost(chip, "MTE1", "load_l0b")->rate == 128);
  npu_chip_destroy(chip);
  chip = make_chip("950", NPU_TIMING_ONLY);
  assert_true(find_cost(chip, "MTE1", "load_l0b")->rate == 256);
  npu_chip_destroy(chip);
  assert_true(fabs(npu_peak_flops(npu_find_preset("950")) / 432e12 - 1) < 2e-3);
  assert_true(fabs(npu_peak_flops(npu_find_preset("910")) / 707.8e12 - 1) < 1e-3);
  assert_true(fabs(npu_peak_flops(npu_find_preset("910b2")) / 353.9e12 - 1) < 1e-3);
  assert_int_equal(npu_find_preset("910b3")->cores_per_die, 20);
  for (int i = 0; npu_preset_at(i); i++)
    assert_ptr_equal(npu_find_preset(npu_preset_at(i)->name), npu_preset_at(i));
}

/* ---- Gates that are not an instruction's own ---- */

static void other_gates(const void *args) {
  const memory *m = args;
  if (npu_subcore())
    return;
  switch (m->variant) {
  case 0: /* S issue: two pipes, one after the other */ dup(m), in_ub(m); break;
  case 1: /* S reads */ dup(m), npu_read_ub_s32(NPU_UB_AT(int32_t, 65536), 0), in_ub(m); break;
  case 2: dup(m), npu_read_gm_s32((const int32_t *)(const void *)m->gm), in_ub(m); break;
  case 3: /* counted mode */
    npu_dup_f32(ub(0), 1, npu_vec_count(48 * 64 - 5));
    npu_dup_f32(ub(0), 1, npu_vec_count(1));
    break;
  case 4: /* an event from pipe to pipe */
    dup(m), sync_pipes(NPU_PIPE_V, NPU_PIPE_MTE2), in_ub(m);
    break;
  case 5: /* the barrier of all cores */ dup(m), npu_barrier_all(), in_ub(m); break;
  case 6: /* a flag */ npu_cross_wait(NPU_PIPE_MTE2, 7), in_ub(m); break;
  case 7: /* cold, then, when it is there, warm */
    npu_copy_gm_ub(ub(0), m->gm + 32768, 1, 512, 512, 512), sync_pipes(NPU_PIPE_MTE2, NPU_PIPE_V),
        dup(m);
    sync_pipes(NPU_PIPE_V, NPU_PIPE_MTE2);
    npu_copy_gm_ub(ub(0), m->gm + 32768, 1, 512, 512, 512), sync_pipes(NPU_PIPE_MTE2, NPU_PIPE_V),
        dup(m);
    break;
  case 9: /* S issues late: the C code is busy, V long since free */
    dup(m);
    for (int i = 0; i < 20; i++)
      npu_read_gm_s32((const int32_t *)(const void *)m->gm);
    dup(m);
    break;
  case 10: /* results are there when the slowest of them is: a miss, then a hit that takes less */
    npu_copy_gm_ub(ub(0), m->gm, 1, 128, 128, 128), npu_barrier(NPU_PIPE_ALL);
    npu_copy_gm_ub(ub(0), m->gm + 32768, 1, 128, 128, 128),
        npu_copy_gm_ub(ub(0), m->gm, 1, 128, 128, 128);
    sync_pipes(NPU_PIPE_MTE2, NPU_PIPE_V), dup(m);
    break;
  case 8: /* a barrier in one pipe */ in_ub(m), npu_barrier(NPU_PIPE_MTE2), in_ub(m); break;
  default: break;
  }
}

static void set_flag_7(const void *args) {
  const memory *m = args;
  if (m->variant == 5)
    npu_barrier_all();
  if (m->variant == 6)
    product(m), npu_cross_set(NPU_PIPE_M, 7);
}

static void wait_flag_too(const void *args) { /* the other AIV takes its flag */
  const memory *m = args;
  if (npu_subcore() && m->variant == 5)
    npu_barrier_all();
  else if (npu_subcore() && m->variant == 6)
    npu_cross_wait(NPU_PIPE_V, 7);
  else
    other_gates(args);
}

/* Cycles from an edge of trace event a to the start of event b. */
static int64_t between(int variant, int a, bool from_end, int b, const char *unit,
                       const char *operation, int64_t more) {
  npu_chip *chip = make_chip("910b2", NPU_TIMING_ONLY);
  const memory m = {make_gm(chip, 1 << 20, "gm"), variant};
  npu_launch_options o = {0};
  npu_report r;
  o.cores = 1, o.trace = 1, o.check_races = -1;
  if (unit) {
    const npu_cost c = *find_cost(chip, unit, operation);
    npu_chip_set_cost(chip, unit, operation, c.fixed_cycles + (double)more * (c.fixed_cycles > 0),
                      c.rate, c.latency_cycles + (double)more * (c.latency_cycles > 0));
  }
  expect_clean(
      "gate",
      npu_launch(chip, variant == 5 || variant == 6 ? set_flag_7 : NULL, wait_flag_too, &m, &o, &r),
      &r);
  const int64_t cycles =
      r.trace[b].start_cycle - (from_end ? r.trace[a].end_cycle : r.trace[a].start_cycle);
  npu_chip_destroy(chip);
  return cycles;
}

static void expect_between(int variant, int a, bool from_end, int b, int64_t want, const char *unit,
                           const char *operation) {
  const int64_t got = between(variant, a, from_end, b, NULL, NULL, 0),
                more = between(variant, a, from_end, b, unit, operation, 7);
  if (got != want || more != want + 7)
    fail_msg("%s %s: %lld cycles, want %lld; with 7 more in the row %lld", unit, operation,
             (long long)got, (long long)want, (long long)more);
}

static void other_gates_are_tight(void **state) {
  (void)state;
  npu_chip *chip = make_chip("910b2", NPU_TIMING_ONLY);
  const int64_t issue = fixed_of(chip, "S", "issue"),
                hop = latency_of(chip, "EVENT", "notify_to_wait");
  expect_between(0, 0, false, 1, issue, "S", "issue");
  expect_between(1, 0, false, 1, issue + fixed_of(chip, "S", "read_ub"), "S", "read_ub");
  expect_between(2, 0, false, 1, issue + fixed_of(chip, "S", "read_gm"), "S", "read_gm");
  expect_between(3, 0, false, 1, 30 + 48 + fixed_of(chip, "V", "counted mode"), "V",
                 "counted mode");
  expect_between(4, 0, true, 1, hop, "EVENT", "notify_to_wait");
  expect_between(5, 0, true, 1, fixed_of(chip, "CHIP", "barrier_all") + issue, "CHIP",
                 "barrier_all");
  expect_between(6, 0, true, 1, latency_of(chip, "CROSS", "set_to_wait"), "CROSS", "set_to_wait");
  const int64_t warm = latency_of(chip, "MTE2", "copy_gm_ub") + hop;
  expect_between(7, 2, true, 3, warm, "EVENT", "notify_to_wait");
  expect_between(7, 0, true, 1, warm + latency_of(chip, "HBM", "miss"), "HBM", "miss");
  expect_between(8, 0, true, 1,
                 latency_of(chip, "MTE2", "copy_gm_ub") + latency_of(chip, "HBM", "miss"), "MTE2",
                 "copy_gm_ub");
  expect_between(9, 0, false, 1, issue + 20 * fixed_of(chip, "S", "read_gm"), "S", "issue");
  expect_between(10, 1, true, 3, warm + latency_of(chip, "HBM", "miss"), "HBM", "miss");
  npu_chip_destroy(chip);
}

/* ---- Unit flags ---- */

/* variant 0: FIX behind the product; 1: a product behind FIX; 2: the same behind a whole buffer. */
static void follow(const void *args) {
  const memory *m = args;
  if (m->variant == 0) {
    product(m), npu_notify_unit(NPU_PIPE_M, NPU_PIPE_FIX, 3);
    npu_wait(NPU_PIPE_M, NPU_PIPE_FIX, 3), out_c(m);
    return;
  }
  out_c(m);
  if (m->variant == 1)
    npu_notify_unit(NPU_PIPE_FIX, NPU_PIPE_M, 3);
  else
    npu_notify(NPU_PIPE_FIX, NPU_PIPE_M, 3);
  npu_wait(NPU_PIPE_FIX, NPU_PIPE_M, 3), product(m);
}

/* The two trace events; `head` and `fix` as fixed cycles of mmad and of the copy. */
static void run_follow(int variant, double head, double fix, npu_trace_event event[2]) {
  npu_chip *chip = make_chip("910b2", NPU_TIMING_ONLY);
  const memory m = {make_gm(chip, 1 << 20, "gm"), variant};
  npu_launch_options o = {0};
  npu_report r;
  o.cores = 1, o.trace = 1, o.check_races = 1, o.check_written = -1;
  npu_chip_set_cost(chip, "M", "mmad", head, 1, 0);
  npu_chip_set_cost(chip, "FIX", "copy_l0c_gm_f32", fix, 70, 0);
  expect_clean("follow", npu_launch(chip, follow, NULL, &m, &o, &r), &r);
  assert_int_equal(r.n_trace, 2);
  memcpy(event, r.trace, 2 * sizeof *event);
  npu_chip_destroy(chip);
}

static void unit_flags_let_one_pipe_follow_the_other(void **state) {
  (void)state;
  const int64_t hop = 10, issue = 4, product_units = 7 * 8 * 6, fix_units = (WORK + 69) / 70;
  npu_trace_event e[2];
  run_follow(0, 10, 1000, e); /* FIX is slower: it starts with the product */
  assert_int_equal(e[1].start_cycle, e[0].start_cycle + issue + hop);
  assert_int_equal(e[1].end_cycle, e[1].start_cycle + 1000 + fix_units);
  run_follow(0, 5000, 0, e); /* the product is slower: FIX ends with it */
  assert_int_equal(e[1].end_cycle, e[0].end_cycle);
  assert_int_equal(e[1].end_cycle - e[1].start_cycle, fix_units);
  run_follow(1, 10, 1000, e); /* a product ends when FIX does, so that the next may start then */
  assert_int_equal(e[1].end_cycle, e[0].end_cycle);
  assert_int_equal(e[1].end_cycle - e[1].start_cycle, 10 + product_units);
  run_follow(1, 5000, 0, e);
  assert_int_equal(e[1].start_cycle, e[0].start_cycle + issue + hop);
  run_follow(2, 10, 1000, e); /* without unit flags it starts then */
  assert_int_equal(e[1].start_cycle, e[0].end_cycle + hop);
}

/* An atomic add may move its bytes in L2 twice: one number says so. */
static void the_traffic_of_an_atomic_add_is_a_cost(void **state) {
  (void)state;
  int64_t hold[2];
  for (int twice = 0; twice < 2; twice++) {
    npu_preset slow = *npu_find_preset("910b2");
    slow.l2_bytes_per_second = 1e10;
    npu_chip *chip = npu_chip_create(&slow, NPU_TIMING_ONLY);
    assert_non_null(chip);
    memory m = {make_gm(chip, 1 << 20, "gm"), 0};
    while (gates[m.variant].run != out_ub_add_f)
      m.variant++;
    npu_chip_set_cost(chip, "L2", "atomic_add", 0, twice ? 0.5 : 1, 0);
    hold[twice] = measure(chip, &m).hold;
    npu_chip_destroy(chip);
  }
  assert_true(llabs(hold[1] - 2 * hold[0]) <= 2 && hold[0] > 2000);
}

static void launch_overhead_is_added_once(void **state) {
  (void)state;
  npu_chip *chip = make_chip("910b2", NPU_TIMING_ONLY);
  const memory m = {make_gm(chip, 1 << 20, "gm"), 0};
  npu_report r;
  expect_clean("launch", launch_one(chip, NULL, other_gates, &m, &r), &r);
  const int64_t inside = r.cycles - r.launch_cycles;
  assert_int_equal(r.launch_cycles, fixed_of(chip, "CHIP", "launch"));
  npu_chip_set_cost(chip, "CHIP", "launch", 5, 1, 0);
  expect_clean("launch", launch_one(chip, NULL, other_gates, &m, &r), &r);
  assert_int_equal(r.cycles, inside + 5);
  assert_true(fabs(r.seconds - (double)r.cycles / 1.8e9) < 1e-12);
  npu_chip_destroy(chip);
}

/* ---- The queue is 32 deep ---- */

static void fill_queue(const void *args) { /* V waits for a slow copy; then `variant` instructions
                                              for V, then one for MTE2 */
  const memory *m = args;
  if (npu_subcore())
    return;
  npu_copy_ub_gm(m->gm, ub(0), 1, 65536, 65536, 65536);
  sync_pipes(NPU_PIPE_MTE3, NPU_PIPE_V); /* the wait is the first of the queue */
  for (int i = 0; i < m->variant; i++)
    npu_dup_f32(ub(131072), 0, rows48());
  npu_copy_gm_ub(ub(65536), m->gm + 131072, 1, 512, 512, 512);
}

static void signal_after_full_queue(
    const void *args) { /* the C code's own notify comes after what it had to say before */
  const memory *m = args;
  if (npu_subcore())
    return;
  npu_wait(NPU_PIPE_S, NPU_PIPE_MTE2, 0);
  npu_copy_gm_ub(ub(65536), m->gm + 131072, 1, 512, 512, 512);
  npu_copy_ub_gm(m->gm, ub(0), 1, 65536, 65536, 65536);
  sync_pipes(NPU_PIPE_MTE3, NPU_PIPE_V);
  for (int i = 0; i < NPU_QUEUE_DEPTH; i++)
    npu_dup_f32(ub(131072), 0, rows48());
  npu_notify(NPU_PIPE_S, NPU_PIPE_MTE2, 0);
}

static void the_scalar_unit_s_notify_waits_for_its_turn(void **state) {
  (void)state;
  npu_chip *chip = make_chip("910b2", NPU_TIMING_ONLY);
  const memory m = {make_gm(chip, 1 << 20, "gm"), 0};
  npu_launch_options o = {0};
  npu_report r;
  o.cores = 1, o.trace = 1;
  expect_clean("signal", npu_launch(chip, NULL, signal_after_full_queue, &m, &o, &r), &r);
  assert_int_equal(r.trace[1].pipe, NPU_PIPE_V); /* MTE3, V at T, MTE2 */
  assert_int_equal(r.trace[2].pipe, NPU_PIPE_MTE2);
  assert_int_equal(r.trace[2].start_cycle - r.trace[1].start_cycle,
                   fixed_of(chip, "S", "issue") + latency_of(chip, "EVENT", "notify_to_wait"));
  npu_chip_destroy(chip);
}

static void the_scalar_unit_stalls_at_the_33rd_instruction(void **state) {
  (void)state;
  npu_chip *chip = make_chip("910b2", NPU_TIMING_ONLY);
  const int64_t issue = fixed_of(chip, "S", "issue");
  for (int fillers = NPU_QUEUE_DEPTH - 1; fillers <= NPU_QUEUE_DEPTH; fillers++) {
    npu_gm_forget_all(chip);
    const memory m = {make_gm(chip, 1 << 20, "gm"), fillers};
    npu_launch_options o = {0};
    npu_report r;
    o.cores = 1, o.trace = 1;
    expect_clean("queue", npu_launch(chip, NULL, fill_queue, &m, &o, &r), &r);
    int64_t mte2 = -1, waited = -1;
    for (int64_t e = 0; e < r.n_trace; e++) {
      if (r.trace[e].pipe == NPU_PIPE_MTE2)
        mte2 = r.trace[e].start_cycle;
      if (r.trace[e].pipe == NPU_PIPE_V && waited < 0)
        waited = r.trace[e].start_cycle;
    }
    if (fillers < NPU_QUEUE_DEPTH)
      assert_int_equal(mte2, issue * (3 + fillers + 1));
    else
      assert_int_equal(mte2, waited + issue);
  }
  npu_chip_destroy(chip);
}

/* ---- Shared bandwidth ---- */

enum { TRANSFER = 65536, TRANSFERS = 64 };

static void stream_own(const void *args) { /* every AIC its own megabytes, each byte once */
  const memory *m = args;
  const size_t share = (size_t)GM_BYTES / (size_t)npu_block_count() / TRANSFER * TRANSFER;
  for (size_t at = 0; at < share; at += TRANSFER)
    npu_copy_gm_l1(l1((uint32_t)(at % (4 * TRANSFER))),
                   m->gm + (size_t)npu_block_index() * share + at, 1, TRANSFER, TRANSFER, TRANSFER);
}

static void read_same(const void *args) {
  const memory *m = args;
  for (size_t i = 0; i < TRANSFERS; i++)
    npu_copy_gm_l1(l1(0), m->gm + i % 8 * TRANSFER, 1, TRANSFER, TRANSFER, TRANSFER);
}

static void read_and_write_same(const void *args) { /* each AIV its own 2 x 8 KB: all in L2 */
  const memory *m = args;
  char *own = m->gm + (size_t)(2 * npu_block_index() + npu_subcore()) * 16384;
  for (int i = 0; i < 512; i++) {
    npu_copy_gm_ub(ub(0), own, 1, 8192, 8192, 8192);
    npu_copy_ub_gm(own + 8192, ub(16384), 1, 8192, 8192, 8192);
  }
}

static void everything_once(const void *args) {
  const memory *m = args;
  in_l1(m), in_l1_nz(m), fill(m), load_a(m), load_b_t(m), product(m), out_c(m), out_c_bf16(m);
}

static void everything_once_aiv(const void *args) {
  const memory *m = args;
  if (npu_subcore())
    return;
  in_ub(m), out_ub(m), out_ub_add_s(m);
}

static void bytes_are_counted_by_level(void **state) {
  (void)state;
  npu_chip *chip = make_chip("910b2", NPU_TIMING_ONLY);
  const memory m = {make_gm(chip, 1 << 20, "gm"), 0};
  npu_report r;
  expect_clean("once", launch_one(chip, everything_once, everything_once_aiv, &m, &r), &r);
  assert_int_equal(r.gm_l1_bytes, 2 * WORK);
  assert_int_equal(r.l1_l0a_bytes, WORK);
  assert_int_equal(r.l1_l0b_bytes, WORK);
  assert_int_equal(r.l0c_gm_bytes, WORK + WORK / 2);
  assert_int_equal(r.gm_ub_bytes, WORK);
  assert_int_equal(r.ub_gm_bytes, 2 * WORK);
  assert_int_equal(r.l2_read_bytes, 3 * WORK);
  assert_int_equal(r.l2_write_bytes, 3 * WORK + WORK / 2);
  assert_int_equal(r.hbm_read_bytes, WORK); /* all of it the same bytes, once */
  assert_true(r.products == 7 * 8 * 6);
  assert_int_equal(r.instructions, 8 + 3);
  npu_chip_destroy(chip);
}

static void multiply_often(const void *args) {
  (void)args;
  for (int i = 0; i < 400; i++)
    npu_mmad_bf16(NPU_L0C_AT(float, 0), NPU_L0A_AT(npu_bf16, 0), NPU_L0B_AT(npu_bf16, 0), 128, 128,
                  256, 1);
}

static void expect_rate(const char *what, double got, double want, double tolerance) {
  if (fabs(got / want - 1) > tolerance)
    fail_msg("%s: %.1f per cycle, want %.1f within %.1f %%", what, got, want, 100 * tolerance);
}

static npu_report run_all(npu_chip *chip, int cores, npu_kernel *aic, npu_kernel *aiv) {
  const memory m = {make_gm(chip, GM_BYTES, "gm"), 0};
  npu_launch_options o = {0};
  npu_report r;
  o.cores = cores;
  expect_clean("stream", npu_launch(chip, aic, aiv, &m, &o, &r), &r);
  r.cycles -= r.launch_cycles;
  return r;
}

static void sustained_rates_are_the_peaks(void **state) {
  (void)state;
  const double clock = 1.8e9;
  npu_report r;
  npu_chip *chip = make_chip("910b2", NPU_TIMING_ONLY);
  r = run_all(chip, 1, stream_own, NULL);
  expect_rate("one core from HBM: its own pipe", (double)GM_BYTES / (double)r.cycles,
              TRANSFER / (16 + TRANSFER / 96.0), 0.01);
  r = run_all(chip, 24, stream_own, NULL);
  expect_rate("24 cores from HBM", (double)r.gm_l1_bytes / (double)r.cycles, 1.6e12 / clock, 0.01);
  assert_int_equal(r.hbm_read_bytes, r.gm_l1_bytes);
  r = run_all(chip, 24, read_same, NULL);
  expect_rate("24 cores from L2, which gives less than their pipes take",
              (double)r.gm_l1_bytes / (double)r.cycles, 3.59e12 / clock, 0.02);
  r = run_all(chip, 1, multiply_often, NULL);
  expect_rate("the cube, 4096 multiplications less 12 cycles of 1024 + 12",
              r.products * 4096 / (double)r.cycles, 4096 * 1024.0 / 1036.0, 0.001);
  npu_chip_set_cost(chip, "MTE2", "copy_gm_l1", 0, 1000, 200); /* pipes that are no limit */
  r = run_all(chip, 24, read_same, NULL);
  expect_rate("24 cores from L2", (double)r.gm_l1_bytes / (double)r.cycles, 3.59e12 / clock, 0.01);
  npu_chip_set_cost(chip, "MTE2", "copy_gm_ub", 0, 1000, 200);
  npu_chip_set_cost(chip, "MTE3", "copy_ub_gm", 0, 1000, 200);
  r = run_all(chip, 24, NULL, read_and_write_same);
  expect_rate("48 cores to and from L2", (double)(r.gm_ub_bytes + r.ub_gm_bytes) / (double)r.cycles,
              5.03e12 / clock, 0.01);
  npu_chip_destroy(chip);

  npu_chip *slow = make_chip("910b4", NPU_TIMING_ONLY); /* another clock, half the HBM, 20 cores */
  r = run_all(slow, 20, stream_own, NULL);
  expect_rate("20 cores from a slower HBM", (double)r.gm_l1_bytes / (double)r.cycles,
              0.8e12 / 1.65e9, 0.01);
  npu_chip_destroy(slow);

  npu_chip *both = make_chip("910", NPU_TIMING_ONLY); /* two dies have two HBMs */
  r = run_all(both, 48, stream_own, NULL);
  expect_rate("48 cores from two HBMs", (double)r.gm_l1_bytes / (double)r.cycles, 3.2e12 / clock,
              0.02);
  npu_chip_destroy(both);
}

/* ---- L2 ---- */

enum { L2_BYTES = 1 << 20 };

static void
cycle_through(const void *args) { /* variant: KB read three times in order, then written once */
  const memory *m = args;
  for (int pass = 0; pass < 3; pass++)
    for (size_t at = 0; at < (size_t)m->variant * 1024; at += 16384)
      npu_copy_gm_ub(ub(0), m->gm + at, 1, 16384, 16384, 16384);
  npu_barrier(NPU_PIPE_ALL);
  for (size_t at = 0; at < (size_t)m->variant * 1024; at += 16384)
    npu_copy_ub_gm(m->gm + at, ub(0), 1, 16384, 16384, 16384);
}

static void first_aiv_cycles(const void *args) {
  if (npu_subcore() == 0)
    cycle_through(args);
}

static void l2_keeps_what_was_used_last(void **state) {
  (void)state;
  npu_preset small = *npu_find_preset("910b2");
  small.l2_bytes = L2_BYTES;
  const struct {
    int kb;
    int64_t read, written;
  } cases[] = {
      {512, 512 << 10, 0}, /* fits: read once; dirty lines stay */
      {1024, 1 << 20, 0},  /* just fits */
      {1040, 3 * (1040 << 10),
       16 << 10}, /* LRU, cycled: every line misses, and the last writes push out the first 16 KB */
      {2048, 3 * (2048 << 10), 1 << 20},
  };
  for (int c = 0; c < LENGTH(cases); c++) {
    npu_chip *chip = npu_chip_create(&small, NPU_TIMING_ONLY);
    assert_non_null(chip);
    const memory m = {make_gm(chip, 4 << 20, "gm"), cases[c].kb};
    npu_report r;
    expect_clean("L2", launch_one(chip, NULL, first_aiv_cycles, &m, &r), &r);
    if (r.hbm_read_bytes != cases[c].read || r.hbm_write_bytes != cases[c].written)
      fail_msg("%d KB: %lld bytes read and %lld written, want %lld and %lld", cases[c].kb,
               (long long)r.hbm_read_bytes, (long long)r.hbm_write_bytes, (long long)cases[c].read,
               (long long)cases[c].written);
    npu_chip_destroy(chip);
  }
}

static void keep_half(const void *args) { /* A, B, A again, C: LRU drops B */
  const memory *m = args;
  static const size_t quarter[] = {0, 1, 2, 3, 0, 1, 4, 5, 0, 1}; /* of 1 MB */
  if (npu_subcore())
    return;
  for (int q = 0; q < LENGTH(quarter); q++)
    for (size_t at = 0; at < 262144; at += 65536)
      npu_copy_gm_ub(ub(0), m->gm + quarter[q] * 262144 + at, 1, 65536, 65536, 65536);
}

static void write_megabytes(const void *args) {
  const memory *m = args;
  if (npu_subcore())
    return;
  for (size_t at = 0; at < 4 << 20; at += 65536)
    npu_copy_ub_gm(m->gm + at, ub(0), 1, 65536, 65536, 65536);
}

static void l2_drops_the_oldest_and_writes_back_behind(void **state) {
  (void)state;
  npu_preset small = *npu_find_preset("910b2");
  small.l2_bytes = L2_BYTES, small.hbm_bytes_per_second = 1e10; /* 6 bytes per cycle */
  npu_chip *chip = npu_chip_create(&small, NPU_TIMING_ONLY);
  assert_non_null(chip);
  const memory m = {make_gm(chip, 4 << 20, "gm"), 0};
  npu_report r;
  expect_clean("LRU", launch_one(chip, NULL, keep_half, &m, &r), &r);
  assert_int_equal(r.hbm_read_bytes, 6 * 262144); /* each quarter once */
  expect_clean("write back", launch_one(chip, NULL, write_megabytes, &m, &r), &r);
  assert_int_equal(r.hbm_write_bytes, (4 << 20) - L2_BYTES);
  const int64_t cycles = 64 * (fixed_of(chip, "MTE3", "copy_ub_gm") + (65536 + 108) / 109) +
                         latency_of(chip, "MTE3", "copy_ub_gm"); /* at the pipe's own rate */
  assert_int_equal(r.cycles - r.launch_cycles, cycles + fixed_of(chip, "S", "issue"));
  npu_chip_destroy(chip);
}

static void read_rows(const void *args) { /* rows of 576 bytes, 1152 apart, from offset `variant` */
  const memory *m = args;
  for (int pass = 0; pass < 2; pass++)
    npu_copy_gm_l1_nd2nz_bf16(l1(0), (const npu_bf16 *)(const void *)(m->gm + m->variant), 128, 288,
                              576, 128);
}

static void transfers_move_pieces_of_128_bytes(void **state) {
  (void)state;
  npu_chip *chip = make_chip("910b2", NPU_TIMING_ONLY);
  char *gm = make_gm(chip, 1 << 20, "gm");
  const struct {
    int offset;
    int64_t bytes;
  } cases[] = {{0, 128 * 640}, {64, 128 * 640}, {100, 128 * 768}, {2, 128 * 640}, {126, 128 * 768}};
  for (int c = 0; c < LENGTH(cases); c++) {
    const memory m = {gm, cases[c].offset};
    npu_launch_options o = {0};
    npu_report r;
    o.cores = 1, o.trace = 1;
    expect_clean("rows", npu_launch(chip, read_rows, NULL, &m, &o, &r), &r);
    const int64_t held = r.trace[1].end_cycle - r.trace[1].start_cycle,
                  want = 16 + (cases[c].bytes + 95) / 96;
    if (held != want)
      fail_msg("rows from offset %d: %lld cycles, want %lld", cases[c].offset, (long long)held,
               (long long)want);
    assert_int_equal(r.gm_l1_bytes, 2 * 128 * 576); /* what the kernel asked for */
  }
  npu_chip_destroy(chip);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(every_instruction_s_gate_is_tight),
      cmocka_unit_test(every_row_of_an_instruction_has_a_gate),
      cmocka_unit_test(documented_costs),
      cmocka_unit_test(other_gates_are_tight),
      cmocka_unit_test(unit_flags_let_one_pipe_follow_the_other),
      cmocka_unit_test(the_traffic_of_an_atomic_add_is_a_cost),
      cmocka_unit_test(launch_overhead_is_added_once),
      cmocka_unit_test(the_scalar_unit_stalls_at_the_33rd_instruction),
      cmocka_unit_test(the_scalar_unit_s_notify_waits_for_its_turn),
      cmocka_unit_test(bytes_are_counted_by_level),
      cmocka_unit_test(sustained_rates_are_the_peaks),
      cmocka_unit_test(l2_keeps_what_was_used_last),
      cmocka_unit_test(l2_drops_the_oldest_and_writes_back_behind),
      cmocka_unit_test(transfers_move_pieces_of_128_bytes),
  };
  return cmocka_run_group_tests_name("sim_timing", tests, NULL, NULL);
}
