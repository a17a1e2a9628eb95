/* SPDX-License-Identifier: Apache-2.0
 *
 * Targets, of AVX-512 and of AVX2. 0.93 of the peak is the paper's 86.8 % and more. AVX2's are what
 * an EPYC Milan is to reach when its neighbours are quiet; all cores may lose 2 % of one thread's.
 * Odd head counts may lose what rounding rows up to 16 costs, and a tenth. Short contexts repeat
 * the same plan and data.
 */
#include "bench_cases.h"

#include <stddef.h>

#define WITH(avx512, avx2)                                                                         \
  {                                                                                                \
    { [AMLA_ISA_AVX512] = (avx512), [AMLA_ISA_AVX2] = (avx2) }                                     \
  }
#define H128 WITH(1.08, 1.05), WITH(1.05, 1.00) /* times faster than fused and bare peers */
#define H16 WITH(1.50, 1.30), WITH(1.05, 1.00)
#define BARE_ONLY WITH(0, 0), WITH(1.05, 1.00)
#define NO_PEERS WITH(0, 0), WITH(0, 0)
#define OF_PEAK(avx512, avx2) WITH(avx512, avx2), NULL, 0
#define OF(reference, target) WITH(0, 0), reference, (target)
#define OF_ROWS(h) WITH(0, 0), "h=128,sk=4096", (0.90 * (h) / (((h) + 15) / 16 * 16))

double bench_target_for(bench_target target, amla_isa isa) {
  return (size_t)isa < BENCH_ISAS ? target.with[isa] : 0;
}

bool bench_has_target(bench_target target) {
  bool any = false;
  for (int i = 0; i < BENCH_ISAS; i++)
    any = any || target.with[i] > 0;
  return any;
}

static const char one[] = "h=128, one thread", all[] = "h=128, all cores",
                  all4[] = "h=128, b=4, all cores", half[] = "h=64", few[] = "h=16",
                  odd[] = "odd head counts", brief[] = "short contexts", page[] = "page size",
                  type[] = "KV type";

const bench_case bench_cases[] = {
    {one, "h=128,sk=1024", 1, AMLA_ISA_AUTO, OF_PEAK(0.93, 0.90), H128, false},
    {one, "h=128,sk=4096", 1, AMLA_ISA_AUTO, OF_PEAK(0.93, 0.90), H128, true},
    {one, "h=128,sk=16384", 1, AMLA_ISA_AUTO, OF_PEAK(0.93, 0.90), H128, false},
    {one, "h=128,sq=2,sk=1024", 1, AMLA_ISA_AUTO, OF_PEAK(0.93, 0.90), H128, false},
    {one, "h=128,sq=2,sk=4096", 1, AMLA_ISA_AUTO, OF_PEAK(0.93, 0.90), H128, true},
    {one, "h=128,sq=2,sk=16384", 1, AMLA_ISA_AUTO, OF_PEAK(0.93, 0.90), H128, false},

    {all, "h=128,sk=1024", BENCH_ALL_THREADS, AMLA_ISA_AUTO, OF_PEAK(0.91, 0.88), H128, false},
    {all, "h=128,sk=4096", BENCH_ALL_THREADS, AMLA_ISA_AUTO, OF_PEAK(0.91, 0.88), H128, true},
    {all, "h=128,sk=16384", BENCH_ALL_THREADS, AMLA_ISA_AUTO, OF_PEAK(0.91, 0.88), H128, false},
    {all, "h=128,sq=2,sk=1024", BENCH_ALL_THREADS, AMLA_ISA_AUTO, OF_PEAK(0.91, 0.88), H128, false},
    {all, "h=128,sq=2,sk=4096", BENCH_ALL_THREADS, AMLA_ISA_AUTO, OF_PEAK(0.91, 0.88), H128, false},
    {all, "h=128,sq=2,sk=16384", BENCH_ALL_THREADS, AMLA_ISA_AUTO, OF_PEAK(0.91, 0.88), H128,
     false},
    {all4, "b=4,h=128,sk=1024", BENCH_ALL_THREADS, AMLA_ISA_AUTO, OF_PEAK(0.91, 0.88), H128, true},
    {all4, "b=4,h=128,sk=4096", BENCH_ALL_THREADS, AMLA_ISA_AUTO, OF_PEAK(0.91, 0.88), H128, false},
    {all4, "b=4,h=128,sk=16384", BENCH_ALL_THREADS, AMLA_ISA_AUTO, OF_PEAK(0.91, 0.88), H128,
     false},
    {all4, "b=4,h=128,sq=2,sk=1024", BENCH_ALL_THREADS, AMLA_ISA_AUTO, OF_PEAK(0.91, 0.88), H128,
     false},
    {all4, "b=4,h=128,sq=2,sk=4096", BENCH_ALL_THREADS, AMLA_ISA_AUTO, OF_PEAK(0.91, 0.88), H128,
     false},
    {all4, "b=4,h=128,sq=2,sk=16384", BENCH_ALL_THREADS, AMLA_ISA_AUTO, OF_PEAK(0.91, 0.88), H128,
     false},

    {half, "h=64,sk=1024", 1, AMLA_ISA_AUTO, OF_PEAK(0.90, 0.90), BARE_ONLY, false},
    {half, "h=64,sk=4096", 1, AMLA_ISA_AUTO, OF_PEAK(0.90, 0.90), BARE_ONLY, true},
    {half, "h=64,sk=16384", 1, AMLA_ISA_AUTO, OF_PEAK(0.90, 0.90), BARE_ONLY, false},
    {half, "h=64,sk=4096", BENCH_ALL_THREADS, AMLA_ISA_AUTO, OF_PEAK(0.88, 0.88), BARE_ONLY, false},

    {few, "h=16,sk=1024", 1, AMLA_ISA_AUTO, OF_PEAK(0.85, 0.86), H16, false},
    {few, "h=16,sk=4096", 1, AMLA_ISA_AUTO, OF_PEAK(0.85, 0.86), H16, true},
    {few, "h=16,sk=16384", 1, AMLA_ISA_AUTO, OF_PEAK(0.85, 0.86), H16, false},
    {few, "h=16,sq=2,sk=4096", 1, AMLA_ISA_AUTO, OF_PEAK(0.85, 0.86), H16, true},
    {few, "h=16,sk=4096", BENCH_ALL_THREADS, AMLA_ISA_AUTO, OF_PEAK(0.85, 0.84), H16, true},
    {few, "h=16,sq=2,sk=4096", BENCH_ALL_THREADS, AMLA_ISA_AUTO, OF_PEAK(0.85, 0.84), H16, false},
    {few, "b=8,h=16,sk=1000", 1, AMLA_ISA_AUTO, OF_PEAK(0, 0.83), NO_PEERS, false},
    {few, "b=8,h=16,sk=1000", BENCH_ALL_THREADS, AMLA_ISA_AUTO, OF_PEAK(0, 0.81), NO_PEERS, false},

    {odd, "h=6,sk=4096", 1, AMLA_ISA_AUTO, OF_ROWS(6), BARE_ONLY, true},
    {odd, "h=9,sk=4096", 1, AMLA_ISA_AUTO, OF_ROWS(9), BARE_ONLY, true},
    {odd, "h=20,sk=4096", 1, AMLA_ISA_AUTO, OF_ROWS(20), BARE_ONLY, true},
    {odd, "h=48,sk=4096", 1, AMLA_ISA_AUTO, OF_ROWS(48), BARE_ONLY, false},
    {odd, "h=63,sk=4096", 1, AMLA_ISA_AUTO, OF_ROWS(63), BARE_ONLY, true},
    {odd, "h=126,sk=4096", 1, AMLA_ISA_AUTO, OF_ROWS(126), BARE_ONLY, true},

    {brief, "h=128,sk=64", 1, AMLA_ISA_AUTO, OF_PEAK(0.80, 0.75), H128, true},
    {brief, "h=128,sk=128", 1, AMLA_ISA_AUTO, OF_PEAK(0.80, 0.75), H128, false},
    {brief, "h=128,sk=256", 1, AMLA_ISA_AUTO, OF_PEAK(0.80, 0.75), H128, false},
    {brief, "h=128,sk=512", 1, AMLA_ISA_AUTO, OF_PEAK(0.80, 0.75), H128, true},

    {"AVX2 against its own peak", "h=128,sk=4096", 1, AMLA_ISA_AVX2, OF_PEAK(0.90, 0.90), NO_PEERS,
     true},
    {page, "h=128,sk=4096,page=1", 1, AMLA_ISA_AUTO, OF("h=128,sk=4096", 0.97), NO_PEERS, true},
    {page, "h=128,sk=4096,page=16", 1, AMLA_ISA_AUTO, OF("h=128,sk=4096", 0.97), NO_PEERS, true},
    {type, "h=128,sk=4096,kv=f16", 1, AMLA_ISA_AUTO, OF("h=128,sk=4096", 0.97), NO_PEERS, true},
    {type, "h=128,sk=4096,kv=q8_0", 1, AMLA_ISA_AUTO, OF("h=128,sk=4096", 0.97), NO_PEERS, false},
    {type, "h=16,sk=4096,kv=f16", 1, AMLA_ISA_AUTO, OF("h=16,sk=4096", 0.97), NO_PEERS, false},
    {type, "h=16,sk=4096,kv=q8_0", 1, AMLA_ISA_AUTO, OF("h=16,sk=4096", 0.97), NO_PEERS, false},
    {type, "h=128,sk=4096,kv=f32", 1, AMLA_ISA_AUTO, OF_PEAK(0.90, 0.85), NO_PEERS, true},
};

const int bench_n_cases = sizeof bench_cases / sizeof *bench_cases;
