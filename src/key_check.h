/* SPDX-License-Identifier: Apache-2.0
 *
 * The refusals of what tensors say about keys: lengths, page ids, lists. They read host memory, of
 * buffers whose pointers and capacities have been checked.
 */
#ifndef AMLA_KEY_CHECK_H
#define AMLA_KEY_CHECK_H

#include <amla/amla.h>

/* q_indptr and kv_indptr, which other sizes come from. */
amla_status amla_indptrs_check(const amla_problem *p, const amla_tensors *t, amla_detail *detail);

/* Positions of each sequence whose pages are used: [begin[i], end[i]); NULL: all. */
typedef struct amla_key_range {
  const int32_t *begin, *end;
} amla_key_range;

/* Everything else, of both scopes: used [2], or NULL: no page is. */
amla_status amla_keys_check(const amla_problem *p, const amla_tensors *t,
                            const amla_key_range *used, amla_detail *detail);

#endif
