// How a checker says that an invariant is broken: it throws, the run ends there, run() adds seed, step and trace.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <string>
#include <utility>

#include "sim/sim.h"

namespace ferry::sim {

struct Violation {
  Invariant invariant;
  std::string text;
};

[[noreturn]] __attribute__((format(printf, 2, 3))) inline void violate(Invariant invariant, const char* format, ...) {
  char text[1600];
  std::va_list args;
  va_start(args, format);
  std::vsnprintf(text, sizeof text, format, args);
  va_end(args);
  throw Violation{invariant, text};
}

}  // namespace ferry::sim
