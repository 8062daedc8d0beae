#include "client/change/fork_protection.h"

#include <sys/mman.h>

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "client/change/fork_advice.h"
#include "client/change/mappings.h"
#include "client/change/rules.h"
#include "client/session.h"

namespace ferry::client {
namespace {

struct Run {
  Part part;
  int prot = 0;
};

/// In pages of its own: the heap is locked, and the child reads it before it has any memory.
struct Table {
  Run* runs = nullptr;
  std::size_t count = 0;
  std::size_t room = 0;

  bool grow() {
    const std::size_t bytes = room == 0 ? std::size_t{64} << 10 : room * sizeof(Run) * 2;
    void* const larger =
        runs == nullptr
            ? raw_mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
            : raw_mremap(reinterpret_cast<std::uint64_t>(runs), round_up(room * sizeof(Run)), bytes, MREMAP_MAYMOVE, 0);
    if (larger == MAP_FAILED) return false;
    runs = static_cast<Run*>(larger);
    room = bytes / sizeof(Run);
    return true;
  }
};

constinit std::atomic<bool> some_protected{false};
constinit Table frozen;

}  // namespace

void note_protection() { some_protected.store(true, std::memory_order_relaxed); }

void freeze_protections(const Session& session) {
  frozen.count = 0;
  if (!some_protected.load(std::memory_order_relaxed)) return;
  // Mappings of the system file are shared; what is reserved, or was unmapped, is not.
  const auto note = [](void*, const OwnMapping& m) {
    if (!m.shared || (m.readable && m.writable && !m.executable)) return;
    if (frozen.count == frozen.room && !frozen.grow()) return;
    frozen.runs[frozen.count++] = {
        {m.begin, m.end},
        (m.readable ? PROT_READ : 0) | (m.writable ? PROT_WRITE : 0) | (m.executable ? PROT_EXEC : 0)};
  };
  visit_own_mappings(session.window_base, session.window_base + session.window_bytes, note, nullptr);
}

bool apply_protections() {
  bool well = true;
  for (std::size_t i = 0; i < frozen.count; ++i) {
    const Run& run = frozen.runs[i];
    for_present_in_child(
        run.part, [&](const Part& part) { well = well && raw_mprotect(part.first, part.bytes(), run.prot) == 0; });
  }
  return well;
}

}  // namespace ferry::client
