// The command line of `ferry`: which command, which options, which exit code. What the commands do is elsewhere.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/size.h"
#include "cli/check.h"
#include "cli/completion.h"
#include "cli/doctor.h"
#include "cli/exit_code.h"
#include "cli/explain.h"
#include "cli/paths.h"
#include "cli/run.h"
#include "cli/suggest.h"
#include "sim/sim_main.h"

namespace ferry::cli {
namespace {

constexpr const char* run_footer =
    R"(The program runs with standard input, output and error of its own, and its exit status is the one of ferry run
(128 + N if signal N ended it). What the machine has that neither option nor file names stays at its default.
Sizes: 4096, 64K, 64M, 2GiB (powers of 1024).

Example:
  ferry run --vram 64M --stats s.json --report r.html -- ./graph --scale 20

Exit codes: the program's; 2 wrong command line or configuration; 125 Ferry failed (a file could not be written, ...);
126 the program cannot be executed; 127 there is no such program.)";

constexpr const char* doctor_footer = R"(Example:
  ferry doctor --json | jq '.checks[] | select(.state != "ok")'

Exit codes: 0 Ferry can run; 1 it cannot; 2 wrong command line.)";

constexpr const char* explain_footer = R"(Example:
  ferry explain --pid 4711 0x200000001000 --bytes 2M

Exit codes: 0 told; 1 nothing there is managed memory of that process; 2 wrong command line; 3 no manager to ask.)";

constexpr const char* sim_footer = R"(Example:
  ferry sim --seed 7 --steps 20000
  ferry sim --runs 1000
  ferry sim --bug all

Exit codes: 0 clean (--bug all: every bug was found in time); 1 a check failed; 2 wrong command line.)";

constexpr const char* bench_footer = R"(Example:
  ferry bench fault-1cu --json

Exit codes: those of ferry-bench; 125 ferry-bench is not beside ferry.)";

constexpr const char* demo_footer = R"(Example:
  ferry demo deadlock --policy none

Exit codes: those of ferry-demo; 125 ferry-demo is not beside ferry.)";

constexpr const char* completion_footer = R"(Example:
  ferry completion bash > ~/.local/share/bash-completion/completions/ferry

Exit codes: 0; 2 wrong command line.)";

constexpr const char* main_footer = R"(Example:
  ferry run --vram 64M -- ./graph

ferry COMMAND --help tells more, with exit codes.)";

/// Becomes a program that stands beside this one and knows its own options.
int become(const char* command, const char* name, const std::vector<std::string>& arguments) {
  const std::string program = sibling_program(name);
  if (program.empty()) {
    std::fprintf(stderr, "ferry %s: no %s beside ferry: it was left out when Ferry was built\n", command, name);
    return exit_ferry;
  }
  std::vector<char*> words{const_cast<char*>(program.c_str())};
  for (const std::string& word : arguments) words.push_back(const_cast<char*>(word.c_str()));
  words.push_back(nullptr);
  execv(program.c_str(), words.data());
  std::fprintf(stderr, "ferry %s: %s: %s\n", command, program.c_str(), std::strerror(errno));
  return exit_ferry;
}

std::vector<std::string> option_names(const CLI::App& app) {
  std::vector<std::string> out;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) out.push_back("--" + name);
  }
  return out;
}

int usage_error(const CLI::App& app, const CLI::App& top, const std::string& what, const std::string& unknown) {
  const bool is_top = &app == &top;
  const std::string command = is_top ? "ferry" : "ferry " + app.get_name();
  std::string hint;
  if (!unknown.empty()) {
    std::vector<std::string> known = option_names(app);
    if (is_top) {
      for (const CLI::App* sub : top.get_subcommands(nullptr)) known.push_back(sub->get_name());
    }
    const std::string meant = nearest(unknown.substr(0, unknown.find('=')), known);
    if (!meant.empty()) hint = "; did you mean " + meant + "?";
  }
  std::fprintf(stderr, "%s: %s%s\nTry '%s --help'.\n", command.c_str(), what.c_str(), hint.c_str(), command.c_str());
  return exit_usage;
}

/// Usage lines as they are written here, and wide enough columns for the longest option.
class HelpFormatter : public CLI::Formatter {
 public:
  HelpFormatter() { column_width(34); }
  void usage(const CLI::App* app, std::string line) { lines_[app] = std::move(line); }
  std::string make_usage(const CLI::App* app, std::string) const override {
    const auto line = lines_.find(app);
    return line == lines_.end() ? std::string() : "usage: " + line->second + "\n";
  }

 private:
  std::map<const CLI::App*, std::string> lines_;
};

/// The command that the words name, for messages about them.
const CLI::App& command_of(const CLI::App& top) {
  const auto parsed = top.get_subcommands();
  return parsed.empty() ? top : *parsed.front();
}

class Ferry {
 public:
  int main(int argc, char** argv);

 private:
  void declare_run();
  void declare_doctor();
  void declare_explain();
  void declare_sim();
  void declare_siblings();
  void declare_rest();
  int dispatch();

  CLI::App app_{"Ferry: any pointer of a program is valid on a device; pages move on demand, past the device's memory.",
                "ferry"};
  std::shared_ptr<HelpFormatter> help_ = std::make_shared<HelpFormatter>();
  CLI::App* run_ = nullptr;
  CLI::App* doctor_ = nullptr;
  CLI::App* explain_ = nullptr;
  CLI::App* sim_ = nullptr;
  CLI::App* check_ = nullptr;
  CLI::App* bench_ = nullptr;
  CLI::App* demo_ = nullptr;
  CLI::App* completion_ = nullptr;
  CLI::App* version_ = nullptr;
  RunOptions run_options_;
  bool no_progress_ = false;
  bool has_program_ = false;
  bool doctor_json_ = false;
  ExplainOptions explain_options_;
  std::string explain_bytes_ = "1";
  sim::SimMainOptions sim_options_;
  check::CheckOptions check_options_;
  std::vector<std::string> sibling_arguments_;  ///< of bench and demo
  std::string shell_;
};

void Ferry::declare_run() {
  run_ = app_.add_subcommand("run", "Run a program under a chosen machine");
  help_->usage(run_, "ferry run [options] -- PROGRAM [ARGUMENTS]");
  run_->footer(run_footer);
  manager::MachineFlags& machine = run_options_.machine;
  run_->add_option("--vram", machine.vram,
                   "Memory of each device (default " + size_argument(manager::MachineOptions().vram_bytes) + ")")
      ->type_name("SIZE");
  run_->add_option("--cus", machine.cus, "Compute units of each device (default: one for each CPU)")->type_name("N");
  run_->add_option("--devices", machine.devices, "Number of devices (default 1)")->type_name("N");
  run_->add_option("--hive", machine.hive,
                   "Devices that are linked, such as 0,1/2,3 or all: they copy to each other directly (default none)")
      ->type_name("DEVICES");
  run_->add_option("--granularity", machine.granularity,
                   "What moves together: 4K to 2M, a power of two (default: a 1024th of VRAM, from 64K on)")
      ->type_name("SIZE");
  run_->add_option("--policy", machine.policy,
                   "How fences and page faults share a device: none, preempt, reserve, reserve-in-flight, exclusive, "
                   "query, track or pinned (default preempt)")
      ->type_name("P");
  run_->add_option(
          "--hardware", machine.hardware,
          "preempt or no-preempt: whether compute units can be taken from waves that wait for faults; retry or "
          "no-retry: faults (default preempt,retry)")
      ->type_name("WORDS");
  run_->add_option("--reserved-cus", machine.reserved_cus,
                   "Compute units that policies reserve and reserve-in-flight keep from compute (default 1)")
      ->type_name("N");
  run_->add_option("--system", machine.system,
                   "System memory for all managed pages; what does not fit goes to the store (default: no budget)")
      ->type_name("SIZE");
  run_->add_option("--store", machine.store, "Room for pages beneath the budget (default: 8 times --system)")
      ->type_name("SIZE");
  run_->add_option("--store-memory", machine.store_memory,
                   "Of it, memory for compressed pages (default: a fifth of --system)")
      ->type_name("SIZE");
  run_->add_option("--store-dir", machine.store_directory,
                   "Where the store's file lies, '' for no file (default /var/tmp)")
      ->type_name("DIR");
  run_->add_option("--prefetch", machine.prefetch,
                   "what comes along with a fault: none, sequential, stride, density, both (default stride)")
      ->type_name("KIND");
  run_->add_option("--victims", machine.victims, "what leaves full VRAM: probe, lru, fifo, random (default probe)")
      ->type_name("KIND");
  run_->add_option("--leave", machine.leave, "what stays in system memory: never, thrash, cost (default thrash)")
      ->type_name("KIND");
  run_->add_option("--store-codec", machine.store_codec, "zstd, lz4 or none (default zstd)")->type_name("CODEC");
  run_->add_option("--store-io", machine.store_io, "uring or threads (default uring, where it is allowed)")
      ->type_name("HOW");
  run_->add_option("--config", machine.config, "Machine and policy from a file; options take precedence")
      ->type_name("FILE.toml");
  run_->add_flag("--malloc", run_options_.malloc,
                 "Make the program's whole heap managed (preloads libferry_malloc.so)");
  run_->add_option("--stats", run_options_.stats, "Write the counters as JSON at the end")->type_name("FILE.json");
  run_->add_option("--trace", run_options_.trace, "Write a Chrome / Perfetto trace at the end")->type_name("FILE.json");
  run_->add_option("--report", run_options_.report, "Write a page with plots at the end")->type_name("FILE.html");
  run_->add_flag("--quiet,-q", run_options_.quiet, "No summary and no progress");
  run_->add_flag("--no-progress", no_progress_, "No line of progress on a terminal");
}

void Ferry::declare_doctor() {
  doctor_ = app_.add_subcommand("doctor", "Say what this machine offers, what each lack costs, and what mends it");
  help_->usage(doctor_, "ferry doctor [--json]");
  doctor_->footer(doctor_footer);
  doctor_->add_flag("--json", doctor_json_, "One JSON object: can_run and checks");
}

void Ferry::declare_explain() {
  explain_ =
      app_.add_subcommand("explain", "Say where the pages behind a pointer lie, who maps them, and why they moved");
  help_->usage(explain_, "ferry explain --pid PID ADDRESS [--bytes SIZE] [--socket PATH] [--json]");
  explain_->footer(explain_footer);
  explain_->add_option("--pid", explain_options_.pid, "The process whose pointer it is")->required()->type_name("PID");
  explain_->add_option("address", explain_options_.address, "The pointer, such as 0x200000001000")->required();
  explain_->add_option("--bytes", explain_bytes_, "Tell of every page of so many bytes")->type_name("SIZE");
  explain_
      ->add_option("--socket", explain_options_.socket, "The manager's socket (default: FERRY_SOCKET of the process)")
      ->type_name("PATH");
  explain_->add_flag("--json", explain_options_.json, "One JSON array, an object a run of pages that are alike");
}

void Ferry::declare_sim() {
  sim_ = app_.add_subcommand("sim", "Run the manager's core against simulated processes and failures, from a seed");
  help_->usage(sim_,
               "ferry sim [--seed S] [--steps N] [--runs N] [--bug NAME|all] [--budget WHERE] [--trace] [--jobs N]");
  sim_->footer(sim_footer);
  sim_->add_option("--seed", sim_options_.seed, "Seed of the first run; the others follow (default 1)")->type_name("S");
  sim_->add_option("--steps", sim_options_.steps, "Length of a run")->type_name("N");
  sim_->add_option("--runs", sim_options_.runs, "Number of runs (default 1)")->type_name("N");
  sim_->add_option("--bug", sim_options_.bug, "Plant a bug, to see that it is found; all: a table of every one")
      ->type_name("NAME");
  sim_->add_option_function<std::string>(
          "--budget",
          [this](const std::string& which) {
            using Budget = sim::SimOptions::Budget;
            sim_options_.budget = which == "on" ? Budget::on : which == "off" ? Budget::off : Budget::by_seed;
          },
          "Whether system memory has a budget: in every run (on), in none (off), or as each seed says (seed)")
      ->type_name("WHERE")
      ->check(CLI::IsMember({"on", "off", "seed"}));
  sim_->add_flag("--trace", sim_options_.trace, "Print every line of the run; of several, of those that fail");
  sim_->add_option("--jobs", sim_options_.jobs, "Threads (default: one for each CPU)")->type_name("N");
}

void Ferry::declare_siblings() {
  bench_ = app_.add_subcommand("bench", "Measure Ferry beside the floor of what this machine allows");
  help_->usage(bench_, "ferry bench [NAME] [--json]");
  bench_->footer(bench_footer);
  demo_ =
      app_.add_subcommand("demo", "Show forward progress: a deadlock, what each policy costs, a soak, a stress test");
  help_->usage(demo_, "ferry demo deadlock|policies|soak|stress [options]");
  demo_->footer(demo_footer);
}

void Ferry::declare_rest() {
  completion_ = app_.add_subcommand("completion", "Print the completion script of a shell");
  help_->usage(completion_, "ferry completion bash|zsh|fish");
  completion_->footer(completion_footer);
  completion_->add_option("shell", shell_, "bash, zsh or fish")->required();
  version_ = app_.add_subcommand("version", "Print the version");
  help_->usage(version_, "ferry version");
  version_->footer("Example:\n  ferry version\n\nExit codes: 0; 2 wrong command line.");
}

int Ferry::dispatch() {
  if (run_->parsed()) {
    if (!has_program_ || run_options_.program.empty()) {
      return usage_error(*run_, app_, "which program? Write it after --, such as: ferry run --vram 64M -- ./graph", "");
    }
    run_options_.progress = !no_progress_;
    return run(run_options_);
  }
  if (doctor_->parsed()) return doctor(doctor_json_);
  if (explain_->parsed()) {
    const ParsedSize bytes = parse_size(explain_bytes_);
    if (!bytes.ok() || bytes.bytes == 0) {
      return usage_error(*explain_, app_,
                         "--bytes '" + explain_bytes_ + "' " + (bytes.ok() ? "is nothing" : to_string(bytes.error)),
                         "");
    }
    explain_options_.bytes = bytes.bytes;
    return explain(explain_options_);
  }
  if (sim_->parsed()) return sim::sim_main(sim_options_);
  if (check_->parsed()) return run_check(check_options_);
  if (bench_->parsed()) return become("bench", "ferry-bench", sibling_arguments_);
  if (demo_->parsed()) return become("demo", "ferry-demo", sibling_arguments_);
  if (completion_->parsed()) {
    const char* script = completion_script(shell_);
    if (script == nullptr)
      return usage_error(*completion_, app_, "no completion for '" + shell_ + "': bash, zsh or fish", "");
    std::fputs(script, stdout);
    return exit_ok;
  }
  std::printf("ferry %s\n", FERRY_VERSION);
  return exit_ok;
}

int Ferry::main(int argc, char** argv) {
  app_.require_subcommand(1);
  help_->usage(&app_, "ferry COMMAND [options]");
  app_.formatter(help_);
  app_.footer(main_footer);
  app_.set_version_flag("--version", std::string("ferry ") + FERRY_VERSION);
  declare_run();
  declare_doctor();
  declare_explain();
  declare_sim();
  check_ = app_.add_subcommand("check", "Go through every order of events of a scenario, and say what it can come to");
  help_->usage(check_, check_usage);
  declare_check(*check_, check_options_);
  declare_siblings();
  declare_rest();

  std::vector<std::string> words(argv + 1, argv + argc);
  const std::string command = words.empty() ? "" : words[0];
  if (command == "run") {
    // What comes after -- is the program's and not looked at.
    const auto mark = std::find(words.begin(), words.end(), "--");
    has_program_ = mark != words.end();
    if (has_program_) run_options_.program.assign(mark + 1, words.end());
    words.erase(mark, words.end());
  } else if (command == "bench" || command == "demo") {
    // These know their own options, and their own help.
    sibling_arguments_.assign(words.begin() + 1, words.end());
    const bool help = std::any_of(words.begin(), words.end(), [](auto& w) { return w == "--help" || w == "-h"; });
    words.resize(1);
    if (help && sibling_program("ferry-" + command).empty()) words.emplace_back("--help");
  }
  std::reverse(words.begin(), words.end());
  try {
    app_.parse(words);
  } catch (const CLI::Success& e) {
    // --help and --version.
    return app_.exit(e, std::cout, std::cerr);
  } catch (const CLI::ParseError& e) {
    const CLI::App& at = command_of(app_);
    const auto extras = app_.remaining(true);
    if (!command.empty() && command[0] != '-' && &at == &app_) {
      return usage_error(at, app_, "no command '" + command + "'", command);
    }
    if (dynamic_cast<const CLI::ExtrasError*>(&e) != nullptr && !extras.empty()) {
      const std::string& extra = extras.front();
      if (&at == run_ && extra[0] != '-') {
        return usage_error(at, app_, "'" + extra + "': write -- before the program: ferry run [options] -- " + extra,
                           "");
      }
      return usage_error(at, app_, "'" + extra + "' is not known here", extra);
    }
    if (words.empty() && command.empty()) {
      std::cerr << app_.help();
      return exit_usage;
    }
    return usage_error(at, app_, e.what(), "");
  }
  return dispatch();
}

}  // namespace
}  // namespace ferry::cli

int main(int argc, char** argv) {
  try {
    return ferry::cli::Ferry().main(argc, argv);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "ferry: %s\n", e.what());
    return ferry::cli::exit_ferry;
  }
}
