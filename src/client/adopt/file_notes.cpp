#include "client/adopt/file_notes.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>

#include "base/types.h"
#include "client/adopt/places.h"
#include "client/adopt/stopped.h"
#include "client/process_state.h"
#include "client/session.h"
#include "linux/futex.h"
#include "linux/lock.h"

namespace ferry::client {
namespace {

constinit linux::LockClass files_lock("mappings of files", linux::LockRank::files);
constinit linux::Mutex alone_mutex{files_lock};
constinit std::atomic<std::uint32_t> changing{0};  ///< changes under way that touch nothing noted
constinit std::atomic<std::uint32_t> alone{0};     ///< somebody waits for those, or has them all waited for

// A signal handler of the program may change mappings while its thread does.
thread_local std::uint32_t changing_here = 0;
thread_local bool alone_here = false;
thread_local bool in_notes = false;  ///< it is changing them

// Sorted, without overlaps. Changed by who is alone; read by who is counted in `changing`, or alone.
constexpr std::size_t notes_max = 65536;
constinit FileNote* notes = nullptr;
constinit std::size_t note_count = 0;
constinit std::atomic<bool> any_noted{false};

FileNote* first_note(std::uint64_t begin) {
  return std::partition_point(notes, notes + note_count, [&](const FileNote& n) { return n.end <= begin; });
}

bool is_noted(std::uint64_t begin, std::uint64_t end) {
  if (note_count == 0) return false;
  const FileNote* n = first_note(begin);
  return n != notes + note_count && n->begin < end;
}

void leave_counted() {
  --changing_here;
  changing.fetch_sub(1, std::memory_order_seq_cst);
  if (alone.load(std::memory_order_seq_cst) != 0) linux::futex_wake(changing, 1);
}

/// False: somebody is alone, or waits to be.
bool enter_counted() {
  changing.fetch_add(1, std::memory_order_seq_cst);
  ++changing_here;
  if (alone.load(std::memory_order_seq_cst) == 0) return true;
  leave_counted();
  return false;
}

void be_alone() {
  // A signal handler waits for its own thread's change to end, otherwise, and somebody else for both.
  if (changing_here != 0) {
    changing.fetch_sub(changing_here, std::memory_order_seq_cst);
    if (alone.load(std::memory_order_seq_cst) != 0) linux::futex_wake(changing, 1);
  }
  alone_mutex.lock();
  alone_here = true;
  alone.store(1, std::memory_order_seq_cst);
  for (std::uint32_t n = changing.load(std::memory_order_seq_cst); n != 0;
       n = changing.load(std::memory_order_seq_cst)) {
    wait_on(changing, n);
  }
}

/// Changes of this thread that are under way are counted again, with any that began meanwhile.
void be_with_others() {
  changing.fetch_add(changing_here, std::memory_order_seq_cst);
  alone.store(0, std::memory_order_seq_cst);
  alone_here = false;
  alone_mutex.unlock();
}

/// REQUIRES: alone.
Status drop_noted(Session& session, std::uint64_t begin, std::uint64_t end) {
  Status result;
  in_notes = true;
  FileNote* const first = first_note(begin);
  FileNote* last = first;
  // Devices have pieces of each note: all of it goes.
  for (; last != notes + note_count && last->begin < end; ++last) {
    wire::Span span{};
    span.first_page = session.window().page_of_address(last->begin);
    span.count_pages = (last->end - last->begin) / page_bytes;
    span.device = wire::to_system;
    const Status dropped = session.requests.tell(wire::MessageType::file_drop, span);
    if (!dropped.ok()) result = dropped;
  }
  std::memmove(first, last, static_cast<std::size_t>(notes + note_count - last) * sizeof *notes);
  note_count -= static_cast<std::size_t>(last - first);
  in_notes = false;
  return result;
}

/// Of this process, and one that has devices.
Session* session_here() {
  Session* const s = session_if_open();
  if (s == nullptr || process_kind.load(std::memory_order_relaxed) != ProcessKind::application) return nullptr;
  return s;
}

}  // namespace

ServingFiles::ServingFiles() { be_alone(); }
ServingFiles::~ServingFiles() { be_with_others(); }

Status ServingFiles::note(Session& session, const FileNote& note) {
  if (notes == nullptr) {
    void* const room = ::mmap(nullptr, notes_max * sizeof *notes, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED) return Status(Code::no_memory, errno);
    notes = static_cast<FileNote*>(room);
    note_own_memory(room, notes_max * sizeof *notes);
  }
  // Parts of the same mapping that devices have: they stay, and are one with this.
  FileNote whole = note;
  bool same = true;
  for (const FileNote* n = first_note(note.begin); n != notes + note_count && n->begin < note.end; ++n) {
    same = same && n->same_mapping(note);
    if (n->begin < whole.begin) {
      whole.begin = n->begin;
      whole.offset = n->offset;
    }
    whole.end = std::max(whole.end, n->end);
  }
  if (!same) {
    const Status dropped = drop_noted(session, note.begin, note.end);
    if (!dropped.ok()) return dropped;
    whole = note;
  }
  FileNote* const first = first_note(whole.begin);
  FileNote* last = first;
  while (last != notes + note_count && last->begin < whole.end) ++last;
  if (first == last && note_count == notes_max) return Code::no_memory;
  in_notes = true;
  const std::size_t behind = static_cast<std::size_t>(notes + note_count - last);
  std::memmove(first + 1, last, behind * sizeof *notes);
  *first = whole;
  any_noted.store(true, std::memory_order_release);
  note_count = static_cast<std::size_t>(first - notes) + 1 + behind;
  in_notes = false;
  return {};
}

bool has_served_files() { return any_noted.load(std::memory_order_acquire); }

Status drop_files(Session& session, std::uint64_t begin, std::uint64_t end) {
  if (!has_served_files()) return {};
  if (enter_counted()) {
    const bool noted = is_noted(begin, end);
    leave_counted();
    if (!noted) return {};
  }
  be_alone();
  const Status result = is_noted(begin, end) ? drop_noted(session, begin, end) : Status();
  be_with_others();
  return result;
}

FileChange::FileChange(const void* address, std::size_t bytes, bool inside) {
  if (inside || bytes == 0) return;
  Session* const session = session_here();
  // In a signal handler that came while its thread was changing notes.
  if (session == nullptr || in_notes) return;
  const int before = errno;
  const auto begin = reinterpret_cast<std::uint64_t>(address);
  const std::uint64_t end = bytes > ~begin - page_bytes ? ~std::uint64_t{0} : begin + bytes;
  if (alone_here) {
    if (is_noted(begin, end)) {
      [[maybe_unused]] const Status dropped = drop_noted(*session, begin, end);
    }
    errno = before;
    return;
  }
  if (enter_counted()) {
    held_ = Held::counted;
    if (!is_noted(begin, end)) return;
    leave_counted();
  }
  be_alone();
  if (is_noted(begin, end)) {
    held_ = Held::alone;
    // A manager that is lost ends the process.
    [[maybe_unused]] const Status dropped = drop_noted(*session, begin, end);
  } else {
    ++changing_here;
    held_ = Held::counted;
    be_with_others();
  }
  errno = before;
}

FileChange::~FileChange() {
  const int before = errno;
  if (held_ == Held::counted) leave_counted();
  if (held_ == Held::alone) be_with_others();
  errno = before;
}

void files_mapped_anew(const void* address, std::size_t bytes, bool inside) {
  if (address == MAP_FAILED || bytes == 0) return;
  const FileChange change(address, bytes, inside);
}

}  // namespace ferry::client
