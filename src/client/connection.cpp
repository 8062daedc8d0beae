#include "client/connection.h"

#include <dlfcn.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <string>

#include "client/error.h"
#include "client/zygote.h"
#include "linux/socket.h"

namespace ferry::client {
namespace {

bool runnable(const std::string& path) { return ::access(path.c_str(), X_OK) == 0; }

std::string library_folder() {
  Dl_info info{};
  if (::dladdr(reinterpret_cast<const void*>(&start_private_manager), &info) == 0 || info.dli_fname == nullptr) {
    return {};
  }
  char resolved[PATH_MAX];
  if (::realpath(info.dli_fname, resolved) == nullptr) return {};
  const std::string path = resolved;
  return path.substr(0, path.rfind('/'));
}

/// Empty: none found.
std::string find_ferryd() {
  const std::string folder = library_folder();
  if (!folder.empty()) {
    // Build tree and installation, whatever the depth of the library's folder (lib, lib/x86_64-linux-gnu).
    for (const char* relative : {"/../bin/ferryd", "/../../bin/ferryd", "/ferryd"}) {
      if (runnable(folder + relative)) return folder + relative;
    }
  }
  const char* path = std::getenv("PATH");
  for (const char* at = path; at != nullptr;) {
    const char* end = std::strchr(at, ':');
    std::string candidate(at, end == nullptr ? std::strlen(at) : static_cast<std::size_t>(end - at));
    candidate += "/ferryd";
    if (runnable(candidate)) return candidate;
    at = end == nullptr ? nullptr : end + 1;
  }
  return {};
}

}  // namespace

linux::Fd connect_manager(const char* path, ferry_error* error) {
  auto connected = linux::connect_socket(path);
  if (!connected) {
    const int e = connected.status().sys_errno;
    switch (e) {
      case ENOENT:
        fail(error, Code::manager_lost, e,
             "no ferryd at %s: start one with `ferryd --socket %s`, or unset FERRY_SOCKET to have a private one", path,
             path);
        break;
      case ECONNREFUSED: {
        struct stat file {};
        if (::stat(path, &file) == 0 && !S_ISSOCK(file.st_mode)) {
          fail(error, Code::manager_lost, e, "%s is no socket: name that of a ferryd by FERRY_SOCKET", path);
          break;
        }
        fail(error, Code::manager_lost, e,
             "nobody listens at %s (a ferryd that was killed leaves its socket behind): start it again with `ferryd "
             "--socket %s`, or unset FERRY_SOCKET to have a private one",
             path, path);
        break;
      }
      case EACCES:
        fail(error, Code::not_permitted, e,
             "uid %u may not connect to %s: ask its owner, or unset FERRY_SOCKET to have a private ferryd", ::getuid(),
             path);
        break;
      case EPROTOTYPE:
        fail(error, Code::manager_lost, e, "%s is the socket of some other program, not of a ferryd", path);
        break;
      case ENAMETOOLONG:
        fail(error, Code::manager_lost, e, "the socket path %s is too long (107 bytes at most)", path);
        break;
      default: fail(error, Code::manager_lost, e, "cannot connect to ferryd at %s: %s", path, std::strerror(e));
    }
    return {};
  }
  const auto peer = linux::peer_credentials(connected.value().get());
  if (!peer) {
    fail(error, peer.status(), "cannot tell who listens at the socket");
    return {};
  }
  const uid_t uid = peer.value().uid;
  if (uid != ::geteuid() && uid != 0) {
    fail(error, Code::not_permitted, 0,
         "the ferryd at %s runs as uid %u: only one of yours (uid %u) or root's is trusted with your memory", path, uid,
         ::geteuid());
    return {};
  }
  return std::move(connected.value());
}

linux::Fd start_private_manager(ferry_error* error) {
  const char* named = std::getenv("FERRY_FERRYD");
  std::string path;
  if (named != nullptr && *named != '\0') {
    path = named;
    if (!runnable(path)) {
      fail(error, Code::manager_lost, errno, "FERRY_FERRYD=%s cannot be run: %s", named, std::strerror(errno));
      return {};
    }
  } else {
    path = find_ferryd();
    if (path.empty()) {
      fail(error, Code::manager_lost, ENOENT,
           "no ferryd beside libferry.so or in PATH: install it there, name it by FERRY_FERRYD, or name a running one "
           "by FERRY_SOCKET");
      return {};
    }
  }
  auto pair = linux::make_socket_pair();
  if (!pair) {
    fail(error, pair.status(), "cannot make a socket for a private ferryd");
    return {};
  }
  const auto started = spawn_manager(path.c_str(), pair.value().second.get());
  if (!started) {
    fail(error, Code::manager_lost, started.status().sys_errno, "cannot start %s: %s", path.c_str(),
         started.status().sys_errno != 0 ? std::strerror(started.status().sys_errno)
                                         : "the template process of this program has ended");
    return {};
  }
  return std::move(pair.value().first);
}

}  // namespace ferry::client
