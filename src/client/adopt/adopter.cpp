#include "client/adopt/adopter.h"

#include <sys/mman.h>
#include <sys/prctl.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>

#include "client/adopt/file_notes.h"
#include "client/adopt/files.h"
#include "client/adopt/known.h"
#include "client/adopt/places.h"
#include "client/adopt/sleepers.h"
#include "client/agent.h"
#include "client/convert.h"
#include "client/convert_file.h"
#include "client/session.h"
#include "linux/futex.h"

namespace ferry::client {
namespace {

/// Writers wait while a piece is copied, and a release waits for devices: not for more than this at once.
constexpr std::uint64_t piece_bytes = std::uint64_t{16} << 20;

/// The C library's own smallest (M_MMAP_THRESHOLD) is as large, plus a header.
constexpr std::uint64_t stripe_bytes = std::uint64_t{128} << 10;

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
constinit std::atomic<bool> any_adopted{false};
constinit std::atomic<std::uint32_t> generation{0};
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
    linux::futex_wait(job.state, state);
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
    if (job == nullptr) linux::futex_wait(freed, seen);
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

AdoptResult give_back_piece(std::uint64_t begin, std::uint64_t end) {
  const wire::Span span = wire_span(begin, end, 0);
  AdoptResult result;
  result.address = begin;
  result.status = session->requests.tell(wire::MessageType::release, span);
  if (!result.status.ok()) return result;
  const Place place = place_of(begin);
  session->outside_userfault.unregister_span(begin, end - begin);
  result.status = convert_to_private(reinterpret_cast<void*>(begin), end - begin, place.prot,
                                     session->system_file.get(), span.first_page * page_bytes);
  if (!result.status.ok()) {
    // Still shared with the file: managed again, so that nobody loses it.
    wire::Span again = span;
    again.flags = wire::span_has_contents;
    [[maybe_unused]] const Status back = session->requests.tell(wire::MessageType::alloc, again);
    return result;
  }
  give_fork_advice_back(begin, end);
  restart_sleepers(begin, end);
  result.status = session->requests.tell(wire::MessageType::released, span);
  return result;
}

/// C libraries grow and move large blocks with mremap (realloc), and ask nobody: the block's new place would show pages of
/// the file that belong to other addresses. A span of more than one mapping is refused to them, and they copy it. So no
/// span as large as the smallest block that they map lies in one mapping: neighbours with unlike advice stay apart.
void stripe(std::uint64_t begin, std::uint64_t end) {
  for (std::uint64_t at = begin; at < end;) {
    const std::uint64_t next = (at / stripe_bytes + 1) * stripe_bytes;
    if (at / stripe_bytes % 2 != 0) ::madvise(reinterpret_cast<void*>(at), std::min(next, end) - at, MADV_RANDOM);
    at = next;
  }
}

std::uint32_t flags_of(const Place& place) {
  return wire::span_has_contents | (place.stack || place.in_place ? wire::span_place_system : 0) |
         ((place.prot & PROT_WRITE) == 0 ? wire::span_read_only : 0);
}

/// A private mapping of a file. Nobody maps anything else there meanwhile.
Status convert_private_file(const Place& place, std::uint64_t begin, std::uint64_t end, int file,
                            std::uint64_t offset) {
  const ServingFiles alone;
  const Place now = place_of(begin);
  if (now.adopted || now.refusal != wire::Refusal::none || !now.file || now.end < end || now.prot != place.prot) {
    return Status(Code::in_use, EAGAIN);
  }
  return convert_file_to_shared(reinterpret_cast<void*>(begin), end - begin, file, offset, place.prot);
}

AdoptResult adopt_piece(const Place& place, std::uint64_t begin, std::uint64_t end) {
  void* at = reinterpret_cast<void*>(begin);
  const wire::Span span = wire_span(begin, end, flags_of(place));
  const std::uint64_t offset = span.first_page * page_bytes;
  const int file = session->system_file.get();
  AdoptResult failed;
  if (!have_userfault(failed)) return failed;
  if (place.stack && !session->outside_userfault.full_service()) return refuse(wire::Refusal::system_calls, begin);
  // What is known of another mapping that was here must be forgotten first, and its bytes gone from the file.
  failed.address = begin;
  failed.status = session->requests.tell(wire::MessageType::adopt_begin, span);
  if (!failed.status.ok()) return failed;
  if (!open_known()) return refuse(wire::Refusal::no_memory, begin);
  if (!keep_fork_advice(begin, end)) return refuse(wire::Refusal::no_mappings, begin);
  note_adopted(begin, end);
  const Status converted = place.file ? convert_private_file(place, begin, end, file, offset)
                                      : convert_to_shared(at, end - begin, file, offset, place.prot);
  // A huge page of more than a block.
  if (!converted.ok() && place.huge && converted.sys_errno == EINVAL) return refuse(wire::Refusal::huge_pages, begin);
  if (!converted.ok()) return refuse_conversion(converted, begin);
  any_adopted.store(true, std::memory_order_relaxed);
  if (!place.stack) stripe(begin, end);
  // Only to be told when it is unmapped: nothing is protected.
  session->outside_userfault.register_span(begin, end - begin, linux::track_writes);
  // What was unmapped before that is somebody else's by now.
  if (!place_of(begin).adopted) return refuse(wire::Refusal::unmapped, begin);
  restart_sleepers(begin, end);
  const Status allocated = session->requests.tell(wire::MessageType::alloc, span);
  if (allocated.ok()) return {};
  [[maybe_unused]] const Status back = convert_to_private(at, end - begin, place.prot, file, offset);
  session->outside_userfault.unregister_span(begin, end - begin);
  failed.status = allocated;
  failed.address = begin;
  return failed;
}

AdoptResult give_back_span(std::uint64_t begin, std::uint64_t end) {
  const std::uint64_t window_end = session->window_base + session->window_bytes;
  AdoptResult result;
  for (Place place; begin < end && next_adopted(begin, session->window_base, window_end, place) && place.begin < end;) {
    const std::uint64_t from = std::max(begin, place.begin);
    const std::uint64_t to = std::min({end, place.end, (from / piece_bytes + 1) * piece_bytes});
    const AdoptResult piece = give_back_piece(from, to);
    if (!piece.status.ok() && result.status.ok()) result = piece;
    begin = to;
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
  return adopt_piece(place, begin, end);
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
                                                                     : adopt_piece(place, at, to);
      if (!piece.status.ok()) {
        // Also what was adopted before this call, which is as well: a device gets it again when it touches it.
        if (at > begin) give_back_span(begin, at);
        return piece;
      }
    }
    at = to;
  }
  return {};
}

/// Around the page as much of its block as is of one kind.
AdoptResult adopt_page(std::uint64_t address, bool write, std::uint32_t devices) {
  const Place place = place_of(address);
  if (place.adopted) return {};
  if (may_be_file(place)) return serve_file(*session, address, write, devices);
  if (place.refusal != wire::Refusal::none) return refuse(place.refusal, address);
  if (write && (place.prot & PROT_WRITE) == 0) return refuse(wire::Refusal::read_only, address);
  if (place.file) return adopt_file_piece(place, address, user_address_end);
  const std::uint64_t block = address & ~(block_bytes - 1);
  const AdoptResult result = adopt_piece(place, std::max(place.begin, block), std::min(place.end, block + block_bytes));
  return result;
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
      job.result = give_back_span(begin, end);
      if (const Status dropped = drop_files(*session, begin, end); !dropped.ok()) job.result.status = dropped;
      break;
    case What::suspend:
      suspended = true;
      job.result = give_back_span(0, user_address_end);
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

void suspend_adoption() { ask_for(What::suspend, 0, 0); }
void resume_adoption() {
  generation.fetch_add(1, std::memory_order_relaxed);
  ask_for(What::resume, 0, 0);
}
std::uint32_t adoption_generation() { return generation.load(std::memory_order_relaxed); }

bool has_adopted() { return any_adopted.load(std::memory_order_relaxed); }

}  // namespace ferry::client
