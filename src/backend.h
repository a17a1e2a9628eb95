/* SPDX-License-Identifier: Apache-2.0
 *
 * What a backend is to the rest of the library: a name, a reason when it is absent, and four functions.
 * By the time `run` is called every argument has been checked: it cannot fail.
 */
#ifndef AMLA_BACKEND_H
#define AMLA_BACKEND_H

#include <amla/amla.h>

typedef struct amla_backend_ops {
  amla_backend id;
  const char *name;
  const char *absent; /* reason; NULL when built in */
  const char *(*isa)(amla_isa cap);                 /* instruction set it would use; "" where that means nothing */
  void (*prepare)(amla_plan *plan);                 /* fills the backend's part of the plan and scratch_bytes */
  int (*describe)(const amla_plan *plan, char *text, size_t capacity_bytes); /* as snprintf */
  void (*run)(const amla_plan *plan, const amla_tensors *tensors, void *scratch);
} amla_backend_ops;

extern const amla_backend_ops amla_backend_ref;
extern const amla_backend_ops amla_backend_cpu;

#endif
