/* The next token of each row, drawn with one uniform number by the inverse of the cumulated distribution. */
#include <stddef.h>
#include <string.h>

#include "team.h"
#include "vector.h"

enum { CHUNK = 1024, BUCKETS = 4096 };
static const float BUCKETS_A_NAT = BUCKETS / 88.0f; /* e^-88 is 0 */

typedef struct {
  int32_t rows, vocabulary;
  const float *logits;               /* [rows][vocabulary] */
  const float *temperatures, *top_p; /* [rows]; temperature 0 is greedy */
  const int32_t *top_k;              /* [rows]; 0 is all */
  const double *uniforms;            /* [rows] in [0, 1) */
  int32_t *tokens;                   /* [rows] out */
  float *logprobs;                   /* [rows] out: at the row's temperature (at 1 when greedy), before top-k and top-p */
  float *scratch;                    /* [threads][4 · vocabulary] */
} Draw;

typedef struct {
  float weight;
  int32_t token;
} Weighted;

static int likelier(const void *a, const void *b) {
  const Weighted *x = a, *y = b;
  if (x->weight != y->weight) return x->weight > y->weight ? -1 : 1;
  return x->token < y->token ? -1 : x->token > y->token;
}

/* The first of n weights at which their running sum passes `height`; the last one that is not 0 if none does. */
static int invert(const float *weights, size_t stride, int n, double height) {
  double sum = 0;
  int last = 0;
  for (int i = 0; i < n; i++) {
    float weight = weights[i * stride];
    if (weight <= 0) continue;
    sum += weight;
    last = i;
    if (sum > height) break;
  }
  return last;
}

/* Top-k, then top-p on what is left: the smallest set of the likeliest that reaches p. Buckets by log-probability tell
   how far down one must look; only what lies above is sorted. */
static int draw_filtered(const float *weights, const float *below, int n, float top_p, int top_k, double total, double u, Weighted *kept) {
  float mass[BUCKETS] = {0};
  int32_t count[BUCKETS] = {0};
  for (int i = 0; i < n; i++) {
    int b = (int)(below[i] * BUCKETS_A_NAT);
    if (b >= BUCKETS) b = BUCKETS - 1;
    mass[b] += weights[i];
    count[b]++;
  }
  int last = 0, enough = top_k > 0 ? top_k : n, found = 0;
  double reached = 0, wanted = top_p * total * 1.0001; /* the buckets' sums are rounded */
  for (int seen = 0; last < BUCKETS - 1; last++) {
    seen += count[last];
    reached += mass[last];
    if (top_k > 0 ? seen >= top_k : reached >= wanted) break;
  }
  for (int i = 0; i < n; i++) {
    int b = (int)(below[i] * BUCKETS_A_NAT);
    if ((b >= BUCKETS ? BUCKETS - 1 : b) <= last) kept[found++] = (Weighted){weights[i], i};
  }
  qsort(kept, found, sizeof *kept, likelier);
  if (found > enough) found = enough;
  double whole = 0, sum = 0;
  if (top_k > 0) {
    for (int i = 0; i < found; i++) whole += kept[i].weight;
  } else {
    whole = total;
  }
  int in = 0;
  while (in < found && (in == 0 || (kept[in].weight > 0 && (top_p >= 1 || sum < top_p * whole)))) sum += kept[in++].weight;
  return kept[invert(&kept->weight, sizeof *kept / sizeof(float), in, u * sum)].token;
}

static void draw_row(const Draw *d, int row, float *scratch) {
  int n = d->vocabulary, whole = n / LANES * LANES, best = 0;
  const float *logits = d->logits + (size_t)row * n;
  float temperature = d->temperatures[row] > 0 ? d->temperatures[row] : 1, top = -INFINITY;
  vec largest = all(-INFINITY);
  for (int i = 0; i < whole; i += LANES) largest = larger(load(logits + i), largest);
  top = max_of(largest);
  for (int i = whole; i < n; i++) top = logits[i] > top ? logits[i] : top;
  while (best < n - 1 && logits[best] < top) best++;

  double total = 0, sums[n / CHUNK + 1];
  for (int from = 0; from < n; from += CHUNK) {
    int to = from + CHUNK < n ? from + CHUNK : n, i = from;
    vec sum = all(0);
    for (; i + LANES <= to; i += LANES) {
      vec e = exponential((load(logits + i) - all(top)) / all(temperature));
      sum += e;
      store(scratch + i, e);
    }
    double tail = 0;
    for (; i < to; i++) tail += scratch[i] = expf((logits[i] - top) / temperature);
    total += sums[from / CHUNK] = sum_of(sum) + tail;
  }
  d->tokens[row] = best;
  if (d->temperatures[row] > 0 && total == total) {
    int top_k = d->top_k[row] < n ? d->top_k[row] : 0;
    if (top_k > 0 || d->top_p[row] < 1) {
      float *below = scratch + n;
      for (int i = 0; i < n; i++) {
        float nats = (top - logits[i]) / temperature;
        below[i] = nats < 100.0f ? nats : 100.0f;
      }
      Weighted *kept = (Weighted *)(scratch + 2 * (size_t)n);
      d->tokens[row] = draw_filtered(scratch, below, n, d->top_p[row], top_k, total, d->uniforms[row], kept);
    } else {
      double height = d->uniforms[row] * total;
      int chunk = 0, chunks = (n + CHUNK - 1) / CHUNK;
      while (chunk < chunks - 1 && height >= sums[chunk]) height -= sums[chunk++];
      while (chunk > 0 && sums[chunk] == 0) chunk--; /* rounding has led past the last one */
      int from = chunk * CHUNK, to = from + CHUNK < n ? from + CHUNK : n;
      d->tokens[row] = from + invert(scratch + from, 1, to - from, height);
    }
  }
  d->logprobs[row] = (logits[d->tokens[row]] - top) / temperature - (float)log(total);
}

typedef struct {
  const Draw *draw;
  atomic_int next;
} Drawing;

static void draw_rows(void *given, int thread) {
  Drawing *drawing = given;
  const Draw *d = drawing->draw;
  for (int row; (row = atomic_fetch_add(&drawing->next, 1)) < d->rows;)
    draw_row(d, row, d->scratch + (size_t)thread * 4 * d->vocabulary);
}

void hustings_draw(Team *team, const Draw *d) {
  Drawing drawing = {.draw = d};
  team_run(team, draw_rows, &drawing);
}
