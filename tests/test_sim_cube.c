/* SPDX-License-Identifier: Apache-2.0
 *
 * The cube core's instructions against plain C: matrices of any size travel GM -> L1 -> L0 -> cube
 * -> GM in every layout that the instructions know, as tiles inside larger matrices, and every byte
 * that comes back is compared with a triple loop. What is not written must still hold the 0xff that
 * memory starts with.
 */
#include "test_sim_support.h"

enum { MOST = 80, PAD = 3 };

typedef struct product {
  int32_t m, n, k;
  bool a_transposed, b_transposed; /* how they lie in GM and L1: A [m][k] or [k][m], B [n][k] or
                                      [k][n] (transposed) */
  bool whole_k;                    /* multiply the padding of k too: it is 0 */
  bool accumulate;                 /* the product twice */
  int32_t row, col;                /* of the tiles inside their NZ matrices, multiples of 16 */
  int32_t out;                     /* 0 f32, 1 f32 added, 2 bf16 */
  int32_t c_cols;                  /* stride of C in GM */
  npu_bf16 *a, *b;                 /* ND */
  int32_t a_rows, a_cols, b_rows, b_cols;
  void *c;
} product;

static int32_t ceil16(int32_t x) { return (x + 15) / 16 * 16; }

/* ND matrix -> a tile inside an NZ matrix that is larger by row and col; returns the tile, *height
 * the NZ matrix' height. */
static npu_bf16 *place(uint32_t at, const npu_bf16 *nd, int32_t rows, int32_t cols,
                       const product *p, int32_t *height) {
  *height = ceil16(rows) + p->row + 16;
  npu_bf16 *nz = NPU_L1_AT(npu_bf16, at);
  npu_fill_l1_bf16(nz, 0x4321, 1, *height * (ceil16(cols) + p->col) * 2,
                   *height * (ceil16(cols) + p->col) * 2);
  npu_bf16 *tile = nz + (p->col / 16 * *height + p->row) * 16;
  npu_copy_gm_l1_nd2nz_bf16(tile, nd, rows, cols, cols + PAD, *height);
  return tile;
}

static void multiply(const void *args) {
  const product *p = args;
  int32_t a_height, b_height;
  npu_bf16 *a0 = NPU_L0A_AT(npu_bf16, 512), *b0 = NPU_L0B_AT(npu_bf16, 1024);
  float *c0 = NPU_L0C_AT(float, 2048);
  const npu_bf16 *a = place(0, p->a, p->a_rows, p->a_cols, p, &a_height);
  const npu_bf16 *b = place(256 * 1024, p->b, p->b_rows, p->b_cols, p, &b_height);
  sync_pipes(NPU_PIPE_MTE2, NPU_PIPE_MTE1);
  if (p->a_transposed)
    npu_load_l0a_t_bf16(a0, a, p->m, p->k, a_height);
  else
    npu_load_l0a_bf16(a0, a, p->m, p->k, a_height);
  if (p->b_transposed)
    npu_load_l0b_t_bf16(b0, b, p->n, p->k, b_height);
  else
    npu_load_l0b_bf16(b0, b, p->n, p->k, b_height);
  sync_pipes(NPU_PIPE_MTE1, NPU_PIPE_M);
  const int32_t k = p->whole_k ? ceil16(p->k) : p->k;
  npu_mmad_bf16(c0, a0, b0, p->m, p->n, k, 0);
  if (p->accumulate)
    npu_mmad_bf16(c0, a0, b0, p->m, p->n, k, 1);
  sync_pipes(NPU_PIPE_M, NPU_PIPE_FIX);
  if (p->out == 0)
    npu_copy_l0c_gm_f32(p->c, c0, p->m, p->n, p->c_cols, ceil16(p->m));
  if (p->out == 1)
    npu_copy_l0c_gm_add_f32(p->c, c0, p->m, p->n, p->c_cols, ceil16(p->m));
  if (p->out == 2)
    npu_copy_l0c_gm_bf16(p->c, c0, p->m, p->n, p->c_cols, ceil16(p->m));
}

static float widen(npu_bf16 h) { return of_bits((uint32_t)h << 16); }

static float element(const npu_bf16 *nd, int32_t cols, bool transposed, int32_t i,
                     int32_t j) { /* (i, j) of the untransposed */
  return widen(transposed ? nd[j * (cols + PAD) + i] : nd[i * (cols + PAD) + j]);
}

static float dot(const product *p, int32_t i, int32_t j) {
  float sum = 0;
  for (int pass = 0; pass < (p->accumulate ? 2 : 1); pass++)
    for (int32_t k = 0; k < p->k; k++)
      sum += element(p->a, p->a_cols, p->a_transposed, i, k) *
             element(p->b, p->b_cols, p->b_transposed, j, k);
  return sum;
}

/* Nearest bf16, halves to even, of a normal number. */
static uint16_t nearest_bf16(float x) {
  const uint16_t down = (uint16_t)(to_bits(x) >> 16), up = (uint16_t)(down + 1);
  const double below = fabs((double)x - widen(down)), above = fabs((double)x - widen(up));
  return below < above || (below == above && down % 2 == 0) ? down : up;
}

static void compare_product(const product *p, const void *before) {
  for (int32_t i = 0; i < p->m + 2; i++)
    for (int32_t j = 0; j < p->c_cols; j++) {
      const int32_t at = i * p->c_cols + j;
      const bool written = i < p->m && j < p->n;
      uint32_t got, want;
      if (p->out == 2) {
        got = ((const npu_bf16 *)p->c)[at];
        want = written ? nearest_bf16(dot(p, i, j)) : ((const npu_bf16 *)before)[at];
      } else {
        float x = ((const float *)before)[at];
        got = to_bits(((const float *)p->c)[at]);
        if (written)
          x = p->out == 1 ? x + dot(p, i, j) : dot(p, i, j);
        want = to_bits(x);
      }
      if (got != want)
        fail_msg("m=%d n=%d k=%d transposed A=%d B=%d accumulate=%d tile at (%d, %d) out=%d: "
                 "C(%d, %d) is 0x%08x, want 0x%08x",
                 p->m, p->n, p->k, p->a_transposed, p->b_transposed, p->accumulate, p->row, p->col,
                 p->out, i, j, got, want);
    }
}

static void products_match_plain_c(void **state) {
  (void)state;
  static float before[MOST * 2 * MOST];
  npu_chip *chip = make_chip("910b2", NPU_FUNCTIONAL);
  product p = {0};
  p.a = make_gm(chip, MOST * (MOST + PAD) * 2, "a");
  p.b = make_gm(chip, MOST * (MOST + PAD) * 2, "b");
  p.c = make_gm(chip, sizeof before, "c");
  uint64_t seed = 6;
  for (int round = 0; round < (long_run() ? 4000 : 150); round++) {
    p.m = 1 + random_below(&seed, MOST - 10), p.n = 1 + random_below(&seed, MOST - 10),
    p.k = 1 + random_below(&seed, MOST - 10);
    p.a_transposed = random_below(&seed, 2), p.b_transposed = random_below(&seed, 2),
    p.accumulate = random_below(&seed, 2);
    p.whole_k = !p.a_transposed && !p.b_transposed && random_below(&seed, 2);
    p.row = 16 * random_below(&seed, 3), p.col = 16 * random_below(&seed, 3);
    p.out = round % 3, p.c_cols = p.n + random_below(&seed, 9);
    p.a_rows = p.a_transposed ? p.k : p.m;
    p.a_cols = p.m + p.k - p.a_rows;
    p.b_rows = p.b_transposed ? p.k : p.n;
    p.b_cols = p.n + p.k - p.b_rows;
    for (int i = 0; i < MOST * (MOST + PAD); i++) {
      p.a[i] = (npu_bf16)(to_bits(random_normal(&seed)) >> 16);
      p.b[i] = (npu_bf16)(to_bits(random_normal(&seed)) >> 16);
    }
    for (int i = 0; i < LENGTH(before); i++)
      before[i] = random_normal(&seed);
    memcpy(p.c, before, sizeof before);
    npu_report report;
    expect_clean("product", launch_one(chip, multiply, NULL, &p, &report), &report);
    compare_product(&p, before);
  }
  npu_chip_destroy(chip);
}

/* ---- Bursts into L1: the same matrix, already NZ in GM ---- */

typedef struct nz_job {
  const npu_bf16 *nz, *eye; /* [2 columns of 16][32 rows][16], 48 rows apart in GM; [16][16] */
  float *c;                 /* [32][32] */
} nz_job;

static void copy_bursts(const void *args) {
  const nz_job *j = args;
  npu_bf16 *a = NPU_L1_AT(npu_bf16, 0), *eye = NPU_L1_AT(npu_bf16, 65536),
           *a0 = NPU_L0A_AT(npu_bf16, 0), *b0 = NPU_L0B_AT(npu_bf16, 0);
  npu_copy_gm_l1(a, j->nz, 2, 32 * 32, 64 * 32, 48 * 32);
  npu_copy_gm_l1(eye, j->eye, 1, 512, 512, 512);
  sync_pipes(NPU_PIPE_MTE2, NPU_PIPE_MTE1);
  npu_load_l0b_bf16(b0, eye, 16, 16, 16);
  for (int col = 0; col < 2; col++) {
    npu_load_l0a_bf16(a0 + col * 1024, a + col * 64 * 16, 32, 16, 64);
    sync_pipes(NPU_PIPE_MTE1, NPU_PIPE_M);
    npu_mmad_bf16(NPU_L0C_AT(float, col * 4096), a0 + col * 1024, b0, 32, 16, 16, 0);
  }
  sync_pipes(NPU_PIPE_M, NPU_PIPE_FIX);
  npu_copy_l0c_gm_f32(
      j->c, NPU_L0C_AT(float, 0), 32, 32, 32,
      64); /* two tiles of height 32 are 4096 bytes apart: one NZ matrix of height 64 */
}

static void bursts_keep_the_nz_layout(void **state) {
  (void)state;
  npu_chip *chip = make_chip("910b2", NPU_FUNCTIONAL);
  npu_bf16 *nz = make_gm(chip, 2 * 48 * 16 * 2, "nz"), *eye = make_gm(chip, 512, "eye");
  float *c = make_gm(chip, 32 * 32 * 4, "c");
  for (int i = 0; i < 2 * 48 * 16; i++)
    nz[i] = (npu_bf16)(to_bits((float)(i % 199)) >> 16);
  for (int i = 0; i < 256; i++)
    eye[i] = i % 17 ? 0 : 0x3f80;
  const nz_job j = {nz, eye, c};
  npu_report report;
  expect_clean("bursts", launch_one(chip, copy_bursts, NULL, &j, &report), &report);
  for (int r = 0; r < 32; r++)
    for (int col = 0; col < 32; col++) {
      const float want = widen(nz[(col / 16 * 48 + r) * 16 + col % 16]);
      if (c[r * 32 + col] != want)
        fail_msg("(%d, %d) is %g, want %g", r, col, c[r * 32 + col], want);
    }
  npu_chip_destroy(chip);
}

/* ---- What a product does not write ---- */

static void
multiply_a_corner(const void *args) { /* 32 x 32 of 16, then the first 17 x 19 twice that */
  npu_bf16 *l1 = NPU_L1_AT(npu_bf16, 0), *a0 = NPU_L0A_AT(npu_bf16, 0),
           *b0 = NPU_L0B_AT(npu_bf16, 0);
  float *c0 = NPU_L0C_AT(float, 0);
  npu_fill_l1_bf16(l1, 0x3f80, 1, 1024, 1024);
  sync_pipes(NPU_PIPE_MTE2, NPU_PIPE_MTE1);
  npu_load_l0a_bf16(a0, l1, 32, 16, 32);
  npu_load_l0b_bf16(b0, l1, 32, 16, 32);
  sync_pipes(NPU_PIPE_MTE1, NPU_PIPE_M);
  npu_mmad_bf16(c0, a0, b0, 32, 32, 16, 0);
  npu_mmad_bf16(c0, a0, b0, 17, 19, 16, 1);
  sync_pipes(NPU_PIPE_M, NPU_PIPE_FIX);
  npu_copy_l0c_gm_f32((float *)(uintptr_t)args, c0, 32, 32, 32, 32);
}

static void a_product_writes_only_its_elements(void **state) {
  (void)state;
  npu_chip *chip = make_chip("910b2", NPU_FUNCTIONAL);
  float *c = make_gm(chip, 32 * 32 * 4, "c");
  npu_report report;
  expect_clean("corner", launch_one(chip, multiply_a_corner, NULL, c, &report), &report);
  for (int i = 0; i < 32; i++)
    for (int j = 0; j < 32; j++) {
      const float want = i < 17 && j < 19 ? 32 : 16;
      if (c[i * 32 + j] != want)
        fail_msg("C(%d, %d) is %g, want %g", i, j, c[i * 32 + j], want);
    }
  npu_chip_destroy(chip);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(products_match_plain_c),
      cmocka_unit_test(a_product_writes_only_its_elements),
      cmocka_unit_test(bursts_keep_the_nz_layout),
  };
  return cmocka_run_group_tests_name("sim_cube", tests, NULL, NULL);
}
