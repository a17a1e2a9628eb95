/* SPDX-License-Identifier: Apache-2.0
 *
 * Load, plan, run.
 */
#include "cli_job.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli_commands.h"
#include "cli_log.h"
#include "cli_progress.h"
#include "cli_report.h"
#include "harness/names.h"
#include "harness/program.h"
#include "harness/roofline.h"
#include "harness/safetensors.h"
#include "harness/scopes.h"

static bool is_problem_string(const char *argument) {
  if (access(argument, F_OK) == 0)
    return false;
  return strchr(argument, '=') != NULL || strcmp(argument, "default") == 0 || *argument == '\0';
}

bool cli_load(const char *command, const char *argument, harness_dataset *data) {
  char error[512];
  harness_case c;
  int status;
  if (is_problem_string(argument)) {
    status = harness_parse_problem(argument, &c, error, sizeof error);
    if (status == 0)
      status = harness_generate(&c, data, error, sizeof error);
  } else {
    status = harness_read_problem(argument, data, error, sizeof error);
  }
  if (status == 0)
    return true;
  cli_log_refused();
  cli_error(command, "%s", error);
  return false;
}

bool cli_may_write(const char *command, const char *option, const char *path,
                   const char *const *files, int n) {
  for (int i = 0; i < n; i++)
    if (strcmp(path, files[i]) == 0 || harness_same_file(path, files[i])) {
      cli_error(command, "--%s=%s: must not be the file %s", option, path, files[i]);
      return false;
    }
  if (!harness_is_stdout(path))
    return true;
  cli_error(command, "--%s=%s: must not be standard output, where the report goes", option, path);
  return false;
}

bool cli_set_out_type(const char *command, harness_dataset *data, amla_dtype type) {
  if (type == data->problem.out_type)
    return true;
  free(data->out);
  free(data->lse);
  data->problem.out_type = type;
  if (harness_attach(data))
    return true;
  cli_error(command, "out of memory");
  return false;
}

/* Where the library names no instruction set: that of the compiler's, or a kernel's name. */
static void take_info(cli_job *job) {
  const amla_plan_info *i = &job->info;
  const char *kernel = i->kernel[0] != '\0' ? i->kernel : amla_isa_name(AMLA_ISA_C);
  const char *isa = i->isa != AMLA_ISA_AUTO ? amla_isa_name(i->isa) : kernel;
  snprintf(job->backend, sizeof job->backend, "%s", amla_backend_name(i->backend));
  snprintf(job->isa, sizeof job->isa, "%s", isa);
  snprintf(job->rescale, sizeof job->rescale, "%s", amla_rescale_name(i->rescale));
  job->threads = i->threads;
}

amla_isa cli_job_isa(const cli_job *job) {
  return job->info.isa != AMLA_ISA_AUTO ? job->info.isa : AMLA_ISA_C;
}

bool cli_is_simulated(const cli_job *job) { return job->info.simulated; }

harness_error cli_compare(const cli_job *job, const harness_truth *truth) {
  return harness_compare_plan(job->data, truth, &job->info);
}

static amla_status run_plan(const cli_job *job, amla_detail *detail) {
  return amla_plan_run(job->plan, &job->data->tensors, job->scratch, job->scratch_bytes, detail);
}

amla_status cli_job_run(cli_job *job, amla_detail *detail) {
  if (!cli_log_wanted())
    return run_plan(job, detail);
  const double began = harness_seconds();
  const amla_status status = run_plan(job, detail);
  const double seconds = cli_is_simulated(job) ? 0 : harness_seconds() - began;
  if (status != AMLA_OK)
    return cli_log_refused(), status;
  if (job->tokens == 0) { /* the library has checked lengths and lists now */
    job->tokens = (double)harness_all_queries(&job->data->problem, &job->data->tensors);
    job->flops = harness_flops(job->data);
  }
  cli_log_run(job->tokens, job->flops, seconds);
  return status;
}

static bool run_once(const char *command, const char *name, cli_job *job) {
  amla_detail detail;
  if (cli_job_run(job, &detail) == AMLA_OK)
    return true;
  cli_error(command, "%s: %s", name, detail.text);
  return false;
}

bool cli_job_open(const char *command, const char *name, cli_job *job, harness_dataset *data,
                  const cli_options *options) {
  amla_options o = options->plan;
  amla_detail detail;
  *job = (cli_job){.data = data, .info = AMLA_PLAN_INFO_INIT};
  harness_take_options(&o, &data->options);
  if (amla_plan_create(&job->plan, &data->problem, &o, &detail) != AMLA_OK) {
    cli_log_refused();
    cli_error(command, "%s: %s", name, detail.text);
    return false;
  }
  job->scratch_bytes = amla_plan_scratch_bytes(job->plan);
  job->scratch = cli_allocate(job->scratch_bytes, 1);
  amla_plan_describe(job->plan, job->description, sizeof job->description);
  amla_plan_query(job->plan, &job->info, NULL);
  cli_log_plan(&data->problem, job->description);
  take_info(job);
  harness_reset_outputs(data);
  if (run_once(command, name, job))
    return true;
  cli_job_close(job);
  return false;
}

void cli_job_close(cli_job *job) {
  amla_plan_destroy(job->plan);
  free(job->scratch);
  *job = (cli_job){0};
}

bool cli_machine(const char *command, const cli_options *options, amla_isa *isa, int *threads) {
  harness_dataset data;
  cli_job job;
  if (!cli_load(command, "h=1,sk=1,page=0", &data))
    return false; /* any problem will do */
  const bool ok = cli_job_open(command, "plan", &job, &data, options);
  if (ok) {
    *isa = cli_job_isa(&job);
    *threads = job.threads;
    cli_job_close(&job);
  }
  harness_free(&data);
  return ok;
}

bool cli_has_rows(const char *command, const char *name, const amla_problem *problem) {
  if (problem->b > 0)
    return true;
  cli_error(command, "%s: b=0: must be >= 1, there is no row to compare", name);
  return false;
}

double cli_job_rate(const cli_job *job, double seconds) {
  return seconds > 0 ? harness_flops(job->data) / seconds : 0;
}

harness_truth cli_truth(const harness_dataset *data) {
  harness_truth truth;
  cli_progress progress = cli_progress_begin("computing the truth");
  const int status = harness_truth_compute_with(data, &truth, cli_progress_update, &progress);
  cli_progress_end(&progress);
  if (status == 0)
    return truth;
  cli_error("amla", "out of memory");
  exit(CLI_ERROR);
}

void cli_json_error(json_t *object, const harness_error *error) {
  json_object_set_new(object, "rel_error", cli_json_real(error->rel_error));
  json_object_set_new(object, "max_abs_error", cli_json_real(error->max_abs_error));
  json_object_set_new(object, "lse_max_abs_error", cli_json_real(error->lse_max_abs_error));
  json_object_set_new(object, "worst_of_bound", cli_json_real(error->worst_of_bound));
  json_object_set_new(object, "unjudged", json_integer(error->unjudged));
  json_object_set_new(object, "ok", json_boolean(error->ok));
}
