/* SPDX-License-Identifier: Apache-2.0
 *
 * Peers: the same attention, written with a BLAS as a careful author would, so that the comparison
 * is with what people have and not with a straw man. A peer is a library and a form:
 *
 *   unfused   whole KV of a sequence to f32 (pages gathered), S^T = K Q^T, softmax, O = P V; two
 *             sgemm calls a sequence
 *   blocked   the same by 256 tokens with an online softmax: KV tile, scores and O stay in L2
 *   bare      two sgemm calls and softmax on q and KV that are f32 and contiguous already: no
 *             conversion at all
 *
 * Scores are computed transposed, [token][row]: both libraries are faster with the long side as
 * rows (measured, 16 and 128 rows: up to 1.5x), and the softmax then has no horizontal step.
 * Sequences follow one another; the threads are the library's own inside sgemm and the same number
 * outside.
 */
#ifndef AMLA_BENCH_PEER_H
#define AMLA_BENCH_PEER_H

#include "harness/dataset.h"

typedef enum peer_form { PEER_UNFUSED, PEER_BLOCKED, PEER_BARE, PEER_FORMS } peer_form;

extern const char *const peer_form_names[PEER_FORMS];

typedef struct peer_library {
  const char *name;
  void (*prepare)(int threads);                 /* what later calls of sgemm use */
  int (*describe)(char *text, size_t capacity); /* version and kernels, as snprintf */
  /* Row-major: c [m][n] = a b + beta c, with a [m][k] and b [k][n], or, transposed, a [k][m] and b
   * [n][k]. */
  void (*sgemm)(bool a_transposed, bool b_transposed, int m, int n, int k, const float *a, int lda,
                const float *b, int ldb, float beta, float *c, int ldc);
} peer_library;

/* Those that this build has. */
enum { PEER_MAX_LIBRARIES = 2 };
extern const peer_library *const peer_libraries[PEER_MAX_LIBRARIES + 1]; /* ends with NULL */

typedef struct peer peer;

/* data: packed q and out, out f32, q and kv bf16; its tensors must outlive the peer. isa: of the
 * code between sgemm calls. Out of memory ends the program. */
peer *peer_create(const peer_library *library, peer_form form, const harness_dataset *data,
                  amla_isa isa, int threads);
void peer_run(void *peer); /* writes data's out and lse */
void peer_destroy(peer *peer);

#endif
