/* SPDX-License-Identifier: Apache-2.0
 *
 * A grid of CUDA threads on one CPU thread: every thread is a fiber that runs until it waits.
 * Nothing of a GPU's speed is modelled. What is: barriers, warp collectives, shared memory that
 * starts as NaN, and asynchronous copies and products that happen as early or as late as they may,
 * chosen at random, so that a missing wait shows. Warps and thread blocks run in random order, and
 * now and then one sleeps or a load takes for so long that all others who do not wait for it get
 * far ahead. An error of the kernel (divergent collective, address outside shared memory, unfenced
 * read, deadlock) ends the program with a message.
 */
#ifndef AMLA_CUDA_EMULATOR_H
#define AMLA_CUDA_EMULATOR_H

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <vector>

namespace emulator {

[[noreturn]] void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

struct block;
struct warp;

/* A copy or product that has been issued: it runs at once, or when somebody waits for it. */
using deferred = std::function<void()>;

struct fiber {
  void *stack_pointer = nullptr; /* or the ucontext */
  std::unique_ptr<char[]> stack;
  int32_t thread = 0;
  block *home = nullptr;
  warp *mates = nullptr;
  bool done = false;
  const uint32_t *waits_for = nullptr; /* runnable again once this is not waits_while */
  uint32_t waits_while = 0;
  std::deque<std::vector<deferred>> copy_groups; /* cp.async, committed */
  std::vector<deferred> copies;                  /* not yet */
  uint32_t stores = 0;                           /* by bulk_store, not yet done */
  std::vector<uint32_t>
      unfenced; /* 16-byte units of shared memory that it wrote and no proxy fence has covered */
};

struct warp {
  fiber *lanes[32] = {};
  uint32_t arrived = 0, generation = 0;
  const char *operation = nullptr;
  void *arguments[32] = {};
  std::deque<std::vector<deferred>> product_groups;
  std::vector<deferred> products;
  uint32_t sleeps = 0; /* rounds of the scheduler that it sits out */
};

/* A load or store by TMA, and the rounds until it arrives. */
struct delayed {
  deferred load;
  uint32_t rounds;
};

struct named_barrier {
  uint32_t arrived = 0, generation = 0;
  bool any = false, result[2] = {};
};

struct mbarrier {
  uint32_t expected = 0, pending = 0, phases = 0; /* phases completed */
  int64_t bytes = 0;                              /* expected and not yet there */
};

struct block {
  int32_t index = 0;
  block *peer = nullptr;     /* the other one of a cluster of two */
  named_barrier *of_cluster; /* of both */
  std::vector<unsigned char> shared;
  std::vector<uint8_t> unfenced; /* per 16 bytes: written through the generic proxy, not fenced */
  std::vector<fiber> fibers;
  std::vector<warp> warps;
  named_barrier barriers[16], own_cluster_barrier;
  std::map<uint32_t, mbarrier> mbarriers;
  std::vector<delayed> loads; /* TMA */
  int32_t alive = 0;
  uint32_t sleeps = 0;
};

extern fiber *current;

/* Runs body in grid x threads fibers; clusters of one or two thread blocks. */
void run_grid(int32_t grid, int32_t threads, size_t shared_bytes, uint64_t seed,
              const std::function<void()> &body, int32_t cluster = 1);

uint64_t random_bits();
uint32_t random_delay(); /* in rounds: often short, now and then longer than anything else takes */
void yield();            /* back to the scheduler */
void wait_while(const uint32_t *at, uint32_t value);

unsigned char *shared_at(uint32_t address, uint32_t bytes);
void mark_unfenced(uint32_t address, uint32_t bytes);
void check_fenced(uint32_t address, uint32_t bytes);
void complete_phase_if_done(mbarrier &b);

/* All 32 lanes come here with their arguments; the last one runs the operation for all. */
template <class A> void collective(const char *operation, A &arguments, void (*execute)(A **)) {
  warp &w = *current->mates;
  if (w.arrived == 0)
    w.operation = operation;
  if (strcmp(w.operation, operation) != 0)
    fail("thread %d is at %s while its warp is at %s", current->thread, operation, w.operation);
  w.arguments[current->thread & 31] = &arguments;
  const uint32_t generation = w.generation;
  if (++w.arrived < 32) {
    wait_while(&w.generation, generation);
    return;
  }
  execute((A **)w.arguments);
  w.arrived = 0;
  w.generation++;
}

} // namespace emulator
#endif
