// What the executor knows of a client's blocks beyond the core: where page-table entries stand, what has memory.
// Two-level radix over the window, filled on demand. Main thread only.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/bitmap.h"
#include "base/types.h"
#include "linux/store/store.h"

namespace ferry::manager {

/// One block in one device process.
struct DeviceBlock {
  PageMask replaced;       ///< set: an extent, or nothing; cleared: the armed window mapping of the start
  PageMask given;          ///< armed pages that UFFDIO_CONTINUE mapped and nobody took back
  PageMask dma;            ///< system pages that the device may reach: set before it can, cleared when it cannot
  PageMask exec;           ///< extents that kernels may call into
  PageMask admitted;       ///< outside the window: the device has nothing of its own there, and the pages were armed
  bool admitting = false;  ///< it was asked
  PageMask denied;  ///< outside the window: the device has memory of its own there, for all we know until it ends
  std::uint16_t admit_pages = block_pages;  ///< asked for at once; halved while the device has some of them itself
  std::uint16_t pieces = 0;                 ///< at most so many mappings more than one lie here
};

/// What CPU threads may read and not write. A write to a page of `read_only` ends as a fault of the core's.
///
/// | read_only | guarded | means                                                                     |
/// |-----------|---------|---------------------------------------------------------------------------|
/// | cleared   | any     | as the other masks of the block say                                       |
/// | set       | set     | protected through the userfaultfd: entries, where there are some, do not allow writes |
/// | set       | cleared | this kernel or process cannot do that: there are no entries, and a read ends as a write fault does |
struct CpuGuard {
  PageMask guarded;  ///< registered for writes too
  PageMask read_only;
};

/// Handle of each page of a block in the store; 0: not there.
using StoredPages = std::array<linux::StoreHandle, block_pages>;

struct BlockState {
  PageMask managed;                     ///< allocated by the client
  PageMask armed;                       ///< registered with the application's userfaultfd
  PageMask revoked;                     ///< the core took them from the CPU and has not given them back
  PageMask refused;                     ///< poisoned, as attributes or pins keep CPU threads from what VRAM holds
  PageMask backed;                      ///< known to have memory in the system file
  PageMask own_protection;              ///< the application has protected them itself (mprotect)
  std::uint16_t steered = 0;            ///< times that it was taken from the CPU whole
  bool huge = false;                    ///< known to be one huge page in the system file
  bool huge_refused = false;            ///< was tried
  bool mirrored = false;                ///< entries in the manager's own mapping are there
  std::unique_ptr<CpuGuard> guard;      ///< null: nothing of it was ever protected
  std::vector<DeviceBlock> devices;     ///< by device, or empty while all are as at the start
  std::unique_ptr<StoredPages> stored;  ///< null: no page of the block is stored
};

class BlockTable {
 public:
  BlockTable() = default;
  explicit BlockTable(std::uint64_t blocks) : blocks_(blocks), leaves_((blocks + leaf_size - 1) / leaf_size) {}

  [[nodiscard]] BlockState* find(BlockIndex block) const {
    if (block >= blocks_) return nullptr;
    const auto& leaf = leaves_[block / leaf_size];
    return leaf == nullptr ? nullptr : (*leaf)[block % leaf_size].get();
  }
  /// REQUIRES: the block is inside the window.
  BlockState& make(BlockIndex block, bool& is_new) {
    auto& leaf = leaves_[block / leaf_size];
    if (leaf == nullptr) leaf = std::make_unique<Leaf>();
    auto& entry = (*leaf)[block % leaf_size];
    is_new = entry == nullptr;
    if (is_new) entry = std::make_unique<BlockState>();
    return *entry;
  }
  /// Calls fn(block, state) for those that exist and lie at least partly in the span.
  template <typename Fn>
  void for_each(PageSpan span, Fn&& fn) const {
    if (span.count_pages == 0) return;
    const BlockIndex end = std::min(block_of(span.end() - 1) + 1, blocks_);
    for (BlockIndex b = block_of(span.first); b < end;) {
      const auto& leaf = leaves_[b / leaf_size];
      if (leaf == nullptr) {
        b = (b / leaf_size + 1) * leaf_size;
        continue;
      }
      if (auto& state = (*leaf)[b % leaf_size]) fn(b, *state);
      ++b;
    }
  }
  template <typename Fn>
  void for_each(Fn&& fn) const {
    for_each({0, blocks_ * block_pages}, fn);
  }

  /// The part of a span that lies in a block, as a mask.
  [[nodiscard]] static PageMask mask_in(BlockIndex block, PageSpan span) {
    const Page first = std::max(span.first, first_page_of(block));
    const Page end = std::min(span.end(), first_page_of(block + 1));
    if (first >= end) return {};
    return PageMask::range(static_cast<unsigned>(first - first_page_of(block)), static_cast<unsigned>(end - first));
  }

 private:
  static constexpr std::uint64_t leaf_size = 1024;
  using Leaf = std::array<std::unique_ptr<BlockState>, leaf_size>;
  std::uint64_t blocks_ = 0;
  std::vector<std::unique_ptr<Leaf>> leaves_;
};

}  // namespace ferry::manager
