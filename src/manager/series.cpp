#include "manager/series.h"

#include <algorithm>

#include "wire/control.h"

namespace ferry::manager {

void Series::Busy::enter(std::uint64_t now_ns) {
  if (running++ == 0) since_ns = now_ns;
}

void Series::Busy::leave(std::uint64_t now_ns) {
  if (running == 0) return;
  if (--running == 0 && now_ns > since_ns) total_ns += now_ns - since_ns;
}

std::uint64_t Series::Busy::total(std::uint64_t now_ns) const {
  return total_ns + (running != 0 && now_ns > since_ns ? now_ns - since_ns : 0);
}

Series::Series(std::uint64_t start_ns, unsigned samples_max, std::uint64_t interval_ns)
    : start_ns_(start_ns), interval_ns_(interval_ns), next_ns_(start_ns + interval_ns), samples_max_(samples_max) {
  FERRY_CHECK(samples_max >= 4 && samples_max % 2 == 0 && interval_ns > 0);
  samples_.reserve(samples_max_);
  // Queues in flight at once; more only if a device makes launches up.
  open_.reserve(64);
  now_.time_ns = start_ns;
  push(now_);
}

void Series::push(const Sample& sample) {
  if (samples_.size() == samples_max_) {
    for (std::size_t i = 0; i < samples_max_ / 2; ++i) {
      const Sample& first = samples_[2 * i];
      Sample merged = samples_[2 * i + 1];
      merged.vram_pages = std::max(merged.vram_pages, first.vram_pages);
      samples_[i] = merged;
    }
    samples_.resize(samples_max_ / 2);
    interval_ns_ *= 2;
  }
  samples_.push_back(sample);
}

void Series::read_counters(Sample& sample) const {
  if (stats_ == nullptr) return;
  sample.device_faults = stats_->device_faults;
  sample.cpu_faults = stats_->cpu_faults;
  sample.pages_to_vram = stats_->pages_to_vram;
  sample.pages_to_system = stats_->pages_to_system;
  sample.evictions = stats_->evictions;
  sample.system_pages = stats_->system_pages;
  sample.stored_pages = stats_->stored_pages;
  sample.pages_to_store = stats_->pages_to_store;
  sample.pages_from_store = stats_->pages_from_store;
}

void Series::advance(std::uint64_t now_ns) {
  if (now_ns < next_ns_) return;
  read_counters(now_);
  // The interval that has ended, and after a quiet time the level that lasted until now, so that it is drawn flat.
  now_.time_ns = next_ns_;
  push(now_);
  now_.vram_pages = vram_level_;
  if (now_ns - next_ns_ > interval_ns_) {
    now_.time_ns = now_ns;
    push(now_);
  }
  next_ns_ = now_ns + interval_ns_;
}

void Series::on_event(const core::Event& event) {
  advance(event.time_ns);
  const std::uint64_t pages = event.pages.count_pages;
  switch (event.kind) {
    case core::EventKind::device_fault:
      if (event.device < max_devices) ++faults_of_[event.device];
      break;
    case core::EventKind::migrate_begin: moving_busy_.enter(event.time_ns); break;
    case core::EventKind::migrate_end: moving_busy_.leave(event.time_ns); break;
    case core::EventKind::alloc: now_.allocated_pages += pages; break;
    case core::EventKind::free: now_.allocated_pages -= std::min(pages, now_.allocated_pages); break;
    case core::EventKind::vram_level:
      if (event.device < max_devices) {
        vram_level_ += pages - vram_of_[event.device];
        vram_of_[event.device] = pages;
        now_.vram_pages = std::max(now_.vram_pages, vram_level_);
      }
      break;
    case core::EventKind::device_fault_merged:
    case core::EventKind::cpu_fault:
    case core::EventKind::cpu_fault_merged:
    case core::EventKind::evict:
    case core::EventKind::drop_clean:
    case core::EventKind::refault:
    case core::EventKind::map_in_place:
    case core::EventKind::contention_pin:
    case core::EventKind::fault_failed:
    case core::EventKind::device_fault_end:
    case core::EventKind::cpu_fault_end:
    case core::EventKind::queue_eviction:
    case core::EventKind::queue_restore:
    case core::EventKind::unmap_device:
    case core::EventKind::prefetch:
    case core::EventKind::duplicate:
    case core::EventKind::collapse: break;
  }
}

namespace {
/// Launches that may begin before the end of an earlier one of their queue is heard of.
constexpr std::uint64_t out_of_order_max = wire::queue_entries;
constexpr std::size_t early_ends_max = 64;

bool same_launch(const KernelEvent& a, const KernelEvent& b) {
  return a.client == b.client && a.device == b.device && a.queue == b.queue && a.launch == b.launch;
}
}  // namespace

std::uint64_t Series::credible(const KernelEvent& event) const {
  // A device's clock is the machine's: anything before the start or after now is invented.
  return event.time_ns >= start_ns_ && event.time_ns <= event.now_ns ? event.time_ns : event.now_ns;
}

std::size_t Series::row_of(std::string_view name) {
  std::string clean = name.empty() ? "(unnamed)" : clean_text(name.data(), name.size());
  const auto find = [this](const std::string& wanted) {
    return static_cast<std::size_t>(
        std::find_if(rows_.begin(), rows_.end(), [&](const KernelRow& row) { return row.name == wanted; }) -
        rows_.begin());
  };
  std::size_t row = find(clean);
  if (row == rows_.size() && rows_.size() >= kernel_names_max) {
    clean = "(others)";
    row = find(clean);
  }
  if (row == rows_.size()) rows_.push_back({.name = std::move(clean)});
  return row;
}

void Series::close(std::size_t open, std::uint64_t now_ns, bool failed) {
  const Open& o = open_[open];
  KernelRow& row = rows_[o.row];
  const std::uint64_t took = now_ns > o.begin_ns ? now_ns - o.begin_ns : 0;
  row.total_ns += took;
  row.longest_ns = std::max(row.longest_ns, took);
  row.failed += failed ? 1 : 0;
  row.device_faults += faults_of_[o.device] - o.faults_before;
  kernels_busy_.leave(now_ns);
  open_[open] = open_.back();
  open_.pop_back();
}

void Series::kernel_begin(const KernelEvent& event) {
  if (event.device >= max_devices || event.queue >= wire::max_queues) return;
  const std::uint64_t at = credible(event);
  // One launch at a time runs on a queue, but its begin and end come by the ports of different compute units, in any
  // order. A launch that is still open when several later ones have begun is a device's lie or its restart.
  for (std::size_t i = 0; i < open_.size(); ++i) {
    if (open_[i].client == event.client && open_[i].device == event.device && open_[i].queue == event.queue &&
        (open_[i].launch == event.launch || event.launch > open_[i].launch + out_of_order_max)) {
      close(i, at, true);
      break;
    }
  }
  const std::size_t row = row_of(event.name);
  ++rows_[row].launches;
  rows_[row].waves += event.value;
  open_.push_back({event.client, event.device, event.queue, event.launch, at, faults_of_[event.device], row});
  kernels_busy_.enter(at);
  for (std::size_t i = 0; i < early_ends_.size(); ++i) {
    if (same_launch(early_ends_[i], event)) {
      const KernelEvent end = early_ends_[i];
      early_ends_.erase(early_ends_.begin() + static_cast<std::ptrdiff_t>(i));
      kernel_end(end);
      return;
    }
  }
}

void Series::kernel_end(const KernelEvent& event) {
  for (std::size_t i = 0; i < open_.size(); ++i) {
    const Open& o = open_[i];
    if (o.client == event.client && o.device == event.device && o.queue == event.queue && o.launch == event.launch) {
      close(i, std::max(credible(event), o.begin_ns), event.value != 0);
      return;
    }
  }
  if (early_ends_.size() == early_ends_max) early_ends_.erase(early_ends_.begin());
  early_ends_.push_back(event);
  early_ends_.back().name = {};
}

void Series::device_gone(std::uint64_t now_ns, ClientId client, DeviceId device) {
  for (std::size_t i = open_.size(); i-- > 0;) {
    if (open_[i].client == client && open_[i].device == device) close(i, now_ns, true);
  }
  std::erase_if(early_ends_, [&](const KernelEvent& e) { return e.client == client && e.device == device; });
}

std::vector<Sample> Series::samples(std::uint64_t now_ns) const {
  std::vector<Sample> out = samples_;
  Sample last = now_;
  read_counters(last);
  last.time_ns = std::max(now_ns, out.back().time_ns);
  out.push_back(last);
  return out;
}

void Series::times(std::uint64_t now_ns, TimeSplit& split) const {
  split.wall_ns = now_ns > start_ns_ ? now_ns - start_ns_ : 0;
  split.kernels_ns = kernels_busy_.total(now_ns);
  split.moving_ns = moving_busy_.total(now_ns);
}

}  // namespace ferry::manager
