#include "sim/trace.h"

#include <cstdio>

#include "core/svm/types.h"

namespace ferry::sim {
namespace {
using core::Verb;

const char* op_name(std::uint64_t op) { return op == 0 ? "read" : op == 1 ? "write" : "add"; }

// Line::action, d: verb, place, prot, cause, has_token, status, in bytes from the lowest.
std::uint64_t pack(const core::Action& a) {
  return static_cast<std::uint64_t>(a.verb) | static_cast<std::uint64_t>(a.place) << 8 |
         static_cast<std::uint64_t>(a.prot) << 16 | static_cast<std::uint64_t>(a.cause) << 24 |
         static_cast<std::uint64_t>(a.has_token ? 1 : 0) << 32 | static_cast<std::uint64_t>(a.status.code) << 40;
}

unsigned byte_of(std::uint64_t packed, unsigned index) { return static_cast<unsigned>((packed >> (8 * index)) & 0xff); }

const char* status_name(std::uint64_t code) { return to_string(static_cast<Code>(code)); }
}  // namespace

void Trace::add(std::uint64_t time_ns, std::uint64_t step, Line line, ClientId client, DeviceId device, std::uint64_t a,
                std::uint64_t b, std::uint64_t c, std::uint64_t d, std::uint64_t e) {
  const Record r{time_ns, step, a, b, c, d, e, client, line, device};
  const auto mix = [this](std::uint64_t v) {
    hash_ = (hash_ ^ v) * 0x9fb21c651e98df25;
    hash_ ^= hash_ >> 32;
  };
  mix(time_ns);
  mix(step << 16 | static_cast<std::uint64_t>(line) << 8 | device);
  mix(client);
  mix(a);
  mix(b);
  mix(c);
  mix(d);
  mix(e);
  if (line != Line::cpu_op && line != Line::wave_op) ring_.add(r);
  if (watching_ && concerns_watched(r)) watched_.add(r);
  if (sink_) sink_(text_of(r));
}

void Trace::add_action(std::uint64_t time_ns, std::uint64_t step, const core::Action& a) {
  std::uint64_t c = a.vram_first;
  if (a.verb == Verb::wake_wave) c = a.token.value;
  if (a.verb == Verb::reply) c = a.cookie.value;
  add(time_ns, step, Line::action, a.client, a.device, a.pages.first, a.pages.count_pages, c, pack(a), a.id);
}

void Trace::add_event(std::uint64_t step, const core::Event& e) {
  add(e.time_ns, step, Line::core_event, e.client, e.device, e.pages.first, e.pages.count_pages,
      static_cast<std::uint64_t>(e.kind) | static_cast<std::uint64_t>(e.cause) << 8,
      static_cast<std::uint64_t>(e.to) | static_cast<std::uint64_t>(e.access) << 8);
}

std::string Trace::Ring::text() const {
  std::string text;
  for (std::uint64_t i = count_ < kept ? 0 : count_ - kept; i < count_; ++i) text += text_of(records_[i % kept]) + "\n";
  return text;
}

std::string Trace::tail() const { return ring_.text(); }
std::string Trace::watched() const { return watched_.text(); }

void Trace::watch(ClientId client, Page page) {
  watching_ = true;
  watched_client_ = client;
  watched_page_ = page;
}

bool Trace::concerns_watched(const Record& r) const {
  if (r.client != watched_client_) return false;
  switch (r.line) {
    case Line::cpu_op:
    case Line::wave_op:
    case Line::segv:
    case Line::post_fault:
    case Line::device_fault:
    case Line::post_cpu_fault:
    case Line::cpu_fault:
    case Line::dma:
    case Line::resume: return r.a == watched_page_;
    case Line::alloc:
    case Line::free:
    case Line::attributes:
    case Line::prefetch:
    case Line::pin:
    case Line::unpin:
    case Line::discard:
    case Line::populate:
    case Line::migrate:
    case Line::action:
    case Line::part:
    case Line::change:
    case Line::core_event: return PageSpan{r.a, r.b}.contains(watched_page_);
    case Line::open:
    case Line::attach:
    case Line::kill:
    case Line::gone:
    case Line::closed: return true;
    default: return false;
  }
}

std::string Trace::text_of(const Record& r) {
  char where[48];
  if (r.device == no_device) {
    std::snprintf(where, sizeof where, "c%u", r.client);
  } else {
    std::snprintf(where, sizeof where, "c%u d%u", r.client, unsigned{r.device});
  }
  const auto u = [](std::uint64_t v) { return static_cast<unsigned long long>(v); };
  char what[256];
  switch (r.line) {
    case Line::start:
      std::snprintf(what, sizeof what, "start: %llu clients, %llu devices, budget %llu chunks, granularity %llu pages",
                    u(r.a), u(r.b), u(r.c), u(r.d));
      break;
    case Line::phase: std::snprintf(what, sizeof what, "phase %llu", u(r.a)); break;
    case Line::cpu_op:
      std::snprintf(what, sizeof what, "%s page %llu by thread %llu", op_name(r.b), u(r.a), u(r.c));
      break;
    case Line::wave_op:
      std::snprintf(what, sizeof what, "%s page %llu by wave %llu", op_name(r.b), u(r.a), u(r.c));
      break;
    case Line::segv: std::snprintf(what, sizeof what, "page %llu is not there for thread %llu", u(r.a), u(r.c)); break;
    case Line::post_fault:
      std::snprintf(what, sizeof what, "%s fault at page %llu, token %llu", op_name(r.b), u(r.a), u(r.c));
      break;
    case Line::device_fault:
      std::snprintf(what, sizeof what, "> device_fault %s page %llu token %llu", op_name(r.b), u(r.a), u(r.c));
      break;
    case Line::post_cpu_fault:
      std::snprintf(what, sizeof what, "%s CPU fault at page %llu, thread %llu", op_name(r.b), u(r.a), u(r.c));
      break;
    case Line::cpu_fault: std::snprintf(what, sizeof what, "> cpu_fault %s page %llu", op_name(r.b), u(r.a)); break;
    case Line::resume:
      std::snprintf(what, sizeof what, "agent %llu goes on at page %llu: %s", u(r.c), u(r.a), status_name(r.b));
      break;
    case Line::alloc:
      std::snprintf(what, sizeof what, "> alloc %llu+%llu%s: %s", u(r.a), u(r.b), r.d != 0 ? " in place" : "",
                    status_name(r.c));
      break;
    case Line::free:
      std::snprintf(what, sizeof what, "> free %llu+%llu cookie %llu: %s", u(r.a), u(r.b), u(r.d), status_name(r.c));
      break;
    case Line::pin:
    case Line::discard:
    case Line::populate:
    case Line::migrate:
      std::snprintf(what, sizeof what, "> %s %llu+%llu cookie %llu: %s",
                    r.line == Line::pin        ? "pin"
                    : r.line == Line::discard  ? "discard"
                    : r.line == Line::populate ? "populate"
                                               : "migrate",
                    u(r.a), u(r.b), u(r.d), status_name(r.c));
      break;
    case Line::unpin: std::snprintf(what, sizeof what, "> unpin %llu+%llu", u(r.a), u(r.b)); break;
    case Line::dma: std::snprintf(what, sizeof what, "DMA: %s page %llu", op_name(r.b), u(r.a)); break;
    case Line::attributes:
      std::snprintf(what, sizeof what, "> attributes %llu+%llu cookie %llu: %s", u(r.a), u(r.b), u(r.d),
                    status_name(r.c));
      break;
    case Line::prefetch:
      std::snprintf(what, sizeof what, "> prefetch %llu+%llu cookie %llu: %s", u(r.a), u(r.b), u(r.d),
                    status_name(r.c));
      break;
    case Line::action: {
      const auto verb = static_cast<Verb>(byte_of(r.d, 0));
      const bool map = verb == Verb::map_device;
      const bool vram = byte_of(r.d, 1) != 0;
      const unsigned long long third = u(r.c);
      char more[80] = "";
      if (verb == Verb::wake_wave) {
        std::snprintf(more, sizeof more, " token %llu: %s", third, status_name(byte_of(r.d, 5)));
      } else if (verb == Verb::reply) {
        std::snprintf(more, sizeof more, " cookie %llu: %s", third, status_name(byte_of(r.d, 5)));
      } else if (map && !vram) {
        std::snprintf(more, sizeof more, " in place");
      } else if (map || verb == Verb::copy || verb == Verb::release_chunk) {
        std::snprintf(more, sizeof more, " %s %llu", verb == Verb::copy ? (vram ? "home from" : "to vram") : "vram",
                      third);
      }
      std::snprintf(what, sizeof what, "< %s #%llu %llu+%llu%s%s%s (%s)", core::to_string(verb), u(r.e), u(r.a), u(r.b),
                    more, map ? (byte_of(r.d, 2) != 0 ? " rw" : " ro") : "", byte_of(r.d, 4) != 0 ? " with token" : "",
                    core::to_string(static_cast<core::Cause>(byte_of(r.d, 3))));
      break;
    }
    case Line::part:
      std::snprintf(what, sizeof what, "%s #%llu takes effect on %llu+%llu", core::to_string(static_cast<Verb>(r.d)),
                    u(r.c), u(r.a), u(r.b));
      break;
    case Line::done:
      std::snprintf(what, sizeof what, "> action_done #%llu %s: %s", u(r.c), core::to_string(static_cast<Verb>(r.d)),
                    status_name(r.b));
      break;
    case Line::core_event:
      std::snprintf(what, sizeof what, "  core: %s %llu+%llu to %s (%s)",
                    core::to_string(static_cast<core::EventKind>(byte_of(r.c, 0))), u(r.a), u(r.b),
                    byte_of(r.d, 0) == 0   ? "system"
                    : byte_of(r.d, 0) == 1 ? "vram"
                                           : "store",
                    core::to_string(static_cast<core::Cause>(byte_of(r.c, 1))));
      break;
    case Line::budget:
      std::snprintf(what, sizeof what, "> system memory: %llu pages, store %llu", u(r.a), u(r.b));
      break;
    case Line::change:
      std::snprintf(what, sizeof what, "> change %s %llu+%llu cookie %llu prot %llu to %llu: %s",
                    core::to_string(static_cast<core::Change>(byte_of(r.d, 0))), u(r.a), u(r.b), u(r.c >> 16),
                    u(byte_of(r.d, 1)), u(r.d >> 16), status_name(r.c & 0xffff));
      break;
    case Line::retry:
      std::snprintf(what, sizeof what, "> retry faults %s: %s", r.a != 0 ? "on" : "off", status_name(r.b));
      break;
    case Line::fork: std::snprintf(what, sizeof what, "> client_fork cookie %llu: %s", u(r.a), status_name(r.b)); break;
    case Line::child:
      if (r.b == 2) {
        std::snprintf(what, sizeof what, "child %llu ends", u(r.c));
      } else {
        std::snprintf(what, sizeof what, "child %llu: %s page %llu", u(r.c), op_name(r.b), u(r.a));
      }
      break;
    case Line::pressure: std::snprintf(what, sizeof what, "> pressure %llu pages", u(r.a)); break;
    case Line::open: std::snprintf(what, sizeof what, "> client_open %llu", u(r.a)); break;
    case Line::attach: std::snprintf(what, sizeof what, "> device_attach"); break;
    case Line::kill:
      std::snprintf(what, sizeof what, "%s dies", r.device == no_device ? "application" : "device process");
      break;
    case Line::gone:
      std::snprintf(what, sizeof what, r.device == no_device ? "> client_gone cookie %llu" : "> device_gone", u(r.c));
      break;
    case Line::closed: std::snprintf(what, sizeof what, "client is closed"); break;
    case Line::stop:
      std::snprintf(what, sizeof what, "%s stops", r.device == no_device ? "application" : "device process");
      break;
    case Line::resume_process:
      std::snprintf(what, sizeof what, "%s runs again", r.device == no_device ? "application" : "device process");
      break;
  }
  char text[400];
  std::snprintf(text, sizeof text, "%7llu %12.3f us %-6s %s", u(r.step), static_cast<double>(r.time_ns) / 1000.0, where,
                what);
  return text;
}

}  // namespace ferry::sim
