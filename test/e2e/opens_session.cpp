// Preloaded: the program's session is opened before main(), so that all of a program's heap is managed memory though the
// program knows nothing of Ferry.
#include <cstdio>
#include <ferry/ferry.hpp>

namespace {

struct Opener {
  Opener() {
    ferry_error error{};
    if (ferry_open(nullptr, &error) == FERRY_OK) return;
    std::fprintf(stderr, "no session: %s\n", error.text);
    std::_Exit(1);
  }
} opener;

}  // namespace
