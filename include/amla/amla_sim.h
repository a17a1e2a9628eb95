/* SPDX-License-Identifier: Apache-2.0
 *
 * The Ascend kernel on a SIMULATED NPU, timed: cycles, utilisation and bytes as a model of the chip
 * predicts them, no results. Nothing here was measured on silicon. Implemented by libamla_npu.so;
 * to compute results on the same simulator, use backend npu of amla.h. What the model assumes, and
 * how sure it is: docs/ascend.md.
 */
#ifndef AMLA_AMLA_SIM_H
#define AMLA_AMLA_SIM_H

#include <amla/amla.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum amla_sim_schedule {
  AMLA_SIM_BEST = 0,    /* ours */
  AMLA_SIM_SERIAL = 1,  /* a key tile's stages one after the other */
  AMLA_SIM_PRELOAD = 2, /* the Preload Pipeline of arXiv 2509.25224 */
  /* chip 950 only: the same with S and P that never leave the AI core; row blocks of 128 */
  AMLA_SIM_IN_CORE = 3
} amla_sim_schedule;

/* A schedule with its tiling; docs/ascend.md explains the fields. */
typedef struct amla_sim_tiling {
  int32_t lag;                /* products Q K^T that run ahead of P V; 0 = serial */
  int32_t tile_keys;          /* keys per key tile */
  int32_t qk_l1, qk_l0;       /* Q K^T: depth of a piece in L1, of a step in L0 */
  int32_t pv_l1, pv_l0;       /* P V: the same, in keys */
  int32_t kv_slots, qp_slots; /* pieces that L1 holds of K or V, and of Q or P */
  int32_t l0_slots;           /* tiles that L0A and L0B hold */
  /* of the two halves of the rows: 0 as published, 1 sharing tiles of K and V in L0B */
  int32_t order;
  int32_t in_turns; /* 1: column tiles of the two products alternate; needs lag 2 and keep_q */
  int32_t keep_q;   /* 1: Q stays in L1 for all key tiles; row blocks of at most 128 rows */
  int32_t in_core;  /* 1: S stays in UB and P in L1; needs lag 1, keep_q and chip 950 */
} amla_sim_tiling;

/* What a pipe did. Pipes are named; subcore -1 is the cube core, 0 and 1 the vector cores of AI
 * core `core`. */
typedef struct amla_sim_event {
  int64_t start_cycle, end_cycle;
  int32_t core, subcore;
  const char *pipe, *name;
} amla_sim_event;

/* Another number in one row of the cost table, for what-if questions. */
typedef struct amla_sim_cost_change {
  const char *row; /* "UNIT/operation", as amla_sim_cost prints it */
  double fixed_cycles, rate, latency_cycles;
} amla_sim_cost_change;

typedef struct amla_sim_options {
  uint32_t struct_bytes;
  amla_sim_schedule schedule;
  const amla_sim_tiling *tiling; /* NULL = the schedule's */
  const char *chip;              /* "910" (two dies; NULL = it), "910b1" .. "910b4", "950" */
  int32_t cores;                 /* AI cores to use; 0 = all */
  /* lazy: key tiles of a work item in which every row's reference moves. Default 1 */
  int32_t assume_bumps;
  /* 1: also here, where no data moves; functional runs always do. Slow for large problems */
  int32_t check_races;
  const char *trace_path; /* writes a Chrome trace there (Perfetto opens it); NULL = none */
  /* called for each after the run; NULL = none */
  void (*event)(void *context, const amla_sim_event *event);
  void *context;
  const amla_sim_cost_change *costs; /* [n_costs] */
  int32_t n_costs;
  /* Study: 1 = rescale amla as published, an atomic add to the bits of O in memory, which is wrong
   * where O is 0 or tiny; 0 = guarded, as backend npu computes it. */
  int32_t unguarded_add;
  /* The one knob, neutral to all modes and schedules: all time after the launch takes 1 /
   * efficiency of what the model says, for synchronisation and whatever is not modelled. 0 = the
   * default, AMLA_SIM_EFFICIENCY; 1 = nothing fitted. */
  double efficiency;
  double l2_share, hbm_share; /* of the chip's bandwidths, for what-if questions; 0 = 1 */
  /* > 0: that many AI cores of a die, with their share of its L2 and HBM, stand for the chip:
   * faster. 0 = all of it */
  int32_t slice_cores;
  int32_t kv_nz;  /* 1: pages of kv lie in columns of 16 elements, [d / 16][page_size][16] */
  int32_t d_rope; /* > 0: the last so many elements of rows of q and kv are tensors of their own */
  /* 1: kv, f16 in the problem, is int8 with a scale per token; the vector cores convert it */
  int32_t kv_int8;
} amla_sim_options;

/* With it, the published schedule at s_q = 2, h_q = 128, s_k = 16384, b = 96 meets the published
 * 86.8 % of peak: the only number of the model that was set by a run of this kernel. */
#define AMLA_SIM_EFFICIENCY 0.93

/* clang-format off */
#define AMLA_SIM_OPTIONS_INIT                                                                      \
  {(uint32_t)sizeof(amla_sim_options), AMLA_SIM_BEST, NULL, NULL, 0, 1, 0, NULL, NULL, NULL,       \
   NULL, 0, 0, 0.0, 0.0, 0.0, 0, 0, 0, 0}
/* clang-format on */

/* What the report names as pipes. Cube core: cube (M), mte1, mte2, fix; vector cores: vector (V),
 * aiv_mte2, aiv_mte3; shared: l2, hbm. */
enum { AMLA_SIM_PIPES = 9 };

typedef struct amla_sim_report {
  uint32_t struct_bytes;
  int32_t cores;
  int64_t cycles, launch_cycles; /* whole launch; of that before the first instruction */
  int64_t instructions;
  double seconds, flops; /* flops: useful ones, visible keys only */
  double flops_per_second, peak_flops_per_second, utilization;
  const char *pipe_name[AMLA_SIM_PIPES];
  /* share of the cycles after launch, mean of the cores; l2, hbm: of their bandwidth */
  double pipe_busy[AMLA_SIM_PIPES];
  int64_t gm_l1_bytes, gm_ub_bytes, l1_l0a_bytes, l1_l0b_bytes, l0c_gm_bytes, ub_gm_bytes;
  int64_t l2_read_bytes, l2_write_bytes, hbm_read_bytes, hbm_write_bytes;
  int32_t races_checked;
  int64_t races, other_errors;
  amla_sim_tiling tiling;
  char description[128]; /* "preload lazy, 910: 48 cores at 1.80 GHz, 256 rows x 512 keys" */
  char message[480];     /* the first error in words; "" = none */
  /* The same with nothing fitted: efficiency 1. cycles, seconds and all that follows from them
   * above have the efficiency; busy shares are those of the unfitted run. */
  double efficiency, unfitted_seconds, unfitted_utilization;
  double l2_read_busy; /* share of L2's bandwidth of reads */
} amla_sim_report;

/* clang-format off */
#define AMLA_SIM_REPORT_INIT                                                                       \
  {(uint32_t)sizeof(amla_sim_report), 0, 0, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, {0}, {0}, 0, 0, 0, 0,   \
   0, 0, 0, 0, 0, 0, 0, 0, 0, {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, {0}, {0}, 0.0, 0.0, 0.0, 0.0}
/* clang-format on */

/* Times one run of the problem. Only rescale of options (NULL = defaults) matters; keys are split
 * by equal shares of the cores. seqlens_k [b], NULL = all sk. Refusals as amla_plan_create's.
 * Allocates. */
AMLA_API amla_status amla_sim_run(const amla_problem *problem, const amla_options *options,
                                  const int32_t *seqlens_k, const amla_sim_options *sim,
                                  amla_sim_report *report, amla_detail *detail);

/* Candidate i of a search over tilings for the problem; all fit the buffers. 0 past the last one,
 * else 1. */
AMLA_API int32_t amla_sim_candidate(const amla_problem *problem, int32_t i,
                                    amla_sim_tiling *tiling);

/* ---- What the model is held against ---- */

enum { AMLA_SIM_GEMM_SHARES = 4 }; /* cube, mte1, mte2, fix */

/* A published profile of a GEMM on 24 cores of a 910B1, and the same on the model, with nothing
 * fitted to attention. Shares are of the whole duration; 0 = not published. */
typedef struct amla_sim_gemm {
  int32_t n;        /* all three sizes; bf16 in, f32 out */
  int32_t held_out; /* 1: no number of the model was fitted to this one */
  double published_seconds, seconds;
  double published_share[AMLA_SIM_GEMM_SHARES], share[AMLA_SIM_GEMM_SHARES];
} amla_sim_gemm;

AMLA_API int32_t amla_sim_gemm_count(void);

/* Simulates profile i. Of the options chip, costs and shares matter. */
AMLA_API amla_status amla_sim_gemm_run(int32_t i, const amla_sim_options *sim, amla_sim_gemm *gemm,
                                       amla_detail *detail);

/* Simulated bytes per second, read and written, of all vector cores of a 910B2 that copy 32 KB
 * pieces from memory to memory through L2. One figure is public: 2.35e12, a lower bound. */
AMLA_API amla_status amla_sim_copy_run(const amla_sim_options *sim, double *bytes_per_second,
                                       amla_detail *detail);

/* Line i of the cost table: "MTE1 load_l0a 40 + work/256 B per cycle, latency 0; medium; source".
 * NULL past the last. Valid until the next call. */
AMLA_API const char *amla_sim_cost(int32_t i);

/* The numbers of line i, as a change that changes nothing. 0 past the last, else 1. */
AMLA_API int32_t amla_sim_cost_row(int32_t i, amla_sim_cost_change *row);

#ifdef __cplusplus
}
#endif
#endif
