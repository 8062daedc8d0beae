#include "client/adopt/settle.h"
#include "client/adopt/known.h"

#include "client/adopt/adopter.h"
#include "client/session.h"
#include "linux/futex.h"
#include "wire/ring.h"

namespace ferry::client {
namespace {
/// The manager reads, finds nothing and says so, in less: then no question is needed.
constexpr unsigned glances = 64;
}  // namespace

Status settle_unmaps(Session& session) {
  if (!has_adopted()) return {};
  for (;;) {
    // From the first step of an unmap, which is taken before anybody else can have the address, until the manager has read
    // of it the kernel says so. From before that reading until nobody reaches the pages the manager does.
    const bool told = !session.outside_userfault.mappings_change();
    for (unsigned i = 0; told && i < glances; ++i) {
      if (session.control->unmapping.load(std::memory_order_seq_cst) == 0) return {};
      cpu_relax();
    }
    const Status settled = session.requests.tell(wire::MessageType::adopt_settle, wire::AdoptFaults{});
    if (!settled.ok()) return settled;
  }
}

Status settle_before_launch(Session& session) {
  const Status settled = settle_unmaps(session);
  await_certainty();
  return settled;
}

}  // namespace ferry::client
