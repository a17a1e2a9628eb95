/* SPDX-License-Identifier: Apache-2.0
 *
 * The CPU's 16-bit rows where the host has them: checked against fp64, then timed beside the row of
 * f32, seconds in all. A program of its own, linked statically, to be carried to a machine that has
 * nothing else. `./dev native` builds and runs it.
 */
#include <stdio.h>
#include <stdlib.h>

#include "harness/dataset.h"
#include "harness/problem_string.h"
#include "harness/roofline.h"
#include "harness/truth.h"

enum { LAPS = 5 };

static int failures;

static int fail(const char *what, const char *why) {
  printf("FAIL %s: %s\n", what, why);
  failures++;
  return 0;
}

static int generate(harness_dataset *data, const char *problem) {
  char error[256];
  harness_case c;
  if (harness_parse_problem(problem, &c, error, sizeof error) == 0 &&
      harness_generate(&c, data, error, sizeof error) == 0)
    return 1;
  return fail(problem, error);
}

/* Runs the plan LAPS times; the least seconds, or 0 if it refuses. */
static double best_of_laps(const amla_plan *plan, const harness_dataset *data) {
  const size_t bytes = amla_plan_scratch_bytes(plan);
  void *scratch = malloc(bytes);
  double best = 0.0;
  for (int i = 0; scratch && i < LAPS; i++) {
    const double start = harness_seconds();
    if (amla_plan_run(plan, &data->tensors, scratch, bytes, NULL) != AMLA_OK)
      break;
    const double seconds = harness_seconds() - start;
    best = i == 0 || seconds < best ? seconds : best;
  }
  free(scratch);
  return best;
}

/* One problem in one form on one thread: right, and how fast. */
static double run_form(harness_dataset *data, const harness_truth *truth, amla_isa isa,
                       amla_p_form form, double f32_seconds) {
  amla_options o = data->options;
  amla_plan_info info = AMLA_PLAN_INFO_INIT;
  amla_plan *plan;
  amla_detail detail;
  o.isa = isa;
  o.p_form = form;
  o.threads = 1;
  o.backend = AMLA_BACKEND_CPU;
  if (amla_plan_create(&plan, &data->problem, &o, &detail) != AMLA_OK)
    return fail("plan", detail.text);
  amla_plan_query(plan, &info, NULL);
  harness_reset_outputs(data);
  const double seconds = best_of_laps(plan, data);
  amla_plan_destroy(plan);
  const harness_error e = harness_compare_plan(data, truth, &info);
  if (!e.ok)
    return fail(amla_isa_name(isa), "outside of its bound");
  const double flops = harness_flops(data);
  printf("  %-10s p=%-6s error %.1e  %8.3f ms %7.0f GFLOP/s", amla_isa_name(info.isa),
         amla_p_form_name(info.p_form), e.rel_error, 1e3 * seconds, flops / seconds / 1e9);
  if (f32_seconds > 0.0)
    printf("  %.2f of its peak, %.2f times f32's row",
           flops / seconds / harness_peak_flops(isa, 1, 0.1), f32_seconds / seconds);
  printf("\n");
  return seconds;
}

static void run_problem(const char *problem, amla_isa isa) {
  static const amla_p_form forms[] = {AMLA_P_F32, AMLA_P_BF16X2, AMLA_P_BF16};
  harness_dataset data;
  harness_truth truth;
  printf(" %s\n", problem);
  if (!generate(&data, problem))
    return;
  if (harness_truth_compute(&data, &truth) == 0) {
    const double f32 = run_form(&data, &truth, AMLA_ISA_AVX512, AMLA_P_F32, 0.0);
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++)
      run_form(&data, &truth, isa, forms[i], f32);
    harness_truth_free(&truth);
  }
  harness_free(&data);
}

static void run_isa(amla_isa isa) {
  static const char *const problems[] = {"b=1,h=64,sk=96", "b=1,h=128,sk=4096", "b=1,h=16,sk=4096",
                                         "b=2,sq=3,h=11,sk=777,page=16,causal=1,mask=1"};
  const char *missing = amla_isa_missing(isa);
  if (missing) {
    printf("%s: not this CPU: it has no %s\n", amla_isa_name(isa), missing);
    return;
  }
  printf("%s: measured, one thread\n", amla_isa_name(isa));
  for (size_t i = 0; i < sizeof problems / sizeof *problems; i++)
    run_problem(problems[i], isa);
}

int main(void) {
  run_isa(AMLA_ISA_AVX512BF16);
  run_isa(AMLA_ISA_AMXBF16);
  return failures > 0;
}
