/* SPDX-License-Identifier: Apache-2.0
 *
 * See ranks_arguments.h.
 */
#include "ranks_arguments.h"

#include <limits.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

_Noreturn void ranks_die(const char *what, const char *why) {
  fprintf(stderr, "amla_ranks: %s: %s\n", what, why);
  MPI_Abort(MPI_COMM_WORLD, 1);
  abort();
}

_Noreturn void ranks_leave(int status, const char *what, const char *why) {
  int rank;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  if (rank == 0)
    fprintf(stderr, "amla_ranks: %s: %s\n", what, why);
  MPI_Finalize();
  exit(status);
}

static const char usage[] =
    "mpirun -n N amla_ranks run|check|bench|time|duel|overlap|steps|fault WHAT FILE|PROBLEM "
    "[--split N] "
    "[--interleave N] [--max-logits 1] [--repeat N] [--steps N] [--threads N] [--rounds N] "
    "[--trace FILE]";

static int number(const char *name, const char *text) {
  char *end;
  const long n = text ? strtol(text, &end, 10) : 0;
  if (!text || *end || n < 1 || n > INT_MAX)
    ranks_leave(EXIT_USAGE, name, "must be a number >= 1");
  return (int)n;
}

/* The option that an argument begins with: its number, and in *text what stands behind a "=". */
static int *find_option(ranks_arguments *a, const char *argument, const char **text) {
  const struct {
    const char *name;
    int *value;
  } all[] = {{"--split", &a->split},          {"--repeat", &a->repeat},
             {"--steps", &a->steps},          {"--threads", &a->threads},
             {"--rounds", &a->rounds},        {"--interleave", &a->interleave},
             {"--max-logits", &a->max_logits}};
  *text = NULL;
  for (size_t k = 0; k < sizeof all / sizeof *all; k++) {
    const size_t n = strlen(all[k].name);
    if (strncmp(argument, all[k].name, n) != 0 || (argument[n] != '\0' && argument[n] != '='))
      continue;
    *text = argument[n] ? argument + n + 1 : NULL;
    return all[k].value;
  }
  return NULL;
}

ranks_arguments ranks_parse(int argc, char **argv) {
  ranks_arguments a = {.split = 1, .repeat = 1, .steps = 100, .threads = 1, .rounds = 5};
  int i = 1;
  if (argc < 3)
    ranks_leave(EXIT_USAGE, "usage", usage);
  a.command = argv[i++];
  if (strcmp(a.command, "fault") == 0)
    a.fault = argv[i++];
  for (; i < argc; i++) {
    const char *text;
    int *value = find_option(&a, argv[i], &text);
    if (value && text)
      *value = number(argv[i], text);
    else if (value)
      *value = number(argv[i], argv[i + 1]), i++;
    else if (strcmp(argv[i], "--trace") == 0 && argv[i + 1])
      a.trace = argv[++i];
    else if (a.problem || strncmp(argv[i], "--", 2) == 0)
      ranks_leave(EXIT_USAGE, argv[i], "more than one problem, or no such option");
    else
      a.problem = argv[i];
  }
  if (!a.problem)
    ranks_leave(EXIT_USAGE, "FILE or PROBLEM is missing", usage);
  if (a.trace && strcmp(a.command, "bench") != 0)
    ranks_leave(EXIT_USAGE, "--trace", "must not be given but to bench");
  return a;
}
