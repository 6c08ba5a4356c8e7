// Sharing of work between threads on a machine that is not ours alone.
//
// OpenMP ends every region with a barrier: where one thread of the team has lost its core to another
// process (the trainer, say), all spin until it gets one back, hundreds of times per step. Here the
// calling thread does whatever nobody else has taken, and waits only for chunks already begun.
#pragma once

#include <ATen/Parallel.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <thread>

namespace graftwork {

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline void pause_briefly() {
  for (int i = 0; i < 32; ++i) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }
}

// Threads that help a caller with its chunks. One caller is helped at a time.
class Helpers {
 public:
  using Chunk = void (*)(const void* context, int64_t begin, int64_t end);

  // Never destroyed: its threads sleep until the process ends.
  static Helpers& instance() {
    static Helpers* helpers = new Helpers;
    return *helpers;
  }

  static void run_alone(int64_t count, int64_t chunk, Chunk function, const void* context) {
    for (int64_t i = 0; i < count; i += chunk) function(context, i, std::min(i + chunk, count));
  }

  void run(int64_t count, int64_t chunk, int threads, Chunk function, const void* context) {
    std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
    if (!turn.owns_lock()) return run_alone(count, chunk, function, context);
    // Nobody is inside and the door is closed: the job may be written.
    job_ = {function, context, count, chunk, threads - 1};
    next_.store(0, std::memory_order_relaxed);
    for (; started_ < threads - 1; ++started_) start(started_);
    open_.store(true);
    calls_.fetch_add(1);
    calls_.notify_all();
    take_chunks();
    open_.store(false);
    // A helper that runs is done within microseconds. One that lost its core to another process is
    // waited for politely: it may need this one.
    for (int round = 0; inside_.load() != 0; ++round) {
      pause_briefly();
      if (round >= kPatience) sched_yield();
    }
  }

 private:
  struct Job {
    Chunk function;
    const void* context;
    int64_t count;
    int64_t chunk;
    int helpers;
  };

  void take_chunks() {
    const Job job = job_;
    for (int64_t i = next_.fetch_add(job.chunk); i < job.count; i = next_.fetch_add(job.chunk))
      job.function(job.context, i, std::min(i + job.chunk, job.count));
  }

  void start(int index) {
    sigset_t all, before;  // signals are for the threads of Python
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    std::thread([this, index] { help(index); }).detach();
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  [[noreturn]] void help(int index) {
    uint32_t seen = 0;
    for (;;) {
      wait_for_call(seen);
      seen = calls_.load();
      // A helper that finds the door open after stepping inside keeps the caller from leaving; one
      // that finds it closed has touched nothing.
      inside_.fetch_add(1);
      if (open_.load() && index < job_.helpers) take_chunks();
      inside_.fetch_sub(1);
    }
  }

  // The next call of a step comes within microseconds, so a helper looks out for it before it
  // sleeps. It does not yield: who yields to a thread of low priority, such as one that registers
  // an adapter, gets its core back only at the end of that one's turn, whereas who is woken up goes
  // first.
  void wait_for_call(uint32_t seen) {
    for (int round = 0; round < kPatience; ++round) {
      if (calls_.load() != seen) return;
      pause_briefly();
    }
    calls_.wait(seen);
  }

  static constexpr int kPatience = 200;  // rounds of pause_briefly, about 0.1 ms

  std::mutex turn_;  // held by the caller that is helped
  Job job_{};
  int started_ = 0;
  std::atomic<int64_t> next_{0};
  std::atomic<bool> open_{false};
  std::atomic<int> inside_{0};
  std::atomic<uint32_t> calls_{0};
};

// Calls run(begin, end) for the chunks of [0, count), of `chunk` items each and the last one shorter,
// in any order, on at most torch.get_num_threads() threads.
template <class Run>
void for_each_chunk(int64_t count, int64_t chunk, const Run& run) {
  const int threads = std::min<int64_t>(at::get_num_threads(), divide_up(count, chunk));
  const auto function = [](const void* context, int64_t begin, int64_t end) {
    (*static_cast<const Run*>(context))(begin, end);
  };
  if (threads <= 1)
    Helpers::run_alone(count, chunk, function, &run);
  else
    Helpers::instance().run(count, chunk, threads, function, &run);
}

}  // namespace graftwork
