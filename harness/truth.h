/* SPDX-License-Identifier: Apache-2.0
 *
 * The fp64 truth of a whole problem, the stated error bound, and the comparison of a result with
 * both.
 *
 * The bound of an output element is scaled to the rounding points of the fp32 path (u = 2^-24,
 * u_out = half an ulp of the output type, relative: 2^-24 for f32, 2^-8 for bf16, 2^-11 for f16):
 *
 *     |out - truth| <= (C_score * u * score_abs + C_sum * u) * out_abs
 *                    + (1 - f) * bound of lse * |truth| + u_out * |truth| + tiny
 *     |lse - truth| <= C_score * u * score_abs + (C_sum + 1) * u * max(1, |truth|)
 *
 * C_score = 4 + sqrt(d_qk): 4 for the scale and the exponent's argument, and sqrt(d_qk) because
 * d_qk roundings of a dot product that is summed in one chain add up like a random walk (Higham and
 * Mary, 2019, probabilistic bounds). C_sum = 63 + r, where lists name a key r times (1 without
 * lists, else topk over the scope's keys): equal terms in a chain all round the same way.
 * score_abs = max_j |scale| sum_d |q_d k_jd| + |mask_j| (rounding of the dot products), out_abs
 * = sum_j p_j |v_j| (rounding of P and of the sum over V). f = exp(lse) / (exp(lse) + exp(sink)) is
 * the sink's factor of out, 1 without sinks; it hands on LSE's error. tiny is what underflows. An
 * error x of a score moves its weight by exp(x) - 1, which is what `ok` means: more than x only
 * where keys are rounded to bf16 and score_abs is beyond some 30. No result is farther from the
 * truth than a mean of V can be. docs/numerics.md derives them all.
 */
#ifndef AMLA_HARNESS_TRUTH_H
#define AMLA_HARNESS_TRUTH_H

#include "dataset.h"

typedef struct harness_truth {
  int64_t n_rows; /* in the order [b][s_q][h_q]; of ragged queries [total][h_q] */
  int32_t d_v;
  double *out;       /* [n_rows][d_v], after the sink */
  double *out_abs;   /* [n_rows][d_v] */
  double *lse;       /* [n_rows] natural log, in the order of the rows, not of amla's lse tensor */
  double *score_abs; /* [n_rows] */
  double kv_max;     /* largest |element| of the keys in use, of those that are finite */
  /* [n_rows] a key that causality or the mask hides from the row is not finite: so may the row be
   * (amla.h) */
  bool *may_poison;
} harness_truth;

typedef struct harness_error {
  double rel_error; /* |out - truth|_F / |truth|_F; 0 when both are 0 */
  double max_abs_error;
  double lse_max_abs_error; /* natural log */
  double worst_of_bound;    /* largest |error| / bound over out and lse; ok when <= 1 */
  int64_t worst_row;
  /* numbers of out and lse that are not finite where amla.h promises nothing: neither right nor
   * wrong */
  int64_t unjudged;
  /* every element within the bound, and NaN, inf and empty rows exactly where they belong */
  int ok;
} harness_error;

/* 0, or -1 when out of memory, or when a length or a used page id is out of range. Uses all threads
 * (OpenMP). Reads the tensors as the semantics say: only used slots. */
int harness_truth_compute(const harness_dataset *data, harness_truth *truth);

/* The same; progress (may be NULL) is called from one thread now and then with the fraction done.
 */
typedef void (*harness_progress)(void *context, double fraction);
int harness_truth_compute_with(const harness_dataset *data, harness_truth *truth,
                               harness_progress progress, void *context);
void harness_truth_free(harness_truth *truth);

/* Compares data's out and lse (lse base as in options; lse may be absent) with the truth. */
harness_error harness_compare(const harness_dataset *data, const harness_truth *truth);

/* The same for a backend that rounds P to a 16-bit type before PV and sums its scores in a matrix
 * unit, which may truncate. With u_p = 2^-8 for bf16, 2^-11 for f16, the bound of out grows by 2
 * u_p out_abs (P and its sum), for f16 also by 2^-30 sk max |kv| (weights that leave its range),
 * and C_score is four times as large. The bound of lse has no u_p: it comes from the unrounded P.
 */
harness_error harness_compare_rounded_p(const harness_dataset *data, const harness_truth *truth,
                                        amla_dtype p_type);

/* The same for what a plan's query says. Of backends cuda and npu: as harness_compare_rounded_p. Of
 * cpu, where P is bf16 or two of them, out's bound grows by u_P out_abs, u_P = 2^-7 or 2^-15: half
 * for P, half for its sum. Keys that are rounded to bf16 add 2^-8 out_abs, and to C_score u 2^-8; q
 * of f32 in two parts 2^-17. Products of bf16 flush below 2^-126, and unscaled sums leave f32 at
 * |scale| FLT_MAX of a score. */
harness_error harness_compare_plan(const harness_dataset *data, const harness_truth *truth,
                                   const amla_plan_info *info);

/* The same for a merge of n_parts normalised results by their LSEs, each of a part of the keys: the
 * bound of interleave_tokens in amla_mpi.h. */
harness_error harness_compare_merged(const harness_dataset *data, const harness_truth *truth,
                                     const amla_plan_info *info, int32_t n_parts);

/* Compares with data's out_ref and lse_ref, taking score_abs and out_abs for the bound from the
 * truth. */
harness_error harness_compare_ref(const harness_dataset *data, const harness_truth *truth);

/* The file's out_ref and lse_ref themselves against the truth: both come from fp64, so they agree
 * to f32 rounding, and a changed exponent anywhere in the file shows. */
harness_error harness_check_refs(const harness_dataset *data, const harness_truth *truth);

/* Gives data the truth, rounded to f32, as its out_ref and lse_ref; -1 when out of memory. */
int harness_set_refs(harness_dataset *data, const harness_truth *truth);

/* Row (sequence, query) sees keys of a dense first scope below this, but for those that the mask or
 * a window hides: the length, or less under causality or visible_k; never negative. */
int64_t harness_visible(const amla_problem *problem, const amla_tensors *tensors, int32_t sequence,
                        int32_t query);

/* Useful work of one run: visible keys only. */
double harness_flops(const harness_dataset *data); /* 2 * rows' visible keys * (d_qk + d_v) */
/* Each sequence's KV once, or the keys of each query that has its own; plus q and out. */
double harness_kv_bytes(const harness_dataset *data);

#endif
