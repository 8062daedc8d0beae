// Pages to the store beneath system memory and back; which page lies behind which handle.
#include <algorithm>

#include "manager/executor/executor.h"

namespace ferry::manager {

void Executor::store(Client& client, const core::Action& action) {
  const std::byte* const mirror = client.mirror(action.pages.first);
  if (mirror == nullptr) {
    done(action.id, Code::no_space);
    return;
  }
  const BlockState& b = client.block(block_of(action.pages.first));
  const bool holes = !b.backed.contains(BlockTable::mask_in(block_of(action.pages.first), action.pages));
  store_.store(*this, make_copy(action, client), mirror, static_cast<std::uint32_t>(action.pages.count_pages),
               holes ? client.system_file.get() : -1, action.pages.first * page_bytes);
}

void Executor::stored(std::uint64_t tag, Status status, std::span<const linux::StoreHandle> handles) {
  const Copy copy = copies_[tag];
  free_copies_.push_back(static_cast<std::uint32_t>(tag));
  if (status.ok()) {
    BlockState& b = copy.client->block(block_of(copy.pages.first));
    if (b.stored == nullptr) b.stored = std::make_unique<StoredPages>();
    const auto first = static_cast<std::size_t>(copy.pages.first % block_pages);
    // What was stored of these pages before is older, and nobody will ask for it again.
    store_.drop({b.stored->data() + first, handles.size()});
    std::copy(handles.begin(), handles.end(), b.stored->begin() + static_cast<std::ptrdiff_t>(first));
  }
  done(copy.action, status);
}

void Executor::load(Client& client, const core::Action& action) {
  BlockState& b = client.block(block_of(action.pages.first));
  std::byte* const mirror = client.mirror(action.pages.first);
  if (mirror == nullptr) {
    done(action.id, Code::no_memory);
    return;
  }
  FERRY_CHECK(b.stored != nullptr);
  store_.load(*this, make_copy(action, client), mirror,
              {b.stored->data() + action.pages.first % block_pages, action.pages.count_pages});
}

void Executor::loaded(std::uint64_t tag, Status status) {
  const Copy copy = copies_[tag];
  free_copies_.push_back(static_cast<std::uint32_t>(tag));
  if (status.ok()) {
    const BlockIndex index = block_of(copy.pages.first);
    copy.client->block(index).backed |= BlockTable::mask_in(index, copy.pages);
  }
  done(copy.action, status);
}

void Executor::discard_store(Client& client, const core::Action& action) {
  client.blocks.for_each(action.pages, [&](BlockIndex index, BlockState& b) {
    if (b.stored == nullptr) return;
    BlockTable::mask_in(index, action.pages).for_each_run([&](unsigned first, unsigned count) {
      store_.drop({b.stored->data() + first, count});
      std::fill_n(b.stored->begin() + first, count, linux::StoreHandle{0});
    });
    if (std::all_of(b.stored->begin(), b.stored->end(), [](linux::StoreHandle h) { return h == 0; })) b.stored.reset();
  });
  done(action.id, {});
}

void Executor::forget_client(Client& client) {
  client.blocks.for_each([&](BlockIndex, BlockState& b) {
    if (b.stored == nullptr) return;
    store_.drop(*b.stored);
    b.stored.reset();
  });
}

}  // namespace ferry::manager
