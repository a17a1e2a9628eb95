# SPDX-License-Identifier: Apache-2.0
#
# Toolchain: Debian's cross compiler for aarch64; tests run under qemu. AMLA_SYSROOT is a folder of
# unpacked arm64 packages (jansson, cmocka); ./dev test --aarch64 makes it.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64-static -L /usr/aarch64-linux-gnu)
set(CMAKE_TRY_COMPILE_PLATFORM_VARIABLES AMLA_SYSROOT)
set(ENV{PKG_CONFIG_SYSROOT_DIR} ${AMLA_SYSROOT})
set(ENV{PKG_CONFIG_LIBDIR} ${AMLA_SYSROOT}/usr/lib/aarch64-linux-gnu/pkgconfig)
set(CMAKE_C_FLAGS_INIT -DAMLA_EMULATED) # tests take fewer inputs
