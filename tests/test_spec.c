/* SPDX-License-Identifier: Apache-2.0
 *
 * The executable specification. The fp64 truth against a naive long double evaluation and closed
 * forms; the three rescale modes against the error figures of DESIGN.md (8 heads, 576/512, bf16 q
 * and kv, scale 1/sqrt(576)), with every rounding of P; the hazard: the published, unguarded add is
 * wrong on a V column that is zero at first, the guarded one is not. Errors are relative Frobenius
 * errors against fp64.
 */
#include "test_support.h"

#include "spec/spec.h"
#include "src/base/float16.h"

enum { D_QK = 576, D_V = 512, HEADS = 8 };
#define SCALE 0x1.555556p-5f /* 1/24 = 576^-0.5 */

/* ---- One set of rows and keys, and what a mode makes of it ---- */

typedef struct instance {
  int32_t s_k;
  float *q, *kv;     /* [HEADS][D_QK], [s_k][D_QK] */
  double *out, *lse; /* truth: [HEADS][D_V], [HEADS] */
} instance;

typedef struct measured {
  double rel_error, lse_error;        /* largest |LSE - truth| / max(1, |truth|) of the rows */
  int64_t rescales_min, rescales_max; /* per row */
} measured;

static instance instance_create(int32_t s_k) {
  instance in = {s_k, alloc_floats(HEADS * D_QK), alloc_floats((int64_t)s_k * D_QK),
                 malloc(HEADS * D_V * sizeof(double)), malloc(HEADS * sizeof(double))};
  assert_true(in.out != NULL && in.lse != NULL);
  return in;
}

static void instance_free(instance *in) {
  free(in->q);
  free(in->kv);
  free(in->out);
  free(in->lse);
}

static float normal_bf16(uint64_t *seed, double sigma) {
  return amla_bf16_to_f32(amla_f32_to_bf16((float)(sigma * harness_random_normal(seed))));
}

static void compute_truth(instance *in) {
  double *weights = malloc((size_t)in->s_k * sizeof *weights);
  assert_non_null(weights);
  for (int32_t h = 0; h < HEADS; h++)
    in->lse[h] = spec_attention_f64(D_QK, D_V, in->s_k, (double)SCALE, in->q + h * D_QK, in->kv,
                                    NULL, in->out + h * D_V, NULL, weights)
                     .lse;
  free(weights);
}

static instance normal_instance(int32_t s_k, double sigma_q, double sigma_k, uint64_t seed) {
  instance in = instance_create(s_k);
  for (int32_t i = 0; i < HEADS * D_QK; i++)
    in.q[i] = normal_bf16(&seed, sigma_q);
  for (int64_t i = 0; i < (int64_t)s_k * D_QK; i++)
    in.kv[i] = normal_bf16(&seed, sigma_k);
  compute_truth(&in);
  return in;
}

/* One row in blocks; out [D_V]. */
static float run_row(const spec_algo *algo, const instance *in, int32_t h, int32_t block,
                     float *out, int64_t *rescales) {
  spec_row row = SPEC_ROW_INIT;
  float *p = alloc_floats(block);
  for (int32_t j = 0; j < in->s_k; j += block)
    spec_block(algo, &row, D_QK, D_V, SCALE, in->q + h * D_QK, in->kv + (int64_t)j * D_QK, NULL,
               in->s_k - j < block ? in->s_k - j : block, p, out);
  free(p);
  *rescales = row.rescales;
  return spec_finish(algo, &row, D_V, out);
}

static measured measure(const spec_algo *algo, const instance *in, int32_t block) {
  measured m = {0, 0, INT64_MAX, 0};
  double difference = 0, norm = 0;
  for (int32_t h = 0; h < HEADS; h++) {
    float out[D_V];
    int64_t rescales;
    const double lse = (double)run_row(algo, in, h, block, out, &rescales);
    m.lse_error = fmax(m.lse_error, fabs(lse - in->lse[h]) / fmax(1, fabs(in->lse[h])));
    if (rescales < m.rescales_min)
      m.rescales_min = rescales;
    if (rescales > m.rescales_max)
      m.rescales_max = rescales;
    for (int32_t d = 0; d < D_V; d++) {
      const double want = in->out[h * D_V + d], error = (double)out[d] - want;
      difference += error * error;
      norm += want * want;
    }
  }
  m.rel_error = sqrt(difference / norm);
  return m;
}

/* ---- The table of errors with P rounded to bf16 ---- */

enum { COLUMNS = 5, SEEDS = 4 >> (TEST_SANITIZED + 2 * TEST_EMULATED) };
static const struct {
  const char *name;
  spec_algo algo;
} columns[COLUMNS] = {
    {"flash", {.mode = SPEC_FLASH, .p = SPEC_P_BF16}},
    {"amla, no compensation", {.mode = SPEC_AMLA, .p = SPEC_P_BF16, .uncompensated = 1}},
    {"amla", {.mode = SPEC_AMLA, .p = SPEC_P_BF16}},
    {"lazy, l from fp32 P", {.mode = SPEC_LAZY, .p = SPEC_P_BF16, .divide_by_exact_sum = 1}},
    {"lazy", {.mode = SPEC_LAZY, .p = SPEC_P_BF16}},
};

typedef struct table_row {
  int32_t s_k, block;
  double sigma_q, sigma_k, expected[COLUMNS];
  double at_least, at_most; /* accepted multiples of the expected figure */
  int64_t lazy_rescales;    /* at most, per row */
} table_row;

static const table_row table[] = {
    {4096, 512, 1, 1, {8.1e-4, 1.0e-3, 9.1e-4, 9.1e-4, 9.0e-4}, 0.4, 2.0, 3},
    {4096, 512, 3, 1, {8.1e-4, 1.1e-3, 6.9e-4, 1.7e-3, 1.1e-3}, 0.4, 2.0, 3},
    {4096, 512, 10, 1, {4.2e-4, 6.2e-4, 4.2e-4, 2.0e-3, 5.6e-4}, 0.4, 2.5, 3},
    {4096,
     128,
     10,
     10,
     {4.8e-4, 2.1e-4, 2.1e-4, 1.6e-3, 8.7e-4},
     0.0,
     5.0,
     8}, /* one key has nearly all weight: depends on the seed */
};

static void expect_rescales(const table_row *row, const char *column, spec_mode mode,
                            const measured *m) {
  const int64_t later_blocks = row->s_k / row->block - 1;
  const bool right = mode == SPEC_LAZY
                         ? m->rescales_max <= row->lazy_rescales
                         : m->rescales_min == later_blocks && m->rescales_max == later_blocks;
  if (!right)
    fail_msg("%s rescales %lld to %lld times in %lld blocks", column, (long long)m->rescales_min,
             (long long)m->rescales_max, (long long)later_blocks + 1);
}

/* Root mean square of the relative errors over a few seeds. */
static void check_table_row(const table_row *row) {
  double squares[COLUMNS] = {0};
  for (uint64_t seed = 1; seed <= SEEDS; seed++) {
    instance in = normal_instance(row->s_k, row->sigma_q, row->sigma_k, seed);
    for (int c = 0; c < COLUMNS; c++) {
      const measured m = measure(&columns[c].algo, &in, row->block);
      squares[c] += m.rel_error * m.rel_error / SEEDS;
      expect_rescales(row, columns[c].name, columns[c].algo.mode, &m);
      if (!(m.lse_error < 1e-6))
        fail_msg("%s: LSE is off by %g", columns[c].name, m.lse_error);
    }
    instance_free(&in);
  }
  for (int c = 0; c < COLUMNS; c++) {
    const double got = sqrt(squares[c]);
    printf("s_k=%d block=%d q~N(0,%g) k~N(0,%g) %-22s %.1e, expected %.1e\n", row->s_k, row->block,
           row->sigma_q, row->sigma_k, columns[c].name, got, row->expected[c]);
    if (!(got >= row->at_least * row->expected[c] && got <= row->at_most * row->expected[c]))
      fail_msg("%s: %.2e, expected %.1e", columns[c].name, got, row->expected[c]);
  }
}

static void errors_with_bf16_p_are_those_of_the_table(void **state) {
  (void)state;
  for (int r = 0; r < LENGTH(table); r++)
    check_table_row(&table[r]);
}

/* ---- fp32 and fp16 P ---- */

static const spec_mode modes[] = {SPEC_FLASH, SPEC_AMLA, SPEC_LAZY};
static const char *const mode_names[] = {"flash", "amla", "lazy"};

static void fp32_p_is_near_1e_6_in_every_mode(void **state) {
  (void)state;
  static const struct {
    double sigma_q, sigma_k, at_most;
  } rows[] = {{1, 1, 2e-6}, {3, 1, 2e-6}, {10, 1, 3e-6}};
  for (int r = 0; r < LENGTH(rows); r++) {
    instance in = normal_instance(2048, rows[r].sigma_q, rows[r].sigma_k, 5);
    for (int m = 0; m < LENGTH(modes); m++) {
      const measured got = measure(&(spec_algo){.mode = modes[m], .p = SPEC_P_F32}, &in, 128);
      printf("fp32 P, q~N(0,%g): %-5s %.1e, LSE %.1e\n", rows[r].sigma_q, mode_names[m],
             got.rel_error, got.lse_error);
      if (!(got.rel_error < rows[r].at_most && got.lse_error < 1e-6))
        fail_msg("%s: relative error %g, LSE %g", mode_names[m], got.rel_error, got.lse_error);
    }
    instance_free(&in);
  }
}

/* Many small weights under one large one: with e = ceil(max) they would fall below fp16's 2^-24 and
 * vanish; e is 7 lower. */
static void fp16_p_keeps_small_weights(void **state) {
  (void)state;
  const spec_algo f16 = {.mode = SPEC_LAZY, .p = SPEC_P_F16},
                  f32 = {.mode = SPEC_LAZY, .p = SPEC_P_F32};
  instance in = instance_create(4096);
  memset(in.q, 0, HEADS * D_QK * sizeof *in.q);
  memset(in.kv, 0, (size_t)in.s_k * D_QK * sizeof *in.kv);
  for (int32_t h = 0; h < HEADS; h++)
    in.q[h * D_QK + D_QK - 1] = 24.0f; /* times 1/24: the score is the last element */
  for (int32_t j = 0; j < in.s_k; j++) {
    in.kv[(int64_t)j * D_QK + D_QK - 1] =
        j == 0 ? 0.0f : -18.0f;                          /* weight 2^-26 each, 2^-14 together */
    in.kv[(int64_t)j * D_QK + 3] = j == 0 ? 0.0f : 1.0f; /* column 3 counts the small weights */
  }
  compute_truth(&in);
  float out16[D_V], out32[D_V];
  int64_t rescales;
  run_row(&f16, &in, 0, 512, out16, &rescales);
  run_row(&f32, &in, 0, 512, out32, &rescales);
  assert_true(fabs((double)out32[3] / in.out[3] - 1) <
              1e-3); /* 4096 equal additions: their rounding is biased */
  assert_true(fabs((double)out16[3] / in.out[3] - 1) < 2e-2); /* 2^-19 in fp16 has 5 bits */
  instance_free(&in);
}

static void fp16_p_is_near_its_rounding(void **state) {
  (void)state;
  instance in = normal_instance(2048, 3, 1, 6);
  for (int m = 0; m < LENGTH(modes); m++) {
    const measured got = measure(&(spec_algo){.mode = modes[m], .p = SPEC_P_F16}, &in, 512);
    printf("fp16 P: %-5s %.1e, LSE %.1e\n", mode_names[m], got.rel_error, got.lse_error);
    if (!(got.rel_error > 1e-5 && got.rel_error < 4e-4 && got.lse_error < 1e-6))
      fail_msg("%s: relative error %g, LSE %g", mode_names[m], got.rel_error, got.lse_error);
  }
  instance_free(&in);
}

/* What the CPU's rows of bf16 do in every mode, and the errors stated for the three forms of P. */
static void two_sums_have_the_errors_of_their_form(void **state) {
  (void)state;
  static const struct {
    spec_round p;
    double at_least, at_most; /* relative error of O */
  } rows[] = {
      {SPEC_P_F32, 0, 2e-6}, {SPEC_P_BF16X2, 0x1p-22, 0x1p-17}, {SPEC_P_BF16, 0x1p-14, 0x1p-8}};
  for (int s = 1; s <= 3; s++) {
    instance in = normal_instance(2048, s, 1, 5);
    for (int i = 0; i < LENGTH(rows); i++)
      for (int m = 0; m < LENGTH(modes); m++) {
        const spec_algo algo = {.mode = modes[m], .p = rows[i].p, .two_sums = 1, .headroom = 20};
        const measured got = measure(&algo, &in, 128);
        printf("two sums, P %d, q~N(0,%d): %-5s %.1e, LSE %.1e\n", (int)rows[i].p, s, mode_names[m],
               got.rel_error, got.lse_error);
        if (!(got.rel_error > rows[i].at_least && got.rel_error < rows[i].at_most))
          fail_msg("%s, P %d: relative error %g", mode_names[m], (int)rows[i].p, got.rel_error);
        assert_true(got.lse_error < 1e-6);
      }
    instance_free(&in);
  }
}

/* Values that are all 0.3: so is O, however P was rounded, as both sums follow references alike. */
static void second_sum_follows_o(void **state) {
  (void)state;
  enum { KEYS = 50, BLOCKS = 6 };
  static const float q[2] = {0.0f, 1.0f};
  uint64_t seed = 3;
  for (int m = 0; m < LENGTH(modes); m++)
    for (int p = SPEC_P_BF16; p <= SPEC_P_BF16X2; p++) {
      const spec_algo algo = {.mode = modes[m], .p = (spec_round)p, .two_sums = 1, .headroom = 9};
      spec_row row = SPEC_ROW_INIT;
      float work[KEYS], kv[2 * KEYS], o[2];
      for (int b = 0; b < BLOCKS; b++) {
        for (int j = 0; j < KEYS; j++) {
          kv[2 * j] = 0.3f;
          kv[2 * j + 1] = 8.0f * (float)b + random_normal(&seed); /* the reference moves */
        }
        spec_block(&algo, &row, 2, 1, 1.0f, q, kv, NULL, KEYS, work, o);
      }
      spec_finish(&algo, &row, 1, o);
      if (!(fabsf(o[0] - 0.3f) < 1e-6f))
        fail_msg("%s, P %d: O is %a", mode_names[m], p, (double)o[0]);
    }
}

static void rounding_of_p_is_exact(void **state) {
  (void)state;
  uint64_t seed = 9;
  for (int i = 0; i < 200000; i++) {
    const float x = i % 2
                        ? (float)ldexp(harness_random_uniform(&seed), random_below(&seed, 60) - 40)
                        : amla_bf16_to_f32((uint16_t)i) +
                              ldexpf(1.0f, -random_below(&seed, 30)); /* some ties */
    if (!isfinite(x))
      continue;
    if (to_bits(spec_round_p(SPEC_P_BF16, 0, x)) !=
            to_bits(amla_bf16_to_f32(amla_f32_to_bf16(x))) &&
        fabsf(x) >= 0x1p-126f)
      fail_msg("bf16 of %a is %a", (double)x, (double)spec_round_p(SPEC_P_BF16, 0, x));
    if (to_bits(spec_round_p(SPEC_P_F16, 0, x)) != to_bits(amla_f16_to_f32(amla_f32_to_f16(x))))
      fail_msg("f16 of %a is %a", (double)x, (double)spec_round_p(SPEC_P_F16, 0, x));
    const float two = spec_round_p(SPEC_P_BF16X2, 0, x);
    if (fabsf(x) >= 0x1p-100f && !(fabs((double)two - (double)x) <= 0x1p-17 * fabs((double)x)))
      fail_msg("two bf16 of %a are %a", (double)x, (double)two);
  }
  assert_float_equal(spec_round_p(SPEC_P_BF16, 0, 1.0f + 0x1p-8f), 1.0, 0); /* tie: to even */
  assert_float_equal(spec_round_p(SPEC_P_BF16, 1, 1.0f + 0x1p-8f), 1.0 + 0x1p-7, 0); /* tie: away */
  assert_float_equal(spec_round_p(SPEC_P_BF16, 1, -(1.0f + 0x1p-8f)), -(1.0 + 0x1p-7), 0);
  assert_float_equal(spec_round_p(SPEC_P_F32, 1, 0x1.234568p0f), 0x1.234568p0f, 0);
}

/* Two keys, of scores 0 and s, where exp(s) is a bf16 tie between an even number below and an odd
 * one above. With values 0 and 1, O is the rounded P: nearest even in flash, away from zero in amla
 * (where S16 = 1 for a maximum of 0). */
static void amla_rounds_p_away_from_zero(void **state) {
  (void)state;
  int found = 0;
  for (float s = -0.5f; s > -2.0f && found < 20; s = nextafterf(s, -3.0f)) {
    const uint32_t tie = to_bits(expf(s));
    if ((tie & 0x1ffff) != 0x8000)
      continue;
    const float q[2] = {0, 1}, kv[4] = {0, 0, 1, s};
    float p[2], o[1];
    spec_row flash = SPEC_ROW_INIT, amla = SPEC_ROW_INIT;
    spec_block(&(spec_algo){.mode = SPEC_FLASH, .p = SPEC_P_BF16}, &flash, 2, 1, 1.0f, q, kv, NULL,
               2, p, o);
    assert_int_equal(to_bits(o[0]), tie - 0x8000);
    spec_block(&(spec_algo){.mode = SPEC_AMLA, .p = SPEC_P_BF16}, &amla, 2, 1, 1.0f, q, kv, NULL, 2,
               p, o);
    assert_int_equal(to_bits(o[0]), tie + 0x8000);
    found++;
  }
  assert_true(found > 3);
}

/* ---- The hazard ---- */

/* V columns: zero in the first block and not later; zero throughout. */
enum { ZERO_LATE = 7, ZERO_ALWAYS = 8 };

/* Scores rise, so that every block rescales downwards. */
static instance hazard_instance(void) {
  instance in = normal_instance(1024, 1, 1, 21);
  for (int32_t j = 0; j < in.s_k; j++) {
    float *row = in.kv + (int64_t)j * D_QK;
    row[ZERO_ALWAYS] = 0.0f;
    if (j < 512)
      row[ZERO_LATE] = 0.0f;
    row[D_QK - 1] = (float)(j / 128) * 2.0f;
  }
  for (int32_t h = 0; h < HEADS; h++)
    in.q[h * D_QK + D_QK - 1] = 24.0f;
  compute_truth(&in);
  return in;
}

static void unguarded_add_is_wrong_on_zero_columns_and_guarded_is_not(void **state) {
  (void)state;
  static const spec_round rounds[] = {SPEC_P_BF16, SPEC_P_F32};
  instance in = hazard_instance();
  for (int r = 0; r < LENGTH(rounds); r++)
    for (int32_t h = 0; h < HEADS; h++) {
      float bare[D_V], safe[D_V], flash[D_V];
      int64_t rescales;
      run_row(&(spec_algo){.mode = SPEC_AMLA, .p = rounds[r], .unguarded = 1}, &in, h, 512, bare,
              &rescales);
      run_row(&(spec_algo){.mode = SPEC_AMLA, .p = rounds[r]}, &in, h, 512, safe, &rescales);
      run_row(&(spec_algo){.mode = SPEC_FLASH, .p = rounds[r]}, &in, h, 512, flash, &rescales);
      const double want = in.out[h * D_V + ZERO_LATE];
      const double tolerance = rounds[r] == SPEC_P_F32 ? 1e-6 : 1e-3; /* |v| is near 1 */
      const double wrong = fabs((double)bare[ZERO_LATE] - want) / fabs(want);
      if (isfinite(bare[ZERO_LATE]) && !(wrong > 1e3))
        fail_msg("unguarded: head %d is %g, want %g: no hazard", h, (double)bare[ZERO_LATE], want);
      if (safe[ZERO_ALWAYS] != 0.0f)
        fail_msg("guarded: a zero column gives %g", (double)safe[ZERO_ALWAYS]);
      if (!(fabs((double)safe[ZERO_LATE] - want) <= tolerance &&
            fabs((double)(safe[ZERO_LATE] - flash[ZERO_LATE])) <= tolerance))
        fail_msg("guarded: head %d is %g, flash %g, want %g", h, (double)safe[ZERO_LATE],
                 (double)flash[ZERO_LATE], want);
    }
  instance_free(&in);
}

/* In one block, nothing is rescaled and the variants agree bit for bit. */
static void unguarded_add_agrees_where_nothing_is_rescaled(void **state) {
  (void)state;
  instance in = normal_instance(256, 1, 1, 22);
  float bare[D_V], safe[D_V];
  int64_t rescales;
  run_row(&(spec_algo){.mode = SPEC_AMLA, .p = SPEC_P_BF16, .unguarded = 1}, &in, 0, 256, bare,
          &rescales);
  run_row(&(spec_algo){.mode = SPEC_AMLA, .p = SPEC_P_BF16}, &in, 0, 256, safe, &rescales);
  assert_int_equal(rescales, 0);
  assert_memory_equal(bare, safe, sizeof bare);
  instance_free(&in);
}

/* ---- Rising logits, empty rows, poison ---- */

static void rising_logits_are_followed(void **state) {
  (void)state;
  instance in = normal_instance(2048, 1, 1, 23);
  for (int32_t j = 0; j < in.s_k; j++)
    in.kv[(int64_t)j * D_QK + D_QK - 1] = 0.1f * (float)j; /* up by 205 nats */
  for (int32_t h = 0; h < HEADS; h++)
    in.q[h * D_QK + D_QK - 1] = 24.0f;
  compute_truth(&in);
  for (int m = 0; m < LENGTH(modes); m++) {
    const measured got = measure(&(spec_algo){.mode = modes[m], .p = SPEC_P_F32}, &in, 64);
    if (!(got.rel_error < 2e-5 && got.lse_error < 1e-6)) /* u * |score| = 1.2e-5 */
      fail_msg("%s: relative error %g, LSE %g", mode_names[m], got.rel_error, got.lse_error);
    if (modes[m] == SPEC_LAZY && got.rescales_min < 10)
      fail_msg("lazy: %lld rescales over 205 nats", (long long)got.rescales_min);
  }
  instance_free(&in);
}

/* One key far above the rest, 300 nats, in the last block: what came before vanishes. */
static void late_outlier_takes_all(void **state) {
  (void)state;
  instance in = normal_instance(512, 1, 1, 24);
  in.kv[500LL * D_QK + D_QK - 1] = 300.0f;
  for (int32_t h = 0; h < HEADS; h++)
    in.q[h * D_QK + D_QK - 1] = 24.0f;
  for (int m = 0; m < LENGTH(modes); m++)
    for (int p = SPEC_P_F32; p <= SPEC_P_F16; p++) {
      float out[D_V];
      int64_t rescales;
      run_row(&(spec_algo){.mode = modes[m], .p = (spec_round)p}, &in, 0, 128, out, &rescales);
      for (int32_t d = 0; d < D_V; d++)
        if (!(fabsf(out[d] - in.kv[500LL * D_QK + d]) <= 0.01f * fabsf(in.kv[500LL * D_QK + d])))
          fail_msg("%s, P type %d: column %d is %g, want %g", mode_names[m], p, d, (double)out[d],
                   (double)in.kv[500LL * D_QK + d]);
    }
  instance_free(&in);
}

static void rows_without_keys_are_zero_and_minus_inf(void **state) {
  (void)state;
  const float q[3] = {1, 2, 3}, kv[3] = {NAN, NAN, NAN};
  for (int m = 0; m < LENGTH(modes); m++) {
    const spec_algo algo = {.mode = modes[m], .p = SPEC_P_BF16};
    spec_row row = SPEC_ROW_INIT;
    float p[1], o[2] = {NAN, NAN};
    spec_block(&algo, &row, 3, 2, 1.0f, q, kv, NULL, 0, p, o);
    spec_block(&algo, &row, 3, 2, 1.0f, q, kv, NULL, -4, p, o);
    assert_float_equal(spec_finish(&algo, &row, 2, o), -INFINITY, 0);
    assert_true(to_bits(o[0]) == 0 && to_bits(o[1]) == 0);
  }
  double out[2] = {1, 1}, out_abs[2] = {1, 1}, weights[1];
  assert_true(isinf(spec_attention_f64(3, 2, 0, 1.0, q, kv, NULL, out, out_abs, weights).lse));
  assert_true(out[0] == 0 && out[1] == 0 && out_abs[0] == 0 && out_abs[1] == 0);
}

/* A poison in q, in a key, or in the value of any block makes the row (or the column) non-finite in
 * every mode. */
static void poison_is_never_lost(void **state) {
  (void)state;
  static const float poisons[] = {NAN, INFINITY, -INFINITY};
  for (int t = 0; t < 3 * 3 * 3 * 2; t++) {
    const float poison = poisons[t % 3];
    const spec_algo algo = {.mode = modes[t / 3 % 3], .p = t / 27 ? SPEC_P_F32 : SPEC_P_BF16};
    const int where = t / 9 % 3; /* q, key's rope part, value in a middle block */
    instance in = normal_instance(300, 1, 1, 25);
    float out[D_V];
    int64_t rescales;
    if (where == 0)
      in.q[5] = poison;
    if (where > 0)
      in.kv[150LL * D_QK + (where == 1 ? D_QK - 1 : 5)] = poison;
    const float lse = run_row(&algo, &in, 0, 100, out, &rescales);
    for (int32_t d = 0; d < D_V; d++)
      if (isfinite(out[d]))
        fail_msg("%s: poison %g in place %d: column %d is %g", mode_names[algo.mode],
                 (double)poison, where, d, (double)out[d]);
    if (isfinite(lse))
      fail_msg("%s: poison %g in place %d: LSE is %g", mode_names[algo.mode], (double)poison, where,
               (double)lse);
    instance_free(&in);
  }
}

/* ---- The truth ---- */

/* softmax(scale q.k) v as the formula stands, in long double; no maximum is taken off, so scores
 * must be small. */
static long double naive_lse(int32_t d_qk, int32_t d_v, int64_t n, long double scale,
                             const float *q, const float *kv, long double *out) {
  long double sum = 0;
  for (int32_t d = 0; d < d_v; d++)
    out[d] = 0;
  for (int64_t j = 0; j < n; j++) {
    long double score = 0;
    for (int32_t d = 0; d < d_qk; d++)
      score += (long double)q[d] * (long double)kv[j * d_qk + d];
    const long double weight = expl(scale * score);
    sum += weight;
    for (int32_t d = 0; d < d_v; d++)
      out[d] += weight * (long double)kv[j * d_qk + d];
  }
  for (int32_t d = 0; d < d_v; d++)
    out[d] /= sum;
  return logl(sum);
}

static void truth_matches_long_double(void **state) {
  (void)state;
  uint64_t seed = 31;
  for (int t = 0; t < 200; t++) {
    const int32_t d_qk = 1 + random_below(&seed, 40), d_v = 1 + random_below(&seed, d_qk);
    const int64_t n = 1 + random_below(&seed, 50);
    float q[40], kv[50 * 40];
    double out[40], out_abs[40], weights[50];
    long double want[40];
    for (int32_t d = 0; d < d_qk; d++)
      q[d] = random_normal(&seed);
    for (int64_t i = 0; i < n * d_qk; i++)
      kv[i] = random_normal(&seed);
    const spec_truth got =
        spec_attention_f64(d_qk, d_v, n, -0.3, q, kv, NULL, out, out_abs, weights);
    const long double lse = naive_lse(d_qk, d_v, n, -0.3L, q, kv, want);
    if (!(fabsl((long double)got.lse - lse) < 1e-13L))
      fail_msg("d_qk=%d n=%d: LSE %.17g, want %.17Lg", d_qk, (int)n, got.lse, lse);
    for (int32_t d = 0; d < d_v; d++) {
      if (!(fabsl((long double)out[d] - want[d]) < 1e-13L))
        fail_msg("d_qk=%d n=%d column %d: %.17g, want %.17Lg", d_qk, (int)n, d, out[d], want[d]);
      if (!(out_abs[d] >= fabs(out[d]) * (1 - 1e-13)))
        fail_msg("out_abs %g < |out| %g", out_abs[d], fabs(out[d]));
    }
  }
}

static void truth_keeps_poison(void **state) {
  (void)state;
  static const float poisons[] = {NAN, INFINITY, -INFINITY};
  for (int t = 0; t < 3 * 3; t++) {
    float q[2] = {1, 0.5f}, kv[3 * 2] = {1, 2, -1, 0.5f, 2, 1};
    double out[1], weights[3];
    kv[t / 3 * 2] = poisons[t % 3];
    const spec_truth got = spec_attention_f64(2, 1, 3, 1.0, q, kv, NULL, out, NULL, weights);
    assert_false(isfinite(out[0]) || (isfinite(got.lse) && isfinite(got.score_abs)));
  }
}

static void truth_has_the_closed_forms(void **state) {
  (void)state;
  enum { N = 37, D = 5 };
  float q[D] = {0.5f, -1, 2, 0.25f, 1}, kv[N * D];
  double out[D], out_abs[D], weights[N], mean[D] = {0};
  uint64_t seed = 32;
  for (int i = 0; i < N * D; i++)
    kv[i] = i % D == D - 1 ? 3.0f : random_normal(&seed); /* value [4], key dimension 4 equal */
  for (int i = 0; i < N * D; i++)
    mean[i % D] += (double)kv[i] / N;

  /* One key: its row. */
  spec_truth one = spec_attention_f64(D, D, 1, 0.7, q, kv, NULL, out, out_abs, weights);
  for (int d = 0; d < D; d++)
    assert_true(fabs(out[d] - (double)kv[d]) < 1e-15 &&
                fabs(out_abs[d] - fabs((double)kv[d])) < 1e-15);
  assert_true(fabs(one.lse - 0.7 * (0.5 * (double)kv[0] - (double)kv[1] + 2 * (double)kv[2] +
                                    0.25 * (double)kv[3] + 3)) < 1e-14);
  assert_true(one.score_abs >= fabs(one.lse) && one.score_abs < 100);

  memset(q, 0, sizeof q); /* equal scores c = 0.7 * 3 * 2: the mean, and LSE = log n + c */
  q[D - 1] = 2.0f;
  spec_truth equal = spec_attention_f64(D, D - 1, N, 0.7, q, kv, NULL, out, NULL, weights);
  for (int d = 0; d < D - 1; d++)
    assert_true(fabs(out[d] - mean[d]) < 1e-13);
  assert_true(fabs(equal.lse - (log(N) + 4.2)) < 1e-12);
  assert_true(fabs(equal.score_abs - 4.2) < 1e-12);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(truth_matches_long_double),
      cmocka_unit_test(truth_keeps_poison),
      cmocka_unit_test(truth_has_the_closed_forms),
      cmocka_unit_test(errors_with_bf16_p_are_those_of_the_table),
      cmocka_unit_test(fp32_p_is_near_1e_6_in_every_mode),
      cmocka_unit_test(fp16_p_is_near_its_rounding),
      cmocka_unit_test(fp16_p_keeps_small_weights),
      cmocka_unit_test(two_sums_have_the_errors_of_their_form),
      cmocka_unit_test(second_sum_follows_o),
      cmocka_unit_test(rounding_of_p_is_exact),
      cmocka_unit_test(amla_rounds_p_away_from_zero),
      cmocka_unit_test(unguarded_add_is_wrong_on_zero_columns_and_guarded_is_not),
      cmocka_unit_test(unguarded_add_agrees_where_nothing_is_rescaled),
      cmocka_unit_test(rising_logits_are_followed),
      cmocka_unit_test(late_outlier_takes_all),
      cmocka_unit_test(rows_without_keys_are_zero_and_minus_inf),
      cmocka_unit_test(poison_is_never_lost),
  };
  return cmocka_run_group_tests_name("spec", tests, NULL, NULL);
}
