/* SPDX-License-Identifier: Apache-2.0
 *
 * A problem on a plan: what run, check and bench have in common.
 */
#ifndef AMLA_CLI_JOB_H
#define AMLA_CLI_JOB_H

#include <jansson.h>
#include <stdbool.h>

#include "cli_options.h"
#include "harness/truth.h"

/* A problem string, or a file: a name with '=' in it is a string unless such a file exists. Prints
 * why not. */
bool cli_load(const char *command, const char *argument, harness_dataset *data);

/* Whether --OPTION=path may be written: not over one of the files [n] that the command reads or
 * writes, by whatever name, and not over standard output, which has the report. Prints why not. */
bool cli_may_write(const char *command, const char *option, const char *path,
                   const char *const *files, int n);

/* Gives the outputs another type; before cli_job_open. False, with a message, when out of memory.
 */
bool cli_set_out_type(const char *command, harness_dataset *data, amla_dtype type);

typedef struct cli_job {
  harness_dataset *data; /* not owned */
  amla_plan *plan;
  void *scratch;
  size_t scratch_bytes;
  amla_plan_info info;
  char description[256];                  /* amla_plan_describe */
  char backend[16], isa[32], rescale[16]; /* names; isa of another backend: its kernel, or "c" */
  int threads;
  double tokens, flops; /* of a run, for AMLA_LOG */
} cli_job;

/* Plan and scratch; and one run, so that the outputs hold a result. Prints why not, with the
 * problem's name. */
bool cli_job_open(const char *command, const char *name, cli_job *job, harness_dataset *data,
                  const cli_options *options);
amla_status cli_job_run(cli_job *job, amla_detail *detail); /* amla_plan_run, counted */
void cli_job_close(cli_job *job);

/* Instruction set and threads of a plan with these options. Prints why there is none. */
bool cli_machine(const char *command, const cli_options *options, amla_isa *isa, int *threads);

/* Whether there is a row to compare: a check of nothing is never ok. Prints why not. */
bool cli_has_rows(const char *command, const char *name, const amla_problem *problem);

/* The outputs against the truth, within the bound of the job's backend: npu rounds P to bf16. */
harness_error cli_compare(const cli_job *job, const harness_truth *truth);
amla_isa cli_job_isa(const cli_job *job);  /* that runs it on this machine's CPU */
bool cli_is_simulated(const cli_job *job); /* backend npu: its time is the simulator's */

/* Useful FLOP/s of the job at so many seconds a run. */
double cli_job_rate(const cli_job *job, double seconds);

/* The truth, with a progress bar. Ends the program when out of memory. */
harness_truth cli_truth(const harness_dataset *data);

/* rel_error, max_abs_error, lse_max_abs_error, ok. */
void cli_json_error(json_t *object, const harness_error *error);

#endif
