/* SPDX-License-Identifier: Apache-2.0
 *
 * Put before every file of a Python wheel's libraries (CMakeLists.txt): they shall load on a glibc
 * older than the one that they are built with. glibc still has these functions under the version of
 * its first release for the architecture, and programs get that one if they ask for it. What a
 * wheel may ask for is checked by tools/check_wheel.py.
 */
#if defined __x86_64__
#define OLDEST_GLIBC "GLIBC_2.2.5"
#else
#define OLDEST_GLIBC "GLIBC_2.17"
#endif
#define FROM_OLDEST(name) __asm__(".symver " #name "," #name "@" OLDEST_GLIBC)

FROM_OLDEST(exp); /* libm */
FROM_OLDEST(exp2);
FROM_OLDEST(exp2f);
FROM_OLDEST(expf);
FROM_OLDEST(log);
FROM_OLDEST(log2);
FROM_OLDEST(log2f);
FROM_OLDEST(logf);
FROM_OLDEST(dladdr); /* libdl */
FROM_OLDEST(dlerror);
FROM_OLDEST(dlopen);
FROM_OLDEST(dlsym);
FROM_OLDEST(pthread_create); /* libpthread */
FROM_OLDEST(pthread_detach);
FROM_OLDEST(pthread_mutex_trylock);
FROM_OLDEST(pthread_once);
FROM_OLDEST(__xstat); /* libc: what stat was, see wheel.c */

#undef FROM_OLDEST
