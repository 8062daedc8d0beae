#include "manager/trace.h"

#include <algorithm>
#include <cinttypes>
#include <cstdarg>
#include <cstdio>
#include <set>
#include <tuple>
#include <utility>

#include "manager/text_file.h"
#include "wire/control.h"

namespace ferry::manager {
namespace {

using core::EventKind;

// Track numbers within a client's process. Spaced so that lanes of migrations cannot reach the next kind.
constexpr unsigned kernels_track = 1000;       // + device * max_queues + queue
constexpr unsigned device_fault_track = 2000;  // + device
constexpr unsigned cpu_fault_track = 3000;
constexpr unsigned eviction_track = 4000;
constexpr unsigned memory_track = 5000;
constexpr unsigned queue_track = 6000;       // + device
constexpr unsigned to_vram_track = 10000;    // + lane
constexpr unsigned to_system_track = 20000;  // + lane
constexpr unsigned lanes_max = 9999;
// The manager's own process, for what belongs to no client. ClientId counts from 1 and stays far below.
constexpr std::uint32_t manager_process = 1'000'000;

std::string format(const char* text, ...) __attribute__((format(printf, 1, 2)));
std::string format(const char* text, ...) {
  char buffer[512];
  va_list args;
  va_start(args, text);
  std::vsnprintf(buffer, sizeof buffer, text, args);
  va_end(args);
  return buffer;
}

/// A JSON string of text that is printable ASCII already.
std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + "\"";
}

}  // namespace

Trace::Trace(std::uint64_t start_ns, std::size_t records_max)
    : start_ns_(start_ns),
      capacity_(records_max),
      // Untouched memory costs nothing until it is written.
      ring_(std::make_unique_for_overwrite<Record[]>(records_max)) {
  FERRY_CHECK(records_max > 0);
}

void Trace::take(const Record& record) {
  ring_[taken_ % capacity_] = record;
  ++taken_;
}

void Trace::on_event(const core::Event& e) {
  take({.time_ns = e.time_ns,
        .first = e.pages.first,
        .count = e.pages.count_pages,
        .client = e.client,
        .name = 0,
        .queue = 0,
        .kind = Kind::core,
        .event = e.kind,
        .cause = e.cause,
        .to = e.to,
        .access = e.access,
        .device = e.device,
        .from = e.from,
        .status = e.status});
}

void Trace::kernel_begin(const KernelEvent& e) {
  if (e.device >= max_devices || e.queue >= wire::max_queues) return;
  std::string name = e.name.empty() ? "(unnamed)" : clean_text(e.name.data(), e.name.size());
  auto found = name_index_.find(name);
  if (found == name_index_.end()) {
    // An application may invent names without end: they share one after the first few hundred.
    if (names_.size() >= Series::kernel_names_max) name = "(others)";
    found = name_index_.try_emplace(name, static_cast<std::uint32_t>(names_.size())).first;
    if (found->second == names_.size()) names_.push_back(name);
  }
  const bool credible = e.time_ns >= start_ns_ && e.time_ns <= e.now_ns;
  take({.time_ns = credible ? e.time_ns : e.now_ns,
        .first = e.launch,
        .count = e.value,
        .client = e.client,
        .name = found->second,
        .queue = e.queue,
        .kind = Kind::kernel_begin,
        .event = {},
        .cause = {},
        .to = {},
        .access = {},
        .device = e.device,
        .from = no_device,
        .status = {}});
}

void Trace::kernel_end(const KernelEvent& e) {
  if (e.device >= max_devices || e.queue >= wire::max_queues) return;
  const bool credible = e.time_ns >= start_ns_ && e.time_ns <= e.now_ns;
  take({.time_ns = credible ? e.time_ns : e.now_ns,
        .first = e.launch,
        .count = e.value,
        .client = e.client,
        .name = 0,
        .queue = e.queue,
        .kind = Kind::kernel_end,
        .event = {},
        .cause = {},
        .to = {},
        .access = {},
        .device = e.device,
        .from = no_device,
        .status = {}});
}

void Trace::device_gone(std::uint64_t now_ns, ClientId client, DeviceId device) {
  take({.time_ns = now_ns,
        .first = 0,
        .count = 0,
        .client = client,
        .name = 0,
        .queue = 0,
        .kind = Kind::device_gone,
        .event = {},
        .cause = {},
        .to = {},
        .access = {},
        .device = device,
        .from = no_device,
        .status = {}});
}

void Trace::name_client(ClientId client, const std::string& program, std::uint32_t pid, Window window) {
  clients_[client] = {clean_text(program.data(), program.size()) + " (pid " + std::to_string(pid) + ")", window};
}

/// Turns records, in order of time, into trace events. Durations become complete events ("X") once their end is known,
/// so a record whose partner was overwritten makes no event that a viewer could not close.
class Trace::Writer {
 public:
  Writer(const Trace& trace, std::uint64_t base_ns, std::uint64_t end_ns)
      : trace_(trace), base_ns_(base_ns), end_ns_(end_ns) {}

  template <typename Emit>
  void record(const Record& r, Emit&& emit) {
    switch (r.kind) {
      case Kind::core: core_event(r, emit); break;
      case Kind::kernel_begin:
        close_kernel({r.client, r.device, r.queue}, r.time_ns, "replaced", emit);
        kernels_[{r.client, r.device, r.queue}] = r;
        break;
      case Kind::kernel_end: {
        const KernelKey key{r.client, r.device, r.queue};
        const auto open = kernels_.find(key);
        if (open != kernels_.end() && open->second.first == r.first) {
          const std::string how =
              r.count == 0 ? "ok" : to_string(static_cast<Code>(static_cast<std::uint16_t>(r.count)));
          close_kernel(key, r.time_ns, how, emit);
        }
        break;
      }
      case Kind::device_gone:
        for (std::uint32_t queue = 0; queue < wire::max_queues; ++queue) {
          close_kernel({r.client, r.device, queue}, r.time_ns, "device lost", emit);
        }
        break;
    }
  }

  template <typename Emit>
  void finish(Emit&& emit) {
    while (!kernels_.empty()) close_kernel(kernels_.begin()->first, end_ns_, "unfinished", emit);
    for (const auto& [key, move] : moves_) migration(move, end_ns_, true, emit);
    // A trace of nothing is still a trace: it has the manager in it.
    tracks_[manager_process];
    for (const auto& [process, tracks] : tracks_) {
      emit(format(R"({"ph":"M","name":"process_name","pid":%u,"tid":0,"args":{"name":%s}})", process,
                  quoted(process_name(process)).c_str()));
      for (const unsigned track : tracks) {
        emit(format(R"({"ph":"M","name":"thread_name","pid":%u,"tid":%u,"args":{"name":%s}})", process, track,
                    quoted(track_name(track)).c_str()));
        emit(format(R"({"ph":"M","name":"thread_sort_index","pid":%u,"tid":%u,"args":{"sort_index":%u}})", process,
                    track, track));
      }
    }
  }

 private:
  using KernelKey = std::tuple<std::uint32_t, DeviceId, std::uint32_t>;
  /// Client, direction, first page: what is the same in a migration's begin and end.
  using MoveKey = std::tuple<std::uint32_t, core::Place, std::uint64_t, std::uint64_t>;
  struct Move {
    Record begin;
    unsigned lane;
  };

  [[nodiscard]] double us(std::uint64_t time_ns) const {
    return time_ns > base_ns_ ? static_cast<double>(time_ns - base_ns_) / 1000.0 : 0.0;
  }

  unsigned track(std::uint32_t process, unsigned number) {
    tracks_[process].insert(number);
    return number;
  }

  [[nodiscard]] std::string process_name(std::uint32_t process) const {
    if (process == manager_process) return "manager";
    const auto named = trace_.clients_.find(process);
    if (named != trace_.clients_.end()) return named->second.name;
    return "client " + std::to_string(process);
  }

  [[nodiscard]] static std::string track_name(unsigned number) {
    if (number >= to_system_track) return format("migrations to system, lane %u", number - to_system_track + 1);
    if (number >= to_vram_track) return format("migrations to VRAM, lane %u", number - to_vram_track + 1);
    switch (number / 1000 * 1000) {
      case memory_track: return "memory: allocations, prefetches, pins, failures";
      case queue_track: return format("device %u queues", number - queue_track);
      case eviction_track: return "evictions";
      case cpu_fault_track: return "CPU faults";
      case device_fault_track: return format("device %u faults", number - device_fault_track);
      default: {
        const unsigned queue = number - kernels_track;
        return format("device %u kernels, queue %u", queue / wire::max_queues, queue % wire::max_queues);
      }
    }
  }

  [[nodiscard]] std::string pages_text(const Record& r) const {
    const auto named = trace_.clients_.find(r.client);
    const Window window = named != trace_.clients_.end() ? named->second.window : Window{};
    return format(R"("address":"0x%)" PRIx64 R"(","pages":%)" PRIu64, window.address_of_page(r.first), r.count);
  }

  template <typename Emit>
  void instant(const Record& r, unsigned number, const char* name, const std::string& more, Emit&& emit) {
    emit(format(R"({"ph":"i","s":"t","name":"%s","cat":"%s","pid":%u,"tid":%u,"ts":%.3f,"args":{%s%s}})", name, "ferry",
                r.client, track(r.client, number), us(r.time_ns), pages_text(r).c_str(), more.c_str()));
  }

  template <typename Emit>
  void core_event(const Record& r, Emit&& emit) {
    const unsigned device = r.device < max_devices ? r.device : 0;
    const char* access = r.access == Access::write ? R"(,"access":"write")" : R"(,"access":"read")";
    const std::string cause = format(R"(,"cause":"%s")", to_string(r.cause));
    switch (r.event) {
      case EventKind::device_fault:
      case EventKind::device_fault_merged:
        instant(r, device_fault_track + device, r.event == EventKind::device_fault ? "fault" : "fault merged", access,
                emit);
        break;
      case EventKind::cpu_fault:
      case EventKind::cpu_fault_merged:
        instant(r, cpu_fault_track, r.event == EventKind::cpu_fault ? "fault" : "fault merged", access, emit);
        break;
      case EventKind::migrate_begin: {
        const MoveKey key{r.client, r.to, r.first, r.count};
        const auto open = moves_.find(key);
        if (open != moves_.end()) {
          migration(open->second, r.time_ns, true, emit);
          release(open->second);
          moves_.erase(open);
        }
        moves_[key] = {r, take_lane(r)};
        break;
      }
      case EventKind::migrate_end: {
        const auto open = moves_.find(MoveKey{r.client, r.to, r.first, r.count});
        if (open == moves_.end()) break;
        open->second.begin.status = r.status;
        migration(open->second, r.time_ns, false, emit);
        release(open->second);
        moves_.erase(open);
        break;
      }
      case EventKind::evict: instant(r, eviction_track, "evict", cause + device_text(device), emit); break;
      case EventKind::drop_clean: instant(r, eviction_track, "drop clean", cause + device_text(device), emit); break;
      case EventKind::refault: instant(r, eviction_track, "refault", cause + device_text(device), emit); break;
      case EventKind::map_in_place: instant(r, device_fault_track + device, "map in place", cause, emit); break;
      case EventKind::contention_pin: instant(r, memory_track, "contention pin", cause, emit); break;
      case EventKind::fault_failed: instant(r, memory_track, "fault failed", access, emit); break;
      case EventKind::alloc: instant(r, memory_track, "alloc", "", emit); break;
      case EventKind::free: instant(r, memory_track, "free", "", emit); break;
      case EventKind::vram_level:
        emit(format(R"({"ph":"C","name":"VRAM in use, device %u","cat":"ferry","pid":%u,"tid":0,"ts":%.3f,)"
                    R"("args":{"MiB":%.3f}})",
                    device, manager_process, us(r.time_ns),
                    static_cast<double>(r.count) * static_cast<double>(page_bytes) / (1 << 20)));
        break;
      case EventKind::device_fault_end:
        instant(r, device_fault_track + device, "fault end", access + status_text(r), emit);
        break;
      case EventKind::cpu_fault_end: instant(r, cpu_fault_track, "fault end", status_text(r), emit); break;
      case EventKind::queue_eviction:
      case EventKind::queue_restore:
        emit(format(R"({"ph":"i","s":"t","name":"%s","cat":"ferry","pid":%u,"tid":%u,"ts":%.3f,"args":{"cause":"%s"}})",
                    r.event == EventKind::queue_eviction ? "queue eviction" : "queue restore", r.client,
                    track(r.client, queue_track + device), us(r.time_ns), to_string(r.cause)));
        break;
      case EventKind::unmap_device: instant(r, eviction_track, "unmap", cause + device_text(device), emit); break;
      case EventKind::duplicate:
        instant(r, memory_track, "duplicate",
                cause + (r.device < max_devices ? device_text(device) : std::string(R"(,"device":"CPU")")), emit);
        break;
      case EventKind::collapse: instant(r, memory_track, "collapse", cause, emit); break;
      case EventKind::prefetch:
        instant(r, memory_track, "prefetch",
                r.to == core::Place::vram ? device_text(device) : std::string(R"(,"device":"CPU")"), emit);
        break;
    }
  }

  [[nodiscard]] static std::string device_text(unsigned device) { return format(R"(,"device":%u)", device); }
  [[nodiscard]] static std::string status_text(const Record& r) {
    return r.status == Code::ok ? std::string() : format(R"(,"error":"%s")", to_string(r.status));
  }

  using Lanes = std::set<unsigned>;
  Lanes& lanes_of(const Record& r) { return lanes_[{r.client, r.to}]; }

  /// The lowest lane without a migration under way: slices of one track must not overlap.
  unsigned take_lane(const Record& r) {
    Lanes& used = lanes_of(r);
    unsigned lane = 0;
    for (const unsigned taken : used) {
      if (taken != lane) break;
      ++lane;
    }
    lane = std::min(lane, lanes_max);
    used.insert(lane);
    return lane;
  }
  void release(const Move& move) { lanes_of(move.begin).erase(move.lane); }

  template <typename Emit>
  void migration(const Move& move, std::uint64_t end_ns, bool unfinished, Emit&& emit) {
    const Record& r = move.begin;
    const bool to_vram = r.to == core::Place::vram;
    const unsigned number = track(r.client, (to_vram ? to_vram_track : to_system_track) + move.lane);
    const std::string more =
        (r.device < max_devices ? device_text(r.device) : std::string()) +
        (to_vram && r.from < max_devices ? format(R"(,"from_device":%u)", r.from) : std::string()) + status_text(r) +
        (unfinished ? R"(,"unfinished":true)" : "");
    emit(format(R"({"ph":"X","name":"%s","cat":"migration","pid":%u,"tid":%u,"ts":%.3f,"dur":%.3f,)"
                R"("args":{"cause":"%s","direction":"%s",%s%s}})",
                to_string(r.cause), r.client, number, us(r.time_ns), us(std::max(end_ns, r.time_ns)) - us(r.time_ns),
                to_string(r.cause), to_vram ? "to VRAM" : "to system", pages_text(r).c_str(), more.c_str()));
  }

  template <typename Emit>
  void close_kernel(const KernelKey& key, std::uint64_t end_ns, const std::string& how, Emit&& emit) {
    const auto open = kernels_.find(key);
    if (open == kernels_.end()) return;
    const Record& r = open->second;
    const unsigned number = track(r.client, kernels_track + r.device * wire::max_queues + r.queue);
    emit(format(R"({"ph":"X","name":%s,"cat":"kernel","pid":%u,"tid":%u,"ts":%.3f,"dur":%.3f,)"
                R"("args":{"launch":%)" PRIu64 R"(,"waves":%)" PRIu64 R"(,"result":"%s"}})",
                quoted(trace_.names_[r.name]).c_str(), r.client, number, us(r.time_ns),
                us(std::max(end_ns, r.time_ns)) - us(r.time_ns), r.first, r.count, how.c_str()));
    kernels_.erase(open);
  }

  const Trace& trace_;
  std::uint64_t base_ns_;
  std::uint64_t end_ns_;
  std::map<KernelKey, Record> kernels_;
  std::map<MoveKey, Move> moves_;
  std::map<std::pair<std::uint32_t, core::Place>, Lanes> lanes_;
  std::map<std::uint32_t, std::set<unsigned>> tracks_;
};

template <typename Sink>
void Trace::write_to(Sink&& sink, std::uint64_t now_ns) const {
  const std::size_t count = taken_ < capacity_ ? static_cast<std::size_t>(taken_) : capacity_;
  const std::size_t oldest = taken_ < capacity_ ? 0 : static_cast<std::size_t>(taken_ % capacity_);
  std::vector<std::uint32_t> order(count);
  for (std::size_t i = 0; i < count; ++i) order[i] = static_cast<std::uint32_t>((oldest + i) % capacity_);
  // Devices stamp their own records, so those come a little late.
  std::stable_sort(order.begin(), order.end(),
                   [this](std::uint32_t a, std::uint32_t b) { return ring_[a].time_ns < ring_[b].time_ns; });

  sink("{\"displayTimeUnit\":\"ns\",\n\"otherData\":{\"producer\":\"ferry\",\"records\":" + std::to_string(count) +
       ",\"dropped\":" + std::to_string(dropped()) + "},\n\"traceEvents\":[\n");
  const char* separator = "";
  const auto emit = [&](const std::string& event) {
    sink(separator + event);
    separator = ",\n";
  };
  Writer writer(*this, start_ns_, now_ns);
  for (const std::uint32_t index : order) writer.record(ring_[index], emit);
  writer.finish(emit);
  sink("\n]}\n");
}

Status Trace::write(const std::string& path, std::uint64_t now_ns) const {
  TextFile file(path);
  if (!file.failed()) write_to([&](const std::string& text) { file.write(text); }, now_ns);
  return file.finish();
}

std::string Trace::text(std::uint64_t now_ns) const {
  std::string out;
  write_to([&](const std::string& text) { out += text; }, now_ns);
  return out;
}

}  // namespace ferry::manager
