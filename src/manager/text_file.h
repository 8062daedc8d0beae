// A file written front to back whose every failure is noticed: a full disk shows as a Status, not as half a file that
// looks whole. One thread.
#pragma once

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <string>
#include <string_view>

#include "base/status.h"

namespace ferry::manager {

class TextFile {
 public:
  explicit TextFile(const std::string& path) : file_(std::fopen(path.c_str(), "we")) {
    if (file_ == nullptr) errno_ = errno;
  }
  TextFile(const TextFile&) = delete;
  TextFile& operator=(const TextFile&) = delete;
  ~TextFile() {
    if (file_ != nullptr) std::fclose(file_);
  }

  void write(std::string_view text) {
    if (errno_ == 0 && std::fwrite(text.data(), 1, text.size(), file_) != text.size())
      errno_ = errno != 0 ? errno : EIO;
  }
  [[nodiscard]] bool failed() const { return errno_ != 0; }

  /// Closes. ERRORS: no_space, io_error; a regular file is then empty, so that what is half written takes no room and
  /// is not mistaken for a result.
  Status finish() {
    if (file_ != nullptr) {
      if (std::fflush(file_) != 0 && errno_ == 0) errno_ = errno;
      struct stat info {};
      if (errno_ != 0 && fstat(fileno(file_), &info) == 0 && S_ISREG(info.st_mode)) {
        // Best effort: the failure to tell of is the first one.
        [[maybe_unused]] const int ignored = ftruncate(fileno(file_), 0);
      }
      if (std::fclose(file_) != 0 && errno_ == 0) errno_ = errno;
      file_ = nullptr;
    }
    if (errno_ == 0) return {};
    return {errno_ == ENOSPC || errno_ == EDQUOT ? Code::no_space : Code::io_error, errno_};
  }

 private:
  std::FILE* file_ = nullptr;
  int errno_ = 0;
};

}  // namespace ferry::manager
