/* SPDX-License-Identifier: Apache-2.0
 *
 * See bench_prompts.h.
 */
#include "bench_prompts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "harness/rounds.h"

enum { TOKENS = 512, D_K = 576, D_V = 512 };

/* ---- Contestants ---- */

typedef struct in_ggml {
  ggml_session *session;
  ggml_job *job;
  void *backend;
} in_ggml;

static void run_in_ggml(void *context) {
  in_ggml *g = context;
  ggml_job_run(g->session, g->job, g->backend);
}

typedef struct alone {
  amla_plan *plan;
  amla_tensors tensors;
  void *scratch;
  size_t scratch_bytes;
} alone;

static void run_alone(void *context) { /* it ran before: it cannot be refused now */
  alone *a = context;
  (void)amla_plan_run(a->plan, &a->tensors, a->scratch, a->scratch_bytes, NULL);
}

static float *pack_q(const ggml_job *job) { /* [TOKENS][heads][D_K] */
  const ggml_abi_tensor *q = job->q;
  const int64_t heads = job->c.heads;
  float *packed = malloc((size_t)(TOKENS * heads * D_K) * sizeof *packed);
  for (int64_t i = 0; packed != NULL && i < TOKENS * heads; i++)
    memcpy(packed + i * D_K,
           (const char *)q->data + (size_t)(i / heads) * q->nb[1] + (size_t)(i % heads) * q->nb[2],
           D_K * sizeof *packed);
  return packed;
}

/* K lies packed in the job as it is. */
static bool prepare_alone(alone *a, const ggml_job *job, int threads, float scale) {
  const size_t rows = (size_t)(TOKENS * job->c.heads);
  amla_problem p = AMLA_PROBLEM_INIT;
  amla_options options = AMLA_OPTIONS_INIT;
  amla_detail why;
  p.h_q = (int32_t)job->c.heads, p.s_q = TOKENS, p.sk = TOKENS;
  p.q_type = p.out_type = AMLA_F32, p.kv_type = AMLA_F16;
  p.causal = 1, p.scale = scale;
  options.threads = threads;
  if (amla_plan_create(&a->plan, &p, &options, &why) != AMLA_OK)
    return fprintf(stderr, "bench: %s\n", why.text), false;
  a->scratch_bytes = amla_plan_scratch_bytes(a->plan);
  a->scratch = malloc(a->scratch_bytes);
  a->tensors = (amla_tensors)AMLA_TENSORS_INIT;
  a->tensors.q = pack_q(job), a->tensors.q_bytes = rows * D_K * 4;
  a->tensors.kv = job->k->data, a->tensors.kv_bytes = (size_t)TOKENS * D_K * 2;
  a->tensors.out_bytes = rows * D_V * 4, a->tensors.out = malloc(a->tensors.out_bytes);
  if (a->scratch == NULL || a->tensors.q == NULL || a->tensors.out == NULL)
    return fprintf(stderr, "bench: out of memory\n"), false;
  if (amla_plan_run(a->plan, &a->tensors, a->scratch, a->scratch_bytes, &why) != AMLA_OK)
    return fprintf(stderr, "bench: %s\n", why.text), false;
  return true;
}

static void free_alone(alone *a) {
  amla_plan_destroy(a->plan);
  free((void *)(size_t)a->tensors.q);
  free(a->tensors.out);
  free(a->scratch);
}

/* ---- Lines ---- */

/* The plug-in's bits are the library's; ggml's are within its own bound for backends. */
static bool is_right(in_ggml *ggml, in_ggml *plugin, const alone *a) {
  const int64_t n = (int64_t)(a->tensors.out_bytes / 4);
  const float *out = ggml->job->op->data;
  if (!ggml_job_taken(ggml->session, ggml->job))
    return fprintf(stderr, "bench: the plug-in refuses a prompt\n"), false;
  run_in_ggml(ggml);
  const double nmse = ggml_nmse(a->tensors.out, out, n);
  run_in_ggml(plugin);
  const bool same = memcmp(a->tensors.out, out, a->tensors.out_bytes) == 0;
  if (!same || !(nmse <= 5e-4))
    return fprintf(stderr, "bench: wrong result: NMSE of ggml %.1e, bits of the plug-in %s\n", nmse,
                   same ? "right" : "wrong"),
           false;
  return true;
}

/* Of the plan that the prompt has; types decide. */
static amla_isa isa_of(const amla_plan *plan) {
  amla_plan_info info = AMLA_PLAN_INFO_INIT;
  (void)amla_plan_query(plan, &info, NULL);
  return info.isa;
}

static void print_line(const ggml_job *job, int threads, const harness_rounds *r,
                       const harness_contestant *list) {
  const double flops = 2.0 * (D_K + D_V) * (double)job->c.heads * TOKENS * (TOKENS + 1) / 2.0;
  const double ggml = list[0].seconds.best, plugin = list[1].seconds.best,
               library = list[2].seconds.best;
  printf("%5lld %8d %9.2f %9.2f %9.2f   %6.2fx   %13.3f %15.3f %14.3f %9.1f %7d  %s\n",
         (long long)job->c.heads, threads, ggml * 1e3, plugin * 1e3, library * 1e3, ggml / plugin,
         library / plugin, flops / library / r->peak.best, flops / plugin / r->peak.best,
         r->peak.best * 1e-9, r->n, amla_isa_name(r->isa));
  fflush(stdout);
}

static int run_heads(ggml_session *s, int heads, int threads, double seconds) {
  const ggml_case c = {D_K,         heads, TOKENS, TOKENS, 1,     GGML_ABI_F16,
                       MASK_CAUSAL, false, false,  true,   false, 0};
  ggml_job job;
  alone library = {0};
  harness_rounds r = {.threads = threads, .least = 3, .seconds = seconds};
  ggml_session_threads(s, threads);
  ggml_job_create(s, &c, 1, &job);
  in_ggml ggml = {s, &job, s->cpu}, plugin = {s, &job, s->amla};
  harness_contestant list[] = {{.run = run_in_ggml, .context = &ggml},
                               {.run = run_in_ggml, .context = &plugin},
                               {.run = run_alone, .context = &library}};
  float scale;
  memcpy(&scale, job.op->op_params, sizeof scale);
  int status = 1;
  if (prepare_alone(&library, &job, threads, scale))
    r.isa = isa_of(library.plan), status = is_right(&ggml, &plugin, &library) ? 0 : 3;
  if (status == 0 && !harness_measure(&r, list, 3))
    status = 1;
  if (status == 0)
    print_line(&job, threads, &r, list);
  free_alone(&library);
  ggml_job_free(s, &job);
  return status;
}

int bench_prompts(ggml_session *s, int threads, double seconds) {
  static const int heads[] = {16, 64, 128};
  printf("prompts of %d tokens, f16\n", TOKENS);
  printf(
      "heads  threads   ggml ms   amla ms  alone ms   over ggml   amla of alone   alone of peak   "
      "amla of peak   GFLOP/s  rounds  isa\n");
  int status = 0;
  for (int t = 1; t <= threads; t += threads > 1 ? threads - 1 : 1)
    for (int i = 0; status == 0 && i < 3; i++)
      status = run_heads(s, heads[i], t, seconds);
  return status;
}
