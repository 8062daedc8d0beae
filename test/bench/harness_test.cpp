// What ferry-bench makes of its samples, and the form in which it prints them.
#include "harness.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <stdexcept>
#include <vector>

namespace ferry::bench {
namespace {

Row time_row() { return {.name = "fault", .target = 1.5, .bound = Bound::at_most, .unit = "us"}; }
Row rate_row() { return {.name = "rate", .target = 0.8, .bound = Bound::at_least, .unit = "GB/s"}; }

TEST(Median, IsTheMiddleOrTheMeanOfTheTwoMiddleOnes) {
  EXPECT_DOUBLE_EQ(median({9, 1, 5}), 5);
  EXPECT_DOUBLE_EQ(median({100, 1, 3, 2}), 2.5);
  EXPECT_THROW((void)median({}), std::invalid_argument);
}

TEST(SampleInTurn, LeavesTheWarmUpOutAndAlternates) {
  Settings settings;
  settings.repeat = 3;
  std::vector<char> calls;
  double next = 1000;  // the warm-up's figure: it would move the median if it counted
  const Pair pair = sample_in_turn(
      settings, "row",
      [&] {
        calls.push_back('f');
        const double sample = next;
        next = next == 1000 ? 1 : next + 1;
        return sample;
      },
      [&] {
        calls.push_back('b');
        return 4.0;
      });
  EXPECT_DOUBLE_EQ(pair.ferry, 2);
  EXPECT_DOUBLE_EQ(pair.floor, 4);
  EXPECT_EQ(calls, (std::vector<char>{'f', 'b', 'f', 'b', 'f', 'b', 'f', 'b'}));
}

TEST(Row, ATimeMeetsItsTargetFromBelowAndARateFromAbove) {
  EXPECT_TRUE(make_row(time_row(), 3.0, 2.0).meets());
  EXPECT_FALSE(make_row(time_row(), 3.1, 2.0).meets());
  EXPECT_TRUE(make_row(rate_row(), 8.0, 10.0).meets());
  EXPECT_FALSE(make_row(rate_row(), 7.9, 10.0).meets());
}

TEST(Row, WhatWasNotMeasuredDoesNotMeetItsTarget) {
  EXPECT_FALSE(time_row().meets());
  EXPECT_FALSE(make_row(time_row(), 3.0, 0.0).meets());
}

TEST(Json, IsOneArrayOfTheSevenFields) {
  const auto parsed = nlohmann::ordered_json::parse(to_json({make_row(time_row(), 3.0, 2.0), rate_row()}));
  ASSERT_TRUE(parsed.is_array());
  ASSERT_EQ(parsed.size(), 2U);
  std::vector<std::string> fields;
  for (const auto& [field, value] : parsed[0].items()) fields.push_back(field);
  EXPECT_EQ(fields, (std::vector<std::string>{"name", "ferry", "floor", "ratio", "target", "meets", "unit"}));
  EXPECT_EQ(parsed[0]["name"], "fault");
  EXPECT_EQ(parsed[0]["ratio"], 1.5);
  EXPECT_EQ(parsed[0]["meets"], true);
  EXPECT_TRUE(parsed[1]["ferry"].is_null());
  EXPECT_EQ(parsed[1]["meets"], false);
}

TEST(Wire, CarriesARowWhole) {
  Row row = make_row(rate_row(), 0.1, 0.3);
  row.note = "why";
  const std::vector<Row> back = from_wire(to_wire({row, time_row()}));
  ASSERT_EQ(back.size(), 2U);
  EXPECT_EQ(back[0].name, row.name);
  EXPECT_EQ(back[0].ferry, row.ferry);
  EXPECT_EQ(back[0].ratio, row.ratio);
  EXPECT_EQ(back[0].bound, Bound::at_least);
  EXPECT_EQ(back[0].note, "why");
  EXPECT_FALSE(back[1].ferry.has_value());
}

TEST(Table, SaysMissedInWords) {
  EXPECT_NE(to_table({make_row(time_row(), 9.0, 2.0)}).find("MISSED"), std::string::npos);
  EXPECT_EQ(to_table({make_row(time_row(), 2.0, 2.0)}).find("MISSED"), std::string::npos);
}

}  // namespace
}  // namespace ferry::bench
