/* SPDX-License-Identifier: Apache-2.0
 *
 * Environment variables that are numbers.
 */
#ifndef AMLA_ENVIRONMENT_H
#define AMLA_ENVIRONMENT_H

#include <amla/amla.h>

/* *value = the variable's, 0 where it is unset or empty; refused unless a number in 1..most. */
amla_status amla_environment_number(const char *name, int64_t most, int64_t *value,
                                    amla_detail *detail);

#endif
