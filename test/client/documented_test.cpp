// The examples of docs/API.md and docs/SVM.md as they stand there, line by line (scripts/check_docs.py compares), with what
// they leave to the reader around them. Whole programs of the documentation are built by test/install.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <ferry/progress.hpp>
#include <ferry/svm.hpp>
#include <ferry/work.hpp>
#include <string>
#include <unordered_map>
#include <vector>

namespace {

constexpr std::size_t bytes = 1 << 20;

struct Table {
  void* at = ferry::alloc_aligned(bytes, 4096);
  Table() = default;
  Table(const Table&) = delete;
  Table& operator=(const Table&) = delete;
  ~Table() { ferry::free(at); }
};

std::uint32_t colour(std::size_t i) { return static_cast<std::uint32_t>(i); }
std::unordered_map<int, std::string> read_names() { return {{1, "one"}, {3, "three"}}; }
void read_with_direct_io(int file, void* to, std::size_t count) {
  EXPECT_EQ(pread(file, to, count, 0), static_cast<ssize_t>(count));
}

// clang-format off

TEST(Documented, ContainersInManagedMemory) {
  using Rows = std::vector<std::vector<int, ferry::allocator<int>>, ferry::allocator<std::vector<int, ferry::allocator<int>>>>;
  auto rows = ferry::make_unique<Rows>();
  rows->resize(3);
  for (auto& row : *rows) row.resize(5);
  ferry::parallel_for(rows->size(), [r = rows.get()](std::size_t i) { for (int& x : (*r)[i]) ++x; });
  for (const auto& row : *rows) {
    for (const int x : row) EXPECT_EQ(x, 1);
  }
}

TEST(Documented, BuffersAndJobs) {
  const unsigned width = 64;
  const unsigned height = 32;
  ferry::buffer frame(width * height * 4, ferry::in_vram(0)), half(width * height, ferry::in_system);
  auto* pixels = frame.map<std::uint32_t>();                              // one address for CPU, kernels and jobs
  ferry::fence drawn = ferry::submit_graphics({.buffers = {ferry::writes(frame)}}, width * height, [pixels](std::size_t i) { pixels[i] = colour(i); });
  ferry::fence done = ferry::submit_video({}, {.op = ferry::video_op::half, .width = width, .height = height}, half, frame);  // waits for `drawn` by itself
  done.wait();                                                            // throws the error of either
  EXPECT_EQ(pixels[100], 100U);
}

TEST(Documented, UserFences) {
  ferry::queue queue;
  const auto done = ferry::make_unique<std::uint64_t>(0);         // a word in managed memory that only grows
  queue.parallel_for(1, [p = done.get()](std::size_t) { ferry::signal(*p, 1); });
  ferry::wait_until(*done, 1);
  EXPECT_EQ(*done, 1U);
}

TEST(Documented, ProgressModel) {
  ferry::progress::Model model;
  const auto fences = model.define(ferry::progress::Kind::fence, "fence");
  const auto units = model.define(ferry::progress::Kind::engine, "compute unit");
  auto unit = model.add(units, 0);
  auto frame = model.add(fences, 42);
  frame.publish();       // visible from here on: owed a signal
  frame.wait(unit);      // before it blocks
  frame.acquire(unit);   // it has it
  frame.release(unit);
  frame.signal();
  for (const auto& report : model.take()) std::puts(report.text.c_str());
  EXPECT_TRUE(model.take().empty());
}

TEST(Documented, Attributes) {
  const Table memory;
  void* const table = memory.at;
  ferry::attributes().preferred(0).set(ferry::svm_flag::read_mostly).apply(table, bytes);   // all lines or none
  const ferry::span_attributes now = ferry::attributes_of(table, bytes);
  ferry::reset_attributes(table, bytes);
  EXPECT_EQ(now.preferred.device(), 0U);
  EXPECT_FALSE(ferry::has(ferry::attributes_of(table, bytes).set, ferry::svm_flag::read_mostly));
}

TEST(Documented, PinsAndMoves) {
  const Table memory;
  void* const table = memory.at;
  void* const page = table;
  const int file = memfd_create("documented", MFD_CLOEXEC);
  ASSERT_GE(file, 0);
  EXPECT_EQ(ftruncate(file, 4096), 0);
  {
    const ferry::pin held(page, 4096);     // for DMA that no page table stops
    read_with_direct_io(file, page, 4096);
  }
  close(file);
  const ferry::fence moved = ferry::migrate_async(table, bytes, ferry::to_device(1));   // go on meanwhile
  moved.wait();
  EXPECT_EQ(ferry::query(page).vram_device, 1);
}

TEST(Documented, Events) {
  const Table memory;
  const ferry::events seen({ferry::event_kind::migrate_end, ferry::event_kind::thrash});
  ferry::prefetch(memory.at, bytes, ferry::to_device(0));
  bool told = false;
  for (const ferry::event& e : seen.read(std::chrono::seconds(1))) {
    std::printf("%s: %p, %llu bytes, %d to %d, because of %s\n", ferry::to_string(ferry::kind_of(e)), e.pointer, (unsigned long long)e.bytes, e.from, e.to, ferry::trigger_of(e));
    told = true;
  }
  // A second may be short on a busy machine.
  while (!told) told = !seen.read(std::chrono::seconds(60)).empty();
}

TEST(Documented, OrdinaryMemory) {
  const std::vector<int> keys{1, 2, 3};
  std::vector<std::size_t> sizes(keys.size());
  std::unordered_map<int, std::string> names = read_names();                        // ordinary heap, ordinary stack
  ferry::parallel_for(keys.size(), [m = &names, k = keys.data(), out = sizes.data()](std::size_t i) {
    const auto found = m->find(k[i]);
    out[i] = found == m->end() ? 0 : found->second.size();
  });
  EXPECT_EQ(sizes, (std::vector<std::size_t>{3, 0, 5}));
}

TEST(Documented, Checkpoints) {
  const Table memory;
  const int fd = memfd_create("documented", MFD_CLOEXEC);
  ASSERT_GE(fd, 0);
  ferry::save_checkpoint(fd);      // in one process
  EXPECT_EQ(lseek(fd, 0, SEEK_SET), 0);
  // Here the same addresses are in use.
  EXPECT_THROW(
  ferry::restore_checkpoint(fd);   // in another: the same pointers hold the same bytes
  , ferry::error);
  close(fd);
}

// clang-format on

}  // namespace
