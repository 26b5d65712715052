// From codes to new parameters: reconstruction errors, gradients, Adam. No gradient of a weight is ever stored.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "codes.h"
#include "interface.h"

namespace {

constexpr int ROWS_AT_ONCE = 32;     // rows of a batch that a thread takes
constexpr int LATENTS_AT_ONCE = 64;  // latents

// Gradients of the loss by the reconstructions, as every latent meets them: (rows, prefixes, d).
struct Errors {
  int d = 0, n_prefixes = 1;
  std::vector<float> gradient;
  std::vector<double> loss;  // (rows, prefixes): squared errors

  void shape(int rows, int prefixes, int width) {
    d = width, n_prefixes = prefixes;
    gradient.resize((size_t)rows * prefixes * width);
    loss.assign((size_t)rows * prefixes, 0.0);
  }
  float* of(int64_t row, int prefix) { return &gradient[(row * n_prefixes + prefix) * d]; }
  const float* of(int64_t row, int prefix) const { return &gradient[(row * n_prefixes + prefix) * d]; }
};

// y += sum of value[i] * weights[latent[i]], four rows of the weights at a time.
inline void add_rows(const float* value, const int32_t* latent, int64_t n, const float* weights, float* y, int d) {
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) {
    const float* w[4];
    for (int u = 0; u < 4; u++) w[u] = weights + (size_t)latent[i + u] * d;
    for (int64_t ahead = i + 4; ahead < std::min(n, i + 8); ahead++) prefetch(weights + (size_t)latent[ahead] * d, d);
    for_vectors(d, [&](int j, auto part) {
      vec s = load(y + j, part) + value[i] * load(w[0] + j, part) + value[i + 1] * load(w[1] + j, part);
      store(y + j, s + value[i + 2] * load(w[2] + j, part) + value[i + 3] * load(w[3] + j, part), part);
    });
  }
  for (; i < n; i++) add_scaled(value[i], weights + (size_t)latent[i] * d, y, d);
}

inline double squares(const float* x, int d) {
  double total = 0;
  for (int i = 0; i < d; i += 1024) total += dot(x + i, x + i, std::min(1024, d - i));
  return total;
}

// Where a latent fires: its entries among the codes, gathered by counting. row[j], entry[j] for j from start[l] on.
struct ByLatent {
  std::vector<int64_t> start;
  std::vector<int32_t> row;
  std::vector<int64_t> entry;

  void gather(const Codes& codes, int n_latents) {
    start.assign(n_latents + 1, 0);
    row.resize(codes.size()), entry.resize(codes.size());
    for (int32_t l : codes.latent) start[l + 1]++;
    for (int l = 0; l < n_latents; l++) start[l + 1] += start[l];
    std::vector<int64_t> next(start.begin(), start.end() - 1);
    for (int r = 0; r < codes.rows(); r++)
      for (int64_t i = codes.start[r]; i < codes.start[r + 1]; i++) {
        int64_t at = next[codes.latent[i]]++;
        row[at] = r, entry[at] = i;
      }
  }
};

// Columns of sum_rows from i on, as many at once as VECTORS hold; where it stopped.
template <int VECTORS>
inline int sum_columns(const float* factor, const float* const* rows, int64_t n, float* out, int d, int i) {
  for (; i + VECTORS * LANES <= d; i += VECTORS * LANES) {
    vec s[VECTORS]{};
    for (int64_t j = 0; j < n; j++)
#pragma GCC unroll 8
      for (int u = 0; u < VECTORS; u++) s[u] += factor[j] * load(rows[j] + i + u * LANES);
#pragma GCC unroll 8
    for (int u = 0; u < VECTORS; u++) store(out + i + u * LANES, s[u]);
  }
  return i;
}

// out (d,) = sum over j of factor[j] * rows[j], the sums in registers: side by side, for each waits for its last.
inline void sum_rows(const float* factor, const float* const* rows, int64_t n, float* out, int d) {
  int i = sum_columns<8>(factor, rows, n, out, d, 0);
  i = sum_columns<4>(factor, rows, n, out, d, i);
  i = sum_columns<2>(factor, rows, n, out, d, i);
  for_vectors(d - i, [&](int at, auto part) {
    vec s{};
    for (int64_t j = 0; j < n; j++) s += factor[j] * load(rows[j] + i + at, part);
    store(out + i + at, s, part);
  });
}

// Kingma & Ba 2015, algorithm 1, on a row of n numbers. gradient nullptr: it is 0.
inline void adam(const fewfire_adam& a, int which, size_t offset, float* p, const float* gradient, int n, float factor) {
  float *m = a.average[which] + offset, *v = a.square[which] + offset;
  float rate = a.rate[which], root_correction = a.root_correction[which];
  for_vectors(n, [&](int i, auto part) {
    vec g = gradient ? load(gradient + i, part) * factor : vec{};
    vec average = load(m + i, part), square = load(v + i, part);
    average = average * a.beta1 + g * a.one_minus_beta1;
    square = square * a.beta2 + g * g * a.one_minus_beta2;
    vec step = average / (root(square) * root_correction + a.eps);
    store(m + i, average, part), store(v + i, square, part);
    store(p + i, load(p + i, part) - rate * step, part);
  });
}

// Entries and the errors that they answer to: the codes themselves, or what AuxK adds for dead latents.
struct Contribution {
  Codes codes;
  ByLatent by_latent;
  Errors errors;
  std::vector<float> value;      // (entries,) what the decoder reads
  std::vector<double> largest;  // (rows,) no gradient of a weight is larger than their sum
  bool used = false;            // at this step
};

inline int prefix_of(const fewfire_loss& loss, int latent, int from = 0) {
  while (latent >= loss.prefix[from]) from++;
  return from;
}

// Reconstruct one row from each prefix of its latents; errors, their squares, and the gradient that each entry gets.
inline void reconstruct_row(const fewfire_model& m, const fewfire_loss& loss, const float* x, int row, Contribution& c) {
  Codes& codes = c.codes;
  int d = m.d_out, n_prefixes = loss.n_prefixes;
  int64_t i = codes.start[row], last = codes.start[row + 1];
  float* error = c.errors.of(row, n_prefixes - 1);
  for_vectors(d, [&](int j, auto part) { store(error + j, load(m.b_dec + j, part) - load(x + j, part), part); });
  double largest_error = 0;
  for (int p = 0; p < n_prefixes; p++) {
    int64_t first = i;
    while (i < last && codes.latent[i] < loss.prefix[p]) i++;
    add_rows(c.value.data() + first, codes.latent.data() + first, i - first, m.W_dec, error, d);
    double square = c.errors.loss[(size_t)row * n_prefixes + p] = squares(error, d);
    largest_error += loss.slope[p] * std::sqrt(square);
    if (p < n_prefixes - 1)
      std::memcpy(c.errors.of(row, p), error, 4 * (size_t)d);
  }
  for (int p = n_prefixes - 1; p >= 0; p--) {  // a latent is in its own prefix and in all after it
    float *own = c.errors.of(row, p), slope = loss.slope[p];
    const float* after = p < n_prefixes - 1 ? c.errors.of(row, p + 1) : nullptr;
    for_vectors(d, [&](int j, auto part) {
      vec v = load(own + j, part) * slope;
      store(own + j, after ? v + load(after + j, part) : v, part);
    });
  }
  double values = 0, gradients = 0, thresholds = 0;
  int prefix = 0;
  for (i = codes.start[row]; i < last; i++) {
    int l = codes.latent[i];
    prefix = prefix_of(loss, l, prefix);
    float g = dot(c.errors.of(row, prefix), m.W_dec + (size_t)l * d, d) + (c.value[i] > 0 ? loss.l1 : 0.0f);
    codes.gradient[i] = g;
    values += c.value[i], gradients += std::fabs(g);
    if (loss.threshold) thresholds += (std::fabs(loss.threshold[l] * (double)g) + loss.step_slope) / loss.width;
  }
  c.largest[row] = values * largest_error + gradients * codes.norm[row] + largest_error + thresholds;
}

// Dead latents reconstruct what is left over, error = reconstruction - x, with its sign turned: slope times what they
// leave of it in turn is their errors' gradient.
inline void revive_row(const fewfire_model& m, const float* error, float error_slope, float slope, int row,
                       Contribution& c) {
  Codes& codes = c.codes;
  int d = m.d_out;
  int64_t first = codes.start[row], last = codes.start[row + 1];
  float *own = c.errors.of(row, 0), undo = 1.0f / error_slope;
  for_vectors(d, [&](int j, auto part) { store(own + j, load(error + j, part) * undo, part); });
  add_rows(c.value.data() + first, codes.latent.data() + first, last - first, m.W_dec, own, d);
  double square = c.errors.loss[row] = squares(own, d);
  for_vectors(d, [&](int j, auto part) { store(own + j, load(own + j, part) * slope, part); });
  double values = 0, gradients = 0;
  for (int64_t i = first; i < last; i++) {
    codes.gradient[i] = dot(own, m.W_dec + (size_t)codes.latent[i] * d, d);
    values += c.value[i], gradients += std::fabs(codes.gradient[i]);
  }
  c.largest[row] = values * slope * std::sqrt(square) + gradients * codes.norm[row];
}

// Gradients that come from elsewhere: of some latents, (their number, d_in), (their number,), (their number, d_out).
struct More {
  std::vector<int32_t> slot;  // (latents,), minus 1 for those that get none; empty: none does
  const float *W_enc = nullptr, *b_enc = nullptr, *W_dec = nullptr;

  int of(int latent) const { return slot.empty() ? -1 : slot[latent]; }
};

// The gradient of one latent's weights, gathered from the rows on which it fires.
struct Learner {
  std::vector<float> by_row, by_value, encoder, decoder;
  std::vector<const float*> rows, errors;
  int64_t n;  // of these four: how many are this latent's
  float bias;
  double threshold;
  bool any;

  void gather(const fewfire_model& m, const fewfire_batch& batch, const fewfire_loss& loss, int latent,
              const Contribution* contributions[2], const More& more) {
    n = 0, bias = 0.0f, threshold = 0.0;
    for (int k = 0; k < 2; k++)
      if (contributions[k]->used) add(m, batch, loss, latent, *contributions[k], k == 0);
    int slot = more.of(latent);
    any = n > 0 || slot >= 0;
    if (!any) return;
    encoder.resize(m.d_in), decoder.resize(m.d_out);
    sum_rows(by_row.data(), rows.data(), n, encoder.data(), m.d_in);
    sum_rows(by_value.data(), errors.data(), n, decoder.data(), m.d_out);
    if (slot >= 0) {
      add_scaled(1.0f, more.W_enc + (size_t)slot * m.d_in, encoder.data(), m.d_in);
      add_scaled(1.0f, more.W_dec + (size_t)slot * m.d_out, decoder.data(), m.d_out);
      bias += more.b_enc[slot];
    }
    if (m.unit_norm) {
      const float* w = m.W_dec + (size_t)latent * m.d_out;
      add_scaled(-dot(decoder.data(), w, m.d_out), w, decoder.data(), m.d_out);
    }
  }

 private:
  void add(const fewfire_model& m, const fewfire_batch& batch, const fewfire_loss& loss, int latent,
           const Contribution& c, bool main) {
    int prefix = main ? prefix_of(loss, latent) : 0;
    float t = loss.threshold && main ? loss.threshold[latent] : 0.0f;
    int64_t first = c.by_latent.start[latent], last = c.by_latent.start[latent + 1];
    room(n + last - first);
    for (int64_t j = first; j < last; j++) {
      int64_t i = c.by_latent.entry[j];
      float g = c.codes.gradient[i];
      if (loss.threshold && main && std::fabs(c.codes.z[i] - t) < loss.width / 2)
        threshold -= (t * g + loss.step_slope) / loss.width;
      if (!(c.value[i] > 0)) continue;  // within the window, not yet above the threshold
      int row = c.by_latent.row[j];
      by_row[n] = g, rows[n] = batch.x_in + (size_t)row * m.d_in;
      by_value[n] = c.value[i], errors[n++] = c.errors.of(row, prefix);
      bias += g;
    }
  }

  void room(int64_t most) {
    if ((int64_t)rows.size() >= most) return;
    by_row.resize(most), by_value.resize(most), rows.resize(most), errors.resize(most);
  }
};

// Move one latent's weights; `factor` scales its gradient.
inline void learn(const fewfire_model& m, const fewfire_adam& a, const Learner& learner, int latent, float factor) {
  size_t in = (size_t)latent * m.d_in, out = (size_t)latent * m.d_out;
  float* w = m.W_dec + out;
  adam(a, 0, in, m.W_enc + in, learner.any ? learner.encoder.data() : nullptr, m.d_in, factor);
  float bias = learner.bias;
  adam(a, 1, latent, m.b_enc + latent, &bias, 1, factor);
  adam(a, 2, out, w, learner.any ? learner.decoder.data() : nullptr, m.d_out, factor);
  if (!m.unit_norm) return;
  float scale = 1.0f / std::max(std::sqrt(dot(w, w, m.d_out)), SMALLEST);
  for_vectors(m.d_out, [&](int i, auto part) { store(w + i, load(w + i, part) * scale, part); });
}

}  // namespace
