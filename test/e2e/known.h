// Words whose value is known from their place, and what programs that keep such words tell the test that kills them.
// Exit status of such a program: 0 all well, 3 a wrong byte, 4 an error of Ferry's other than a lost device, 6 no device
// can be had.
#pragma once

#include <poll.h>
#include <unistd.h>

#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace ferry::test {

using Word = std::uint64_t;
inline constexpr std::size_t page_words = 512;
inline constexpr int exit_wrong = 3;
inline constexpr int exit_error = 4;
inline constexpr int exit_no_device = 6;
/// Launches that are refused one after the other before a program believes that no device can be had any more.
inline constexpr unsigned refused_max = 3;

constexpr Word mix(Word i) { return (i + 1) * 0x9e3779b97f4a7c15; }

[[noreturn]] inline void wrong(const char* who, std::size_t index, Word value, Word wanted) {
  std::printf("WRONG %s: word %zu is %" PRIx64 ", not %" PRIx64 "\n", who, index, value, wanted);
  std::fflush(stdout);
  std::_Exit(exit_wrong);
}

inline void say(const char* what, unsigned long number) {
  std::printf("%s %lu\n", what, number);
  std::fflush(stdout);
}

inline bool input_ended() {
  pollfd in{STDIN_FILENO, POLLIN, 0};
  if (poll(&in, 1, 0) <= 0) return false;
  char byte = 0;
  return read(STDIN_FILENO, &byte, 1) <= 0;
}

}  // namespace ferry::test
