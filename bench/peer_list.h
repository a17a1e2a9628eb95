/* SPDX-License-Identifier: Apache-2.0
 *
 * One row per library that a peer can be made of; peer_list.c says which of them this build has.
 */
#ifndef AMLA_BENCH_PEER_LIST_H
#define AMLA_BENCH_PEER_LIST_H

#include "peer.h"

extern const peer_library peer_openblas, peer_dnnl;

#endif
