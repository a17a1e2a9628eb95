/* SPDX-License-Identifier: Apache-2.0
 *
 * What the timing model is held against: published profiles of the vendor's GEMM examples (128 x
 * 256 x 64 tiles, double-buffered, 24 cores at 1.85 GHz), and the one public figure of 48 vector
 * cores that copy. Fitted on 1536 (launch), 6144 and 8192 (L2 reads); 3072 and 7680 are
 * predictions.
 */
#include <amla/amla_sim.h>
#include <string.h>

#include "../../sim/npu_gemm.h"
#include "../refuse.h"
#include "ascend_chip.h"

static const amla_sim_gemm published[] = {
    {1536, 0, 38.8e-6, 0, {0.545, 0.422, 0.722, 0.077}, {0}},
    {3072, 1, 206.7e-6, 0, {0.790, 0.620, 0.909, 0.058}, {0}},
    {6144, 0, 1506e-6, 0, {0.867, 0.681, 0.952, 0.031}, {0}},
    {7680, 1, 3168e-6, 0, {0.806, 0.630, 0.984, 0.024}, {0}},
    {8192, 0, 4046.5e-6, 0, {0}, {0}}, /* 4012 to 4081 us */
};
enum { N_PUBLISHED = sizeof published / sizeof *published, GRID_M = 4, GRID_N = 6 };

int32_t amla_sim_gemm_count(void) { return N_PUBLISHED; }

static void *place(npu_chip *chip, int64_t elems, int64_t elem_bytes, const char *name) {
  void *at = npu_gm_alloc(chip, (size_t)(elems * elem_bytes), name);
  if (at)
    npu_gm_written(chip, at);
  return at;
}

static amla_status run_gemm(npu_chip *chip, amla_sim_gemm *g, amla_detail *detail) {
  static const int pipes[AMLA_SIM_GEMM_SHARES] = {NPU_PIPE_M, NPU_PIPE_MTE1, NPU_PIPE_MTE2,
                                                  NPU_PIPE_FIX};
  const int64_t elems = (int64_t)g->n * g->n;
  npu_launch_options o;
  npu_report r;
  npu_gemm job;
  memset(&o, 0, sizeof o);
  o.cores = GRID_M * GRID_N;
  job.n = g->n, job.grid_m = GRID_M, job.grid_n = GRID_N;
  job.a = place(chip, elems, 2, "a"), job.b = place(chip, elems, 2, "b");
  job.c = place(chip, elems, 4, "c");
  if (!job.a || !job.b || !job.c)
    return amla_refuse(detail, AMLA_OUT_OF_MEMORY, "gemm of %d: no memory for the simulator", g->n);
  if (npu_launch(chip, npu_gemm_cube, NULL, &job, &o, &r) != 0)
    return amla_refuse(detail, AMLA_BACKEND_FAILED, "simulated NPU: %.200s", r.message[0]);
  const double after_launch = (double)(r.cycles - r.launch_cycles) / (double)r.cycles;
  g->seconds = r.seconds;
  for (int i = 0; i < AMLA_SIM_GEMM_SHARES; i++)
    g->share[i] = r.aic_busy[pipes[i]] * after_launch;
  return amla_accept(detail);
}

amla_status amla_sim_gemm_run(int32_t i, const amla_sim_options *sim, amla_sim_gemm *gemm,
                              amla_detail *detail) {
  npu_preset preset;
  npu_chip *chip;
  if (i < 0 || i >= N_PUBLISHED)
    INVALID("i=%d: must be in 0..%d", i, N_PUBLISHED - 1);
  if (!sim || sim->struct_bytes != sizeof *sim)
    INVALID("sim.struct_bytes: use AMLA_SIM_OPTIONS_INIT of this version");
  TRY(ascend_chip_create(sim, "910b1", &preset, &chip, detail));
  *gemm = published[i];
  amla_status status = AMLA_INVALID_ARGUMENT;
  if (preset.dies * preset.cores_per_die < GRID_M * GRID_N)
    amla_refuse(detail, status, "chip=%s: the GEMMs need %d cores", preset.name, GRID_M * GRID_N);
  else
    status = run_gemm(chip, gemm, detail);
  npu_chip_destroy(chip);
  return status;
}

/* ---- All vector cores copy ---- */

enum { PIECE = 32 * 1024, PIECES = 64, ROUNDS = 8 };

typedef struct copy_job {
  NPU_GM char *gm; /* [AIVs][2][PIECE] */
} copy_job;

/* Each AIV copies its own piece to and fro, two at a time. */
static void copy_kernel(const void *args) {
  const copy_job *j = (const copy_job *)args;
  const int32_t me = npu_block_index() * 2 + npu_subcore();
  NPU_GM char *from = j->gm + (int64_t)me * 2 * PIECE, *to = from + PIECE;
  for (int32_t e = 0; e < 2; e++)
    npu_notify(NPU_PIPE_MTE3, NPU_PIPE_MTE2, e);
  for (int32_t i = 0; i < PIECES * ROUNDS; i++) {
    NPU_UB char *ub = NPU_UB_AT(char, (uint32_t)(i % 2 * PIECE));
    npu_wait(NPU_PIPE_MTE3, NPU_PIPE_MTE2, i % 2);
    npu_copy_gm_ub(ub, from, 1, PIECE, PIECE, PIECE);
    npu_notify(NPU_PIPE_MTE2, NPU_PIPE_MTE3, i % 2);
    npu_wait(NPU_PIPE_MTE2, NPU_PIPE_MTE3, i % 2);
    npu_copy_ub_gm(to, ub, 1, PIECE, PIECE, PIECE);
    npu_notify(NPU_PIPE_MTE3, NPU_PIPE_MTE2, i % 2);
  }
  for (int32_t e = 0; e < 2; e++)
    npu_wait(NPU_PIPE_MTE3, NPU_PIPE_MTE2, e);
}

amla_status amla_sim_copy_run(const amla_sim_options *sim, double *bytes_per_second,
                              amla_detail *detail) {
  npu_preset preset;
  npu_chip *chip;
  npu_report r;
  if (!sim || sim->struct_bytes != sizeof *sim)
    INVALID("sim.struct_bytes: use AMLA_SIM_OPTIONS_INIT of this version");
  TRY(ascend_chip_create(sim, "910b2", &preset, &chip, detail));
  const int64_t cores = 2 * preset.dies * preset.cores_per_die;
  const copy_job job = {place(chip, cores * 2 * PIECE, 1, "gm")};
  amla_status status = AMLA_OK;
  if (!job.gm || npu_launch(chip, NULL, copy_kernel, &job, NULL, &r) != 0)
    status = amla_refuse(detail, AMLA_BACKEND_FAILED, "simulated NPU: the copies failed");
  else
    *bytes_per_second = (double)(r.l2_read_bytes + r.l2_write_bytes) * preset.ghz * 1e9 /
                        (double)(r.cycles - r.launch_cycles);
  npu_chip_destroy(chip);
  return status == AMLA_OK ? amla_accept(detail) : status;
}
