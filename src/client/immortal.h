// A static object that is constant-initialized and never destroyed: usable before the program's constructors have run
// and, by the session's threads, while exit() runs its destructors.
#pragma once

namespace ferry::client {

template <typename T>
class Immortal {
 public:
  constexpr Immortal() : value_{} {}
  Immortal(const Immortal&) = delete;
  Immortal& operator=(const Immortal&) = delete;
  // NOLINTNEXTLINE(modernize-use-equals-default): a union with such a member has no defaulted destructor
  constexpr ~Immortal() {}

  constexpr T& operator*() { return value_; }
  constexpr T* operator->() { return &value_; }

 private:
  union {
    T value_;
  };
};

}  // namespace ferry::client
