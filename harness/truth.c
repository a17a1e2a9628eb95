/* SPDX-License-Identifier: Apache-2.0
 *
 * The truth of a whole problem, by spec_attention_f64 row by row, and the comparison of results
 * with it. The bound is stated in truth.h; its constants are here.
 */
#include "truth.h"

#include <float.h>
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "spec/spec.h"
#include "kv_rows.h"
#include "message.h"
#include "scopes.h"

static const double ln2 = 0.69314718055994530942;

/* ---- Which keys a row sees ---- */

static int64_t length_of(const amla_problem *p, const amla_tensors *t, int32_t sequence) {
  return t->seqlens_k ? t->seqlens_k[sequence] : p->sk;
}

int64_t harness_visible(const amla_problem *p, const amla_tensors *t, int32_t sequence,
                        int32_t query) {
  if (t->visible_k)
    return t->visible_k[harness_query_index(p, t, sequence, query)];
  const int64_t length = length_of(p, t, sequence);
  const int64_t hidden = p->causal ? harness_query_count(p, t, sequence) - 1 - query : 0;
  return length > hidden ? length - hidden : 0;
}

/* The mask's row for a query, [sk] f16; NULL without one. */
static const uint16_t *mask_row(const amla_problem *p, const amla_tensors *t, int32_t sequence,
                                int32_t query) {
  const int64_t row = p->mask_stride_query ? p->mask_stride_query : p->sk;
  const int64_t batch = p->mask_stride_batch ? p->mask_stride_batch : p->s_q * row;
  return t->mask ? (const uint16_t *)t->mask + sequence * batch + query * row : NULL;
}

static bool hides(const uint16_t *mask, int64_t j) { return mask != NULL && mask[j] == 0xfc00; }

/* Keys that a query sees. */
static int64_t count_keys(const amla_problem *p, const amla_tensors *t, harness_query q) {
  if (harness_has_lines(p))
    return harness_list_keys(p, t, q, NULL);
  const uint16_t *mask = mask_row(p, t, q.sequence, q.query);
  int64_t seen = harness_visible(p, t, q.sequence, q.query);
  for (int64_t j = seen - 1; mask != NULL && j >= 0; j--)
    seen -= hides(mask, j);
  return seen;
}

double harness_flops(const harness_dataset *data) {
  const amla_problem *p = &data->problem;
  const amla_tensors *t = &data->tensors;
  double keys = 0;
  for (int64_t i = 0; i < harness_all_queries(p, t); i++)
    keys += (double)count_keys(p, t, harness_query_at(p, t, i)) * p->h_q;
  return 2 * keys * ((double)p->d_qk + p->d_v);
}

double harness_kv_bytes(const harness_dataset *data) {
  const amla_problem *p = &data->problem;
  const amla_tensors *t = &data->tensors;
  const double rows = (double)harness_rows(data);
  const bool lines = harness_has_lines(p);
  double tokens = 0;
  for (int64_t i = 0; lines && i < harness_all_queries(p, t); i++)
    tokens += (double)count_keys(p, t, harness_query_at(p, t, i));
  for (int32_t s = 0; !lines && s < p->b; s++)
    tokens += (double)length_of(p, t, s);
  return tokens * (double)harness_bytes(p->kv_type, harness_row_elems(p->kv_type, p->d_qk)) +
         rows * (p->d_qk * (double)harness_dtype_bytes(p->q_type) +
                 p->d_v * (double)harness_dtype_bytes(p->out_type));
}

/* ---- Gathering ---- */

/* Queries that share their keys, which are here as f32, and which of those are not finite. */
typedef struct gathered {
  harness_query first;
  int32_t n_queries;
  float *kv;        /* [length][d_qk] */
  bool *not_finite; /* [length] */
  int64_t length;
} gathered;

/* The key's row; false if an element is not finite. */
static bool load_key(const harness_dataset *data, const harness_key *key, float *row,
                     double *kv_max) {
  const amla_problem *p = &data->problem;
  const amla_problem scope = key->scope == 0 ? *p : harness_second_problem(p);
  const amla_problem rope = harness_rope_problem(p);
  const void *kv = key->scope == 0 ? data->tensors.kv : data->tensors.extra_kv;
  const int32_t whole = p->d_qk - p->kv_d_rope;
  bool finite = true;
  for (int32_t d = 0; d < p->d_qk; d++) {
    row[d] = d < whole ? harness_load_kv(&scope, kv, key->at, d)
                       : harness_load_kv(&rope, data->tensors.kv_rope, key->rope_at, d - whole);
    if (isfinite(row[d]))
      *kv_max = fmax(*kv_max, fabs((double)row[d]));
    else
      finite = false;
  }
  return finite;
}

static bool gather(const harness_dataset *data, gathered *g, double *kv_max) {
  const amla_problem *p = &data->problem;
  g->length = harness_list_keys(p, &data->tensors, g->first, NULL);
  if (g->length < 0)
    return false;
  harness_key *keys = harness_allocate(g->length, sizeof *keys);
  g->kv = harness_allocate(g->length * p->d_qk, sizeof(float));
  g->not_finite = harness_allocate(g->length, sizeof(bool));
  const bool ok = keys != NULL && g->kv != NULL && g->not_finite != NULL;
  if (ok)
    harness_list_keys(p, &data->tensors, g->first, keys);
  for (int64_t j = 0; ok && j < g->length; j++)
    g->not_finite[j] = !load_key(data, &keys[j], g->kv + j * p->d_qk, kv_max);
  free(keys);
  return ok;
}

/* ---- Truth ---- */

static bool allocate_truth(const harness_dataset *data, harness_truth *truth) {
  const amla_problem *p = &data->problem;
  const int64_t n = harness_rows(data);
  int64_t elems = n;
  if (n < 0 || !multiply_add(&elems, p->d_v, 0))
    return false;
  *truth = (harness_truth){.n_rows = n, .d_v = p->d_v};
  truth->out = harness_allocate(elems, sizeof(double));
  truth->out_abs = harness_allocate(elems, sizeof(double));
  truth->lse = harness_allocate(n, sizeof(double));
  truth->score_abs = harness_allocate(n, sizeof(double));
  truth->may_poison = harness_allocate(n, sizeof(bool));
  return truth->out && truth->out_abs && truth->lse && truth->score_abs && truth->may_poison;
}

/* Scores below it, and all they are summed from, stay in f32 with log2(e) in them; beyond it
 * nothing is promised, up to FLT_MAX. */
static const double largest_score = (double)FLT_MAX / 1.4426950408889634 * (1 - 0x1p-12);

/* exp(lse) / (exp(lse) + exp(sink)) */
static double sink_factor(const amla_tensors *t, int64_t head, double lse) {
  return t->sinks && lse != -INFINITY ? 1 / (1 + exp((double)t->sinks[head] - lse)) : 1.0;
}

static void load_q(const harness_dataset *data, int64_t row, float *q) {
  const amla_problem *p = &data->problem;
  const int64_t at = harness_q_offset(p, row), rope_at = harness_q_rope_offset(p, row);
  const int32_t whole = p->d_qk - p->q_d_rope;
  for (int32_t d = 0; d < whole; d++)
    q[d] = harness_load(data->tensors.q, p->q_type, at + d);
  for (int32_t d = whole; d < p->d_qk; d++)
    q[d] = harness_load(data->tensors.q_rope, p->q_type, rope_at + d - whole);
}

static void compute_row(const harness_dataset *data, const gathered *g, int64_t row, float *q,
                        float *bias, double *weights, harness_truth *truth) {
  const amla_problem *p = &data->problem;
  const harness_query at = harness_query_at(p, &data->tensors, row / p->h_q);
  const bool all = harness_has_lines(p);
  const int64_t n = all ? g->length : harness_visible(p, &data->tensors, at.sequence, at.query);
  const double scale = data->scale_exact != 0 ? data->scale_exact : (double)p->scale;
  double *out = truth->out + row * p->d_v, *out_abs = truth->out_abs + row * p->d_v, q_max = 0;
  const uint16_t *mask = mask_row(p, &data->tensors, at.sequence, at.query);

  for (int64_t j = 0; mask != NULL && j < n; j++)
    bias[j] = harness_load(mask, AMLA_F16, j);
  load_q(data, row, q);
  const spec_truth t = spec_attention_f64(p->d_qk, p->d_v, n, scale, q, g->kv, mask ? bias : NULL,
                                          out, out_abs, weights);
  const double factor = sink_factor(&data->tensors, row % p->h_q, t.lse);
  for (int32_t d = 0; d < p->d_v; d++) {
    out[d] *= factor;
    out_abs[d] *= factor;
  }
  truth->lse[row] = t.lse;
  truth->score_abs[row] = t.score_abs;
  for (int32_t d = 0; d < p->d_qk; d++) {
    const double x = fabs(scale * (double)q[d]);
    if (x > q_max)
      q_max = x; /* with fmax, GCC 12 for aarch64 fails on this loop */
  }
  if (q_max > largest_score && q_max > t.score_abs)
    truth->score_abs[row] = q_max;
  truth->may_poison[row] = false;
  for (int64_t j = 0; j < g->length; j++)
    if (g->not_finite[j] && (j >= n || hides(mask, j)))
      truth->may_poison[row] = true;
}

/* All rows of its queries; false when out of memory. */
static bool compute_rows(const harness_dataset *data, const gathered *g, harness_truth *truth,
                         harness_progress progress, void *context) {
  const amla_problem *p = &data->problem;
  const int64_t n = (int64_t)g->n_queries * p->h_q;
  const int64_t first =
      harness_query_index(p, &data->tensors, g->first.sequence, g->first.query) * p->h_q;
  bool ok = true;
#pragma omp parallel reduction(&& : ok)
  {
    float *q = harness_allocate(p->d_qk, sizeof *q);
    float *bias = harness_allocate(g->length, sizeof *bias);
    double *weights = harness_allocate(g->length, sizeof *weights);
    ok = q != NULL && bias != NULL && weights != NULL;
#pragma omp for schedule(dynamic)
    for (int64_t r = 0; r < n; r++) {
      if (ok)
        compute_row(data, g, first + r, q, bias, weights, truth);
      if (progress != NULL && omp_get_thread_num() == 0)
        progress(context, (double)(first + r) / (double)truth->n_rows);
    }
    free(q);
    free(bias);
    free(weights);
  }
  return ok;
}

/* A sequence; or a query, where each has keys of its own. */
static gathered group_at(const harness_dataset *data, int64_t i) {
  const amla_problem *p = &data->problem;
  const amla_tensors *t = &data->tensors;
  if (harness_has_lines(p))
    return (gathered){.first = harness_query_at(p, t, i), .n_queries = 1};
  const int32_t sequence = (int32_t)i;
  return (gathered){.first = {sequence, 0}, .n_queries = harness_query_count(p, t, sequence)};
}

int harness_truth_compute_with(const harness_dataset *data, harness_truth *truth,
                               harness_progress progress, void *context) {
  const amla_problem *p = &data->problem;
  const int64_t n = harness_has_lines(p) ? harness_all_queries(p, &data->tensors) : p->b;
  bool ok = allocate_truth(data, truth);
  for (int64_t i = 0; ok && i < n; i++) {
    gathered g = group_at(data, i);
    ok = gather(data, &g, &truth->kv_max);
    ok = ok && compute_rows(data, &g, truth, progress, context);
    free(g.kv);
    free(g.not_finite);
  }
  if (!ok)
    harness_truth_free(truth);
  return ok ? 0 : -1;
}

int harness_truth_compute(const harness_dataset *data, harness_truth *truth) {
  return harness_truth_compute_with(data, truth, NULL, NULL);
}

void harness_truth_free(harness_truth *truth) {
  void *const buffers[] = {truth->out, truth->out_abs, truth->lse, truth->score_abs,
                           truth->may_poison};
  for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++)
    free(buffers[i]);
  *truth = (harness_truth){0};
}

int harness_set_refs(harness_dataset *data, const harness_truth *truth) {
  const int64_t elems = truth->n_rows * truth->d_v;
  free(data->out_ref);
  free(data->lse_ref);
  data->out_ref = harness_allocate(elems, sizeof(float));
  data->lse_ref = harness_allocate(truth->n_rows, sizeof(float));
  if (data->out_ref == NULL || data->lse_ref == NULL)
    return -1;
  for (int64_t i = 0; i < elems; i++)
    data->out_ref[i] = (float)truth->out[i];
  for (int64_t row = 0; row < truth->n_rows; row++)
    data->lse_ref[harness_lse_offset(data, row)] = (float)truth->lse[row];
  return 0;
}

/* ---- The bound ---- */

/* Constants of the bound. Correct fp32 implementations reach 0.02 to 0.5 of it, and 1 where the
 * type of out is 16-bit. */
typedef struct bound {
  double
      score;  /* C_score * u: per unit of score_abs, the dot products and the exponent's argument */
  double sum; /* C_sum * u: P, the sums over keys, the rescales and merges, and the division */
  double p;   /* of out only: P rounded to 16 bits */
  double out; /* u_out: half an ulp of the type, relative */
  double tiny;  /* absolute: half the smallest step of the type, and what flushing to zero loses */
  double limit; /* magnitudes from here on round to infinity in the type */
  double range; /* sums over the keys of p |v| from here on may leave f32 */
  double largest_score; /* beyond it a row may not be finite */
  int32_t parts;        /* merged by their LSEs; 0: none, one result */
  double log_keys;      /* of parts: an LSE is at most score_abs plus this */
} bound;

static const double u = 0x1p-24;

/* What underflows, at l >= 1/2: 64 losses of the smallest normal number in O, below which there is
 * room for 2^10 sk; and keys of a weight below 2^-86 of the reference's. */
static double flushed(const amla_problem *p, const harness_truth *truth) {
  return (64 * 0x1p-126 * 0x1p11 + 0x1p-85 * truth->kv_max) * (double)harness_most_keys(p);
}

static bound bound_of_result(const amla_problem *p, const harness_truth *truth) {
  static const bound of_type[] = {
      [AMLA_F32] = {.out = 0x1p-24, .limit = 0x1p128 - 0x1p103},
      [AMLA_BF16] = {.out = 0x1p-8, .limit = 0x1p128 - 0x1p119},
      [AMLA_F16] = {.out = 0x1p-11, .tiny = 0x1p-25, .limit = 65520},
  };
  bound b = of_type[p->out_type];
  b.score = (4 + sqrt(p->d_qk)) * u;
  b.sum = (63 + (double)harness_repeats(p)) * u;
  b.range = INFINITY;
  b.largest_score = largest_score;
  b.tiny += flushed(p, truth);
  return b;
}

/* A reference in a file: fp64 in any order, rounded to f32. */
static const bound bound_of_ref = {.score = 0x1p-40,
                                   .sum = 0x1p-40,
                                   .out = 0x1p-24,
                                   .tiny = 0x1p-149,
                                   .limit = 0x1p128 - 0x1p103,
                                   .range = INFINITY,
                                   .largest_score = INFINITY};

/* ---- Comparison ---- */

/* One side of a comparison: values in any layout, as functions of row and column. */
typedef struct side {
  const void *out; /* out's layout, or packed; NULL = not compared */
  amla_dtype type;
  bool packed;
  const float *lse;      /* [b][h_q][s_q]; NULL = not compared */
  double lse_to_natural; /* 1, or ln 2 */
  bool lse_with_sink;
} side;

static double value_of(const amla_problem *p, const side *s, int64_t row, int32_t d) {
  const int64_t at = s->packed ? row * p->d_v : harness_out_offset(p, row);
  return (double)harness_load(s->out, s->type, at + d);
}

typedef struct tally {
  harness_error error;
  double square_error, square_truth;
} tally;

/* Error over bound, as the verdict wants it: more than 1 is a failure. */
static void judge(tally *t, int64_t row, double of_bound) {
  if (isnan(of_bound))
    of_bound = INFINITY;
  if (of_bound > 1)
    t->error.ok = 0;
  if (of_bound > t->error.worst_of_bound) {
    t->error.worst_of_bound = of_bound;
    t->error.worst_row = row;
  }
}

static double ratio(double error, double limit) { return error == 0 ? 0 : error / limit; }

static void judge_element(tally *t, const bound *b, int64_t row, double got, double truth,
                          double slack) {
  const double limit = slack + b->out * fabs(truth) + b->tiny;
  if (!isfinite(truth)) {
    judge(t, row, isfinite(got) ? INFINITY : 0);
    return;
  }
  if (isinf(got) && signbit(got) == signbit(truth) && fabs(truth) + limit >= b->limit)
    return; /* rounds to infinity */
  const double error = fabs(got - truth);
  judge(t, row, ratio(error, limit));
  if (!isfinite(error))
    return; /* the verdict has it; keep the norms readable */
  t->square_error += error * error;
  t->square_truth += truth * truth;
  t->error.max_abs_error = fmax(t->error.max_abs_error, error);
}

/* Magnitude of a part's LSE, at most; 0 if there are no parts. */
static double part_lse(const bound *b, double score_abs) {
  return b->parts > 0 ? fmax(1, score_abs + b->log_keys) : 0;
}

static double lse_limit(const bound *b, double truth, double score_abs) {
  return b->score * score_abs + b->sum * fmax(1, fabs(truth)) + u * fabs(truth) +
         u * part_lse(b, score_abs);
}

/* What an error of an exponent makes of a weight: little more than the error while that is small.
 * Finite, as it may meet a value of 0. */
static double of_weight(double error) { return fmin(expm1(error), DBL_MAX); }

/* Of out, per unit of out_abs: weights of parts have the errors of two LSEs. */
static double out_limit(const bound *b, double score_abs) {
  const double one = of_weight(b->score * score_abs) + b->sum;
  if (b->parts == 0)
    return one + b->p;
  return 3 * one + b->p + u * (2 * part_lse(b, score_abs) + b->parts + 2);
}

/* Whatever the weights, a result is a mean of V, up to what sums and P round. */
static double largest_mean(const bound *b, const harness_truth *truth) {
  return (1 + b->sum + b->p) * truth->kv_max;
}

static void judge_lse(tally *t, const bound *b, int64_t row, double got, double truth,
                      double score_abs) {
  if (truth == -INFINITY || !isfinite(got)) {
    judge(t, row, got == truth ? 0 : INFINITY);
    return;
  }
  const double error = fabs(got - truth);
  t->error.lse_max_abs_error = fmax(t->error.lse_max_abs_error, error);
  judge(t, row, ratio(error, lse_limit(b, truth, score_abs)));
}

/* What must be, or may be, not finite in this row. */
typedef enum row_kind { ROW_NORMAL, ROW_POISONED, ROW_EITHER } row_kind;

static row_kind kind_of_row(const harness_truth *truth, const bound *b, int64_t row) {
  const double score_abs = truth->score_abs[row], lse = truth->lse[row];
  if (!isfinite(score_abs) || isnan(lse) || lse > FLT_MAX)
    return ROW_POISONED;
  return score_abs > b->largest_score || truth->may_poison[row] ? ROW_EITHER : ROW_NORMAL;
}

/* log(exp(lse) + exp(sink)), of rows that see a key. Moves by no more than lse does. */
static double add_sink(const amla_tensors *t, int64_t head, double lse) {
  if (t->sinks == NULL || lse == -INFINITY)
    return lse;
  const double sink = (double)t->sinks[head];
  return fmax(lse, sink) + log1p(exp(-fabs(lse - sink)));
}

static double expected_lse(const harness_dataset *data, const harness_truth *truth, const side *got,
                           int64_t row) {
  const double lse = truth->lse[row];
  return got->lse_with_sink ? add_sink(&data->tensors, row % data->problem.h_q, lse) : lse;
}

static void compare_row(const harness_dataset *data, const harness_truth *truth, const side *got,
                        const bound *b, int64_t row, tally *t) {
  const amla_problem *p = &data->problem;
  const double score_abs = truth->score_abs[row], *out = truth->out + row * p->d_v,
               *out_abs = truth->out_abs + row * p->d_v;
  const double lse = got->lse
                         ? (double)got->lse[harness_lse_offset(data, row)] * got->lse_to_natural
                         : truth->lse[row];
  const bool empty = truth->lse[row] == -INFINITY;
  const row_kind kind = kind_of_row(truth, b, row);
  const double share = 1 - sink_factor(&data->tensors, row % p->h_q, truth->lse[row]);
  const double sink_slack =
      share > 0 ? share * of_weight(lse_limit(b, truth->lse[row], score_abs)) : 0;

  if (kind == ROW_EITHER && !isfinite(got->out != NULL ? value_of(p, got, row, 0) : lse)) {
    t->error.unjudged += (got->out != NULL ? p->d_v : 0) + (got->lse != NULL);
    return;
  }
  if (kind == ROW_POISONED && got->lse)
    judge(t, row, isfinite(lse) ? INFINITY : 0);
  if (kind != ROW_POISONED && got->lse)
    judge_lse(t, b, row, lse, expected_lse(data, truth, got, row), score_abs);
  for (int32_t d = 0; got->out != NULL && d < p->d_v; d++) {
    const double value = value_of(p, got, row, d);
    const double weights = out_limit(b, score_abs) * out_abs[d] + sink_slack * fabs(out[d]);
    const double slack = fmin(weights, fabs(out[d]) + largest_mean(b, truth));
    if (kind == ROW_POISONED)
      judge(t, row, isfinite(value) ? INFINITY : 0);
    else if (empty)
      judge(t, row, value == 0 ? 0 : INFINITY);
    else if (isinf(value) && out_abs[d] >= b->range)
      t->error.unjudged++;
    else
      judge_element(t, b, row, value, out[d], slack);
  }
}

static harness_error compare(const harness_dataset *data, const harness_truth *truth,
                             const side *got, const bound *b) {
  tally t = {.error = {.ok = 1}};
  for (int64_t row = 0; row < truth->n_rows; row++)
    compare_row(data, truth, got, b, row, &t);
  if (t.square_error > 0)
    t.error.rel_error = sqrt(t.square_error / t.square_truth);
  return t.error;
}

static side result_of(const harness_dataset *data) {
  return (side){.out = data->tensors.out,
                .type = data->problem.out_type,
                .lse = data->tensors.lse,
                .lse_to_natural = data->options.lse_base == AMLA_LSE_BASE2 ? ln2 : 1.0,
                .lse_with_sink = data->options.lse_sink != AMLA_LSE_WITHOUT_SINK};
}

harness_error harness_compare(const harness_dataset *data, const harness_truth *truth) {
  const side got = result_of(data);
  const bound b = bound_of_result(&data->problem, truth);
  return compare(data, truth, &got, &b);
}

harness_error harness_compare_rounded_p(const harness_dataset *data, const harness_truth *truth,
                                        amla_dtype p_type) {
  const side got = result_of(data);
  bound b = bound_of_result(&data->problem, truth);
  b.score *= 4;
  b.range = (double)FLT_MAX / 256 / (double)harness_most_keys(&data->problem); /* P may reach 2^8 */
  b.p = p_type == AMLA_F16 ? 0x1p-10 : 0x1p-7;
  if (p_type == AMLA_F16)
    b.tiny += 0x1p-30 * (double)harness_most_keys(&data->problem) * truth->kv_max;
  return compare(data, truth, &got, &b);
}

/* Products of bf16, at most 2^8 of P each: what flushing takes from O, and from the scores what
 * passes for an error of V. */
static void multiply_bf16(const amla_problem *p, const harness_truth *truth, bound *b) {
  const double scale = fabs((double)p->scale);
  b->tiny += 0x1p-117 * (double)harness_most_keys(p) +
             0x1p-125 * scale * p->d_qk * truth->kv_max * (1 + truth->kv_max);
  b->largest_score = fmin(largest_score, scale * (double)FLT_MAX * (1 - 0x1p-12));
  if (p->kv_type != AMLA_BF16 && p->kv_type != AMLA_FP8_584) { /* which bf16 holds */
    b->score += 0x1p-8;
    b->p += 0x1p-8;
  }
}

static bound bound_of_plan(const harness_dataset *data, const harness_truth *truth,
                           const amla_plan_info *info) {
  bound b = bound_of_result(&data->problem, truth);
  if (info->p_form == AMLA_P_BF16)
    b.p = 0x1p-7;
  if (info->p_form == AMLA_P_BF16X2)
    b.p = 0x1p-15;
  if (info->key_type == AMLA_BF16)
    multiply_bf16(&data->problem, truth, &b);
  if (info->q_form == AMLA_Q_BF16X2 && data->problem.q_type == AMLA_F32)
    b.score += 0x1p-17;
  return b;
}

harness_error harness_compare_plan(const harness_dataset *data, const harness_truth *truth,
                                   const amla_plan_info *info) {
  if (info->backend > AMLA_BACKEND_CPU)
    return harness_compare_rounded_p(data, truth, info->p_type);
  const side got = result_of(data);
  const bound b = bound_of_plan(data, truth, info);
  return compare(data, truth, &got, &b);
}

harness_error harness_compare_merged(const harness_dataset *data, const harness_truth *truth,
                                     const amla_plan_info *info, int32_t n_parts) {
  const side got = result_of(data);
  bound b = bound_of_plan(data, truth, info);
  b.parts = n_parts;
  b.log_keys = log((double)harness_most_keys(&data->problem) + 1);
  return compare(data, truth, &got, &b);
}

harness_error harness_check_refs(const harness_dataset *data, const harness_truth *truth) {
  const side refs = {.out = data->out_ref,
                     .type = AMLA_F32,
                     .packed = true,
                     .lse = data->lse_ref,
                     .lse_to_natural = 1.0};
  return compare(data, truth, &refs, &bound_of_ref);
}

/* The truth with the file's numbers in place of its own: what is left of it are the magnitudes that
 * the bound scales with. */
static bool truth_from_refs(const harness_dataset *data, const harness_truth *truth,
                            harness_truth *refs) {
  const int64_t n = truth->n_rows, elems = n * truth->d_v;
  *refs = *truth;
  refs->out = harness_allocate(elems, sizeof(double));
  refs->lse = harness_allocate(n, sizeof(double));
  if (refs->out == NULL || refs->lse == NULL)
    return false;
  for (int64_t i = 0; i < elems; i++)
    refs->out[i] = data->out_ref ? (double)data->out_ref[i] : truth->out[i];
  for (int64_t row = 0; row < n; row++)
    refs->lse[row] =
        data->lse_ref ? (double)data->lse_ref[harness_lse_offset(data, row)] : truth->lse[row];
  return true;
}

harness_error harness_compare_ref(const harness_dataset *data, const harness_truth *truth) {
  harness_truth refs;
  side got = result_of(data);
  bound b = bound_of_result(&data->problem, truth);
  harness_error error = {.worst_of_bound = INFINITY};
  b.out += bound_of_ref.out; /* the reference is rounded too */
  if (data->lse_ref == NULL)
    got.lse = NULL;
  if (truth_from_refs(data, truth, &refs))
    error = compare(data, &refs, &got, &b);
  free(refs.out);
  free(refs.lse);
  return error;
}
