/* SPDX-License-Identifier: Apache-2.0
 *
 * oneDNN through dnnl_sgemm. Its matmul primitive, tried on the same shapes with oneDNN 2.6, was
 * equal for P V (the same kernel) and slower for the scores: 4 % at best, 29 % with 16 heads,
 * against dnnl_sgemm on the transposed scores.
 */
#include "peer_list.h"

#include <omp.h>
#include <oneapi/dnnl/dnnl.h>
#include <stdio.h>
#include <stdlib.h>

static void prepare(int threads) { omp_set_num_threads(threads); } /* oneDNN asks OpenMP */

static int describe(char *text, size_t capacity) {
  const dnnl_version_t *v = dnnl_version();
  return snprintf(text, capacity, "%d.%d.%d, OpenMP", v->major, v->minor, v->patch);
}

static void sgemm(bool a_transposed, bool b_transposed, int m, int n, int k, const float *a,
                  int lda, const float *b, int ldb, float beta, float *c, int ldc) {
  const char op_a = a_transposed ? 'T' : 'N';
  const char op_b = b_transposed ? 'T' : 'N';
  if (dnnl_sgemm(op_a, op_b, m, n, k, 1.0f, a, lda, b, ldb, beta, c, ldc) != dnnl_success)
    abort(); /* out of memory, or our bug */
}

const peer_library peer_dnnl = {"oneDNN", prepare, describe, sgemm};
