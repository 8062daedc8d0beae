// The kernels whose traffic is measured when their data are twice the VRAM: breadth-first search, PageRank, a stencil.
// Each is a template over how memory is touched and how a kernel is launched, so that the code that runs on a device and
// the code whose accesses are recorded for Belady's MIN are one.
//
// A launcher is called as launch(count, kernel) and calls kernel(memory, i) for all i below count before it returns,
// where memory is a DirectMemory or a RecordingMemory. Kernels capture by value only.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "belady.h"

namespace ferry::bench {

/// Touches memory and nothing else.
struct DirectMemory {
  template <typename T>
  [[nodiscard]] static T load(const T* from) {
    return *from;
  }
  template <typename T>
  static void store(T* to, T value) {
    *to = value;
  }
  /// Stores `desired` if `expected` is there; true if it did.
  template <typename T>
  [[nodiscard]] static bool claim(T* at, T expected, T desired) {
    return std::atomic_ref<T>(*at).compare_exchange_strong(expected, desired, std::memory_order_relaxed);
  }
};

/// Does the same and tells a recorder.
class RecordingMemory {
 public:
  explicit RecordingMemory(AccessRecorder& recorder) : recorder_(&recorder) {}
  template <typename T>
  [[nodiscard]] T load(const T* from) const {
    recorder_->touch(from, sizeof(T), false);
    return *from;
  }
  template <typename T>
  void store(T* to, T value) const {
    recorder_->touch(to, sizeof(T), true);
    *to = value;
  }
  template <typename T>
  [[nodiscard]] bool claim(T* at, T expected, T desired) const {
    // A compare-and-swap needs the page writable even where it fails.
    recorder_->touch(at, sizeof(T), true);
    return DirectMemory::claim(at, expected, desired);
  }

 private:
  AccessRecorder* recorder_;
};

/// Runs kernels on the calling thread, `wave_lanes` indices a wave, in the order of the grid, and records them.
class RecordingLauncher {
 public:
  RecordingLauncher(AccessRecorder& recorder, std::size_t wave_lanes) : recorder_(recorder), wave_lanes_(wave_lanes) {}
  template <typename Kernel>
  void operator()(std::size_t count, const Kernel& kernel) const {
    const RecordingMemory memory(recorder_);
    for (std::size_t i = 0; i < count; ++i) {
      kernel(memory, i);
      if ((i + 1) % wave_lanes_ == 0 || i + 1 == count) recorder_.end_wave();
    }
  }

 private:
  AccessRecorder& recorder_;
  std::size_t wave_lanes_;
};

/// A graph in compressed rows: the neighbours of v are targets[offsets[v]] up to targets[offsets[v + 1]].
struct GraphView {
  const std::uint64_t* offsets = nullptr;
  const std::uint32_t* targets = nullptr;
  std::size_t vertices = 0;
};

inline constexpr std::int32_t unreached = -1;

/// Level of every vertex from `source`; `levels` starts as unreached everywhere. `changed` is one managed word.
/// Returns the number of levels.
template <typename Launch>
std::int32_t breadth_first_search(const Launch& launch, GraphView graph, std::uint32_t source, std::int32_t* levels,
                                  std::uint32_t* changed) {
  levels[source] = 0;
  std::int32_t depth = 0;
  do {
    *changed = 0;
    launch(graph.vertices, [=](const auto& memory, std::size_t vertex) {
      if (memory.load(levels + vertex) != depth) return;
      const std::uint64_t end = memory.load(graph.offsets + vertex + 1);
      bool found = false;
      for (std::uint64_t edge = memory.load(graph.offsets + vertex); edge < end; ++edge) {
        std::int32_t* level = levels + memory.load(graph.targets + edge);
        if (memory.load(level) == unreached) found |= memory.claim(level, unreached, depth + 1);
      }
      if (found) memory.store(changed, std::uint32_t{1});
    });
    ++depth;
  } while (*changed != 0);
  return depth;
}

/// `iterations` of PageRank by pulling, damping 0.85; `rank` starts as 1 / vertices everywhere.
template <typename Launch>
void page_rank(const Launch& launch, GraphView graph, double* rank, double* share, int iterations) {
  const double base = 0.15 / static_cast<double>(graph.vertices);
  for (int iteration = 0; iteration < iterations; ++iteration) {
    launch(graph.vertices, [=](const auto& memory, std::size_t vertex) {
      const std::uint64_t degree = memory.load(graph.offsets + vertex + 1) - memory.load(graph.offsets + vertex);
      memory.store(share + vertex, degree == 0 ? 0.0 : memory.load(rank + vertex) / static_cast<double>(degree));
    });
    launch(graph.vertices, [=](const auto& memory, std::size_t vertex) {
      const std::uint64_t end = memory.load(graph.offsets + vertex + 1);
      double sum = 0;
      for (std::uint64_t edge = memory.load(graph.offsets + vertex); edge < end; ++edge) {
        sum += memory.load(share + memory.load(graph.targets + edge));
      }
      memory.store(rank + vertex, base + 0.85 * sum);
    });
  }
}

/// `iterations` of a five-point average between two grids of width x height cells, edges left alone; one row a work
/// item. The result is in `a` for an even number of iterations.
template <typename Launch>
void stencil(const Launch& launch, double* a, double* b, std::size_t width, std::size_t height, int iterations) {
  for (int iteration = 0; iteration < iterations; ++iteration) {
    const double* from = iteration % 2 == 0 ? a : b;
    double* to = iteration % 2 == 0 ? b : a;
    launch(height - 2, [=](const auto& memory, std::size_t i) {
      const std::size_t row = (i + 1) * width;
      for (std::size_t x = row + 1; x < row + width - 1; ++x) {
        const double sum = memory.load(from + x - 1) + memory.load(from + x + 1) + memory.load(from + x - width) +
                           memory.load(from + x + width);
        memory.store(to + x, 0.2 * (sum + memory.load(from + x)));
      }
    });
  }
}

/// A Graph500 Kronecker graph of 2^scale vertices and edge_factor * 2^scale edges, each stored in both directions,
/// multiple edges and loops kept so that its size depends on nothing but the arguments. The caller gives room for
/// 2^scale + 1 offsets and 2 * edge_factor * 2^scale targets.
void make_kronecker(unsigned scale, unsigned edge_factor, std::uint64_t seed, std::uint64_t* offsets,
                    std::uint32_t* targets);

}  // namespace ferry::bench
