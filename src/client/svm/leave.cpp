#include "client/svm/leave.h"

#include <algorithm>
#include <iterator>
#include <map>

#include "base/types.h"
#include "client/change/fork_advice.h"
#include "client/heap/process_heap.h"
#include "client/session.h"
#include "client/svm/ask.h"
#include "linux/lock.h"

namespace ferry::client {
namespace {

constinit linux::LockClass said_lock("pages with attributes", linux::LockRank::leaf);

/// First page to the end of each run; runs neither touch nor overlap.
struct Said {
  linux::Mutex mutex{said_lock};
  std::map<std::uint64_t, std::uint64_t> runs;
};

Said& said() {
  const NativeMallocScope native;
  static auto* made = new Said;
  return *made;
}

/// Takes [first, end) out. True: something had been said about one of them. REQUIRES: the lock.
bool take(Said& s, std::uint64_t first, std::uint64_t end) {
  auto it = s.runs.upper_bound(first);
  if (it != s.runs.begin() && std::prev(it)->second > first) --it;
  bool any = false;
  while (it != s.runs.end() && it->first < end) {
    any = true;
    const auto [run_first, run_end] = *it;
    it = s.runs.erase(it);
    if (run_first < first) s.runs.emplace(run_first, first);
    if (run_end > end) s.runs.emplace(end, run_end);
  }
  return any;
}

void add(Said& s, std::uint64_t first, std::uint64_t end) {
  auto it = s.runs.lower_bound(first);
  if (it != s.runs.begin() && std::prev(it)->second >= first) --it;
  while (it != s.runs.end() && it->first <= end) {
    first = std::min(first, it->first);
    end = std::max(end, it->second);
    it = s.runs.erase(it);
  }
  s.runs.emplace(first, end);
}

void on_free(const void* start, std::size_t bytes) noexcept {
  if (!may_use_session(nullptr)) return;
  Session* session = session_if_open();
  if (session == nullptr || !session->in_window(start)) return;
  // Whole pages only: what was said about others was about more than this allocation.
  const auto from = (reinterpret_cast<std::uint64_t>(start) - session->window_base + page_bytes - 1) / page_bytes;
  const auto end = (reinterpret_cast<std::uint64_t>(start) + bytes - session->window_base) / page_bytes;
  if (from >= end) return;
  {
    const NativeMallocScope native;
    const linux::LockGuard lock(said().mutex);
    if (!take(said(), from, end)) return;
  }
  forget_fork_advice({session->window_base + from * page_bytes, session->window_base + end * page_bytes});
  wire::SvmAnswer answer;
  wire::Span span{};
  span.first_page = from;
  span.count_pages = end - from;
  span.device = wire::to_system;
  [[maybe_unused]] bool told = ask_svm(*session, wire::MessageType::svm_reset, span, answer, "free", nullptr);
  told = ask_svm(*session, wire::MessageType::group_assign, wire::GroupRef{0, 0, from, end - from}, answer, "free",
                 nullptr);
}

}  // namespace

void note_said(std::uint64_t first_page, std::uint64_t count_pages) {
  const Session* session = session_if_open();
  // Memory of nobody's heap is unmapped by whoever has it, and what was said goes with it.
  if (session == nullptr || first_page >= session->window_bytes / page_bytes) return;
  const std::uint64_t count = std::min(count_pages, session->window_bytes / page_bytes - first_page);
  {
    const NativeMallocScope native;
    const linux::LockGuard lock(said().mutex);
    add(said(), first_page, first_page + count);
  }
  before_free.store(&on_free, std::memory_order_release);
}

}  // namespace ferry::client
