/* SPDX-License-Identifier: Apache-2.0
 *
 * What amla sim has beside one run: tables of predictions, a search over tilings, a picture of the
 * pipeline.
 */
#ifndef AMLA_CLI_SIM_H
#define AMLA_CLI_SIM_H

#include <stdbool.h>

#include <amla/amla_sim.h>

#include "cli_commands.h"

/* The name of a schedule, NULL past the last. */
const char *cli_sim_schedules(int i);

/* Prints the table of that name, or with "all" all of them; chip, costs and cores as in base. */
cli_exit cli_sim_tables(const char *command, const char *name, const amla_sim_options *base);
bool cli_sim_has_table(const char *name);

/* The model against published profiles, and the fit that was made to them. */
cli_exit cli_sim_validate(const char *command, const amla_sim_options *base);

/* Draws n settings of the model's numbers, and prints ranges and orderings instead of points. */
cli_exit cli_sim_sweep(const char *command, int32_t n, const amla_sim_options *base);

/* Times every candidate tiling on the problem and prints the best, the best one checked for races.
 */
cli_exit cli_sim_search(const char *command, const amla_problem *problem, const int32_t *lengths,
                        const amla_options *options, const amla_sim_options *base);

/* Events of AI core 0, collected during a run, drawn as one row per pipe. */
typedef struct cli_timeline {
  amla_sim_event *events;
  int n, capacity;
} cli_timeline;

void cli_timeline_add(void *timeline, const amla_sim_event *event);
bool cli_timeline_draw(const char *command, const char *path, const cli_timeline *timeline,
                       const amla_sim_report *report);
void cli_timeline_free(cli_timeline *timeline);

#endif
