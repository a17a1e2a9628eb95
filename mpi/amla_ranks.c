/* SPDX-License-Identifier: Apache-2.0
 *
 * amla_ranks: a problem over the ranks of mpirun, by itself or as `amla run|check|bench --ranks`.
 * Rank 0 prints.
 *
 *     mpirun -n 4 amla_ranks run examples/deepseek_v3_decode.safetensors
 *     mpirun -n 4 amla_ranks check h=16,sk=4000          fp64, and the bits of 1, 2 and 4 ranks
 *     mpirun -n 4 amla_ranks check h=16,sk=4000 --interleave 1   fp64 and the bound
 *     mpirun -n 4 amla_ranks bench h=16,sk=4096 --repeat 256 --split 4096
 *     mpirun -n 4 amla_ranks time h=16,sk=4000           the time of a step alone, as JSON
 *     mpirun -n 4 amla_ranks bench h=128 --trace FILE    and when blocks were computed and came
 *     mpirun -n 2 amla_ranks duel h=128      against as many threads in one process, in turn
 *     mpirun -n 4 amla_ranks overlap h=64,sq=6,sk=3072,dqk=20,dv=16
 *                                            messages come between key tiles
 *     mpirun -n 4 amla_ranks steps h=2,sk=3000 --steps 2000
 *     mpirun -n 4 amla_ranks fault page h=2,sk=3000      one rank errs: all say the same, by name
 *
 * --repeat N: the page table N times over, as one long sequence: a million tokens in a small cache.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ranks_commands.h"

typedef struct command {
  const char *name;
  int (*run)(ranks_job *);
} command;

static const command commands[] = {{"run", ranks_run_once}, {"check", ranks_check},
                                   {"bench", ranks_bench},  {"time", ranks_time},
                                   {"duel", ranks_duel},    {"overlap", ranks_overlap},
                                   {"steps", ranks_steps},  {"fault", ranks_fault}};

static int run_command(ranks_job *j) {
  for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
    if (strcmp(j->a.command, commands[i].name) == 0)
      return commands[i].run(j);
  char names[128];
  int n = snprintf(names, sizeof names, "must be one of");
  for (size_t i = 0; i < sizeof commands / sizeof *commands && n < (int)sizeof names; i++)
    n += snprintf(names + n, sizeof names - (size_t)n, " %s", commands[i].name);
  ranks_leave(EXIT_USAGE, j->a.command, names);
}

int main(int argc, char **argv) {
  int level;
  ranks_job j = {.comm = MPI_COMM_WORLD};
  MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &level);
  MPI_Comm_rank(MPI_COMM_WORLD, &j.rank);
  MPI_Comm_size(MPI_COMM_WORLD, &j.ranks);
  j.a = ranks_parse(argc, argv);
  ranks_generate(&j);
  int ok = run_command(&j);
  MPI_Bcast(&ok, 1, MPI_INT, 0, MPI_COMM_WORLD);
  ranks_destroy(&j);
  free(j.long_table), free(j.max_logits);
  harness_truth_free(&j.truth);
  harness_free(&j.data);
  MPI_Finalize();
  return ok ? 0 : EXIT_MISMATCH;
}
