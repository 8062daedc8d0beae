#include "cli/check.h"

#include <CLI/CLI.hpp>
#include <cstdlib>

#include "cli/paths.h"

namespace ferry::cli {
namespace {

constexpr const char* footer =
    R"(Goes through every order in which faults, fences, memory, units and failures can follow each other, over the manager's
own core. A scenario is a name (--list tells them), a file, or all; docs/CHECK.md says how to write one.

Example:
  ferry check all --policy all --exhaustive
  ferry check shared --policy none --html hang.html
  ferry check --replay saved/shared-none.replay
  ferry check all --bug all

Exit codes: 0 all as expected (--bug all: every bug was found); 1 not; 2 wrong command line or file.)";

}  // namespace

void declare_check(CLI::App& app, check::CheckOptions& options) {
  app.footer(footer);
  app.add_option("scenario", options.scenarios, "Names or files of scenarios; all: every one of Ferry's own");
  app.add_option("--policy", options.policy, "A policy, or all (default)")->type_name("P");
  app.add_option("--hardware", options.hardware,
                 "Such as units=2,preempts=no,retry=yes; all: every one (default: what the scenario says)")
      ->type_name("H");
  auto* exhaustive = app.add_flag("--exhaustive", options.exhaustive, "Search through every state, however many");
  app.add_option("--schedules", options.schedules, "So many random schedules instead, with few preemptions each")
      ->type_name("N")
      ->excludes(exhaustive);
  app.add_option("--preemptions", options.preemptions, "In one random schedule (default 3)")->type_name("N");
  app.add_option("--seed", options.seed, "Of the first random schedule (default 1)")->type_name("S");
  app.add_option("--states", options.states, "Most states of one case (default 2000000)")->type_name("N");
  app.add_option("--bug", options.bug, "Plant a bug, to see that it is found; all: a table of every one")
      ->type_name("NAME");
  app.add_option("--replay", options.replay, "Go once through a counterexample that was saved")->type_name("FILE");
  app.add_option("--save", options.save, "Write what is not clean: to replay, as text, as a page")->type_name("DIR");
  app.add_option("--html", options.html, "Draw the first counterexample as a page")->type_name("FILE");
  app.add_option("--jobs", options.jobs, "Threads (default: one for each CPU)")->type_name("N");
  app.add_flag("--json", options.json, "One JSON object: cases and total");
  app.add_flag("--list", options.list, "Names of Ferry's own scenarios");
}

int run_check(check::CheckOptions options) {
  options.folder = own_data("scenarios");
  return check::check_main(options);
}

}  // namespace ferry::cli
