// libc's own function behind one that is exported in its place, found once. And who calls: libferry's own calls of such
// functions come here too, and are meant for the kernel.
#pragma once

#include <dlfcn.h>

#include <atomic>

#define FERRY_INTERPOSED extern "C" __attribute__((visibility("default")))
/// Asked in the exported function itself. A function of libferry that ends in such a call leaves its own caller's address,
/// which lies in libferry as well.
#define FERRY_CALLED_FROM_INSIDE() ferry::client::is_own_code(__builtin_return_address(0))

namespace ferry::client {

/// Constant-initialized: calls come before constructors have run.
template <typename Function>
class Libc {
 public:
  explicit constexpr Libc(const char* name) : name_(name) {}
  Function get() {
    Function f = function_.load(std::memory_order_acquire);
    if (f == nullptr) {
      f = reinterpret_cast<Function>(::dlsym(RTLD_NEXT, name_));
      function_.store(f, std::memory_order_release);
    }
    return f;
  }

 private:
  const char* name_;
  std::atomic<Function> function_{nullptr};
};

/// Finds the functions of interpose_io.cpp now. The session's threads call them, and they may not look for them later:
/// the dynamic linker reads its tables, which lie in memory from before main that may be adopted by then, and whose pages
/// these very threads give back. Call it before they begin.
void find_libc_io();

}  // namespace ferry::client
