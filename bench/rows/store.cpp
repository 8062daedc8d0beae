// The store beneath system memory: pages in and out with one worker thread, beside the codec alone and the disk alone.
#include <fcntl.h>
#include <lz4.h>
#include <poll.h>
#include <sys/mman.h>
#include <unistd.h>
#include <zstd.h>

#include <cstring>
#include <memory>
#include <stdexcept>
#include <vector>

#include "base/types.h"
#include "linux/store/store.h"
#include "rows/rows.h"

namespace ferry::bench {

namespace {

constexpr std::uint32_t job_pages = block_pages;
constexpr double mib = 1 << 20;
const char* const directory = "/var/tmp";

/// Memory of pages, aligned.
class Pages {
 public:
  explicit Pages(std::size_t count) : bytes_(count * page_bytes) {
    void* const at = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (at == MAP_FAILED) throw std::runtime_error("no memory for the pages");
    data_ = static_cast<std::byte*>(at);
  }
  ~Pages() { munmap(data_, bytes_); }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  [[nodiscard]] std::byte* data() const { return data_; }
  [[nodiscard]] std::size_t bytes() const { return bytes_; }
  [[nodiscard]] std::uint32_t count() const { return static_cast<std::uint32_t>(bytes_ / page_bytes); }

 private:
  std::byte* data_ = nullptr;
  std::size_t bytes_;
};

/// `noise` cleared: doubles that rise in small steps, as measurements do, which compress to about a half; set: nothing
/// that compresses.
void fill(const Pages& pages, bool noise) {
  std::uint64_t state = 88172645463325252U;
  const auto draw = [&] {
    state ^= state << 13U;
    state ^= state >> 7U;
    state ^= state << 17U;
    return state;
  };
  auto* const words = reinterpret_cast<std::uint64_t*>(pages.data());
  double value = 1;
  for (std::size_t i = 0; i < pages.bytes() / sizeof(std::uint64_t); ++i) {
    value += static_cast<double>(draw() % 4096) / 4096;
    words[i] = noise ? draw() : 0;
    if (!noise) std::memcpy(words + i, &value, sizeof value);
  }
}

class Tier {
 public:
  Tier(linux::Codec codec, bool file, std::size_t bytes) {
    bell_ = std::move(linux::Bell::make()).value();
    linux::StoreConfig config;
    config.codec = codec;
    config.memory_bytes = file ? 0 : 2 * bytes;
    config.file_bytes = file ? bytes : 0;
    config.directory = directory;
    auto made = linux::Store::make(config, bell_);
    if (!made)
      throw std::runtime_error(std::string("no store in ") + directory + ": " + std::strerror(made.status().sys_errno));
    store_ = std::move(made).value();
  }

  /// Seconds.
  double put(const Pages& pages) {
    handles_.clear();
    const std::uint64_t begin = now_ns();
    for (std::uint32_t first = 0; first < pages.count(); first += job_pages) {
      linux::StoreJob job;
      job.memory = pages.data() + std::size_t{first} * page_bytes;
      job.count_pages = job_pages;
      job.tag = first;
      store_->submit(std::move(job));
    }
    finish();
    const double took = static_cast<double>(now_ns() - begin) / 1e9;
    for (auto& c : done_) {
      if (!c.status.ok()) throw std::runtime_error("the store refused pages");
      handles_.push_back(std::move(c));
    }
    return took;
  }
  double get(const Pages& target) {
    const std::uint64_t begin = now_ns();
    for (const linux::StoreCompletion& stored : handles_) {
      linux::StoreJob job;
      job.kind = linux::StoreJob::Kind::load;
      job.memory = target.data() + stored.tag * page_bytes;
      job.count_pages = job_pages;
      job.handles = stored.handles;
      store_->submit(std::move(job));
    }
    finish();
    const double took = static_cast<double>(now_ns() - begin) / 1e9;
    for (const auto& c : done_) {
      if (!c.status.ok()) throw std::runtime_error("the store lost pages");
    }
    return took;
  }
  void drop() {
    for (const auto& stored : handles_) store_->drop(stored.handles.data(), stored.handles.size());
    handles_.clear();
  }

 private:
  void finish() {
    done_.clear();
    while (store_->in_flight() != 0) {
      store_->set_owner_sleeping(true);
      if (!store_->has_completions()) {
        pollfd ready{bell_.fd(), POLLIN, 0};
        poll(&ready, 1, 100);
        std::uint64_t count = 0;
        [[maybe_unused]] const auto n = read(bell_.fd(), &count, sizeof count);
      }
      store_->set_owner_sleeping(false);
      store_->take_completions(done_);
    }
  }

  linux::Bell bell_;
  std::unique_ptr<linux::Store> store_;
  std::vector<linux::StoreCompletion> handles_;
  std::vector<linux::StoreCompletion> done_;
};

/// The codec alone, page by page, with one context.
class RawCodec {
 public:
  explicit RawCodec(linux::Codec codec, std::uint32_t pages) : codec_(codec), sizes_(pages) {
    in_ = ZSTD_createCCtx();
    out_ = ZSTD_createDCtx();
    packed_.resize(std::size_t{pages} * slot);
    lz4_.resize(static_cast<std::size_t>(LZ4_sizeofState()));
  }
  ~RawCodec() {
    ZSTD_freeCCtx(in_);
    ZSTD_freeDCtx(out_);
  }
  RawCodec(const RawCodec&) = delete;
  RawCodec& operator=(const RawCodec&) = delete;

  double put(const Pages& pages) {
    const std::uint64_t begin = now_ns();
    for (std::uint32_t i = 0; i < pages.count(); ++i) {
      const std::byte* const page = pages.data() + std::size_t{i} * page_bytes;
      char* const to = packed_.data() + std::size_t{i} * slot;
      if (codec_ == linux::Codec::zstd) {
        sizes_[i] = ZSTD_compressCCtx(in_, to, slot, page, page_bytes, 1);
        if (ZSTD_isError(sizes_[i]) != 0) throw std::runtime_error("zstd failed");
      } else {
        sizes_[i] = static_cast<std::size_t>(
            LZ4_compress_fast_extState(lz4_.data(), reinterpret_cast<const char*>(page), to, page_bytes, slot, 1));
      }
    }
    return static_cast<double>(now_ns() - begin) / 1e9;
  }
  double get(const Pages& target) {
    const std::uint64_t begin = now_ns();
    for (std::uint32_t i = 0; i < target.count(); ++i) {
      std::byte* const page = target.data() + std::size_t{i} * page_bytes;
      const char* const from = packed_.data() + std::size_t{i} * slot;
      const std::size_t got = codec_ == linux::Codec::zstd
                                  ? ZSTD_decompressDCtx(out_, page, page_bytes, from, sizes_[i])
                                  : static_cast<std::size_t>(LZ4_decompress_safe(
                                        from, reinterpret_cast<char*>(page), static_cast<int>(sizes_[i]), page_bytes));
      if (got != page_bytes) throw std::runtime_error("the codec failed");
    }
    return static_cast<double>(now_ns() - begin) / 1e9;
  }

 private:
  static constexpr int slot = 8192;
  linux::Codec codec_;
  ZSTD_CCtx* in_;
  ZSTD_DCtx* out_;
  std::vector<char> packed_;
  std::vector<char> lz4_;
  std::vector<std::size_t> sizes_;
};

/// The disk alone: pieces of 256 KiB, one after the other, past the page cache as the store.
class RawFile {
 public:
  RawFile() : fd_(open(directory, O_TMPFILE | O_EXCL | O_RDWR | O_CLOEXEC | O_DIRECT, 0600)) {
    if (!fd_) throw std::runtime_error(std::string("no file past the page cache in ") + directory);
  }
  double put(const Pages& pages) {
    return run(pages, [&](std::byte* at, std::size_t n, off_t where) { return pwrite(fd_.get(), at, n, where); });
  }
  double get(const Pages& pages) {
    return run(pages, [&](std::byte* at, std::size_t n, off_t where) { return pread(fd_.get(), at, n, where); });
  }

 private:
  template <typename Call>
  double run(const Pages& pages, Call&& call) {
    constexpr std::size_t piece = 256 * 1024;
    const std::uint64_t begin = now_ns();
    for (std::size_t at = 0; at < pages.bytes(); at += piece) {
      if (call(pages.data() + at, piece, static_cast<off_t>(at)) != static_cast<ssize_t>(piece)) {
        throw std::runtime_error("the disk failed");
      }
    }
    return static_cast<double>(now_ns() - begin) / 1e9;
  }
  linux::Fd fd_;
};

Row owed(const std::string& name) { return {.name = name, .target = 0.8, .bound = Bound::at_least, .unit = "MiB/s"}; }

template <typename Floor>
std::vector<Row> measure(const std::string& name, const Settings& settings, const Pages& pages, Tier& tier,
                         Floor& floor) {
  const Pages target(pages.count());
  const double size = static_cast<double>(pages.bytes()) / mib;
  const Pair in = sample_in_turn(
      settings, "store_" + name,
      [&] {
        tier.drop();
        return size / tier.put(pages);
      },
      [&] { return size / floor.put(pages); });
  const auto check = [&] {
    if (std::memcmp(pages.data(), target.data(), pages.bytes()) != 0) throw std::runtime_error("other bytes came back");
    std::memset(target.data(), 0, target.bytes());
  };
  const Pair out = sample_in_turn(
      settings, "load_" + name,
      [&] {
        const double took = tier.get(target);
        check();
        return size / took;
      },
      [&] {
        const double took = floor.get(target);
        check();
        return size / took;
      });
  return {make_row(owed("store_" + name), in.ferry, in.floor), make_row(owed("load_" + name), out.ferry, out.floor)};
}

Bench codec_bench(linux::Codec codec) {
  const std::string name = linux::to_string(codec);
  return {.name = "store-" + name,
          .about = "pages into the store and out of it, " + name + ", one thread",
          .run =
              [=](const Settings& settings) {
                const Pages pages(64 * job_pages / 2);
                fill(pages, false);
                Tier tier(codec, false, pages.bytes());
                RawCodec floor(codec, pages.count());
                return measure(name, settings, pages, tier, floor);
              },
          .expected = {owed("store_" + name), owed("load_" + name)}};
}

}  // namespace

Bench store_zstd() { return codec_bench(linux::Codec::zstd); }
Bench store_lz4() { return codec_bench(linux::Codec::lz4); }

Bench store_file() {
  return {.name = "store-file",
          .about = "pages that do not compress into the store's file and out of it, one thread",
          .run =
              [](const Settings& settings) {
                const Pages pages(128 * job_pages / 2);
                fill(pages, true);
                Tier tier(linux::Codec::none, true, pages.bytes());
                RawFile floor;
                return measure("file", settings, pages, tier, floor);
              },
          .expected = {owed("store_file"), owed("load_file")}};
}

}  // namespace ferry::bench
