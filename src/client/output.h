// Text that kernels print: from the device's ring to the program's standard output; and formatting for ferry::print.
#pragma once

#include <ferry/ferry.h>

#include <cstddef>
#include <span>
#include <string_view>

#include "wire/control.h"

namespace ferry::client {

/// Writes what the ring holds to stdout, and tells on stderr what was dropped. On a thread of the program, never on
/// the session's own: stdio may be anybody's. Any number at once.
void drain_output(wire::QueueControl& control);

/// Formats into `out`, cut where it ends. Returns the bytes written. Allocates nothing in managed memory and takes no
/// lock: kernels call it.
std::size_t format_output(std::span<char> out, std::string_view format, std::span<const ferry_print_arg> args);

inline constexpr std::size_t print_bytes_max = 1024;

}  // namespace ferry::client
