// Attributes over the real thing: set, got and taken back by the rules of docs/SVM.md; bad input changes nothing and is
// told by line and value.
#include <algorithm>
#include <atomic>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include "svm.h"

namespace ferry::test {
namespace {

constexpr auto defaults = svm_flag::host_access | svm_flag::coherent;

TEST(SvmAttributes, ANewAllocationHasTheDefaults) {
  const Memory m;
  const span_attributes a = m.attributes();
  EXPECT_EQ(a.preferred, location::undefined());
  EXPECT_EQ(a.prefetch, location::undefined());
  EXPECT_EQ(a.granularity, 9U);
  EXPECT_EQ(a.set, defaults);
  EXPECT_EQ(static_cast<unsigned>(a.cleared), 0xffU & ~static_cast<unsigned>(defaults));
  ASSERT_EQ(a.access.size(), 2U);
  for (const device_access access : a.access) EXPECT_EQ(access, device_access::migrate);
}

TEST(SvmAttributes, WhatIsSetIsGotBack) {
  const Memory m;
  attributes()
      .preferred(1)
      .access(0, device_access::in_place)
      .access(1, device_access::none)
      .set(svm_flag::gpu_ro | svm_flag::read_mostly)
      .clear(svm_flag::coherent)
      .granularity(4)
      .apply(m.at(10), 20 * page);
  const span_attributes a = m.attributes(10, 20);
  EXPECT_EQ(a.preferred, location(1));
  EXPECT_EQ(a.access[0], device_access::in_place);
  EXPECT_EQ(a.access[1], device_access::none);
  EXPECT_EQ(a.set, svm_flag::host_access | svm_flag::gpu_ro | svm_flag::read_mostly);
  EXPECT_EQ(a.granularity, 4U);
  for (const std::size_t outside : {9U, 30U}) EXPECT_EQ(m.attributes(outside, 1).set, defaults) << outside;
}

TEST(SvmAttributes, OfPagesThatDifferTheIntersectionIsGot) {
  const Memory m;
  attributes()
      .preferred(0)
      .set(svm_flag::gpu_ro)
      .granularity(3)
      .access(0, device_access::in_place)
      .apply(m.at(0), page);
  attributes().preferred(1).clear(svm_flag::coherent).granularity(5).apply(m.at(1), page);
  const span_attributes a = m.attributes(0, 2);
  EXPECT_EQ(a.preferred, location::undefined());
  EXPECT_EQ(a.set, svm_flag::host_access) << "set on all";
  EXPECT_FALSE(has(a.cleared, svm_flag::gpu_ro)) << "cleared on all";
  EXPECT_FALSE(has(a.cleared, svm_flag::coherent));
  EXPECT_TRUE(has(a.cleared, svm_flag::gpu_exec));
  EXPECT_EQ(a.granularity, 3U) << "the least";
  EXPECT_EQ(a.access[0], device_access::in_place) << "the weakest";
  EXPECT_EQ(a.access[1], device_access::migrate);
}

TEST(SvmAttributes, LinesActInTheirOrder) {
  const Memory m;
  attributes().set(svm_flag::gpu_ro).clear(svm_flag::gpu_ro).preferred(0).preferred(1).apply(m.p(), m.bytes());
  const span_attributes a = m.attributes();
  EXPECT_EQ(a.preferred, location(1));
  EXPECT_TRUE(has(a.cleared, svm_flag::gpu_ro));
}

TEST(SvmAttributes, AnErrorInAnyLineChangesNothing) {
  const Memory m;
  const Failure f =
      failure_of([&] { attributes().preferred(1).set(svm_flag::gpu_ro).granularity(64).apply(m.p(), m.bytes()); });
  EXPECT_EQ(f.code, FERRY_BAD_RANGE);
  EXPECT_TRUE(f.says("line 2") && f.says("FERRY_SVM_GRANULARITY") && f.says("64")) << f.text;
  const span_attributes a = m.attributes();
  EXPECT_EQ(a.preferred, location::undefined());
  EXPECT_EQ(a.set, defaults);
}

TEST(SvmAttributes, ErrorsNameLineAndValue) {
  const Memory m;
  struct Case {
    ferry_svm_attribute line;
    const char* words;
  };
  const Case cases[] = {
      {{6, 0, 0, 0}, "6 is no attribute"},
      {{~0U, 0, 0, 0}, "4294967295 is no attribute"},
      {{FERRY_SVM_PREFERRED_LOC, 0, 2, 0}, "2 is no device"},
      {{FERRY_SVM_PREFERRED_LOC, 0, 256, 0}, "256 is no device"},
      {{FERRY_SVM_PREFERRED_LOC, 0, 0x1fe, 0}, "510 is no device"},
      {{FERRY_SVM_PREFETCH_LOC, 0, 7, 0}, "7 is no device"},
      {{FERRY_SVM_PREFETCH_LOC, 0, FERRY_LOC_UNDEFINED, 0}, "255 is no device"},
      {{FERRY_SVM_ACCESS_OF, 2, FERRY_ACCESS, 0}, "2 is no device"},
      {{FERRY_SVM_ACCESS_OF, 256, FERRY_ACCESS, 0}, "256 is no device"},
      {{FERRY_SVM_ACCESS_OF, 0, 3, 0}, "3 is no access"},
      {{FERRY_SVM_SET_FLAGS, 0, 0x105, 0}, "0x100 is no flag"},
      {{FERRY_SVM_CLR_FLAGS, 0, 0x8000'0000, 0}, "0x80000000 is no flag"},
      {{FERRY_SVM_GRANULARITY, 0, 64, 0}, "64 is more"},
      {{FERRY_SVM_GRANULARITY, 0, 0, 9}, "reserved"},
  };
  for (const Case& c : cases) {
    const ferry_svm_attribute lines[] = {{FERRY_SVM_PREFERRED_LOC, 0, 1, 0}, c.line};
    ferry_error e{};
    EXPECT_EQ(ferry_svm_set(m.p(), page, lines, 2, &e), FERRY_BAD_RANGE) << c.words;
    EXPECT_NE(std::strstr(e.text, "line 1"), nullptr) << e.text;
    EXPECT_NE(std::strstr(e.text, c.words), nullptr) << e.text;
  }
  EXPECT_EQ(m.attributes().preferred, location::undefined());
  ferry_svm_attribute unknown = {FERRY_SVM_ACCESS_OF, 9, 0, 0};
  ferry_error e{};
  EXPECT_EQ(ferry_svm_get(m.p(), page, &unknown, 1, &e), FERRY_BAD_RANGE);
  EXPECT_NE(std::strstr(e.text, "9 is no device"), nullptr) << e.text;
}

TEST(SvmAttributes, SpansThatCannotBe) {
  const Memory m;
  const attributes some = attributes().granularity(4);
  const auto code = [&](void* p, std::size_t bytes) { return failure_of([&] { some.apply(p, bytes); }).code; };
  EXPECT_EQ(code(m.p() + 1, page), FERRY_BAD_RANGE);
  EXPECT_EQ(code(m.p(), page + 1), FERRY_BAD_RANGE);
  EXPECT_EQ(code(m.p(), 0), FERRY_BAD_RANGE);
  EXPECT_EQ(code(m.p(), ~std::size_t{0} - page + 1), FERRY_BAD_RANGE);
  EXPECT_EQ(code(reinterpret_cast<void*>(~std::uintptr_t{0} - page + 1), page), FERRY_BAD_RANGE);
  EXPECT_NE(code(nullptr, page), FERRY_OK);
  ferry_error e{};
  EXPECT_EQ(ferry_svm_set(m.p(), page, nullptr, 1, &e), FERRY_BAD_RANGE);
  std::vector<ferry_svm_attribute> many(FERRY_SVM_ATTRIBUTES_MAX + 1, {FERRY_SVM_GRANULARITY, 0, 4, 0});
  EXPECT_EQ(ferry_svm_set(m.p(), page, many.data(), many.size(), &e), FERRY_BAD_RANGE);
  EXPECT_NE(std::strstr(e.text, "65"), nullptr) << e.text;
  EXPECT_EQ(ferry_svm_set(m.p(), page, many.data(), 0, &e), FERRY_BAD_RANGE);
  EXPECT_EQ(m.attributes().granularity, 9U);
  many.pop_back();
  EXPECT_EQ(ferry_svm_set(m.p(), page, many.data(), many.size(), &e), FERRY_OK) << e.text;
  EXPECT_EQ(m.attributes(0, 1).granularity, 4U);
}

TEST(SvmAttributes, ResetTakesEverythingBack) {
  const Memory m;
  attributes().preferred(1).granularity(2).set(svm_flag::gpu_ro).access(1, device_access::none).apply(m.p(), m.bytes());
  reset_attributes(m.at(3), page);
  EXPECT_EQ(m.attributes(3, 1).set, defaults);
  EXPECT_EQ(m.attributes(3, 1).access[1], device_access::migrate);
  EXPECT_EQ(m.attributes(4, 1).preferred, location(1));
  reset_attributes(m.p(), m.bytes());
  EXPECT_EQ(m.attributes().granularity, 9U);
}

TEST(SvmAttributes, AreGoneWithTheMemory) {
  // Allocations of their own are unmapped when they are freed, smaller ones are pages of the heap's: neither may leave
  // anything to whoever gets the pages next.
  for (const std::size_t bytes : {std::size_t{4} * page, 3 * block}) {
    for (unsigned round = 0; round < 20; ++round) {
      auto* p = static_cast<unsigned char*>(ferry_alloc_aligned(bytes, page, FERRY_AUTOMATIC, nullptr));
      ASSERT_NE(p, nullptr);
      const span_attributes a = attributes_of(p, bytes);
      EXPECT_EQ(a.set, defaults) << "round " << round << " of " << bytes;
      EXPECT_EQ(a.access[0], device_access::migrate);
      EXPECT_EQ(touch(0, p, true), 0);
      attributes().set(svm_flag::gpu_ro).access(0, device_access::none).apply(p, bytes);
      EXPECT_EQ(ferry_free(p, nullptr), FERRY_OK);
    }
  }
}

TEST(SvmAttributes, OfFreedMemoryAreRefused) {
  unsigned char* gone = nullptr;
  {
    const Memory m;
    gone = m.p();
  }
  EXPECT_EQ(failure_of([&] { attributes().granularity(4).apply(gone, page); }).code, FERRY_NOT_ALLOCATED);
  EXPECT_EQ(failure_of([&] { (void)attributes_of(gone, page); }).code, FERRY_NOT_ALLOCATED);
  EXPECT_EQ(failure_of([&] { reset_attributes(gone, page); }).code, FERRY_NOT_ALLOCATED);
}

TEST(SvmAttributes, TinySpansInRandomOrderAreEachWhatTheyWereSetTo) {
  // Memory that is never touched; neighbours different. How much room spans take: SvmRequests, ferry bench attributes.
  constexpr std::size_t pages = 10'000;
  auto* p = static_cast<unsigned char*>(ferry_alloc_aligned(pages * page, block, FERRY_AUTOMATIC, nullptr));
  ASSERT_NE(p, nullptr);
  std::vector<std::uint32_t> order(pages);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937(1));
  constexpr unsigned threads = 4;
  std::atomic<unsigned> failed{0};
  {
    std::vector<std::jthread> setters;
    for (unsigned t = 0; t < threads; ++t) {
      setters.emplace_back([&, t] {
        for (std::size_t i = t; i < pages; i += threads) {
          const ferry_svm_attribute line = {FERRY_SVM_GRANULARITY, 0, order[i] % 9, 0};
          if (ferry_svm_set(p + order[i] * page, page, &line, 1, nullptr) != FERRY_OK) ++failed;
        }
      });
    }
  }
  EXPECT_EQ(failed.load(), 0U);
  for (std::uint32_t i = 0; i < pages; ++i) {
    ferry_svm_attribute line = {FERRY_SVM_GRANULARITY, 0, 0, 0};
    ASSERT_EQ(ferry_svm_get(p + i * page, page, &line, 1, nullptr), FERRY_OK);
    EXPECT_EQ(line.value, i % 9);
  }
  EXPECT_EQ(attributes_of(p, pages * page).granularity, 0U);
  EXPECT_EQ(ferry_free(p, nullptr), FERRY_OK);
}

TEST(SvmAttributes, CallsDuringTheFreeOfTheSameSpan) {
  std::atomic<unsigned char*> shared{nullptr};
  std::atomic<bool> stop{false};
  std::atomic<unsigned> strange{0};
  std::vector<std::jthread> callers;
  for (unsigned t = 0; t < 3; ++t) {
    callers.emplace_back([&, t] {
      while (!stop.load()) {
        unsigned char* p = shared.load();
        if (p == nullptr) continue;
        ferry_error e{};
        const ferry_svm_attribute set[] = {{FERRY_SVM_PREFERRED_LOC, 0, t % 2, 0}, {FERRY_SVM_PREFETCH_LOC, 0, 0, 0}};
        ferry_svm_attribute get = {FERRY_SVM_SET_FLAGS, 0, 0, 0};
        const ferry_code code = t == 0   ? ferry_svm_set(p, 2 * block, set, 2, &e)
                                : t == 1 ? ferry_svm_get(p, 2 * block, &get, 1, &e)
                                         : ferry_svm_reset(p, 2 * block, &e);
        if (code != FERRY_OK && code != FERRY_NOT_ALLOCATED) ++strange;
      }
    });
  }
  for (unsigned round = 0; round < 200; ++round) {
    auto* p = static_cast<unsigned char*>(ferry_alloc_aligned(3 * block, block, FERRY_AUTOMATIC, nullptr));
    ASSERT_NE(p, nullptr);
    p[0] = 1;
    shared = p;
    if (round % 4 == 0) touch(0, p, true);
    EXPECT_EQ(ferry_free(p, nullptr), FERRY_OK);
  }
  stop = true;
  callers.clear();
  EXPECT_EQ(strange.load(), 0U);
}

TEST(SvmAttributes, APrefetchToADeviceWithoutAccessIsRefused) {
  const Memory m;
  attributes().access(1, device_access::none).apply(m.at(5), page);
  const Failure f = failure_of([&] { attributes().granularity(4).prefetch(1).apply(m.p(), m.bytes()); });
  EXPECT_EQ(f.code, FERRY_NOT_PERMITTED);
  EXPECT_TRUE(f.says("line 1") && f.says("FERRY_SVM_PREFETCH_LOC") && f.says("device 1")) << f.text;
  EXPECT_EQ(m.attributes(0, 1).granularity, 9U);
  EXPECT_EQ(m.info(0).vram_device, -1);
  attributes().prefetch(0).apply(m.p(), m.bytes());
  EXPECT_EQ(m.info(5).vram_device, 0);
}

// --- what each does --------------------------------------------------------------------------------------------------

TEST(SvmAttributes, PreferredLocationSteersWhereAFaultBringsPages) {
  const Memory m(2);
  attributes().preferred(location::system()).apply(m.p(), block);
  ASSERT_EQ(device_writes(0, m, 0), 0);
  ASSERT_EQ(device_writes(0, m, 512), 0);
  EXPECT_EQ(m.info(0).vram_device, -1) << "preferred: the system";
  EXPECT_EQ(m.info(0).device_mapped & 1U, 1U);
  EXPECT_EQ(m.info(512).vram_device, 0) << "nobody said: the device that touches";
  EXPECT_EQ(m.word(0), 1U);
}

TEST(SvmAttributes, PrefetchBringsPagesBeforeItReturnsAndIsGotBack) {
  const Memory m;
  attributes().prefetch(1).apply(m.p(), m.bytes());
  EXPECT_EQ(m.info(100).vram_device, 1);
  EXPECT_EQ(m.attributes().prefetch, location(1));
  attributes().prefetch(location::system()).apply(m.p(), m.bytes());
  EXPECT_EQ(m.info(100).vram_device, -1);
  EXPECT_EQ(m.attributes().prefetch, location::system());
  // Asked again for what was asked for last: it is done again.
  attributes().prefetch(0).apply(m.p(), m.bytes());
  m.word(100) = 1;
  attributes().prefetch(0).apply(m.p(), m.bytes());
  EXPECT_EQ(m.info(100).vram_device, 0);
}

TEST(SvmAttributes, NoAccessFailsTheKernelAndTakesMappingsAway) {
  FERRY_SKIP_CRASHES();
  const Memory m;
  ASSERT_EQ(device_writes(0, m), 0);
  EXPECT_EQ(m.info().device_mapped, 1U);
  attributes().access(0, device_access::none).apply(m.p(), m.bytes());
  EXPECT_EQ(m.info().device_mapped, 0U) << "taken away at once";
  EXPECT_EQ(device_reads(0, m), FERRY_KERNEL_FAULT);
  EXPECT_EQ(device_writes(1, m), 0) << "the other device still may";
  EXPECT_EQ(m.word(0), 2U);
  attributes().access(0, device_access::migrate).apply(m.p(), m.bytes());
  EXPECT_EQ(device_writes(0, m), 0);
  EXPECT_EQ(m.word(0), 3U);
}

TEST(SvmAttributes, AccessInPlaceNeverMovesPagesForThatDevice) {
  const Memory m;
  attributes().access(0, device_access::in_place).apply(m.p(), m.bytes());
  ASSERT_EQ(device_writes(0, m), 0);
  EXPECT_EQ(m.info().vram_device, -1);
  EXPECT_EQ(m.info().device_mapped, 1U);
  ASSERT_EQ(device_writes(1, m), 0);
  EXPECT_EQ(m.info().vram_device, 1) << "the other device has access that migrates";
  EXPECT_EQ(m.word(0), 2U);
}

TEST(SvmAttributes, GranularitySaysHowMuchComesWithAFault) {
  const Memory m(3);
  attributes().granularity(0).apply(m.p(), block);
  attributes().granularity(3).apply(m.at(512), block);
  ASSERT_EQ(device_writes(0, m, 20), 0);
  EXPECT_EQ(m.info(20).vram_device, 0);
  EXPECT_EQ(m.info(19).vram_device, -1);
  EXPECT_EQ(m.info(21).vram_device, -1);
  ASSERT_EQ(device_writes(0, m, 512 + 20), 0);
  for (const std::size_t i : {16U, 20U, 23U}) EXPECT_EQ(m.info(512 + i).vram_device, 0) << i;
  for (const std::size_t i : {15U, 24U}) EXPECT_EQ(m.info(512 + i).vram_device, -1) << i;
  ASSERT_EQ(device_writes(0, m, 1024 + 20), 0);
  EXPECT_EQ(m.info(1024 + 19).vram_device, 0) << "nobody said: the machine's granule";
  for (const std::size_t i : {20U, 532U, 1044U}) EXPECT_EQ(m.word(i), i + 1);
}

}  // namespace
}  // namespace ferry::test
