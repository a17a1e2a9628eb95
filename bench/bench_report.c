/* SPDX-License-Identifier: Apache-2.0
 *
 * Two tables over the same rows, against the machine and against peers, and everything as JSON.
 * Every figure is a best round over the best round of the peak; the columns "median" set the median
 * round against the best peak, because a disturbed peak would flatter.
 */
#include "bench_report.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static double rate(const bench_result *r, int i) {
  return r->list[i].flops / r->timed[i].seconds.best;
}
static double of_peak(const bench_result *r, int i) { return rate(r, i) / r->rounds.peak.best; }
static double median_of_peak(const bench_result *r, int i) {
  return r->list[i].flops / r->timed[i].seconds.median / r->rounds.peak.best;
}

/* ---- Targets ---- */

typedef struct verdict {
  double figure, target; /* target 0 = none */
} verdict;

static bool is_met(const bench_result *r, verdict v) {
  return !r->disturbed && v.target != 0 && v.figure >= v.target;
}
static const char *word(const bench_result *r, verdict v) {
  if (v.target == 0)
    return "";
  if (r->disturbed)
    return "?";
  return is_met(r, v) ? "ok" : "miss";
}

static verdict judge_machine(const bench_result *r) {
  if (r->reference == 0)
    return (verdict){of_peak(r, 0), bench_target_for(r->row->of_peak, r->rounds.isa)};
  return (verdict){rate(r, 0) / rate(r, r->reference), r->row->reference_target};
}

/* Lazy over the fastest peer among forms [first, last] of all libraries. */
static verdict judge_peers(const bench_result *r, peer_form first, peer_form last, double target) {
  double fastest = 0;
  for (int l = 0; l < PEER_MAX_LIBRARIES; l++)
    for (int f = (int)first; f <= (int)last; f++)
      if (r->peers[l][f] != 0)
        fastest = fmax(fastest, rate(r, r->peers[l][f]));
  return fastest > 0 ? (verdict){rate(r, 0) / fastest, target} : (verdict){0, 0};
}
static verdict judge_fused(const bench_result *r) {
  return judge_peers(r, PEER_UNFUSED, PEER_BLOCKED, bench_target_for(r->row->fused, r->rounds.isa));
}
static verdict judge_bare(const bench_result *r) {
  return judge_peers(r, PEER_BARE, PEER_BARE, bench_target_for(r->row->bare, r->rounds.isa));
}

typedef struct tally {
  int met, set;
} tally;

static void count(tally *t, const bench_result *r, verdict v) {
  t->set += v.target != 0;
  t->met += is_met(r, v);
}

/* ---- Disturbance ---- */

static double peak_per_thread(const bench_result *r) {
  return r->rounds.peak.best / r->rounds.threads;
}

void bench_mark_disturbed(bench_result *results, int n) {
  /* A register-only loop alone stays within a few percent. */
  const double least = 0.90, most_spread = 0.10;
  for (int i = 0; i < n; i++) {
    double best = 0;
    for (int j = 0; j < n; j++)
      if (results[i].rounds.isa == results[j].rounds.isa)
        best = fmax(best, peak_per_thread(&results[j]));
    results[i].disturbed =
        results[i].rounds.peak.spread > most_spread || peak_per_thread(&results[i]) < least * best;
  }
}

/* ---- Tables ---- */

static void print_group(const bench_result *results, int i) {
  if (i == 0 || results[i].row->group != results[i - 1].row->group)
    printf("%s\n", results[i].row->group);
}

static void print_case(const bench_result *r) {
  printf("  %-24s %7d %-6s", r->row->problem, r->rounds.threads, amla_isa_name(r->rounds.isa));
}

static void print_verdict(const bench_result *r, verdict v) {
  if (v.target == 0 && v.figure != 0)
    printf("  %7.3f %7s %-4s", v.figure, "none", "");
  else if (v.target == 0)
    printf("  %7s %7s %-4s", "", "", "");
  else
    printf("  %7.3f %7.3f %-4s", v.figure, v.target, word(r, v));
}

static void print_machine_row(const bench_result *r) {
  char measure[48] = "of peak";
  if (r->reference)
    snprintf(measure, sizeof measure, "of %s", r->row->reference);
  print_case(r);
  printf(" %8.1f %8.1f %5.0f %%  %6.3f %6.3f %5.0f %%  %6.3f %6.3f", rate(r, 0) / 1e9,
         r->rounds.peak.best / 1e9, 100 * r->rounds.peak.spread, of_peak(r, 0),
         median_of_peak(r, 0), 100 * r->timed[0].seconds.spread, of_peak(r, 1), of_peak(r, 2));
  print_verdict(r, judge_machine(r));
  printf(" %-16s %6d\n", measure, r->rounds.n);
}

static tally print_machine_table(const bench_result *results, int n) {
  tally t = {0, 0};
  printf("Against the machine: fractions of the FMA peak of the same threads and instruction set, "
         "measured in the same "
         "rounds\n\n  %-24s %7s %-6s %8s %8s %7s  %6s %6s %7s  %6s %6s  %7s %7s %-4s %-16s %6s\n",
         "case", "threads", "isa", "GFLOP/s", "peak", "spread", "lazy", "median", "spread", "amla",
         "flash", "figure", "target", "", "measure", "rounds");
  for (int i = 0; i < n; i++) {
    print_group(results, i);
    print_machine_row(&results[i]);
    count(&t, &results[i], judge_machine(&results[i]));
  }
  return t;
}

static bool has_peers(const bench_result *r) {
  for (int l = 0; l < PEER_MAX_LIBRARIES; l++)
    if (r->peers[l][PEER_BARE] != 0)
      return true;
  return false;
}

static void print_peer_row(const bench_result *r) {
  print_case(r);
  printf(" %6.3f", of_peak(r, 0));
  for (int l = 0; peer_libraries[l] != NULL; l++)
    for (int f = 0; f < PEER_FORMS; f++) {
      const int at = r->peers[l][f];
      if (at == 0)
        printf(" %18s", "");
      else
        printf("  %5.3f %5.3f %3.0f %%", of_peak(r, at), median_of_peak(r, at),
               100 * r->timed[at].seconds.spread);
    }
  print_verdict(r, judge_fused(r));
  print_verdict(r, judge_bare(r));
  printf("\n");
}

static void print_peer_headings(void) {
  char heading[40];
  printf("\nAgainst peers: fractions of the same peak (best round, median, spread); figure: lazy "
         "over the fastest peer, "
         "unfused or blocked, then bare\n\n  %-24s %7s %-6s %6s",
         "case", "threads", "isa", "lazy");
  for (int l = 0; peer_libraries[l] != NULL; l++)
    for (int f = 0; f < PEER_FORMS; f++) {
      snprintf(heading, sizeof heading, "%s %s", peer_libraries[l]->name, peer_form_names[f]);
      printf("  %-17s", heading);
    }
  printf("  %7s %7s %-4s  %7s %7s\n", "fused", "target", "", "bare", "target");
}

static tally print_peer_table(const bench_result *results, int n) {
  tally t = {0, 0};
  const char *group = NULL;
  int first = 0;
  while (first < n && !has_peers(&results[first]))
    first++;
  if (first == n)
    return t;
  print_peer_headings();
  for (int i = 0; i < n; i++) {
    if (!has_peers(&results[i]))
      continue;
    if (results[i].row->group != group)
      printf("%s\n", group = results[i].row->group);
    print_peer_row(&results[i]);
    count(&t, &results[i], judge_fused(&results[i]));
    count(&t, &results[i], judge_bare(&results[i]));
  }
  return t;
}

static void print_errors(const bench_result *results, int n) {
  double relative = 0, bound = 0;
  int runs = 0;
  for (int i = 0; i < n; i++)
    for (int c = 0; c < results[i].n; c++, runs++) {
      relative = fmax(relative, results[i].list[c].error.rel_error);
      bound = fmax(bound, results[i].list[c].error.worst_of_bound);
    }
  printf("\nAll %d results, peers' included, agree with fp64: largest relative error %.1e, at most "
         "%.2f of the bound.\n",
         runs, relative, bound);
}

static void print_disturbed(const bench_result *results, int n) {
  int disturbed = 0;
  for (int i = 0; i < n; i++)
    disturbed += results[i].disturbed;
  if (disturbed > 0)
    printf("Disturbed (\"?\"): %d of %d cases, where other work kept the FMA peak from being "
           "reached; repeat them with "
           "--only and a longer --for.\n",
           disturbed, n);
}

void bench_print_tables(const bench_result *results, int n) {
  const tally machine = print_machine_table(results, n);
  tally peers = {0, 0};
  if (peer_libraries[0] != NULL)
    peers = print_peer_table(results, n);
  else
    printf("\nNo peers: built without OpenBLAS (OpenMP build) and oneDNN.\n");
  print_errors(results, n);
  print_disturbed(results, n);
  printf("Targets of the instruction set in each row that hold: %d of %d against the machine, "
         "%d of %d against peers.\n",
         machine.met, machine.set, peers.met, peers.set);
}

/* ---- JSON ---- */

static json_t *series_json(harness_series s) {
  return json_pack("{s:f, s:f, s:f}", "best", s.best, "median", s.median, "spread", s.spread);
}

static json_t *contestant_json(const bench_result *r, int i) {
  const bench_contestant *c = &r->list[i];
  return json_pack("{s:s, s:f, s:f, s:f, s:o, s:f, s:f, s:b}", "name", c->name, "gflops",
                   rate(r, i) / 1e9, "of_peak", of_peak(r, i), "median_of_peak",
                   median_of_peak(r, i), "seconds", series_json(r->timed[i].seconds), "rel_error",
                   c->error.rel_error, "worst_of_bound", c->error.worst_of_bound, "ok",
                   c->error.ok);
}

static void add_verdict(json_t *object, const bench_result *r, const char *name, verdict v) {
  if (v.target == 0)
    return;
  json_object_set_new(
      object, name,
      json_pack("{s:f, s:f, s:b}", "figure", v.figure, "target", v.target, "ok", is_met(r, v)));
}

static json_t *result_json(const bench_result *r) {
  json_t *o =
      json_pack("{s:s, s:s, s:i, s:s, s:i, s:o}", "group", r->row->group, "problem",
                r->row->problem, "threads", r->rounds.threads, "isa", amla_isa_name(r->rounds.isa),
                "rounds", r->rounds.n, "peak_flops", series_json(r->rounds.peak));
  json_t *list = json_array();
  for (int i = 0; i < r->n; i++)
    json_array_append_new(list, contestant_json(r, i));
  json_object_set_new(o, "disturbed", json_boolean(r->disturbed));
  json_object_set_new(o, "contestants", list);
  add_verdict(o, r, r->reference ? "of_reference" : "of_peak", judge_machine(r));
  add_verdict(o, r, "over_fused_peers", judge_fused(r));
  add_verdict(o, r, "over_bare_peers", judge_bare(r));
  return o;
}

void bench_print_json(const bench_result *results, int n) {
  json_t *list = json_array();
  for (int i = 0; i < n; i++)
    json_array_append_new(list, result_json(&results[i]));
  if (json_dumpf(list, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(6)) != 0)
    exit(1); /* where standard output is told of */
  printf("\n");
  json_decref(list);
}
