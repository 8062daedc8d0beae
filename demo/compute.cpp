// The faulting side: kernels over more memory than there is.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <numeric>

#include "roles.h"
#include "work.h"

namespace ferry::demo {
namespace {

constexpr std::uint64_t page = 4096;

/// Words of a page that a kernel changes: the first, and one that differs from page to page.
std::uint64_t second_word(std::uint64_t index) { return 1 + index * 7919 % (page / 8 - 1); }

void say(const char* format, auto... values) {
  std::printf(format, values...);
  std::fflush(stdout);
}

}  // namespace

int compute_role(const RoleOptions& options) {
  const std::uint64_t pages = options.bytes / page;
  ferry_error error{};
  auto* words = static_cast<std::uint64_t*>(or_throw(ferry_alloc(pages * page, FERRY_AUTOMATIC, &error), error));
  std::uint64_t passes = 0;
  std::uint64_t refused = 0;
  // A stride that visits every page once, in an order that no prefetch foresees.
  std::uint64_t stride = pages / 2 + pages / 8;
  while (std::gcd(stride, pages) != 1) ++stride;
  for (std::uint64_t at = 0; at < pages; ++at) {
    words[at * (page / 8)] = 0;
    words[at * (page / 8) + second_word(at)] = 0;
  }
  say("running\n");
  const auto start = std::chrono::steady_clock::now();
  const auto elapsed = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); };
  while (options.seconds > 0 ? elapsed() < options.seconds : passes + refused < options.rounds) {
    try {
      ferry::parallel_for(
          pages,
          [words, pages, stride](std::size_t i) {
            const std::uint64_t at = i * stride % pages;
            std::uint64_t* here = words + at * (page / 8);
            here[0] += 1;
            here[second_word(at)] += at;
          },
          "touch every page");
      ++passes;
      say("pages %llu\n", static_cast<unsigned long long>(pages));
    } catch (const ferry::error& e) {
      ++refused;
      say("refused %d %s\n", static_cast<int>(e.code()), e.what());
    }
  }
  // A pass that was refused may have been done in part: a page's first word says how often it was visited, the other
  // has to agree, but for the visit that was cut short between the two.
  std::uint64_t wrong = 0;
  for (std::uint64_t at = 0; at < pages; ++at) {
    const std::uint64_t* here = words + at * (page / 8);
    if (here[0] < passes || here[0] > passes + refused) ++wrong;
    const std::uint64_t behind = here[0] * at - here[second_word(at)];
    if (behind % std::max<std::uint64_t>(at, 1) != 0 || behind > refused * at) ++wrong;
  }
  say("wrong %llu\n", static_cast<unsigned long long>(wrong));
  ferry_free(words, nullptr);
  say("done\n");
  return wrong == 0 ? 0 : 1;
}

}  // namespace ferry::demo
