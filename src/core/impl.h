// Longer than 600 lines because it is one class, whose verbs lie in files of their own.
// The core's whole state. Verbs live in files of their own:
//   client/client.cpp   clients and devices come and go      block/fault.cpp    faults in, waiters out
//   client/range.cpp    alloc, free, prefetch                block/migrate.cpp  an operation's stages
//   client/walk.cpp     walks over spans                     block/failure.cpp  what fails
//   vram/vram.cpp       slots, chunks, eviction              block/map.cpp      revoke and map
//   block/memory.cpp    charging, load, store                block/waits.cpp    operations in the wait graph
//   policy/*            victims, contention, speculation     verify.cpp         invariants
//   svm/change.cpp      the application's own changes       svm/move.cpp       mremap
//   work/*              fences, buffers, jobs, units         reclaim/*          system memory, the store beneath
#pragma once

#include <array>
#include <deque>
#include <map>
#include <memory>
#include <unordered_map>
#include <vector>

#include "core/block/block.h"
#include "core/client/requests.h"
#include "core/core.h"
#include "core/policy/prefetch.h"
#include "core/policy/throttle.h"
#include "core/policy/victim.h"
#include "core/reclaim/reclaim.h"
#include "core/svm/svm.h"
#include "core/work/work.h"
#include "graph/graph.h"

namespace ferry::core {

struct Range {
  std::uint64_t count_pages = 0;
  Placement placement = Placement::automatic;
  bool freeing = false;
};

/// Pages that an application protected: SpanProt bits, never span_all.
struct ProtectedSpan {
  std::uint64_t count_pages = 0;
  std::uint8_t prot = 0;
};

/// An unmap, for faults that are older.
struct PastUnmap {
  std::uint64_t number = 0;
  PageSpan span;
};

/// A sequential run of faults of one device, for speculation.
struct Stream {
  std::uint64_t next_granule = ~std::uint64_t{0};
  std::uint32_t length = 0;
  std::uint64_t last_use = 0;
};

struct Chunk {
  bool owned = false;      ///< counts against the budget; from acquisition until release_chunk is done
  bool draining = false;   ///< being emptied for another client: its free slots are not handed out
  bool releasing = false;  ///< release_chunk is under way
  bool counted = false;    ///< its release lets a waiter on: counts in Device::reclaims
  std::uint16_t used = 0;  ///< slots in use
};

/// One client's part of one device.
struct ClientDevice {
  bool attached = false;
  std::uint32_t process = 0;         ///< counts the device processes: an answer may come from a former one
  std::vector<Chunk> chunks;         ///< by chunk number in the client's VRAM file
  std::vector<VramPage> free_slots;  ///< of owned, not draining chunks; last in, first out
  std::vector<SlotIndex> slot_at;    ///< by slot number in the file (VramPage / granularity); none_index if free
  std::uint32_t idle_chunks = 0;     ///< owned, not draining, no slot used: could serve another client at once
  std::array<std::unique_ptr<Prefetcher>, 2> prefetchers;  ///< those at the front exist
  PrefetchGate gate;
};

struct Client {
  ClientId id = 0;
  bool dying = false;
  Cookie gone_cookie;
  std::uint32_t ops = 0;             ///< operations under way
  std::uint32_t upkeep = 0;          ///< release_chunk and discard_system actions under way
  std::uint64_t charged_pages = 0;   ///< against the budget: held, or freed and not given back yet
  std::uint32_t refused_blocks = 0;  ///< with pages that CPU threads were refused
  std::uint64_t pinned_pages = 0;    ///< each as often as it is pinned, or about to be
  std::map<Page, Range> ranges;
  std::map<Page, ProtectedSpan> protections;  ///< apart from each other, allocated pages only
  std::uint64_t changes = 0;                  ///< number of the last unmap; devices say which they have seen
  std::deque<PastUnmap> past_unmaps;          ///< the last few, oldest first
  std::unordered_map<BlockIndex, std::uint32_t> block_at;  ///< looked up only, never iterated
  std::vector<std::unique_ptr<Block>> blocks;              ///< holes are null; index kept in block_at
  std::vector<std::uint32_t> block_holes;
  std::vector<ClientDevice> devices;
  BlockIndex last_index = ~BlockIndex{0};
  Block* last_block = nullptr;
  Svm svm;
  Stats stats;
};

/// VRAM in use by a granule.
struct Slot {
  Client* client = nullptr;
  Block* block = nullptr;
  std::uint32_t granule = 0;
  VramPage first = 0;
  std::uint64_t arrived = 0;  ///< Device::evictions then
};

struct Device {
  std::uint64_t chunk_total = 0;
  std::uint64_t chunk_owned = 0;
  std::uint64_t buffer_chunks = 0;  ///< of chunk_owned, those of buffers, which are no client's
  std::vector<Slot> slots;
  std::vector<SlotIndex> slot_holes;
  VictimPolicy victims;
  Throttle throttle;
  std::vector<OpIndex> waiting;  ///< operations that wait for a slot, first come first served
  std::uint32_t reclaims = 0;    ///< evictions and drains under way that will let one waiter on
  std::uint64_t evictions = 0;
  std::uint64_t used_pages = 0;         ///< of slots in use
  std::uint32_t copy_slots = 0;         ///< slots in use that hold a copy, not a granule's home
  bool pumping = false;                 ///< pump() runs and will look again
  std::uint64_t line_moved_ns = 0;      ///< when `waiting` was last empty, or room was last found
  bool line_stands = false;             ///< for longer than Config::line_patience_ns; until a granule comes to rest
  graph::NodeId node = graph::no_node;  ///< of the line, while evictions that it waits for wait for system memory
};

struct Waiter {
  FaultToken token;
  Page page = 0;
  DeviceId device = no_device;
  Access access = Access::read;
  unsigned cu = AllocContext::no_cu;       ///< that the wave holds, where known
  std::uint64_t seen = ~std::uint64_t{0};  ///< Client::changes as the device knew it when the wave touched the page
};

/// A granule on its way. Stages run in the order given; each waits for the answers to what it asked for.
enum class Stage : std::uint8_t {
  begin,
  wait_turn,      ///< for the end of the slice of whom the granule is with, in Impl::turns
  wait_memory,    ///< in Reclaim's line: nothing has been done, but for what came before a change of goal
  wait_slot,      ///< in Device::waiting
  revoke_source,  ///< nobody may write what is copied
  copy_home,      ///< dirty VRAM pages to system memory
  drop_vram,      ///< the system copy is current: VRAM may be given back
  copy_up,        ///< system pages to VRAM
  map_vram,
  map_in_place,
  map_cpu,
  copy_direct,  ///< from one device's VRAM to another's
  switch_home,
  take_copies,  ///< nobody reads the copies of the pages any more ...
  drop_copies,  ///< ... and they are gone
  meet,         ///< goals move_in, move_out: nobody reaches the pages; for the partner to be as far
  carried,      ///< goal move_in: the pages are here, or on their way
  gather,       ///< goal duplicate: nobody writes the pages; their newest bytes to system memory
  fill,         ///< ... and to the device's copy
  map_copy,
  discard,  ///< freed pages: forget them
  forget,   ///< pages are discarded from here on
  zero,     ///< pages lose their contents and stay allocated
  store,    ///< pages that only system memory holds are written to the store
  drop_system,
  finished,  ///< the last actions are under way
};

/// Where the pages are to be when the operation ends.
enum class Goal : std::uint8_t {
  vram,
  system,
  in_place,
  discard,    ///< nowhere: the pages were freed
  zero,       ///< in system memory, without contents
  protect,    ///< where they are; devices that may not reach them any more let go
  probe,      ///< where they are, but unmapped on the owner, to see whether it asks for them
  freeze,     ///< where they are, out of every device's reach
  peer,       ///< where they are, in VRAM of another device of the hive, mapped there
  take,       ///< where they are, but unmapped wherever attributes forbid the mapping
  store,      ///< out of system memory: to the store, or dropped where another copy is as new
  forget,     ///< where they are, reached by nobody: their contents may be dropped from then on
  duplicate,  ///< where they are, and a copy with `device`; no_device: with the CPU
  drop_copy,  ///< where they are, but not with reclaim_device, which has a copy
  unite,      ///< where their home is, and nowhere else
  move_out,   ///< where partner's pages are, in their stead; what is left here are zeros
  move_in,    ///< where partner has them, and nothing of what is here
};

struct Op {
  OpIndex self = none_index;
  Block* block = nullptr;
  std::uint32_t granule = 0;
  Goal goal = Goal::system;
  Stage stage = Stage::begin;
  Cause cause = Cause::none;
  DeviceId device = no_device;   ///< of goal vram and in_place
  Access access = Access::read;  ///< strongest that a waiter wants
  bool in_use = false;
  bool reclaim = false;  ///< counts in Device::reclaims of reclaim_device
  DeviceId reclaim_device = no_device;
  bool redirected = false;  ///< it had another goal; what the device reaches may be unknown since
  bool moved = false;       ///< migrate_begin was told
  Place moved_to = Place::system;
  DeviceId moved_device = no_device;  ///< that migrate_begin named ...
  DeviceId moved_from = no_device;
  Code move_status = Code::ok;    ///< told by migrate_end
  Status failure;                 ///< of the stage under way
  bool trouble = false;           ///< set: `failure`, `retry` or `load_failed` may say something
  std::uint32_t outstanding = 0;  ///< actions unanswered
  std::uint32_t copy_failures = 0;
  std::uint32_t tries = 0;    ///< of a request that pins: operations before this one that did not do
  std::uint64_t turn_ns = 0;  ///< stage wait_turn: when it goes on
  std::uint64_t serial = 0;
  PageMask pages;                  ///< what the operation is about; pages freed meanwhile stay in until it ends
  bool by_home = false;            ///< not directly, although the devices are linked
  bool at_home = false;            ///< goal duplicate: the device reads system memory, as there is no room for a copy
  bool united = false;             ///< the pages' copies are gone, but for the home
  OpIndex partner = none_index;    ///< goals move_in, move_out: of the other side
  int shift = 0;                   ///< ... bits from the source's page to the target's, in their blocks
  bool fills = false;              ///< goal move_in: what lies in VRAM is copied into the granule's slot
  SlotIndex slot_to = none_index;  ///< stages of a direct move: the slot of `device` that the granule is copied to
  PageMask arrived;                ///< ... and what is there already
  PageMask retry;                  ///< pages whose copy failed
  PageMask load_failed;            ///< pages whose load failed
  PageMask need;                   ///< stage wait_memory: pages to be charged
  std::uint64_t memory = 0;        ///< stage wait_memory: Reclaim's request
  std::uint64_t write_pages = 0;   ///< goal store: of Reclaim::store_begins
  std::uint64_t leave_pages = 0;
  graph::NodeId node = graph::no_node;  ///< while it waits for memory, or for VRAM that waits for memory
  VramPage vram_first = 0;              ///< of the granule's slot when the stage began
  std::vector<Waiter> waiters;
  std::vector<std::uint32_t> prefetches;    ///< requests to tell at the end
  PageMask discard_next;                    ///< pages whose free waits for this operation
  std::vector<std::uint32_t> frees;         ///< goal discard: requests that wait for it
  std::vector<std::uint32_t> next_frees;    ///< requests that wait for discard_next
  PageMask remap;                           ///< goal take: unmapped whatever their mappings allow
  PageMask remap_next;                      ///< pages that are to be unmapped when this operation has ended
  std::vector<std::uint32_t> svm;           ///< of svm_requests, those that wait for it
  std::vector<std::uint32_t> changes;       ///< goals zero, protect: requests that wait for it
  std::vector<std::uint32_t> next_changes;  ///< requests that look at the granule when it has ended
};

struct Pending {
  OpIndex op = none_index;
  std::uint64_t op_serial = 0;
  Verb verb = Verb::reply;
  DeviceId device = no_device;
  Client* client = nullptr;
  std::uint32_t request = none_index;  ///< discard_system: the free request
  std::uint32_t process = 0;           ///< map_device: ClientDevice::process when it was asked for
  PageSpan pages;
  VramPage vram_first = 0;
  FaultToken token;
  bool has_token = false;
  bool wakes_cpu = false;  ///< map_cpu: threads wait for some of the pages
  std::uint32_t generation = 0;
  bool in_use = false;
  bool is_work = false;  ///< answered to Work::action_done with `work`; all other fields but client are unset
  WorkRef work;
};

class Core::Impl {
 public:
  Impl(const Config& config, Observer* observer);

  // client/client.cpp
  void client_open(ClientId id);
  void client_gone(ClientId id, Cookie cookie);
  void device_attach(ClientId id, DeviceId device);
  void device_gone(ClientId id, DeviceId device);
  void finish_client_if_idle(Client& client);
  void discard_ranges(Client& client);
  void ranges_discarded(Client& client);
  Client* find_client(ClientId id);
  [[nodiscard]] const Client* find_client(ClientId id) const;

  // client/range.cpp
  Status alloc(ClientId id, PageSpan span, Placement placement);
  Status free(ClientId id, PageSpan span, Cookie cookie);
  void start_free(Client& client, PageSpan span, Cookie cookie, std::uint32_t change);
  Status prefetch(ClientId id, PageSpan span, DeviceId device, Cookie cookie);
  void split_range(Client& client, Page at);
  [[nodiscard]] static bool all_allocated(const Client& client, PageSpan span);
  void free_granule_done(std::uint32_t request);
  void free_forgotten(std::uint32_t request);
  void free_granule(std::uint32_t request, Block& block, std::uint32_t granule);
  [[nodiscard]] PageSpan freed_in(std::uint32_t request, const Block& block, std::uint32_t granule) const;
  void resume_frees();
  Status request_moves(ClientId id, PageSpan span, DeviceId device, PrefetchRequest::Kind kind, std::uint32_t& request);
  void end_request(std::uint32_t request);
  void walk_in_place(Client& client, PageSpan span, DeviceId device, BufferId userptr);
  bool walk_granule(std::uint32_t request, Block& block, std::uint32_t granule);
  bool visit_granule(std::uint32_t request, Block& block, std::uint32_t granule);
  bool prefetch_granule(std::uint32_t request, Block& block, std::uint32_t granule);
  void prefetch_op_done(std::uint32_t request);
  [[nodiscard]] std::uint32_t new_prefetch();

  // client/walk.cpp
  void advance_prefetch(std::uint32_t request);
  void rest(bool& rests, Rest::Of of, std::uint32_t request);
  void end_rest();
  void look_in(Client& client, BlockIndex index, MadeBlock& made);
  void prefetch_for(std::uint32_t svm, Client& client, PageSpan span, DeviceId device);

  // svm/fork.cpp
  Status client_fork(ClientId id, Cookie cookie);
  void fork_granule(std::uint32_t request, Block& block, std::uint32_t granule);
  Block* find_block(Client& client, BlockIndex index);
  [[nodiscard]] static const Block* find_block(const Client& client, BlockIndex index);
  [[nodiscard]] static BlockIndex next_block(const Client& client, BlockIndex from);
  template <typename Fn>
  void for_blocks(Client& client, PageSpan span, Fn&& fn);
  Block& make_block(Client& client, BlockIndex index);
  void drop_block_if_empty(Client& client, Block& block);
  void forget_block(Client& client, const Block& block);

  // svm/attributes.cpp
  Status svm_set(ClientId id, PageSpan span, const std::vector<Attribute>& changes, Cookie cookie, unsigned& wrong);
  Status svm_get(ClientId id, PageSpan span, std::vector<Attribute>& queries, unsigned& wrong) const;
  Status svm_reset(ClientId id, PageSpan span, Cookie cookie);
  [[nodiscard]] Attributes attributes(ClientId id, Page page) const;
  Status group_assign(ClientId id, PageSpan span, std::uint32_t group);
  Status group_migration(ClientId id, std::uint32_t group, bool allowed);
  void svm_forget(Client& client, PageSpan span);         ///< the pages are no allocation's any more
  void svm_move(Client& client, PageSpan from, Page to);  ///< what was said goes along
  static void svm_copy(const Client& parent, Client& child);
  static void look_plain(Block& block);  ///< Block::plain, anew
  template <typename Fn>
  void svm_change(Client& client, PageSpan span, Fn&& fn, Location prefetch, Cookie cookie);
  std::uint32_t new_svm_request(Client& client, PageSpan span, Cookie cookie);
  void svm_take(std::uint32_t request, Block& block, const PageMask& pages, const PageMask& remap);
  bool start_taking(Block& block, std::uint32_t granule, const PageMask& remap);
  void take_mappings(Op& op);
  bool take_next(Block& block, std::uint32_t granule, const PageMask& remap, std::vector<std::uint32_t>& told,
                 std::vector<Waiter>& waiters, std::vector<std::uint32_t>& changes);
  void svm_told(std::uint32_t request);
  void svm_go_on(std::uint32_t request);
  [[nodiscard]] bool any_away(Client& client, PageSpan span);

  // svm/route.cpp: of blocks that are not plain, but for refuse_cpu and let_cpu
  template <typename Fn>
  void for_attributes(const Block& block, std::uint32_t granule, Fn&& fn) const;
  [[nodiscard]] Status may_touch(const Block& block, Page page, DeviceId device, Access access) const;
  [[nodiscard]] PageMask forbidden(const Block& block, std::uint32_t granule, DeviceId device) const;
  [[nodiscard]] RightsList rights_of(const Block& block, std::uint32_t granule, DeviceId device, const PageMask& pages,
                                     bool write) const;
  [[nodiscard]] bool is_fixed(const Client& client, Page page) const;
  [[nodiscard]] PageMask fixed_pages(const Block& block, std::uint32_t granule) const;
  [[nodiscard]] PageMask may_go_to(const Block& block, std::uint32_t granule, DeviceId device, const PageMask& pages,
                                   bool asked) const;
  [[nodiscard]] PageMask served_with(const Block& block, Page page) const;
  void serve_by_attributes(Block& block, const Waiter& waiter);
  void bring_window(Block& block, const Waiter& waiter, const Attributes& attributes);
  PageMask route_cpu(Block& block, std::uint32_t granule);
  [[nodiscard]] PageMask kept_from_cpu(const Block& block, std::uint32_t granule) const;
  void refuse_cpu(Block& block, const PageMask& pages, Code why);
  void let_cpu(Block& block);
  [[nodiscard]] bool takes_turn(const Block& block, std::uint32_t granule, const PageMask& pages) const;

  // svm/retry.cpp
  Status set_retry_faults(ClientId id, bool on);
  [[nodiscard]] bool retry_faults(const Client& client, DeviceId device) const;
  [[nodiscard]] bool maps_ahead(const Client& client, DeviceId device) const;
  [[nodiscard]] PageMask must_map(const Block& block, std::uint32_t granule, DeviceId device) const;
  [[nodiscard]] PageMask not_mapped(const Block& block, std::uint32_t granule, DeviceId device) const;
  [[nodiscard]] bool always_mapped(const Block& block, PageSpan span, DeviceId device) const;
  Op& start_mapping(Block& block, std::uint32_t granule, DeviceId device, const PageMask& pages);
  bool svm_map(std::uint32_t request);

  // svm/change.cpp
  Status change(ClientId id, Change change, PageSpan span, Page to, std::uint8_t prot, Cookie cookie);
  void leave_out_of_discards(const Client& client, PageSpan span);
  [[nodiscard]] static std::vector<PageSpan> not_allocated_parts(const Client& client, PageSpan span);
  void start_unmap(std::uint32_t request);
  void start_discard(std::uint32_t request);
  void advance_discard(std::uint32_t request);
  void start_protect(std::uint32_t request, std::uint8_t prot);
  void change_granules(std::uint32_t request, Block& block);
  void change_granule(std::uint32_t request, Block& block, std::uint32_t granule);
  void change_part_done(std::uint32_t request);
  void set_protection(Client& client, PageSpan span, std::uint8_t prot);
  void protect_block(const Client& client, Block& block) const;
  void zero(Op& op);
  void revoke_for_change(Op& op);
  void resume_changes();
  void forget_changes(const Client& client);
  void verify_changes(const Client& client) const;
  [[nodiscard]] std::uint32_t new_change();
  void change_op_done(std::uint32_t request, const Block& block, std::uint32_t granule);

  // svm/move.cpp
  Status move(Client& client, PageSpan span, Page to, Cookie cookie);
  [[nodiscard]] bool is_moved(const Client& client, PageSpan span) const;
  void advance_move(std::uint32_t request);
  void move_granule(std::uint32_t request, const Block& block, std::uint32_t granule);
  void move_ended(std::uint32_t request, const Block& block, std::uint32_t granule);
  void end_piece(std::uint32_t request, std::uint64_t id);
  static void wait_in(MovePiece& piece, const Block& block, std::uint32_t granule);
  void bring_for_move(std::uint32_t request, MovePiece& piece, Block& block, std::uint32_t granule,
                      const PageMask& pages);
  [[nodiscard]] PageMask moving_pages(const ChangeRequest& request, const MovePiece& piece, const Block& from,
                                      const Block& to) const;
  [[nodiscard]] bool can_carry(const MovePiece& piece, Block& from, Block& to, const PageMask& pages, bool& fills);
  void try_piece(std::uint32_t request, std::uint64_t id);
  void leave_piece(std::uint32_t request, MovePiece& piece, Block& to, const PageMask& pages);
  void revoke_for_move(Op& op);
  bool meet(Op& op);
  void carry(Op& in, Op& out);
  void move_bytes(Op& in, const Op& out, const PageMask& pages);
  void move_copied(Op& in, const Pending& pending, const PageMask& pages, Status status);
  void move_failed(Op& in);
  void finish_move(Op& in);
  void part_ways(Op& op);
  void verify_moves(const Client& client) const;
  /// The page was unmapped after the device saw `seen`.
  [[nodiscard]] static bool unmapped_since(const Client& client, Page page, std::uint64_t seen);
  [[nodiscard]] static bool is_protected(const Block& block, unsigned bit, Access access) {
    return block.protection != nullptr &&
           (access == Access::read ? block.protection->no_read : block.protection->no_write).test(bit);
  }

  // svm/moves.cpp: moves on request. svm/pin.cpp: pins
  Status migrate(ClientId id, PageSpan span, DeviceId device, FenceId fence);
  Status populate(ClientId id, PageSpan span, DeviceId device, Cookie cookie);
  /// Change::lazy_free. Replies when nobody reaches the pages as they were. REQUIRES: some page is allocated.
  Status discard_contents(ClientId id, PageSpan span, Cookie cookie);
  bool populate_granule(std::uint32_t request, Block& block, std::uint32_t granule);
  bool forget_granule(std::uint32_t request, Block& block, std::uint32_t granule);
  void forgotten(Op& op);
  void written(Block& block, const PageMask& pages);
  [[nodiscard]] static PageMask discarded(const Block& block) {
    return block.extras == nullptr ? PageMask() : block.extras->discarded;
  }
  void revisit(Block& block, std::uint32_t granule, const Op& ended, std::vector<std::uint32_t>& requests,
               std::vector<Waiter>& waiters);
  Extras& extras_of(Block& block);
  void drop_extras_if_empty(Block& block);
  Status pin(ClientId id, PageSpan span, DeviceId device, Cookie cookie);
  Status unpin(ClientId id, PageSpan span);
  void unpin_pages(Client& client, PageSpan span);
  enum class PinStep : std::uint8_t { pinned, bring, failed };
  PinStep pin_step(std::uint32_t request, Block& block, std::uint32_t granule);
  Op& start_pin_op(std::uint32_t request, Block& block, std::uint32_t granule);
  bool pin_granule(std::uint32_t request, Block& block, std::uint32_t granule);
  void pin_failed(PrefetchRequest& request);
  void forget_pins(Client& client);
  /// Pages of the mask that may not leave where they are.
  [[nodiscard]] static PageMask pinned(const Block& block, const PageMask& pages) {
    return block.extras == nullptr ? PageMask() : block.extras->pinned & pages;
  }
  [[nodiscard]] bool pinned(const Client& client, PageSpan span) const;
  [[nodiscard]] PageMask requested(const PrefetchRequest& request, const Block& block, std::uint32_t granule) const;
  bool serve_pinned(Block& block, const Waiter& waiter);
  void fail_cpu_at_pins(Block& block, std::uint32_t granule);
  void verify_refused(const Block& block) const;
  void keep_pinned(Op& op) const;
  [[nodiscard]] bool slot_stays(const Op& op) const;
  void redirect_around_pins(Op& op);
  [[nodiscard]] bool may_evict(DeviceId device, const Slot& slot, const Client& requester) const;
  [[nodiscard]] bool is_draining(const Block& block, std::uint32_t granule) const;
  static constexpr std::uint32_t pin_tries_most = 4;
  [[nodiscard]] std::uint64_t pin_limit() const;
  void verify_pins(const Client& client) const;

  /// Both are of one hive: each reaches the other's VRAM, and copies to it directly.
  [[nodiscard]] bool linked(DeviceId a, DeviceId b) const {
    return a != b && a < config.hives.size() && b < config.hives.size() && config.hives[a] != 0 &&
           config.hives[a] == config.hives[b];
  }

  // block/fault.cpp
  void device_fault(ClientId id, DeviceId device, Page page, Access access, FaultToken token, unsigned cu,
                    std::uint64_t seen);
  void cpu_fault(ClientId id, Page page, Access access);
  void not_allocated(Client& client, const Waiter& waiter);
  void serve_device_waiter(Block& block, const Waiter& waiter);
  void serve_cpu(Block& block, std::uint32_t granule);
  void after_op(Block& block, std::uint32_t granule, std::vector<Waiter>& waiters);
  void wake(Client& client, const Waiter& waiter, Status status);

  // block/migrate.cpp
  Op& start_op(Block& block, std::uint32_t granule, Goal goal, Cause cause, DeviceId device, Access access);
  void run_op(OpIndex index);
  bool step(Op& op);
  void begin(Op& op);
  void route(Op& op);
  void end_op(OpIndex index);
  void redirect(Op& op, Goal goal);
  void op_action_done(const Pending& pending, Status status);
  bool stage_failed(Op& op);
  void fail_waiters(Op& op, Status status);
  void tell_moved(Op& op, Place to);
  void tell_move_ended(Op& op);
  std::vector<Waiter> take_spare();

  // block/map.cpp
  void revoke_for_vram(Op& op);
  void revoke_vram(Op& op);
  void revoke_everything(Op& op);
  void revoke_device(Op& op, DeviceId device, const PageMask& pages);
  void copy_home(Op& op, const PageMask& pages);
  void drop_discarded(Op& op, PageMask& dirty);
  void copy_up(Op& op);
  void map_vram(Op& op);
  void map_in_place(Op& op);
  void map_cpu(Op& op);
  void drop_vram(Op& op);
  void drop_empty_slot(const Op& op);
  void give_token(const Op& op, Action& action);
  void discard(Op& op);
  void mark_revoked(Block& block, DeviceId device, const PageMask& pages);

  // block/direct.cpp
  [[nodiscard]] bool moves_directly(const Op& op) const;
  void take_target(Op& op);
  void copy_direct(Op& op);
  void switch_home(Op& op);
  void drop_target(Op& op);
  void revoke_peers(Op& op, const PageMask& pages);
  bool serve_linked(Block& block, const Waiter& waiter, const Attributes& a);

  // svm/replica.cpp, svm/collapse.cpp: several copies of a page
  [[nodiscard]] bool reads_own_copy(const Client& client, const Attributes& a, DeviceId device) const;
  [[nodiscard]] PageMask read_mostly(const Block& block, std::uint32_t granule, DeviceId device) const;
  [[nodiscard]] static PageMask copied(const Block& block);
  [[nodiscard]] static PageMask shared(const Block& block);
  [[nodiscard]] PageMask has_here(const Block& block, std::uint32_t granule, DeviceId device) const;
  [[nodiscard]] bool holds_copies(const Block& block, std::uint32_t granule) const;
  [[nodiscard]] SlotIndex copy_slot(const Block& block, std::uint32_t granule, DeviceId device) const {
    return block.copies == nullptr ? none_index : block.copies->slots[granule * devices.size() + device];
  }
  [[nodiscard]] bool is_copy(DeviceId device, const Slot& slot) const;
  Copies& copies_of(Block& block);
  void drop_copies_if_none(Block& block);
  void note_cpu_access(Block& block, unsigned bit, Access access);
  bool serve_reader(Block& block, const Waiter& waiter, const Attributes& a, bool at_home);
  [[nodiscard]] PageMask written_with(const Block& block, const Waiter& waiter, const PageMask& pages) const;
  bool serve_cpu_reader(Block& block, std::uint32_t granule, PageMask& pages);
  bool prefetch_copy(std::uint32_t request, Block& block, std::uint32_t granule, PageMask& pages);
  void route_duplicate(Op& op);
  bool take_copy_slot(Op& op);
  void protect_source(Op& op);
  void gather(Op& op);
  bool fill(Op& op);
  void map_copy(Op& op);
  void map_cpu_reading(Op& op);
  void map_reading(Op& op, const PageMask& pages, Place place, DeviceId device, VramPage first);
  void copy_arrived(Op& op, const Pending& pending, const PageMask& pages);
  bool duplicate_failed(Op& op, Status failure);
  void release_unused(Op& op);
  [[nodiscard]] bool must_unite(const Op& op) const;
  void take_copies(Op& op);
  void drop_copies(Op& op);
  void release_copy(Block& block, std::uint32_t granule, DeviceId device);
  [[nodiscard]] bool can_swap_home(const Block& block, std::uint32_t granule, DeviceId device) const;
  void swap_home(Block& block, std::uint32_t granule, DeviceId device);
  bool becomes_copy(Block& block, std::uint32_t granule, DeviceId device);
  void evict_draining_copies(Block& block, std::uint32_t granule);
  void start_drop_copy(DeviceId device, SlotIndex slot, bool counts);
  bool unite_span(std::uint32_t svm);
  void verify_copies(const Block& block) const;

  // block/memory.cpp: nothing of it runs without a budget of system memory
  bool acquire_memory(Op& op);
  void give_up(Op& op);
  [[nodiscard]] PageMask memory_needed(const Op& op) const;
  [[nodiscard]] bool wants_system(const Op& op) const;
  [[nodiscard]] AllocContext memory_context(const Op& op) const;
  void memory_waiter_joined(Op& op, const Waiter* waiter);
  void charge(Op& op);
  void uncharge(Client& client, std::uint64_t pages);
  void drop_lru_if_empty(Block& block, std::uint32_t granule);
  void forget_client_memory(Client& client);
  bool load(Op& op, const PageMask& pages);
  bool load_failed(Op& op);
  void forget_stored(Op& op, const PageMask& pages);
  void revoke_for_store(Op& op);
  void store(Op& op);
  void drop_system(Op& op);
  void stored(Op& op, const PageMask& pages, Status status);
  void dropped(Op& op, const PageMask& pages);
  void memory_op_ends(Op& op);
  void return_memory(Op& op);
  void withdraw_memory(Client& client);
  bool serve_slot_line_in_place();
  [[nodiscard]] bool needless_eviction(OpIndex index) const;
  // block/waits.cpp
  void show_memory_wait(Op& op, graph::NodeId memory);
  void show_fault(Op& op, const Waiter& waiter);
  void show_slot_line(DeviceId device);
  void show_slot_lines();
  void hide_waits(Op& op);

  // vram/vram.cpp
  bool acquire_slot(Op& op);
  SlotIndex insert_slot(Op& op, VramPage first, std::uint64_t distance);
  void assign_slot(Op& op, VramPage first);
  bool take_slot(Client& client, DeviceId device, VramPage& first);
  void release_slot(Block& block, std::uint32_t granule);
  void return_vram(Client& client, DeviceId device, VramPage first);
  void pump(DeviceId device);
  bool reclaim_one(DeviceId device, Client& requester);
  void start_drain(DeviceId device, Client& owner, std::uint32_t chunk);
  void pump_all();
  void tick();
  void evict_if_draining(Block& block, std::uint32_t granule);
  void forget_slot(DeviceId device, SlotIndex slot);
  void start_release(DeviceId device, Client& owner, std::uint32_t chunk);
  void release_done(const Pending& pending);
  void start_evict(DeviceId device, SlotIndex slot, bool counts);
  void start_probe(DeviceId device);
  bool take_buffer_chunks(DeviceId device, std::uint64_t chunks);
  void give_buffer_chunks(DeviceId device, std::uint64_t chunks);
  [[nodiscard]] bool slot_in_motion(DeviceId device) const;
  [[nodiscard]] bool room_is_coming(DeviceId device) const;
  [[nodiscard]] bool has_free_slot(const Client& client, DeviceId device) const;
  void account(DeviceId device, const Client& client);
  void count_vram(DeviceId device);
  bool drain_idle_chunk(DeviceId device, const Client* requester);
  /// The free of pages that it has in VRAM is about to begin: nothing can be evicted before, and it gives the slot back.
  [[nodiscard]] bool being_freed(const Block& block, std::uint32_t granule) const {
    return (block.freeing & block.vram_current).intersects(granule_mask(granule));
  }
  [[nodiscard]] std::uint32_t slots_per_chunk() const { return block_pages / config.granularity_pages; }

  // policy/contention.cpp
  bool note_flip(Block& block, Granule& granule);
  bool wait_for_turn(Op& op);
  [[nodiscard]] std::uint64_t slice_of(const Granule& granule) const;
  void end_turns();
  void forget_turns(const Client& client);
  [[nodiscard]] std::uint64_t next_turn_ns() const;
  [[nodiscard]] bool is_contended(const Granule& granule) const {
    return now_ns > 0 && granule.pinned_until_ns > now_ns;
  }
  std::uint64_t note_refault(const Op& op);
  // policy/leave.cpp
  bool leave_in_place(const Client& client, Granule& state, Page page, DeviceId device, PageMask& part);
  void note_return(Granule& state, std::uint64_t distance, const Device& device);
  void note_stay(Granule& state, std::uint64_t age, const Device& device);
  // policy/speculate.cpp
  void speculate(Block& block, std::uint32_t granule, DeviceId device, Access access);
  bool speculate_granule(Client& client, std::uint64_t number, DeviceId device, Access access);

  // core.cpp, for work/ and reclaim/
  /// An action with an answer, for Work. The client may be gone already (its buffers live on with others).
  Action& ask_work(Verb verb, ClientId client, const WorkRef& ref);
  Action& emit_for(Verb verb, ClientId client);
  void reply_to(Cookie cookie, ClientId client, Status status);
  /// A memory request of an operation was granted (or, ok() cleared, refused): it goes on.
  void op_memory_granted(OpIndex op, std::uint64_t serial, Status status);
  /// Starts to move a granule's pages out of system memory. busy: not now. nothing: not as it is.
  enum class StoreStart : std::uint8_t { started, busy, nothing };
  StoreStart start_store(Block& block, std::uint32_t granule);
  [[nodiscard]] std::uint64_t digest() const;

  // verify.cpp
  void verify() const;
  void verify_block(const Block& block) const;
  void verify_svm(const Client& client) const;
  void verify_turns() const;
  void verify_vram(DeviceId device) const;
  [[nodiscard]] bool quiescent() const;
  Residency query(ClientId id, Page page) const;
  [[nodiscard]] SpanState span_state(ClientId id, PageSpan span) const;

  // shared
  Action& emit(Verb verb, const Client& client);
  Action& ask(Verb verb, Op& op, PageSpan pages);
  Action& ask_client(Verb verb, Client& client, std::uint32_t& index);
  void reply(Cookie cookie, const Client& client, Status status);
  void tell(EventKind kind, const Client& client, DeviceId device, PageSpan pages, Cause cause,
            Access access = Access::read, Place to = Place::system, Code status = Code::ok, DeviceId from = no_device);
  std::uint32_t new_pending();
  void action_done(ActionId id, Status status);
  template <typename Fn>
  void count(Client& client, Fn&& fn) {
    fn(stats);
    fn(client.stats);
  }
  [[nodiscard]] bool planted(PlantedBug bug) const { return config.bug == bug; }

  [[nodiscard]] std::uint32_t granule_of(Page page) const {
    return static_cast<std::uint32_t>(page & (block_pages - 1)) / config.granularity_pages;
  }
  [[nodiscard]] PageMask granule_mask(std::uint32_t granule) const {
    return PageMask::range(granule * config.granularity_pages, config.granularity_pages);
  }
  [[nodiscard]] PageSpan granule_span(const Block& block, std::uint32_t granule) const {
    return {first_page_of(block.index) + granule * config.granularity_pages, config.granularity_pages};
  }
  /// Calls fn(PageSpan) for each run of the mask, which has no bit outside the operation's granule.
  template <typename Fn>
  void for_spans(const Op& op, const PageMask& mask, Fn&& fn) const;
  [[nodiscard]] static Granule& granule_state(const Op& op) { return op.block->granules[op.granule]; }

  Config config;
  Observer* observer;
  std::uint64_t now_ns = 0;
  Stats stats;
  std::map<ClientId, std::unique_ptr<Client>> clients;
  std::map<ClientId, Stats> gone_stats;
  std::vector<Device> devices;
  std::deque<Op> ops;  ///< a deque: references stay good while operations start others
  std::vector<OpIndex> op_holes;
  std::vector<Pending> pendings;
  std::vector<std::uint32_t> pending_holes;
  std::uint32_t pending_in_use = 0;
  std::vector<OpIndex> turns;         ///< operations in stage wait_turn, oldest first
  std::uint32_t memory_line_ops = 0;  ///< operations in Reclaim's line
  std::uint64_t returning_pages = 0;  ///< of frees whose last action is under way
  std::uint32_t ops_in_use = 0;
  std::uint32_t pinned_blocks = 0;  ///< blocks with a pinned page
  std::uint64_t op_serial = 0;
  /// run_op() inside run_op(). Far above what a chain of evictions needs, far below what a stack holds.
  static constexpr std::uint32_t op_depth_most = 2048;
  std::uint32_t op_depth = 0;
  std::vector<FreeRequest> frees;
  std::vector<PrefetchRequest> prefetches;
  std::vector<SvmRequest> svm_requests;
  std::vector<KeptFree> kept_frees;
  std::vector<KeptFree> kept_changes;  ///< `request` is a ChangeRequest
  std::vector<ChangeRequest> changes;
  std::uint64_t change_serial = 0;
  std::deque<Rest> resting;  ///< in their turn. Those that have ended meanwhile stay in until it comes
  /// Granules that a walk looks at in one event.
  static constexpr unsigned walk_granules_most = 1024;
  static constexpr BlockIndex no_block = ~BlockIndex{0};
  std::vector<Action> actions;
  std::vector<std::vector<Waiter>> spare_waiters;  ///< kept for their capacity
  graph::Graph graph;
  /// Classes of the graph, in the order of their making.
  struct Classes {
    graph::ClassId fault, operation, memory, fence, job, unit, compute, engine, line, gate, buffer, point, machine,
        unseen;
  } classes;
  std::vector<std::uint64_t> scratch_granules;  ///< speculate()'s, kept for its capacity
  std::vector<graph::NodeId> scratch_nodes;     ///< show_slot_line()'s, kept for its capacity
  Work work;
  Reclaim reclaim;
};

template <typename Fn>
void Core::Impl::for_spans(const Op& op, const PageMask& mask, Fn&& fn) const {
  const Page base = first_page_of(op.block->index);
  const unsigned from = op.granule * config.granularity_pages;
  const unsigned to = from + config.granularity_pages;
  if (config.granularity_pages == 1) {
    if (mask.test(from)) {
      fn(PageSpan{base + from, 1});
    }
    return;
  }
  for (unsigned first = mask.find_set(from); first < to;) {
    const unsigned end = std::min(mask.find_clear(first), to);
    fn(PageSpan{base + first, end - first});
    first = end < to ? mask.find_set(end) : to;
  }
}

/// Calls fn(block) for each block of the span that exists, by looking them up or by going through all, whichever is less.
/// `fn` may drop the block that it is given.
template <typename Fn>
void Core::Impl::for_blocks(Client& client, PageSpan span, Fn&& fn) {
  const BlockIndex first = block_of(span.first);
  const BlockIndex last = block_of(span.end() - 1);
  if (last - first < client.block_at.size()) {
    for (BlockIndex b = first; b <= last; ++b) {
      if (Block* block = find_block(client, b)) {
        fn(*block);
      }
    }
    return;
  }
  for (std::size_t i = 0; i < client.blocks.size(); ++i) {
    Block* block = client.blocks[i].get();
    if (block != nullptr && block->index >= first && block->index <= last) {
      fn(*block);
    }
  }
}

}  // namespace ferry::core
