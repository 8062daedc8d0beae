// An application that does one thing to its memory over and over, while it knows every byte of it.
//
//   e2e_storm adopt | fork | attributes | move | checkpoint
//
//   adopt        memory of its own, private and of a file, is taken by devices while a thread counts in it; some is given
//                back, some unmapped as it is
//   fork         children check and rewrite what they have while the parent and its devices do the same
//   attributes   two threads set, read and reset attributes, pin, prefetch and migrate what kernels are working on
//   move         mremap to another address and back, shrunk and grown, with pages on devices
//   checkpoint   everything is saved over and over; `e2e_storm restore FILE` reads back what there is
//
// FERRY_STORM_FILE names the file of checkpoints. Says what migrator.cpp says, and ends as it does (known.h).
#include <fcntl.h>
#include <ferry/svm.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <ferry/svm.hpp>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "known.h"

namespace {

using namespace ferry::test;
using ferry::errc;

constexpr std::size_t page = 4096;
/// Words at the end of each page are counted in by threads; the others hold what their place and a version say.
constexpr std::size_t data_words = page_words - 8;

[[noreturn]] void failed(const char* what) {
  std::printf("error %s: %s\n", what, std::strerror(errno));
  std::fflush(stdout);
  std::_Exit(exit_error);
}

char* map_pages(std::size_t pages, int flags = MAP_PRIVATE | MAP_ANONYMOUS, int fd = -1) {
  void* at = mmap(nullptr, pages * page, PROT_READ | PROT_WRITE, flags, fd, 0);
  if (at == MAP_FAILED) failed("mmap");
  return static_cast<char*>(at);
}

/// The queues of all devices, and what kernels found wrong.
struct Machine {
  Machine() {
    for (unsigned d = 0; d < ferry::device_count(); ++d) queues.emplace_back(d);
    bad = static_cast<Word*>(ferry::alloc(page, ferry::placement::system));
    std::memset(bad, 0, page);
  }
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;

  /// False: the device was lost.
  template <typename Call>
  bool survives(Call&& call) {
    try {
      call();
      return true;
    } catch (const ferry::error& e) {
      if (e.code() != errc::device_lost) throw;
      why_lost = e.what();
      return false;
    }
  }

  std::vector<ferry::queue> queues;
  Word* bad;  ///< count, and of the first: index, value, wanted
  unsigned refused = 0;
  std::string why_lost;      ///< what the library said of the last loss
  unsigned long number = 0;  ///< of the round
};

/// Pages of known words, some of them rewritten by devices and the others by the program in each step.
class Sheet {
 public:
  Sheet(Machine& machine, char* at, std::size_t pages) : machine_(machine), words_(to_words(at)), pages_(pages) {
    for (std::size_t p = 0; p < pages_; ++p) write(p, 0);
  }
  [[nodiscard]] char* at() const { return reinterpret_cast<char*>(words_); }
  [[nodiscard]] std::size_t pages() const { return pages_; }
  [[nodiscard]] Word version() const { return version_; }
  void moved(char* to) { words_ = to_words(to); }
  void cut(std::size_t pages) { pages_ = pages; }
  void grown(std::size_t pages) {
    for (std::size_t p = pages_; p < pages; ++p) {
      for (std::size_t i = 0; i < page_words; ++i) {
        if (words_[p * page_words + i] != 0) wrong("new page", p, words_[p * page_words + i], 0);
      }
      write(p, version_);
    }
    pages_ = pages;
  }

  /// From a version to the next.
  void step() {
    const std::size_t owners = machine_.queues.size() + 1;
    ++turn_;
    std::vector<std::optional<ferry::completion>> launched(machine_.queues.size());
    for (std::size_t d = 0; d < machine_.queues.size(); ++d) launched[d] = launch(d, owners);
    for (std::size_t p = 0; p < pages_; ++p) {
      if (owner_of(p) == owners - 1) rewrite(p);
    }
    for (std::size_t d = 0; d < machine_.queues.size(); ++d) {
      if (launched[d] && machine_.survives([&] { launched[d]->wait(); })) continue;
      after_loss(d);
    }
    if (machine_.bad[0] != 0) wrong("device", machine_.bad[1], machine_.bad[2], machine_.bad[3]);
    ++version_;
  }
  void check(const char* who) const {
    for (std::size_t p = 0; p < pages_; ++p) check(p, version_, who);
  }
  /// In the child of a fork: everything is as it was, and may be changed.
  void use_in_child(Word salt) const {
    check("child");
    for (std::size_t p = 0; p < pages_; ++p) write(p, version_ + salt);
    for (std::size_t p = 0; p < pages_; ++p) check(p, version_ + salt, "child's own");
  }

 private:
  static Word* to_words(char* at) { return reinterpret_cast<Word*>(at); }
  [[nodiscard]] std::size_t owner_of(std::size_t p) const { return (p + turn_) % (machine_.queues.size() + 1); }
  void write(std::size_t p, Word version) const {
    for (std::size_t i = 0; i < data_words; ++i) words_[p * page_words + i] = mix(p * page_words + i) + version;
  }
  void check(std::size_t p, Word version, const char* who) const {
    for (std::size_t i = p * page_words; i < p * page_words + data_words; ++i) {
      if (words_[i] != mix(i) + version) wrong(who, i, words_[i], mix(i) + version);
    }
  }
  void rewrite(std::size_t p) const {
    check(p, version_, "cpu");
    write(p, version_ + 1);
  }
  std::optional<ferry::completion> launch(std::size_t device, std::size_t owners) {
    const std::size_t first = (device + owners - turn_ % owners) % owners;
    const std::size_t count = pages_ > first ? (pages_ - first + owners - 1) / owners : 0;
    std::optional<ferry::completion> out;
    const bool alive = machine_.survives([&] {
      out = machine_.queues[device].parallel_for(
          count,
          [words = words_, version = version_, bad = machine_.bad, first, owners](std::size_t n) {
            const std::size_t start = (first + n * owners) * page_words;
            for (std::size_t i = start; i < start + data_words; ++i) {
              if (words[i] != mix(i) + version && std::atomic_ref(bad[0]).fetch_add(1) == 0) {
                bad[1] = i;
                bad[2] = words[i];
                bad[3] = mix(i) + version;
              }
              words[i] = mix(i) + version + 1;
            }
          },
          "step");
    });
    if (alive) {
      machine_.refused = 0;
    } else if (++machine_.refused >= refused_max) {
      for (std::size_t d = 0; d < machine_.queues.size(); ++d) after_loss(d);
      std::printf("nodevice %s\n", machine_.why_lost.c_str());
      std::fflush(stdout);
      std::_Exit(exit_no_device);
    }
    return out;
  }
  /// A kernel that was cut short has rewritten some words and others not. Makes all of them rewritten.
  void after_loss(std::size_t device) const {
    say("lost", machine_.number);
    for (std::size_t p = 0; p < pages_; ++p) {
      if (owner_of(p) != device) continue;
      for (std::size_t i = p * page_words; i < p * page_words + data_words; ++i) {
        if (words_[i] - mix(i) - version_ > 1) wrong("lost", i, words_[i], mix(i) + version_);
      }
      write(p, version_ + 1);
    }
    say("intact", machine_.number);
  }

  Machine& machine_;
  Word* words_;
  std::size_t pages_;
  std::size_t turn_ = 0;
  Word version_ = 0;
};

/// Counts in the last word of every page, and on its own stack, until it is ended; then every count is what it must be.
class Counting {
 public:
  explicit Counting(const Sheet& sheet) : sheet_(sheet) {
    for (std::size_t p = 0; p < sheet_.pages(); ++p) *word(p) = 0;
    thread_ = std::thread([this] {
      while (!stop_.load()) {
        for (std::size_t p = 0; p < sheet_.pages(); ++p) *word(p) = *word(p) + 1;
        ++counted_;
      }
    });
  }
  Counting(const Counting&) = delete;
  Counting& operator=(const Counting&) = delete;
  ~Counting() {
    stop_ = true;
    thread_.join();
    for (std::size_t p = 0; p < sheet_.pages(); ++p) {
      if (*word(p) != counted_) wrong("count", p, *word(p), counted_);
    }
  }

 private:
  [[nodiscard]] volatile Word* word(std::size_t p) const {
    return reinterpret_cast<volatile Word*>(sheet_.at()) + p * page_words + page_words - 1;
  }
  const Sheet& sheet_;
  std::atomic<bool> stop_{false};
  Word counted_ = 0;
  std::thread thread_;
};

void adopt_round(Machine& machine, std::mt19937_64& random) {
  const std::size_t pages = 16 + random() % 300;
  const bool of_file = random() % 3 == 0;
  int fd = -1;
  if (of_file) {
    fd = memfd_create("storm", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, static_cast<off_t>(pages * page)) != 0) failed("memfd_create");
  }
  char* const at = of_file ? map_pages(pages, MAP_SHARED, fd) : map_pages(pages);
  {
    Sheet sheet(machine, at, pages);
    const Counting counting(sheet);
    ferry_error error{};
    if (random() % 2 == 0 && ferry_adopt(at, pages * page, &error) != FERRY_OK) throw ferry::error(error);
    for (unsigned steps = 0; steps < 3; ++steps) sheet.step();
    if (!of_file && random() % 2 == 0 && ferry_release(at, pages * page, &error) != FERRY_OK) throw ferry::error(error);
    sheet.check("adopted");
    if (random() % 2 == 0) sheet.step();
    sheet.check("adopted again");
  }
  if (munmap(at, pages * page) != 0) failed("munmap");
  if (fd >= 0) close(fd);
}

void fork_round(Sheet& sheet, std::mt19937_64& random) {
  sheet.step();
  const Word salt = 1000 + random() % 1000;
  const pid_t child = fork();
  if (child < 0) failed("fork");
  if (child == 0) {
    // Two generations, the younger one with what the elder has just written.
    const pid_t own = salt % 4 == 0 ? fork() : -1;
    sheet.use_in_child(salt + (own == 0 ? 1 : 0));
    int status = 0;
    if (own > 0) waitpid(own, &status, 0);
    _exit(0);
  }
  sheet.step();
  sheet.check("parent");
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {}
  // The test may have killed it; where the manager was killed, this process ends as its child did.
  const bool was_killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
  if (status != 0 && !was_killed && !(WIFEXITED(status) && WEXITSTATUS(status) == 117)) {
    wrong("child's status", 0, static_cast<Word>(status), 0);
  }
}

/// Attributes that change where pages lie and how they move, and nothing about what is in them.
void change_attributes(const Sheet& sheet, unsigned devices, std::mt19937_64& random) {
  const std::size_t first = random() % sheet.pages();
  const std::size_t count = 1 + random() % (sheet.pages() - first);
  char* const at = sheet.at() + first * page;
  const std::size_t bytes = count * page;
  const auto device = static_cast<unsigned>(random() % devices);
  const ferry::svm_flag flags[] = {ferry::svm_flag::coherent, ferry::svm_flag::read_mostly, ferry::svm_flag::hive_local,
                                   ferry::svm_flag::always_mapped, ferry::svm_flag::ext_coherent};
  const ferry::svm_flag flag = flags[random() % std::size(flags)];
  try {
    switch (random() % 9) {
      case 0: ferry::attributes().preferred(device).apply(at, bytes); break;
      case 1: ferry::attributes().set(flag).apply(at, bytes); break;
      case 2: ferry::attributes().clear(flag).granularity(static_cast<unsigned>(random() % 10)).apply(at, bytes); break;
      case 3:
        ferry::attributes()
            .access(device, random() % 2 == 0 ? ferry::device_access::in_place : ferry::device_access::migrate)
            .apply(at, bytes);
        break;
      case 4: ferry::attributes().prefetch(device).apply(at, bytes); break;
      case 5: static_cast<void>(ferry::attributes_of(at, bytes)); break;
      case 6: ferry::reset_attributes(at, bytes); break;
      case 7: ferry::migrate_async(at, bytes, ferry::to_device(device)).wait(); break;
      default: const ferry::pin held(at, std::min<std::size_t>(bytes, 8 * page));
    }
  } catch (const ferry::error& e) {
    // No room for a prefetch, or a device that has just ended; everything else is an error.
    if (e.code() != errc::no_memory && e.code() != errc::device_lost) throw;
  }
}

void attributes_round(Machine& machine, Sheet& sheet, std::mt19937_64& random) {
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 2; ++t) {
    threads.emplace_back([&, seed = random()] {
      std::mt19937_64 own(seed);
      while (!stop.load()) change_attributes(sheet, static_cast<unsigned>(machine.queues.size()), own);
    });
  }
  for (unsigned steps = 0; steps < 4; ++steps) sheet.step();
  sheet.check("attributes");
  stop = true;
  for (std::thread& t : threads) t.join();
}

/// To another address, with fewer pages, and to one where there is room for all of them again.
void move_round(Sheet& sheet, std::mt19937_64& random) {
  const std::size_t pages = sheet.pages();
  const std::size_t fewer = 1 + random() % pages;
  sheet.step();
  char* there = map_pages(pages);
  if (mremap(sheet.at(), pages * page, fewer * page, MREMAP_MAYMOVE | MREMAP_FIXED, there) != there) failed("mremap");
  if (fewer < pages && munmap(there + fewer * page, (pages - fewer) * page) != 0) failed("munmap");
  sheet.moved(there);
  sheet.cut(fewer);
  sheet.check("moved");
  sheet.step();
  void* const grown = mremap(there, fewer * page, pages * page, MREMAP_MAYMOVE);
  if (grown == MAP_FAILED) failed("mremap to grow");
  sheet.moved(static_cast<char*>(grown));
  sheet.check("moved again");
  sheet.grown(pages);
}

void checkpoint_round(Sheet& sheet) {
  sheet.step();
  const char* const name = std::getenv("FERRY_STORM_FILE");
  const int fd = name != nullptr ? open(name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600)
                                 : memfd_create("checkpoint", MFD_CLOEXEC);
  if (fd < 0) failed("the checkpoint's file");
  ferry_error error{};
  if (ferry_checkpoint_save(fd, &error) != FERRY_OK) throw ferry::error(error);
  close(fd);
  sheet.check("saved");
}

/// Nothing was restored, or everything as it was saved. The sheet lies where FERRY_STORM_FILE.where says.
int restore(const std::string& file) {
  const int fd = open(file.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) failed("open");
  Word about[2] = {0, 0};  // where, pages
  const int where = open((file + ".where").c_str(), O_RDONLY | O_CLOEXEC);
  if (where < 0 || read(where, about, sizeof about) != sizeof about) failed("read");
  ferry_error error{};
  const ferry_code code = ferry_checkpoint_restore(fd, &error);
  if (code == FERRY_BAD_MESSAGE) {
    say("refused", 1);
    return 0;
  }
  if (code != FERRY_OK) throw ferry::error(error);
  const Word* const words = reinterpret_cast<const Word*>(about[0]);
  const Word version = words[0] - mix(0);
  for (std::size_t p = 0; p < about[1]; ++p) {
    for (std::size_t i = p * page_words; i < p * page_words + data_words; ++i) {
      if (words[i] != mix(i) + version) wrong("restored", i, words[i], mix(i) + version);
    }
  }
  say("restored", 1);
  return 0;
}

void write_where(const Sheet& sheet) {
  const char* const name = std::getenv("FERRY_STORM_FILE");
  if (name == nullptr) return;
  const Word about[2] = {reinterpret_cast<Word>(sheet.at()), sheet.pages()};
  const int fd = open((std::string(name) + ".where").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0 || write(fd, about, sizeof about) != sizeof about) failed("write");
  close(fd);
}

int storm(const std::string& kind) {
  Machine machine;
  const char* const seed = std::getenv("FERRY_E2E_SEED");
  std::mt19937_64 random(seed != nullptr ? std::strtoull(seed, nullptr, 10) : 1);
  // More than the device memory of the test's machines; what adopt takes comes to it.
  const std::size_t pages = kind == "adopt" ? 16 : 1200;
  char* const at =
      kind == "move" ? map_pages(pages) : static_cast<char*>(ferry::alloc_aligned(pages * page, std::size_t{2} << 20));
  Sheet sheet(machine, at, pages);
  write_where(sheet);
  say("ready", static_cast<unsigned long>(getpid()));
  while (!input_ended()) {
    if (kind == "adopt") {
      sheet.step();
      adopt_round(machine, random);
    } else if (kind == "fork") {
      fork_round(sheet, random);
    } else if (kind == "attributes") {
      attributes_round(machine, sheet, random);
    } else if (kind == "move") {
      move_round(sheet, random);
    } else {
      checkpoint_round(sheet);
    }
    say("round", machine.number++);
  }
  sheet.check("end");
  say("done", machine.number);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string kind = argc > 1 ? argv[1] : "";
  try {
    if (kind == "restore" && argc > 2) return restore(argv[2]);
    return storm(kind);
  } catch (const ferry::error& e) {
    std::printf("error %d %s\n", static_cast<int>(e.code()), e.what());
    std::fflush(stdout);
    std::_Exit(exit_error);
  }
}
