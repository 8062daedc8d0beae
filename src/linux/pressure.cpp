#include "linux/pressure.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <string_view>

namespace ferry::linux {
namespace {

/// A tenth of a second in two: short stalls happen on every machine. Without privileges the window has to be a
/// multiple of two seconds.
constexpr std::string_view trigger = "some 100000 2000000";

std::string read_text(const std::string& path) {
  const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  std::string out;
  std::array<char, 4096> buffer;
  for (ssize_t n; fd && (n = ::read(fd.get(), buffer.data(), buffer.size())) > 0;) {
    out.append(buffer.data(), static_cast<std::size_t>(n));
  }
  return out;
}

std::uint64_t number(std::string_view text) {
  std::uint64_t value = 0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
  return code == std::errc() && end != text.data() ? value : CgroupMemory::none;
}

/// Calls fn(line) for each line.
template <typename Fn>
void for_lines(std::string_view text, Fn&& fn) {
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    fn(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
}

/// mountinfo writes blanks and the like as \ooo.
std::string unescape(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 3 < text.size()) {
      out += static_cast<char>((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 + (text[i + 3] - '0'));
      i += 3;
    } else {
      out += text[i];
    }
  }
  return out;
}

/// Where the version 2 hierarchy is mounted, and which of its directories is mounted there.
bool find_mount(const std::string& proc, std::string& root, std::string& point) {
  bool found = false;
  for_lines(read_text(proc + "/self/mountinfo"), [&](std::string_view line) {
    const std::size_t dash = line.find(" - ");
    if (found || dash == std::string_view::npos || !line.substr(dash + 3).starts_with("cgroup2 ")) return;
    std::array<std::string_view, 5> field;
    std::string_view rest = line;
    for (std::string_view& f : field) {
      const std::size_t end = std::min(rest.find(' '), rest.size());
      f = rest.substr(0, end);
      rest.remove_prefix(std::min(end + 1, rest.size()));
    }
    root = unescape(field[3]);
    point = unescape(field[4]);
    found = true;
  });
  return found;
}

/// The directory of the own cgroup, or empty with `why`.
std::string find_cgroup(const std::string& proc, std::string& why) {
  std::string path;
  for_lines(read_text(proc + "/self/cgroup"), [&](std::string_view line) {
    if (line.starts_with("0::")) path = line.substr(3);
  });
  std::string root;
  std::string point;
  if (path.empty() || !find_mount(proc, root, point)) {
    why = "no cgroup of version 2";
    return {};
  }
  if (root != "/" && path.starts_with(root)) path.erase(0, root.size());
  std::string directory = point + (path == "/" ? "" : path);
  if (::access((directory + "/memory.current").c_str(), R_OK) != 0) {
    why = directory + " does not count memory (it is the root cgroup, or has no memory controller)";
    return {};
  }
  return directory;
}

Fd open_trigger(const std::string& path, int& error) {
  Fd fd(::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NONBLOCK));
  error = fd ? 0 : errno;
  // The final byte is cut off by the kernel.
  if (fd && ::write(fd.get(), trigger.data(), trigger.size() + 1) < 0) {
    error = errno;
    fd.reset();
  }
  return fd;
}

}  // namespace

Pressure Pressure::open(const std::string& proc) {
  Pressure p;
  p.cgroup_ = find_cgroup(proc, p.cgroup_text_);
  if (p.has_cgroup()) {
    p.cgroup_text_ = p.cgroup_;
    p.events_.reset(::open((p.cgroup_ + "/memory.events").c_str(), O_RDONLY | O_CLOEXEC));
  }
  int error = 0;
  for (const std::string& path :
       {p.has_cgroup() ? p.cgroup_ + "/memory.pressure" : std::string(), proc + "/pressure/memory"}) {
    if (path.empty() || p.stall_) continue;
    p.stall_ = open_trigger(path, error);
    p.stall_text_ = p.stall_ ? path : path + ": " + std::strerror(error);
  }
  return p;
}

CgroupMemory Pressure::read() const {
  CgroupMemory m;
  if (!has_cgroup()) return m;
  m.current_bytes = number(read_text(cgroup_ + "/memory.current"));
  m.high_bytes = number(read_text(cgroup_ + "/memory.high"));
  m.max_bytes = number(read_text(cgroup_ + "/memory.max"));
  // Read through the descriptor that is polled: that is what makes it quiet again.
  std::array<char, 512> buffer;
  const ssize_t n = events_ ? ::pread(events_.get(), buffer.data(), buffer.size(), 0) : 0;
  for_lines({buffer.data(), static_cast<std::size_t>(std::max<ssize_t>(n, 0))}, [&](std::string_view line) {
    if (line.starts_with("high ")) m.high_events = number(line.substr(5));
    if (line.starts_with("max ")) m.max_events = number(line.substr(4));
  });
  return m;
}

std::uint64_t PressureGauge::want(std::uint64_t now_ns, std::uint64_t used_bytes, bool stalled,
                                  const CgroupMemory& cgroup) {
  const std::uint64_t events = cgroup.high_events + cgroup.max_events;
  // What was counted before this program ran is not news.
  heard_ |= stalled || (counted_ && events != events_);
  events_ = events;
  counted_ = true;
  if (asked_ && now_ns - asked_ns_ < rest_ns) return 0;

  // Before the kernel begins to make everybody slow, down to where a little can grow again.
  const std::uint64_t limit = std::min(cgroup.high_bytes, cgroup.max_bytes);
  std::uint64_t bytes = 0;
  if (limit != CgroupMemory::none && cgroup.current_bytes != CgroupMemory::none &&
      cgroup.current_bytes > limit - limit / 16) {
    bytes = cgroup.current_bytes - (limit - limit / 8);
  }
  if (heard_) {
    share_ = asked_ && now_ns - asked_ns_ < calm_ns ? std::max(share_ / 2, share_last) : share_first;
    bytes = std::max(bytes, used_bytes / share_);
  }
  if (bytes == 0) return 0;
  heard_ = false;
  asked_ = true;
  asked_ns_ = now_ns;
  return std::min(bytes, used_bytes);
}

}  // namespace ferry::linux
