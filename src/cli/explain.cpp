#include "cli/explain.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/types.h"
#include "cli/admin.h"
#include "cli/exit_code.h"
#include "core/action.h"
#include "manager/plot.h"

namespace ferry::cli {
namespace {

constexpr int ask_ms = 5000;
// One question a page: more than this is a question for --stats.
constexpr std::uint64_t pages_max = 16384;

std::optional<std::uint64_t> number(std::string_view text, int base) {
  if (base == 16 && (text.starts_with("0x") || text.starts_with("0X"))) text.remove_prefix(2);
  std::uint64_t value = 0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (text.empty() || code != std::errc() || end != text.data() + text.size()) return {};
  return value;
}

std::optional<std::uint64_t> address_of(const std::string& text) {
  const bool hexadecimal = text.starts_with("0x") || text.starts_with("0X");
  return number(text, hexadecimal ? 16 : 10);
}

const char* cause_sentence(core::Cause cause) {
  switch (cause) {
    case core::Cause::none: return "for no recorded reason";
    case core::Cause::device_fault: return "because a device touched it";
    case core::Cause::cpu_fault: return "because a CPU thread touched it";
    case core::Cause::prefetch: return "because the application prefetched it";
    case core::Cause::speculation: return "ahead of a device that was reading in order";
    case core::Cause::evict: return "because its VRAM was needed for other pages (evicted)";
    case core::Cause::contention: return "because CPU and device kept taking it from each other";
    case core::Cause::freed: return "because it was freed";
    case core::Cause::client_gone: return "because the application ended";
    case core::Cause::device_gone: return "because the device was lost";
    case core::Cause::pressure: return "because system memory was needed for others";
    case core::Cause::preempted: return "because others needed the compute units";
    case core::Cause::change: return "because the application changed its address space";
    case core::Cause::invalidated: return "because memory of a device without retry faults was taken";
  }
  return "for a reason unknown to this version";
}

core::Cause cause_of(std::uint8_t value) {
  return value < core::cause_count ? static_cast<core::Cause>(value) : core::Cause::none;
}

std::string mapped_by(const wire::PageResidency& page) {
  std::string out;
  if (page.cpu_may_map != 0) out = "CPU threads";
  for (unsigned device = 0; device < max_devices; ++device) {
    if (((page.device_mapped >> device) & 1U) == 0) continue;
    out += (out.empty() ? "device " : ", device ") + std::to_string(device) +
           (((page.device_writable >> device) & 1U) != 0 ? " (may write)" : " (read only)");
  }
  return out.empty() ? "nobody; the next touch faults" : out;
}

struct Target {
  std::string socket;
  std::uint64_t window_base = default_window_base;
  std::uint64_t window_bytes = default_window_bytes;
};

/// 0, or the exit code after saying why.
int find_manager(const ExplainOptions& options, Target& target) {
  errno = 0;
  std::ifstream file("/proc/" + std::to_string(options.pid) + "/environ");
  std::ostringstream text;
  text << file.rdbuf();
  const std::string block = text.str();
  if (!file.is_open()) {
    if (errno == ENOENT) {
      std::fprintf(stderr, "ferry explain: no process %u\n", options.pid);
      return exit_failed;
    }
    if (!options.socket) {
      std::fprintf(stderr,
                   "ferry explain: cannot read the environment of process %u (%s); name the manager: --socket PATH\n",
                   options.pid, std::strerror(errno));
      return exit_no_manager;
    }
  }
  if (const auto base = environment_value(block, "FERRY_WINDOW_BASE")) {
    target.window_base = number(*base, 16).value_or(target.window_base);
  }
  if (const auto bytes = environment_value(block, "FERRY_WINDOW_BYTES")) {
    target.window_bytes = number(*bytes, 16).value_or(target.window_bytes);
  }
  if (options.socket) {
    target.socket = *options.socket;
    return exit_ok;
  }
  if (const auto socket = environment_value(block, "FERRY_SOCKET")) {
    target.socket = *socket;
    return exit_ok;
  }
  std::fprintf(stderr,
               "ferry explain: process %u has no FERRY_SOCKET in its environment: it uses no device, or has a private "
               "manager that only it can ask; start it with: ferry run -- PROGRAM\n",
               options.pid);
  return exit_no_manager;
}

struct Run {
  std::uint64_t address;
  std::uint64_t count_pages;
  wire::PageResidency page;
};

void print_json(const std::vector<Run>& runs) {
  auto out = nlohmann::ordered_json::array();
  for (const Run& run : runs) {
    const wire::PageResidency& p = run.page;
    char address[32];
    std::snprintf(address, sizeof address, "0x%" PRIx64, run.address);
    out.push_back(
        {{"address", address},
         {"pages", run.count_pages},
         {"allocated", p.allocated != 0},
         {"system_current", p.system_current != 0},
         {"vram_device",
          p.vram_device < max_devices ? nlohmann::ordered_json(p.vram_device) : nlohmann::ordered_json(nullptr)},
         {"dirty", p.dirty != 0},
         {"copies", p.copies},
         {"cpu_may_map", p.cpu_may_map != 0},
         {"device_mapped", p.device_mapped},
         {"device_writable", p.device_writable},
         {"moving", p.moving != 0},
         {"contended", p.contended != 0},
         {"cause", core::to_string(cause_of(p.cause))},
         {"last_move_age_ns", p.last_move_age_ns == ~std::uint64_t{0} ? nlohmann::ordered_json(nullptr)
                                                                      : nlohmann::ordered_json(p.last_move_age_ns)}});
  }
  std::printf("%s\n", out.dump(1).c_str());
}

}  // namespace

std::optional<std::string> environment_value(const std::string& block, const std::string& name) {
  for (std::size_t at = 0; at < block.size();) {
    const std::size_t end = std::min(block.find('\0', at), block.size());
    if (block.compare(at, name.size(), name) == 0 && at + name.size() < end && block[at + name.size()] == '=') {
      return block.substr(at + name.size() + 1, end - at - name.size() - 1);
    }
    at = end + 1;
  }
  return {};
}

bool alike(const wire::PageResidency& a, const wire::PageResidency& b) {
  wire::PageResidency x = a;
  wire::PageResidency y = b;
  x.last_move_age_ns = y.last_move_age_ns = 0;
  return std::memcmp(&x, &y, sizeof x) == 0;
}

std::string describe(const wire::PageResidency& page, std::uint64_t count_pages) {
  if (page.allocated == 0) return "  not allocated";
  const bool many = count_pages != 1;
  std::string out = "  lies in ";
  if (page.vram_device < max_devices) {
    out += "VRAM of device " + std::to_string(page.vram_device);
    if (page.system_current != 0) {
      out += ", and in system memory: the copies are equal";
    } else if (page.dirty != 0) {
      out += ", the only current copy";
    }
  } else {
    out += page.system_current != 0 ? "system memory" : "system memory, never written (reads as zeros)";
  }
  for (unsigned device = 0; device < max_devices; ++device) {
    if (((page.copies >> device) & 1U) != 0) out += "; device " + std::to_string(device) + " has a copy of its own";
  }
  if (page.moving != 0) out += "; moving right now";
  if (page.contended != 0) out += "; held in system memory for a while, because CPU and device both want it";
  out += "\n  mapped by " + mapped_by(page);
  if (page.last_move_age_ns == ~std::uint64_t{0}) {
    out += "\n  never moved";
  } else {
    out += std::string("\n  last moved ") + manager::format_duration(page.last_move_age_ns) + " ago" +
           (many ? " (the first of them) " : " ") + cause_sentence(cause_of(page.cause));
  }
  return out;
}

int explain(const ExplainOptions& options) {
  const auto address = address_of(options.address);
  if (!address) {
    std::fprintf(stderr,
                 "ferry explain: '%s' is not an address: write it as a debugger prints it, such as 0x200000001000\n",
                 options.address.c_str());
    return exit_usage;
  }
  Target target;
  if (const int code = find_manager(options, target); code != exit_ok) return code;
  const Window window{target.window_base, target.window_bytes};
  const bool inside = window.contains(*address);
  // The window's pages are numbered apart from those outside: a span covers one kind only.
  const std::uint64_t end = inside                   ? window.base + window.bytes
                            : *address < window.base ? window.base
                                                     : std::max(user_address_end, *address + 1);
  const std::uint64_t last = std::min(*address + std::max<std::uint64_t>(options.bytes, 1) - 1, end - 1);
  const std::uint64_t first_page = window.page_of_address(*address);
  const std::uint64_t count = window.page_of_address(last) - first_page + 1;
  if (last < *address || count > pages_max) {
    std::fprintf(stderr, "ferry explain: --bytes covers too many pages: at most %" PRIu64 " at a time\n", pages_max);
    return exit_usage;
  }

  uid_t owner = 0;
  auto admin = Admin::connect(target.socket, &owner);
  if (!admin) {
    if (admin.status().code == Code::not_permitted) {
      std::fprintf(stderr, "ferry explain: %s belongs to user %u: run as that user\n", target.socket.c_str(), owner);
    } else {
      std::fprintf(stderr,
                   "ferry explain: no manager at %s: %s; has it ended, or did the program not use a device yet?\n",
                   target.socket.c_str(), std::strerror(admin.status().sys_errno));
    }
    return exit_no_manager;
  }
  std::vector<Run> runs;
  for (std::uint64_t page = first_page; page < first_page + count; ++page) {
    const auto answer = admin.value().explain(options.pid, page, ask_ms);
    wire::PageResidency residency{};
    residency.vram_device = no_device;
    residency.last_move_age_ns = ~std::uint64_t{0};
    if (answer) {
      residency = answer.value();
    } else if (answer.status().code == Code::client_gone) {
      std::fprintf(stderr, "ferry explain: the manager at %s has no application %u: has it opened a context yet?\n",
                   target.socket.c_str(), options.pid);
      return exit_failed;
    } else if (answer.status().code != Code::not_allocated && answer.status().code != Code::bad_range) {
      std::fprintf(stderr, "ferry explain: the manager at %s: %s%s\n", target.socket.c_str(),
                   to_string(answer.status().code),
                   answer.status().code == Code::bad_version ? "; use the ferry that came with it" : "");
      return exit_no_manager;
    }
    if (!runs.empty() && alike(runs.back().page, residency)) {
      ++runs.back().count_pages;
    } else {
      runs.push_back({window.address_of_page(page), 1, residency});
    }
  }
  bool any = false;
  for (const Run& run : runs) any = any || run.page.allocated != 0;
  if (!any && !inside && !options.json) {
    std::printf("0x%" PRIx64 ": not managed: outside the window of managed memory (0x%" PRIx64 " to 0x%" PRIx64
                "), and not adopted\n",
                *address, window.base, window.base + window.bytes);
  } else if (options.json) {
    print_json(runs);
  } else {
    for (const Run& run : runs) {
      std::printf("0x%" PRIx64 ", %" PRIu64 " page%s (%s)\n%s\n", run.address, run.count_pages,
                  run.count_pages == 1 ? "" : "s", run.count_pages == 1 ? "4 KiB" : "4 KiB each",
                  describe(run.page, run.count_pages).c_str());
    }
  }
  return any ? exit_ok : exit_failed;
}

}  // namespace ferry::cli
