/* SPDX-License-Identifier: Apache-2.0
 *
 * The libraries that CMake found.
 */
#include "peer_list.h"

const peer_library *const peer_libraries[PEER_MAX_LIBRARIES + 1] = {
#ifdef AMLA_BENCH_OPENBLAS
    &peer_openblas,
#endif
#ifdef AMLA_BENCH_DNNL
    &peer_dnnl,
#endif
    NULL};
