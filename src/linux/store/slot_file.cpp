#include "linux/store/slot_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstdlib>

#include "base/types.h"

namespace ferry::linux {
namespace {

Fd open_unnamed(const std::string& directory, int extra) {
  Fd fd(::open(directory.c_str(), O_TMPFILE | O_EXCL | O_RDWR | O_CLOEXEC | extra, 0600));
  // Not every filesystem has files without a name; a short life with one does it too.
  if (fd || (errno != EOPNOTSUPP && errno != EISDIR && errno != ENOENT)) return fd;
  std::string name = directory + "/ferry-store-XXXXXX";
  fd.reset(::mkostemp(name.data(), O_CLOEXEC | extra));
  if (fd) ::unlink(name.c_str());
  return fd;
}

}  // namespace

Result<SlotFile> SlotFile::open(const std::string& directory, std::uint64_t bytes) {
  SlotFile file;
  file.fd_ = open_unnamed(directory, O_DIRECT);
  file.direct_ = file.fd_.valid();
  if (!file.fd_) file.fd_ = open_unnamed(directory, 0);
  if (!file.fd_) return Status(Code::io_error, errno);
  file.slots_ = std::min<std::uint64_t>(bytes / page_bytes, none - 1);
  file.taken_.resize((file.slots_ + 63) / 64);
  return file;
}

/// First slot of [slot, end) that is taken, or free, or `end`.
std::uint64_t SlotFile::next(std::uint64_t slot, std::uint64_t end, bool wanted_taken) const {
  while (slot < end) {
    std::uint64_t word = taken_[slot / 64];
    if (!wanted_taken) word = ~word;
    word &= ~std::uint64_t{0} << (slot % 64);
    if (word != 0) return std::min(end, slot / 64 * 64 + static_cast<std::uint64_t>(std::countr_zero(word)));
    slot = slot / 64 * 64 + 64;
  }
  return end;
}

SlotFile::Slot SlotFile::find(std::uint64_t from, std::uint64_t end, std::uint32_t count, std::uint32_t least,
                              std::uint32_t& got) const {
  for (std::uint64_t at = next(from, end, false); at < end; at = next(at, end, false)) {
    const std::uint64_t stop = next(at, std::min(end, at + count), true);
    if (stop - at >= least) {
      got = static_cast<std::uint32_t>(stop - at);
      return static_cast<Slot>(at);
    }
    at = stop;
  }
  return none;
}

SlotFile::Slot SlotFile::mark(Slot first, std::uint32_t count) {
  for (std::uint64_t s = first; s < std::uint64_t{first} + count; ++s) taken_[s / 64] |= std::uint64_t{1} << (s % 64);
  used_ += count;
  cursor_ = std::uint64_t{first} + count;
  reached_ = std::max(reached_, cursor_);
  return first;
}

SlotFile::Slot SlotFile::take(std::uint32_t count) {
  std::uint32_t got = 0;
  Slot at = find(cursor_, slots_, count, count, got);
  if (at == none) at = find(0, slots_, count, count, got);
  return at == none ? none : mark(at, count);
}

SlotFile::Slot SlotFile::take_some(std::uint32_t count, std::uint32_t& got) {
  Slot at = find(cursor_, slots_, count, 1, got);
  if (at == none) at = find(0, cursor_, count, 1, got);
  return at == none ? none : mark(at, got);
}

void SlotFile::give(Slot first, std::uint32_t count) {
  for (std::uint64_t s = first; s < std::uint64_t{first} + count; ++s) {
    FERRY_CHECK(((taken_[s / 64] >> (s % 64)) & 1U) != 0);
    taken_[s / 64] &= ~(std::uint64_t{1} << (s % 64));
  }
  used_ -= count;
  if (used_ == 0) cursor_ = 0;
}

void SlotFile::restart() {
  FERRY_CHECK_EQ(used_, 0U);
  cursor_ = 0;
  reached_ = 0;
}

}  // namespace ferry::linux
