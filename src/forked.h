/* SPDX-License-Identifier: Apache-2.0
 *
 * Whether this process was forked from one that had several threads. OpenMP's may have been among
 * them, whoever used it: the child has none of them, and their runtime (libgomp) would wait for
 * them for ever.
 */
#ifndef AMLA_FORKED_H
#define AMLA_FORKED_H

/* Notices forks from the first call on. Allocates, once. Thread-safe. */
void amla_watch_forks(void);

int amla_forked(void);

#endif
