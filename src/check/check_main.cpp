#include "check/check_main.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <sstream>
#include <thread>

#include "check/cases.h"
#include "check/draw.h"
#include "check/replay.h"
#include "check/report.h"

namespace ferry::check {
namespace {
namespace fs = std::filesystem;

/// Counterexamples that are printed in full when many cases were looked at.
constexpr unsigned drawings_most = 3;
/// A planted bug has to show within so many states of one case.
constexpr std::uint64_t bug_states = 60'000;

struct Complaint {
  std::string text;
};

std::string read_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  if (!in) throw Complaint{path.string() + " cannot be read"};
  return text.str();
}

void write_file(const fs::path& path, const std::string& text) {
  std::ofstream out(path, std::ios::binary);
  out << text;
  out.close();
  if (!out) throw Complaint{path.string() + " cannot be written"};
}

std::shared_ptr<const Scenario> load(const fs::path& path) {
  Parsed parsed = parse_scenario(read_file(path), path.stem().string());
  if (!parsed.scenario) throw Complaint{parsed.error};
  return std::make_shared<const Scenario>(std::move(*parsed.scenario));
}

std::vector<fs::path> own_scenarios(const std::string& folder) {
  std::vector<fs::path> out;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    if (entry.path().extension() == ".scn") out.push_back(entry.path());
  }
  std::sort(out.begin(), out.end());
  return out;
}

std::vector<std::shared_ptr<const Scenario>> scenarios_of(const CheckOptions& options) {
  std::vector<std::shared_ptr<const Scenario>> out;
  for (const std::string& name : options.scenarios) {
    if (name == "all") {
      const auto paths = own_scenarios(options.folder);
      if (paths.empty()) throw Complaint{"no scenarios lie in '" + options.folder + "'"};
      for (const fs::path& path : paths) out.push_back(load(path));
    } else if (name.find('/') != std::string::npos || name.ends_with(".scn")) {
      out.push_back(load(name));
    } else {
      const fs::path path = fs::path(options.folder) / (name + ".scn");
      if (!fs::exists(path)) {
        std::string known;
        for (const fs::path& own : own_scenarios(options.folder)) known += " " + own.stem().string();
        throw Complaint{"no scenario is called '" + name + "'; there are:" + known};
      }
      out.push_back(load(path));
    }
  }
  return out;
}

std::vector<core::Policy> policies_of(const std::string& name) {
  std::vector<core::Policy> out;
  if (name == "all") {
    for (unsigned i = 0; i < core::policy_count; ++i) out.push_back(static_cast<core::Policy>(i));
    return out;
  }
  const auto policy = parse_policy(name);
  if (!policy) {
    std::string known;
    for (unsigned i = 0; i < core::policy_count; ++i)
      known += std::string(" ") + to_string(static_cast<core::Policy>(i));
    throw Complaint{"no policy is called '" + name + "'; there are:" + known + " all"};
  }
  return {*policy};
}

std::vector<Hardware> hardware_of(const Scenario& scenario, const std::string& text) {
  if (text.empty() || text == "all") return scenario.sweep(text == "all");
  const auto hardware = parse_hardware(text);
  if (!hardware) throw Complaint{"--hardware '" + text + "' is not like units=2,preempts=no,retry=yes, nor all"};
  return {*hardware};
}

std::vector<Case> cases_of(const std::vector<std::shared_ptr<const Scenario>>& scenarios, const CheckOptions& options,
                           core::PlantedBug bug) {
  std::vector<Case> out;
  for (const auto& scenario : scenarios) {
    for (const Hardware& hardware : hardware_of(*scenario, options.hardware)) {
      for (const core::Policy policy : policies_of(options.policy)) out.push_back({scenario, policy, hardware, bug});
    }
  }
  return out;
}

Run rerun(const Case& one, const Exploration& exploration) {
  RunOptions options;
  options.log = true;
  options.go_on = false;
  return run_schedule(one.setup(), exploration.schedule, options);
}

Replay replay_of(const Case& one, const Exploration& exploration, const Run& run) {
  return {one.scenario->name,          one.scenario->text,     one.policy,    one.hardware, one.bug,
          exploration.finding.verdict, exploration.cycle_from, run.performed, run.names};
}

Picture picture_of(const Case& one, const Exploration& exploration, const std::string& command) {
  return {one.title(), exploration.finding, exploration.cycle_from, command};
}

void save(const Case& one, const Result& result, const CheckOptions& options) {
  const Run run = rerun(one, result.exploration);
  const fs::path base = fs::path(options.save) / one.file_name();
  const std::string replay = base.string() + ".replay";
  const Picture picture = picture_of(one, result.exploration, "ferry check --replay " + replay);
  write_file(replay, write_replay(replay_of(one, result.exploration, run)));
  write_file(base.string() + ".txt", draw_text(run, picture));
  write_file(base.string() + ".html", draw_html(run, picture));
}

int replay_main(const CheckOptions& options) {
  std::string error;
  const auto replay = read_replay(read_file(options.replay), error);
  if (!replay) throw Complaint{options.replay + ": " + error};
  Parsed parsed = parse_scenario(replay->text, replay->name);
  if (!parsed.scenario) throw Complaint{parsed.error};
  const Case one{std::make_shared<const Scenario>(std::move(*parsed.scenario)), replay->policy, replay->hardware,
                 replay->bug};
  RunOptions run_options;
  run_options.log = true;
  run_options.go_on = false;
  Run run = run_schedule(one.setup(), replay->keys, run_options);
  if (!run.followed) {
    std::printf("this version of Ferry comes another way: not every event of the file could happen\n");
  }
  // A livelock has no end to look at: that its round can be gone again is what shows it.
  const bool round = replay->verdict == Verdict::livelock && run.followed;
  if (round)
    run.finding = {Verdict::livelock, "the events after " + std::to_string(replay->cycle_from) + " can repeat\n"};
  const Picture picture{one.title(), run.finding, round ? replay->cycle_from : 0, {}};
  std::fputs(draw_text(run, picture).c_str(), stdout);
  if (!options.html.empty()) write_file(options.html, draw_html(run, picture));
  return run.finding.verdict == Verdict::clean ? 0 : 1;
}

/// Scenarios that claim to show the bug come first.
int bug_main(const std::vector<std::shared_ptr<const Scenario>>& scenarios, const CheckOptions& options,
             const Effort& effort, unsigned jobs) {
  std::vector<core::PlantedBug> bugs;
  if (options.bug == "all") {
    for (unsigned i = 1; i < core::planted_bug_count; ++i) {
      const auto bug = static_cast<core::PlantedBug>(i);
      if (std::string_view(core::to_string(bug)) != "unknown") bugs.push_back(bug);
    }
  } else {
    bugs.push_back(*parse_bug(options.bug));
  }
  Effort limited = effort;
  limited.states = std::min(effort.states, bug_states);
  if (bugs.size() > 1) std::printf("%-22s %s\n", "planted bug", "found by");
  unsigned missed = 0;
  for (const core::PlantedBug bug : bugs) {
    auto ordered = scenarios;
    std::stable_sort(ordered.begin(), ordered.end(), [bug](const auto& a, const auto& b) {
      const auto shows = [bug](const Scenario& s) { return std::count(s.shows.begin(), s.shows.end(), bug) != 0; };
      return shows(*a) && !shows(*b);
    });
    const std::vector<Case> cases = cases_of(ordered, options, bug);
    std::size_t found = cases.size();
    const auto results = examine_all(cases, limited, jobs, [&](std::size_t i, const Result& result) {
      if (result.as_expected) return true;
      // A case that comes out wrong without the bug too shows nothing of it.
      Case sound = cases[i];
      sound.bug = core::PlantedBug::none;
      if (examine(sound, limited).exploration.finding.verdict == result.exploration.finding.verdict) return true;
      found = std::min(found, i);
      return false;
    });
    if (found == cases.size()) {
      ++missed;
      std::printf("%-22s %s\n", core::to_string(bug), "NOT FOUND");
    } else if (bugs.size() > 1) {
      const Case& one = cases[found];
      std::printf("%-22s %s under %s, %s: %s\n", core::to_string(bug), one.scenario->name.c_str(),
                  core::to_string(one.policy), one.hardware.text().c_str(),
                  to_string(results[found].exploration.finding.verdict));
    } else {
      const Run run = rerun(cases[found], results[found].exploration);
      std::fputs(draw_text(run, picture_of(cases[found], results[found].exploration, {})).c_str(), stdout);
    }
    if (found != cases.size() && !options.save.empty()) save(cases[found], results[found], options);
    std::fflush(stdout);
  }
  // One bug: found means that something is wrong, which is what the exit status of a check says.
  return options.bug == "all" ? (missed == 0 ? 0 : 1) : (missed == 0 ? 1 : 0);
}

int run(const CheckOptions& options) {
  if (!options.replay.empty()) return replay_main(options);
  if (options.list) {
    for (const fs::path& path : own_scenarios(options.folder)) {
      const auto scenario = load(path);
      std::printf("%-24s %s\n", scenario->name.c_str(), scenario->title.c_str());
    }
    return 0;
  }
  if (options.scenarios.empty()) throw Complaint{"which scenario? Its name, a file, or all; --list tells the names"};
  const auto scenarios = scenarios_of(options);
  // Among others a large scenario stays what it says, or one of them would take hours.
  const bool search_large = options.exhaustive && scenarios.size() == 1;
  Effort effort{search_large, options.schedules, options.seed, options.preemptions, options.states};
  const unsigned jobs = options.jobs != 0 ? options.jobs : std::max(1U, std::thread::hardware_concurrency());
  if (!options.save.empty()) {
    std::error_code error;
    fs::create_directories(options.save, error);
    if (error) throw Complaint{options.save + ": " + error.message()};
  }
  if (!options.bug.empty()) {
    if (options.bug != "all" && !parse_bug(options.bug)) {
      std::string known;
      for (unsigned i = 1; i < core::planted_bug_count; ++i) {
        known += std::string(" ") + core::to_string(static_cast<core::PlantedBug>(i));
      }
      throw Complaint{"no planted bug is called '" + options.bug + "'; there are:" + known + " all"};
    }
    return bug_main(scenarios, options, effort, jobs);
  }
  const std::vector<Case> cases = cases_of(scenarios, options, core::PlantedBug::none);
  const std::vector<Result> results = examine_all(cases, effort, jobs);

  if (options.json) {
    std::fputs(report_json(cases, results).c_str(), stdout);
  } else {
    std::fputs(report_table(cases, results).c_str(), stdout);
  }
  bool as_expected = true;
  bool html_written = false;
  unsigned drawn = 0;
  for (std::size_t i = 0; i < cases.size(); ++i) {
    const Result& result = results[i];
    as_expected = as_expected && result.as_expected;
    const Verdict verdict = result.exploration.finding.verdict;
    if (verdict == Verdict::clean) continue;
    if (!options.save.empty()) save(cases[i], result, options);
    if (!options.html.empty() && !html_written && verdict != Verdict::refused) {
      html_written = true;
      write_file(options.html,
                 draw_html(rerun(cases[i], result.exploration), picture_of(cases[i], result.exploration, {})));
    }
    const bool draw = cases.size() == 1 || !result.as_expected;
    if (draw && !options.json && drawn < drawings_most) {
      ++drawn;
      std::printf("\n%s",
                  draw_text(rerun(cases[i], result.exploration), picture_of(cases[i], result.exploration, {})).c_str());
      for (const std::string& remark : result.exploration.remarks)
        std::printf("the core remarks: %s\n", remark.c_str());
    }
  }
  return as_expected ? 0 : 1;
}

}  // namespace

int check_main(const CheckOptions& options) {
  try {
    return run(options);
  } catch (const Complaint& complaint) {
    std::fprintf(stderr, "ferry check: %s\n", complaint.text.c_str());
    return 2;
  }
}

}  // namespace ferry::check
