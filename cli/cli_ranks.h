/* SPDX-License-Identifier: Apache-2.0
 *
 * --ranks: the command over the ranks of mpirun. A program of its own does it, amla_ranks, so that
 * this one needs no MPI.
 */
#ifndef AMLA_CLI_RANKS_H
#define AMLA_CLI_RANKS_H

#include <stdbool.h>

#include "cli_commands.h"

/* Is --ranks among the arguments behind the command, and does it mean something to that? */
bool cli_asks_for_ranks(const char *command, int argc, char **argv);

/* Becomes amla_ranks with the other arguments. Returns only if it cannot. argv[1] is the command.
 */
cli_exit cli_become_ranks(int argc, char **argv);

#endif
