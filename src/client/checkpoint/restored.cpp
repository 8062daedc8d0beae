#include "client/checkpoint/restored.h"

#include <algorithm>
#include <map>
#include <mutex>

#include "client/heap/process_heap.h"

namespace ferry::client {
namespace {

struct Span {
  std::uint64_t bytes = 0;
  std::uint64_t live = 0;
};

struct Object {
  std::uint64_t bytes = 0;
  std::uint64_t span = 0;
};

struct Restored {
  std::mutex mutex;
  std::map<std::uint64_t, Span> spans;
  std::map<std::uint64_t, Object> objects;
};

/// Never destroyed: destructors of the program may free.
Restored& restored() {
  static auto* const all = new Restored;
  return *all;
}

}  // namespace

void add_restored(const RestoredMemory& memory) {
  Restored& all = restored();
  const std::lock_guard lock(all.mutex);
  std::map<std::uint64_t, Span> spans;
  std::map<std::uint64_t, Object> objects;
  auto span = memory.spans.begin();
  for (const RestoredMemory::Part& object : memory.objects) {
    while (object.address >= span->address + span->bytes) ++span;
    spans[span->address].bytes = span->bytes;
    ++spans[span->address].live;
    objects[object.address] = {object.bytes, span->address};
  }
  all.spans.merge(spans);
  all.objects.merge(objects);
}

bool free_restored(void* pointer) noexcept {
  const NativeMallocScope native;
  Restored& all = restored();
  const std::lock_guard lock(all.mutex);
  const auto object = all.objects.find(reinterpret_cast<std::uint64_t>(pointer));
  if (object == all.objects.end()) return false;
  const auto span = all.spans.find(object->second.span);
  all.objects.erase(object);
  if (--span->second.live == 0) {
    drop_restored_span(reinterpret_cast<void*>(span->first), span->second.bytes);
    all.spans.erase(span);
  }
  return true;
}

void visit_restored(void (*object)(void*, const void*, std::size_t), void (*span)(void*, void*, std::size_t),
                    void* context) {
  Restored& all = restored();
  const std::lock_guard lock(all.mutex);
  for (const auto& [address, o] : all.objects) object(context, reinterpret_cast<const void*>(address), o.bytes);
  for (const auto& [address, s] : all.spans) span(context, reinterpret_cast<void*>(address), s.bytes);
}

}  // namespace ferry::client
