// Gets in between the program's static constructors and its main(), to fork the template process while there is one
// thread and no state. Nothing here runs in programs that merely have libferry loaded for its malloc.
#include <dlfcn.h>
#include <link.h>

#include <cstring>

#include "client/heap/process_heap.h"
#include "client/zygote.h"
#include "device/before_main.h"
#include "device/program_data.h"

namespace ferry::client {

namespace {

using Main = int (*)(int, char**, char**);
using StartMain = int (*)(Main, int, char**, void (*)(), void (*)(), void (*)(), void*);

Main program_main = nullptr;

bool needs_ferry(const link_map* object) {
  const char* strings = nullptr;
  for (const ElfW(Dyn)* d = object->l_ld; d->d_tag != DT_NULL; ++d) {
    if (d->d_tag == DT_STRTAB) strings = reinterpret_cast<const char*>(d->d_un.d_ptr);
  }
  if (strings == nullptr) return false;
  for (const ElfW(Dyn)* d = object->l_ld; d->d_tag != DT_NULL; ++d) {
    if (d->d_tag == DT_NEEDED && std::strncmp(strings + d->d_un.d_val, "libferry.so", 11) == 0) return true;
  }
  return false;
}

/// False where libferry came in through LD_PRELOAD alone: a program that never asks for a device pays for no process.
bool program_uses_ferry() {
  void* self = ::dlopen(nullptr, RTLD_LAZY | RTLD_NOLOAD);
  if (self == nullptr) return false;
  link_map* first = nullptr;
  if (::dlinfo(self, RTLD_DI_LINKMAP, &first) != 0) return false;
  bool uses = false;
  for (const link_map* object = first; object != nullptr && !uses; object = object->l_next) {
    const char* name = std::strrchr(object->l_name, '/');
    name = name == nullptr ? object->l_name : name + 1;
    if (std::strncmp(name, "libferry_malloc", 15) != 0) uses = needs_ferry(object);
  }
  ::dlclose(self);
  return uses;
}

/// Before the constructors of libraries that use Ferry and of the program, and after those of the C and C++ libraries.
__attribute__((constructor)) void note_memory() {
  if (program_uses_ferry()) device::note_runtime_memory();
}

int wrapped_main(int argc, char** argv, char** environment) {
  if (program_uses_ferry() && process_window().reserved) {
    // A failure is not reported here: the program may never need a device. Opening a context tries again and tells.
    [[maybe_unused]] const Status started = start_zygote(true);
    // After the fork: the template process needs no copy.
    device::make_program_data_anonymous();
  }
  return program_main(argc, argv, environment);
}

}  // namespace
}  // namespace ferry::client

extern "C" __attribute__((visibility("default"))) int __libc_start_main(ferry::client::Main main, int argc, char** argv,
                                                                        void (*init)(), void (*fini)(),
                                                                        void (*rtld_fini)(), void* stack_end) {
  using namespace ferry::client;
  const auto real = reinterpret_cast<StartMain>(::dlsym(RTLD_NEXT, "__libc_start_main"));
  program_main = main;
  return real(wrapped_main, argc, argv, init, fini, rtld_fini, stack_end);
}
