/* SPDX-License-Identifier: Apache-2.0
 *
 * Lists, two scopes, windows, ragged queries and split rows against fp64, in every instruction set
 * and rescale mode. What must hold whatever the numbers are is in test_sparse_properties.c.
 */
#include "sparse_case.h"

#include "src/keys.h"

static void check_form(const sparse_form *form, const amla_options *options, int32_t every) {
  sparse_case c;
  sparse_make(&c, form);
  sparse_run(&c, options);
  expect_right_rows(&c, options, every);
  sparse_free(&c);
}

/* ---- One idea after the other ---- */

static const sparse_form forms[] = {
    {.scope = {{.sk = 100, .topk = 30, .page = 16}}},
    {.scope = {{.sk = 100, .topk = 300, .page = 7, .invalid = 20}}, .s_q = 3},
    {.scope = {{.sk = 300, .topk = 250, .page = 0, .invalid = 100}}, .s_q = 2, .b = 4},
    {.scope = {{.sk = 90, .topk = 64, .page = 16, .lengths = 1, .padded = 1}}, .mixed = 1, .b = 5},
    {.scope = {{.sk = 90, .topk = 64, .page = 16, .lengths = 2, .invalid = 10}},
     .mixed = 1,
     .s_q = 3,
     .h_q = 37},
    {.scope = {{.sk = 500, .topk = 400, .page = 64, .invalid = 30}},
     .positions = 1,
     .mixed = 1,
     .b = 5},
    {.scope = {{.sk = 500, .topk = 40, .page = 0}}, .positions = 1, .mixed = 1, .b = 5},
    {.scope = {{.sk = 500, .topk = 40, .page = 3, .csr = 1}}, .positions = 1, .mixed = 1, .b = 5},
    {.scope = {{.sk = 128, .topk = 100, .page = 16}, {.sk = 700, .topk = 333, .page = 5}},
     .sinks = 1},
    {.scope = {{.sk = 300, .page = 16}, {.sk = 700, .topk = 333, .page = 5, .invalid = 40}},
     .causal = 1,
     .window = 128,
     .s_q = 2,
     .mixed = 1,
     .b = 5},
    {.scope = {{.sk = 300, .page = 16}, {.sk = 700, .page = 64}},
     .causal = 1,
     .window = 100,
     .mixed = 1,
     .b = 5,
     .sinks = 1,
     .with_sink = 1},
    {.scope = {{.sk = 300, .topk = 7, .page = 16}, {.sk = 700, .page = 0, .visible = 1}},
     .mixed = 1,
     .s_q = 2},
    {.scope = {{.sk = 700, .page = 16}}, .causal = 1, .window = 1, .s_q = 4, .mixed = 1, .b = 5},
    {.scope = {{.sk = 700, .page = 16, .visible = 1}}, .window = 333, .s_q = 4, .mixed = 1, .b = 5},
    {.scope = {{.sk = 700, .page = 16, .visible = 1}}, .s_q = 4, .mixed = 1, .b = 5, .h_q = 37},
    {.scope = {{.sk = 700, .page = 0, .visible = 1, .padded = 1}},
     .s_q = 4,
     .mixed = 1,
     .ragged = 1,
     .b = 7},
    {.scope = {{.sk = 700, .page = 10, .csr = 1}},
     .causal = 1,
     .s_q = 5,
     .mixed = 1,
     .ragged = 1,
     .b = 7,
     .h_q = 33},
    {.scope = {{.sk = 99, .topk = 50, .page = 10, .lengths = 2, .padded = 1}},
     .s_q = 5,
     .mixed = 1,
     .ragged = 1,
     .b = 7},
    {.scope = {{.sk = 400, .page = 10}, {.sk = 99, .topk = 50, .page = 1}},
     .causal = 1,
     .window = 99,
     .s_q = 5,
     .mixed = 1,
     .ragged = 1,
     .b = 7},
    {.scope = {{.sk = 400, .page = 10}}, .q_d_rope = 8, .s_q = 2, .causal = 1, .h_q = 37},
    {.scope = {{.sk = 400, .page = 10, .padded = 1}},
     .kv_d_rope = 8,
     .s_q = 2,
     .mixed = 1,
     .causal = 1},
    {.scope = {{.sk = 400, .topk = 333, .page = 10, .invalid = 3}},
     .kv_d_rope = 7,
     .q_d_rope = 31,
     .h_q = 70},
    {.scope = {{.sk = 400, .page = 0}}, .kv_d_rope = 32, .d_qk = 96, .d_v = 80, .kv = AMLA_Q8_0},
    {.scope = {{.sk = 400, .topk = 500, .page = 0, .padded = 1}},
     .d_qk = 96,
     .d_v = 80,
     .kv = AMLA_Q8_0},
    {.scope = {{.sk = 400, .topk = 500, .page = 10, .invalid = 3}},
     .kv_d_rope = 32,
     .d_qk = 96,
     .d_v = 80,
     .kv = AMLA_Q5_1},
    {.scope = {{.sk = 2000, .topk = 1900, .page = 64}},
     .b = 1,
     .peaked = 9,
     .sinks = 1,
     .base2 = 1,
     .with_sink = 1},
    {.scope = {{.sk = 0, .topk = 5, .page = 0}}},
    {.scope = {{.sk = 0, .topk = 0}, {.sk = 50, .topk = 20, .page = 3}}},
};

static int checked, of;

/* Where code is slow, of each form one type in a mode: over the modes all. */
static void check_forms(const amla_options *options) {
  for (int i = 0; i < LENGTH(forms); i++)
    for (int type = AMLA_F32; type <= AMLA_F16; type++) {
      sparse_form form = forms[i];
      of++;
      if (TEST_SLOW && !long_run() && (i + type + (int)options->rescale) % 3 != 0)
        continue;
      checked++;
      form.q = form.out = (amla_dtype)type;
      if (!harness_is_block(form.kv))
        form.kv = (amla_dtype)type;
      form.seed = (uint64_t)(3 * i + type);
      check_form(&form, options, 1);
    }
}

static void every_form_is_right(void **state) {
  (void)state;
  for_each_engine(check_forms);
  printf("%d of %d: forms x types x engines x modes\n", checked, of);
}

/* Splits of other lengths, of lists with gaps and of two scopes. */
static void check_splits(const amla_options *base) {
  static const int32_t splits[] = {AMLA_SPLIT_AUTO, 1, 97, 500, INT32_MAX};
  static const sparse_form form = {
      .scope = {{.sk = 700, .topk = 900, .page = 16, .invalid = 30}, {.sk = 300, .page = 64}},
      .s_q = 2,
      .b = 5,
      .mixed = 1,
      .peaked = 4};
  for (int i = 0; i < LENGTH(splits); i++) {
    amla_options options = *base;
    options.split_tokens = splits[i];
    options.threads = 1 + i;
    check_form(&form, &options, 1);
  }
}

static void every_split_is_right(void **state) {
  (void)state;
  for_each_engine(check_splits);
}

/* Keys are where they are, in whatever order they are asked for. */
static void keys_are_located_in_any_order(void **state) {
  (void)state;
  static const sparse_form form = {.scope = {{.sk = 90, .topk = 200, .page = 16, .invalid = 40},
                                             {.sk = 50, .topk = 99, .page = 0, .invalid = 20}},
                                   .b = 2};
  sparse_case c;
  sparse_make(&c, &form);
  key_place *keys = malloc((size_t)most_keys(&c) * sizeof *keys);
  assert_non_null(keys);
  const int32_t n = keys_of(&c, 1, 0, keys);
  const amla_scopes scopes = amla_scopes_create(&c.data.problem, &c.data.tensors);
  const amla_line line = amla_line_create(&scopes, 1, 0);
  amla_cursor cursor = AMLA_CURSOR_INIT;
  assert_int_equal(line.n, n);
  for (int i = 0; i < 300; i++) {
    const int32_t begin = random_below(&c.seed, n), some = random_below(&c.seed, n - begin + 1);
    amla_token_ref refs[300];
    amla_line_locate(&line, begin, some, &cursor, refs);
    for (int32_t j = 0; j < some; j++) {
      const key_place *k = &keys[begin + j];
      assert_ptr_equal(refs[j].row, (const float *)k->scope->kv + row_at(k));
    }
  }
  free(keys);
  sparse_free(&c);
}

/* ---- Fields in random company: a covering set would have 16 factors ---- */

static int32_t draw(uint64_t *seed, const int32_t *values, int n) {
  return values[random_below(seed, n)];
}
#define DRAW(seed, ...)                                                                            \
  draw(seed, (const int32_t[]){__VA_ARGS__}, LENGTH(((const int32_t[]){__VA_ARGS__})))

static scope_form random_scope(uint64_t *seed, int lists) {
  scope_form s = {.sk = DRAW(seed, 1, 95, 96, 97, 300, 777),
                  .page = DRAW(seed, 0, 1, 2, 7, 64, 1000)};
  s.padded = DRAW(seed, 0, 1);
  if (lists) {
    s.topk = DRAW(seed, 1, 63, 64, 97, 500);
    s.lengths = DRAW(seed, 0, 2);
    s.invalid = DRAW(seed, 0, 0, 5, 60, 100);
  } else {
    s.visible = DRAW(seed, 0, 1);
  }
  return s;
}

static sparse_form random_form(uint64_t seed) {
  uint64_t *s = &seed;
  sparse_form f = {.seed = seed, .b = DRAW(s, 1, 2, 6), .s_q = DRAW(s, 1, 2, 5), .mixed = 1};
  f.scope[0] = random_scope(s, DRAW(s, 0, 1));
  if (DRAW(s, 0, 0, 1))
    f.scope[1] = random_scope(s, DRAW(s, 0, 1));
  else
    f.kv_d_rope = DRAW(s, 0, 0, 1, 8);
  for (int i = 0; i < 2; i++) /* one flag for both */
    if (f.scope[i].lengths && f.scope[1 - i].topk)
      f.scope[1 - i].lengths = f.scope[i].lengths;
  f.positions = DRAW(s, 0, 1);
  f.causal = f.scope[0].topk == 0 && !f.scope[0].visible && DRAW(s, 0, 1);
  if (f.causal || f.scope[0].visible)
    f.window = DRAW(s, 0, 0, 1, 64, 100, 5000);
  f.scope[0].csr = f.scope[0].page && (f.positions || !f.scope[0].topk) && DRAW(s, 0, 1);
  f.q_d_rope = DRAW(s, 0, 0, 5);
  f.h_q = DRAW(s, 1, 5, 16, 33, 130);
  f.d_qk = DRAW(s, 33, 64, 80), f.d_v = DRAW(s, 8, 24, 33);
  f.q = (amla_dtype)DRAW(s, 0, 1, 2), f.kv = (amla_dtype)DRAW(s, 0, 1, 2);
  f.out = (amla_dtype)DRAW(s, 0, 1, 2);
  f.ragged = DRAW(s, 0, 1), f.sinks = DRAW(s, 0, 1), f.base2 = DRAW(s, 0, 1);
  f.with_sink = DRAW(s, 0, 1), f.peaked = DRAW(s, 1, 1, 6);
  return f;
}

static void random_forms_are_right(void **state) {
  (void)state;
  int n = TEST_SLOW ? 30 : 300;
  if (long_run())
    n = 20000;
  for (int i = 0, e = 0; i < n; i++, e = (e + 1) % N_ENGINES) {
    const sparse_form form = random_form((uint64_t)i);
    const amla_options o =
        engine_options(e, rescales[i / N_ENGINES % 3], 1 + i % 4, AMLA_SPLIT_BY_LENGTH);
    if (engine_runs_here(e))
      check_form(&form, &o, 1);
  }
}

/* ---- FlashMLA's grid: tests/test_flash_mla_sparse_decoding.py has these shapes ---- */

static sparse_form flash_mla_form(int shape, int extra, int i) {
  static const scope_form shapes[] = {
      {.sk = 512, .topk = 64, .page = 2},     {.sk = 512, .topk = 64, .page = 64},
      {.sk = 512, .topk = 64, .page = 69},    {.sk = 1024, .topk = 576, .page = 2},
      {.sk = 1024, .topk = 576, .page = 61},  {.sk = 2046, .topk = 2048, .page = 2},
      {.sk = 2046, .topk = 2048, .page = 64}, {.sk = 2046, .topk = 2048, .page = 576}};
  static const int32_t heads[] = {128, 64, 1, 12, 20, 96};
  sparse_form f = {.b = 4, .s_q = i % 2 ? 3 : 1, .h_q = heads[i % 6], .d_v = 512, .mixed = 1};
  f.d_qk = i / 2 % 2 ? 512 : 576;
  f.q = f.kv = f.out = AMLA_BF16;
  f.scope[0] = shapes[shape];
  f.scope[0].lengths = i % 3, f.scope[0].invalid = i % 5 == 4 ? 100 : 10;
  if (extra) {
    f.scope[1] = shapes[(shape + 3) % 8];
    f.scope[1].lengths = f.scope[0].lengths;
  }
  f.sinks = i / 3 % 2;
  f.seed = (uint64_t)i;
  if (i % 12 == 2 && shape < 5) { /* their batches, of one head */
    f.b = shape < 3 ? 321 : 74;
    f.scope[1] = (scope_form){.sk = 0};
  }
  return f;
}

/* What is for the long run where code is slow; the longest lists of few heads are for it too where
 * it is slower. */
static int is_long(const sparse_form *f, const amla_options *o) {
  const int32_t most_heads = TEST_EMULATED && f->scope[0].topk > 1000 ? 1 : 20;
  return (o->isa == AMLA_ISA_C || TEST_SLOW) && f->h_q > most_heads;
}

static void flash_mla_grid_is_right(void **state) {
  (void)state;
  int n = 0, all = 0;
  for (int i = 0; i < 32; i++)
    for (int e = 1; e < N_ENGINES; e++) {
      const sparse_form f = flash_mla_form(i * 5 / 2 % 8, i / 4 % 2, i);
      const amla_options o = engine_options(e, rescales[i % 3], 2, AMLA_SPLIT_BY_LENGTH);
      if (!engine_runs_here(e))
        continue;
      all++;
      if (is_long(&f, &o) && !long_run())
        continue;
      n++;
      check_form(&f, &o, f.h_q == 1 ? 7 : 97);
    }
  printf("%d of %d: shapes of the grid x engines\n", n, all);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(every_form_is_right),           cmocka_unit_test(every_split_is_right),
      cmocka_unit_test(keys_are_located_in_any_order), cmocka_unit_test(random_forms_are_right),
      cmocka_unit_test(flash_mla_grid_is_right),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
