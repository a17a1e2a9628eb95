/* SPDX-License-Identifier: Apache-2.0
 *
 * The rows of neonbf16 against portable C of the same layouts, orders and roundings, bit by bit, on
 * numbers of any kind: q in one to three bf16, keys of bf16, P in two bf16 and in one. What they
 * share with row neon is tested in test_ukernels.c.
 */
#include "test_support.h"

#include "bfmmla_model.h"
#include "src/base/float16.h"
#include "src/base/isa.h"
#include "src/cpu/ukernels.h"

enum { ROWS = 8, TOKENS = 12, TILE = 96, COLS = 24 };

/* ---- Numbers ---- */

enum { NORMAL, WIDE, TINY, HUGE_ONES, CANCELLING, SUBNORMAL, ANY, N_KINDS };

/* 2^e, more or less. */
static uint16_t at_exponent(uint64_t *state, int e) {
  const int sign = random_below(state, 2), fraction = random_below(state, 128);
  return (uint16_t)(sign << 15 | (e + 127) << 7 | fraction);
}

static uint16_t random_bf16(uint64_t *state, int kind) {
  switch (kind) {
  case NORMAL: return amla_f32_to_bf16(random_normal(state));
  case WIDE: return at_exponent(state, random_below(state, 100) - 50);
  case TINY: return at_exponent(state, random_below(state, 20) - 74); /* products about 2^-126 */
  case HUGE_ONES: return at_exponent(state, random_below(state, 8) + 58); /* sums about 2^128 */
  case CANCELLING: return random_below(state, 2) ? 0x3f81 : 0xbf81;
  case SUBNORMAL: return (uint16_t)(random_below(state, 300) | random_below(state, 2) << 15);
  default: return (uint16_t)harness_random(state);
  }
}

static void fill(uint64_t *state, int kind, int64_t n, uint16_t *x) {
  for (int64_t i = 0; i < n; i++)
    x[i] = random_bf16(state, kind);
  if (kind == WIDE && n > 0 &&
      random_below(state, 4) == 0) /* one infinity, or a NaN that signals */
    x[random_below(state, (int)n)] = random_below(state, 2) ? 0x7f80 : 0xff81;
}

static uint16_t *alloc_bf16(int64_t n) {
  uint16_t *x = calloc((size_t)n + 1, sizeof *x);
  assert_non_null(x);
  return x;
}

/* ---- Scores ---- */

/* Keys as their bytes are, and as bf16. */
typedef struct key_rows {
  amla_dtype type;
  int32_t d;
  unsigned char *bytes; /* [TOKENS][d] of type */
  uint16_t *keys;       /* [TOKENS][d] */
} key_rows;

static key_rows make_keys(uint64_t *state, amla_dtype type, int kind, int32_t d) {
  const int64_t row_bytes = amla_elems_bytes(type, d);
  key_rows k = {type, d, calloc(TOKENS, (size_t)row_bytes + 1), alloc_bf16((int64_t)TOKENS * d)};
  float *row = alloc_floats(d);
  assert_non_null(k.bytes);
  fill(state, kind, (int64_t)TOKENS * d, k.keys);
  for (int t = 0; t < TOKENS; t++) {
    unsigned char *bytes = k.bytes + t * row_bytes;
    if (type == AMLA_BF16) {
      memcpy(bytes, k.keys + t * d, (size_t)row_bytes);
      continue;
    }
    for (int64_t i = 0; i < row_bytes; i++)
      bytes[i] = (unsigned char)(harness_random(state) & 0x3b); /* finite, of any type */
    for (int32_t i = 0; i < d; i++)
      row[i] = harness_load(bytes, type, i);
    for (int32_t i = 0; i < d; i++)
      k.keys[t * d + i] = amla_f32_to_bf16(row[i]);
  }
  free(row);
  return k;
}

static void free_keys(key_rows *k) { free(k->bytes), free(k->keys); }

/* Rows of q as their bytes are, and in bf16 parts, the least first. */
typedef struct q_rows {
  amla_dtype type;
  int32_t d, parts;
  unsigned char *bytes; /* [ROWS][d] of type */
  uint16_t *q;          /* [ROWS][parts][d] */
} q_rows;

/* Bits below bf16's are random. */
static void fill_q(uint64_t *state, int kind, q_rows *q) {
  uint16_t *high = alloc_bf16((int64_t)ROWS * q->d);
  fill(state, kind, (int64_t)ROWS * q->d, high);
  for (int32_t i = 0; i < ROWS * q->d; i++) {
    const uint32_t low = q->type == AMLA_BF16 ? 0 : harness_random(state) & 0xffff;
    harness_store(q->bytes, q->type, i, bf_of_bits((uint32_t)high[i] << 16 | low));
  }
  free(high);
}

static q_rows make_q(uint64_t *state, amla_dtype type, int32_t parts, int kind, int32_t d) {
  q_rows q = {type, d, parts, calloc(ROWS, (size_t)d * sizeof(float)),
              alloc_bf16((int64_t)ROWS * parts * d)};
  assert_non_null(q.bytes);
  fill_q(state, kind, &q);
  for (int32_t i = 0; i < ROWS * d; i++) {
    float x = harness_load(q.bytes, type, i);
    for (int32_t part = parts - 1; part >= 0; part--) {
      uint16_t *y = &q.q[(i / d * parts + part) * d + i % d];
      *y = amla_f32_to_bf16(x);
      x -= amla_bf16_to_f32(*y);
    }
  }
  return q;
}

static void free_q(q_rows *q) { free(q->bytes), free(q->q); }

/* Of row r of q, or of a row that is not there (-1). */
static float model_score(const uint16_t *k, const q_rows *q, int r, float factor) {
  float sum = 0;
  for (int32_t part = 0; part < q->parts && r >= 0; part++)
    for (int32_t i = 0; i < q->d; i += 4) {
      uint16_t a[4] = {0}, b[4] = {0};
      const size_t bytes = (size_t)(q->d - i < 4 ? q->d - i : 4) * sizeof *a;
      memcpy(a, k + i, bytes), memcpy(b, q->q + (r * q->parts + part) * q->d + i, bytes);
      sum = bf_dot_4(sum, a, b);
    }
  return sum * factor;
}

/* n keys in the tile, and their scores with ROWS rows of q, of which the last two are missing. */
static void stage_keys(const amla_ukernels *u, const key_rows *k, int32_t n, uint16_t *tile,
                       int64_t ld, const void *qt, float *s) {
  amla_ukr_move moves[2 * TOKENS];
  for (int i = 0; i < 2 * TOKENS; i++) {
    const int64_t at = (i < n ? i : n - 1) * amla_elems_bytes(k->type, k->d);
    moves[i] = (amla_ukr_move){.row = k->bytes + at, .to = tile + (i < n ? i : n - 1) * ld};
  }
  const amla_row_format format = {.type = k->type, .d = k->d};
  const amla_ukr_stage stage = {&format, n, moves};
  u->wide.qk(n, k->d, tile, ld, qt, s, &stage);
}

static void expect_scores(const char *what, const key_rows *k, const q_rows *q, int32_t n,
                          float factor, const float *s) {
  for (int32_t t = 0; t < n; t++)
    for (int r = 0; r < ROWS; r++) {
      const float want = model_score(k->keys + t * k->d, q, r < ROWS - 2 ? r : -1, factor);
      const float got = s[t * ROWS + r];
      if (r >= ROWS - 2 && got != got)
        continue; /* 0 * inf */
      if (to_bits(got) != to_bits(want))
        fail_msg("%s: %s q=%s in %d d=%d n=%d token %d row %d: %a, want %a", what,
                 amla_dtype_name(k->type), amla_dtype_name(q->type), q->parts, k->d, n, t, r,
                 (double)got, (double)want);
    }
}

/* A type of which rows with so many parts take q. */
static amla_dtype q_type_of(uint64_t *state, int32_t parts) {
  if (parts == 1)
    return AMLA_BF16;
  return parts == 2 && random_below(state, 2) ? AMLA_F16 : AMLA_F32;
}

static void check_scores(uint64_t *state, const amla_ukernels *u, amla_dtype type, int kind,
                         int32_t d, int32_t n) {
  const int64_t ld = (d + 31) / 32 * 32 + 32;
  const int32_t parts = amla_ukr_q_parts(u);
  key_rows k = make_keys(state, type, kind, d);
  q_rows q = make_q(state, q_type_of(state, parts), parts, kind, d);
  uint16_t *tile = (uint16_t *)(void *)alloc_floats(TOKENS * ld / 2);
  guarded s = guarded_create(TOKENS * ROWS * sizeof(float), 0);
  guarded qt = guarded_create((size_t)amla_ukr_qt_bytes(u, d) * ROWS, 0);
  const void *rows[ROWS];
  const float factor = 0.0721687824f * 1.44269504f;
  memset(tile, 0xff, (size_t)(TOKENS * ld) * sizeof *tile); /* NaN */
  for (int r = 0; r < ROWS; r++)
    rows[r] = q.bytes + r * amla_elems_bytes(q.type, d);
  u->wide.pack(ROWS - 2, d, q.type, rows, factor, 0, guarded_data(&qt));
  stage_keys(u, &k, n, tile, ld, guarded_data(&qt), guarded_data(&s));
  expect_scores("first panel", &k, &q, n, factor, guarded_data(&s));
  const amla_row_format format = {.type = type, .d = d};
  const amla_ukr_stage none = {&format, 0, NULL};
  u->wide.qk(n, d, tile, ld, guarded_data(&qt), guarded_data(&s), &none);
  expect_scores("next panel", &k, &q, n, factor, guarded_data(&s));
  assert_int_equal(guarded_damage(&s), 0);
  assert_int_equal(guarded_damage(&qt), 0);
  guarded_free(&s), guarded_free(&qt);
  free(tile), free_q(&q), free_keys(&k);
}

static void for_each_row(void (*check)(const amla_ukernels *u)) {
  for (int i = 0; amla_ukernels_all[i]; i++)
    if (amla_ukernels_all[i]->isa == AMLA_ISA_NEONBF16)
      check(amla_ukernels_all[i]);
}

static void check_all_scores(const amla_ukernels *u) {
  static const int32_t lengths[] = {1, 2, 3, 4, 5, 7, 8, 9, 12, 31, 32, 36, 61, 100, 576};
  static const int32_t counts[] = {1, 2, 3, 7, 11, 12};
  uint64_t state = 5;
  const int whole = u->p_type == AMLA_F32 && u->q_parts == 1; /* the others share its loop */
  for (int kind = 0; kind < N_KINDS; kind++)
    for (int i = 0; i < LENGTH(lengths); i++)
      for (int n = whole ? 0 : i % 3; n < LENGTH(counts); n += whole ? 1 : 3)
        check_scores(&state, u, AMLA_BF16, kind, lengths[i], counts[n]);
}

static void scores_are_bfmmla_s(void **state) {
  (void)state;
  for_each_row(check_all_scores);
}

static void check_rounded_keys(const amla_ukernels *u) {
  uint64_t state = 6;
  for (int i = 0; i < 4; i++) {
    check_scores(&state, u, AMLA_F32, NORMAL, 31 + i, 7 + i);
    check_scores(&state, u, AMLA_F16, NORMAL, 31 + i, 7 + i);
    check_scores(&state, u, AMLA_Q8_0, NORMAL, 32 + 32 * i, 7 + i);
  }
}

/* Where options allow it (kv_round). */
static void keys_of_other_types_are_rounded(void **state) {
  (void)state;
  for_each_row(check_rounded_keys);
}

/* ---- Which row ---- */

/* Of rows that differ in what they share with no other: parts of q, and the form of P. */
static void q_of_every_type_has_its_row(void **state) {
  (void)state;
  for (int type = 0; type < AMLA_N_FLOAT_DTYPES; type++)
    for (int form = AMLA_P_F32; form <= AMLA_P_BF16; form++)
      for (int q_form = 0; q_form <= AMLA_Q_BF16X3; q_form++) {
        amla_problem p = AMLA_PROBLEM_INIT;
        amla_options o = AMLA_OPTIONS_INIT;
        p.q_type = (amla_dtype)type, p.kv_type = AMLA_BF16;
        o.p_form = (amla_p_form)form, o.q_form = (amla_q_form)q_form;
        const amla_ukernels *u = amla_ukernels_choose(&p, &o);
        assert_int_equal(u->isa, AMLA_ISA_NEONBF16);
        assert_int_equal(u->q_parts, amla_q_parts(&p, &o));
        assert_int_equal(amla_ukernels_p_form(u), form);
      }
}

/* ---- P ---- */

/* Element of P: part, token and row of a panel. */
static int64_t p_at(int parts, int part, int32_t j, int r) {
  const int piece = 4 * part + r % 4 / 2 * 2 + r / 4;
  return j / 4 * 4 * ROWS * parts + piece * 8 + r % 2 * 4 + j % 4;
}

/* In how many parts the row has P; 0: in f32. */
static int parts_of(const amla_ukernels *u) {
  if (u->p_type == AMLA_F32)
    return 0;
  return u->p_form == AMLA_P_BF16X2 ? 2 : 1;
}

/* Rounds P [n][ROWS] in f32 to P of the row, and sums what that is. */
static void model_rounding(int parts, int32_t n, const float *p, uint16_t *out, float *sum) {
  for (int r = 0; r < ROWS; r++) {
    sum[r] = 0;
    for (int32_t j = 0; j < (n + 3) / 4 * 4; j++) {
      const float x = j < n ? p[j * ROWS + r] : 0.0f;
      const uint16_t high = amla_f32_to_bf16(x);
      const uint16_t low = amla_f32_to_bf16(x - amla_bf16_to_f32(high));
      out[p_at(parts, 0, j, r)] = high;
      if (parts == 2)
        out[p_at(parts, 1, j, r)] = low;
      sum[r] +=
          parts == 2 ? amla_bf16_to_f32(high) + amla_bf16_to_f32(low) : amla_bf16_to_f32(high);
    }
  }
}

static void check_exp(const amla_ukernels *u) {
  const int parts = u->q_parts == 1 ? parts_of(u) : 0; /* the others have the same kernels */
  uint64_t state = 7;
  for (int32_t n = 0; n <= TILE && parts; n += n < 14 ? 1 : 41) {
    float want[TILE * ROWS], ref[ROWS], mul[ROWS], sum[2][ROWS], want_sum[2][ROWS];
    uint16_t p[2 * TILE * ROWS];
    int32_t visible[ROWS];
    guarded s = guarded_create(sizeof want, 0);
    float *got = guarded_data(&s);
    for (int r = 0; r < ROWS; r++) {
      ref[r] = ceilf(random_normal(&state)), mul[r] = ldexpf(1, -random_below(&state, 20));
      visible[r] = random_below(&state, 3) ? n : random_below(&state, n + 1);
    }
    for (int i = 0; i < TILE * ROWS; i++)
      got[i] = want[i] = 3 * random_normal(&state) - (random_below(&state, 5) ? 0.0f : 60.0f);
    for (int i = 0; amla_ukernels_all[i]; i++) /* P in f32, as the row of neon has it */
      if (amla_ukernels_all[i]->isa == AMLA_ISA_NEON)
        amla_ukernels_all[i]->narrow.exp(n, want, ref, mul, visible, want_sum[0]);
    u->wide.exp(n, got, ref, mul, visible, sum[0]);
    model_rounding(parts, n, want, p, want_sum[1]);
    assert_memory_equal(got, p, (size_t)((n + 3) / 4 * 4 * ROWS * parts) * sizeof *p);
    assert_memory_equal(sum, want_sum, sizeof sum);
    assert_int_equal(guarded_damage(&s), 0);
    guarded_free(&s);
  }
}

static void p_is_rounded_to_nearest_even(void **state) {
  (void)state;
  for_each_row(check_exp);
}

/* ---- Output ---- */

typedef struct values {
  int32_t n, d;
  uint16_t *v; /* [TILE][d] */
  void *tile;  /* [TILE][ld] as turn has left it */
  int64_t ld;
} values;

/* Through qk's stage and turn; what is not a value is NaN before. */
static values make_values(uint64_t *state, const amla_ukernels *u, int kind, int32_t n, int32_t d) {
  values x = {n, d, alloc_bf16((int64_t)TILE * d), NULL, (2 * d + 63) / 32 * 32 + 2 * COLS};
  float s[TOKENS * ROWS];
  guarded qt = guarded_create((size_t)amla_ukr_qt_bytes(u, d) * ROWS, 0);
  x.ld = (x.ld + 31) / 32 * 32;
  uint16_t *tile = x.tile = alloc_floats(TILE * x.ld / 2);
  memset(tile, 0xff, (size_t)(TILE * x.ld) * sizeof *tile);
  memset(guarded_data(&qt), 0, qt.bytes);
  for (int32_t j = 0; j < n; j += TOKENS) {
    const int32_t some = n - j < TOKENS ? n - j : TOKENS;
    key_rows k = make_keys(state, AMLA_BF16, kind, d);
    memcpy(x.v + j * d, k.keys, (size_t)(some * d) * sizeof *x.v);
    stage_keys(u, &k, some, tile + j * x.ld, x.ld, guarded_data(&qt), s);
    free_keys(&k);
  }
  u->turn(n, d, tile, x.ld);
  guarded_free(&qt);
  return x;
}

static float model_element(const values *x, int parts, const uint16_t *p, int r, int32_t c) {
  float sum = 0;
  for (int32_t j = 0; j < x->n; j += 4)
    for (int part = 0; part < parts; part++) {
      uint16_t a[4], b[4];
      for (int t = 0; t < 4; t++) {
        a[t] = p[p_at(parts, part, j + t, r)];
        b[t] = j + t < x->n ? x->v[(j + t) * x->d + c] : 0;
      }
      sum = bf_dot_4(sum, a, b);
    }
  return sum;
}

/* Columns [c, c + cols) of `rows` rows from row `row` on. */
static void check_output(uint64_t *state, const amla_ukernels *u, const values *x,
                         const uint16_t *p, amla_ukr_pv *pv, int row, int rows, int32_t c, int cols,
                         int first, int n_merges) {
  const int parts = parts_of(u);
  float o[ROWS * COLS], a[2][ROWS * COLS], of_a[2][ROWS], of_b[2][ROWS];
  amla_ukr_merge merges[2];
  guarded out = guarded_create((size_t)(rows * COLS) * sizeof(float), 0);
  const float *got = guarded_data(&out);
  for (int m = 0; m < 2; m++) {
    merges[m] = (amla_ukr_merge){a[m], of_a[m], of_b[m]};
    for (int i = 0; i < ROWS * COLS; i++)
      a[m][i] = random_normal(state), o[i] = random_normal(state);
    for (int r = 0; r < ROWS; r++)
      of_a[m][r] = random_normal(state), of_b[m][r] = random_normal(state);
  }
  const char *v = (const char *)x->tile + c * 2 * u->v_width;
  pv(x->n, (const char *)p + row * 4, ROWS, v, x->ld / u->v_width, first, o, n_merges, merges,
     guarded_data(&out));
  for (int r = 0; r < rows; r++)
    for (int i = 0; i < cols && c + i < x->d; i++) {
      const int at = r * COLS + i;
      float want = model_element(x, parts, p, row + r, c + i);
      want = first ? want : o[at] + want;
      for (int m = 0; m < n_merges; m++)
        want = fmaf(of_b[m][r], want, of_a[m][r] * a[m][at]);
      if (!same_number(got[at], want))
        fail_msg(
            "p=%s n=%d d=%d %d rows x %d columns at %d, %d, first=%d, %d merges: row %d column "
            "%d: %a, want %a",
            amla_p_form_name(u->p_form), x->n, x->d, rows, cols, row, c, first, n_merges, r, i,
            (double)got[at], (double)want);
      if (first && !n_merges)
        assert_int_equal(to_bits(got[at]), to_bits(want)); /* a NaN too */
    }
  assert_int_equal(guarded_damage(&out), 0);
  guarded_free(&out);
}

static void check_outputs(const amla_ukernels *u) {
  static const int32_t counts[] = {1, 2, 3, 4, 5, 31, 94, 95, 96}, lengths[] = {1, 8, 23, 32};
  uint64_t state = 8;
  const int parts = u->q_parts == 1 ? parts_of(u) : 0;
  for (int kind = 0; kind < N_KINDS && parts; kind++)
    for (int i = 0; i < LENGTH(counts); i++) {
      const int32_t d = lengths[random_below(&state, LENGTH(lengths))];
      uint16_t p[2 * TILE * ROWS] = {0};
      values x = make_values(&state, u, kind, counts[i], d);
      for (int32_t j = 0; j < x.n; j++)
        for (int r = 0; r < ROWS; r++)
          for (int part = 0; part < parts; part++)
            p[p_at(parts, part, j, r)] = random_bf16(&state, kind);
      for (int merges = 0; merges < 3; merges++) {
        const int first = random_below(&state, 2);
        check_output(&state, u, &x, p, u->pv, 0, 4, 0, COLS, first, merges);
        check_output(&state, u, &x, p, u->pv, 4, 4, 0, COLS, first, merges);
        check_output(&state, u, &x, p, u->pv_end.pv, 0, 8, d > 8 ? 8 : 0, 8, first, merges);
      }
      free(x.v), free(x.tile);
    }
}

static void sums_over_v_are_bfmmla_s(void **state) {
  (void)state;
  for_each_row(check_outputs);
}

static void check_wide_values(const amla_ukernels *u) {
  uint64_t state = 9;
  for (int32_t n = 1; n < TILE && u->q_parts == 1 && !parts_of(u); n += 19)
    for (int32_t d = 1; d < 50; d += 8) {
      values x = make_values(&state, u, ANY, n, d);
      const float *v = x.tile;
      for (int32_t j = 0; j < n; j++)
        for (int32_t c = 0; c < d; c++)
          assert_int_equal(to_bits(v[j * x.ld / 2 + c]), (uint32_t)x.v[j * d + c] << 16);
      free(x.v), free(x.tile);
    }
}

/* For P in f32. */
static void values_are_widened_in_place(void **state) {
  (void)state;
  for_each_row(check_wide_values);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(scores_are_bfmmla_s),
      cmocka_unit_test(keys_of_other_types_are_rounded),
      cmocka_unit_test(q_of_every_type_has_its_row),
      cmocka_unit_test(p_is_rounded_to_nearest_even),
      cmocka_unit_test(sums_over_v_are_bfmmla_s),
      cmocka_unit_test(values_are_widened_in_place),
  };
  if (!amla_isa_runs(AMLA_ISA_NEONBF16)) {
    puts("skipped: this CPU has no bf16");
    return 77;
  }
  return cmocka_run_group_tests(tests, NULL, NULL);
}
