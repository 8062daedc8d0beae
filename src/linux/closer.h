// Closing descriptors that others made, off the caller's thread: the last close of one may take as long as its maker
// wants (a file of a FUSE server that does not answer, a socket that lingers, a pipe that somebody is writing to, a socket with
// such things in its queue).
#pragma once

#include <memory>

#include "linux/event.h"
#include "linux/fd.h"

namespace ferry::linux {

/// One owner's thread. Nothing here blocks it, the end of the object neither: what is still being closed then is closed by
/// threads that hold on to nothing else, or by the end of the process.
class Closer {
 public:
  /// `bell` is rung after each close() that went to a thread: there is room for a descriptor again.
  explicit Closer(const Bell& bell);
  ~Closer();
  Closer(const Closer&) = delete;
  Closer& operator=(const Closer&) = delete;

  /// Of any kind. Closed a little later.
  void close(Fd fd);
  /// Of a pair, or of a connection, which is over for both ends when this returns.
  void close_socket(Fd fd);

 private:
  struct Shared;
  static void* work(void* shared);
  std::shared_ptr<Shared> shared_;
};

}  // namespace ferry::linux
