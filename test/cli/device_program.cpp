// A program that uses the device, for tests of ferry run: device_program MIB [STEP]
//   (nothing)  three kernels over an array of so many MiB, checked; prints "right" or "wrong"
//   explain    afterwards asks $FERRY about its own array and about memory of its own
//   hang       prints "ready" and goes on with kernels until it is ended
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ferry/ferry.hpp>
#include <numeric>
#include <string>
#include <vector>

namespace {

using Array = std::vector<long, ferry::allocator<long>>;

void add_one(Array& array) {
  ferry::parallel_for(array.size(), [data = array.data()](std::size_t i) { data[i] += 1; });
}

int ask(const void* address, std::size_t bytes) {
  char command[512];
  std::snprintf(command, sizeof command, "\"$FERRY\" explain --pid %d %p --bytes %zu", getpid(), address, bytes);
  std::fflush(stdout);
  return std::system(command);
}

}  // namespace

int main(int argc, char** argv) {
  const std::size_t mib = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 4;
  const std::string step = argc > 2 ? argv[2] : "";
  try {
    Array array(mib * 1024 * 1024 / sizeof(long));
    std::iota(array.begin(), array.end(), 0L);
    for (int i = 0; i < 3; ++i) add_one(array);
    if (step == "explain") {
      int local = 0;
      std::printf("status %d\n", ask(array.data(), array.size() * sizeof(long)));
      std::printf("status %d\n", ask(&local, 1));
      return 0;
    }
    if (step == "hang") {
      std::puts("ready");
      std::fflush(stdout);
      while (true) add_one(array);
    }
    bool right = true;
    for (std::size_t i = 0; i < array.size(); ++i) right = right && array[i] == static_cast<long>(i) + 3;
    std::puts(right ? "right" : "wrong");
    return right ? 0 : 1;
  } catch (const std::exception& e) {
    std::printf("error: %s\n", e.what());
    return 1;
  }
}
