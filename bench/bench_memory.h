/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory on huge pages, for everybody alike: our scratch, the KV cache that all read, and every
 * buffer of a peer.
 */
#ifndef AMLA_BENCH_MEMORY_H
#define AMLA_BENCH_MEMORY_H

#include <stddef.h>

/* Zeroed, touched, 2 MB-aligned, marked MADV_HUGEPAGE. Released with free. Out of memory ends the
 * program. */
void *bench_huge_allocate(size_t bytes);

#endif
