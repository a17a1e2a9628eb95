/* SPDX-License-Identifier: Apache-2.0
 *
 * How much L2 a thread has. The answer of the system, unless AMLA_L2_BYTES says it.
 */
#ifndef AMLA_CPU_L2_CACHE_H
#define AMLA_CPU_L2_CACHE_H

#include <amla/amla.h>

/* AMLA_L2_BYTES, 0 where it is unset; refused unless a number. */
amla_status amla_l2_from_environment(int64_t *bytes, amla_detail *detail);

/* The least L2 of the CPUs that this thread may run on, each divided by the CPUs that share it; 0
 * where the system does not say. Reads files. */
int64_t amla_l2_of_system(void);

/* The same of one CPU, from its folder in sysfs. */
int64_t amla_l2_of_cpu(const char *folder);

#endif
