// Work in pieces, taken from one counter by whichever thread is free.
#pragma once
#include <atomic>
#include <cstdint>
#include <new>
#include <thread>
#include <vector>

namespace {

// work(piece, thread) for every piece. No result may depend on which thread took a piece: each writes what is its own.
template <class Work>
void parallel(int threads, int64_t pieces, Work work) {
  std::atomic<int64_t> next{0};
  std::atomic<bool> out_of_memory{false};
  auto take = [&](int thread) {
    try {
      for (int64_t piece; !out_of_memory && (piece = next.fetch_add(1)) < pieces;) work(piece, thread);
    } catch (...) {  // nothing else is thrown here; and nothing may leave a thread
      out_of_memory = true;
    }
  };
  std::vector<std::thread> others;
  others.reserve(threads);
  for (int t = 1; t < threads && t < pieces; t++) {
    try {
      others.emplace_back(take, t);
    } catch (...) {  // the system gives no more threads: those that run do it all
      break;
    }
  }
  take(0);
  for (auto& other : others) other.join();
  if (out_of_memory) throw std::bad_alloc();
}

}  // namespace
