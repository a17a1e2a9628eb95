#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Installs the library into a scratch prefix and uses it there as a stranger would: through the
# CMake package and through pkg-config, shared and static, from C11 and from C++11. Then checks what
# libamla.so shows to the world.
#
#     test_install.sh SOURCE_DIR BUILD_DIR CC [FLAG...]
#
# The flags are what CC needs to link this build (-fsanitize=...).
set -eu
source_dir=$1 build_dir=$2 cc=$3
shift 3
flags="$*"
case $cc in
*clang*) cxx=$(printf %s "$cc" | sed 's/\(.*\)clang/\1clang++/') ;;
*) cxx=${CXX:-c++} ;;
esac
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

fail() { echo "FAIL: $*" >&2; exit 1; }

# Backend cuda is built for those who ask, even where there is an nvcc: it takes minutes.
mkdir "$scratch/bin"
printf '#!/bin/sh\nexit 1\n' > "$scratch/bin/nvcc"
chmod +x "$scratch/bin/nvcc"
for choice in '' -DAMLA_BUILD_CUDA=ON -DAMLA_BUILD_CUDA=AUTO; do
  # shellcheck disable=SC2086
  configured=$scratch/configured$choice
  PATH=$scratch/bin:$PATH cmake -S "$source_dir" -B "$configured" -DCMAKE_C_COMPILER="$cc" \
    -DAMLA_BUILD_CLI=OFF $choice > "$scratch/configure.log" 2>&1 ||
    { cat "$scratch/configure.log"; fail "configure $choice"; }
  cmake --build "$configured" --target help | grep -w amla_cuda > /dev/null && built=yes || built=no
  ! grep -q 'Left out: backend cuda' "$scratch/configure.log" || built=$built,told
  case "$choice $built" in
  ' no,told' | -*' yes') ;;
  *) fail "backend cuda with '$choice': $built" ;;
  esac
done
echo "ok: backend cuda only when asked for"
prefix=$scratch/prefix

cmake --install "$build_dir" --prefix "$prefix" > "$scratch/install.log" ||
  { cat "$scratch/install.log"; fail "install"; }
pc=$(find "$prefix" -name amla.pc)
[ -f "$pc" ] || fail "amla.pc is not installed"
libdir=${pc%/pkgconfig/amla.pc}
consumer=$source_dir/tests/install/consumer.c
[ ! -e "$build_dir/amla" ] || sh "$source_dir/tests/install/program.sh" "$prefix"

# run WHAT PROGRAM: it prints the library's version and 'ok'.
run() {
  output=$(LD_LIBRARY_PATH=$libdir "$2") || fail "$1: exit $?"
  case $output in *ok) echo "ok: $1: $output" ;; *) fail "$1: printed '$output'" ;; esac
}
needs_so() { LC_ALL=C readelf -d "$1" | grep -q 'NEEDED.*\[libamla\.so\.'; }

# The CMake package, from a project of C and C++.
cmake -S "$source_dir/tests/install" -B "$scratch/cmake" -DCMAKE_PREFIX_PATH="$prefix" \
  -DCMAKE_C_COMPILER="$cc" -DCMAKE_CXX_COMPILER="$cxx" -DCMAKE_C_FLAGS="$flags" \
  -DCMAKE_CXX_FLAGS="$flags" > "$scratch/cmake.log" 2>&1 &&
  cmake --build "$scratch/cmake" >> "$scratch/cmake.log" 2>&1 ||
  { cat "$scratch/cmake.log"; fail "CMake consumer"; }
for language in c cxx; do
  run "CMake shared $language" "$scratch/cmake/shared_$language"
  run "CMake static $language" "$scratch/cmake/static_$language"
  needs_so "$scratch/cmake/shared_$language" || fail "shared_$language does not need libamla.so"
  ! needs_so "$scratch/cmake/static_$language" || fail "static_$language needs libamla.so"
done

# pkg-config. For the static library, -lamla must find libamla.a: hide the shared one.
export PKG_CONFIG_PATH="${pc%/amla.pc}"
strict="-Wall -Wextra -Wpedantic -Werror"
header=$prefix/include/amla/amla.h
version=$(sed -n 's/^#define AMLA_VERSION_[MP][A-Z]* //p' "$header" | paste -sd. -)
[ "$(pkg-config --modversion amla)" = "$version" ] ||
  fail "amla.pc has version $(pkg-config --modversion amla), the header $version"
"$cc" -std=c11 $strict $flags "$consumer" -o "$scratch/shared" \
  $(pkg-config --cflags --libs amla) || fail "pkg-config, shared"
run "pkg-config shared" "$scratch/shared"
mkdir "$scratch/hidden"
mv "$libdir"/libamla.so* "$scratch/hidden"
"$cc" -std=c11 -DAMLA_STATIC $strict $flags "$consumer" -o "$scratch/static" \
  $(pkg-config --static --cflags --libs amla) || fail "pkg-config --static"
run "pkg-config --static" "$scratch/static"
mv "$scratch/hidden"/* "$libdir"

# Every declaration of the header marked AMLA_API is exported, and nothing else.
sed -n 's/^AMLA_API .*\b\(amla_[a-z0-9_]*\)(.*/\1/p' "$header" | sort > "$scratch/declared"
[ "$(grep -c '^AMLA_API ' "$header")" = "$(wc -l < "$scratch/declared")" ] ||
  fail "cannot read every AMLA_API line of amla.h"
nm -D --defined-only "$libdir/libamla.so" | awk '{ print $NF }' | sort > "$scratch/exported"
diff "$scratch/declared" "$scratch/exported" ||
  fail "exported symbols (>) are not those of amla.h (<)"
echo "ok: $(wc -l < "$scratch/exported") symbols exported"
soname=$(LC_ALL=C readelf -d "$libdir/libamla.so" | sed -n 's/.*(SONAME).*\[\(.*\)\].*/\1/p')
[ "$soname" = "libamla.so.${version%%.*}" ] || fail "SONAME '$soname'"
for name in "$soname" libamla.so.0.1; do # the second one is what programs of 0.1 ask for
  [ "$libdir/$name" -ef "$libdir/libamla.so" ] || fail "$name is not libamla.so"
done
echo "ok: SONAME $soname"

# Hardening: what the compiler and the linker were asked for is in the files. A sanitizer has checks
# of its own.
hardened() { # FILE
  LC_ALL=C readelf -W -l -d -s "$1" > "$scratch/elf"
  for sign in GNU_RELRO '\bNOW\b' __stack_chk_fail '_chk@'; do
    grep -q -e "$sign" "$scratch/elf" || fail "${1##*/} has no $sign"
  done
}
if [ -z "$flags" ]; then
  hardened "$libdir"/libamla.so.*.*.*
  hardened "$libdir"/libamla_npu.so.*.*.*
  [ ! -e "$prefix/bin/llama-amla" ] || hardened "$libdir/amla/libggml-amla.so"
  [ ! -e "$prefix/bin/amla" ] || hardened "$prefix/bin/amla"
  echo "ok: hardened"
fi
