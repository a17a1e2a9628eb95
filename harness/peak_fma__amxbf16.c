/* SPDX-License-Identifier: Apache-2.0
 *
 * Peak of AMX-BF16: products of tiles, four sums as its latency asks for.
 */
#include "peak_fma.h"

#include <immintrin.h>

enum { ROWS = 16, ROW_BYTES = 64, DEPTH = 32, SUMS = 4, TILES = 6 };

double harness_peak_fma__amxbf16(int64_t iterations) {
  uint8_t config[64] = {1}; /* palette; bytes of rows from 16 on, numbers of rows from 48 on */
  for (int t = 0; t < TILES; t++) {
    config[16 + 2 * t] = ROW_BYTES;
    config[48 + t] = ROWS;
  }
  _tile_loadconfig(config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  for (int64_t n = 0; n < iterations; n++) {
    _tile_dpbf16ps(0, 4, 5);
    _tile_dpbf16ps(1, 4, 5);
    _tile_dpbf16ps(2, 4, 5);
    _tile_dpbf16ps(3, 4, 5);
  }
  _tile_release();
  return 2.0 * ROWS * ROWS * DEPTH * SUMS * (double)iterations;
}
