// One self-contained HTML page about a run: summary, plots over time as inline SVG, a table of kernels. Needs no network,
// no script and no other file; readable in light and dark. Pure functions; any thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "manager/series.h"
#include "manager/stats_json.h"

namespace ferry::manager {

struct Report {
  std::string title;    ///< what ran; may hold anything
  std::string machine;  ///< one line: the modelled machine and the host
  StatsDocument document;
  std::vector<Sample> samples;  ///< Series::samples
  std::uint64_t start_ns = 0;   ///< Series::start_ns
};

/// "Linux 6.18.0 x86_64, 4 CPUs, 23.4 GiB memory".
[[nodiscard]] std::string host_line();

[[nodiscard]] std::string report_html(const Report& report);

/// ERRORS: no_space, io_error (sys_errno says why).
Status write_report(const std::string& path, const Report& report);

}  // namespace ferry::manager
