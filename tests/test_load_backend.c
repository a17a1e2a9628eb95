/* SPDX-License-Identifier: Apache-2.0
 *
 * Backends in shared objects: one of another build is refused by name, and one of this build is
 * taken (fake_backend.c).
 */
#include <dlfcn.h>

#include "src/backend.h"
#include "test_run.h"

static void a_backend_of_another_build_is_refused(void **state) {
  (void)state;
  amla_backend_info info = AMLA_BACKEND_INFO_INIT;
  amla_problem p = AMLA_PROBLEM_INIT;
  p.sk = 1;
  p.scale = 1.0f;
  const amla_options o = make_options(AMLA_BACKEND_CUDA, AMLA_RESCALE_LAZY, AMLA_ISA_AUTO, 1, 0);
  amla_plan *plan = NULL;
  amla_detail d;
  for (int again = 0; again < 2; again++) {
    assert_int_equal(amla_backend_query(AMLA_BACKEND_CUDA, &info, &d), AMLA_OK);
    assert_int_equal(info.available, 0);
    assert_string_equal(info.reason, "libamla_cuda is of another build of this library");
    assert_int_equal(amla_plan_create(&plan, &p, &o, &d), AMLA_UNSUPPORTED);
    assert_null(plan);
    assert_non_null(strstr(d.text, "backend=cuda: libamla_cuda is of another build"));
  }
}

static void a_backend_of_this_build_is_taken(void **state) {
  (void)state;
  amla_backend_info info = AMLA_BACKEND_INFO_INIT;
  amla_problem p = AMLA_PROBLEM_INIT;
  p.sk = 1;
  p.scale = 1.0f;
  const amla_options o = make_options(AMLA_BACKEND_NPU, AMLA_RESCALE_LAZY, AMLA_ISA_AUTO, 1, 0);
  amla_plan *plan = NULL;
  amla_detail d;
  char text[64];
  assert_int_equal(amla_backend_query(AMLA_BACKEND_NPU, &info, &d), AMLA_OK);
  assert_int_equal(info.available, 1);
  assert_string_equal(info.isa, "fake");
  assert_string_equal(info.reason, "");
  assert_int_equal(amla_plan_create(&plan, &p, &o, &d), AMLA_OK);
  amla_plan_describe(plan, text, sizeof text);
  assert_string_equal(text, "fake, 1 prepared, 0 released");
  amla_plan_destroy(plan);
  p.sk = 0; /* which npu and cuda divide by */
  assert_int_equal(amla_plan_create(&plan, &p, &o, &d), AMLA_UNSUPPORTED);
  assert_non_null(strstr(d.text, "sk=0: backend=npu needs >= 1"));
}

/* The npu of this build, by its one symbol: tables of other versions may lie otherwise. */
static void a_backend_has_no_table_for_another_version(void **state) {
  (void)state;
  void *handle = dlopen(NPU_FILE, RTLD_NOW | RTLD_LOCAL);
  assert_non_null(handle);
  union {
    void *object;
    amla_backend_entry function;
  } entry = {.object = dlsym(handle, AMLA_BACKEND_ENTRY)};
  assert_non_null(entry.object);
  assert_non_null(entry.function(amla_version()));
  assert_null(entry.function("9.9.9"));
  dlclose(handle);
}

/* cuda and npu know dense attention only. */
static void a_dense_backend_refuses_the_rest(void **state) {
  (void)state;
  amla_problem p = AMLA_PROBLEM_INIT;
  p.sk = 1;
  p.scale = 1.0f;
  amla_options o = make_options(AMLA_BACKEND_NPU, AMLA_RESCALE_LAZY, AMLA_ISA_AUTO, 1, 0);
  amla_tensors t = AMLA_TENSORS_INIT;
  static float memory[128 * 576]; /* of q, out and so on, bf16 */
  static uint16_t out[128 * 512];
  amla_plan *plan = NULL;
  amla_detail d;
  p.topk = 5;
  assert_int_equal(amla_plan_create(&plan, &p, &o, &d), AMLA_UNSUPPORTED);
  assert_string_equal(d.text, "topk=5: must be 0, npu does not have it yet");
  p.topk = 0, o.lse_sink = AMLA_LSE_WITH_SINK;
  assert_int_equal(amla_plan_create(&plan, &p, &o, &d), AMLA_UNSUPPORTED);
  assert_string_equal(d.text, "lse_sink=1: must be 0, npu does not have it yet");
  o.lse_sink = AMLA_LSE_WITHOUT_SINK;
  assert_int_equal(amla_plan_create(&plan, &p, &o, &d), AMLA_OK);
  t.q = t.kv = memory, t.q_bytes = t.kv_bytes = sizeof memory;
  t.out = out, t.out_bytes = sizeof out;
  assert_int_equal(amla_plan_run(plan, &t, NULL, 0, &d), AMLA_OK);
  float max_logits[128];
  t.max_logits = max_logits, t.max_logits_bytes = sizeof max_logits;
  assert_int_equal(amla_plan_run(plan, &t, NULL, 0, &d), AMLA_UNSUPPORTED);
  assert_non_null(strstr(d.text, "must be NULL, npu does not have it yet"));
  amla_plan_destroy(plan);
}

/* cuda and npu round P to 16 bits: what allows less than that is refused, what allows it is not. */
static void exact_forms_of_p_are_refused_by_name(void **state) {
  (void)state;
  amla_problem p = AMLA_PROBLEM_INIT;
  p.sk = 1;
  p.scale = 1.0f;
  amla_options o = make_options(AMLA_BACKEND_NPU, AMLA_RESCALE_LAZY, AMLA_ISA_AUTO, 1, 0);
  for (int form = AMLA_P_DEFAULT; form <= AMLA_P_BF16; form++) {
    char words[64];
    amla_plan *plan = NULL;
    amla_detail d;
    o.p_form = (amla_p_form)form;
    const amla_status status = amla_plan_create(&plan, &p, &o, &d);
    amla_plan_destroy(plan);
    if (form == AMLA_P_DEFAULT || form == AMLA_P_BF16) {
      assert_int_equal(status, AMLA_OK);
      continue;
    }
    snprintf(words, sizeof words, "p_form=%s: backend=npu rounds P to 16 bits",
             amla_p_form_name(o.p_form));
    assert_int_equal(status, AMLA_UNSUPPORTED);
    assert_string_equal(d.text, words);
  }
}

int main(void) {
  setenv("AMLA_BACKEND_DIR", FAKE_BACKENDS, 1);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_backend_of_another_build_is_refused),
      cmocka_unit_test(a_backend_of_this_build_is_taken),
      cmocka_unit_test(a_backend_has_no_table_for_another_version),
      cmocka_unit_test(a_dense_backend_refuses_the_rest),
      cmocka_unit_test(exact_forms_of_p_are_refused_by_name),
  };
  return cmocka_run_group_tests_name("load_backend", tests, NULL, NULL);
}
