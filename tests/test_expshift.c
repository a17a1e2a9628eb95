/* SPDX-License-Identifier: Apache-2.0
 *
 * The guarded integer add and shift, and the 16-bit types: base/expshift.h, the specification's own
 * copy, the shift and load kernels of every instruction set, bit by bit against oracles that
 * compute in fp64. A stratified sample; with AMLA_LONG=1 all 2^32 floats. The oracle of a shift:
 * subnormal -> signed 0; inf and NaN keep their bits; else y = x * 2^k in fp64: |y| < 2^-126 ->
 * signed 0, |y| >= 2^128 -> signed inf, else (float)y.
 */
#include "test_support.h"

#include "spec/spec.h"
#include "src/base/expshift.h"
#include "src/base/isa.h"
#include "src/base/float16.h"
#include "src/cpu/ukernels.h"

/* ---- Oracles ---- */

/* Bits of the result whose value is y, for an x with the bits u. */
static inline uint32_t flush_and_saturate(uint32_t u, double y) {
  const uint32_t sign = u & 0x80000000u, a = u & 0x7fffffffu;
  if (a >= 0x7f800000u)
    return u;
  if (a < 0x00800000u || fabs(y) < 0x1p-126)
    return sign;
  if (fabs(y) >= 0x1p128)
    return sign | 0x7f800000u;
  return to_bits((float)y);
}

static uint32_t oracle_shift(uint32_t u, int k) {
  return flush_and_saturate(u, ldexp((double)of_bits(u), k));
}

/* Adding n to the magnitude bits walks along the piecewise linear scale (1 + mantissa) *
 * 2^exponent. */
static uint32_t oracle_add(uint32_t u, int64_t n) {
  const int64_t step = 1 << 23, r = (int64_t)(u & 0x7fffffffu) + n;
  const int64_t mantissa = ((r % step) + step) % step;
  const double exponent = fmin(fmax((double)((r - mantissa) / step) - 127.0, -1000.0), 1000.0);
  const double y = ldexp(1.0 + (double)mantissa / (double)step, (int)exponent);
  return flush_and_saturate(u, u >> 31 ? -y : y);
}

/* ---- The sample: every exponent, edges of the mantissa and random ones, both signs ---- */

enum { EDGES = 8, RANDOM_MANTISSAS = 8, SAMPLE = 256 * (EDGES + RANDOM_MANTISSAS) * 2 };

static const uint32_t *sample(void) {
  static const uint32_t edges[EDGES] = {0, 1, 2, 0x3fffff, 0x400000, 0x400001, 0x7ffffe, 0x7fffff};
  static uint32_t all[SAMPLE];
  uint64_t seed = 1;
  int count = 0;
  for (uint32_t exponent = 0; exponent < 256; exponent++)
    for (int m = 0; m < EDGES + RANDOM_MANTISSAS; m++)
      for (uint32_t sign = 0; sign < 2; sign++) {
        const uint32_t mantissa =
            m < EDGES ? edges[m] : (uint32_t)(harness_random(&seed) & 0x7fffff);
        all[count++] = sign << 31 | exponent << 23 | mantissa;
      }
  return all;
}

static void expect_bits(const char *what, uint32_t x, int64_t k, uint32_t got, uint32_t want) {
  if (got != want)
    fail_msg("%s: x=0x%08x by %lld gives 0x%08x, want 0x%08x", what, x, (long long)k, got, want);
}

static void shift_matches_oracle_on_sample(void **state) {
  (void)state;
  const uint32_t *x = sample();
  for (int k = -512; k <= 512; k++)
    for (int i = 0; i < SAMPLE; i++) {
      const uint32_t want = oracle_shift(x[i], k);
      expect_bits("amla_expshift", x[i], k, to_bits(amla_expshift(of_bits(x[i]), k)), want);
      expect_bits("spec_shift", x[i], k, to_bits(spec_shift(of_bits(x[i]), k)), want);
    }
}

static void add_matches_oracle_on_sample(void **state) {
  (void)state;
  static const int64_t ends[] = {0,
                                 1,
                                 -1,
                                 0x7fffff,
                                 -0x7fffff,
                                 0x800000,
                                 -0x800000,
                                 30 * 0x800000LL,
                                 -30 * 0x800000LL,
                                 0x7f800000,
                                 -0x7f800000,
                                 INT32_MAX,
                                 INT32_MIN,
                                 1LL << 40,
                                 -(1LL << 40),
                                 1LL << 62,
                                 -(1LL << 62)};
  const uint32_t *x = sample();
  uint64_t seed = 2;
  for (int i = 0; i < SAMPLE; i++)
    for (int t = 0; t < LENGTH(ends) + 100; t++) {
      const int64_t n =
          t < LENGTH(ends) ? ends[t] : (int64_t)(harness_random(&seed) >> 32) - (1LL << 31);
      const uint32_t want = oracle_add(x[i], n);
      expect_bits("amla_expadd", x[i], n, to_bits(amla_expadd(of_bits(x[i]), n)), want);
      expect_bits("spec_add", x[i], n, to_bits(spec_add(of_bits(x[i]), n)), want);
    }
}

static void shift_counts_are_clamped(void **state) {
  (void)state;
  static const struct {
    float k;
    int32_t want;
  } rows[] = {
      {0, 0},          {-1, -1},          {30, 30},     {511, 511},   {512, 512},
      {513, 512},      {-512, -512},      {-513, -512}, {1e30f, 512}, {-1e30f, -512},
      {INFINITY, 512}, {-INFINITY, -512}, {-0.0f, 0},   {NAN, -512},  {3e38f, 512},
  };
  for (int i = 0; i < LENGTH(rows); i++) {
    if (amla_clamp_shift(rows[i].k) != rows[i].want)
      fail_msg("amla_clamp_shift(%g) = %d, want %d", (double)rows[i].k, amla_clamp_shift(rows[i].k),
               rows[i].want);
    if (isnan(rows[i].k))
      continue;
    expect_bits("spec_shift clamped", to_bits(1.5f), (int64_t)rows[i].want,
                to_bits(spec_shift(1.5f, (double)rows[i].k)),
                oracle_shift(to_bits(1.5f), rows[i].want));
  }
}

/* ---- The shift kernels ---- */

enum { ROWS = 7, MAX_COLS = 64 };

/* Shifts [rows][pv_cols] of x, row r by k[r], and compares; rows do not see each other's counts,
 * and a count of 0 changes no bit (not even of a subnormal). */
static void check_shift_kernel(const amla_ukernels *ukr, int32_t rows, const uint32_t *x,
                               const int32_t *k) {
  const int32_t count = rows * ukr->pv_cols;
  _Alignas(64) float o[ROWS * MAX_COLS];
  memcpy(o, x, (size_t)count * sizeof *o);
  ukr->shift(rows, o, k);
  for (int32_t i = 0; i < count; i++) {
    const int32_t by = k[i / ukr->pv_cols];
    expect_bits(amla_isa_name(ukr->isa), x[i], by, to_bits(o[i]),
                by == 0 ? x[i] : oracle_shift(x[i], by));
  }
}

static void shift_kernels_match_oracle_on_sample(void **state) {
  (void)state;
  const uint32_t *x = sample();
  for (int u = 0; amla_ukernels_all[u]; u++) {
    const amla_ukernels *ukr = amla_ukernels_all[u];
    if (!amla_isa_runs(ukr->isa))
      continue;
    assert_true(ukr->pv_cols <= MAX_COLS);
    for (int k0 = 0; k0 < 1025; k0++)
      for (int at = 0; at < SAMPLE; at += ROWS * ukr->pv_cols) {
        const int32_t left = (SAMPLE - at) / ukr->pv_cols, rows = left < ROWS ? left : ROWS;
        int32_t k[ROWS];
        for (int r = 0; r < ROWS; r++)
          k[r] = (k0 + 37 * r) % 1025 - 512; /* over all k0, every k meets every x */
        check_shift_kernel(ukr, rows, x + at, k);
      }
  }
}

/* ---- All 2^32 floats ---- */

enum { CHUNK = 4096, MAX_ROWS = CHUNK / 8 };

/* CHUNK floats from `first` on, by the functions and by every kernel (whose last, incomplete row of
 * the chunk is left out). */
/* Wrong results among CHUNK floats from the bits `first` on, of the functions and of every kernel
 * this CPU can run. */
static int count_wrong_in_chunk(uint32_t first, int k, double factor) {
  _Alignas(64) float o[CHUNK];
  uint32_t want[CHUNK];
  int32_t rows_k[CHUNK];
  int wrong = 0;
  for (int i = 0; i < CHUNK; i++) {
    const uint32_t u = first + (uint32_t)i;
    /* Exact: fp64 holds x * 2^+-512. */
    want[i] = flush_and_saturate(u, (double)of_bits(u) * factor);
    rows_k[i] = k;
    wrong += to_bits(amla_expshift(of_bits(u), k)) != want[i];
    /* spec_shift without its clamp: faster. */
    wrong += to_bits(spec_add(of_bits(u), (int64_t)k * (1 << 23))) != want[i];
  }
  for (int t = 0; amla_ukernels_all[t]; t++) {
    const amla_ukernels *ukr = amla_ukernels_all[t];
    if (!amla_isa_runs(ukr->isa))
      continue;
    /* The rest of the chunk: by the functions only. */
    const int32_t rows = CHUNK / ukr->pv_cols, count = rows * ukr->pv_cols;
    for (int i = 0; i < CHUNK; i++)
      o[i] = of_bits(first + (uint32_t)i);
    ukr->shift(rows, o, rows_k);
    for (int i = 0; i < count; i++)
      wrong += to_bits(o[i]) != (k == 0 ? first + (uint32_t)i : want[i]);
  }
  return wrong;
}

static void shift_matches_oracle_on_all_floats(void **state) {
  (void)state;
  static const int shifts[] = {-512, -127, -8, -1, 1, 254};
  if (!long_run())
    skip();
  for (int s = 0; s < LENGTH(shifts); s++) {
    const double factor = ldexp(1.0, shifts[s]);
    int64_t wrong = 0;
#pragma omp parallel for reduction(+ : wrong) schedule(static)
    for (int64_t chunk = 0; chunk < (1LL << 32) / CHUNK; chunk++)
      wrong += count_wrong_in_chunk((uint32_t)(chunk * CHUNK), shifts[s], factor);
    if (wrong)
      fail_msg("shift=%d: %lld results are wrong", shifts[s], (long long)wrong);
  }
}

/* ---- 16-bit types ---- */

typedef struct half_type {
  const char *name;
  amla_dtype type;
  float (*widen)(uint16_t);
  uint16_t (*narrow)(float);
  uint16_t inf;      /* code of +inf */
  int mantissa_bits; /* stored */
  int bias;
} half_type;

static const half_type halves[] = {
    {"bf16", AMLA_BF16, amla_bf16_to_f32, amla_f32_to_bf16, 0x7f80, 7, 127},
    {"f16", AMLA_F16, amla_f16_to_f32, amla_f32_to_f16, 0x7c00, 10, 15},
};

/* Value of a code without sign, from the definition of the format; inf counts as the next power of
 * two. */
static double magnitude(const half_type *t, int code) {
  const int exponent = code >> t->mantissa_bits, mantissa = code & ((1 << t->mantissa_bits) - 1);
  const int significand = exponent ? mantissa + (1 << t->mantissa_bits) : mantissa;
  return ldexp(significand, (exponent ? exponent : 1) - t->bias - t->mantissa_bits);
}

static bool is_nan_code(const half_type *t, uint16_t code) { return (code & 0x7fff) > t->inf; }

/* The last code of the ordered list whose magnitude is not above that of x. */
static int code_below(const half_type *t, const double *values, float x) {
  const double a = fabs((double)x);
  int low = 0, high = t->inf;
  if (a >= values[high])
    return high;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    *(values[middle] <= a ? &low : &high) = middle;
  }
  return low;
}

/* The nearer of `low`, which is code_below(x), and the next; a tie goes to the even one. */
static uint16_t nearest(const half_type *t, const double *values, int low, float x) {
  const uint16_t sign = signbit(x) ? 0x8000 : 0;
  if (low == t->inf)
    return (uint16_t)(sign | low);
  const double a = fabs((double)x), below = a - values[low], above = values[low + 1] - a;
  return (uint16_t)(sign | (below < above || (below == above && low % 2 == 0) ? low : low + 1));
}

static uint16_t oracle_narrow(const half_type *t, const double *values, float x) {
  return nearest(t, values, code_below(t, values, x), x);
}

static double *all_magnitudes(const half_type *t) {
  double *values = malloc(((size_t)t->inf + 1) * sizeof *values);
  assert_non_null(values);
  for (int code = 0; code <= t->inf; code++)
    values[code] = magnitude(t, code);
  return values;
}

static bool widens_right(const half_type *t, int code) {
  const float x = t->widen((uint16_t)code);
  const int a = code & 0x7fff, sign = code >> 15;
  if (a > t->inf)
    return isnan(x);
  if (a == t->inf)
    return isinf(x) && !!signbit(x) == sign;
  return fabs((double)x) == magnitude(t, a) && !!signbit(x) == sign;
}

static void halves_widen_exactly_and_round_trip(void **state) {
  (void)state;
  for (int h = 0; h < LENGTH(halves); h++) {
    const half_type *t = &halves[h];
    for (int code = 0; code < 65536; code++) {
      const float x = t->widen((uint16_t)code);
      const int a = code & 0x7fff;
      const uint16_t back = t->narrow(x);
      if (!widens_right(t, code))
        fail_msg("%s 0x%04x widens to %a", t->name, code, (double)x);
      if (a > t->inf ? !is_nan_code(t, back) : back != code)
        fail_msg("%s 0x%04x comes back as 0x%04x", t->name, code, back);
    }
  }
}

static bool narrows_right(const half_type *t, const double *values, int low, float x) {
  if (isnan(x))
    return is_nan_code(t, t->narrow(x));
  return t->narrow(x) == nearest(t, values, low, x);
}

static void expect_narrows(const half_type *t, const double *values, float x) {
  if (!narrows_right(t, values, code_below(t, values, x), x))
    fail_msg("%s: %a (0x%08x) narrows to 0x%04x, want 0x%04x", t->name, (double)x, to_bits(x),
             t->narrow(x), isnan(x) ? t->inf + 1 : oracle_narrow(t, values, x));
}

static void narrowing_matches_search_on_sample(void **state) {
  (void)state;
  for (int h = 0; h < LENGTH(halves); h++) {
    double *values = all_magnitudes(&halves[h]);
    uint64_t seed = 3;
    for (int code = 0; code < halves[h].inf; code++) {
      const float exact = (float)values[code], tie = (float)((values[code] + values[code + 1]) / 2);
      const float near[] = {exact, nextafterf(exact, INFINITY), nextafterf(exact, -1.0f),
                            tie,   nextafterf(tie, INFINITY),   nextafterf(tie, 0.0f)};
      for (int i = 0; i < LENGTH(near); i++) {
        expect_narrows(&halves[h], values, near[i]);
        expect_narrows(&halves[h], values, -near[i]);
      }
    }
    for (int i = 0; i < SAMPLE; i++)
      expect_narrows(&halves[h], values, of_bits(sample()[i]));
    for (int i = 0; i < 1000000; i++)
      expect_narrows(&halves[h], values, of_bits((uint32_t)harness_random(&seed)));
    free(values);
  }
}

/* Of CHUNK floats of one sign, from the bits `first` on; their magnitudes rise. */
static int count_wrong_narrowings(const half_type *t, const double *values, uint32_t first) {
  int wrong = 0, low = code_below(t, values, of_bits(first));
  for (uint32_t u = first; u - first < CHUNK; u++) {
    const float x = of_bits(u);
    while (low < t->inf && values[low + 1] <= fabs((double)x))
      low++;
    wrong += !narrows_right(t, values, low, x);
  }
  return wrong;
}

static void narrowing_matches_search_on_all_floats(void **state) {
  (void)state;
  if (!long_run())
    skip();
  for (int h = 0; h < LENGTH(halves); h++) {
    double *values = all_magnitudes(&halves[h]);
    int64_t wrong = 0;
#pragma omp parallel for reduction(+ : wrong) schedule(static)
    for (int64_t chunk = 0; chunk < (1LL << 32) / CHUNK; chunk++)
      wrong += count_wrong_narrowings(&halves[h], values, (uint32_t)(chunk * CHUNK));
    free(values);
    if (wrong)
      fail_msg("%s: %lld floats narrow wrongly", halves[h].name, (long long)wrong);
  }
}

/* ---- The load kernels ---- */

static bool same_load(amla_dtype type, uint32_t got, uint32_t want) {
  /* Hardware quiets NaN. */
  return got == want || (type == AMLA_F16 && isnan(of_bits(got)) && isnan(of_bits(want)));
}

/* n elements from src [n], whose bits as f32 are want [n]; src starts at any element. */
static void check_load(const amla_ukernels *ukr, amla_dtype type, int32_t n, const void *src,
                       const uint32_t *want) {
  guarded dst = guarded_create((size_t)n * sizeof(float), 0);
  const uint32_t *got = guarded_data(&dst);
  ukr->load(&(amla_row_format){.type = type, .d = n}, src, NULL, guarded_data(&dst));
  for (int32_t i = 0; i < n; i++)
    if (!same_load(type, got[i], want[ukr->even_odd[type] ? split_column(n, i) : i]))
      fail_msg("isa=%s load=%d n=%d element %d is 0x%08x", amla_isa_name(ukr->isa), (int)type, n, i,
               got[i]);
  if (guarded_damage(&dst))
    fail_msg("isa=%s load=%d n=%d writes outside its destination", amla_isa_name(ukr->isa),
             (int)type, n);
  guarded_free(&dst);
}

static void load_kernels_widen_exactly(void **state) {
  (void)state;
  static const int32_t lengths[] = {0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 575, 576, 577, 65535};
  static uint16_t codes[65536 + 1];
  static uint32_t wide[LENGTH(halves)][65536 + 1];
  for (int i = 0; i <= 65536; i++) {
    codes[i] = (uint16_t)(i * 40503); /* every code once, in an order without pattern */
    for (int h = 0; h < LENGTH(halves); h++)
      wide[h][i] = to_bits(halves[h].widen(codes[i]));
  }
  for (int u = 0; amla_ukernels_all[u]; u++) {
    const amla_ukernels *ukr = amla_ukernels_all[u];
    if (!amla_isa_runs(ukr->isa) || ukr->tile_type != AMLA_F32)
      continue;
    for (int l = 0; l < LENGTH(lengths); l++)
      for (int skew = 0; skew < 2; skew++) {
        for (int h = 0; h < LENGTH(halves); h++)
          check_load(ukr, halves[h].type, lengths[l], codes + skew, wide[h] + skew);
        const int32_t n = lengths[l] < SAMPLE - 1 ? lengths[l] : SAMPLE - 1;
        check_load(ukr, AMLA_F32, n, sample() + skew, sample() + skew);
      }
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(shift_matches_oracle_on_sample),
      cmocka_unit_test(add_matches_oracle_on_sample),
      cmocka_unit_test(shift_counts_are_clamped),
      cmocka_unit_test(shift_kernels_match_oracle_on_sample),
      cmocka_unit_test(shift_matches_oracle_on_all_floats),
      cmocka_unit_test(halves_widen_exactly_and_round_trip),
      cmocka_unit_test(narrowing_matches_search_on_sample),
      cmocka_unit_test(narrowing_matches_search_on_all_floats),
      cmocka_unit_test(load_kernels_widen_exactly),
  };
  return cmocka_run_group_tests_name("expshift", tests, NULL, NULL);
}
