// Which latents fire on which row, and how much: found by the product's approximation, decided by exact values.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "encoder.h"

namespace {

constexpr int64_t CHUNK_BYTES = 8 << 20;  // of approximate pre-activations that a thread has at once
constexpr int FEWEST_ROWS = 2 * STRIP, MOST_ROWS = 20 * STRIP;

constexpr float SMALLEST = std::numeric_limits<float>::min();

struct Entry {
  float z;
  int32_t latent;
};

// From the larger to the smaller; of equals, the first latent first.
inline bool before(Entry a, Entry b) { return a.z > b.z || (a.z == b.z && a.latent < b.latent); }

// Entries of a batch's rows: row r has those from start[r] to start[r + 1], by rising latent.
struct Codes {
  std::vector<int64_t> start;
  std::vector<int32_t> latent;
  std::vector<float> z;         // pre-activation
  std::vector<float> gradient;  // of the loss with respect to what the decoder reads; filled in later
  std::vector<uint8_t> finite;  // per row
  std::vector<float> norm;      // per row, of what the encoder read
  float audit = 0.0f;           // the largest share of a bound that an error reached

  int64_t size() const { return (int64_t)latent.size(); }
  int rows() const { return (int)start.size() - 1; }

  void put(const std::vector<std::vector<Entry>>& chunks, const std::vector<int32_t>& counts) {
    start.assign(counts.size() + 1, 0);
    for (size_t r = 0; r < counts.size(); r++) start[r + 1] = start[r] + counts[r];
    latent.resize(start.back()), z.resize(start.back()), gradient.assign(start.back(), 0.0f);
    int64_t i = 0;
    for (auto& chunk : chunks)
      for (Entry e : chunk) latent[i] = e.latent, z[i++] = e.z;
  }
};

// What one thread needs to select from rows. The vectors keep their memory from step to step.
struct Selection {
  Encoder::Rows rows;
  std::vector<float> product, maxima;
  std::vector<Entry> found;
  std::vector<float> known;      // exact pre-activations of this row ...
  std::vector<uint32_t> stamp;  // ... where the stamp is the row's
  uint32_t row_stamp = 0;
  float audit = 0.0f;

  void fit(const Encoder& encoder, int chunk_rows) {
    product.resize((size_t)chunk_rows * encoder.n_padded);
    if (stamp.size() != (size_t)encoder.n) stamp.assign(encoder.n, 0), known.resize(encoder.n), row_stamp = 0;
  }

  void next_row() {
    if (++row_stamp == 0) std::fill(stamp.begin(), stamp.end(), 0u), row_stamp = 1;
  }
};

inline int count_at_least(const float* v, int n, float t) {
  int count = 0;
  for (int i = 0; i < n; i += LANES) count += __builtin_popcount(at_least(load(v + i), splat(t)));
  return count;
}

// A number that at least k of z (n, a whole number of panels) reach: seldom much below the k-th largest. The k-th
// largest of the maxima of many buckets is one, since that many buckets hold an entry of at least that size.
inline float reached_by(const float* z, int n, int k, std::vector<float>& maxima) {
  int buckets = std::max(512, 8 * k);
  buckets = (buckets + 63) / 64 * 64;
  const float* of = z;
  int size = n;
  if (n >= 2 * buckets) {
    maxima.resize(buckets);
    std::copy(z, z + buckets, maxima.begin());
    for (int first = buckets; first < n; first += buckets)
      for (int i = 0, last = std::min(buckets, n - first); i < last; i += LANES)
        store(&maxima[i], max(load(&maxima[i]), load(z + first + i)));
    of = maxima.data(), size = buckets;
  }
  vec low = load(of), high = low;
  for (int i = LANES; i < size; i += LANES) low = min(load(of + i), low), high = max(load(of + i), high);
  float lo = -largest(-low), hi = largest(high);
  if (k >= size) return -INF;
  for (int step = 0; step < 24; step++) {  // halve the interval; never fewer than k reach `lo`
    float middle = 0.5f * (lo + hi);
    if (!(middle > lo) || !(middle < hi)) break;
    int count = count_at_least(of, size, middle);
    if (count < k) {
      hi = middle;
      continue;
    }
    lo = middle;
    if (count <= k + k / 16) break;
  }
  return lo;
}

// One row of a chunk: its approximate pre-activations, and the exact ones for whoever asks.
struct Row {
  const Encoder& encoder;
  Selection& s;
  const float *x, *z;
  float by_norm, by_error;

  float exact(int latent) {
    if (s.stamp[latent] == s.row_stamp) return s.known[latent];
    float value = encoder.exact(x, latent);
    float bound = by_norm * encoder.norm[latent] + by_error * encoder.error[latent];
    if (bound > 0) s.audit = std::max(s.audit, std::fabs(value - z[latent]) / bound);
    s.stamp[latent] = s.row_stamp;
    return s.known[latent] = value;
  }

  // Latents whose pre-activation may be at least t(i, part): those that are, as far as the product can tell, and
  // those that it may have put too low.
  template <class Threshold>
  void collect(Threshold t, bool with_bounds) {
    s.found.clear();
    for (int i = 0; i < encoder.n_padded; i += LANES) {
      vec top = load(z + i);
      if (with_bounds) top += by_norm * load(&encoder.norm[i]) + by_error * load(&encoder.error[i]);
      for (uint32_t bits = at_least(top, t(i)); bits; bits &= bits - 1) {
        int latent = i + __builtin_ctz(bits);
        if (latent < encoder.n) s.found.push_back({z[latent], latent});
      }
    }
  }

  void make_exact() {
    constexpr size_t AHEAD = 12;
    for (size_t i = 0; i < std::min(AHEAD, s.found.size()); i++) encoder.prefetch(s.found[i].latent);
    for (size_t i = 0; i < s.found.size(); i++) {
      if (i + AHEAD < s.found.size()) encoder.prefetch(s.found[i + AHEAD].latent);
      s.found[i].z = exact(s.found[i].latent);
    }
  }

  void keep_first(int k) {
    if ((int)s.found.size() <= k) return;
    std::nth_element(s.found.begin(), s.found.begin() + (k - 1), s.found.end(), before);
    s.found.resize(k);
  }

  // The k largest above 0, in s.found.
  void largest_k(int k) {
    float reached = reached_by(z, encoder.n_padded, std::min(k, encoder.n), s.maxima);
    float least = SMALLEST;  // what the k-th largest is at least, if it is above 0
    if (reached > 0) {
      collect([&](int) { return splat(reached); }, false);
      keep_first(k);
      make_exact();
      least = INF;
      for (Entry e : s.found) least = std::min(least, e.z);
      least = std::max(SMALLEST, least - std::fabs(least) * 4 * ROUNDING);
    }
    collect([&](int) { return splat(least); }, true);
    make_exact();
    drop([](Entry e) { return !(e.z > 0); });
    keep_first(k);
  }

  // Every latent above its threshold, in s.found. thresholds: (n_padded,).
  void above(const float* thresholds) {
    collect([&](int i) {
      vec t = load(thresholds + i);
      return t - absolute(t) * (4 * ROUNDING);
    }, true);
    make_exact();
    drop([&](Entry e) { return !(e.z > thresholds[e.latent]); });
  }

  template <class Condition>
  void drop(Condition condition) {
    s.found.erase(std::remove_if(s.found.begin(), s.found.end(), condition), s.found.end());
  }
};

// Codes of rows x (B, encoder.d): select(row) leaves in row.s.found what is to be kept of each.
template <class Select>
void encode(const Encoder& encoder, const float* x, int n_rows, std::vector<Selection>& selections, int threads,
            Codes& codes, Select select) {
  int64_t fitting = CHUNK_BYTES / (4 * (int64_t)encoder.n_padded) / STRIP * STRIP;
  int chunk = (int)std::min<int64_t>(std::max<int64_t>(fitting, FEWEST_ROWS), MOST_ROWS);
  int64_t n_chunks = (n_rows + chunk - 1) / chunk;
  selections.resize(std::max<size_t>(selections.size(), threads));
  std::vector<std::vector<Entry>> found(n_chunks);
  std::vector<int32_t> counts(n_rows, 0);
  codes.finite.assign(n_rows, 1), codes.norm.assign(n_rows, 0.0f);
  for (auto& s : selections) s.audit = 0.0f;
  parallel(threads, n_chunks, [&](int64_t c, int thread) {
    Selection& s = selections[thread];
    int first = (int)c * chunk, rows = std::min(chunk, n_rows - first);
    s.fit(encoder, chunk);
    encoder.ready(s.rows, x + (size_t)first * encoder.d, rows);
    encoder.product(s.rows, s.product.data());
    for (int r = 0; r < rows; r++) {
      codes.norm[first + r] = s.rows.norm[r];
      if (!s.rows.finite[r]) {
        codes.finite[first + r] = 0;
        continue;
      }
      s.next_row();
      Row row{encoder, s, s.rows.x + (size_t)r * encoder.d, &s.product[(size_t)r * encoder.n_padded],
              s.rows.by_norm[r], s.rows.by_error[r]};
      select(row);
      std::sort(s.found.begin(), s.found.end(), [](Entry a, Entry b) { return a.latent < b.latent; });
      counts[first + r] = (int32_t)s.found.size();
      found[c].insert(found[c].end(), s.found.begin(), s.found.end());
    }
  });
  codes.put(found, counts);
  codes.audit = 0.0f;
  for (auto& s : selections) codes.audit = std::max(codes.audit, s.audit);
}

}  // namespace
