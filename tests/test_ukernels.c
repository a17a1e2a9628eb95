/* SPDX-License-Identifier: Apache-2.0
 *
 * Every micro-kernel of every instruction set that this CPU can run, checkasm style: hostile input,
 * fp64 oracle written here, guard bytes around the output, NaN in all that must not be read. And
 * the property that batch-invariant bits rest on: an element's bits depend on its own operands
 * only, not on where it stands or what stands beside it. shift and load are compared bit by bit in
 * test_expshift.c. A failure prints isa, kernel, parameters and seed.
 */
#include "test_support.h"

#include "harness/kv_rows.h"
#include "src/cpu/exp2_poly.h"
#include "src/base/isa.h"
#include "src/cpu/ukernels.h"

#define U 0x1p-24 /* unit roundoff of f32 */

/* One table row with one of its two panels, and what a failure prints. */
typedef struct subject {
  const amla_ukernels *ukr;
  const amla_ukr_panel *panel;
  uint64_t seed;
} subject;

#define FAIL_AT(s, kernel, ...)                                                                    \
  do {                                                                                             \
    char what_[400];                                                                               \
    snprintf(what_, sizeof what_, __VA_ARGS__);                                                    \
    fail_msg("isa=%s kernel=%s rows=%d seed=%llu: %s", amla_isa_name((s)->ukr->isa), kernel,       \
             (s)->panel->rows, (unsigned long long)(s)->seed, what_);                              \
  } while (0)

/* Calls check for each row of f32 that runs here, with the wide and the narrow panel. Rows of bf16
 * have their tests in tests/emulated, on every machine. */
static void for_each_subject(void (*check)(subject *s)) {
  for (int i = 0; amla_ukernels_all[i]; i++) {
    const amla_ukernels *ukr = amla_ukernels_all[i];
    if (!amla_isa_runs(ukr->isa) || ukr->tile_type != AMLA_F32)
      continue;
    check(&(subject){ukr, &ukr->wide, 11});
    check(&(subject){ukr, &ukr->narrow, 12});
  }
}

static void expect_guards(const subject *s, const char *kernel, guarded *g) {
  if (guarded_damage(g))
    FAIL_AT(s, kernel, "wrote outside its output");
  guarded_free(g);
}

/* Lengths of a tile: none, one, primes, full. */
static int tile_lengths(const subject *s, int32_t n[8]) {
  const int32_t all[] = {0, 1, 2, 7, 31, 61, s->ukr->tile_tokens - 1, s->ukr->tile_tokens};
  memcpy(n, all, sizeof all);
  return LENGTH(all);
}

/* ---- The table itself ---- */

/* Every row that this build contains, whether it runs here or not. */
static void table_keeps_its_contract(void **state) {
  (void)state;
  for (int i = 0; amla_ukernels_all[i]; i++) {
    const char *flaw = amla_ukernels_flaw(amla_ukernels_all[i]);
    if (flaw)
      fail_msg("isa=%s: %s", amla_isa_name(amla_ukernels_all[i]->isa), flaw);
  }
}

/* A row that breaks a rule is found out, rule by rule. */
static void contract_sees_flaws(void **state) {
  static const amla_ukr_panel none = {0};
  amla_ukernels bad[14];
  (void)state;
  for (int i = 0; i < LENGTH(bad); i++)
    bad[i] = amla_ukernels__c;
  bad[0].tile_tokens = AMLA_UKR_MAX_TILE_TOKENS + 4;
  bad[1].tile_tokens = bad[1].wide.tokens + 1;
  bad[2].narrow.rows = 4;
  bad[3].narrow.rows = 2 * bad[3].wide.rows;
  bad[4].wide.tokens = AMLA_UKR_MAX_QK_TOKENS + 1;
  bad[5].pv_rows = 3;
  bad[6].pv_cols = 12;
  bad[7].pv_end = (amla_ukr_pv_end){bad[7].pv_rows, bad[7].pv_cols, bad[7].pv};
  bad[8].wide = none;
  bad[9].merge = NULL;
  bad[10].tile_type = AMLA_F16;
  bad[11].p_type = AMLA_BF16;
  bad[12].p_form = AMLA_P_BF16;
  bad[13].wide.depth = AMLA_UKR_MAX_DEPTH + 1;
  for (int i = 0; i < LENGTH(bad); i++)
    if (!amla_ukernels_flaw(&bad[i]))
      fail_msg("flaw %d goes unnoticed", i);
}

static void select_obeys_the_cap(void **state) {
  (void)state;
  assert_ptr_equal(amla_ukernels_select(AMLA_ISA_C), &amla_ukernels__c);
  for (int cap = AMLA_ISA_C; cap < AMLA_N_ISAS; cap++)
    assert_true(amla_ukernels_select((amla_isa)cap)->isa <= (amla_isa)cap);
  int last = 0;
  while (amla_ukernels_all[last + 1] && amla_isa_runs(amla_ukernels_all[last + 1]->isa))
    last++;
  assert_ptr_equal(amla_ukernels_select(AMLA_ISA_AUTO), amla_ukernels_all[last]);
}

/* Types of keys, q and out decide the row, and the options. */
static void choice_follows_the_types(void **state) {
  (void)state;
  static const struct {
    amla_dtype q, kv, out;
    amla_p_form form;
    amla_q_form q_form;
    amla_p_form allowed;
    int parts;
  } rows[] = {
      {AMLA_BF16, AMLA_BF16, AMLA_BF16, AMLA_P_DEFAULT, 0, AMLA_P_BF16X2, 1},
      {AMLA_BF16, AMLA_BF16, AMLA_F16, AMLA_P_DEFAULT, 0, AMLA_P_BF16X2, 1},
      {AMLA_F16, AMLA_BF16, AMLA_F32, AMLA_P_DEFAULT, 0, AMLA_P_F32, 2},
      {AMLA_F32, AMLA_F32, AMLA_F32, AMLA_P_BF16, 0, AMLA_P_BF16, 3},
      {AMLA_F32, AMLA_Q8_0, AMLA_BF16, AMLA_P_F32, AMLA_Q_BF16X2, AMLA_P_F32, 2},
      {AMLA_F32, AMLA_F16, AMLA_BF16, AMLA_P_BF16X2, AMLA_Q_BF16X3, AMLA_P_BF16X2, 3},
  };
  for (int i = 0; i < LENGTH(rows); i++) {
    amla_problem p = AMLA_PROBLEM_INIT;
    amla_options o = AMLA_OPTIONS_INIT;
    p.q_type = rows[i].q, p.kv_type = rows[i].kv, p.out_type = rows[i].out;
    o.p_form = rows[i].form, o.q_form = rows[i].q_form;
    assert_int_equal(amla_p_form_allowed(&p, &o), rows[i].allowed);
    assert_int_equal(amla_q_parts(&p, &o), rows[i].parts);
    for (int cap = 0; cap < AMLA_N_ISAS; cap++)
      for (int round = 0; round < 2; round++) {
        o.isa = (amla_isa)cap;
        o.kv_round = (amla_kv_round)round;
        const amla_ukernels *u = amla_ukernels_choose(&p, &o);
        assert_true(amla_isa_runs(u->isa) && (cap == AMLA_ISA_AUTO || u->isa <= (amla_isa)cap));
        assert_true(amla_ukernels_p_form(u) <= rows[i].allowed);
        if (u->tile_type != AMLA_F32)
          assert_true(rows[i].kv == AMLA_BF16 || round);
      }
  }
}

/* ---- pack ---- */

/* Where column i of row r stands in Q^T of d columns. */
static int64_t qt_at(const subject *s, int32_t d, int32_t i, int32_t r) {
  const int32_t depth = s->panel->depth, rows = s->panel->rows;
  return i < d / depth * depth ? (int64_t)(i / depth * rows + r) * depth + i % depth
                               : (int64_t)i * rows + r;
}

static int has_even_odd_type(const subject *s) {
  for (int type = 0; type < AMLA_N_DTYPES; type++)
    if (s->ukr->even_odd[type])
      return 1;
  return 0;
}

/* The transpose is exact but for one rounding of the product, rows from n on are 0; nothing is
 * written past d columns. */
static void check_pack_of(subject *s, int32_t n, int32_t d, amla_dtype type, int even_odd) {
  const int32_t rows = s->panel->rows;
  const size_t size = harness_dtype_bytes(type), row_bytes = (size_t)(d + 1) * size;
  const float factor = 0.195f;
  const void *q[AMLA_UKR_MAX_ROWS];
  /* Exactly as long as read: overruns are a sanitizer's to find. */
  char *bytes = malloc((size_t)n * row_bytes + size);
  guarded qt = guarded_create((size_t)(d * rows) * sizeof(float), 0);
  assert_non_null(bytes);
  for (int64_t i = 0; i < (int64_t)n * (d + 1) + 1; i++)
    harness_store(bytes, type, i, i % 11 ? random_normal(&s->seed) : random_hostile(&s->seed));
  for (int32_t r = 0; r < n; r++)
    q[r] = bytes + (size_t)r * row_bytes + size; /* aligned to the element only */
  s->panel->pack(n, d, type, q, factor, even_odd, guarded_data(&qt));
  const float *got = guarded_data(&qt);
  for (int32_t i = 0; i < d; i++)
    for (int32_t r = 0; r < rows; r++) {
      const float x = got[qt_at(s, d, i, r)];
      const int32_t column = even_odd ? split_column(d, i) : i;
      const float want = r < n ? factor * harness_load(q[r], type, column) : 0.0f;
      if (!same_number(x, want))
        FAIL_AT(s, "pack", "n=%d d=%d type=%d even_odd=%d: column %d row %d is %a, want %a", n, d,
                (int)type, even_odd, i, r, (double)x, (double)want);
    }
  expect_guards(s, "pack", &qt);
  free(bytes);
}

static void check_pack(subject *s) {
  static const int32_t ds[] = {1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 63, 64, 575, 576};
  for (int i = 0; i < LENGTH(ds); i++)
    for (int32_t n = 1; n <= s->panel->rows; n += n == 1 || n >= s->panel->rows - 1 ? 1 : 5)
      for (int type = AMLA_F32; type < AMLA_N_FLOAT_DTYPES; type++)
        for (int even_odd = 0; even_odd <= has_even_odd_type(s); even_odd++)
          check_pack_of(s, n, ds[i], (amla_dtype)type, even_odd);
}

static void pack_transposes_exactly(void **state) {
  (void)state;
  for_each_subject(check_pack);
}

/* ---- qk ---- */

static const amla_ukr_stage no_stage;

typedef struct qk_buffers {
  int32_t d_qk;
  int64_t ldk;
  float *k, *qt; /* [tokens][ldk], [d_qk][rows] */
  guarded s;     /* [tokens][rows] */
} qk_buffers;

static qk_buffers qk_create(subject *s, int32_t d_qk, int64_t ldk) {
  const int32_t tokens = s->panel->tokens, rows = s->panel->rows;
  qk_buffers b = {d_qk, ldk, alloc_floats(tokens * ldk), alloc_floats((int64_t)d_qk * rows),
                  guarded_create((size_t)(tokens * rows) * sizeof(float), 0)};
  for (int64_t i = 0; i < tokens * ldk; i++)
    b.k[i] = i % ldk < d_qk ? random_normal(&s->seed) : NAN;
  for (int64_t i = 0; i < (int64_t)d_qk * rows; i++)
    b.qt[i] = random_normal(&s->seed);
  return b;
}

static void qk_free(const subject *s, qk_buffers *b) {
  expect_guards(s, "qk", &b->s);
  free(b->k);
  free(b->qt);
}

/* fp64 product and the sum of its terms' magnitudes. */
static double exact_score(const subject *s, const qk_buffers *b, int32_t i, int32_t r,
                          double *sum_abs) {
  double sum = 0;
  *sum_abs = 0;
  for (int32_t d = 0; d < b->d_qk; d++) {
    const double x = (double)b->k[i * b->ldk + d] * (double)b->qt[qt_at(s, b->d_qk, d, r)];
    sum += x;
    *sum_abs += fabs(x);
  }
  return sum;
}

static void expect_scores_near_fp64(const subject *s, const qk_buffers *b) {
  const float *got = guarded_data(&b->s);
  for (int32_t i = 0; i < s->panel->tokens; i++)
    for (int32_t r = 0; r < s->panel->rows; r++) {
      double sum_abs;
      const double want = exact_score(s, b, i, r, &sum_abs),
                   x = (double)got[i * s->panel->rows + r];
      if (!(fabs(x - want) <= (b->d_qk + 1) * (U * sum_abs + 0x1p-149)))
        FAIL_AT(s, "qk", "d_qk=%d ldk=%lld token %d row %d: %a, want %a", b->d_qk,
                (long long)b->ldk, i, r, x, want);
    }
}

/* Operands of test number `hostile`: as created; every kind of finite number; subnormal. Token 1 is
 * +-0. */
static void make_keys_hostile(subject *s, qk_buffers *b, int hostile) {
  for (int32_t d = 0; d < b->d_qk; d++) {
    const float any = ldexpf(random_hostile(&s->seed), -20),
                tiny = random_normal(&s->seed) * 0x1p-140f;
    if (hostile > 0)
      b->k[d] = hostile == 1 ? any : tiny;
    if (hostile > 0)
      b->k[b->ldk + d] = d % 2 ? 0.0f : -0.0f;
  }
}

static void check_qk_values(subject *s) {
  static const struct {
    int32_t d_qk;
    int64_t ldk;
  } shapes[] = {{1, 1},   {1, 16},    {2, 2},     {3, 5},     {7, 7},
                {64, 64}, {127, 128}, {575, 576}, {576, 576}, {576, 593}};
  for (int i = 0; i < LENGTH(shapes); i++)
    for (int hostile = 0; hostile < 3; hostile++) {
      qk_buffers b = qk_create(s, shapes[i].d_qk, shapes[i].ldk);
      make_keys_hostile(s, &b, hostile);
      s->panel->qk(s->panel->tokens, b.d_qk, b.k, b.ldk, b.qt, guarded_data(&b.s), &no_stage);
      expect_scores_near_fp64(s, &b);
      qk_free(s, &b);
    }
}

static void qk_is_near_fp64(void **state) {
  (void)state;
  for_each_subject(check_qk_values);
}

static void check_qk_position(subject *s) {
  const int32_t d_qk = 75, rows = s->panel->rows;
  float key[75], query[75], first = 0;
  for (int32_t d = 0; d < d_qk; d++)
    key[d] = random_normal(&s->seed), query[d] = random_normal(&s->seed);
  for (int32_t i = 0; i < s->panel->tokens; i++)
    for (int32_t r = 0; r < rows; r++) { /* the same two vectors, in other company each time */
      qk_buffers b = qk_create(s, d_qk, d_qk + i);
      memcpy(b.k + i * b.ldk, key, sizeof key);
      for (int32_t d = 0; d < d_qk; d++)
        b.qt[qt_at(s, d_qk, d, r)] = query[d];
      s->panel->qk(s->panel->tokens, d_qk, b.k, b.ldk, b.qt, guarded_data(&b.s), &no_stage);
      const float x = ((const float *)guarded_data(&b.s))[i * rows + r];
      if (i == 0 && r == 0)
        first = x;
      if (to_bits(x) != to_bits(first))
        FAIL_AT(s, "qk", "token %d row %d: %a, but %a at token 0 row 0", i, r, (double)x,
                (double)first);
      qk_free(s, &b);
    }
}

static void qk_bits_do_not_depend_on_position(void **state) {
  (void)state;
  for_each_subject(check_qk_position);
}

/* Fewer tokens than the register tile: the same bits for those asked for, nothing behind the tile.
 */
static void check_qk_tails(subject *s) {
  const int32_t rows = s->panel->rows, tokens = s->panel->tokens;
  for (int32_t n = 1; n <= tokens; n++) {
    qk_buffers b = qk_create(s, 37, 48);
    float whole[64 * AMLA_UKR_MAX_ROWS];
    s->panel->qk(tokens, b.d_qk, b.k, b.ldk, b.qt, guarded_data(&b.s), &no_stage);
    memcpy(whole, guarded_data(&b.s), (size_t)(tokens * rows) * sizeof *whole);
    memset(guarded_data(&b.s), 0x77, (size_t)(tokens * rows) * sizeof *whole);
    s->panel->qk(n, b.d_qk, b.k, b.ldk, b.qt, guarded_data(&b.s), &no_stage);
    if (memcmp(guarded_data(&b.s), whole, (size_t)(n * rows) * sizeof *whole) != 0)
      FAIL_AT(s, "qk", "n=%d: other bits than with all tokens", n);
    qk_free(s, &b);
  }
}

static void qk_tails_have_the_same_bits(void **state) {
  (void)state;
  for_each_subject(check_qk_tails);
}

/* Poison in key i0 reaches token i0 of every row, poison in query r0 reaches row r0 of every token,
 * and nothing else. */
static void check_qk_poison(subject *s) {
  static const float poisons[] = {NAN, INFINITY, -INFINITY};
  const int32_t d_qk = 19, rows = s->panel->rows, tokens = s->panel->tokens;
  for (int t = 0; t < 30; t++) {
    qk_buffers b = qk_create(s, d_qk, d_qk);
    float *got = guarded_data(&b.s), clean[64 * AMLA_UKR_MAX_ROWS];
    const int32_t i0 = t % 2 ? random_below(&s->seed, tokens) : -1;
    const int32_t r0 = t % 2 ? -1 : random_below(&s->seed, rows);
    assert_true(tokens <= 64);
    s->panel->qk(s->panel->tokens, d_qk, b.k, b.ldk, b.qt, got, &no_stage);
    memcpy(clean, got, (size_t)(tokens * rows) * sizeof *got);
    const int32_t d0 = random_below(&s->seed, d_qk);
    *(i0 >= 0 ? &b.k[i0 * b.ldk + d0] : &b.qt[qt_at(s, d_qk, d0, r0)]) = poisons[t % 3];
    s->panel->qk(s->panel->tokens, d_qk, b.k, b.ldk, b.qt, got, &no_stage);
    for (int32_t i = 0; i < tokens; i++)
      for (int32_t r = 0; r < rows; r++) {
        const bool hit = i == i0 || r == r0;
        if (hit ? isfinite(got[i * rows + r])
                : to_bits(got[i * rows + r]) != to_bits(clean[i * rows + r]))
          FAIL_AT(s, "qk", "poison in token %d / row %d, element d=%d: token %d row %d is %a", i0,
                  r0, d0, i, r, (double)got[i * rows + r]);
      }
    qk_free(s, &b);
  }
}

static void qk_contains_poison(void **state) {
  (void)state;
  for_each_subject(check_qk_poison);
}

static void check_qk_overflow(subject *s) {
  qk_buffers b = qk_create(s, 1, 1);
  const int32_t rows = s->panel->rows, count = s->panel->tokens * rows;
  const float *got = guarded_data(&b.s);
  for (int32_t i = 0; i < s->panel->tokens; i++)
    b.k[i] = i % 2 ? -3e38f : 3e38f;
  for (int32_t r = 0; r < rows; r++)
    b.qt[r] = 2.0f;
  s->panel->qk(s->panel->tokens, 1, b.k, b.ldk, b.qt, guarded_data(&b.s), &no_stage);
  for (int32_t i = 0; i < count; i++)
    if (got[i] != (i / rows % 2 ? -INFINITY : INFINITY))
      FAIL_AT(s, "qk", "an overflow gives %a", (double)got[i]);
  qk_free(s, &b);
}

static void qk_overflows_to_signed_infinity(void **state) {
  (void)state;
  for_each_subject(check_qk_overflow);
}

/* ---- Stages ---- */

/* Rows to be converted, in a buffer that ends with the last of them: overruns are a sanitizer's to
 * find. Aligned to the element only. Of fp8 they are a page. */
typedef struct stage_rows {
  amla_problem page;
  amla_row_format format;
  char *buffer, *rows;
  size_t row_bytes;
} stage_rows;

/* fp8: no row, rows with NaN codes, or rows with any scale are those that no shortcut takes. */
enum { TAME, WILD_CODES, WILD_SCALES, N_WILD };

static float stage_value(const stage_rows *r, int32_t row, int32_t d) {
  const int64_t at = row * (int64_t)r->row_bytes;
  return harness_is_fp8(r->format.type) ? harness_load_kv(&r->page, r->rows, at, d)
                                        : harness_load(r->rows + at, r->format.type, d);
}

static amla_ukr_move stage_move(const stage_rows *r, int32_t row, void *to) {
  const char *scales = r->rows + r->page.page_size * r->row_bytes + 8 * row;
  return (amla_ukr_move){r->rows + row * r->row_bytes,
                         r->format.type == AMLA_FP8_584 ? scales : NULL, to};
}

static void fill_page(subject *s, const stage_rows *r, int wild) {
  const int64_t footer = r->page.page_size * (int64_t)r->row_bytes;
  for (int64_t i = 0; i < footer; i++) {
    const int code = random_below(&s->seed, 256);
    r->rows[i] = (char)(wild != WILD_CODES && code % 128 == 127 ? 0 : code);
  }
  for (int32_t i = 0; r->format.type == AMLA_FP8_584 && i < 8 * r->page.page_size; i++)
    r->rows[footer + i] = (char)(wild == WILD_SCALES ? random_below(&s->seed, 256) : 90 + i % 64);
  for (int32_t i = 0; r->format.type == AMLA_FP8_656 && i < 4 * r->page.page_size; i++) {
    const float any = of_bits((uint32_t)harness_random(&s->seed)), scale = random_normal(&s->seed);
    memcpy(r->rows + i / 4 * (int64_t)r->row_bytes + 512 + i % 4 * 4,
           wild == WILD_SCALES ? &any : &scale, sizeof scale);
  }
}

/* Of e4m3 the second scale begins anywhere, mostly at a whole vector. */
static int32_t stage_latent(subject *s, int32_t d, amla_dtype type) {
  const int32_t vector = d % 8 == 0 && random_below(&s->seed, 8) > 0 ? 8 : 1;
  switch (type) {
  case AMLA_FP8_656: return 512;
  case AMLA_FP8_584: return 448;
  default: return vector * (1 + random_below(&s->seed, d / vector));
  }
}

static stage_rows stage_rows_create(subject *s, int32_t n, int32_t d, amla_dtype type, int wild) {
  const size_t size = amla_dtype_align(type);
  const int32_t latent = stage_latent(s, d, type);
  const float scale = wild == WILD_SCALES ? 0x1.8p122f : 0.7f;
  stage_rows r = {.page = AMLA_PROBLEM_INIT};
  r.page.kv_type = type, r.page.page_size = n, r.page.d_qk = d;
  r.page.d_v = type == AMLA_FP8_584 ? d : latent;
  r.page.kv_scale = scale, r.page.kv_rope_scale = 0.3f;
  r.format = (amla_row_format){type, d, latent, scale, 0.3f};
  r.row_bytes = (size_t)harness_bytes(type, harness_row_elems(type, d));
  r.row_bytes += harness_is_fp8(type) ? 0 : size;
  const size_t bytes = (size_t)n * (r.row_bytes + (type == AMLA_FP8_584 ? 8 : 0)) + size;
  r.buffer = malloc(bytes);
  assert_non_null(r.buffer);
  r.rows = r.buffer + size;
  if (harness_is_fp8(type))
    fill_page(s, &r, wild);
  for (size_t i = 0; amla_block_elems(type) > 1 && i < bytes; i++)
    r.buffer[i] = (char)random_below(&s->seed, 256);
  for (int64_t i = 0; type <= AMLA_F16 && i < n * (d + 1) + 1; i++)
    harness_store(r.buffer, type, i, random_hostile(&s->seed));
  return r;
}

/* Rows that qk converts, n_rows of its own or others: each element exactly, nothing outside
 * [n_rows][d_qk], and the scores are right. */
static void check_stage_of(subject *s, int32_t n, int32_t n_rows, int32_t d, amla_dtype type,
                           int wild) {
  const int32_t tokens = s->panel->tokens, rows = s->panel->rows;
  const int64_t ld = (d + 15) / 16 * 16 + 16;
  amla_ukr_move moves[2 * 64];
  qk_buffers b = qk_create(s, d, ld);
  guarded staged = guarded_create((size_t)(tokens * ld) * sizeof(float), 0);
  stage_rows from = stage_rows_create(s, n_rows, d, type, wild);
  float want[64 * AMLA_UKR_MAX_ROWS];
  assert_true(tokens <= 64);
  for (int32_t i = 0; i < 2 * tokens; i++)
    moves[i] = stage_move(&from, i % n_rows, (float *)guarded_data(&staged) + i % tokens * ld);
  const float *k = s->panel->ahead ? b.k : guarded_data(&staged), *scores = guarded_data(&b.s),
              *got = guarded_data(&staged);
  s->panel->qk(n, d, k, ld, b.qt, guarded_data(&b.s),
               &(amla_ukr_stage){&from.format, n_rows, moves});
  for (int64_t i = 0; i < tokens * ld; i++) {
    const int32_t column = (int32_t)(i % ld), row = (int32_t)(i / ld),
                  element = s->ukr->even_odd[type] ? split_column(d, column) : column;
    if (row < n_rows && column < d ? !same_number(got[i], stage_value(&from, row, element))
                                   : to_bits(got[i]) != 0xa5a5a5a5u)
      FAIL_AT(s, "qk", "n=%d d=%d type=%d wild=%d stage of %d: row %d element %d is %a", n, d,
              (int)type, wild, n_rows, row, column, (double)got[i]);
  }
  memcpy(want, scores, (size_t)(n * rows) * sizeof *want);
  s->panel->qk(n, d, k, ld, b.qt, guarded_data(&b.s), &no_stage);
  for (int32_t i = 0; i < n * rows; i++)
    if (!same_number(scores[i], want[i]))
      FAIL_AT(s, "qk", "n=%d d=%d type=%d stage of %d: score %d is %a, without a stage %a", n, d,
              (int)type, n_rows, i, (double)want[i], (double)scores[i]);
  expect_guards(s, "qk", &staged);
  free(from.buffer);
  qk_free(s, &b);
}

/* Can a row of the type have d elements? */
static bool has_rows(amla_dtype type, int32_t d) {
  switch (type) {
  case AMLA_FP8_656: return d == 576;
  case AMLA_FP8_584: return d == 512;
  default: return d % amla_block_elems(type) == 0;
  }
}

static void check_stage(subject *s) {
  static const int32_t ds[] = {1, 2, 15, 16, 17, 31, 32, 33, 64, 96, 100, 192, 512, 575, 576};
  const int32_t tokens = s->panel->tokens, ahead = s->panel->ahead;
  for (int32_t n = 1; n <= tokens; n++)
    for (int i = 0; i < LENGTH(ds); i++)
      for (int type = AMLA_F32; type < AMLA_N_DTYPES; type++) {
        const int n_wild = harness_is_fp8((amla_dtype)type) ? N_WILD : 1;
        for (int wild = 0; has_rows((amla_dtype)type, ds[i]) && wild < n_wild; wild++) {
          check_stage_of(s, n, ahead ? 1 + (n + i + type) % tokens : n, ds[i], (amla_dtype)type,
                         wild);
          if (ahead && n == tokens)
            check_stage_of(s, n, 1 + (i + type) % n, ds[i], (amla_dtype)type, wild);
        }
      }
}

/* `load` does what a stage does. */
static void check_load(subject *s) {
  static const int32_t ds[] = {1, 33, 64, 96, 100, 512, 575, 576};
  for (int i = 0; i < LENGTH(ds); i++)
    for (int type = AMLA_Q8_0; type < AMLA_N_DTYPES; type++) /* others: test_expshift.c */
      for (int wild = 0; has_rows((amla_dtype)type, ds[i]) && wild < N_WILD; wild++) {
        stage_rows from = stage_rows_create(s, 3, ds[i], (amla_dtype)type, wild);
        guarded to = guarded_create((size_t)ds[i] * sizeof(float), 0);
        for (int32_t row = 0; row < 3; row++) {
          const amla_ukr_move m = stage_move(&from, row, guarded_data(&to));
          s->ukr->load(&from.format, m.row, m.scales, m.to);
          for (int32_t d = 0; d < ds[i]; d++)
            if (!same_number(((const float *)m.to)[d], stage_value(&from, row, d)))
              FAIL_AT(s, "load", "d=%d type=%d wild=%d: row %d element %d is %a", ds[i], type, wild,
                      row, d, (double)((const float *)m.to)[d]);
        }
        expect_guards(s, "load", &to);
        free(from.buffer);
      }
}

static void load_converts_exactly(void **state) {
  (void)state;
  for_each_subject(check_load);
}

static void qk_converts_its_stage_exactly(void **state) {
  (void)state;
  for_each_subject(check_stage);
}

enum { MAX_STORE_COLS = 64 };

/* ---- store ---- */

/* The bits of portable C, on numbers that round, overflow, vanish or are none; a row without `out`
 * is left out. */
static void check_store_of(subject *s, amla_dtype type, int32_t cols, int even_odd) {
  static const float factors[] = {1.0f, 0.37f, -2.5e-7f, 0.0f, 3e38f};
  enum { ROWS = 5, BEFORE = 3 };
  const int32_t pv_cols = s->ukr->pv_cols;
  const size_t bytes = (size_t)harness_bytes(type, BEFORE + cols),
               before = (size_t)harness_bytes(type, BEFORE);
  float *o = alloc_floats(ROWS * pv_cols);
  guarded got[ROWS], want = guarded_create(bytes, 0);
  amla_row_end ends[ROWS];
  for (int32_t i = 0; i < ROWS * pv_cols; i++)
    o[i] = i % 2 ? random_hostile(&s->seed) : random_normal(&s->seed);
  for (int r = 0; r < ROWS; r++) {
    got[r] = guarded_create(bytes, 0);
    ends[r] = (amla_row_end){r == 2 ? NULL : guarded_data(&got[r]), factors[r]};
  }
  s->ukr->store(type, ROWS, cols, o, even_odd, ends, BEFORE);
  for (int r = 0; r < ROWS; r++) {
    float row[MAX_STORE_COLS];
    for (int32_t i = 0; i < pv_cols; i++)
      row[even_odd ? split_column(pv_cols, i) : i] = o[r * pv_cols + i];
    memset(guarded_data(&want), 0xa5, bytes);
    if (ends[r].out)
      amla_store_row(type, cols, row, factors[r], (char *)guarded_data(&want) + before);
    for (int32_t i = 0; i < BEFORE + cols; i++)
      if (!same_number(harness_load(guarded_data(&got[r]), type, i),
                       harness_load(guarded_data(&want), type, i)))
        FAIL_AT(s, "store", "type=%d cols=%d even_odd=%d: row %d element %d is %a", (int)type, cols,
                even_odd, r, i, (double)harness_load(guarded_data(&got[r]), type, i));
    expect_guards(s, "store", &got[r]);
  }
  guarded_free(&want);
  free(o);
}

static void check_store(subject *s) {
  assert_true(s->ukr->pv_cols <= MAX_STORE_COLS);
  for (int type = AMLA_F32; type < AMLA_N_FLOAT_DTYPES; type++)
    for (int t = 0; t < 100; t++) {
      check_store_of(s, (amla_dtype)type, 1 + t % s->ukr->pv_cols, 0);
      if (has_even_odd_type(s))
        check_store_of(s, (amla_dtype)type, s->ukr->pv_cols, 1);
    }
}

static void store_rounds_as_portable_c(void **state) {
  (void)state;
  for_each_subject(check_store);
}

/* ---- max and exp: a tile of scores and how many tokens each row sees ---- */

typedef struct score_tile {
  int32_t n;
  float *s; /* [n][rows] */
  int32_t visible[AMLA_UKR_MAX_ROWS];
} score_tile;

static const int32_t extreme_visible[] = {INT32_MIN, -1, 0, 1, INT32_MAX};

static score_tile tile_create(subject *s, int32_t n) {
  score_tile t = {n, alloc_floats((int64_t)n * s->panel->rows), {0}};
  for (int32_t r = 0; r < s->panel->rows; r++)
    switch (r % 3) {
    case 0: t.visible[r] = n; break;
    case 1: t.visible[r] = extreme_visible[r / 3 % 5]; break;
    default: t.visible[r] = random_below(&s->seed, n + 3);
    }
  return t;
}

static bool sees(const score_tile *t, int32_t j, int32_t r) { return j < t->visible[r]; }

static float any_score(subject *s) {
  static const float special[] = {NAN, INFINITY, -INFINITY, -0.0f};
  const int kind = random_below(&s->seed, 24);
  return kind < LENGTH(special) ? special[kind] : random_hostile(&s->seed);
}

static void expect_max(subject *s, const score_tile *t) {
  const int32_t rows = s->panel->rows;
  guarded out = guarded_create((size_t)rows * sizeof(float), 4);
  const float *got = guarded_data(&out);
  s->panel->max(t->n, t->s, t->visible, guarded_data(&out));
  for (int32_t r = 0; r < rows; r++) {
    float want = -INFINITY;
    for (int32_t j = 0; j < t->n; j++)
      if (sees(t, j, r) && t->s[j * rows + r] > want)
        want = t->s[j * rows + r];
    if (!(got[r] == want))
      FAIL_AT(s, "max", "n=%d visible=%d row %d: %a, want %a", t->n, t->visible[r], r,
              (double)got[r], (double)want);
  }
  expect_guards(s, "max", &out);
}

static void check_max(subject *s) {
  int32_t n[8];
  const int count = tile_lengths(s, n);
  for (int i = 0; i < count; i++)
    for (int repeat = 0; repeat < 20; repeat++) {
      score_tile t = tile_create(s, n[i]);
      for (int32_t e = 0; e < t.n * s->panel->rows; e++)
        switch (repeat % 3) {
        case 0: t.s[e] = any_score(s); break;
        case 1: t.s[e] = random_normal(&s->seed); break;
        default: t.s[e] = repeat % 2 ? NAN : -INFINITY;
        }
      expect_max(s, &t);
      free(t.s);
    }
}

static void max_is_exact_and_ignores_nan_and_hidden(void **state) {
  (void)state;
  for_each_subject(check_max);
}

/* ---- exp ---- */

static double ulps_from(float got, double want) {
  int exponent;
  frexp(want, &exponent); /* want in [2^(exponent-1), 2^exponent) */
  return fabs((double)got - want) / ldexp(1.0, (exponent > -125 ? exponent : -125) - 24);
}

/* Weight of score x under reference ref, wrong by more than 2 ulp or in kind? */
static bool weight_is_wrong(float got, float x, float ref) {
  const float t = x - ref;
  if (!isfinite(x) || isnan(t))
    return !isnan(got);
  return t < AMLA_EXP2_MIN ? got != 0.0f : !(ulps_from(got, exp2((double)t)) <= 2.0);
}

static void expect_weights(subject *s, const score_tile *t, const float *ref, const float *mul) {
  const int32_t rows = s->panel->rows;
  const size_t bytes = (size_t)t->n * (size_t)rows * sizeof(float);
  static const float ones[AMLA_UKR_MAX_ROWS] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                                                1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  guarded plain = guarded_create(bytes, 0), times = guarded_create(bytes, 0),
          sums = guarded_create((size_t)rows * sizeof(float), 4);
  float *p = guarded_data(&plain), *pm = guarded_data(&times), *sum = guarded_data(&sums);
  memcpy(p, t->s, bytes);
  memcpy(pm, t->s, bytes);
  s->panel->exp(t->n, p, ref, ones, t->visible, sum);
  s->panel->exp(t->n, pm, ref, mul, t->visible, sum);
  for (int32_t r = 0; r < rows; r++) {
    double exact_sum = 0;
    for (int32_t j = 0; j < t->n; j++) {
      const float x = t->s[j * rows + r], got = p[j * rows + r];
      if (sees(t, j, r) ? weight_is_wrong(got, x, ref[r]) : got != 0.0f)
        FAIL_AT(s, "exp", "n=%d visible=%d token %d row %d: s=%a ref=%a gives %a", t->n,
                t->visible[r], j, r, (double)x, (double)ref[r], (double)got);
      if (!same_number(pm[j * rows + r], got * mul[r]))
        FAIL_AT(s, "exp", "n=%d token %d row %d: mul=%a", t->n, j, r, (double)mul[r]);
      exact_sum += (double)got;
    }
    if (isnan(exact_sum) ? !isnan(sum[r])
                         : !(fabs((double)sum[r] - exact_sum) <= t->n * U * exact_sum))
      FAIL_AT(s, "exp", "n=%d row %d: sum=%a, want %a", t->n, r, (double)sum[r], exact_sum);
  }
  expect_guards(s, "exp", &plain);
  expect_guards(s, "exp", &times);
  expect_guards(s, "exp", &sums);
}

static void check_exp(subject *s) {
  int32_t n[8];
  const int count = tile_lengths(s, n);
  for (int i = 0; i < count; i++)
    for (int repeat = 0; repeat < 12; repeat++) {
      score_tile t = tile_create(s, n[i]);
      float ref[AMLA_UKR_MAX_ROWS], mul[AMLA_UKR_MAX_ROWS];
      for (int32_t r = 0; r < s->panel->rows; r++) {
        ref[r] = repeat % 2 ? (float)random_below(&s->seed, 200) - 100.0f
                            : 3e38f; /* amla: any; lazy: integers */
        mul[r] = 0.7071f + 0.01f * (float)r;
      }
      for (int32_t e = 0; e < t.n * s->panel->rows; e++) {
        const double width = repeat % 3 ? 40.0 : 160.0;
        const float below = 16.0f - (float)(harness_random_uniform(&s->seed) * width);
        t.s[e] = repeat % 2 ? ref[e % s->panel->rows] + below : ldexpf(below, 120);
        if (repeat % 4 == 0 && e % 5 == 0)
          t.s[e] = any_score(s);
      }
      for (int32_t e = 0; e < t.n * s->panel->rows; e++) /* the contract: s - ref <= 16 */
        if (isfinite(t.s[e]) && t.s[e] - ref[e % s->panel->rows] > 16.0f)
          t.s[e] = ref[e % s->panel->rows];
      expect_weights(s, &t, ref, mul);
      free(t.s);
    }
}

static void exp_weights_and_sums_are_right(void **state) {
  (void)state;
  for_each_subject(check_exp);
}

/* A row that sees nothing: weights 0, whatever stands in the scores and in the reference. */
static void check_exp_hidden(subject *s) {
  const int32_t rows = s->panel->rows, n = 13;
  score_tile t = tile_create(s, n);
  float ref[AMLA_UKR_MAX_ROWS], ones[AMLA_UKR_MAX_ROWS], sum[AMLA_UKR_MAX_ROWS];
  static const float refs[] = {-INFINITY, NAN, INFINITY};
  for (int32_t r = 0; r < rows; r++) {
    ref[r] = refs[r % 3];
    ones[r] = 1.0f;
    t.visible[r] = r % 2 ? 0 : -7;
  }
  for (int32_t e = 0; e < n * rows; e++)
    t.s[e] = any_score(s);
  s->panel->exp(n, t.s, ref, ones, t.visible, sum);
  for (int32_t e = 0; e < n * rows; e++)
    if (t.s[e] != 0.0f || sum[e % rows] != 0.0f)
      FAIL_AT(s, "exp", "hidden row %d has weight %a", e % rows, (double)t.s[e]);
  free(t.s);
}

static void exp_of_hidden_tokens_is_zero(void **state) {
  (void)state;
  for_each_subject(check_exp_hidden);
}

/* Weights of `count` scores x against reference 0, through whole tiles. */
static void exp_of_many(const subject *s, const float *x, float *p, int64_t count) {
  const int32_t rows = s->panel->rows, tile = s->ukr->tile_tokens * rows;
  float zeros[AMLA_UKR_MAX_ROWS] = {0}, ones[AMLA_UKR_MAX_ROWS], sum[AMLA_UKR_MAX_ROWS],
        *buffer = alloc_floats(tile);
  int32_t visible[AMLA_UKR_MAX_ROWS];
  for (int32_t r = 0; r < rows; r++)
    ones[r] = 1.0f, visible[r] = s->ukr->tile_tokens;
  for (int64_t at = 0; at < count; at += tile) {
    const int64_t part = count - at < tile ? count - at : tile;
    for (int32_t i = 0; i < tile; i++)
      buffer[i] = i < part ? x[at + i] : 0.0f;
    s->panel->exp(s->ukr->tile_tokens, buffer, zeros, ones, visible, sum);
    memcpy(p + at, buffer, (size_t)part * sizeof *p);
  }
  free(buffer);
}

/* [AMLA_EXP2_MIN, 16] in steps of 2^-12 and at random offsets; powers of two with integer exponents
 * are exact. */
static void check_exp_accuracy(subject *s) {
  const int64_t steps = (int64_t)((16 - AMLA_EXP2_MIN) * 4096), count = 2 * steps + 1;
  float *x = alloc_floats(count), *p = alloc_floats(count);
  const double least = (double)AMLA_EXP2_MIN;
  double worst = 0;
  for (int64_t i = 0; i <= steps; i++)
    x[i] = (float)(least + (double)i / 4096.0);
  for (int64_t i = 0; i < steps; i++)
    x[steps + 1 + i] = (float)(least + (16.0 - least) * harness_random_uniform(&s->seed));
  exp_of_many(s, x, p, count);
  for (int64_t i = 0; i < count; i++) {
    const double ulps = ulps_from(p[i], exp2((double)x[i]));
    if (!(ulps <= 2.0))
      FAIL_AT(s, "exp", "2^%a gives %a: %.2f ulp", (double)x[i], (double)p[i], ulps);
    if (x[i] == floorf(x[i]) && ulps != 0.0)
      FAIL_AT(s, "exp", "2^%g gives %a, must be exact", (double)x[i], (double)p[i]);
    worst = fmax(worst, ulps);
  }
  printf("exp: isa=%s rows=%d: at most %.3f ulp on [%g, 16]\n", amla_isa_name(s->ukr->isa),
         s->panel->rows, worst, least);
  free(x);
  free(p);
}

static void exp_is_within_2_ulp(void **state) {
  (void)state;
  for_each_subject(check_exp_accuracy);
}

/* A lane's weights and sum depend on that lane only: the same lane among others, and among poison.
 */
static void check_exp_lanes(subject *s) {
  const int32_t rows = s->panel->rows, n = 61;
  float lane[61], ref[AMLA_UKR_MAX_ROWS], mul[AMLA_UKR_MAX_ROWS], sum[AMLA_UKR_MAX_ROWS],
      max[AMLA_UKR_MAX_ROWS], first_p[61];
  float first_sum = 0, first_max = 0;
  for (int32_t j = 0; j < n; j++)
    lane[j] = random_normal(&s->seed) * 5.0f;
  for (int32_t r0 = 0; r0 < rows; r0++) {
    score_tile t = tile_create(s, n);
    for (int32_t e = 0; e < n * rows; e++)
      t.s[e] = e % rows == r0 ? lane[e / rows] : any_score(s);
    for (int32_t r = 0; r < rows; r++)
      ref[r] = r == r0 ? 3.0f : random_normal(&s->seed), mul[r] = 1.25f;
    t.visible[r0] = 57;
    s->panel->max(n, t.s, t.visible, max);
    s->panel->exp(n, t.s, ref, mul, t.visible, sum);
    for (int32_t j = 0; j < n; j++) {
      if (r0 == 0)
        first_p[j] = t.s[j * rows];
      if (to_bits(t.s[j * rows + r0]) != to_bits(first_p[j]))
        FAIL_AT(s, "exp", "lane %d token %d differs from lane 0", r0, j);
    }
    if (r0 == 0)
      first_sum = sum[0], first_max = max[0];
    if (to_bits(sum[r0]) != to_bits(first_sum))
      FAIL_AT(s, "exp", "lane %d: the sum differs from lane 0", r0);
    if (to_bits(max[r0]) != to_bits(first_max))
      FAIL_AT(s, "max", "lane %d differs from lane 0", r0);
    free(t.s);
  }
}

static void lanes_do_not_see_each_other(void **state) {
  (void)state;
  for_each_subject(check_exp_lanes);
}

/* ---- pv ---- */

enum { MAX_PV_ROWS = 16, MAX_PV_COLS = 64, MAX_MERGES = 4 };

static const amla_ukr_merge none;

typedef struct pv_buffers {
  int32_t n;
  int64_t ldp, ldv;
  float *p, *v;                           /* [n][ldp], [n][ldv]: NaN but for the columns in use */
  float start[MAX_PV_ROWS * MAX_PV_COLS]; /* O before */
  guarded o;                              /* [pv_rows][pv_cols] */
} pv_buffers;

/* V's columns stand behind one other column block, as they do in a tile. */
static float *used_v(const subject *s, const pv_buffers *b) {
  return b->v + (b->ldv > s->ukr->pv_cols ? s->ukr->pv_cols : 0);
}

static pv_buffers pv_create(subject *s, int32_t n, int64_t ldv) {
  const int32_t rows = s->ukr->pv_rows, cols = s->ukr->pv_cols;
  pv_buffers b = {n,
                  s->panel->rows,
                  ldv,
                  NULL,
                  NULL,
                  {0},
                  guarded_create((size_t)(rows * cols) * sizeof(float), 0)};
  assert_true(rows <= MAX_PV_ROWS && cols <= MAX_PV_COLS);
  b.p = alloc_floats(n * b.ldp);
  b.v = alloc_floats(n * ldv);
  for (int64_t i = 0; i < n * b.ldp; i++)
    b.p[i] = i % b.ldp < rows ? exp2f(-8.0f * fabsf(random_normal(&s->seed))) : NAN;
  for (int64_t i = 0; i < n * ldv; i++)
    b.v[i] = NAN;
  for (int32_t j = 0; j < n; j++)
    for (int32_t c = 0; c < cols; c++)
      used_v(s, &b)[j * ldv + c] = random_normal(&s->seed);
  for (int32_t i = 0; i < rows * cols; i++)
    b.start[i] = i % 7 ? random_normal(&s->seed) : 0.0f;
  return b;
}

static const float *pv_run(subject *s, pv_buffers *b) {
  memcpy(guarded_data(&b->o), b->start, b->o.bytes);
  s->ukr->pv(b->n, b->p, b->ldp, used_v(s, b), b->ldv, 0, guarded_data(&b->o), 0, &none,
             guarded_data(&b->o));
  return guarded_data(&b->o);
}

static void pv_free(const subject *s, pv_buffers *b) {
  expect_guards(s, "pv", &b->o);
  free(b->p);
  free(b->v);
}

static void expect_outputs_near_fp64(subject *s, pv_buffers *b) {
  const int32_t cols = s->ukr->pv_cols;
  const float *got = pv_run(s, b);
  for (int32_t i = 0; i < s->ukr->pv_rows * cols; i++) {
    double want = (double)b->start[i], sum_abs = fabs(want);
    for (int32_t j = 0; j < b->n; j++) {
      const double x =
          (double)b->p[j * b->ldp + i / cols] * (double)used_v(s, b)[j * b->ldv + i % cols];
      want += x;
      sum_abs += fabs(x);
    }
    if (!(fabs((double)got[i] - want) <= (b->n + 2) * (U * sum_abs + 0x1p-149)))
      FAIL_AT(s, "pv", "n=%d ldv=%lld row %d column %d: %a, want %a", b->n, (long long)b->ldv,
              i / cols, i % cols, (double)got[i], want);
  }
}

static void check_pv_values(subject *s) {
  int32_t n[8];
  const int count = tile_lengths(s, n);
  for (int i = 0; i < count; i++)
    for (int hostile = 0; hostile < 2; hostile++) {
      /* Multiples of 16: rows stay aligned. */
      pv_buffers b = pv_create(s, n[i], hostile ? 640 : 192);
      for (int32_t j = 0; hostile && j < b.n; j++)
        for (int32_t c = 0; c < s->ukr->pv_cols; c++)
          used_v(s, &b)[j * b.ldv + c] = ldexpf(random_hostile(&s->seed), -20);
      for (int32_t j = 0; hostile && j < b.n; j++)
        b.p[j * b.ldp] = j % 2 ? 0.0f : 256.0f;
      expect_outputs_near_fp64(s, &b);
      pv_free(s, &b);
    }
}

static void pv_is_near_fp64(void **state) {
  (void)state;
  for_each_subject(check_pv_values);
}

/* With `first`, O is not read: it may hold NaN, and the result is that of O = 0. */
static void check_pv_first(subject *s) {
  pv_buffers b = pv_create(s, 31, 192);
  float sum[MAX_PV_ROWS * MAX_PV_COLS];
  const int32_t count = s->ukr->pv_rows * s->ukr->pv_cols;
  memset(b.start, 0, sizeof b.start);
  memcpy(sum, pv_run(s, &b), b.o.bytes);
  for (int32_t i = 0; i < count; i++)
    ((float *)guarded_data(&b.o))[i] = NAN;
  s->ukr->pv(b.n, b.p, b.ldp, used_v(s, &b), b.ldv, 1, guarded_data(&b.o), 0, &none,
             guarded_data(&b.o));
  for (int32_t i = 0; i < count; i++)
    if (to_bits(((float *)guarded_data(&b.o))[i]) != to_bits(sum[i]))
      FAIL_AT(s, "pv", "first: element %d", i);
  pv_free(s, &b);
}

static void pv_may_start_from_nothing(void **state) {
  (void)state;
  for_each_subject(check_pv_first);
}

/* Merges on the way out: the bits of merging afterwards, one after the other, into the last one. */
static void check_pv_merges(subject *s) {
  const int32_t rows = s->ukr->pv_rows, count = rows * s->ukr->pv_cols;
  for (int n_merges = 0; n_merges <= MAX_MERGES; n_merges++)
    for (int first = 0; first < 2; first++) {
      pv_buffers b = pv_create(s, 31, 192);
      amla_ukr_merge merges[MAX_MERGES];
      float *a[MAX_MERGES], of_a[MAX_MERGES][MAX_PV_ROWS], of_b[MAX_MERGES][MAX_PV_ROWS],
          *want = alloc_floats(count);
      memcpy(guarded_data(&b.o), b.start, b.o.bytes);
      for (int m = 0; m < n_merges; m++) {
        a[m] = alloc_floats(count);
        for (int32_t i = 0; i < count; i++)
          a[m][i] = random_normal(&s->seed);
        for (int32_t r = 0; r < rows; r++) {
          of_a[m][r] = r % 2 ? 0.37f : ldexpf(1.0f, -random_below(&s->seed, 9));
          of_b[m][r] = r % 3 ? 0.81f : -0.0f;
        }
        merges[m] = (amla_ukr_merge){a[m], of_a[m], of_b[m]};
      }
      s->ukr->pv(b.n, b.p, b.ldp, used_v(s, &b), b.ldv, first, guarded_data(&b.o), 0, &none, want);
      const float *last = want;
      for (int m = 0; m < n_merges; m++) {
        float *sum = alloc_floats(count);
        memcpy(sum, a[m], (size_t)count * sizeof *sum);
        s->ukr->merge(rows, sum, of_a[m], last, of_b[m]);
        memcpy(want, sum, (size_t)count * sizeof *sum);
        free(sum);
      }
      float *out = n_merges > 0 ? a[n_merges - 1] : guarded_data(&b.o);
      s->ukr->pv(b.n, b.p, b.ldp, used_v(s, &b), b.ldv, first, guarded_data(&b.o), n_merges, merges,
                 out);
      for (int32_t i = 0; i < count; i++)
        if (to_bits(out[i]) != to_bits(want[i]))
          FAIL_AT(s, "pv", "%d merges, first=%d: element %d is %a, want %a", n_merges, first, i,
                  (double)out[i], (double)want[i]);
      for (int m = 0; m < n_merges; m++)
        free(a[m]);
      free(want);
      pv_free(s, &b);
    }
}

static void pv_merges_as_merge_does(void **state) {
  (void)state;
  for_each_subject(check_pv_merges);
}

static void check_pv_position(subject *s) {
  const int32_t n = 31, rows = s->ukr->pv_rows, cols = s->ukr->pv_cols;
  float weight[31], value[31], first = 0;
  for (int32_t j = 0; j < n; j++)
    weight[j] = fabsf(random_normal(&s->seed)), value[j] = random_normal(&s->seed);
  for (int32_t i = 0; i < rows * cols; i++) {
    pv_buffers b = pv_create(s, n, 192);
    for (int32_t j = 0; j < n; j++)
      b.p[j * b.ldp + i / cols] = weight[j], used_v(s, &b)[j * b.ldv + i % cols] = value[j];
    b.start[i] = 0.375f;
    const float x = pv_run(s, &b)[i];
    if (i == 0)
      first = x;
    if (to_bits(x) != to_bits(first))
      FAIL_AT(s, "pv", "row %d column %d: %a, but %a at row 0 column 0", i / cols, i % cols,
              (double)x, (double)first);
    pv_free(s, &b);
  }
}

static void pv_bits_do_not_depend_on_position(void **state) {
  (void)state;
  for_each_subject(check_pv_position);
}

/* A NaN weight reaches its row, a NaN value its column. */
static void check_pv_poison(subject *s) {
  const int32_t n = 11, rows = s->ukr->pv_rows, cols = s->ukr->pv_cols;
  for (int t = 0; t < 30; t++) {
    pv_buffers b = pv_create(s, n, 192);
    float clean[MAX_PV_ROWS * MAX_PV_COLS];
    const int32_t r0 = t % 2 ? random_below(&s->seed, rows) : -1;
    const int32_t c0 = t % 2 ? -1 : random_below(&s->seed, cols), j0 = t % n;
    memcpy(clean, pv_run(s, &b), b.o.bytes);
    *(r0 >= 0 ? &b.p[j0 * b.ldp + r0] : &used_v(s, &b)[j0 * b.ldv + c0]) = NAN;
    const float *got = pv_run(s, &b);
    for (int32_t i = 0; i < rows * cols; i++)
      if (i / cols == r0 || i % cols == c0 ? !isnan(got[i]) : to_bits(got[i]) != to_bits(clean[i]))
        FAIL_AT(s, "pv", "NaN in row %d / column %d: row %d column %d is %a", r0, c0, i / cols,
                i % cols, (double)got[i]);
    pv_free(s, &b);
  }
}

static void pv_contains_poison(void **state) {
  (void)state;
  for_each_subject(check_pv_poison);
}

/* The last columns' tile: the bits of pv, and no other column. */
static void check_pv_end(subject *s) {
  const amla_ukernels *u = s->ukr;
  const amla_ukr_pv_end *end = &u->pv_end;
  if (!end->pv)
    return;
  const int32_t n = 31, cols = u->pv_cols, count = end->rows * cols, ldp = s->panel->rows;
  const int64_t ldv = 192;
  float *p = alloc_floats(n * ldp), *v = alloc_floats(n * ldv), *o = alloc_floats(count),
        *got = alloc_floats(count), *want = alloc_floats(count);
  float *a = alloc_floats(count), of_a[AMLA_UKR_MAX_ROWS], of_b[AMLA_UKR_MAX_ROWS];
  for (int32_t i = 0; i < n * ldp; i++)
    p[i] = fabsf(random_normal(&s->seed));
  for (int64_t i = 0; i < n * ldv; i++)
    v[i] = i % ldv < end->cols ? random_normal(&s->seed) : NAN;
  for (int32_t i = 0; i < count; i++)
    o[i] = random_normal(&s->seed), a[i] = random_normal(&s->seed);
  for (int32_t r = 0; r < end->rows; r++)
    of_a[r] = 0.37f * (float)(r + 1), of_b[r] = r % 3 ? 0.81f : -0.0f;
  for (int first = 0; first < 2; first++)
    for (int n_merges = 0; n_merges < 2; n_merges++) {
      for (int32_t r = 0; r < end->rows; r += u->pv_rows) {
        const amla_ukr_merge merge = {a + r * cols, of_a + r, of_b + r};
        u->pv(n, p + r, ldp, v, ldv, first, o + r * cols, n_merges, &merge, want + r * cols);
      }
      const amla_ukr_merge merge = {a, of_a, of_b};
      memcpy(got, o, (size_t)count * sizeof *got);
      end->pv(n, p, ldp, v, ldv, first, o, n_merges, &merge, got);
      for (int32_t i = 0; i < count; i++) {
        const float x = i % cols < end->cols ? want[i] : o[i];
        if (to_bits(got[i]) != to_bits(x))
          FAIL_AT(s, "pv_end", "first=%d %d merges row %d column %d: %a, want %a", first, n_merges,
                  i / cols, i % cols, (double)got[i], (double)x);
      }
    }
  free(p);
  free(v);
  free(o);
  free(got);
  free(want);
  free(a);
}

static void pv_end_has_the_bits_of_pv(void **state) {
  (void)state;
  for_each_subject(check_pv_end);
}

/* ---- scale and merge: every rounding is known, so bit by bit ---- */

static void check_elementwise(subject *s, int32_t rows) {
  const int32_t cols = s->ukr->pv_cols, count = rows * cols;
  guarded scaled = guarded_create((size_t)count * sizeof(float), 0),
          added = guarded_create((size_t)count * sizeof(float), 0);
  float *a = alloc_floats(count), *b = alloc_floats(count), *f = alloc_floats(rows),
        *g = alloc_floats(rows);
  for (int32_t i = 0; i < count; i++)
    a[i] = any_score(s), b[i] = any_score(s);
  for (int32_t r = 0; r < rows; r++)
    f[r] = any_score(s), g[r] = any_score(s);
  memcpy(guarded_data(&scaled), a, scaled.bytes);
  memcpy(guarded_data(&added), a, added.bytes);
  s->ukr->scale(rows, guarded_data(&scaled), f);
  s->ukr->merge(rows, guarded_data(&added), f, b, g);
  for (int32_t i = 0; i < count; i++) {
    const float times = ((const float *)guarded_data(&scaled))[i],
                plus = ((const float *)guarded_data(&added))[i];
    if (!same_number(times, a[i] * f[i / cols]))
      FAIL_AT(s, "scale", "n=%d row %d: %a * %a gives %a", rows, i / cols, (double)a[i],
              (double)f[i / cols], (double)times);
    const float scaled_a = f[i / cols] * a[i], by = g[i / cols];
    const float want = s->ukr->isa == AMLA_ISA_C ? scaled_a + by * b[i] : fmaf(by, b[i], scaled_a);
    if (!same_number(plus, want))
      FAIL_AT(s, "merge", "n=%d: %a + %a * %a gives %a, want %a", rows, (double)scaled_a,
              (double)by, (double)b[i], (double)plus, (double)want);
  }
  expect_guards(s, "scale", &scaled);
  expect_guards(s, "merge", &added);
  free(a);
  free(b);
  free(f);
  free(g);
}

static void check_all_elementwise(subject *s) {
  const int32_t rows[] = {0, 1, 2, 7, s->ukr->pv_rows, s->panel->rows, 128};
  for (int i = 0; i < LENGTH(rows); i++)
    for (int repeat = 0; repeat < 10; repeat++)
      check_elementwise(s, rows[i]);
}

static void scale_and_merge_are_exact(void **state) {
  (void)state;
  for_each_subject(check_all_elementwise);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(table_keeps_its_contract),
      cmocka_unit_test(contract_sees_flaws),
      cmocka_unit_test(select_obeys_the_cap),
      cmocka_unit_test(choice_follows_the_types),
      cmocka_unit_test(pack_transposes_exactly),
      cmocka_unit_test(store_rounds_as_portable_c),
      cmocka_unit_test(qk_is_near_fp64),
      cmocka_unit_test(qk_bits_do_not_depend_on_position),
      cmocka_unit_test(qk_tails_have_the_same_bits),
      cmocka_unit_test(qk_contains_poison),
      cmocka_unit_test(qk_overflows_to_signed_infinity),
      cmocka_unit_test(qk_converts_its_stage_exactly),
      cmocka_unit_test(load_converts_exactly),
      cmocka_unit_test(max_is_exact_and_ignores_nan_and_hidden),
      cmocka_unit_test(exp_weights_and_sums_are_right),
      cmocka_unit_test(exp_of_hidden_tokens_is_zero),
      cmocka_unit_test(exp_is_within_2_ulp),
      cmocka_unit_test(lanes_do_not_see_each_other),
      cmocka_unit_test(pv_is_near_fp64),
      cmocka_unit_test(pv_may_start_from_nothing),
      cmocka_unit_test(pv_merges_as_merge_does),
      cmocka_unit_test(pv_bits_do_not_depend_on_position),
      cmocka_unit_test(pv_contains_poison),
      cmocka_unit_test(pv_end_has_the_bits_of_pv),
      cmocka_unit_test(scale_and_merge_are_exact),
  };
  return cmocka_run_group_tests_name("ukernels", tests, NULL, NULL);
}
