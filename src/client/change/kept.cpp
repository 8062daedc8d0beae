#include "client/change/kept.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "client/heap/process_heap.h"
#include "client/session.h"
#include "core/svm/types.h"
#include "linux/lock.h"

namespace ferry::client {
namespace {

constinit linux::LockClass kept_lock("memory that pins keep", linux::LockRank::kept);

struct Entry {
  Part part;
  bool is_span = false;  ///< all of a span of the heap's, whose addresses are given back
};

struct Kept {
  linux::Mutex mutex{kept_lock};  ///< held while the manager is asked: what is freed meanwhile may be had again at once
  std::vector<Entry> entries;
};

/// Set before the manager is asked once more: who unpins after it was asked sees it.
constinit std::atomic<bool> any{false};

Kept& kept() {
  static auto* made = new Kept;
  return *made;
}

Status ask(Session& s, const Entry& entry) {
  if (!entry.is_span) return tell_change(s, core::Change::unmap, entry.part);
  wire::Span body{};
  body.first_page = s.page_of(reinterpret_cast<void*>(entry.part.first));
  body.count_pages = entry.part.bytes() / page_bytes;
  body.device = wire::to_system;
  return s.requests.tell(wire::MessageType::free, body);
}

/// REQUIRES: the lock.
void note_any(const Kept& k) { any.store(!k.entries.empty(), std::memory_order_seq_cst); }

/// REQUIRES: the lock. False: it was unpinned meanwhile, and `status` is the manager's answer.
bool keep(Session& s, Kept& k, const Entry& entry, Status& status) {
  k.entries.push_back(entry);
  note_any(k);
  status = ask(s, entry);
  if (status.code != Code::in_use) {
    k.entries.pop_back();
    note_any(k);
    return false;
  }
  // Threads cannot reach it any more. No device can from here on.
  [[maybe_unused]] const Status hidden = tell_change(s, core::Change::protect, entry.part, 0);
  return true;
}

}  // namespace

Status unmap_or_keep(Session& s, const Part& part) {
  Status status = ask(s, {part, false});
  if (status.code != Code::in_use) return status;
  const NativeMallocScope native;
  Kept& k = kept();
  const linux::LockGuard lock(k.mutex);
  return keep(s, k, {part, false}, status) ? Status() : status;
}

bool free_or_keep(Session& s, const Part& span) {
  if (!any.load(std::memory_order_seq_cst) && ask(s, {span, true}).code != Code::in_use) return true;
  Kept& k = kept();
  const linux::LockGuard lock(k.mutex);
  // Parts of it go with it; unmapped later, they might be somebody else's.
  std::erase_if(k.entries, [&](const Entry& e) { return e.part.first >= span.first && e.part.end <= span.end; });
  Status status;
  return !keep(s, k, {span, true}, status);
}

void pins_ended() {
  if (!any.load(std::memory_order_seq_cst)) return;
  Session* s = session_if_open();
  if (s == nullptr) return;
  const NativeMallocScope native;
  std::vector<Part> free_addresses;
  {
    Kept& k = kept();
    const linux::LockGuard lock(k.mutex);
    std::erase_if(k.entries, [&](const Entry& e) {
      if (ask(*s, e).code == Code::in_use) return false;
      if (e.is_span) free_addresses.push_back(e.part);
      return true;
    });
    note_any(k);
  }
  for (const Part& span : free_addresses) give_kept_span(reinterpret_cast<void*>(span.first), span.bytes());
}

void forget_kept() { any.store(false, std::memory_order_seq_cst); }

}  // namespace ferry::client
