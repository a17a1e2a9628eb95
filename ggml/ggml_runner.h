/* SPDX-License-Identifier: Apache-2.0
 *
 * Work on ggml's own threads: a graph of one custom node, computed by a CPU backend of ours. So
 * there is no second pool beside ggml's: with OpenMP ggml computes us in the very team it uses for
 * itself, and without, idle threads of ours sleep.
 *
 * The first thread runs the work, which may have parallel parts; the others help with those. One
 * start of the threads serves all parts of a work, since starting them is what costs.
 */
#ifndef AMLA_GGML_RUNNER_H
#define AMLA_GGML_RUNNER_H

#include <stdatomic.h>

#include "ggml_host.h"

typedef struct ggml_runner {
  const ggml_host *host;
  void *registry; /* of the CPU */
  void *cpu;      /* a CPU backend */
  void *context, *graph;
  void *pool; /* of ggml, if it was built without OpenMP */
  int32_t threads;
  void (*work)(void *argument);
  void *work_argument;
  int32_t team; /* threads at work, 1 = the caller alone */

  void (*task)(void *argument, int32_t i); /* the parallel part at hand */
  void *task_argument;
  int32_t n;
  atomic_int part;    /* counts the parts; WORK_DONE at the end */
  atomic_int next;    /* task */
  atomic_int at_work; /* helpers that have not left the part yet */
} ggml_runner;

bool ggml_runner_create(ggml_runner *r, const ggml_host *host);

void ggml_runner_set_threads(ggml_runner *r, int32_t threads);

/* Runs work(argument) on the calling thread, with the others at hand. */
void ggml_runner_run(ggml_runner *r, void (*work)(void *argument), void *argument);

/* An amla_parallel, for use by the work; its context is the runner. */
void ggml_runner_parallel(void *runner, int32_t n, void (*task)(void *argument, int32_t i),
                          void *argument);

void ggml_runner_free(ggml_runner *r);

#endif
