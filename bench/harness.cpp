#include "harness.h"

#include <fmt/format.h>
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <stdexcept>

namespace ferry::bench {

namespace {

using Json = nlohmann::ordered_json;

Json figure(const std::optional<double>& value) { return value ? Json(*value) : Json(nullptr); }

std::optional<double> figure(const Json& value) {
  if (value.is_null()) return std::nullopt;
  return value.get<double>();
}

std::string shown(const std::optional<double>& value) {
  if (!value) return "-";
  return *value >= 1000 ? fmt::format("{:.0f}", *value) : fmt::format("{:.4g}", *value);
}

}  // namespace

bool Row::meets() const {
  if (!ratio) return false;
  return bound == Bound::at_most ? *ratio <= target : *ratio >= target;
}

double median(std::vector<double> samples) {
  if (samples.empty()) throw std::invalid_argument("median of no samples");
  std::sort(samples.begin(), samples.end());
  const std::size_t middle = samples.size() / 2;
  if (samples.size() % 2 == 1) return samples[middle];
  return (samples[middle - 1] + samples[middle]) / 2;
}

Pair sample_in_turn(const Settings& settings, std::string_view name, const std::function<double()>& ferry,
                    const std::function<double()>& floor) {
  std::vector<double> ferry_samples;
  std::vector<double> floor_samples;
  for (int round = -1; round < settings.repeat; ++round) {
    const double ferry_sample = ferry();
    const double floor_sample = floor();
    if (settings.verbose) {
      fmt::print(stderr, "{}: {} ferry {:.4g} floor {:.4g}\n", name, round < 0 ? "warm-up" : "sample", ferry_sample,
                 floor_sample);
    }
    if (round < 0) continue;
    ferry_samples.push_back(ferry_sample);
    floor_samples.push_back(floor_sample);
  }
  return {.ferry = median(std::move(ferry_samples)), .floor = median(std::move(floor_samples))};
}

Row make_row(Row expected, double ferry, double floor) {
  expected.ferry = ferry;
  expected.floor = floor;
  if (floor > 0) expected.ratio = ferry / floor;
  return expected;
}

std::string to_json(const std::vector<Row>& rows) {
  Json array = Json::array();
  for (const Row& row : rows) {
    array.push_back(Json{{"name", row.name},
                         {"ferry", figure(row.ferry)},
                         {"floor", figure(row.floor)},
                         {"ratio", figure(row.ratio)},
                         {"target", row.target},
                         {"meets", row.meets()},
                         {"unit", row.unit}});
  }
  return array.dump(2);
}

std::string to_wire(const std::vector<Row>& rows) {
  Json array = Json::array();
  for (const Row& row : rows) {
    array.push_back(Json{{"name", row.name},
                         {"ferry", figure(row.ferry)},
                         {"floor", figure(row.floor)},
                         {"ratio", figure(row.ratio)},
                         {"target", row.target},
                         {"at_most", row.bound == Bound::at_most},
                         {"unit", row.unit},
                         {"note", row.note}});
  }
  return array.dump();
}

std::vector<Row> from_wire(std::string_view text) {
  std::vector<Row> rows;
  for (const Json& entry : Json::parse(text)) {
    Row row;
    row.name = entry.at("name").get<std::string>();
    row.ferry = figure(entry.at("ferry"));
    row.floor = figure(entry.at("floor"));
    row.ratio = figure(entry.at("ratio"));
    row.target = entry.at("target").get<double>();
    row.bound = entry.at("at_most").get<bool>() ? Bound::at_most : Bound::at_least;
    row.unit = entry.at("unit").get<std::string>();
    row.note = entry.at("note").get<std::string>();
    rows.push_back(std::move(row));
  }
  return rows;
}

std::string to_table(const std::vector<Row>& rows) {
  std::size_t width = 4;
  for (const Row& row : rows) width = std::max(width, row.name.size());
  std::string out = fmt::format("{:<{}}  {:>9}  {:>9}  {:>7}  {:>8}  {:<6}  {}\n", "name", width, "ferry", "floor",
                                "ratio", "target", "", "unit");
  for (const Row& row : rows) {
    const std::string target = fmt::format("{} {:.3g}", row.bound == Bound::at_most ? "<=" : ">=", row.target);
    const std::string ratio = row.ratio ? fmt::format("{:.3f}", *row.ratio) : "-";
    out += fmt::format("{:<{}}  {:>9}  {:>9}  {:>7}  {:>8}  {:<6}  {}\n", row.name, width, shown(row.ferry),
                       shown(row.floor), ratio, target, row.meets() ? "meets" : "MISSED", row.unit);
    if (!row.note.empty()) out += fmt::format("{:<{}}    {}\n", "", width, row.note);
  }
  return out;
}

std::uint64_t now_ns() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000U + static_cast<std::uint64_t>(now.tv_nsec);
}

}  // namespace ferry::bench
