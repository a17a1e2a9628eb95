/* SPDX-License-Identifier: Apache-2.0
 *
 * amla gen: a problem as a safetensors file.
 */
#include <stdio.h>

#include "cli_commands.h"
#include "cli_job.h"
#include "cli_options.h"
#include "cli_report.h"
#include "harness/safetensors.h"

typedef struct arguments {
  const char *problem, *path;
  bool refs;
} arguments;

static const char doc[] = "Writes PROBLEM as a safetensors file that `amla run' reads.\v"
                          "Examples:\n"
                          "  amla gen b=4,h=16,sk=1000,len=ragged -o ragged.safetensors\n"
                          "  amla gen dist=rising,kv=f16 --ref -o rising.safetensors";

static const struct argp_option options[] = {
    {"output", 'o', "FILE", 0, "the file to write (required)", 0},
    {"ref", CLI_KEY_REF, NULL, 0, "include out_ref and lse_ref, the fp64 result", 0},
    {0}};

static error_t parse(int key, char *text, struct argp_state *state) {
  arguments *a = state->input;
  switch (key) {
  case 'o': a->path = text; return 0;
  case CLI_KEY_REF: a->refs = true; return 0;
  case ARGP_KEY_ARG:
    if (a->problem != NULL)
      argp_error(state, "extra argument '%s'", text);
    a->problem = text;
    return 0;
  case ARGP_KEY_END:
    if (a->problem == NULL)
      argp_error(state, "PROBLEM is missing");
    if (a->path == NULL)
      argp_error(state, "-o FILE is missing");
    return 0;
  default: return ARGP_ERR_UNKNOWN;
  }
}

static bool add_refs(const char *command, harness_dataset *data) {
  harness_truth truth = cli_truth(data);
  const int status = harness_set_refs(data, &truth);
  harness_truth_free(&truth);
  if (status != 0)
    cli_error(command, "out of memory");
  return status == 0;
}

cli_exit cmd_gen(int argc, char **argv) {
  arguments a = {0};
  char error[512];
  harness_case c;
  harness_dataset data;
  cli_parse("PROBLEM -o FILE", doc, options, parse, NULL, argc, argv, &a);
  if (harness_parse_problem(a.problem, &c, error, sizeof error) != 0 ||
      harness_generate(&c, &data, error, sizeof error) != 0) {
    cli_error(argv[0], "%s", error);
    return CLI_ERROR;
  }
  bool ok = !a.refs || add_refs(argv[0], &data);
  if (ok && harness_write_problem(a.path, &data, error, sizeof error) != 0) {
    cli_error(argv[0], "%s", error);
    ok = false;
  }
  harness_free(&data);
  return ok ? CLI_OK : CLI_ERROR;
}
