// Bytes: copies between system and VRAM files, and giving memory back to the machine.
#include <algorithm>

#include "manager/executor/executor.h"

namespace ferry::manager {
namespace {

/// Copied on the main thread: handing it over would cost more.
constexpr std::uint64_t inline_pages_max = 16;
/// Blocks that were taken from the CPU whole this often are worth the time it takes to make them huge.
constexpr unsigned steered_for_huge = 2;

}  // namespace

std::uint32_t Executor::take_copy() {
  if (free_copies_.empty()) {
    copies_.emplace_back();
    free_copies_.push_back(static_cast<std::uint32_t>(copies_.size() - 1));
  }
  const std::uint32_t index = free_copies_.back();
  free_copies_.pop_back();
  copies_[index] = {};
  return index;
}

std::uint64_t Executor::make_copy(const core::Action& action, Client& client) {
  const std::uint32_t index = take_copy();
  copies_[index].action = action.id;
  copies_[index].verb = action.verb;
  copies_[index].source = action.place;
  copies_[index].to = action.to;
  copies_[index].client = &client;
  copies_[index].device = action.device;
  copies_[index].pages = action.pages;
  return index;
}

/// For another address: a page's place in the system file is its address.
void Executor::copy_system(Client& client, const core::Action& action) {
  linux::CopyJob job;
  job.bytes = action.pages.count_pages * page_bytes;
  job.source = client.mirror(action.from_page);
  job.target = client.mirror(action.pages.first);
  if (job.source == nullptr || job.target == nullptr) {
    done(action.id, Code::no_memory);
    return;
  }
  const BlockIndex from = block_of(action.from_page);
  if (!client.block(from).backed.contains(BlockTable::mask_in(from, {action.from_page, action.pages.count_pages}))) {
    job.source_fd = client.system_file.get();
    job.source_offset = action.from_page * page_bytes;
  }
  job.prepare_target = linux::Prepare::populate;
  job.tag = make_copy(action, client);
  if (action.pages.count_pages <= inline_pages_max) {
    copy_done(linux::CopyEngine::run_here(job));
  } else {
    engine_.submit(job);
  }
}

/// From one device's VRAM to another's, or to another place in its own, never by way of system memory.
void Executor::copy_to_peer(Client& client, const core::Action& action) {
  DevicePeer& from = client.devices[action.device];
  DevicePeer& to = client.devices[action.to_device];
  linux::CopyJob job;
  job.bytes = action.pages.count_pages * page_bytes;
  job.source = from.vram.data() + std::uint64_t{action.vram_first} * page_bytes;
  job.target = to.vram.data() + std::uint64_t{action.vram_to} * page_bytes;
  std::uint8_t* const chunk_ready = prepare_chunk(to, action.vram_to, job);
  job.tag = make_copy(action, client);
  copies_[job.tag].chunk_ready = chunk_ready;
  if (action.pages.count_pages <= inline_pages_max && job.prepare_at == nullptr) {
    copy_done(linux::CopyEngine::run_here(job));
  } else {
    engine_.submit(job);
  }
}

/// The pool's memory is made huge once and kept while the client holds it. Null: that was done.
std::uint8_t* Executor::prepare_chunk(DevicePeer& peer, VramPage page, linux::CopyJob& job) {
  const std::size_t chunk = page / block_pages;
  if (peer.chunk_ready[chunk] != 0) return nullptr;
  peer.chunk_ready[chunk] = 1;
  job.prepare_target = linux::Prepare::make_huge;
  job.prepare_at = peer.vram.data() + chunk * block_bytes;
  job.prepare_bytes = block_bytes;
  return &peer.chunk_ready[chunk];
}

void Executor::copy(Client& client, const core::Action& action) {
  if (action.to == core::Place::vram) {
    copy_to_peer(client, action);
    return;
  }
  DevicePeer& peer = client.devices[action.device];
  BlockState& b = client.block(block_of(action.pages.first));
  const PageMask mask = BlockTable::mask_in(block_of(action.pages.first), action.pages);
  const bool whole = action.pages.count_pages == block_pages;
  std::byte* const system = client.mirror(action.pages.first);
  std::byte* const vram = peer.vram.data() + std::uint64_t{action.vram_first} * page_bytes;
  if (system == nullptr) {
    done(action.id, Code::no_memory);
    return;
  }
  const bool make_huge = whole && !b.huge && !b.huge_refused && b.steered >= steered_for_huge;
  linux::CopyJob job;
  std::uint8_t* chunk_ready = nullptr;
  job.bytes = action.pages.count_pages * page_bytes;
  if (action.place == core::Place::system) {
    job.source = system;
    job.target = vram;
    if (!b.backed.contains(mask)) {
      job.source_fd = client.system_file.get();
      job.source_offset = action.pages.first * page_bytes;
    }
    if (make_huge) {
      job.prepare_source = linux::Prepare::make_huge;
    } else if (whole && !b.mirrored) {
      job.prepare_source = linux::Prepare::populate;
    }
    chunk_ready = prepare_chunk(peer, action.vram_first, job);
  } else {
    job.source = vram;
    job.target = system;
    if (make_huge) {
      job.prepare_target = linux::Prepare::make_huge;
    } else if (!b.backed.contains(mask) || (whole && !b.mirrored)) {
      job.prepare_target = linux::Prepare::populate;
    }
  }
  const std::uint64_t tag = make_copy(action, client);
  copies_[tag].whole_huge = make_huge;
  copies_[tag].chunk_ready = chunk_ready;
  job.tag = tag;
  if (action.pages.count_pages <= inline_pages_max && job.prepare_at == nullptr) {
    copy_done(linux::CopyEngine::run_here(job));
  } else {
    engine_.submit(job);
  }
}

void Executor::copy_done(const linux::CopyCompletion& completion) {
  const Copy copy = copies_[completion.tag];
  free_copies_.push_back(static_cast<std::uint32_t>(completion.tag));
  // The next copy there asks for its memory anew: one that took it for given would have it from the kernel's fault, which
  // ends a process where there is none.
  if (copy.chunk_ready != nullptr && !completion.status.ok()) *copy.chunk_ready = 0;
  if (copy.verb == core::Verb::copy && copy.to == core::Place::vram) {
    copy_to_peer_ns += completion.work_ns;
    done(copy.action, completion.status);
    return;
  }
  if (copy.verb == core::Verb::copy_system) {
    if (completion.status.ok()) {
      const BlockIndex index = block_of(copy.pages.first);
      copy.client->block(index).backed |= BlockTable::mask_in(index, copy.pages);
    }
    done(copy.action, completion.status);
    return;
  }
  if (copy.verb == core::Verb::copy) {
    (copy.source == core::Place::system ? copy_to_vram_ns : copy_to_system_ns) += completion.work_ns;
    // Freed pages may have been punched meanwhile; then the block is not there or says so itself.
    if (completion.status.ok()) {
      BlockState& b = copy.client->block(block_of(copy.pages.first));
      const PageMask mask = BlockTable::mask_in(block_of(copy.pages.first), copy.pages);
      const bool home = copy.source == core::Place::vram;
      if (home || !completion.source_had_hole) b.backed |= mask;
      if (copy.pages.count_pages == block_pages && (home || !completion.source_had_hole)) b.mirrored = true;
      if (copy.whole_huge && (home || !completion.source_had_hole)) {
        b.huge = completion.made_huge;
        b.huge_refused = !completion.made_huge;
      }
    }
    done(copy.action, completion.status);
    return;
  }
  if (copy.verb == core::Verb::run_job) {
    copy_part_done(copy, completion.status);
    return;
  }
  if (copy.verb == core::Verb::move_buffer) {
    buffer_moved(copy, completion.status);
    return;
  }
  // release_chunk, discard_system and release_buffer must succeed: what the machine does not take back stays a page of this client's
  // file, which goes with the client.
  done(copy.action, {});
}

void Executor::release_chunk(Client& client, const core::Action& action) {
  DevicePeer& peer = client.devices[action.device];
  const std::size_t chunk = action.vram_first / block_pages;
  peer.chunk_ready[chunk] = 0;
  linux::CopyJob job;
  job.punch_fd = peer.vram_file.get();
  job.source_offset = chunk * block_bytes;
  job.bytes = block_bytes;
  job.tag = make_copy(action, client);
  engine_.submit(job);
}

void Executor::discard_system(Client& client, const core::Action& action) {
  client.blocks.for_each(action.pages, [&](BlockIndex index, BlockState& b) {
    const PageMask mask = BlockTable::mask_in(index, action.pages);
    // What is still allocated is elsewhere from now on, and stays out of everybody's reach.
    PageMask freed = mask;
    freed.remove(b.managed);
    if (!client.closing) disarm(client, index, b, freed);
    b.revoked.remove(freed);
    b.own_protection.remove(freed);
    b.backed.remove(mask);
    b.huge = false;
    b.huge_refused = false;
    b.mirrored = false;
    if (freed.any()) b.steered = 0;
  });
  if (client.is_releasing(action.pages) && !client.is_allocated(action.pages.first)) {
    // The last of a release: the application has still to take the bytes; it says when it has. Before that the core's word
    // counts as ever: what it discards may be older than what pages have.
    done(action.id, {});
    return;
  }
  linux::CopyJob job;
  job.punch_fd = client.system_file.get();
  job.source_offset = action.pages.first * page_bytes;
  job.bytes = action.pages.count_pages * page_bytes;
  job.tag = make_copy(action, client);
  if (action.pages.count_pages <= inline_pages_max) {
    copy_done(linux::CopyEngine::run_here(job));
  } else {
    engine_.submit(job);
  }
}

}  // namespace ferry::manager
