/* SPDX-License-Identifier: Apache-2.0
 *
 * A ring of buffers between two pipes of a core, one filling, one using: four calls around each
 * use, and events for both directions. Slots are used in turn. The one place where in-core flags
 * are set and waited for.
 *
 *     filler:  acquire, fill, commit          user:  take, use, release
 */
#ifndef ASCEND_RING_H
#define ASCEND_RING_H

#include "../../sim/npu_isa.h"

typedef struct ascend_ring {
  npu_pipe filler, user;
  int32_t by_unit; /* 1: the user follows the filler, and it the user, unit by unit (L0C) */
  int32_t slots;
  int32_t event; /* slot i uses event + i of both directions of this pair of pipes */
  int32_t acquired, filled, taken, released; /* so far */
} ascend_ring;

/* All slots start free: their credits are set in advance. */
static inline ascend_ring ascend_ring_open(npu_pipe filler, npu_pipe user, int32_t slots,
                                           int32_t event) {
  ascend_ring r;
  r.filler = filler, r.user = user, r.slots = slots, r.event = event;
  r.by_unit = filler == NPU_PIPE_M && user == NPU_PIPE_FIX;
  r.acquired = r.filled = r.taken = r.released = 0;
  for (int32_t i = 0; i < slots; i++)
    npu_notify(user, filler, event + i);
  return r;
}

static inline void ascend_ring_tell(const ascend_ring *r, npu_pipe from, npu_pipe to, int32_t use) {
  if (r->by_unit)
    npu_notify_unit(from, to, r->event + use % r->slots);
  else
    npu_notify(from, to, r->event + use % r->slots);
}

/* Index of the slot to fill. */
static inline int32_t ascend_ring_acquire(ascend_ring *r) {
  const int32_t slot = r->acquired++ % r->slots;
  npu_wait(r->user, r->filler, r->event + slot);
  return slot;
}
static inline void ascend_ring_commit(ascend_ring *r) {
  ascend_ring_tell(r, r->filler, r->user, r->filled++);
}

/* Index of the slot to use. */
static inline int32_t ascend_ring_take(ascend_ring *r) {
  const int32_t slot = r->taken++ % r->slots;
  npu_wait(r->filler, r->user, r->event + slot);
  return slot;
}
static inline void ascend_ring_release(ascend_ring *r) {
  ascend_ring_tell(r, r->user, r->filler, r->released++);
}

/* Takes the credits back, so that no event stays set. */
static inline void ascend_ring_close(ascend_ring *r) {
  for (int32_t i = 0; i < r->slots; i++)
    (void)ascend_ring_acquire(r);
}

#endif
