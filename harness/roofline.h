/* SPDX-License-Identifier: Apache-2.0
 *
 * The limits of this machine, measured beside the thing they limit: the FMA rate of registers-only
 * loops per instruction set, and the read bandwidth of memory. And the clock.
 */
#ifndef AMLA_HARNESS_ROOFLINE_H
#define AMLA_HARNESS_ROOFLINE_H

#include <amla/amla.h>

double harness_seconds(void); /* CLOCK_MONOTONIC */

/* FLOP/s over `threads` threads of independent FMA chains in registers, one round of about
 * `seconds`. AMLA_ISA_C is measured with SSE2 multiply and add: what portable x86-64 code can
 * use. */
double harness_peak_flops(amla_isa isa, int threads, double seconds);

/* Bytes/s of `threads` threads reading a buffer of twice the last-level cache, within reason, one
 * round. */
typedef struct harness_stream harness_stream;
harness_stream *harness_stream_create(int threads); /* NULL: out of memory */
double harness_stream_read(harness_stream *s, double seconds);
void harness_stream_free(harness_stream *s);

#endif
