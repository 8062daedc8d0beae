// Memory that the program has made before its devices' template process was forked: its heap, and what its static constructors
// mapped. The template and every device begin with a copy of it, which is old as soon as the program goes on. So the
// template's C library is made to use none of it, and a device gives the pages up before its first kernel: a touch is a fault
// then, and gets the program's (docs/design/0019-adoption.md).
#pragma once

#include <cstdint>
#include <span>

#include "device/extent.h"

namespace ferry::device {

/// Application, when Ferry is loaded and before the program's own constructors: the private memory that there is now, but for
/// what malloc gave, is the loader's and the C library's, and devices keep it. One thread.
void note_runtime_memory();

/// What was noted. In the order of addresses.
[[nodiscard]] std::span<const Extent> runtime_memory();

/// Template process, with one thread and nothing allocated or mapped since it was forked: finds the program's memory, and makes
/// the C library of this process, and of devices forked from it, allocate and buffer elsewhere. `window`: not looked at.
/// `main_thread`: the thread that forked was the program's main one; else the heap stays as it is, the device's own copy.
/// Nothing is done where malloc is not the C library's or Ferry's: what it works with is not known.
void leave_program_memory(const Extent& window, bool main_thread);

/// Device, before any kernel: from here on a touch of that memory faults. Nothing of it may be needed outside of kernels any
/// more: all threads are there. Errno, 0 if well.
[[nodiscard]] int give_up_program_memory();

/// True for addresses that give_up_program_memory took away.
[[nodiscard]] bool is_program_memory(std::uint64_t address);

}  // namespace ferry::device
