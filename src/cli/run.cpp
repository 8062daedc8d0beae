#include "cli/run.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <nlohmann/json.hpp>
#include <sstream>

#include "cli/child.h"
#include "cli/exit_code.h"
#include "cli/paths.h"
#include "cli/private_socket.h"
#include "cli/run_manager.h"
#include "cli/summary.h"
#include "linux/futex.h"
#include "manager/report.h"
#include "manager/text_file.h"
#include "manager/trace.h"

namespace ferry::cli {
namespace {

using linux::monotonic_ns;

constexpr std::array passed_on = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2};
// Work shorter than this shows nothing.
constexpr std::uint64_t progress_after_ns = 2'000'000'000;
constexpr int progress_every_ms = 500;
constexpr int ask_ms = 200;
// A trace of the largest size is written in a few seconds; this bounds a disk that hangs.
constexpr int finish_ms = 120'000;
// A process that was killed is seen to have ended a little after its sockets are.
constexpr int gone_ms = 5'000;

/// A file that will be written at the end can be written now. Contents stay as they are.
class Output {
 public:
  bool claim(const char* flag, std::optional<std::string>& path) {
    if (!path) return true;
    path = absolute(*path);
    path_ = *path;
    struct stat before {};
    created_ = stat(path_.c_str(), &before) != 0;
    const linux::Fd fd(open(path_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOCTTY, 0666));
    if (fd) return true;
    created_ = false;
    std::fprintf(stderr,
                 "ferry: cannot write %s %s: %s; nothing was started: name a file in a directory you may write to\n",
                 flag, path_.c_str(), std::strerror(errno));
    return false;
  }
  /// The run did not come to pass: leaves no empty file behind.
  void disclaim() const {
    if (created_) unlink(path_.c_str());
  }

 private:
  std::string path_;
  bool created_ = false;
};

bool is_in_path(const std::string& name) {
  const char* path = std::getenv("PATH");
  std::istringstream folders(path != nullptr ? path : "");
  struct stat info {};
  for (std::string folder; std::getline(folders, folder, ':');) {
    if (stat((folder + "/" + name).c_str(), &info) == 0 && S_ISREG(info.st_mode)) return true;
  }
  return false;
}

class Run {
 public:
  explicit Run(RunOptions options) : options_(std::move(options)) {}
  int go();

 private:
  int prepare();
  int start_program();
  void loop();
  void take_signals();
  void show_progress();
  void clear_progress();
  int finish();
  std::string no_manager_stats() const;
  bool write_stats(const std::string& text, int status);
  bool write_empty_views();

  RunOptions options_;
  manager::MachineOptions machine_;
  std::array<Output, 3> outputs_;
  std::optional<RunManager> manager_;
  sigset_t old_mask_{};
  linux::Fd signals_;
  Child child_;
  std::uint64_t start_ns_ = 0;
  std::uint64_t run_ns_ = 0;
  Counters before_;
  std::uint64_t before_ns_ = 0;
  bool progress_ = false;
  bool progress_shown_ = false;
};

int Run::prepare() {
  manager::add_environment(options_.machine);
  if (const auto error = manager::read_options(options_.machine, machine_)) {
    std::fprintf(stderr, "ferry run: %s\n", error->c_str());
    return exit_usage;
  }
  if (options_.machine.config) options_.machine.config = absolute(*options_.machine.config);
  if (options_.malloc && own_library("libferry_malloc.so").empty()) {
    std::fprintf(stderr,
                 "ferry: --malloc needs libferry_malloc.so, which is not where this ferry was installed or built\n");
    return exit_ferry;
  }
  if (!outputs_[0].claim("--stats", options_.stats) || !outputs_[1].claim("--trace", options_.trace) ||
      !outputs_[2].claim("--report", options_.report)) {
    return exit_ferry;
  }
  std::string where;
  auto socket = PrivateSocket::make(where);
  if (!socket) {
    std::fprintf(stderr,
                 "ferry: cannot make the manager's socket %s: %s; set XDG_RUNTIME_DIR to a directory of yours\n",
                 where.c_str(), std::strerror(socket.status().sys_errno));
    return exit_ferry;
  }
  manager_.emplace(options_, std::move(socket).value());
  progress_ = options_.progress && !options_.quiet && isatty(STDERR_FILENO) == 1;
  return exit_ok;
}

int Run::start_program() {
  sigset_t mask;
  sigemptyset(&mask);
  for (const int signal : passed_on) sigaddset(&mask, signal);
  sigprocmask(SIG_BLOCK, &mask, &old_mask_);
  signals_.reset(signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK));

  ChildSpec spec;
  spec.arguments = options_.program;
  spec.mask = old_mask_;
  spec.environment.emplace_back("FERRY_SOCKET", manager_->socket().path());
  if (options_.malloc) {
    const char* preload = std::getenv("LD_PRELOAD");
    std::string libraries = own_library("libferry_malloc.so");
    if (preload != nullptr && preload[0] != '\0') libraries += std::string(":") + preload;
    spec.environment.emplace_back("LD_PRELOAD", libraries);
  }
  start_ns_ = monotonic_ns();
  child_ = start(spec);
  if (child_.error == 0) return exit_ok;
  const char* name = options_.program[0].c_str();
  // A directory of PATH that may not be searched hides programs as if they were not there.
  const bool hidden = child_.error == EACCES && std::strchr(name, '/') == nullptr && !is_in_path(name);
  if (child_.error == ENOENT || child_.error == ENOTDIR || hidden) {
    const bool is_path = std::strchr(name, '/') != nullptr;
    std::fprintf(
        stderr, "ferry: %s: %s; %s\n", name, std::strerror(child_.error),
        is_path ? "is the path right?" : "it is not in PATH: a program in this directory needs ./ before its name");
    return exit_not_found;
  }
  std::fprintf(stderr, "ferry: cannot run %s: %s%s\n", name, std::strerror(child_.error),
               child_.error == EACCES ? "; is it a program, and executable (chmod +x)?" : "");
  return child_.error == EACCES || child_.error == ENOEXEC ? exit_not_executable : exit_ferry;
}

void Run::take_signals() {
  signalfd_siginfo info{};
  while (read(signals_.get(), &info, sizeof info) == static_cast<ssize_t>(sizeof info)) {
    // What a terminal sends goes to the whole group: the program has it already.
    if (info.ssi_code > 0) continue;
    kill(child_.pid, static_cast<int>(info.ssi_signo));
  }
}

void Run::clear_progress() {
  if (progress_shown_) std::fputs("\r\033[K", stderr);
  progress_shown_ = false;
}

void Run::show_progress() {
  const std::uint64_t now = monotonic_ns();
  // In the background a terminal belongs to somebody else.
  if (now - start_ns_ < progress_after_ns || !manager_->running() || tcgetpgrp(STDERR_FILENO) != getpgrp()) return;
  const auto text = manager_->stats(ask_ms);
  const Counters counters = text ? read_counters(*text) : Counters{};
  if (!counters.valid) return;
  // While devices rest the line is the program's.
  if (!before_.valid || !device_work(counters, before_)) {
    clear_progress();
  } else {
    winsize size{};
    const unsigned columns = ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 ? size.ws_col : 0;
    const std::string line = progress_line(counters, before_, now - before_ns_, now - start_ns_, columns);
    std::fprintf(stderr, "\r\033[K%s", line.c_str());
    progress_shown_ = true;
  }
  before_ = counters;
  before_ns_ = now;
}

void Run::loop() {
  while (true) {
    pollfd wait[4] = {{child_.pidfd.get(), POLLIN, 0},
                      {signals_.get(), POLLIN, 0},
                      {manager_->socket().listener(), POLLIN, 0},
                      {manager_->pidfd(), POLLIN, 0}};
    if (poll(wait, 4, progress_ && manager_->running() ? progress_every_ms : -1) < 0 && errno != EINTR) {
      std::fprintf(stderr, "ferry: poll: %s\n", std::strerror(errno));
      return;
    }
    if (wait[1].revents != 0) take_signals();
    if (wait[2].revents != 0) manager_->start_now();
    if (wait[3].revents != 0) {
      clear_progress();
      manager_->ended_by_itself();
    }
    if (wait[0].revents != 0) return;
    if (progress_) show_progress();
  }
}

std::string Run::no_manager_stats() const {
  manager::StatsDocument document;
  document.machine = machine_;
  document.time.wall_ns = run_ns_;
  return manager::to_json(document);
}

bool Run::write_stats(const std::string& text, int status) {
  if (!options_.stats) return true;
  auto json = nlohmann::ordered_json::parse(text, nullptr, false);
  if (!json.is_object()) {
    std::fprintf(stderr, "ferry: --stats %s is not written: the manager's answer is not JSON\n",
                 options_.stats->c_str());
    return false;
  }
  json["program"] = {{"arguments", options_.program},
                     {"exit_status", status},
                     {"wall_ns", run_ns_},
                     {"manager_started", manager_->started()}};
  manager::TextFile file(*options_.stats);
  if (!file.failed()) {
    // Arguments may be no UTF-8: what is not becomes a replacement character.
    file.write(json.dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
  }
  const Status written = file.finish();
  if (!written.ok()) {
    std::fprintf(stderr, "ferry: cannot write --stats %s: %s\n", options_.stats->c_str(),
                 std::strerror(written.sys_errno));
  }
  return written.ok();
}

/// The program asked for no device, so nobody else writes these.
bool Run::write_empty_views() {
  bool well = true;
  const auto told = [&](const char* flag, const std::string& path, const Status& status) {
    if (status.ok()) return;
    std::fprintf(stderr, "ferry: cannot write %s %s: %s\n", flag, path.c_str(), std::strerror(status.sys_errno));
    well = false;
  };
  const std::uint64_t end_ns = start_ns_ + run_ns_;
  if (options_.trace) {
    told("--trace", *options_.trace, manager::Trace(start_ns_, 1).write(*options_.trace, end_ns));
  }
  if (options_.report) {
    manager::Report report;
    for (const std::string& word : options_.program) report.title += (report.title.empty() ? "" : " ") + word;
    report.machine = manager::machine_line(machine_) + "; " + manager::host_line();
    report.document.machine = machine_;
    report.document.time.wall_ns = run_ns_;
    report.samples = manager::Series(start_ns_).samples(end_ns);
    report.start_ns = start_ns_;
    told("--report", *options_.report, manager::write_report(*options_.report, report));
  }
  return well;
}

int Run::finish() {
  const int status = wait_for(child_);
  run_ns_ = monotonic_ns() - start_ns_;
  clear_progress();
  bool well = true;
  std::optional<std::string> stats;
  if (!manager_->started()) {
    stats = no_manager_stats();
    well = write_empty_views();
  } else {
    stats = manager_->stats(finish_ms);
    if (!stats) manager_->notice_end(gone_ms);
    const bool was_running = manager_->running();
    const auto trouble = manager_->finish(finish_ms, signals_.get());
    if (trouble || !was_running) {
      for (const auto& [flag, path] : {std::pair{"--trace", options_.trace}, std::pair{"--report", options_.report}}) {
        if (!path) continue;
        std::fprintf(stderr, "ferry: %s %s may be missing or cut short: %s\n", flag, path->c_str(),
                     trouble ? trouble->c_str() : "the manager ended early");
        well = false;
      }
    }
  }
  if (stats) {
    well = write_stats(*stats, status) && well;
  } else {
    std::fprintf(stderr, "ferry: no counters: the manager does not answer\n");
    well = well && !options_.stats;
  }
  if (!options_.quiet && stats) {
    const std::string& name = options_.program[0];
    const std::size_t slash = name.rfind('/');
    const std::string shown = slash == std::string::npos ? name : name.substr(slash + 1);
    if (manager_->started()) {
      std::fputs(summary(read_counters(*stats), shown, run_ns_).c_str(), stderr);
    } else {
      std::fprintf(stderr, "ferry: %s used no device: no manager was started\n", shown.c_str());
    }
  }
  // A program's own failure is what a script wants to know of first.
  return status != 0 || well ? status : exit_ferry;
}

int Run::go() {
  int code = prepare();
  if (code == exit_ok) code = start_program();
  if (code != exit_ok) {
    for (const Output& output : outputs_) output.disclaim();
    return code;
  }
  loop();
  return finish();
}

}  // namespace

int run(const RunOptions& options) { return Run(options).go(); }

}  // namespace ferry::cli
