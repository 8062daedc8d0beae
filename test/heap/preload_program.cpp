// Run by preload_test with and without libferry_malloc.so: uses malloc in one of the ways named below and prints the same
// either way. With "--managed" as second argument it also insists that what it gets lies in the window.
#include <dlfcn.h>
#include <malloc.h>
#include <pthread.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#define REQUIRE(condition)                                                 \
  do {                                                                     \
    if (!(condition)) {                                                    \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                        \
    }                                                                      \
  } while (false)

namespace {

bool managed = false;

bool well_placed(const void* pointer) {
  const auto at = reinterpret_cast<std::uintptr_t>(pointer);
  const bool inside = at >= 0x2000'0000'0000 && at < 0x3000'0000'0000;
  return !managed || inside;
}

// Allocated before main, and by the dynamic linker's own calls to constructors.
const std::unique_ptr<std::string> early = std::make_unique<std::string>(100, 'e');
void* from_constructor = nullptr;
__attribute__((constructor(101))) void allocate_early() { from_constructor = std::malloc(1000); }

void api() {
  REQUIRE(well_placed(early.get()) && well_placed(early->data()) && well_placed(from_constructor));
  std::free(from_constructor);
  for (std::size_t bytes = 0; bytes < 3000000; bytes = bytes * 5 / 4 + 1) {
    void* p = std::malloc(bytes);
    REQUIRE(p != nullptr && well_placed(p) && reinterpret_cast<std::uintptr_t>(p) % 16 == 0);
    REQUIRE(malloc_usable_size(p) >= bytes);
    std::memset(p, 1, malloc_usable_size(p));
    p = std::realloc(p, bytes * 2 + 1);
    REQUIRE(p != nullptr && (bytes == 0 || static_cast<char*>(p)[bytes - 1] == 1));
    p = std::realloc(p, bytes / 2 + 1);
    REQUIRE(p != nullptr && (bytes == 0 || static_cast<char*>(p)[bytes / 2] == 1));
    std::free(p);
    auto* zeroed = static_cast<char*>(std::calloc(bytes, 3));
    REQUIRE(zeroed != nullptr);
    for (std::size_t i = 0; i < bytes * 3; ++i) REQUIRE(zeroed[i] == 0);
    std::free(zeroed);
  }
  for (std::size_t align = 8; align <= 1 << 22; align *= 2) {
    void* p = nullptr;
    REQUIRE(posix_memalign(&p, align, 100) == 0 && reinterpret_cast<std::uintptr_t>(p) % align == 0);
    std::free(p);
    p = std::aligned_alloc(align, align);
    REQUIRE(p != nullptr && reinterpret_cast<std::uintptr_t>(p) % align == 0);
    std::free(p);
    p = memalign(align, 3);
    REQUIRE(p != nullptr && reinterpret_cast<std::uintptr_t>(p) % align == 0);
    p = std::realloc(p, 100000);
    REQUIRE(p != nullptr);
    std::free(p);
  }
  void* p = valloc(10);
  REQUIRE(reinterpret_cast<std::uintptr_t>(p) % 4096 == 0);
  std::free(p);
  p = pvalloc(4097);
  REQUIRE(reinterpret_cast<std::uintptr_t>(p) % 4096 == 0 && malloc_usable_size(p) >= 8192);
  std::free(p);

  // volatile: the compiler knows what malloc does with such sizes, and would not call it.
  volatile std::size_t huge = SIZE_MAX;
  errno = 0;
  REQUIRE(std::malloc(huge) == nullptr && errno == ENOMEM);
  errno = 0;
  REQUIRE(std::malloc(huge / 2) == nullptr && errno == ENOMEM);
  errno = 0;
  REQUIRE(std::calloc(huge / 2, 3) == nullptr && errno == ENOMEM);
  errno = 0;
  REQUIRE(reallocarray(nullptr, huge / 2, 3) == nullptr && errno == ENOMEM);
  errno = 0;
  REQUIRE(pvalloc(huge) == nullptr && errno == ENOMEM);
  errno = 0;
  p = reinterpret_cast<void*>(1);
  REQUIRE(posix_memalign(&p, 24, 10) == EINVAL && posix_memalign(&p, 4, 10) == EINVAL);
  REQUIRE(posix_memalign(&p, 64, huge) == ENOMEM && p == reinterpret_cast<void*>(1));
  p = std::malloc(10);
  REQUIRE(std::realloc(p, huge) == nullptr);
  REQUIRE(std::realloc(p, 0) == nullptr);
  REQUIRE(malloc_usable_size(nullptr) == 0);
  std::free(nullptr);
  errno = 33;
  std::free(std::malloc(5000000));
  REQUIRE(errno == 33);
  void* first = std::malloc(0);
  void* second = std::malloc(0);
  REQUIRE(first != nullptr && first != second);
  REQUIRE(dlsym(RTLD_DEFAULT, "no_such_symbol") == nullptr && dlerror() != nullptr);
}

void containers() {
  std::mt19937_64 random(5);
  std::map<std::uint64_t, std::string> ordered;
  std::unordered_map<std::uint64_t, std::vector<int>> hashed;
  for (int i = 0; i < 100000; ++i) {
    const std::uint64_t key = random() % 20000;
    ordered[key] += std::to_string(i);
    if (ordered[key].size() > 200) ordered.erase(key);
    hashed[key].push_back(i);
    if (hashed.size() > 15000) hashed.erase(hashed.begin());
  }
  std::size_t sum = 0;
  for (const auto& [key, text] : ordered) sum = sum * 31 + key + text.size();
  REQUIRE(well_placed(ordered.begin()->second.data()));
  std::printf("%zu %zu\n", ordered.size(), sum);
}

void churn() {
  thread_local std::string of_thread;
  static pthread_key_t key;
  REQUIRE(pthread_key_create(&key, [](void* p) {
            std::free(p);
            std::free(std::malloc(100));
          }) == 0);
  std::atomic<long> total{0};
  for (int generation = 0; generation < 150; ++generation) {
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) {
      threads.emplace_back([&total, i] {
        of_thread.assign(1000, 'x');
        pthread_setspecific(key, std::malloc(10));
        std::vector<std::string> strings;
        for (int k = 0; k < 300; ++k) strings.emplace_back(static_cast<std::size_t>(k * (i + 1)), 'y');
        for (const std::string& s : strings) total += static_cast<long>(s.size());
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  std::printf("%ld\n", total.load());
}

void wait_for(pid_t child, int expected) {
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  REQUIRE(WIFEXITED(status) && WEXITSTATUS(status) == expected);
}

void forks() {
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&stop] {
      while (!stop.load(std::memory_order_relaxed)) std::free(std::malloc(3000));
    });
  }
  std::string text(5000, 'p');
  for (int i = 0; i < 50; ++i) {
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      std::vector<std::string> strings;
      for (int k = 0; k < 1000; ++k) strings.emplace_back(static_cast<std::size_t>(k), 'c');
      text.assign(6000, 'c');
      _exit(strings.back().size() == 999 ? i : 255);
    }
    wait_for(child, i);
    char program[] = "/bin/true";
    char* arguments[] = {program, nullptr};
    pid_t spawned = 0;
    REQUIRE(posix_spawn(&spawned, program, nullptr, nullptr, arguments, environ) == 0);
    wait_for(spawned, 0);
  }
  REQUIRE(text == std::string(5000, 'p'));
  REQUIRE(std::system("exit 3") == 3 << 8);
  const std::unique_ptr<FILE, int (*)(FILE*)> pipe(popen("echo through a pipe", "r"), pclose);
  char line[100];
  REQUIRE(std::fgets(line, sizeof line, pipe.get()) != nullptr);
  std::printf("%s", line);
  stop = true;
  for (std::thread& thread : threads) thread.join();
}

void double_free() {
  void* volatile block = std::malloc(100);
  std::free(block);
  std::free(block);
  std::printf("survived\n");
}

}  // namespace

int main(int count, char** arguments) {
  const std::string mode = count > 1 ? arguments[1] : "";
  managed = count > 2 && std::strcmp(arguments[2], "--managed") == 0;
  if (mode == "api") {
    api();
  } else if (mode == "containers") {
    containers();
  } else if (mode == "churn") {
    churn();
  } else if (mode == "forks") {
    forks();
  } else if (mode == "double-free") {
    double_free();
  } else {
    std::fprintf(stderr, "modes: api containers churn forks double-free\n");
    return 2;
  }
  std::printf("ok\n");
  return 0;
}
