// Builds a NUL-terminated text in a buffer that it is given. Allocates nothing and takes no lock, so compute units may
// use it while waves of theirs are parked anywhere.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace ferry::device {

class Text {
 public:
  /// Text past capacity_bytes - 1 is cut off.
  Text(char* buffer, std::size_t capacity_bytes) : buffer_(buffer), capacity_(capacity_bytes) {
    if (capacity_ != 0) buffer_[0] = '\0';
  }

  Text& operator<<(std::string_view s) {
    const std::size_t room = capacity_ - 1 - size_;
    const std::size_t take = s.size() < room ? s.size() : room;
    std::memcpy(buffer_ + size_, s.data(), take);
    size_ += take;
    buffer_[size_] = '\0';
    return *this;
  }
  Text& operator<<(std::uint64_t number) { return digits(number, 10); }
  Text& hex(std::uint64_t number) {
    *this << "0x";
    return digits(number, 16);
  }
  [[nodiscard]] std::size_t size() const { return size_; }

 private:
  Text& digits(std::uint64_t number, unsigned base) {
    char reversed[20];
    char forward[20];
    std::size_t n = 0;
    do {
      reversed[n++] = "0123456789abcdef"[number % base];
      number /= base;
    } while (number != 0);
    for (std::size_t i = 0; i < n; ++i) forward[i] = reversed[n - 1 - i];
    return *this << std::string_view(forward, n);
  }

  char* buffer_;
  std::size_t capacity_;
  std::size_t size_ = 0;
};

}  // namespace ferry::device
