// Files of the application, mapped where the application has them. Pages are those of the page cache, so they are coherent
// with every other mapper and never move; where the file ends, a touch raises SIGBUS.
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "device/explain.h"
#include "device/memory.h"

namespace ferry::device {
namespace {

/// Without access there is room that was left for the application, or what it had and the device gave up; what the manager
/// mapped before, it has forgotten.
bool is_taken(const MappingInfo& m) {
  const bool managed =
      std::strncmp(m.path, "/memfd:ferry-system", 19) == 0 || std::strncmp(m.path, "/memfd:ferry-vram", 17) == 0;
  return (m.readable || m.writable || m.executable) && !managed;
}

}  // namespace

int DeviceMemory::map_file(const wire::DownRecord& command, int fd, std::uint64_t& begin, std::uint64_t& bytes) const {
  begin = command.address;
  bytes = 0;
  const std::uint64_t wanted = command.units;
  if (!valid(command.address, command.length_bytes) || contains(command.address) || wanted < command.address ||
      wanted - command.address >= command.length_bytes || fd < 0) {
    return EINVAL;
  }
  std::uint64_t end = command.address + command.length_bytes;
  bool taken = false;
  const auto cut = [&](std::uint64_t from, std::uint64_t to) {
    if (to <= begin || from >= end) return;
    if (to <= wanted) {
      begin = to;
    } else if (from > wanted) {
      end = from;
    } else {
      taken = true;
    }
  };
  const bool seen = visit_mappings([&](const MappingInfo& m) {
    if (m.begin >= end) return false;
    if (is_taken(m)) cut(m.begin, m.end);
    return !taken;
  });
  cut(own_memory_begin(), own_memory_end());
  if (!seen) return EIO;
  if (taken) return EEXIST;
  const int prot = PROT_READ | ((command.rights & wire::map_write) != 0 ? PROT_WRITE : 0);
  void* p = mmap(reinterpret_cast<void*>(begin), end - begin, prot, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, fd,
                 static_cast<off_t>(command.file_offset + (begin - command.address)));
  if (p == MAP_FAILED) return errno;
  // A core file of the device shall not have all of a file in it.
  madvise(p, end - begin, MADV_DONTDUMP);
  bytes = end - begin;
  return 0;
}

}  // namespace ferry::device
