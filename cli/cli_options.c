/* SPDX-License-Identifier: Apache-2.0
 *
 * Shared options. Every refusal names the option and its value and exits with status 2.
 */
#define _GNU_SOURCE 1
#include "cli_options.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli_commands.h"
#include "cli_help.h"
#include "cli_report.h"
#include "harness/names.h"

static int parse_choice(struct argp_state *state, const char *option, const char *text,
                        harness_names names) {
  const int found = harness_find_name(names, text);
  if (found < 0)
    argp_error(state, "--%s=%s: must be one of %s", option, text,
               harness_list_names(names, ", ").text);
  return found;
}

amla_rescale cli_parse_rescale(struct argp_state *state, const char *text) {
  return (amla_rescale)parse_choice(state, "rescale", text, harness_rescales);
}

static int32_t parse_count(struct argp_state *state, const char *option, const char *text) {
  char *end;
  errno = 0;
  const long value = strtol(text, &end, 10);
  if (end == text || *end != '\0' || errno != 0 || value < 1 || value > INT32_MAX)
    argp_error(state, "--%s=%s: must be an integer >= 1", option, text);
  return (int32_t)value;
}

double cli_parse_seconds(struct argp_state *state, const char *option, const char *text) {
  char *end;
  const double value = strtod(text, &end);
  if (end == text || *end != '\0' || !(value > 0 && value <= 86400))
    argp_error(state, "--%s=%s: must be a number of seconds in (0, 86400]", option, text);
  return value;
}

/* ---- Groups ---- */

static void parse_rescale(struct argp_state *state, cli_options *o, const char *text) {
  o->rescale_given = true;
  o->rescale_all = strcmp(text, "all") == 0;
  if (!o->rescale_all)
    o->plan.rescale = cli_parse_rescale(state, text);
}

/* One parser for all groups: a group lists the options it offers. */
static error_t parse_shared(int key, char *text, struct argp_state *state) {
  cli_options *o = state->input;
  switch (key) {
  case 'b':
    o->plan.backend = (amla_backend)parse_choice(state, "backend", text, harness_backends);
    o->backend_given = true;
    return 0;
  case 'r': parse_rescale(state, o, text); return 0;
  case 's':
    o->plan.split_tokens =
        strcmp(text, "auto") == 0 ? AMLA_SPLIT_AUTO : parse_count(state, "split", text);
    return 0;
  case 't': o->plan.threads = parse_count(state, "threads", text); return 0;
  case 'i': o->plan.isa = (amla_isa)parse_choice(state, "isa", text, harness_isas); return 0;
  case CLI_KEY_P_FORM:
    o->plan.p_form = (amla_p_form)parse_choice(state, "p-form", text, harness_p_forms);
    return 0;
  case CLI_KEY_Q_FORM:
    o->plan.q_form = (amla_q_form)parse_choice(state, "q-form", text, harness_q_forms);
    return 0;
  case CLI_KEY_KV_ROUND:
    o->plan.kv_round = (amla_kv_round)parse_choice(state, "kv-round", text, harness_kv_rounds);
    return 0;
  case 'j': o->json = true; return 0;
  case 'p': o->plot = text; return 0;
  default: return ARGP_ERR_UNKNOWN;
  }
}

/* What an option chooses from; NULL: nothing that the library names. */
static harness_names names_of(int key) {
  switch (key) {
  case 'b': return harness_backends;
  case 'r': return harness_rescales;
  case 'i': return harness_isas;
  case CLI_KEY_P_FORM: return harness_p_forms;
  case CLI_KEY_Q_FORM: return harness_q_forms;
  case CLI_KEY_KV_ROUND: return harness_kv_rounds;
  default: return NULL;
  }
}

/* Puts the names that an option takes where its help says %s. argp frees what is not `text`. */
static char *fill_in_names(int key, const char *text, void *input) {
  const harness_names names = names_of(key);
  char *filled = (char *)(uintptr_t)text;
  (void)input;
  if (names == NULL || text == NULL)
    return filled;
  const int before = (int)strcspn(text, "%");
  const harness_name_list list = harness_list_names(names, " or ");
  if (asprintf(&filled, "%.*s%s%s", before, text, list.text, text + before + strlen("%s")) < 0)
    return NULL;
  return filled;
}

static const struct argp_option plan_options[] = {
    {"backend", 'b', "NAME", 0, "%s; npu is simulated", 0},
    {"rescale", 'r', "MODE", 0, "%s; bench and check also: all", 0},
    {"split", 's', "TOKENS", 0, "KV tokens per split, or auto (by threads: not batch-invariant)",
     0},
    {"p-form", CLI_KEY_P_FORM, "NAME", 0, "the least exact form of P allowed: %s", 0},
    {"q-form", CLI_KEY_Q_FORM, "NAME", 0, "q in parts of bf16: %s", 0},
    {"kv-round", CLI_KEY_KV_ROUND, "NAME", 0, "what keys may be rounded to: %s", 0},
    {0}};
static const struct argp_option machine_options[] = {
    {"threads", 't', "N", 0, "threads; default AMLA_NUM_THREADS, or one a core", 0},
    {"isa", 'i', "NAME", 0, "cap the instruction set: %s", 0},
    {0}};
static const struct argp_option json_options[] = {{"json", 'j', NULL, 0, "print JSON", 0}, {0}};
static const struct argp_option ranks_options[] = {
    {"ranks", CLI_KEY_RANKS, NULL, 0, "under mpirun: keys shared out over ranks, by amla_ranks", 0},
    {0}};
static const struct argp_option plot_options[] = {
    {"plot", 'p', "FILE", 0, "draw FILE.svg or FILE.png (needs gnuplot)", 0}, {0}};

const struct argp cli_plan_argp = {
    .options = plan_options, .parser = parse_shared, .help_filter = fill_in_names};
const struct argp cli_machine_argp = {
    .options = machine_options, .parser = parse_shared, .help_filter = fill_in_names};
const struct argp cli_json_argp = {json_options, parse_shared, NULL, NULL, NULL, NULL, NULL};
const struct argp cli_ranks_argp = {ranks_options, parse_shared, NULL, NULL, NULL, NULL, NULL};
const struct argp cli_plot_argp = {plot_options, parse_shared, NULL, NULL, NULL, NULL, NULL};

/* ---- Parsing ---- */

void cli_options_setup(void) {
  argp_err_exit_status = CLI_USAGE;
  argp_program_version = NULL;
}

/* The library reads its environment when it is asked something. Every command asks first, so that
 * none takes a refusal for an answer. */
static void check_environment(const char *command) {
  amla_backend_info info = AMLA_BACKEND_INFO_INIT;
  amla_detail why;
  if (amla_backend_query(AMLA_BACKEND_REF, &info, &why) == AMLA_OK)
    return;
  cli_error(command, "%s", why.text);
  exit(CLI_ERROR);
}

bool cli_words_wanted;

static void print_words(const struct argp *argp) {
  cli_print_option_words(argp, names_of);
  if (argp->args_doc != NULL && strstr(argp->args_doc, "PROBLEM") != NULL)
    cli_print_key_words();
  exit(CLI_OK);
}

void cli_parse(const char *arguments, const char *doc, const struct argp_option *options,
               argp_parser_t parser, const struct argp_child *children, int argc, char **argv,
               void *input) {
  const struct argp argp = {options, parser, arguments, doc, children, NULL, NULL};
  if (cli_words_wanted)
    print_words(&argp);
  program_invocation_short_name = argv[0];
  program_invocation_name = argv[0];
  if (argp_parse(&argp, argc, argv, 0, NULL, input) == 0) {
    check_environment(argv[0]);
    return;
  }
  fprintf(stderr, "%s: out of memory\n", argv[0]);
  exit(CLI_ERROR);
}
