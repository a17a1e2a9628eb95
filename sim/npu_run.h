/* SPDX-License-Identifier: Apache-2.0
 *
 * The host's side of the simulated NPU: create a chip, give it global memory, launch a kernel
 * written against npu_isa.h, read the report. Everything reported is simulated. Deterministic: same
 * launch, same report. One chip must not be used by two threads at once; different chips may.
 * Allocates with malloc.
 *
 * Time only observes: a kernel that runs without errors computes the same bits with any costs and
 * any preset of as many cores, unless a flag overflows there, which is reported. Why: README.md,
 * "Time changes no value". */
#ifndef NPU_RUN_H
#define NPU_RUN_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct npu_chip npu_chip;
typedef void npu_kernel(const void *args);

typedef enum npu_mode {
  NPU_FUNCTIONAL, /* instructions move data; races are checked */
  /* the same instruction streams and times without data; races are checked on request */
  NPU_TIMING_ONLY
} npu_mode;

/* ---- Presets: npu_presets.def ---- */

typedef struct npu_preset {
  const char *name; /* "910", "910b1" .. "910b4", "950" */
  double ghz;
  int32_t dies, cores_per_die; /* AI cores: 1 AIC + 2 AIV each */
  double hbm_bytes_per_second; /* per die, as is l2 */
  double l2_read_bytes_per_second, l2_bytes_per_second;
  int64_t l2_bytes;
  int32_t l0c_kb, ub_kb;
  int32_t core_paths; /* 1: from L0C to UB and from UB to L1 of the same AI core */
  const char *source;
} npu_preset;

const npu_preset *npu_find_preset(const char *name); /* NULL: no such preset */
const npu_preset *npu_preset_at(int32_t i);          /* NULL past the last: to list them */
double npu_peak_flops(const npu_preset *preset);     /* bf16: cores * clock * 8192 */

/* ---- Costs: npu_costs.def ---- */

/* An instruction with `units` of work holds its pipe for fixed_cycles + ceil(units / rate) cycles,
 * and its results can be waited for latency_cycles later. Units: bytes, 16^3 products, or repeats
 * of 64 lanes. */
typedef struct npu_cost {
  const char *unit, *operation; /* "MTE1", "load_l0a" */
  double fixed_cycles, rate, latency_cycles;
  const char *rate_unit, *confidence, *source;
} npu_cost;

int32_t npu_cost_count(void);
const npu_cost *npu_chip_cost(const npu_chip *chip,
                              int32_t i); /* as this chip has it; NULL past the last */
/* Replaces the numbers of one row of one chip: for calibration and for tests. 0, or -1 if there is
 * no such row or a number is impossible. */
int npu_chip_set_cost(npu_chip *chip, const char *unit, const char *operation, double fixed_cycles,
                      double rate, double latency_cycles);

/* ---- Chip and global memory ---- */

npu_chip *npu_chip_create(const npu_preset *preset, npu_mode mode); /* NULL: out of memory */
void npu_chip_destroy(npu_chip *chip);                              /* NULL is allowed */

/* Global memory of the chip's own, 512-byte aligned, until the chip is destroyed. Functional:
 * filled with bytes 0xff (NaN). Timing only: address space without memory behind it until written,
 * so gigabytes are free. NULL: out of memory. */
void *npu_gm_alloc(npu_chip *chip, size_t bytes, const char *name);

/* Makes the caller's memory global memory, in place. Kernels may not write it unless writable; if
 * not, it counts as written. 0, or -1: overlaps another piece, or out of memory. Forgotten by
 * npu_gm_forget_all, as are pieces from npu_gm_alloc, which that frees. */
int npu_gm_register(npu_chip *chip, void *memory, size_t bytes, const char *name, int writable);
int npu_gm_register_const(npu_chip *chip, const void *memory, size_t bytes, const char *name);
/* The host has written the whole piece that begins there: kernels may read it before they write it.
 */
void npu_gm_written(npu_chip *chip, const void *memory);
void npu_gm_forget_all(npu_chip *chip);

/* ---- Launch ---- */

/* An instruction that is about to have its effect, for tests that look into a kernel. */
typedef struct npu_watched {
  int32_t block, subcore; /* subcore -1: the AIC */
  const char *name;       /* "muls_f32" */
  const void *dst, *src;
  float scalar;
  const char *piece;    /* of global memory, that dst is in; NULL: dst is local */
  int64_t offset_bytes; /* of dst in that piece, or in UB */
  const void *ub;       /* the AIV's unified buffer */
} npu_watched;
typedef void npu_watch(void *context, const npu_watched *what);

typedef struct npu_launch_options {
  int32_t cores;         /* AI cores to launch; 0 = all of the chip */
  int32_t check_races;   /* 0 = as the mode says, 1 = on, -1 = off */
  int32_t trace;         /* 1: record what every pipe does: npu_report.trace */
  int32_t check_written; /* reads of what nobody wrote: 0 = where races are checked, 1 on, -1 off */
  /* 0 = none; i = leave out every execution of the i-th wait site (1 .. npu_report.wait_sites) */
  int32_t drop_wait;
  npu_watch *watch; /* called for every instruction, in the order of simulated time; NULL: none */
  void *watch_context;
} npu_launch_options;

typedef enum npu_error {
  NPU_ERROR_OPERAND, /* an instruction outside its rules; the launch stops there */
  NPU_ERROR_RACE,
  NPU_ERROR_DEADLOCK,  /* the launch stops */
  NPU_ERROR_OVERFLOW,  /* an event set twice, a flag set 16 times, unwaited */
  NPU_ERROR_LEFT_SET,  /* an event or flag still set when every core had finished */
  NPU_ERROR_AMBIGUOUS, /* a flag that two pipes of a core set or wait for: time decides which */
  NPU_ERROR_UNWRITTEN, /* an instruction that reads bytes which nobody wrote */
  NPU_ERRORS
} npu_error;

typedef struct npu_trace_event {
  int64_t start_cycle, end_cycle; /* the pipe was held */
  int32_t block, subcore;         /* subcore -1: the AIC */
  int32_t pipe;                   /* npu_pipe */
  int32_t line;
  const char *name, *file;
} npu_trace_event;

enum { NPU_MESSAGES = 8, NPU_MESSAGE_BYTES = 480 };

typedef struct npu_report {
  int64_t cycles;        /* from launch to the last instruction's end, launch overhead included */
  double seconds;        /* cycles at the preset's clock */
  int64_t launch_cycles; /* that overhead: cost row CHIP launch */
  int32_t cores;         /* AI cores launched */
  int64_t instructions;
  /* By npu_pipe: share of (cycles - launch_cycles) that the pipe was held, mean of the cores; S:
   * issuing. */
  double aic_busy[7], aiv_busy[7];
  double aic_busy_max[7], aiv_busy_max[7]; /* of the busiest core */
  /* Bytes that pipes moved; those from HBM (L2 misses) and to it (L2 write-backs; what stays in L2
   * not counted). */
  int64_t gm_l1_bytes, gm_ub_bytes, l1_l0a_bytes, l1_l0b_bytes, l0c_gm_bytes, ub_gm_bytes;
  int64_t l2_read_bytes, l2_write_bytes, hbm_read_bytes, hbm_write_bytes;
  double products;            /* 16^3 products of the cube, all cores: times 8192 FLOP */
  int64_t errors[NPU_ERRORS]; /* how many of each kind; races: pairs of instructions */
  int32_t n_messages; /* the first of them in words, one of each pair of places in the kernel */
  char message[NPU_MESSAGES][NPU_MESSAGE_BYTES];
  /* Places of the kernel that wait: file, line, pipes and id of npu_wait and npu_cross_wait, by
   * first execution. */
  int32_t wait_sites;
  int64_t waits; /* executed */
  const npu_trace_event
      *trace; /* [n_trace], by end of issue; the chip's own, until its next launch or end */
  int64_t n_trace;
} npu_report;

/* Runs aic on every AIC and aiv on every AIV (NULL: that kind has nothing to do). 0: clean; 1: the
 * report has errors; -1: not run, and report->message[0] says why. options NULL = all 0. */
int npu_launch(npu_chip *chip, npu_kernel *aic, npu_kernel *aiv, const void *args,
               const npu_launch_options *options, npu_report *report);

/* Which wait the i-th site (1-based) of the last launch is: "cube.c:88 wait MTE1->M 2". "" if there
 * is none. */
const char *npu_wait_site(const npu_chip *chip, int32_t i);

const char *npu_pipe_name(int32_t pipe); /* "S", "MTE1", ... */

/* Writes the trace as Chrome trace JSON (opens in Perfetto); one process per core, one thread per
 * pipe, microseconds. 0, or -1 (errno). */
int npu_write_chrome_trace(const npu_report *report, const npu_preset *preset, FILE *file);

#ifdef __cplusplus
}
#endif
#endif
