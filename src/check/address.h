// Where a scenario's pages and buffers lie in a client's window, and the numbers that the core knows things by. A page of
// a scenario is a granule of a whole block, so that each has its own operation, slot and masks.
#pragma once

#include "base/types.h"
#include "core/action.h"

namespace ferry::check {

inline constexpr BlockIndex first_page_block = 1;
inline constexpr BlockIndex first_buffer_block = 64;
inline constexpr std::uint64_t buffer_blocks = 8;

[[nodiscard]] constexpr PageSpan span_of_page(std::uint32_t page) {
  return {first_page_of(first_page_block + page), block_pages};
}
[[nodiscard]] constexpr PageSpan span_of_buffer(std::uint32_t buffer, std::uint64_t granules) {
  return {first_page_of(first_buffer_block + buffer * buffer_blocks), granules * block_pages};
}
[[nodiscard]] constexpr ClientId client_id(std::uint32_t client) { return client + 1; }

// Cookies say what a reply answers.
inline constexpr std::uint64_t cookie_job = 0x1000;       ///< + job
inline constexpr std::uint64_t cookie_free = 0x2000;      ///< + page
inline constexpr std::uint64_t cookie_prefetch = 0x3000;  ///< + agent
inline constexpr std::uint64_t cookie_gone = 0x4000;      ///< + client
inline constexpr std::uint64_t cookie_svm = 0x5000;       ///< + agent
inline constexpr std::uint64_t cookie_set = 0x6000;       ///< + page
inline constexpr std::uint64_t cookie_mask = 0xf000;

/// What a failure of this action is called, where a scenario lets it fail.
[[nodiscard]] constexpr Code failure_of(core::Verb verb) {
  switch (verb) {
    case core::Verb::store: return Code::no_space;
    case core::Verb::copy:
    case core::Verb::load:
    case core::Verb::move_buffer: return Code::io_error;
    case core::Verb::run_job: return Code::kernel_fault;
    default: return Code::no_memory;
  }
}

/// Somebody other than the core can notice the effect before the core has the answer.
[[nodiscard]] constexpr bool has_effect_apart(const core::Action& action) {
  switch (action.verb) {
    case core::Verb::revoke_cpu:
    case core::Verb::map_cpu:
    case core::Verb::revoke_device:
    case core::Verb::map_device:
    case core::Verb::map_buffer:
    case core::Verb::revoke_buffer: return true;
    default: return false;
  }
}

}  // namespace ferry::check
