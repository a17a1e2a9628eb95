/* SPDX-License-Identifier: Apache-2.0
 *
 * The indexer on threads. Arguments and options are checked, with every default filled in.
 */
#ifndef AMLA_CPU_INDEX_TOPK_H
#define AMLA_CPU_INDEX_TOPK_H

#include <amla/amla.h>

/* Keys that a query sees: [0, result). */
int32_t amla_index_visible(const amla_index_args *args, int32_t sequence, int32_t query);

size_t amla_index_run_scratch_bytes(const amla_index_args *args, const amla_options *options);

void amla_index_run(const amla_index_args *args, const amla_options *options, void *scratch);

#endif
