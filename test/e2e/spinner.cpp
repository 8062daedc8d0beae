// A kernel that never ends, one wave for each compute unit: says how far all waves are, again and again, until its
// standard input is closed. Then it ends the kernel and says what came of it.
//   e2e_spinner [faults]    with "faults" every step touches another page of more memory than the device has
#include <poll.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <ferry/ferry.hpp>
#include <string_view>
#include <vector>

namespace {

constexpr std::size_t page_words = 512;

bool input_closed() {
  pollfd p{STDIN_FILENO, POLLIN, 0};
  return poll(&p, 1, 1) == 1 && (p.revents & (POLLHUP | POLLIN)) != 0;
}

}  // namespace

int main(int argc, char** argv) try {
  const bool faults = argc > 1 && std::string_view(argv[1]) == "faults";
  const auto machine = ferry::machine();
  const std::size_t waves = machine.cus;
  // Words that all sides reach where they are: a page a wave, and one that ends the kernel.
  auto* words = static_cast<std::uint64_t*>(ferry::alloc((waves + 1) * page_words * 8, ferry::placement::system));
  for (std::size_t i = 0; i < (waves + 1) * page_words; ++i) words[i] = 0;
  std::vector<std::uint64_t, ferry::allocator<std::uint64_t>> data(
      faults ? machine.vram_bytes / 8 * 3 / 2 : page_words * waves, 0);
  const std::size_t pages = data.size() / page_words / waves;
  ferry::queue queue;
  const ferry::completion running =
      queue.launch({.items = waves, .wave = 1}, [words, pages, d = data.data()](ferry::item it) {
        std::uint64_t* mine = words + (it.global() + 1) * page_words;
        std::uint64_t* part = d + it.global() * pages * page_words;
        for (std::uint64_t step = 0; __atomic_load_n(words, __ATOMIC_ACQUIRE) == 0; ++step) {
          ++part[step % pages * page_words];
          __atomic_store_n(mine, step + 1, __ATOMIC_RELEASE);
        }
      });
  std::puts("ready");
  std::fflush(stdout);
  std::vector<std::uint64_t> seen(waves, 0);
  while (!running.done() && !input_closed()) {
    bool all = true;
    for (std::size_t w = 0; w < waves; ++w) {
      all &= __atomic_load_n(words + (w + 1) * page_words, __ATOMIC_ACQUIRE) > seen[w];
    }
    if (!all) continue;
    for (std::size_t w = 0; w < waves; ++w) {
      seen[w] = __atomic_load_n(words + (w + 1) * page_words, __ATOMIC_ACQUIRE);
    }
    std::puts("round");
    std::fflush(stdout);
  }
  ferry::signal(*words, 1);
  running.wait();
  for (std::size_t w = 0; w < waves; ++w) {
    std::uint64_t sum = 0;
    for (std::size_t p = 0; p < pages; ++p) sum += data[(w * pages + p) * page_words];
    if (sum != words[(w + 1) * page_words]) std::printf("WRONG: wave %zu\n", w);
  }
  std::puts("done");
  return 0;
} catch (const ferry::error& e) {
  std::fprintf(stderr, "%s\n", e.what());
  return 4;
}
