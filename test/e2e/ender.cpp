// A program in the midst of everything - kernels that run on each device and fault, attributes, pins, adopted memory, a
// thread whose stack is adopted - which then ends, executes, spawns, or goes on while it is stopped.
//
//   e2e_ender exit | quick | from_thread | exec | vfork | spawn | threads | rounds
//
// Says "ready" when all of that is under way, "round N" in `rounds`, "WRONG ..." where a byte is not what it must be.
// Exit status 0: all well.
#include <poll.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ferry/svm.hpp>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

extern char** environ;

namespace {

constexpr std::size_t page = 4096;
constexpr std::size_t pages = 128;
using Word = std::uint64_t;

[[noreturn]] void wrong(const char* what, std::size_t where) {
  std::printf("WRONG %s: page %zu\n", what, where);
  std::fflush(stdout);
  std::_Exit(3);
}

void say(const char* what) {
  std::printf("%s\n", what);
  std::fflush(stdout);
}

/// Kernels and threads add to words of every page; each has its own word, and knows how often it has been round.
class Midst {
 public:
  Midst() {
    base_ = static_cast<char*>(ferry_alloc_aligned(pages * page, std::size_t{2} << 20, FERRY_AUTOMATIC, nullptr));
    heap_ = static_cast<char*>(std::aligned_alloc(page, pages / 4 * page));
    if (base_ == nullptr || heap_ == nullptr) wrong("memory", 0);
    std::memset(base_, 0, pages * page);
    std::memset(heap_, 0, pages / 4 * page);
    ferry::attributes().clear(ferry::svm_flag::coherent).apply(base_, pages / 4 * page);
    ferry::attributes().preferred(1).granularity(2).apply(base_ + pages / 4 * page, pages / 4 * page);
    held_ = std::make_unique<ferry::pin>(base_ + pages / 2 * page, 8 * page);
    flag_ = static_cast<Word*>(ferry::alloc(page, ferry::placement::system));
    std::memset(flag_, 0, page);
    for (unsigned d = 0; d < 2; ++d) {
      queues_.emplace_back(d);
      running_.push_back(
          queues_[d].launch({.items = 2, .wave = 1}, [base = base_, heap = heap_, flag = flag_, d](ferry::item i) {
            const std::size_t own = 1 + 2 * d + i.global();
            while (__atomic_load_n(flag, __ATOMIC_ACQUIRE) == 0) {
              walk(base, pages, own);
              walk(heap, pages / 4, own);
              __atomic_fetch_add(flag + own, 1, __ATOMIC_RELEASE);
            }
          }));
    }
    for (unsigned t = 0; t < 2; ++t) {
      threads_.emplace_back([this, t] {
        // What it counts in lies on its stack, and a device counts there too.
        Word local[2] = {0, 0};
        ferry::queue own(t);
        while (!stop_.load()) {
          walk(base_, pages, 5 + t);
          walk(heap_, pages / 4, 5 + t);
          ++local[0];
          own.parallel_for(1, [at = local](std::size_t) { ++at[1]; }).wait();
          if (local[0] != local[1]) wrong("stack", local[0]);
          __atomic_fetch_add(flag_ + 5 + t, 1, __ATOMIC_RELEASE);
        }
      });
    }
    wait_rounds(1);
  }
  /// Everybody has been round so often again.
  void wait_rounds(Word more) const {
    for (unsigned who = 1; who <= 6; ++who) {
      const Word until = __atomic_load_n(flag_ + who, __ATOMIC_ACQUIRE) + more;
      while (__atomic_load_n(flag_ + who, __ATOMIC_ACQUIRE) < until) std::this_thread::yield();
    }
  }
  /// Ends it all well, and looks at every word.
  void finish() {
    stop_ = true;
    for (std::thread& t : threads_) t.join();
    __atomic_store_n(flag_, 1, __ATOMIC_RELEASE);
    for (ferry::completion& r : running_) r.wait();
    for (std::size_t p = 0; p < pages; ++p) {
      for (unsigned who = 1; who <= 6; ++who) {
        if (reinterpret_cast<Word*>(base_ + p * page)[who] != flag_[who]) wrong("managed", p);
        if (p < pages / 4 && reinterpret_cast<Word*>(heap_ + p * page)[who] != flag_[who]) wrong("adopted", p);
      }
    }
    held_.reset();
    ferry::free(base_);
    ferry::free(flag_);
    std::free(heap_);
  }

 private:
  static void walk(char* base, std::size_t count, std::size_t own) {
    for (std::size_t p = 0; p < count; ++p) {
      Word* const word = reinterpret_cast<Word*>(base + p * page) + own;
      __atomic_store_n(word, __atomic_load_n(word, __ATOMIC_RELAXED) + 1, __ATOMIC_RELAXED);
    }
  }
  char* base_ = nullptr;
  char* heap_ = nullptr;
  Word* flag_ = nullptr;
  std::unique_ptr<ferry::pin> held_;
  std::vector<ferry::queue> queues_;
  std::vector<ferry::completion> running_;
  std::vector<std::thread> threads_;
  std::atomic<bool> stop_{false};
};

int wait_for(pid_t child) {
  int status = -1;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {}
  return status;
}

int end_by(const std::string& how) {
  // Never destroyed: what runs goes on running.
  static Midst* const midst = new Midst;
  say("ready");
  if (how == "exit") std::exit(0);
  if (how == "quick") std::_Exit(0);
  if (how == "exec") execlp("true", "true", nullptr);
  if (how == "from_thread") {
    std::thread([] { std::exit(0); }).detach();
    for (;;) pause();
  }
  midst->finish();
  return 1;
}

[[gnu::noinline]] pid_t start_by_vfork(const volatile Word* word, const Word round) {
  const char* const program = round % 4 == 0 ? "no such program" : "true";
  const pid_t child = vfork();
  if (child == 0) {
    if (*word != round) _exit(9);
    execlp(program, "true", nullptr);
    _exit(77);
  }
  return child;
}

/// The child of a vfork has the parent's memory until it executes; posix_spawn is made of it.
int start_others(bool spawns) {
  Midst midst;
  say("ready");
  Word* const word = static_cast<Word*>(ferry::alloc(page));
  for (Word round = 1; round <= 6; ++round) {
    ferry::parallel_for(1, [word](std::size_t) { ++*word; });  // in VRAM when the child looks
    pid_t child = -1;
    if (spawns) {
      char name[] = "true";
      char* arguments[] = {name, nullptr};
      if (posix_spawnp(&child, name, nullptr, nullptr, arguments, environ) != 0) wrong("spawn", round);
    } else {
      child = start_by_vfork(word, round);
    }
    const int status = wait_for(child);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != (!spawns && round % 4 == 0 ? 77 : 0)) wrong("child", round);
    if (*word != round) wrong("word", round);
    midst.wait_rounds(1);
  }
  midst.finish();
  ferry::free(word);
  return 0;
}

/// Threads that end while pages of theirs are on their way, and whose stacks devices have had: the next ones get the same.
int end_threads() {
  Midst midst;
  say("ready");
  for (unsigned round = 0; round < 60; ++round) {
    char* const p = static_cast<char*>(ferry::alloc(64 * page));
    std::memset(p, 1, 64 * page);
    ferry::parallel_for(64, [p](std::size_t i) { p[i * page] = 2; });
    std::vector<std::thread> threads;
    for (unsigned t = 0; t < 4; ++t) {
      threads.emplace_back([p, t] {
        Word local = 5;
        ferry::parallel_for(1, [at = &local](std::size_t) { ++*at; });
        if (local != 6) wrong("stack of a thread", t);
        for (std::size_t i = t; i < 64; i += 4) {
          if (p[i * page] != 2) wrong("page of a thread", i);
        }
        pthread_exit(nullptr);
      });
    }
    for (std::thread& t : threads) t.join();
    ferry::free(p);
  }
  midst.finish();
  return 0;
}

int rounds() {
  Midst midst;
  say("ready");
  for (unsigned round = 0;; ++round) {
    pollfd in{STDIN_FILENO, POLLIN, 0};
    char byte = 0;
    if (poll(&in, 1, 0) > 0 && read(STDIN_FILENO, &byte, 1) <= 0) break;
    midst.wait_rounds(1);
    say(("round " + std::to_string(round)).c_str());
  }
  midst.finish();
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string how = argc > 1 ? argv[1] : "";
  try {
    if (how == "vfork" || how == "spawn") return start_others(how == "spawn");
    if (how == "threads") return end_threads();
    if (how == "rounds") return rounds();
    return end_by(how);
  } catch (const ferry::error& e) {
    std::printf("WRONG %s\n", e.what());
    return 4;
  }
}
