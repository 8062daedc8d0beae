#include "client/adopt/adopter.h"

#include <sys/mman.h>
#include <sys/prctl.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <climits>
#include <utility>

#include "client/adopt/code_data.h"
#include "client/adopt/file_notes.h"
#include "client/adopt/files.h"
#include "client/adopt/known.h"
#include "client/adopt/places.h"
#include "client/adopt/settle.h"
#include "client/adopt/sleepers.h"
#include "client/adopt/stopped.h"
#include "client/adopt/swap.h"
#include "client/agent.h"
#include "client/convert.h"
#include "client/convert_file.h"
#include "client/session.h"
#include "linux/futex.h"

namespace ferry::client {
namespace {

/// The program stands still while a piece is copied, and a release waits for devices: not for more than this at once.
constexpr std::uint64_t piece_bytes = swap_bytes_max;

/// Mappings that change between a look and the change are looked at again, not for ever.
constexpr unsigned looks_max = 16;

enum class What : std::uint32_t { adopt, give_back, give_back_held, for_device, suspend, resume, hold };
enum : std::uint32_t { job_free, job_taken, job_ready, job_done };

struct Job {
  std::atomic<std::uint32_t> state{job_free};
  What what = What::adopt;
  std::uint64_t address = 0;
  std::uint64_t bytes = 0;
  bool write = false;
  std::uint32_t devices = 0;
  AdoptResult result;
  unsigned held = 0;  ///< of hold: which
};

// Constant-initialized, in the library's own data: never adopted, whatever the program gives away.
constinit std::array<Job, 64> jobs{};
constinit Job device_job;
constinit std::atomic<std::uint32_t> bell{0};
constinit std::atomic<std::uint32_t> freed{0};
constinit std::atomic<std::uint32_t> generation{0};
constinit std::atomic<std::uint32_t> in_doubt{0};
constinit Session* session = nullptr;
constinit bool suspended = false;  // the adopter's own

/// A span that nobody else may change, with a job of its own: who holds it waits for nobody that waits for it. Taken by the
/// adopter, given up by who has it.
struct HeldSpan {
  std::atomic<bool> taken{false};
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
  Job job;
};
constinit std::array<HeldSpan, 64> held{};

void ring() {
  bell.fetch_add(1, std::memory_order_seq_cst);
  linux::futex_wake(bell, 1);
}

AdoptResult wait_for(Job& job) {
  job.state.store(job_ready, std::memory_order_release);
  ring();
  for (std::uint32_t state = job_ready; state != job_done;) {
    wait_on(job.state, state);
    state = job.state.load(std::memory_order_acquire);
  }
  return job.result;
}

AdoptResult ask_for(What what, std::uint64_t address, std::uint64_t bytes, unsigned* which = nullptr) {
  Job* job = nullptr;
  while (job == nullptr) {
    const std::uint32_t seen = freed.load(std::memory_order_acquire);
    for (Job& j : jobs) {
      std::uint32_t expected = job_free;
      if (j.state.compare_exchange_strong(expected, job_taken, std::memory_order_acquire)) {
        job = &j;
        break;
      }
    }
    if (job == nullptr) wait_on(freed, seen);
  }
  job->what = what;
  job->address = address;
  job->bytes = bytes;
  const AdoptResult result = wait_for(*job);
  if (which != nullptr) *which = job->held;
  job->state.store(job_free, std::memory_order_release);
  freed.fetch_add(1, std::memory_order_release);
  linux::futex_wake(freed, 1);
  return result;
}

wire::Span wire_span(std::uint64_t begin, std::uint64_t end, std::uint32_t flags) {
  wire::Span s{};
  s.first_page = session->window().page_of_address(begin);
  s.count_pages = (end - begin) / page_bytes;
  s.device = wire::to_system;
  s.flags = flags;
  return s;
}

AdoptResult refuse(wire::Refusal why, std::uint64_t address, int error = 0) {
  AdoptResult r;
  r.refusal = why;
  r.address = address;
  const bool short_of = why == wire::Refusal::no_memory || why == wire::Refusal::no_mappings;
  r.status = {short_of ? why == wire::Refusal::no_memory ? Code::no_memory : Code::no_mappings : Code::unsupported,
              error};
  return r;
}

AdoptResult refuse_conversion(Status failed, std::uint64_t address) {
  switch (failed.code) {
    case Code::no_memory: return refuse(wire::Refusal::no_memory, address, failed.sys_errno);
    case Code::no_mappings: return refuse(wire::Refusal::no_mappings, address, failed.sys_errno);
    case Code::in_use: return refuse(wire::Refusal::foreign_faults, address, failed.sys_errno);
    default:
      return refuse(failed.sys_errno == EBUSY ? wire::Refusal::foreign_faults : wire::Refusal::kernel, address,
                    failed.sys_errno);
  }
}

/// False, with `result` filled, where there is no userfaultfd to be had.
bool have_userfault(AdoptResult& result) {
  if (session->outside_userfault) return true;
  linux::Userfaultfd::Options options;
  options.protect = true;
  options.tell_unmaps = true;
  auto opened = linux::Userfaultfd::open(options);
  if (!opened) {
    result = refuse(wire::Refusal::kernel, 0, opened.status().sys_errno);
    return false;
  }
  const int fds[] = {opened.value().fd()};
  Answer answer;
  result.status = session->requests.ask(wire::MessageType::adopt_faults, wire::AdoptFaults{}, answer, fds);
  if (result.status.ok()) session->outside_userfault = std::move(opened).value();
  return result.status.ok();
}

/// [begin, end), one mapping of the file or its stripes, is private again. On an error it is the file's still, and watched.
Status put_back(std::uint64_t begin, std::uint64_t end, int prot) {
  const Swap swap{begin, end, 0, session->system_file.get(), wire_span(begin, end, 0).first_page * page_bytes};
  Status result = swap_to_private(swap, session->outside_userfault);
  if (result.code != Code::timed_out) return result;
  // Some thread cannot be stopped. Who gives memory back does not unmap it meanwhile.
  session->outside_userfault.unregister_span(begin, end - begin);
  result = convert_to_private(reinterpret_cast<void*>(begin), end - begin, prot, swap.file, swap.offset);
  if (result.ok()) {
    restart_sleepers(begin, end);
  } else {
    session->outside_userfault.register_span(begin, end - begin, linux::track_writes);
  }
  return result;
}

AdoptResult give_back_piece(std::uint64_t begin, std::uint64_t end) {
  const wire::Span span = wire_span(begin, end, 0);
  AdoptResult result;
  result.address = begin;
  note_release();
  result.status = session->requests.tell(wire::MessageType::release, span);
  if (!result.status.ok()) return result;
  const int prot = place_of(begin).prot;
  result.status = put_back(begin, end, prot);
  if (!result.status.ok()) {
    // Still shared with the file: managed again, so that nobody loses it.
    wire::Span again = span;
    again.flags = wire::span_has_contents | ((prot & PROT_WRITE) == 0 ? wire::span_read_only : 0);
    [[maybe_unused]] const Status back = session->requests.tell(wire::MessageType::released, again);
    return result;
  }
  give_fork_advice_back(begin, end);
  result.status = session->requests.tell(wire::MessageType::released, span);
  return result;
}

enum class Extent {
  exact,  ///< somebody uses all of it now, so nobody unmaps any of it
  wide,   ///< it may hold what belongs to others
};

/// A private mapping of a file. Nobody maps anything else there meanwhile.
Status convert_private_file(const Place& place, std::uint64_t begin, std::uint64_t end, int file,
                            std::uint64_t offset) {
  const ServingFiles alone;
  const Place now = place_of(begin);
  if (now.adopted || now.refusal != wire::Refusal::none || !now.file || now.end < end || now.prot != place.prot) {
    return Code::bad_range;
  }
  const Status converted =
      convert_file_to_shared(reinterpret_cast<void*>(begin), end - begin, file, offset, place.prot);
  return converted.code == Code::in_use ? Status(Code::bad_range) : converted;
}

/// ERRORS beside those of the refusals: bad_range (the mapping has changed: look again), timed_out (wide, and the threads
/// cannot be stopped).
Status convert(const Place& place, const Swap& swap, Extent extent) {
  if (!place.huge && !place.file) {
    const Status swapped = swap_to_shared(swap, session->outside_userfault, !place.stack);
    if (swapped.code != Code::timed_out || extent == Extent::wide) return swapped;
  }
  // Some thread cannot be stopped, or the kernel cannot move the pages: threads are only kept from writing.
  const std::uint64_t bytes = swap.end - swap.begin;
  const Status converted =
      place.file ? convert_private_file(place, swap.begin, swap.end, swap.file, swap.offset)
                 : convert_to_shared(reinterpret_cast<void*>(swap.begin), bytes, swap.file, swap.offset, swap.prot);
  if (!converted.ok()) return converted;
  const bool apart = place.stack || stripe(swap.begin, swap.end);
  const bool watched =
      apart && session->outside_userfault.register_span(swap.begin, bytes, linux::track_writes) == linux::Fault::ok;
  if (!watched) {
    // A mapping like any other if it cannot be put back.
    [[maybe_unused]] const Status back = put_back(swap.begin, swap.end, swap.prot);
    return Code::no_mappings;
  }
  restart_sleepers(swap.begin, swap.end);
  return {};
}

/// What was unmapped between the conversion and alloc: the manager heard of it when it knew nothing of the span.
void forget_unmapped(std::uint64_t begin, std::uint64_t end) {
  for (std::uint64_t at = begin; at < end;) {
    const Place place = place_of(at);
    const std::uint64_t to = std::min(std::max(place.end, at + page_bytes), end);
    if (!place.adopted) {
      [[maybe_unused]] const Status told = session->requests.tell(wire::MessageType::adopt_begin, wire_span(at, to, 0));
    }
    at = to;
  }
}

std::uint32_t flags_of(const Place& place) {
  return wire::span_has_contents | (place.stack || place.in_place ? wire::span_place_system : 0) |
         ((place.prot & PROT_WRITE) == 0 ? wire::span_read_only : 0);
}

/// No kernel begins while what was unmapped of a span may be managed.
class Doubt {
 public:
  Doubt() { in_doubt.store(1, std::memory_order_seq_cst); }
  ~Doubt() {
    in_doubt.store(0, std::memory_order_seq_cst);
    linux::futex_wake(in_doubt, INT_MAX);
  }
};

AdoptResult adopt_piece(const Place& place, std::uint64_t begin, std::uint64_t end, Extent extent) {
  const wire::Span span = wire_span(begin, end, flags_of(place));
  AdoptResult failed;
  if (!have_userfault(failed)) return failed;
  if (place.stack && !session->outside_userfault.full_service()) return refuse(wire::Refusal::system_calls, begin);
  failed.address = begin;
  // The end of what was here before has to be heard before this begins: afterwards it would be taken for the end of this.
  failed.status = settle_unmaps(*session);
  if (!failed.status.ok()) return failed;
  // What is known of another mapping that was here must be forgotten first, and its bytes gone from the file.
  failed.status = session->requests.tell(wire::MessageType::adopt_begin, span);
  if (failed.status.code == Code::in_use) return refuse(wire::Refusal::pinned, begin);
  if (!failed.status.ok()) return failed;
  if (!open_known()) return refuse(wire::Refusal::no_memory, begin);
  if (!keep_fork_advice(begin, end)) return refuse(wire::Refusal::no_mappings, begin);
  note_adopted(begin, end);
  const Doubt doubt;
  const Swap swap{begin, end, place.prot, session->system_file.get(), span.first_page * page_bytes};
  failed.status = convert(place, swap, extent);
  if (failed.status.code == Code::bad_range || failed.status.code == Code::timed_out) return failed;
  // A huge page of more than a block.
  if (place.huge && failed.status.sys_errno == EINVAL) return refuse(wire::Refusal::huge_pages, begin);
  if (!failed.status.ok()) return refuse_conversion(failed.status, begin);
  failed.status = session->requests.tell(wire::MessageType::alloc, span);
  if (failed.status.ok()) {
    forget_unmapped(begin, end);
    return {};
  }
  // Not managed, and a mapping like any other if it cannot be put back.
  [[maybe_unused]] const Status back = swap_to_private(swap, session->outside_userfault);
  return failed;
}

enum class CodeData {
  all,    ///< it goes with the rest, and who needs it has to have it mapped again
  stays,  ///< what graphics jobs count on stays: a device would have it again at once in any case
};

AdoptResult give_back_span(std::uint64_t begin, std::uint64_t end, CodeData code_data) {
  const std::uint64_t window_end = session->window_base + session->window_bytes;
  const bool stays = code_data == CodeData::stays && code_data_are_needed();
  AdoptResult result;
  for (Place place; begin < end && next_adopted(begin, session->window_base, window_end, place) && place.begin < end;) {
    std::uint64_t from = std::max(begin, place.begin);
    std::uint64_t to = std::min({end, place.end, (from / piece_bytes + 1) * piece_bytes});
    if (stays && !cut_at_code_data(from, to)) {
      begin = to;
      continue;
    }
    const AdoptResult piece = give_back_piece(from, to);
    if (!piece.status.ok() && result.status.ok()) result = piece;
    if (std::uint64_t a = from, b = to; !cut_at_code_data(a, b) || a != from || b != to) {
      generation.fetch_add(1, std::memory_order_relaxed);
    }
    begin = to;
  }
  return result;
}

/// What is not pinned of a piece that cannot be given back whole.
void give_back_around_pins(std::uint64_t begin, std::uint64_t end) {
  if (end - begin <= page_bytes) return;
  const std::uint64_t middle = begin + (end - begin) / 2 / page_bytes * page_bytes;
  for (const auto& [from, to] : {std::pair{begin, middle}, std::pair{middle, end}}) {
    if (give_back_piece(from, to).status.code == Code::in_use) give_back_around_pins(from, to);
  }
}

/// All but what is pinned. The kernel itself writes what the thread that forks has in its stack and beside it, in the child
/// before it runs: there nothing may be missing but the very pages that are pinned.
AdoptResult give_back_for_fork(std::uint64_t stack, std::uint64_t thread) {
  const AdoptResult result = give_back_span(0, user_address_end, CodeData::all);
  if (result.status.ok()) return result;
  const std::uint64_t window_end = session->window_base + session->window_bytes;
  for (const std::uint64_t needed : {stack, thread}) {
    const std::uint64_t first = needed / piece_bytes * piece_bytes;
    Place place;
    for (std::uint64_t at = first;
         next_adopted(at, session->window_base, window_end, place) && place.begin < first + piece_bytes;
         at = place.end) {
      give_back_around_pins(place.begin, std::min(place.end, first + piece_bytes));
    }
  }
  return result;
}

/// Around the byte, which may be the first, as much of a private mapping of a file as is converted at once.
AdoptResult adopt_file_piece(const Place& place, std::uint64_t address, std::uint64_t limit) {
  const std::uint64_t unit = address & ~(file_piece_bytes - 1);
  const std::uint64_t begin = std::max(place.begin, unit);
  const std::uint64_t wanted = std::min({place.end, limit, unit + file_piece_bytes});
  std::uint64_t end = wanted;
  if (const Status copied = copy_file_pages(begin, end); !copied.ok()) return refuse_conversion(copied, address);
  if (address >= end || (limit != user_address_end && end < wanted)) return refuse(wire::Refusal::file_end, end);
  return adopt_piece(place, begin, end, Extent::exact);
}

/// The whole span or nothing.
AdoptResult adopt_span(std::uint64_t begin, std::uint64_t end) {
  for (std::uint64_t at = begin; at < end;) {
    const Place place = place_of(at);
    std::uint64_t to = place.end;
    if (may_be_file(place)) {
      const AdoptResult file = check_file(at, to);
      if (!file.status.ok()) return file;
    } else if (place.refusal != wire::Refusal::none) {
      return refuse(place.refusal, at);
    }
    at = to;
  }
  unsigned looks = 0;
  for (std::uint64_t at = begin; at < end;) {
    const Place place = place_of(at);
    std::uint64_t to = std::min({end, place.end, (at / piece_bytes + 1) * piece_bytes});
    if (place.huge) {
      at = at / block_bytes * block_bytes;
      to = (to + block_bytes - 1) / block_bytes * block_bytes;
    }
    if (place.file) to = std::min(to, (at / file_piece_bytes + 1) * file_piece_bytes);
    // Devices get a file when they touch it.
    if (!place.adopted && !may_be_file(place)) {
      const AdoptResult piece = place.refusal != wire::Refusal::none ? refuse(place.refusal, at)
                                : place.file                         ? adopt_file_piece(place, at, to)
                                                                     : adopt_piece(place, at, to, Extent::exact);
      if (piece.status.code == Code::bad_range && ++looks < looks_max) continue;
      if (!piece.status.ok()) {
        // Also what was adopted before this call, which is as well: a device gets it again when it touches it.
        if (at > begin) give_back_span(begin, at, CodeData::stays);
        return piece.status.code == Code::bad_range ? refuse(wire::Refusal::unmapped, at) : piece;
      }
    }
    looks = 0;
    at = to;
  }
  return {};
}

/// Around the page as much of its block as is of one kind; where the threads cannot be stopped the page alone, which
/// nobody unmaps, since a kernel uses it.
AdoptResult adopt_page(std::uint64_t address, bool write, std::uint32_t devices) {
  Extent extent = Extent::wide;
  for (unsigned looks = 0; looks < looks_max; ++looks) {
    const Place place = place_of(address);
    if (place.adopted) return {};
    if (may_be_file(place)) return serve_file(*session, address, write, devices);
    if (place.refusal != wire::Refusal::none) return refuse(place.refusal, address);
    if (write && (place.prot & PROT_WRITE) == 0) return refuse(wire::Refusal::read_only, address);
    if (place.file) {
      const AdoptResult result = adopt_file_piece(place, address, user_address_end);
      if (result.status.code != Code::bad_range) return result;
      continue;
    }
    const std::uint64_t unit = extent == Extent::wide ? block_bytes : page_bytes;
    const std::uint64_t from = address & ~(unit - 1);
    const AdoptResult result =
        adopt_piece(place, std::max(place.begin, from), std::min(place.end, from + unit), extent);
    if (result.status.code == Code::timed_out)
      extent = Extent::exact;
    else if (result.status.code != Code::bad_range)
      return result;
  }
  return refuse(wire::Refusal::unmapped, address);
}

void serve_device() {
  const std::uint64_t address = device_job.address;
  const bool write = device_job.write;
  const std::uint32_t devices = device_job.devices;
  // The next question may come as soon as the manager has an answer.
  device_job.state.store(job_free, std::memory_order_release);
  const AdoptResult r = adopt_page(address, write, devices);
  wire::AdoptAnswer answer{};
  answer.address = address;
  answer.refusal = static_cast<std::uint32_t>(r.status.ok()                      ? wire::Refusal::none
                                              : r.refusal == wire::Refusal::none ? wire::Refusal::kernel
                                                                                 : r.refusal);
  answer.sys_errno = r.status.sys_errno;
  if (!r.answered) session->requests.say(wire::MessageType::adopt_answer, answer);
}

void serve(Job& job) {
  const std::uint64_t begin = job.address & ~(page_bytes - 1);
  const std::uint64_t end = (job.address + job.bytes + page_bytes - 1) & ~(page_bytes - 1);
  switch (job.what) {
    case What::adopt: job.result = adopt_span(begin, end); break;
    case What::give_back:
    case What::give_back_held:
      job.result = give_back_span(begin, end, job.what == What::give_back ? CodeData::stays : CodeData::all);
      if (const Status dropped = drop_files(*session, begin, end); !dropped.ok()) job.result.status = dropped;
      break;
    case What::suspend:
      suspended = true;
      job.result = give_back_for_fork(job.address, job.address + job.bytes);
      break;
    case What::resume:
      suspended = false;
      job.result = {};
      break;
    case What::hold: {
      const auto at = std::find_if(held.begin(), held.end(), [](const HeldSpan& h) { return !h.taken; });
      at->begin = begin;
      at->end = end;
      at->taken.store(true, std::memory_order_relaxed);
      job.held = static_cast<unsigned>(at - held.begin());
      job.result = {};
      break;
    }
    case What::for_device: break;
  }
  job.state.store(job_done, std::memory_order_release);
  linux::futex_wake(job.state, 1);
}

/// | what                       | while suspended | while some of its span is held |
/// |----------------------------|-----------------|--------------------------------|
/// | adopt, for_device          | waits           | waits                          |
/// | give_back                  | served          | waits                          |
/// | suspend                    | served          | waits, whatever is held        |
/// | hold                       | served          | waits                          |
/// | give_back_held, resume     | served          | served                         |
bool may_serve(const Job& job) {
  if (job.state.load(std::memory_order_acquire) != job_ready) return false;
  if (suspended && (job.what == What::adopt || job.what == What::for_device)) return false;
  if (job.what == What::give_back_held || job.what == What::resume) return true;
  // What a device's fault adopts lies in its block.
  std::uint64_t begin = job.address & ~(block_bytes - 1);
  std::uint64_t end = begin + block_bytes;
  if (job.what == What::suspend) {
    begin = 0;
    end = user_address_end;
  } else if (job.what != What::for_device) {
    begin = job.address;
    end = job.address + job.bytes;
  }
  const auto taken = [](const HeldSpan& h) { return h.taken.load(std::memory_order_acquire); };
  if (job.what == What::hold && std::all_of(held.begin(), held.end(), taken)) return false;
  return std::none_of(held.begin(), held.end(),
                      [&](const HeldSpan& h) { return taken(h) && h.begin < end && begin < h.end; });
}

void* adopter_main(void*) {
  ::prctl(PR_SET_NAME, "ferry-adopter");
  for (;;) {
    const std::uint32_t rung = bell.load(std::memory_order_seq_cst);
    bool some = false;
    if (may_serve(device_job)) {
      serve_device();
      some = true;
    }
    for (HeldSpan& h : held) {
      if (!may_serve(h.job)) continue;
      serve(h.job);
      some = true;
    }
    for (Job& job : jobs) {
      if (!may_serve(job)) continue;
      serve(job);
      some = true;
    }
    if (!some) linux::futex_wait(bell, rung);
  }
}

}  // namespace

void cut_at_held(std::uint64_t address, std::uint64_t& begin, std::uint64_t& end) {
  for (const HeldSpan& h : held) {
    if (!h.taken.load(std::memory_order_acquire) || h.end <= begin || h.begin >= end) continue;
    if (h.end <= address) begin = (h.end + page_bytes - 1) & ~(page_bytes - 1);
    if (h.begin > address) end = h.begin & ~(page_bytes - 1);
  }
}

Status start_adopter(Session& s) {
  session = &s;
  device_job.what = What::for_device;
  note_libraries();
  return start_session_thread(adopter_main);
}

AdoptResult adopt(std::uint64_t address, std::uint64_t bytes) { return ask_for(What::adopt, address, bytes); }
AdoptResult give_back(std::uint64_t address, std::uint64_t bytes) { return ask_for(What::give_back, address, bytes); }

unsigned hold_span(std::uint64_t begin, std::uint64_t end) {
  unsigned which = 0;
  ask_for(What::hold, begin, end - begin, &which);
  return which;
}

void let_span_go(unsigned which) {
  held[which].taken.store(false, std::memory_order_release);
  ring();
}

Status give_back_held(unsigned which, std::uint64_t begin, std::uint64_t end) {
  Job& job = held[which].job;
  job.what = What::give_back_held;
  job.address = begin;
  job.bytes = end - begin;
  const AdoptResult result = wait_for(job);
  job.state.store(job_free, std::memory_order_relaxed);
  return result.status;
}

void adopt_for_device(const wire::AdoptAsk& ask) {
  // The manager asks one at a time.
  if (device_job.state.load(std::memory_order_acquire) != job_free) return;
  device_job.address = ask.address;
  device_job.write = ask.write != 0;
  device_job.devices = ask.devices;
  device_job.state.store(job_ready, std::memory_order_release);
  ring();
}

void suspend_adoption() {
  const auto stack = reinterpret_cast<std::uint64_t>(__builtin_frame_address(0));
  ask_for(What::suspend, stack, reinterpret_cast<std::uint64_t>(__builtin_thread_pointer()) - stack);
}
void resume_adoption() {
  generation.fetch_add(1, std::memory_order_relaxed);
  ask_for(What::resume, 0, 0);
}
std::uint32_t adoption_generation() { return generation.load(std::memory_order_relaxed); }

void await_certainty() {
  while (in_doubt.load(std::memory_order_seq_cst) != 0) wait_on(in_doubt, 1);
}

}  // namespace ferry::client
