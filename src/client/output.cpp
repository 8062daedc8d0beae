#include "client/output.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdio>

#include "linux/lock.h"

namespace ferry::client {
namespace {

constinit linux::LockClass drain_lock("output of kernels", linux::LockRank::output);
constinit linux::Mutex drain_mutex(drain_lock);

template <typename T>
char* put(char* at, char* end, std::string_view spec, const T& value) {
  // Only the one argument, under its own number: "{:spec}" with the program's spec.
  char field[64];
  if (spec.size() > sizeof field - 4) throw fmt::format_error("too long");
  char* f = std::copy_n("{:", 2, field);
  f = std::copy(spec.begin(), spec.end(), f);
  *f++ = '}';
  const auto result =
      fmt::format_to_n(at, static_cast<std::size_t>(end - at),
                       fmt::runtime(std::string_view(field, static_cast<std::size_t>(f - field))), value);
  return std::min(result.out, end);
}

char* put_arg(char* at, char* end, std::string_view spec, const ferry_print_arg& arg) {
  switch (arg.kind) {
    case FERRY_PRINT_BOOL: return put(at, end, spec, arg.value.i != 0);
    case FERRY_PRINT_CHAR: return put(at, end, spec, static_cast<char>(arg.value.i));
    case FERRY_PRINT_INT: return put(at, end, spec, arg.value.i);
    case FERRY_PRINT_UINT: return put(at, end, spec, arg.value.u);
    case FERRY_PRINT_DOUBLE: return put(at, end, spec, arg.value.d);
    case FERRY_PRINT_POINTER: return put(at, end, spec, arg.value.p);
    case FERRY_PRINT_TEXT: return put(at, end, spec, std::string_view(arg.value.text.data, arg.value.text.bytes));
  }
  return at;
}

char* put_text(char* at, char* end, std::string_view text) {
  const std::size_t take = std::min(text.size(), static_cast<std::size_t>(end - at));
  return std::copy_n(text.begin(), take, at);
}

}  // namespace

std::size_t format_output(std::span<char> out, std::string_view format, std::span<const ferry_print_arg> args) {
  char* at = out.data();
  char* const end = at + out.size();
  std::size_t next = 0;
  for (std::size_t i = 0; i < format.size() && at < end;) {
    const char c = format[i];
    if ((c == '{' || c == '}') && i + 1 < format.size() && format[i + 1] == c) {
      *at++ = c;
      i += 2;
      continue;
    }
    const std::size_t close = c == '{' ? format.find('}', i) : std::string_view::npos;
    if (close == std::string_view::npos) {
      *at++ = c;
      ++i;
      continue;
    }
    const std::string_view field = format.substr(i + 1, close - i - 1);
    const std::size_t colon = field.find(':');
    const std::string_view spec = colon == std::string_view::npos ? std::string_view{} : field.substr(colon + 1);
    bool done = false;
    if (next < args.size() && (colon == 0 || field.empty())) {
      try {
        at = put_arg(at, end, spec, args[next]);
        done = true;
      } catch (const fmt::format_error&) {}
      ++next;
    }
    if (!done) at = put_text(at, end, format.substr(i, close - i + 1));
    i = close + 1;
  }
  return static_cast<std::size_t>(at - out.data());
}

void drain_output(wire::QueueControl& control) {
  auto& ring = control.print;
  if (ring.read.load(std::memory_order_relaxed) == ring.written.load(std::memory_order_acquire) &&
      ring.dropped_bytes.load(std::memory_order_relaxed) == 0) {
    return;
  }
  const linux::LockGuard lock(drain_mutex);
  std::uint64_t read = ring.read.load(std::memory_order_relaxed);
  std::uint64_t left = ring.written.load(std::memory_order_acquire) - read;
  // More than the ring holds cannot be: the device has written nonsense, of which nothing is believed.
  if (left > wire::print_ring_bytes) {
    ring.read.store(read + left, std::memory_order_release);
    return;
  }
  while (left != 0) {
    std::array<char, 4096> piece;
    const std::uint64_t offset = read % wire::print_ring_bytes;
    const std::size_t take = std::min(
        {piece.size(), static_cast<std::size_t>(left), static_cast<std::size_t>(wire::print_ring_bytes - offset)});
    std::copy_n(ring.bytes + offset, take, piece.data());
    read += take;
    left -= take;
    // Before the write, which may block on the program's terminal: the device has room again.
    ring.read.store(read, std::memory_order_release);
    std::fwrite(piece.data(), 1, take, stdout);
  }
  const std::uint64_t dropped = ring.dropped_bytes.exchange(0, std::memory_order_relaxed);
  if (dropped != 0) {
    std::fprintf(stderr, "ferry: %llu bytes of kernel output were dropped: kernels printed faster than was read\n",
                 static_cast<unsigned long long>(dropped));
  }
}

}  // namespace ferry::client
