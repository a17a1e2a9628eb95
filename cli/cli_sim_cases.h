/* SPDX-License-Identifier: Apache-2.0
 *
 * Many timed runs side by side, on all threads: what tables, searches and sweeps are made of.
 */
#ifndef AMLA_CLI_SIM_CASES_H
#define AMLA_CLI_SIM_CASES_H

#include <stdbool.h>

#include <amla/amla_sim.h>

typedef struct sim_case {
  const char *label; /* where a table wants one */
  amla_problem p;
  amla_options o;
  amla_sim_options sim;
  amla_sim_tiling tiling; /* search */
  const int32_t *lengths;
  amla_sim_report r;
  amla_status status;
  amla_detail detail;
} sim_case;

typedef struct sim_cases {
  sim_case *cases;
  int n, capacity;
} sim_cases;

/* What the tables simulate. */
typedef struct sim_shape {
  int32_t b, s_q, h_q, sk;
} sim_shape;

sim_case *sim_cases_add(sim_cases *list, const amla_sim_options *base, sim_shape shape,
                        amla_rescale rescale, amla_sim_schedule schedule);
/* False, with a message, when one was refused. */
bool sim_cases_run(const char *command, sim_cases *list);
void sim_cases_free(sim_cases *list);

#endif
