// Managed memory for the heap: whole spans of pages, from the manager, mapped from the system file.
// Owns: the hooks that the heap calls. Does not own: addresses (the heap picks them), small allocations.
// The hooks run under the heap's locks, on whichever thread allocates; the session's threads never come here.
#pragma once

#include <ferry/ferry.h>

#include "base/status.h"
#include "client/session.h"

namespace ferry::client {

/// Makes the process's heap managed: existing spans are converted, new ones come from the manager. False: some span
/// could not be converted.
bool begin_spans(Session& session);

/// While it lives, spans that the calling thread's allocations need are asked for with `flags` (wire::span_place_*).
class SpanFlagsScope {
 public:
  explicit SpanFlagsScope(std::uint32_t flags);
  ~SpanFlagsScope();
  SpanFlagsScope(const SpanFlagsScope&) = delete;
  SpanFlagsScope& operator=(const SpanFlagsScope&) = delete;
};

/// Why the calling thread's last acquisition failed.
Status last_span_status();
void clear_last_span_status();

}  // namespace ferry::client
