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

/* Everything else, of both scopes. */
amla_status amla_keys_check(const amla_problem *p, const amla_tensors *t, amla_detail *detail);

#endif
