/* SPDX-License-Identifier: Apache-2.0
 *
 * What amla_ranks is asked to do, and its ends when it cannot.
 */
#ifndef AMLA_RANKS_ARGUMENTS_H
#define AMLA_RANKS_ARGUMENTS_H

typedef struct ranks_arguments {
  const char *command, *fault, *problem, *trace;
  int split, repeat, steps, threads, rounds, interleave, max_logits;
} ranks_arguments;

enum { EXIT_USAGE = 2, EXIT_MISMATCH = 3 };

/* What this rank alone cannot do ends all. */
_Noreturn void ranks_die(const char *what, const char *why);
/* What all ranks find alike, one says, and MPI is left in peace. */
_Noreturn void ranks_leave(int status, const char *what, const char *why);
ranks_arguments ranks_parse(int argc, char **argv);

#endif
