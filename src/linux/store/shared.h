// Inside of the store: what its workers share, and what each has for itself. Not for others.
#pragma once

#include <array>
#include <deque>
#include <vector>

#include "base/types.h"
#include "linux/lock.h"
#include "linux/store/block_io.h"
#include "linux/store/codec.h"
#include "linux/store/slabs.h"
#include "linux/store/slot_file.h"
#include "linux/store/store.h"

namespace ferry::linux {

/// Pages that a worker takes at once.
inline constexpr std::uint32_t slice_pages = 64;
/// Likewise, of pages that lie in the file as they are: few cycles each, so more of them keep the disk busy meanwhile.
inline constexpr std::uint32_t read_slice_pages = 256;
/// Slabs that go to the file in one batch.
inline constexpr unsigned slabs_a_batch = 8;
/// Frames that stay warm for the slabs to come.
inline constexpr std::uint64_t warm_frames_max = 32;

// A handle is an object's number + 1, or, with the highest bit set, a page that repeats 32 bits: such a page (zeros
// above all) takes nothing anywhere.
inline constexpr StoreHandle small_fill_bit = StoreHandle{1} << 63;

struct Store::Running {
  StoreJob job;
  bool ended = false;
  Status status;
  std::uint32_t next = 0;  // first page that no worker has claimed
  unsigned claims = 0;     // slices under way
  std::uint64_t work_ns = 0;
};

/// One page to load.
struct Store::Plan {
  Slabs::Found found;
  std::byte* target = nullptr;
  const std::byte* bytes = nullptr;  // where they will be, if they come from the file
  unsigned number = 0;               // of the read that brings them
};

/// Pages of a slice that go to the file as they are, in the worker's buffer one after the other.
struct Store::Raw {
  std::uint32_t count = 0;
  std::uint32_t taken = 0;  // of those, have a slot, and their write has begun
  std::array<std::uint32_t, slice_pages> pages;
  std::array<std::uint64_t, slice_pages> checksums;
  std::array<SlotFile::Slot, slice_pages> slots;
};

inline constinit LockClass store_lock("store", LockRank::leaf);

struct Store::Shared {
  Mutex mutex{store_lock};  // never held across compression or a system call
  std::deque<Running> loads;
  std::deque<Running> stores;
  std::vector<StoreCompletion> completions;
  Slabs slabs;
  SlotFile file;
  std::uint64_t small_fills = 0;
  std::uint64_t written_bytes = 0;
  std::uint64_t read_bytes = 0;
  std::uint64_t failed = 0;
  unsigned background_busy = 0;
  unsigned room_waiters = 0;
  bool background_failed = false;  ///< do not try again before something has changed
  bool cutting = false;            ///< the file is being cut to nothing: no slot may be taken
  Condition changed;

  /// Slots of the file, at least `least` of the `count`.
  SlotFile::Slot take_slots(UniqueLock& lock, std::uint32_t count, bool all, std::uint32_t& got) {
    while (cutting) changed.wait(lock);
    if (!file) return SlotFile::none;
    if (!all) return file.take_some(count, got);
    got = count;
    return file.take(count);
  }
  [[nodiscard]] bool is_file_page(StoreHandle handle) const {
    return handle != 0 && (handle & small_fill_bit) == 0 &&
           slabs.find(static_cast<Slabs::Object>(handle - 1)).place == Slabs::Place::file_page;
  }
  void unpin(Slabs::Slab slab) {
    slabs.unpin(slab, file);
    if (room_waiters != 0) changed.notify_all();
  }
  void drop(StoreHandle handle) {
    if (handle == 0) return;
    if ((handle & small_fill_bit) != 0) {
      --small_fills;
      return;
    }
    slabs.drop(static_cast<Slabs::Object>(handle - 1), file);
    background_failed = false;
    if (room_waiters != 0) changed.notify_all();
  }
  [[nodiscard]] bool over_high_water() const {
    return slabs.frames() != 0 && slabs.used_frames() > slabs.frames() - slabs.frames() / 8;
  }
  [[nodiscard]] bool can_cut() const { return file.used_slots() == 0 && file.reached_slots() != 0 && !cutting; }
  [[nodiscard]] bool wants_background() const {
    return slabs.warm_frames() > warm_frames_max || can_cut() ||
           (file && !background_failed && background_busy == 0 && (over_high_water() || slabs.has_sparse()));
  }
};

struct Store::Worker {
  /// A slice of pages, each with the page after it (an object may lie across two), or a batch of slabs' worth of them.
  static constexpr std::size_t buffer_bytes = slice_pages * 2 * page_bytes;
  struct Free {
    void operator()(std::byte* p) const { ::operator delete (p, std::align_val_t{page_bytes}); }
  };
  using Buffer = std::unique_ptr<std::byte[], Free>;
  static Buffer allocate(std::size_t bytes) {
    return Buffer(static_cast<std::byte*>(::operator new (bytes, std::align_val_t{page_bytes})));
  }

  Worker(const StoreConfig& config, int fd)
      : codec(config.codec, config.level),
        buffer(allocate(buffer_bytes)),
        packed(allocate(slice_pages * Slabs::object_bytes_max)),
        io(fd, config.io, &config.fault) {
    io.register_buffer(buffer.get(), buffer_bytes);
  }
  PageCodec codec;
  Buffer buffer;
  Buffer packed;
  std::vector<Plan> plans;
  std::vector<Plan*> order;  // of plans that need the file
  Raw raw;
  BlockIo io;
};

}  // namespace ferry::linux
