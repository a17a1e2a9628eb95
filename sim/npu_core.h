/* SPDX-License-Identifier: Apache-2.0
 *
 * Inside the simulator: what its files share. An instruction is a record (npu_instr); what it is
 * called, where it runs, what it costs, which bytes it touches and what it does stand in one row of
 * the table in npu_ops.c. The engine (npu_engine.c) moves records through queues and time, and
 * shows each one, at its start, to three observers and to its semantics: cache and bandwidth
 * (npu_cache.c), race checker (npu_race.c), trace (npu_engine.c). */
#ifndef NPU_CORE_H
#define NPU_CORE_H

#define NPU_NO_SITES
#include "npu_isa.h"
#include "npu_run.h"

#include <stdbool.h>
#include <ucontext.h>

/* ---- Memory ---- */

typedef enum npu_space {
  SPACE_GM,
  SPACE_L1,
  SPACE_L0A,
  SPACE_L0B,
  SPACE_L0C,
  SPACE_UB,
  SPACES
} npu_space;
typedef enum npu_access { ACCESS_READ, ACCESS_WRITE, ACCESS_ADD_S32, ACCESS_ADD_F32 } npu_access;

typedef struct npu_region { /* a piece of GM */
  char *base;
  size_t bytes;
  int64_t first_line; /* in the cache's numbering */
  bool writable, owned;
  char name[32];
  struct npu_cell *cells; /* race checker, made when first touched */
  bool host_written;      /* all of it counts as written */
  uint64_t *written;      /* else: a bit per byte, made when first touched */
} npu_region;

/* Bytes of one operand: outer x inner runs of run_bytes. Vector operands: a repeat is outer, a
 * block of lanes is a run, and only lanes of mask count (last_mask in the last repeat). */
typedef struct npu_range {
  npu_space space;
  npu_access access;
  const char *field; /* the parameter's name in npu_isa.h */
  uintptr_t base;
  int32_t outer, inner, run_bytes;
  int64_t outer_stride, inner_stride;
  int32_t align;      /* of base */
  int32_t lane_bytes; /* 0: all bytes of a run count */
  uint64_t mask, last_mask;
  int32_t used_bytes; /* of each run; what is behind them may be anything. 0 = all */
  bool reads_old;     /* a write to what was there */
} npu_range;

enum { MAX_RANGES = 4 };

/* ---- Instructions ---- */

typedef enum npu_opcode {
#define NPU_OP(id, name, pipe, core, cost, family, semantics, ...) OP_##id,
#include "npu_ops.def"
#undef NPU_OP
  OP_NOTIFY,
  OP_NOTIFY_UNIT,
  OP_WAIT,
  OP_BARRIER,
  OP_CROSS_SET,
  OP_CROSS_WAIT,
  OP_READ_UB,
  OP_READ_GM,
  OPS
} npu_opcode;

typedef enum npu_cost_id {
#define NPU_COST(id, unit, operation, fixed, rate, rate_unit, latency, confidence, source)         \
  COST_##id,
#include "npu_costs.def"
#undef NPU_COST
  COSTS
} npu_cost_id;

typedef struct npu_clock { /* a vector clock that is shared and no longer changes */
  int32_t references;
  uint64_t serial; /* no two of a launch have the same */
  uint32_t at[];
} npu_clock;

typedef struct npu_instr {
  uint8_t op, from, to, event; /* from, to, event: synchronisation only */
  uint8_t pipe;                /* whose queue; S: the C code spends the instruction's cost */
  int32_t line;
  const char *file;
  int64_t issue_cycle; /* not started before */
  npu_clock *known; /* what the scalar unit had waited for when it issued this; race checker only */
  void *dst;
  const void *src0, *src1, *bits;
  int32_t n[5]; /* sizes and strides, in the order of the call's parameters */
  union {
    float f;
    int32_t i;
  } scalar;
  npu_vec v;
} npu_instr;

typedef struct npu_core npu_core;

/* Semantics. Vector instructions: of up to 8 lanes, those whose bit is set in lanes, at dst, a and
 * b; bits is the byte of a select. Others: once, with the operands of the record. */
typedef void npu_semantics(const npu_instr *i, void *dst, const void *a, const void *b,
                           uint32_t lanes, uint32_t bits);

/* How a vector instruction visits an operand: lanes of 4, 2 or 1 bytes, or */
enum {
  LANES_NONE = 0,
  LANES_1 = 1,
  LANES_2 = 2,
  LANES_4 = 4,
  LANES_BLOCK = 32 /* 8 x 4 bytes per repeat */,
  LANES_BITS = 8 /* bytes per repeat */
};

typedef struct npu_family { /* what instructions with the same operands share */
  bool (*rules)(npu_core *core,
                const npu_instr *i); /* sizes and strides; reports and returns false */
  int32_t (*ranges)(const npu_instr *i, npu_range *out); /* operands, of valid sizes; how many */
  int64_t (*work)(const npu_instr *i);                   /* in the unit of the cost row */
  uint8_t dst, src0, src1, bits;                         /* LANES_* of a vector instruction */
} npu_family;

typedef struct npu_op {
  const char *name; /* without npu_ */
  npu_pipe pipe;
  bool on_aiv; /* else on the AIC */
  npu_cost_id cost;
  const npu_family *family;
  npu_semantics *semantics;
} npu_op;

extern const npu_op npu_ops[OPS];
bool npu_check_instr(
    npu_core *core,
    const npu_instr *i); /* core and rules and operands; false: refused and reported */
int32_t npu_repeats(const npu_vec *v);
uint64_t npu_lanes_of_repeat(const npu_vec *v, int32_t repeat); /* which of its 64 lanes count */
void npu_apply(const npu_instr *i);

#define NPU_OP(id, name, pipe, core, cost, family, semantics, ...) npu_semantics semantics;
#include "npu_ops.def"
#undef NPU_OP

/* ---- Pipes, cores, chip ---- */

enum { CORES_PER_BLOCK = 3, STACK_BYTES = 256 * 1024, CLOCK_SLOTS = 7, STREAM = 64 };
enum { TOLD_UNWRITTEN = 64 };

typedef struct npu_queue { /* one pipe */
  npu_instr slot[NPU_QUEUE_DEPTH];
  int32_t head, count;
  int64_t free_cycle, done_cycle; /* when it can start another; when all it started is finished */
  int64_t busy_cycles;
  int64_t least_end_cycle; /* of its next instruction: it follows another unit by unit */
  uint32_t issued, started;
  bool blocked;      /* its head waits for an event or flag */
  bool wake_pending; /* an event of time will look at it */
  uint32_t *clock;   /* vector clock: what happened before its next instruction */
  uint64_t joined;   /* last npu_instr.known taken in */
} npu_queue;

typedef struct npu_counter { /* an event or flag: unwaited sets, oldest first */
  int32_t count, head;
  int64_t least_end_cycle[NPU_FLAG_MAX]; /* for what follows the wait; 0 but for unit flags */
  npu_clock *clock[NPU_FLAG_MAX];        /* race checker only */
} npu_counter;

typedef struct npu_flag_user { /* the one pipe of a core that sets a flag, or waits for it */
  bool known, told;
  uint8_t pipe;
  int32_t line;
  const char *file;
} npu_flag_user;

typedef enum npu_stall {
  STALL_NONE,
  STALL_STREAM, /* its stream is full */
  STALL_FLUSH,  /* until its stream is empty */
  STALL_EVENT,
  STALL_DRAIN,
  STALL_BARRIER_ALL,
  STALL_TIME,
  STALL_DONE
} npu_stall;

struct npu_core {
  npu_chip *chip;
  int32_t id, block, subcore; /* subcore -1: AIC */
  char *local[SPACES];
  uint64_t *written[SPACES]; /* a bit per byte of local */
  npu_queue pipe[NPU_PIPES]; /* [NPU_PIPE_S]: no queue, times and clock of the C code */
  npu_counter event[NPU_PIPES][NPU_PIPES][NPU_EVENTS];
  npu_counter flag[2][NPU_FLAGS]; /* AIC: one per AIV that sets; AIV: [0] */
  npu_flag_user setter[NPU_FLAGS], waiter[NPU_FLAGS];
  /* What the C code has called and the scalar unit has not issued yet: so that the coroutine is not
   * resumed for each instruction. Simulated time knows nothing of it. */
  npu_instr stream[STREAM];
  int32_t stream_head, stream_count;
  bool spent;          /* the cycles of the first of them */
  npu_pipe full_queue; /* which it waits for; NPU_PIPE_ALL: none */
  /* The C code. */
  ucontext_t context;
  char *stack;
  npu_kernel *kernel;
  int64_t now; /* the scalar unit's clock, which may run ahead of the chip's */
  npu_stall stall;
  npu_pipe stall_from; /* STALL_EVENT: from, NPU_PIPE_ALL for a flag; and which */
  int32_t stall_event;
  bool resume_pending;
  const char *file; /* npu_site */
  int32_t line;
  npu_clock *known; /* snapshot of pipe[S].clock; NULL: make a new one */
};

typedef struct npu_event { /* of simulated time */
  int64_t cycle;
  uint64_t order; /* ties: first made, first served */
  enum { EVENT_PIPE, EVENT_RESUME, EVENT_SET, EVENT_CROSS } kind;
  npu_core *core;
  uint8_t from, to, id;
  int64_t least_end_cycle;
  npu_clock *clock;
} npu_event;

typedef struct npu_wait_place {
  const char *file;
  int32_t line;
  uint8_t op, from, to, event;
} npu_wait_place;

typedef struct npu_place { /* an operand in the kernel's text */
  const char *file, *field;
  int32_t line;
} npu_place;

typedef struct npu_server { /* a bandwidth that cores share: served first come, first served */
  int64_t free_at;          /* in 1/256 cycle */
  double bytes_per_cycle;
} npu_server;

struct npu_chip {
  npu_preset preset;
  npu_mode mode;
  npu_cost cost[COSTS];
  npu_region *region;
  int32_t n_regions, region_capacity;
  int64_t lines; /* of all regions */
  /* The launch. */
  npu_launch_options options;
  npu_report *report;
  const void *args;
  npu_core *core; /* [3 * blocks]: AIC, AIV 0, AIV 1 of each */
  int32_t n_cores, blocks;
  ucontext_t scheduler;
  npu_event *heap;
  int64_t heap_count, heap_capacity;
  uint64_t order;
  int64_t now;
  bool stopped, out_of_memory;
  bool checks_written;
  npu_place told_unwritten[TOLD_UNWRITTEN];
  int32_t n_told_unwritten;
  int32_t at_barrier;
  int64_t barrier_cycle;
  npu_wait_place *place;
  int32_t n_places, place_capacity;
  int32_t *place_index; /* hash of places: 1-based */
  int32_t place_index_size;
  npu_trace_event *trace;
  int64_t n_trace, trace_capacity;
  struct npu_cache *cache; /* [dies] */
  struct npu_race *race;   /* NULL: not checked */
};

extern _Thread_local npu_core *npu_self; /* whose C code is running */

/* Of a bit per byte. */
static inline size_t npu_bitmap_bytes(size_t bytes) { return (bytes / 64 + 1) * sizeof(uint64_t); }

static inline int64_t npu_later(int64_t a, int64_t b) { return a > b ? a : b; }

/* ---- npu_time.c ---- */
void npu_push_event(npu_chip *chip, npu_event e);
npu_event npu_pop_event(npu_chip *chip);
void npu_wake_pipe(npu_core *core, npu_pipe pipe, int64_t cycle);
void npu_wake_core(npu_core *core, int64_t cycle);
void npu_core_main(void);                      /* where a coroutine starts */
void npu_resume(npu_core *core);               /* runs the C code until it pauses */
void npu_pause(npu_core *core, npu_stall why); /* called by the C code: until it is woken */
void npu_stop_here(npu_core *core);            /* the same, for good: after a refusal */
void npu_flush(npu_core *core); /* called by the C code: until all it has called is issued */
void npu_spend(npu_core *core,
               npu_cost_id cost);       /* the scalar unit spends cycles on something of its own */
bool npu_drained(const npu_core *core); /* no pipe has anything queued */
void npu_drain(npu_core *core); /* called by the C code: until all its pipes have finished */

/* ---- npu_engine.c ---- */
void npu_issue(npu_instr *i); /* of npu_self: checks and appends, or stops the launch */
void npu_append(npu_core *core, npu_pipe pipe, npu_instr *i);
void npu_simulate(npu_chip *chip);
void npu_site(const char *file, int32_t line); /* npu_sites.h */

/* ---- npu_flags.c ---- */
bool npu_is_set(const npu_core *core, const npu_instr *i);        /* what a wait waits for */
void npu_take(npu_core *core, npu_pipe pipe, const npu_instr *i); /* a wait's effect */
void npu_send(npu_core *core, npu_pipe pipe, const npu_instr *i,
              int64_t cycle); /* a notify's or cross_set's, at that cycle */
void npu_event_arrives(const npu_event *e);

/* ---- npu_sync.c ---- */
npu_instr npu_make_sync(npu_core *core, npu_opcode op, npu_pipe from, npu_pipe to, int32_t id);

/* ---- npu_memory.c ---- */
npu_region *npu_find_region(npu_chip *chip, uintptr_t address);
bool npu_check_range(npu_core *core, const npu_instr *i, const npu_range *range);
void *npu_map(size_t bytes); /* zero pages without memory behind them until touched; NULL: none */
void npu_unmap(void *memory, size_t bytes);
extern const char *const npu_space_name[SPACES];
int32_t npu_buffer_bytes(const npu_chip *chip, npu_space space);
/* Whose buffer a local range is in. Instructions reach the core's own, or, on the paths within an
 * AI core, L1 of the AIC and UB of an AIV. */
npu_core *npu_owner(const npu_core *core, const npu_range *range);
/* "UB [0, 64)", "GM name [0, 64)": bytes [first, end) of a range's buffer. */
const char *npu_describe_bytes(const npu_core *core, const npu_range *range, uintptr_t first,
                               uintptr_t end, char *text, size_t capacity);
/* Calls visit for every run of contiguous bytes of a range. */
typedef void npu_visit(void *context, uintptr_t base, int64_t bytes);
void npu_walk(const npu_range *range, npu_visit *visit, void *context);

/* ---- npu_cache.c: L2, HBM and their bandwidth ---- */
bool npu_cache_begin(npu_chip *chip);
void npu_cache_end(npu_chip *chip);
typedef struct npu_moved {
  int64_t end_cycle; /* when the shared bandwidths are done with it */
  int64_t bytes;     /* in whole pieces of 128 */
  bool missed;       /* some of it came from HBM */
} npu_moved;
/* A transfer of range, which is in GM, starts now: counts its bytes and takes its bandwidth. */
npu_moved npu_cache_transfer(npu_chip *chip, const npu_core *core, const npu_range *range);

/* ---- npu_race.c: the race checker; nothing here is called when npu_chip.race is NULL ---- */
bool npu_race_begin(npu_chip *chip);
void npu_race_end(npu_chip *chip);
npu_clock *npu_clock_snapshot(npu_core *core, npu_pipe pipe); /* shared */
npu_clock *npu_clock_share(npu_clock *clock);
void npu_clock_release(npu_clock *clock); /* NULL is allowed */
void npu_clock_join(npu_core *core, npu_pipe pipe, const npu_clock *clock);
void npu_clock_join_pipe(npu_core *core, npu_pipe pipe, const npu_core *other, npu_pipe other_pipe);
void npu_race_check(npu_core *core, npu_pipe pipe, const npu_instr *i, const npu_range *ranges,
                    int32_t n);

/* ---- npu_written.c; only its check needs npu_chip.checks_written ---- */
void npu_written_begin(npu_chip *chip);
void npu_written_forget_core(npu_core *core);
void npu_written_check(npu_core *core, npu_pipe pipe, const npu_instr *i, const npu_range *ranges,
                       int32_t n);

/* ---- npu_report.c ---- */
/* Counts an error and keeps its words, at most NPU_MESSAGES of them. */
void npu_report_error(npu_chip *chip, npu_error kind, const char *format, ...);
/* Reports "...: field=value: rule" and stops the launch; returns false. */
bool npu_refuse(npu_core *core, const npu_instr *i, const char *field, long long value,
                const char *rule);
/* "AIC 3 MTE1 load_l0a_bf16 #17 (cube.c:88)" */
const char *npu_describe_instr(const npu_core *core, npu_pipe pipe, uint32_t index,
                               const char *name, const char *file, int32_t line, char *text,
                               size_t capacity);
const char *npu_core_name(const npu_core *core, char *text, size_t capacity);
void npu_report_deadlock(npu_chip *chip);
void npu_report_left_set(npu_chip *chip);
void npu_report_ambiguous(const npu_core *core, const char *role, const npu_flag_user *user,
                          const npu_instr *other);
void npu_report_finish(npu_chip *chip);

#endif
