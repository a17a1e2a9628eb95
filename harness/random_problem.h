/* SPDX-License-Identifier: Apache-2.0
 *
 * Random problem strings, small enough to be checked in milliseconds: shapes, types, layouts and
 * distributions that nobody would think of together. Every compiler draws the same ones.
 */
#ifndef AMLA_HARNESS_RANDOM_PROBLEM_H
#define AMLA_HARNESS_RANDOM_PROBLEM_H

#include <stddef.h>
#include <stdint.h>

enum { HARNESS_RANDOM_SEEN = 256, HARNESS_RANDOM_PROBLEM = 768 }; /* characters that are enough */

/* Keys that say which keys a query sees, as ",causal=0,topk=12": they agree with one another and
 * with the sizes. elems: of a block of kv; 0: its rows are in one piece. */
void harness_random_seen(uint64_t *state, int sk, int page, int d_qk, int elems,
                         char text[HARNESS_RANDOM_SEEN]);

void harness_random_problem(uint64_t *state, char text[HARNESS_RANDOM_PROBLEM]);

/* Log-uniform in [1, most]. */
int harness_random_size(uint64_t *state, int most);

#endif
