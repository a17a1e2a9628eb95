/* SPDX-License-Identifier: Apache-2.0
 *
 * The Ascend kernel on the simulated NPU against fp64, within the bound of harness/truth.h for a P
 * of bf16: modes x schedules over shapes, pages, lengths, causality, splits, sinks and
 * distributions; amla guarded and as published, which must agree where O stays normal. Every launch
 * must also be free of races, deadlocks and leftover flags.
 */
#include "test_npu.h"

typedef struct launch_case {
  const char *problem;
  int split_tiles; /* as in ascend_shape */
  int32_t cores;
} launch_case;

static const launch_case cases[] = {
    {"h=16,sk=300", 8, 0},
    {"h=128,sk=1500,out=bf16", 8, 1},
    {"b=2,sq=2,h=128,sk=1100,len=1100/700,page=64", 8, 2},
    {"b=3,sq=2,h=20,sk=1600,len=1600/0/513,page=48,sinks=1,lse=2", 8, 1},
    {"b=2,sq=3,h=100,sk=1300,len=1300/2,page=16", 1, 3},
    {"b=2,h=24,sk=2600,len=2600/1030,sinks=1", 0, 5},
    {"h=5,sk=600,page=1,pad=3", 8, 1},
    {"b=2,sq=5,h=3,sk=515,len=515/3,page=0", 8, 1},
    {"h=16,sk=900,dqk=512", 8, 1},
    {"h=9,sk=700,dqk=70,dv=33,page=7,pad=1,out=bf16", 1, 2},
    {"h=4,sk=200,dqk=17,dv=17", 8, 1},
    {"h=6,sk=1700,dqk=40,dv=32", 8, 1}, /* one vector core has no rows */
    {"b=2,sq=4,h=6,sk=64,dist=masked", 8, 2},
    {"b=1,sq=2,h=130,sk=530,causal=0", 8, 1},
};
static const launch_case hard[] = {
    {"h=16,sk=2048,dist=rising,sq=2", 8, 1}, {"h=16,sk=1500,dist=outlier", 1, 3},
    {"h=16,sk=600,dist=onehot", 8, 1},       {"h=9,sk=1111,dist=peaked", 8, 1},
    {"h=16,sk=1100,dist=normal:10", 8, 1},   {"h=16,sk=700,dist=uniform:1", 8, 1},
};

static void check_case(const launch_case *c) {
  harness_dataset data;
  harness_truth truth;
  generate(&data, c->problem);
  compute_truth_of(&data, &truth);
  for (int mode = 0; mode < PROGRAMS; mode++)
    for (int schedule = 0; schedule < SCHEDULES; schedule++) {
      if (TEST_SLOW && schedule == PRELOAD)
        continue; /* its tilings are those of the others; a sanitizer is slow */
      ascend_launch l = make_launch(&data, mode, schedule);
      l.split_tiles = c->split_tiles;
      const npu_report report = launch_on(&data, c->problem, &l, c->cores);
      expect_clean(&report, c->problem, &l);
      expect_npu_bound(&data, &truth, c->problem, &l);
      if (damaged_padding(&data))
        fail_msg("'%s' %s: elements between the rows of out were written", c->problem,
                 describe_launch(&l));
    }
  harness_truth_free(&truth);
  harness_free(&data);
}

static void shapes_are_right(void **state) {
  (void)state;
  for (int i = 0; i < LENGTH(cases); i++)
    check_case(&cases[i]);
}

static void distributions_are_right(void **state) {
  (void)state;
  for (int i = 0; i < LENGTH(hard); i++)
    check_case(&hard[i]);
}

/* A run without errors says so; these are random costs. */
static void time_changes_no_bit(void **state) {
  (void)state;
  static const char problem[] = "b=2,sq=2,h=20,sk=1100,len=1100/600";
  harness_dataset data;
  generate(&data, problem);
  void *first = malloc(data.tensors.out_bytes);
  assert_non_null(first);
  for (int mode = 0; mode < PROGRAMS; mode++)
    for (int schedule = 0; schedule < (TEST_SANITIZED ? 1 : SCHEDULES); schedule++) {
      ascend_launch l = make_launch(&data, mode, schedule);
      int64_t cycles = 0;
      for (uint64_t seed = 0; seed < 3; seed++) {
        const npu_report r = launch_at(&data, problem, &l, 2, seed);
        expect_clean(&r, problem, &l);
        if (seed == 0)
          memcpy(first, data.out, data.tensors.out_bytes);
        if (memcmp(first, data.out, data.tensors.out_bytes) != 0 || r.cycles == cycles)
          fail_msg("'%s' %s, costs %d", problem, describe_launch(&l), (int)seed);
        cycles = r.cycles;
      }
    }
  free(first);
  harness_free(&data);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(shapes_are_right),
                                     cmocka_unit_test(distributions_are_right),
                                     cmocka_unit_test(time_changes_no_bit)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
