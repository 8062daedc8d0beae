// What a scenario says once it has been read: verdicts by name, the sweep over hardware, what is expected.
#include "check/scenario.h"

#include <algorithm>
#include <charconv>

namespace ferry::check {

const char* to_string(Verdict verdict) {
  switch (verdict) {
    case Verdict::clean: return "clean";
    case Verdict::refused: return "refused";
    case Verdict::late: return "late";
    case Verdict::lost_wakeup: return "lost-wakeup";
    case Verdict::livelock: return "livelock";
    case Verdict::deadlock: return "deadlock";
    case Verdict::broken_rule: return "broken-rule";
    case Verdict::violation: return "violation";
    case Verdict::wrong_bytes: return "wrong-bytes";
    case Verdict::crash: return "crash";
  }
  return "unknown";
}

std::optional<Verdict> parse_verdict(std::string_view word) {
  for (unsigned i = 0; i < verdict_count; ++i) {
    const auto verdict = static_cast<Verdict>(i);
    if (word == to_string(verdict)) return verdict;
  }
  return {};
}

std::optional<core::Policy> parse_policy(std::string_view word) {
  std::string name(word);
  std::replace(name.begin(), name.end(), '_', '-');
  for (unsigned i = 0; i < core::policy_count; ++i) {
    const auto policy = static_cast<core::Policy>(i);
    if (name == core::to_string(policy)) return policy;
  }
  return {};
}

std::optional<core::PlantedBug> parse_bug(std::string_view word) {
  for (unsigned i = 0; i < 256; ++i) {
    const auto bug = static_cast<core::PlantedBug>(i);
    const std::string_view name = core::to_string(bug);
    if (name == "unknown") break;
    if (name == word) return bug;
  }
  return {};
}

std::string Hardware::text() const {
  std::string out;
  const auto add = [&out](const std::string& part) { out += (out.empty() ? "" : ",") + part; };
  if (units != 0) add("units=" + std::to_string(units));
  if (preempts) add(std::string("preempts=") + (*preempts ? "yes" : "no"));
  if (retry) add(std::string("retry=") + (*retry ? "yes" : "no"));
  return out.empty() ? "-" : out;
}

std::optional<Hardware> parse_hardware(std::string_view text) {
  Hardware out;
  if (text == "-") return out;
  while (!text.empty()) {
    const auto comma = text.find(',');
    const std::string_view part = text.substr(0, comma);
    text = comma == std::string_view::npos ? std::string_view() : text.substr(comma + 1);
    const auto equal = part.find('=');
    if (equal == std::string_view::npos) return {};
    const std::string_view key = part.substr(0, equal);
    const std::string_view value = part.substr(equal + 1);
    if (key == "units") {
      const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), out.units);
      if (error != std::errc() || end != value.data() + value.size() || out.units < 1 || out.units > 8) return {};
      continue;
    }
    if (value != "yes" && value != "no") return {};
    if (key == "preempts") {
      out.preempts = value == "yes";
    } else if (key == "retry") {
      out.retry = value == "yes";
    } else {
      return {};
    }
  }
  return out;
}

std::vector<Hardware> Scenario::sweep(bool all) const {
  std::vector<unsigned> units = sweep_units;
  std::vector<bool> preempts = sweep_preempts;
  std::vector<bool> retry = sweep_retry;
  const auto open = [this](bool DeviceDef::*fixed) {
    return std::any_of(devices.begin(), devices.end(), [fixed](const DeviceDef& d) { return !(d.*fixed); });
  };
  if (all) {
    if (open(&DeviceDef::fixed_units)) units = {1, 2, 3};
    if (open(&DeviceDef::fixed_preempts)) preempts = {true, false};
    if (open(&DeviceDef::fixed_retry)) retry = {true, false};
  }
  std::vector<Hardware> out{Hardware{}};
  const auto multiply = [&out](auto& values, auto&& set) {
    if (values.empty()) return;
    std::vector<Hardware> next;
    for (const Hardware& h : out) {
      for (const auto value : values) {
        next.push_back(h);
        set(next.back(), value);
      }
    }
    out = std::move(next);
  };
  multiply(units, [](Hardware& h, unsigned v) { h.units = v; });
  multiply(preempts, [](Hardware& h, bool v) { h.preempts = v; });
  multiply(retry, [](Hardware& h, bool v) { h.retry = v; });
  return out;
}

std::vector<Verdict> Scenario::expected(core::Policy policy, const Hardware& hardware) const {
  // What the sweep leaves open is as the first device says.
  const core::DeviceModel first = model(0, policy, hardware);
  std::vector<Verdict> out;
  for (const Expectation& e : expectations) {
    const bool fits = (e.policies.empty() || std::count(e.policies.begin(), e.policies.end(), policy) != 0) &&
                      (!e.units || *e.units == first.cu_count || (e.or_more && *e.units < first.cu_count)) &&
                      (!e.preempts || *e.preempts == first.preempts_while_faulting) &&
                      (!e.retry || *e.retry == first.retry_faults);
    if (fits) out = e.verdicts;
  }
  return out;
}

core::DeviceModel Scenario::model(DeviceId device, core::Policy policy, const Hardware& hardware) const {
  const DeviceDef& def = devices[device];
  core::DeviceModel out = def.model;
  out.policy = def.policy.value_or(policy);
  if (hardware.units != 0 && !def.fixed_units) out.cu_count = hardware.units;
  if (hardware.preempts && !def.fixed_preempts) out.preempts_while_faulting = *hardware.preempts;
  if (hardware.retry && !def.fixed_retry) out.retry_faults = *hardware.retry;
  // A device of one unit has none to reserve: the policy then refuses graphics or starves compute, which is a result.
  out.reserved_cus = std::min(out.reserved_cus, out.cu_count);
  return out;
}

}  // namespace ferry::check
