// What to bring along with a device fault. One prefetcher of each kind a client and device: it sees that device's faults
// and names granules; the mechanism (speculate.cpp) brings those for which VRAM is free. Deterministic.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/bitmap.h"
#include "core/digest.h"
#include "core/policy/choice.h"

namespace ferry::core {

/// A fault as a prefetcher sees it. Granules are numbered from address 0 of the client.
struct PrefetchView {
  std::uint64_t granule = 0;
  unsigned granularity_pages = 1;
  unsigned most = 0;        ///< granules that may be brought; at least 1
  const PageMask* in_vram;  ///< pages of the fault's block that the device reaches in its VRAM; null: not by density
};

class Prefetcher {
 public:
  virtual ~Prefetcher() = default;
  /// Appends the granules that should come too, the most useful first.
  virtual void fault(const PrefetchView& view, std::vector<std::uint64_t>& wanted) = 0;
  /// How many of those that fault() named, from the front, are there or on their way.
  virtual void brought(std::size_t count) = 0;
  [[nodiscard]] virtual std::uint64_t digest() const = 0;
};

/// Walks in equal steps, up or down. Three faults at equal distances are a walk (two, where the step is one up); each
/// further one brings twice as much, up to what is allowed. Several walks of a device are told apart, as long as no more
/// than `singles_most` faults of others lie between two of one.
class StridePrefetcher final : public Prefetcher {
 public:
  /// `reach`: longest step, in granules; 1: only upwards one by one.
  explicit StridePrefetcher(std::uint64_t reach) : reach_(reach) {}
  void fault(const PrefetchView& view, std::vector<std::uint64_t>& wanted) override;
  void brought(std::size_t count) override;
  [[nodiscard]] std::uint64_t digest() const override;

 private:
  static constexpr std::size_t streams_most = 8;
  static constexpr std::size_t singles_most = 12;
  struct Stream {
    std::uint64_t next = 0;    ///< first granule that nobody brought yet
    std::int64_t step = 0;     ///< 0: no stream
    std::uint32_t length = 0;  ///< faults seen
    std::uint32_t ahead = 0;   ///< granules before `next` that were brought and not asked for
    std::uint64_t last_use = 0;
  };
  [[nodiscard]] Stream* find(std::uint64_t granule);
  Stream* begin(std::uint64_t granule);

  std::uint64_t reach_;
  std::array<Stream, streams_most> streams_;
  /// Faults that belong to no stream, a ring: the oldest is at oldest_single_. ~0: none.
  std::array<std::uint64_t, singles_most> singles_ = filled();
  std::size_t oldest_single_ = 0;
  Stream* current_ = nullptr;  ///< of the last fault()
  std::uint64_t clock_ = 0;

  static constexpr std::array<std::uint64_t, singles_most> filled() {
    std::array<std::uint64_t, singles_most> all{};
    all.fill(~std::uint64_t{0});
    return all;
  }
};

/// The tree of nvidia-uvm: of the halves, quarters, ... of a block around the fault, the largest of which the device has
/// more than `percent` is completed.
class DensityPrefetcher final : public Prefetcher {
 public:
  explicit DensityPrefetcher(unsigned percent) : percent_(percent) {}
  void fault(const PrefetchView& view, std::vector<std::uint64_t>& wanted) override;
  void brought(std::size_t) override {}
  [[nodiscard]] std::uint64_t digest() const override { return percent_; }

 private:
  unsigned percent_;
};

/// Prefetch earns its depth. Some granules that it brings arrive unmapped, as samples: the first touch of one is a hit,
/// one that leaves untouched was waste. With too much waste less is brought, and at last nothing for a while.
class PrefetchGate {
 public:
  /// How many granules may come with this fault, of `most` at best.
  unsigned allow(unsigned most);
  /// The next granule brought is to be a sample.
  [[nodiscard]] bool sample();
  void hit() { score_ = std::min(score_ + 2, score_most); }
  void waste() { score_ = std::max(score_ - 3, 0); }
  [[nodiscard]] std::uint64_t digest() const {
    return Digest().add(static_cast<std::uint64_t>(score_)).add(pause_).add(since_sample_).value();
  }

 private:
  static constexpr int score_most = 64;
  static constexpr unsigned pause_faults = 512;
  int score_ = score_most / 2;
  unsigned pause_ = 0;  ///< faults without prefetch so far, once the score was 0
  unsigned since_sample_ = 0;
};

struct PrefetchSettings {
  PrefetchKind kind = PrefetchKind::both;
  unsigned granularity_pages = 1;
  unsigned density_percent = 51;
};

/// In the order in which they are asked; null: none.
[[nodiscard]] std::array<std::unique_ptr<Prefetcher>, 2> make_prefetchers(const PrefetchSettings& settings);

}  // namespace ferry::core
