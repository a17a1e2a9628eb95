/* SPDX-License-Identifier: Apache-2.0
 *
 * Every flag wait of the Ascend kernel is needed: with any single one left out, the race checker
 * fires or a deadlock is reported, for at least one of the shapes that have it; with all of them,
 * nothing is. All rescale modes, amla guarded and as published, and schedules. Timing only: no data
 * moves, but every address and flag is real; lazy is told to shift rows in one tile of each item.
 */
#include "test_npu.h"

/* Tiles of 256 rows: last tiles with all pieces of L1 in use, and with half of them, so that slots
 * change roles. Tiles of 128 rows and less: items of several tiles and of one; few rows, where few
 * chunks leave little order between pipes. The shortest is first, where nearly all waits are
 * missed: what somebody has missed is not left out again. */
static const char *const two_halves[] = {"b=2,sq=2,h=128,sk=600", "b=2,sq=2,h=128,sk=1300,sinks=1",
                                         "b=2,sq=2,h=128,sk=1200", "b=2,sq=2,h=65,sk=1900"};
static const char *const one_half[] = {"b=3,h=128,sk=500", "b=2,h=20,sk=900", "b=2,h=128,sk=1900",
                                       "b=2,h=20,sk=1900"};
enum { SHAPES = 4, MAX_SITES = 96 };
_Static_assert(LENGTH(two_halves) == SHAPES && LENGTH(one_half) == SHAPES,
               "as many shapes of each kind");

typedef struct site {
  char name[160];
  bool missed; /* somebody does, when it is left out */
} site;

typedef struct site_list {
  site sites[MAX_SITES];
  int n;
} site_list;

static site *find_site(site_list *list, const char *name) {
  int i = 0;
  while (i < list->n && strcmp(list->sites[i].name, name) != 0)
    i++;
  assert_true(i < MAX_SITES);
  if (i == list->n)
    snprintf(list->sites[list->n++].name, sizeof list->sites[i].name, "%s", name);
  return &list->sites[i];
}

static npu_report launch_without(npu_chip *chip, const harness_dataset *data, int mode,
                                 int schedule, int int8, int32_t drop_wait) {
  npu_report report;
  amla_detail detail;
  amla_problem p;
  amla_tensors t = AMLA_TENSORS_INIT;
  ascend_launch l = make_launch(data, mode, schedule);
  l.layout.int8 = int8;
  if (int8 && schedule == BEST)
    l.tiling = ascend_tiling_best(ascend_block_rows(&data->problem), 1);
  l.options.cores = 1, l.options.check_races = 1, l.options.drop_wait = drop_wait;
  assert_int_equal(amla_problem_check(&data->problem, &p, &detail), AMLA_OK);
  if (ascend_launch_run(chip, preset_of(&l), NPU_TIMING_ONLY, &p, &t, &l, &report, &detail) !=
      AMLA_OK)
    fail_msg("%s", detail.text);
  return report;
}

static void drop_each(const char *shape, int mode, int schedule, int int8, site_list *list) {
  char problem[120];
  npu_chip *chip =
      npu_chip_create(npu_find_preset(schedule == IN_CORE ? "950" : "910"), NPU_TIMING_ONLY);
  harness_dataset data;
  assert_non_null(chip);
  snprintf(problem, sizeof problem, "%s%s", shape, int8 ? ",q=f16,kv=f16" : "");
  generate(&data, problem);
  const npu_report whole = launch_without(chip, &data, mode, schedule, int8, 0);
  if (whole.n_messages > 0)
    fail_msg("%s %s: %s", mode_name(mode), schedule_names[schedule], whole.message[0]);
  site *sites[MAX_SITES]; /* named now: a launch that stops early has not been to all of them */
  assert_true(whole.wait_sites < MAX_SITES);
  for (int32_t i = 1; i <= whole.wait_sites; i++)
    sites[i] = find_site(list, npu_wait_site(chip, i));
  for (int32_t i = 1; i <= whole.wait_sites; i++) {
    site *s = sites[i];
    const npu_report r = s->missed ? whole : launch_without(chip, &data, mode, schedule, int8, i);
    if (r.errors[NPU_ERROR_RACE] > 0 || r.errors[NPU_ERROR_DEADLOCK] > 0)
      s->missed = true;
  }
  npu_chip_destroy(chip);
  harness_free(&data);
}

static void check_program(int mode, int schedule, int int8, bool two, bool one) {
  site_list list = {.n = 0};
  int unneeded = 0;
  for (int i = 0; two && i < SHAPES; i++)
    drop_each(two_halves[i], mode, schedule, int8, &list);
  for (int i = 0; one && i < SHAPES; i++)
    drop_each(one_half[i], mode, schedule, int8, &list);
  for (int i = 0; i < list.n; i++)
    if (!list.sites[i].missed)
      print_error("%s %s: nobody misses '%s'\n", mode_name(mode), schedule_names[schedule],
                  list.sites[i].name),
          unneeded++;
  if (unneeded > 0 || list.n < 20)
    fail_msg("%d of %d waits are not needed", unneeded, list.n);
  print_message("%s %s: %d waits, each needed\n", mode_name(mode), schedule_names[schedule],
                list.n);
}

static void every_wait_is_needed(void **state) {
  (void)state;
  for (int mode = TEST_SLOW ? ASCEND_LAZY : 0; mode < (TEST_SLOW ? MODES : PROGRAMS);
       mode++) /* a sanitizer is slow */
    for (int schedule = 0; schedule < SCHEDULES; schedule++) {
      check_program(mode, schedule, 0, true, schedule != BEST);
      if (schedule == BEST)
        check_program(mode, schedule, 0, false, true); /* another tiling */
    }
}

/* Chip 950: S goes to UB and P to L1, with flags of their own. */
static void every_wait_in_core_is_needed(void **state) {
  (void)state;
  for (int mode = TEST_SLOW ? ASCEND_LAZY : 0; mode < (TEST_SLOW ? MODES : PROGRAMS); mode++)
    check_program(mode, IN_CORE, 0, true, true);
}

/* With the stage that converts an int8 cache, and its flags. */
static void every_wait_of_int8_is_needed(void **state) {
  (void)state;
  check_program(ASCEND_LAZY, PRELOAD, 1, true, true);
  check_program(ASCEND_LAZY, BEST, 1, false, true);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(every_wait_is_needed),
                                     cmocka_unit_test(every_wait_in_core_is_needed),
                                     cmocka_unit_test(every_wait_of_int8_is_needed)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
