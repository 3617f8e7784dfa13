/* One step of a Llama model for many rows at once, on the vector units of an x86-64 CPU.

       h = x + O·attend(rope(Q·n1(x)), rope(K·n1(x)), V·n1(x))        y = h + D·(silu(G·n2(h)) * U·n2(h))

   A row is one token of one sequence, at its own position, under its own version's LoRA. Every number of a row is
   computed in the same order whatever other rows there are: an answer does not depend on its batch, bit for bit.

   Weights stay in the narrowest form that gives each of them back exactly (see narrow.py). Integer weights
   are multiplied with activations rounded to 16 bits, a scale for each 32 of them; sums of 32 products are exact.

   Keys and values are half floats in blocks of 32 tokens that any sequence may share:

       block: [layers][kv_heads] { keys [head_dim][32], values [32][head_dim to 32] }, then floats: states [32][dim to 32]

   States are the residual stream where the trunk ends, below the lowest layer that any version changes. With them and the
   trunk's keys and values, which are the same for all versions, another version computes only its upper layers.
*/
#include <stddef.h>
#include <string.h>

#include "team.h"
#include "vector.h"

enum { PANEL = 16, GROUP = 32, BLOCK = 32 };
enum { SIDES = PANEL / LANES, TILE = LANES / 2 };   /* vectors of a panel; rows multiplied at once */
enum { TOGETHER = 4 };                            /* rows of one sequence that attend at once */
enum { INT4, INT8, BF16, FLOAT32 };
enum { QKV, OUT, GATE_UP, DOWN, LINEARS };

typedef uint16_t half;

/* Weights (panels · 16, groups · 32): panel by panel of 16 outputs, group by group of 32 inputs. */
typedef struct {
  const uint8_t *data;
  int32_t kind, panels, groups;
} Matrix;

/* One version's LoRA at one linear: A as a FLOAT32 matrix of parts · rank outputs, B [panels][rank][16]. */
typedef struct {
  Matrix a; /* data is NULL where the version has none */
  const float *b;
  int32_t rank;
} Lora;

typedef struct {
  const float *attention_norm, *mlp_norm;
  Matrix linear[LINEARS];
  const Lora *lora[LINEARS]; /* [places], or NULL while no version touches this linear */
} Layer;

typedef struct {
  int32_t layers, dim, heads, kv_heads, head_dim, vocabulary, context, max_rank;
  float norm_eps;
  const Layer *layer;
  const float *norm;
  const float *angles; /* [context][2][head_dim / 2], cosines and sines */
  Matrix embedding, head;
} Model;

typedef struct {
  int32_t rows, outputs; /* the first `outputs` rows want logits */
  int32_t first, trunk;  /* begin at this layer: 0, or `trunk` from the states there; `trunk` layers are below the states */
  int32_t width;                  /* blocks in a sequence's table */
  const int32_t *tokens, *positions, *sequences, *places; /* [rows] */
  half *const *blocks;                                    /* [sequences][width] */
  float *logits;                                          /* [outputs][vocabulary] */
  float *scratch;
} Step;

/* ── activations ─────────────────────────────────────────────────────────────────────────────────────────────────── */

/* Rows [rows][groups · 32] as they are and in 16 bits: x ≈ scale · q; sum = scale · Σ q of the group. */
typedef struct {
  int32_t groups;
  float *x, *scale, *sum;
  int16_t *q;
} Rows;

static void round_group(const Rows *rows, int row, int group) {
  enum { VECTORS = GROUP / LANES };
  size_t at = (size_t)row * rows->groups + group;
  const float *x = rows->x + at * GROUP;
  vec v[VECTORS], largest = all(0), total = all(0), sum = all(0);
  for (int i = 0; i < VECTORS; i++) {
    v[i] = load(x + LANES * i);
    largest = larger(largest, absolute(v[i]));
    total += v[i];
  }
  float scale = max_of(largest) / 32767.0f;
  vec inverse = all(scale > 0 ? 1.0f / scale : 0.0f);
  for (int i = 0; i < VECTORS; i++) {
    vec q = nearest(v[i] * inverse);
    sum += q; /* exact: 32 whole numbers of 15 bits */
    store_shorts(rows->q + at * GROUP + LANES * i, q);
  }
  rows->scale[at] = scale + 0.0f * sum_of(total); /* a NaN or an infinity must not vanish */
  rows->sum[at] = scale * sum_of(sum);
}

static void round_row(const Rows *rows, int row) {
  for (int g = 0; g < rows->groups; g++) round_group(rows, row, g);
}

static void normalise(const Rows *out, int row, const float *x, const float *weight, int dim, float eps) {
  float *y = out->x + (size_t)row * out->groups * GROUP;
  vec squares = all(0);
  int i = 0;
  for (; i + LANES <= dim; i += LANES) squares += load(x + i) * load(x + i);
  float sum = sum_of(squares);
  for (int j = i; j < dim; j++) sum += x[j] * x[j];
  float factor = 1.0f / sqrtf(sum / (float)dim + eps);
  for (i = 0; i < dim; i++) y[i] = x[i] * factor * weight[i];
  for (; i < out->groups * GROUP; i++) y[i] = 0;
  round_row(out, row);
}

/* ── linears ─────────────────────────────────────────────────────────────────────────────────────────────────────── */

/* Of a group of a panel: its codes or numbers, and after integer codes a step, for INT4 also an offset, for each output. */
static inline size_t code_bytes(int kind) {
  static const size_t bytes[] = {PANEL * GROUP / 2, PANEL * GROUP, 2 * PANEL * GROUP, 4 * PANEL * GROUP};
  return bytes[kind];
}

static inline size_t group_bytes(int kind) {
  return code_bytes(kind) + (kind == INT4 ? 4 * PANEL : kind == INT8 ? 2 * PANEL : 0);
}

static inline const uint8_t *panel_data(const Matrix *m, int panel) {
  return m->data + (size_t)panel * m->groups * group_bytes(m->kind);
}

/* LANES weights as pairs of 16-bit integers, inputs 2·pair and 2·pair + 1 of each output. `pair` is known when compiled. */
ALWAYS ints int_weights(int kind, const uint8_t *data, int pair, int side) {
  if (kind == INT8) return load_bytes(data + pair * GROUP + side * 2 * LANES);
  ints four = load_ints(data + (pair / 4) * 2 * GROUP + side * 4 * LANES);
  switch (pair % 4) {
    case 0: return low_four_bits(four);
    case 1: return low_four_bits(shifted(four, 4));
    case 2: return low_four_bits(shifted(four, 8));
    default: return shifted(four, 12);
  }
}

ALWAYS void int_tile(int kind, int tile, const uint8_t *data, const Rows *rows, int row, float (*out)[PANEL]) {
  const int16_t *q[TILE];
  vec total[TILE][SIDES];
  for (int r = 0; r < tile; r++) {
    q[r] = rows->q + (size_t)(row + r) * rows->groups * GROUP;
    for (int side = 0; side < SIDES; side++) total[r][side] = all(0);
  }
  for (int g = 0; g < rows->groups; g++, data += group_bytes(kind)) {
    ints sum[TILE][SIDES];
    for (int r = 0; r < tile; r++)
      for (int side = 0; side < SIDES; side++) sum[r][side] = no_ints();
#pragma GCC unroll 16
    for (int pair = 0; pair < GROUP / 2; pair++) {
      ints weights[SIDES];
      for (int side = 0; side < SIDES; side++) weights[side] = int_weights(kind, data, pair, side);
#pragma GCC unroll 8
      for (int r = 0; r < tile; r++) {
        int32_t two;
        memcpy(&two, q[r] + g * GROUP + 2 * pair, 4);
        ints x = all_ints(two);
        for (int side = 0; side < SIDES; side++) sum[r][side] = add_products(sum[r][side], weights[side], x);
      }
    }
    const uint8_t *steps = data + code_bytes(kind);
#pragma GCC unroll 8
    for (int r = 0; r < tile; r++) {
      size_t at = (size_t)(row + r) * rows->groups + g;
      for (int side = 0; side < SIDES; side++) {
        vec scale = from_halves(steps + 2 * LANES * side) * all(rows->scale[at]);
        total[r][side] += to_floats(sum[r][side]) * scale;
        if (kind == INT4) total[r][side] += from_halves(steps + 2 * (PANEL + LANES * side)) * all(rows->sum[at]);
      }
    }
  }
  for (int r = 0; r < tile; r++)
    for (int side = 0; side < SIDES; side++) store(out[row + r] + LANES * side, total[r][side]);
}

ALWAYS void float_tile(int kind, int tile, const uint8_t *data, const Rows *rows, int row, float (*out)[PANEL]) {
  const float *x[TILE];
  vec total[TILE][SIDES];
  for (int r = 0; r < tile; r++) {
    x[r] = rows->x + (size_t)(row + r) * rows->groups * GROUP;
    for (int side = 0; side < SIDES; side++) total[r][side] = all(0);
  }
  for (int k = 0; k < rows->groups * GROUP; k++)
    for (int side = 0; side < SIDES; side++) {
      int at = k * PANEL + LANES * side;
      vec w = kind == FLOAT32 ? load((const float *)data + at) : from_bfloats(data + 2 * at);
#pragma GCC unroll 8
      for (int r = 0; r < tile; r++) total[r][side] += w * all(x[r][k]);
    }
  for (int r = 0; r < tile; r++)
    for (int side = 0; side < SIDES; side++) store(out[row + r] + LANES * side, total[r][side]);
}

/* The loop over rows, compiled for each kind and some sizes of a tile. */
#define TILES(name, tile, kind)                                                                    \
  static void name(const uint8_t *data, const Rows *rows, int from, int to, float (*out)[PANEL]) { \
    for (; from + TILE <= to; from += TILE) tile(kind, TILE, data, rows, from, out);               \
    for (; TILE > 4 && from + 4 <= to; from += 4) tile(kind, 4, data, rows, from, out);            \
    switch (to - from) {                                                                           \
      case 3: tile(kind, 3, data, rows, from, out); break;                                         \
      case 2: tile(kind, 2, data, rows, from, out); break;                                         \
      case 1: tile(kind, 1, data, rows, from, out);                                                \
    }                                                                                              \
  }
TILES(int4_rows, int_tile, INT4)
TILES(int8_rows, int_tile, INT8)
TILES(bf16_rows, float_tile, BF16)
TILES(float_rows, float_tile, FLOAT32)

/* 16 outputs of rows [from, to) → out[row]. */
static void multiply(const Matrix *m, int panel, const Rows *rows, int from, int to, float (*out)[PANEL]) {
  const uint8_t *data = panel_data(m, panel);
  switch (m->kind) {
    case INT4: return int4_rows(data, rows, from, to, out);
    case INT8: return int8_rows(data, rows, from, to, out);
    case BF16: return bf16_rows(data, rows, from, to, out);
    default: return float_rows(data, rows, from, to, out);
  }
}

/* One row of a matrix as it was before packing. */
static void unpack(const Matrix *m, int output, float *out, int n) {
  int lane = output % PANEL;
  const uint8_t *data = panel_data(m, output / PANEL);
  for (int k = 0; k < n; k++) {
    int in = k % GROUP, pair = in / 2;
    const uint8_t *group = data + (size_t)(k / GROUP) * group_bytes(m->kind);
    /* a 16-bit lane of the group's vectors: 8 outputs a side, the two inputs of a pair beside each other */
    int spot = (lane % 8) * 2 + in % 2, side = lane / 8;
    const half *steps = (const half *)(group + code_bytes(m->kind));
    if (m->kind == INT4) {
      uint16_t four = ((const uint16_t *)group)[((pair / 4) * 2 + side) * 16 + spot];
      out[k] = _cvtsh_ss(steps[lane]) * (float)((four >> (4 * (pair % 4))) & 15) + _cvtsh_ss(steps[PANEL + lane]);
    } else if (m->kind == INT8) {
      out[k] = _cvtsh_ss(steps[lane]) * (float)((const int8_t *)group)[(2 * pair + side) * 16 + spot];
    } else if (m->kind == BF16) {
      uint32_t bits = (uint32_t)((const uint16_t *)group)[in * PANEL + lane] << 16;
      memcpy(out + k, &bits, 4);
    } else {
      out[k] = ((const float *)group)[in * PANEL + lane];
    }
  }
}

/* ── one step ────────────────────────────────────────────────────────────────────────────────────────────────────── */

static int padded(int n, int to) { return (n + to - 1) / to * to; }

/* Sizes that follow from the model, and the scratch memory of a step. */
typedef struct {
  int dim, query, kv, qkv, rank, value_width, span;
  size_t head_halves; /* of a block, one head of one layer */
  int tiles_count, *tile_start; /* runs of up to TOGETHER rows of one sequence; the end of the last one follows */
  float *x;           /* [rows][dim] the residual stream */
  float *qkv_out;     /* [rows][qkv] */
  float *lora;        /* [rows][rank] A·x */
  Rows normed, seen, gated;
  float (*tiles)[PANEL]; /* [threads][2][rows] */
  float *attention;      /* [threads] queries, what they see and scores of TOGETHER rows */
  float *end;
} Work;

static float *take(float **scratch, size_t floats) {
  float *taken = *scratch;
  *scratch += (floats + 15) / 16 * 16;
  return taken;
}

static Rows take_rows(float **scratch, int rows, int width) {
  Rows r = {.groups = width / GROUP};
  r.x = take(scratch, (size_t)rows * width);
  r.q = (int16_t *)take(scratch, (size_t)rows * width / 2);
  r.scale = take(scratch, (size_t)rows * r.groups);
  r.sum = take(scratch, (size_t)rows * r.groups);
  return r;
}

/* Floats that TOGETHER rows need to attend with the query heads of one key head. */
static size_t attention_floats(const Model *m, const Work *w) {
  size_t queries = (size_t)TOGETHER * (m->heads / m->kv_heads);
  return (queries * (m->head_dim + w->value_width + w->span) + 15) / 16 * 16;
}

static Work plan(const Model *m, int rows, int threads, float *scratch) {
  Work w = {.dim = padded(m->dim, GROUP), .query = padded(m->heads * m->head_dim, PANEL)};
  w.kv = padded(m->kv_heads * m->head_dim, PANEL);
  w.qkv = w.query + 2 * w.kv;
  w.value_width = padded(m->head_dim, GROUP);
  w.head_halves = (size_t)BLOCK * (m->head_dim + w.value_width);
  w.span = padded(m->context, BLOCK);
  w.rank = padded(3 * m->max_rank, PANEL);
  w.x = take(&scratch, (size_t)rows * w.dim);
  w.qkv_out = take(&scratch, (size_t)rows * w.qkv);
  w.lora = take(&scratch, (size_t)rows * w.rank);
  w.normed = take_rows(&scratch, rows, w.dim);
  w.seen = take_rows(&scratch, rows, padded(m->heads * m->head_dim, GROUP));
  w.gated = take_rows(&scratch, rows, m->layer->linear[DOWN].groups * GROUP);
  w.tiles = (float(*)[PANEL])take(&scratch, (size_t)threads * 2 * rows * PANEL);
  w.attention = take(&scratch, (size_t)threads * attention_floats(m, &w));
  w.tile_start = (int *)take(&scratch, rows + 1);
  w.end = scratch;
  return w;
}

static void group_rows(const Step *s, Work *w) {
  int count = 0;
  for (int row = 0; row < s->rows; row++) {
    int start = count > 0 ? w->tile_start[count - 1] : 0;
    if (count == 0 || s->sequences[row] != s->sequences[start] || row - start == TOGETHER) w->tile_start[count++] = row;
  }
  w->tile_start[count] = s->rows;
  w->tiles_count = count;
}

/* This thread's share of n pieces. */
#define SHARE(i, n) \
  for (int i = (int)((int64_t)(n) * thread / threads), i##_end = (int)((int64_t)(n) * (thread + 1) / threads); i < i##_end; i++)
#define BARRIER team_wait(team)

/* A·x of every row whose version has a LoRA here. A piece is one panel of one run of rows of the same version. */
static void lora_down(const Lora *lora, const int32_t *places, int rows, const Rows *x, const Work *w, Team *team, int thread) {
  if (lora == NULL) return;
  int threads = team->threads;
  for (int from = 0, to; from < rows; from = to) {
    for (to = from + 1; to < rows && places[to] == places[from];) to++;
    const Matrix *a = &lora[places[from]].a;
    if (a->data == NULL) continue;
    SHARE(p, a->panels) {
      float(*tile)[PANEL] = w->tiles + (size_t)thread * 2 * rows;
      multiply(a, p, x, from, to, tile);
      for (int r = from; r < to; r++) memcpy(w->lora + (size_t)r * w->rank + p * PANEL, tile[r], sizeof *tile);
    }
  }
  BARRIER;
}

/* out[row] += B·(A·x) for 16 outputs of one part of a linear. */
static void lora_up(const Lora *lora, const int32_t *places, int rows, int part, int panel, const Work *w, float (*out)[PANEL]) {
  if (lora == NULL) return;
  for (int r = 0; r < rows; r++) {
    const Lora *l = lora + places[r];
    if (l->a.data == NULL) continue;
    const float *h = w->lora + (size_t)r * w->rank + part * l->rank, *b = l->b + (size_t)panel * l->rank * PANEL;
    for (int side = 0; side < PANEL; side += LANES) {
      vec total = load(out[r] + side);
      for (int k = 0; k < l->rank; k++) total += load(b + k * PANEL + side) * all(h[k]);
      store(out[r] + side, total);
    }
  }
}

/* The residual stream += a linear of `in`, each row with its LoRA. */
static void add_linear(const Layer *l, int linear, const Step *s, int rows, const Rows *in, const Work *w, Team *team, int thread) {
  int threads = team->threads;
  float(*tile)[PANEL] = w->tiles + (size_t)thread * 2 * s->rows;
  lora_down(l->lora[linear], s->places, rows, in, w, team, thread);
  SHARE(p, l->linear[linear].panels) {
    multiply(&l->linear[linear], p, in, 0, rows, tile);
    lora_up(l->lora[linear], s->places, rows, 0, p, w, tile);
    for (int r = 0; r < rows; r++)
      for (int i = 0; i < PANEL; i++) w->x[(size_t)r * w->dim + p * PANEL + i] += tile[r][i];
  }
  BARRIER;
}

/* Rotary positions, in place: the halves of each head turned by the position's angles. */
static void rotate(float *x, const float *angles, int head_dim) {
  int n = head_dim / 2;
  for (int i = 0; i < n; i++) {
    float a = x[i], b = x[i + n];
    x[i] = a * angles[i] - b * angles[n + i];
    x[i + n] = b * angles[i] + a * angles[n + i];
  }
}

/* out[head][0..31] += Σ_i weight[head][i] · rows[i][0..31], for a few heads at once. */
ALWAYS void mix_heads(int heads, int n, const float *weight, int weight_stride, const half *rows, int stride, float *out, int out_stride) {
  enum { VECTORS = GROUP / LANES };
  vec total[12][VECTORS];
  for (int h = 0; h < heads; h++)
    for (int v = 0; v < VECTORS; v++) total[h][v] = load(out + h * out_stride + LANES * v);
  for (int i = 0; i < n; i++) {
    vec row[VECTORS];
    for (int v = 0; v < VECTORS; v++) row[v] = from_halves(rows + (size_t)i * stride + LANES * v);
#pragma GCC unroll 12
    for (int h = 0; h < heads; h++)
      for (int v = 0; v < VECTORS; v++) total[h][v] += row[v] * all(weight[h * weight_stride + i]);
  }
  for (int h = 0; h < heads; h++)
    for (int v = 0; v < VECTORS; v++) store(out + h * out_stride + LANES * v, total[h][v]);
}

static void mix(int heads, int n, const float *weight, int weight_stride, const half *rows, int stride, float *out, int out_stride) {
#define SOME(count) \
  for (; heads >= count; heads -= count, weight += count * weight_stride, out += count * out_stride) \
    mix_heads(count, n, weight, weight_stride, rows, stride, out, out_stride);
  if (LANES == 16) {
    SOME(12)
    SOME(6)
  }
  SOME(3)
  SOME(2)
  SOME(1)
#undef SOME
}

typedef struct {
  half *const *table; /* of the row's sequence */
  size_t at;          /* of this layer and head in a block */
} Cache;

static Cache cache_of(const Model *m, const Step *s, const Work *w, int layer, int row, int head) {
  return (Cache){s->blocks + (size_t)s->sequences[row] * s->width, ((size_t)layer * m->kv_heads + head) * w->head_halves};
}

/* A row's place among the states. */
static float *state_of(const Model *m, const Step *s, const Work *w, int row) {
  half *block = s->blocks[(size_t)s->sequences[row] * s->width + s->positions[row] / BLOCK];
  return (float *)(block + (size_t)m->layers * m->kv_heads * w->head_halves) + (size_t)(s->positions[row] % BLOCK) * w->dim;
}

/* Turn a row's queries and one key, and keep key and value. */
static void remember(const Model *m, const Work *w, Cache cache, float *qkv, int head, int position) {
  int n = m->head_dim, group = m->heads / m->kv_heads, spot = position % BLOCK;
  const float *angles = m->angles + (size_t)position * n;
  float *key = qkv + w->query + head * n, *value = qkv + w->query + w->kv + head * n;
  for (int h = 0; h < group; h++) rotate(qkv + (head * group + h) * n, angles, n);
  rotate(key, angles, n);
  half *keys = cache.table[position / BLOCK] + cache.at, *values = keys + (size_t)n * BLOCK + (size_t)spot * w->value_width;
  for (int i = 0; i < n; i++) keys[i * BLOCK + spot] = _cvtss_sh(key[i], 0);
  for (int i = 0; i < n; i++) values[i] = _cvtss_sh(value[i], 0);
}

/* What some rows of a sequence see with the query heads that share one key head: softmax(q·K / √d)·V over all positions
   up to the row's own. Positions that only another of the rows may see weigh exactly 0. */
static void attend(const Model *m, const Step *s, const Work *w, int layer, int head, int from, int to, float *scratch) {
  int n = m->head_dim, group = m->heads / m->kv_heads, first = head * group * n, count = (to - from) * group, blocks = 0;
  Cache cache = cache_of(m, s, w, layer, from, head);
  float *queries = scratch, *mixed = queries + count * n, *scores = mixed + (size_t)count * w->value_width;
  for (int r = from; r < to; r++) {
    memcpy(queries + (r - from) * group * n, w->qkv_out + (size_t)r * w->qkv + first, group * n * sizeof(float));
    if (s->positions[r] / BLOCK >= blocks) blocks = s->positions[r] / BLOCK + 1;
  }
  memset(mixed, 0, (size_t)count * w->value_width * sizeof(float));
  for (int b = 0; b < blocks; b++) {
    for (int h = 0; h < count; h++) memset(scores + (size_t)h * w->span + b * BLOCK, 0, BLOCK * sizeof(float));
    mix(count, n, queries, n, cache.table[b] + cache.at, BLOCK, scores + b * BLOCK, w->span);
  }
  int last = 0;
  for (int h = 0; h < count; h++) {
    float *score = scores + (size_t)h * w->span, scale = 1.0f / sqrtf((float)n);
    int seen = s->positions[from + h / group] + 1;
    if (seen > last) last = seen;
    vec largest = all(-INFINITY), total = all(0);
    for (int i = seen; i < blocks * BLOCK; i++) score[i] = -INFINITY;
    for (int i = 0; i < blocks * BLOCK; i += LANES) largest = larger(largest, load(score + i));
    vec top = all(max_of(largest));
    for (int i = 0; i < blocks * BLOCK; i += LANES) {
      vec e = exponential((load(score + i) - top) * all(scale));
      total += e;
      store(score + i, e);
    }
    vec inverse = all(1.0f / sum_of(total));
    for (int i = 0; i < blocks * BLOCK; i += LANES) store(score + i, load(score + i) * inverse);
  }
  for (int b = 0; b < blocks; b++) {
    int tokens = last - b * BLOCK < BLOCK ? last - b * BLOCK : BLOCK;
    const half *values = cache.table[b] + cache.at + (size_t)n * BLOCK;
    for (int v = 0; v < w->value_width; v += GROUP)
      mix(count, tokens, scores + b * BLOCK, w->span, values + v, w->value_width, mixed + v, w->value_width);
  }
  for (int h = 0; h < count; h++) {
    float *out = w->seen.x + (size_t)(from + h / group) * w->seen.groups * GROUP + first + h % group * n;
    memcpy(out, mixed + (size_t)h * w->value_width, n * sizeof(float));
  }
}

static void run_layer(const Model *m, const Step *s, const Work *w, int index, Team *team, int thread) {
  const Layer *l = m->layer + index;
  int rows = s->rows, threads = team->threads;
  float(*tile)[PANEL] = w->tiles + (size_t)thread * 2 * rows, (*second)[PANEL] = tile + rows;
  float *attention = w->attention + (size_t)thread * attention_floats(m, w);

  SHARE(r, rows) normalise(&w->normed, r, w->x + (size_t)r * w->dim, l->attention_norm, m->dim, m->norm_eps);
  BARRIER;
  lora_down(l->lora[QKV], s->places, rows, &w->normed, w, team, thread);
  SHARE(p, l->linear[QKV].panels) {
    multiply(&l->linear[QKV], p, &w->normed, 0, rows, tile);
    int part = p * PANEL < w->query ? 0 : p * PANEL < w->query + w->kv ? 1 : 2;
    lora_up(l->lora[QKV], s->places, rows, part, p, w, tile);
    for (int r = 0; r < rows; r++) memcpy(w->qkv_out + (size_t)r * w->qkv + p * PANEL, tile[r], sizeof *tile);
  }
  BARRIER;
  SHARE(i, rows * m->kv_heads) {
    int r = i / m->kv_heads, head = i % m->kv_heads;
    remember(m, w, cache_of(m, s, w, index, r, head), w->qkv_out + (size_t)r * w->qkv, head, s->positions[r]);
  }
  BARRIER;
  if (index == m->layers - 1) rows = s->outputs; /* of the others only keys and values were wanted */
  SHARE(i, w->tiles_count * m->kv_heads) {
    int from = w->tile_start[i / m->kv_heads], to = w->tile_start[i / m->kv_heads + 1];
    if (from < rows) attend(m, s, w, index, i % m->kv_heads, from, to < rows ? to : rows, attention);
  }
  BARRIER;
  SHARE(r, rows) {
    float *out = w->seen.x + (size_t)r * w->seen.groups * GROUP;
    for (int k = m->heads * m->head_dim; k < w->seen.groups * GROUP; k++) out[k] = 0;
    round_row(&w->seen, r);
  }
  BARRIER;
  add_linear(l, OUT, s, rows, &w->seen, w, team, thread);
  SHARE(r, rows) normalise(&w->normed, r, w->x + (size_t)r * w->dim, l->mlp_norm, m->dim, m->norm_eps);
  BARRIER;
  lora_down(l->lora[GATE_UP], s->places, rows, &w->normed, w, team, thread);
  SHARE(g, w->gated.groups) {
    for (int p = 2 * g; p < 2 * g + 2; p++) { /* panels of gate and up alternate */
      multiply(&l->linear[GATE_UP], 2 * p, &w->normed, 0, rows, tile);
      multiply(&l->linear[GATE_UP], 2 * p + 1, &w->normed, 0, rows, second);
      lora_up(l->lora[GATE_UP], s->places, rows, 0, 2 * p, w, tile);
      lora_up(l->lora[GATE_UP], s->places, rows, 1, 2 * p + 1, w, second);
      for (int r = 0; r < rows; r++)
        for (int v = 0; v < PANEL; v += LANES) {
          vec gate = load(tile[r] + v), one = all(1);
          vec silu = gate / (one + exponential(-gate));
          store(w->gated.x + ((size_t)r * w->gated.groups * GROUP + p * PANEL + v), silu * load(second[r] + v));
        }
    }
    for (int r = 0; r < rows; r++) round_group(&w->gated, r, g);
  }
  BARRIER;
  add_linear(l, DOWN, s, rows, &w->gated, w, team, thread);
}

/* Floats of scratch memory that a step of so many rows needs. */
int64_t hustings_scratch(const Team *team, const Model *m, int32_t rows) {
  float *none = (float *)(uintptr_t)64;
  return plan(m, rows, team->threads, none).end - none;
}

/* Half floats of a block. */
int64_t hustings_block(const Model *m) {
  Work w = plan(m, 0, 0, NULL);
  return (int64_t)m->layers * m->kv_heads * (int64_t)w.head_halves + 2 * BLOCK * w.dim;
}

typedef struct {
  const Model *model;
  const Step *step;
  Team *team;
  Work work;
} Task;

static void run_step(void *given, int thread) {
  const Task *task = given;
  const Model *m = task->model;
  const Step *s = task->step;
  const Work *w = &task->work;
  Team *team = task->team;
  int threads = team->threads;
  SHARE(r, s->rows) {
    float *x = w->x + (size_t)r * w->dim;
    if (s->first > 0) {
      memcpy(x, state_of(m, s, w, r), w->dim * sizeof(float));
      continue;
    }
    unpack(&m->embedding, s->tokens[r], x, m->dim);
    for (int k = m->dim; k < w->dim; k++) x[k] = 0;
  }
  BARRIER;
  for (int index = s->first; index < m->layers; index++) {
    if (index == s->trunk && s->first == 0)
      SHARE(r, s->rows) memcpy(state_of(m, s, w, r), w->x + (size_t)r * w->dim, w->dim * sizeof(float));
    run_layer(m, s, w, index, team, thread);
  }
  SHARE(r, s->outputs) normalise(&w->normed, r, w->x + (size_t)r * w->dim, m->norm, m->dim, m->norm_eps);
  BARRIER;
  float(*tile)[PANEL] = w->tiles + (size_t)thread * 2 * s->rows;
  SHARE(p, m->head.panels) {
    multiply(&m->head, p, &w->normed, 0, s->outputs, tile);
    int width = m->vocabulary - p * PANEL < PANEL ? m->vocabulary - p * PANEL : PANEL;
    for (int r = 0; r < s->outputs; r++)
      memcpy(s->logits + (size_t)r * m->vocabulary + p * PANEL, tile[r], width * sizeof(float));
  }
}

void hustings_step(Team *team, const Model *m, const Step *s) {
  Task task = {m, s, team, plan(m, s->rows, team->threads, s->scratch)};
  group_rows(s, &task.work);
  team_run(team, run_step, &task);
}
