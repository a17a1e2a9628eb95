/* SPDX-License-Identifier: Apache-2.0
 *
 * The host's side of the Ascend kernel: from a checked problem to a launch on a simulated chip.
 * Used by the backend (functional) and by amla_sim (timing).
 */
#ifndef ASCEND_LAUNCH_H
#define ASCEND_LAUNCH_H

#include <amla/amla.h>

#include "../../sim/npu_run.h"
#include "ascend_job.h"

/* Of what the library takes, what this kernel does not: AMLA_UNSUPPORTED with field, value and
 * rule. */
amla_status ascend_check(const amla_problem *problem, amla_rescale rescale, amla_detail *detail);

/* How the cache lies, beside the library's packed rows. The launch repacks it for the chip: what
 * production systems store, for study. */
typedef struct ascend_layout {
  int32_t nz;     /* pages are columns of 16 elements, [d / 16][page_size][16] */
  int32_t d_rope; /* > 0: the last so many elements of q's and kv's rows are tensors of their own */
  int32_t int8;   /* kv, f16 in the problem, is int8 times a power of two per token */
} ascend_layout;

typedef struct ascend_launch {
  ascend_tiling tiling;
  ascend_mode mode;
  int32_t split_tiles; /* as in ascend_shape */
  int32_t lse_base2, assume_bumps;
  int32_t unguarded; /* as in ascend_job */
  float clamp;
  ascend_layout layout;
  npu_launch_options options;
} ascend_launch;

/* From the library's options: best tiling for the problem's rows, mode, split rule. */
ascend_launch ascend_launch_of(const amla_problem *problem, const amla_options *options);

ascend_mode ascend_mode_of(amla_rescale rescale);
int32_t ascend_block_rows(const amla_problem *problem); /* of the largest row block */

/* One launch. Functional chip: tensors as amla_plan_run takes them, checked. Timing only: tensors
 * may be NULL but for seqlens_k, which may be NULL too (all sk); contents do not matter. Whatever
 * is wrong with the launch stands in the report; the status says whether there was one. The chip's
 * global memory is forgotten before and after. */
amla_status ascend_launch_run(npu_chip *chip, const npu_preset *preset, npu_mode mode,
                              const amla_problem *problem, const amla_tensors *tensors,
                              const ascend_launch *launch, npu_report *report, amla_detail *detail);

#endif
