// Mappings of files, on devices: shared ones and those that nobody may write are mapped by the device itself, at the same
// address and with no more rights (docs/design/0022-files.md). The adopter's thread only: no malloc, its own stack.
#pragma once

#include <cstdint>

#include "client/adopt/adopter.h"
#include "client/adopt/places.h"

namespace ferry::client {

/// It may be one: serve_file and check_file say for certain.
[[nodiscard]] bool may_be_file(const Place& place);

/// The devices (bit d: device d) are to have what is mapped at the address. Well: the manager knows, and has taken it for
/// the answer to its question.
AdoptResult serve_file(Session& session, std::uint64_t address, bool write, std::uint32_t devices);

/// Whether devices could have what is mapped at the address, up to `end`, when they touch it. Changes nothing.
AdoptResult check_file(std::uint64_t address, std::uint64_t& end);

}  // namespace ferry::client
