/* SPDX-License-Identifier: Apache-2.0
 *
 * Fibers and their scheduler. See cuda_emulator.hpp.
 */
#include "cuda_emulator.hpp"

#include <cstdarg>
#include <ucontext.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulator {

fiber *current;

static const std::function<void()> *body_of_fibers;
static uint64_t random_state;
static constexpr size_t STACK_BYTES = 64 * 1024;

void fail(const char *format, ...) {
  va_list args;
  va_start(args, format);
  fprintf(stderr, "CUDA emulation: ");
  vfprintf(stderr, format, args);
  fprintf(stderr, "\n");
  va_end(args);
  abort();
}

uint64_t random_bits() { /* splitmix64 */
  uint64_t z = (random_state += 0x9e3779b97f4a7c15u);
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

uint32_t random_delay() {
  const uint64_t bits = random_bits();
  return bits % 4 != 0 ? (uint32_t)(bits >> 8 & 7) : (uint32_t)(bits >> 8 & 511);
}

/* ---- Switching stacks ---- */

static void fiber_main();

#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__)
/* Saves the registers that a call preserves on the old stack and takes those of the new one:
 * swapcontext without its system calls. */
extern "C" void amla_switch_stacks(void **save, void *to);
asm(".text\n.globl amla_switch_stacks\n.hidden amla_switch_stacks\n.type "
    "amla_switch_stacks,@function\namla_switch_stacks:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp, (%rdi)\nmov %rsi, %rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n"
    ".size amla_switch_stacks,.-amla_switch_stacks\n");
static void *scheduler_stack;

static void prepare_stack(fiber &f) {
  uintptr_t top = ((uintptr_t)f.stack.get() + STACK_BYTES) / 16 * 16;
  void **at = (void **)top - 8; /* six registers, the entry, and the alignment a call leaves */
  memset(at, 0, 8 * sizeof *at);
  at[6] = (void *)fiber_main;
  f.stack_pointer = at;
}
static void enter(fiber &f) { amla_switch_stacks(&scheduler_stack, f.stack_pointer); }
static void leave(fiber &f) { amla_switch_stacks(&f.stack_pointer, scheduler_stack); }
static void entered() {}
#else
static ucontext_t scheduler_context;
static std::map<fiber *, std::unique_ptr<ucontext_t>> contexts;
#if defined(__SANITIZE_ADDRESS__)
static const void *scheduler_bottom;
static size_t scheduler_bytes;
static void *scheduler_fake;
#endif

static void prepare_stack(fiber &f) {
  auto &c = contexts[&f];
  c.reset(new ucontext_t);
  getcontext(c.get());
  c->uc_stack.ss_sp = f.stack.get();
  c->uc_stack.ss_size = STACK_BYTES;
  c->uc_link = nullptr;
  makecontext(c.get(), fiber_main, 0);
  f.stack_pointer = c.get();
}
static void enter(fiber &f) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&scheduler_fake, f.stack.get(), STACK_BYTES);
#endif
  swapcontext(&scheduler_context, (ucontext_t *)f.stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(scheduler_fake, nullptr, nullptr);
#endif
}
static void leave(fiber &f) {
#if defined(__SANITIZE_ADDRESS__)
  void *fake = nullptr;
  __sanitizer_start_switch_fiber(f.done ? nullptr : &fake, scheduler_bottom, scheduler_bytes);
#endif
  swapcontext((ucontext_t *)f.stack_pointer, &scheduler_context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, &scheduler_bottom, &scheduler_bytes);
#endif
}
static void entered() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_bottom, &scheduler_bytes);
#endif
}
#endif

static void fiber_main() {
  entered();
  (*body_of_fibers)();
  fiber &f = *current;
  f.done = true;
  f.home->alive--;
  leave(f);
  fail("a finished thread was resumed");
}

void yield() { leave(*current); }

void wait_while(const uint32_t *at, uint32_t value) {
  while (*at == value) {
    current->waits_for = at;
    current->waits_while = value;
    yield();
    current->waits_for = nullptr;
  }
}

/* ---- The grid ---- */

static void create_block(block &b, int32_t index, int32_t threads, size_t shared_bytes) {
  b.index = index;
  b.shared.assign((shared_bytes + 1023) / 1024 * 1024, 0xff); /* NaN, until something is written */
  b.unfenced.assign(b.shared.size() / 16, 0);
  b.fibers.resize((size_t)threads);
  b.warps.resize((size_t)threads / 32);
  b.alive = threads;
  for (int32_t t = 0; t < threads; t++) {
    fiber &f = b.fibers[(size_t)t];
    f.stack.reset(new char[STACK_BYTES]);
    f.thread = t;
    f.home = &b;
    f.mates = &b.warps[(size_t)t / 32];
    f.mates->lanes[t % 32] = &f;
    prepare_stack(f);
  }
}

/* One visit to a warp: each lane that can go runs until it waits. Whether any could. */
static bool run_warp(warp &w, uint32_t rounds) {
  bool ran = false;
  if (w.sleeps > 0) {
    w.sleeps -= w.sleeps < rounds ? w.sleeps : rounds;
    return false;
  }
  const uint32_t start = (uint32_t)random_bits() & 31;
  for (uint32_t i = 0; i < 32; i++) {
    fiber &f = *w.lanes[(start + i) & 31];
    if (f.done || (f.waits_for && *f.waits_for == f.waits_while))
      continue;
    current = &f;
    enter(f);
    ran = true;
  }
  if (random_bits() % 64 == 0)
    w.sleeps = random_delay();
  return ran;
}

static bool run_loads(block &b, uint32_t rounds) {
  bool ran = false;
  for (size_t i = 0; i < b.loads.size();) {
    if (b.loads[i].rounds > rounds) {
      b.loads[i].rounds -= rounds;
      i++;
      continue;
    }
    const deferred load = b.loads[i].load;
    b.loads.erase(b.loads.begin() + (ptrdiff_t)i);
    load();
    ran = true;
  }
  return ran;
}

/* Will something happen by itself in this block? */
static bool is_pending(const block &b) {
  bool pending = !b.loads.empty();
  for (const warp &w : b.warps)
    pending |= w.sleeps > 0;
  return pending;
}

void run_grid(int32_t grid, int32_t threads, size_t shared_bytes, uint64_t seed,
              const std::function<void()> &body, int32_t cluster) {
  std::vector<std::unique_ptr<block>> blocks;
  if (threads % 32 != 0)
    fail("%d threads are not whole warps", threads);
  if (grid % cluster != 0)
    fail("%d thread blocks are not clusters of %d", grid, cluster);
  random_state = seed;
  body_of_fibers = &body;
  for (int32_t i = 0; i < grid; i++) {
    blocks.emplace_back(new block);
    create_block(*blocks.back(), i, threads, shared_bytes);
    block &b = *blocks.back(), &first = *blocks[(size_t)(i - i % cluster)];
    b.of_cluster = &first.own_cluster_barrier;
    if (&b != &first)
      b.peer = &first, first.peer = &b;
  }
  const int32_t slow = (int32_t)(random_bits() % (uint64_t)grid);
  int64_t idle = 0;
  uint32_t rounds = 1; /* more where all that happens is waiting */
  for (int64_t alive = grid; alive > 0;) {
    bool ran = false, pending = false;
    alive = 0;
    for (auto &b : blocks) {
      if (b->alive == 0)
        continue;
      alive++;
      if (b->sleeps > 0) {
        b->sleeps--;
        continue;
      }
      if (b->index == slow && random_bits() % 256 == 0)
        b->sleeps = (uint32_t)random_bits() % 65536; /* others get ahead by whole items */
      if (random_bits() % 8 == 0) {                  /* all drift apart a little */
        ran = true;
        continue;
      }
      const size_t n = b->warps.size(), start = random_bits() % n;
      for (size_t i = 0; i < n; i++)
        ran |= run_warp(b->warps[(start + i) % n], rounds);
      ran |= run_loads(*b, rounds);
      pending |= is_pending(*b);
    }
    rounds = ran ? 1 : 64;
    if (ran || pending) {
      idle = 0;
      continue;
    }
    for (auto &b : blocks) { /* nobody else can go: the sleeper must */
      ran |= b->sleeps > 0;
      b->sleeps = 0;
    }
    if (!ran && alive > 0 && ++idle > 1000)
      fail("deadlock: %lld thread blocks wait", (long long)alive);
  }
#if !(defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__))
  contexts.clear();
#endif
}

/* ---- Shared memory ---- */

unsigned char *shared_at(uint32_t address, uint32_t bytes) {
  block &b = *current->home;
  if ((uint64_t)address + bytes > b.shared.size())
    fail("%u bytes at %u of %zu of shared memory", bytes, address, b.shared.size());
  if (bytes == 0 || address % (bytes >= 16 ? 16 : bytes) != 0)
    fail("%u bytes of shared memory at %u: misaligned", bytes, address);
  return b.shared.data() + address;
}

void mark_unfenced(uint32_t address, uint32_t bytes) {
  for (uint32_t i = address / 16; i <= (address + bytes - 1) / 16; i++) {
    current->home->unfenced[i] = 1;
    current->unfenced.push_back(i);
  }
}

void check_fenced(uint32_t address, uint32_t bytes) {
  for (uint32_t i = address / 16; i <= (address + bytes - 1) / 16; i++)
    if (current->home->unfenced[i])
      fail("the tensor core reads shared memory at %u, written without fence.proxy.async", i * 16);
}

void complete_phase_if_done(mbarrier &b) {
  if (b.pending != 0 || b.bytes != 0)
    return;
  b.pending = b.expected;
  b.phases++;
}

} // namespace emulator
