// A kernel that touches every second page of its data, so that no two extents in VRAM are neighbours: more of them than
// a process may have mappings.
//
//   e2e_scatter PAGES      exit status 0: every page was written by the kernel and read by the CPU
#include <cstdio>
#include <cstdlib>
#include <ferry/ferry.hpp>

int main(int argc, char** argv) {
  const std::size_t pages = argc > 1 ? std::strtoul(argv[1], nullptr, 10) : 1000;
  constexpr std::size_t stride = 2 * 4096;
  try {
    auto* bytes = static_cast<unsigned char*>(ferry::alloc_aligned(pages * stride, 4096));
    for (std::size_t i = 0; i < pages; ++i) bytes[i * stride] = static_cast<unsigned char>(i);
    for (int round = 0; round < 2; ++round) {
      ferry::parallel_for(
          pages, [=](std::size_t i) { bytes[i * stride] = static_cast<unsigned char>(bytes[i * stride] + 1); });
    }
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < pages; ++i) wrong += bytes[i * stride] != static_cast<unsigned char>(i + 2) ? 1 : 0;
    ferry::free(bytes);
    std::printf("wrong %zu\n", wrong);
    return wrong == 0 ? 0 : 3;
  } catch (const ferry::error& e) {
    std::printf("error %d %s\n", static_cast<int>(e.code()), e.what());
    return 4;
  }
}
