// Managed pages in every state that a change of the address space can meet them in.
#pragma once

#include <gtest/gtest.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <ferry/ferry.hpp>
#include <functional>
#include <string>
#include <vector>

/// A kernel that fails on purpose is stopped by a sanitizer before the device can report it.
#if defined(__SANITIZE_ADDRESS__)
#define FERRY_TEST_CRASHES_END_DEVICES() return
#else
#define FERRY_TEST_CRASHES_END_DEVICES() static_cast<void>(0)
#endif

namespace ferry::test {

inline constexpr std::size_t page = 4096;

enum class Where { in_system, vram_clean, vram_dirty, in_place, while_used };
inline constexpr Where everywhere[] = {Where::in_system, Where::vram_clean, Where::vram_dirty, Where::in_place,
                                       Where::while_used};
inline std::string name_of(Where where) {
  switch (where) {
    case Where::in_system: return "in_system";
    case Where::vram_clean: return "vram_clean";
    case Where::vram_dirty: return "vram_dirty";
    case Where::in_place: return "in_place";
    case Where::while_used: return "while_used";
  }
  return "?";
}

/// What page p reads after fill().
inline std::uint64_t stamp(std::size_t p) { return p * 0x9e37'79b9'7f4a'7c15 + 1; }

/// Pages of one allocation, each with its stamp in its first word, lying where the test wants them.
class Pages {
 public:
  Pages(std::size_t count, Where where) : count_(count), where_(where) {
    // More than what shares its pages with other allocations, which would inherit what is done to them.
    const std::size_t bytes = std::max(count * page, std::size_t{3} << 20);
    base_ = static_cast<char*>(
        ferry::alloc(bytes, where == Where::in_place ? ferry::placement::system : ferry::placement::automatic));
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(base_) % page, 0U);
    for (std::size_t p = 0; p < count; ++p) word(p) = stamp(p) - (where == Where::vram_dirty ? 1 : 0);
    char* const base = base_;
    switch (where) {
      case Where::in_system: break;
      case Where::vram_clean:
      case Where::in_place: {
        std::uint64_t* const sum = static_cast<std::uint64_t*>(ferry::alloc(page, ferry::placement::system));
        *sum = 0;
        ferry::parallel_for(count, [=](std::size_t p) {
          __atomic_fetch_add(sum, *reinterpret_cast<std::uint64_t*>(base + p * page), __ATOMIC_RELAXED);
        });
        ferry::free(sum);
        break;
      }
      case Where::vram_dirty:
        ferry::parallel_for(count, [=](std::size_t p) { ++*reinterpret_cast<std::uint64_t*>(base + p * page); });
        break;
      case Where::while_used: break;
    }
  }
  /// A kernel that goes on reading the first pages until stop(), where the state asks for one. What it touches may not
  /// be taken away.
  void use(std::size_t pages) {
    if (where_ != Where::while_used) return;
    flag_ = static_cast<std::uint64_t*>(ferry::alloc(page, ferry::placement::system));
    flag_[0] = flag_[1] = 0;
    char* const base = base_;
    std::uint64_t* const flag = flag_;
    running_ = queue_.launch({.items = 1, .wave = 1}, [=](ferry::item) {
      std::uint64_t sum = 0;
      while (__atomic_load_n(flag, __ATOMIC_ACQUIRE) == 0) {
        for (std::size_t p = 0; p < pages; ++p) {
          sum += *reinterpret_cast<volatile std::uint64_t*>(base + p * page);
        }
        __atomic_fetch_add(flag + 1, 1, __ATOMIC_RELEASE);
      }
      static_cast<void>(sum);
    });
    while (__atomic_load_n(flag + 1, __ATOMIC_ACQUIRE) < 3) {}
  }
  /// Ends the kernel of use(); it must have gone well.
  void stop() {
    if (flag_ == nullptr) return;
    __atomic_store_n(flag_, 1, __ATOMIC_RELEASE);
    EXPECT_NO_THROW(running_.wait());
    ferry::free(flag_);
    flag_ = nullptr;
  }
  ~Pages() {
    stop();
    if (base_ != nullptr) ferry::free(base_);
  }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;

  [[nodiscard]] char* at(std::size_t p) const { return base_ + p * page; }
  [[nodiscard]] std::uint64_t& word(std::size_t p) const { return *reinterpret_cast<std::uint64_t*>(at(p)); }
  [[nodiscard]] std::size_t count() const { return count_; }
  /// What page p reads on the device.
  [[nodiscard]] std::uint64_t device_word(std::size_t p) const {
    auto* const out = static_cast<std::uint64_t*>(ferry::alloc(page, ferry::placement::system));
    ferry::parallel_for(1, [from = &word(p), out](std::size_t) { *out = *from; });
    const std::uint64_t value = *out;
    ferry::free(out);
    return value;
  }

 private:
  char* base_ = nullptr;
  std::size_t count_;
  Where where_;
  std::uint64_t* flag_ = nullptr;
  ferry::queue queue_;
  ferry::completion running_;
};

namespace detail {
inline thread_local sigjmp_buf caught_at;
inline thread_local volatile sig_atomic_t catching = 0;
inline void on_segv(int signal, siginfo_t*, void*) {
  if (catching == 0) {
    ::signal(signal, SIG_DFL);
    return;
  }
  catching = 0;
  siglongjmp(caught_at, signal);
}
}  // namespace detail

/// The signal that `body` raises in this thread, 0 if none.
inline int signal_of(const std::function<void()>& body) {
  struct sigaction ours {};
  struct sigaction before[2] = {};
  ours.sa_sigaction = detail::on_segv;
  ours.sa_flags = SA_SIGINFO | SA_NODEFER;
  ::sigaction(SIGSEGV, &ours, &before[0]);
  ::sigaction(SIGBUS, &ours, &before[1]);
  const int got = sigsetjmp(detail::caught_at, 1);
  if (got == 0) {
    detail::catching = 1;
    body();
    detail::catching = 0;
  }
  ::sigaction(SIGSEGV, &before[0], nullptr);
  ::sigaction(SIGBUS, &before[1], nullptr);
  return got;
}

inline int read_signal(const void* address) {
  return signal_of([address] { static_cast<void>(*static_cast<const volatile char*>(address)); });
}
inline int write_signal(void* address) {
  return signal_of([address] { *static_cast<volatile char*>(address) = 1; });
}

/// The code that a kernel fails with which reads (or writes) there; 0: none.
inline int kernel_code(void* address, bool write, std::string* text = nullptr) {
  try {
    ferry::parallel_for(1, [p = static_cast<volatile char*>(address), write](std::size_t) {
      if (write) {
        *p = 1;
      } else {
        static_cast<void>(*p);
      }
    });
  } catch (const ferry::error& e) {
    if (text != nullptr) *text = e.what();
    return static_cast<int>(e.code());
  }
  return 0;
}

}  // namespace ferry::test
