// ferry-demo: what `ferry demo` runs. Exit code: 0 as expected, 1 not, 2 wrong usage.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <string>

#include "demos.h"
#include "roles.h"

int main(int argc, char** argv) {
  using namespace ferry::demo;
  CLI::App app{"Demonstrations of forward progress, with real processes, faults and memory pressure.", "ferry demo"};
  app.require_subcommand(1);
  const std::string exit_codes = "\nExit code: 0 as expected, 1 not, 2 wrong usage.";
  app.footer("Example: ferry demo deadlock --policy none" + exit_codes);

  DeadlockOptions deadlock_options;
  CLI::App* deadlock_command = app.add_subcommand(
      "deadlock", "A fault that waits for memory that waits for a fence that waits for the fault's compute unit");
  deadlock_command->add_option("--policy", deadlock_options.policy, "one of the eight policies, or all")
      ->capture_default_str();
  deadlock_command->add_option("--times", deadlock_options.times, "runs of each")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  deadlock_command->footer("Example: ferry demo deadlock --policy none --times 50" + exit_codes);
  deadlock_command->add_flag("--json", deadlock_options.json, "print JSON");

  PoliciesOptions policies_options;
  CLI::App* policies_command = app.add_subcommand(
      "policies", "Frames with a deadline beside an oversubscribed kernel, under every policy: what each costs");
  policies_command->add_option("--policy", policies_options.policy, "one of the eight policies, or all")
      ->capture_default_str();
  policies_command->add_option("--seconds", policies_options.seconds, "length of the load under each policy")
      ->check(CLI::Range(1.0, 3600.0))
      ->capture_default_str();
  policies_command->add_option("--html", policies_options.html, "write a page with a plot to this file");
  policies_command->footer("Example: ferry demo policies --seconds 8 --html policies.html" + exit_codes);
  policies_command->add_flag("--json", policies_options.json, "print JSON");

  SoakOptions soak_options;
  CLI::App* soak_command = app.add_subcommand(
      "soak", "Applications with all engines and too little memory, killed at random: nothing hangs, leaks or is lost");
  soak_command->footer("Example: ferry demo soak --seconds 600 --applications 8" + exit_codes);
  soak_command->add_option("--seconds", soak_options.seconds, "how long")
      ->check(CLI::Range(1.0, 1e6))
      ->capture_default_str();
  soak_command->add_option("--applications", soak_options.applications, "at a time")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  soak_command->add_option("--seed", soak_options.seed, "of what they do and who is killed")->capture_default_str();

  StressOptions stress_options;
  CLI::App* stress_command =
      app.add_subcommand("stress", "Threads and devices change the same memory in every way, checked against a shadow");
  stress_command->footer("Example: ferry demo stress --seconds 60 --seed 7" + exit_codes);
  stress_command->add_option("--seconds", stress_options.seconds, "how long")
      ->check(CLI::Range(0.1, 1e6))
      ->capture_default_str();
  stress_command->add_option("--seed", stress_options.seed, "of the machine and of what is done")
      ->capture_default_str();
  stress_command->add_option("--threads", stress_options.threads, "of the application")
      ->check(CLI::Range(1, 16))
      ->capture_default_str();
  stress_command->add_option("--devices", stress_options.devices, "of the machine")
      ->check(CLI::Range(1, 16))
      ->capture_default_str();
  stress_command->add_option("--granularity", stress_options.granularity, "of the machine; else the seed draws it");
  stress_command->add_option("--only", stress_options.only, "operations to do, by name")
      ->check(CLI::IsMember(stress_operations()));
  stress_command->add_option("--without", stress_options.without, "operations not to do, by name")
      ->check(CLI::IsMember(stress_operations()));

  stress_command->add_flag("--allocated-only", stress_options.allocated_only,
                           "ferry_alloc's memory alone, and none of the program's own that is adopted");

  RoleOptions role;
  CLI::App* role_command = app.add_subcommand("role", "An application that a demonstration starts")->group("");
  role_command->add_option("NAME", role.name)->required();
  role_command->add_option("--bytes", role.bytes)->transform(CLI::AsSizeValue(false));
  role_command->add_option("--buffer", role.buffer_bytes)->transform(CLI::AsSizeValue(false));
  role_command->add_option("--seconds", role.seconds);
  role_command->add_option("--rounds", role.rounds);
  role_command->add_option("--fps", role.fps);
  role_command->add_option("--seed", role.seed);
  role_command->add_option("--devices", role.devices);
  role_command->add_option("--threads", role.threads);
  role_command->add_option("--only", role.only);
  role_command->add_option("--without", role.without);
  role_command->add_flag("--no-own", role.no_own);

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : 2;
  }
  try {
    if (deadlock_command->parsed()) return deadlock(deadlock_options);
    if (policies_command->parsed()) return policies(policies_options);
    if (soak_command->parsed()) return soak(soak_options);
    if (stress_command->parsed()) return stress(stress_options);
    if (role.name == "compute") return compute_role(role);
    if (role.name == "chain") return chain_role(role);
    if (role.name == "frames") return frames_role(role);
    if (role.name == "usable") return usable_role(role);
    if (role.name == "mixed") return mixed_role(role);
    if (role.name == "stress") return stress_role(role);
    if (role.name == "settle") return settle_role(role);
    std::fprintf(stderr, "ferry-demo: no role '%s'\n", role.name.c_str());
    return 2;
  } catch (const std::exception& e) {
    std::printf("error %s\n", e.what());
    std::fprintf(stderr, "ferry-demo: %s\n", e.what());
    return 1;
  }
}
