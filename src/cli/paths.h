// Where the other parts of Ferry lie: beside this program, in the build tree and in an installed one alike.
#pragma once

#include <string>

namespace ferry::cli {

/// A program beside this one; empty if there is none that can be executed.
[[nodiscard]] std::string sibling_program(const std::string& name);

/// A shared library of Ferry; empty if it is not there.
[[nodiscard]] std::string own_library(const std::string& name);

/// A folder of Ferry's data, such as its scenarios; empty if it is not there.
[[nodiscard]] std::string own_data(const std::string& name);

/// Made absolute against the working directory; links are left alone.
[[nodiscard]] std::string absolute(const std::string& path);

}  // namespace ferry::cli
