/* SPDX-License-Identifier: Apache-2.0
 *
 * The plan: a checked problem with every default filled in, the choice of backend, and what the
 * backend derived from both.
 */
#ifndef AMLA_PLAN_H
#define AMLA_PLAN_H

#include "backend.h"

struct amla_plan {
  amla_problem problem; /* strides, h_kv and max_pages filled in */
  amla_options options; /* rescale, threads and isa resolved */
  const amla_backend_ops *backend;
  size_t scratch_bytes;
  void *state; /* the backend's own, from prepare to release */
};

#endif
