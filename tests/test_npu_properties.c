/* SPDX-License-Identifier: Apache-2.0
 *
 * Properties that need no oracle, of the Ascend kernel on the simulated NPU through the library's
 * API, in all rescale modes: pages in another order and company in the batch change no bit; splits
 * change nothing beyond rounding; a constant on all logits moves LSE only; a power of two on V
 * comes out exactly; doubled keys add ln 2; sinks scale O; NaN stays where it belongs; columns of V
 * that start at zero are right; rows without keys are 0 and -inf. P is rounded to bf16, so
 * tolerances are those of bf16.
 */
#include "test_run.h"

static amla_options npu(amla_rescale rescale) {
  return make_options(AMLA_BACKEND_NPU, rescale, AMLA_ISA_AUTO, 1, AMLA_SPLIT_BY_LENGTH);
}

static void for_each_mode(void (*check)(const amla_options *options)) {
  for (int r = 0; r < (TEST_SLOW ? 1 : LENGTH(rescales));
       r++) { /* lazy is the first; a sanitizer is slow */
    const amla_options o = npu(rescales[r]);
    check(&o);
  }
}

static void expect_near(double got, double want, double tolerance, const char *what, int64_t row,
                        const amla_options *o) {
  if (!(fabs(got - want) <= tolerance))
    fail_msg("%s, row %lld, %s: %g, want %g", what, (long long)row, describe_options(o), got, want);
}

static void expect_same_rows(const harness_dataset *a, int64_t row_a, const harness_dataset *b,
                             int64_t row_b, int64_t n, const char *what, const amla_options *o) {
  for (int64_t i = 0; i < n; i++)
    if (!same_row(a, row_a + i, b, row_b + i))
      fail_msg("%s changes bits of row %lld, %s", what, (long long)(row_a + i),
               describe_options(o));
}

static harness_dataset run_problem(const char *problem, const amla_options *o) {
  harness_dataset d;
  generate(&d, problem);
  run(&d, problem, o);
  return d;
}

/* ---- Bits ---- */

static void check_pages(const amla_options *o) {
  const char *problem = "b=2,sq=2,h=12,sk=1100,len=1100/77,page=50",
             *contiguous = "b=2,sq=2,h=12,sk=1100,len=1100/77,page=0";
  harness_dataset a, b = run_problem(contiguous, o);
  generate(&a, problem);
  for (int32_t s = 0; s < 2; s++) /* the same tokens */
    for (int64_t j = 0; j < a.seqlens_k[s]; j++)
      memcpy((uint16_t *)a.kv + kv_token_offset(&a, s, j),
             (uint16_t *)b.kv + kv_token_offset(&b, s, j), 576 * 2);
  memcpy(a.q, b.q, a.tensors.q_bytes);
  run(&a, problem, o);
  expect_same_rows(&a, 0, &b, 0, n_rows(&a), "paging", o);
  harness_free(&a), harness_free(&b);
}
static void pages_do_not_change_a_bit(void **state) {
  (void)state;
  for_each_mode(check_pages);
}

static void check_company(const amla_options *o) {
  const char *all = "b=4,sq=2,h=70,sk=5000,page=64,len=1700/0/5000/33", *problem = "alone";
  harness_dataset whole = run_problem(all, o);
  for (int32_t s = 0; s < 4; s++) { /* the sequence alone, in the same cache */
    harness_dataset one = {.problem = whole.problem, .options = whole.options};
    one.problem.b = 1;
    one.q = harness_allocate(whole.problem.q_stride_batch, 2);
    one.block_table = harness_allocate(whole.problem.max_pages, sizeof(int32_t));
    one.seqlens_k = harness_allocate(1, sizeof(int32_t));
    assert_true(one.q && one.block_table && one.seqlens_k);
    memcpy(one.q, (uint16_t *)whole.q + s * whole.problem.q_stride_batch,
           (size_t)whole.problem.q_stride_batch * 2);
    memcpy(one.block_table, whole.block_table + (int64_t)s * whole.problem.max_pages,
           (size_t)whole.problem.max_pages * sizeof(int32_t));
    one.seqlens_k[0] = whole.seqlens_k[s];
    assert_true(harness_attach(&one));
    one.tensors.kv = whole.kv, one.tensors.kv_bytes = whole.tensors.kv_bytes;
    run(&one, problem, o);
    expect_same_rows(&whole, s * 140, &one, 0, 140, "company", o);
    harness_free(&one);
  }
  harness_free(&whole);
}
static void company_does_not_change_a_bit(void **state) {
  (void)state;
  for_each_mode(check_company);
}

/* ---- Rounding ---- */

static void check_splits(const amla_options *o) {
  static const int32_t splits[] = {512, 1024, AMLA_SPLIT_AUTO};
  const char *problem = "b=2,sq=2,h=12,sk=2100,len=2100/513,sinks=1";
  harness_dataset a = run_problem(problem, o);
  for (int i = 0; i < LENGTH(splits); i++) {
    amla_options other = *o;
    other.split_tokens = splits[i];
    harness_dataset b = run_problem(problem, &other);
    for (int64_t row = 0; row < n_rows(&a); row++) {
      expect_near((double)lse_at(&b, row), (double)lse_at(&a, row),
                  2e-6 * fabs((double)lse_at(&a, row)), "LSE of splits", row, &other);
      for (int32_t c = 0; c < 512; c++)
        expect_near((double)out_at(&b, row, c), (double)out_at(&a, row, c), 0.02, "O of splits",
                    row, &other);
    }
    harness_free(&b);
  }
  harness_free(&a);
}
static void splits_change_rounding_only(void **state) {
  (void)state;
  for_each_mode(check_splits);
}

static void set_column(harness_dataset *d, int32_t dim, float q, float kv) {
  for (int64_t row = 0; row < n_rows(d); row++)
    harness_store(d->q, AMLA_BF16, q_row_offset(&d->problem, row) + dim, q);
  for (int32_t s = 0; s < d->problem.b; s++)
    for (int64_t j = 0; j < d->seqlens_k[s]; j++)
      harness_store(d->kv, AMLA_BF16, kv_token_offset(d, s, j) + dim, kv);
}

static void check_added_constant(const amla_options *o) {
  const char *problem = "b=2,sq=2,h=11,sk=700,dqk=33,dv=32,scale=0.25,len=700/77";
  harness_dataset a, b;
  generate(&a, problem), generate(&b, problem);
  set_column(&a, 32, 0.0f, 1.0f), set_column(&b, 32, -64.0f, 1.0f); /* every logit falls by 16 */
  run(&a, problem, o), run(&b, problem, o);
  for (int64_t row = 0; row < n_rows(&a); row++) {
    expect_near((double)lse_at(&b, row), (double)lse_at(&a, row) - 16.0, 1e-5,
                "LSE after -16 on all logits", row, o);
    for (int32_t c = 0; c < 32; c++)
      expect_near((double)out_at(&b, row, c), (double)out_at(&a, row, c), 0.02,
                  "O after -16 on all logits", row, o);
  }
  harness_free(&a), harness_free(&b);
}
static void a_constant_on_logits_moves_lse_only(void **state) {
  (void)state;
  for_each_mode(check_added_constant);
}

/* With q = 0 on the value's dimensions the value does not reach the scores. amla's compensation
 * works on mantissas, which a power of two keeps. */
static void check_scaled_value(const amla_options *o) {
  static const int powers[] = {-20, 1, 30};
  const char *problem = "b=2,h=6,sk=1200,dqk=40,dv=32,len=1200/33,dist=rising:60,scale=0.3";
  for (int i = 0; i < LENGTH(powers); i++) {
    harness_dataset a, b;
    generate(&a, problem), generate(&b, problem);
    for (int64_t row = 0; row < n_rows(&a); row++)
      for (int32_t c = 0; c < 32; c++)
        harness_store(a.q, AMLA_BF16, q_row_offset(&a.problem, row) + c, 0),
            harness_store(b.q, AMLA_BF16, q_row_offset(&b.problem, row) + c, 0);
    for (int32_t s = 0; s < 2; s++)
      for (int64_t j = 0; j < b.seqlens_k[s]; j++)
        for (int32_t c = 0; c < 32; c++) {
          const int64_t at = kv_token_offset(&b, s, j) + c;
          harness_store(b.kv, AMLA_BF16, at, ldexpf(harness_load(a.kv, AMLA_BF16, at), powers[i]));
        }
    run(&a, problem, o), run(&b, problem, o);
    for (int64_t row = 0; row < n_rows(&a); row++) {
      if (to_bits(lse_at(&a, row)) != to_bits(lse_at(&b, row)))
        fail_msg("V * 2^%d changes LSE, %s", powers[i], describe_options(o));
      for (int32_t c = 0; c < 32; c++)
        if (to_bits(out_at(&b, row, c)) != to_bits(ldexpf(out_at(&a, row, c), powers[i])))
          fail_msg("V * 2^%d: O is %a, want %a * 2^%d, %s", powers[i], (double)out_at(&b, row, c),
                   (double)out_at(&a, row, c), powers[i], describe_options(o));
    }
    harness_free(&a), harness_free(&b);
  }
}
static void a_power_of_two_on_v_comes_out_exactly(void **state) {
  (void)state;
  for_each_mode(check_scaled_value);
}

static void check_doubled_keys(const amla_options *o) {
  const char *once = "h=13,sk=331,dqk=40,dv=24,page=0,causal=0",
             *twice = "h=13,sk=662,dqk=40,dv=24,page=0,causal=0";
  harness_dataset a = run_problem(once, o), b;
  generate(&b, twice);
  memcpy(b.kv, a.kv, a.tensors.kv_bytes),
      memcpy((char *)b.kv + a.tensors.kv_bytes, a.kv, a.tensors.kv_bytes);
  memcpy(b.q, a.q, a.tensors.q_bytes);
  run(&b, twice, o);
  for (int64_t row = 0; row < n_rows(&a); row++) {
    expect_near((double)lse_at(&b, row), (double)lse_at(&a, row) + log(2), 2e-6,
                "LSE of doubled keys", row, o);
    for (int32_t c = 0; c < 24; c++)
      expect_near((double)out_at(&b, row, c), (double)out_at(&a, row, c), 0.02, "O of doubled keys",
                  row, o);
  }
  harness_free(&a), harness_free(&b);
}
static void doubled_keys_add_ln_2_to_lse(void **state) {
  (void)state;
  for_each_mode(check_doubled_keys);
}

/* ---- Special numbers ---- */

/* A NaN, or an infinity of either sign, in one element of q poisons its row; in one of kv every row
 * that sees the token; nothing else changes a bit. */
static void check_poison(const amla_options *o) {
  static const float bad[] = {NAN, INFINITY, -INFINITY};
  static const int32_t dims[] = {3, 570}; /* value, and rope: moves scores only */
  const char *problem = "b=2,h=20,sk=900,len=900/700,causal=0";
  harness_dataset good = run_problem(problem, o);
  for (int i = 0; i < LENGTH(bad); i++)
    for (int k = 0; k < LENGTH(dims); k++) {
      harness_dataset q, kv;
      generate(&q, problem), generate(&kv, problem);
      harness_store(q.q, AMLA_BF16, q_row_offset(&q.problem, 7) + dims[k], bad[i]);
      harness_store(kv.kv, AMLA_BF16, kv_token_offset(&kv, 1, 600) + dims[k], bad[i]);
      run(&q, problem, o), run(&kv, problem, o);
      for (int64_t row = 0; row < n_rows(&q); row++) {
        if (row == 7 ? row_is_finite(&q, row) || isfinite(lse_at(&q, row))
                     : !same_row(&q, row, &good, row))
          fail_msg("%g in dim %d of q's row 7: row %lld, %s", (double)bad[i], dims[k],
                   (long long)row, describe_options(o));
        if (row >= 20 ? row_is_finite(&kv, row) || isfinite(lse_at(&kv, row))
                      : !same_row(&kv, row, &good, row))
          fail_msg("%g in dim %d of sequence 1's kv: row %lld, %s", (double)bad[i], dims[k],
                   (long long)row, describe_options(o));
      }
      harness_free(&q), harness_free(&kv);
    }
  harness_free(&good);
}
static void poison_stays_where_it_belongs(void **state) {
  (void)state;
  for_each_mode(check_poison);
}

/* Columns of V that are +0, -0, tiny or large in the first of two tiles, the second with logits
 * that are higher by `jump`. amla as published makes -1.5e37 and NaN of the small ones, and leaves
 * 2^-30 of the large one behind. */
static void check_late_columns_at(const amla_options *o, float jump) {
  static const float early[] = {0.0f, -0.0f, 0x1p-120f, -0x1p-126f, 0x1p60f};
  const char *problem = "h=16,sk=1024,scale=0.125";
  harness_dataset d;
  harness_truth truth;
  generate(&d, problem);
  for (int32_t c = 0; c < LENGTH(early); c++)
    for (int64_t j = 0; j < 512; j++)
      harness_store(d.kv, AMLA_BF16, kv_token_offset(&d, 0, j) + 3 + c, early[c]);
  for (int64_t row = 0; row < n_rows(&d); row++) {
    const int64_t q = q_row_offset(&d.problem, row);
    for (int32_t c = 0; c < LENGTH(early); c++)
      harness_store(d.q, AMLA_BF16, q + 3 + c, 0.0f);
    harness_store(d.q, AMLA_BF16, q + 575, 8.0f);
  }
  for (int64_t j = 0; j < 1024; j++)
    harness_store(d.kv, AMLA_BF16, kv_token_offset(&d, 0, j) + 575, j < 512 ? 0.0f : jump);
  compute_truth_of(&d, &truth);
  run(&d, problem, o);
  const harness_error e = harness_compare_rounded_p(&d, &truth, AMLA_BF16);
  if (!e.ok)
    fail_msg("V late: row %lld is %.3g times its bound away, %s", (long long)e.worst_row,
             e.worst_of_bound, describe_options(o));
  harness_truth_free(&truth);
  harness_free(&d);
}
static void check_late_columns(const amla_options *o) {
  check_late_columns_at(o, 0.0f), check_late_columns_at(o, 3.0f), check_late_columns_at(o, 128.0f);
}
static void columns_that_start_at_zero_are_right(void **state) {
  (void)state;
  for_each_mode(check_late_columns);
}

static void check_empty(const amla_options *o) {
  const char *problem = "b=3,sq=3,h=7,sk=600,len=0/1/600,sinks=1,out=bf16";
  harness_dataset d = run_problem(problem, o);
  for (int64_t row = 0; row < n_rows(&d); row++) {
    const bool empty =
        row < 21 || row < 21 + 14; /* all of sequence 0; queries 0 and 1 of sequence 1 */
    if (empty != (lse_at(&d, row) == -INFINITY))
      fail_msg("LSE of row %lld is %g, %s", (long long)row, (double)lse_at(&d, row),
               describe_options(o));
    for (int32_t c = 0; empty && c < 512; c++)
      if (out_at(&d, row, c) != 0.0f)
        fail_msg("O of an empty row is %g, %s", (double)out_at(&d, row, c), describe_options(o));
  }
  harness_free(&d);
}
static void empty_rows_are_zero(void **state) {
  (void)state;
  for_each_mode(check_empty);
}

static void check_sinks(const amla_options *o) {
  const char *with = "b=2,sq=2,h=9,sk=150,dqk=40,dv=24,len=150/1,sinks=1",
             *without = "b=2,sq=2,h=9,sk=150,dqk=40,dv=24,len=150/1";
  harness_dataset a = run_problem(without, o), b;
  generate(&b, with);
  b.sinks[0] = -INFINITY; /* no sink at all */
  run(&b, with, o);
  for (int64_t row = 0; row < n_rows(&a); row++) {
    if (to_bits(lse_at(&a, row)) != to_bits(lse_at(&b, row)))
      fail_msg("a sink changes LSE in row %lld, %s", (long long)row, describe_options(o));
    const double factor = lse_at(&a, row) == -INFINITY
                              ? 1
                              : 1 / (1 + exp((double)b.sinks[row % 9] - (double)lse_at(&a, row)));
    for (int32_t c = 0; c < 24; c++)
      expect_near((double)out_at(&b, row, c), factor * (double)out_at(&a, row, c),
                  4e-6 * fabs((double)out_at(&a, row, c)), "sink", row, o);
  }
  harness_free(&a), harness_free(&b);
}
static void sinks_scale_o_and_leave_lse(void **state) {
  (void)state;
  for_each_mode(check_sinks);
}

/* ---- What a plan says of itself ---- */

static amla_plan_info query(amla_dtype type, int32_t split_tokens) {
  amla_problem p = AMLA_PROBLEM_INIT;
  p.b = 1, p.h_q = 16, p.sk = 4096, p.d_qk = 576, p.d_v = 512, p.scale = 1.0f;
  p.q_type = p.kv_type = type, p.out_type = AMLA_F32;
  amla_options o = npu(AMLA_RESCALE_LAZY);
  o.split_tokens = split_tokens;
  amla_plan_info info = AMLA_PLAN_INFO_INIT;
  amla_plan *plan;
  amla_detail d;
  if (amla_plan_create(&plan, &p, &o, &d) != AMLA_OK || amla_plan_query(plan, &info, &d) != AMLA_OK)
    fail_msg("%s", d.text);
  amla_plan_destroy(plan);
  return info;
}

static void a_plan_tells_p_and_splits(void **state) {
  (void)state;
  const amla_plan_info by_length = query(AMLA_BF16, AMLA_SPLIT_BY_LENGTH);
  const int32_t tile = by_length.tile_tokens;
  assert_int_equal(by_length.p_type, AMLA_BF16);
  assert_int_equal(query(AMLA_F16, AMLA_SPLIT_BY_LENGTH).p_type, AMLA_F16);
  assert_in_range(by_length.split_tokens, tile, 4096);
  assert_int_equal(query(AMLA_BF16, tile + 1).split_tokens, 2 * tile);
  assert_int_equal(query(AMLA_BF16, AMLA_SPLIT_AUTO).split_tokens, AMLA_SPLIT_AUTO);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(pages_do_not_change_a_bit),
                                     cmocka_unit_test(company_does_not_change_a_bit),
                                     cmocka_unit_test(splits_change_rounding_only),
                                     cmocka_unit_test(a_constant_on_logits_moves_lse_only),
                                     cmocka_unit_test(a_power_of_two_on_v_comes_out_exactly),
                                     cmocka_unit_test(doubled_keys_add_ln_2_to_lse),
                                     cmocka_unit_test(poison_stays_where_it_belongs),
                                     cmocka_unit_test(columns_that_start_at_zero_are_right),
                                     cmocka_unit_test(empty_rows_are_zero),
                                     cmocka_unit_test(sinks_scale_o_and_leave_lse),
                                     cmocka_unit_test(a_plan_tells_p_and_splits)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
