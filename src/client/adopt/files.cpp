#include "client/adopt/files.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <string_view>

#include "client/adopt/file_notes.h"
#include "client/adopt/open_mapped.h"
#include "client/devices.h"
#include "client/session.h"
#include "device/explain.h"
#include "wire/port.h"

namespace ferry::client {
namespace {

/// A device gets so much at once, cut at multiples of it: all of nearly any file.
constexpr std::uint64_t piece_bytes = std::uint64_t{1} << 30;
/// Of private mappings, each page of which is looked at.
constexpr std::uint64_t private_piece_bytes = std::uint64_t{64} << 20;

/// The adopter's own.
constinit std::uint32_t last_serial = 0;

AdoptResult refuse(wire::Refusal why, std::uint64_t address, int error = 0) {
  AdoptResult r;
  r.refusal = why;
  r.address = address;
  r.status = {why == wire::Refusal::no_mappings ? Code::no_mappings : Code::unsupported, error};
  return r;
}

wire::Refusal kind_refusal(const device::MappingInfo& m) {
  const std::string_view path = m.path;
  const bool memory = path.starts_with("/dev/shm/") || path.starts_with("/dev/zero");
  if (path.starts_with("[") || path.starts_with("anon_inode:") || (path.starts_with("/dev/") && !memory)) {
    return wire::Refusal::special;
  }
  if (path.starts_with("/memfd:ferry-")) return wire::Refusal::session;
  if (path.starts_with("/anon_hugepage")) return wire::Refusal::huge_pages;
  if (!m.readable && !m.writable && !m.executable) return wire::Refusal::no_access;
  if (m.inode == 0) return wire::Refusal::unmapped;
  if (!m.shared && m.writable) return wire::Refusal::private_pages;
  return wire::Refusal::none;
}

/// Cuts [begin, end) of a private mapping to what has none of the program's own copies of pages around the address. False:
/// the address has one, or it cannot be told.
bool cut_at_copies(std::uint64_t address, std::uint64_t& begin, std::uint64_t& end) {
  // The kernel tells everybody these: bits 63 and 62: there is a page, in memory or swapped out; 61: of a file, no copy.
  constexpr std::uint64_t there = std::uint64_t{3} << 62;
  constexpr std::uint64_t of_file = std::uint64_t{1} << 61;
  const linux::Fd pagemap(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  if (!pagemap) return false;
  std::array<std::uint64_t, 512> entries;
  for (std::uint64_t at = begin; at < end;) {
    const std::uint64_t want = std::min<std::uint64_t>(entries.size(), (end - at) / page_bytes);
    const ssize_t got = ::pread(pagemap.get(), entries.data(), want * sizeof entries[0],
                                static_cast<off_t>(at / page_bytes * sizeof entries[0]));
    if (got < static_cast<ssize_t>(sizeof entries[0])) return false;
    const auto count = static_cast<std::uint64_t>(got) / sizeof entries[0];
    for (std::uint64_t i = 0; i < count && at < end; ++i, at += page_bytes) {
      if ((entries[i] & there) == 0 || (entries[i] & of_file) != 0) continue;
      if (at <= address && address < at + page_bytes) return false;
      if (at < address) {
        begin = at + page_bytes;
      } else {
        end = at;
      }
    }
  }
  return true;
}

struct Served {
  FileNote note;
  linux::Fd file;
};

/// All that can be said without the manager. REQUIRES: nobody changes mappings meanwhile, or the caller can live with it.
AdoptResult look(std::uint64_t address, bool write, Served& served) {
  device::MappingInfo m;
  if (!device::find_mapping(address, m)) return refuse(wire::Refusal::unmapped, address);
  if (const wire::Refusal why = kind_refusal(m); why != wire::Refusal::none) return refuse(why, address);
  if (write && !m.writable) return refuse(wire::Refusal::read_only, address);
  const std::uint64_t piece = m.shared ? piece_bytes : private_piece_bytes;
  std::uint64_t begin = std::max(m.begin, address & ~(piece - 1));
  std::uint64_t end = std::min(m.end, (address & ~(piece - 1)) + piece);
  if (!m.shared && !cut_at_copies(address, begin, end)) return refuse(wire::Refusal::private_pages, address);
  cut_at_held(address, begin, end);
  served.file = open_mapped(m, m.writable);
  if (!served.file) {
    const bool nameless = m.path[0] != '/' || std::string_view(m.path).starts_with("/dev/zero") ||
                          std::string_view(m.path).starts_with("/memfd:") ||
                          std::string_view(m.path).starts_with("/SYSV");
    return refuse(nameless ? wire::Refusal::shared_memory : wire::Refusal::file_changed, address, errno);
  }
  // Where the file ends the kernel of the device would fail all the same; here it costs less.
  struct stat status {};
  const std::uint64_t offset = m.offset + ((address & ~(page_bytes - 1)) - m.begin);
  if (::fstat(served.file.get(), &status) == 0 && offset >= static_cast<std::uint64_t>(status.st_size)) {
    return refuse(wire::Refusal::file_end, address);
  }
  served.note = {begin, end, m.offset + (begin - m.begin), m.inode, m.major, m.minor, m.writable, m.shared};
  return {};
}

}  // namespace

bool may_be_file(const Place& place) {
  return place.refusal == wire::Refusal::shared_memory || (place.refusal == wire::Refusal::read_only && place.file);
}

AdoptResult serve_file(Session& session, std::uint64_t address, bool write, std::uint32_t devices) {
  ServingFiles serving;
  Served served;
  AdoptResult result = look(address, write, served);
  if (!result.status.ok()) return result;
  const FileNote& note = served.note;
  result.address = address;
  wire::Span whole{};
  whole.first_page = session.window().page_of_address(note.begin);
  whole.count_pages = (note.end - note.begin) / page_bytes;
  whole.device = wire::to_system;
  // What is known of adopted memory that was here before must be forgotten first.
  result.status = session.requests.tell(wire::MessageType::adopt_begin, whole);
  if (result.status.code == Code::in_use) return refuse(wire::Refusal::pinned, address);
  if (!result.status.ok()) return result;
  result.status = serving.note(session, note);
  if (!result.status.ok()) return refuse(wire::Refusal::no_mappings, address, result.status.sys_errno);
  wire::FileServe body{};
  body.address = address;
  body.first_page = whole.first_page;
  body.count_pages = whole.count_pages;
  body.file_offset = note.offset;
  body.rights = note.writable ? wire::map_write : 0;
  body.serial = ++last_serial;
  for (unsigned device = 0; device < max_devices; ++device) {
    if ((devices >> device & 1) != 0 && send_served_file(device, body.serial, served.file.get()).ok()) {
      body.devices |= 1U << device;
    }
  }
  result.status = session.requests.tell(wire::MessageType::file_serve, body);
  result.answered = result.status.ok();
  if (result.status.code == Code::no_mappings) return refuse(wire::Refusal::no_mappings, address);
  return result;
}

AdoptResult check_file(std::uint64_t address, std::uint64_t& end) {
  Served served;
  const AdoptResult result = look(address, false, served);
  end = served.note.end;
  return result;
}

}  // namespace ferry::client
