#include <malloc.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "base/types.h"
#include "device/explain.h"
#include "device/process.h"

namespace ferry::device {
namespace {

std::uint64_t hidden_begin = 0;
std::uint64_t hidden_end = 0;

}  // namespace

// They lie in the stack, or in the program's heap; the C library reads them when asked.
void keep_own_environment() {
  // What the heap has not given out yet is where the application's next blocks come from.
  malloc_trim(0);
  std::size_t count = 0;
  while (environ != nullptr && environ[count] != nullptr) ++count;
  auto** copy = static_cast<char**>(std::calloc(count + 1, sizeof(char*)));
  if (copy == nullptr) return;
  for (std::size_t i = 0; i < count; ++i) copy[i] = strdup(environ[i]);
  environ = copy;
  char* name = strdup(program_invocation_name);
  if (name == nullptr) return;
  program_invocation_name = name;
  char* slash = std::strrchr(name, '/');
  program_invocation_short_name = slash != nullptr ? slash + 1 : name;
}

void hide_application_stack(const void* stack_address) {
  MappingInfo stack;
  if (!find_mapping(reinterpret_cast<std::uint64_t>(stack_address), stack) ||
      std::string_view(stack.path) != "[stack]") {
    return;
  }
  constexpr int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* p = mmap(reinterpret_cast<void*>(stack.begin), stack.end - stack.begin, PROT_NONE, flags | MAP_FIXED, -1, 0);
  if (p == MAP_FAILED) return;
  hidden_begin = stack.begin;
  hidden_end = stack.end;
  // The part that the application's stack may still grow into.
  rlimit limit{};
  if (getrlimit(RLIMIT_STACK, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) limit.rlim_cur = 8 << 20;
  const std::uint64_t bytes = limit.rlim_cur & ~(page_bytes - 1);
  if (bytes <= hidden_end - hidden_begin || bytes > hidden_end) return;
  const std::uint64_t low = hidden_end - bytes;
  p = mmap(reinterpret_cast<void*>(low), hidden_begin - low, PROT_NONE, flags | MAP_FIXED_NOREPLACE, -1, 0);
  if (p != MAP_FAILED) hidden_begin = low;
}

bool is_application_stack(std::uint64_t address) { return address >= hidden_begin && address < hidden_end; }

}  // namespace ferry::device
