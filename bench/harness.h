// The frame every row of ferry-bench runs in: what a row is, how samples become one figure, how rows are printed.
// Owns no measurement of its own. Everything here runs on the main thread of ferry-bench.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "machine.h"

namespace ferry::bench {

/// Which side of the target is good.
enum class Bound {
  at_most,   ///< times and bytes: ferry / floor may not exceed the target
  at_least,  ///< rates: ferry / floor may not fall below the target
};

/// One line of the result. `ferry` and `floor` carry `unit`; `ratio` and `target` have none.
/// A side that could not be measured is empty; such a row never meets its target and `note` says why.
struct Row {
  std::string name = {};
  std::optional<double> ferry = std::nullopt;
  std::optional<double> floor = std::nullopt;
  std::optional<double> ratio = std::nullopt;
  double target = 0;
  Bound bound = Bound::at_most;
  std::string unit = {};
  std::string note = {};  ///< for the table only: what a reader must know to read this row

  [[nodiscard]] bool meets() const;
};

/// What the command line asked for, as a row sees it.
struct Settings {
  int repeat = 7;                         ///< samples of each side; the row's figure is their median
  std::size_t copy_bytes = 512UL << 20U;  ///< size of each of the two memory files of the copy floor
  bool verbose = false;                   ///< print every sample to stderr
};

/// A named measurement. `run` may return several rows and throws std::exception if it cannot measure.
struct Bench {
  std::string name = {};
  std::string about = {};
  std::function<std::vector<Row>(const Settings&)> run = {};
  std::optional<Machine> machine = std::nullopt;  ///< what its manager models; empty: it needs no manager
  std::vector<Row> expected = {};  ///< the rows it owes, without figures: printed as missed when it fails
};

/// Middle value; mean of the two middle ones for an even count. Empty input is a bug and throws.
[[nodiscard]] double median(std::vector<double> samples);

/// Takes `repeat` samples of each side in turn (ferry, floor, ferry, floor ...), so that a machine that slows down
/// for a while slows both. One uncounted sample of each comes first. Each sampler returns one figure.
struct Pair {
  double ferry = 0;
  double floor = 0;
};
[[nodiscard]] Pair sample_in_turn(const Settings& settings, std::string_view name, const std::function<double()>& ferry,
                                  const std::function<double()>& floor);

/// Fills in `ratio` = ferry / floor from the two figures.
[[nodiscard]] Row make_row(Row expected, double ferry, double floor);

/// The published form: an array of {"name","ferry","floor","ratio","target","meets","unit"}.
[[nodiscard]] std::string to_json(const std::vector<Row>& rows);
[[nodiscard]] std::string to_table(const std::vector<Row>& rows);

/// What a row's own process hands to the process that prints: everything in Row, nothing rounded.
/// from_wire throws nlohmann's exceptions on text that to_wire did not write.
[[nodiscard]] std::string to_wire(const std::vector<Row>& rows);
[[nodiscard]] std::vector<Row> from_wire(std::string_view text);

/// CLOCK_MONOTONIC.
[[nodiscard]] std::uint64_t now_ns();

}  // namespace ferry::bench
