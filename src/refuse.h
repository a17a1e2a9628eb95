/* SPDX-License-Identifier: Apache-2.0
 *
 * How a check refuses and ends its function. For functions that return amla_status and have a
 * `detail`.
 */
#ifndef AMLA_REFUSE_H
#define AMLA_REFUSE_H

#include "detail.h"

/* Something breaks a rule: field, value and rule. */
#define INVALID(...) return amla_refuse(detail, AMLA_INVALID_ARGUMENT, __VA_ARGS__)

/* Something is well-formed, but not built or not on this machine. */
#define UNSUPPORTED(...) return amla_refuse(detail, AMLA_UNSUPPORTED, __VA_ARGS__)

/* Passes a refusal on. */
#define TRY(call)                                                                                  \
  do {                                                                                             \
    const amla_status status_ = (call);                                                            \
    if (status_ != AMLA_OK)                                                                        \
      return status_;                                                                              \
  } while (0)

#endif
