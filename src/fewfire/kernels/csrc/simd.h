// Vectors of floats as wide as the instruction set has them, written once for all: GCC's and clang's vector extensions.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64;
#elif defined(__AVX2__)
constexpr int VECTOR_BYTES = 32;
#else
constexpr int VECTOR_BYTES = 16;
#endif
constexpr int LANES = VECTOR_BYTES / 4;

typedef float vec __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t ivec __attribute__((vector_size(VECTOR_BYTES)));
typedef float vec_at __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));

// A whole vector, or the last few floats of a row that is no multiple of LANES long.
struct Whole {};
struct Part {
  int n;
};

inline vec load(const float* p, Whole = {}) { return *reinterpret_cast<const vec_at*>(p); }
inline void store(float* p, vec v, Whole = {}) { *reinterpret_cast<vec_at*>(p) = v; }
#if defined(__AVX512F__)
inline vec load(const float* p, Part part) { return (vec)_mm512_maskz_loadu_ps((__mmask16)((1u << part.n) - 1), p); }
inline void store(float* p, vec v, Part part) { _mm512_mask_storeu_ps(p, (__mmask16)((1u << part.n) - 1), (__m512)v); }
#else
inline vec load(const float* p, Part part) {
  vec v{};
  std::memcpy(&v, p, 4 * part.n);
  return v;
}
inline void store(float* p, vec v, Part part) { std::memcpy(p, &v, 4 * part.n); }
#endif

inline vec splat(float x) { return x - vec{}; }  // not x + 0, which would have to turn -0 into 0
inline vec max(vec a, vec b) { return a > b ? a : b; }

inline vec absolute(vec a) {
  ivec bits = (ivec)a & 0x7fffffff;
  return (vec)bits;
}

inline vec root(vec a) {
#if defined(__AVX512F__)
  return (vec)_mm512_sqrt_ps((__m512)a);
#elif defined(__AVX2__)
  return (vec)_mm256_sqrt_ps((__m256)a);
#else
  for (int i = 0; i < LANES; i++) a[i] = std::sqrt(a[i]);
  return a;
#endif
}

// The sum by halves: always in the same order.
inline float sum(vec a) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)a);
#else
  float lanes[LANES];
  store(lanes, a);
  for (int half = LANES / 2; half; half /= 2)
    for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
  return lanes[0];
#endif
}

inline float largest(vec a) {
  float most = a[0];
  for (int i = 1; i < LANES; i++) most = a[i] > most ? a[i] : most;
  return most;
}

// Bit i: whether a[i] >= b[i]; never where one of them is NaN.
inline uint32_t at_least(vec a, vec b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GE_OQ);
#elif defined(__AVX2__)
  return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_GE_OQ));
#else
  uint32_t bits = 0;
  for (int i = 0; i < LANES; i++) bits |= (uint32_t)(a[i] >= b[i]) << i;
  return bits;
#endif
}

// Put the lanes of v whose bits are set at `values`, one after the other, and first + their lanes at `places`; how many
// there are. Writes a whole vector: there must be room for it.
inline int put_selected(uint32_t bits, vec v, int32_t first, float* values, int32_t* places) {
#if defined(__AVX512F__)
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  store(values, (vec)_mm512_maskz_compress_ps((__mmask16)bits, (__m512)v));
  __m512i found = _mm512_maskz_compress_epi32((__mmask16)bits, _mm512_add_epi32(lanes, _mm512_set1_epi32(first)));
  _mm512_storeu_si512(places, found);
  return __builtin_popcount(bits);
#else
  int n = 0;
  for (; bits; bits &= bits - 1) {
    int lane = __builtin_ctz(bits);
    values[n] = v[lane], places[n++] = first + lane;
  }
  return n;
#endif
}

// f(i, Whole) for every whole vector of n floats, then f(i, Part) for the rest.
template <class F>
inline void for_vectors(int n, F f) {
  int i = 0;
  for (; i + LANES <= n; i += LANES) f(i, Whole{});
  if (i < n) f(i, Part{n - i});
}

// The inner product, in an order that depends on n alone: what a latent's pre-activation is made of, wherever it is asked
// for.
inline float dot(const float* a, const float* b, int n) {
  vec s0{}, s1{}, s2{}, s3{};
  int i = 0;
  for (; i + 4 * LANES <= n; i += 4 * LANES) {
    s0 += load(a + i) * load(b + i);
    s1 += load(a + i + LANES) * load(b + i + LANES);
    s2 += load(a + i + 2 * LANES) * load(b + i + 2 * LANES);
    s3 += load(a + i + 3 * LANES) * load(b + i + 3 * LANES);
  }
  for (; i + LANES <= n; i += LANES) s0 += load(a + i) * load(b + i);
  if (i < n) s1 += load(a + i, Part{n - i}) * load(b + i, Part{n - i});
  return sum((s0 + s1) + (s2 + s3));
}

// Begin to bring n floats, or the first thousand of them, as near as the second cache.
inline void prefetch(const float* x, int n) {
  for (int i = 0; i < n && i < 1024; i += 16) __builtin_prefetch(x + i, 0, 2);
}

// y += a x
inline void add_scaled(float a, const float* x, float* y, int n) {
  for_vectors(n, [&](int i, auto part) { store(y + i, load(y + i, part) + a * load(x + i, part), part); });
}

}  // namespace
