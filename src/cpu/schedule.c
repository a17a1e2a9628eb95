/* SPDX-License-Identifier: Apache-2.0
 *
 * The cuts. See schedule.h.
 */
#include "schedule.h"

enum {
  SPLITS_BY_LENGTH = 8, /* splits of a sequence, within the bounds below */
  MIN_SPLIT_TILES = 3,  /* a merge costs about 1.5 % of a split of three tiles */
  MAX_SPLIT_TILES = 10,
  MAX_AUTO_SPLITS = 64,
  MIN_BLOCK_ROWS = 32, /* a wide panel */
  GRAIN_TOKENS = 4, /* splits begin at multiples: a score tile has a multiple of so many tokens */
  SPLIT_OVERHEAD_TOKENS = 32 /* cost of starting and merging a split, in tokens */
};

static int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }
static int64_t clamp(int64_t x, int64_t low, int64_t high) {
  if (x < low)
    return low;
  return x > high ? high : x;
}

int64_t amla_split_tokens(const amla_schedule *s, int32_t length, int64_t auto_tokens) {
  const int64_t tile = s->tile_tokens;
  if (s->split_tokens > 0)
    return s->split_tokens;
  if (s->split_tokens == AMLA_SPLIT_AUTO) {
    const int64_t least = round_up(length / MAX_AUTO_SPLITS + 1, tile);
    return auto_tokens > least ? auto_tokens : least;
  }
  return clamp(round_up(((int64_t)length + SPLITS_BY_LENGTH - 1) / SPLITS_BY_LENGTH, tile),
               s->split_tiles * tile, MAX_SPLIT_TILES * tile);
}

static int64_t count_blocks(int32_t rows, int32_t block_rows) {
  return (rows + block_rows - 1) / block_rows;
}

static int64_t product(int64_t a, int64_t b) {
  int64_t c;
  return __builtin_mul_overflow(a, b, &c) ? INT64_MAX : c;
}

/* What the largest share of n times `rows` rows takes, in blocks of block_rows. Measured: groups
 * that threads share cost 2 %, 32 rows are 1 to 2 % slower than 64 or 128, as keys are converted
 * for each block. Keys are read for each block too, hence a little more than that. */
static double largest_share(int64_t n, int32_t rows, int32_t block_rows, int64_t splits,
                            int32_t threads) {
  const int64_t groups = n * count_blocks(rows, block_rows);
  const double slower = 0.01 * (AMLA_MAX_BLOCK_ROWS / block_rows - 1);
  const double shared = groups < threads ? 0.02 : 0.0;
  const int64_t most = (product(groups, splits) - 1) / threads + 1; /* splits of a thread */
  return (double)most * (rows < block_rows ? rows : block_rows) * (1.0 + slower + shared);
}

/* Rows per block: as many as make the largest share no larger. */
static int32_t choose_block_rows(int64_t n, int32_t rows, int64_t splits, int32_t threads) {
  int32_t best = AMLA_MAX_BLOCK_ROWS;
  for (int32_t fewer = best / 2; fewer >= MIN_BLOCK_ROWS; fewer /= 2)
    if (largest_share(n, rows, fewer, splits, threads) <
        largest_share(n, rows, best, splits, threads))
      best = fewer;
  return best;
}

/* Splits of a line of that length; at least one. */
static int64_t count_splits(const amla_schedule *s, int32_t length, int64_t auto_tokens) {
  const int64_t tiles_per_split = amla_split_tokens(s, length, auto_tokens) / s->tile_tokens;
  const int64_t n_tiles = ((int64_t)length + s->tile_tokens - 1) / s->tile_tokens;
  return n_tiles > 0 ? (n_tiles + tiles_per_split - 1) / tiles_per_split : 1;
}

static int64_t max_splits(const amla_schedule *s, int32_t longest) {
  const int64_t tile = s->tile_tokens;
  if (s->split_tokens > 0)
    return clamp(((int64_t)longest + s->split_tokens - 1) / s->split_tokens, 1, INT32_MAX);
  if (s->split_tokens == AMLA_SPLIT_AUTO)
    return MAX_AUTO_SPLITS;
  return clamp(((int64_t)longest + MAX_SPLIT_TILES * tile - 1) / (MAX_SPLIT_TILES * tile),
               SPLITS_BY_LENGTH, INT32_MAX);
}

/* Splits of so many groups. AMLA_SPLIT_AUTO cuts where a thread's part ends, or a group. */
static int64_t max_leaves(const amla_schedule *s, int64_t groups, int32_t threads) {
  if (s->split_tokens == AMLA_SPLIT_AUTO)
    return groups + threads;
  return product(groups, s->max_splits);
}

int64_t amla_tree_left(int64_t n) {
  int64_t left = 1;
  while (left * 2 < n)
    left *= 2;
  return left;
}

amla_schedule amla_schedule_create(const amla_problem *p, const amla_options *options,
                                   int32_t tile_tokens, int32_t grain_tokens, int32_t split_tiles) {
  amla_schedule s = {0};
  const int32_t longest = amla_longest_line(p);
  s.lines = amla_has_lines(p);
  s.rows = s.lines ? p->h_q : p->s_q * p->h_q;
  s.tile_tokens = tile_tokens;
  s.grain_tokens = grain_tokens > 0 ? grain_tokens : GRAIN_TOKENS;
  s.split_tiles = split_tiles > 0 ? split_tiles : MIN_SPLIT_TILES;
  s.split_tokens = options->split_tokens > 0 ? round_up(options->split_tokens, tile_tokens)
                                             : options->split_tokens;
  const int64_t splits =
      s.split_tokens == AMLA_SPLIT_AUTO ? MAX_AUTO_SPLITS : count_splits(&s, longest, 0);
  /* Per block, whatever its size: 0 * NaN reaches as far. */
  const int one_query = s.lines || p->s_q == 1 || p->h_q % AMLA_MAX_BLOCK_ROWS == 0;
  const int64_t n = s.lines ? (int64_t)p->b * p->s_q : p->b;
  const int32_t block_rows =
      one_query ? choose_block_rows(n, s.rows, splits, options->threads) : AMLA_MAX_BLOCK_ROWS;
  s.n_blocks = (int32_t)count_blocks(s.rows, block_rows);
  s.block_rows = s.n_blocks == 1 ? s.rows : block_rows;

  s.max_splits = max_splits(&s, longest);
  s.max_leaves = max_leaves(&s, n * s.n_blocks, options->threads);
  return s;
}

static int64_t floor_log2(int64_t n) { return 63 - __builtin_clzll((unsigned long long)n); }

/* Who has computed the first k leaves of a tree holds at most P(k) = floor(log2 k) + 1 nodes, the
 * leaf at hand included; as many are left of the last k. A share is some last leaves of one tree,
 * whole trees, and some first ones of another tree; or leaves of one tree, which are some last ones
 * below a node and some first ones below another. So K leaves need P(i) + P(j) slots, i + j <= K:
 * at most F(K), which is K up to 4, 2 p at K = 2^p, and linear between. F is concave: threads that
 * share out L leaves need no more than when all have L / threads. */
int64_t amla_count_slots(const amla_schedule *s, int64_t splits, int32_t threads, int alone) {
  const int64_t each = floor_log2(s->max_splits) + 1, n = threads;
  const int64_t most = alone ? each : n * 2 * each;
  const int64_t p = splits >= 2 * n ? floor_log2(splits / n) : 1;
  const int64_t slots = n * 2 * p + ((splits - (n << p)) >> (p - 1));
  return slots < most ? slots : most;
}

static int32_t cut(const amla_group *g, int64_t i) {
  /* Up: no split is longer than asked for, a multiple of the grain. */
  return (int32_t)round_up(i * g->length / g->n_cuts, g->grain_tokens);
}

int32_t amla_group_count(const amla_schedule *s, const amla_scopes *scopes, int32_t sequence) {
  const amla_problem *p = &scopes->problem[0];
  const int32_t queries = amla_query_count(p, &scopes->tensors[0], sequence);
  return (int32_t)(s->lines ? queries * s->n_blocks
                            : count_blocks(queries * p->h_q, s->block_rows));
}

static void find_rows(const amla_schedule *s, const amla_scopes *scopes, int32_t block,
                      amla_group *g) {
  const amla_problem *p = &scopes->problem[0];
  const int32_t rows = amla_query_count(p, &scopes->tensors[0], g->sequence) * p->h_q;
  const int32_t query = s->lines ? block / s->n_blocks : 0;
  const int32_t begin = query * p->h_q, end = s->lines ? begin + p->h_q : rows;
  g->row_begin = begin + (block - query * s->n_blocks) * s->block_rows;
  g->row_end = g->row_begin + s->block_rows < end ? g->row_begin + s->block_rows : end;
}

static void find_keys(const amla_schedule *s, const amla_scopes *scopes, amla_group *g) {
  const int32_t h_q = scopes->problem[0].h_q;
  const int32_t first = g->row_begin / h_q, last = (g->row_end - 1) / h_q;
  if (s->lines) {
    g->length = g->visible = amla_line_create(scopes, g->sequence, first).n;
  } else {
    const amla_line line = amla_line_of_queries(scopes, g->sequence, first, last);
    g->length = line.n;
    g->visible = line.seen;
  }
}

amla_group amla_group_get(const amla_schedule *s, const amla_scopes *scopes, int32_t sequence,
                          int32_t block, int64_t auto_tokens) {
  amla_group g = {.sequence = sequence, .grain_tokens = s->grain_tokens};
  find_rows(s, scopes, block, &g);
  find_keys(s, scopes, &g);
  g.n_cuts = count_splits(s, g.length, auto_tokens);
  for (g.n_splits = 1; g.n_splits < g.n_cuts && cut(&g, g.n_splits) < g.visible;)
    g.n_splits++;
  g.split_cost = (double)(g.row_end - g.row_begin) *
                 ((double)g.visible / (double)g.n_splits + SPLIT_OVERHEAD_TOKENS);
  return g;
}

int32_t amla_split_begin(const amla_group *g, int64_t i) {
  return i < g->n_splits ? cut(g, i) : g->visible;
}

int64_t amla_auto_split_tokens(const amla_schedule *s, const amla_scopes *scopes, int32_t threads) {
  int64_t tokens = 0;
  if (s->split_tokens != AMLA_SPLIT_AUTO)
    return 0;
  for (int32_t i = 0; i < scopes->problem[0].b; i++)
    for (int32_t block = 0, n = amla_group_count(s, scopes, i); block < n; block++)
      tokens += amla_group_get(s, scopes, i, block, 1).length;
  return round_up(tokens / threads + 1, s->tile_tokens);
}

double amla_total_cost(const amla_schedule *s, const amla_scopes *scopes, int64_t auto_tokens) {
  double cost = 0.0;
  for (int32_t i = 0; i < scopes->problem[0].b; i++)
    for (int32_t block = 0, n = amla_group_count(s, scopes, i); block < n; block++) {
      const amla_group g = amla_group_get(s, scopes, i, block, auto_tokens);
      cost += g.split_cost * (double)g.n_splits;
    }
  return cost;
}

/* A split belongs to the share that its middle falls into. */
int64_t amla_splits_before(const amla_group *g, double start, double share) {
  const double n = (share - start) / g->split_cost + 0.5;
  if (n <= 0.0)
    return 0;
  return n >= (double)g->n_splits ? g->n_splits : (int64_t)n;
}
