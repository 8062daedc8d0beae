// Small applications of libferry, one a test that needs a process of its own. The name is the first argument; exit code
// 0 says that all went as the program expects.
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ferry/ferry.hpp>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

extern char** environ;

namespace {

using Numbers = std::vector<std::uint64_t, ferry::allocator<std::uint64_t>>;

#define EXPECT(condition)                                                          \
  do {                                                                             \
    if (!(condition)) {                                                            \
      std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                                \
    }                                                                              \
  } while (false)

void say(const char* line) {
  std::puts(line);
  std::fflush(stdout);
}

Numbers counted(std::size_t n) {
  Numbers v(n);
  for (std::size_t i = 0; i < n; ++i) v[i] = i;
  return v;
}

void add_on_device(Numbers& v, std::uint64_t what) {
  ferry::parallel_for(v.size(), [p = v.data(), what](std::size_t i) { p[i] += what; });
}

bool all_are(const Numbers& v, std::uint64_t offset) {
  for (std::size_t i = 0; i < v.size(); ++i) {
    if (v[i] != i + offset) return false;
  }
  return true;
}

int ok() {
  Numbers v = counted(100'000);
  add_on_device(v, 5);
  EXPECT(all_are(v, 5));
  ferry::parallel_for(3, [](std::size_t i) { ferry::print("item {}\n", i); });
  return 0;
}

int open_only() {
  try {
    const ferry::context context;
    say("opened");
    return 0;
  } catch (const ferry::error& e) {
    std::printf("%d: %s\n", static_cast<int>(e.code()), e.what());
    return 3;
  }
}

int no_memory() {
  try {
    (void)ferry::alloc(std::size_t{64} << 20);
    return 1;
  } catch (const ferry::error& e) {
    EXPECT(e.code() == ferry::errc::no_memory);
  }
  // Nothing is broken by it.
  Numbers v = counted(1000);
  EXPECT(all_are(v, 0));
  return 0;
}

struct OpensEarly {
  OpensEarly() {
    if (std::getenv("FERRY_TEST_EARLY") != nullptr) values = new Numbers(counted(1000));
  }
  Numbers* values = nullptr;
} early;

/// A session that is opened by a static constructor; and managed memory that a static destructor frees.
int static_open() {
  static Numbers at_exit = counted(1000);
  EXPECT(early.values != nullptr);
  add_on_device(*early.values, 3);
  EXPECT(all_are(*early.values, 3));
  delete early.values;
  return 0;
}

int no_visible_children() {
  Numbers v = counted(1000);
  add_on_device(v, 1);
  errno = 0;
  EXPECT(::waitpid(-1, nullptr, WNOHANG) == -1 && errno == ECHILD);
  return 0;
}

int fork_touch() {
  Numbers v = counted(1000);
  const pid_t child = ::fork();
  if (child == 0) {
    bool well = all_are(v, 0);
    for (auto& x : v) x += 7;
    v.push_back(1);
    ::_exit(well && v[0] == 7 && v[999] == 999 + 7 ? 0 : 1);
  }
  int status = 0;
  EXPECT(::waitpid(child, &status, 0) == child);
  EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  add_on_device(v, 1);
  EXPECT(all_are(v, 1));
  return 0;
}

int fork_calls() {
  Numbers v = counted(1000);
  add_on_device(v, 1);
  const pid_t child = ::fork();
  if (child == 0) {
    int failures = 0;
    const auto fails = [&](const std::function<void()>& call) {
      try {
        call();
      } catch (const ferry::error& e) {
        failures += e.code() == ferry::errc::unsupported ? 1 : 0;
      }
    };
    fails([&] { ferry::parallel_for(10, [](std::size_t) {}); });
    fails([&] { ferry::prefetch(v.data(), 100, ferry::to_cpu); });
    fails([&] { (void)ferry::query(v.data()); });
    fails([] { const ferry::context c; });
    fails([] { const ferry::queue q; });
    ferry::free(ferry::alloc(100));
    ::_exit(failures == 5 ? 0 : 1);
  }
  int status = 0;
  EXPECT(::waitpid(child, &status, 0) == child);
  EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  add_on_device(v, 1);
  EXPECT(all_are(v, 2));
  return 0;
}

/// A child that lives on while the parent ends must not keep the session's processes alive.
int fork_outlived() {
  Numbers v = counted(1000);
  add_on_device(v, 1);
  const pid_t child = ::fork();
  if (child == 0) {
    ::close(1);
    ::close(2);
    char byte = 0;
    [[maybe_unused]] const auto n = ::read(0, &byte, 1);  // until the test closes our input
    ::_exit(0);
  }
  say("forked");
  return 0;
}

int spawns() {
  Numbers v = counted(1'000'000);
  add_on_device(v, 1);
  EXPECT(std::system("exit 7") == 7 << 8);
  pid_t child = 0;
  char name[] = "true";
  char* args[] = {name, nullptr};
  EXPECT(::posix_spawnp(&child, "true", nullptr, nullptr, args, environ) == 0);
  int status = -1;
  EXPECT(::waitpid(child, &status, 0) == child && status == 0);
  child = ::fork();
  if (child == 0) {
    // What exec replaces: no descriptor of the session may come through.
    ::execlp("sh", "sh", "-c", "for f in /proc/self/fd/*; do readlink $f; done | grep -c -E 'memfd:|userfaultfd' ",
             nullptr);
    ::_exit(126);
  }
  EXPECT(::waitpid(child, &status, 0) == child);
  EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 1);  // grep found none
  EXPECT(all_are(v, 1));
  return 0;
}

/// Says who its manager is, then reads its memory for ever: the test kills the manager.
int read_for_ever() {
  Numbers v = counted(1'000'000);
  add_on_device(v, 1);
  std::printf("manager %u\n", ferry::machine().manager_pid);
  std::fflush(stdout);
  for (;;) {
    if (!all_are(v, 1)) {
      say("WRONG BYTES");
      return 1;
    }
    add_on_device(v, 0);
  }
}

/// Launches in a loop; when a launch says that the device was lost, checks that memory is as a whole launch left it.
int survives_device_loss() {
  Numbers v = counted(500'000);
  say("ready");
  unsigned lost = 0;
  std::uint64_t rounds = 0;
  while (lost < 3) {
    try {
      ferry::parallel_for(
          v.size(), [p = v.data(), rounds](std::size_t i) { p[i] = i + rounds + 1; }, "count");
      ++rounds;
    } catch (const ferry::kernel_error& e) {
      EXPECT(e.code() == ferry::errc::device_lost);
      EXPECT(e.kernel() == "count");
      ++lost;
      std::printf("lost %u\n", lost);
      std::fflush(stdout);
      // Each element is from this round or the one before, never anything else.
      for (std::size_t i = 0; i < v.size(); ++i) EXPECT(v[i] == i + rounds || v[i] == i + rounds + 1);
    }
  }
  return 0;
}

/// When the process that forks devices is gone, no device can be had any more; everything else goes on.
int survives_template_loss() {
  Numbers v = counted(500'000);
  ferry::parallel_for(1, [](std::size_t) {});
  say("ready");
  std::string last;
  for (int failures = 0; failures < 3;) {
    try {
      ferry::parallel_for(v.size(), [p = v.data()](std::size_t i) { p[i] = i + 7; });
    } catch (const ferry::error& e) {
      EXPECT(e.code() == ferry::errc::device_lost);
      last = e.what();
      ++failures;
    }
  }
  EXPECT(last.find("started again") != std::string::npos);
  for (std::size_t i = 0; i < v.size(); ++i) EXPECT(v[i] == i || v[i] == i + 7);
  Numbers more = counted(100'000);
  EXPECT(all_are(more, 0));
  return 0;
}

int exit_while_running() {
  static Numbers v = counted(1'000'000);
  ferry::queue q;
  for (int n = 0; n < 8; ++n) {
    (void)q.parallel_for(v.size(), [p = v.data()](std::size_t i) {
      for (int k = 0; k < 100; ++k) p[i] = p[i] * 3 + 1;
    });
  }
  std::exit(0);
}

std::atomic<int> interrupts{0};

/// An interrupt from the keyboard goes to the whole process group: only the program gets it.
int interrupted() {
  ::signal(SIGINT, [](int) { interrupts.fetch_add(1); });
  Numbers v = counted(100'000);
  add_on_device(v, 1);
  ::setpgid(0, 0);
  ::kill(0, SIGINT);
  while (interrupts.load() == 0) std::this_thread::yield();
  add_on_device(v, 1);
  EXPECT(all_are(v, 2));
  return 0;
}

int code_of_later() {
  void* page = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  EXPECT(page != MAP_FAILED);
  std::memset(page, 0xc3, 4096);  // ret
  EXPECT(::mprotect(page, 4096, PROT_READ | PROT_EXEC) == 0);
  ferry_error error;
  const auto kernel = reinterpret_cast<ferry_kernel>(page);
  EXPECT(ferry_run(kernel, nullptr, 0, 1, 1, "later", &error) == FERRY_BAD_RANGE);
  EXPECT(std::strstr(error.text, "later") != nullptr);
  return 0;
}

/// Works until the test ends it.
int work_for_ever() {
  Numbers v = counted(4'000'000);
  say("ready");
  for (std::uint64_t round = 0;; ++round) {
    add_on_device(v, 1);
    for (std::size_t i = round % 512; i < v.size(); i += 512) v[i] += 0;
  }
}

/// For a preloaded malloc: ordinary containers, some older than the session, used by the device while threads go on
/// writing to theirs and allocating. Then a fork whose child goes on with a copy of all that.
int plain_heap() {
  std::vector<int> before(200'000, 3);
  std::map<int, std::string> names;
  for (int i = 0; i < 1000; ++i) names[i] = std::string(static_cast<std::size_t>(i % 60), 'x');
  std::atomic<bool> stop{false};
  std::vector<std::vector<long>> counts(3, std::vector<long>(1000));
  std::vector<long> totals(counts.size());
  std::vector<std::thread> threads;
  std::atomic<int> running{0};
  for (std::size_t t = 0; t < counts.size(); ++t) {
    threads.emplace_back([&, t] {
      running.fetch_add(1);
      long n = 0;
      for (; !stop.load(); ++n) {
        ++counts[t][static_cast<std::size_t>(n % 1000)];
        if (n % 64 == 0) EXPECT((std::vector<int>(static_cast<std::size_t>(n % 5000 + 1), 1).back() == 1));
      }
      totals[t] = n;
    });
  }
  while (running.load() != 3) std::this_thread::yield();
  { const ferry::context context; }
  std::vector<int> after(before.size(), 4);
  std::vector<std::size_t> lengths(1000);
  for (int round = 0; round < 10; ++round) {
    ferry::parallel_for(before.size(), [b = before.data(), a = after.data()](std::size_t i) { b[i] += a[i]; });
  }
  const auto shared = std::make_unique<std::map<int, std::string>>(names);
  ferry::parallel_for(
      1000, [m = shared.get(), l = lengths.data()](std::size_t i) { l[i] = m->at(static_cast<int>(i)).size(); });
  stop.store(true);
  for (auto& t : threads) t.join();
  for (const int x : before) EXPECT(x == 43);
  for (std::size_t i = 0; i < 1000; ++i) EXPECT(lengths[i] == i % 60);
  for (std::size_t t = 0; t < counts.size(); ++t) {
    long sum = 0;
    for (const long c : counts[t]) sum += c;
    EXPECT(sum == totals[t]);
  }
  const pid_t child = ::fork();
  if (child == 0) {
    bool well = true;
    for (int& x : before) well = well && x++ == 43;
    names[2000] = "the child's own";
    std::vector<int> grown(before);
    grown.push_back(1);
    ::_exit(well && names.size() == 1001 && grown.size() == before.size() + 1 ? 0 : 1);
  }
  int status = 0;
  EXPECT(::waitpid(child, &status, 0) == child);
  EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  for (const int x : before) EXPECT(x == 43);
  EXPECT(names.size() == 1000);
  return 0;
}

const std::map<std::string, int (*)()> programs = {
    {"ok", ok},
    {"open", open_only},
    {"no_memory", no_memory},
    {"static_open", static_open},
    {"no_visible_children", no_visible_children},
    {"fork_touch", fork_touch},
    {"fork_calls", fork_calls},
    {"fork_outlived", fork_outlived},
    {"spawns", spawns},
    {"read_for_ever", read_for_ever},
    {"survives_device_loss", survives_device_loss},
    {"survives_template_loss", survives_template_loss},
    {"exit_while_running", exit_while_running},
    {"interrupted", interrupted},
    {"code_of_later", code_of_later},
    {"plain_heap", plain_heap},
    {"work_for_ever", work_for_ever},
};

}  // namespace

int main(int argc, char** argv) {
  const auto program = programs.find(argc == 2 ? argv[1] : "");
  if (program == programs.end()) {
    std::fprintf(stderr, "programs:");
    for (const auto& [name, body] : programs) std::fprintf(stderr, " %s", name.c_str());
    std::fprintf(stderr, "\n");
    return 2;
  }
  try {
    return program->second();
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s: %s\n", argv[1], e.what());
    return 1;
  }
}
