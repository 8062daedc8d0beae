// Who was used when: two lists over one array, so that nothing is allocated once the array has its size.
#include "core/reclaim/state.h"

namespace ferry::core {

void Lru::push(std::uint32_t index, LruEntry::List list) {
  Ends& ends = ends_[list];
  LruEntry& entry = entries_[index];
  entry.previous = ends.tail;
  entry.next = none_index;
  entry.list = list;
  (ends.tail == none_index ? ends.head : entries_[ends.tail].next) = index;
  ends.tail = index;
  ++ends.size;
}

void Lru::unlink(std::uint32_t index) {
  LruEntry& entry = entries_[index];
  FERRY_CHECK_NE(static_cast<int>(entry.list), static_cast<int>(LruEntry::unused));
  Ends& ends = ends_[entry.list];
  (entry.previous == none_index ? ends.head : entries_[entry.previous].next) = entry.next;
  (entry.next == none_index ? ends.tail : entries_[entry.next].previous) = entry.previous;
  --ends.size;
  entry.list = LruEntry::unused;
}

std::uint32_t Lru::insert(Block* block, std::uint32_t granule, BufferId buffer) {
  std::uint32_t index = 0;
  if (holes_.empty()) {
    index = static_cast<std::uint32_t>(entries_.size());
    entries_.emplace_back();
  } else {
    index = holes_.back();
    holes_.pop_back();
  }
  LruEntry& entry = entries_[index];
  entry.block = block;
  entry.granule = granule;
  entry.buffer = buffer;
  push(index, LruEntry::active);
  return index;
}

void Lru::remove(std::uint32_t index) {
  unlink(index);
  entries_[index] = {};
  holes_.push_back(index);
}

void Lru::touch(std::uint32_t index) {
  unlink(index);
  push(index, LruEntry::active);
}

void Lru::park(std::uint32_t index) {
  unlink(index);
  push(index, LruEntry::parked);
}

void Lru::unpark_all() {
  Ends& from = ends_[LruEntry::parked];
  Ends& to = ends_[LruEntry::active];
  if (from.head == none_index) {
    return;
  }
  for (std::uint32_t at = from.head; at != none_index; at = entries_[at].next) {
    entries_[at].list = LruEntry::active;
  }
  entries_[from.tail].next = to.head;
  (to.head == none_index ? to.tail : entries_[to.head].previous) = from.tail;
  to.head = from.head;
  to.size += from.size;
  from = {};
}

Reclaim::Entry Reclaim::insert_granule(Block& block, std::uint32_t granule) {
  return Entry{state_->lru.insert(&block, granule, 0)} + 1;
}

Reclaim::Entry Reclaim::insert_buffer(BufferId buffer) { return Entry{state_->lru.insert(nullptr, 0, buffer)} + 1; }

void Reclaim::touch(Entry entry) {
  if (entry != 0) {
    state_->lru.touch(static_cast<std::uint32_t>(entry - 1));
  }
}

void Reclaim::remove(Entry entry) {
  if (entry != 0) {
    state_->lru.remove(static_cast<std::uint32_t>(entry - 1));
  }
}

}  // namespace ferry::core
