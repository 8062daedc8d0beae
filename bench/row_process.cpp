#include "row_process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <optional>

#include <fmt/format.h>

namespace ferry::bench {

namespace {

std::vector<Row> not_measured(const Bench& bench, const std::string& reason) {
  std::vector<Row> rows = bench.expected;
  for (Row& row : rows) row.note = "not measured: " + reason;
  return rows;
}

std::string how_it_ended(int status) {
  if (WIFSIGNALED(status))
    return fmt::format("its process was ended by signal {} ({})", WTERMSIG(status), strsignal(WTERMSIG(status)));
  return fmt::format("its process ended with exit code {}", WEXITSTATUS(status));
}

std::vector<char*> pointers(std::vector<std::string>& texts) {
  std::vector<char*> result;
  for (std::string& text : texts) result.push_back(text.data());
  result.push_back(nullptr);
  return result;
}

std::vector<std::string> environment_with(const std::vector<std::pair<std::string, std::string>>& extra) {
  std::vector<std::string> result;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view text(*entry);
    bool replaced = false;
    for (const auto& [name, value] : extra) replaced |= text.starts_with(name + "=");
    if (!replaced) result.emplace_back(text);
  }
  for (const auto& [name, value] : extra) result.push_back(fmt::format("{}={}", name, value));
  return result;
}

/// Reads to end of file; false when `deadline_ns` passed first.
bool read_all(int fd, std::uint64_t deadline_ns, std::string& text) {
  char buffer[4096];
  for (;;) {
    const std::uint64_t now = now_ns();
    if (now >= deadline_ns) return false;
    pollfd watched{.fd = fd, .events = POLLIN, .revents = 0};
    const int ready = poll(&watched, 1, static_cast<int>((deadline_ns - now) / 1'000'000 + 1));
    if (ready < 0 && errno != EINTR) return true;
    if (ready <= 0) continue;
    const ssize_t got = read(fd, buffer, sizeof buffer);
    if (got <= 0) return true;
    text.append(buffer, static_cast<std::size_t>(got));
  }
}

}  // namespace

std::vector<Row> run_in_own_process(const Bench& bench, const std::vector<std::string>& arguments, int limit_s) {
  std::vector<std::string> words = {"ferry-bench"};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::optional<Manager> manager;
  std::vector<std::pair<std::string, std::string>> own_variables;
  try {
    if (bench.machine) {
      manager.emplace(*bench.machine);
      own_variables.emplace_back("FERRY_SOCKET", manager->socket_path());
    }
  } catch (const std::exception& error) {
    return not_measured(bench, error.what());
  }
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return not_measured(bench, std::strerror(errno));
  std::vector<std::string> variables = environment_with(own_variables);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
  pid_t pid = -1;
  const int error =
      posix_spawn(&pid, "/proc/self/exe", &actions, nullptr, pointers(words).data(), pointers(variables).data());
  posix_spawn_file_actions_destroy(&actions);
  close(ends[1]);
  if (error != 0) {
    close(ends[0]);
    return not_measured(bench, std::strerror(error));
  }
  std::string text;
  const bool ended = read_all(ends[0], now_ns() + static_cast<std::uint64_t>(limit_s) * 1'000'000'000U, text);
  close(ends[0]);
  if (!ended) kill(pid, SIGKILL);
  int status = 0;
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {}
  if (!ended) return not_measured(bench, fmt::format("not done after {} s", limit_s));
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) return not_measured(bench, how_it_ended(status));
  try {
    return from_wire(text);
  } catch (const std::exception& problem) {
    return not_measured(bench, fmt::format("its process printed no rows ({})", problem.what()));
  }
}

}  // namespace ferry::bench
