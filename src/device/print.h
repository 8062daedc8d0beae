// The way of text from a kernel to its application: wire::PrintRing.
#pragma once

#include <cstddef>

namespace ferry::device {

/// Pieces of this size reach the application whole; longer texts may have those of other waves in between.
inline constexpr std::size_t print_piece_bytes = 1024;

/// From a wave: sends the bytes to the application. Text that finds no room, because the application reads none for
/// 50 ms, is dropped and counted in PrintRing::dropped_bytes. Where room is short, wakes the application's waiters
/// through complete_futex of their queues: who sleeps on it must read the ring too. Outside of a device process:
/// does nothing.
void print_bytes(const char* text, std::size_t bytes);

}  // namespace ferry::device
