/* SPDX-License-Identifier: Apache-2.0
 *
 * What a prebuilt ggml makes of captured decode steps over a q8_0 cache: relative error of the
 * output over all heads, against f64 on that cache, of its own CPU backend and of the plug-in.
 *
 *     step_error LIBGGML_AMLA_SO FOLDER_OF_LIBGGML FILE...      safetensors, dense and causal
 *
 * Exit status: 0; 1 ggml cannot be used, or a file.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ggml/ggml_session.h"
#include "harness/dataset.h"
#include "harness/safetensors.h"

enum { D = 576, D_V = 512 };

__attribute__((noreturn)) static void stop(const char *what) {
  fprintf(stderr, "step_error: %s\n", what);
  exit(1);
}

static void read_step(const char *path, harness_dataset *data) {
  const amla_problem *p = &data->problem;
  char error[256];
  if (harness_read_problem(path, data, error, sizeof error) != 0)
    stop(error);
  if (p->d_qk != D || p->d_v != D_V || p->b != 1 || p->topk > 0 || p->kv_type > AMLA_F16)
    stop("wants one sequence of 576 and 512 columns without lists, in f32, bf16 or f16");
  if (p->s_q > 1 && !p->causal)
    stop("wants several queries to be causal");
}

/* The step in place of the job's own data. The job's scale is 1 / sqrt(576) = 1 / 24. */
static void fill(ggml_session *s, const harness_dataset *data, ggml_job *job) {
  const amla_problem *p = &data->problem;
  float row[D], *q = job->q->data;
  for (int64_t i = 0; i < harness_rows(data); i++)
    for (int d = 0; d < D; d++)
      *q++ = 24 * p->scale * harness_load(data->q, p->q_type, harness_q_offset(p, i) + d);
  for (int64_t j = 0; j < job->c.kv; j++) {
    const int64_t at = harness_token_offset(p, data->block_table, 0, j);
    for (int d = 0; d < D; d++)
      row[d] = harness_load(data->kv, p->kv_type, at + d);
    s->ggml_quantize_chunk(GGML_ABI_Q8_0, row, (char *)job->k->data + (size_t)j * job->k->nb[1], 0,
                           1, D, NULL);
  }
}

static double error_of(ggml_session *s, ggml_job *job, void *backend, const float *truth) {
  if (!ggml_job_run(s, job, backend))
    stop("a backend failed");
  return sqrt(ggml_nmse(truth, job->op->data, D_V * job->c.heads * job->c.tokens));
}

static void print_errors(ggml_session *s, const char *path) {
  harness_dataset data;
  ggml_job job;
  read_step(path, &data);
  const ggml_case c = {.d_k = D,
                       .heads = data.problem.h_q,
                       .kv = data.seqlens_k ? data.seqlens_k[0] : data.problem.sk,
                       .tokens = data.problem.s_q,
                       .streams = 1,
                       .type = GGML_ABI_Q8_0,
                       .mask = data.problem.s_q > 1 ? MASK_CAUSAL : MASK_NONE,
                       .permuted = true};
  float *truth = malloc((size_t)harness_rows(&data) * D_V * sizeof *truth);
  if (!truth)
    stop("out of memory");
  ggml_job_create(s, &c, 1, &job);
  fill(s, &data, &job);
  ggml_job_truth(s, &job, 1, truth);
  const char *slash = strrchr(path, '/');
  printf("  %-42s %d keys: ggml %.1e, the plug-in %.1e\n", slash ? slash + 1 : path, (int)c.kv,
         error_of(s, &job, s->cpu, truth), error_of(s, &job, s->amla, truth));
  free(truth);
  ggml_job_free(s, &job);
  harness_free(&data);
}

int main(int argc, char **argv) {
  ggml_session s;
  if (argc < 3 || !ggml_session_open(&s, argv[2], argv[1]))
    stop("wants LIBGGML_AMLA_SO, a FOLDER_OF_LIBGGML that can be used, and files");
  printf("The same of ggml %s over q8_0, by itself and with the plug-in, all heads\n",
         s.ggml_version());
  for (int i = 3; i < argc; i++)
    print_errors(&s, argv[i]);
  ggml_session_close(&s);
  return 0;
}
