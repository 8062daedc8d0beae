// "Did you mean": the known word nearest to one that is not known. Pure.
#pragma once

#include <string>
#include <vector>

namespace ferry::cli {

/// Empty if none is near enough to be meant.
[[nodiscard]] std::string nearest(const std::string& word, const std::vector<std::string>& known);

}  // namespace ferry::cli
