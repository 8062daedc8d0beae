// What one application may have at a time of what it asks the manager to remember. Beyond that the request is refused with
// no_memory, and nothing has changed. docs/SVM.md tells users. What of it is counted elsewhere: config.h (buffers, fences,
// jobs, exports), file_spans.h, event_streams.h.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ferry::manager {

/// Requests that are not answered yet. libferry never has more than 64.
inline constexpr std::size_t requests_max = 1024;
/// Allocations, in pieces; each costs some 200 bytes here.
inline constexpr std::size_t spans_max = std::size_t{1} << 22;
/// Pieces that the application has protected itself.
inline constexpr std::size_t protections_max = std::size_t{1} << 20;
/// Pages that are kept for children of forks which cannot take them, all children together: 4 GiB. One that would need more
/// ends, as if the manager had.
inline constexpr std::uint64_t taken_pages_max = std::uint64_t{1} << 20;
/// Threads that wait until a fork is over: more than Linux can run.
inline constexpr std::size_t gate_touches_max = std::size_t{1} << 22;

}  // namespace ferry::manager
