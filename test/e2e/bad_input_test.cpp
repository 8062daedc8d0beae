// What cannot be asked for, asked of the whole interface: each refused with words that say what was wrong, and nothing
// changed. Attributes line by line: svm_attributes_test.cpp.
#include <sys/mman.h>

#include <atomic>
#include <functional>
#include <random>
#include <thread>
#include <vector>

#include "svm.h"

namespace ferry::test {
namespace {

struct Call {
  const char* name;
  std::function<ferry_code(void*, std::size_t, ferry_error*)> ask;
};

/// Every call that takes a span of pages.
std::vector<Call> calls() {
  static const ferry_svm_attribute set = {FERRY_SVM_GRANULARITY, 0, 4, 0};
  static ferry_svm_attribute get = {FERRY_SVM_GRANULARITY, 0, 0, 0};
  return {
      {"svm_set", [](void* p, std::size_t n, ferry_error* e) { return ferry_svm_set(p, n, &set, 1, e); }},
      {"svm_get", [](void* p, std::size_t n, ferry_error* e) { return ferry_svm_get(p, n, &get, 1, e); }},
      {"svm_reset", [](void* p, std::size_t n, ferry_error* e) { return ferry_svm_reset(p, n, e); }},
      {"populate", [](void* p, std::size_t n, ferry_error* e) { return ferry_populate(p, n, 0, e); }},
      {"discard", [](void* p, std::size_t n, ferry_error* e) { return ferry_discard(p, n, e); }},
      {"pin", [](void* p, std::size_t n, ferry_error* e) { return ferry_pin(p, n, FERRY_TO_CPU, e); }},
      {"unpin", [](void* p, std::size_t n, ferry_error* e) { return ferry_unpin(p, n, e); }},
      {"range group",
       [](void* p, std::size_t n, ferry_error* e) { return ferry_range_group_assign(nullptr, p, n, e); }},
      {"migrate_async",
       [](void* p, std::size_t n, ferry_error* e) {
         ferry_fence* fence = nullptr;
         const ferry_code code = ferry_migrate_async(p, n, 0, &fence, e);
         EXPECT_EQ(fence != nullptr, code == FERRY_OK);
         ferry_fence_close(fence);
         return code;
       }},
      {"buffer of memory",
       [](void* p, std::size_t n, ferry_error* e) {
         ferry_buffer* made = ferry_buffer_from_memory(p, n, 0, e);
         ferry_buffer_close(made, nullptr);
         return made == nullptr ? e->code : FERRY_OK;
       }},
  };
}

void expect_untouched(const Memory& m) {
  const span_attributes now = m.attributes();
  EXPECT_EQ(now.granularity, 9U);
  EXPECT_EQ(now.preferred, location::undefined());
  EXPECT_EQ(m.info().vram_device, -1);
  for (std::size_t i = 0; i < m.bytes() / page; ++i) ASSERT_EQ(m.word(i), i);
}

TEST(BadInput, SpansThatCannotBeAreRefusedByEveryCallWithTheirValues) {
  const Memory m;
  constexpr std::size_t most = ~std::size_t{0};
  for (const Call& call : calls()) {
    const auto refused = [&](void* p, std::size_t bytes, const char* says) {
      ferry_error e{};
      EXPECT_EQ(call.ask(p, bytes, &e), FERRY_BAD_RANGE) << call.name << " of " << p << ", " << bytes;
      const std::string text = e.text;
      EXPECT_NE(text.find(call.name), std::string::npos) << text;
      EXPECT_NE(text.find(says), std::string::npos) << call.name << ": " << text;
    };
    refused(m.p() + 1, page, "multiple");
    refused(m.p(), page + 1, "4097");
    refused(m.p(), 1, "multiple");
    refused(m.p(), 0, "0 bytes");
    refused(m.p(), most - page + 1, "address space");
    refused(m.p(), std::size_t{1} << 63, "address space");
    refused(reinterpret_cast<void*>(most - page + 1), page, "address space");
    refused(reinterpret_cast<void*>(most - page + 1), 2 * page, "address space");
  }
  expect_untouched(m);
}

TEST(BadInput, MemoryThatIsNotManagedIsRefusedByEveryCall) {
  const Memory m;
  auto* const own = ::mmap(nullptr, 4 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  for (const Call& call : calls()) {
    ferry_error e{};
    const ferry_code code = call.ask(own, 4 * page, &e);
    EXPECT_TRUE(code == FERRY_NOT_ALLOCATED || code == FERRY_NOT_HELD) << call.name << ": " << code;
    EXPECT_NE(e.text[0], '\0') << call.name;
    EXPECT_NE(call.ask(nullptr, page, &e), FERRY_OK) << call.name;
  }
  ferry_error e{};
  EXPECT_EQ(ferry_prefetch(own, 4 * page, 0, &e), FERRY_NOT_ALLOCATED) << e.text;
  ::munmap(own, 4 * page);
  expect_untouched(m);
}

TEST(BadInput, DevicesThatAreNotThereAreNamed) {
  const Memory m;
  for (const int device : {2, 16, 255, 4096, -2, -100}) {
    const std::string number = std::to_string(device);
    const auto refused = [&](ferry_code code, const ferry_error& e, const char* what) {
      EXPECT_EQ(code, FERRY_BAD_RANGE) << what << " of device " << device;
      EXPECT_NE(std::string(e.text).find("device " + number), std::string::npos) << what << ": " << e.text;
    };
    ferry_error e{};
    refused(ferry_prefetch(m.p(), m.bytes(), device, &e), e, "prefetch");
    refused(ferry_populate(m.p(), m.bytes(), device, &e), e, "populate");
    refused(ferry_pin(m.p(), m.bytes(), device, &e), e, "pin");
    ferry_fence* fence = nullptr;
    refused(ferry_migrate_async(m.p(), m.bytes(), device, &fence, &e), e, "migrate_async");
    EXPECT_EQ(fence, nullptr);
  }
  expect_untouched(m);
}

TEST(BadInput, OverlappingSpansAreSetOneAfterTheOther) {
  const Memory m;
  attributes().granularity(3).preferred(0).apply(m.at(0), 100 * page);
  attributes().granularity(5).apply(m.at(50), 100 * page);
  attributes().preferred(1).apply(m.at(99), 2 * page);
  EXPECT_EQ(m.attributes(0, 50).granularity, 3U);
  EXPECT_EQ(m.attributes(50, 100).granularity, 5U);
  EXPECT_EQ(m.attributes(0, 99).preferred, location(0));
  EXPECT_EQ(m.attributes(99, 2).preferred, location(1));
  EXPECT_EQ(m.attributes(98, 2).preferred, location::undefined()) << "they differ";
  EXPECT_EQ(m.attributes(150, 10).granularity, 9U);
}

/// As many spans as pages, each unlike its neighbours, by real calls. How long a call takes: ferry bench attributes.
TEST(BadInput, AMillionTinySpansAreSetAndTheManagerServesOnBesideIt) {
  constexpr std::size_t pages = std::size_t{1} << 20;
  auto* const p = static_cast<unsigned char*>(ferry_alloc_aligned(pages * page, block, FERRY_AUTOMATIC, nullptr));
  ASSERT_NE(p, nullptr);
  constexpr unsigned threads = 4;
  std::atomic<unsigned> failed{0};
  std::atomic<bool> done{false};
  std::thread beside([&] {
    // An honest neighbour: faults of a device and of this thread.
    const Memory m;
    std::uint64_t turns = 0;
    do {
      EXPECT_EQ(device_writes(0, m, 3), 0);
      ++turns;
      ASSERT_EQ(m.word(3), 3 + turns);
    } while (!done.load());
  });
  {
    std::vector<std::jthread> setters;
    for (unsigned t = 0; t < threads; ++t) {
      setters.emplace_back([&, t] {
        for (std::size_t i = t; i < pages; i += threads) {
          const ferry_svm_attribute line = {FERRY_SVM_GRANULARITY, 0, static_cast<std::uint32_t>(i % 9), 0};
          if (ferry_svm_set(p + i * page, page, &line, 1, nullptr) != FERRY_OK) ++failed;
        }
      });
    }
  }
  done = true;
  beside.join();
  EXPECT_EQ(failed.load(), 0U);
  std::mt19937 random(3);
  for (unsigned turn = 0; turn < 2000; ++turn) {
    const std::size_t i = random() % pages;
    ferry_svm_attribute line = {FERRY_SVM_GRANULARITY, 0, 0, 0};
    ASSERT_EQ(ferry_svm_get(p + i * page, page, &line, 1, nullptr), FERRY_OK);
    ASSERT_EQ(line.value, i % 9) << i;
  }
  EXPECT_EQ(attributes_of(p, pages * page).granularity, 0U) << "of all at once";
  reset_attributes(p, pages * page);
  EXPECT_EQ(attributes_of(p, pages * page).granularity, 9U);
  EXPECT_EQ(ferry_free(p, nullptr), FERRY_OK);
}

/// Calls about a span that another thread unmaps at that moment: each succeeds, or says that nothing is there.
TEST(BadInput, CallsDuringAnUnmapOfTheSameSpanSucceedOrSaySo) {
  std::atomic<unsigned char*> shared{nullptr};
  std::atomic<bool> stop{false};
  std::vector<std::jthread> callers;
  for (unsigned t = 0; t < 3; ++t) {
    callers.emplace_back([&, t] {
      const ferry_svm_attribute set[] = {{FERRY_SVM_PREFERRED_LOC, 0, t % 2, 0}, {FERRY_SVM_PREFETCH_LOC, 0, 0, 0}};
      ferry_svm_attribute get = {FERRY_SVM_SET_FLAGS, 0, 0, 0};
      while (!stop.load()) {
        unsigned char* const p = shared.load();
        if (p == nullptr) continue;
        ferry_error e{};
        const ferry_code code = t == 0   ? ferry_svm_set(p, 300 * page, set, 2, &e)
                                : t == 1 ? ferry_svm_get(p, 300 * page, &get, 1, &e)
                                         : ferry_prefetch(p, 300 * page, 1, &e);
        EXPECT_TRUE(code == FERRY_OK || code == FERRY_NOT_ALLOCATED) << code << ": " << e.text;
      }
    });
  }
  for (unsigned round = 0; round < 100; ++round) {
    auto* const p = static_cast<unsigned char*>(ferry_alloc_aligned(3 * block, block, FERRY_AUTOMATIC, nullptr));
    ASSERT_NE(p, nullptr);
    p[299 * page] = p[0] = 7;
    shared = p;
    if (round % 3 == 0) touch(0, p, true);
    EXPECT_EQ(::munmap(p + 100 * page, 100 * page), 0);
    EXPECT_EQ(::munmap(p, 300 * page), 0);
    p[300 * page] = 9;
    EXPECT_EQ(ferry_free(p, nullptr), FERRY_OK);
  }
  stop = true;
  callers.clear();
  const Memory m;
  expect_untouched(m);
}

}  // namespace
}  // namespace ferry::test
