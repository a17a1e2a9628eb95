/* SPDX-License-Identifier: Apache-2.0
 *
 * The way from a test in Python to a plan of the library that runs in the emulator.
 */
#include <string.h>

#include "src/cpu/decode.h"

/* decode_emulated.py lays these out, field by field. */
/* clang-format off */
#define PROBLEM_FIELDS(X) \
  X(b) X(s_q) X(h_q) X(sk) X(d_qk) X(d_v) X(page_size) X(n_pages) \
  X(q_type) X(kv_type) X(out_type) X(causal) \
  X(topk) X(index_kind) X(topk_length_per_query) X(window) X(q_d_rope) X(kv_d_rope) \
  X(extra_sk) X(extra_topk) X(extra_page_size) X(extra_n_pages) \
  X(kv_stride_page) X(kv_stride_token) X(extra_kv_stride_page) X(extra_kv_stride_token) \
  X(kv_rope_stride_page) X(kv_rope_stride_token)
#define OPTION_FIELDS(X) \
  X(rescale) X(threads) X(isa) X(split_tokens) X(p_form) X(q_form) X(kv_round) X(lse_sink)
#define TENSORS(X) \
  X(q) X(kv) X(block_table) X(seqlens_k) X(sinks) X(mask) X(q_rope) X(kv_rope) \
  X(indices) X(topk_length) X(visible_k) X(q_indptr) X(kv_indptr) X(kv_indices) \
  X(extra_kv) X(extra_block_table) X(extra_seqlens_k) X(extra_visible_k) \
  X(extra_indices) X(extra_topk_length) X(out) X(lse) X(max_logits)
/* clang-format on */

#define NUMBER(name) int64_t name;
typedef struct decode_job {
  PROBLEM_FIELDS(NUMBER)
  OPTION_FIELDS(NUMBER)
  float scale, kv_scale, kv_rope_scale, unused;
} decode_job;

#define POINTER(name) void *name;
typedef struct decode_tensors {
  TENSORS(POINTER)
} decode_tensors;

enum { DECODE_MAX_SPLITS = 32 };

typedef struct decode_plan_info {
  int32_t isa, p_form;
  int32_t n_splits; /* of sequence 0 and row block 0, without lengths or mask; 0 where tensors say
                       which keys there are */
  int32_t split_begin[DECODE_MAX_SPLITS];
  int32_t unused;
  int64_t scratch_bytes;
  char message[256];
} decode_plan_info;

/* An amla_status. */
int64_t decode_plan(const decode_job *job, decode_plan_info *info, const amla_plan **plan);
int64_t decode_run(const amla_plan *plan, const decode_tensors *tensors, void *scratch,
                   decode_plan_info *info);

/* A pool that runs tasks one after the other, the last one first. */
static void run_in_reverse(void *context, int32_t n, void (*task)(void *argument, int32_t i),
                           void *argument) {
  (void)context;
  for (int32_t i = n - 1; i >= 0; i--)
    task(argument, i);
}

#define TAKE_PROBLEM_FIELD(name) p.name = (__typeof__(p.name))j->name;
static amla_problem problem_of(const decode_job *j) {
  amla_problem p = AMLA_PROBLEM_INIT;
  PROBLEM_FIELDS(TAKE_PROBLEM_FIELD)
  p.scale = j->scale, p.kv_scale = j->kv_scale, p.kv_rope_scale = j->kv_rope_scale;
  return p;
}

#define TAKE_OPTION(name) o.name = (__typeof__(o.name))j->name;
static amla_options options_of(const decode_job *j) {
  amla_options o = AMLA_OPTIONS_INIT;
  OPTION_FIELDS(TAKE_OPTION)
  o.backend = AMLA_BACKEND_CPU;
  o.lse_base = AMLA_LSE_BASE2;
  o.parallel = run_in_reverse;
  return o;
}

static void describe_splits(const amla_plan *plan, decode_plan_info *info) {
  const amla_cpu_plan *cpu = plan->state;
  const amla_tensors none = {0};
  const amla_scopes scopes = amla_scopes_create(&plan->problem, &none);
  info->n_splits = 0;
  if (amla_has_lines(&plan->problem))
    return;
  const amla_group g = amla_group_get(&cpu->schedule, &scopes, 0, 0, 0);
  info->n_splits = (int32_t)g.n_splits;
  for (int32_t i = 0; i <= info->n_splits && i < DECODE_MAX_SPLITS; i++)
    info->split_begin[i] = amla_split_begin(&g, i);
}

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
  info->isa = of_plan.isa;
  info->p_form = of_plan.p_form;
  describe_splits(plan, info);
  info->scratch_bytes = (int64_t)amla_plan_scratch_bytes(plan);
  *out = plan;
  return AMLA_OK;
}

/* How much lies there is the test's affair. */
#define TAKE_TENSOR(name) t.name = from->name, t.name##_bytes = from->name ? (size_t)1 << 40 : 0;
int64_t decode_run(const amla_plan *plan, const decode_tensors *from, void *scratch,
                   decode_plan_info *info) {
  amla_tensors t = AMLA_TENSORS_INIT;
  amla_detail detail = {0};
  TENSORS(TAKE_TENSOR)
  const amla_status status = amla_plan_run(plan, &t, scratch, (size_t)info->scratch_bytes, &detail);
  memcpy(info->message, detail.text, sizeof info->message);
  return status;
}
