// A window anywhere and a source of spans in it, for heaps of tests.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstdint>
#include <map>
#include <mutex>

#include "client/heap/heap.h"
#include "client/heap/window_ranges.h"

namespace ferry::client {

/// Address space that is reserved for the lifetime of the object.
class TestWindow {
 public:
  explicit TestWindow(std::size_t bytes) : bytes_(bytes) {
    void* at = ::mmap(nullptr, bytes + heap_span_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) std::abort();
    mapping_ = at;
    base_ = (reinterpret_cast<std::uintptr_t>(at) + heap_span_bytes - 1) & ~(heap_span_bytes - 1);
  }
  ~TestWindow() { ::munmap(mapping_, bytes_ + heap_span_bytes); }
  TestWindow(const TestWindow&) = delete;
  TestWindow& operator=(const TestWindow&) = delete;

  [[nodiscard]] std::uintptr_t base() const { return base_; }
  [[nodiscard]] std::size_t bytes() const { return bytes_; }

 private:
  void* mapping_;
  std::uintptr_t base_;
  std::size_t bytes_;
};

class TestSpans : public SpanSource {
 public:
  explicit TestSpans(const TestWindow& window) {
    if (!ranges_.init(arena_, window.base(), window.bytes())) std::abort();
  }

  void* acquire_span(std::size_t bytes, std::size_t align) noexcept override {
    if (refuse_ || bytes % heap_unit_bytes != 0 || align < heap_unit_bytes) return nullptr;
    const std::uintptr_t at = ranges_.take(bytes, align);
    if (at == 0) return nullptr;
    auto* span = reinterpret_cast<void*>(at);
    if (::mmap(span, bytes, protection_, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) != span) {
      ranges_.give(at, bytes);
      return nullptr;
    }
    held_[at] = bytes;
    held_bytes_ += bytes;
    return span;
  }

  void release_span(void* span, std::size_t bytes) noexcept override {
    const auto at = reinterpret_cast<std::uintptr_t>(span);
    const auto found = held_.find(at);
    if (found == held_.end() || found->second != bytes) std::abort();  // not what was acquired
    held_.erase(found);
    held_bytes_ -= bytes;
    if (::mmap(span, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) != span) {
      std::abort();
    }
    ranges_.give(at, bytes);
  }

  /// From now on acquire_span has nothing.
  void refuse(bool yes) { refuse_ = yes; }
  /// All spans held, and those acquired from now on, get this protection.
  void protect(int protection) {
    protection_ = protection;
    for (const auto& [at, bytes] : held_) {
      ASSERT_EQ(::mprotect(reinterpret_cast<void*>(at), bytes, protection), 0);
    }
  }
  [[nodiscard]] std::size_t held_bytes() const { return held_bytes_; }

 private:
  MetadataArena arena_;
  WindowRanges ranges_;
  std::map<std::uintptr_t, std::size_t> held_;
  std::size_t held_bytes_ = 0;
  int protection_ = PROT_READ | PROT_WRITE;
  bool refuse_ = false;
};

struct Reports {
  struct Report {
    FreeResult what;
    const void* pointer;
    friend bool operator==(const Report&, const Report&) = default;
  };
  std::mutex mutex;
  std::vector<Report> all;

  static void add(void* context, FreeResult what, const void* pointer) {
    auto& self = *static_cast<Reports*>(context);
    const std::lock_guard guard(self.mutex);
    self.all.push_back({what, pointer});
  }
};

/// A window, its spans and a heap on them.
struct TestHeap {
  explicit TestHeap(std::size_t bytes = std::size_t{8} << 30)
      : window(bytes), spans(window), heap(spans, window.base(), window.bytes()) {
    heap.set_reporter(Reports::add, &reports);
  }
  TestWindow window;
  TestSpans spans;
  Reports reports;
  Heap heap;
};

}  // namespace ferry::client
