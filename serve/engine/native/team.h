/* A team of threads that compute together: the caller and workers that sleep between calls.

   OpenMP would do, but for one thing: as soon as two threads of a process use it (here the decode thread and torch on
   any other), GNU's counts more threads than processors and puts waiting ones to sleep at each barrier. A step has
   about 270 barriers, and took twice as long. */
#pragma once
#include <immintrin.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

typedef struct {
  int threads;
  _Alignas(64) atomic_int arrived;
  _Alignas(64) atomic_int phase; /* barriers passed */
  _Alignas(64) atomic_int task;  /* calls begun */
  int sleeping;                  /* this and all below under the lock, or between two tasks */
  bool ending;
  pthread_mutex_t lock;
  pthread_cond_t wake;
  void (*work)(void *, int);
  void *argument;
  pthread_t *workers;
} Team;

enum { PATIENCE = 20000 }; /* pauses before a waiter lets others run */

/* Nobody goes on before all have come. */
static inline void team_wait(Team *team) {
  int phase = atomic_load_explicit(&team->phase, memory_order_acquire);
  if (atomic_fetch_add_explicit(&team->arrived, 1, memory_order_acq_rel) + 1 == team->threads) {
    atomic_store_explicit(&team->arrived, 0, memory_order_relaxed);
    atomic_store_explicit(&team->phase, phase + 1, memory_order_release);
    return;
  }
  for (int i = 0; atomic_load_explicit(&team->phase, memory_order_acquire) == phase; i++)
    if (i < PATIENCE)
      _mm_pause();
    else
      sched_yield();
}

Team *hustings_team(int32_t threads);
void hustings_disband(Team *team);

/* work(argument, number) by every member at once; returns when all are through. */
static inline void team_run(Team *team, void (*work)(void *, int), void *argument) {
  team->work = work;
  team->argument = argument;
  pthread_mutex_lock(&team->lock);
  atomic_fetch_add(&team->task, 1);
  if (team->sleeping > 0) pthread_cond_broadcast(&team->wake);
  pthread_mutex_unlock(&team->lock);
  work(argument, 0);
  team_wait(team);
}
