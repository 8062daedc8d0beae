#include "device/explain.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "base/status.h"
#include "device/before_main.h"
#include "device/process.h"
#include "device/program_data.h"
#include "wire/adopt.h"

namespace ferry::device {
namespace {

/// One line of /proc/self/maps: begin-end perms offset device inode path.
bool parse(std::string_view line, MappingInfo& m) {
  std::size_t at = 0;
  const auto hex = [&](char end) {
    std::uint64_t value = 0;
    for (; at < line.size() && line[at] != end; ++at) {
      const char c = line[at];
      value = value * 16 + static_cast<std::uint64_t>(c <= '9' ? c - '0' : c - 'a' + 10);
    }
    ++at;
    return value;
  };
  m.begin = hex('-');
  m.end = hex(' ');
  if (at + 5 > line.size()) return false;
  m.readable = line[at] == 'r';
  m.writable = line[at + 1] == 'w';
  m.executable = line[at + 2] == 'x';
  m.shared = line[at + 3] == 's';
  at += 5;
  m.offset = hex(' ');
  m.major = static_cast<std::uint32_t>(hex(':'));
  m.minor = static_cast<std::uint32_t>(hex(' '));
  for (; at < line.size() && line[at] >= '0' && line[at] <= '9'; ++at) {
    m.inode = m.inode * 10 + static_cast<std::uint64_t>(line[at] - '0');
  }
  while (at < line.size() && line[at] == ' ') ++at;
  Text(m.path, sizeof m.path) << line.substr(at < line.size() ? at : line.size());
  return true;
}

void describe_place(std::uint64_t address, const Fiber& fiber, const DeviceMemory& memory, Text& text) {
  if (address < 65536) {
    text << "the null page";
    return;
  }
  if (memory.contains(address)) {
    text << "managed memory";
    return;
  }
  if (fiber.on_stack(address)) {
    text << "the wave's own stack";
    return;
  }
  if (is_application_stack(address)) {
    text << "the stack of the application, which the device does not have";
    return;
  }
  if (is_program_data(address)) {
    // Where calls go by a table that is filled at first use, it lies among them.
    text << "a global of the program" << (fiber.graphics ? ", which a graphics job may not touch" : "");
    return;
  }
  if (is_program_memory(address)) {
    text << "memory of the program" << (fiber.graphics ? ", which a graphics job may not touch" : "");
    return;
  }
  if (is_own(address)) {
    text << "the device's own memory";
    return;
  }
  MappingInfo m;
  // Without access and without a name: room that is kept free so that nothing of the device's own comes to lie there.
  if (!find_mapping(address, m) || (!m.readable && !m.writable && !m.executable && m.path[0] == '\0')) {
    text << "nothing: neither managed memory nor part of the program";
    return;
  }
  if (m.executable) {
    text << "program text";
  } else if (!m.readable) {
    text << "memory that may not be touched";
  } else {
    text << (m.writable ? "data of the device process" : "read-only data");
  }
  if (m.path[0] != '\0') text << " of " << m.path;
}

void describe_instruction(std::uint64_t instruction, Text& text) {
  text << ", by the instruction at ";
  MappingInfo m;
  if (find_mapping(instruction, m) && m.path[0] == '/') {
    text << m.path << "+";
    text.hex(instruction - m.begin + m.offset);
  } else {
    text.hex(instruction);
  }
}

}  // namespace

bool visit_mappings(bool (*fn)(void* context, const MappingInfo& mapping), void* context) {
  const int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;
  char buffer[4096];
  std::size_t held = 0;
  for (bool more = true; more;) {
    const ssize_t got = read(fd, buffer + held, sizeof buffer - held);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    held += static_cast<std::size_t>(got);
    std::size_t start = 0;
    for (std::size_t i = 0; i < held && more; ++i) {
      if (buffer[i] != '\n') continue;
      MappingInfo m;
      if (parse({buffer + start, i - start}, m)) more = fn(context, m);
      start = i + 1;
    }
    held -= start;
    std::memmove(buffer, buffer + start, held);
    if (held == sizeof buffer) held = 0;  // no path is that long
  }
  close(fd);
  return true;
}

namespace {

// Of Linux 6.11; C libraries are older than kernels.
struct ProcmapQuery {
  std::uint64_t size;
  std::uint64_t query_flags;
  std::uint64_t query_addr;
  std::uint64_t vma_start;
  std::uint64_t vma_end;
  std::uint64_t vma_flags;
  std::uint64_t vma_page_size;
  std::uint64_t vma_offset;
  std::uint64_t inode;
  std::uint32_t dev_major;
  std::uint32_t dev_minor;
  std::uint32_t vma_name_size;
  std::uint32_t build_id_size;
  std::uint64_t vma_name_addr;
  std::uint64_t build_id_addr;
};
static_assert(sizeof(ProcmapQuery) == 104);
constexpr unsigned long procmap_query = _IOWR('f', 17, ProcmapQuery);
constexpr std::uint64_t query_readable = 1;
constexpr std::uint64_t query_writable = 2;
constexpr std::uint64_t query_executable = 4;
constexpr std::uint64_t query_shared = 8;
constexpr std::uint64_t query_covering_or_next = 16;

/// What the kernel answers; ENOTTY: it is older.
int query_mapping(std::uint64_t address, MappingInfo& m) {
  const int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return errno;
  char name[4096];
  name[0] = '\0';
  ProcmapQuery q{};
  q.size = sizeof q;
  q.query_flags = query_covering_or_next;
  q.query_addr = address;
  q.vma_name_addr = reinterpret_cast<std::uint64_t>(name);
  q.vma_name_size = sizeof name;
  const int error = ioctl(fd, procmap_query, &q) == 0 ? 0 : errno;
  close(fd);
  if (error != 0) return error;
  m = {};
  m.begin = q.vma_start;
  m.end = q.vma_end;
  m.offset = q.vma_offset;
  m.inode = q.inode;
  m.major = q.dev_major;
  m.minor = q.dev_minor;
  m.readable = (q.vma_flags & query_readable) != 0;
  m.writable = (q.vma_flags & query_writable) != 0;
  m.executable = (q.vma_flags & query_executable) != 0;
  m.shared = (q.vma_flags & query_shared) != 0;
  const std::size_t length = q.vma_name_size == 0 ? 0 : strnlen(name, sizeof m.path - 1);
  std::memcpy(m.path, name, length);
  m.path[length] = '\0';
  return 0;
}

}  // namespace

bool next_mapping(std::uint64_t address, MappingInfo& found) {
  const int error = query_mapping(address, found);
  if (error == 0) return true;
  if (error == ENOENT) return false;
  bool hit = false;
  visit_mappings([&](const MappingInfo& m) {
    hit = address < m.end;
    if (hit) found = m;
    return !hit;
  });
  return hit;
}

bool find_mapping(std::uint64_t address, MappingInfo& found) {
  bool hit = false;
  visit_mappings([&](const MappingInfo& m) {
    hit = address >= m.begin && address < m.end;
    if (hit) found = m;
    return !hit && m.begin <= address;
  });
  return hit;
}

void describe_crash(const Fiber& fiber, const DeviceMemory& memory, Text& text) {
  const Crash& crash = fiber.crash;
  text << "kernel \"" << fiber.wave.kernel << "\", wave " << fiber.wave.wave << ": ";
  if (crash.signal == SIGFPE) {
    text << (crash.code == FPE_INTDIV ? "integer division by zero" : "arithmetic trap");
  } else if (crash.signal == SIGILL) {
    text << "illegal instruction (a trap of the compiler's, or code for another processor)";
  } else if (crash.signal == SIGABRT) {
    text << "abort() was called (a failed assertion, or an exception that nothing may catch)";
    return;  // the instruction is always the same one, in the C library
  } else if (crash.signal == SIGTRAP) {
    text << "breakpoint trap";
  } else if (fiber.in_guard(crash.address)) {
    text << "stack overflow: a wave has " << wave_stack_bytes / 1024 << " KiB of stack";
  } else if (crash.signal == SIGSEGV && crash.code == SI_KERNEL) {
    text << "access through a pointer that is no address";
  } else if (crash.signal == SIGSEGV && crash.code <= 0) {
    text << "ended by a signal from outside";
  } else {
    text << (crash.execute ? "call of " : crash.write ? "write to " : "read from ");
    text.hex(crash.address) << ", where there is ";
    if (fiber.graphics && memory.contains(crash.address)) {
      text << "managed memory that a graphics job may not touch: none of its buffers is mapped there";
    } else if (crash.status == static_cast<std::uint32_t>(Code::kernel_fault) && crash.execute) {
      text << "managed memory that is not executable (attribute gpu_exec)";
    } else if (crash.status == static_cast<std::uint32_t>(Code::kernel_fault) ||
               crash.status == static_cast<std::uint32_t>(Code::not_permitted)) {
      text << "managed memory that the device may not " << (crash.write ? "write" : "touch");
    } else if (crash.status != 0 && crash.refusal == 0) {
      text << "no usable managed memory (" << to_string(static_cast<Code>(crash.status)) << ")";
    } else {
      describe_place(crash.address, fiber, memory, text);
      if (crash.refusal > static_cast<std::uint32_t>(wire::Refusal::unmapped) && crash.refusal < wire::refusal_count) {
        text << " (memory of the program that cannot be adopted: " << to_text(static_cast<wire::Refusal>(crash.refusal))
             << ")";
      }
    }
  }
  describe_instruction(crash.instruction, text);
}

}  // namespace ferry::device
