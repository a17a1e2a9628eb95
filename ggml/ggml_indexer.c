/* SPDX-License-Identifier: Apache-2.0
 *
 * ggml's shapes, innermost first: q [d, heads, tokens, streams] f32; k [d, 1, n_kv, streams];
 * weights [heads, tokens, 1, streams] f32; mask [n_kv, tokens, 1, streams or fewer] f16; result
 * [n_kv, tokens, 1, streams] f32 = sum over heads of weight * max(0, q . k), plus the mask. What
 * the mask hides is -inf, whatever its score.
 */
#include "ggml_indexer.h"

#include "ggml_layout.h"
#include "ggml_log.h"
#include "ggml_mask.h"

enum { SMALL_FLOPS = 12000000 };              /* as of attention */
static const double slice_flops = 5e8;        /* between two questions: below 50 ms at 10 GFLOP/s */
enum { Q = 0, K = 1, WEIGHTS = 2, MASK = 3 }; /* sources */

/* ---- Which ones are ours ---- */

/* f32, packed but for streams. */
static bool is_packed(const ggml_abi_tensor *t) {
  return t->type == GGML_ABI_F32 && t->nb[0] == 4 &&
         (t->ne[1] == 1 || (int64_t)t->nb[1] == t->ne[0] * 4);
}

static bool are_shapes_right(const ggml_abi_tensor *op) {
  const ggml_abi_tensor *q = op->src[Q], *k = op->src[K], *w = op->src[WEIGHTS],
                        *mask = op->src[MASK];
  return k->ne[0] == q->ne[0] && k->ne[1] == 1 && k->ne[3] == q->ne[3] && w->ne[0] == q->ne[1] &&
         w->ne[1] == q->ne[2] && w->ne[2] == 1 && w->ne[3] == q->ne[3] && mask->ne[0] == k->ne[2] &&
         mask->ne[1] >= q->ne[2] && mask->ne[2] == 1 && mask->ne[3] >= 1 &&
         q->ne[3] % mask->ne[3] == 0 && op->ne[0] == k->ne[2] && op->ne[1] == q->ne[2] &&
         op->ne[2] == 1 && op->ne[3] == q->ne[3];
}

const char *ggml_indexer_refusal(const ggml_abi_tensor *op) {
  const ggml_abi_tensor *q = op->src[Q], *k = op->src[K];
  for (int i = 0; i < 4; i++)
    if (op->src[i] == NULL)
      return "it has no q, k, weights or mask";
  if (!are_shapes_right(op))
    return "its shapes do not fit";
  for (int i = 0; i < 4; i++)
    if (q->ne[i] < 1 || q->ne[i] > 65536 || k->ne[i] < 1 || k->ne[i] > INT32_MAX)
      return "a dimension is 0 or huge";
  if (q->ne[0] % 32 != 0)
    return "its keys are not multiples of 32 columns";
  if (q->type != GGML_ABI_F32 || !ggml_strides_are_whole(q) || !is_packed(op->src[WEIGHTS]) ||
      !is_packed(op))
    return "its q, weights or result are not f32 with contiguous rows";
  if (ggml_find_type(k->type) == NULL || !ggml_strides_are_whole(k) ||
      (int64_t)k->nb[2] < ggml_row_bytes(k))
    return "its keys are of a type that is not known, or not contiguous";
  if (op->src[MASK]->type != GGML_ABI_F16 || !ggml_strides_are_whole(op->src[MASK]))
    return "its mask is not f16 with contiguous rows";
  return NULL;
}

static double flops_of_token(const ggml_abi_tensor *op) {
  const ggml_abi_tensor *q = op->src[Q];
  return 2.0 * (double)(q->ne[0] * q->ne[1]) * (double)op->ne[0];
}

bool ggml_indexer_is_small(const ggml_abi_tensor *op) {
  return flops_of_token(op) * (double)(op->ne[1] * op->ne[3]) < SMALL_FLOPS;
}

/* ---- The problem ---- */

typedef struct slice { /* tokens of a stream */
  int64_t stream, first, n;
} slice;

static ggml_mask_view mask_of(const ggml_abi_tensor *op, slice s) {
  const ggml_abi_tensor *mask = op->src[MASK];
  return (ggml_mask_view){ggml_at(mask, 1, s.first, s.stream % mask->ne[3]),
                          ggml_stride_elems(mask, 1), s.n, op->ne[0]};
}

static amla_index_args describe(const ggml_abi_tensor *op, slice s, const int32_t *visible) {
  const ggml_abi_tensor *q = op->src[Q], *k = op->src[K];
  amla_index_args a = AMLA_INDEX_ARGS_INIT;
  a.s_q = (int32_t)s.n, a.heads = (int32_t)q->ne[1], a.d = (int32_t)q->ne[0];
  a.sk = (int32_t)op->ne[0], a.topk = 0;
  a.q_type = AMLA_F32;
  a.keys = AMLA_INDEX_KEYS_TYPED, a.k_type = ggml_find_type(k->type)->amla;
  a.q_stride_head = ggml_stride(q, 1), a.q_stride_query = ggml_stride(q, 2);
  a.k_stride_token = ggml_stride(k, 2);
  a.q = ggml_at(q, 2, s.first, s.stream);
  a.q_bytes = ggml_span_bytes(q, q->ne[0] * 4, q->ne[1], s.n, 1);
  a.weights = ggml_at(op->src[WEIGHTS], 1, s.first, s.stream);
  a.weights_bytes = (size_t)(s.n * q->ne[1]) * 4;
  a.k = ggml_at(k, 2, 0, s.stream);
  a.k_bytes = ggml_span_bytes(k, ggml_row_bytes(k), 1, k->ne[2], 1);
  a.visible_k = visible, a.visible_k_bytes = (size_t)s.n * sizeof *visible;
  a.scores = ggml_at(op, 1, s.first, s.stream), a.scores_bytes = (size_t)(s.n * op->ne[0]) * 4;
  return a;
}

/* ---- Running it ---- */

static int run_slice(ggml_indexer *x, const ggml_abi_tensor *op, slice s,
                     const amla_options *options, amla_detail *why) {
  const ggml_mask_view mask = mask_of(op, s);
  int32_t *visible = x->visible.data;
  const amla_index_args a = describe(op, s, visible);
  size_t bytes;
  ggml_mask_visible(&mask, visible);
  if (amla_index_scratch_bytes(&a, options, &bytes, why) != AMLA_OK)
    return GGML_ABI_FAILED;
  if (!ggml_buffer_reserve(&x->scratch, bytes))
    return GGML_ABI_ALLOC_FAILED;
  if (amla_index_topk(&a, options, x->scratch.data, bytes, why) != AMLA_OK)
    return GGML_ABI_FAILED;
  ggml_mask_add(&mask, visible, a.scores);
  return GGML_ABI_SUCCESS;
}

int ggml_indexer_run(ggml_indexer *x, const ggml_attention *attention, const ggml_abi_tensor *op,
                     int32_t threads, amla_parallel parallel, void *context) {
  const int64_t tokens = op->ne[1], at_once = (int64_t)(slice_flops / flops_of_token(op));
  amla_options options = AMLA_OPTIONS_INIT;
  options.threads = threads;
  options.parallel = parallel, options.parallel_context = context;
  amla_detail why = {0};
  int status = GGML_ABI_SUCCESS;
  if (!ggml_buffer_reserve(&x->visible, (size_t)tokens * sizeof(int32_t)))
    status = GGML_ABI_ALLOC_FAILED;
  slice s = {0, 0, 0};
  for (; s.stream < op->ne[3]; s.stream++)
    for (s.first = 0; s.first < tokens && status == GGML_ABI_SUCCESS; s.first += s.n) {
      s.n = at_once < 1 ? 1 : at_once;
      if (s.n > tokens - s.first)
        s.n = tokens - s.first;
      if (attention->abort != NULL && attention->abort(attention->abort_data))
        status = GGML_ABI_ABORTED;
      else
        status = run_slice(x, op, s, &options, &why);
    }
  ggml_log_status(GGML_LOG_INDEXER, status, why.text);
  return status;
}

void ggml_indexer_free(ggml_indexer *x) {
  ggml_buffer_free(&x->scratch);
  ggml_buffer_free(&x->visible);
}
