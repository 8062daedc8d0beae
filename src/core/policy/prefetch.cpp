#include "core/policy/prefetch.h"

#include <algorithm>

namespace ferry::core {
namespace {

constexpr std::uint64_t granules_end = std::uint64_t{1} << 52;

/// The longest step that counts as a walk, in pages: further apart, chance makes equal distances too often.
constexpr std::uint64_t reach_pages = 8 * block_pages;
constexpr std::uint64_t reach_granules_most = 64;

}  // namespace

// --- stride ----------------------------------------------------------------------------------------------------------

/// The stream that expects this granule, or has brought it just now.
StridePrefetcher::Stream* StridePrefetcher::find(std::uint64_t granule) {
  for (Stream& stream : streams_) {
    if (stream.step == 0) continue;
    const auto behind = static_cast<std::int64_t>(stream.next - granule);
    if (behind == 0) {
      stream.next = granule + static_cast<std::uint64_t>(stream.step);
      stream.ahead = 0;
      return &stream;
    }
    // Most faults are far from most streams, and a division costs more than all else here.
    const std::int64_t farthest = stream.step * static_cast<std::int64_t>(stream.ahead);
    if (stream.step > 0 ? behind < 0 || behind > farthest : behind > 0 || behind < farthest) continue;
    if (behind % stream.step == 0) {
      stream.ahead = static_cast<std::uint32_t>(behind / stream.step) - 1;
      return &stream;
    }
  }
  return nullptr;
}

/// A stream that begins with this fault, or null: it is remembered as a single one then.
StridePrefetcher::Stream* StridePrefetcher::begin(std::uint64_t granule) {
  std::int64_t step = 0;
  // Most faults are near none of the single ones.
  std::uint64_t near = 0;
  for (const std::uint64_t single : singles_) near |= granule - single + reach_ <= 2 * reach_ ? 1U : 0U;
  for (std::size_t i = singles_most; near != 0 && i-- > 0 && step == 0;) {
    const std::uint64_t before = singles_[(oldest_single_ + i) % singles_most];
    const auto distance = static_cast<std::int64_t>(granule - before);
    if (before == ~std::uint64_t{0} || distance == 0) continue;
    if (distance == 1) {
      step = 1;
    } else if (static_cast<std::uint64_t>(distance < 0 ? -distance : distance) <= reach_ && reach_ > 1) {
      const std::uint64_t first = before - static_cast<std::uint64_t>(distance);
      if (std::find(singles_.begin(), singles_.end(), first) != singles_.end()) {
        step = distance;
      }
    }
  }
  if (step == 0) {
    singles_[oldest_single_] = granule;
    oldest_single_ = (oldest_single_ + 1) % singles_most;
    return nullptr;
  }
  Stream& stream = *std::min_element(streams_.begin(), streams_.end(),
                                     [](const Stream& a, const Stream& b) { return a.last_use < b.last_use; });
  stream = {granule + static_cast<std::uint64_t>(step), step, 1, 0, clock_};
  for (std::uint64_t& single : singles_) {
    const auto behind = static_cast<std::int64_t>(granule - single);
    if (single != ~std::uint64_t{0} && (behind == step || behind == 2 * step)) single = ~std::uint64_t{0};
  }
  return &stream;
}

void StridePrefetcher::fault(const PrefetchView& view, std::vector<std::uint64_t>& wanted) {
  ++clock_;
  current_ = find(view.granule);
  if (current_ == nullptr) current_ = begin(view.granule);
  if (current_ == nullptr) return;
  Stream& stream = *current_;
  stream.length = std::min(stream.length + 1, 32U);
  stream.last_use = clock_;
  const unsigned wish = stream.length < 8 ? (1U << (stream.length - 1)) / 2 : view.most;
  const unsigned depth = std::min(wish, view.most);
  std::uint64_t granule = stream.next;
  for (unsigned i = stream.ahead; i < depth; ++i, granule += static_cast<std::uint64_t>(stream.step)) {
    if (granule >= granules_end) return;  // past either end: below 0 it has wrapped
    wanted.push_back(granule);
  }
}

void StridePrefetcher::brought(std::size_t count) {
  if (current_ == nullptr) return;
  current_->next += static_cast<std::uint64_t>(current_->step) * count;
  current_->ahead += static_cast<std::uint32_t>(count);
}

std::uint64_t StridePrefetcher::digest() const {
  Digest d;
  // Which stream is forgotten next depends on the order of their last uses only.
  for (const Stream& stream : streams_) {
    const auto older = std::count_if(streams_.begin(), streams_.end(),
                                     [&](const Stream& other) { return other.last_use < stream.last_use; });
    d.add(stream.next).add(static_cast<std::uint64_t>(stream.step)).add(stream.length).add(stream.ahead);
    d.add(static_cast<std::uint64_t>(older));
  }
  for (std::size_t i = 0; i < singles_most; ++i) d.add(singles_[(oldest_single_ + i) % singles_most]);
  return d.value();
}

// --- density ---------------------------------------------------------------------------------------------------------

void DensityPrefetcher::fault(const PrefetchView& view, std::vector<std::uint64_t>& wanted) {
  const unsigned pages = view.granularity_pages;
  const unsigned granules = block_pages / pages;
  const auto index = static_cast<unsigned>(view.granule % granules);
  PageMask have = *view.in_vram;
  have.set_range(index * pages, pages);
  unsigned first = index;
  unsigned count = 1;
  for (unsigned size = 2; size <= granules; size *= 2) {
    const unsigned from = index / size * size;
    const unsigned part = (have & PageMask::range(from * pages, size * pages)).count();
    if (part * 100 > size * pages * percent_) {
      first = from;
      count = size;
    }
  }
  const std::uint64_t base = view.granule - index;
  for (unsigned g = first; g < first + count; ++g) {
    if (g != index && !have.test(g * pages)) wanted.push_back(base + g);
  }
}

// --- gate ------------------------------------------------------------------------------------------------------------

unsigned PrefetchGate::allow(unsigned most) {
  if (score_ == 0) {
    if (++pause_ < pause_faults) return 0;
    score_ = score_most / 8;  // another try, with little
  }
  pause_ = 0;
  return score_ >= score_most / 2 ? most : std::max(most * static_cast<unsigned>(score_) / (score_most / 2), 1U);
}

bool PrefetchGate::sample() {
  const unsigned period = score_ >= score_most * 3 / 4 ? 16 : score_ >= score_most / 4 ? 4 : 1;
  if (++since_sample_ < period) return false;
  since_sample_ = 0;
  return true;
}

std::array<std::unique_ptr<Prefetcher>, 2> make_prefetchers(const PrefetchSettings& settings) {
  std::array<std::unique_ptr<Prefetcher>, 2> out;
  std::size_t count = 0;
  const std::uint64_t reach = std::min(reach_granules_most, reach_pages / settings.granularity_pages);
  switch (settings.kind) {
    case PrefetchKind::none: break;
    case PrefetchKind::sequential: out[count++] = std::make_unique<StridePrefetcher>(1); break;
    case PrefetchKind::stride:
    case PrefetchKind::both: out[count++] = std::make_unique<StridePrefetcher>(reach); break;
    case PrefetchKind::density: break;
  }
  if (settings.kind == PrefetchKind::density || settings.kind == PrefetchKind::both) {
    out[count++] = std::make_unique<DensityPrefetcher>(settings.density_percent);
  }
  return out;
}

}  // namespace ferry::core
