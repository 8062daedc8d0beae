// The way of text from a kernel to its application: wire::PrintRing.
#pragma once

#include <cstddef>

namespace ferry::device {

struct Fiber;

/// From a wave: sends the bytes to the application. Text is gathered for each wave and sent when the wave ends, fails or
/// parks, after 1 KiB, and otherwise after some milliseconds; a text of up to 1 KiB stays in one piece. Text that finds
/// no room, because the application reads none for 50 ms, is dropped and counted in PrintRing::dropped_bytes. Where
/// room is short, wakes the application's waiters through complete_futex of their queues: who sleeps on it must read
/// the ring too. Outside of waves: does nothing.
void print_bytes(const char* text, std::size_t bytes);

/// Sends what the wave has gathered.
void flush_print(Fiber& fiber);

}  // namespace ferry::device
