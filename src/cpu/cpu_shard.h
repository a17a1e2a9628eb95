/* SPDX-License-Identifier: Apache-2.0
 *
 * Partial results of shards as records of rows: out of a run's tree, and back into one.
 */
#ifndef AMLA_CPU_SHARD_H
#define AMLA_CPU_SHARD_H

#include "decode.h"

void amla_shard_measure(const amla_plan *plan, const amla_scopes *scopes, amla_shard_info *info);

/* Empties the records that rows with fewer than the most do not fill. */
void amla_shard_clear(const amla_plan *plan, const amla_scopes *scopes);

/* Record `entry` of rows [begin, end) of the group. */
void amla_shard_export(const amla_worker *w, const amla_group *g, const amla_partial *node,
                       int32_t entry, int32_t begin, int32_t end);

size_t amla_shard_finish_bytes(const amla_plan *plan);
void amla_shard_finish_rows(const amla_plan *plan, const amla_scopes *scopes, int32_t n_shards,
                            const amla_shard *shards, void *scratch);

#endif
