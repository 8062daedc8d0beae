// The body of the command: exit codes, tables, JSON, files that it writes.
#include "check/check_main.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

namespace ferry::check {
namespace {
namespace fs = std::filesystem;

std::string read(const fs::path& path) {
  std::ifstream in(path);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

class Main : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "ferry-check-XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
    options_.folder = std::string(FERRY_TEST_SOURCE_DIR) + "/scenarios";
    options_.jobs = 2;
  }
  void TearDown() override { fs::remove_all(folder_); }
  int run() {
    testing::internal::CaptureStdout();
    testing::internal::CaptureStderr();
    const int status = check_main(options_);
    out_ = testing::internal::GetCapturedStdout();
    error_ = testing::internal::GetCapturedStderr();
    return status;
  }

  fs::path folder_;
  CheckOptions options_;
  std::string out_;
  std::string error_;
};

TEST_F(Main, AHangIsDrawnAndAsExpected) {
  options_.scenarios = {"shared"};
  options_.policy = "none";
  options_.hardware = "units=1,preempts=no";
  EXPECT_EQ(run(), 0) << out_ << error_;
  EXPECT_NE(out_.find("all as expected"), std::string::npos);
  EXPECT_NE(out_.find("is held by"), std::string::npos);
}

TEST_F(Main, WhatIsSavedCanBeReplayed) {
  options_.scenarios = {"shared"};
  options_.policy = "none";
  options_.hardware = "units=1,preempts=no";
  options_.save = (folder_ / "saved").string();
  options_.html = (folder_ / "first.html").string();
  ASSERT_EQ(run(), 0) << out_ << error_;
  const fs::path base = folder_ / "saved" / "shared-none-units=1,preempts=no";
  EXPECT_NE(read(base.string() + ".html").find("</svg>"), std::string::npos);
  EXPECT_NE(read(folder_ / "first.html").find("</svg>"), std::string::npos);
  const std::string drawn = read(base.string() + ".txt");
  options_ = {};
  options_.replay = base.string() + ".replay";
  EXPECT_EQ(run(), 1);
  // But for the line that says how to come here.
  EXPECT_EQ(drawn.substr(0, out_.size()), out_);
}

TEST_F(Main, JsonSaysTheSame) {
  options_.scenarios = {"shared", "engines"};
  options_.json = true;
  EXPECT_EQ(run(), 0) << out_ << error_;
  const auto json = nlohmann::json::parse(out_);
  EXPECT_EQ(json.at("total").at("unexpected"), 0);
  EXPECT_EQ(json.at("total").at("cases"), json.at("cases").size());
  bool hang = false;
  for (const auto& one : json.at("cases")) {
    EXPECT_TRUE(one.at("exhaustive").get<bool>());
    hang = hang || (one.at("scenario") == "shared" && one.at("policy") == "none" && one.at("verdict") == "deadlock");
  }
  EXPECT_TRUE(hang);
}

TEST_F(Main, AUsersScenarioThatHangsFails) {
  std::ofstream(folder_ / "mine.scn") << "device 0 units 1\nclient app\nthread t0 : app\n  lock a\n  lock b\n"
                                         "thread t1 : app\n  lock b\n  lock a\n";
  options_.scenarios = {(folder_ / "mine.scn").string()};
  options_.policy = "query";
  EXPECT_EQ(run(), 1);
  EXPECT_NE(out_.find("!deadlock"), std::string::npos) << out_;
}

TEST_F(Main, MistakesAreTold) {
  const auto fails = [this](const char* word) {
    EXPECT_EQ(run(), 2) << word;
    EXPECT_NE(error_.find(word), std::string::npos) << error_;
  };
  fails("which scenario");
  options_.scenarios = {"nothing"};
  fails("no scenario is called 'nothing'");
  options_.scenarios = {"shared"};
  options_.policy = "hope";
  fails("no policy is called 'hope'");
  options_.policy = "none";
  options_.hardware = "units=many";
  fails("units=many");
  options_.hardware.clear();
  options_.bug = "moth";
  fails("no planted bug is called 'moth'");
  options_.bug.clear();
  options_.replay = (folder_ / "none").string();
  fails("cannot be read");
  std::ofstream(folder_ / "bad.replay") << "ferry check replay 1\nwhat is this\n";
  options_.replay = (folder_ / "bad.replay").string();
  fails("not understood");
}

TEST_F(Main, TheListNamesEachWithItsTitle) {
  options_.list = true;
  EXPECT_EQ(run(), 0);
  EXPECT_NE(out_.find("shared "), std::string::npos);
  EXPECT_NE(out_.find("p2p_explicit "), std::string::npos);
}

}  // namespace
}  // namespace ferry::check
