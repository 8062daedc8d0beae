#include "client/change/fork_adopted.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstddef>

#include "client/adopt/known.h"
#include "client/adopt/places.h"
#include "client/session.h"

namespace ferry::client {
namespace {

struct Left {
  Part part;
  int prot = 0;
  bool absent = false;
  bool wiped = false;
};

/// In pages of its own: the child reads it before it has any memory.
struct Table {
  Left* left = nullptr;
  std::size_t count = 0;
  std::size_t room = 0;

  bool add(const Left& l) {
    if (count != 0) {
      // Mappings of stripes that lie side by side.
      Left& last = left[count - 1];
      if (last.part.end == l.part.first && last.prot == l.prot && last.absent == l.absent && last.wiped == l.wiped) {
        last.part.end = l.part.end;
        return true;
      }
    }
    if (count == room && !grow()) return false;
    left[count++] = l;
    return true;
  }

 private:
  bool grow() {
    const std::size_t bytes = room == 0 ? std::size_t{64} << 10 : 2 * room * sizeof(Left);
    void* const larger = left == nullptr
                             ? raw_mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
                             : raw_mremap(reinterpret_cast<std::uint64_t>(left), round_up(room * sizeof(Left)), bytes,
                                          MREMAP_MAYMOVE, 0);
    if (larger == MAP_FAILED) return false;
    left = static_cast<Left*>(larger);
    room = bytes / sizeof(Left);
    return true;
  }
};

constinit Table table;

constexpr int own = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE;

/// Whatever lies there stays.
bool map_where_free(const Part& part) {
  constexpr int prot = PROT_READ | PROT_WRITE;
  if (raw_mmap(part.first, part.bytes(), prot, own, -1, 0) != MAP_FAILED) return true;
  for (std::uint64_t at = part.first; at < part.end;) {
    const Place here = place_of(at);
    const std::uint64_t end = std::min(here.end, part.end);
    if (!here.adopted && here.refusal == wire::Refusal::unmapped &&
        raw_mmap(at, end - at, prot, own, -1, 0) == MAP_FAILED) {
      return false;
    }
    at = end;
  }
  return true;
}

}  // namespace

bool freeze_adopted(const Session& session, const Part& calls) {
  table.count = 0;
  bool all = true;
  const std::uint64_t window_end = session.window_base + session.window_bytes;
  Place place;
  for (std::uint64_t at = 0; next_adopted(at, session.window_base, window_end, place); at = place.end) {
    // Cut where advice begins and ends.
    for (Left l{{place.begin, place.end}, place.prot}; !l.part.empty(); l.part = {l.part.end, place.end}) {
      const std::uint64_t first = l.part.first;
      l.absent = l.wiped = false;
      l.part.end = kept_fork_advice(first, place.end, l.absent, l.wiped);
      if (first < calls.first) {
        l.part.end = std::min(l.part.end, calls.first);
      } else if (first < calls.end) {
        l.part.end = std::min(l.part.end, calls.end);
        l.absent = true;
        all = false;
      }
      if (!table.add(l)) return false;
    }
  }
  return all;
}

void forget_left_adopted() { table.count = 0; }

bool some_adopted_left() { return table.count != 0; }

bool is_left_adopted(std::uint64_t address) {
  return std::any_of(table.left, table.left + table.count,
                     [&](const Left& l) { return !l.absent && address >= l.part.first && address < l.part.end; });
}

bool map_left_adopted() {
  for (std::size_t i = 0; i < table.count; ++i) {
    const Left& l = table.left[i];
    if (l.absent) continue;
    if (!map_where_free(l.part)) return false;
    // The child's own children are not to have its contents either.
    if (l.wiped) raw_madvise(l.part.first, l.part.bytes(), MADV_WIPEONFORK);
  }
  return true;
}

void for_left_adopted(void (*fn)(void* context, const Part& part), void* context) {
  for (std::size_t i = 0; i < table.count; ++i) {
    const Left& l = table.left[i];
    if (!l.absent && !l.wiped) fn(context, l.part);
  }
}

bool protect_left_adopted() {
  for (std::size_t i = 0; i < table.count; ++i) {
    const Left& l = table.left[i];
    if (!l.absent && l.prot != (PROT_READ | PROT_WRITE) && raw_mprotect(l.part.first, l.part.bytes(), l.prot) != 0) {
      return false;
    }
  }
  return true;
}

}  // namespace ferry::client
