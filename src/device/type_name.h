// Names of exceptions' types for people. The C++ library's demangler allocates, which a wave that has just thrown is not
// made to do: what is thrown in practice is a number, a string or a class of one name, and those are read here.
#pragma once

#include <string_view>

namespace ferry::device {

/// `mangled`: std::type_info::name(). Names that are not as simple as that are given as they are (c++filt -t reads them).
[[nodiscard]] constexpr std::string_view type_name(std::string_view mangled) {
  struct Builtin {
    std::string_view mangled;
    std::string_view name;
  };
  constexpr Builtin builtins[] = {{"b", "bool"},
                                  {"c", "char"},
                                  {"i", "int"},
                                  {"j", "unsigned"},
                                  {"l", "long"},
                                  {"m", "unsigned long"},
                                  {"x", "long long"},
                                  {"y", "unsigned long long"},
                                  {"f", "float"},
                                  {"d", "double"},
                                  {"PKc", "const char*"},
                                  {"Pc", "char*"},
                                  {"NSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE", "std::string"}};
  for (const Builtin& b : builtins) {
    if (mangled == b.mangled) return b.name;
  }
  // A length and as many characters: a class outside all namespaces.
  std::size_t digits = 0;
  std::size_t length = 0;
  while (digits < mangled.size() && digits < 4 && mangled[digits] >= '0' && mangled[digits] <= '9') {
    length = length * 10 + static_cast<std::size_t>(mangled[digits] - '0');
    ++digits;
  }
  return digits != 0 && length == mangled.size() - digits ? mangled.substr(digits) : mangled;
}

}  // namespace ferry::device
