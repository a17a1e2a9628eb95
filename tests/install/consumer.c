/* SPDX-License-Identifier: Apache-2.0
 *
 * The smallest user of the installed library, in the common subset of C11 and C++11: one sequence,
 * two keys, and a result that is known without computing. Prints the version and "ok".
 */
#include <amla/amla.h>

#include <stdio.h>
#include <stdlib.h>

static int near(float x, float y) { return x - y < 1e-5f && y - x < 1e-5f; }

enum { HEADS = 2, D_QK = 4, D_V = 3, KEYS = 2 };

int main(void) {
  amla_problem problem = AMLA_PROBLEM_INIT;
  amla_options options = AMLA_OPTIONS_INIT;
  amla_tensors tensors = AMLA_TENSORS_INIT;
  amla_backend_info info = AMLA_BACKEND_INFO_INIT;
  amla_plan *plan = NULL;
  amla_detail detail;
  const float q[HEADS * D_QK] = {0};                      /* every key has the same weight: */
  const float kv[KEYS * D_QK] = {1, 2, 3, 9, 3, 6, 9, 9}; /* the result is the mean of the rows */
  float out[HEADS * D_V], lse[HEADS];
  void *scratch = NULL;
  int ok = 1;

  problem.h_q = HEADS;
  problem.sk = KEYS;
  problem.d_qk = D_QK;
  problem.d_v = D_V;
  problem.scale = 1.0f;
  problem.q_type = problem.kv_type = problem.out_type = AMLA_F32;
  if (amla_plan_create(&plan, &problem, &options, &detail) != AMLA_OK) {
    fprintf(stderr, "plan: %s\n", detail.text);
    return 1;
  }
  tensors.q = q, tensors.q_bytes = sizeof(q);
  tensors.kv = kv, tensors.kv_bytes = sizeof(kv);
  tensors.out = out, tensors.out_bytes = sizeof(out);
  tensors.lse = lse, tensors.lse_bytes = sizeof(lse);
  scratch = malloc(amla_plan_scratch_bytes(plan) + 1);
  if (amla_plan_run(plan, &tensors, scratch, amla_plan_scratch_bytes(plan), &detail) != AMLA_OK) {
    fprintf(stderr, "run: %s\n", detail.text);
    return 1;
  }
  for (int i = 0; i < HEADS * D_V; i++)
    ok &= near(out[i], 2.0f * (float)(i % D_V + 1));
  for (int h = 0; h < HEADS; h++)
    ok &= near(lse[h], 0.69314718f); /* log 2 */
  ok &= amla_backend_query(AMLA_BACKEND_CPU, &info, NULL) == AMLA_OK && info.available;
  free(scratch);
  amla_plan_destroy(plan);
  printf("%s %s\n", amla_version(), ok ? "ok" : "wrong result");
  return !ok;
}
