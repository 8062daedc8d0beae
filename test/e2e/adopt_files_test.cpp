// Files that the program has mapped, on devices, at their own addresses: docs/design/0022-files.md.
#include <fcntl.h>
#include <ferry/svm.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <ferry/ferry.hpp>
#include <filesystem>
#include <fstream>
#include <functional>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

namespace ferry::test {
namespace {

constexpr std::size_t mib = std::size_t{1} << 20;
constexpr std::size_t page = 4096;

std::string error_of_kernel(const std::function<void()>& body) {
  try {
    body();
  } catch (const ferry::kernel_error& e) {
    return e.what();
  }
  return "no error";
}

/// A file of this test in a directory, with `bytes` of 32-bit numbers that count from 0.
class File {
 public:
  explicit File(std::size_t bytes, const std::string& directory = std::filesystem::temp_directory_path()) {
    path_ = directory + "/ferry-files-XXXXXX";
    fd_ = ::mkstemp(path_.data());
    EXPECT_GE(fd_, 0) << path_;
    std::vector<std::uint32_t> numbers(bytes / 4);
    std::iota(numbers.begin(), numbers.end(), 0U);
    EXPECT_EQ(::pwrite(fd_, numbers.data(), bytes, 0), static_cast<ssize_t>(bytes));
  }
  ~File() {
    close();
    ::unlink(path_.c_str());
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  void close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }
  [[nodiscard]] int fd() const { return fd_; }
  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] std::uint32_t read(std::size_t index) const {
    std::uint32_t value = 0;
    EXPECT_EQ(::pread(fd_, &value, 4, static_cast<off_t>(index * 4)), 4);
    return value;
  }

 private:
  std::string path_;
  int fd_ = -1;
};

class Map {
 public:
  Map(int fd, std::size_t bytes, int prot, int flags, std::size_t offset = 0)
      : bytes_(bytes), at_(::mmap(nullptr, bytes, prot, flags, fd, static_cast<off_t>(offset))) {
    EXPECT_NE(at_, MAP_FAILED);
  }
  ~Map() { unmap(); }
  Map(const Map&) = delete;
  Map& operator=(const Map&) = delete;
  void unmap() {
    if (at_ != nullptr) ::munmap(at_, bytes_);
    at_ = nullptr;
  }
  template <typename T = std::uint32_t>
  [[nodiscard]] T* as() const {
    return static_cast<T*>(at_);
  }

 private:
  std::size_t bytes_;
  void* at_;
};

std::uint64_t sum_on_device(const std::uint32_t* p, std::size_t count, unsigned device = 0) {
  auto* total = static_cast<std::atomic<std::uint64_t>*>(ferry::alloc(sizeof(std::uint64_t)));
  *total = 0;
  constexpr std::size_t part = 4096;
  ferry::queue q(device);
  q.launch({.items = (count + part - 1) / part}, [p, total, count](ferry::item i) {
     std::uint64_t sum = 0;
     for (std::size_t at = i.global() * part; at < count && at < (i.global() + 1) * part; ++at) sum += p[at];
     total->fetch_add(sum, std::memory_order_relaxed);
   }).wait();
  const std::uint64_t sum = *total;
  ferry::free(total);
  return sum;
}

std::uint64_t sum_to(std::uint64_t count) { return count * (count - 1) / 2; }

void add_on_device(std::uint32_t* p, std::size_t count, std::uint32_t value) {
  ferry::parallel_for(count, [p, value](std::size_t i) { p[i] += value; });
}

TEST(Files, ADataSetIsSummedWhereItIs) {
  const File file(64 * mib);
  for (const int flags : {MAP_PRIVATE, MAP_SHARED}) {
    const Map map(file.fd(), 64 * mib, PROT_READ, flags);
    EXPECT_EQ(sum_on_device(map.as(), 16 * mib), sum_to(16 * mib));
  }
}

TEST(Files, WritesOfADeviceReachTheFileAndEveryMapper) {
  const File file(4 * mib);
  const Map map(file.fd(), 4 * mib, PROT_READ | PROT_WRITE, MAP_SHARED);
  const Map other(file.fd(), 4 * mib, PROT_READ, MAP_SHARED);
  add_on_device(map.as(), mib, 1);
  for (std::uint32_t i = 0; i < mib; ++i) {
    ASSERT_EQ(map.as()[i], i + 1);
    ASSERT_EQ(other.as()[i], i + 1);
  }
  EXPECT_EQ(file.read(mib - 1), mib);
  // And back: what the program writes, also into the file itself, the device sees.
  map.as()[7] = 1000;
  const std::uint32_t value = 2000;
  ASSERT_EQ(::pwrite(file.fd(), &value, 4, 8 * 4), 4);
  add_on_device(map.as(), 10, 1);
  EXPECT_EQ(map.as()[7], 1001U);
  EXPECT_EQ(file.read(8), 2001U);
}

TEST(Files, TheOffsetOfAMappingCounts) {
  const File file(4 * mib);
  const Map map(file.fd(), mib, PROT_READ | PROT_WRITE, MAP_SHARED, 2 * mib + page);
  EXPECT_EQ(sum_on_device(map.as() + 5, 1), (2 * mib + page) / 4 + 5);
  add_on_device(map.as(), 1, 5);
  EXPECT_EQ(file.read((2 * mib + page) / 4), (2 * mib + page) / 4 + 5);
}

TEST(Files, SharedMemoryWithADescriptor) {
  const int fd = ::memfd_create("shared", MFD_CLOEXEC);
  ASSERT_EQ(::ftruncate(fd, 4 * mib), 0);
  const Map map(fd, 4 * mib, PROT_READ | PROT_WRITE, MAP_SHARED);
  const Map other(fd, 4 * mib, PROT_READ | PROT_WRITE, MAP_SHARED);
  other.as()[3] = 40;
  add_on_device(map.as(), mib, 2);
  EXPECT_EQ(other.as()[3], 42U);
  EXPECT_EQ(other.as()[mib - 1], 2U);
  ::close(fd);
}

TEST(Files, SharedMemoryWithAName) {
  if (::access("/dev/shm", W_OK) != 0) GTEST_SKIP() << "no /dev/shm";
  const std::string name = "/ferry-files-" + std::to_string(::getpid());
  const int fd = ::shm_open(name.c_str(), O_RDWR | O_CREAT | O_EXCL, 0600);
  ASSERT_GE(fd, 0);
  ASSERT_EQ(::ftruncate(fd, mib), 0);
  const Map map(fd, mib, PROT_READ | PROT_WRITE, MAP_SHARED);
  ::close(fd);
  add_on_device(map.as(), mib / 4, 3);
  EXPECT_EQ(map.as()[mib / 4 - 1], 3U);
  ::shm_unlink(name.c_str());
}

TEST(Files, SharedAnonymousMemoryIsSharedWithChildrenAndDevices) {
  if (::geteuid() != 0) GTEST_SKIP() << "without privilege nobody can get the file of shared anonymous memory";
  const Map map(-1, mib, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS);
  map.as()[1] = 1;
  add_on_device(map.as(), mib / 4, 10);
  const pid_t child = ::fork();
  if (child == 0) {
    map.as()[1] += map.as()[1] == 11 ? 100 : 0;
    ::_exit(0);
  }
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  add_on_device(map.as(), mib / 4, 1000);
  EXPECT_EQ(map.as()[1], 1111U);
  EXPECT_EQ(map.as()[2], 1010U);
}

TEST(Files, AtomicsOfThreadsAndOfTwoDevicesMeetInOnePage) {
  const int fd = ::memfd_create("atomics", MFD_CLOEXEC);
  ASSERT_EQ(::ftruncate(fd, page), 0);
  const Map map(fd, page, PROT_READ | PROT_WRITE, MAP_SHARED);
  auto* counter = map.as<std::atomic<std::uint64_t>>();
  constexpr std::uint64_t each = 20000;
  std::vector<std::thread> threads;
  for (int t = 0; t < 2; ++t) {
    threads.emplace_back([counter] {
      for (std::uint64_t i = 0; i < each; ++i) counter->fetch_add(1);
    });
  }
  for (unsigned device = 0; device < 2; ++device) {
    threads.emplace_back([counter, device] {
      ferry::queue q(device);
      q.launch({.items = each}, [counter](ferry::item) { counter->fetch_add(1); }).wait();
    });
  }
  for (auto& t : threads) t.join();
  EXPECT_EQ(counter->load(), 4 * each);
  ::close(fd);
}

TEST(Files, AFileWithoutANameIsFoundByItsDescriptorOrItsMapping) {
  File file(mib);
  const Map map(file.fd(), mib, PROT_READ | PROT_WRITE, MAP_SHARED);
  ASSERT_EQ(::unlink(file.path().c_str()), 0);
  // Somebody else has the name now.
  const int thief = ::open(file.path().c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  ASSERT_GE(thief, 0);
  add_on_device(map.as(), mib / 4, 1);
  EXPECT_EQ(map.as()[9], 10U);
  EXPECT_EQ(file.read(9), 10U);
  struct stat s {};
  ASSERT_EQ(::fstat(thief, &s), 0);
  EXPECT_EQ(s.st_size, 0);
  ::close(thief);
}

TEST(Files, AFileThatNobodyCanOpenAnyMoreIsRefusedWithTheReason) {
  if (::geteuid() == 0) GTEST_SKIP() << "with privilege the kernel opens a file by its mapping";
  File file(mib);
  const Map map(file.fd(), mib, PROT_READ, MAP_SHARED);
  ASSERT_EQ(::unlink(file.path().c_str()), 0);
  file.close();
  const std::string text = error_of_kernel([&] { sum_on_device(map.as(), 10); });
  EXPECT_NE(text.find("cannot be opened under its name"), std::string::npos) << text;
  ferry_error e{};
  EXPECT_EQ(ferry_adopt(map.as(), mib, &e), FERRY_UNSUPPORTED);
  EXPECT_NE(std::string(e.text).find("cannot be opened under its name"), std::string::npos) << e.text;
}

TEST(Files, HolesOfAFileReadAsZerosAndAreFilledByWrites) {
  const File file(page);
  ASSERT_EQ(::ftruncate(file.fd(), 8 * mib), 0);
  const Map map(file.fd(), 8 * mib, PROT_READ | PROT_WRITE, MAP_SHARED);
  EXPECT_EQ(sum_on_device(map.as(), 2 * mib), sum_to(page / 4));
  add_on_device(map.as() + mib, 1, 77);
  EXPECT_EQ(file.read(mib), 77U);
}

TEST(Files, AWriteToAReadOnlyMappingIsAnErrorOfTheKernel) {
  const File file(mib);
  const int fd = ::open(file.path().c_str(), O_RDONLY | O_CLOEXEC);
  ASSERT_GE(fd, 0);
  for (const int flags : {MAP_SHARED, MAP_PRIVATE}) {
    const Map map(fd, mib, PROT_READ, flags);
    for (int touched = 0; touched < 2; ++touched) {
      const std::string text = error_of_kernel([&] { add_on_device(map.as(), 1, 1); });
      EXPECT_NE(text.find("the program itself may not write there"), std::string::npos) << text;
      EXPECT_EQ(sum_on_device(map.as(), 10), sum_to(10));
    }
    EXPECT_EQ(file.read(0), 0U);
  }
  ::close(fd);
}

TEST(Files, WhereTheFileEndsAKernelFailsAndNothingHangs) {
  const File file(page);
  const Map map(file.fd(), 4 * page, PROT_READ | PROT_WRITE, MAP_SHARED);
  for (int round = 0; round < 2; ++round) {
    const std::string text = error_of_kernel([&] { sum_on_device(map.as() + 2 * page / 4, 1); });
    EXPECT_NE(text.find("the mapped file ends before it"), std::string::npos) << text;
    EXPECT_EQ(sum_on_device(map.as(), page / 4), sum_to(page / 4));
    const std::string again = error_of_kernel([&] { sum_on_device(map.as() + 3 * page / 4, 1); });
    EXPECT_NE(again.find("the mapped file ends before it"), std::string::npos) << again;
  }
}

TEST(Files, TruncatedPagesAreGoneForTheDeviceAndComeBackWhenTheFileGrows) {
  const File file(4 * mib);
  const Map map(file.fd(), 4 * mib, PROT_READ | PROT_WRITE, MAP_SHARED);
  add_on_device(map.as(), mib, 1);
  ASSERT_EQ(::ftruncate(file.fd(), mib), 0);
  const std::string text = error_of_kernel([&] { sum_on_device(map.as() + mib / 2, 1); });
  EXPECT_NE(text.find("the mapped file ends before it"), std::string::npos) << text;
  EXPECT_EQ(sum_on_device(map.as(), mib / 4), sum_to(mib / 4) + mib / 4);
  ASSERT_EQ(::ftruncate(file.fd(), 4 * mib), 0);
  EXPECT_EQ(sum_on_device(map.as() + mib / 4, 3 * mib / 4), 0U);
  add_on_device(map.as() + mib / 2, 1, 5);
  EXPECT_EQ(file.read(mib / 2), 5U);
}

TEST(Files, AnAddressThatIsUsedAgainIsTheNewMemory) {
  const File first(mib);
  const File second(2 * mib);
  void* at = ::mmap(nullptr, mib, PROT_READ | PROT_WRITE, MAP_SHARED, first.fd(), 0);
  ASSERT_NE(at, MAP_FAILED);
  auto* p = static_cast<std::uint32_t*>(at);
  for (std::uint32_t round = 1; round <= 30; ++round) {
    SCOPED_TRACE(round);
    ASSERT_EQ(sum_on_device(p, mib / 4), sum_to(mib / 4));
    // Another file over it.
    ASSERT_EQ(::mmap(at, mib, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, second.fd(), mib), at);
    ASSERT_EQ(sum_on_device(p, mib / 4), sum_to(mib / 4) + mib / 4 * (mib / 4));
    // Memory of the program's own, which is adopted.
    ASSERT_EQ(::munmap(at, mib), 0);
    ASSERT_EQ(::mmap(at, mib, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0), at);
    add_on_device(p, mib / 4, round);
    ASSERT_EQ(p[mib / 4 - 1], round);
    ASSERT_EQ(::mmap(at, mib, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, first.fd(), 0), at);
  }
  EXPECT_EQ(first.read(0), 0U);
  ASSERT_EQ(::munmap(at, mib), 0);
  EXPECT_NE(error_of_kernel([&] { sum_on_device(p, 1); }), "no error");
}

TEST(Files, APartThatIsUnmappedIsGoneAndTheRestIsThere) {
  const File file(mib);
  const Map map(file.fd(), mib, PROT_READ, MAP_SHARED);
  EXPECT_EQ(sum_on_device(map.as(), mib / 4), sum_to(mib / 4));
  ASSERT_EQ(::munmap(map.as<char>() + mib / 4, page), 0);
  const std::string text = error_of_kernel([&] { sum_on_device(map.as() + mib / 16, 1); });
  EXPECT_NE(text.find("nothing"), std::string::npos) << text;
  EXPECT_EQ(sum_on_device(map.as(), mib / 16), sum_to(mib / 16));
  EXPECT_EQ(sum_on_device(map.as() + mib / 8, 10), 10 * (mib / 8) + 45);
}

TEST(Files, FewerRightsAreFewerRightsForTheDevice) {
  const File file(mib);
  const Map map(file.fd(), mib, PROT_READ | PROT_WRITE, MAP_SHARED);
  for (int round = 0; round < 10; ++round) {
    add_on_device(map.as(), mib / 4, 1);
    ASSERT_EQ(::mprotect(map.as(), mib, PROT_READ), 0);
    EXPECT_NE(error_of_kernel([&] { add_on_device(map.as(), 1, 1); }).find("may not write there"), std::string::npos);
    ASSERT_EQ(::mprotect(map.as(), mib, PROT_NONE), 0);
    EXPECT_NE(error_of_kernel([&] { sum_on_device(map.as(), 1); }).find("may not touch it"), std::string::npos);
    ASSERT_EQ(::mprotect(map.as(), mib, PROT_READ | PROT_WRITE), 0);
  }
  EXPECT_EQ(file.read(0), 10U);
}

TEST(Files, AMovedMappingIsAtItsNewAddressOnly) {
  const File file(2 * mib);
  void* const at = ::mmap(nullptr, mib, PROT_READ | PROT_WRITE, MAP_SHARED, file.fd(), 0);
  ASSERT_NE(at, MAP_FAILED);
  auto* p = static_cast<std::uint32_t*>(at);
  add_on_device(p, mib / 4, 1);
  void* const room = ::mmap(nullptr, 2 * mib, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_EQ(::mremap(at, mib, 2 * mib, MREMAP_MAYMOVE | MREMAP_FIXED, room), room);
  const std::string text = error_of_kernel([&] { sum_on_device(p, 1); });
  EXPECT_NE(text.find("nothing"), std::string::npos) << text;
  add_on_device(static_cast<std::uint32_t*>(room), mib / 2, 1);
  EXPECT_EQ(file.read(0), 2U);
  EXPECT_EQ(file.read(mib / 4), mib / 4 + 1);
  ::munmap(room, 2 * mib);
}

TEST(Files, ReadOnlyPagesWithCopiesOfTheProgramsOwnAreRefusedAndTheOthersAreNot) {
  const File file(mib);
  const Map map(file.fd(), mib, PROT_READ | PROT_WRITE, MAP_PRIVATE);
  map.as()[mib / 8] = 5;  // in the middle
  ASSERT_EQ(::mprotect(map.as(), mib, PROT_READ), 0);
  EXPECT_EQ(sum_on_device(map.as(), 100), sum_to(100));
  EXPECT_EQ(sum_on_device(map.as() + mib / 4 - 10, 1), mib / 4 - 10);
  const std::string text = error_of_kernel([&] { sum_on_device(map.as() + mib / 8, 1); });
  EXPECT_NE(text.find("copies of its own"), std::string::npos) << text;
}

TEST(PrivateFiles, WritesOfBothSidesAreSeenByBothAndNeverReachTheFile) {
  const File file(4 * mib);
  const Map map(file.fd(), 4 * mib, PROT_READ | PROT_WRITE, MAP_PRIVATE);
  map.as()[5] = 100;  // a page of its own already
  add_on_device(map.as(), mib, 1);
  EXPECT_EQ(map.as()[5], 101U);
  EXPECT_EQ(map.as()[6], 7U);
  map.as()[mib - 1] = 50;
  add_on_device(map.as(), mib, 1);
  EXPECT_EQ(map.as()[mib - 1], 51U);
  for (std::uint32_t i = 6; i < mib - 1; ++i) ASSERT_EQ(map.as()[i], i + 2);
  for (std::size_t i = 0; i < mib; i += 1000) ASSERT_EQ(file.read(i), i);
  ferry_error e{};
  ASSERT_EQ(ferry_release(map.as(), 4 * mib, &e), FERRY_OK) << e.text;
  EXPECT_EQ(map.as()[5], 102U);
  EXPECT_EQ(map.as()[7], 9U);
}

TEST(PrivateFiles, NoUpdateIsLostOfThreadsThatGoOnWriting) {
  constexpr std::size_t count = 2 * mib;
  const File file(4 * count);
  for (int round = 0; round < 3; ++round) {
    const Map map(file.fd(), 4 * count, PROT_READ | PROT_WRITE, MAP_PRIVATE);
    auto* words = map.as<std::atomic<std::uint32_t>>();
    std::atomic<bool> stop{false};
    std::atomic<std::uint64_t> added{0};
    std::vector<std::thread> threads;
    for (unsigned t = 0; t < 3; ++t) {
      threads.emplace_back([&, t] {
        std::uint64_t x = t * 7919 + 1;
        std::uint64_t mine = 0;
        for (; !stop.load(std::memory_order_relaxed); ++mine) {
          x = x * 6364136223846793005U + 1442695040888963407U;
          words[(x >> 20) % count].fetch_add(1, std::memory_order_relaxed);
        }
        added += mine;
      });
    }
    ferry_error e{};
    if (round % 2 == 0) {
      ASSERT_EQ(ferry_adopt(words, 4 * count, &e), FERRY_OK) << e.text;
    }
    ferry::parallel_for(count, [words](std::size_t i) { words[i].fetch_add(1, std::memory_order_relaxed); });
    stop = true;
    for (auto& t : threads) t.join();
    std::uint64_t sum = 0;
    for (std::size_t i = 0; i < count; ++i) sum += words[i].load() - static_cast<std::uint32_t>(i);
    EXPECT_EQ(sum, count + added.load());
  }
}

TEST(PrivateFiles, ThatMayBeWrittenFromNowOnShowTheDeviceWhatIsWritten) {
  const File file(mib);
  const Map map(file.fd(), mib, PROT_READ, MAP_PRIVATE);
  EXPECT_EQ(sum_on_device(map.as(), 100), sum_to(100));
  ASSERT_EQ(::mprotect(map.as(), mib, PROT_READ | PROT_WRITE), 0);
  map.as()[0] = 1000;
  EXPECT_EQ(sum_on_device(map.as(), 100), sum_to(100) + 1000);
  EXPECT_EQ(file.read(0), 0U);
}

TEST(PrivateFiles, EndWhereTheFileEnds) {
  const File file(page + 100);
  const Map map(file.fd(), 8 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE);
  const std::string text = error_of_kernel([&] { add_on_device(map.as() + 5 * page / 4, 1, 1); });
  EXPECT_NE(text.find("the mapped file ends before it"), std::string::npos) << text;
  ferry_error e{};
  EXPECT_EQ(ferry_adopt(map.as(), 8 * page, &e), FERRY_UNSUPPORTED);
  EXPECT_NE(std::string(e.text).find("the mapped file ends before it"), std::string::npos) << e.text;
  add_on_device(map.as(), page / 4, 1);
  EXPECT_EQ(map.as()[3], 4U);
  EXPECT_EQ(file.read(3), 3U);
}

TEST(PrivateFiles, AForkCopiesOnWrite) {
  const File file(mib);
  const Map map(file.fd(), mib, PROT_READ | PROT_WRITE, MAP_PRIVATE);
  add_on_device(map.as(), mib / 4, 1);
  const pid_t child = ::fork();
  if (child == 0) {
    const bool same = map.as()[9] == 10;
    map.as()[9] = 1;
    ::_exit(same && map.as()[9] == 1 ? 0 : 1);
  }
  int how = 0;
  ASSERT_EQ(::waitpid(child, &how, 0), child);
  EXPECT_EQ(how, 0);
  add_on_device(map.as(), mib / 4, 1);
  EXPECT_EQ(map.as()[9], 11U);
  EXPECT_EQ(file.read(9), 9U);
}

TEST(Files, AForkKeepsTheParentsDevicesGoing) {
  const File file(mib);
  const Map map(file.fd(), mib, PROT_READ | PROT_WRITE, MAP_SHARED);
  add_on_device(map.as(), mib / 4, 1);
  const pid_t child = ::fork();
  if (child == 0) {
    map.as()[0] += 100;
    ::munmap(map.as<char>() + mib / 2, mib / 2);
    ::_exit(map.as()[5] == 6 ? 0 : 1);
  }
  int how = 0;
  ASSERT_EQ(::waitpid(child, &how, 0), child);
  EXPECT_EQ(how, 0);
  add_on_device(map.as(), mib / 4, 1);
  EXPECT_EQ(map.as()[0], 102U);
  EXPECT_EQ(file.read(mib / 4 - 1), mib / 4 + 1);
}

TEST(Files, AdoptAndReleaseAreTaken) {
  const File file(mib);
  const Map map(file.fd(), mib, PROT_READ | PROT_WRITE, MAP_SHARED);
  ferry_error e{};
  ASSERT_EQ(ferry_adopt(map.as(), mib, &e), FERRY_OK) << e.text;
  add_on_device(map.as(), mib / 4, 1);
  ASSERT_EQ(ferry_release(map.as(), mib, &e), FERRY_OK) << e.text;
  add_on_device(map.as(), mib / 4, 1);
  EXPECT_EQ(file.read(1), 3U);
}

TEST(Files, ThreadsThatMapAndUnmapWhileDevicesRead) {
  const File file(2 * mib);
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int round = 0; round < 10; ++round) {
        const Map map(file.fd(), mib, PROT_READ | PROT_WRITE, MAP_SHARED,
                      (t + static_cast<unsigned>(round)) % 16 * page);
        const std::uint64_t first = (t + static_cast<unsigned>(round)) % 16 * page / 4;
        if (sum_on_device(map.as(), 1000, t % 2) != 1000 * first + sum_to(1000)) ++wrong;
      }
    });
  }
  for (auto& t : threads) t.join();
  EXPECT_EQ(wrong, 0);
}

/// Device processes that have mapped the file, whose name is nobody else's.
std::vector<pid_t> devices_with(const std::string& path) {
  std::vector<pid_t> found;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const std::string name = entry.path().filename();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    std::ifstream comm(entry.path() / "comm");
    std::string line;
    if (!std::getline(comm, line) || line != "ferry-device") continue;
    std::ifstream maps(entry.path() / "maps");
    while (std::getline(maps, line)) {
      if (line.find(path) == std::string::npos) continue;
      found.push_back(static_cast<pid_t>(std::stol(name)));
      break;
    }
  }
  return found;
}

TEST(Files, ADeviceThatIsLostHasThemNoMoreAndTheNextOneGetsThem) {
  const File file(mib);
  const Map map(file.fd(), mib, PROT_READ | PROT_WRITE, MAP_SHARED);
  add_on_device(map.as(), mib / 4, 1);
  const std::vector<pid_t> devices = devices_with(file.path());
  ASSERT_EQ(devices.size(), 1U);
  ASSERT_EQ(::kill(devices.front(), SIGKILL), 0);
  // The first launches may still find the device that has gone.
  bool again = false;
  for (int tries = 0; tries < 10000 && !again; ++tries) {
    try {
      // Not an addition: the one that ends may still have run it.
      ferry::parallel_for(1, [p = map.as()](std::size_t) { p[0] = 77; });
      again = true;
    } catch (const ferry::error& e) {
      ASSERT_EQ(e.code(), ferry::errc::device_lost) << e.what();
      std::this_thread::yield();
    }
  }
  ASSERT_TRUE(again) << "no device after 10000 launches";
  EXPECT_EQ(file.read(0), 77U);
  EXPECT_EQ(file.read(1), 2U);
  // What is unmapped is gone from the new one, too.
  ASSERT_EQ(devices_with(file.path()).size(), 1U);
  ASSERT_EQ(::mprotect(map.as(), mib, PROT_READ), 0);
  EXPECT_TRUE(devices_with(file.path()).empty());
}

std::size_t open_descriptors() {
  std::size_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) ++count;
  return count;
}

TEST(Files, NoDescriptorIsLeft) {
  const File file(mib);
  {  // The first use of a device keeps some.
    const Map map(file.fd(), mib, PROT_READ, MAP_SHARED);
    sum_on_device(map.as(), 1);
    sum_on_device(map.as(), 1, 1);
  }
  const std::size_t before = open_descriptors();
  for (int round = 0; round < 20; ++round) {
    const Map map(file.fd(), mib, PROT_READ, MAP_SHARED);
    ASSERT_EQ(sum_on_device(map.as(), 1000), sum_to(1000));
    ASSERT_EQ(sum_on_device(map.as(), 1000, 1), sum_to(1000));
  }
  EXPECT_EQ(open_descriptors(), before);
}

}  // namespace
}  // namespace ferry::test
