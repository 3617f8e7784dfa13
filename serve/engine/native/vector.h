/* Vectors of 16 floats (AVX-512 with VNNI) or of 8 (AVX2), under the same names. */
#pragma once
#include <immintrin.h>
#include <math.h>
#include <stdint.h>

#define ALWAYS static inline __attribute__((always_inline))

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VNNI__)

enum { LANES = 16 };
typedef float vec __attribute__((vector_size(64)));
typedef __m512i ints;

ALWAYS vec load(const float *at) { return _mm512_loadu_ps(at); }
ALWAYS void store(float *at, vec v) { _mm512_storeu_ps(at, v); }
ALWAYS vec all(float v) { return _mm512_set1_ps(v); }
ALWAYS vec larger(vec a, vec b) { return _mm512_max_ps(a, b); }
ALWAYS vec smaller(vec a, vec b) { return _mm512_min_ps(a, b); }
ALWAYS vec absolute(vec v) { return _mm512_abs_ps(v); }
ALWAYS vec nearest(vec v) { return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
ALWAYS float sum_of(vec v) { return _mm512_reduce_add_ps(v); }
ALWAYS float max_of(vec v) { return _mm512_reduce_max_ps(v); }

ALWAYS vec from_halves(const void *at) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)at)); }
ALWAYS vec from_bfloats(const void *at) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)at)), 16));
}

/* Whole numbers of 16 bits. */
ALWAYS void store_shorts(int16_t *at, vec v) {
  _mm256_storeu_si256((__m256i *)at, _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(v)));
}

/* 2^n for whole n; `v` where x is not below the limit (NaN is not), else 0. */
ALWAYS vec power_of_two(vec n) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
}
ALWAYS vec unless_below(vec x, float limit, vec v) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, all(limit), _CMP_NLT_UQ), v);
}

ALWAYS ints no_ints(void) { return _mm512_setzero_si512(); }
ALWAYS ints load_ints(const void *at) { return _mm512_loadu_si512(at); }
ALWAYS ints load_bytes(const void *at) { return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)at)); }
ALWAYS ints all_ints(int32_t v) { return _mm512_set1_epi32(v); }
ALWAYS ints low_four_bits(ints v) { return _mm512_and_si512(v, _mm512_set1_epi16(15)); }
#define shifted(v, bits) _mm512_srli_epi16(v, bits)
ALWAYS vec to_floats(ints v) { return _mm512_cvtepi32_ps(v); }

/* sum + a · b, where each lane is two numbers of 16 bits. */
ALWAYS ints add_products(ints sum, ints a, ints b) { return _mm512_dpwssd_epi32(sum, a, b); }

#else

enum { LANES = 8 };
typedef float vec __attribute__((vector_size(32)));
typedef __m256i ints;

ALWAYS vec load(const float *at) { return _mm256_loadu_ps(at); }
ALWAYS void store(float *at, vec v) { _mm256_storeu_ps(at, v); }
ALWAYS vec all(float v) { return _mm256_set1_ps(v); }
ALWAYS vec larger(vec a, vec b) { return _mm256_max_ps(a, b); }
ALWAYS vec smaller(vec a, vec b) { return _mm256_min_ps(a, b); }
ALWAYS vec absolute(vec v) { return _mm256_andnot_ps(all(-0.0f), v); }
ALWAYS vec nearest(vec v) { return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

ALWAYS float sum_of(vec v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}
ALWAYS float max_of(vec v) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_shuffle_ps(s, s, 1)));
}

ALWAYS vec from_halves(const void *at) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)at)); }
ALWAYS vec from_bfloats(const void *at) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)at)), 16));
}

ALWAYS void store_shorts(int16_t *at, vec v) {
  __m256i wide = _mm256_cvtps_epi32(v);
  _mm_storeu_si128((__m128i *)at, _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1)));
}

ALWAYS vec power_of_two(vec n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
ALWAYS vec unless_below(vec x, float limit, vec v) {
  return _mm256_and_ps(v, _mm256_cmp_ps(x, all(limit), _CMP_NLT_UQ));
}

ALWAYS ints no_ints(void) { return _mm256_setzero_si256(); }
ALWAYS ints load_ints(const void *at) { return _mm256_loadu_si256((const __m256i *)at); }
ALWAYS ints load_bytes(const void *at) { return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)at)); }
ALWAYS ints all_ints(int32_t v) { return _mm256_set1_epi32(v); }
ALWAYS ints low_four_bits(ints v) { return _mm256_and_si256(v, _mm256_set1_epi16(15)); }
#define shifted(v, bits) _mm256_srli_epi16(v, bits)
ALWAYS vec to_floats(ints v) { return _mm256_cvtepi32_ps(v); }

ALWAYS ints add_products(ints sum, ints a, ints b) {
  sum = _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
  __asm__("" : "+x"(sum)); /* compilers turn a chain of integer sums into a tree, and then run out of registers */
  return sum;
}

#endif

/* exp to about 1e-7 relative; below -87 it is 0; NaN stays NaN (smaller() gives its second operand for NaN). */
ALWAYS vec exponential(vec x) {
  vec kept = x;
  x = smaller(all(88.0f), x);
  vec n = nearest(x * all(1.44269504f));
  vec r = x - n * all(0.693359375f) - n * all(-2.12194440e-4f);
  vec p = all(1.0f / 5040) * r + all(1.0f / 720);
  p = p * r + all(1.0f / 120);
  p = p * r + all(1.0f / 24);
  p = p * r + all(1.0f / 6);
  p = p * r + all(0.5f);
  p = p * r + all(1.0f);
  p = p * r + all(1.0f);
  return unless_below(kept, -87.0f, p * power_of_two(n));
}
