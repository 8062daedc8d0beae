// A listening socket that only this user can reach, in a fresh directory of its own, for the time of one run. Removed
// with the object; what a killed run left behind is removed by the next one. One thread.
#pragma once

#include <string>

#include "base/status.h"
#include "linux/fd.h"

namespace ferry::cli {

class PrivateSocket {
 public:
  /// Under $XDG_RUNTIME_DIR, or /tmp where that is not set, not ours or too long. ERRORS: io_error with errno; `where`
  /// says for which path.
  static Result<PrivateSocket> make(std::string& where);

  PrivateSocket() = default;
  PrivateSocket(PrivateSocket&&) = default;
  PrivateSocket& operator=(PrivateSocket&&) = delete;
  ~PrivateSocket();

  [[nodiscard]] const std::string& path() const { return path_; }
  /// Readable once somebody wants to connect. -1 after close_listener.
  [[nodiscard]] int listener() const { return listener_.get(); }
  /// When another process listens on it: that one's end is then seen by those who try to connect.
  void close_listener() { listener_.reset(); }

 private:
  std::string folder_;
  std::string path_;
  linux::Fd lock_;  ///< flock on the folder: held, it says that the folder is in use
  linux::Fd listener_;
};

}  // namespace ferry::cli
