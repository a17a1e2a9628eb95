/* SPDX-License-Identifier: Apache-2.0
 *
 * The CUDA backend against fp64, and its properties: every kernel and mode it has, over page sizes,
 * lengths, heads, queries and types. Runs on a GPU, or on the emulation (tests/cuda_emulator.hpp),
 * which executes the same kernel sources thread by thread; skipped where neither is there.
 * AMLA_LONG=1, or a GPU: 1,000 random problem strings instead of a sample.
 */
#include <fnmatch.h>

#include "cuda_run.h"
#include "harness/random_problem.h"

static const amla_rescale modes[] = {AMLA_RESCALE_LAZY, AMLA_RESCALE_FLASH};
static const int split_options[] = {AMLA_SPLIT_BY_LENGTH, AMLA_SPLIT_AUTO, 64, 200};

static bool many(void) { return long_run() || !tools->emulated; }

/* Each choice of every factor at least once, per kernel; the shapes that the kernels' cuts make
 * special. */
static const char *const problems[] = {
    "b=1,sq=1,h=16,sk=64,q=bf16,kv=bf16",
    "b=3,sq=1,h=16,sk=200,page=64,q=bf16,kv=bf16,out=bf16,len=ragged",
    "b=2,sq=2,h=40,sk=129,page=16,q=f16,kv=f16,out=f16,lse=2,dist=rising",
    "b=2,sq=16,h=5,sk=100,page=32,q=bf16,kv=bf16,len=100/7,dist=masked",
    "b=2,sq=3,h=33,sk=190,page=128,q=bf16,kv=bf16,sinks=1,dist=outlier,len=uniform",
    "b=2,sq=1,h=128,sk=70,page=1,q=f16,kv=f16,dist=peaked:3",
    "b=2,sq=2,h=9,sk=170,page=0,q=bf16,kv=bf16,dist=zerov,causal=0",
    "b=1,sq=1,h=7,sk=300,page=48,q=bf16,kv=bf16,pad=3,dist=onehot",
    "b=2,sq=4,h=20,sk=131,page=0,dqk=512,q=f16,kv=f16,pad=8,len=131/0",
    "b=2,sq=1,h=64,sk=150,page=64,dqk=512,q=bf16,kv=bf16,out=bf16,scale=-0.2",
    "b=1,sq=1,h=1,sk=1,page=16,q=bf16,kv=bf16",
    "b=5,sq=1,h=3,sk=400,page=64,q=bf16,kv=bf16,dist=rising:1000,len=400/0/65/1/64",
};

static void shapes_are_within_the_bound(void **state) {
  (void)state;
  for (int k = 0; k < LENGTH(kernels); k++)
    for (int i = 0; i < LENGTH(problems); i++) {
      const amla_options options =
          cuda_options(modes[(i + k) % 2], split_options[(i + 2 * k) % LENGTH(split_options)]);
      check_on_device(problems[i], &options, kernels[k]);
    }
}

static void random_problems_are_within_the_bound(void **state) {
  static const char *const types[] = {"bf16", "f16"}, *const outs[] = {"f32", "bf16", "f16"},
                           *const lens[] = {"fixed", "uniform", "ragged"};
  static const char *const dists[] = {"normal:1",    "normal:0.01", "uniform:2", "rising",
                                      "rising:1000", "outlier",     "onehot",    "peaked",
                                      "zerov",       "masked"};
  static const int pages[] = {0, 1, 7, 16, 32, 48, 64, 128, 192};
  (void)state;
  const int some = TEST_SLOW ? 6 : 30;
  const int count = many() ? 1000 : some;
  const int most = many() ? 3000 : 260;
  uint64_t seed = 4242;
  for (int i = 0; i < count; i++) {
    char problem[512];
    const char *type = types[random_below(&seed, 2)];
    const int rows_most = many() ? 128 : 70, sq = harness_random_size(&seed, 16);
    const int h = harness_random_size(&seed, rows_most / sq > 0 ? rows_most / sq : 1);
    const int d_qk = random_below(&seed, 3) ? 576 : 512;
    const char *base = random_below(&seed, 2) ? "e" : "2";
    const int padded = random_below(&seed, 3) == 0;
    snprintf(problem, sizeof problem,
             "b=%d,sq=%d,h=%d,sk=%d,dqk=%d,page=%d,q=%s,kv=%s,out=%s,causal=%d,lse=%s,sinks=%d,pad="
             "%d,dist=%s,len=%s,seed=%d",
             1 + random_below(&seed, 3), sq, h, harness_random_size(&seed, most), d_qk,
             pages[random_below(&seed, LENGTH(pages))], type, type, outs[random_below(&seed, 3)],
             random_below(&seed, 2), base, random_below(&seed, 4) == 0,
             padded * (8 * random_below(&seed, 2) + random_below(&seed, 4)),
             dists[random_below(&seed, LENGTH(dists))], lens[random_below(&seed, 3)],
             random_below(&seed, 1000));
    const amla_options options = cuda_options(
        modes[random_below(&seed, 2)], split_options[random_below(&seed, LENGTH(split_options))]);
    check_on_device(problem, &options, kernels[random_below(&seed, LENGTH(kernels))]);
  }
}

/* Of the plan that is made when that name is the cap; on a GPU it may have less. */
static void check_kernel_of(const char *problem, const char *cap, const char *wanted) {
  harness_dataset data;
  amla_detail detail;
  amla_plan *plan;
  amla_plan_info info = AMLA_PLAN_INFO_INIT;
  const amla_options options = cuda_options(AMLA_RESCALE_LAZY, 0);
  if (!tools->emulated)
    return;
  generate(&data, problem);
  data.problem.memory = AMLA_MEMORY_DEVICE;
  setenv("AMLA_CUDA_KERNEL", cap, 1);
  assert_int_equal(amla_plan_create(&plan, &data.problem, &options, &detail), AMLA_OK);
  assert_int_equal(amla_plan_query(plan, &info, &detail), AMLA_OK);
  assert_string_equal(info.kernel, wanted);
  amla_plan_destroy(plan);
  harness_free(&data);
}

/* ---- Properties ---- */

/* The bits of a sequence are the same alone, in company, and twice. */
static void company_does_not_change_bits(void **state) {
  (void)state;
  for (int k = 0; k < LENGTH(kernels); k++) {
    const amla_options options = cuda_options(AMLA_RESCALE_LAZY, 64);
    harness_dataset data, alone;
    const char *problem = "b=4,sq=2,h=36,sk=333,len=333/129/0/200,out=f32,q=bf16,kv=bf16";
    generate(&data, problem);
    generate(&alone, problem);
    run_on_device(&data, problem, &options, kernels[k]);
    for (int s = 0; s < 4; s++) { /* sequence s only: the others have no keys */
      for (int other = 0; other < 4; other++)
        alone.seqlens_k[other] = other == s ? data.seqlens_k[s] : 0;
      run_on_device(&alone, problem, &options, kernels[k]);
      for (int64_t row = s * 72; row < (s + 1) * 72; row++)
        if (!same_row(&data, row, &alone, row))
          fail_msg("%s: row %lld has other bits alone", kernels[k], (long long)row);
    }
    harness_free(&data);
    harness_free(&alone);
  }
}

/* O is divided by the sum of the weights as the matrix unit saw them: a column that is 1 in every
 * key comes back as 1, not as 1 within the rounding of P. */
static void equal_values_come_back_exactly(void **state) {
  (void)state;
  for (int k = 0; k < LENGTH(kernels); k++)
    for (int split = 0; split < 2; split++) {
      const amla_options options = cuda_options(AMLA_RESCALE_LAZY, split ? 64 : 0);
      harness_dataset data;
      const char *problem = "b=2,sq=2,h=10,sk=150,page=16,q=bf16,kv=bf16,dist=peaked:3";
      generate(&data, problem);
      for (int32_t s = 0; s < 2; s++)
        for (int64_t j = 0; j < 150; j++)
          harness_store(data.kv, AMLA_BF16, kv_token_offset(&data, s, j) + 300, 1.0f);
      run_on_device(&data, problem, &options, kernels[k]);
      for (int64_t row = 0; row < n_rows(&data); row++)
        if (!(fabsf(out_at(&data, row, 300) - 1.0f) < 1e-5f))
          fail_msg("%s: row %lld has %.9g where every key has 1", kernels[k], (long long)row,
                   (double)out_at(&data, row, 300));
      harness_free(&data);
    }
}

/* Where the pages lie does not matter. */
static void pages_may_lie_anywhere(void **state) {
  (void)state;
  for (int k = 0; k < LENGTH(kernels); k++) {
    const amla_options options = cuda_options(AMLA_RESCALE_LAZY, 0);
    harness_dataset data, moved;
    const char *problem = "b=1,h=20,sk=150,page=16,q=bf16,kv=bf16";
    generate(&data, problem);
    generate(&moved, problem);
    const int64_t page_elems =
        moved.problem.kv_stride_page ? moved.problem.kv_stride_page : 16 * 576;
    uint16_t *kv = moved.kv;
    uint16_t *swap = malloc((size_t)page_elems * 2);
    const int32_t a = moved.block_table[0], b = moved.block_table[5];
    memcpy(swap, kv + a * page_elems, (size_t)page_elems * 2);
    memcpy(kv + a * page_elems, kv + b * page_elems, (size_t)page_elems * 2);
    memcpy(kv + b * page_elems, swap, (size_t)page_elems * 2);
    free(swap);
    moved.block_table[0] = b;
    moved.block_table[5] = a;
    run_on_device(&data, problem, &options, kernels[k]);
    run_on_device(&moved, problem, &options, kernels[k]);
    assert_memory_equal(data.out, moved.out, data.tensors.out_bytes);
    harness_free(&data);
    harness_free(&moved);
  }
}

/* A key that is not finite reaches every row that sees it, and no other sequence. */
static void nan_stays_in_its_sequence(void **state) {
  (void)state;
  for (int k = 0; k < LENGTH(kernels); k++)
    for (int inf = 0; inf < 2; inf++) {
      const amla_options options = cuda_options(AMLA_RESCALE_LAZY, 64);
      harness_dataset data;
      const char *problem = "b=3,sq=2,h=10,sk=100,page=32,q=bf16,kv=bf16";
      generate(&data, problem);
      /* -inf, NaN; in the part that is key only. */
      ((uint16_t *)data.kv)[kv_token_offset(&data, 1, 70) + 540] = inf ? 0xff80 : 0x7fc0;
      ((uint16_t *)data.q)[q_row_offset(&data.problem, 3) + 5] = 0x7fc0;
      run_on_device(&data, problem, &options, kernels[k]);
      for (int64_t row = 0; row < 60; row++) {
        const bool poisoned = row / 20 == 1 || row == 3;
        if (row_is_finite(&data, row) == poisoned ||
            (poisoned && (isfinite(out_at(&data, row, 0)) || isfinite(lse_at(&data, row)))))
          fail_msg("%s: row %lld is %s", kernels[k], (long long)row,
                   poisoned ? "finite, in part at least" : "not finite");
      }
      harness_free(&data);
    }
}

static const char *enqueue_job(void *argument, void *stream) {
  static amla_detail detail;
  const device_job *job = argument;
  job->tensors->stream = stream;
  const amla_status status = run_job(job, &detail);
  job->tensors->stream = NULL;
  return status == AMLA_OK ? NULL : detail.text;
}

/* The first launch finds neither keys nor pages, the second one those of the data. */
static const char *change_lengths_and_table(void *argument, int32_t i) {
  const device_job *job = argument;
  const amla_tensors *t = &job->data->tensors;
  void *nothing = calloc(1, t->seqlens_k_bytes), *no_pages = malloc(t->block_table_bytes);
  memset(no_pages, 0xff, t->block_table_bytes);
  const char *why = tools->upload((void *)(uintptr_t)job->tensors->seqlens_k,
                                  i == 0 ? nothing : t->seqlens_k, t->seqlens_k_bytes);
  if (!why)
    why = tools->upload((void *)(uintptr_t)job->tensors->block_table,
                        i == 0 ? no_pages : t->block_table, t->block_table_bytes);
  free(nothing);
  free(no_pages);
  return why;
}

static amla_status run_job_captured(const device_job *job, amla_detail *detail) {
  const char *why = tools->replay(2, enqueue_job, change_lengths_and_table, (void *)(uintptr_t)job);
  snprintf(detail->text, sizeof detail->text, "%s", why ? why : "");
  return why ? AMLA_BACKEND_FAILED : AMLA_OK;
}

/* A captured graph stays valid when lengths and tables change: bits are those of a plain run. And a
 * capture meets nothing but the run's own work: no kernel is prepared in it. */
static void captured_runs_follow_lengths_and_tables(void **state) {
  (void)state;
  const char *problem = "b=3,sq=2,h=20,sk=300,page=64,q=f16,kv=f16,len=300/65/0";
  for (int k = 0; k < LENGTH(kernels); k++) {
    const amla_options options = cuda_options(AMLA_RESCALE_LAZY, 64);
    harness_dataset data, plain;
    amla_detail detail;
    uint32_t word;
    generate(&data, problem);
    generate(&plain, problem);
    run_on_device(&plain, problem, &options, kernels[k]);
    const amla_status status =
        device_run_by(run_job_captured, &data, &options, kernels[k], &word, &detail);
    if (status != AMLA_OK)
      fail_msg("%s: %s", kernels[k], detail.text);
    assert_int_equal(word, 0);
    assert_memory_equal(data.out, plain.out, data.tensors.out_bytes);
    assert_memory_equal(data.lse, plain.lse, data.tensors.lse_bytes);
    harness_free(&data);
    harness_free(&plain);
  }
}

/* What only the device can see: a page id outside the cache gives NaN and a mark, a length outside
 * [0, sk] is clamped and marked. Unused entries may be anything (every generated problem has that).
 */
static void bad_pages_and_lengths_are_marked(void **state) {
  (void)state;
  static const int32_t ids[] = {-1, INT32_MIN, INT32_MAX};
  for (int k = 0; k < LENGTH(kernels); k++)
    for (int i = 0; i < LENGTH(ids) + 1; i++) {
      const amla_options options = cuda_options(AMLA_RESCALE_LAZY, i % 2 ? 64 : 0);
      harness_dataset data, right;
      uint32_t word;
      const char *problem = "b=2,h=6,sk=100,page=32,q=bf16,kv=bf16";
      generate(&data, problem);
      generate(&right, problem);
      /* Sequence 0, tokens 32..63. */
      data.block_table[1] = i < LENGTH(ids) ? ids[i] : (int32_t)data.problem.n_pages;
      data.seqlens_k[1] = i % 2 ? -5 : 101;
      right.seqlens_k[1] = i % 2 ? 0 : 100;
      assert_int_equal(device_run(&data, &options, kernels[k], &word, NULL), AMLA_OK);
      assert_int_equal(word, AMLA_CUDA_STATUS_PAGE | AMLA_CUDA_STATUS_LENGTH);
      run_on_device(&right, problem, &options, kernels[k]);
      for (int64_t row = 0; row < 6; row++)
        assert_true(isnan(out_at(&data, row, 0)) && isnan(out_at(&data, row, 511)) &&
                    isnan(lse_at(&data, row)));
      for (int64_t row = 6; row < 12; row++)
        assert_true(same_row(&data, row, &right, row));
      harness_free(&data);
      harness_free(&right);
    }
}

/* More tiles than stages, many times: warpgroups get ahead of each other in the emulation's random
 * order, and nobody may overwrite what another has still to read. */
static void stages_are_used_again(void **state) {
  (void)state;
  const amla_options options = cuda_options(AMLA_RESCALE_LAZY, 0);
  for (int k = 2; k < LENGTH(kernels); k++)
    for (int i = 0; i < (TEST_SANITIZED ? 4 : 12); i++) {
      check_on_device("b=1,h=3,sk=330,page=64,q=bf16,kv=bf16", &options, kernels[k]);
      check_on_device("b=1,h=3,sk=330,page=64,q=bf16,kv=bf16,dist=rising:1000", &options,
                      kernels[k]);
      check_on_device("b=2,sq=2,h=3,sk=400,page=32,dqk=512,q=f16,kv=f16", &options, kernels[k]);
    }
}

/* A large problem for its size: more slots than fit, so that partial results wait for places. */
static void slots_are_used_again(void **state) {
  (void)state;
  for (int k = TEST_SLOW ? 2 : 0; k < LENGTH(kernels); k++) {
    const amla_options options = cuda_options(AMLA_RESCALE_LAZY, 64);
    check_on_device(
        "b=12,h=4,sk=330,page=64,len=330/65/200/64/0/330/1/129/330/70/90/330,q=bf16,kv=bf16",
        &options, kernels[k]);
    /* More sequences than lanes that look for them. */
    check_on_device("b=70,h=2,sk=130,dqk=512,len=uniform,q=bf16,kv=bf16", &options, kernels[k]);
  }
}

/* Two row blocks of a split to a cluster: against fp64, and no bit of a sequence depends on its
 * company. An odd number of row blocks is wgmma3's. */
static void clusters_share_keys(void **state) {
  (void)state;
  static const char *const shapes[] = {
      "b=2,h=128,sk=330,page=64,q=bf16,kv=bf16,out=bf16,len=330/70",
      "b=3,sq=3,h=33,sk=200,page=16,q=f16,kv=f16,len=200/0/65,dist=rising:1000",
      "b=1,sq=2,h=128,sk=260,page=0,dqk=512,q=bf16,kv=bf16,dist=outlier",
      "b=5,h=70,sk=150,page=32,q=bf16,kv=bf16,len=ragged"};
  for (int i = 0; i < LENGTH(shapes); i++)
    for (int split = 0; split < LENGTH(split_options); split++) {
      const amla_options options = cuda_options(modes[(i + split) % 2], split_options[split]);
      check_on_device(shapes[i], &options, "wgmma3c");
    }
  check_kernel_of("b=1,h=128,sk=70,q=bf16,kv=bf16", "wgmma3c", "wgmma3c");
  check_kernel_of("b=1,h=64,sk=70,q=bf16,kv=bf16", "wgmma3c", "wgmma3");
}

/* At most 16 rows, as the N of the products; more are wgmma3's. */
static void few_rows_are_within_the_bound(void **state) {
  (void)state;
  static const char *const shapes[] = {
      "b=3,h=16,sk=330,page=64,q=bf16,kv=bf16,out=bf16,len=330/70/0",
      "b=2,sq=3,h=5,sk=200,page=16,q=f16,kv=f16,out=f16,len=200/65,dist=rising:1000",
      "b=1,sq=2,h=8,sk=260,page=0,dqk=512,q=bf16,kv=bf16,dist=outlier",
      "b=2,h=1,sk=150,page=32,q=bf16,kv=bf16,sinks=1,len=ragged",
      "b=2,sq=4,h=4,sk=130,page=64,q=bf16,kv=bf16,dist=masked,len=130/3"};
  for (int i = 0; i < LENGTH(shapes); i++)
    for (int split = 0; split < LENGTH(split_options); split++) {
      const amla_options options = cuda_options(modes[(i + split) % 2], split_options[split]);
      check_on_device(shapes[i], &options, "wgmma16");
    }
  check_kernel_of("b=1,h=16,sk=70,q=bf16,kv=bf16", "wgmma16", "wgmma16");
  check_kernel_of("b=1,h=17,sk=70,q=bf16,kv=bf16", "wgmma16", "wgmma3");
}

/* A cache that the driver has no map for is computed by mma64, to its bits, with the plan's cuts.
 * The first test, so that no other one has prepared mma64. */
static void a_cache_without_a_map_takes_mma64(void **state) {
  (void)state;
  const char *problem = "b=3,sq=2,h=20,sk=210,page=64,q=bf16,kv=bf16,len=210/64/0";
  for (int k = 2; k < LENGTH(kernels) && tools->emulated; k++)
    for (int split = 0; split < 2; split++) {
      const amla_options options = cuda_options(AMLA_RESCALE_LAZY, split ? 64 : 0);
      harness_dataset data, by_mma64;
      generate(&data, problem);
      generate(&by_mma64, problem);
      setenv("AMLA_EMULATED_FAULT", "map:210", 1);
      run_on_device(&data, problem, &options, kernels[k]);
      unsetenv("AMLA_EMULATED_FAULT");
      run_on_device(&by_mma64, problem, &options, "mma64");
      assert_memory_equal(data.out, by_mma64.out, data.tensors.out_bytes);
      run_on_device(&data, problem, &options, kernels[k]);
      assert_memory_not_equal(data.out, by_mma64.out, data.tensors.out_bytes);
      harness_free(&data);
      harness_free(&by_mma64);
    }
}

/* ---- Refusals ---- */

static void expect_refusal(const char *problem, const amla_options *options, amla_status status,
                           const char *words) {
  harness_dataset data;
  amla_detail detail = {""};
  generate(&data, problem);
  const amla_status got = device_run(&data, options, "wgmma3", NULL, &detail);
  if (got != status || strstr(detail.text, words) == NULL)
    fail_msg("'%s': %s: '%s', not '%s'", problem, amla_status_name(got), detail.text, words);
  assert_true(all_bytes_are(data.out, data.tensors.out_bytes, GUARD_PATTERN));
  harness_free(&data);
}

static void what_it_has_not_is_refused_by_name(void **state) {
  (void)state;
  const amla_options lazy = cuda_options(AMLA_RESCALE_LAZY, 0),
                     amla = cuda_options(AMLA_RESCALE_AMLA, 0);
  expect_refusal("h=4,sk=10,q=f32,kv=f32", &lazy, AMLA_UNSUPPORTED,
                 "kv_type=f32: cuda has bf16 and f16");
  expect_refusal("h=4,sk=10,q=bf16,kv=q8_0", &lazy, AMLA_UNSUPPORTED,
                 "kv_type=q8_0: cuda has bf16 and f16");
  expect_refusal("h=4,sk=10,q=f16,kv=bf16", &lazy, AMLA_UNSUPPORTED,
                 "q_type=f16: cuda needs that of kv, bf16");
  expect_refusal("h=4,sk=10,q=bf16,kv=bf16,dqk=192,dv=128", &lazy, AMLA_UNSUPPORTED,
                 "d_qk=192, d_v=128: cuda has 576/512 and 512/512");
  expect_refusal("h=4,sk=10,q=bf16,kv=bf16,mask=1", &lazy, AMLA_UNSUPPORTED, "mask=");
  expect_refusal("h=4,sk=10,q=bf16,kv=bf16", &amla, AMLA_UNSUPPORTED,
                 "rescale=amla: cuda has lazy and flash");
}

/* The environment's name is a cap: each emulated kernel is what ran, and a wrong name is no wish.
 */
static void kernels_are_chosen_by_name(void **state) {
  (void)state;
  static const char *const wrong[] = {"wgmma", "wgmma4", "MMA64", " mma64"};
  const amla_options options = cuda_options(AMLA_RESCALE_LAZY, 0);
  harness_dataset data;
  amla_detail detail;
  char words[128], text[256];
  generate(&data, "h=4,sk=10,q=bf16,kv=bf16");
  amla_problem problem = data.problem;
  problem.memory = AMLA_MEMORY_DEVICE;
  for (int k = 0; k < LENGTH(wrong); k++) {
    snprintf(words, sizeof words,
             "AMLA_CUDA_KERNEL=%s: must be mma32, mma64, wgmma2, wgmma3, "
             "wgmma3c or wgmma16",
             wrong[k]);
    assert_int_equal(device_run(&data, &options, wrong[k], NULL, &detail), AMLA_INVALID_ARGUMENT);
    assert_string_equal(detail.text, words);
  }
  for (int k = 0; k <= LENGTH(kernels) && tools->emulated; k++) { /* the last: the default */
    amla_plan *plan;
    setenv("AMLA_CUDA_KERNEL", k < LENGTH(kernels) ? kernels[k] : "", 1);
    assert_int_equal(amla_plan_create(&plan, &problem, &options, &detail), AMLA_OK);
    amla_plan_describe(plan, text, sizeof text);
    snprintf(words, sizeof words, "cuda %s ", k < LENGTH(kernels) ? kernels[k] : "wgmma3");
    if (strncmp(text, words, strlen(words)) != 0)
      fail_msg("'%s', not '%s'", text, words);
    amla_plan_destroy(plan);
  }
  harness_free(&data);
}

static void host_memory_is_refused(void **state) {
  (void)state;
  harness_dataset data;
  amla_detail detail;
  const amla_options options = cuda_options(AMLA_RESCALE_LAZY, 0);
  generate(&data, "h=4,sk=10,q=bf16,kv=bf16");
  assert_int_equal(try_run(&data, &options, &detail), AMLA_INVALID_ARGUMENT);
  assert_string_equal(detail.text, "memory=host: backend=cuda needs device memory");
  harness_free(&data);
}

/* test_cuda_decode [PATTERN]: only the tests whose name matches, as "nan_*". */
int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_cache_without_a_map_takes_mma64),
      cmocka_unit_test(shapes_are_within_the_bound),
      cmocka_unit_test(company_does_not_change_bits),
      cmocka_unit_test(equal_values_come_back_exactly),
      cmocka_unit_test(pages_may_lie_anywhere),
      cmocka_unit_test(nan_stays_in_its_sequence),
      cmocka_unit_test(bad_pages_and_lengths_are_marked),
      cmocka_unit_test(captured_runs_follow_lengths_and_tables),
      cmocka_unit_test(stages_are_used_again),
      cmocka_unit_test(slots_are_used_again),
      cmocka_unit_test(clusters_share_keys),
      cmocka_unit_test(few_rows_are_within_the_bound),
      cmocka_unit_test(what_it_has_not_is_refused_by_name),
      cmocka_unit_test(kernels_are_chosen_by_name),
      cmocka_unit_test(host_memory_is_refused),
      cmocka_unit_test(
          random_problems_are_within_the_bound)}; /* last: if the time ends, it is theirs */
  if (!find_backend())
    return 77; /* CTest: skipped; where the emulation is meant, a failure */
  if (argc > 1) {
    int i = 0;
    while (i < LENGTH(tests) && fnmatch(argv[1], tests[i].name, 0) != 0)
      i++;
    if (i == LENGTH(tests))
      return fprintf(stderr, "%s: no test has such a name\n", argv[1]), 2;
    cmocka_set_test_filter(argv[1]);
  }
  return cmocka_run_group_tests(tests, NULL, NULL);
}
