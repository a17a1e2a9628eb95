/* SPDX-License-Identifier: Apache-2.0
 *
 * Lists, two scopes, windows, ragged queries and split rows against fp64, in every instruction set
 * and rescale mode. What must hold whatever the numbers are is in test_sparse_properties.c.
 */
#include "sparse_case.h"

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
    {.scope = {{.sk = 2000, .topk = 1900, .page = 64}},
     .b = 1,
     .peaked = 9,
     .sinks = 1,
     .base2 = 1,
     .with_sink = 1},
    {.scope = {{.sk = 0, .topk = 5, .page = 0}}},
    {.scope = {{.sk = 0, .topk = 0}, {.sk = 50, .topk = 20, .page = 3}}},
};

static void check_forms(const amla_options *options) {
  for (int i = 0; i < LENGTH(forms); i++)
    for (int type = AMLA_F32; type <= AMLA_F16; type++) {
      sparse_form form = forms[i];
      form.q = form.out = (amla_dtype)type;
      if (form.kv != AMLA_Q8_0)
        form.kv = (amla_dtype)type;
      form.seed = (uint64_t)(3 * i + type);
      check_form(&form, options, 1);
    }
}

static void every_form_is_right(void **state) {
  (void)state;
  for_each_engine(check_forms);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(every_form_is_right),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
