/* SPDX-License-Identifier: Apache-2.0
 *
 * One decode step of DeepSeek-V3.2's shape, from index keys to the output: the indexer (64 heads of
 * 128, cache index_132) chooses 2048 of 3000 tokens, their positions become slots by the block
 * table that both caches share in such a model, and 128 heads attend to them. Numbers are
 * generated, not captured from a model. Every part is compared with fp64. Tokens that the list
 * leaves out are NaN.
 *
 *     test_sparse_step [FILE]     FILE: where to write the step in bf16, with references in fp64
 */
#include "test_run.h"

#include <unistd.h>

#include "harness/index_data.h"
#include "harness/kv_rows.h"
#include "harness/safetensors.h"

enum { TOKENS = 3000, TOPK = 2048 };
static const char bf16[] = "h=128,sk=3000,page=64,causal=0,seed=32";
static const char fp8[] = "h=128,sk=3000,page=64,causal=0,seed=32,kv=fp8_656";
static const char *path; /* of the file; NULL: none is asked for */

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

/* What the file says is what was computed, and its references follow from its inputs. */
static void the_step_survives_a_file(void **state) {
  (void)state;
  char name[512], error[512] = "";
  harness_truth truth;
  harness_dataset d = make_step(bf16, &truth), read;
  const char *folder = getenv("TMPDIR");
  const amla_options options = make_options(AMLA_BACKEND_CPU, AMLA_RESCALE_LAZY, 0, 2, 0);
  snprintf(name, sizeof name, "%s/amla_step_%d.safetensors", folder ? folder : "/tmp",
           (int)getpid());
  assert_int_equal(harness_set_refs(&d, &truth), 0);
  harness_truth_free(&truth);
  const char *const at = path ? path : name;
  if (harness_write_problem(at, &d, error, sizeof error) != 0 ||
      harness_read_problem(at, &read, error, sizeof error) != 0)
    fail_msg("%s", error);
  remove(name);
  run(&d, "the step", &options);
  run(&read, "its file", &options);
  for (int64_t row = 0; row < n_rows(&d); row++)
    assert_true(same_row(&d, row, &read, row));
  compute_truth_of(&read, &truth);
  assert_true(harness_check_refs(&read, &truth).ok && harness_compare_ref(&read, &truth).ok);
  harness_truth_free(&truth);
  harness_free(&read);
  harness_free(&d);
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(the_step_is_within_the_bound),
                                     cmocka_unit_test(the_step_survives_a_file)};
  path = argc > 1 ? argv[1] : NULL;
  return cmocka_run_group_tests_name("sparse_step", tests, NULL, NULL);
}
