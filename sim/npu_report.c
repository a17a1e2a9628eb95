/* SPDX-License-Identifier: Apache-2.0
 *
 * What a launch tells: errors in words, busy shares, the Chrome trace; presets and cost rows for
 * those who ask.
 */
#include "npu_core.h"

#include <math.h>
#include <stdarg.h>
#include <string.h>

static const char *const pipe_names[] = {"S", "MTE1", "MTE2", "MTE3", "M", "FIX", "V"};

const char *npu_pipe_name(int32_t pipe) {
  return pipe >= 0 && pipe < NPU_PIPES ? pipe_names[pipe] : "?";
}

const char *npu_core_name(const npu_core *core, char *text, size_t capacity) {
  if (core->subcore < 0)
    snprintf(text, capacity, "AIC %d", core->block);
  else
    snprintf(text, capacity, "AIV %d.%d", core->block, core->subcore);
  return text;
}

static const char *base_name(const char *file) {
  if (!file)
    return "?";
  const char *slash = strrchr(file, '/');
  return slash ? slash + 1 : file;
}

const char *npu_describe_instr(const npu_core *core, npu_pipe pipe, uint32_t index,
                               const char *name, const char *file, int32_t line, char *text,
                               size_t capacity) {
  char core_name[32];
  snprintf(text, capacity, "%s %s %s #%u (%s:%d)", npu_core_name(core, core_name, sizeof core_name),
           npu_pipe_name((int32_t)pipe), name, (unsigned)index, base_name(file), (int)line);
  return text;
}

/* ---- Errors ---- */

void npu_report_error(npu_chip *chip, npu_error kind, const char *format, ...) {
  npu_report *r = chip->report;
  r->errors[kind]++;
  if (r->n_messages == NPU_MESSAGES)
    return;
  va_list list;
  va_start(list, format);
  vsnprintf(r->message[r->n_messages++], NPU_MESSAGE_BYTES, format, list);
  va_end(list);
}

bool npu_refuse(npu_core *core, const npu_instr *i, const char *field, long long value,
                const char *rule) {
  npu_pipe pipe = npu_ops[i->op].pipe;
  if (i->op >= OP_NOTIFY)
    pipe = (npu_pipe)(i->op == OP_WAIT ? i->to : i->from);
  const uint32_t index = pipe < NPU_PIPES ? core->pipe[pipe].issued + 1 : 0;
  char text[160];
  npu_report_error(core->chip, NPU_ERROR_OPERAND, "%s: %s=%lld: %s",
                   npu_describe_instr(core, pipe, index, npu_ops[i->op].name, i->file, i->line,
                                      text, sizeof text),
                   field, value, rule);
  core->chip->stopped = true;
  return false;
}

/* What a stuck C code or pipe waits for; "" if it does not wait. */
static const char *waits_for(const npu_core *core, int32_t pipe, char *text, size_t capacity) {
  const npu_queue *q = &core->pipe[pipe];
  text[0] = 0;
  if (pipe == NPU_PIPE_S && core->full_queue != NPU_PIPE_ALL) {
    snprintf(text, capacity, "S: room in the queue of %s",
             npu_pipe_name((int32_t)core->full_queue));
    return text;
  }
  if (pipe == NPU_PIPE_S) {
    switch (core->stall) {
    case STALL_EVENT:
      if (core->stall_from == NPU_PIPE_ALL)
        snprintf(text, capacity, "S: flag %d", core->stall_event);
      else
        snprintf(text, capacity, "S: event %s->S %d", npu_pipe_name((int32_t)core->stall_from),
                 core->stall_event);
      break;
    case STALL_DRAIN: snprintf(text, capacity, "S: its pipes to drain"); break;
    case STALL_BARRIER_ALL: snprintf(text, capacity, "S: the barrier of all cores"); break;
    default: break;
    }
    return text;
  }
  if (!q->count)
    return text;
  const npu_instr *i = &q->slot[q->head];
  if (i->op == OP_WAIT)
    snprintf(text, capacity, "%s: event %s->%s %d (%s:%d)", npu_pipe_name(pipe),
             npu_pipe_name(i->from), npu_pipe_name(i->to), i->event, base_name(i->file), i->line);
  else
    snprintf(text, capacity, "%s: flag %d (%s:%d)", npu_pipe_name(pipe), i->event,
             base_name(i->file), i->line);
  return text;
}

void npu_report_deadlock(npu_chip *chip) {
  for (int32_t c = 0; c < chip->n_cores; c++) {
    const npu_core *core = &chip->core[c];
    char name[32], one[96], all[NPU_MESSAGE_BYTES - 64] = "";
    size_t used = 0;
    for (int p = 0; p < NPU_PIPES; p++)
      if (*waits_for(core, p, one, sizeof one) && used + strlen(one) + 3 < sizeof all)
        used += (size_t)snprintf(all + used, sizeof all - used, "%s%s", used ? "; " : "", one);
    if (used)
      npu_report_error(chip, NPU_ERROR_DEADLOCK, "deadlock: %s waits for: %s",
                       npu_core_name(core, name, sizeof name), all);
  }
}

void npu_report_left_set(npu_chip *chip) {
  char name[32];
  for (int32_t c = 0; c < chip->n_cores; c++) {
    const npu_core *core = &chip->core[c];
    npu_core_name(core, name, sizeof name);
    for (int from = 0; from < NPU_PIPES; from++)
      for (int to = 0; to < NPU_PIPES; to++)
        for (int e = 0; e < NPU_EVENTS; e++)
          if (core->event[from][to][e].count)
            npu_report_error(chip, NPU_ERROR_LEFT_SET, "left set: %s, event %s->%s %d", name,
                             npu_pipe_name(from), npu_pipe_name(to), e);
    for (int side = 0; side < 2; side++)
      for (int f = 0; f < NPU_FLAGS; f++)
        if (core->flag[side][f].count)
          npu_report_error(chip, NPU_ERROR_LEFT_SET, "left set: %s, flag %d, %d times", name, f,
                           core->flag[side][f].count);
  }
}

void npu_report_ambiguous(const npu_core *core, const char *role, const npu_flag_user *user,
                          const npu_instr *other) {
  char name[32];
  npu_report_error(
      core->chip, NPU_ERROR_AMBIGUOUS,
      "ambiguous %s: %s, flag %d: %s (%s:%d) and %s (%s:%d); which comes first depends on time",
      role, npu_core_name(core, name, sizeof name), other->event, npu_pipe_name(user->pipe),
      base_name(user->file), (int)user->line, npu_pipe_name(other->from), base_name(other->file),
      (int)other->line);
}

/* ---- Totals ---- */

static void add_busy(npu_report *r, const npu_core *core, double cycles) {
  double *mean = core->subcore < 0 ? r->aic_busy : r->aiv_busy;
  double *most = core->subcore < 0 ? r->aic_busy_max : r->aiv_busy_max;
  const double cores = core->subcore < 0 ? r->cores : 2.0 * r->cores;
  for (int p = 0; p < NPU_PIPES; p++) {
    const double share = cycles > 0 ? (double)core->pipe[p].busy_cycles / cycles : 0;
    mean[p] += share / cores;
    if (share > most[p])
      most[p] = share;
  }
}

void npu_report_finish(npu_chip *chip) {
  npu_report *r = chip->report;
  int64_t cycles = 0;
  for (int32_t c = 0; c < chip->n_cores; c++)
    for (int p = 0; p < NPU_PIPES; p++) {
      const npu_core *core = &chip->core[c];
      const int64_t end = p == NPU_PIPE_S ? core->now : core->pipe[p].done_cycle;
      if (end > cycles)
        cycles = end;
    }
  r->cores = chip->blocks;
  for (int32_t c = 0; c < chip->n_cores; c++)
    add_busy(r, &chip->core[c], (double)cycles);
  r->launch_cycles = (int64_t)chip->cost[COST_CHIP_LAUNCH].fixed_cycles;
  r->cycles = cycles + r->launch_cycles;
  r->seconds = (double)r->cycles / (chip->preset.ghz * 1e9);
  r->wait_sites = chip->n_places;
  r->trace = chip->trace, r->n_trace = chip->n_trace;
}

const char *npu_wait_site(const npu_chip *chip, int32_t i) {
  static _Thread_local char text[160];
  text[0] = 0;
  if (i < 1 || i > chip->n_places)
    return text;
  const npu_wait_place *p = &chip->place[i - 1];
  if (p->op == OP_WAIT)
    snprintf(text, sizeof text, "%s:%d wait %s->%s %d", base_name(p->file), p->line,
             npu_pipe_name(p->from), npu_pipe_name(p->to), p->event);
  else
    snprintf(text, sizeof text, "%s:%d cross_wait %s flag %d", base_name(p->file), p->line,
             npu_pipe_name(p->to), p->event);
  return text;
}

/* ---- Chrome trace ---- */

int npu_write_chrome_trace(const npu_report *report, const npu_preset *preset, FILE *file) {
  const double us = 1e-3 / preset->ghz;
  fprintf(file,
          "{\"displayTimeUnit\":\"ns\",\"otherData\":{\"simulated\":true,\"chip\":\"%s\"},"
          "\"traceEvents\":[\n",
          preset->name);
  for (int32_t pid = 0; pid < 3 * report->cores; pid++) {
    char core[32];
    if (pid % 3 == 0)
      snprintf(core, sizeof core, "AIC %d", pid / 3);
    else
      snprintf(core, sizeof core, "AIV %d.%d", pid / 3, pid % 3 - 1);
    fprintf(file,
            "{\"ph\":\"M\",\"name\":\"process_name\",\"pid\":%d,\"args\":{\"name\":\"%s "
            "(simulated)\"}},\n",
            pid, core);
    for (int p = 0; p < NPU_PIPES; p++)
      fprintf(file,
              "{\"ph\":\"M\",\"name\":\"thread_name\",\"pid\":%d,\"tid\":%d,\"args\":{\"name\":\"%"
              "s\"}},\n",
              pid, p, npu_pipe_name(p));
  }
  for (int64_t e = 0; e < report->n_trace; e++) {
    const npu_trace_event *t = &report->trace[e];
    fprintf(file,
            "{\"ph\":\"X\",\"name\":\"%s\",\"pid\":%d,\"tid\":%d,\"ts\":%.4f,\"dur\":%.4f,\"args\":"
            "{\"line\":\"%s:%d\","
            "\"start_cycle\":%lld}},\n",
            t->name, 3 * t->block + t->subcore + 1, t->pipe, (double)t->start_cycle * us,
            (double)(t->end_cycle - t->start_cycle) * us, base_name(t->file), t->line,
            (long long)t->start_cycle);
  }
  fprintf(file, "{\"ph\":\"M\",\"name\":\"process_labels\",\"pid\":0,\"args\":{\"labels\":"
                "\"simulated\"}}\n]}\n");
  return fflush(file) == 0 && !ferror(file) ? 0 : -1;
}

/* ---- Presets and costs ---- */

static const npu_preset presets[] = {
#define NPU_PRESET(...) {__VA_ARGS__},
#define NPU_PRESET_COST(...)
#include "npu_presets.def"
#undef NPU_PRESET
#undef NPU_PRESET_COST
};

const npu_preset *npu_preset_at(int32_t i) {
  return i >= 0 && (size_t)i < sizeof presets / sizeof presets[0] ? &presets[i] : NULL;
}

const npu_preset *npu_find_preset(const char *name) {
  for (int32_t i = 0; npu_preset_at(i); i++)
    if (!strcmp(presets[i].name, name))
      return &presets[i];
  return NULL;
}

double npu_peak_flops(const npu_preset *p) {
  return p->ghz * 1e9 * p->dies * p->cores_per_die * 8192.0;
}

int32_t npu_cost_count(void) { return COSTS; }

const npu_cost *npu_chip_cost(const npu_chip *chip, int32_t i) {
  return i >= 0 && i < COSTS ? &chip->cost[i] : NULL;
}

int npu_chip_set_cost(npu_chip *chip, const char *unit, const char *operation, double fixed_cycles,
                      double rate, double latency_cycles) {
  if (!(fixed_cycles >= 0 && fixed_cycles < 1e9 && latency_cycles >= 0 && latency_cycles < 1e9 &&
        rate > 0))
    return -1;
  for (int32_t i = 0; i < COSTS; i++) {
    npu_cost *c = &chip->cost[i];
    if (strcmp(c->unit, unit) || strcmp(c->operation, operation))
      continue;
    c->fixed_cycles = rint(fixed_cycles), c->rate = rate, c->latency_cycles = rint(latency_cycles);
    return 0;
  }
  return -1;
}
