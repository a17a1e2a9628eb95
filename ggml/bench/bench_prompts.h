/* SPDX-License-Identifier: Apache-2.0
 *
 * Prompts of 512 tokens: ggml, the plug-in and the library alone on the same rows, and the FMA
 * peak, in the same rounds. The library's q and result lie packed, and it knows of causality.
 */
#ifndef AMLA_BENCH_PROMPTS_H
#define AMLA_BENCH_PROMPTS_H

#include "ggml/ggml_session.h"

/* Checks before it measures. An exit code: 0 measured, 1 error, 3 a result is not right. */
int bench_prompts(ggml_session *s, int threads, double seconds);

#endif
