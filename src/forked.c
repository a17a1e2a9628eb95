/* SPDX-License-Identifier: Apache-2.0
 *
 * Handlers of pthread_atfork. See forked.h.
 */
#include "forked.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/stat.h>

static pthread_once_t once = PTHREAD_ONCE_INIT;
static atomic_int several, forked;

/* The folder has a link for each thread, and two of its own. Where there is none to ask: several.
 */
static void count_threads(void) {
  struct stat tasks;
  atomic_store(&several, stat("/proc/self/task", &tasks) != 0 || tasks.st_nlink != 3);
}

static void in_child(void) {
  if (atomic_load(&several))
    atomic_store(&forked, 1);
}

static void watch(void) { pthread_atfork(count_threads, NULL, in_child); }

void amla_watch_forks(void) { pthread_once(&once, watch); }
int amla_forked(void) { return atomic_load(&forked); }
