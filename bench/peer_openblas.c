/* SPDX-License-Identifier: Apache-2.0
 *
 * OpenBLAS, its OpenMP build: the same threads as everybody in this process, not a second pool that
 * fights for the cores.
 */
#include "peer_list.h"

#include <cblas.h>
#include <stdio.h>

static void prepare(int threads) { openblas_set_num_threads(threads); }

static int describe(char *text, size_t capacity) {
  const char *const parallel[] = {"sequential", "threads of its own", "OpenMP"};
  char version[16] = "";
  sscanf(openblas_get_config(), "OpenBLAS %15s", version);
  return snprintf(text, capacity, "%s, kernels %s, %s", version, openblas_get_corename(),
                  parallel[openblas_get_parallel()]);
}

static enum CBLAS_TRANSPOSE transposition(bool transposed) {
  return transposed ? CblasTrans : CblasNoTrans;
}

static void sgemm(bool a_transposed, bool b_transposed, int m, int n, int k, const float *a,
                  int lda, const float *b, int ldb, float beta, float *c, int ldc) {
  cblas_sgemm(CblasRowMajor, transposition(a_transposed), transposition(b_transposed), m, n, k,
              1.0f, a, lda, b, ldb, beta, c, ldc);
}

const peer_library peer_openblas = {"OpenBLAS", prepare, describe, sgemm};
