/* SPDX-License-Identifier: Apache-2.0
 *
 * Everything the library refuses: each refusal has its status, names field, value and rule, and
 * writes nothing. And what looks wrong but is allowed. One line is one bad input and the words its
 * detail must contain.
 */
#include "sparse_case.h"

#include <limits.h>

#include "harness/names.h"
#include "src/problem.h"

enum { MAX_WORDS = 4 };

/* The call on `what` gave `got` and a detail; it must have given `want`, and the detail must
 * contain the words up to NULL. */
static void expect_refusal(const char *what, amla_status got, amla_status want,
                           const amla_detail *detail, const char *const *words) {
  if (got != want)
    fail_msg("%s: %s ('%s'), want %s", what, amla_status_name(got), detail->text,
             amla_status_name(want));
  for (int i = 0; words[i]; i++)
    if (strstr(detail->text, words[i]) == NULL)
      fail_msg("%s: '%s' does not contain '%s'", what, detail->text, words[i]);
}

#define WORDS(...) ((const char *const[]){__VA_ARGS__, NULL})

static const char *const paged =
    "b=3,sq=2,h=4,sk=100,dqk=24,dv=16,page=16,len=100/0/33,sinks=1,mask=1,q=f32,kv=f32,seed=3";
static const char *const contiguous =
    "b=3,sq=2,h=4,sk=100,dqk=24,dv=16,page=0,len=100/0/33,q=f32,kv=f32,seed=3";

/* ---- Problems ---- */

static amla_problem good_problem(const char *text) {
  harness_case c;
  char error[256];
  if (harness_parse_problem(text, &c, error, sizeof error) != 0)
    fail_msg("%s", error);
  return c.problem;
}

static void expect_problem_refused(const char *what, const amla_problem *p, amla_status want,
                                   const char *const *words) {
  char somewhere;
  amla_plan *plan = (amla_plan *)(void *)&somewhere; /* a refusal must clear it */
  amla_detail detail;
  expect_refusal(what, amla_plan_create(&plan, p, NULL, &detail), want, &detail, words);
  assert_null(plan);
  assert_int_equal(amla_plan_create(&plan, p, NULL, NULL), want); /* detail may be NULL */
}

#define BAD(base, change, status, ...)                                                             \
  do {                                                                                             \
    amla_problem p = good_problem(base);                                                           \
    change;                                                                                        \
    expect_problem_refused(#change, &p, status, WORDS(__VA_ARGS__));                               \
  } while (0)
#define INVALID AMLA_INVALID_ARGUMENT
#define UNSUPPORTED AMLA_UNSUPPORTED

static void bad_shapes_are_refused(void **state) {
  (void)state;
  BAD(paged, p.b = -1, INVALID, "b=-1", ">= 0");
  BAD(paged, p.s_q = 0, INVALID, "s_q=0", ">= 1");
  BAD(paged, p.s_q = INT32_MIN, INVALID, "s_q=-2147483648", ">= 1");
  BAD(paged, p.h_q = 0, INVALID, "h_q=0", ">= 1");
  BAD(paged, p.h_q = -128, INVALID, "h_q=-128", ">= 1");
  BAD(paged, p.h_kv = 3, INVALID, "h_kv=3: MLA decode needs 1");
  BAD(paged, p.h_kv = -1, INVALID, "h_kv=-1: MLA decode needs 1");
  BAD(paged, p.sk = -1, INVALID, "sk=-1", ">= 0");
  BAD(paged, p.sk = -4096, INVALID, "sk=-4096", ">= 0");
  BAD(paged, p.d_qk = 0, INVALID, "d_qk=0", ">= 1");
  BAD(paged, p.d_qk = -1, INVALID, "d_qk=-1", ">= 1");
  BAD(paged, p.d_v = 0, INVALID, "d_v=0", ">= 1");
  BAD(paged, p.d_v = -512, INVALID, "d_v=-512", ">= 1");
  BAD(paged, p.d_v = 25, INVALID, "d_v=25", "<= d_qk=24");
  BAD(paged, p.page_size = -1, INVALID, "page_size=-1", ">= 0");
  BAD(paged, p.max_pages = -1, INVALID, "max_pages=-1", ">= 0");
  BAD(paged, p.max_pages = 6, INVALID, "max_pages=6", ">= 7", "sk=100");
  BAD(paged, p.n_pages = -1, INVALID, "n_pages=-1", ">= 0");
  BAD(contiguous, p.n_pages = 5, INVALID, "n_pages=5", "must be 0", "contiguous");
  BAD(contiguous, p.max_pages = 5, INVALID, "max_pages=5", "must be 0", "contiguous");
}

static void bad_types_and_numbers_are_refused(void **state) {
  (void)state;
  BAD(paged, p.q_type = (amla_dtype)3, INVALID, "q_type=3", "<= 2");
  BAD(paged, p.q_type = (amla_dtype)-1, INVALID, "q_type=", "must be");
  char most[16];
  snprintf(most, sizeof most, "<= %d", AMLA_N_DTYPES - 1);
  BAD(paged, p.kv_type = (amla_dtype)77, INVALID, "kv_type=77", most);
  BAD(paged, p.out_type = (amla_dtype)99, INVALID, "out_type=99", "<= 2");
  BAD(paged, p.causal = 2, INVALID, "causal=2", "<= 1");
  BAD(paged, p.causal = -1, INVALID, "causal=-1", ">= 0");
  BAD(paged, p.scale = 0.0f, INVALID, "scale=0", "finite and not 0");
  BAD(paged, p.scale = -0.0f, INVALID, "scale=-0", "finite and not 0");
  BAD(paged, p.scale = NAN, INVALID, "scale=", "nan", "finite");
  BAD(paged, p.scale = INFINITY, INVALID, "scale=inf", "finite");
  BAD(paged, p.scale = -INFINITY, INVALID, "scale=-inf", "finite");
  BAD(paged, p.scale = 3e38f, INVALID, "scale=3e+38", "log2(e)");
  BAD(paged, (p.page_size = 1, p.max_pages = p.sk, p.kv_stride_token = INT64_MAX), INVALID,
      "kv_stride_token=9223372036854775807", "overflow");
  BAD(paged, p.q_type = AMLA_Q8_0, INVALID, "q_type=3", "<= 2");
  BAD(paged, p.out_type = AMLA_Q8_0, INVALID, "out_type=3", "<= 2");
  BAD(paged, (p.kv_type = AMLA_Q8_0, p.d_qk = 24), INVALID, "d_qk=24", "multiple of 32");
  BAD(paged, (p.kv_type = AMLA_Q5_1, p.d_qk = 24), INVALID, "d_qk=24", "multiple of 32");
  BAD(paged, (p.kv_type = AMLA_Q8_0, p.d_qk = 32, p.kv_stride_token = 33), INVALID,
      "kv_stride_token=33", "multiple of 32");
  BAD(paged, (p.kv_type = AMLA_Q8_0, p.d_qk = 32, p.kv_stride_token = 32, p.kv_stride_page = 8001),
      INVALID, "kv_stride_page=8001", "multiple of 32");
  BAD(paged, p.q_type = AMLA_FP8_E4M3, INVALID, "q_type=6", "<= 2");
  BAD(paged, p.memory = (amla_memory)2, INVALID, "memory=2", "<= 1");
  BAD(paged, p.mask_stride_batch = -16, INVALID, "mask_stride_batch=-16", ">= 0");
  BAD(paged, p.mask_stride_query = -1, INVALID, "mask_stride_query=-1", ">= 0");
}

/* p as a cache of records in pages of 16. */
#define RECORDS(type, qk) (p = records(type, qk))
static amla_problem records(amla_dtype type, int32_t d_qk) {
  amla_problem p = AMLA_PROBLEM_INIT;
  p.sk = 100, p.page_size = 16, p.n_pages = 9, p.scale = 1.0f;
  p.kv_type = type, p.d_qk = d_qk;
  return p;
}

static void bad_fp8_caches_are_refused(void **state) {
  (void)state;
  BAD(paged, (RECORDS(AMLA_FP8_656, 512)), INVALID, "d_qk=512: must be 576 for kv_type=fp8_656");
  BAD(paged, (RECORDS(AMLA_FP8_656, 576), p.d_v = 576), INVALID, "d_v=576: must be 512");
  BAD(paged, (RECORDS(AMLA_FP8_584, 576)), INVALID, "d_qk=576: must be 512 for kv_type=fp8_584");
  BAD(paged, (RECORDS(AMLA_FP8_584, 512), p.d_v = 448), INVALID, "d_v=448: must be 512");
  BAD(paged, (RECORDS(AMLA_FP8_656, 576), p.kv_stride_token = 576), INVALID,
      "kv_stride_token=576: must be >= 656 bytes for kv_type=fp8_656");
  BAD(paged, (RECORDS(AMLA_FP8_584, 512), p.kv_stride_token = 584), INVALID,
      "kv_stride_token=584: must be 0 or 576 for kv_type=fp8_584", "footer");
  BAD(paged, (RECORDS(AMLA_FP8_584, 512), p.kv_stride_page = 9343), INVALID,
      "kv_stride_page=9343: must be >= 9344, 16 tokens of fp8_584");
  BAD(paged, (RECORDS(AMLA_FP8_656, 576), p.n_pages = 1 << 27), INVALID,
      "n_pages=134217728, page_size=16: their product must be <= 2147483647");
  BAD(contiguous, (RECORDS(AMLA_FP8_656, 576), p.page_size = p.n_pages = 0, p.b = 1 << 26), INVALID,
      "b=67108864, sk=100: their product must be <= 2147483647");
  BAD(paged, (p.kv_type = AMLA_FP8_E4M3, p.kv_scale = -1.0f), INVALID, "kv_scale=-1",
      "positive and finite");
  BAD(paged, (p.kv_type = AMLA_FP8_E4M3, p.kv_scale = INFINITY), INVALID, "kv_scale=inf",
      "positive and finite");
  BAD(paged, (p.kv_type = AMLA_FP8_E4M3, p.kv_rope_scale = NAN), INVALID,
      "kv_rope_scale=", "positive and finite");
  BAD(paged, p.kv_scale = 0.5f, INVALID, "kv_scale=0.5: must be 0 or 1 for kv_type=f32",
      "only fp8_e4m3 has one");
  BAD(paged, (RECORDS(AMLA_FP8_656, 576), p.kv_rope_scale = 2.0f), INVALID,
      "kv_rope_scale=2: must be 0 or 1 for kv_type=fp8_656");
}

static void bad_strides_are_refused(void **state) {
  (void)state;
  BAD(paged, p.q_stride_batch = -1, INVALID, "q_stride_batch=-1", ">= 0");
  BAD(paged, p.q_stride_query = -8, INVALID, "q_stride_query=-8", ">= 0");
  BAD(paged, p.q_stride_head = INT64_MIN, INVALID, "q_stride_head=-9223372036854775808", ">= 0");
  BAD(paged, p.out_stride_batch = -1, INVALID, "out_stride_batch=-1", ">= 0");
  BAD(paged, p.out_stride_query = -1, INVALID, "out_stride_query=-1", ">= 0");
  BAD(paged, p.out_stride_head = -1, INVALID, "out_stride_head=-1", ">= 0");
  BAD(paged, p.out_stride_head = 15, INVALID, "out_stride_head=15", "overlap", ">= 16");
  BAD(paged, p.out_stride_query = 40, INVALID, "out_stride_query=40", "overlap");
  BAD(paged, p.out_stride_batch = 127, INVALID, "out_stride_batch=127", "overlap", ">= 128");
  BAD(paged, p.kv_stride_page = -1, INVALID, "kv_stride_page=-1", ">= 0");
  BAD(paged, p.kv_stride_token = -1, INVALID, "kv_stride_token=-1", ">= 0");
  BAD(paged, p.kv_stride_token = 23, INVALID, "kv_stride_token=23", ">= d_qk=24");
  BAD(paged, (p.page_size = 2, p.max_pages = 0, p.kv_stride_token = 23), INVALID,
      "kv_stride_token=23", ">= d_qk=24");
  BAD(paged, (p.out_stride_batch = 16, p.out_stride_query = 48, p.out_stride_head = 95), INVALID,
      "out_stride_head=95", "overlap", ">= 96");
  BAD(contiguous, p.kv_stride_token = 1, INVALID, "kv_stride_token=1", ">= d_qk=24");
}

static void products_beyond_64_bits_are_refused(void **state) {
  (void)state;
  BAD(paged, p.q_stride_batch = INT64_MAX, INVALID, "q", "overflow");
  BAD(paged, p.q_stride_batch = INT64_MAX / 4, INVALID, "q",
      "overflow"); /* fits in elements, not in bytes */
  BAD(paged, (p.q_stride_head = INT64_MAX / 2, p.q_stride_query = 0), INVALID, "q_stride_query",
      "overflow");
  BAD(paged, p.out_stride_batch = INT64_MAX / 2 + 1, INVALID, "out", "overflow");
  BAD(paged, (p.out_stride_query = INT64_MAX / 2 + 1, p.out_stride_batch = 0), INVALID,
      "out_stride_batch", "overflow");
  BAD(paged, p.n_pages = INT64_MAX, INVALID, "kv", "overflow");
  BAD(paged, p.n_pages = INT64_MAX / 1000, INVALID, "kv", "overflow");
  BAD(paged, (p.kv_stride_token = INT64_MAX / 4, p.kv_stride_page = 0), INVALID, "kv_stride_page",
      "overflow");
  BAD(contiguous, p.kv_stride_page = INT64_MAX, INVALID, "kv", "overflow");
  BAD(contiguous, (p.sk = INT32_MAX, p.kv_stride_token = 1LL << 40, p.kv_stride_page = 0), INVALID,
      "kv_stride_page", "overflow");
  BAD(paged, (p.s_q = 1 << 20, p.h_q = 1 << 20), INVALID, "s_q=1048576", "h_q=1048576", "product");
}

/* ---- Struct sizes: they grow at their end only ---- */

static void struct_sizes_are_checked(void **state) {
  (void)state;
  BAD(paged, p.struct_bytes = 0, INVALID, "problem.struct_bytes=0", "INIT");
  BAD(paged, p.struct_bytes = 8, INVALID, "problem.struct_bytes=8", "INIT");
  BAD(paged, p.struct_bytes = UINT32_MAX, INVALID, "problem.struct_bytes=4294967295", "INIT");

  struct {
    amla_problem known;
    unsigned char later[16];
  } newer = {good_problem(paged), {0}};
  newer.known.struct_bytes = sizeof newer;
  amla_plan *plan;
  amla_detail detail;
  assert_int_equal(amla_plan_create(&plan, &newer.known, NULL, &detail),
                   AMLA_OK); /* a newer caller that asks for nothing new */
  assert_string_equal(detail.text, "");
  amla_plan_destroy(plan);
  for (int i = 0; i < LENGTH(newer.later); i++) { /* the first and the last of them too */
    char byte[32];
    snprintf(byte, sizeof byte, "byte %zu is set", sizeof newer.known + (size_t)i);
    memset(newer.later, 0, sizeof newer.later);
    newer.later[i] = 1;
    expect_problem_refused("later field", &newer.known, UNSUPPORTED,
                           WORDS("problem.struct_bytes=", byte));
  }
}

/* ---- Options ---- */

static void expect_options_refused(const char *what, const amla_options *o, amla_status want,
                                   const char *const *words) {
  const amla_problem p = good_problem(paged);
  char somewhere;
  amla_plan *plan = (amla_plan *)(void *)&somewhere;
  amla_detail detail;
  expect_refusal(what, amla_plan_create(&plan, &p, o, &detail), want, &detail, words);
  assert_null(plan);
}

#define BAD_OPTION(change, status, ...)                                                            \
  do {                                                                                             \
    amla_options o = AMLA_OPTIONS_INIT;                                                            \
    change;                                                                                        \
    expect_options_refused(#change, &o, status, WORDS(__VA_ARGS__));                               \
  } while (0)

static void bad_options_are_refused(void **state) {
  (void)state;
  BAD_OPTION(o.struct_bytes = 0, INVALID, "options.struct_bytes=0", "INIT");
  BAD_OPTION(o.struct_bytes = 12, INVALID, "options.struct_bytes=12", "INIT");
  BAD_OPTION(o.struct_bytes = 29, INVALID, "options.struct_bytes=29", "INIT");
  BAD_OPTION(o.struct_bytes = 36, INVALID, "options.struct_bytes=36", "INIT"); /* cuts `parallel` */
  BAD_OPTION(o.backend = (amla_backend)5, INVALID, "backend=5", "<= 4");
  BAD_OPTION(o.backend = (amla_backend)77, INVALID, "backend=77");
  BAD_OPTION(o.backend = AMLA_BACKEND_CUDA, UNSUPPORTED, "backend=cuda", "not");
  BAD_OPTION(o.backend = AMLA_BACKEND_NPU, UNSUPPORTED, "backend=npu", "not");
  BAD_OPTION(o.rescale = (amla_rescale)4, INVALID, "rescale=4", "<= 3");
  BAD_OPTION(o.threads = -1, INVALID, "threads=-1", ">= 0");
  BAD_OPTION(o.threads = INT32_MAX, INVALID, "threads=2147483647", "<=");
  BAD_OPTION(o.isa = (amla_isa)99, INVALID, "isa=99", "must be <= ");
  BAD_OPTION(o.split_tokens = -2, INVALID, "split_tokens=-2", ">= -1");
  BAD_OPTION(o.split_tokens = INT32_MIN, INVALID, "split_tokens=-2147483648", ">= -1");
  BAD_OPTION(o.lse_base = (amla_lse_base)2, INVALID, "lse_base=2", "<= 1");
  BAD_OPTION(o.lse_sink = (amla_lse_sink)2, INVALID, "lse_sink=2", "<= 1");
  BAD_OPTION(o.p_form = (amla_p_form)4, INVALID, "p_form=4", "<= 3");
  BAD_OPTION(o.q_form = (amla_q_form)3, INVALID, "q_form=3", "<= 2");
  BAD_OPTION(o.kv_round = (amla_kv_round)2, INVALID, "kv_round=2", "<= 1");
}

/* With this environment variable set to each of these values. */
static void expect_environment_refused(const char *name, const char *value, amla_status want,
                                       const char *const *words) {
  const amla_options o = AMLA_OPTIONS_INIT;
  assert_int_equal(setenv(name, value, 1), 0);
  expect_options_refused(name, &o, want, words);
  unsetenv(name);
}

/* Those of this architecture. */
static const char *native_isas(int i) {
#if defined(__x86_64__)
  const amla_architecture here = AMLA_X86_64;
#elif defined(__aarch64__)
  const amla_architecture here = AMLA_AARCH64;
#else
  const amla_architecture here = AMLA_ANY_ARCHITECTURE;
#endif
#define CHECK(id, name, architecture)                                                              \
  if (((architecture) == AMLA_ANY_ARCHITECTURE || (architecture) == here) && i-- == 0)             \
    return name;
  AMLA_ISAS(CHECK)
#undef CHECK
  return NULL;
}

/* Ignored, a cap of another architecture would run portable C, or the best that there is. */
static void isas_of_other_architectures_are_refused(void **state) {
  (void)state;
  int others = 0;
  const harness_name_list isas = harness_list_names(native_isas, " or ");
  for (int isa = AMLA_ISA_C; isa < AMLA_N_ISAS; isa++) {
    const char *name = amla_isa_name((amla_isa)isa), *const rule = "is of another architecture";
    char option[64], variable[64], must[160];
    if (harness_find_name(native_isas, name) >= 0)
      continue;
    others++;
    snprintf(option, sizeof option, "isa=%s: ", name);
    snprintf(variable, sizeof variable, "AMLA_ISA=%s: ", name);
    snprintf(must, sizeof must, "must be %s", isas.text);
    BAD_OPTION(o.isa = (amla_isa)isa, UNSUPPORTED, option, rule, must);
    expect_environment_refused("AMLA_ISA", name, UNSUPPORTED, WORDS(variable, rule, must));
  }
  assert_true(others > 0);
}

static void bad_environment_is_refused(void **state) {
  (void)state;
  static const char *const counts[] = {"bogus", "0", "-1", "2x", "99999999999999999999", "1e2"};
  const harness_name_list isas = harness_list_names(native_isas, " or ");
  expect_environment_refused("AMLA_ISA", "bogus", INVALID,
                             WORDS("AMLA_ISA=bogus: must", isas.text));
  expect_environment_refused("AMLA_ISA", "AVX2", INVALID, WORDS("AMLA_ISA=AVX2: must", isas.text));
  for (int i = 0; i < LENGTH(counts); i++)
    expect_environment_refused("AMLA_NUM_THREADS", counts[i], INVALID,
                               WORDS("AMLA_NUM_THREADS=", counts[i], "1.."));
  for (int i = 0; i < LENGTH(counts) - 2; i++)
    expect_environment_refused("AMLA_L2_BYTES", counts[i], INVALID,
                               WORDS("AMLA_L2_BYTES=", counts[i], "1.."));
}

static void environment_caps_isa_and_sets_threads(void **state) {
  (void)state;
  const amla_problem p = good_problem(paged);
  int last = 0;
  while (native_isas(last + 1))
    last++;
  const char *best = native_isas(last);
  const amla_isa best_isa = (amla_isa)harness_find_name(harness_isas, best);
  const struct {
    const char *isa, *threads;
    amla_options options;
    const char *words[2];
  } rows[] = {
      {"c", "3", AMLA_OPTIONS_INIT, {"cpu c ", "3 threads"}},
      {"c",
       "",
       make_options(AMLA_BACKEND_CPU, AMLA_RESCALE_FLASH, best_isa, 5, 0),
       {"cpu c flash", "5 threads"}},
      {best,
       "7",
       make_options(AMLA_BACKEND_CPU, AMLA_RESCALE_AMLA, AMLA_ISA_C, 1, 0),
       {"cpu c amla", "1 thread"}},
      {"",
       "2",
       make_options(AMLA_BACKEND_REF, AMLA_RESCALE_LAZY, AMLA_ISA_AUTO, 0, 0),
       {"ref lazy", ""}},
  };
  for (int i = 0; i < LENGTH(rows); i++) {
    amla_plan *plan;
    char text[256];
    setenv("AMLA_ISA", rows[i].isa, 1);
    setenv("AMLA_NUM_THREADS", rows[i].threads, 1);
    assert_int_equal(amla_plan_create(&plan, &p, &rows[i].options, NULL), AMLA_OK);
    amla_plan_describe(plan, text, sizeof text);
    for (int w = 0; w < 2; w++)
      if (strstr(text, rows[i].words[w]) == NULL)
        fail_msg("'%s' does not contain '%s'", text, rows[i].words[w]);
    amla_plan_destroy(plan);
  }
  unsetenv("AMLA_ISA");
  unsetenv("AMLA_NUM_THREADS");
}

/* ---- Tensors ---- */

static void expect_nothing_written(const char *what, const harness_dataset *d) {
  if (!all_bytes_are(d->out, d->tensors.out_bytes, GUARD_PATTERN))
    fail_msg("%s: refused, but out was written", what);
  if (!all_bytes_are(d->lse, d->tensors.lse_bytes, GUARD_PATTERN))
    fail_msg("%s: refused, but lse was written", what);
}

static void expect_tensors_refused(const char *what, fixture *f, const amla_tensors *t,
                                   amla_status want, const char *const *words) {
  amla_detail detail;
  expect_refusal(what, amla_plan_run(f->plan, t, f->scratch, f->scratch_bytes, &detail), want,
                 &detail, words);
  assert_int_equal(amla_plan_run(f->plan, t, f->scratch, f->scratch_bytes, NULL), want);
  expect_nothing_written(what, &f->data);
}

#define BAD_TENSORS(f, change, status, ...)                                                        \
  do {                                                                                             \
    amla_tensors t = (f)->data.tensors;                                                            \
    change;                                                                                        \
    expect_tensors_refused(#change, f, &t, status, WORDS(__VA_ARGS__));                            \
  } while (0)

/* A pointer of amla_tensors and its capacity. */
typedef struct buffer {
  const char *name;
  size_t pointer, bytes; /* offsets */
  int optional;
} buffer;

#define BUFFER(name, optional)                                                                     \
  {#name, offsetof(amla_tensors, name), offsetof(amla_tensors, name##_bytes), optional}
static const buffer buffers[] = {BUFFER(q, 0),           BUFFER(kv, 0),        BUFFER(out, 0),
                                 BUFFER(block_table, 0), BUFFER(seqlens_k, 1), BUFFER(sinks, 1),
                                 BUFFER(lse, 1),         BUFFER(mask, 1)};

static char **pointer_of(amla_tensors *t, const buffer *b) {
  return (char **)(void *)((char *)t + b->pointer);
}
static size_t *bytes_of(amla_tensors *t, const buffer *b) {
  return (size_t *)(void *)((char *)t + b->bytes);
}

static void null_short_and_misaligned_buffers_are_refused(void **state) {
  (void)state;
  fixture f = fixture_create(paged, NULL);
  for (int i = 0; i < LENGTH(buffers); i++) {
    const buffer *b = &buffers[i];
    char null[64], bytes[64], least[64], name[64];
    snprintf(null, sizeof null, "%s=NULL", b->name);
    snprintf(name, sizeof name, "%s=", b->name);
    const size_t exact = *bytes_of(&f.data.tensors, b);
    snprintf(least, sizeof least, ">= %zu", exact);
    if (!b->optional)
      BAD_TENSORS(&f, *pointer_of(&t, b) = NULL, INVALID, null, "must point to");
    static const size_t shorter[] = {1, 4, 100000000};
    for (int s = 0; s < LENGTH(shorter); s++) {
      const size_t left = shorter[s] < exact ? exact - shorter[s] : 0;
      snprintf(bytes, sizeof bytes, "%s_bytes=%zu", b->name, left);
      BAD_TENSORS(&f, *bytes_of(&t, b) = left, INVALID, bytes, least);
    }
    const bool halves = b->pointer == offsetof(amla_tensors, mask);
    const char *rule = halves ? "aligned to 2" : "aligned to 4";
    for (int skew = 1; skew < 4; skew += halves ? 2 : 1)
      BAD_TENSORS(&f, *pointer_of(&t, b) += skew, INVALID, name, rule);
  }
  fixture_free(&f);
}

static void half_types_are_aligned_to_2(void **state) {
  (void)state;
  fixture f = fixture_create("b=1,h=4,sk=20,dqk=24,dv=16,q=f16,kv=bf16,out=bf16,page=0", NULL);
  for (int i = 0; i < 3; i++)
    BAD_TENSORS(&f, *pointer_of(&t, &buffers[i]) += 1, INVALID, buffers[i].name, "aligned to 2");
  fixture_free(&f);
}

static void overlapping_outputs_are_refused(void **state) {
  (void)state;
  fixture f = fixture_create(paged, NULL);
  const harness_dataset *d = &f.data;
  static float apart[4096]; /* from other tensors */
  BAD_TENSORS(&f, t.out = d->q, INVALID, "out=", "overlap q");
  BAD_TENSORS(&f, (t.out = d->kv), INVALID, "out=", "overlap kv");
  BAD_TENSORS(&f, t.lse = (float *)d->kv + 3, INVALID, "lse=", "overlap kv");
  BAD_TENSORS(&f, t.lse = d->out, INVALID, "lse=", "overlap out");
  BAD_TENSORS(&f, t.q = (const float *)d->out + 10, INVALID, "out=", "overlap q");
  BAD_TENSORS(&f, (t.sinks = t.lse = apart, t.lse_bytes = 10000), INVALID, "lse=", "overlap sinks");
  BAD_TENSORS(&f, t.lse = (float *)(void *)d->mask, INVALID, "lse=", "overlap mask");
  fixture_free(&f);
}

static void bad_lengths_are_refused(void **state) {
  (void)state;
  static const int32_t lengths[] = {-1, 101, INT32_MIN, INT32_MAX};
  fixture f = fixture_create(paged, NULL);
  for (int i = 0; i < LENGTH(lengths); i++)
    for (int s = 0; s < 3; s++) {
      char words[64];
      const int32_t good = f.data.seqlens_k[s];
      snprintf(words, sizeof words, "seqlens_k[%d]=%d", s, lengths[i]);
      f.data.seqlens_k[s] = lengths[i];
      BAD_TENSORS(&f, (void)t, INVALID, words, "[0, sk=100]");
      f.data.seqlens_k[s] = good;
    }
  fixture_free(&f);
}

/* Sequence 0 uses 7 entries of its row, sequence 1 none, sequence 2 uses 3. */
static void used_page_ids_must_exist_and_unused_ones_need_not(void **state) {
  (void)state;
  static const struct {
    int sequence, entry;
  } used[] = {{0, 0}, {0, 6}, {2, 0}, {2, 2}}, unused[] = {{0, 7}, {1, 0}, {1, 7}, {2, 3}};
  static const int32_t ids[] = {-1, INT32_MIN, INT32_MAX, 2147480000};
  fixture f = fixture_create(paged, NULL);
  const int32_t max_pages = f.data.problem.max_pages;
  assert_true(max_pages == 8 && f.data.problem.n_pages < 100);
  for (int i = 0; i <= LENGTH(ids); i++) {
    const int32_t id = i < LENGTH(ids) ? ids[i] : (int32_t)f.data.problem.n_pages;
    for (int e = 0; e < LENGTH(used); e++) {
      int32_t *entry = &f.data.block_table[used[e].sequence * max_pages + used[e].entry];
      const int32_t good = *entry;
      char words[64];
      snprintf(words, sizeof words, "block_table[%d][%d]=%d", used[e].sequence, used[e].entry, id);
      *entry = id;
      BAD_TENSORS(&f, (void)t, INVALID, words, "[0, n_pages=");
      *entry = good;
    }
    for (int e = 0; e < LENGTH(unused); e++)
      f.data.block_table[unused[e].sequence * max_pages + unused[e].entry] = id;
    assert_int_equal(amla_plan_run(f.plan, &f.data.tensors, f.scratch, f.scratch_bytes, NULL),
                     AMLA_OK);
    harness_reset_outputs(&f.data);
  }
  fixture_free(&f);
}

/* Problems and tensors as 0.1 had them. */
static void older_structs_are_accepted(void **state) {
  (void)state;
  fixture f = fixture_create(paged, NULL);
  amla_problem p = good_problem(paged);
  amla_plan *plan;
  p.struct_bytes =
      (uint32_t)(offsetof(amla_problem, mask_stride_query) + sizeof p.mask_stride_query);
  p.topk = 7; /* not there */
  assert_int_equal(amla_plan_create(&plan, &p, NULL, NULL), AMLA_OK);
  amla_plan_destroy(plan);
  amla_tensors t = f.data.tensors;
  t.struct_bytes = (uint32_t)(offsetof(amla_tensors, stream) + sizeof t.stream);
  t.indices = f.data.seqlens_k;
  assert_int_equal(amla_plan_run(f.plan, &t, f.scratch, f.scratch_bytes, NULL), AMLA_OK);
  fixture_free(&f);
}

/* Options as the first release had them, without the fields behind lse_base. */
static void older_options_are_accepted(void **state) {
  (void)state;
  const amla_problem p = good_problem(paged);
  amla_options o = AMLA_OPTIONS_INIT;
  amla_plan *plan;
  o.struct_bytes = (uint32_t)(offsetof(amla_options, lse_base) + sizeof o.lse_base);
  o.lse_base = AMLA_LSE_BASE2;
  assert_int_equal(amla_plan_create(&plan, &p, &o, NULL), AMLA_OK);
  amla_plan_destroy(plan);
  o.struct_bytes--;
  assert_int_equal(amla_plan_create(&plan, &p, &o, NULL), INVALID);
}

static void what_does_not_belong_is_refused_by_name(void **state) {
  (void)state;
  static int anything;
  fixture f = fixture_create(paged, NULL);
  BAD_TENSORS(&f, t.stream = &anything, INVALID, "stream=", "must be NULL");
  BAD_TENSORS(&f, t.struct_bytes = 0, INVALID, "tensors.struct_bytes=0", "INIT");
  BAD_TENSORS(&f, t.struct_bytes = 16, INVALID, "tensors.struct_bytes=16", "INIT");
  fixture_free(&f);
  f = fixture_create(contiguous, NULL);
  BAD_TENSORS(&f, t.block_table = &anything, INVALID, "block_table=", "must be NULL", "contiguous");
  fixture_free(&f);
}

/* ---- Lists, scopes, windows, ragged queries ---- */

static void bad_sparse_problems_are_refused(void **state) {
  (void)state;
  const char *const dense = "b=3,sq=2,h=4,sk=100,dqk=24,dv=16,page=16,causal=0";
  BAD(dense, p.topk = -1, INVALID, "topk=-1", ">= 0");
  BAD(dense, p.index_kind = (amla_index_kind)2, INVALID, "index_kind=2", "<= 1");
  BAD(dense, p.topk_length_per_query = 2, INVALID, "topk_length_per_query=2", "<= 1");
  BAD(dense, p.window = -5, INVALID, "window=-5", ">= 0");
  BAD(dense, p.q_d_rope = 24, INVALID, "q_d_rope=24", "<= 23");
  BAD(dense, p.k_begin = -32, INVALID, "k_begin=-32", ">= 0");
  BAD(dense, p.k_begin = 32, INVALID, "k_begin=32", "<= 23");
  BAD(dense, p.k_begin = 16, INVALID, "k_begin=16", "multiple of 32");
  BAD(dense, (p.d_qk = 40, p.k_begin = 32, p.q_d_rope = 8), INVALID, "q_d_rope=8", "<= 7");
  BAD(dense, p.kv_d_rope = -1, INVALID, "kv_d_rope=-1", ">= 0");
  BAD(dense, p.extra_sk = -1, INVALID, "extra_sk=-1", ">= 0");
  BAD(dense, p.extra_topk = -1, INVALID, "extra_topk=-1", ">= 0");
  BAD(dense, (p.topk = 8, p.causal = 1), INVALID, "causal=1: must be 0 with topk > 0");
  BAD(dense, (p.topk = 8, p.window = 9), INVALID, "window=9: must be 0 with topk > 0");
  BAD(dense, (p.extra_sk = INT32_MAX, p.extra_page_size = 64), INVALID, "sk or topk", "extra_topk",
      "2147483747", "<= 2147483647");
  BAD(dense, p.extra_page_size = 64, INVALID, "extra_page_size=64", "must be 0", "extra_topk > 0");
  BAD(dense, p.extra_max_pages = 2, INVALID, "extra_max_pages=2", "must be 0");
  BAD(dense, p.extra_n_pages = 2, INVALID, "extra_n_pages=2", "must be 0");
  BAD(dense, (p.extra_topk = 2, p.extra_page_size = -1), INVALID, "extra_page_size=-1", ">= 0");
  BAD(dense, (p.extra_topk = 2, p.extra_n_pages = 1), INVALID, "extra_n_pages=1", "must be 0",
      "extra_page_size is 0");
  BAD(dense, (p.extra_topk = 2, p.extra_max_pages = 1), INVALID, "extra_max_pages=1", "must be 0");
  BAD(dense, (p.extra_sk = 20, p.extra_page_size = 8, p.extra_max_pages = 2), INVALID,
      "extra_max_pages=2", ">= 3", "extra_sk=20");
  BAD(dense, (p.extra_sk = 20, p.extra_kv_stride_token = 23), INVALID, "extra_kv_stride_token=23",
      ">= d_qk=24");
  BAD(dense, (p.extra_sk = 20, p.extra_kv_stride_page = -1), INVALID, "extra_kv_stride_page=-1");
  BAD(dense, (p.extra_topk = 20, p.extra_page_size = 8, p.extra_n_pages = INT64_MAX), INVALID,
      "extra_kv", "overflow");
  BAD(dense, (p.topk = 8, p.indices_stride_query = -1), INVALID, "indices_stride_query=-1");
  BAD(dense, (p.topk = 8, p.indices_stride_batch = INT64_MAX), INVALID, "indices", "overflow");
  BAD(dense, (p.extra_topk = 8, p.extra_indices_stride_batch = -1), INVALID,
      "extra_indices_stride_batch=-1");
  BAD(dense, (p.extra_topk = 8, p.kv_d_rope = 8), UNSUPPORTED, "kv_d_rope=8", "second scope");
  BAD(dense, (p.kv_d_rope = 8, p.kv_stride_token = 15), INVALID, "kv_stride_token=15",
      ">= a row=16");
  BAD(dense, (p.kv_d_rope = 8, p.kv_rope_stride_token = 7), INVALID, "kv_rope_stride_token=7",
      ">= a row=8");
  BAD(dense, (p.kv_d_rope = 8, p.kv_rope_stride_page = -7), INVALID, "kv_rope_stride_page=-7");
  BAD(dense, (p.q_d_rope = 8, p.q_rope_stride_head = -7), INVALID, "q_rope_stride_head=-7");
  BAD(dense, (p.q_d_rope = 8, p.q_rope_stride_batch = INT64_MAX), INVALID, "q_rope", "overflow");
  BAD(dense,
      (p.kv_type = AMLA_Q8_0, p.d_qk = 64, p.kv_d_rope = 24,
       p.kv_stride_token = p.kv_stride_page = 0),
      INVALID, "kv_d_rope=24", "multiple of 32");
}

/* A run of what both scopes list, and its plan. */
typedef struct sparse_fixture {
  sparse_case c;
  fixture f;
} sparse_fixture;

static void sparse_fixture_create(sparse_fixture *s, const sparse_form *form) {
  sparse_make(&s->c, form);
  memset(s->c.out, GUARD_PATTERN, s->c.data.tensors.out_bytes);
  memset(s->c.lse, GUARD_PATTERN, s->c.data.tensors.lse_bytes);
  s->f.data = s->c.data;
  s->f.data.out = s->c.out, s->f.data.lse = s->c.lse;
  assert_int_equal(amla_plan_create(&s->f.plan, &s->c.data.problem, NULL, NULL), AMLA_OK);
  s->f.scratch_bytes = amla_plan_scratch_bytes(s->f.plan);
  s->f.scratch = malloc(s->f.scratch_bytes);
  assert_non_null(s->f.scratch);
}

static void sparse_fixture_free(sparse_fixture *s) {
  amla_plan_destroy(s->f.plan);
  free(s->f.scratch);
  sparse_free(&s->c);
}

/* `at` holds another value for a moment. */
#define BAD_WORD(s, at, value, ...)                                                                \
  do {                                                                                             \
    int32_t *at_ = (at);                                                                           \
    const int32_t good_ = *at_;                                                                    \
    *at_ = (value);                                                                                \
    BAD_TENSORS(&(s)->f, (void)t, INVALID, __VA_ARGS__);                                           \
    *at_ = good_;                                                                                  \
  } while (0)

static const sparse_form slots = {.scope = {{.sk = 60, .topk = 20, .page = 16, .lengths = 1},
                                            {.sk = 30, .topk = 10, .page = 0, .lengths = 1}},
                                  .b = 4,
                                  .s_q = 2,
                                  .sinks = 1};

static void bad_lists_are_refused(void **state) {
  (void)state;
  sparse_fixture s;
  sparse_fixture_create(&s, &slots);
  const sparse_scope *first = &s.c.scope[0], *second = &s.c.scope[1];
  BAD_WORD(&s, first->list + 3 * 40 + 17, 18 * 16,
           "indices[3][0][17]=288: the cache has 288 slots");
  BAD_WORD(&s, first->list + 3 * 40 + 20, INT32_MAX, "indices[3][1][0]=2147483647", "288 slots");
  BAD_WORD(&s, second->list + 9, 120, "extra_indices[0][0][9]=120: the cache has 120 slots");
  BAD_WORD(&s, first->list_lengths + 2, 21, "topk_length[2]=21", "[0, topk=20]");
  BAD_WORD(&s, first->list_lengths + 2, -1, "topk_length[2]=-1", "[0, topk=20]");
  BAD_WORD(&s, second->list_lengths, 11, "extra_topk_length[0]=11", "[0, extra_topk=10]");
  first->list_lengths[3] = 17; /* entries behind it may be anything */
  first->list[3 * 40 + 17] = INT32_MAX;
  const amla_tensors *good = &s.c.data.tensors;
  assert_int_equal(amla_plan_run(s.f.plan, good, s.f.scratch, s.f.scratch_bytes, NULL), AMLA_OK);
  sparse_fixture_free(&s);

  sparse_form form = slots;
  form.positions = 1;
  form.scope[0].lengths = form.scope[1].lengths = 2;
  sparse_fixture_create(&s, &form);
  BAD_WORD(&s, first->list + 60, 60, "indices[1][1][0]=60: sequence 1 has 60 tokens");
  BAD_WORD(&s, first->list_lengths + 3, 99, "topk_length[1][1]=99", "[0, topk=20]");
  BAD_WORD(&s, second->lengths + 2, 31, "extra_seqlens_k[2]=31", "[0, extra_sk=30]");
  BAD_WORD(&s, first->pages + 5, 18, "block_table[1][1]=18", "n_pages=18");
  sparse_fixture_free(&s);

  form.ragged = 1;
  sparse_fixture_create(&s, &form);
  const int32_t last = all_queries(&s.c) - 1;
  char words[64];
  snprintf(words, sizeof words, "indices[%d][3]=60: sequence 3 has 60 tokens", last);
  BAD_WORD(&s, first->list + last * 20 + 3, 60, words);
  sparse_fixture_free(&s);
}

static void bad_indptrs_and_visible_lengths_are_refused(void **state) {
  (void)state;
  static const sparse_form form = {.scope = {{.sk = 60, .page = 16, .csr = 1, .visible = 1},
                                             {.sk = 40, .page = 8, .visible = 1}},
                                   .ragged = 1,
                                   .b = 4,
                                   .s_q = 3};
  sparse_fixture s;
  sparse_fixture_create(&s, &form);
  const sparse_scope *first = &s.c.scope[0], *second = &s.c.scope[1];
  const int32_t total = all_queries(&s.c);
  BAD_WORD(&s, s.c.q_indptr, 1, "q_indptr[0]=1: must be 0");
  BAD_WORD(&s, s.c.q_indptr + 4, -1, "q_indptr[4]=-1", ">= q_indptr[3]=");
  BAD_WORD(&s, s.c.q_indptr + 4, total + 4, "q_indptr[4]=", "<= q_indptr[3] + s_q=3");
  BAD_WORD(&s, first->indptr, -4, "kv_indptr[0]=-4: must be 0");
  BAD_WORD(&s, first->indptr + 2, 0, "kv_indptr[2]=0", ">= kv_indptr[1]=4");
  BAD_WORD(&s, first->indptr + 4, 15, "kv_indptr[4]=15", "kv_indptr[3] + 4", "60 tokens");
  BAD_WORD(&s, first->pages + 9, 18, "kv_indices[9]=18", "n_pages=18");
  BAD_WORD(&s, second->pages + 9, 22, "extra_block_table[1][4]=22", "extra_n_pages=22");
  BAD_WORD(&s, first->visible, 61, "visible_k[0]=61", "[0, 60], the length of sequence 0");
  BAD_WORD(&s, first->visible, -1, "visible_k[0]=-1");
  BAD_WORD(&s, second->visible + total - 1, 41, "extra_visible_k[", "]=41", "[0, 40]");
  BAD_TENSORS(&s.f, t.q_indptr_bytes -= 1, INVALID, "q_indptr_bytes=19", ">= 20");
  BAD_TENSORS(&s.f, t.kv_indptr_bytes -= 1, INVALID, "kv_indptr_bytes=19", ">= 20");
  BAD_TENSORS(&s.f, t.kv_indices_bytes -= 1, INVALID, "kv_indices_bytes=63", ">= 64");
  BAD_TENSORS(&s.f, t.kv_indices = NULL, INVALID, "kv_indices=NULL");
  BAD_TENSORS(&s.f, t.visible_k_bytes -= 1, INVALID, "visible_k_bytes=", ">= ");
  BAD_TENSORS(&s.f, t.q_bytes -= 1, INVALID, "q_bytes=", ">= ");
  BAD_TENSORS(&s.f, t.lse_bytes -= 1, INVALID, "lse_bytes=", ">= ");
  BAD_TENSORS(&s.f, t.block_table = first->pages, INVALID, "block_table=", "with kv_indptr");
  BAD_TENSORS(&s.f, t.kv_indptr = NULL, INVALID, "kv_indices=", "without kv_indptr");
  sparse_fixture_free(&s);
}

/* Strides that keep rows of out apart for s_q queries, but not for all of a ragged batch. */
static void ragged_rows_of_out_that_overlap_are_refused(void **state) {
  (void)state;
  static const sparse_form form = {
      .scope = {{.sk = 20, .page = 16}}, .ragged = 1, .b = 4, .s_q = 2};
  sparse_fixture s;
  sparse_fixture_create(&s, &form);
  amla_problem p = s.c.data.problem;
  p.out_stride_query = p.d_v, p.out_stride_head = p.s_q * p.d_v;
  p.out_stride_batch = p.h_q * p.out_stride_head;
  amla_plan_destroy(s.f.plan);
  assert_int_equal(amla_plan_create(&s.f.plan, &p, NULL, NULL), AMLA_OK);
  assert_true(all_queries(&s.c) > p.s_q);
  BAD_TENSORS(&s.f, (void)t, INVALID, "out_stride_head=", "rows of out would overlap");
  sparse_fixture_free(&s);
}

static void bad_sparse_buffers_are_refused(void **state) {
  (void)state;
  static const buffer sparse_buffers[] = {BUFFER(indices, 0),           BUFFER(topk_length, 1),
                                          BUFFER(extra_kv, 0),          BUFFER(extra_indices, 0),
                                          BUFFER(extra_topk_length, 1), BUFFER(max_logits, 1)};
  sparse_fixture s;
  sparse_fixture_create(&s, &slots);
  for (int i = 0; i < LENGTH(sparse_buffers); i++) {
    const buffer *b = &sparse_buffers[i];
    char null[64], bytes[64], aligned[64];
    snprintf(null, sizeof null, "%s=NULL", b->name);
    snprintf(bytes, sizeof bytes, "%s_bytes=", b->name);
    snprintf(aligned, sizeof aligned, "%s=", b->name);
    if (!b->optional)
      BAD_TENSORS(&s.f, *pointer_of(&t, b) = NULL, INVALID, null, "must point to");
    BAD_TENSORS(&s.f, *bytes_of(&t, b) -= 1, INVALID, bytes, ">= ");
    BAD_TENSORS(&s.f, *pointer_of(&t, b) += 1, INVALID, aligned, "aligned to 4");
  }
  BAD_TENSORS(&s.f, t.max_logits = s.c.lse, INVALID, "max_logits=", "overlap lse");
  BAD_TENSORS(&s.f, t.max_logits = s.c.out, INVALID, "max_logits=", "overlap out");
  BAD_TENSORS(&s.f, t.max_logits = (float *)s.c.scope[1].kv, INVALID,
              "max_logits=", "overlap extra_kv");
  BAD_TENSORS(&s.f, t.lse = (float *)(void *)s.c.scope[0].list, INVALID, "lse=", "overlap indices");
  BAD_TENSORS(&s.f, t.lse = (float *)(void *)s.c.scope[1].list, INVALID,
              "lse=", "overlap extra_indices");
  BAD_TENSORS(&s.f, t.visible_k = s.c.scope[0].list, INVALID, "visible_k=", "with topk > 0");
  BAD_TENSORS(&s.f, t.mask = s.c.q, INVALID, "mask=", "with topk, window or a second scope");
  BAD_TENSORS(&s.f, t.kv_indptr = s.c.scope[0].list, INVALID, "kv_indptr=", "lists of slots");
  BAD_TENSORS(&s.f, t.extra_visible_k = s.c.scope[0].list, INVALID,
              "extra_visible_k=", "extra_topk > 0");
  BAD_TENSORS(&s.f, t.extra_block_table = s.c.scope[0].list, INVALID,
              "extra_block_table=", "extra_page_size is 0");
  sparse_fixture_free(&s);
}

/* What a problem has no use for. */
static void tensors_of_nothing_are_refused(void **state) {
  (void)state;
  static int32_t anything;
  fixture f = fixture_create(paged, NULL);
  BAD_TENSORS(&f, t.indices = &anything, INVALID, "indices=", "when topk is 0");
  BAD_TENSORS(&f, t.topk_length = &anything, INVALID, "topk_length=", "when topk is 0");
  BAD_TENSORS(&f, t.visible_k = &anything, INVALID, "visible_k=", "with causal=1");
  BAD_TENSORS(&f, t.q_indptr = &anything, INVALID, "mask=", "with q_indptr");
  BAD_TENSORS(&f, t.kv_indptr = &anything, INVALID, "block_table=", "with kv_indptr");
  BAD_TENSORS(&f, t.extra_kv = &anything, INVALID, "extra_kv=", "without a second scope");
  BAD_TENSORS(&f, t.extra_block_table = &anything, INVALID, "extra_block_table=", "second scope");
  BAD_TENSORS(&f, t.extra_seqlens_k = &anything, INVALID, "extra_seqlens_k=", "second scope");
  BAD_TENSORS(&f, t.extra_visible_k = &anything, INVALID, "extra_visible_k=", "second scope");
  BAD_TENSORS(&f, t.extra_indices = &anything, INVALID, "extra_indices=", "extra_topk is 0");
  BAD_TENSORS(&f, t.extra_topk_length = &anything, INVALID,
              "extra_topk_length=", "extra_topk is 0");
  fixture_free(&f);
  f = fixture_create(contiguous, NULL);
  BAD_TENSORS(&f, t.kv_indptr = &anything, INVALID, "kv_indptr=", "contiguous");
  fixture_free(&f);
  f = fixture_create("b=1,h=4,sk=20,dqk=24,dv=16,page=0,causal=0", NULL);
  f.data.problem.window = 5;
  amla_plan_destroy(f.plan);
  assert_int_equal(amla_plan_create(&f.plan, &f.data.problem, NULL, NULL), AMLA_OK);
  BAD_TENSORS(&f, (void)t, INVALID, "window=5: needs causal=1 or visible_k");
  fixture_free(&f);
}

/* Backends that know dense attention only say so by field. */
static void dense_backends_refuse_the_rest(void **state) {
  (void)state;
  static const struct {
    const char *field;
    size_t at;
  } fields[] = {{"topk=7", offsetof(amla_problem, topk)},
                {"window=7", offsetof(amla_problem, window)},
                {"q_d_rope=7", offsetof(amla_problem, q_d_rope)},
                {"kv_d_rope=7", offsetof(amla_problem, kv_d_rope)},
                {"extra_sk=7", offsetof(amla_problem, extra_sk)},
                {"extra_topk=7", offsetof(amla_problem, extra_topk)},
                {"k_begin=7", offsetof(amla_problem, k_begin)}};
  static const buffer later[] = {BUFFER(visible_k, 0), BUFFER(q_indptr, 0), BUFFER(kv_indptr, 0),
                                 BUFFER(max_logits, 0)};
  const amla_problem good = good_problem(paged);
  amla_options o = AMLA_OPTIONS_INIT;
  amla_detail detail;
  assert_int_equal(amla_plan_check_dense("cuda", &good, &o, &detail), AMLA_OK);
  for (int i = 0; i < LENGTH(fields); i++) {
    amla_problem p = good;
    *(int32_t *)(void *)((char *)&p + fields[i].at) = 7;
    expect_refusal(fields[i].field, amla_plan_check_dense("cuda", &p, &o, &detail), UNSUPPORTED,
                   &detail, WORDS(fields[i].field, "cuda does not have it yet"));
  }
  o.lse_sink = AMLA_LSE_WITH_SINK;
  expect_refusal("lse_sink", amla_plan_check_dense("npu", &good, &o, &detail), UNSUPPORTED, &detail,
                 WORDS("lse_sink=1", "npu does not have it yet"));
  amla_problem device = good;
  device.memory = AMLA_MEMORY_DEVICE;
  for (int i = 0; i < LENGTH(later); i++) { /* no pointer of a device is followed */
    amla_tensors t = AMLA_TENSORS_INIT, checked;
    if (i == 0)
      device.causal = 0; /* which rules visible_k out */
    *pointer_of(&t, &later[i]) = (char *)(uintptr_t)64;
    expect_refusal(later[i].name, amla_tensors_check(&device, &t, &checked, &detail), UNSUPPORTED,
                   &detail, WORDS(later[i].name, "device memory does not have it yet"));
  }
  for (int i = 0; i < LENGTH(later); i++) {
    static char anything;
    amla_tensors t = AMLA_TENSORS_INIT;
    assert_int_equal(amla_tensors_check_dense("npu", &t, &detail), AMLA_OK);
    *pointer_of(&t, &later[i]) = &anything;
    expect_refusal(later[i].name, amla_tensors_check_dense("npu", &t, &detail), UNSUPPORTED,
                   &detail, WORDS(later[i].name, "npu does not have it yet"));
  }
}

static void null_plan_struct_and_scratch_are_refused(void **state) {
  (void)state;
  fixture f = fixture_create(paged, NULL);
  const amla_tensors *t = &f.data.tensors;
  const amla_problem p = good_problem(paged);
  char short_by_one[64], least[64];
  amla_detail d;
  amla_plan *plan;
  assert_true(f.scratch_bytes > 0);
  snprintf(short_by_one, sizeof short_by_one, "scratch_bytes=%zu", f.scratch_bytes - 1);
  snprintf(least, sizeof least, ">= %zu", f.scratch_bytes);
  expect_refusal("short scratch", amla_plan_run(f.plan, t, f.scratch, f.scratch_bytes - 1, &d),
                 INVALID, &d, WORDS(short_by_one, least));
  expect_refusal("no scratch", amla_plan_run(f.plan, t, NULL, f.scratch_bytes, &d), INVALID, &d,
                 WORDS("scratch=NULL", "must point to"));
  expect_refusal("no plan", amla_plan_run(NULL, t, f.scratch, f.scratch_bytes, &d), INVALID, &d,
                 WORDS("plan=NULL"));
  expect_refusal("no tensors", amla_plan_run(f.plan, NULL, f.scratch, f.scratch_bytes, &d), INVALID,
                 &d, WORDS("tensors=NULL"));
  expect_refusal("no place", amla_plan_create(NULL, &p, NULL, &d), INVALID, &d, WORDS("plan=NULL"));
  expect_refusal("no problem", amla_plan_create(&plan, NULL, NULL, &d), INVALID, &d,
                 WORDS("problem=NULL"));
  expect_nothing_written("null arguments", &f.data);
  assert_int_equal(amla_plan_scratch_bytes(NULL), 0);
  amla_plan_destroy(NULL);
  fixture_free(&f);
}

/* Scratch may begin at any byte of a page. Behind its last byte nothing is written. */
static void scratch_has_room_for_alignment(void **state) {
  (void)state;
  enum { PAGE = 4096, LINE = 64 };
  fixture f = fixture_create(paged, NULL);
  float max_logits[3 * 2 * 4];
  amla_tensors t = f.data.tensors;
  t.max_logits = max_logits, t.max_logits_bytes = sizeof max_logits;
  for (int isa = AMLA_ISA_C; isa < AMLA_N_ISAS; isa++) {
    amla_options o = make_options(AMLA_BACKEND_CPU, AMLA_RESCALE_LAZY, AMLA_ISA_C, 1, 1);
    amla_plan *plan;
    if (!amla_isa_is_native((amla_isa)isa))
      continue;
    o.isa = (amla_isa)isa;
    assert_int_equal(amla_plan_create(&plan, &f.data.problem, &o, NULL), AMLA_OK);
    const size_t bytes = amla_plan_scratch_bytes(plan);
    unsigned char *scratch = aligned_alloc(PAGE, (bytes / PAGE + 3) * PAGE);
    for (size_t at = 1; at < PAGE; at += LINE) {
      memset(scratch + at + bytes, 0xa5, LINE);
      assert_int_equal(amla_plan_run(plan, &t, scratch + at, bytes, NULL), AMLA_OK);
      for (size_t i = 0; i < LINE; i++)
        assert_int_equal(scratch[at + bytes + i], 0xa5);
    }
    free(scratch);
    amla_plan_destroy(plan);
  }
  fixture_free(&f);
}

/* ---- What looks wrong and is allowed ---- */

static void no_sequences_is_no_work(void **state) {
  (void)state;
  fixture f = fixture_create("b=0,h=4,sk=20,dqk=24,dv=16", NULL);
  amla_tensors nothing = AMLA_TENSORS_INIT;
  amla_detail detail = {"x"};
  assert_int_equal(amla_plan_run(f.plan, &nothing, f.scratch, f.scratch_bytes, &detail), AMLA_OK);
  assert_string_equal(detail.text, "");
  fixture_free(&f);
}

/* A table without columns, a cache without slots: every row is empty. */
static void check_no_keys(const amla_options *options) {
  for (int pages = 0; pages < 2; pages++) {
    harness_dataset d;
    generate(&d, pages ? "b=3,sq=2,h=40,sk=5,dqk=24,dv=16,page=4,len=0/0/0,sinks=1"
                       : "b=3,sq=2,h=40,sk=5,dqk=24,dv=16,page=0,len=0/0/0");
    d.problem.sk = d.problem.max_pages = 0;
    d.problem.kv_stride_page = d.problem.kv_stride_token = 0;
    d.tensors.kv = d.tensors.block_table = NULL;
    d.tensors.kv_bytes = d.tensors.block_table_bytes = 0;
    for (int given = 0; given < 2; given++) {
      amla_detail detail;
      if (!given)
        d.tensors.seqlens_k = NULL; /* all are sk */
      harness_reset_outputs(&d);
      if (try_run(&d, options, &detail) != AMLA_OK)
        fail_msg("%s", detail.text);
      for (int64_t row = 0; row < n_rows(&d); row++)
        assert_true(lse_at(&d, row) == -INFINITY && out_at(&d, row, 15) == 0.0f);
      d.tensors.seqlens_k = d.seqlens_k;
    }
    d.seqlens_k[1] = 1;
    amla_detail detail;
    expect_refusal("a length of 1", try_run(&d, options, &detail), INVALID, &detail,
                   WORDS("seqlens_k[1]=1", "[0, sk=0]"));
    harness_free(&d);
  }
}

static void no_keys_are_no_pages(void **state) {
  (void)state;
  for_each_engine(check_no_keys);
}

/* Lengths that are all 0 need no pages at all; a NULL seqlens_k means sk for all. */
static void defaults_may_be_left_out(void **state) {
  (void)state;
  fixture f = fixture_create("b=2,h=4,sk=20,dqk=24,dv=16,len=0/0", NULL);
  f.data.tensors.kv = NULL;
  f.data.problem.n_pages = 0;
  amla_plan_destroy(f.plan);
  assert_int_equal(amla_plan_create(&f.plan, &f.data.problem, NULL, NULL), AMLA_OK);
  assert_int_equal(amla_plan_run(f.plan, &f.data.tensors, f.scratch, f.scratch_bytes, NULL),
                   AMLA_OK);
  for (int64_t row = 0; row < 8; row++)
    assert_true(lse_at(&f.data, row) == -INFINITY && out_at(&f.data, row, 0) == 0.0f);
  fixture_free(&f);

  fixture full = fixture_create("b=2,h=4,sk=20,dqk=24,dv=16", NULL),
          none = fixture_create("b=2,h=4,sk=20,dqk=24,dv=16", NULL);
  none.data.tensors.seqlens_k = NULL;
  assert_int_equal(
      amla_plan_run(full.plan, &full.data.tensors, full.scratch, full.scratch_bytes, NULL),
      AMLA_OK);
  assert_int_equal(
      amla_plan_run(none.plan, &none.data.tensors, none.scratch, none.scratch_bytes, NULL),
      AMLA_OK);
  assert_memory_equal(full.data.out, none.data.out, full.data.tensors.out_bytes);
  fixture_free(&full);
  fixture_free(&none);
}

/* q rows may be shared by sequences: a stride of one element's row for two axes. h_kv may be 0
 * or 1. */
static void packed_and_shared_strides_are_allowed(void **state) {
  (void)state;
  fixture f = fixture_create("b=2,sq=2,h=4,sk=20,dqk=24,dv=16,page=4,pad=0", NULL),
          zero = fixture_create("b=2,sq=2,h=4,sk=20,dqk=24,dv=16,page=4,pad=0", NULL);
  amla_problem *p = &zero.data.problem;
  p->q_stride_batch = p->q_stride_query = p->q_stride_head = p->out_stride_batch =
      p->out_stride_query = p->out_stride_head = 0;
  p->kv_stride_page = p->kv_stride_token = 0;
  p->h_kv = 0;
  amla_plan_destroy(zero.plan);
  assert_int_equal(amla_plan_create(&zero.plan, p, NULL, NULL), AMLA_OK);
  assert_int_equal(amla_plan_run(f.plan, &f.data.tensors, f.scratch, f.scratch_bytes, NULL),
                   AMLA_OK);
  assert_int_equal(
      amla_plan_run(zero.plan, &zero.data.tensors, zero.scratch, zero.scratch_bytes, NULL),
      AMLA_OK);
  assert_memory_equal(f.data.out, zero.data.out, f.data.tensors.out_bytes);
  fixture_free(&f);
  fixture_free(&zero);
}

/* Rows of out in any order of the axes: here [h_q][s_q][b], and [b][h_q][s_q]. */
static void axes_of_out_may_stand_in_any_order(void **state) {
  (void)state;
  static const int64_t strides[][3] = {{16, 48, 96}, {128, 16, 32}}; /* batch, query, head */
  for (int i = 0; i < LENGTH(strides); i++) {
    fixture packed = fixture_create(paged, NULL), other = fixture_create(paged, NULL);
    amla_problem *p = &other.data.problem;
    p->out_stride_batch = strides[i][0];
    p->out_stride_query = strides[i][1];
    p->out_stride_head = strides[i][2];
    amla_plan_destroy(other.plan);
    amla_detail d;
    if (amla_plan_create(&other.plan, p, NULL, &d) != AMLA_OK)
      fail_msg("%s", d.text);
    fixture *const both[] = {&packed, &other};
    for (int f = 0; f < 2; f++) {
      const amla_tensors *t = &both[f]->data.tensors;
      const size_t bytes = both[f]->scratch_bytes;
      assert_int_equal(amla_plan_run(both[f]->plan, t, both[f]->scratch, bytes, &d), AMLA_OK);
    }
    for (int64_t row = 0; row < n_rows(&packed.data); row++)
      assert_true(same_row(&packed.data, row, &other.data, row));
    fixture_free(&packed);
    fixture_free(&other);
  }
}

/* ---- Merge ---- */

typedef struct merge_call {
  int32_t n_parts;
  int64_t n_rows;
  int32_t d_v;
  amla_lse_base base;
  const float *o;
  size_t o_bytes;
  const float *parts;
  size_t parts_bytes;
  float *out;
  size_t out_bytes;
  float *lse;
  size_t lse_bytes;
} merge_call;

static amla_status merge(const merge_call *m, amla_detail *d) {
  return amla_merge(m->n_parts, m->n_rows, m->d_v, m->base, m->o, m->o_bytes, m->parts,
                    m->parts_bytes, m->out, m->out_bytes, m->lse, m->lse_bytes, d);
}

#define BAD_MERGE(change, ...)                                                                     \
  do {                                                                                             \
    merge_call m = good;                                                                           \
    amla_detail d;                                                                                 \
    change;                                                                                        \
    expect_refusal(#change, merge(&m, &d), INVALID, &d, WORDS(__VA_ARGS__));                       \
    assert_true(all_bytes_are(out, sizeof out, GUARD_PATTERN) &&                                   \
                all_bytes_are(lse, sizeof lse, GUARD_PATTERN));                                    \
  } while (0)

static void bad_merges_are_refused(void **state) {
  (void)state;
  float o[2 * 3 * 4], parts[2 * 3 + 12], out[3 * 4], lse[3]; /* parts has room for out */
  const size_t parts_bytes = 2 * 3 * sizeof(float);
  const merge_call good = {2,     3,           4,   AMLA_LSE_NATURAL, o,   sizeof o,
                           parts, parts_bytes, out, sizeof out,       lse, sizeof lse};
  for (int i = 0; i < LENGTH(o); i++)
    o[i] = 1.0f;
  for (int i = 0; i < LENGTH(parts); i++)
    parts[i] = 0.0f;
  memset(out, GUARD_PATTERN, sizeof out);
  memset(lse, GUARD_PATTERN, sizeof lse);
  BAD_MERGE(m.n_parts = 0, "n_parts=0", ">= 1");
  BAD_MERGE(m.n_parts = -1, "n_parts=-1", ">= 1");
  BAD_MERGE(m.n_rows = -1, "n_rows=-1", ">= 0");
  BAD_MERGE(m.d_v = 0, "d_v=0", ">= 1");
  BAD_MERGE(m.base = (amla_lse_base)2, "base=2");
  BAD_MERGE(m.n_rows = INT64_MAX, "n_rows=9223372036854775807", "overflow");
  BAD_MERGE((m.n_parts = INT32_MAX, m.n_rows = INT32_MAX, m.d_v = INT32_MAX), "n_parts=2147483647",
            "overflow");
  BAD_MERGE(m.o = NULL, "o=NULL", "must point to 96 bytes");
  BAD_MERGE(m.parts = NULL, "lse_parts=NULL", "must point to 24 bytes");
  BAD_MERGE(m.out = NULL, "out=NULL", "must point to 48 bytes");
  BAD_MERGE(m.o_bytes--, "o_bytes=95", ">= 96");
  BAD_MERGE(m.parts_bytes--, "lse_parts_bytes=23", ">= 24");
  BAD_MERGE(m.out_bytes--, "out_bytes=47", ">= 48");
  BAD_MERGE(m.lse_bytes--, "lse_bytes=11", ">= 12");
  BAD_MERGE(m.o = (const float *)(const void *)((const char *)o + 1), "o=", "aligned to 4");
  BAD_MERGE(m.out = (float *)(void *)((char *)out + 2), "out=", "aligned to 4");
  BAD_MERGE(m.out = o + 12, "out=", "must not overlap o"); /* the second part */
  BAD_MERGE(m.out = o + 1, "out=", "must not overlap o");
  BAD_MERGE(m.out = parts, "out=", "must not overlap lse_parts");
  BAD_MERGE(m.lse = parts + 3, "lse=", "must not overlap lse_parts");
  BAD_MERGE(m.lse = o + 21, "lse=", "must not overlap o");
  BAD_MERGE(m.lse = out + 9, "out=", "must not overlap lse");
  amla_detail d;
  assert_int_equal(merge(&good, &d), AMLA_OK);
  assert_string_equal(d.text, "");
  merge_call empty = {.n_parts = 1, .d_v = 1}; /* no rows: nothing to point to */
  assert_int_equal(merge(&empty, NULL), AMLA_OK);
}

/* ---- Names, versions, backends ---- */

static void backends_are_described(void **state) {
  (void)state;
  static const struct {
    amla_backend id;
    int available;
  } rows[] = {
      {AMLA_BACKEND_REF, 1}, {AMLA_BACKEND_CPU, 1}, {AMLA_BACKEND_CUDA, 0}, {AMLA_BACKEND_NPU, 0}};
  amla_detail d;
  for (int i = 0; i < LENGTH(rows); i++) {
    amla_backend_info info = AMLA_BACKEND_INFO_INIT;
    assert_int_equal(amla_backend_query(rows[i].id, &info, &d), AMLA_OK);
    assert_string_equal(info.name, amla_backend_name(rows[i].id));
    assert_int_equal(info.available, rows[i].available);
    assert_int_equal(strlen(info.reason) > 0,
                     !rows[i].available); /* a reason when it is absent, and only then */
    assert_int_equal(strlen(info.isa) > 0, rows[i].id == AMLA_BACKEND_CPU);
  }
  amla_backend_info info = AMLA_BACKEND_INFO_INIT;
  expect_refusal("auto", amla_backend_query(AMLA_BACKEND_AUTO, &info, &d), INVALID, &d,
                 WORDS("backend=0"));
  expect_refusal("unknown", amla_backend_query((amla_backend)9, &info, &d), INVALID, &d,
                 WORDS("backend=9"));
  expect_refusal("NULL", amla_backend_query(AMLA_BACKEND_CPU, NULL, &d), INVALID, &d,
                 WORDS("info"));
  info.struct_bytes = 4;
  expect_refusal("short", amla_backend_query(AMLA_BACKEND_CPU, &info, &d), INVALID, &d,
                 WORDS("info.struct_bytes=4"));
}

/* A caller that was built when the struct was longer: what we know of it is filled in, the rest
 * left alone. */
static void longer_infos_are_filled_in(void **state) {
  (void)state;
  struct {
    amla_backend_info info;
    char later[8];
  } x = {AMLA_BACKEND_INFO_INIT, "0123456"};
  x.info.struct_bytes = sizeof x;
  assert_int_equal(amla_backend_query(AMLA_BACKEND_CPU, &x.info, NULL), AMLA_OK);
  assert_string_equal(x.info.name, "cpu");
  assert_string_equal(x.later, "0123456");
  assert_int_equal(x.info.struct_bytes, sizeof x);
}

/* Every kind has a name, a different one, and the list ends. */
static void expect_names(const char *(*name)(int), int n, const char *first) {
  assert_string_equal(name(0), first);
  for (int i = 0; i < n; i++)
    for (int j = 0; j < i; j++)
      assert_string_not_equal(name(i), name(j));
  assert_null(name(n));
  assert_null(name(-1));
}

static const char *dtype_name(int i) { return amla_dtype_name((amla_dtype)i); }
static const char *isa_name(int i) { return amla_isa_name((amla_isa)i); }
static const char *p_form_name(int i) { return amla_p_form_name((amla_p_form)i); }
static const char *q_form_name(int i) { return amla_q_form_name((amla_q_form)i); }
static const char *kv_round_name(int i) { return amla_kv_round_name((amla_kv_round)i); }
static const char *rescale_name(int i) { return amla_rescale_name((amla_rescale)i); }
static const char *backend_name(int i) { return amla_backend_name((amla_backend)i); }

static void kinds_have_names(void **state) {
  (void)state;
  expect_names(dtype_name, AMLA_N_DTYPES, "f32");
  expect_names(isa_name, AMLA_N_ISAS, "auto");
  expect_names(rescale_name, AMLA_RESCALE_FLASH + 1, "default");
  expect_names(backend_name, AMLA_BACKEND_NPU + 1, "auto");
  expect_names(p_form_name, AMLA_P_BF16 + 1, "default");
  expect_names(q_form_name, AMLA_Q_BF16X3 + 1, "default");
  expect_names(kv_round_name, AMLA_KV_BF16 + 1, "exact");
  assert_string_equal(amla_dtype_name(AMLA_Q8_0), "q8_0");
  assert_string_equal(amla_dtype_name(AMLA_FP8_656), "fp8_656");
  assert_string_equal(amla_dtype_name(AMLA_FP8_584), "fp8_584");
  assert_string_equal(amla_dtype_name(AMLA_FP8_E4M3), "fp8_e4m3");
  assert_string_equal(amla_dtype_name(AMLA_Q4_0), "q4_0");
  assert_string_equal(amla_dtype_name(AMLA_IQ4_NL), "iq4_nl");
  assert_string_equal(amla_isa_name(AMLA_ISA_AVX512), "avx512");
  assert_string_equal(amla_rescale_name(AMLA_RESCALE_FLASH), "flash");
  assert_string_equal(amla_backend_name(AMLA_BACKEND_NPU), "npu");
}

static void types_have_blocks(void **state) {
  static const struct {
    amla_dtype type;
    int32_t elems, bytes;
  } blocks[] = {{AMLA_F32, 1, 4},    {AMLA_BF16, 1, 2},   {AMLA_F16, 1, 2},
                {AMLA_Q8_0, 32, 34}, {AMLA_Q4_0, 32, 18}, {AMLA_Q4_1, 32, 20},
                {AMLA_Q5_0, 32, 22}, {AMLA_Q5_1, 32, 24}, {AMLA_IQ4_NL, 32, 18}};
  int32_t bytes;
  (void)state;
  for (int i = 0; i < LENGTH(blocks); i++) {
    assert_int_equal(amla_dtype_block(blocks[i].type, &bytes), blocks[i].elems);
    assert_int_equal(bytes, blocks[i].bytes);
  }
  assert_int_equal(amla_dtype_block((amla_dtype)AMLA_N_DTYPES, &bytes), 0);
  assert_int_equal(bytes, 0);
  assert_int_equal(amla_dtype_block((amla_dtype)-1, &bytes), 0);
}

static void plans_say_what_they_chose(void **state) {
  (void)state;
  fixture f = fixture_create(paged, NULL);
  amla_detail d;
  amla_plan_info info = AMLA_PLAN_INFO_INIT;
  amla_options o = AMLA_OPTIONS_INIT;
  amla_plan *plan;
  o.isa = AMLA_ISA_C;
  o.threads = 3;
  assert_int_equal(amla_plan_create(&plan, &f.data.problem, &o, &d), AMLA_OK);
  assert_int_equal(amla_plan_query(plan, &info, &d), AMLA_OK);
  assert_int_equal(info.backend, AMLA_BACKEND_CPU);
  assert_int_equal(info.rescale, AMLA_RESCALE_LAZY);
  assert_int_equal(info.isa, AMLA_ISA_C);
  assert_int_equal(info.p_type, AMLA_F32);
  assert_int_equal(info.threads, 3);
  assert_int_equal(info.simulated, 0);
  assert_true(info.block_rows >= 1 && info.tile_tokens >= 1 &&
              info.split_tokens >= info.tile_tokens);
  assert_string_equal(info.kernel, "qk 4x8, pv 4x8");
  expect_refusal("no plan", amla_plan_query(NULL, &info, &d), INVALID, &d, WORDS("plan=NULL"));
  expect_refusal("no info", amla_plan_query(plan, NULL, &d), INVALID, &d, WORDS("info=NULL"));
  info.struct_bytes = 8;
  expect_refusal("short", amla_plan_query(plan, &info, &d), INVALID, &d,
                 WORDS("info.struct_bytes=8"));
  amla_plan_destroy(plan);
  fixture_free(&f);
}

/* A form of P that is less exact may be had, and need not. Rows of f32 have f32. */
static void forms_are_allowed_not_asked_for(void **state) {
  (void)state;
  const amla_problem p = good_problem(paged);
  static const amla_backend backends[] = {AMLA_BACKEND_REF, AMLA_BACKEND_CPU};
  for (int form = AMLA_P_DEFAULT; form <= AMLA_P_BF16; form++)
    for (int b = 0; b < LENGTH(backends); b++) {
      amla_plan_info info = AMLA_PLAN_INFO_INIT;
      amla_options o = AMLA_OPTIONS_INIT;
      amla_plan *plan;
      o.backend = backends[b];
      o.isa = AMLA_ISA_C;
      o.p_form = (amla_p_form)form;
      o.q_form = AMLA_Q_BF16X2;
      o.kv_round = AMLA_KV_BF16;
      assert_int_equal(amla_plan_create(&plan, &p, &o, NULL), AMLA_OK);
      assert_int_equal(amla_plan_query(plan, &info, NULL), AMLA_OK);
      assert_int_equal(info.p_form, AMLA_P_F32);
      assert_int_equal(info.p_type, AMLA_F32);
      assert_int_equal(info.q_form, AMLA_Q_DEFAULT);
      assert_int_equal(info.key_type, AMLA_F32);
      amla_plan_destroy(plan);
    }
}

/* What is missing has a name, and what runs misses nothing. */
static void missing_instruction_sets_say_what_is_missing(void **state) {
  (void)state;
  assert_null(amla_isa_missing(AMLA_ISA_AUTO));
  assert_null(amla_isa_missing(AMLA_ISA_C));
  assert_non_null(amla_isa_missing((amla_isa)AMLA_N_ISAS));
  for (int i = AMLA_ISA_C; i < AMLA_N_ISAS; i++) {
    const char *missing = amla_isa_missing((amla_isa)i);
    assert_int_equal(missing == NULL, amla_isa_runs((amla_isa)i));
    assert_true(missing == NULL || strlen(missing) > 0);
  }
}

static void names_and_version_are_pinned(void **state) {
  (void)state;
  char version[32];
  snprintf(version, sizeof version, "%d.%d.%d", AMLA_VERSION_MAJOR, AMLA_VERSION_MINOR,
           AMLA_VERSION_PATCH);
  assert_string_equal(amla_version(), version);
  assert_string_equal(amla_status_name(AMLA_OK), "ok");
  assert_string_equal(amla_status_name(AMLA_INVALID_ARGUMENT), "invalid argument");
  assert_string_equal(amla_status_name(AMLA_UNSUPPORTED), "unsupported");
  assert_string_equal(amla_status_name(AMLA_OUT_OF_MEMORY), "out of memory");
  assert_string_equal(amla_status_name(AMLA_BACKEND_FAILED), "backend failed");
  assert_non_null(amla_status_name((amla_status)99));
  assert_true(AMLA_OK == 0 && AMLA_INVALID_ARGUMENT == 1 && AMLA_UNSUPPORTED == 2 &&
              AMLA_OUT_OF_MEMORY == 3 && AMLA_BACKEND_FAILED == 4);
}

static void describe_behaves_as_snprintf(void **state) {
  (void)state;
  fixture f = fixture_create(paged, NULL);
  char all[256], cut[8] = "xxxxxxx";
  const int length = amla_plan_describe(f.plan, all, sizeof all);
  assert_int_equal(length, strlen(all));
  assert_null(strchr(all, '\n'));
  assert_non_null(strstr(all, "lazy"));
  assert_int_equal(amla_plan_describe(f.plan, cut, 5), length);
  assert_true(strlen(cut) == 4 && strncmp(cut, all, 4) == 0 && cut[5] == 'x');
  assert_int_equal(amla_plan_describe(f.plan, NULL, 0), length);
  assert_int_equal(amla_plan_describe(NULL, cut, sizeof cut), 0);
  assert_string_equal(cut, "");
  fixture_free(&f);
}

int main(void) {
  setenv("AMLA_BACKEND_DIR", "nowhere", 1); /* cuda and npu are absent here, whatever was built */
  unsetenv("AMLA_ISA");                     /* the caller's would change what is tested here */
  unsetenv("AMLA_NUM_THREADS");
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(bad_shapes_are_refused),
      cmocka_unit_test(bad_types_and_numbers_are_refused),
      cmocka_unit_test(bad_fp8_caches_are_refused),
      cmocka_unit_test(bad_strides_are_refused),
      cmocka_unit_test(products_beyond_64_bits_are_refused),
      cmocka_unit_test(struct_sizes_are_checked),
      cmocka_unit_test(bad_options_are_refused),
      cmocka_unit_test(bad_environment_is_refused),
      cmocka_unit_test(isas_of_other_architectures_are_refused),
      cmocka_unit_test(environment_caps_isa_and_sets_threads),
      cmocka_unit_test(null_short_and_misaligned_buffers_are_refused),
      cmocka_unit_test(half_types_are_aligned_to_2),
      cmocka_unit_test(overlapping_outputs_are_refused),
      cmocka_unit_test(bad_lengths_are_refused),
      cmocka_unit_test(used_page_ids_must_exist_and_unused_ones_need_not),
      cmocka_unit_test(older_structs_are_accepted),
      cmocka_unit_test(older_options_are_accepted),
      cmocka_unit_test(what_does_not_belong_is_refused_by_name),
      cmocka_unit_test(bad_sparse_problems_are_refused),
      cmocka_unit_test(bad_lists_are_refused),
      cmocka_unit_test(bad_indptrs_and_visible_lengths_are_refused),
      cmocka_unit_test(ragged_rows_of_out_that_overlap_are_refused),
      cmocka_unit_test(bad_sparse_buffers_are_refused),
      cmocka_unit_test(tensors_of_nothing_are_refused),
      cmocka_unit_test(dense_backends_refuse_the_rest),
      cmocka_unit_test(null_plan_struct_and_scratch_are_refused),
      cmocka_unit_test(scratch_has_room_for_alignment),
      cmocka_unit_test(no_sequences_is_no_work),
      cmocka_unit_test(no_keys_are_no_pages),
      cmocka_unit_test(defaults_may_be_left_out),
      cmocka_unit_test(packed_and_shared_strides_are_allowed),
      cmocka_unit_test(axes_of_out_may_stand_in_any_order),
      cmocka_unit_test(bad_merges_are_refused),
      cmocka_unit_test(backends_are_described),
      cmocka_unit_test(longer_infos_are_filled_in),
      cmocka_unit_test(kinds_have_names),
      cmocka_unit_test(types_have_blocks),
      cmocka_unit_test(plans_say_what_they_chose),
      cmocka_unit_test(forms_are_allowed_not_asked_for),
      cmocka_unit_test(missing_instruction_sets_say_what_is_missing),
      cmocka_unit_test(names_and_version_are_pinned),
      cmocka_unit_test(describe_behaves_as_snprintf),
  };
  return cmocka_run_group_tests_name("bad_input", tests, NULL, NULL);
}
