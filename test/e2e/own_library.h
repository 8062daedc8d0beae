// Globals of libraries that belong to a program: one that launches kernels itself, and one that knows nothing of Ferry.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace ferry::test {

// --- own_library_kernels.cpp -------------------------------------------------------------------------------------------

extern int library_initialised;          ///< 5; the linker may move it into the program
extern std::vector<int> library_vector;  ///< 3000 fours, made before main
int& library_hidden();                   ///< 17, nobody else's name
int& library_of_a_function();            ///< 23, made at the first call
/// A kernel of the library's adds one to each, throws and catches.
void run_library_kernel();

// --- own_library_plain.cpp ---------------------------------------------------------------------------------------------

inline constexpr std::size_t plain_count = 50'000;
std::atomic<std::uint32_t>& plain_zeroed(std::size_t i);       ///< .bss
std::atomic<std::uint32_t>& plain_initialised(std::size_t i);  ///< .data, more than one page; i % 7
long plain_parse(const char* text);  ///< calls the C library by a table that is filled at first use; counts its calls
int plain_calls();

}  // namespace ferry::test
