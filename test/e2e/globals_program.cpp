// A program of one way to be linked, whose globals a kernel reads and writes. Ends with 0 where they are the program's on the
// device, and with 3 and the reason on standard output where they are refused.
#include <ferry/svm.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <ferry/ferry.hpp>

#if defined(FERRY_TEST_LARGE_DATA)
/// More than is made anonymous before main.
char large[(9 << 20)] = {1};
#endif
#if defined(FERRY_TEST_OWN_MALLOC)
extern "C" {
void* __libc_malloc(std::size_t);
void __libc_free(void*);
int own_mallocs;
void* malloc(std::size_t bytes) {
  ++own_mallocs;
  return __libc_malloc(bytes);
}
void free(void* p) { __libc_free(p); }
}
#endif

#if defined(FERRY_TEST_EARLY)
/// A static constructor is the first to ask for a device.
void* early = ferry::alloc(4096);
#endif
int initialised = 5;
int zeroed;
int made = static_cast<int>(::getppid());

namespace {

template <typename T>
T now(const T& value) {
  return *const_cast<const volatile T*>(&value);
}

int fail(const char* what) {
  std::printf("%s\n", what);
  return 1;
}

int refused() {
  try {
    ferry::parallel_for(1, [](std::size_t) { initialised = now(initialised) + 1; });
  } catch (const ferry::error& e) {
    std::printf("kernel: %s\n", e.what());
  }
  ferry_error e{};
  if (ferry_adopt(&initialised, sizeof initialised, &e) == FERRY_OK) return 0;
  std::printf("%s\n", e.text);
  return 3;
}

}  // namespace

int main(int argc, char**) {
#if defined(FERRY_TEST_LARGE_DATA)
  if (argc > 1000) large[argc] = 3;
#endif
  initialised = 6;
  zeroed = argc;
  auto* seen = static_cast<int*>(ferry::alloc(4096));
  if (const int how = refused(); how != 0) {
    // What is zero at the start is not of the file.
    ferry_error e{};
    return how == 3 && std::getenv("FERRY_TEST_BSS") != nullptr && ferry_adopt(&zeroed, 1, &e) != FERRY_OK ? 4 : how;
  }
  ferry::parallel_for(1, [seen](std::size_t) {
    seen[0] = now(initialised);
    seen[1] = now(zeroed);
    seen[2] = now(made);
    zeroed += 1;
  });
  if (seen[0] != 7 || seen[1] != argc || seen[2] != made) return fail("the device has other values");
  if (now(zeroed) != argc + 1) return fail("what the kernel wrote is not there");
  const pid_t child = ::fork();
  if (child == 0) ::_exit(now(initialised) == 7 && now(zeroed) == argc + 1 ? 0 : 1);
  int how = 0;
  if (::waitpid(child, &how, 0) != child || how != 0) return fail("a child has other values");
  ferry::parallel_for(1, [](std::size_t) { std::printf("%s", ""); });
  return 0;
}
