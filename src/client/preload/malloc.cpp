// libferry_malloc.so: malloc and its relatives, served by the process's heap. Thin on purpose: what can go wrong is in
// client/heap/process_heap.cpp. C++'s operators new and delete come here by themselves, as libstdc++ calls malloc.
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>

#include "client/heap/process_heap.h"

#define FERRY_EXPORT __attribute__((visibility("default")))

namespace {

constexpr std::size_t page_bytes = 4096;

constexpr bool is_power_of_two(std::size_t value) { return value != 0 && (value & (value - 1)) == 0; }

void* memalign_like_libc(std::size_t align, std::size_t bytes) {
  if (align > SIZE_MAX / 2 + 1) {
    errno = EINVAL;
    return nullptr;
  }
  std::size_t power = 16;
  while (power < align) power <<= 1;
  return ferry_heap_memalign(power, bytes);
}

__attribute__((constructor)) void serve_malloc() { ferry_heap_serve_malloc(); }

}  // namespace

extern "C" {

FERRY_EXPORT void* malloc(std::size_t bytes) noexcept { return ferry_heap_malloc(bytes); }

FERRY_EXPORT void free(void* pointer) noexcept { ferry_heap_free(pointer); }

FERRY_EXPORT void* calloc(std::size_t count, std::size_t bytes) noexcept { return ferry_heap_calloc(count, bytes); }

FERRY_EXPORT void* realloc(void* pointer, std::size_t bytes) noexcept { return ferry_heap_realloc(pointer, bytes); }

FERRY_EXPORT void* reallocarray(void* pointer, std::size_t count, std::size_t bytes) noexcept {
  std::size_t total = 0;
  if (__builtin_mul_overflow(count, bytes, &total)) {
    errno = ENOMEM;
    return nullptr;
  }
  return ferry_heap_realloc(pointer, total);
}

FERRY_EXPORT void* memalign(std::size_t align, std::size_t bytes) noexcept { return memalign_like_libc(align, bytes); }

FERRY_EXPORT void* aligned_alloc(std::size_t align, std::size_t bytes) noexcept {
  return memalign_like_libc(align, bytes);
}

FERRY_EXPORT int posix_memalign(void** result, std::size_t align, std::size_t bytes) noexcept {
  if (!is_power_of_two(align) || align % sizeof(void*) != 0) return EINVAL;
  void* pointer = ferry_heap_memalign(align, bytes);
  if (pointer == nullptr) return ENOMEM;
  *result = pointer;
  return 0;
}

FERRY_EXPORT void* valloc(std::size_t bytes) noexcept { return ferry_heap_memalign(page_bytes, bytes); }

FERRY_EXPORT void* pvalloc(std::size_t bytes) noexcept {
  if (bytes > SIZE_MAX - page_bytes) {
    errno = ENOMEM;
    return nullptr;
  }
  return ferry_heap_memalign(page_bytes, (bytes + page_bytes - 1) & ~(page_bytes - 1));
}

FERRY_EXPORT std::size_t malloc_usable_size(void* pointer) noexcept { return ferry_heap_usable_size(pointer); }

}  // extern "C"
