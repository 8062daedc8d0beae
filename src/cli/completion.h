// The completion scripts of share/completions, built in so that they can be had from the program alone. Pure.
#pragma once

#include <string>

namespace ferry::cli {

/// bash, zsh or fish; null for any other.
[[nodiscard]] const char* completion_script(const std::string& shell);

}  // namespace ferry::cli
