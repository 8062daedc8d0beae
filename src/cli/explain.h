// ferry explain: where the pages behind a pointer of another process lie, who maps them, and why they last moved.
// Asks the manager of that process; reads nothing of the process but its environment.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "wire/message.h"

namespace ferry::cli {

struct ExplainOptions {
  std::uint32_t pid = 0;
  std::string address;                ///< hexadecimal with 0x, or decimal
  std::uint64_t bytes = 1;            ///< every page that holds one of them
  std::optional<std::string> socket;  ///< else FERRY_SOCKET of the process, else of this one
  bool json = false;
};

/// Exit code of the process.
int explain(const ExplainOptions& options);

/// Sentences about one page or about `count_pages` alike. No end of line at the end.
[[nodiscard]] std::string describe(const wire::PageResidency& page, std::uint64_t count_pages);

/// Same in everything that describe() tells, but for the age of the last move.
[[nodiscard]] bool alike(const wire::PageResidency& a, const wire::PageResidency& b);

/// The value of a name in a block as /proc/PID/environ has it.
[[nodiscard]] std::optional<std::string> environment_value(const std::string& block, const std::string& name);

}  // namespace ferry::cli
