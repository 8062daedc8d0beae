// A store, spans of pages to put into it, and a wait for what it answers. Header only.
#pragma once

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "base/random.h"
#include "base/types.h"
#include "linux/memory_file.h"
#include "linux/store/store.h"

namespace ferry::linux {

inline constexpr std::uint64_t mib = 1 << 20;

inline std::string scratch_directory() {
  const char* from_environment = std::getenv("TMPDIR");
  return from_environment != nullptr ? from_environment : "/tmp";
}

/// Pages of a chosen kind; the same seed gives the same bytes.
enum class Kind { zeros, word32, word64, text, noise };
inline void make_page(std::byte* page, Kind kind, std::uint64_t seed) {
  Random random(seed * 2 + 1);
  switch (kind) {
    case Kind::zeros: std::memset(page, 0, page_bytes); break;
    case Kind::word32: std::memset(page, static_cast<int>(seed % 255 + 1), page_bytes); break;
    case Kind::word64: fill_page(page, random.next() | 1); break;
    case Kind::text:
      // Small differences of large numbers: what arrays of measurements look like.
      for (std::size_t i = 0; i < page_bytes / 8; ++i) {
        const std::uint64_t value = 0x3ff0'0000'0000'0000 + seed + i * 4096 + random.next() % (16 + seed % 4096);
        std::memcpy(page + i * 8, &value, 8);
      }
      break;
    case Kind::noise:
      for (std::size_t i = 0; i < page_bytes / 8; ++i) {
        const std::uint64_t value = random.next();
        std::memcpy(page + i * 8, &value, 8);
      }
      break;
  }
}

/// A span of pages that owns its memory.
class Pages {
 public:
  explicit Pages(std::uint32_t count) : count_(count) {
    file_ = std::move(make_memory_file("store-test", count * page_bytes)).value();
    map_ = std::move(Mapping::map(file_.get(), 0, count * page_bytes)).value();
  }
  std::byte* page(std::uint32_t i) { return map_.data() + std::size_t{i} * page_bytes; }
  [[nodiscard]] std::uint32_t count() const { return count_; }
  [[nodiscard]] int fd() const { return file_.get(); }
  [[nodiscard]] std::uint64_t memory_bytes() const {
    struct stat st {};
    fstat(file_.get(), &st);
    return static_cast<std::uint64_t>(st.st_blocks) * 512;
  }
  void forget() { ASSERT_TRUE(punch_hole(file_.get(), 0, count_ * page_bytes).ok()); }

 private:
  std::uint32_t count_;
  Fd file_;
  Mapping map_;
};

class StoreTest : public ::testing::Test {
 protected:
  void SetUp() override { bell_ = std::move(Bell::make()).value(); }

  void open(StoreConfig config) {
    if (config.directory.empty()) config.directory = scratch_directory();
    auto made = Store::make(config, bell_);
    ASSERT_TRUE(made.ok()) << std::strerror(made.status().sys_errno);
    store_ = std::move(made).value();
  }
  static StoreConfig config(Codec codec = Codec::zstd) {
    StoreConfig c;
    c.codec = codec;
    c.memory_bytes = 8 * mib;
    c.file_bytes = 64 * mib;
    c.threads = 2;
    return c;
  }

  /// The next completion, in whatever order they come.
  StoreCompletion wait() {
    if (taken_.empty()) {
      store_->set_owner_sleeping(true);
      while (!store_->has_completions()) {
        pollfd ready{bell_.fd(), POLLIN, 0};
        if (poll(&ready, 1, 60'000) == 0 && !store_->has_completions()) {
          std::fprintf(stderr, "no completion within a minute\n");
          std::abort();
        }
        std::uint64_t count = 0;
        [[maybe_unused]] const auto n = read(bell_.fd(), &count, sizeof count);
      }
      store_->set_owner_sleeping(false);
      store_->take_completions(taken_);
    }
    StoreCompletion first = std::move(taken_.front());
    taken_.erase(taken_.begin());
    return first;
  }
  [[nodiscard]] std::size_t under_way() const { return store_->in_flight() + taken_.size(); }
  StoreCompletion put(Pages& pages, bool with_file = false) {
    StoreJob job;
    job.memory = pages.page(0);
    job.count_pages = pages.count();
    job.tag = 7;
    if (with_file) job.source_fd = pages.fd();
    store_->submit(std::move(job));
    StoreCompletion c = wait();
    EXPECT_EQ(c.tag, 7U);
    EXPECT_EQ(c.kind, StoreJob::Kind::store);
    return c;
  }
  Status get(Pages& pages, const std::vector<StoreHandle>& handles) {
    StoreJob job;
    job.kind = StoreJob::Kind::load;
    job.memory = pages.page(0);
    job.count_pages = static_cast<std::uint32_t>(handles.size());
    job.handles = handles;
    store_->submit(std::move(job));
    return wait().status;
  }
  void drop(const std::vector<StoreHandle>& handles) { store_->drop(handles.data(), handles.size()); }
  void expect_empty() {
    store_->verify();
    const StoreStats s = store_->stats();
    EXPECT_EQ(s.pages, 0U);
    EXPECT_EQ(s.payload_bytes, 0U);
    EXPECT_EQ(s.file_bytes, 0U);
  }

  Bell bell_;
  std::unique_ptr<Store> store_;
  std::vector<StoreCompletion> taken_;
};

}  // namespace ferry::linux
