/* SPDX-License-Identifier: Apache-2.0
 *
 * amla_ranks on a simulated network: the linker puts these functions in front of amla_shard_run and
 * amla_shard_finish. They charge simulated time for the work, by a law that was measured before,
 * and do it only if AMLA_COMPUTE is set. The rest of the program, all of its MPI, is as shipped.
 * A charge is one step: nobody asks options.cancel within it, where the program lets messages move.
 * SMPI moves them all the same.
 *
 *     AMLA_CHARGE="RUN ROW_KEY SHARD BYTE"    seconds of a call of run, and of each key of a row;
 *                                             of each shard in finish, and of each byte of records
 */
#include <amla/amla.h>
#include <mpi.h>
#include <simgrid/barrier.h>

#include <stdio.h>
#include <stdlib.h>

enum { RUN, ROW_KEY, SHARD, BYTE, N_CHARGES };

static const double host_flops = 1e9; /* a second, of every host of platform.py */

static const double *charges(void) {
  static double all[N_CHARGES];
  static int known;
  const char *text = getenv("AMLA_CHARGE");
  for (int i = 0; !known && i < N_CHARGES; i++) {
    char *end = NULL;
    all[i] = text ? strtod(text, &end) : 0.0;
    if (!text || end == text) {
      fprintf(stderr, "AMLA_CHARGE: must be four numbers of seconds\n");
      abort();
    }
    text = end;
  }
  known = 1;
  return all;
}

static void charge(double seconds) { smpi_execute_flops(seconds * host_flops); }

static int computes(void) { return getenv("AMLA_COMPUTE") != NULL; }

amla_status __real_amla_shard_run(const amla_plan *plan, const amla_tensors *tensors,
                                  const amla_shard *shard, void *scratch, size_t scratch_bytes,
                                  amla_detail *detail);
amla_status __wrap_amla_shard_run(const amla_plan *plan, const amla_tensors *tensors,
                                  const amla_shard *shard, void *scratch, size_t scratch_bytes,
                                  amla_detail *detail);
amla_status __wrap_amla_shard_run(const amla_plan *plan, const amla_tensors *tensors,
                                  const amla_shard *shard, void *scratch, size_t scratch_bytes,
                                  amla_detail *detail) {
  amla_shard_info info = AMLA_SHARD_INFO_INIT;
  amla_status status = amla_shard_query(plan, tensors, shard, &info, detail);
  if (status == AMLA_OK && computes())
    status = __real_amla_shard_run(plan, tensors, shard, scratch, scratch_bytes, detail);
  charge(charges()[RUN] + charges()[ROW_KEY] * (double)info.n_row_keys);
  return status;
}

amla_status __real_amla_shard_finish(const amla_plan *plan, const amla_tensors *tensors,
                                     int32_t n_shards, const amla_shard *shards, void *scratch,
                                     size_t scratch_bytes, amla_detail *detail);
amla_status __wrap_amla_shard_finish(const amla_plan *plan, const amla_tensors *tensors,
                                     int32_t n_shards, const amla_shard *shards, void *scratch,
                                     size_t scratch_bytes, amla_detail *detail);
amla_status __wrap_amla_shard_finish(const amla_plan *plan, const amla_tensors *tensors,
                                     int32_t n_shards, const amla_shard *shards, void *scratch,
                                     size_t scratch_bytes, amla_detail *detail) {
  double bytes = 0.0;
  amla_status status = AMLA_OK;
  if (computes())
    status =
        __real_amla_shard_finish(plan, tensors, n_shards, shards, scratch, scratch_bytes, detail);
  for (int32_t i = 0; i < n_shards; i++)
    bytes += (double)shards[i].records_bytes;
  charge(charges()[SHARD] * (double)n_shards + charges()[BYTE] * bytes);
  return status;
}

/* ---- What ranks say of a run: counted, for the formula ---- */

static double gathered_bytes; /* of a rank, in the last MPI_Allgather */

int MPI_Allgather(const void *from, int n, MPI_Datatype type, void *to, int n_to,
                  MPI_Datatype type_to, MPI_Comm comm) {
  int bytes;
  MPI_Type_size(type, &bytes);
  gathered_bytes = (double)n * bytes;
  return PMPI_Allgather(from, n, type, to, n_to, type_to, comm);
}

int MPI_Finalize(void) {
  int rank;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  if (rank == 0)
    printf("{\"gathered_bytes\": %.0f}\n", gathered_bytes);
  return PMPI_Finalize();
}

/* ---- One time at which all begin ---- */

/* The program measures from a barrier on, which ranks would leave at times that differ by more than
 * messages take. There is one address space: rank 0 tells the others where it is. */
int MPI_Barrier(MPI_Comm comm) {
  static sg_bar_t all;
  int rank, ranks;
  MPI_Comm_rank(comm, &rank);
  MPI_Comm_size(comm, &ranks);
  if (!all && rank == 0)
    all = sg_barrier_init((unsigned)ranks);
  if (PMPI_Bcast(&all, sizeof all, MPI_BYTE, 0, comm) != MPI_SUCCESS)
    abort();
  sg_barrier_wait(all);
  return MPI_SUCCESS;
}

/* ---- Where SMPI 3.32 departs from the standard ---- */

/* It says so of rank 0 only. Each rank is the one thread of its own program. */
int MPI_Is_thread_main(int *flag) {
  *flag = 1;
  return MPI_SUCCESS;
}

/* It counts inactive persistent requests among the done ones, with an empty status. Returns how
 * many were active. */
static int drop_inactive(int n, int *indices, MPI_Status *statuses) {
  int kept = 0;
  for (int i = 0; i < n; i++)
    if (statuses[i].MPI_SOURCE != MPI_ANY_SOURCE) {
      indices[kept] = indices[i];
      statuses[kept++] = statuses[i];
    }
  return n == MPI_UNDEFINED ? n : kept;
}

int MPI_Testsome(int n, MPI_Request *requests, int *n_done, int *indices, MPI_Status *statuses) {
  const int error = PMPI_Testsome(n, requests, n_done, indices, statuses);
  *n_done = drop_inactive(*n_done, indices, statuses);
  return error;
}

int MPI_Waitsome(int n, MPI_Request *requests, int *n_done, int *indices, MPI_Status *statuses) {
  const int error = PMPI_Waitsome(n, requests, n_done, indices, statuses);
  *n_done = drop_inactive(*n_done, indices, statuses);
  return error;
}
