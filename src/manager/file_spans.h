// Which files of an application its devices have mapped, and where (docs/design/0022-files.md). The files themselves are
// unknown here: the application sends them to its devices. Plain state; what is done with it is in executor/files.cpp.
// Main thread only.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "base/types.h"

namespace ferry::manager {

/// A part of one file in one device. Spans of one device never overlap.
struct FileSpan {
  enum class State : std::uint8_t {
    mapping,   ///< the device was told to
    mapped,    ///< it has
    revoking,  ///< it was told to let go
  };
  std::uint64_t epoch = 0;  ///< its number, never used again
  DeviceId device = no_device;
  PageSpan pages;  ///< counted in DevicePeer::file_pages: from before the device can reach them until it cannot
  Page asked = 0;  ///< for which it was made
  State state = State::mapping;
  bool writable = false;
  bool leaving = false;  ///< to be taken away, at once or when it is mapped
};

class FileSpans {
 public:
  /// What an application may have at once: each is a mapping in its device, of which the kernel allows some 65,000.
  static constexpr std::size_t count_max = 16384;

  [[nodiscard]] bool empty() const { return spans_.empty(); }
  [[nodiscard]] bool full() const { return spans_.size() >= count_max; }
  FileSpan& add(const FileSpan& span) {
    spans_.push_back(span);
    spans_.back().epoch = ++last_epoch_;
    return spans_.back();
  }
  void remove(std::uint64_t epoch) {
    std::erase_if(spans_, [&](const FileSpan& s) { return s.epoch == epoch; });
  }
  [[nodiscard]] FileSpan* find(std::uint64_t epoch) {
    const auto it = std::find_if(spans_.begin(), spans_.end(), [&](const FileSpan& s) { return s.epoch == epoch; });
    return it == spans_.end() ? nullptr : &*it;
  }
  [[nodiscard]] const FileSpan* at(DeviceId device, Page page) const {
    const auto it = std::find_if(spans_.begin(), spans_.end(),
                                 [&](const FileSpan& s) { return s.device == device && s.pages.contains(page); });
    return it == spans_.end() ? nullptr : &*it;
  }
  [[nodiscard]] bool overlaps(PageSpan pages) const {
    return std::any_of(spans_.begin(), spans_.end(), [&](const FileSpan& s) { return s.pages.overlaps(pages); });
  }
  [[nodiscard]] std::uint64_t pages_of(DeviceId device) const {
    std::uint64_t pages = 0;
    for (const FileSpan& s : spans_) pages += s.device == device ? s.pages.count_pages : 0;
    return pages;
  }
  /// In the order of their making. Nothing may be added or removed meanwhile.
  template <typename Fn>
  void for_each(Fn&& fn) {
    for (FileSpan& s : spans_) fn(s);
  }
  template <typename Fn>
  void for_each(Fn&& fn) const {
    for (const FileSpan& s : spans_) fn(s);
  }
  void remove_device(DeviceId device) {
    std::erase_if(spans_, [&](const FileSpan& s) { return s.device == device; });
  }

 private:
  std::vector<FileSpan> spans_;
  std::uint64_t last_epoch_ = 0;
};

}  // namespace ferry::manager
