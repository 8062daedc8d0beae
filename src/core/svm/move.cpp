// mremap: pages have another address, and their bytes are where they were, as far as that can be. Carried out piece by
// piece; a piece lies in one granule on either side, and begins when no operation is under way in either, with one in each.
// Nobody waits for memory or VRAM who holds two granules: what has to come home, and memory for what lies in system
// memory, is had by ordinary operations before. docs/design/0019-changes.md.
#include "core/impl.h"

namespace ferry::core {
namespace {

constexpr Page page_limit = Page{1} << 52;
/// Pieces under way at a time: each waits for processes that let go of its pages.
constexpr std::size_t window = 8;
/// Ordinary operations for one piece that did not do, before it stays where it is.
constexpr unsigned tries_most = 4;

unsigned bit_of(Page page) { return static_cast<unsigned>(page & (block_pages - 1)); }

PageMask mask_of(Page first, std::uint64_t count) {
  return PageMask::range(bit_of(first), static_cast<unsigned>(count));
}

/// REQUIRES: nothing is shifted out.
PageMask shifted(const PageMask& mask, int by) {
  if (by == 0) {
    return mask;
  }
  PageMask out;
  mask.for_each_run([&](unsigned first, unsigned count) {
    out.set_range(static_cast<unsigned>(static_cast<int>(first) + by), count);
  });
  return out;
}

PageMask in_block(const Block& block, PageSpan span) {
  const Page base = first_page_of(block.index);
  const Page first = std::max(span.first, base);
  const Page end = std::min(span.end(), base + block_pages);
  return end > first ? mask_of(first, end - first) : PageMask();
}

MovePiece& piece_of(ChangeRequest& request, std::uint64_t id) {
  const auto it = std::find_if(request.pieces.begin(), request.pieces.end(),
                               [id](const MovePiece& piece) { return piece.id == id; });
  FERRY_CHECK(it != request.pieces.end());
  return *it;
}

}  // namespace

// --- requests --------------------------------------------------------------------------------------------------------

Status Core::Impl::move(Client& client, PageSpan span, Page to, Cookie cookie) {
  const PageSpan target{to, span.count_pages};
  if (target.first >= page_limit || target.count_pages > page_limit - target.first) {
    return Code::bad_range;
  }
  if (!all_allocated(client, span) || !all_allocated(client, target)) {
    return Code::not_allocated;
  }
  if (block_of(span.first) <= block_of(target.end() - 1) && block_of(target.first) <= block_of(span.end() - 1)) {
    return Code::unsupported;
  }
  const bool kept = std::any_of(prefetches.begin(), prefetches.end(), [&](const PrefetchRequest& request) {
    const bool pins =
        request.kind == PrefetchRequest::Kind::pin && (request.span.overlaps(span) || request.span.overlaps(target));
    return request.in_use && request.client == &client && (request.fork || pins);
  });
  if (kept || pinned(client, span) || pinned(client, target) || is_moved(client, span) || is_moved(client, target)) {
    return Code::in_use;
  }
  const std::uint32_t index = new_change();
  ChangeRequest& request = changes[index];
  request.in_use = true;
  request.client = &client;
  request.change = Change::move;
  request.span = span;
  request.to = to;
  request.cookie = cookie;
  request.remaining = 1;  // until every piece was begun
  request.cursor = span.first;
  work.userptr_invalidate(client.id, span);
  work.userptr_invalidate(client.id, target);
  advance_move(index);
  return {};
}

/// A move is under way that takes pages of the span, or brings some.
bool Core::Impl::is_moved(const Client& client, PageSpan span) const {
  return std::any_of(changes.begin(), changes.end(), [&](const ChangeRequest& request) {
    return request.in_use && request.client == &client && request.change == Change::move &&
           (request.span.overlaps(span) || span.overlaps({request.to, request.span.count_pages}));
  });
}

void Core::Impl::advance_move(std::uint32_t index) {
  if (changes[index].advancing || changes[index].rests) {
    return;
  }
  changes[index].advancing = true;
  Client& client = *changes[index].client;
  unsigned visited = 0;
  while (changes[index].pieces.size() < window && changes[index].cursor < changes[index].span.end()) {
    ChangeRequest& request = changes[index];
    if (++visited > walk_granules_most) {
      rest(request.rests, Rest::Of::change, index);
      break;
    }
    MovePiece piece;
    piece.id = ++request.pieces_begun;
    piece.first = request.cursor;
    piece.to = request.to + (request.cursor - request.span.first);
    const std::uint64_t granule = config.granularity_pages;
    piece.count =
        std::min({granule - piece.first % granule, granule - piece.to % granule, request.span.end() - request.cursor});
    request.cursor += piece.count;
    if (reclaim.counts() && find_block(client, block_of(piece.first)) == nullptr &&
        find_block(client, block_of(piece.to)) == nullptr) {
      continue;  // neither has memory: both are zeros
    }
    ++request.remaining;
    ++make_block(client, block_of(piece.first)).holds;
    ++make_block(client, block_of(piece.to)).holds;
    request.pieces.push_back(piece);
    try_piece(index, piece.id);
  }
  ChangeRequest& request = changes[index];
  request.advancing = false;
  if (!request.walked && request.cursor == request.span.end()) {
    request.walked = true;
    change_part_done(index);
  }
}

/// What the piece waited for in the granule has ended.
void Core::Impl::move_granule(std::uint32_t index, const Block& block, std::uint32_t granule) {
  for (MovePiece& piece : changes[index].pieces) {
    if (piece.state == MovePiece::State::waits && piece.wait_block == block.index && piece.wait_granule == granule) {
      try_piece(index, piece.id);
      return;
    }
  }
  FERRY_CHECK(false && "a piece that waits for the granule");
}

/// The operation of a piece that ends it has ended.
void Core::Impl::move_ended(std::uint32_t index, const Block& block, std::uint32_t granule) {
  for (const MovePiece& piece : changes[index].pieces) {
    // A granule may be the target of two pieces, one that leaves and one whose operation at the source has not ended.
    const Page page = piece.state == MovePiece::State::runs ? piece.first : piece.to;
    if (piece.state != MovePiece::State::waits && block_of(page) == block.index && granule_of(page) == granule) {
      end_piece(index, piece.id);
      return;
    }
  }
  FERRY_CHECK(false && "a piece whose operation it was");
}

void Core::Impl::end_piece(std::uint32_t index, std::uint64_t id) {
  ChangeRequest& request = changes[index];
  Client& client = *request.client;
  const MovePiece piece = piece_of(request, id);
  std::erase_if(request.pieces, [id](const MovePiece& other) { return other.id == id; });
  for (const Page page : {piece.first, piece.to}) {
    Block& block = *find_block(client, block_of(page));
    --block.holds;
    drop_block_if_empty(client, block);
  }
  const std::uint64_t begun = request.serial;
  change_part_done(index);
  // Answered, its place may have been given to another already.
  if (changes[index].in_use && changes[index].serial == begun) {
    advance_move(index);
  }
}

// --- a piece ---------------------------------------------------------------------------------------------------------

void Core::Impl::wait_in(MovePiece& piece, const Block& block, std::uint32_t granule) {
  piece.state = MovePiece::State::waits;
  piece.wait_block = block.index;
  piece.wait_granule = granule;
}

/// An ordinary operation brings pages into system memory, mapped nowhere but on the CPU; the piece looks again when it ends.
void Core::Impl::bring_for_move(std::uint32_t index, MovePiece& piece, Block& block, std::uint32_t granule,
                                const PageMask& pages) {
  ++piece.tries;
  wait_in(piece, block, granule);
  Op& op = start_op(block, granule, Goal::system, Cause::prefetch, no_device, Access::read);
  op.pages &= pages;
  op.next_changes.push_back(index);
  run_op(op.self);
}

/// Its pages that are to go and can: in the source's block. Freed ones, and what was allocated in their place, are none.
PageMask Core::Impl::moving_pages(const ChangeRequest& request, const MovePiece& piece, const Block& from,
                                  const Block& to) const {
  const int shift = static_cast<int>(bit_of(piece.to)) - static_cast<int>(bit_of(piece.first));
  PageMask there = mask_of(piece.to, piece.count) & to.allocated;
  there.remove(to.freeing);
  there.remove(pinned(to, there));
  PageMask pages = mask_of(piece.first, piece.count) & from.allocated & shifted(there, -shift);
  pages.remove(from.freeing);
  pages.remove(pinned(from, pages));
  for (const PageSpan other : request.other) {
    pages.remove(in_block(from, other));
    pages.remove(shifted(in_block(to, other) & mask_of(piece.to, piece.count), -shift));
  }
  return pages;
}

/// Those of the `pages` that lie in VRAM can be carried there, or copied there; `fills`: into a slot of the target's granule.
bool Core::Impl::can_carry(const MovePiece& piece, Block& from, Block& to, const PageMask& pages, bool& fills) {
  const PageMask in_vram = from.vram_current & pages;
  const std::uint32_t source = granule_of(piece.first);
  const std::uint32_t target = granule_of(piece.to);
  const int shift = static_cast<int>(bit_of(piece.to)) - static_cast<int>(bit_of(piece.first));
  const PageMask there = shifted(in_vram, shift);
  const Granule& state = to.granules[target];
  const DeviceId owner = from.granules[source].owner;
  if (to.placed_system.intersects(granule_mask(target)) || may_go_to(to, target, owner, there, true) != there ||
      work.userptr_in_use(to.client->id, granule_span(to, target)) || copy_slot(to, target, owner) != none_index) {
    return false;
  }
  PageMask others = from.vram_current & granule_mask(source);
  others.remove(in_vram);
  PageMask left = to.vram_current & granule_mask(target);
  left.remove(shifted(pages, shift));  // not of the whole piece: what was freed on one side leaves its counterpart
  fills = others.any() || left.any() || (piece.to - piece.first) % config.granularity_pages != 0;
  if (!fills) {
    return true;  // whatever the target has there is given back first
  }
  if (state.slot != none_index) {
    return state.owner == owner;
  }
  return devices[owner].waiting.empty() && has_free_slot(*to.client, owner);
}

void Core::Impl::try_piece(std::uint32_t index, std::uint64_t id) {
  ChangeRequest& request = changes[index];
  Client& client = *request.client;
  MovePiece& piece = piece_of(request, id);
  Block& from = *find_block(client, block_of(piece.first));
  Block& to = *find_block(client, block_of(piece.to));
  const std::uint32_t source = granule_of(piece.first);
  const std::uint32_t target = granule_of(piece.to);
  for (const auto& [block, granule] : {std::pair{&from, source}, std::pair{&to, target}}) {
    if (const OpIndex op = block->granules[granule].op; op != none_index) {
      wait_in(piece, *block, granule);
      ops[op].next_changes.push_back(index);
      return;
    }
    if (work.userptr_keeps(client.id, granule_span(*block, granule))) {
      wait_in(piece, *block, granule);
      kept_changes.push_back({index, block->index, granule});
      return;
    }
  }
  const int shift = static_cast<int>(bit_of(piece.to)) - static_cast<int>(bit_of(piece.first));
  const PageMask pages = moving_pages(request, piece, from, to);
  if (pages.none()) {
    end_piece(index, id);
    return;
  }
  const PageMask in_vram = from.vram_current & pages;
  bool fills = false;
  PageMask home = pages & from.stored;
  home.remove(from.system_current | in_vram);
  if (in_vram.any() && !can_carry(piece, from, to, pages, fills)) {
    home |= in_vram;
  }
  PageMask need = shifted(pages & from.system_current & from.held & ~in_vram, shift);
  need.remove(to.held);
  if (home.any() || need.any()) {
    if (piece.tries == tries_most) {
      leave_piece(index, piece, to, shifted(pages, shift));
    } else if (home.any()) {
      bring_for_move(index, piece, from, source, home);
    } else {
      bring_for_move(index, piece, to, target, need);
    }
    return;
  }
  piece.state = MovePiece::State::runs;
  Op& in = start_op(to, target, Goal::move_in, Cause::change, no_device, Access::read);
  Op& out = start_op(from, source, Goal::move_out, Cause::change, no_device, Access::read);
  in.pages = shifted(pages, shift);
  out.pages = pages;
  in.partner = out.self;
  out.partner = in.self;
  in.shift = out.shift = shift;
  in.fills = fills;
  out.changes.push_back(index);
  if (fills && to.granules[target].slot == none_index) {
    VramPage first = 0;
    in.device = from.granules[source].owner;
    FERRY_CHECK(take_slot(client, in.device, first));
    assign_slot(in, first);
    in.device = no_device;
  }
  run_op(out.self);
  run_op(in.self);
}

/// They stay where they are, and the others at the target read as zeros.
void Core::Impl::leave_piece(std::uint32_t index, MovePiece& piece, Block& to, const PageMask& pages) {
  changes[index].status = Code::no_memory;
  piece.state = MovePiece::State::leaves;
  Op& op = start_op(to, granule_of(piece.to), Goal::zero, Cause::change, no_device, Access::read);
  op.pages = pages;
  op.changes.push_back(index);
  run_op(op.self);
}

// --- both operations -------------------------------------------------------------------------------------------------

void Core::Impl::revoke_for_move(Op& op) {
  for_spans(op, op.pages & op.block->cpu_mapped, [&](PageSpan span) { ask(Verb::revoke_cpu, op, span); });
  if (op.goal == Goal::move_out && planted(PlantedBug::keep_moved_mapping)) {
    for (DeviceId d = 0; d < devices.size(); ++d) {
      mark_revoked(*op.block, d, op.pages);
    }
    return;
  }
  revoke_everything(op);
}

/// Nobody reaches the operation's pages any more. True: it goes on.
bool Core::Impl::meet(Op& op) {
  if (op.goal == Goal::move_in && op.block->stored.intersects(op.pages)) {
    forget_stored(op, op.pages);
    return true;
  }
  Op& other = ops[op.partner];
  if (other.stage != Stage::meet || other.outstanding != 0 ||
      (other.goal == Goal::move_in && other.block->stored.intersects(other.pages))) {
    return false;
  }
  Op& in = op.goal == Goal::move_in ? op : other;
  carry(in, op.goal == Goal::move_in ? other : op);
  in.stage = Stage::carried;
  if (&in == &op) {
    return true;
  }
  run_op(in.self);  // may run this one on, even to its end
  return false;
}

/// REQUIRES: nobody reaches the pages of either.
void Core::Impl::carry(Op& in, Op& out) {
  Block& from = *out.block;
  Block& to = *in.block;
  Granule& source = granule_state(out);
  Granule& target = granule_state(in);
  const int shift = in.shift;
  const PageMask in_vram = from.vram_current & out.pages;
  PageMask fill = out.pages & from.system_current & ~in_vram;
  if (reclaim.counts()) {
    fill &= from.held;
  }
  fill = shifted(fill, shift);

  to.vram_current.remove(in.pages);
  let_cpu(to);
  to.system_current |= in.pages;
  written(to, in.pages);
  if (target.slot != none_index && !in.fills && !to.vram_current.intersects(granule_mask(in.granule))) {
    release_slot(to, in.granule);
  }
  PageMask give = in.pages & ~fill;
  if (reclaim.counts()) {
    give &= to.held;
  }
  for_spans(in, give, [&](PageSpan span) { ask(Verb::discard_system, in, span); });
  move_bytes(in, out, fill | (in.fills ? shifted(in_vram, shift) : PageMask()));
  if (in.fills || in_vram.none()) {
    return;
  }
  // The slot changes hands, and no byte moves.
  Slot& slot = devices[source.owner].slots[source.slot];
  slot.block = &to;
  slot.granule = in.granule;
  target.slot = source.slot;
  target.owner = source.owner;
  target.sample = source.sample;
  target.last_move_cause = Cause::change;
  target.last_move_ns = now_ns;
  source.slot = none_index;
  source.owner = no_device;
  source.sample = false;
  const PageMask arrived = shifted(in_vram, shift);
  to.vram_current |= arrived;
  to.system_current.remove(arrived);
  from.vram_current.remove(in_vram);
  from.system_current |= in_vram;  // as zeros, before anybody can touch it
  let_cpu(from);
  const std::uint64_t carried = in_vram.count();
  count(*to.client, [carried](Stats& s) { s.pages_carried += carried; });
}

/// Asks for copies, of pages of the target's block: inside system memory, or inside the VRAM of one device.
void Core::Impl::move_bytes(Op& in, const Op& out, const PageMask& pages) {
  const Block& from = *out.block;
  const PageMask in_vram = shifted(from.vram_current & out.pages, in.shift) & pages;
  PageMask in_system = pages & ~in_vram;
  if (planted(PlantedBug::lose_moved)) {
    in_system = {};
  }
  const Page from_base = first_page_of(from.index);
  const Page to_base = first_page_of(in.block->index);
  for_spans(in, in_system, [&](PageSpan span) {
    ask(Verb::copy_system, in, span).from_page =
        from_base + static_cast<Page>(static_cast<int>(span.first - to_base) - in.shift);
  });
  for_spans(in, in_vram, [&](PageSpan span) {
    const Granule& source = granule_state(out);
    const Granule& target = granule_state(in);
    const auto at = static_cast<unsigned>(span.first - to_base);
    Action& action = ask(Verb::copy, in, span);
    action.place = action.to = Place::vram;
    action.device = source.owner;
    action.vram_first = devices[source.owner].slots[source.slot].first +
                        static_cast<VramPage>(static_cast<int>(at) - in.shift) - out.granule * config.granularity_pages;
    action.to_device = target.owner;
    action.vram_to = devices[target.owner].slots[target.slot].first + at - in.granule * config.granularity_pages;
    pendings[static_cast<std::uint32_t>((action.id & 0xffff'ffff) - 1)].device = source.owner;
  });
}

void Core::Impl::move_copied(Op& in, const Pending& pending, const PageMask& pages, Status status) {
  Block& to = *in.block;
  if (!status.ok()) {
    count(*to.client, [](Stats& s) { ++s.copy_errors; });
    in.retry |= pages;
    return;
  }
  const std::uint64_t copied = pages.count();
  if (pending.verb == Verb::copy) {
    to.vram_current |= pages;
    to.system_current.remove(pages);
    count(*to.client, [copied](Stats& s) { s.pages_copied_in_vram += copied; });
  } else {
    count(*to.client, [copied](Stats& s) { s.pages_copied_in_system += copied; });
  }
}

/// Copies failed: once more; in the end the pages stay where they are. The target has rubbish in their place.
void Core::Impl::move_failed(Op& in) {
  const PageMask failed = in.retry;
  in.retry = {};
  Op& out = ops[in.partner];
  if (++in.copy_failures <= config.copy_retries) {
    move_bytes(in, out, failed);
    return;
  }
  in.copy_failures = 0;
  const PageMask stay = shifted(failed, -in.shift);
  out.pages.remove(stay);
  changes[out.changes.front()].status = Code::io_error;
  for_spans(in, failed & ~shifted(stay & out.block->vram_current, in.shift),
            [&](PageSpan span) { ask(Verb::discard_system, in, span); });
}

/// The target has everything: what the source had goes.
void Core::Impl::finish_move(Op& in) {
  const OpIndex source = in.partner;
  Op& out = ops[source];
  in.partner = out.partner = none_index;
  out.stage = Stage::zero;
  end_op(in.self);
  run_op(source);
}

/// The client has ended: whoever waits for the other has nothing to wait for.
void Core::Impl::part_ways(Op& op) {
  const OpIndex partner = op.partner;
  if (partner == none_index) {
    end_op(op.self);
    return;
  }
  op.partner = ops[partner].partner = none_index;
  end_op(op.self);
  run_op(partner);
}

/// I-74: whoever is under way for a move has its counterpart, and pages that both have room for.
void Core::Impl::verify_moves(const Client& client) const {
  for (const Op& op : ops) {
    if (!op.in_use || op.block->client != &client || op.partner == none_index) {
      continue;
    }
    const Op& other = ops[op.partner];
    FERRY_CHECK(other.in_use && other.partner == op.self && other.block->client == &client);
    FERRY_CHECK((op.goal == Goal::move_in && other.goal == Goal::move_out) ||
                (op.goal == Goal::move_out && other.goal == Goal::move_in));
    if (op.goal == Goal::move_in) {
      FERRY_CHECK(op.pages.contains(shifted(other.pages, op.shift)));
    }
    if (op.stage != Stage::carried) {
      continue;
    }
    // From here until it has everything nobody reaches any of it.
    for (const Op* one : {&op, &other}) {
      FERRY_CHECK(!one->block->cpu_mapped.intersects(one->pages));
      for (const DeviceView& view : one->block->devices) {
        FERRY_CHECK(!view.mapped.intersects(one->pages));
      }
    }
  }
}

}  // namespace ferry::core
