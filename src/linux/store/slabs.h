// Where every stored page lies: compressed in a slab of memory, in a slab that went to the file, as a page of its own
// in the file, or nowhere as it repeats one word. A slab holds objects of one size class; it goes to the file and comes
// back whole, so that its objects keep their places. Knows no I/O and no codec. The caller serialises everything here;
// the bytes of a pinned slab may be read and written outside of that.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

#include "base/status.h"
#include "linux/store/slot_file.h"

namespace ferry::linux {

class Slabs {
 public:
  using Object = std::uint32_t;
  using Slab = std::uint32_t;
  static constexpr std::uint32_t none = ~std::uint32_t{0};
  static constexpr std::size_t slab_bytes = 64 * 1024;
  static constexpr std::uint32_t slots_of_slab = slab_bytes / 4096;
  /// A page that does not become this small is not worth keeping in memory.
  static constexpr std::size_t object_bytes_max = 3072;

  enum class Place : std::uint8_t {
    fill,       ///< `checksum` is the word
    memory,     ///< `bytes` at `memory`, good while the slab is pinned
    file_slab,  ///< `bytes` at `file_offset`, compressed
    file_page,  ///< a page at `file_offset`
  };
  struct Found {
    Place place = Place::fill;
    Slab slab = none;
    std::uint32_t bytes = 0;
    const std::byte* memory = nullptr;
    std::uint64_t file_offset = 0;
    std::uint64_t checksum = 0;
  };

  Slabs() = default;
  Slabs(const Slabs&) = delete;
  Slabs& operator=(const Slabs&) = delete;
  ~Slabs();
  /// Memory for slabs, taken as it is used. Less than a few slabs is none. ERRORS: no_memory.
  Status reserve_memory(std::uint64_t bytes);

  // --- objects -------------------------------------------------------------------------------------------------------
  Object put_fill(std::uint64_t word);
  Object put_page(SlotFile::Slot slot, std::uint64_t checksum);
  /// Room for `bytes` compressed; the slab is pinned for whoever writes them to `at`. none: no memory left.
  Object put(std::size_t bytes, std::uint64_t checksum, std::byte*& at);
  [[nodiscard]] Found find(Object object) const;
  [[nodiscard]] bool known(Object object) const;
  /// Forgets it, and gives `file` back what it had there.
  void drop(Object object, SlotFile& file);

  void pin(Slab slab) { ++slabs_[slab].pins; }
  void unpin(Slab slab, SlotFile& file);

  // --- between memory and file ---------------------------------------------------------------------------------------
  /// The slab that was begun longest ago and nobody uses just now; none: there is none.
  [[nodiscard]] Slab coldest();
  [[nodiscard]] const std::byte* memory_of(Slab slab) const { return frame(slabs_[slab].frame); }
  /// Nothing is put in it any more; it stays readable in memory.
  void begin_move_out(Slab slab, SlotFile::Slot first);
  void end_move_out(Slab slab, bool written, SlotFile& file);
  /// A slab in the file that is mostly holes; none. It stays there until end_move_in().
  [[nodiscard]] Slab begin_move_in(std::uint64_t& file_offset);
  /// Objects go from the slab's bytes to other slabs, as far as there is memory. null: they could not be read.
  void end_move_in(Slab slab, const std::byte* bytes, SlotFile& file);
  /// Empties a slab into others of its class. False: nothing to gain.
  bool merge_one();

  // --- memory --------------------------------------------------------------------------------------------------------
  [[nodiscard]] std::uint64_t frames() const { return frame_count_; }
  [[nodiscard]] std::uint64_t used_frames() const { return used_frames_; }
  /// Frames that are free but still have memory.
  [[nodiscard]] std::uint64_t warm_frames() const { return warm_.size(); }
  /// Takes one of them away; the caller gives its memory back to the machine, then calls frame_is_cold().
  [[nodiscard]] std::byte* take_warm_frame();
  void frame_is_cold(const std::byte* memory);

  // --- figures -------------------------------------------------------------------------------------------------------
  [[nodiscard]] std::uint64_t objects() const { return objects_in_use_; }
  [[nodiscard]] std::uint64_t fills() const { return fills_; }
  [[nodiscard]] std::uint64_t file_pages() const { return file_pages_; }
  [[nodiscard]] std::uint64_t payload_bytes() const { return payload_bytes_; }
  [[nodiscard]] std::uint64_t slabs_in_file() const { return slabs_in_file_; }
  [[nodiscard]] bool has_sparse() const { return !sparse_.empty(); }
  /// Aborts where something does not add up. O(everything).
  void verify(const SlotFile& file) const;

 private:
  static constexpr std::array<std::uint16_t, 18> class_bytes = {64,  128, 192,  256,  320,  384,  448,  512,  640,
                                                                768, 896, 1024, 1280, 1536, 1792, 2048, 2560, 3072};
  struct Entry {
    std::uint32_t where = none;   ///< slab, or one of the marks below
    std::uint32_t detail = none;  ///< slab: slot << 16 | bytes; page: slot of the file; free: the next free one
    std::uint64_t checksum = 0;   ///< fill: the word
  };
  static constexpr std::uint32_t mark_free = none;
  static constexpr std::uint32_t mark_fill = none - 1;
  static constexpr std::uint32_t mark_page = none - 2;

  enum class State : std::uint8_t { unused, memory, moving_out, file, moving_in };
  struct Links {
    Slab previous = none;
    Slab next = none;
  };
  struct SlabEntry {
    State state = State::unused;
    std::uint8_t size_class = 0;
    std::uint16_t live = 0;
    std::uint16_t capacity = 0;
    std::uint32_t pins = 0;
    std::uint32_t free_head = none;
    std::uint32_t frame = none;
    SlotFile::Slot slot = SlotFile::none;
    std::vector<std::uint32_t> owners;  ///< object in each place; free: the next free place, with free_bit
    Links partial;                      ///< of its class: in memory and with room
    Links cold;                         ///< of all in memory, oldest first
    bool in_partial = false;
    bool sparse = false;  ///< listed in sparse_
  };
  struct List {
    Slab first = none;
    Slab last = none;
    std::uint32_t size = 0;
  };
  static constexpr std::uint32_t free_bit = std::uint32_t{1} << 31;

  [[nodiscard]] static unsigned class_of(std::size_t bytes);
  [[nodiscard]] std::byte* frame(std::uint32_t index) const { return arena_ + std::size_t{index} * slab_bytes; }
  Object new_object();
  void free_object(Object object);
  Slab new_slab(unsigned size_class);
  void free_slab(Slab slab, SlotFile& file);
  void release_frame(SlabEntry& s);
  std::uint32_t take_place(Slab slab, Object owner);
  void give_place(Slab slab, std::uint32_t place);
  void settle(Slab slab, SlotFile& file, bool left);
  void set_partial(Slab slab, bool wanted);
  template <Links SlabEntry::*Which>
  void append(List& list, Slab slab);
  template <Links SlabEntry::*Which>
  void remove(List& list, Slab slab);

  std::byte* arena_ = nullptr;
  std::uint64_t frame_count_ = 0;
  std::uint64_t used_frames_ = 0;
  std::uint32_t untouched_ = 0;      ///< frames from here on were never used
  std::vector<std::uint32_t> warm_;  ///< free, with memory
  std::vector<std::uint32_t> cool_;  ///< free, without

  std::deque<SlabEntry> slabs_;
  std::vector<Slab> unused_slabs_;
  std::array<List, class_bytes.size()> partial_;
  List cold_;
  std::vector<Slab> sparse_;

  std::vector<Entry> entries_;
  Object free_entry_ = none;
  std::uint64_t objects_in_use_ = 0;
  std::uint64_t fills_ = 0;
  std::uint64_t file_pages_ = 0;
  std::uint64_t payload_bytes_ = 0;
  std::uint64_t slabs_in_file_ = 0;
};

}  // namespace ferry::linux
