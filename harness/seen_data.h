/* SPDX-License-Identifier: Apache-2.0
 *
 * Tensors that say which keys a query sees, drawn for a problem string: lists, visible lengths,
 * ragged queries, page lists. Lengths and block table of data are there already.
 */
#ifndef AMLA_HARNESS_SEEN_DATA_H
#define AMLA_HARNESS_SEEN_DATA_H

#include "dataset.h"

/* All false: out of memory. */
bool harness_draw_q_indptr(const harness_case *c, harness_dataset *data);
bool harness_draw_visible(const harness_case *c, harness_dataset *data);
bool harness_make_page_lists(harness_dataset *data);

/* Marks tokens that some query sees: seen [b][sk]. */
bool harness_draw_lists(const harness_case *c, harness_dataset *data, bool *seen);
void harness_mark_dense(const harness_dataset *data, bool *seen);

/* Lists as shards want them: the valid entries of each ascend, where they stood. */
bool harness_sort_lists(harness_dataset *data);

#endif
