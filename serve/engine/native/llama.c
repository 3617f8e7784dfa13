/* One step of a Llama model for many rows at once, on the vector units of an x86-64 CPU.

       h = x + O·attend(rope(Q·n1(x)), rope(K·n1(x)), V·n1(x))        y = h + D·(silu(G·n2(h)) * U·n2(h))

   A row is one token of one sequence, at its own position, under its own version's LoRA. Every number of a row is
   computed in the same order whatever other rows there are: an answer does not depend on its batch, bit for bit.

   Weights stay in the narrowest form that gives each of them back exactly (see narrow.py). Integer weights
   are multiplied with activations rounded to 16 bits, a scale for each 32 of them; sums of 32 products are exact.

   Keys and values are half floats in blocks of 32 tokens that any sequence may share:

       block: [layers][kv_heads] { keys [head_dim][32], values [32][head_dim to 32] }
*/
#include <immintrin.h>
#include <math.h>
#include <omp.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { PANEL = 16, GROUP = 32, BLOCK = 32, TILE = 4 };
enum { INT4, INT8, BF16, FLOAT32 };
enum { QKV, OUT, GATE_UP, DOWN, LINEARS };

typedef float f8 __attribute__((vector_size(32)));
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
  int32_t threads, rows, outputs; /* the first `outputs` rows want logits */
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

static inline f8 load(const float *at) { return _mm256_loadu_ps(at); }
static inline void store(float *at, f8 v) { _mm256_storeu_ps(at, v); }
static inline f8 all(float v) { return _mm256_set1_ps(v); }

static inline float sum_of(f8 v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}

static inline float max_of(f8 v) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_shuffle_ps(s, s, 1)));
}

static void round_group(const Rows *rows, int row, int group) {
  size_t at = (size_t)row * rows->groups + group;
  const float *x = rows->x + at * GROUP;
  f8 sign = all(-0.0f), v[4], largest = all(0), total = all(0);
  for (int i = 0; i < 4; i++) {
    v[i] = load(x + 8 * i);
    largest = _mm256_max_ps(largest, _mm256_andnot_ps(sign, v[i]));
    total += v[i];
  }
  float scale = max_of(largest) / 32767.0f;
  f8 inverse = all(scale > 0 ? 1.0f / scale : 0.0f);
  __m256i q[4];
  for (int i = 0; i < 4; i++) q[i] = _mm256_cvtps_epi32(v[i] * inverse);
  __m256i sums = _mm256_add_epi32(_mm256_add_epi32(q[0], q[1]), _mm256_add_epi32(q[2], q[3]));
  int32_t s[8], sum = 0;
  _mm256_storeu_si256((__m256i *)s, sums);
  for (int i = 0; i < 8; i++) sum += s[i];
  for (int i = 0; i < 2; i++) {
    __m256i narrow = _mm256_permute4x64_epi64(_mm256_packs_epi32(q[2 * i], q[2 * i + 1]), 0xD8);
    _mm256_storeu_si256((__m256i *)(rows->q + at * GROUP + 16 * i), narrow);
  }
  rows->scale[at] = scale + 0.0f * sum_of(total); /* a NaN or an infinity must not vanish */
  rows->sum[at] = scale * (float)sum;
}

static void round_row(const Rows *rows, int row) {
  for (int g = 0; g < rows->groups; g++) round_group(rows, row, g);
}

static void normalise(const Rows *out, int row, const float *x, const float *weight, int dim, float eps) {
  float *y = out->x + (size_t)row * out->groups * GROUP;
  f8 squares = all(0);
  int i = 0;
  for (; i + 8 <= dim; i += 8) squares += load(x + i) * load(x + i);
  float sum = sum_of(squares);
  for (int j = i; j < dim; j++) sum += x[j] * x[j];
  float factor = 1.0f / sqrtf(sum / (float)dim + eps);
  for (i = 0; i < dim; i++) y[i] = x[i] * factor * weight[i];
  for (; i < out->groups * GROUP; i++) y[i] = 0;
  round_row(out, row);
}

/* exp to about 1e-7 relative; below -87 it is 0. */
static inline f8 exponential(f8 x) {
  f8 kept = _mm256_cmp_ps(x, all(-87.0f), _CMP_NLT_UQ); /* NaN stays NaN */
  x = _mm256_min_ps(all(88.0f), x);                       /* (min gives its second operand for NaN) */
  f8 n = _mm256_round_ps(x * all(1.44269504f), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  f8 r = x - n * all(0.693359375f) - n * all(-2.12194440e-4f);
  f8 p = all(1.0f / 5040) * r + all(1.0f / 720);
  p = p * r + all(1.0f / 120);
  p = p * r + all(1.0f / 24);
  p = p * r + all(1.0f / 6);
  p = p * r + all(0.5f);
  p = p * r + all(1.0f);
  p = p * r + all(1.0f);
  __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_and_ps(p * _mm256_castsi256_ps(power), kept);
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

static inline f8 halves(const void *at) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)at)); }

/* Compilers turn a chain of integer sums into a tree, and then run out of registers. */
#define IN_ORDER(v) __asm__("" : "+x"(v))
#define ALWAYS static inline __attribute__((always_inline))

/* 16 weights as 16-bit integers: inputs 2·pair and 2·pair + 1 of 8 outputs, interleaved. `pair` is known when compiled. */
ALWAYS __m256i int_weights(int kind, const uint8_t *data, int pair, int side) {
  if (kind == INT8) return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(data + (2 * pair + side) * 16)));
  __m256i four = _mm256_loadu_si256((const __m256i *)(data + ((pair / 4) * 2 + side) * 32)), low = _mm256_set1_epi16(15);
  switch (pair % 4) {
    case 0: return _mm256_and_si256(four, low);
    case 1: return _mm256_and_si256(_mm256_srli_epi16(four, 4), low);
    case 2: return _mm256_and_si256(_mm256_srli_epi16(four, 8), low);
    default: return _mm256_srli_epi16(four, 12);
  }
}

ALWAYS void int_tile(int kind, int tile, const uint8_t *data, const Rows *rows, int row, float (*out)[PANEL]) {
  const int16_t *q[TILE];
  f8 total[TILE][2];
  for (int r = 0; r < tile; r++) {
    q[r] = rows->q + (size_t)(row + r) * rows->groups * GROUP;
    total[r][0] = total[r][1] = all(0);
  }
  for (int g = 0; g < rows->groups; g++, data += group_bytes(kind)) {
    __m256i sum[TILE][2];
    for (int r = 0; r < tile; r++) sum[r][0] = sum[r][1] = _mm256_setzero_si256();
#pragma GCC unroll 16
    for (int pair = 0; pair < GROUP / 2; pair++) {
      __m256i left = int_weights(kind, data, pair, 0), right = int_weights(kind, data, pair, 1);
#pragma GCC unroll 4
      for (int r = 0; r < tile; r++) {
        int32_t two;
        memcpy(&two, q[r] + g * GROUP + 2 * pair, 4);
        __m256i x = _mm256_set1_epi32(two);
        sum[r][0] = _mm256_add_epi32(sum[r][0], _mm256_madd_epi16(left, x));
        sum[r][1] = _mm256_add_epi32(sum[r][1], _mm256_madd_epi16(right, x));
        IN_ORDER(sum[r][0]);
        IN_ORDER(sum[r][1]);
      }
    }
    const uint8_t *steps = data + code_bytes(kind);
#pragma GCC unroll 4
    for (int r = 0; r < tile; r++) {
      size_t at = (size_t)(row + r) * rows->groups + g;
      for (int side = 0; side < 2; side++) {
        f8 scale = halves(steps + 16 * side) * all(rows->scale[at]);
        total[r][side] += _mm256_cvtepi32_ps(sum[r][side]) * scale;
        if (kind == INT4) total[r][side] += halves(steps + 32 + 16 * side) * all(rows->sum[at]);
      }
    }
  }
  for (int r = 0; r < tile; r++)
    for (int side = 0; side < 2; side++) store(out[row + r] + 8 * side, total[r][side]);
}

ALWAYS void float_tile(int kind, int tile, const uint8_t *data, const Rows *rows, int row, float (*out)[PANEL]) {
  const float *x[TILE];
  f8 total[TILE][2];
  for (int r = 0; r < tile; r++) {
    x[r] = rows->x + (size_t)(row + r) * rows->groups * GROUP;
    total[r][0] = total[r][1] = all(0);
  }
  for (int k = 0; k < rows->groups * GROUP; k++) {
    f8 w[2];
    for (int side = 0; side < 2; side++) {
      if (kind == FLOAT32) {
        w[side] = load((const float *)data + k * PANEL + 8 * side);
      } else {
        __m128i narrow = _mm_loadu_si128((const __m128i *)(data + (k * PANEL + 8 * side) * 2));
        w[side] = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(narrow), 16));
      }
    }
    for (int r = 0; r < tile; r++)
      for (int side = 0; side < 2; side++) total[r][side] += w[side] * all(x[r][k]);
  }
  for (int r = 0; r < tile; r++)
    for (int side = 0; side < 2; side++) store(out[row + r] + 8 * side, total[r][side]);
}

/* The loop over rows, compiled for each kind and each size of a tile. */
#define TILES(name, tile, kind)                                                                    \
  static void name(const uint8_t *data, const Rows *rows, int from, int to, float (*out)[PANEL]) { \
    for (; from + TILE <= to; from += TILE) tile(kind, TILE, data, rows, from, out);               \
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
  float *x;           /* [rows][dim] the residual stream */
  float *qkv_out;     /* [rows][qkv] */
  float *lora;        /* [rows][rank] A·x */
  Rows normed, seen, gated;
  float (*tiles)[PANEL]; /* [threads][2][rows] */
  float *scores;         /* [threads][heads of a group][span] */
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
  w.scores = take(&scratch, (size_t)threads * (m->heads / m->kv_heads) * w.span);
  w.end = scratch;
  return w;
}

/* This thread's share of n pieces. */
#define SHARE(i, n) \
  for (int i = (int)((int64_t)(n) * thread / threads), i##_end = (int)((int64_t)(n) * (thread + 1) / threads); i < i##_end; i++)
#define BARRIER _Pragma("omp barrier")

/* A·x of every row whose version has a LoRA here. A piece is one panel of one run of rows of the same version. */
static void lora_down(const Lora *lora, const int32_t *places, int rows, const Rows *x, const Work *w, int thread, int threads) {
  if (lora == NULL) return;
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
    f8 left = load(out[r]), right = load(out[r] + 8);
    for (int k = 0; k < l->rank; k++, b += PANEL) {
      left += load(b) * all(h[k]);
      right += load(b + 8) * all(h[k]);
    }
    store(out[r], left);
    store(out[r] + 8, right);
  }
}

/* The residual stream += a linear of `in`, each row with its LoRA. */
static void add_linear(const Layer *l, int linear, const Step *s, int rows, const Rows *in, const Work *w, int thread, int threads) {
  float(*tile)[PANEL] = w->tiles + (size_t)thread * 2 * s->rows;
  lora_down(l->lora[linear], s->places, rows, in, w, thread, threads);
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

/* out[head][0..31] += Σ_i weight[head][i] · rows[i][0..31], for up to three heads at once. */
ALWAYS void mix_heads(int heads, int n, const float *weight, int weight_stride, const half *rows, int stride, float *out, int out_stride) {
  f8 total[3][4];
  for (int h = 0; h < heads; h++)
    for (int v = 0; v < 4; v++) total[h][v] = load(out + h * out_stride + 8 * v);
  for (int i = 0; i < n; i++) {
    f8 row[4];
    for (int v = 0; v < 4; v++) row[v] = halves(rows + (size_t)i * stride + 8 * v);
    for (int h = 0; h < heads; h++)
      for (int v = 0; v < 4; v++) total[h][v] += row[v] * all(weight[h * weight_stride + i]);
  }
  for (int h = 0; h < heads; h++)
    for (int v = 0; v < 4; v++) store(out + h * out_stride + 8 * v, total[h][v]);
}

static void mix(int heads, int n, const float *weight, int weight_stride, const half *rows, int stride, float *out, int out_stride) {
  for (; heads >= 3; heads -= 3, weight += 3 * weight_stride, out += 3 * out_stride)
    mix_heads(3, n, weight, weight_stride, rows, stride, out, out_stride);
  if (heads == 2) mix_heads(2, n, weight, weight_stride, rows, stride, out, out_stride);
  if (heads == 1) mix_heads(1, n, weight, weight_stride, rows, stride, out, out_stride);
}

typedef struct {
  half *const *table; /* of the row's sequence */
  size_t at;          /* of this layer and head in a block */
} Cache;

static Cache cache_of(const Model *m, const Step *s, const Work *w, int layer, int row, int head) {
  return (Cache){s->blocks + (size_t)s->sequences[row] * s->width, ((size_t)layer * m->kv_heads + head) * w->head_halves};
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

/* What the query heads that share one key head see: softmax(q·K / √d)·V over all positions up to the row's own. */
static void attend(const Model *m, const Work *w, Cache cache, const float *queries, int position, float *scores, float *out) {
  int n = m->head_dim, group = m->heads / m->kv_heads, seen = position + 1, blocks = (seen + BLOCK - 1) / BLOCK;
  float mixed[group * w->value_width];
  memset(mixed, 0, sizeof mixed);
  for (int b = 0; b < blocks; b++) {
    for (int h = 0; h < group; h++) memset(scores + h * w->span + b * BLOCK, 0, BLOCK * sizeof(float));
    mix(group, n, queries, n, cache.table[b] + cache.at, BLOCK, scores + b * BLOCK, w->span);
  }
  for (int h = 0; h < group; h++) {
    float *score = scores + h * w->span, scale = 1.0f / sqrtf((float)n);
    f8 largest = all(-INFINITY), total = all(0);
    for (int i = seen; i < blocks * BLOCK; i++) score[i] = -INFINITY;
    for (int i = 0; i < blocks * BLOCK; i += 8) largest = _mm256_max_ps(largest, load(score + i));
    f8 top = all(max_of(largest));
    for (int i = 0; i < blocks * BLOCK; i += 8) {
      f8 e = exponential((load(score + i) - top) * all(scale));
      total += e;
      store(score + i, e);
    }
    f8 inverse = all(1.0f / sum_of(total));
    for (int i = 0; i < blocks * BLOCK; i += 8) store(score + i, load(score + i) * inverse);
  }
  for (int b = 0; b < blocks; b++) {
    int tokens = seen - b * BLOCK < BLOCK ? seen - b * BLOCK : BLOCK;
    const half *values = cache.table[b] + cache.at + (size_t)n * BLOCK;
    for (int v = 0; v < w->value_width; v += GROUP)
      mix(group, tokens, scores + b * BLOCK, w->span, values + v, w->value_width, mixed + v, w->value_width);
  }
  for (int h = 0; h < group; h++) memcpy(out + h * n, mixed + h * w->value_width, n * sizeof(float));
}

static void run_layer(const Model *m, const Step *s, const Work *w, int index, int thread, int threads) {
  const Layer *l = m->layer + index;
  int rows = s->rows, group = m->heads / m->kv_heads;
  float(*tile)[PANEL] = w->tiles + (size_t)thread * 2 * rows, (*second)[PANEL] = tile + rows;
  float *scores = w->scores + (size_t)thread * group * w->span;

  SHARE(r, rows) normalise(&w->normed, r, w->x + (size_t)r * w->dim, l->attention_norm, m->dim, m->norm_eps);
  BARRIER;
  lora_down(l->lora[QKV], s->places, rows, &w->normed, w, thread, threads);
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
  SHARE(i, rows * m->kv_heads) {
    int r = i / m->kv_heads, head = i % m->kv_heads, first = head * group * m->head_dim;
    float *out = w->seen.x + (size_t)r * w->seen.groups * GROUP;
    attend(m, w, cache_of(m, s, w, index, r, head), w->qkv_out + (size_t)r * w->qkv + first, s->positions[r], scores, out + first);
  }
  BARRIER;
  SHARE(r, rows) {
    float *out = w->seen.x + (size_t)r * w->seen.groups * GROUP;
    for (int k = m->heads * m->head_dim; k < w->seen.groups * GROUP; k++) out[k] = 0;
    round_row(&w->seen, r);
  }
  BARRIER;
  add_linear(l, OUT, s, rows, &w->seen, w, thread, threads);
  SHARE(r, rows) normalise(&w->normed, r, w->x + (size_t)r * w->dim, l->mlp_norm, m->dim, m->norm_eps);
  BARRIER;
  lora_down(l->lora[GATE_UP], s->places, rows, &w->normed, w, thread, threads);
  SHARE(g, w->gated.groups) {
    for (int p = 2 * g; p < 2 * g + 2; p++) { /* panels of gate and up alternate */
      multiply(&l->linear[GATE_UP], 2 * p, &w->normed, 0, rows, tile);
      multiply(&l->linear[GATE_UP], 2 * p + 1, &w->normed, 0, rows, second);
      lora_up(l->lora[GATE_UP], s->places, rows, 0, 2 * p, w, tile);
      lora_up(l->lora[GATE_UP], s->places, rows, 1, 2 * p + 1, w, second);
      for (int r = 0; r < rows; r++)
        for (int v = 0; v < PANEL; v += 8) {
          f8 gate = load(tile[r] + v), one = all(1);
          f8 silu = gate / (one + exponential(-gate));
          store(w->gated.x + ((size_t)r * w->gated.groups * GROUP + p * PANEL + v), silu * load(second[r] + v));
        }
    }
    for (int r = 0; r < rows; r++) round_group(&w->gated, r, g);
  }
  BARRIER;
  add_linear(l, DOWN, s, rows, &w->gated, w, thread, threads);
}

/* Floats of scratch memory that a step of so many rows needs. */
int64_t hustings_scratch(const Model *m, int32_t rows, int32_t threads) {
  float *none = (float *)(uintptr_t)64;
  return plan(m, rows, threads, none).end - none;
}

/* Half floats of a block. */
int64_t hustings_block(const Model *m) {
  return (int64_t)m->layers * m->kv_heads * (int64_t)plan(m, 0, 0, NULL).head_halves;
}

void hustings_step(const Model *m, const Step *s) {
  int threads = s->threads;
  Work work = plan(m, s->rows, threads, s->scratch), *w = &work;
#pragma omp parallel num_threads(threads)
  {
    int thread = omp_get_thread_num();
    SHARE(r, s->rows) {
      float *x = w->x + (size_t)r * w->dim;
      unpack(&m->embedding, s->tokens[r], x, m->dim);
      for (int k = m->dim; k < w->dim; k++) x[k] = 0;
    }
    BARRIER;
    for (int index = 0; index < m->layers; index++) run_layer(m, s, w, index, thread, threads);
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
}
