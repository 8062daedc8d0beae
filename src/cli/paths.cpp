#include "cli/paths.h"

#include <unistd.h>

#include <filesystem>

namespace ferry::cli {
namespace {

std::string own_folder() {
  std::error_code error;
  const auto self = std::filesystem::read_symlink("/proc/self/exe", error);
  return error ? std::string() : self.parent_path().string();
}

}  // namespace

std::string sibling_program(const std::string& name) {
  const std::string folder = own_folder();
  const std::string path = folder + "/" + name;
  return !folder.empty() && access(path.c_str(), X_OK) == 0 ? path : std::string();
}

std::string own_library(const std::string& name) {
  const std::string folder = own_folder();
  if (folder.empty()) return {};
  // The build tree's lib stands beside bin; an installed one where the installation was told.
  for (const char* to_lib : {"../lib", FERRY_BIN_TO_LIB}) {
    const auto path = (std::filesystem::path(folder) / to_lib / name).lexically_normal().string();
    if (access(path.c_str(), R_OK) == 0) return path;
  }
  return {};
}

std::string own_data(const std::string& name) {
  const std::string folder = own_folder();
  if (folder.empty()) return {};
  std::error_code error;
  // As with libraries: the build tree's share stands beside bin.
  for (const char* to_data : {"../share", FERRY_BIN_TO_DATA}) {
    const auto place = (std::filesystem::path(folder) / to_data / "ferry" / name).lexically_normal();
    if (std::filesystem::is_directory(place, error)) return place.string();
  }
  return {};
}

std::string absolute(const std::string& path) {
  std::error_code error;
  const auto full = std::filesystem::absolute(path, error);
  return error ? path : full.string();
}

}  // namespace ferry::cli
