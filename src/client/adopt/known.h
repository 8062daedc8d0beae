// What the library remembers of memory outside the window, for calls that must be cheap where nothing is adopted, and for
// what the kernel keeps with a mapping and adoption replaces. No malloc, no locks; but for may_be_adopted(), which any
// thread may ask, by the adopter alone.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ferry::client {

/// From the first adoption on. False: there is no memory for the table.
bool open_known();
/// Before the first page of it is: a thread that met the new mapping and took it for its own would have the kernel act on
/// that.
void note_adopted(std::uint64_t begin, std::uint64_t end);
/// Nothing of whole blocks in [begin, end) is any more, or can be before it is noted again.
void forget_adopted(std::uint64_t begin, std::uint64_t end);
/// False: nothing of it ever was. True says little: it is asked before /proc is.
[[nodiscard]] bool may_be_adopted(std::uint64_t address, std::size_t bytes);

/// The program uses such advice: mappings are looked at for it from now on. Any thread.
void note_fork_advice();
/// [begin, end), one mapping, is about to be replaced: its MADV_DONTFORK or MADV_WIPEONFORK is kept for the way back.
/// False: there is no room to keep it.
bool keep_fork_advice(std::uint64_t begin, std::uint64_t end);
/// Where what is kept for `begin` ends, `end` at most, and what it is. While the adopter is suspended the thread that forks may ask.
[[nodiscard]] std::uint64_t kept_fork_advice(std::uint64_t begin, std::uint64_t end, bool& dont_fork,
                                             bool& wipe_on_fork);
/// [begin, end) is private again.
void give_fork_advice_back(std::uint64_t begin, std::uint64_t end);

/// Something was adopted, or is about to be, since the process began. For calls that need not look otherwise.
[[nodiscard]] bool has_adopted();

/// Adoptions and releases that have begun. The same before a look whether memory is adopted and after what was done
/// because it is not: it was not.
[[nodiscard]] std::uint32_t adoption_swaps();
/// Before a release begins.
void note_release();

}  // namespace ferry::client
