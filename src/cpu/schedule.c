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

/* ---- Fixed splits: they begin at multiples of split_tokens, whatever the length ---- */

/* Multiples of positions; in a list of slots, which has none, of its keys. */
static int has_listed_positions(const amla_segment *seg) {
  return seg->entries && seg->problem->index_kind == AMLA_INDEX_POSITION;
}

static int32_t max_entry(const amla_segment *seg) {
  int32_t max = 0;
  for (int32_t i = 0, key = seg->begin; key < seg->end; i++) {
    key += seg->entries[i] >= 0;
    max = seg->entries[i] > max ? seg->entries[i] : max;
  }
  return max;
}

/* A window's splits are counted from the one that its first key is in. */
static int64_t count_segment_splits(const amla_segment *seg, int64_t tokens) {
  if (seg->begin == seg->end)
    return 0;
  const int64_t last =
      has_listed_positions(seg) ? max_entry(seg) : (int64_t)seg->first + seg->end - seg->begin - 1;
  return last / tokens - seg->first / tokens + 1;
}

/* The first key of a list that lies at `position` or beyond. */
static int32_t cut_list(const amla_segment *seg, int64_t position) {
  int32_t key = seg->begin;
  for (int32_t i = 0; key < seg->end && seg->entries[i] < position; i++)
    key += seg->entries[i] >= 0;
  return key;
}

static int32_t cut_segment(const amla_segment *seg, int64_t tokens, int64_t i) {
  const int64_t position = (seg->first / tokens + i) * tokens;
  if (has_listed_positions(seg))
    return cut_list(seg, position);
  return (int32_t)clamp(seg->begin + position - seg->first, seg->begin, seg->end);
}

/* Most splits of a scope's part of a line. */
static int64_t max_segment_splits(const amla_problem *p, int64_t tokens) {
  const int64_t keys = p->topk > 0 && p->index_kind == AMLA_INDEX_SLOT ? p->topk : p->sk;
  const int64_t seen = p->window > 0 && p->window < keys ? p->window + tokens : keys;
  return (seen + tokens - 1) / tokens;
}

static int64_t max_fixed_splits(const amla_problem *p, int64_t tokens) {
  const amla_problem second = amla_second_problem(p);
  const int64_t n = max_segment_splits(p, tokens) +
                    (amla_has_second_scope(p) ? max_segment_splits(&second, tokens) : 0);
  return n > 0 ? n : 1;
}

static int64_t max_splits(const amla_schedule *s, const amla_problem *p) {
  const int64_t tile = s->tile_tokens, longest = amla_longest_line(p);
  if (s->split_tokens > 0)
    return max_fixed_splits(p, s->split_tokens);
  if (s->split_tokens == AMLA_SPLIT_AUTO)
    return MAX_AUTO_SPLITS;
  return clamp((longest + MAX_SPLIT_TILES * tile - 1) / (MAX_SPLIT_TILES * tile), SPLITS_BY_LENGTH,
               INT32_MAX);
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

/* The fewest nodes of the tree node over leaves [first, first + n) that cover leaves [from, to) of
 * it. */
static int32_t tree_nodes(int64_t first, int64_t n, int64_t from, int64_t to) {
  if (to <= first || first + n <= from || from >= to)
    return 0;
  if (from <= first && first + n <= to)
    return 1;
  const int64_t left = amla_tree_left(n);
  return tree_nodes(first, left, from, to) + tree_nodes(first + left, n - left, from, to);
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
  s.max_splits = max_splits(&s, p);
  const int64_t splits =
      s.split_tokens == AMLA_SPLIT_BY_LENGTH ? count_splits(&s, longest, 0) : s.max_splits;
  /* Per block, whatever its size: 0 * NaN reaches as far. */
  const int one_query = s.lines || p->s_q == 1 || p->h_q % AMLA_MAX_BLOCK_ROWS == 0;
  const int64_t n = s.lines ? (int64_t)p->b * p->s_q : p->b;
  const int32_t block_rows =
      one_query ? choose_block_rows(n, s.rows, splits, options->threads) : AMLA_MAX_BLOCK_ROWS;
  s.n_blocks = (int32_t)count_blocks(s.rows, block_rows);
  s.block_rows = s.n_blocks == 1 ? s.rows : block_rows;

  s.max_leaves = max_leaves(&s, n * s.n_blocks, options->threads);
  return s;
}

static int64_t floor_log2(int64_t n) { return 63 - __builtin_clzll((unsigned long long)n); }

/* Who has computed the first k leaves of a tree holds at most P(k) = floor(log2 k) + 1 nodes, the
 * leaf at hand included; as many are left of the last k. A share is some last leaves of one tree,
 * whole trees, and some first ones of another tree; or leaves of one tree, which are some last ones
 * below a node and some first ones below another. So K leaves need P(i) + P(j) slots, i + j <= K:
 * at most F(K), which is K up to 4, 2 p at K = 2^p, and linear between. F is concave: n shares of L
 * leaves need no more than when all have L / n. In a shard each of the trees is leaves within one:
 * a share of it needs F(i) + F(j), no more than two shares. */
int64_t amla_count_slots(const amla_schedule *s, int64_t splits, int64_t ends) {
  const int64_t each = floor_log2(s->max_splits) + 1, most = ends * each, n = (ends + 1) / 2;
  const int64_t p = splits >= 2 * n ? floor_log2(splits / n) : 1;
  const int64_t slots = n * 2 * p + ((splits - (n << p)) >> (p - 1));
  return slots < most ? slots : most;
}

/* ---- Cuts ---- */

static int32_t cut(const amla_group *g, int64_t i) {
  if (g->split_tokens > 0 && g->line.masked)
    return amla_line_count(&g->line, 0, i * g->split_tokens);
  if (g->split_tokens > 0 && i < g->n_first)
    return cut_segment(&g->line.segments[0], g->split_tokens, i);
  if (g->split_tokens > 0)
    return cut_segment(&g->line.segments[1], g->split_tokens, i - g->n_first);
  /* Up: no split is longer than asked for, a multiple of the grain. */
  return (int32_t)round_up(i * g->length / g->n_cuts, g->grain_tokens);
}

static int32_t groups_of_block(const amla_scopes *scopes) { return scopes->shard ? scopes->n : 1; }

int32_t amla_group_count(const amla_schedule *s, const amla_scopes *scopes, int32_t sequence) {
  const amla_problem *p = &scopes->problem[0];
  const int32_t queries = amla_query_count(p, &scopes->tensors[0], sequence);
  const int64_t blocks =
      s->lines ? queries * s->n_blocks : count_blocks(queries * p->h_q, s->block_rows);
  return (int32_t)blocks * groups_of_block(scopes);
}

/* Rows of the shard alone. */
static void clip_rows(const amla_scopes *scopes, amla_group *g) {
  const amla_problem *p = &scopes->problem[0];
  const amla_shard *shard = scopes->shard;
  const int64_t before = amla_query_index(p, &scopes->tensors[0], g->sequence, 0) * p->h_q;
  g->row_begin = (int32_t)clamp(shard->row_begin - before, g->row_begin, g->row_end);
  g->row_end = (int32_t)clamp(shard->row_end - before, g->row_begin, g->row_end);
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

/* Those of queries [first, last]. */
static void find_keys(const amla_schedule *s, const amla_scopes *scopes, int32_t first,
                      int32_t last, amla_group *g) {
  g->line = s->lines ? amla_line_create(scopes, g->sequence, first)
                     : amla_line_of_queries(scopes, g->sequence, first, last);
  g->length = g->line.n;
  g->visible = g->line.seen;
}

static void find_cuts(const amla_schedule *s, amla_group *g, int64_t auto_tokens) {
  if (s->split_tokens <= 0) {
    g->n_cuts = count_splits(s, g->length, auto_tokens);
    return;
  }
  g->split_tokens = s->split_tokens;
  if (g->line.masked) /* what is hidden moves no split */
    g->length = g->line.segments[0].end;
  g->n_first = count_segment_splits(&g->line.segments[0], g->split_tokens);
  g->n_cuts = g->n_first + count_segment_splits(&g->line.segments[1], g->split_tokens);
  g->n_cuts = g->n_cuts > 0 ? g->n_cuts : 1;
}

/* ---- Shards ---- */

void amla_group_take(amla_group *g, const amla_shard *shard, int32_t scope) {
  const int64_t tokens = g->split_tokens, skipped = g->line.segments[scope].first / tokens;
  const int64_t first = scope ? g->n_first : 0;
  const int64_t n = scope ? g->n_cuts - g->n_first : g->n_first;
  const int64_t begin = (scope ? shard->extra_begin : shard->begin)[g->sequence];
  const int64_t end = (scope ? shard->extra_end : shard->end)[g->sequence];
  g->entry = scope ? tree_nodes(0, g->n_splits, g->from, g->to) : 0;
  g->from = first + clamp(round_up(begin, tokens) / tokens - skipped, 0, n);
  g->to = first + clamp(round_up(end, tokens) / tokens - skipped, 0, n);
  g->to = g->to > g->from ? g->to : g->from;
}

int32_t amla_group_entries(amla_group g, const amla_shard *shard) {
  for (int32_t scope = 0; scope < (shard->extra_begin ? 2 : 1); scope++)
    amla_group_take(&g, shard, scope);
  return g.entry + tree_nodes(0, g.n_splits, g.from, g.to);
}

amla_group amla_row_group(const amla_schedule *s, const amla_scopes *scopes, int32_t sequence,
                          int32_t row) {
  amla_group g = {.sequence = sequence, .row_begin = row, .row_end = row + 1};
  g.line = amla_line_create(scopes, sequence, row / scopes->problem[0].h_q);
  g.length = g.visible = g.line.n;
  find_cuts(s, &g, 0);
  g.n_splits = g.n_cuts;
  return g;
}

/* ---- Groups ---- */

/* All splits up to the last key that is seen. Those of a shard have the line's whole tree: what a
 * row does not see leaves its bits alone. */
static void find_splits(const amla_scopes *scopes, int32_t scope, amla_group *g) {
  g->n_splits = g->n_cuts;
  if (scopes->shard) {
    for (int32_t i = 0; i <= scope; i++)
      amla_group_take(g, scopes->shard, i);
    return;
  }
  if (g->split_tokens > 0 && g->visible == g->length) { /* fixed splits begin before the last key */
    g->n_splits = g->to = g->n_cuts;
    return;
  }
  int64_t n = 1;
  for (int32_t at = amla_split_end(g, 0, 0); n < g->n_cuts && at < g->visible; n++)
    at = amla_split_end(g, n, at);
  g->n_splits = g->to = n;
}

amla_group amla_group_get(const amla_schedule *s, const amla_scopes *scopes, int32_t sequence,
                          int32_t block, int64_t auto_tokens) {
  amla_group g = {.sequence = sequence, .grain_tokens = s->grain_tokens, .split_cost = 1.0};
  const int32_t parts = groups_of_block(scopes);
  find_rows(s, scopes, block / parts, &g);
  /* Of the whole block, whatever rows of it the shard has: the same keys form a tile. */
  const int32_t h_q = scopes->problem[0].h_q;
  const int32_t first = g.row_begin / h_q, last = (g.row_end - 1) / h_q;
  if (scopes->shard)
    clip_rows(scopes, &g);
  if (g.row_begin == g.row_end)
    return g;
  find_keys(s, scopes, first, last, &g);
  find_cuts(s, &g, auto_tokens);
  find_splits(scopes, block % parts, &g);
  const double keys = (double)amla_split_begin(&g, g.to) - (double)amla_split_begin(&g, g.from);
  const double n = g.to > g.from ? (double)(g.to - g.from) : 1.0;
  g.split_cost = (double)(g.row_end - g.row_begin) * (keys / n + SPLIT_OVERHEAD_TOKENS);
  return g;
}

int32_t amla_split_begin(const amla_group *g, int64_t i) {
  const int32_t begin = i < g->n_splits ? cut(g, i) : g->visible;
  return begin < g->visible ? begin : g->visible;
}

int32_t amla_split_end(const amla_group *g, int64_t i, int32_t begin) {
  if (g->split_tokens > 0 && g->line.masked)
    return begin + amla_line_count(&g->line, i * g->split_tokens, (i + 1) * g->split_tokens);
  return amla_split_begin(g, i + 1);
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
      cost += g.split_cost * (double)(g.to - g.from);
    }
  return cost;
}

/* A split belongs to the share that its middle falls into. */
int64_t amla_splits_before(const amla_group *g, double start, double share) {
  const double n = (share - start) / g->split_cost + 0.5;
  if (n <= 0.0)
    return g->from;
  return n >= (double)(g->to - g->from) ? g->to : g->from + (int64_t)n;
}
