// Programs that know nothing of Ferry, with and without libferry_malloc.so: their output has to be the same.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>

namespace {

struct Outcome {
  int status;
  std::string output;  ///< both streams
  friend bool operator==(const Outcome&, const Outcome&) = default;
};

void PrintTo(const Outcome& outcome, std::ostream* stream) {
  *stream << "wait status " << outcome.status << ", output:\n" << outcome.output;
}

std::string quoted(const std::string& text) {
  std::string result = "'";
  for (const char c : text) result += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return result + "'";
}

/// Runs `script` with sh, whose own heap is the preloaded one, too.
Outcome run(const std::string& script, bool preload, const std::string& environment = "") {
  std::string command = "exec env " + environment;
  if (preload) command += " LD_PRELOAD=" + quoted(FERRY_MALLOC_LIBRARY);
  command += " sh -c " + quoted(script) + " 2>&1 </dev/null";
  Outcome outcome{-1, ""};
  FILE* pipe = ::popen(command.c_str(), "re");
  if (pipe == nullptr) return outcome;
  std::array<char, 4096> buffer;
  std::size_t got = 0;
  while ((got = std::fread(buffer.data(), 1, buffer.size(), pipe)) != 0) outcome.output.append(buffer.data(), got);
  outcome.status = ::pclose(pipe);
  return outcome;
}

bool installed(const std::string& program) { return run("command -v " + program + " >/dev/null", false).status == 0; }

void expect_same(const std::string& script) {
  const Outcome plain = run(script, false);
  EXPECT_EQ(run(script, true), plain) << script;
  EXPECT_EQ(plain.status, 0) << "does not work here at all: " << script << "\n" << plain.output;
}

std::string program(const std::string& arguments) { return quoted(PRELOAD_PROGRAM) + " " + arguments; }

class ScratchDirectory {
 public:
  ScratchDirectory() {
    std::string name = std::filesystem::temp_directory_path() / "ferry-preload-XXXXXX";
    if (::mkdtemp(name.data()) == nullptr) std::abort();
    path_ = name;
  }
  ~ScratchDirectory() { std::filesystem::remove_all(path_); }
  ScratchDirectory(const ScratchDirectory&) = delete;
  ScratchDirectory& operator=(const ScratchDirectory&) = delete;
  [[nodiscard]] std::string path() const { return path_; }

 private:
  std::filesystem::path path_;
};

class PreloadOwn : public testing::TestWithParam<const char*> {};

TEST_P(PreloadOwn, OwnProgramIsServedFromTheWindow) {
  const Outcome plain = run(program(GetParam()), false);
  EXPECT_EQ(plain.status, 0) << plain.output;
  EXPECT_EQ(run(program(std::string(GetParam()) + " --managed"), true), plain);
}

INSTANTIATE_TEST_SUITE_P(Modes, PreloadOwn, testing::Values("api", "containers", "churn", "forks"),
                         [](const auto& info) { return std::string(info.param); });

TEST(Preload, ADoubleFreeIsSaidAndSurvived) {
  const Outcome outcome = run(program("double-free"), true);
  EXPECT_EQ(outcome.status, 0);
  EXPECT_NE(outcome.output.find("is free already (double free); ignored"), std::string::npos) << outcome.output;
  EXPECT_NE(outcome.output.find("survived"), std::string::npos) << outcome.output;
  const Outcome stopped = run("exec " + program("double-free"), true, "FERRY_MALLOC_CHECK=abort");
  EXPECT_TRUE(WIFSIGNALED(stopped.status)) << stopped.status;
}

TEST(Preload, AMovedWindowIsUsedFromTheFirstAllocationOn) {
  const Outcome outcome =
      run(program("containers"), true, "FERRY_WINDOW_BASE=0x1800000000 FERRY_WINDOW_BYTES=0x400000000");
  EXPECT_EQ(outcome, run(program("containers"), false));
  const Outcome elsewhere =
      run(program("api --managed"), true, "FERRY_WINDOW_BASE=0x1800000000 FERRY_WINDOW_BYTES=0x400000000");
  EXPECT_NE(elsewhere.status, 0) << "what was allocated before main was not in the moved window";
}

TEST(Preload, WithoutAddressSpaceForTheWindowProgramsRunOnLibcsHeap) {
  expect_same("ulimit -v 4000000; " + program("containers"));
}

TEST(Preload, Shell) {
  expect_same(
      "for i in 1 2 3 4 5 6 7 8 9; do x=$(echo $i | sed s/1/2/); echo $x; done; ls -l /usr/bin | sort -k5n | cksum; "
      "(echo sub; exec cat /etc/hostname); find /usr/lib -name '*.so' 2>/dev/null | head -n 50");
}

TEST(Preload, Bash) {
  if (!installed("bash")) GTEST_SKIP() << "bash is not installed";
  expect_same(
      "exec bash -c 'declare -A m; for i in {1..20000}; do m[$i]=x$i; done; echo ${#m[@]} ${m[777]}; "
      "f() { local n=$1; ((n)) && f $((n - 1)) || echo deep; }; f 200; seq 1000 | while read a; do echo $((a * a)); "
      "done'");
}

TEST(Preload, Python) {
  if (!installed("python3")) GTEST_SKIP() << "python3 is not installed";
  expect_same("exec python3 -B " FERRY_TEST_SOURCE_DIR "/test/heap/preload_programs.py");
}

TEST(Preload, Perl) {
  if (!installed("perl")) GTEST_SKIP() << "perl is not installed";
  expect_same(
      "exec perl -e 'my %h; $h{$_} = \"x$_\" for 1 .. 200000; my @a = sort { $a <=> $b } keys %h; "
      "print scalar(@a), \" $a[77] $h{88}\\n\"; print `echo child`; print join(\",\", map { $_ * 2 } grep { $_ % 9999 "
      "== 0 } @a)'");
}

TEST(Preload, Sqlite) {
  if (!installed("sqlite3")) GTEST_SKIP() << "sqlite3 is not installed";
  expect_same(
      "exec sqlite3 :memory: 'create table t(a integer primary key, b text); with recursive c(x) as (select 1 union "
      "all "
      "select x + 1 from c where x < 100000) insert into t select x, hex(x * 7919) from c; create index i on t(b); "
      "select count(*), sum(a), max(b) from t; select substr(b, 1, 3), count(*) from t group by 1 order by 2, 1 limit "
      "9;'");
}

TEST(Preload, CompilerMakesTheSameObject) {
  if (!installed("g++")) GTEST_SKIP() << "g++ is not installed";
  const ScratchDirectory scratch;
  expect_same(
      "cd " + quoted(scratch.path()) +
      " && printf '#include <map>\\n#include <string>\\n#include <cstdio>\\nint main() { std::map<int, std::string> m; "
      "for (int i = 0; i < 9; ++i) m[i] = std::to_string(i); std::puts(m[7].c_str()); }' >a.cpp && "
      "g++ -O2 -std=c++20 -c a.cpp -o a.o && cksum <a.o && g++ a.o -o a && ./a");
}

TEST(Preload, Git) {
  if (!installed("git")) GTEST_SKIP() << "git is not installed";
  const ScratchDirectory scratch;
  expect_same(
      "cd " + quoted(scratch.path()) +
      " && rm -rf r && mkdir r && cd r && git -c init.defaultBranch=main init -q . && seq 20000 >f && git add f && "
      "GIT_AUTHOR_DATE='2026-01-01T00:00:00Z' GIT_COMMITTER_DATE='2026-01-01T00:00:00Z' "
      "git -c user.name=n -c user.email=e -c gc.auto=0 commit -q -m m && git log --stat --format=%H && git fsck && git "
      "gc -q");
}

}  // namespace
