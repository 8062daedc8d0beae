// Numbers of pages: each page of an address space has one, 0 where nobody said otherwise, and neighbours are often equal.
// A radix tree, as page tables are: what is equal over a whole entry's pages is kept in the entry, at whatever level; where
// it is not, a leaf has the borders of its pages as bits and a number a run, of four bits while numbers are small.
//
// A million spans that are few pages each lie in less than 2 MiB, which a CPU's own caches hold, and a look-up goes as
// deep as addresses reach, not as there are spans: that is what makes it cost about the same among a million as among a
// thousand (docs/BENCH.md, attributes).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "base/bitmap.h"
#include "base/types.h"

namespace ferry::core {

/// No thread-safety. Pages are below 2^52, as the core's are.
class PageTree {
 public:
  using Id = std::uint32_t;  ///< below 2^31
  struct Run {
    PageSpan span;
    Id id = 0;
  };
  static constexpr Page page_limit = Page{1} << 52;

  PageTree() = default;
  ~PageTree() { clear(); }
  PageTree(const PageTree& other) { *this = other; }
  PageTree& operator=(const PageTree& other);
  PageTree(PageTree&& other) noexcept { *this = std::move(other); }
  PageTree& operator=(PageTree&& other) noexcept;

  [[nodiscard]] Id at(Page page) const {
    Entry entry = page < reach() ? root_ : 0;
    for (unsigned height = height_; height > 0 && is_child(entry); --height) {
      entry = node_of(entry).entries[index_in_node(page, height)];
    }
    return is_child(entry) ? leaf_of(entry).at(static_cast<unsigned>(page % leaf_pages)) : id_of(entry);
  }
  /// The longest run of equal numbers that `page` is part of, cut off at the ends of `within`. REQUIRES: it is inside.
  [[nodiscard]] Run run_at(Page page, PageSpan within) const;
  void set(PageSpan span, Id id);
  void clear();

  /// Runs that are not 0, each as long as it can be.
  [[nodiscard]] std::uint64_t spans() const { return spans_; }
  /// False: no page has this number.
  [[nodiscard]] bool in_use(Id id) const { return id < uses_.size() && uses_[id] > 0; }
  /// Memory of nodes and leaves, as a heap rounds it up.
  [[nodiscard]] std::size_t bytes() const { return bytes_ + pools_[0].bytes() + pools_[1].bytes() + pools_[2].bytes(); }
  /// Aborts where the tree is broken. O(everything).
  void verify() const;

 private:
  static constexpr unsigned leaf_shift = 7;
  static constexpr unsigned leaf_pages = 1U << leaf_shift;
  static constexpr unsigned node_shift = 9;
  static constexpr unsigned node_entries = 1U << node_shift;

  /// Even: twice the number that all pages have. Odd: one more than the address of a Leaf (height 0) or Node, whose pages
  /// do not all have the same.
  using Entry = std::uint64_t;
  struct Node {
    std::array<Entry, node_entries> entries;
  };
  struct Leaf {
    std::array<std::uint64_t, 2> begins;  ///< by page; set: a run begins there. The first always is
    std::uint8_t low;                     ///< runs that begin in the first word
    std::uint8_t count;                   ///< runs
    std::uint8_t width;                   ///< bits of a number: 4, 8, 16, 32
    std::uint8_t steps;                   ///< bytes_of() its memory
    std::byte ids[4];                     ///< the numbers of its runs: as many more bytes as there is memory for

    /// Runs that begin at or before the page.
    [[nodiscard]] unsigned runs_up_to(unsigned page) const {
      const unsigned word = page / 64;
      // No branch: which word it is cannot be foreseen.
      return (low & (0U - word)) + count_set(begins[word] & (~std::uint64_t{0} >> (63 - page % 64)));
    }
    [[nodiscard]] unsigned begin_of(unsigned page) const;  ///< of the page's run
    [[nodiscard]] unsigned end_of(unsigned page) const;
    [[nodiscard]] Id at(unsigned page) const { return id(runs_up_to(page) - 1); }
    [[nodiscard]] Id id(unsigned run) const {
      if (width == 4) {
        return (static_cast<Id>(ids[run / 2]) >> (run % 2 * 4)) & 0xfU;
      }
      Id id = 0;
      std::memcpy(&id, ids + std::size_t{run} * (width / 8U), width / 8U);  // the bytes of a number, lowest first
      return id;
    }
    void put(unsigned run, Id id);
    void move_runs(unsigned from, unsigned to, unsigned number);
    [[nodiscard]] std::size_t room() const { return (bytes_of(steps) - ids_offset) * 8 / width; }  ///< runs it can hold
  };
  static constexpr std::size_t ids_offset = 20;
  /// Leaves of 32, 48 and 64 bytes come from pools; others are allocated one by one, and with what a heap keeps for itself
  /// are multiples of leaf_step.
  static constexpr unsigned pool_count = 3;
  static constexpr std::size_t leaf_step = 32;
  static constexpr std::size_t heap_overhead = 8;
  [[nodiscard]] static constexpr std::size_t bytes_of(unsigned steps) {
    return steps < pool_count ? 32 + 16 * steps : steps * leaf_step - heap_overhead;
  }
  [[nodiscard]] static unsigned steps_for(unsigned count, unsigned width);

  /// Memory of leaves of one size. It is given back when all of them have gone.
  class Pool {
   public:
    [[nodiscard]] void* take(std::size_t size);
    void put_back(void* leaf) { free_ = new (leaf) Free{free_}; }
    void clear();
    [[nodiscard]] std::size_t bytes() const { return bytes_; }

   private:
    struct Free {
      Free* next;
    };
    std::vector<std::unique_ptr<std::byte[]>> slabs_;
    std::size_t bytes_ = 0;
    std::byte* fresh_ = nullptr;  ///< never given out, up to fresh_end_
    std::byte* fresh_end_ = nullptr;
    Free* free_ = nullptr;
  };

  [[nodiscard]] static bool is_child(Entry entry) { return (entry & 1U) != 0; }
  [[nodiscard]] static Id id_of(Entry entry) { return static_cast<Id>(entry >> 1U); }
  [[nodiscard]] static Entry entry_of(Id id) { return Entry{id} << 1U; }
  [[nodiscard]] static Entry entry_of(const void* child) { return reinterpret_cast<Entry>(child) + 1; }
  [[nodiscard]] static Node& node_of(Entry entry) { return *reinterpret_cast<Node*>(entry - 1); }
  [[nodiscard]] static Leaf& leaf_of(Entry entry) { return *reinterpret_cast<Leaf*>(entry - 1); }
  /// log2 of the pages of an entry at this height.
  [[nodiscard]] static unsigned shift_of(unsigned height) { return leaf_shift + node_shift * height; }
  [[nodiscard]] static std::size_t index_in_node(Page page, unsigned height) {
    return (page >> shift_of(height - 1)) % node_entries;
  }
  /// Pages from here on have 0, and no place in the tree.
  [[nodiscard]] Page reach() const { return Page{1} << shift_of(height_); }

  struct LocalRun {
    Page first = 0;
    Page end = 0;
    Id id = 0;
    bool begins = false;  ///< the page before `first` differs; cleared: it may be equal
    bool ends = false;
  };
  [[nodiscard]] LocalRun local_run(Page page, PageSpan within) const;
  /// Runs that are not 0 and begin in the span.
  [[nodiscard]] std::uint64_t begins_in(Page first, Page end) const;
  template <typename Fn>
  static void walk(Entry entry, unsigned height, Page first, Page end, Fn&& fn);

  void write(Entry& entry, unsigned height, Page first, Page end, Id id);
  void write_leaf(Entry& entry, unsigned first, unsigned end, Id id);
  void split(Entry& entry, unsigned height);
  void fold(Entry& entry, std::size_t index);
  void release(Entry entry, unsigned height);
  Leaf* new_leaf(unsigned count, unsigned width);
  Leaf* moved(Leaf* leaf, unsigned count, unsigned width);
  void delete_leaf(Leaf* leaf);
  [[nodiscard]] Entry copy_of(Entry entry, unsigned height);
  void use(Id id, std::uint32_t times = 1);
  void drop(Id id, std::uint32_t times = 1) { uses_[id] -= times; }
  void verify_entry(Entry entry, unsigned height, std::vector<std::uint32_t>& uses, std::size_t& bytes) const;

  Entry root_ = 0;
  unsigned height_ = 0;
  std::uint64_t spans_ = 0;
  std::size_t bytes_ = 0;  ///< but for pools_
  std::array<Pool, pool_count> pools_;
  std::vector<std::uint32_t> uses_;  ///< entries and runs, by number
};

}  // namespace ferry::core
