// The threads of one parallel region, and their barrier.
//
// A whole model step runs in one region: forking per operation would cost more than a small operation takes. Work is
// split so that every output element is computed by one thread in an order that does not depend on the team's size.
#pragma once
#include <immintrin.h>
#include <omp.h>
#include <sched.h>

#include <atomic>
#include <cstdint>
#include <new>

namespace deepseek {

// Sense-reversing barrier. Spins for a few microseconds, then yields: on a busy machine the partner may not be running.
class Barrier {
 public:
  explicit Barrier(int size) : size_(size), waiting_(0), generation_(0) {}

  void wait() {
    if (size_ == 1) return;
    const uint32_t generation = generation_.load(std::memory_order_relaxed);
    if (waiting_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
      waiting_.store(0, std::memory_order_relaxed);
      generation_.store(generation + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; generation_.load(std::memory_order_acquire) == generation; ++spins) {
      if (spins < kSpins) {
        _mm_pause();
      } else {
        sched_yield();
      }
    }
  }

 private:
  static constexpr int kSpins = 4000;
  const int size_;
  alignas(64) std::atomic<int> waiting_;
  alignas(64) std::atomic<uint32_t> generation_;
};

struct Range {
  int begin, end;
};

struct Team {
  int rank;
  int size;
  Barrier* barrier;

  void sync() const { barrier->wait(); }

  // The contiguous share of [0, count) that belongs to this thread.
  Range share(int count) const {
    const int64_t n = count;
    return {static_cast<int>(n * rank / size), static_cast<int>(n * (rank + 1) / size)};
  }
};

// Runs body(team) on at most `threads` threads: as many as OpenMP gives.
template <class Body>
void parallel(int threads, const Body& body) {
  if (threads <= 1) {
    Barrier alone(1);
    body(Team{0, 1, &alone});
    return;
  }
  std::atomic<Barrier*> barrier{nullptr};
  alignas(Barrier) unsigned char room[sizeof(Barrier)];
#pragma omp parallel num_threads(threads)
  {
    const int rank = omp_get_thread_num();
    const int size = omp_get_num_threads();
    if (rank == 0) barrier.store(new (room) Barrier(size), std::memory_order_release);
    Barrier* shared;
    while ((shared = barrier.load(std::memory_order_acquire)) == nullptr) _mm_pause();
    body(Team{rank, size, shared});
  }
}

}  // namespace deepseek
