/* SPDX-License-Identifier: Apache-2.0
 *
 * Whole runs with the rows of the table that multiply bf16, by their model in C (ukr_model_bf16.c),
 * which runs everywhere: the loop's side of their contract. Every form of P within its bound of
 * fp64; the same bits for any threads and in any batch; keys of other types rounded as asked. What
 * machine code makes of the kernels is in tests/emulated.
 */
#include "harness/kv_rows.h"
#include "test_run.h"

static const amla_p_form forms[] = {AMLA_P_F32, AMLA_P_BF16};

static amla_options options_of(amla_p_form form, amla_rescale rescale, int32_t threads) {
  amla_options o =
      make_options(AMLA_BACKEND_CPU, rescale, AMLA_ISA_C, threads, AMLA_SPLIT_BY_LENGTH);
  o.p_form = form;
  return o;
}

/* ---- Which row ---- */

static amla_plan_info info_for(const char *problem, amla_p_form form, amla_kv_round round) {
  harness_dataset data;
  amla_options o = options_of(form, AMLA_RESCALE_LAZY, 1);
  o.kv_round = round;
  generate(&data, problem);
  const amla_plan_info info = info_of(&data, &o);
  harness_free(&data);
  return info;
}

static void types_and_options_choose_the_row(void **state) {
  (void)state;
  static const struct {
    const char *problem;
    amla_p_form form;
    amla_kv_round round;
    amla_dtype key_type;
    amla_p_form runs;
  } rows[] = {
      {"h=16,sk=8,out=f32", AMLA_P_DEFAULT, AMLA_KV_EXACT, AMLA_BF16, AMLA_P_F32},
      {"h=16,sk=8,out=bf16", AMLA_P_DEFAULT, AMLA_KV_EXACT, AMLA_BF16, AMLA_P_F32},
      {"h=16,sk=8,out=bf16", AMLA_P_BF16X2, AMLA_KV_EXACT, AMLA_BF16, AMLA_P_F32},
      {"h=16,sk=8,out=f32", AMLA_P_BF16, AMLA_KV_EXACT, AMLA_BF16, AMLA_P_BF16},
      {"h=16,sk=8,out=f32,kv=f32", AMLA_P_BF16, AMLA_KV_EXACT, AMLA_F32, AMLA_P_F32},
      {"h=16,sk=8,out=f32,kv=f16", AMLA_P_BF16, AMLA_KV_BF16, AMLA_BF16, AMLA_P_BF16},
      {"h=16,sk=8,out=bf16,kv=q8_0", AMLA_P_DEFAULT, AMLA_KV_BF16, AMLA_BF16, AMLA_P_F32},
      {"h=16,sk=8,dqk=512,out=f32,kv=fp8_584", AMLA_P_BF16, AMLA_KV_EXACT, AMLA_BF16, AMLA_P_BF16},
      {"h=16,sk=8,out=f32,kv=fp8_656", AMLA_P_BF16, AMLA_KV_EXACT, AMLA_F32, AMLA_P_F32},
      {"h=16,sk=8,out=f32,kv=fp8_656", AMLA_P_BF16, AMLA_KV_BF16, AMLA_BF16, AMLA_P_BF16},
      {"h=16,sk=8,out=f32,kv=fp8_e4m3", AMLA_P_DEFAULT, AMLA_KV_EXACT, AMLA_F32, AMLA_P_F32},
      {"h=16,sk=8,out=f32,kv=fp8_e4m3", AMLA_P_DEFAULT, AMLA_KV_BF16, AMLA_BF16, AMLA_P_F32},
      {"h=16,sk=8,out=bf16,q=f32", AMLA_P_BF16, AMLA_KV_BF16, AMLA_F32, AMLA_P_F32},
      {"h=16,sk=8,out=bf16,q=f16", AMLA_P_BF16, AMLA_KV_BF16, AMLA_F32, AMLA_P_F32},
  };
  for (int i = 0; i < LENGTH(rows); i++) {
    const amla_plan_info info = info_for(rows[i].problem, rows[i].form, rows[i].round);
    if (info.key_type != rows[i].key_type || info.p_form != rows[i].runs)
      fail_msg("'%s' p_form=%s: keys in %s, P in %s", rows[i].problem,
               amla_p_form_name(rows[i].form), amla_dtype_name(info.key_type),
               amla_p_form_name(info.p_form));
    assert_int_equal(info.p_type, info.p_form == AMLA_P_BF16 ? AMLA_BF16 : AMLA_F32);
    assert_int_equal(info.q_form, AMLA_Q_DEFAULT);
  }
}

/* ---- The bound ---- */

static void random_problem(uint64_t *seed, const char *kv, char *text, size_t bytes) {
  static const char *const dists[] = {"normal:1", "uniform:2", "rising",   "outlier",   "onehot",
                                      "peaked",   "zerov",     "normal:3", "outlier:20"};
  static const char *const outs[] = {"f32", "bf16", "f16"};
  static const int pages[] = {0, 1, 3, 16, 64}, heads[] = {1, 6, 16, 17, 40, 64};
  static const int lengths[] = {1, 2, 63, 95, 96, 97, 193, 400};
  static const int dims[][2] = {{512, 512}, {576, 512}, {64, 48}, {96, 96}, {7, 3}, {33, 33}};
  const bool whole = strcmp(kv, "q8_0") == 0;
  int d = random_below(seed, whole ? 4 : LENGTH(dims));
  if (strcmp(kv, "fp8_584") == 0)
    d = 0;
  if (strcmp(kv, "fp8_656") == 0)
    d = 1;
  const int sk = lengths[random_below(seed, LENGTH(lengths))];
  const char *const lse = random_below(seed, 2) ? "e" : "2";
  const int pad = whole ? 32 * random_below(seed, 2) : random_below(seed, 4);
  const double scale = random_below(seed, 4) ? 0.0722 : -0.2;
  const char *const len = random_below(seed, 2) ? "ragged" : "fixed";
  snprintf(text, bytes,
           "b=2,sq=%d,h=%d,sk=%d,dqk=%d,dv=%d,page=%d,kv=%s,out=%s,causal=%d,lse=%s,sinks=%d,"
           "mask=%d,pad=%d,scale=%g,dist=%s,len=%s,seed=%d",
           1 + random_below(seed, 2), heads[random_below(seed, LENGTH(heads))], sk, dims[d][0],
           dims[d][1], pages[random_below(seed, LENGTH(pages))], kv,
           outs[random_below(seed, LENGTH(outs))], random_below(seed, 2), lse,
           random_below(seed, 2), random_below(seed, 3) == 0, pad, scale,
           dists[random_below(seed, LENGTH(dists))], len, random_below(seed, 1000));
}

static void every_form_is_within_its_bound(void **state) {
  (void)state;
  uint64_t seed = 15;
  for (int i = 0; i < (TEST_SLOW ? 24 : 90); i++) {
    char problem[512];
    const amla_options o = options_of(forms[i % 2], rescales[i / 2 % 3], 1 + i % 3);
    random_problem(&seed, i % 5 ? "bf16" : "fp8_584", problem, sizeof problem);
    check_problem(problem, &o);
  }
}

/* P in bf16 is rounded indeed: out is farther from the truth than f32's bound allows, LSE is not.
 */
static void rounding_of_p_shows_in_out_alone(void **state) {
  (void)state;
  const char *problem = "h=40,sk=300,out=f32,dist=normal:1";
  for (int r = 0; r < LENGTH(rescales); r++) {
    harness_dataset data;
    harness_truth truth;
    const amla_options o = options_of(AMLA_P_BF16, rescales[r], 2);
    generate(&data, problem);
    compute_truth_of(&data, &truth);
    run(&data, problem, &o);
    expect_within_bound(&data, &truth, problem, &o);
    const harness_error e = harness_compare(&data, &truth);
    assert_false(e.ok);
    assert_true(e.rel_error > 0x1p-13 && e.rel_error < 0x1p-8);
    data.tensors.out = NULL;
    assert_true(harness_compare(&data, &truth).ok);
    harness_truth_free(&truth);
    harness_free(&data);
  }
}

/* Values that are all alike come out as they are, however P is rounded: the second sum, which
 * divides O, has the same roundings. Through moving references, splits and merges. */
static void common_roundings_cancel(void **state) {
  (void)state;
  const char *problem = "h=40,sk=1500,dqk=64,dv=48,page=0,out=f32,dist=rising";
  for (int r = 0; r < LENGTH(rescales); r++) {
    harness_dataset data;
    const amla_options o = options_of(AMLA_P_BF16, rescales[r], 3);
    generate(&data, problem);
    for (int64_t i = 0; i < 1500 * 64; i++)
      if (i % 64 < 48)
        harness_store(data.kv, AMLA_BF16, i, 0.3125f);
    run(&data, problem, &o);
    for (int64_t row = 0; row < n_rows(&data); row++)
      for (int32_t c = 0; c < 48; c++)
        if (fabsf(out_at(&data, row, c) - 0.3125f) > 0x1p-20f)
          fail_msg("%s: row %lld is %a", describe_options(&o), (long long)row,
                   (double)out_at(&data, row, c));
    harness_free(&data);
  }
}

/* The bound sees a P that is rounded twice as coarsely as bf16: O of every row times 1 + 2^-6. */
static void bound_of_bf16_is_tight_enough(void **state) {
  (void)state;
  const char *problem = "h=8,sk=300,out=f32,dist=uniform:2";
  harness_dataset data;
  harness_truth truth;
  const amla_options o = options_of(AMLA_P_BF16, AMLA_RESCALE_LAZY, 1);
  generate(&data, problem);
  compute_truth_of(&data, &truth);
  run(&data, problem, &o);
  const amla_plan_info info = info_of(&data, &o);
  assert_true(harness_compare_plan(&data, &truth, &info).ok);
  for (int64_t i = 0; i < truth.n_rows * truth.d_v; i++)
    ((float *)data.out)[i] = (float)truth.out[i] + (float)truth.out_abs[i] * 0x1.1p-7f;
  assert_false(harness_compare_plan(&data, &truth, &info).ok);
  harness_truth_free(&truth);
  harness_free(&data);
}

/* ---- The same bits ---- */

static void expect_same_outputs(const harness_dataset *a, const harness_dataset *b,
                                const amla_options *o) {
  for (int64_t row = 0; row < n_rows(a); row++)
    if (!same_row(a, row, b, row))
      fail_msg("%s: row %lld differs", describe_options(o), (long long)row);
}

static void threads_do_not_change_a_bit(void **state) {
  (void)state;
  const char *problem = "b=2,h=70,sk=1500,dqk=64,dv=48,len=ragged,out=f32,mask=1";
  for (int f = 0; f < LENGTH(forms); f++)
    for (int r = 0; r < LENGTH(rescales); r++) {
      harness_dataset one, many;
      const amla_options alone = options_of(forms[f], rescales[r], 1);
      generate(&one, problem);
      generate(&many, problem);
      run(&one, problem, &alone);
      for (int threads = 2; threads <= 5; threads++) {
        const amla_options o = options_of(forms[f], rescales[r], threads);
        run(&many, problem, &o);
        expect_same_outputs(&one, &many, &o);
      }
      harness_free(&one);
      harness_free(&many);
    }
}

/* A sequence has the bits that it has alone. */
static void batches_do_not_change_a_bit(void **state) {
  (void)state;
  const char *problem = "b=3,h=40,sk=900,dqk=64,dv=48,page=16,len=900/31/500,out=f32";
  for (int f = 0; f < LENGTH(forms); f++) {
    harness_dataset all, one;
    const amla_options o = options_of(forms[f], AMLA_RESCALE_LAZY, 3);
    generate(&all, problem);
    run(&all, problem, &o);
    generate(&one, problem);
    const int64_t table = one.problem.max_pages, rows = one.problem.h_q;
    one.problem.b = 1;
    for (int64_t s = 0; s < 3; s++) {
      one.tensors.block_table = one.block_table + s * table;
      one.tensors.seqlens_k = all.tensors.seqlens_k + s;
      one.tensors.q = (const char *)one.q + (size_t)(q_row_offset(&all.problem, s * rows) * 2);
      run(&one, problem, &o);
      for (int64_t row = 0; row < rows; row++)
        assert_true(same_row(&one, row, &all, s * rows + row));
    }
    harness_free(&all);
    harness_free(&one);
  }
}

/* ---- kv_round ---- */

/* Keys of another type give the bits of a cache of bf16 that holds them rounded; those of fp8_584
 * without being asked to, as bf16 has them exactly. */
static void keys_are_rounded_to_nearest_even(void **state) {
  (void)state;
  static const char *const kinds[][2] = {
      {"f32", "dqk=96,dv=64"},       {"f16", "dqk=96,dv=64"}, {"q8_0", "dqk=96,dv=64"},
      {"fp8_e4m3", "dqk=99,dv=64"},  {"fp8_656", "dqk=576"},  {"fp8_584", "dqk=512"},
      {"fp8_e4m3", "dqk=700,dv=600"}};
  for (int k = 0; k < LENGTH(kinds); k++)
    for (int f = 0; f < LENGTH(forms); f++) {
      char problem[256], of_bf16[200];
      harness_dataset exact, rounded;
      amla_options o = options_of(forms[f], AMLA_RESCALE_LAZY, 2);
      snprintf(of_bf16, sizeof of_bf16, "h=20,sk=130,page=0,out=f32,%s", kinds[k][1]);
      snprintf(problem, sizeof problem, "%s,kv=%s", of_bf16, kinds[k][0]);
      generate(&exact, problem);
      generate(&rounded, of_bf16);
      const amla_problem *p = &exact.problem;
      o.kv_round = p->kv_type == AMLA_FP8_584 ? AMLA_KV_EXACT : AMLA_KV_BF16;
      for (int64_t i = 0; i < 130 * (int64_t)p->d_qk; i++) {
        const int64_t at = harness_token_offset(p, NULL, 0, i / p->d_qk);
        const float x = harness_load_kv(p, exact.kv, at, (int32_t)(i % p->d_qk));
        harness_store(rounded.kv, AMLA_BF16, i, x);
        assert_true(o.kv_round || to_bits(x) == to_bits(harness_load(rounded.kv, AMLA_BF16, i)));
      }
      memcpy(rounded.q, exact.q, exact.tensors.q_bytes);
      run(&exact, problem, &o);
      run(&rounded, problem, &o);
      expect_same_outputs(&exact, &rounded, &o);
      harness_free(&exact);
      harness_free(&rounded);
    }
}

static void rounded_keys_are_within_their_bound(void **state) {
  (void)state;
  static const char *const kinds[] = {"f32", "f16", "q8_0", "fp8_656", "fp8_e4m3"};
  uint64_t seed = 4;
  for (int i = 0; i < (TEST_SLOW ? 15 : 40); i++) {
    char problem[512];
    amla_options o = options_of(forms[i % 2], rescales[i % 3], 2);
    o.kv_round = AMLA_KV_BF16;
    random_problem(&seed, kinds[i % LENGTH(kinds)], problem, sizeof problem);
    check_problem(problem, &o);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(types_and_options_choose_the_row),
      cmocka_unit_test(every_form_is_within_its_bound),
      cmocka_unit_test(rounding_of_p_shows_in_out_alone),
      cmocka_unit_test(common_roundings_cancel),
      cmocka_unit_test(bound_of_bf16_is_tight_enough),
      cmocka_unit_test(threads_do_not_change_a_bit),
      cmocka_unit_test(batches_do_not_change_a_bit),
      cmocka_unit_test(keys_are_rounded_to_nearest_even),
      cmocka_unit_test(rounded_keys_are_within_their_bound),
  };
  return cmocka_run_group_tests_name("bf16_rows", tests, NULL, NULL);
}
