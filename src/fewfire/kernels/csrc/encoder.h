// The encoder's product: every pre-activation of a chunk of rows, approximately, and by how much each may be wrong.
//
// Weights are copied once a step into panels of PANEL latents, in the order in which the product reads them. Where the
// processor multiplies bytes (VNNI), rows and weights are rounded to 8 bits with one scale each, which is four times as
// fast as float32. What decides is never this product: whoever asks takes the entries that may matter, by the bound
// below, and computes those again with `exact`. Of few columns the product is exact itself: it is never of bytes, and
// sums in the order of the columns, whatever the batch.
//
// The bound. With x' and w' the rounded row and weights, z - z' = (x - x') w + x' (w - w'). To every column belong two
// fixed numbers from a half below 0 to a half above, drawn once: a row's numbers are rounded after one is added, which
// is taken off again, and a latent's weights likewise with the other. The errors of a row are then independent and
// uniform over a step whatever the numbers are (subtractive dither: Schuchman 1964), also where they are whole, alike,
// or smaller than a step. Such a sum has tails no heavier than the normal distribution's, of standard deviation
// step |w| / sqrt(12); SIGMAS of these are taken. If an error ever exceeds its bound, as one in 10^7 may, `kernels.cpp`
// computes the batch again without bytes.
#pragma once
#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "parallel.h"
#include "simd.h"

namespace {

constexpr float INF = std::numeric_limits<float>::infinity();
constexpr float SIGMAS = 6.0f;
constexpr float ROUNDING = 1.2e-7f;         // of a float32
constexpr int PANEL = 2 * LANES;            // latents
constexpr int STRIP = LANES == 16 ? 12 : 6; // rows whose sums fit into registers, for a panel
constexpr int64_t IN_L2 = 384 * 1024;       // bytes of panels that stay in the second cache while rows pass
#if defined(__AVX512VNNI__)
constexpr bool HAS_BYTES = true;
#else
constexpr bool HAS_BYTES = false;
#endif
constexpr int FEWEST_FOR_BYTES = 128;       // columns; below, rounding and refining cost more than they save
constexpr int MOST_FOR_BYTES = 32768;       // columns whose products of bytes a 32-bit sum can hold

constexpr int MOST_STEPS = 126;             // and a half for the dither: a byte goes from -128 to 127
constexpr float TINY = 1e-30f, HUGE_NUMBER = 1e15f;  // beyond, products of scales may vanish or overflow
constexpr float SMALLEST = std::numeric_limits<float>::min();

// What is known of a row, or of a latent's weights, once it is rounded.
struct Rounded {
  float scale;  // of one step; 0: it was not rounded to bytes
  float norm;   // Euclidean, of the numbers as they were
  float error;  // by how much the product with a vector of norm 1 may be off
  float shift;  // of the product of steps, by what was added before rounding
  bool finite;
};

// The largest absolute value, and whether all are finite.
struct Extent {
  float top;
  bool finite;
};

inline Extent extent(const float* x, int d) {
  vec most{}, nan{};
  for_vectors(d, [&](int i, auto part) {
    vec v = load(x + i, part);
    most = max(absolute(v), most);
    nan += v * 0.0f;  // NaN for NaN and for infinity
  });
  return {largest(most), sum(nan) == 0.0f};
}

// A number from -1/2 to 1/2 for column i, from its hash (Steele et al. 2014, SplitMix64).
inline float dither_of(uint64_t i) {
  uint64_t h = (i + 1) * 0x9e3779b97f4a7c15ull;
  h = (h ^ (h >> 30)) * 0xbf58476d1ce4e5b9ull;
  h = (h ^ (h >> 27)) * 0x94d049bb133111ebull;
  return (float)((h ^ (h >> 31)) >> 40) / (1 << 24) - 0.5f;
}

class Encoder {
 public:
  int n = 0, d = 0, n_padded = 0, d_padded = 0;
  bool bytes = false;
  bool narrow = false;  // so few columns that the product is the truth
  bool finite = true;
  float largest_norm = 0.0f;
  const float *weights = nullptr, *bias = nullptr;
  std::vector<float> norm, error;  // per latent, 0 for those that fill up the last panel

  // Weights (n, d) and biases (n,) as they are now.
  void pack(const float* new_weights, const float* new_bias, int new_n, int new_d, bool allow_bytes, int threads) {
    n = new_n, d = new_d, weights = new_weights, bias = new_bias;
    n_padded = (n + PANEL - 1) / PANEL * PANEL;
    d_padded = (d + 15) / 16 * 16;
    narrow = d < FEWEST_FOR_BYTES;
    bytes = HAS_BYTES && allow_bytes && !narrow && d <= MOST_FOR_BYTES;
    norm.assign(n_padded, 0.0f), error.assign(n_padded, 0.0f);
    biases.assign(n_padded, -INF);
    std::copy(bias, bias + n, biases.begin());
    if (bytes) {
      byte_panels.resize((size_t)n_padded * d_padded);
      scale.assign(n_padded, 0.0f), shift.assign(n_padded, 0), float_shift.assign(n_padded, 0.0f);
      draw_dither();
    } else {
      panels.resize((size_t)n_padded * d);
    }
    std::vector<uint8_t> sound(n_padded / PANEL);
    parallel(threads, n_padded / PANEL, [&](int64_t p, int) { sound[p] = pack_panel((int)p * PANEL); });
    largest_norm = *std::max_element(norm.begin(), norm.end());
    finite = std::all_of(sound.begin(), sound.end(), [](uint8_t s) { return s; });
  }

  const float* weights_of(int latent) const { return weights + (size_t)latent * d; }
  float exact(const float* x, int latent) const { return dot(x, weights_of(latent), d) + bias[latent]; }

  // A chunk of rows, made ready for the product: what it is computed from, and the bounds of its errors.
  struct Rows {
    const float* x = nullptr;
    int n = 0;
    std::vector<uint8_t> bytes;
    std::vector<float> norm, scale, shift;
    std::vector<float> by_norm, by_error;  // |z - z'| <= by_norm[row] norm[latent] + by_error[row] error[latent]
    std::vector<uint8_t> finite;
  };

  void ready(Rows& rows, const float* x, int n_rows) const {
    rows.x = x, rows.n = n_rows;
    rows.norm.resize(n_rows), rows.scale.resize(n_rows), rows.shift.resize(n_rows), rows.finite.resize(n_rows);
    rows.by_norm.resize(n_rows), rows.by_error.resize(n_rows);
    if (bytes) rows.bytes.resize((size_t)n_rows * d_padded);
    for (int r = 0; r < n_rows; r++) {
      Rounded row = bytes ? round_row(x + (size_t)r * d, &rows.bytes[(size_t)r * d_padded]) : measure(x + (size_t)r * d);
      rows.norm[r] = row.norm, rows.scale[r] = row.scale, rows.shift[r] = row.shift, rows.finite[r] = row.finite;
      // the sums of `exact` and of this product round as well
      rows.by_norm[r] = narrow ? 0.0f : row.error + row.norm * (d * ROUNDING);
      rows.by_error[r] = bytes ? row.norm : 0.0f;
    }
  }

  // z (rows.n, n_padded): pre-activations as far as the product tells them; minus infinity where there is no latent.
  void product(const Rows& rows, float* z) const {
    int64_t panel_bytes = bytes ? (int64_t)d_padded * PANEL : (int64_t)d * PANEL * 4;
    int block = (int)std::max<int64_t>(1, IN_L2 / panel_bytes) * PANEL;
    for (int first = 0; first < n_padded; first += block) {
      int last = std::min(n_padded, first + block);
      for (int r = 0; r < rows.n; r += STRIP) strip<STRIP>(rows, r, std::min(STRIP, rows.n - r), first, last, z);
    }
  }

 private:
  std::vector<float> panels, biases, scale, float_shift;
  std::vector<int8_t> byte_panels;
  std::vector<int32_t> shift;
  std::vector<float> row_dither, weight_dither;
  float dither_product = 0.0f;
  int dither_columns = 0;

  void draw_dither() {
    if (dither_columns == d) return;
    row_dither.assign(d_padded, 0.0f), weight_dither.assign(d_padded, 0.0f);
    for (int i = 0; i < d; i++) row_dither[i] = dither_of(2 * i), weight_dither[i] = dither_of(2 * i + 1);
    dither_product = dot(row_dither.data(), weight_dither.data(), d);
    dither_columns = d;
  }

  bool pack_panel(int first) {
    bool sound = true;
    for (int j = 0; j < PANEL; j++) {
      int latent = first + j;
      if (latent >= n) {
        clear_column(first, j);
        continue;
      }
      const float* row = weights_of(latent);
      Rounded w = bytes ? pack_bytes(row, latent) : measure(row);
      if (!bytes)
        for (int i = 0; i < d; i++) panels[(size_t)first * d + (size_t)i * PANEL + j] = row[i];
      norm[latent] = w.norm, error[latent] = w.error;
      sound = sound && w.finite && std::isfinite(bias[latent]);
    }
    return sound;
  }

  void clear_column(int first, int j) {
    if (bytes) {
      int32_t* column = (int32_t*)&byte_panels[(size_t)first * d_padded] + j;
      for (int i = 0; i < d_padded / 4; i++) column[(size_t)i * PANEL] = 0;
    } else {
      for (int i = 0; i < d; i++) panels[(size_t)first * d + (size_t)i * PANEL + j] = 0.0f;
    }
  }

  // The norm of numbers up to `top`; never infinity, which times 0 would say nothing.
  float at_most(float top) const { return std::min(top * std::sqrt((float)d), std::numeric_limits<float>::max()); }

  // The norm, without squares that overflow or vanish.
  Rounded measure(const float* x) const {
    auto [top, finite] = extent(x, d);
    if (!finite) return {0.0f, 0.0f, 0.0f, 0.0f, false};
    if (!(top >= TINY && top <= HUGE_NUMBER)) return {0.0f, at_most(top), 0.0f, 0.0f, true};
    vec squares{}, inverse = splat(1.0f / top);
    for_vectors(d, [&](int i, auto part) {
      vec v = load(x + i, part) * inverse;
      squares += v * v;
    });
    return {0.0f, top * std::sqrt(sum(squares)), 0.0f, 0.0f, true};
  }

  // Never inlined: among other code, GCC would keep the sums in memory.
  template <int ROWS>
  static __attribute__((noinline)) void tile(const float* x, int d, const float* panel, const float* bias, float* z, int n_padded) {
    vec left[ROWS], right[ROWS];
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; r++) left[r] = right[r] = vec{};
    for (int i = 0; i < d; i++) {
      vec w0 = load(panel + (size_t)i * PANEL), w1 = load(panel + (size_t)i * PANEL + LANES);
#pragma GCC unroll 12
      for (int r = 0; r < ROWS; r++) {
        vec a = splat(x[(size_t)r * d + i]);
        left[r] += a * w0;
        right[r] += a * w1;
      }
    }
    vec b0 = load(bias), b1 = load(bias + LANES);
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; r++) {
      store(z + (size_t)r * n_padded, left[r] + b0);
      store(z + (size_t)r * n_padded + LANES, right[r] + b1);
    }
  }

  // Of so many rows, with a tile of that height for each number of them.
  template <int ROWS>
  void strip(const Rows& rows, int r, int n_rows, int first, int last, float* z) const {
    if constexpr (ROWS > 0) {
      if (n_rows != ROWS) return strip<ROWS - 1>(rows, r, n_rows, first, last, z);
      for (int p = first; p < last; p += PANEL) {
        float* out = z + (size_t)r * n_padded + p;
        if (bytes)
          byte_tile<ROWS>(rows, r, p, out);
        else
          tile<ROWS>(rows.x + (size_t)r * d, d, &panels[(size_t)p * d], &biases[p], out, n_padded);
      }
    }
  }

#if defined(__AVX512VNNI__)
  typedef int32_t four_bytes __attribute__((may_alias));

  // In steps of a 126th of the largest number, `own` added before rounding; put(i, the steps of 16 columns). What the
  // other side adds makes the shift. All in steps, which neither overflow nor vanish.
  template <class Put>
  Rounded round(const float* x, const std::vector<float>& own, const std::vector<float>& other, Put put) const {
    auto [top, finite] = extent(x, d);
    if (!finite || !(top >= TINY && top <= HUGE_NUMBER)) {
      for (int i = 0; i < d_padded; i += 16) put(i, _mm512_setzero_si512());
      float all = finite ? at_most(top) : 0.0f;  // nothing of it is in the product
      return {0.0f, all, all, 0.0f, finite};
    }
    float step = top / MOST_STEPS;
    vec inverse = splat(1.0f / step), squares{}, shifts{};
    for (int i = 0; i < d_padded; i += 16) {
      vec dither = load(&own[i]);
      vec v = (i + 16 <= d ? load(x + i) : load(x + i, Part{d - i})) * inverse + dither;
      __m512i q = _mm512_cvtps_epi32((__m512)v);
      vec whole = (vec)_mm512_cvtepi32_ps(q), meant = whole - dither;
      squares += meant * meant;
      shifts += whole * load(&other[i]);
      put(i, q);
    }
    return {step, step * std::sqrt(sum(squares)), step * (SIGMAS / std::sqrt(12.0f)), sum(shifts), true};
  }

  Rounded round_row(const float* x, uint8_t* out) const {
    return round(x, row_dither, weight_dither, [&](int i, __m512i q) {  // bytes of rows have no sign: 128 is zero
      _mm_storeu_si128((__m128i*)(out + i), _mm512_cvtepi32_epi8(_mm512_add_epi32(q, _mm512_set1_epi32(128))));
    });
  }

  // Into column `latent` of its panel: four columns of the weights lie side by side, for one instruction.
  Rounded pack_bytes(const float* w, int latent) {
    int32_t* column = (int32_t*)&byte_panels[(size_t)(latent / PANEL * PANEL) * d_padded] + latent % PANEL;
    __m512i total = _mm512_setzero_si512();
    Rounded rounded = round(w, weight_dither, row_dither, [&](int i, __m512i q) {
      total = _mm512_add_epi32(total, q);
      alignas(16) int32_t fours[4];
      _mm_store_si128((__m128i*)fours, _mm512_cvtepi32_epi8(q));
      for (int u = 0; u < 4; u++) column[(size_t)(i / 4 + u) * PANEL] = fours[u];
    });
    scale[latent] = rounded.scale;
    shift[latent] = -128 * _mm512_reduce_add_epi32(total);
    float_shift[latent] = rounded.shift - dither_product;
    return rounded;
  }

  // (q - u)(p - t) = q p - q t - u p + u t, summed over the columns, with u and t what was added to row and weights.
  template <int ROWS>
  __attribute__((noinline)) void byte_tile(const Rows& rows, int r0, int p, float* z) const {
    const four_bytes* x = (const four_bytes*)&rows.bytes[(size_t)r0 * d_padded];
    const int fours = d_padded / 4;
    const int8_t* panel = &byte_panels[(size_t)p * d_padded];
    __m512i left[ROWS], right[ROWS];
    __m512i s0 = _mm512_loadu_si512(&shift[p]), s1 = _mm512_loadu_si512(&shift[p + 16]);
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; r++) left[r] = s0, right[r] = s1;
    for (int i = 0; i < fours; i++) {
      __m512i w0 = _mm512_loadu_si512(panel + (size_t)i * 128), w1 = _mm512_loadu_si512(panel + (size_t)i * 128 + 64);
#pragma GCC unroll 12
      for (int r = 0; r < ROWS; r++) {
        __m512i a = _mm512_set1_epi32(x[(size_t)r * fours + i]);
        // not by its intrinsic, for which GCC 12 copies every sum from register to register
        asm("vpdpbusd %2, %1, %0" : "+v"(left[r]) : "v"(a), "v"(w0));
        asm("vpdpbusd %2, %1, %0" : "+v"(right[r]) : "v"(a), "v"(w1));
      }
    }
    vec scale0 = load(&scale[p]), scale1 = load(&scale[p + 16]), b0 = load(&biases[p]), b1 = load(&biases[p + 16]);
    vec shift0 = load(&float_shift[p]), shift1 = load(&float_shift[p + 16]);
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; r++) {
      vec step = splat(rows.scale[r0 + r]), own = splat(rows.shift[r0 + r]);
      vec z0 = (vec)_mm512_cvtepi32_ps(left[r]) - (own + shift0), z1 = (vec)_mm512_cvtepi32_ps(right[r]) - (own + shift1);
      store(z + (size_t)r * n_padded, z0 * (step * scale0) + b0);
      store(z + (size_t)r * n_padded + LANES, z1 * (step * scale1) + b1);
    }
  }
#else
  Rounded round_row(const float* x, uint8_t*) const { return measure(x); }
  Rounded pack_bytes(const float* w, int) { return measure(w); }
  template <int ROWS>
  void byte_tile(const Rows&, int, int, float*) const {}
#endif
};

}  // namespace
