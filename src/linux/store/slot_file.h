// The file beneath: a file without a name in a directory of the user's choice, cut in slots of a page each. Knows which
// slots are taken; reads and writes are BlockIo's. The caller serialises, but fd() is for any thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "linux/fd.h"

namespace ferry::linux {

class SlotFile {
 public:
  using Slot = std::uint32_t;
  static constexpr Slot none = ~Slot{0};

  SlotFile() = default;
  /// At most `bytes` of disk, taken as it is used. Nobody else can open the file, and it goes with the process.
  /// ERRORS: io_error, with the errno of what `directory` refused.
  static Result<SlotFile> open(const std::string& directory, std::uint64_t bytes);

  explicit operator bool() const { return fd_.valid(); }
  [[nodiscard]] int fd() const { return fd_.get(); }
  /// Past the page cache: what is stored takes no system memory.
  [[nodiscard]] bool direct() const { return direct_; }

  /// `count` slots in a row, behind those given before where there is room. none: there are no such slots.
  [[nodiscard]] Slot take(std::uint32_t count);
  /// The same, or fewer: `got` of them, at least one.
  [[nodiscard]] Slot take_some(std::uint32_t count, std::uint32_t& got);
  void give(Slot first, std::uint32_t count);

  [[nodiscard]] std::uint64_t used_slots() const { return used_; }
  [[nodiscard]] std::uint64_t slot_count() const { return slots_; }
  /// Slots from the beginning that may have disk behind them.
  [[nodiscard]] std::uint64_t reached_slots() const { return reached_; }
  /// The caller has cut the file to nothing, or will before the next take(). REQUIRES: no slot is taken.
  void restart();

 private:
  Slot find(std::uint64_t from, std::uint64_t end, std::uint32_t count, std::uint32_t least, std::uint32_t& got) const;
  [[nodiscard]] std::uint64_t next(std::uint64_t slot, std::uint64_t end, bool wanted_taken) const;
  Slot mark(Slot first, std::uint32_t count);

  Fd fd_;
  bool direct_ = false;
  std::uint64_t slots_ = 0;
  std::uint64_t used_ = 0;
  std::uint64_t cursor_ = 0;  ///< where the next search begins: writes stay in a row
  std::uint64_t reached_ = 0;
  std::vector<std::uint64_t> taken_;
};

}  // namespace ferry::linux
