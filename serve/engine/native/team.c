/* A team begins, its workers wait for work, it ends. */
#include "team.h"

typedef struct {
  Team *team;
  int number;
} Member;

static void *team_member(void *given) {
  Member member = *(Member *)given;
  Team *team = member.team;
  free(given);
  for (unsigned seen = 0;; seen++) {
    for (int i = 0; i < PATIENCE && atomic_load_explicit(&team->task, memory_order_acquire) == seen; i++) _mm_pause();
    pthread_mutex_lock(&team->lock);
    team->sleeping++;
    while (atomic_load(&team->task) == seen && !team->ending) pthread_cond_wait(&team->wake, &team->lock);
    team->sleeping--;
    bool ending = team->ending;
    pthread_mutex_unlock(&team->lock);
    if (ending) return NULL;
    team->work(team->argument, member.number);
    team_wait(team);
  }
}

/* Ends the workers; nobody may be using the team. */
void hustings_disband(Team *team) {
  pthread_mutex_lock(&team->lock);
  team->ending = true;
  pthread_cond_broadcast(&team->wake);
  pthread_mutex_unlock(&team->lock);
  for (int i = 1; i < team->threads; i++) pthread_join(team->workers[i], NULL);
  pthread_cond_destroy(&team->wake);
  pthread_mutex_destroy(&team->lock);
  free(team->workers);
  free(team);
}

/* A team of so many threads, the caller among them; fewer where no more can be had; NULL without memory. */
Team *hustings_team(int32_t threads) {
  Team *team = aligned_alloc(64, (sizeof(Team) + 63) / 64 * 64);
  if (team == NULL) return NULL;
  *team = (Team){.threads = 1, .workers = calloc(threads, sizeof(pthread_t)), .place = -1};
  pthread_mutex_init(&team->lock, NULL);
  pthread_cond_init(&team->wake, NULL);
  for (int i = 1; i < threads && team->workers != NULL; i++) {
    Member *member = malloc(sizeof *member);
    if (member == NULL) break;
    *member = (Member){team, i};
    if (pthread_create(&team->workers[i], NULL, team_member, member) != 0) {
      free(member);
      break;
    }
    team->threads = i + 1;
  }
  if (sched_getaffinity(0, sizeof team->processors, &team->processors) != 0 || CPU_COUNT(&team->processors) != team->threads)
    CPU_ZERO(&team->processors);
  return team;
}

static bool team_pin(pthread_t thread, int processor) {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(processor, &one);
  return pthread_setaffinity_np(thread, sizeof one, &one) == 0;
}

/* The processor of a member while the caller stays at home: the first is the caller's. */
static int team_home(const Team *team, int member) {
  for (int processor = 0;; processor++)
    if (CPU_ISSET(processor, &team->processors) && member-- == 0) return processor;
}

/* A processor to each member, the caller where it is, for as long as its own set (given back) is what the team began with.
   Left to themselves, two may share one after another thread was in their way, and every barrier then waits for the
   scheduler to take turns: 20 ms lost for 2 ms of that other thread. */
bool team_settle(Team *team, cpu_set_t *own) {
  int processor = sched_getcpu();
  if (pthread_getaffinity_np(pthread_self(), sizeof *own, own) != 0 || !CPU_EQUAL(own, &team->processors)) return false;
  if (processor < 0 || !team_pin(pthread_self(), processor)) return false;
  if (processor == team->place) return true;
  team->place = processor;
  for (int worker = 1; worker < team->threads; worker++) {
    int home = team_home(team, worker);
    team_pin(team->workers[worker], home == processor ? team_home(team, 0) : home);
  }
  return true;
}
