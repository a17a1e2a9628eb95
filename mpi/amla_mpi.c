/* SPDX-License-Identifier: Apache-2.0
 *
 * See amla_mpi.h. A run goes block of rows by block of rows: compute the block's records, send each
 * rank those of its heads, and finish the block before it, whose records have come meanwhile. So
 * two blocks of buffers are enough. Ranks agree on a status before the first record leaves. The
 * plan asks whether it is cancelled before each key tile: then messages move.
 */
#include "interleave.h"

#include <math.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "scope.h"

enum {
  BLOCK_ROWS = 64, /* of a message, at most */
  ROW_GRAIN = 32,  /* where blocks may begin (amla_shard) */
  SLOTS = 2,       /* blocks under way */
  N_HASHES = 11,   /* of what tensors say */
  TAG = 0
};

/* What a rank says before the exchange; then of each scope begin [b] and end [b]. */
typedef struct verdict {
  int32_t status;
  int32_t cancels; /* options.cancel is set */
  uint64_t hashes[N_HASHES];
  char text[224];
} verdict;

/* A block on its way. */
typedef struct slot {
  int64_t row_begin, row_end;
  float *own;           /* the rank's records of all heads */
  float **to, **from;   /* [ranks], evenly apart; the rank's own are in from[rank] */
  int *to_floats;       /* [ranks] that the send request was made for; -1: none yet */
  MPI_Request *request; /* [2 * ranks] persistent: receives, then sends */
  MPI_Request agreement;
  int32_t index;             /* of the block */
  int ended_by, first_ended; /* the rank, if it is cancelled, else `ranks`; and the least of all */
  int32_t own_entries, own_rows;
  int active;
} slot;

struct amla_mpi {
  MPI_Comm comm;
  int rank, ranks;
  amla_problem problem;
  amla_plan *plan;      /* of the rank's own problem, if shards are interleaved */
  amla_options options; /* the caller's */
  pthread_t thread;     /* that runs, and may call MPI */
  double began;         /* the run */
  int computing;
  int32_t trace_blocks;
  amla_mpi_block *trace;
  amla_tensors own; /* of this run: the caller's, or those of interleaved shards */
  amla_mpi_info info;
  amla_interleaving interleaving;  /* tokens: 0 if shards are runs */
  amla_plan *whole;                /* of interleaved shards, to check tensors by */
  float *results;                  /* of interleaved shards, of all rows: O, LSE, max_logits */
  int32_t *all_tokens;             /* [b] zeros, then [b] INT32_MAX */
  int32_t max_entries, max_floats; /* of a row, of a record */
  int32_t sent_entries;            /* of a row, at most */
  int32_t record_floats;           /* of this run */
  int has_second, cancels;         /* on some rank options.cancel is set */
  size_t verdict_bytes;
  char *verdicts; /* [ranks][verdict_bytes] */
  char *mine;     /* a verdict */
  slot slots[SLOTS];
  float *floats;    /* of all slots' messages */
  float **pointers; /* of all slots */
  int *counts;      /* of all slots */
  MPI_Request *requests;
  int *done;            /* [2 * ranks] */
  MPI_Status *statuses; /* [2 * ranks] of Testsome */
  int *row_floats;      /* [SLOTS][ranks] floats of a row, as received */
  amla_shard *shards;   /* [ranks] */
  void *scratch;
  size_t scratch_bytes;
};

static amla_status refuse(amla_detail *detail, amla_status status, const char *text) {
  if (detail)
    snprintf(detail->text, sizeof detail->text, "%s", text);
  return status;
}

/* ---- Agreement ---- */

static verdict *verdict_at(const amla_mpi *m, int rank) {
  return (verdict *)(void *)(m->verdicts + (size_t)rank * m->verdict_bytes);
}

static int32_t *bounds_of(const amla_mpi *m, int rank, int scope, int end) {
  int32_t *bounds = (int32_t *)(verdict_at(m, rank) + 1);
  return bounds + (size_t)(2 * scope + end) * (size_t)m->problem.b;
}

/* The first rank that refuses speaks for all. */
static amla_status first_refusal(const char *verdicts, size_t bytes, int ranks,
                                 amla_detail *detail) {
  for (int i = 0; i < ranks; i++) {
    const verdict *v = (const verdict *)(const void *)(verdicts + (size_t)i * bytes);
    char text[sizeof detail->text];
    if (v->status == AMLA_OK)
      continue;
    snprintf(text, sizeof text, "rank %d: %s", i, v->text);
    return refuse(detail, (amla_status)v->status, text);
  }
  return AMLA_OK;
}

/* The name of the first thing that a rank says otherwise than rank 0. */
static amla_status first_difference(const char *verdicts, size_t bytes, int ranks,
                                    const char *const *names, amla_detail *detail) {
  const verdict *first = (const verdict *)(const void *)verdicts;
  for (int i = 1; i < ranks; i++) {
    const verdict *v = (const verdict *)(const void *)(verdicts + (size_t)i * bytes);
    for (int k = 0; k < N_HASHES; k++) {
      char text[sizeof detail->text];
      if (v->hashes[k] == first->hashes[k])
        continue;
      snprintf(text, sizeof text, "rank %d: %s: must be that of rank 0", i, names[k]);
      return refuse(detail, AMLA_INVALID_ARGUMENT, text);
    }
  }
  return AMLA_OK;
}

/* FNV-1a. */
static uint64_t hash(uint64_t seed, const void *from, size_t bytes) {
  const unsigned char *p = from;
  for (size_t i = 0; i < bytes; i++)
    seed = (seed ^ p[i]) * 0x100000001b3u;
  return seed;
}

static void set_verdict(verdict *v, amla_status status, const amla_detail *detail) {
  v->status = status;
  snprintf(v->text, sizeof v->text, "%.200s", detail->text);
}

/* ---- Creation ---- */

static void progress(amla_mpi *m, const slot *s, int all);

static const char *const plan_names[N_HASHES] = {"shapes (b, s_q, h_q, sk, d_qk, d_v, k_begin)",
                                                 "types",
                                                 "causal and window",
                                                 "scale",
                                                 "lists (topk, index_kind, topk_length_per_query)",
                                                 "second scope (extra_sk, extra_topk)",
                                                 "rescale, lse_base or lse_sink",
                                                 "split_tokens or interleave_tokens",
                                                 "instruction set, form of P or of q",
                                                 "kv_scale and kv_rope_scale",
                                                 "struct size, amla.h of another version"};

static void hash_plan(const amla_mpi *m, const amla_plan_info *info, uint64_t hashes[N_HASHES]) {
  const amla_problem *p = &m->problem;
  const amla_options *o = &m->options;
  const int32_t fields[N_HASHES][7] = {
      {p->b, p->s_q, p->h_q, p->sk, p->d_qk, p->d_v, (int32_t)p->k_begin},
      {(int32_t)p->q_type, (int32_t)p->kv_type, (int32_t)p->out_type, p->q_d_rope > 0},
      {p->causal, p->window},
      {0},
      {p->topk, (int32_t)p->index_kind, p->topk_length_per_query},
      {p->extra_sk, p->extra_topk},
      {(int32_t)info->rescale, (int32_t)o->lse_base, (int32_t)o->lse_sink},
      {(int32_t)info->split_tokens, info->tile_tokens, m->interleaving.tokens},
      {(int32_t)info->isa, (int32_t)info->p_form, (int32_t)info->q_form, (int32_t)info->key_type},
      {0},
      {(int32_t)sizeof(amla_problem), (int32_t)sizeof(amla_options),
       (int32_t)sizeof(amla_tensors)}};
  for (int i = 0; i < N_HASHES; i++)
    hashes[i] = hash(1, fields[i], sizeof fields[i]);
  hashes[3] = hash(1, &p->scale, sizeof p->scale);
  hashes[9] = hash(hash(1, &p->kv_scale, sizeof(float)), &p->kv_rope_scale, sizeof(float));
}

/* A run of leaves is at most two nodes of each level; a shard has one of either scope. */
static int32_t most_entries(const amla_problem *p, int64_t split_tokens) {
  const int64_t keys = (int64_t)p->sk + p->extra_sk;
  int32_t levels = 2;
  for (int64_t splits = keys / split_tokens + 4; splits > 1; splits = (splits + 1) / 2)
    levels++;
  return 2 * levels * (p->extra_sk > 0 || p->extra_topk > 0 ? 2 : 1);
}

static int32_t first_head(const amla_mpi *m, int rank) {
  return (int32_t)((int64_t)m->problem.h_q * rank / m->ranks);
}

/* Floats of a message, at most: rows of a block are of so many queries, cut ones included. */
static size_t message_floats(const amla_mpi *m) {
  const int64_t heads = (m->problem.h_q + m->ranks - 1) / m->ranks;
  const int64_t rows = (BLOCK_ROWS / m->problem.h_q + 2) * heads;
  const size_t most = (size_t)(rows < BLOCK_ROWS ? rows : BLOCK_ROWS);
  return most * (size_t)m->sent_entries * (size_t)m->max_floats;
}

static size_t block_floats(const amla_mpi *m) {
  return (size_t)BLOCK_ROWS * (size_t)m->max_entries * (size_t)m->max_floats;
}

static void *allocate(size_t n, size_t bytes) { return calloc(n > 0 ? n : 1, bytes); }

/* What interleaved shards need besides. */
static int allocate_own(amla_mpi *m) {
  const amla_problem *p = &m->problem;
  const size_t b = (size_t)p->b, rows = b * (size_t)p->s_q * (size_t)p->h_q;
  m->results = allocate(rows * ((size_t)p->d_v + 2), sizeof(float));
  m->interleaving.words = allocate(amla_interleave_words(&m->interleaving), sizeof(int32_t));
  m->all_tokens = allocate(2 * b, sizeof(int32_t));
  for (size_t i = 0; m->all_tokens && i < b; i++)
    m->all_tokens[b + i] = INT32_MAX;
  return m->results && m->interleaving.words && m->all_tokens;
}

static int allocate_buffers(amla_mpi *m) {
  const size_t ranks = (size_t)m->ranks;
  const size_t floats = SLOTS * (2 * ranks * message_floats(m) + block_floats(m));
  m->info.buffer_bytes = floats * sizeof(float);
  m->verdicts = allocate(ranks, m->verdict_bytes);
  m->mine = allocate(1, m->verdict_bytes);
  m->floats = allocate(floats, sizeof(float));
  m->pointers = allocate(2 * SLOTS * ranks, sizeof *m->pointers);
  m->counts = allocate(SLOTS * ranks, sizeof *m->counts);
  m->requests = allocate(2 * SLOTS * ranks, sizeof(MPI_Request));
  m->done = allocate(2 * ranks, sizeof(int));
  m->statuses = allocate(2 * ranks, sizeof(MPI_Status));
  m->row_floats = allocate(SLOTS * ranks, sizeof(int));
  m->shards = allocate(ranks, sizeof *m->shards);
  m->scratch = malloc(m->scratch_bytes);
  m->trace = allocate((size_t)m->trace_blocks, sizeof *m->trace);
  const int own_parts = m->interleaving.tokens == 0 || allocate_own(m);
  return own_parts && m->trace && m->verdicts && m->mine && m->floats && m->pointers && m->counts &&
         m->requests && m->done && m->statuses && m->row_floats && m->shards && m->scratch;
}

/* Receives are made once, for the most that may come. Sends are made for what goes. */
static void carve_slots(amla_mpi *m) {
  const size_t ranks = (size_t)m->ranks, floats = message_floats(m);
  float *next = m->floats;
  for (int i = 0; i < SLOTS; i++) {
    slot *s = &m->slots[i];
    s->from = m->pointers + 2 * ranks * (size_t)i, s->to = s->from + ranks;
    s->to_floats = m->counts + ranks * (size_t)i;
    s->request = m->requests + 2 * ranks * (size_t)i;
    s->own = next, next += block_floats(m);
    for (int k = 0; k < m->ranks; k++) {
      s->from[k] = next + (size_t)k * floats, s->to[k] = s->from[k] + ranks * floats;
      s->to_floats[k] = -1;
      s->request[k] = s->request[m->ranks + k] = MPI_REQUEST_NULL;
      if (k != m->rank)
        MPI_Recv_init(s->from[k], (int)floats, MPI_FLOAT, k, TAG, m->comm, &s->request[k]);
    }
    next += 2 * ranks * floats;
  }
}

static amla_status check_threads(const amla_plan_info *info, amla_detail *detail) {
  int level, main_thread;
  MPI_Query_thread(&level);
  MPI_Is_thread_main(&main_thread);
  if (info->threads > 1 && level < MPI_THREAD_FUNNELED)
    return refuse(detail, AMLA_INVALID_ARGUMENT,
                  "MPI_Query_thread: must be MPI_THREAD_FUNNELED or more with several threads");
  if (!main_thread)
    return refuse(detail, AMLA_INVALID_ARGUMENT, "MPI_Is_thread_main: must be the main thread");
  return AMLA_OK;
}

static amla_status copy_options(amla_mpi *m, const amla_mpi_options *options, amla_detail *detail) {
  amla_mpi_options o = AMLA_MPI_OPTIONS_INIT;
  char text[sizeof detail->text];
  if (options &&
      (options->struct_bytes < sizeof o.struct_bytes || options->struct_bytes > sizeof o))
    return refuse(detail, AMLA_INVALID_ARGUMENT,
                  "mpi_options.struct_bytes: must be as its INIT macro has it");
  if (options)
    memcpy(&o, options, options->struct_bytes);
  m->interleaving.tokens = o.interleave_tokens, m->trace_blocks = o.trace_blocks;
  if (o.interleave_tokens >= 0 && o.trace_blocks >= 0)
    return AMLA_OK;
  snprintf(text, sizeof text, "interleave_tokens=%d, trace_blocks=%d: must be >= 0",
           o.interleave_tokens, o.trace_blocks);
  return refuse(detail, AMLA_INVALID_ARGUMENT, text);
}

/* The plan's question before each key tile. */
static int between_tiles(void *context) {
  amla_mpi *m = context;
  if (m->computing && pthread_equal(pthread_self(), m->thread))
    for (int i = 0; i < SLOTS; i++)
      progress(m, &m->slots[i], 0);
  return m->options.cancel && m->options.cancel(m->options.cancel_context);
}

/* A plan of the whole problem, to refuse what is wrong with it and to check tensors by, then one of
 * the rank's own, whose results are on the way only. */
static amla_status plan_interleaved(amla_mpi *m, amla_options *o, amla_detail *detail) {
  amla_problem whole = m->problem;
  whole.max_pages = whole.extra_max_pages = 0; /* of the rank's own tables */
  amla_status status = amla_plan_create(&m->whole, &whole, o, detail);
  if (status != AMLA_OK)
    return status;
  m->interleaving.rank = m->rank, m->interleaving.ranks = m->ranks;
  m->interleaving.whole = m->problem;
  if (o->p_form == AMLA_P_DEFAULT && whole.out_type != AMLA_F32)
    o->p_form = AMLA_P_BF16X2; /* as of one process */
  o->lse_sink = AMLA_LSE_WITHOUT_SINK;
  const amla_problem own = amla_interleave_problem(&m->interleaving);
  return amla_plan_create(&m->plan, &own, o, detail);
}

/* Structs that are not ours are the core's to refuse. */
static amla_status plan(amla_mpi *m, const amla_problem *problem, const amla_options *options,
                        amla_detail *detail) {
  m->problem = (amla_problem)AMLA_PROBLEM_INIT;
  m->options = (amla_options)AMLA_OPTIONS_INIT;
  if (!problem || !options || problem->struct_bytes > sizeof m->problem ||
      options->struct_bytes > sizeof m->options)
    return amla_plan_create(&m->plan, problem, options, detail);
  memcpy(&m->problem, problem, problem->struct_bytes);
  memcpy(&m->options, options, options->struct_bytes);
  amla_options o = m->options;
  o.cancel = between_tiles, o.cancel_context = m;
  if (m->interleaving.tokens > 0)
    return plan_interleaved(m, &o, detail);
  return amla_plan_create(&m->plan, problem, &o, detail);
}

/* Sizes of what is sent and kept. */
static void measure(amla_mpi *m, const amla_plan_info *info) {
  const amla_problem *p = &m->problem;
  m->has_second = p->extra_sk > 0 || p->extra_topk > 0;
  m->info.split_tokens = info->split_tokens;
  m->max_entries = most_entries(p, info->split_tokens);
  m->sent_entries = m->interleaving.tokens > 0 ? 1 : m->max_entries;
  m->max_floats = p->d_v + 4;
  m->verdict_bytes = sizeof(verdict) + 4 * sizeof(int32_t) * (size_t)p->b;
  m->verdict_bytes = (m->verdict_bytes + 7) / 8 * 8;
  m->scratch_bytes = amla_shard_scratch_bytes(m->plan);
}

/* Of this rank alone. */
static amla_status prepare(amla_mpi *m, const amla_problem *problem, const amla_options *options,
                           const amla_mpi_options *mpi_options, verdict *v, amla_detail *detail) {
  amla_plan_info info = AMLA_PLAN_INFO_INIT;
  amla_status status = copy_options(m, mpi_options, detail);
  if (status == AMLA_OK)
    status = plan(m, problem, options, detail);
  if (status == AMLA_OK)
    status = amla_plan_query(m->plan, &info, detail);
  if (status != AMLA_OK)
    return status;
  if (info.backend != AMLA_BACKEND_CPU || m->options.split_tokens < 1)
    return refuse(detail, AMLA_INVALID_ARGUMENT, "split_tokens: must be >= 1, with backend cpu");
  status = check_threads(&info, detail);
  hash_plan(m, &info, v->hashes);
  v->cancels = m->options.cancel != NULL;
  measure(m, &info);
  if (status == AMLA_OK && !allocate_buffers(m))
    status = refuse(detail, AMLA_OUT_OF_MEMORY, "no memory for messages and scratch");
  return status;
}

static amla_status agree_on_plan(amla_mpi *m, const verdict *mine, amla_detail *detail) {
  verdict *all = calloc((size_t)m->ranks, sizeof *all);
  int without = !all, any_without;
  amla_status status;
  MPI_Allreduce(&without, &any_without, 1, MPI_INT, MPI_MAX, m->comm);
  if (any_without) {
    free(all);
    return refuse(detail, AMLA_OUT_OF_MEMORY, "a rank has no memory for the ranks' verdicts");
  }
  MPI_Allgather(mine, (int)sizeof *mine, MPI_BYTE, all, (int)sizeof *mine, MPI_BYTE, m->comm);
  for (int i = 0; i < m->ranks; i++)
    m->cancels |= all[i].cancels;
  status = first_refusal((char *)all, sizeof *all, m->ranks, detail);
  if (status == AMLA_OK)
    status = first_difference((char *)all, sizeof *all, m->ranks, plan_names, detail);
  free(all);
  return status;
}

static void free_requests(amla_mpi *m) {
  for (int i = 0; m->requests && i < 2 * SLOTS * m->ranks; i++)
    if (m->slots[0].own && m->requests[i] != MPI_REQUEST_NULL)
      MPI_Request_free(&m->requests[i]);
}

static void release(amla_mpi *m) {
  free_requests(m);
  MPI_Comm_free(&m->comm);
  amla_plan_destroy(m->plan);
  amla_plan_destroy(m->whole);
  void *const all[] = {m->verdicts,
                       m->mine,
                       m->floats,
                       m->pointers,
                       m->counts,
                       m->requests,
                       m->done,
                       m->statuses,
                       m->row_floats,
                       m->shards,
                       m->scratch,
                       m->results,
                       m->interleaving.words,
                       m->trace,
                       m->all_tokens};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++)
    free(all[i]);
}

/* What a plan says to all ranks, and its ways to them, which it needs to say that it has failed. */
static amla_status create(amla_mpi *m, const amla_problem *problem, const amla_options *options,
                          const amla_mpi_options *mpi_options, int without, amla_detail *detail) {
  amla_detail text = {""};
  verdict v = {0};
  amla_status status;
  m->info = (amla_mpi_info)AMLA_MPI_INFO_INIT;
  MPI_Comm_rank(m->comm, &m->rank);
  MPI_Comm_size(m->comm, &m->ranks);
  if (without)
    status = refuse(&text, AMLA_OUT_OF_MEMORY, "no memory for a plan over ranks");
  else
    status = prepare(m, problem, options, mpi_options, &v, &text);
  set_verdict(&v, status, &text);
  status = agree_on_plan(m, &v, detail);
  if (status != AMLA_OK)
    return status;
  m->info.rank = m->rank, m->info.ranks = m->ranks;
  m->info.head_begin = first_head(m, m->rank), m->info.head_end = first_head(m, m->rank + 1);
  carve_slots(m);
  return refuse(detail, AMLA_OK, "");
}

amla_status amla_mpi_create(amla_mpi **mpi, MPI_Comm comm, const amla_problem *problem,
                            const amla_options *options, const amla_mpi_options *mpi_options,
                            amla_detail *detail) {
  amla_mpi spare = {0}; /* of a rank without memory: others wait for its verdict */
  amla_mpi *created = calloc(1, sizeof *created), *m = created ? created : &spare;
  *mpi = NULL;
  MPI_Comm_dup(comm, &m->comm);
  MPI_Comm_set_errhandler(m->comm, MPI_ERRORS_ARE_FATAL); /* no call's status is looked at */
  const amla_status status = create(m, problem, options, mpi_options, !created, detail);
  if (status == AMLA_OK) {
    *mpi = created;
    return status;
  }
  release(m);
  free(created);
  return status;
}

void amla_mpi_destroy(amla_mpi *m) {
  if (m)
    release(m);
  free(m);
}

amla_status amla_mpi_query(const amla_mpi *m, amla_mpi_info *info, amla_detail *detail) {
  if (!m || !info || info->struct_bytes < sizeof *info)
    return refuse(detail, AMLA_INVALID_ARGUMENT, "mpi, info: must be set, by its INIT macro");
  const uint32_t bytes = info->struct_bytes;
  *info = m->info;
  info->struct_bytes = bytes;
  return refuse(detail, AMLA_OK, "");
}

amla_status amla_mpi_trace(const amla_mpi *m, int32_t capacity, amla_mpi_block *blocks, int32_t *n,
                           amla_detail *detail) {
  if (!m || !n || capacity < 0 || (capacity > 0 && !blocks))
    return refuse(detail, AMLA_INVALID_ARGUMENT,
                  "mpi, n: must be set; capacity: must be >= 0, with so many blocks");
  *n = m->info.blocks < m->trace_blocks ? m->info.blocks : m->trace_blocks;
  for (int32_t i = 0; i < capacity && i < *n; i++)
    blocks[i] = m->trace[i];
  return refuse(detail, AMLA_OK, "");
}

int32_t amla_mpi_even_begin(int64_t split_tokens, int32_t length, int32_t i, int32_t n) {
  const int64_t splits = (length + split_tokens - 1) / split_tokens;
  return i < n ? (int32_t)(splits * i / n * split_tokens) : INT32_MAX;
}

/* ---- What ranks say of a run ---- */

static const char *const tensor_names[N_HASHES] = {
    "seqlens_k",         "visible_k",       "indices",           "topk_length",
    "q_indptr",          "extra_seqlens_k", "extra_visible_k",   "extra_indices",
    "extra_topk_length", "sinks",           "max_logits or mask"};

static uint64_t hash_words(const int32_t *words, int64_t n) {
  return hash(1, words, words ? (size_t)n * sizeof *words : 0);
}

/* The entries that count, whatever lies behind and between them. */
static uint64_t hash_lists(const amla_scope *s) {
  uint64_t sum = hash_words(NULL, 0);
  for (int32_t i = 0; s->topk > 0 && i < s->problem->b; i++)
    for (int32_t q = 0, n; q < amla_queries_of(s, i); q++) {
      const int32_t *list = amla_list_of(s, i, q, &n);
      sum = hash(sum, list, (size_t)n * sizeof *list);
    }
  return sum;
}

/* Of a scope: lengths, visible lengths, lists, lengths of lists. */
static void hash_scope(const amla_scope *s, uint64_t hashes[4]) {
  const amla_problem *p = s->problem;
  const int64_t queries = amla_queries_before(s, p->b);
  hashes[0] = hash_words(s->seqlens, p->b);
  hashes[1] = hash_words(s->visible, queries);
  hashes[2] = hash_lists(s);
  hashes[3] = hash_words(s->lengths, p->topk_length_per_query ? queries : p->b);
}

/* Of what is read, not of buffers' capacities. After amla_shard_query has found the tensors right.
 */
static void hash_tensors(const amla_problem *p, const amla_tensors *t, uint64_t hashes[N_HASHES]) {
  const amla_scope first = amla_first_scope(p, t), second = amla_second_scope(p, t);
  hash_scope(&first, hashes);
  hashes[4] = hash_words(t->q_indptr, (int64_t)p->b + 1);
  hash_scope(&second, hashes + 5);
  hashes[9] = hash(1, t->sinks, t->sinks ? (size_t)p->h_q * sizeof(float) : 0);
  hashes[10] = (uint64_t)(t->max_logits != NULL) | (uint64_t)(t->mask != NULL) << 1;
}

static void copy_bounds(const amla_mpi *m, const amla_shard *s, int32_t *to) {
  const int32_t *const all[4] = {s->begin, s->end, s->extra_begin, s->extra_end};
  const size_t b = (size_t)m->problem.b;
  for (int i = 0; i < (m->has_second ? 4 : 2) && b > 0; i++)
    memcpy(to + (size_t)i * b, all[i], b * sizeof *to);
}

/* Shards follow one another, in every sequence: else a finish would refuse, too late. */
static amla_status check_cover(const amla_mpi *m, const amla_tensors *t, int scope,
                               amla_detail *detail) {
  const int32_t *lengths = scope ? t->extra_seqlens_k : t->seqlens_k;
  const int32_t most = scope ? m->problem.extra_sk : m->problem.sk;
  char text[sizeof detail->text];
  for (int32_t i = 0; i < m->problem.b; i++) {
    const int32_t length = lengths ? lengths[i] : most;
    int32_t at = 0;
    for (int k = 0; k < m->ranks; k++) {
      const int32_t begin = bounds_of(m, k, scope, 0)[i], end = bounds_of(m, k, scope, 1)[i];
      if (begin >= end || begin >= length)
        continue;
      if (begin != at) {
        snprintf(text, sizeof text,
                 "rank %d: %sbegin[%d]=%d: must be %d, where ranks before it end", k,
                 scope ? "extra_" : "", i, begin, at);
        return refuse(detail, AMLA_INVALID_ARGUMENT, text);
      }
      at = end < length ? end : length;
    }
    if (at == length)
      continue;
    snprintf(text, sizeof text,
             "ranks: %send of sequence %d is %d at last, must reach its length %d",
             scope ? "extra_" : "", i, at, length);
    return refuse(detail, AMLA_INVALID_ARGUMENT, text);
  }
  return AMLA_OK;
}

/* ---- Blocks of rows ---- */

static int32_t first_row_of(const amla_mpi *m, const amla_tensors *t, int64_t row) {
  const amla_problem *p = &m->problem;
  if (p->topk > 0 || p->window > 0 || m->has_second)
    return (int32_t)(row / p->h_q * p->h_q);
  if (!t->q_indptr)
    return (int32_t)(row / ((int64_t)p->s_q * p->h_q) * p->s_q * p->h_q);
  int32_t i = 0;
  while (i + 1 < p->b && (int64_t)t->q_indptr[i + 1] * p->h_q <= row)
    i++;
  return t->q_indptr[i] * p->h_q;
}

/* The end of the block that begins at a row. */
static int64_t block_end(const amla_mpi *m, const amla_tensors *t, int64_t begin, int64_t rows) {
  int64_t end = begin + BLOCK_ROWS;
  if (end >= rows)
    return rows;
  while ((end - first_row_of(m, t, end)) % ROW_GRAIN != 0)
    end--;
  return end;
}

static int is_of(const amla_mpi *m, int64_t row, int rank) {
  const int64_t head = row % m->problem.h_q;
  return head >= first_head(m, rank) && head < first_head(m, rank + 1);
}

static int32_t count_rows(const amla_mpi *m, const slot *s, int rank) {
  int32_t n = 0;
  for (int64_t row = s->row_begin; row < s->row_end; row++)
    n += is_of(m, row, rank);
  return n;
}

/* Place of a row in lse and max_logits. */
static int64_t place_of_sum(const amla_mpi *m, const amla_tensors *t, int64_t row) {
  const amla_problem *p = &m->problem;
  const int64_t query = row / p->h_q, head = row % p->h_q;
  return t->q_indptr ? row : (query / p->s_q * p->h_q + head) * p->s_q + query % p->s_q;
}

/* A row's normalised result, of an interleaved shard. */
static void pack_result(const amla_mpi *m, const amla_tensors *t, int64_t row, float *to) {
  const size_t d_v = (size_t)m->problem.d_v;
  const int64_t at = place_of_sum(m, t, row);
  memcpy(to, (const float *)t->out + (size_t)row * d_v, d_v * sizeof *to);
  to[d_v] = t->lse[at];
  if (t->max_logits)
    to[d_v + 1] = t->max_logits[at];
}

/* What a rank gets of the block: of each row of its heads one run of floats. */
static int pack(const amla_mpi *m, const slot *s, int rank) {
  const size_t floats = (size_t)s->own_entries * (size_t)m->record_floats;
  float *to = rank == m->rank ? s->from[rank] : s->to[rank];
  int n = 0;
  for (int64_t row = s->row_begin; row < s->row_end; row++) {
    if (!is_of(m, row, rank))
      continue;
    if (m->interleaving.tokens > 0)
      pack_result(m, &m->own, row, to + (size_t)n++ * floats);
    else
      memcpy(to + (size_t)n++ * floats, s->own + (size_t)(row - s->row_begin) * floats,
             floats * sizeof *to);
  }
  return n * (int)floats;
}

static double now(const amla_mpi *m) { return MPI_Wtime() - m->began; }

/* What is noted of a block, if anything is. */
static amla_mpi_block *noted(amla_mpi *m, const slot *s) {
  return s->index < m->trace_blocks ? &m->trace[s->index] : NULL;
}

/* Makes room for the block in the slot, and is ready for what others send of it. */
static void open_block(amla_mpi *m, slot *s, int64_t begin, int64_t end) {
  s->index = m->info.blocks++;
  s->row_begin = begin, s->row_end = end;
  amla_mpi_block *n = noted(m, s);
  if (n)
    *n = (amla_mpi_block){
        .row_begin = begin, .row_end = end, .first_message = -1.0, .last_message = -1.0};
  s->own_rows = count_rows(m, s, m->rank);
  for (int k = 0; s->own_rows > 0 && k < m->ranks; k++)
    if (k != m->rank)
      MPI_Start(&s->request[k]);
  s->active = 1;
}

/* Sends of a block, made anew where a message has another length than the last time. */
static void start(amla_mpi *m, slot *s) {
  for (int k = 0; k < m->ranks; k++) {
    MPI_Request *send = &s->request[m->ranks + k];
    const int n = pack(m, s, k);
    if (k == m->rank || count_rows(m, s, k) == 0)
      continue;
    if (n != s->to_floats[k] && *send != MPI_REQUEST_NULL)
      MPI_Request_free(send);
    if (n != s->to_floats[k])
      MPI_Send_init(s->to[k], n, MPI_FLOAT, k, TAG, m->comm, send);
    s->to_floats[k] = n;
    MPI_Start(send);
    m->info.sent_bytes += (int64_t)n * (int64_t)sizeof(float);
  }
  if (m->cancels)
    MPI_Iallreduce(&s->ended_by, &s->first_ended, 1, MPI_INT, MPI_MIN, m->comm, &s->agreement);
  if (noted(m, s))
    noted(m, s)->sent = now(m);
}

/* Notes how many records of a row have come from each rank. */
static void note_messages(amla_mpi *m, const slot *s, int n_done, int early) {
  const int32_t rows = s->own_rows;
  amla_mpi_block *noted_block = noted(m, s);
  for (int i = 0; i < n_done; i++) {
    int n;
    if (m->done[i] >= m->ranks)
      continue;
    MPI_Get_count(&m->statuses[i], MPI_FLOAT, &n);
    m->row_floats[(s - m->slots) * m->ranks + m->done[i]] = n / rows;
    m->info.messages++;
    m->info.messages_early += early;
    if (!noted_block)
      continue;
    noted_block->last_message = now(m);
    if (noted_block->messages++ == 0)
      noted_block->first_message = noted_block->last_message;
    noted_block->messages_within += m->computing;
  }
}

/* Lets messages of the block move; `all`: until they have come and gone. Inactive persistent
 * requests count as none. */
static void progress(amla_mpi *m, const slot *s, int all) {
  int n_done = 0;
  if (!s->active)
    return;
  MPI_Testsome(2 * m->ranks, s->request, &n_done, m->done, m->statuses);
  if (n_done != MPI_UNDEFINED)
    note_messages(m, s, n_done, 1);
  while (all && n_done != MPI_UNDEFINED) {
    MPI_Waitsome(2 * m->ranks, s->request, &n_done, m->done, m->statuses);
    if (n_done != MPI_UNDEFINED)
      note_messages(m, s, n_done, 0);
  }
}

/* Until the block's messages have come and gone, and ranks know whether one of them is cancelled.
 */
static amla_status await(amla_mpi *m, slot *s, amla_detail *detail) {
  char text[sizeof detail->text];
  const double before = MPI_Wtime();
  progress(m, s, 1);
  if (m->cancels)
    MPI_Wait(&s->agreement, MPI_STATUS_IGNORE);
  m->info.wait_seconds += MPI_Wtime() - before;
  s->active = 0;
  if (!m->cancels || s->first_ended == m->ranks)
    return AMLA_OK;
  snprintf(text, sizeof text, "rank %d: cancel: it asked for the end of the run", s->first_ended);
  return refuse(detail, AMLA_CANCELLED, text);
}

static size_t bounds_bytes(const amla_mpi *m) { return (size_t)m->problem.b * sizeof(int32_t); }

/* Shard k of those that are runs, as finish wants it. */
static amla_shard shard_of(const amla_mpi *m, const slot *s, int k) {
  amla_shard x = AMLA_SHARD_INIT;
  x.begin = bounds_of(m, k, 0, 0), x.end = bounds_of(m, k, 0, 1);
  x.begin_bytes = x.end_bytes = bounds_bytes(m);
  if (m->has_second) {
    x.extra_begin = bounds_of(m, k, 1, 0), x.extra_end = bounds_of(m, k, 1, 1);
    x.extra_begin_bytes = x.extra_end_bytes = bounds_bytes(m);
  }
  x.row_begin = s->row_begin, x.row_end = s->row_end;
  x.head_begin = first_head(m, m->rank), x.head_end = first_head(m, m->rank + 1);
  x.n_entries = s->own_entries;
  if (k != m->rank)
    x.n_entries = m->row_floats[(s - m->slots) * m->ranks + k] / m->record_floats;
  x.records = s->from[k];
  x.records_bytes =
      (size_t)s->own_rows * (size_t)x.n_entries * (size_t)m->record_floats * sizeof(float);
  return x;
}

static int64_t out_offset(const amla_mpi *m, const amla_tensors *t, int64_t row) {
  const amla_problem *p = &m->problem;
  const int64_t of_head = p->out_stride_head ? p->out_stride_head : p->d_v;
  const int64_t of_query = p->out_stride_query ? p->out_stride_query : p->h_q * of_head;
  const int64_t of_batch = p->out_stride_batch ? p->out_stride_batch : p->s_q * of_query;
  const int64_t query = row / p->h_q, at = row % p->h_q * of_head;
  if (t->q_indptr)
    return at + query * of_query;
  return at + query / p->s_q * of_batch + query % p->s_q * of_query;
}

/* Rows [row, row + n) of one query, of which the messages have row `at` on. */
static amla_status merge_rows(const amla_mpi *m, const amla_tensors *t, const slot *s, int64_t row,
                              int32_t n, int32_t at, amla_detail *detail) {
  const amla_problem *p = &m->problem;
  const int32_t floats = m->record_floats, head = (int32_t)(row % p->h_q);
  int32_t type_bytes;
  amla_dtype_block(p->out_type, &type_bytes);
  const size_t out_at = (size_t)out_offset(m, t, row) * (size_t)type_bytes;
  const size_t sums_at = (size_t)place_of_sum(m, t, row);
  amla_merge_args a = AMLA_MERGE_ARGS_INIT;
  a.n_parts = m->ranks, a.n_rows = n, a.d_v = p->d_v;
  a.base = m->options.lse_base, a.out_type = p->out_type;
  a.o = s->from[0] + (int64_t)at * floats, a.lse_parts = a.o + p->d_v;
  a.o_stride_part = a.lse_parts_stride_part = (int64_t)message_floats(m);
  a.o_stride_row = a.lse_parts_stride_row = floats;
  a.o_bytes = a.lse_parts_bytes = (size_t)m->ranks * message_floats(m) * sizeof(float);
  a.sinks = t->sinks ? t->sinks + head : NULL, a.sinks_bytes = (size_t)n * sizeof(float);
  a.n_heads = n, a.lse_sink = (int32_t)m->options.lse_sink;
  a.out = (char *)t->out + out_at, a.out_bytes = t->out_bytes - out_at;
  a.out_stride_row = p->out_stride_head ? p->out_stride_head : p->d_v;
  a.lse = t->lse ? t->lse + sums_at : NULL, a.lse_bytes = t->lse_bytes - sums_at * sizeof(float);
  a.lse_stride_row = t->q_indptr ? 1 : p->s_q;
  for (int32_t i = 0; t->max_logits && i < n; i++) {
    float *most = t->max_logits + place_of_sum(m, t, row + i);
    const float *part = a.o + (int64_t)i * floats + p->d_v + 1;
    *most = *part;
    for (int k = 1; k < m->ranks; k++)
      *most = fmaxf(*most, part[k * a.o_stride_part]);
  }
  return amla_merge_parts(&a, detail);
}

/* The rank's heads of one query after the other. */
static amla_status merge_block(const amla_mpi *m, const amla_tensors *t, const slot *s,
                               amla_detail *detail) {
  amla_status status = AMLA_OK;
  int32_t at = 0;
  for (int64_t row = s->row_begin, end; status == AMLA_OK && row < s->row_end; row = end) {
    const int64_t next_query = (row / m->problem.h_q + 1) * m->problem.h_q;
    for (end = row; end < s->row_end && end < next_query && is_of(m, end, m->rank);)
      end++;
    if (end > row)
      status = merge_rows(m, t, s, row, (int32_t)(end - row), at, detail);
    at += (int32_t)(end - row);
    end += end == row;
  }
  return status;
}

/* Writes the results of the rank's heads of a block. */
static amla_status finish_active(amla_mpi *m, const amla_tensors *t, slot *s, amla_detail *detail) {
  const amla_status status = await(m, s, detail);
  if (status != AMLA_OK || s->own_rows == 0)
    return status;
  if (m->interleaving.tokens > 0)
    return merge_block(m, t, s, detail);
  for (int k = 0; k < m->ranks; k++)
    m->shards[k] = shard_of(m, s, k);
  return amla_shard_finish(m->plan, t, m->ranks, m->shards, m->scratch, m->scratch_bytes, detail);
}

static amla_status finish(amla_mpi *m, const amla_tensors *t, slot *s, amla_detail *detail) {
  if (!s->active)
    return AMLA_OK;
  const amla_status status = finish_active(m, t, s, detail);
  if (noted(m, s))
    noted(m, s)->finished = now(m);
  return status;
}

/* Records of an interleaved shard, which has all keys that its plan knows, to results. */
static amla_status normalise(amla_mpi *m, amla_shard *x, amla_detail *detail) {
  return amla_shard_finish(m->plan, &m->own, 1, x, m->scratch, m->scratch_bytes, detail);
}

static amla_status compute(amla_mpi *m, const amla_shard *shard, slot *s, amla_detail *detail) {
  amla_shard x = *shard;
  amla_shard_info info = AMLA_SHARD_INFO_INIT;
  const int interleaved = m->interleaving.tokens > 0;
  x.row_begin = s->row_begin, x.row_end = s->row_end;
  x.records = s->own;
  x.records_bytes = block_floats(m) * sizeof(float);
  const double before = now(m);
  m->computing = 1;
  amla_status status = amla_shard_query(m->plan, &m->own, &x, &info, detail);
  if (status == AMLA_OK)
    status = amla_shard_run(m->plan, &m->own, &x, m->scratch, m->scratch_bytes, detail);
  x.n_entries = info.n_entries;
  if (status == AMLA_OK && interleaved)
    status = normalise(m, &x, detail);
  m->computing = 0;
  const double after = now(m);
  m->info.compute_seconds += after - before;
  if (noted(m, s))
    noted(m, s)->compute_begin = before, noted(m, s)->compute_end = after;
  s->ended_by = status == AMLA_CANCELLED ? m->rank : m->ranks;
  s->own_entries = interleaved ? 1 : info.n_entries;
  m->record_floats = info.record_floats;
  if (interleaved)
    m->record_floats = m->problem.d_v + 1 + (m->own.max_logits != NULL);
  if (s->own_entries > m->info.max_entries)
    m->info.max_entries = s->own_entries;
  return status;
}

/* ---- Run ---- */

/* The tensors and the shard of the rank's own problem, which has all tokens that it knows. */
static amla_status interleave(amla_mpi *m, const amla_tensors *t, amla_shard *s,
                              amla_detail *detail) {
  const size_t rows = (size_t)m->problem.b * (size_t)m->problem.s_q * (size_t)m->problem.h_q;
  const size_t b = (size_t)m->problem.b, d_v = (size_t)m->problem.d_v;
  amla_tensors of_whole = *t;
  of_whole.block_table = of_whole.extra_block_table = NULL; /* of the rank's own tokens */
  of_whole.kv_indptr = of_whole.kv_indices = NULL;
  if (t->mask)
    return refuse(detail, AMLA_UNSUPPORTED, "mask: must be NULL with interleave_tokens");
  const amla_status status = amla_shard_check_outputs(m->whole, &of_whole, detail);
  if (status != AMLA_OK)
    return status;
  m->own = amla_interleave_tensors(&m->interleaving, t);
  m->own.out = m->results, m->own.out_bytes = rows * d_v * sizeof(float);
  m->own.lse = m->results + rows * d_v;
  m->own.lse_bytes = m->own.max_logits_bytes = rows * sizeof(float);
  m->own.max_logits = t->max_logits ? m->own.lse + rows : NULL;
  s->begin = m->all_tokens, s->end = m->all_tokens + b;
  s->begin_bytes = s->end_bytes = bounds_bytes(m);
  if (m->has_second) {
    s->extra_begin = s->begin, s->extra_end = s->end;
    s->extra_begin_bytes = s->extra_end_bytes = bounds_bytes(m);
  }
  return AMLA_OK;
}

static amla_status copy_arguments(const amla_mpi *m, const amla_tensors *tensors,
                                  const amla_shard *shard, amla_tensors *t, amla_shard *s,
                                  amla_detail *detail) {
  *t = (amla_tensors)AMLA_TENSORS_INIT;
  *s = (amla_shard)AMLA_SHARD_INIT;
  if (!tensors || tensors->struct_bytes > sizeof *t)
    return refuse(detail, AMLA_INVALID_ARGUMENT, "tensors: must be a struct of this version");
  memcpy(t, tensors, tensors->struct_bytes);
  if (m->interleaving.tokens > 0 && shard)
    return refuse(detail, AMLA_INVALID_ARGUMENT, "shard: must be NULL with interleave_tokens");
  if (m->interleaving.tokens > 0)
    return AMLA_OK;
  if (!shard || shard->struct_bytes > sizeof *s)
    return refuse(detail, AMLA_INVALID_ARGUMENT, "shard: must be a struct of this version");
  memcpy(s, shard, shard->struct_bytes);
  s->row_begin = s->row_end = 0, s->head_begin = s->head_end = 0;
  return AMLA_OK;
}

/* This rank's own view of the run. Its shard's copy has the library's size. */
static amla_status look(amla_mpi *m, const amla_tensors *tensors, const amla_shard *shard,
                        amla_tensors *t, amla_shard *s, int64_t *rows, amla_detail *detail) {
  amla_shard_info info = AMLA_SHARD_INFO_INIT;
  amla_status status = copy_arguments(m, tensors, shard, t, s, detail);
  if (status != AMLA_OK)
    return status;
  m->own = *t;
  if (m->interleaving.tokens > 0)
    status = interleave(m, t, s, detail);
  if (status == AMLA_OK)
    status = amla_shard_query(m->plan, &m->own, s, &info, detail);
  if (status == AMLA_OK)
    status = amla_shard_check_outputs(m->plan, &m->own, detail);
  *rows = info.n_rows;
  m->info.n_row_keys = info.n_row_keys;
  return status;
}

/* A rank that is cancelled sends what it has, so that nobody waits in vain; all end when they are
 * to finish that block. */
static amla_status run_blocks(amla_mpi *m, const amla_tensors *t, const amla_shard *shard,
                              int64_t rows, amla_detail *detail) {
  amla_status status = AMLA_OK;
  slot *before = &m->slots[1];
  m->slots[0].active = before->active = 0;
  for (int64_t begin = 0; status == AMLA_OK && begin < rows; begin = before->row_end) {
    slot *s = &m->slots[m->info.blocks % SLOTS];
    open_block(m, s, begin, block_end(m, t, begin, rows));
    status = compute(m, shard, s, detail);
    if (status != AMLA_OK && status != AMLA_CANCELLED)
      return status;
    progress(m, before, 0);
    start(m, s);
    status = finish(m, t, before, detail);
    before = s;
  }
  if (status == AMLA_CANCELLED)
    await(m, before, NULL);
  return status == AMLA_OK ? finish(m, t, before, detail) : status;
}

amla_status amla_mpi_run(amla_mpi *m, const amla_tensors *tensors, const amla_shard *shard,
                         amla_detail *detail) {
  amla_tensors t;
  amla_shard s;
  amla_detail text = {""};
  int64_t rows = 0;
  verdict *mine = (verdict *)(void *)m->mine;
  m->began = MPI_Wtime();
  m->thread = pthread_self();
  m->info.sent_bytes = 0, m->info.blocks = m->info.messages = m->info.messages_early = 0;
  m->info.max_entries = 0, m->info.compute_seconds = m->info.wait_seconds = 0.0;
  memset(m->mine, 0, m->verdict_bytes);
  amla_status status = look(m, tensors, shard, &t, &s, &rows, &text);
  set_verdict(mine, status, &text);
  if (status == AMLA_OK)
    hash_tensors(&m->problem, &t, mine->hashes);
  if (status == AMLA_OK && m->interleaving.tokens == 0)
    copy_bounds(m, &s, (int32_t *)(mine + 1));
  MPI_Allgather(m->mine, (int)m->verdict_bytes, MPI_BYTE, m->verdicts, (int)m->verdict_bytes,
                MPI_BYTE, m->comm);
  status = first_refusal(m->verdicts, m->verdict_bytes, m->ranks, detail);
  if (status == AMLA_OK)
    status = first_difference(m->verdicts, m->verdict_bytes, m->ranks, tensor_names, detail);
  const int runs = m->interleaving.tokens == 0;
  for (int scope = 0; status == AMLA_OK && runs && scope <= m->has_second; scope++)
    status = check_cover(m, &t, scope, detail);
  if (status != AMLA_OK)
    return status;
  status = run_blocks(m, &t, &s, rows, &text);
  m->info.seconds = now(m);
  if (status == AMLA_OK || status == AMLA_CANCELLED)
    return refuse(detail, status, text.text);
  MPI_Abort(m->comm, 1); /* all was checked: a bug of ours, and others wait for records */
  return status;
}
