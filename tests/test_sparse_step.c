/* SPDX-License-Identifier: Apache-2.0
 *
 * One decode step of DeepSeek-V3.2's shape, from index keys to the output: the indexer (64 heads of
 * 128, cache index_132) chooses 2048 of 3000 tokens, their positions become slots by the block
 * table that both caches share in such a model, and 128 heads attend to them. Every part is
 * compared with fp64. Tokens that the list leaves out are NaN. Numbers are generated; those of
 * examples/deepseek_v32_sparse.safetensors are a model's.
 */
#include "test_run.h"

#include "harness/index_data.h"
#include "harness/kv_rows.h"

enum { TOKENS = 3000, TOPK = 2048 };
static const char bf16[] = "h=128,sk=3000,page=64,causal=0,seed=32";
static const char fp8[] = "h=128,sk=3000,page=64,causal=0,seed=32,kv=fp8_656";

/* The positions that the indexer lists. */
static void list_positions(int32_t positions[TOPK]) {
  harness_index_data data;
  amla_index_args shape = AMLA_INDEX_ARGS_INIT;
  amla_options options = AMLA_OPTIONS_INIT;
  amla_detail why;
  size_t scratch_bytes;
  shape.sk = TOKENS, shape.page_size = 64, shape.keys = AMLA_INDEX_KEYS_FP8_PAGE;
  shape.topk = TOPK, shape.index_kind = AMLA_INDEX_POSITION, shape.causal = 1;
  assert_true(harness_index_create(&data, &shape, 32, false));
  assert_int_equal(amla_index_scratch_bytes(&data.args, &options, &scratch_bytes, &why), AMLA_OK);
  void *scratch = malloc(scratch_bytes + 1);
  assert_non_null(scratch);
  if (amla_index_topk(&data.args, &options, scratch, scratch_bytes, &why) != AMLA_OK)
    fail_msg("index_topk: %s", why.text);
  const char *flaw = harness_index_flaw(&data, 0, 0);
  if (flaw != NULL)
    fail_msg("index_topk: %s", flaw);
  memcpy(positions, data.indices, TOPK * sizeof *positions);
  free(scratch);
  harness_index_free(&data);
}

static int32_t slot_of(const harness_dataset *d, int32_t j) {
  return d->block_table[j / 64] * 64 + j % 64;
}

/* Turns a dense problem into one of that list: everything else is NaN from then on. */
static void take_list(harness_dataset *d, const int32_t positions[TOPK]) {
  static bool listed[TOKENS];
  char *kv = d->kv;
  const amla_dtype type = d->problem.kv_type;
  const int64_t row_bytes = harness_bytes(type, harness_row_elems(type, d->problem.d_qk));
  d->indices = harness_allocate(TOPK, sizeof *d->indices);
  assert_non_null(d->indices);
  memset(listed, 0, sizeof listed);
  for (int32_t i = 0; i < TOPK; i++) {
    assert_true(positions[i] >= 0 && positions[i] < TOKENS && !listed[positions[i]]);
    listed[positions[i]] = true;
    d->indices[i] = slot_of(d, positions[i]);
  }
  for (int32_t j = 0; j < TOKENS; j++)
    if (!listed[j])
      memset(kv + harness_bytes(type, kv_token_offset(d, 0, j)), 0xff, (size_t)row_bytes);
  d->problem.topk = d->problem.indices_stride_query = d->problem.indices_stride_batch = TOPK;
  free(d->out);
  free(d->lse);
  assert_true(harness_attach(d));
}

static harness_dataset make_step(const char *problem, harness_truth *truth) {
  int32_t positions[TOPK];
  harness_dataset d;
  list_positions(positions);
  generate(&d, problem);
  take_list(&d, positions);
  compute_truth_of(&d, truth);
  return d;
}

static void expect_right(const char *problem) {
  harness_truth truth;
  harness_dataset d = make_step(problem, &truth);
  for (int e = 0; e < N_ENGINES; e++) {
    const amla_options options = engine_options(e, AMLA_RESCALE_LAZY, 2, 0);
    if (!engine_runs_here(e))
      continue;
    run(&d, "the step", &options);
    expect_within_bound(&d, &truth, "the step", &options);
  }
  harness_truth_free(&truth);
  harness_free(&d);
}

static void the_step_is_within_the_bound(void **state) {
  (void)state;
  expect_right(bf16);
  expect_right(fp8);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(the_step_is_within_the_bound)};
  return cmocka_run_group_tests_name("sparse_step", tests, NULL, NULL);
}
