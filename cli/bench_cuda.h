/* SPDX-License-Identifier: Apache-2.0
 *
 * amla bench --backend cuda: times in device memory by events of the device.
 */
#ifndef AMLA_BENCH_CUDA_H
#define AMLA_BENCH_CUDA_H

#include "cli_commands.h"
#include "cli_options.h"

/* The problems that are measured when none are named: the shapes of the project's targets. */
cli_exit bench_cuda(const char *command, const cli_options *options, const char *const *problems,
                    int n_problems, double seconds);

#endif
