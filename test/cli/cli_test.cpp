// The command line: what is said about mistakes, and that help, completion and the commands agree.
#include <gtest/gtest.h>

#include <regex>
#include <set>

#include "program.h"

namespace ferry {
namespace {

using test::Outcome;
using test::run_ferry;

const std::vector<std::string> commands = {"run",   "doctor", "explain",    "sim",    "check",
                                           "bench", "demo",   "completion", "version"};

TEST(Cli, HelpOfEveryCommandHasAnExampleAndExitsWell) {
  const Outcome top = run_ferry({"--help"});
  EXPECT_EQ(top.status, 0);
  for (const std::string& command : commands) {
    EXPECT_NE(top.out.find("  " + command + " "), std::string::npos) << command;
    const Outcome help = run_ferry({command, "--help"});
    EXPECT_EQ(help.status, 0) << command;
    EXPECT_NE(help.out.find("Example"), std::string::npos) << command;
    EXPECT_NE(help.out.find("xit code"), std::string::npos) << command;
  }
}

TEST(Cli, VersionIsOneLine) {
  for (const char* how : {"version", "--version"}) {
    const Outcome version = run_ferry({how});
    EXPECT_EQ(version.status, 0);
    EXPECT_TRUE(std::regex_match(version.out, std::regex("ferry \\d+\\.\\d+\\.\\d+\n"))) << version.out;
  }
}

TEST(Cli, MistakesAreNamedWithAWayOn) {
  struct Case {
    std::vector<std::string> arguments;
    const char* part;
  };
  const Case cases[] = {
      {{}, "usage: ferry COMMAND"},
      {{"rnu"}, "no command 'rnu'; did you mean run?"},
      {{"run"}, "Write it after --"},
      {{"run", "--"}, "Write it after --"},
      {{"run", "ls", "-l"}, "'ls': write -- before the program"},
      {{"run", "--vran", "64M", "--", "true"}, "'--vran' is not known here; did you mean --vram?"},
      {{"run", "--vram", "--", "true"}, "--vram"},
      {{"run", "--vram", "64X", "--", "true"}, "--vram '64X' is not a size"},
      {{"run", "--vram", "64MB", "--", "true"}, "powers of 1024"},
      {{"run", "--vram", "4K", "--", "true"}, "at least 2M"},
      {{"run", "--cus", "none", "--", "true"}, "--cus 'none' is not a whole number"},
      {{"run", "--devices", "99", "--", "true"}, "has to be 1 to 16"},
      {{"run", "--granularity", "5K", "--", "true"}, "power of two"},
      {{"run", "--config", "/nonexistent", "--", "true"}, "No such file"},
      {{"doctor", "--jsn"}, "did you mean --json?"},
      {{"doctor", "now"}, "'now' is not known here"},
      {{"explain", "0x1000"}, "--pid is required"},
      {{"explain", "--pid", "1"}, "address is required"},
      {{"explain", "--pid", "x", "0x1000"}, "--pid"},
      {{"explain", "--pid", "1", "here"}, "'here' is not an address"},
      {{"explain", "--pid", "1", "0x1000", "--bytes", "0"}, "--bytes '0' is nothing"},
      {{"sim", "--seed", "x"}, "--seed"},
      {{"sim", "--stps", "4"}, "did you mean --steps?"},
      {{"completion"}, "shell is required"},
      {{"completion", "tcsh"}, "bash, zsh or fish"},
  };
  for (const Case& c : cases) {
    const Outcome outcome = run_ferry(c.arguments);
    EXPECT_EQ(outcome.status, 2) << c.part << "\n" << outcome.err;
    EXPECT_NE(outcome.err.find(c.part), std::string::npos) << c.part << " in: " << outcome.err;
    EXPECT_EQ(outcome.out, "") << c.part;
  }
}

TEST(Cli, ExplainSaysWhomItCannotAsk) {
  Outcome outcome = run_ferry({"explain", "--pid", "2147483646", "0x200000000000"});
  EXPECT_EQ(outcome.status, 1);
  EXPECT_NE(outcome.err.find("no process 2147483646"), std::string::npos) << outcome.err;
  const std::string self = std::to_string(getpid());
  outcome = run_ferry({"explain", "--pid", self, "--socket", "/nonexistent", "0x200000000000"});
  EXPECT_EQ(outcome.status, 3);
  EXPECT_NE(outcome.err.find("no manager at /nonexistent"), std::string::npos) << outcome.err;
  // What lies outside the window may have been adopted, so the manager is asked about that too.
  outcome = run_ferry({"explain", "--pid", self, "--socket", "/nonexistent", "0x1000"});
  EXPECT_EQ(outcome.status, 3);
  EXPECT_NE(outcome.err.find("no manager at /nonexistent"), std::string::npos) << outcome.err;
}

// --- completion ------------------------------------------------------------------------------------------------------

std::string script_of(const std::string& shell) {
  const Outcome outcome = run_ferry({"completion", shell});
  EXPECT_EQ(outcome.status, 0);
  return outcome.out;
}

TEST(Completion, IsTheInstalledScript) {
  const std::string folder = FERRY_TEST_SOURCE_DIR "/share/completions/";
  EXPECT_EQ(script_of("bash"), test::contents(folder + "ferry.bash"));
  EXPECT_EQ(script_of("zsh"), test::contents(folder + "_ferry"));
  EXPECT_EQ(script_of("fish"), test::contents(folder + "ferry.fish"));
}

/// What bash offers for a line, the last word being completed.
std::set<std::string> offered(const std::vector<std::string>& words) {
  std::string line = ". <(\"$1\" completion bash); COMP_WORDS=(";
  for (const std::string& word : words) line += "'" + word + "' ";
  line += "); COMP_CWORD=" + std::to_string(words.size() - 1) + "; _ferry; printf '%s\\n' \"${COMPREPLY[@]}\"";
  const Outcome outcome = test::run({.arguments = {"bash", "-euc", line, "bash", test::ferry_program()}});
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_EQ(outcome.err, "");
  std::set<std::string> out;
  std::istringstream text(outcome.out);
  for (std::string word; std::getline(text, word);) {
    if (!word.empty()) out.insert(word);
  }
  return out;
}

TEST(Completion, BashOffersCommandsOptionsAndValues) {
  const auto first = offered({"ferry", ""});
  for (const std::string& command : commands) EXPECT_TRUE(first.contains(command)) << command;
  EXPECT_EQ(offered({"ferry", "do"}), std::set<std::string>{"doctor"});
  EXPECT_EQ(offered({"ferry", "run", "--vr"}), std::set<std::string>{"--vram"});
  EXPECT_TRUE(offered({"ferry", "run", "--granularity", ""}).contains("2M"));
  EXPECT_EQ(offered({"ferry", "completion", "f"}), std::set<std::string>{"fish"});
  EXPECT_TRUE(offered({"ferry", "sim", "--bug", "lo"}).contains("lose_dirty"));
  EXPECT_TRUE(offered({"ferry", "run", "--", "bas"}).contains("bash")) << "programs after --";
  EXPECT_TRUE(offered({"ferry", "explain", "--pid", ""}).contains("1"));
}

TEST(Completion, KnowsEveryOptionOfEveryCommand) {
  const std::string zsh = script_of("zsh");
  const std::string fish = script_of("fish");
  const std::regex option("\n  (?:-\\w,)?(--[a-z-]+)");
  for (const std::string& command : commands) {
    if (command == "bench" || command == "demo") continue;  // the help of programs of their own
    const auto bash = offered({"ferry", command, "--"});
    const std::string help = run_ferry({command, "--help"}).out;
    unsigned options = 0;
    for (std::sregex_iterator match(help.begin(), help.end(), option), end; match != end; ++match) {
      const std::string name = (*match)[1];
      ++options;
      EXPECT_TRUE(bash.contains(name)) << command << " " << name;
      EXPECT_NE(zsh.find(name), std::string::npos) << command << " " << name;
      EXPECT_NE(fish.find("-l " + name.substr(2) + " "), std::string::npos) << command << " " << name;
    }
    EXPECT_GE(options, 1U) << command << " has at least --help";
  }
}

TEST(Completion, OtherShellsTakeTheScripts) {
  for (const char* shell : {"zsh", "fish"}) {
    if (test::run({.arguments = {"sh", "-c", std::string("command -v ") + shell}}).status != 0) {
      std::printf("%s is not installed: its script is not tried\n", shell);
      continue;
    }
    const test::TemporaryFolder folder;
    const std::string path = folder.file("script");
    test::write_file(path, script_of(shell));
    // Some shells make files in the home directory on their first start.
    const Outcome outcome =
        test::run({.arguments = {shell, "-n", path},
                   .environment = {{"HOME", folder.path()}, {"XDG_CONFIG_HOME", ""}, {"XDG_DATA_HOME", ""}}});
    EXPECT_EQ(outcome.status, 0) << shell << ": " << outcome.err;
    EXPECT_EQ(outcome.err, "") << shell;
  }
}

}  // namespace
}  // namespace ferry
