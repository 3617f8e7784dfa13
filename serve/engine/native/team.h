/* A team of threads that compute together: the caller and workers that sleep between calls.

   OpenMP would do, but for one thing: as soon as two threads of a process use it (here the decode thread and torch on
   any other), GNU's counts more threads than processors and puts waiting ones to sleep at each barrier. A step has
   about 270 barriers, and took twice as long. */
#pragma once
#include <immintrin.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef struct {
  int threads;
  _Alignas(64) atomic_int arrived;
  _Alignas(64) atomic_uint phase; /* barriers passed */
  atomic_int resting;             /* members that sleep until it changes */
  _Alignas(64) atomic_uint task; /* calls begun */
  int sleeping;                  /* this and all below under the lock, or between two tasks */
  bool ending;
  pthread_mutex_t lock;
  pthread_cond_t wake;
  void (*work)(void *, int);
  void *argument;
  pthread_t *workers;
  cpu_set_t processors; /* a member's each; empty unless there were just as many when the team began */
  int place;            /* the caller's processor in the last task */
} Team;

enum { PATIENCE = 4000 }; /* pauses before a waiter sleeps: some 50 to 100 µs */

static inline void team_futex(atomic_uint *word, int operation, unsigned value) {
  syscall(SYS_futex, (unsigned *)word, operation | FUTEX_PRIVATE_FLAG, value, NULL, NULL, 0);
}

/* Nobody goes on before all have come. Who waits long sleeps: the one it waits for has lost its processor to another
   thread, and that one can have the waiter's. */
static inline void team_wait(Team *team) {
  unsigned phase = atomic_load_explicit(&team->phase, memory_order_acquire);
  if (atomic_fetch_add_explicit(&team->arrived, 1, memory_order_acq_rel) + 1 == team->threads) {
    atomic_store_explicit(&team->arrived, 0, memory_order_relaxed);
    atomic_store(&team->phase, phase + 1);
    if (atomic_load(&team->resting) > 0) team_futex(&team->phase, FUTEX_WAKE, INT_MAX);
    return;
  }
  for (int i = 0; i < PATIENCE; i++) {
    if (atomic_load_explicit(&team->phase, memory_order_acquire) != phase) return;
    _mm_pause();
  }
  atomic_fetch_add(&team->resting, 1);
  while (atomic_load(&team->phase) == phase) team_futex(&team->phase, FUTEX_WAIT, phase);
  atomic_fetch_sub(&team->resting, 1);
}

Team *hustings_team(int32_t threads);
void hustings_disband(Team *team);

bool team_settle(Team *team, cpu_set_t *own);

/* work(argument, number) by every member at once; returns when all are through. */
static inline void team_run(Team *team, void (*work)(void *, int), void *argument) {
  cpu_set_t own;
  bool settled = CPU_COUNT(&team->processors) > 0 && team_settle(team, &own);
  team->work = work;
  team->argument = argument;
  pthread_mutex_lock(&team->lock);
  atomic_fetch_add(&team->task, 1);
  if (team->sleeping > 0) pthread_cond_broadcast(&team->wake);
  pthread_mutex_unlock(&team->lock);
  work(argument, 0);
  team_wait(team);
  if (settled) pthread_setaffinity_np(pthread_self(), sizeof own, &own);
}
