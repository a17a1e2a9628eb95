/* SPDX-License-Identifier: Apache-2.0
 *
 * See parallel.h.
 */
#include "parallel.h"

#include <stddef.h>

#include "../forked.h"

int amla_is_alone(const amla_options *o) { return o->threads > 1 && !o->parallel && amla_forked(); }

void amla_run_parallel(const amla_options *o, int32_t n, void (*task)(void *argument, int32_t i),
                       void *argument) {
  if (o->parallel) {
    o->parallel(o->parallel_context, n, task, argument);
    return;
  }
#pragma omp parallel for schedule(static, 1) num_threads(n)
  for (int32_t i = 0; i < n; i++)
    task(argument, i);
}
