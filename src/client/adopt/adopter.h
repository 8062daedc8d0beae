// The thread that makes memory outside the window managed, and private again. A thread of its own, because it takes memory
// from all others while it copies it: their stacks, their heap. It touches nothing but its own stack and the session.
// Nothing else is needed to bring a page (agent.h), so it may wait for pages itself.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/status.h"
#include "wire/adopt.h"

namespace ferry::client {

struct Session;

/// Starts the thread; it lives as long as the process. ERRORS: no_memory.
Status start_adopter(Session& session);

struct AdoptResult {
  Status status;
  wire::Refusal refusal = wire::Refusal::none;
  std::uint64_t address = 0;  ///< where it stopped, if it did
  bool answered = false;      ///< the manager knows already
};

/// Any thread but the session's own. Rounds out to pages. On an error nothing has changed.
AdoptResult adopt(std::uint64_t address, std::uint64_t bytes);
/// Parts of the span that are not adopted are left out, and so are data that graphics jobs count on (code_data.h).
/// ERRORS: those of the manager.
AdoptResult give_back(std::uint64_t address, std::uint64_t bytes);

/// Nothing of the span is adopted or given back until it is let go, but by give_back_held(). Waits while another thread
/// holds some of it: who holds a span waits for no thread of the program. Any thread but the session's own.
/// Returns a number for the others.
unsigned hold_span(std::uint64_t begin, std::uint64_t end);
void let_span_go(unsigned held);
/// [begin, end) lies in the span that is held.
Status give_back_held(unsigned held, std::uint64_t begin, std::uint64_t end);

/// Reader thread: the manager asks for a page that a device touched. Answered by adopt_answer.
void adopt_for_device(const wire::AdoptAsk& ask);

/// The adopter itself: the part of [begin, end) around the address, which nobody holds, of which nobody holds anything.
void cut_at_held(std::uint64_t address, std::uint64_t& begin, std::uint64_t& end);

/// Before a fork: everything adopted is given back, and nothing is adopted until resume_adoption().
void suspend_adoption();
void resume_adoption();
/// Another number after each suspension, and after any other time that data of the code (code_data.h) were given back.
[[nodiscard]] std::uint32_t adoption_generation();

/// Waits while something is adopted of which parts may be unmapped already. Not from the adopter.
void await_certainty();

}  // namespace ferry::client
