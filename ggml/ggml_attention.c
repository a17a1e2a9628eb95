/* SPDX-License-Identifier: Apache-2.0
 *
 * ggml's shapes, innermost first: q [d_qk, tokens, heads, streams] f32; k [d_qk, n_kv, KV heads,
 * streams]; v = the first d_v of k, or like k and elsewhere; mask [n_kv, tokens, 1, streams or 1]
 * f16; sinks [heads] f32; result [d_v, heads, tokens, streams] f32. A stream is a sequence, or
 * several that the mask keeps apart. Strides are in bytes and free but for the innermost.
 */
#include "ggml_attention.h"

#include <math.h>
#include <string.h>

#include "ggml_layout.h"
#include "ggml_log.h"
#include "ggml_mask.h"

enum { SMALL_FLOPS = 12000000 }; /* below, starting a thread costs more than it saves */
enum { Q = 0, K = 1, V = 2, MASK = 3, SINKS = 4 }; /* sources */
/* Words of op_params; 3 is the precision, and ours is f32. */
enum { SCALE = 0, MAX_BIAS = 1, SOFTCAP = 2, SPARSE = 4, PARAMS = 16 };

static float param(const ggml_abi_tensor *op, int i) {
  float value;
  memcpy(&value, &op->op_params[i], sizeof value);
  return value;
}

/* ---- Which ones are ours ---- */

static bool is_prefix_of(const ggml_abi_tensor *v, const ggml_abi_tensor *k) {
  const ggml_abi_tensor *root = k->view_src != NULL ? k->view_src : k;
  if (v == k)
    return true;
  return v->view_src == root && v->view_offs == (k->view_src != NULL ? k->view_offs : 0) &&
         v->type == k->type && v->ne[1] == k->ne[1] && v->nb[1] == k->nb[1] &&
         v->ne[2] == k->ne[2] && (k->ne[2] == 1 || v->nb[2] == k->nb[2]) && v->ne[3] == k->ne[3] &&
         (k->ne[3] == 1 || v->nb[3] == k->nb[3]);
}

static bool is_cast(const ggml_abi_tensor *t, int32_t cast_op) {
  if (t->op != cast_op || t->src[0] == NULL || t->src[1] != t || t->view_src != NULL)
    return false;
  for (int i = 0; i < 4; i++)
    if (t->ne[i] != t->src[0]->ne[i])
      return false;
  return true;
}

/* llama.cpp casts an f32 cache to f16, K and V apart. The sources are K and its first columns. */
static bool are_casts_of_prefix(const ggml_abi_tensor *v, const ggml_abi_tensor *k,
                                int32_t cast_op) {
  return is_cast(v, cast_op) && is_cast(k, cast_op) && v->type == k->type &&
         is_prefix_of(v->src[0], k->src[0]);
}

/* Is V K's first columns? Else it lies apart, whatever it holds. */
static bool is_value_in_key(const ggml_abi_tensor *op, int32_t cast_op) {
  return is_prefix_of(op->src[V], op->src[K]) ||
         are_casts_of_prefix(op->src[V], op->src[K], cast_op);
}

static const char *cache_refusal(const ggml_abi_tensor *k) {
  if (!ggml_strides_are_whole(k) || (int64_t)k->nb[1] < ggml_row_bytes(k))
    return "K or V has rows that are not contiguous";
  return NULL;
}

static const char *value_refusal(const ggml_abi_tensor *v, const ggml_abi_tensor *k) {
  if (v->type != k->type)
    return "K and V lie apart and are of two types";
  for (int i = 1; i < 4; i++)
    if (v->ne[i] != k->ne[i])
      return "K and V have different keys, heads or streams";
  return cache_refusal(v);
}

static const char *mask_refusal(const ggml_abi_tensor *mask, const ggml_abi_tensor *q,
                                const ggml_abi_tensor *k) {
  if (mask->type != GGML_ABI_F16 || !ggml_strides_are_whole(mask))
    return "the mask is not f16 with contiguous rows";
  if (mask->ne[2] != 1)
    return "the mask differs between heads";
  if (mask->ne[0] < k->ne[1] || mask->ne[1] < q->ne[1])
    return "the mask is smaller than keys x tokens";
  if (mask->ne[3] != 1 && mask->ne[3] != q->ne[3])
    return "the mask is shared by some streams but not all";
  return NULL;
}

/* Sparse attention says how many keys its mask leaves at most: the library sees for itself. */
static const char *params_refusal(const ggml_abi_tensor *op) {
  if (param(op, MAX_BIAS) != 0.0f)
    return "it has an ALiBi bias";
  if (param(op, SOFTCAP) != 0.0f)
    return "it has a logit softcap";
  if (!isfinite(param(op, SCALE) * 1.4426951f) || param(op, SCALE) == 0.0f)
    return "its scale is 0 or not finite";
  for (int i = SPARSE + 1; i < PARAMS; i++)
    if (op->op_params[i] != 0)
      return "it has a parameter that this version does not know";
  return NULL;
}

static bool are_dims_of_mla(int64_t d_k, int64_t d_v) {
  return (d_v == 512 && (d_k == 576 || d_k == 512)) || (d_v == 256 && d_k == 320);
}

const char *ggml_attention_refusal(const ggml_abi_tensor *op, int32_t cast_op) {
  const ggml_abi_tensor *q = op->src[Q], *k = op->src[K], *v = op->src[V], *mask = op->src[MASK],
                        *sinks = op->src[SINKS];
  if (q == NULL || k == NULL || v == NULL)
    return "it has no q, k or v";
  if (!are_dims_of_mla(k->ne[0], v->ne[0]))
    return "K/V are not 576/512, 512/512 or 320/256";
  if (k->ne[2] < 1 || q->ne[2] % k->ne[2] != 0)
    return "its heads are not shared out evenly to KV heads";
  if (ggml_find_type(k->type) == NULL)
    return "K is of a type that is not known";
  if (cache_refusal(k) != NULL)
    return cache_refusal(k);
  if (!is_value_in_key(op, cast_op) && value_refusal(v, k) != NULL)
    return value_refusal(v, k);
  if (q->type != GGML_ABI_F32 || op->type != GGML_ABI_F32 || !ggml_strides_are_whole(q) ||
      !ggml_strides_are_whole(op))
    return "q or the result is not f32 with contiguous rows";
  if (k->ne[3] != q->ne[3])
    return "streams share K";
  for (int i = 0; i < 4; i++)
    if (q->ne[i] < 1 || q->ne[i] > INT32_MAX / 128 || k->ne[i] < 1 || k->ne[i] > INT32_MAX)
      return "a dimension is 0 or huge";
  if (q->ne[1] * q->ne[2] > 1 << 24)
    return "it has too many rows";
  if (sinks != NULL && (sinks->type != GGML_ABI_F32 || sinks->nb[0] != 4))
    return "the sinks are not f32";
  if (mask != NULL && mask_refusal(mask, q, k) != NULL)
    return mask_refusal(mask, q, k);
  return params_refusal(op);
}

/* ---- The problem ---- */

static ggml_mask_view mask_of(const ggml_abi_tensor *op, int64_t stream) {
  const ggml_abi_tensor *mask = op->src[MASK];
  const size_t offset = mask->ne[3] > 1 ? (size_t)stream * mask->nb[3] : 0;
  return (ggml_mask_view){(const uint16_t *)(const void *)((const char *)mask->data + offset),
                          ggml_stride_elems(mask, 1), op->src[Q]->ne[1], op->src[K]->ne[1]};
}

/* The keys in use of each stream; and does it take a mask to say who sees which of them? */
static bool read_masks(const ggml_abi_tensor *op, int32_t *lengths) {
  bool causal = true;
  for (int64_t i = 0; i < op->src[Q]->ne[3]; i++) {
    const ggml_mask_view mask = mask_of(op, i);
    lengths[i] = (int32_t)ggml_mask_length(&mask);
    causal = causal && ggml_mask_is_causal(&mask, lengths[i]);
  }
  return !causal;
}

static amla_problem describe(const ggml_abi_tensor *op, int64_t streams, bool masked, bool apart) {
  const ggml_abi_tensor *q = op->src[Q], *k = op->src[K], *v = op->src[V], *mask = op->src[MASK];
  amla_problem p = AMLA_PROBLEM_INIT;
  p.b = (int32_t)streams;
  p.s_q = (int32_t)q->ne[1];
  p.h_q = (int32_t)(q->ne[2] / k->ne[2]);
  p.sk = (int32_t)k->ne[1];
  p.d_qk = (int32_t)k->ne[0];
  p.d_v = (int32_t)v->ne[0];
  p.q_type = p.out_type = AMLA_F32;
  p.kv_type = ggml_find_type(k->type)->amla;
  p.causal = mask != NULL && !masked;
  p.scale = param(op, SCALE);
  p.q_stride_query = ggml_stride(q, 1), p.q_stride_head = ggml_stride(q, 2),
  p.q_stride_batch = ggml_stride(q, 3);
  p.out_stride_head = ggml_stride(op, 1), p.out_stride_query = ggml_stride(op, 2),
  p.out_stride_batch = ggml_stride(op, 3);
  p.kv_stride_token = ggml_stride_elems(k, 1), p.kv_stride_page = ggml_stride(k, 3);
  if (apart) { /* rows are [V | K], in two caches */
    p.kv_d_rope = p.d_qk;
    p.k_begin = p.d_v;
    p.d_qk += p.d_v;
    p.kv_rope_stride_token = p.kv_stride_token, p.kv_rope_stride_page = p.kv_stride_page;
    p.kv_stride_token = ggml_stride_elems(v, 1), p.kv_stride_page = ggml_stride(v, 3);
  }
  if (masked)
    p.mask_stride_query = ggml_stride_elems(mask, 1), p.mask_stride_batch = ggml_stride(mask, 3);
  return p;
}

/* p->b streams from `stream` on, and the heads of one KV head. */
static amla_tensors point(const ggml_abi_tensor *op, int64_t stream, int64_t kv_head,
                          const amla_problem *p, bool masked, const int32_t *lengths) {
  const ggml_abi_tensor *q = op->src[Q], *k = op->src[K], *v = op->src[V], *mask = op->src[MASK],
                        *sinks = op->src[SINKS];
  const int64_t head = kv_head * p->h_q;
  amla_tensors t = AMLA_TENSORS_INIT;
  t.q = ggml_at(q, 2, head, stream);
  t.q_bytes = ggml_span_bytes(q, q->ne[0] * 4, q->ne[1], p->h_q, p->b);
  const ggml_abi_tensor *kv = p->k_begin > 0 ? v : k;
  t.kv = ggml_at(kv, 2, kv_head, stream);
  t.kv_bytes = ggml_span_bytes(kv, ggml_row_bytes(kv), k->ne[1], 1, p->b);
  if (p->k_begin > 0) {
    t.kv_rope = ggml_at(k, 2, kv_head, stream);
    t.kv_rope_bytes = ggml_span_bytes(k, ggml_row_bytes(k), k->ne[1], 1, p->b);
  }
  t.out = ggml_at(op, 1, head, stream);
  t.out_bytes = ggml_span_bytes(op, op->ne[0] * 4, p->h_q, op->ne[2], p->b);
  if (mask != NULL) {
    t.seqlens_k = lengths + stream;
    t.seqlens_k_bytes = (size_t)p->b * sizeof *lengths;
  }
  if (masked) {
    t.mask = mask_of(op, stream).rows;
    t.mask_bytes = ggml_span_bytes(mask, k->ne[1] * 2, q->ne[1], 1, p->b);
  }
  if (sinks != NULL) {
    t.sinks = (const float *)sinks->data + head;
    t.sinks_bytes = (size_t)p->h_q * 4;
  }
  return t;
}

/* ---- Running it ---- */

static int plan_for(ggml_attention *a, const amla_problem *p, const amla_options *options,
                    amla_detail *why) {
  const bool asks = options->cancel != NULL;
  if (a->plan != NULL && options->threads == a->threads && asks == a->asks &&
      memcmp(p, &a->problem, sizeof *p) == 0)
    return GGML_ABI_SUCCESS;
  amla_plan_destroy(a->plan);
  if (amla_plan_create(&a->plan, p, options, why) != AMLA_OK)
    return GGML_ABI_FAILED;
  ggml_log_plan(p, a->plan);
  a->problem = *p;
  a->threads = options->threads;
  a->asks = asks;
  return ggml_buffer_reserve(&a->scratch, amla_plan_scratch_bytes(a->plan)) ? GGML_ABI_SUCCESS
                                                                            : GGML_ABI_ALLOC_FAILED;
}

/* The thread that runs an operation asks, and its helpers do not: ggml's own CPU code asks on one
 * thread, so a program may count on that. */
static _Thread_local bool asks_here;

static int is_to_end(void *attention) {
  const ggml_attention *a = attention;
  return asks_here && a->abort(a->abort_data);
}

static int status_of(amla_status status) {
  switch (status) {
  case AMLA_OK: return GGML_ABI_SUCCESS;
  case AMLA_CANCELLED: return GGML_ABI_ABORTED;
  default: return GGML_ABI_FAILED;
  }
}

/* Of one run; keys that a mask hides below a stream's length are taken for visible. */
static double flops_of(const amla_problem *p, const amla_tensors *t) {
  double keys = 0;
  for (int32_t i = 0; i < p->b; i++)
    keys += t->seqlens_k != NULL ? t->seqlens_k[i] : p->sk;
  return 2.0 * keys * p->s_q * p->h_q * ((double)p->d_qk - p->k_begin + p->d_v);
}

int ggml_attention_run(ggml_attention *a, const ggml_abi_tensor *op, int32_t threads,
                       amla_parallel parallel, void *context) {
  const ggml_abi_tensor *mask = op->src[MASK];
  const int64_t streams = op->src[Q]->ne[3];
  amla_options options = AMLA_OPTIONS_INIT;
  amla_detail why = {0};
  options.threads = threads;
  options.parallel = parallel;
  options.parallel_context = context;
  options.cancel = a->abort != NULL ? is_to_end : NULL;
  options.cancel_context = a;
  asks_here = true;
  int status = GGML_ABI_ALLOC_FAILED;
  if (ggml_buffer_reserve(&a->lengths, (size_t)streams * sizeof(int32_t))) {
    int32_t *lengths = a->lengths.data;
    const bool masked = mask != NULL && read_masks(op, lengths);
    const int64_t together = masked && mask->ne[3] != streams
                                 ? 1
                                 : streams; /* the library has no mask that streams share */
    const amla_problem p = describe(op, together, masked, !is_value_in_key(op, a->cast_op));
    status = plan_for(a, &p, &options, &why);
    const int64_t kv_heads = op->src[K]->ne[2], runs = streams / together * kv_heads;
    for (int64_t i = 0; status == GGML_ABI_SUCCESS && i < runs; i++) {
      const int64_t stream = i / kv_heads * together;
      const amla_tensors t = point(op, stream, i % kv_heads, &p, masked, lengths);
      const int64_t began = ggml_log_nanoseconds();
      status = status_of(amla_plan_run(a->plan, &t, a->scratch.data, a->scratch.bytes, &why));
      if (status == GGML_ABI_SUCCESS)
        ggml_log_run((int64_t)p.b * p.s_q, flops_of(&p, &t), began);
    }
  }
  asks_here = false;
  ggml_log_status(GGML_LOG_ATTENTION, status, why.text);
  return status;
}

/* By the keys in use: llama.cpp pads its caches, so that the first steps would look large. */
static int64_t count_keys(const ggml_abi_tensor *op, int64_t stream) {
  if (op->src[MASK] == NULL)
    return op->src[K]->ne[1];
  const ggml_mask_view mask = mask_of(op, stream);
  return ggml_mask_length(&mask);
}

bool ggml_attention_is_small(const ggml_abi_tensor *op) {
  const ggml_abi_tensor *q = op->src[Q];
  int64_t keys = 0;
  for (int64_t i = 0; i < q->ne[3]; i++)
    keys += count_keys(op, i);
  return 2.0 * (double)(q->ne[1] * q->ne[2]) * (double)keys *
             (double)(op->src[K]->ne[0] + op->src[V]->ne[0]) <
         SMALL_FLOPS;
}

void ggml_attention_free(ggml_attention *a) {
  amla_plan_destroy(a->plan);
  ggml_buffer_free(&a->scratch);
  ggml_buffer_free(&a->lengths);
}
