// Which latents fire on which row, and how much: found by the product's approximation, decided by exact values.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "encoder.h"

namespace {

constexpr int64_t CHUNK_BYTES = 8 << 20;  // of approximate pre-activations that a thread has at once
constexpr int FEWEST_ROWS = 2 * STRIP, MOST_ROWS = 20 * STRIP;

constexpr double MAY_OVERFLOW = 1e37;
constexpr float LEAST = std::numeric_limits<float>::denorm_min();  // above 0

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
  void clear() { start.assign(1, 0), latent.clear(), z.clear(), gradient.clear(), finite.clear(); }
  int rows() const { return (int)start.size() - 1; }

  // Room for `counts` entries of each row.
  void shape(const std::vector<int32_t>& counts) {
    start.assign(counts.size() + 1, 0);
    for (size_t r = 0; r < counts.size(); r++) start[r + 1] = start[r] + counts[r];
    latent.resize(start.back()), z.resize(start.back()), gradient.resize(start.back());
  }
};

// Some entries, one after the other.
struct Entries {
  std::vector<float> z;
  std::vector<int32_t> latent;
  int n = 0;

  void room(size_t most) {
    if (z.size() < most) z.resize(most), latent.resize(most);
  }
  void append(const Entries& more) {
    if (z.size() < (size_t)n + more.n) room(2 * ((size_t)n + more.n));
    std::copy_n(more.z.begin(), more.n, z.begin() + n);
    std::copy_n(more.latent.begin(), more.n, latent.begin() + n);
    n += more.n;
  }
};

// What one thread needs to select from rows. The vectors keep their memory from step to step.
struct Selection {
  Encoder::Rows rows;
  std::vector<float> product, maxima, values;
  Entries found;
  std::vector<float> known;      // exact pre-activations of this row ...
  std::vector<uint32_t> stamp;  // ... where the stamp is the row's
  uint32_t row_stamp = 0;
  float audit = 0.0f;

  void fit(const Encoder& encoder, int chunk_rows) {
    product.resize((size_t)chunk_rows * encoder.n_padded);
    found.room(encoder.n_padded + LANES);
    if (stamp.size() != (size_t)encoder.n) known.resize(encoder.n), stamp.assign(encoder.n, 0), row_stamp = 0;
  }

  void next_row() {
    if (++row_stamp == 0) std::fill(stamp.begin(), stamp.end(), 0u), row_stamp = 1;
  }
};

inline int count_at_least(const float* v, int n, float t) {
  ivec counts{};
  for (int i = 0; i < n; i += LANES) counts -= load(v + i) >= splat(t);  // true is minus 1
  int count = 0;
  for (int i = 0; i < LANES; i++) count += counts[i];
  return count;
}

// A number above 0 that at least k of z (n, a whole number of panels) reach: seldom much below the k-th largest.
// Minus infinity if it finds none. The k-th largest of the maxima of many buckets is one, since that many buckets hold
// an entry of at least that size.
inline float reached_by(const float* z, int n, int k, std::vector<float>& maxima) {
  int buckets = (std::max(512, 8 * k) + 63) / 64 * 64;
  const float* of = z;
  int size = n;
  if (n >= 2 * buckets) {
    maxima.resize(buckets);
    std::copy(z, z + buckets, maxima.begin());
    for (int first = buckets; first < n; first += buckets)
      for (int i = 0, last = std::min(buckets, n - first); i < last; i += LANES)
        store(&maxima[i], max(load(z + first + i), load(&maxima[i])));
    of = maxima.data(), size = buckets;
  }
  vec high = splat(0.0f);
  for (int i = 0; i < size; i += LANES) high = max(load(of + i), high);
  float lo = LEAST, hi = largest(high);
  if (count_at_least(of, size, lo) < k) return -INF;
  for (int step = 0; step < 24; step++) {  // halve the interval; never fewer than k reach `lo`
    float middle = 0.5f * lo + 0.5f * hi;
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
  const float* x;
  float* z;
  float by_norm, by_error;
  bool zero;  // all of the row is 0

  float exact(int latent) {
    if (encoder.narrow) return z[latent];
    if (s.stamp[latent] == s.row_stamp) return s.known[latent];
    float value = zero ? encoder.bias[latent] : encoder.exact(x, latent);
    float bound = by_norm * encoder.norm[latent] + by_error * encoder.error[latent];
    float off = std::fabs(value - z[latent]);
    if (off > s.audit * bound && bound > 0) s.audit = off / bound;
    s.stamp[latent] = s.row_stamp;
    return s.known[latent] = value;
  }

  // Latents whose top(i), the vector from latent i on, is at least t(i).
  template <class Top, class Threshold>
  void collect(Top top, Threshold t) {
    Entries& found = s.found;
    found.n = 0;
    for (int i = 0; i < encoder.n_padded; i += LANES) {
      uint32_t bits = at_least(top(i), t(i));
      if (bits) found.n += put_selected(bits, load(z + i), i, &found.z[found.n], &found.latent[found.n]);
    }
    while (found.n && found.latent[found.n - 1] >= encoder.n) found.n--;  // what fills up the last panel
  }

  vec approximate(int i) const { return load(z + i); }
  vec at_most(int i) const {
    if (zero) return load(z + i);  // the bias, exactly
    return load(z + i) + (by_norm * load(&encoder.norm[i]) + by_error * load(&encoder.error[i]));
  }

  // Whether every pre-activation is a number: of products near float32's limits, a sum may not be.
  bool sound() {
    for (int latent = 0; latent < encoder.n; latent++)
      if (!std::isfinite(exact(latent))) return false;
    return true;
  }

  void make_exact() {
    constexpr int AHEAD = 12;
    Entries& found = s.found;
    if (encoder.narrow) return;
    for (int i = 0; i < std::min(AHEAD, found.n); i++) prefetch(encoder.weights_of(found.latent[i]), encoder.d);
    for (int i = 0; i < found.n; i++) {
      if (i + AHEAD < found.n) prefetch(encoder.weights_of(found.latent[i + AHEAD]), encoder.d);
      found.z[i] = exact(found.latent[i]);
    }
  }

  template <class Condition>
  void keep_where(Condition condition) {
    Entries& found = s.found;
    int n = 0;
    for (int i = 0; i < found.n; i++)
      if (condition(found.z[i], found.latent[i])) found.z[n] = found.z[i], found.latent[n++] = found.latent[i];
    found.n = n;
  }

  // The last of the least.
  void drop_least() {
    Entries& found = s.found;
    int least = 0;
    for (int i = 1; i < found.n; i++) least = found.z[i] <= found.z[least] ? i : least;
    std::copy(&found.z[least + 1], &found.z[found.n], &found.z[least]);
    std::copy(&found.latent[least + 1], &found.latent[found.n], &found.latent[least]);
    found.n--;
  }

  // The k largest; of equals, the first latents.
  void keep_largest(int k) {
    constexpr int FEW = 8;
    Entries& found = s.found;
    if (found.n - k <= FEW) {  // to take the least away, one by one, is faster than to sort
      while (found.n > k) drop_least();
      return;
    }
    s.values.assign(found.z.begin(), found.z.begin() + found.n);
    std::nth_element(s.values.begin(), s.values.begin() + (k - 1), s.values.end(), std::greater<float>());
    float least = s.values[k - 1];
    int equals = k - (int)std::count_if(s.values.begin(), s.values.begin() + k, [=](float v) { return v > least; });
    keep_where([&](float v, int) { return v > least || (v == least && equals-- > 0); });
  }

  // The k largest above 0, in s.found.
  void largest_k(int k) {
    if (k < 1) return keep_where([](float, int) { return false; });
    float reached = reached_by(z, encoder.n_padded, std::min(k, encoder.n), s.maxima);
    if (encoder.bytes)
      collect_wide(k, reached);
    else
      collect_narrow(reached);
    make_exact();
    keep_where([](float v, int) { return v > 0; });
    keep_largest(k);
  }

  // At least k are exactly no less than what k reach, less one bound: whoever is among the k largest is approximately
  // no less than that, less another.
  void collect_narrow(float reached) {
    float at = std::max(reached, LEAST);
    vec t = splat(at - (2 * by_norm * encoder.largest_norm + at * 8 * ROUNDING));
    collect([&](int i) { return approximate(i); }, [=](int) { return t; });
  }

  // Bounds that are wide and differ: first what k entries are exactly, then all those that may be as much.
  void collect_wide(int k, float reached) {
    float least = LEAST;
    if (reached > 0) {
      vec t = splat(reached);
      collect([&](int i) { return approximate(i); }, [=](int) { return t; });
      keep_largest(k);
      make_exact();
      float smallest = INF;
      for (int i = 0; i < s.found.n; i++) {
        z[s.found.latent[i]] = s.found.z[i];  // so that they are collected again, whatever their bounds
        smallest = s.found.z[i] < smallest || std::isnan(s.found.z[i]) ? s.found.z[i] : smallest;
      }
      if (smallest > 0) least = std::max(LEAST, smallest - smallest * 4 * ROUNDING);
    }
    collect([&](int i) { return at_most(i); }, [=](int) { return splat(least); });
  }

  // Every latent above its threshold, in s.found. thresholds: (n_padded,).
  void above(const float* thresholds) {
    collect([&](int i) { return at_most(i); }, [=](int i) {
      vec t = load(thresholds + i);
      return t - absolute(t) * (4 * ROUNDING);
    });
    make_exact();
    keep_where([&](float v, int latent) { return v > thresholds[latent]; });
  }
};

// What all threads need to select from a batch.
struct Selections {
  std::vector<Selection> of_thread;
  std::vector<Entries> of_chunk;
  std::vector<int32_t> counts;
};

// Codes of rows x (B, encoder.d): select(row) leaves in row.s.found what is to be kept of each.
template <class Select>
void encode(const Encoder& encoder, const float* x, int n_rows, Selections& selections, int threads, Codes& codes,
            Select select) {
  int64_t fitting = CHUNK_BYTES / (4 * (int64_t)encoder.n_padded) / STRIP * STRIP;
  int chunk = (int)std::min<int64_t>(std::max<int64_t>(fitting, FEWEST_ROWS), MOST_ROWS);
  int64_t n_chunks = (n_rows + chunk - 1) / chunk;
  codes.clear();
  auto& [of_thread, found, counts] = selections;
  of_thread.resize(std::max<size_t>(of_thread.size(), threads));
  found.resize(std::max<size_t>(found.size(), n_chunks));
  counts.assign(n_rows, 0);
  codes.finite.assign(n_rows, 1), codes.norm.assign(n_rows, 0.0f);
  for (auto& s : of_thread) s.audit = 0.0f;
  parallel(threads, n_chunks, [&](int64_t c, int thread) {
    Selection& s = selections.of_thread[thread];
    Entries& kept = selections.of_chunk[c];
    int32_t* count = &selections.counts[c * chunk];
    kept.n = 0;
    int first = (int)c * chunk, rows = std::min(chunk, n_rows - first);
    s.fit(encoder, chunk);
    encoder.ready(s.rows, x + (size_t)first * encoder.d, rows);
    encoder.product(s.rows, s.product.data());
    for (int r = 0; r < rows; r++) {
      codes.norm[first + r] = s.rows.norm[r];
      codes.finite[first + r] = s.rows.finite[r];
      if (!s.rows.finite[r]) continue;
      s.next_row();
      Row row{encoder, s, s.rows.x + (size_t)r * encoder.d, &s.product[(size_t)r * encoder.n_padded],
              s.rows.by_norm[r], s.rows.by_error[r], s.rows.norm[r] == 0.0f};
      if ((double)s.rows.norm[r] * encoder.largest_norm > MAY_OVERFLOW && !row.sound()) {
        codes.finite[first + r] = 0;
        continue;
      }
      select(row);
      count[r] = s.found.n;
      kept.append(s.found);
    }
  });
  codes.shape(counts);
  for (int64_t c = 0; c < n_chunks; c++) {
    std::copy_n(found[c].z.begin(), found[c].n, codes.z.begin() + codes.start[c * chunk]);
    std::copy_n(found[c].latent.begin(), found[c].n, codes.latent.begin() + codes.start[c * chunk]);
  }
  codes.audit = 0.0f;
  for (auto& s : of_thread) codes.audit = std::max(codes.audit, s.audit);
}

}  // namespace
