// What the tests of <ferry/svm.hpp> share. The session is the process's own, with a private manager of two devices.
#pragma once

#include <gtest/gtest.h>

#include <csetjmp>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <ferry/svm.hpp>
#include <string>

/// A kernel that crashes on purpose is stopped by a sanitizer before the device can report it.
#if defined(__SANITIZE_ADDRESS__)
#define FERRY_SKIP_CRASHES() GTEST_SKIP() << "the sanitizer reports these kernels itself, and ends the device"
#else
#define FERRY_SKIP_CRASHES() static_cast<void>(0)
#endif

namespace ferry::test {

inline constexpr std::size_t page = 4096;
inline constexpr std::size_t block = std::size_t{2} << 20;

/// Managed memory of whole blocks, each page written by the CPU: page i begins with i.
class Memory {
 public:
  explicit Memory(std::size_t blocks = 1) : bytes_(blocks * block) {
    // More than a block is an allocation of its own, whose pages come new.
    p_ = static_cast<unsigned char*>(ferry_alloc_aligned(bytes_ + block, block, FERRY_AUTOMATIC, nullptr));
    EXPECT_NE(p_, nullptr);
    for (std::size_t i = 0; i < bytes_ / page; ++i) word(i) = i;
  }
  ~Memory() { ferry_free(p_, nullptr); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  [[nodiscard]] unsigned char* p() const { return p_; }
  [[nodiscard]] std::size_t bytes() const { return bytes_; }
  [[nodiscard]] unsigned char* at(std::size_t number) const { return p_ + number * page; }
  [[nodiscard]] std::uint64_t& word(std::size_t number) const { return *reinterpret_cast<std::uint64_t*>(at(number)); }
  [[nodiscard]] ferry_page_info info(std::size_t number = 0) const {
    ferry_page_info out{};
    ferry_error e;
    EXPECT_EQ(ferry_query(at(number), &out, &e), FERRY_OK) << e.text;
    return out;
  }
  [[nodiscard]] span_attributes attributes(std::size_t first = 0, std::size_t count = 0) const {
    return attributes_of(at(first), count == 0 ? bytes_ - first * page : count * page);
  }

 private:
  std::size_t bytes_;
  unsigned char* p_ = nullptr;
};

inline sigjmp_buf after_bus;
inline void on_bus(int) { siglongjmp(after_bus, 1); }

/// True: the CPU's touch of the byte ended in SIGBUS.
inline bool ends_in_sigbus(const unsigned char* p) {
  struct sigaction mine {};
  struct sigaction before {};
  mine.sa_handler = &on_bus;
  mine.sa_flags = SA_NODEFER;
  sigaction(SIGBUS, &mine, &before);
  volatile bool ended = true;  // read after the jump
  if (sigsetjmp(after_bus, 1) == 0) {
    [[maybe_unused]] const unsigned char read = *static_cast<const volatile unsigned char*>(p);
    ended = false;
  }
  sigaction(SIGBUS, &before, nullptr);
  return ended;
}

/// One wave of the device that reads, or writes, the first word of each of `count` pages. The error's code, or 0.
inline int touch(unsigned device, unsigned char* p, bool write, std::size_t count = 1) {
  try {
    queue q(device);
    if (write) {
      q.parallel_for(1, [p, count](std::size_t) {
         for (std::size_t i = 0; i < count; ++i) {
           auto* word = reinterpret_cast<volatile std::uint64_t*>(p + i * page);
           *word = *word + 1;
         }
       }).wait();
    } else {
      q.parallel_for(1, [p, count](std::size_t) {
         std::uint64_t sum = 0;
         for (std::size_t i = 0; i < count; ++i) sum += *reinterpret_cast<volatile std::uint64_t*>(p + i * page);
         if (sum == ~std::uint64_t{0}) throw 1;
       }).wait();
    }
    return 0;
  } catch (const ferry::error& e) {
    return static_cast<int>(e.code());
  }
}
inline int device_reads(unsigned device, const Memory& m, std::size_t first = 0, std::size_t count = 1) {
  return touch(device, m.at(first), false, count);
}
inline int device_writes(unsigned device, const Memory& m, std::size_t first = 0, std::size_t count = 1) {
  return touch(device, m.at(first), true, count);
}

/// Code and text of what `body` throws; 0 and nothing if it does not.
struct Failure {
  int code = 0;
  std::string text;
  [[nodiscard]] bool says(const std::string& words) const { return text.find(words) != std::string::npos; }
};
template <typename Body>
Failure failure_of(Body&& body) {
  try {
    body();
  } catch (const ferry::error& e) {
    return {static_cast<int>(e.code()), e.what()};
  }
  return {};
}

}  // namespace ferry::test
