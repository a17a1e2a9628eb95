/* SPDX-License-Identifier: Apache-2.0
 *
 * The way from a test in Python to a plan of the library that runs in the emulator.
 */
#include <string.h>

#include "src/cpu/decode.h"

/* decode_emulated.py lays these out, field by field. */
typedef struct decode_job {
  int32_t b, s_q, h_q, sk, d_qk, d_v, page_size, n_pages, q_type, kv_type, out_type, causal;
  int32_t rescale, threads, isa, split_tokens, p_form, q_form, kv_round;
  float scale;
  int64_t kv_stride_page, kv_stride_token; /* 0: packed */
} decode_job;

enum { DECODE_MAX_SPLITS = 32 };

typedef struct decode_plan_info {
  int32_t isa, p_form, n_splits; /* of sequence 0 and row block 0, without lengths or mask */
  int32_t split_begin[DECODE_MAX_SPLITS];
  int32_t unused;
  int64_t scratch_bytes;
  char message[256];
} decode_plan_info;

/* An amla_status. */
int64_t decode_plan(const decode_job *job, decode_plan_info *info, const amla_plan **plan);
int64_t decode_run(const amla_plan *plan, const void *q, const void *kv, const int32_t *block_table,
                   const int32_t *seqlens, const void *mask, void *out, float *lse, void *scratch,
                   decode_plan_info *info);

/* A pool that runs tasks one after the other, the last one first. */
static void run_in_reverse(void *context, int32_t n, void (*task)(void *argument, int32_t i),
                           void *argument) {
  (void)context;
  for (int32_t i = n - 1; i >= 0; i--)
    task(argument, i);
}

static amla_problem problem_of(const decode_job *j) {
  amla_problem p = AMLA_PROBLEM_INIT;
  p.b = j->b;
  p.s_q = j->s_q;
  p.h_q = j->h_q;
  p.sk = j->sk;
  p.d_qk = j->d_qk;
  p.d_v = j->d_v;
  p.page_size = j->page_size;
  p.n_pages = j->n_pages;
  p.q_type = (amla_dtype)j->q_type;
  p.kv_type = (amla_dtype)j->kv_type;
  p.out_type = (amla_dtype)j->out_type;
  p.causal = j->causal;
  p.scale = j->scale;
  p.kv_stride_page = j->kv_stride_page;
  p.kv_stride_token = j->kv_stride_token;
  return p;
}

static amla_options options_of(const decode_job *j) {
  amla_options o = AMLA_OPTIONS_INIT;
  o.backend = AMLA_BACKEND_CPU;
  o.rescale = (amla_rescale)j->rescale;
  o.threads = j->threads;
  o.isa = (amla_isa)j->isa;
  o.split_tokens = j->split_tokens;
  o.lse_base = AMLA_LSE_BASE2;
  o.p_form = (amla_p_form)j->p_form;
  o.q_form = (amla_q_form)j->q_form;
  o.kv_round = (amla_kv_round)j->kv_round;
  o.parallel = run_in_reverse;
  return o;
}

/* A pointer and how much lies there: all of it is the test's affair. */
#define TENSOR(t, name, at) (t.name = (at), t.name##_bytes = (at) ? (size_t)1 << 40 : 0)

int64_t decode_plan(const decode_job *job, decode_plan_info *info, const amla_plan **out) {
  const amla_problem p = problem_of(job);
  const amla_options o = options_of(job);
  amla_plan *plan;
  amla_detail detail = {0};
  amla_plan_info of_plan = AMLA_PLAN_INFO_INIT;
  const amla_status status = amla_plan_create(&plan, &p, &o, &detail);
  memcpy(info->message, detail.text, sizeof info->message);
  if (status != AMLA_OK)
    return status;
  amla_plan_query(plan, &of_plan, NULL);
  const amla_cpu_plan *cpu = plan->state;
  const amla_tensors none = {0};
  const amla_scopes scopes = amla_scopes_create(&plan->problem, &none);
  const amla_group g = amla_group_get(&cpu->schedule, &scopes, 0, 0, 0);
  info->isa = of_plan.isa;
  info->p_form = of_plan.p_form;
  info->n_splits = (int32_t)g.n_splits;
  for (int32_t i = 0; i <= info->n_splits && i < DECODE_MAX_SPLITS; i++)
    info->split_begin[i] = amla_split_begin(&g, i);
  info->scratch_bytes = (int64_t)amla_plan_scratch_bytes(plan);
  *out = plan;
  return AMLA_OK;
}

int64_t decode_run(const amla_plan *plan, const void *q, const void *kv, const int32_t *block_table,
                   const int32_t *seqlens, const void *mask, void *out, float *lse, void *scratch,
                   decode_plan_info *info) {
  amla_tensors t = AMLA_TENSORS_INIT;
  amla_detail detail = {0};
  TENSOR(t, q, q);
  TENSOR(t, kv, kv);
  TENSOR(t, block_table, block_table);
  TENSOR(t, seqlens_k, seqlens);
  TENSOR(t, mask, mask);
  TENSOR(t, out, out);
  TENSOR(t, lse, lse);
  const amla_status status = amla_plan_run(plan, &t, scratch, (size_t)info->scratch_bytes, &detail);
  memcpy(info->message, detail.text, sizeof info->message);
  return status;
}
