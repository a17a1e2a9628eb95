/* SPDX-License-Identifier: Apache-2.0
 *
 * The chip that amla_sim.h's options ask for: a preset, all of it or a slice, with other
 * bandwidths and costs.
 */
#ifndef ASCEND_CHIP_H
#define ASCEND_CHIP_H

#include <amla/amla_sim.h>

#include "../../sim/npu_run.h"

/* Timing only. *chip is the caller's to destroy; NULL unless the status is AMLA_OK. */
amla_status ascend_chip_create(const amla_sim_options *options, const char *default_name,
                               npu_preset *preset, npu_chip **chip, amla_detail *detail);

#endif
