#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <iterator>
#include <nlohmann/json.hpp>

#include "program.h"

namespace ferry {
namespace {

using Json = nlohmann::json;

Json check_named(const Json& report, const std::string& name) {
  for (const Json& check : report["checks"]) {
    if (check["name"] == name) return check;
  }
  ADD_FAILURE() << "no check '" << name << "'";
  return {};
}

TEST(Doctor, SaysOfEveryCheckWhatItFoundAndWhatALackCosts) {
  const auto outcome = test::run_ferry({"doctor", "--json"});
  const Json report = Json::parse(outcome.out);
  EXPECT_EQ(outcome.status, report["can_run"] ? 0 : 1);
  bool missing = false;
  for (const Json& check : report["checks"]) {
    const std::string state = check["state"];
    EXPECT_TRUE(state == "ok" || state == "degraded" || state == "missing") << state;
    EXPECT_NE(check["found"], "") << check["name"];
    EXPECT_EQ(check["cost"] == "", state == "ok") << check["name"];
    if (state == "ok") {
      EXPECT_EQ(check["mend"], "") << check["name"];
    }
    missing = missing || state == "missing";
  }
  EXPECT_EQ(report["can_run"], !missing);
  for (const char* name :
       {"kernel", "device faults", "userfaultfd", "faults in calls", "vm.max_map_count", "read-only pages",
        "huge pages", "memory", "CPUs", "wake-up time", "RLIMIT_NOFILE", "store file", "io_uring", "memory pressure"}) {
    check_named(report, name);
  }
}

TEST(Doctor, ReadsForPeople) {
  const auto outcome = test::run_ferry({"doctor"});
  EXPECT_NE(outcome.out.find("kernel"), std::string::npos);
  EXPECT_NE(outcome.out.find(outcome.status == 0 ? "Ferry runs here" : "Ferry cannot run here"), std::string::npos);
  EXPECT_EQ(outcome.out.find('\033'), std::string::npos) << "no colours into a pipe";
}

TEST(Doctor, SaysWhatAForbiddenIoUringCosts) {
  const auto outcome = test::run({.arguments = {test::ferry_program(), "doctor", "--json"}, .before_exec = [] {
                                    sock_filter code[] = {
                                        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
                                        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
                                        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
                                        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
                                    };
                                    const sock_fprog program{static_cast<unsigned short>(std::size(code)), code};
                                    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
                                    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
                                  }});
  const Json check = check_named(Json::parse(outcome.out), "io_uring");
  EXPECT_EQ(check["state"], "degraded");
  EXPECT_NE(std::string(check["found"]).find("Operation not permitted"), std::string::npos) << check;
  EXPECT_NE(check["mend"], "");
}

TEST(Doctor, FindsALimitThatIsTooSmall) {
  const auto outcome = test::run({.arguments = {test::ferry_program(), "doctor", "--json"}, .before_exec = [] {
                                    rlimit limit{1 << 20, 1 << 20};
                                    setrlimit(RLIMIT_FSIZE, &limit);
                                    limit = {64, 64};
                                    setrlimit(RLIMIT_NOFILE, &limit);
                                  }});
  EXPECT_EQ(outcome.status, 1);
  const Json report = Json::parse(outcome.out);
  EXPECT_FALSE(report["can_run"]);
  EXPECT_EQ(check_named(report, "RLIMIT_FSIZE")["state"], "missing");
  EXPECT_EQ(check_named(report, "RLIMIT_FSIZE")["mend"], "ulimit -f unlimited");
  EXPECT_EQ(check_named(report, "RLIMIT_NOFILE")["state"], "degraded");
}

}  // namespace
}  // namespace ferry
