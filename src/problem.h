/* SPDX-License-Identifier: Apache-2.0
 *
 * The refusals of problems, options and tensors, before any work: of the first two when a plan is
 * created, of tensors when it runs.
 */
#ifndef AMLA_PROBLEM_H
#define AMLA_PROBLEM_H

#include <amla/amla.h>

struct extent; /* checks.h */

/* Copies problem to out with every default filled in, or refuses it. */
amla_status amla_problem_check(const amla_problem *problem, amla_problem *out, amla_detail *detail);

/* The same for options: threads and ISA cap resolved with the environment; backend and rescale as
 * given. */
amla_status amla_options_check(const amla_options *options, amla_options *out, amla_detail *detail);

/* Copies tensors to out, or refuses them: pointers, capacities, overlaps, and what key_check.h
 * says, against a checked problem. */
amla_status amla_tensors_check(const amla_problem *problem, const amla_tensors *tensors,
                               amla_tensors *out, amla_detail *detail);

/* What a call does with tensors that are checked for it. */
typedef enum amla_use {
  AMLA_USE_RUN,
  AMLA_USE_SHARD,  /* computes records: no outputs */
  AMLA_USE_RECORDS /* finishes them: neither q nor keys */
} amla_use;

/* The same for another use, but for what key_check.h says. */
amla_status amla_tensors_check_for(amla_use use, const amla_problem *problem,
                                   const amla_tensors *tensors, amla_tensors *out,
                                   amla_detail *detail);

/* Refuses n other pieces of memory, of checked tensors of the use: what SHARD writes where any of
 * its tensors lies, what RECORDS reads where a result goes. */
amla_status amla_tensors_check_apart(amla_use use, const amla_problem *problem,
                                     const amla_tensors *tensors, const struct extent *others,
                                     int n, amla_detail *detail);

/* Refuses what only ref and cpu know, by name: `who` does not have it. */
amla_status amla_plan_check_dense(const char *who, const amla_problem *problem,
                                  const amla_options *options, amla_detail *detail);
amla_status amla_tensors_check_dense(const char *who, const amla_tensors *tensors,
                                     amla_detail *detail);

#endif
