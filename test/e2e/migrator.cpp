// An application that keeps its data moving and knows every byte of them.
//
//   e2e_migrator MIB [ROUNDS]
//
// The data are one array, cut into a part for each device and one for the CPU. In each round every part is read, checked
// and rewritten by its owner, all at once; then parts change hands. All owners also add to counters on one page.
// Says "round N" after each round, "lost N" when a device process has ended, "intact N" once the memory was checked
// after that, "WRONG ..." where a byte is not what it must be. Ends after ROUNDS rounds or when standard input ends.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <ferry/ferry.hpp>
#include <optional>
#include <vector>

#include "known.h"

namespace {

using namespace ferry::test;

// What both sides add to; on the same page, so that they contend for it.
struct Counters {
  Word device_pages;
  Word cpu_pages;
};

struct Part {
  Word* words;
  std::size_t pages;
  Word version = 0;
};

class Migrator {
 public:
  explicit Migrator(std::size_t bytes) {
    const auto machine = ferry::machine();
    const std::size_t pages = bytes / sizeof(Word) / page_words / (machine.devices + 1);
    data_.resize(pages * page_words * (machine.devices + 1));
    for (unsigned p = 0; p <= machine.devices; ++p) {
      parts_.push_back({data_.data() + p * pages * page_words, pages});
      for (std::size_t i = 0; i < pages * page_words; ++i) parts_[p].words[i] = mix(i);
    }
    for (unsigned d = 0; d < machine.devices; ++d) queues_.emplace_back(d);
    counters_ = static_cast<Counters*>(ferry::alloc(sizeof(Counters)));
    *counters_ = {};
    wrong_ = static_cast<Word*>(ferry::alloc(4 * sizeof(Word), ferry::placement::system));
    for (int i = 0; i < 4; ++i) wrong_[i] = 0;
  }

  void round(unsigned long number) {
    const std::size_t owners = parts_.size();
    std::vector<std::optional<ferry::completion>> launches(queues_.size());
    for (std::size_t d = 0; d < queues_.size(); ++d) launches[d] = launch(d, parts_[(number + d + 1) % owners]);
    on_cpu(parts_[number % owners]);
    for (std::size_t d = 0; d < queues_.size(); ++d) {
      Part& part = parts_[(number + d + 1) % owners];
      bool lost = !launches[d].has_value();
      try {
        if (!lost) launches[d]->wait();
      } catch (const ferry::error& e) {
        if (e.code() != ferry::errc::device_lost) throw;
        lost = true;
      }
      if (lost) {
        say("lost", number);
        after_loss(part);
        say("intact", number);
      }
      ++part.version;
    }
    if (wrong_[0] != 0) wrong("device", wrong_[1], wrong_[2], wrong_[3]);
    check_counters();
    say("round", number);
  }

  void check_all() const {
    for (const Part& part : parts_) {
      for (std::size_t i = 0; i < part.pages * page_words; ++i) {
        if (part.words[i] != mix(i) + part.version) wrong("end", i, part.words[i], mix(i) + part.version);
      }
    }
  }

 private:
  std::optional<ferry::completion> launch(std::size_t device, const Part& part) {
    device_pages_ += part.pages;
    try {
      const auto launched = queues_[device].parallel_for(
          part.pages,
          [words = part.words, version = part.version, counters = counters_, bad = wrong_](std::size_t page) {
            for (std::size_t i = page * page_words; i < (page + 1) * page_words; ++i) {
              if (words[i] != mix(i) + version && std::atomic_ref(bad[0]).fetch_add(1) == 0) {
                bad[1] = i;
                bad[2] = words[i];
                bad[3] = mix(i) + version;
              }
              words[i] = mix(i) + version + 1;
            }
            std::atomic_ref(counters->device_pages).fetch_add(1, std::memory_order_relaxed);
          },
          "migrate");
      refused_ = 0;
      return launched;
    } catch (const ferry::error& e) {
      if (e.code() != ferry::errc::device_lost) throw;
      // Ended before it had taken the launch, or none can be started any more: then memory is all that is left.
      if (++refused_ < refused_max) return {};
      for (Part& p : parts_) after_loss(p);
      std::printf("nodevice %s\n", e.what());
      std::fflush(stdout);
      std::_Exit(exit_no_device);
    }
  }

  void on_cpu(Part& part) {
    for (std::size_t i = 0; i < part.pages * page_words; ++i) {
      if (part.words[i] != mix(i) + part.version) wrong("cpu", i, part.words[i], mix(i) + part.version);
      part.words[i] = mix(i) + part.version + 1;
      if (i % page_words == 0) std::atomic_ref(counters_->cpu_pages).fetch_add(1, std::memory_order_relaxed);
    }
    ++part.version;
    cpu_pages_ += part.pages;
  }

  /// A kernel that was cut short has rewritten some words and others not. Makes all of them rewritten.
  void after_loss(Part& part) {
    for (std::size_t i = 0; i < part.pages * page_words; ++i) {
      if (part.words[i] - mix(i) - part.version > 1) wrong("lost", i, part.words[i], mix(i) + part.version);
      part.words[i] = mix(i) + part.version + 1;
    }
    lost_ = true;
  }

  void check_counters() {
    if (counters_->cpu_pages != cpu_pages_) wrong("cpu's counter", 0, counters_->cpu_pages, cpu_pages_);
    if (lost_ ? counters_->device_pages > device_pages_ : counters_->device_pages != device_pages_) {
      wrong("devices' counter", 0, counters_->device_pages, device_pages_);
    }
    device_pages_ = counters_->device_pages;
    lost_ = false;
  }

  std::vector<Word, ferry::allocator<Word>> data_;
  std::vector<Part> parts_;
  std::vector<ferry::queue> queues_;
  Counters* counters_ = nullptr;
  Word* wrong_ = nullptr;  ///< count, and of the first: index, value, wanted
  Word device_pages_ = 0;
  Word cpu_pages_ = 0;
  bool lost_ = false;
  unsigned refused_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  const std::size_t mib = argc > 1 ? std::strtoul(argv[1], nullptr, 10) : 8;
  // Memory from before Ferry: MiB of it that nobody touches again but for a look at the end.
  const char* text = std::getenv("FERRY_TEST_BALLAST");
  std::vector<Word> ballast((text != nullptr ? std::strtoul(text, nullptr, 10) : 0) << 17);
  for (std::size_t i = 0; i < ballast.size(); ++i) ballast[i] = mix(i);
  const unsigned long rounds = argc > 2 ? std::strtoul(argv[2], nullptr, 10) : ~0UL;
  try {
    Migrator migrator(mib << 20);
    say("ready", static_cast<unsigned long>(getpid()));
    unsigned long n = 0;
    while (n < rounds && (argc > 2 || !input_ended())) migrator.round(n++);
    migrator.check_all();
    for (std::size_t i = 0; i < ballast.size(); ++i) {
      if (ballast[i] != mix(i)) wrong("ballast", i, ballast[i], mix(i));
    }
    say("done", n);
  } catch (const ferry::error& e) {
    std::printf("error %d %s\n", static_cast<int>(e.code()), e.what());
    std::fflush(stdout);
    std::_Exit(exit_error);
  }
  return 0;
}
