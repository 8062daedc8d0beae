// ferryd's command line.
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "manager/config.h"
#include "manager/log.h"
#include "manager/manager.h"

namespace {

using ferry::manager::Manager;

Manager* running = nullptr;

void on_end(int) {
  if (running != nullptr) running->request_stop();
}

void set_signals(bool is_private) {
  struct sigaction end {};
  end.sa_handler = on_end;
  sigaction(SIGTERM, &end, nullptr);
  sigaction(SIGHUP, &end, nullptr);
  // A private manager lives as long as its application, which is whom a terminal's Ctrl-C is for.
  if (is_private) {
    signal(SIGINT, SIG_IGN);
  } else {
    sigaction(SIGINT, &end, nullptr);
  }
  signal(SIGPIPE, SIG_IGN);
  // The files that applications get are larger than any limit on ordinary files; they take no disk.
  signal(SIGXFSZ, SIG_IGN);
}

int explain_failure(const ferry::manager::ManagerConfig& config, ferry::Status status) {
  using ferry::manager::log;
  if (status.code == ferry::Code::io_error && config.machine.store_room_bytes() != 0) return 1;  // it has said so
  if (config.is_private()) {
    log("descriptor %d is no connection to an application", config.private_fd);
  } else if (config.listen_fd >= 0) {
    log("descriptor %d is no listening socket", config.listen_fd);
  } else if (status.code == ferry::Code::overlap) {
    log("another ferryd listens at %s: use that one, end it first, or name another path", config.socket_path.c_str());
  } else if (status.sys_errno == EEXIST) {
    log("%s exists and is no socket: remove it or name another path", config.socket_path.c_str());
  } else {
    log("cannot listen at %s: %s", config.socket_path.c_str(),
        status.sys_errno != 0 ? std::strerror(status.sys_errno) : to_string(status.code));
  }
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  ferry::manager::ManagerConfig config;
  ferry::manager::MachineFlags flags;

  CLI::App app{
      "ferryd - manages memory that applications share with their devices\n\n"
      "Example: ferryd --socket /run/user/1000/ferry --vram 1G\n"
      "         FERRY_SOCKET=/run/user/1000/ferry ./program\n"};
  app.set_version_flag("--version", std::string("ferryd ") + FERRY_VERSION);
  auto* socket = app.add_option("--socket", config.socket_path, "listen here for applications of this user");
  auto* listen = app.add_option("--listen-fd", config.listen_fd, "use this inherited listening socket");
  auto* single = app.add_option("--private-fd", config.private_fd,
                                "serve the one application on this inherited connection, and end with it");
  socket->excludes(listen)->excludes(single);
  listen->excludes(single);
  app.add_option("--vram", flags.vram, "memory of each device, such as 64M; default 256M, or FERRY_VRAM");
  app.add_option("--cus", flags.cus, "compute units of each device; default by the CPUs, or FERRY_CUS");
  app.add_option("--devices", flags.devices, "number of devices; default 1, or FERRY_DEVICES");
  app.add_option("--hive", flags.hive, "devices that are linked, such as 0,1/2,3 or all; default none, or FERRY_HIVE");
  app.add_option("--granularity", flags.granularity,
                 "bytes that move together, 4K to 2M; default a 1024th of --vram from 64K on, or FERRY_GRANULARITY");
  app.add_option("--policy", flags.policy,
                 "how fences and page faults share a device: none, preempt, reserve, reserve-in-flight, exclusive, "
                 "query, track or pinned; default preempt, or FERRY_POLICY");
  app.add_option(
      "--hardware", flags.hardware,
      "preempt or no-preempt (whether a compute unit can be taken from waves that wait for faults), retry or "
      "no-retry (faults); default preempt,retry, or FERRY_HARDWARE");
  app.add_option("--reserved-cus", flags.reserved_cus,
                 "compute units that policies reserve and reserve-in-flight keep from compute; default 1, or "
                 "FERRY_RESERVED_CUS");
  app.add_option("--system", flags.system,
                 "system memory for all managed pages, such as 64M; default 0, no budget, or FERRY_SYSTEM");
  app.add_option("--store", flags.store, "room for pages beneath the budget; default 8 times --system, or FERRY_STORE");
  app.add_option("--store-memory", flags.store_memory,
                 "memory for compressed pages; default a fifth of --system, or FERRY_STORE_MEMORY");
  app.add_option("--store-dir", flags.store_directory,
                 "directory of the store's file, '' for none; default /var/tmp, or FERRY_STORE_DIR");
  app.add_option(
      "--prefetch", flags.prefetch,
      "what comes along with a fault: none, sequential, stride, density or both; default stride, or FERRY_PREFETCH");
  app.add_option("--victims", flags.victims,
                 "what leaves full VRAM: probe, lru, fifo or random; default probe, or FERRY_VICTIMS");
  app.add_option("--leave", flags.leave,
                 "what stays in system memory: never, thrash or cost; default thrash, or FERRY_LEAVE");
  app.add_option("--store-codec", flags.store_codec, "zstd, lz4 or none; default zstd, or FERRY_STORE_CODEC");
  app.add_option("--store-io", flags.store_io, "uring or threads; default uring where allowed, or FERRY_STORE_IO");
  app.add_option("--config", flags.config, "TOML file with the machine and its policy; default none, or FERRY_CONFIG");
  app.add_option("--copy-threads", config.copy_threads, "threads that copy; default by the CPUs")
      ->check(CLI::Range(1U, 64U));
  double answer_timeout_s = 10;
  app.add_option("--answer-timeout", answer_timeout_s,
                 "seconds after which a device that does not answer is ended; default 10")
      ->check(CLI::Range(0.1, 86400.0));
  app.add_option("--stats", config.stats_file, "write counters here at the end (JSON)");
  app.add_option("--trace", config.trace_file, "write a trace for Perfetto here at the end (JSON)");
  app.add_option("--report", config.report_file, "write a report here at the end (HTML)");
  app.add_option("--title", config.title, "what the report is called");
  app.footer("Exit status: 0 well, 1 could not start or write a file, 2 wrong use.");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : 2;
  }
  if (socket->count() + listen->count() + single->count() != 1) {
    std::fprintf(stderr, "ferryd: name a socket to listen at, such as --socket /run/user/%u/ferry\n", ::getuid());
    return 2;
  }
  config.answer_timeout_ns = static_cast<std::uint64_t>(answer_timeout_s * 1e9);
  add_environment(flags);
  if (const auto error = read_options(flags, config.machine)) {
    std::fprintf(stderr, "ferryd: %s\n", error->c_str());
    return 2;
  }

  set_signals(config.is_private());
  // Its own session: what a terminal sends to the application's process group is not for its manager.
  if (config.is_private()) setsid();
  auto manager = Manager::make(config);
  if (!manager) return explain_failure(config, manager.status());
  running = manager.value().get();
  const ferry::Status status = manager.value()->run();
  running = nullptr;
  return status.ok() ? 0 : 1;
}
