/* SPDX-License-Identifier: Apache-2.0
 *
 * Is a run to end? The caller is asked in its own floating-point environment, and one thread's
 * answer is every thread's.
 */
#ifndef AMLA_CANCEL_H
#define AMLA_CANCEL_H

#include <amla/amla.h>
#include <stdatomic.h>

#include "float_environment.h"
#include "refuse.h"

/* `ended` is the run's; `own` is what this thread had before it entered ours. */
static inline int amla_is_cancelled(const amla_options *o, atomic_int *ended, const fenv_t *own) {
  if (!o->cancel)
    return 0;
  if (atomic_load_explicit(ended, memory_order_relaxed))
    return 1;
  amla_leave_environment(own);
  const int end = o->cancel(o->cancel_context) != 0;
  amla_enter_environment();
  if (end)
    atomic_store_explicit(ended, 1, memory_order_relaxed);
  return end;
}

static inline amla_status amla_refuse_cancelled(amla_detail *detail) {
  return amla_refuse(detail, AMLA_CANCELLED, "cancel: it asked for the end of the run");
}

#endif
