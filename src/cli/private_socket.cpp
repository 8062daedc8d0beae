#include "cli/private_socket.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <ctime>

namespace ferry::cli {
namespace {

constexpr const char* folder_prefix = "ferry-run-";
constexpr const char* socket_name = "/socket";
// A folder this young may belong to a run that has not locked it yet.
constexpr std::time_t settle_seconds = 60;

/// A directory of this user that nobody else can write to, or /tmp.
std::string parent_folder() {
  const char* runtime = std::getenv("XDG_RUNTIME_DIR");
  struct stat info {};
  if (runtime != nullptr && runtime[0] == '/' && std::strlen(runtime) < 64 && stat(runtime, &info) == 0 &&
      S_ISDIR(info.st_mode) && info.st_uid == geteuid() && access(runtime, W_OK | X_OK) == 0) {
    return runtime;
  }
  return "/tmp";
}

void remove_folder(const std::string& folder) {
  unlink((folder + socket_name).c_str());
  rmdir(folder.c_str());
}

void remove_stale(const std::string& parent) {
  DIR* directory = opendir(parent.c_str());
  if (directory == nullptr) return;
  while (const dirent* entry = readdir(directory)) {
    if (std::strncmp(entry->d_name, folder_prefix, std::strlen(folder_prefix)) != 0) continue;
    const std::string folder = parent + "/" + entry->d_name;
    const linux::Fd fd(open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    struct stat info {};
    if (!fd || fstat(fd.get(), &info) != 0 || info.st_uid != geteuid()) continue;
    if (info.st_mtime + settle_seconds > std::time(nullptr)) continue;
    // By lock, not by process number: a run in another container has numbers of its own.
    if (flock(fd.get(), LOCK_EX | LOCK_NB) == 0) remove_folder(folder);
  }
  closedir(directory);
}

}  // namespace

Result<PrivateSocket> PrivateSocket::make(std::string& where) {
  const std::string parent = parent_folder();
  remove_stale(parent);
  PrivateSocket made;
  std::string folder = parent + "/" + folder_prefix + "XXXXXX";
  where = folder;
  if (mkdtemp(folder.data()) == nullptr) return Status(Code::io_error, errno);
  made.folder_ = folder;
  made.path_ = folder + socket_name;
  where = made.path_;
  made.lock_.reset(open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!made.lock_ || flock(made.lock_.get(), LOCK_EX | LOCK_NB) != 0) return Status(Code::io_error, errno);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (made.path_.size() >= sizeof address.sun_path) return Status(Code::io_error, ENAMETOOLONG);
  std::memcpy(address.sun_path, made.path_.c_str(), made.path_.size() + 1);
  made.listener_.reset(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!made.listener_ || bind(made.listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
      listen(made.listener_.get(), 128) != 0) {
    return Status(Code::io_error, errno);
  }
  return made;
}

PrivateSocket::~PrivateSocket() {
  // A moved-from string is empty or short; the lock tells for certain.
  if (lock_) remove_folder(folder_);
}

}  // namespace ferry::cli
