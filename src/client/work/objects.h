// What stands behind the handles of <ferry/work.h>, and the table by which a number is one handle however often it was
// imported. Objects are in the C library's heap, never in managed memory. No lock of this folder is held while the
// manager is asked, or while managed memory is touched.
#pragma once

#include <ferry/work.h>

#include <cstdint>
#include <unordered_map>

#include "client/heap/process_heap.h"
#include "client/session.h"
#include "linux/fd.h"
#include "linux/lock.h"
#include "wire/work.h"

namespace ferry::client {
inline constinit linux::LockClass map_lock("mapping of a buffer", linux::LockRank::object);
inline constinit linux::LockClass table_lock("handles", linux::LockRank::leaf);
}  // namespace ferry::client

struct ferry_buffer {
  std::uint64_t id = 0;
  std::uint64_t bytes = 0;
  std::uint32_t slot = 0;
  void* memory = nullptr;  ///< a userptr: whose pages these are; `file` is invalid then
  ferry::linux::Fd file;   ///< also in the agent's table, which owns nothing
  unsigned handles = 1;    ///< guarded by the table
  ferry::linux::Mutex map_mutex{
      ferry::client::map_lock};  ///< guards `at`; held while the manager is asked to map, which waits for nobody
  void* at = nullptr;            ///< null: not mapped
};

struct ferry_fence {
  std::uint64_t id = 0;
  std::uint32_t slot = 0;
  bool prints = false;   ///< of a graphics job: its device may have text for the program
  unsigned device = 0;   ///< ... this one
  unsigned handles = 1;  ///< guarded by the table
};

struct ferry_timeline {
  std::uint64_t id = 0;
  std::uint32_t slot = 0;
  unsigned handles = 1;  ///< guarded by the table
};

namespace ferry::client {

template <typename T>
class ObjectTable {
 public:
  /// Hands `object` over, or, if its number is here already, counts one handle more of that and deletes `object`.
  T* add(T* object) {
    const NativeMallocScope native;
    const linux::LockGuard lock(mutex_);
    const auto [it, is_new] = objects_.emplace(object->id, object);
    if (is_new) return object;
    ++it->second->handles;
    delete object;
    return it->second;
  }
  /// One handle more of an object that the caller has a handle of.
  void hold(T* object) {
    const linux::LockGuard lock(mutex_);
    ++object->handles;
  }
  /// True: that was the last handle; the object is the caller's now.
  [[nodiscard]] bool drop(T* object) {
    const NativeMallocScope native;
    const linux::LockGuard lock(mutex_);
    if (--object->handles != 0) return false;
    objects_.erase(object->id);
    return true;
  }

 private:
  linux::Mutex mutex_{table_lock};
  std::unordered_map<std::uint64_t, T*> objects_;
};

/// Never destroyed: handles may be closed by destructors of the program's statics.
ObjectTable<ferry_buffer>& buffer_table();
ObjectTable<ferry_fence>& fence_table();
ObjectTable<ferry_timeline>& timeline_table();

/// False, with `error` filled, if the process has no such descriptor.
bool is_descriptor(int fd, const char* what, ferry_error* error);

/// A question of wire/work.h and its answer. False, with `error` filled, if it was refused; `what` begins the text.
bool ask_bytes(Session& session, wire::MessageType type, std::span<const std::byte> body, std::span<const int> fds,
               Answer& answer, wire::WorkAnswer& out, const char* what, ferry_error* error);
template <typename T>
bool ask_work(Session& session, wire::MessageType type, const T& body, Answer& answer, wire::WorkAnswer& out,
              const char* what, ferry_error* error) {
  static_assert(std::is_trivially_copyable_v<T>);
  return ask_bytes(session, type, std::as_bytes(std::span<const T, 1>(&body, 1)), {}, answer, out, what, error);
}
/// The same where nothing but success matters.
bool tell_work(wire::MessageType type, const wire::ObjectRef& body, const char* what, ferry_error* error);

/// Asks for a token of the object. -1, with `error` filled.
int export_object(wire::MessageType type, std::uint64_t id, const char* what, ferry_error* error);

/// The session that is open, for functions that have a handle, hence opened it. Null, with `error` filled, in a process
/// that has none any more (a fork's child).
Session* session_of_handle(ferry_error* error);

/// A new handle for a fence that the manager has named in an answer.
ferry_fence* make_fence(const wire::WorkAnswer& answer);

wire::FenceSlot& slot_of(const Session& session, const ferry_fence& fence);

}  // namespace ferry::client
