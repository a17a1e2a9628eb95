#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# tools/gpu_session.sh, its whole run on emulated threads: every command exists and is understood,
# in the right order, and a step that hangs is killed, keeps what it printed and stops no other. The
# two programs that are CUDA alone have stand-ins. So has test_cuda_decode, which a test of its own
# runs: here it says whether it has the tests that it is asked for.
#
#     test_gpu_session.sh SOURCE_DIR AMLA EMULATED_DIR [NATIVE_ROWS]
set -eu
source_dir=$1 amla=$2 emulated=$3 native=${4-}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
out=$scratch/out bin=$scratch/folder/bin
fail() { echo "FAIL: $*"; cat "$out/summary.txt"; exit 1; }

mkdir -p "$bin"
cp "$amla" "$bin/amla"
cp -L "$emulated"/libamla_cuda.so.* "$bin"
[ -z "$native" ] || cp "$native" "$bin"
for program in amla_peak amla_probe; do
  printf '#!/bin/sh\necho stand-in\n' > "$bin/$program"
done
cat > "$bin/test_cuda_decode" << END
#!/bin/sh
tr -d ' \n' < "$source_dir/tests/test_cuda_decode.c" | grep -o 'cmocka_unit_test([a-z0-9_]*)' |
  grep "(\$(echo "\$1" | sed 's/[*]/.*/'))"
END
chmod +x "$bin"/*

# The step "long", of 71 keys then, never ends.
AMLA_SESSION_DRY=1 AMLA_SESSION_SECONDS=100000 AMLA_LIMIT_long=3 AMLA_EMULATED_FAULT=hang:71 \
  sh "$source_dir/tools/gpu_session.sh" run "$scratch/folder" "$out" > "$scratch/printed" 2>&1 ||
  fail "exit $?"

steps='device probe smoke correct target1 torch target2 peak small long random portable flash auto'
[ -z "$native" ] || steps="$steps native"
found=$(cut -d ' ' -f 1 "$out/summary.txt" | grep -vx 'memcheck\|racecheck\|ncu' | uniq |
  tr '\n' ' ')
[ "$found" = "$steps " ] || fail "steps: $found, not $steps"
! grep -E 'exit (126|127|  2)' "$out/summary.txt" || fail "a command is missing or misunderstood"
must_pass='^(device|probe|smoke|correct|target.|peak|small|random|portable|flash|native) '
grep -E "$must_pass" "$out/summary.txt" |
  grep -v 'exit   0' && fail "a step failed"
grep -q '^long .*exit 124' "$out/summary.txt" || fail "the hanging step was not killed"
awk '/^## /{ in_long = $2 == "long:" } in_long' "$out/all.txt" | grep -q '^device ' ||
  fail "what the hanging step printed is lost"
for kernel in mma32 mma64 wgmma2 wgmma3 wgmma3c wgmma16; do
  grep -q "cuda $kernel lazy" "$out/all.txt" || fail "no row of $kernel"
done
grep -q 'cuda wgmma3 flash' "$out/all.txt" || fail "no row of flash"
[ "$(find "$out" -type f | wc -l)" -le 8 ] || fail "more than 8 files"
cmp -s "$scratch/printed" "$out/summary.txt" || fail "the lines printed are not the summary"

# When the time is over nothing begins, and each step says so.
rm -r "$out"
AMLA_SESSION_DRY=1 AMLA_SESSION_SECONDS=0 \
  sh "$source_dir/tools/gpu_session.sh" run "$scratch/folder" "$out" > /dev/null
[ ! -e "$out/all.txt" ] && grep -q '^auto: no time left for ' "$out/summary.txt" ||
  fail "a step without time"
echo "ok: $(echo "$steps" | wc -w) kinds of steps, in order"
