// The socket that applications connect to: made safely, given up cleanly.
#pragma once

#include <string>

#include "base/status.h"
#include "linux/fd.h"

namespace ferry::manager {

class Listener {
 public:
  Listener() = default;
  Listener(Listener&&) = default;
  Listener& operator=(Listener&&) = default;
  /// Removes the socket file, if it is still the one that was made.
  ~Listener();

  /// Makes a socket at `path` that only this user (and root) can connect to. A socket file that nobody listens on is
  /// replaced. ERRORS: overlap (a live ferryd listens there), io_error (sys_errno: ENAMETOOLONG, EEXIST for a file that
  /// is no socket, what bind said).
  static Result<Listener> make(const std::string& path);
  /// Takes a listening socket that was inherited. ERRORS: bad_message (it is something else).
  static Result<Listener> adopt(linux::Fd fd);

  [[nodiscard]] int fd() const { return fd_.get(); }
  explicit operator bool() const { return fd_.valid(); }
  /// Invalid: nobody (any more), or no descriptors for one; errno says which.
  [[nodiscard]] linux::Fd accept() const;

 private:
  linux::Fd fd_;
  linux::Fd lock_;    ///< held for as long as the path is ours
  std::string path_;  ///< empty: not ours to remove
};

}  // namespace ferry::manager
