// The simulated machine's contents and page tables, and the checks that need nothing else: every word of system memory,
// VRAM and the store, what the CPU and each device map, what each page must read (the shadow), and who holds which VRAM chunk.
// One 64-bit word stands for a page's contents. Does not know of actions, time or the core.
// Each check throws Violation. A client is named by its slot, 0 to clients-1.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/types.h"
#include "core/action.h"
#include "core/core.h"
#include "core/svm/types.h"
#include "sim/sim.h"

namespace ferry::sim {

using Word = std::uint64_t;

/// What fresh VRAM reads as: nobody's data, so that a mapping of a page that was never filled shows.
inline constexpr Word fresh_vram_word = 0xeeee'eeee'eeee'eeee;
/// What a failed copy leaves in its target.
inline constexpr Word torn_word = 0xdddd'dddd'dddd'dddd;

enum class AllocState : std::uint8_t { none, allocated, freeing };
enum class CpuEntry : std::uint8_t {
  none,      ///< no mapping of the process: an access is its own fault
  revoked,   ///< an access becomes a CPU fault
  refused,   ///< an access ends in SIGBUS, and no message says so
  readable,  ///< a write becomes a CPU fault
  mapped,
};
[[nodiscard]] inline bool reaches(CpuEntry entry) { return entry == CpuEntry::readable || entry == CpuEntry::mapped; }
enum class DeviceKind : std::uint8_t { absent, system, vram };
enum class Op : std::uint8_t { read, write, add };
enum class Touch : std::uint8_t { done, fault, segv };

struct DeviceEntry {
  DeviceKind kind = DeviceKind::absent;
  bool writable = false;
  VramPage vram = 0;
  DeviceId owner = no_device;  ///< kind vram: whose
};

class Memory {
 public:
  Memory(unsigned clients, unsigned devices, Page window_first, std::uint32_t window_pages,
         std::uint64_t budget_chunks);
  /// System memory is counted from now on: nobody reaches a page that was just allocated, and `store_pages` fit beneath.
  void count_system(std::uint64_t store_pages);

  // --- clients and ranges --------------------------------------------------------------------------------------------
  void client_open(unsigned slot, ClientId id);
  /// All was given back: checks it (I-08) and forgets the rest.
  void client_close(unsigned slot);
  /// `in_place`: never to be copied to VRAM (I-17).
  void alloc(unsigned slot, PageSpan span, bool in_place = false);
  /// The CPU side is unmapped at once; contents no longer matter.
  void begin_free(unsigned slot, PageSpan span);
  /// I-15: nothing maps the span any more.
  void end_free(unsigned slot, PageSpan span);
  /// Contents do not matter until end_zero(), from when on they are zeros (I-72). No thread or wave uses the span.
  void begin_zero(unsigned slot, PageSpan span);
  void end_zero(unsigned slot, PageSpan span);
  /// The request was refused: contents matter as before.
  void cancel_zero(unsigned slot, PageSpan span);
  /// mremap (moves.cpp). Contents of both spans do not matter until end_move(), page by page. No thread or wave uses them.
  /// Either may be freed before.
  void begin_move(unsigned slot, PageSpan span, Page to);
  void end_move(unsigned slot, Page from, const core::Residency& from_place, Page to, const core::Residency& to_place,
                bool all);
  [[nodiscard]] bool moving(unsigned slot, Page page) const { return at(slot, page).moving; }
  [[nodiscard]] bool zeroing(unsigned slot, Page page) const { return at(slot, page).zeroing; }
  /// Allocated and not being freed.
  [[nodiscard]] bool exists(unsigned slot, Page page) const {
    return at(slot, page).alloc == AllocState::allocated || at(slot, page).zeroing;
  }
  /// core::SpanProt bits. Threads obey at once, devices by end_protect() at the latest (I-70).
  void begin_protect(unsigned slot, PageSpan span, std::uint8_t prot);
  void end_protect(unsigned slot, PageSpan span);
  /// A touch of the page may fail for its protection: now, or some time since it was allocated.
  [[nodiscard]] bool was_protected(unsigned slot, Page page) const { return at(slot, page).was_protected; }
  void cpu_died(unsigned slot);
  void device_died(unsigned slot, DeviceId device);

  // --- accesses of programs (I-10) ----------------------------------------------------------------------------------
  Touch cpu_access(unsigned slot, Page page, Op op);
  Touch device_access(unsigned slot, DeviceId device, Page page, Op op);

  // --- what actions do, page by page ---------------------------------------------------------------------------------
  void revoke_cpu(unsigned slot, Page page);
  /// Whoever touches the page ends in SIGBUS, until let_cpu(), a revocation or a mapping.
  void refuse_cpu(unsigned slot, Page page);
  void let_cpu(unsigned slot, Page page);
  void protect_cpu(unsigned slot, Page page);
  void map_cpu(unsigned slot, Page page, Prot prot = Prot::read_write);
  void revoke_device(unsigned slot, DeviceId device, Page page);
  void map_device(unsigned slot, DeviceId device, Page page, DeviceEntry entry);
  void copy(unsigned slot, DeviceId device, Page page, core::Place to, VramPage vram);
  /// From one device's VRAM to another's. `torn`: it fails here, and the target holds rubbish.
  void copy_direct(unsigned slot, Page page, DeviceId from, VramPage from_vram, DeviceId to, VramPage to_vram,
                   bool torn);
  /// From another page's system memory.
  void copy_system(unsigned slot, Page from, Page page, bool torn);
  /// A copy that failed here: the target holds rubbish.
  void tear(unsigned slot, DeviceId device, Page page, core::Place to, VramPage vram);
  void discard_system(unsigned slot, Page page);
  /// False: the store has no room; nothing happened.
  bool store(unsigned slot, Page page);
  /// A store that failed here: what was stored of the page before is gone.
  void tear_store(unsigned slot, Page page);
  void load(unsigned slot, Page page);
  /// A load that failed here: the system page holds rubbish.
  void tear_system(unsigned slot, Page page);
  void discard_store(unsigned slot, Page page);

  // --- pins and discards ---------------------------------------------------------------------------------------------
  /// I-60: the page is current where it was pinned, and stays there. DMA reaches it with no regard to page tables.
  void pin(unsigned slot, Page page, DeviceId device);
  void unpin(unsigned slot, Page page);
  void dma(unsigned slot, Page page, Op op);
  void forget_pins(unsigned slot);
  /// From the request on the pages may read as zeros; from the answer on, until somebody looks or writes.
  /// Returns the moment, which end_discard() of the same request is given: what was allocated later is not concerned.
  std::uint64_t begin_discard(unsigned slot, PageSpan span);
  void end_discard(unsigned slot, PageSpan span, std::uint64_t begun);

  // --- forks (forks.cpp) ---------------------------------------------------------------------------------------------
  /// I-80: no device reaches any page of the client. A child is there, to which all pages are as they are now (I-81).
  void fork(unsigned slot);
  [[nodiscard]] std::size_t children(unsigned slot) const { return clients_[slot].children.size(); }
  [[nodiscard]] bool child_needs(unsigned slot, Page page) const;
  /// Where the newest bytes of a page lie: VRAM of `device`, or the store, or else system memory.
  struct ChildSource {
    DeviceId device = no_device;
    VramPage vram = 0;
    bool store = false;
  };
  /// Children that need the page get it from there.
  void give_children(unsigned slot, Page page, ChildSource from);
  void child_access(unsigned slot, std::size_t child, Page page, Op op);
  void end_child(unsigned slot, std::size_t child);

  // --- VRAM ----------------------------------------------------------------------------------------------------------
  /// A chunk counts from its first use on (I-04). REQUIRES nothing: any number may come from the core.
  void use_vram(unsigned slot, DeviceId device, VramPage first, std::uint64_t count);
  /// I-05, I-01: nobody maps the chunk, no current copy lies in it. Contents are gone from here on.
  void wipe_chunk(unsigned slot, DeviceId device, VramPage first);
  /// The chunk no longer counts.
  void uncharge_chunk(unsigned slot, DeviceId device, VramPage first);
  [[nodiscard]] std::uint64_t chunks_used(DeviceId device) const { return used_chunks_[device]; }
  [[nodiscard]] std::uint64_t chunks_of(unsigned slot, DeviceId device) const;

  // --- looking in ----------------------------------------------------------------------------------------------------
  /// I-01 for every allocated page of every client.
  void check_all() const;
  [[nodiscard]] PageSpan window() const { return {first_, pages_}; }
  [[nodiscard]] bool inside(PageSpan span) const;
  [[nodiscard]] AllocState state(unsigned slot, Page page) const { return at(slot, page).alloc; }
  /// Some page of the span, which may leave the window, is allocated to stay in system memory.
  [[nodiscard]] bool has_in_place(unsigned slot, PageSpan span) const;
  /// Counts the allocations of a page, so that a late answer can be told from an answer of today.
  [[nodiscard]] std::uint32_t generation(unsigned slot, Page page) const { return at(slot, page).generation; }
  [[nodiscard]] CpuEntry cpu_entry(unsigned slot, Page page) const { return at(slot, page).cpu; }
  [[nodiscard]] DeviceEntry device_entry(unsigned slot, DeviceId device, Page page) const {
    return clients_[slot].devices[device].table[page - first_];
  }
  [[nodiscard]] bool system_is_current(unsigned slot, Page page) const {
    return reads_right(at(slot, page), at(slot, page).system);
  }
  [[nodiscard]] bool store_is_current(unsigned slot, Page page) const {
    return at(slot, page).in_store && reads_right(at(slot, page), at(slot, page).stored);
  }
  /// The page has system memory (I-40). Only counted after count_system().
  [[nodiscard]] bool resident(unsigned slot, Page page) const { return at(slot, page).resident; }
  [[nodiscard]] std::uint64_t resident_pages(unsigned slot) const { return clients_[slot].resident; }
  [[nodiscard]] std::uint64_t stored_pages() const { return stored_pages_; }
  /// The page that lost its last copy, where a violation was thrown for another page's sake.
  struct Suspect {
    ClientId client = 0;
    Page page = 0;
    bool known = false;
  };
  [[nodiscard]] Suspect suspect() const { return suspect_; }
  [[nodiscard]] bool vram_is_current(unsigned slot, DeviceId device, Page page) const;

 private:
  static constexpr std::uint32_t nobody = 0xffff'ffff;

  struct PageState {
    Word system = 0;
    Word shadow = 0;
    std::uint32_t generation = 0;
    AllocState alloc = AllocState::none;
    CpuEntry cpu = CpuEntry::none;
    bool in_place = false;
    bool resident = false;
    bool in_store = false;
    bool zeroing = false;
    bool moving = false;
    bool coming_loose = false;
    Word coming = 0;  ///< of a move's target: what it reads from end_move() on; of its source: zero
    bool was_protected = false;
    std::uint8_t prot = 7;      ///< what threads may do, core::SpanProt
    std::uint8_t enforced = 7;  ///< what devices may do at the most
    Word stored = 0;
    std::uint16_t pins = 0;
    DeviceId pin_device = no_device;
    VramPage pin_vram = 0;
    std::uint64_t allocated_at = 0;  ///< a moment, of alloc_moment_
    std::uint16_t discarding = 0;    ///< discards asked for and not answered
    bool discarded = false;
  };
  [[nodiscard]] static bool loose(const PageState& p) { return p.discarding != 0 || p.discarded; }
  [[nodiscard]] static bool reads_right(const PageState& p, Word word) {
    return word == p.shadow || (loose(p) && word == 0);
  }
  /// Somebody sees, or may see from now on, what the page reads.
  static void settle(PageState& p, Word word) {
    if (loose(p)) {
      p.shadow = word;
      p.discarded = false;
    }
  }
  void check_pin(unsigned slot, Page page, DeviceId leaves, VramPage vram, const char* what) const;
  struct VramState {
    Word word = fresh_vram_word;
    std::uint32_t mapped_by = nobody;  ///< index of the page whose device entries lead here
    std::uint16_t entries = 0;         ///< how many
    std::uint32_t holds = nobody;      ///< index of the page copied here last
  };
  struct Chunk {
    bool charged = false;
    std::array<VramState, block_pages> pages;
  };
  struct DeviceMemory {
    std::vector<DeviceEntry> table;
    std::vector<std::uint32_t> vram_of;  ///< VRAM page + 1 where the page was copied to last; 0: nowhere
    std::vector<std::unique_ptr<Chunk>> chunks;
  };
  struct ChildPage {
    Word want = 0;  ///< what it reads: as it was at the fork, or what the child wrote
    Word has = 0;
    bool pending = false;  ///< it has no copy yet
    bool loose = false;    ///< discarded before the fork: zeros will do
  };
  struct Child {
    std::vector<ChildPage> pages;
  };
  struct ClientMemory {
    std::vector<Child> children;
    ClientId id = 0;
    std::uint64_t resident = 0;
    std::vector<PageState> pages;
    std::vector<DeviceMemory> devices;
  };

  [[nodiscard]] PageState& at(unsigned slot, Page page) { return clients_[slot].pages[page - first_]; }
  [[nodiscard]] const PageState& at(unsigned slot, Page page) const { return clients_[slot].pages[page - first_]; }
  [[nodiscard]] Chunk& chunk(unsigned slot, DeviceId device, VramPage vram);
  [[nodiscard]] VramState& vram_at(unsigned slot, DeviceId device, VramPage vram) {
    return chunk(slot, device, vram).pages[vram % block_pages];
  }
  void apply(unsigned slot, Page page, Word& word, Op op, const char* who, unsigned device);
  void set_entry(unsigned slot, DeviceId device, Page page, DeviceEntry entry);
  /// Takes a VRAM page over for `page`; whoever was copied there before must have a current copy elsewhere.
  void hold(unsigned slot, DeviceId device, Page page, VramPage vram, Word word);
  void occupy(unsigned slot, PageState& page) {
    if (counted_ && !page.resident) {
      page.resident = true;
      ++clients_[slot].resident;
    }
  }
  Word settle_place(unsigned slot, Page page, const core::Residency& place);
  [[nodiscard]] bool reached(unsigned slot, Page page) const;
  void check_moved(unsigned slot, Page from, Page to, Page page) const;
  void end_half(unsigned slot, Page from, Page to, Page page, const core::Residency& place);
  void check_quiet(unsigned slot, Page page, const char* what) const;
  void forget_stored(PageState& page);
  void check_target(unsigned slot, DeviceId device, Page page, core::Place to, VramPage vram);
  void check_current(unsigned slot, Page page, const char* after) const;
  [[nodiscard]] std::string describe(Word word) const;
  [[nodiscard]] std::string copies_of(unsigned slot, Page page) const;

  Page first_;
  std::uint32_t pages_;
  DeviceId devices_;
  std::uint64_t budget_chunks_;
  std::uint64_t stamp_ = 0;
  std::uint64_t alloc_moment_ = 0;
  bool counted_ = false;
  std::uint64_t store_capacity_ = 0;
  std::uint64_t stored_pages_ = 0;
  std::vector<ClientMemory> clients_;
  std::vector<std::uint64_t> used_chunks_;
  mutable Suspect suspect_;
};

}  // namespace ferry::sim
