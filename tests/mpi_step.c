/* SPDX-License-Identifier: Apache-2.0
 *
 * A step over ranks by the shared libraries that are installed, libamla_mpi.so and libamla.so, and
 * nothing else of ours (test_mpi.sh): every rank's heads have the bits of one process.
 */
#include <amla/amla_mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { B = 2, H = 10, SK = 1000, PAGE = 16, D = 40, D_V = 36, COLUMNS = (SK + PAGE - 1) / PAGE };

static float q[B][H][D], kv[B * COLUMNS][PAGE][D];
static int32_t table[B][COLUMNS], lengths[B] = {SK, 300}, begin[B], end[B];

typedef struct results {
  float out[B][H][D_V], lse[B][H];
} results;

static void fill(float *x, size_t n) {
  static uint32_t state = 1;
  for (size_t i = 0; i < n; i++) {
    state = state * 1664525 + 1013904223;
    x[i] = (float)(int32_t)state * 0x1p-31f;
  }
}

static void expect(amla_status status, const amla_detail *why) {
  if (status == AMLA_OK)
    return;
  fprintf(stderr, "mpi_step: %s\n", why->text);
  MPI_Abort(MPI_COMM_WORLD, 1);
}

static amla_tensors tensors_into(results *r) {
  amla_tensors t = AMLA_TENSORS_INIT;
  t.q = q, t.q_bytes = sizeof q, t.kv = kv, t.kv_bytes = sizeof kv;
  t.block_table = table[0], t.block_table_bytes = sizeof table;
  t.seqlens_k = lengths, t.seqlens_k_bytes = sizeof lengths;
  t.out = r->out, t.out_bytes = sizeof r->out, t.lse = r->lse[0], t.lse_bytes = sizeof r->lse;
  return t;
}

static void run_alone(const amla_problem *p, const amla_options *o, results *r) {
  const amla_tensors t = tensors_into(r);
  amla_detail why;
  amla_plan *plan;
  expect(amla_plan_create(&plan, p, o, &why), &why);
  const size_t bytes = amla_plan_scratch_bytes(plan);
  void *scratch = malloc(bytes);
  expect(amla_plan_run(plan, &t, scratch, bytes, &why), &why);
  free(scratch);
  amla_plan_destroy(plan);
}

static amla_mpi_info run_over_ranks(const amla_problem *p, const amla_options *o, results *r) {
  const amla_tensors t = tensors_into(r);
  amla_mpi_info info = AMLA_MPI_INFO_INIT;
  amla_shard shard = AMLA_SHARD_INIT;
  amla_detail why;
  amla_mpi *mpi;
  expect(amla_mpi_create(&mpi, MPI_COMM_WORLD, p, o, NULL, &why), &why);
  expect(amla_mpi_query(mpi, &info, &why), &why);
  for (int i = 0; i < B; i++) {
    begin[i] = amla_mpi_even_begin(info.split_tokens, lengths[i], info.rank, info.ranks);
    end[i] = amla_mpi_even_begin(info.split_tokens, lengths[i], info.rank + 1, info.ranks);
  }
  shard.begin = begin, shard.end = end, shard.begin_bytes = shard.end_bytes = sizeof begin;
  expect(amla_mpi_run(mpi, &t, &shard, &why), &why);
  expect(amla_mpi_query(mpi, &info, &why), &why);
  amla_mpi_destroy(mpi);
  return info;
}

int main(int argc, char **argv) {
  static results alone, ranks;
  amla_problem p = AMLA_PROBLEM_INIT;
  amla_options o = AMLA_OPTIONS_INIT;
  int rows[2] = {0}, all[2]; /* with other bits, compared */
  MPI_Init(&argc, &argv);
  fill(q[0][0], sizeof q / sizeof(float)), fill(kv[0][0], sizeof kv / sizeof(float));
  for (int i = 0; i < B * COLUMNS; i++)
    table[i / COLUMNS][i % COLUMNS] = B * COLUMNS - 1 - i;
  p.b = B, p.h_q = H, p.sk = SK, p.d_qk = D, p.d_v = D_V, p.scale = 0.3f;
  p.page_size = PAGE, p.n_pages = B * COLUMNS;
  p.q_type = p.kv_type = p.out_type = AMLA_F32;
  o.split_tokens = 1, o.threads = 1;
  run_alone(&p, &o, &alone);
  const amla_mpi_info info = run_over_ranks(&p, &o, &ranks);
  for (int i = 0; i < B; i++)
    for (int h = info.head_begin; h < info.head_end; h++, rows[1]++)
      rows[0] += memcmp(ranks.out[i][h], alone.out[i][h], sizeof alone.out[i][h]) != 0 ||
                 ranks.lse[i][h] != alone.lse[i][h];
  MPI_Allreduce(rows, all, 2, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
  if (info.rank == 0)
    printf("step     %d ranks by libamla_mpi.so: %d of %d rows with other bits\n", info.ranks,
           all[0], all[1]);
  MPI_Finalize();
  return all[0] != 0 || all[1] != B * H;
}
