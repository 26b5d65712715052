// The exported functions, once for each instruction set. fewfire/kernels/native.py says what they do and calls them.
#include <algorithm>
#include <cmath>
#include <new>
#include <vector>

#include "codes.h"
#include "encoder.h"
#include "interface.h"
#include "parallel.h"
#include "step.h"

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define EXPORT(type, name) extern "C" __attribute__((visibility("default"))) type JOIN(fewfire_##name, FEWFIRE_ISA)

namespace {

constexpr int DONE = 0, OUT_OF_MEMORY = -1, TOO_FEW = 1;

// Everything that is needed again at the next step, so that its memory is.
struct Workspace {
  Encoder encoder, dead_encoder;
  std::vector<float> thresholds, dead_weights, dead_biases, bias_gradient, partial;
  std::vector<float> sorted;
  Selections selections;
  std::vector<Learner> learners;
  Contribution main, revival;
  More more;
};

template <class Work>
int guarded(Work work) {
  try {
    return work();
  } catch (...) {  // a size beyond what a vector can have is out of memory as well; nothing else is thrown
    return OUT_OF_MEMORY;
  }
}

// Codes of rows; without bytes if an error of theirs was larger than it may be.
template <class Select>
void find(Workspace& w, Encoder& encoder, const float* x, int rows, int threads, Codes& codes, Select select) {
  encode(encoder, x, rows, w.selections, threads, codes, select);
  if (!encoder.bytes || codes.audit <= 1.0f) return;
  encoder.pack(encoder.weights, encoder.bias, encoder.n, encoder.d, false, threads);
  encode(encoder, x, rows, w.selections, threads, codes, select);
}

int64_t pieces(int64_t n, int at_once) { return (n + at_once - 1) / at_once; }

// Sum over rows of the errors' gradients of the first prefix, which holds those of all: what b_dec gets. By blocks of
// rows and then over the blocks, so that the order does not depend on the threads.
void gather_bias_gradient(Workspace& w, int rows, int d, int threads) {
  int64_t blocks = pieces(rows, ROWS_AT_ONCE);
  w.partial.assign((size_t)blocks * d, 0.0f), w.bias_gradient.assign(d, 0.0f);
  parallel(threads, blocks, [&](int64_t b, int) {
    for (int r = (int)b * ROWS_AT_ONCE; r < std::min<int64_t>(rows, (b + 1) * ROWS_AT_ONCE); r++)
      add_scaled(1.0f, w.main.errors.of(r, 0), &w.partial[(size_t)b * d], d);
  });
  for (int64_t b = 0; b < blocks; b++) add_scaled(1.0f, &w.partial[(size_t)b * d], w.bias_gradient.data(), d);
}

// work(latent, learner) with every latent's gradient, each by one thread.
template <class Work>
void with_gradients(Workspace& w, const fewfire_model& m, const fewfire_batch& batch, const fewfire_loss& loss,
                    int threads, Work work) {
  w.learners.resize(std::max<size_t>(w.learners.size(), threads));
  const Contribution* contributions[2] = {&w.main, &w.revival};
  parallel(threads, pieces(m.n, LATENTS_AT_ONCE), [&](int64_t block, int thread) {
    Learner& learner = w.learners[thread];
    for (int l = (int)block * LATENTS_AT_ONCE; l < std::min<int64_t>(m.n, (block + 1) * LATENTS_AT_ONCE); l++) {
      learner.gather(m, batch, loss, l, contributions, w.more);
      work(l, learner);
    }
  });
}

double squared(const std::vector<float>& v) { return squares(v.data(), (int)v.size()); }

}  // namespace

EXPORT(void*, new)() { return new (std::nothrow) Workspace(); }

EXPORT(void, free)(void* workspace) { delete (Workspace*)workspace; }

// Weights (n, d) and biases (n,) as they are now, for the products that follow. bytes 0: never round to bytes.
EXPORT(int, pack)(void* workspace, const float* weights, const float* biases, int32_t n, int32_t d, int32_t bytes,
                  int32_t threads) {
  auto& w = *(Workspace*)workspace;
  return guarded([&] {
    w.encoder.pack(weights, biases, n, d, bytes, threads);
    return DONE;
  });
}

// The k largest positive pre-activations of each row.
EXPORT(int, largest)(void* workspace, const float* x, int32_t rows, int32_t k, int32_t threads) {
  auto& w = *(Workspace*)workspace;
  return guarded([&] {
    find(w, w.encoder, x, rows, threads, w.main.codes, [k](Row& row) { row.largest_k(k); });
    return DONE;
  });
}

// Pre-activations above thresholds (n,).
EXPORT(int, above)(void* workspace, const float* x, int32_t rows, const float* thresholds, int32_t threads) {
  auto& w = *(Workspace*)workspace;
  return guarded([&] {
    w.thresholds.assign(w.encoder.n_padded, INF);
    std::copy(thresholds, thresholds + w.encoder.n, w.thresholds.begin());
    find(w, w.encoder, x, rows, threads, w.main.codes, [&](Row& row) { row.above(w.thresholds.data()); });
    return DONE;
  });
}

// Of the entries, those that exceed the (kept + 1)-th largest, which is returned; TOO_FEW: there are not so many.
EXPORT(int, keep)(void* workspace, int64_t kept, float* lowest) {
  auto& w = *(Workspace*)workspace;
  return guarded([&] {
    Codes& codes = w.main.codes;
    if (codes.size() <= kept) return TOO_FEW;
    w.sorted = codes.z;
    std::nth_element(w.sorted.begin(), w.sorted.begin() + kept, w.sorted.end(), std::greater<float>());
    *lowest = w.sorted[kept];
    int64_t at = 0, i = 0;
    for (int r = 0; r < codes.rows(); r++) {
      int64_t last = codes.start[r + 1];
      codes.start[r] = at;
      for (; i < last; i++)
        if (codes.z[i] > *lowest) codes.z[at] = codes.z[i], codes.latent[at++] = codes.latent[i];
    }
    codes.start[codes.rows()] = at;
    codes.z.resize(at), codes.latent.resize(at), codes.gradient.resize(at);
    return DONE;
  });
}

EXPORT(int64_t, entries)(void* workspace) { return ((Workspace*)workspace)->main.codes.size(); }

EXPORT(float, audit)(void* workspace) { return ((Workspace*)workspace)->main.codes.audit; }

// The codes: start (rows + 1,), latent and z (entries,), finite (rows,).
EXPORT(void, copy)(void* workspace, int64_t* start, int32_t* latent, float* z, uint8_t* finite) {
  const Codes& codes = ((Workspace*)workspace)->main.codes;
  std::copy(codes.start.begin(), codes.start.end(), start);
  std::copy(codes.latent.begin(), codes.latent.end(), latent);
  std::copy(codes.z.begin(), codes.z.end(), z);
  std::copy(codes.finite.begin(), codes.finite.end(), finite);
}

// The most entries of any row.
EXPORT(int64_t, most)(void* workspace) {
  const Codes& codes = ((Workspace*)workspace)->main.codes;
  int64_t most = 0;
  for (int r = 0; r < codes.rows(); r++) most = std::max(most, codes.start[r + 1] - codes.start[r]);
  return most;
}

// The codes with as many entries a row: latent and z (rows, width), filled up with latent 0 and 0.
EXPORT(void, pad)(void* workspace, int64_t width, int64_t* latent, float* z) {
  const Codes& codes = ((Workspace*)workspace)->main.codes;
  for (int r = 0; r < codes.rows(); r++, latent += width, z += width) {
    int64_t first = codes.start[r], n = codes.start[r + 1] - first;
    std::copy_n(codes.latent.data() + first, n, latent), std::copy_n(codes.z.data() + first, n, z);
    std::fill(latent + n, latent + width, 0), std::fill(z + n, z + width, 0.0f);
  }
}

// Reconstructions, their squared errors summed over the rows (n_prefixes,), the gradients of all entries, which latents
// fired (n,), how many entries did, their sum, and a number that no gradient of a weight exceeds; infinity if rows or weights are
// not finite.
EXPORT(int, reconstruct)(void* workspace, const fewfire_model* m, const fewfire_batch* batch, const fewfire_loss* loss,
                         double* errors, uint8_t* fired, int64_t* active, double* total, double* largest, int32_t threads) {
  auto& w = *(Workspace*)workspace;
  return guarded([&] {
    Contribution& c = w.main;
    c.used = true, w.revival.used = false, w.more.slot.clear();
    c.errors.shape(batch->rows, loss->n_prefixes, m->d_out);
    c.largest.assign(batch->rows, 0.0), c.value = c.codes.z;
    int64_t count = 0;  // in registers: through the pointers, every addition would wait for the one before
    double sum = 0;
    std::fill(fired, fired + m->n, 0);
    for (int64_t i = 0; i < c.codes.size(); i++) {
      int l = c.codes.latent[i];
      if (loss->threshold && !(c.value[i] > loss->threshold[l])) c.value[i] = 0.0f;
      if (c.value[i] > 0) fired[l] = 1, count++, sum += c.value[i];
    }
    *active = count, *total = sum;
    parallel(threads, pieces(batch->rows, ROWS_AT_ONCE), [&](int64_t b, int) {
      for (int r = (int)b * ROWS_AT_ONCE; r < std::min<int64_t>(batch->rows, (b + 1) * ROWS_AT_ONCE); r++)
        reconstruct_row(*m, *loss, batch->x + (size_t)r * m->d_out, r, c);
    });
    gather_bias_gradient(w, batch->rows, m->d_out, threads);
    c.by_latent.gather(c.codes, m->n);
    std::fill(errors, errors + loss->n_prefixes, 0.0);
    bool finite = w.encoder.finite;
    if (loss->threshold) finite = finite && extent(loss->threshold, m->n).finite;
    *largest = finite ? 0.0 : INF;
    for (int r = 0; r < batch->rows; r++) {
      for (int p = 0; p < loss->n_prefixes; p++) errors[p] += c.errors.loss[(size_t)r * loss->n_prefixes + p];
      *largest += c.codes.finite[r] ? c.largest[r] : INF;
    }
    return DONE;
  });
}

// What the reconstruction from all latents leaves over, x - recon: (rows, d_out).
EXPORT(int, left_over)(void* workspace, const fewfire_model* m, const fewfire_batch* batch, const fewfire_loss* loss,
                       float* out, int32_t threads) {
  auto& w = *(Workspace*)workspace;
  return guarded([&] {
    int last = loss->n_prefixes - 1, d = m->d_out;
    float undo = -1.0f / loss->slope[last];
    parallel(threads, pieces(batch->rows, ROWS_AT_ONCE), [&](int64_t b, int) {
      for (int r = (int)b * ROWS_AT_ONCE; r < std::min<int64_t>(batch->rows, (b + 1) * ROWS_AT_ONCE); r++) {
        const float* error = w.main.errors.of(r, last);
        for_vectors(d, [&](int i, auto part) { store(out + (size_t)r * d + i, load(error + i, part) * undo, part); });
      }
    });
    return DONE;
  });
}

// out (m, n) = a (m, d) times b (n, d) transposed. Every number is summed by one thread, in one order.
EXPORT(int, product)(void* workspace, const float* a, int32_t m, const float* b, int32_t n, int32_t d, float* out,
                     int32_t threads) {
  auto& w = *(Workspace*)workspace;
  return guarded([&] {
    w.dead_biases.assign(n, 0.0f);
    w.dead_encoder.pack(b, w.dead_biases.data(), n, d, false, threads);
    w.selections.of_thread.resize(std::max<size_t>(w.selections.of_thread.size(), threads));
    parallel(threads, pieces(m, MOST_ROWS), [&](int64_t block, int thread) {
      Selection& s = w.selections.of_thread[thread];
      int first = (int)block * MOST_ROWS, rows = std::min(MOST_ROWS, m - first), width = w.dead_encoder.n_padded;
      s.product.resize(std::max(s.product.size(), (size_t)rows * width));
      s.rows.x = a + (size_t)first * d, s.rows.n = rows;
      w.dead_encoder.product(s.rows, s.product.data());
      for (int r = 0; r < rows; r++) std::copy_n(&s.product[(size_t)r * width], n, out + (size_t)(first + r) * n);
    });
    return DONE;
  });
}

// Gradients of latents (n_more,) that join what the codes give, until the next reconstruction.
EXPORT(int, join)(void* workspace, const fewfire_model* m, const int32_t* latents, int32_t n_more, const float* W_enc,
                  const float* b_enc, const float* W_dec) {
  auto& w = *(Workspace*)workspace;
  return guarded([&] {
    w.more.slot.assign(m->n, -1);
    for (int j = 0; j < n_more; j++) w.more.slot[latents[j]] = j;
    w.more.W_enc = W_enc, w.more.b_enc = b_enc, w.more.W_dec = W_dec;
    return DONE;
  });
}

// AuxK: dead latents (n_dead,), rising, of which the k largest of each row reconstruct what is left over. Adds to
// `largest`; `error` is their squared error, summed over the rows.
EXPORT(int, revive)(void* workspace, const fewfire_model* m, const fewfire_batch* batch, const fewfire_loss* loss,
                    const int32_t* dead, int32_t n_dead, int32_t k, float slope, int32_t bytes, double* error,
                    double* largest, int32_t threads) {
  auto& w = *(Workspace*)workspace;
  return guarded([&] {
    Contribution& c = w.revival;
    w.dead_weights.resize((size_t)n_dead * m->d_in), w.dead_biases.resize(n_dead);
    for (int j = 0; j < n_dead; j++) {
      std::copy_n(m->W_enc + (size_t)dead[j] * m->d_in, m->d_in, &w.dead_weights[(size_t)j * m->d_in]);
      w.dead_biases[j] = m->b_enc[dead[j]];
    }
    w.dead_encoder.pack(w.dead_weights.data(), w.dead_biases.data(), n_dead, m->d_in, bytes, threads);
    find(w, w.dead_encoder, batch->x_in, batch->rows, threads, c.codes, [k](Row& row) { row.largest_k(k); });
    for (int32_t& l : c.codes.latent) l = dead[l];
    c.used = true;
    c.errors.shape(batch->rows, 1, m->d_out);
    c.largest.assign(batch->rows, 0.0), c.value = c.codes.z;
    int last = loss->n_prefixes - 1;
    parallel(threads, pieces(batch->rows, ROWS_AT_ONCE), [&](int64_t b, int) {
      for (int r = (int)b * ROWS_AT_ONCE; r < std::min<int64_t>(batch->rows, (b + 1) * ROWS_AT_ONCE); r++)
        revive_row(*m, w.main.errors.of(r, last), loss->slope[last], slope, r, c);
    });
    c.by_latent.gather(c.codes, m->n);
    *error = 0;
    for (int r = 0; r < batch->rows; r++) *error += c.errors.loss[r], *largest += c.largest[r];
    return DONE;
  });
}

// The Euclidean norm of the gradient of weights and biases, and of thresholds.
EXPORT(int, norm)(void* workspace, const fewfire_model* m, const fewfire_batch* batch, const fewfire_loss* loss,
                  double* norm, int32_t threads) {
  auto& w = *(Workspace*)workspace;
  return guarded([&] {
    std::vector<double> by_latent(m->n, 0.0);
    with_gradients(w, *m, *batch, *loss, threads, [&](int l, const Learner& g) {
      by_latent[l] = g.threshold * g.threshold + (double)g.bias * g.bias;
      if (g.any) by_latent[l] += squared(g.encoder) + squared(g.decoder);
    });
    double total = squared(w.bias_gradient);
    for (double square : by_latent) total += square;
    *norm = std::sqrt(total);
    return DONE;
  });
}

// One step of Adam with the gradient times `factor`, and decoder rows back to norm 1. threshold_gradient (n,) or null.
EXPORT(int, update)(void* workspace, const fewfire_model* m, const fewfire_batch* batch, const fewfire_loss* loss,
                    const fewfire_adam* a, float factor, float* threshold_gradient, int32_t threads) {
  auto& w = *(Workspace*)workspace;
  return guarded([&] {
    with_gradients(w, *m, *batch, *loss, threads, [&](int l, const Learner& learner) {
      if (threshold_gradient) threshold_gradient[l] = (float)learner.threshold * factor;
      learn(*m, *a, learner, l, factor);
    });
    adam(*a, 3, 0, m->b_dec, w.bias_gradient.data(), m->d_out, factor);
    return DONE;
  });
}
