// What Python hands over: plain numbers and pointers to memory that it keeps. fewfire/kernels/native.py mirrors it.
#pragma once
#include <cstdint>

#include "abi.h"

// Pointers to averages and squares of W_enc, b_enc, W_dec, b_dec, in this order, and what the step's number makes of
// the rate: rate = lr / (1 - beta1^t), root_correction = 1 / sqrt(1 - beta2^t).
struct fewfire_adam {
  float* average[4];
  float* square[4];
  float rate[4];
  float root_correction[4];
  float beta1, one_minus_beta1, beta2, one_minus_beta2, eps;
};

struct fewfire_model {
  int32_t n, d_in, d_out;
  int32_t unit_norm;
  float *W_enc, *b_enc;  // (n, d_in), (n,)
  float *W_dec, *b_dec;  // (n, d_out), (d_out,)
};

struct fewfire_batch {
  int32_t rows;
  const float* x_in;  // (rows, d_in)
  const float* x;     // (rows, d_out)
};

// The objective, as far as it has slopes. Reconstructions from the latents below prefix[p], for every p < n_prefixes.
struct fewfire_loss {
  int32_t n_prefixes;
  const int32_t* prefix;
  const float* slope;      // (n_prefixes,): twice the weight of a squared error
  float l1;                // of the sum of latents
  const float* threshold;  // (n,) or null: latents are 0 up to here, and their thresholds learn ...
  float width;             // ... in a window of this width around it ...
  float step_slope;        // ... also from what each that fires costs, besides its value
};
