/* SPDX-License-Identifier: Apache-2.0
 *
 * How a refusal is said: one line with field, value and rule, into the caller's buffer.
 */
#ifndef AMLA_DETAIL_H
#define AMLA_DETAIL_H

#include <amla/amla.h>

#if defined(__GNUC__)
__attribute__((format(printf, 3, 4)))
#endif
amla_status
amla_refuse(amla_detail *detail, amla_status status, const char *format, ...);

/* Refuses a buffer that lies in part or in whole where another does; NULL lies nowhere, and so does
 * one of no bytes. */
amla_status amla_check_overlap(const char *name, const void *at, uint64_t bytes,
                               const char *other_name, const void *other, uint64_t other_bytes,
                               amla_detail *detail);

/* AMLA_OK, and "" in the detail. */
amla_status amla_accept(amla_detail *detail);

#endif
