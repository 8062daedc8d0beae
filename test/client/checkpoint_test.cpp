// A checkpoint is saved by one process and restored by another; damaged files restore nothing.
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <filesystem>
#include <string>

namespace {

struct Ran {
  int code = -1;
  std::string output;
};

Ran run(const std::string& arguments) {
  const auto program = std::filesystem::read_symlink("/proc/self/exe").parent_path() / "checkpoint_program";
  Ran ran;
  FILE* pipe = popen((program.string() + " " + arguments + " 2>&1").c_str(), "r");
  if (pipe == nullptr) return ran;
  std::array<char, 4096> bytes;
  for (std::size_t got = 0; (got = fread(bytes.data(), 1, bytes.size(), pipe)) > 0;)
    ran.output.append(bytes.data(), got);
  const int status = pclose(pipe);
  ran.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return ran;
}

class Checkpoint : public ::testing::Test {
 protected:
  void SetUp() override {
    char path[] = "/tmp/ferry-checkpoint-XXXXXX";
    const int fd = mkstemp(path);
    ASSERT_GE(fd, 0);
    close(fd);
    path_ = path;
    const Ran saved = run("save " + path_);
    ASSERT_EQ(saved.code, 0) << saved.output;
    root_ = saved.output.substr(0, saved.output.find('\n'));
  }
  void TearDown() override { std::filesystem::remove(path_); }

  std::string path_;
  std::string root_;
};

TEST_F(Checkpoint, is_restored_in_another_process) {
  for (int i = 0; i < 2; ++i) {
    const Ran restored = run("restore " + path_ + " " + root_);
    EXPECT_EQ(restored.code, 0) << restored.output;
  }
}

TEST_F(Checkpoint, zeros_and_what_is_not_allocated_take_no_room) {
  // The array does not compress; beside it there are 64 pages, most of them zeros, and 500 small things.
  EXPECT_LT(std::filesystem::file_size(path_), (3U << 19) + (200U << 10));
  EXPECT_GT(std::filesystem::file_size(path_), 1U << 14);
}

TEST_F(Checkpoint, damaged_files_restore_nothing) {
  const Ran ran = run("mutate " + path_ + " " + root_ + " 3000");
  EXPECT_EQ(ran.code, 0) << ran.output;
}

}  // namespace
