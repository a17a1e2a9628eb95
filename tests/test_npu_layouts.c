/* SPDX-License-Identifier: Apache-2.0
 *
 * What production caches look like, on the Ascend kernel: pages in NZ order, latent and rope in two
 * tensors, both; bit by bit the packed cache's result, as is that of S and P that stay in the core
 * of a 950. f16 against fp64 within the bound of a P of
 * f16, lists of tokens as pages of one token, and three and four queries (two row blocks). Every
 * launch is free of races, deadlocks, leftover flags and reads of what nobody wrote.
 */
#include "test_npu.h"

static const struct {
  ascend_layout layout;
  const char *name;
} layouts[] = {{{1, 0, 0}, "nz"}, {{0, 64, 0}, "rope apart"}, {{1, 64, 0}, "nz, rope apart"}};

static ascend_launch launch_of(const harness_dataset *data, int mode, int schedule,
                               ascend_layout layout) {
  ascend_launch l = make_launch(data, mode, schedule);
  l.layout = layout;
  return l;
}

static void check_layouts(const char *problem, int mode, int schedule) {
  harness_dataset data;
  generate(&data, problem);
  ascend_launch packed = make_launch(&data, mode, schedule);
  npu_report r = launch_on(&data, problem, &packed, 2);
  expect_clean(&r, problem, &packed);
  const size_t bytes = data.tensors.out_bytes;
  void *want = malloc(bytes);
  assert_non_null(want);
  memcpy(want, data.out, bytes);
  for (int i = 0; i < LENGTH(layouts); i++) {
    ascend_launch l = launch_of(&data, mode, schedule, layouts[i].layout);
    r = launch_on(&data, problem, &l, 2);
    expect_clean(&r, problem, &l);
    if (memcmp(data.out, want, bytes) != 0)
      fail_msg("'%s' %s %s: other bits", problem, describe_launch(&l), layouts[i].name);
  }
  free(want);
  harness_free(&data);
}

static void layouts_change_no_bit(void **state) {
  (void)state;
  check_layouts("b=2,sq=2,h=20,sk=700,len=700/77,page=48", ASCEND_LAZY, BEST);
  check_layouts("b=2,sq=2,h=70,sk=600,len=600/513,page=16", ASCEND_AMLA, PRELOAD);
  check_layouts("b=2,h=16,sk=530,page=0", ASCEND_FLASH, SERIAL);
  check_layouts("b=2,h=16,sk=300,page=1,pad=16", ASCEND_LAZY, PRELOAD);
}

/* S and P that never leave the core of a 950 have the bits of those that go through memory. */
static void check_in_core(const char *problem, ascend_layout layout, int32_t split_tiles) {
  harness_dataset data;
  generate(&data, problem);
  const size_t bytes = data.tensors.out_bytes;
  void *want = malloc(bytes);
  assert_non_null(want);
  const int32_t f16 = data.problem.kv_type == AMLA_F16;
  for (int mode = 0; mode < PROGRAMS; mode++)
    for (int schedule = PRELOAD; schedule <= IN_CORE; schedule += IN_CORE - PRELOAD) {
      if (f16 && (mode == ASCEND_AMLA || mode == UNGUARDED_AMLA))
        continue;
      ascend_launch l = launch_of(&data, mode, schedule, layout);
      l.split_tiles = split_tiles;
      const npu_report r = launch_on(&data, problem, &l, 2);
      expect_clean(&r, problem, &l);
      if (schedule == PRELOAD)
        memcpy(want, data.out, bytes);
      if (memcmp(data.out, want, bytes) != 0)
        fail_msg("'%s' %s: other bits", problem, describe_launch(&l));
    }
  free(want);
  harness_free(&data);
}

static void a_core_of_its_own_changes_no_bit(void **state) {
  (void)state;
  const ascend_layout packed = {0, 0, 0}, production = {1, 64, 0};
  check_in_core("b=2,sq=2,h=128,sk=1300,len=1300/613,page=64,sinks=1", packed, 8);
  check_in_core("b=2,h=20,sk=1900,len=1900/77,page=48", production, 1);
  check_in_core("b=2,sq=3,h=5,sk=600,len=600/3,page=16", packed, 8); /* one AIV has 8 rows */
  check_in_core("h=4,sk=530,dist=rising", packed, 8);                /* one has none */
  check_in_core("h=16,sk=900,q=f16,kv=f16", production, 8);
}

static void check_f16(const char *problem, int mode, int schedule) {
  harness_dataset data;
  harness_truth truth;
  generate(&data, problem);
  compute_truth_of(&data, &truth);
  ascend_launch l = make_launch(&data, mode, schedule);
  const npu_report r = launch_on(&data, problem, &l, 2);
  expect_clean(&r, problem, &l);
  const harness_error e = harness_compare_rounded_p(&data, &truth, AMLA_F16);
  if (!e.ok)
    fail_msg("'%s' %s: row %lld is %.3g times its bound away", problem, describe_launch(&l),
             (long long)e.worst_row, e.worst_of_bound);
  harness_truth_free(&truth);
  harness_free(&data);
}

static void f16_is_within_its_bound(void **state) {
  (void)state;
  for (int schedule = 0; schedule < SCHEDULES; schedule++)
    check_f16("b=2,sq=2,h=20,sk=700,len=700/77,page=48,q=f16,kv=f16", ASCEND_LAZY, schedule);
  check_f16("h=16,sk=1500,dist=rising,q=f16,kv=f16", ASCEND_LAZY, BEST);
  check_f16("h=16,sk=600,q=f16,kv=f16,sinks=1", ASCEND_FLASH, PRELOAD);
}

/* Small integers: exact in int8, with a power of two per token. */
static void make_small(harness_dataset *d) {
  uint64_t seed = 5;
  for (int32_t s = 0; s < d->problem.b; s++)
    for (int64_t j = 0; j < d->seqlens_k[s]; j++) {
      const float scale = ldexpf(1, (int)random_below(&seed, 4) - 7);
      for (int32_t i = 0; i < d->problem.d_qk; i++)
        harness_store(d->kv, AMLA_F16, kv_token_offset(d, s, j) + i,
                      scale * (float)((int)random_below(&seed, 255) - 127));
    }
}

static void check_int8(const char *problem, int mode, int schedule) {
  harness_dataset data;
  harness_truth truth;
  generate(&data, problem);
  make_small(&data);
  compute_truth_of(&data, &truth);
  ascend_launch l = launch_of(&data, mode, schedule, (ascend_layout){0, 0, 1});
  if (schedule == BEST)
    l.tiling = ascend_tiling_best(ascend_block_rows(&data.problem), 1);
  const npu_report r = launch_on(&data, problem, &l, 2);
  expect_clean(&r, problem, &l);
  const harness_error e = harness_compare_rounded_p(&data, &truth, AMLA_F16);
  if (!e.ok)
    fail_msg("int8 '%s' %s: row %lld is %.3g times its bound away", problem, describe_launch(&l),
             (long long)e.worst_row, e.worst_of_bound);
  harness_truth_free(&truth);
  harness_free(&data);
}

static void int8_is_converted_on_the_vector_cores(void **state) {
  (void)state;
  for (int schedule = 0; schedule < SCHEDULES; schedule++) {
    check_int8("h=16,sk=1300,q=f16,kv=f16,page=64", ASCEND_LAZY, schedule); /* best: Q is kept */
    check_int8("b=2,sq=2,h=20,sk=2700,len=2700/77,page=48,q=f16,kv=f16", ASCEND_LAZY, schedule);
    check_int8("h=16,sk=2600,sq=2,q=f16,kv=f16,page=128", ASCEND_FLASH, schedule);
  }
}

static void check_shape(const char *problem) {
  harness_dataset data;
  harness_truth truth;
  generate(&data, problem);
  compute_truth_of(&data, &truth);
  for (int mode = 0; mode < MODES; mode++) {
    ascend_launch l = launch_of(&data, mode, BEST, (ascend_layout){1, 64, 0});
    const npu_report r = launch_on(&data, problem, &l, 3);
    expect_clean(&r, problem, &l);
    expect_npu_bound(&data, &truth, problem, &l);
  }
  harness_truth_free(&truth);
  harness_free(&data);
}

static void few_heads_more_queries_and_token_lists(void **state) {
  (void)state;
  check_shape("h=32,sk=600,sq=3,page=128");
  check_shape("h=64,sk=530,sq=4,page=128"); /* 256 rows */
  check_shape("h=100,sk=300,sq=3,page=64"); /* two row blocks */
  check_shape("b=2,h=16,sk=300,page=1");    /* top-k: a list of tokens is a table of pages of one */
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(layouts_change_no_bit),
                                     cmocka_unit_test(a_core_of_its_own_changes_no_bit),
                                     cmocka_unit_test(f16_is_within_its_bound),
                                     cmocka_unit_test(int8_is_converted_on_the_vector_cores),
                                     cmocka_unit_test(few_heads_more_queries_and_token_lists)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
