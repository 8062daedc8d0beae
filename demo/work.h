// The few things of work.h that the demonstrations use, as objects that close themselves.
#pragma once

#include <ferry/work.h>
#include <ferry/ferry.hpp>

#include <cstdint>
#include <memory>
#include <vector>

namespace ferry::demo {

struct CloseBuffer {
  void operator()(ferry_buffer* buffer) const { ferry_buffer_close(buffer, nullptr); }
};
struct CloseFence {
  void operator()(ferry_fence* fence) const { ferry_fence_close(fence); }
};
using Buffer = std::unique_ptr<ferry_buffer, CloseBuffer>;
using Fence = std::unique_ptr<ferry_fence, CloseFence>;

/// Longest that a demonstration waits for one fence before it calls it a hang.
inline constexpr std::uint64_t fence_patience_ns = 60'000'000'000;

/// Throws ferry::error.
template <typename T>
T* or_throw(T* object, const ferry_error& error) {
  if (object == nullptr) throw ferry::error(error);
  return object;
}

inline Buffer make_buffer(std::uint64_t bytes, int home = FERRY_IN_SYSTEM, unsigned flags = 0) {
  ferry_error error{};
  return Buffer(or_throw(ferry_buffer_create(bytes, home, flags, &error), error));
}

inline std::uint8_t* map(const Buffer& buffer) {
  ferry_error error{};
  return static_cast<std::uint8_t*>(or_throw(ferry_buffer_map(buffer.get(), &error), error));
}

/// A graphics job over `items` of a lambda with trivially copyable captures.
template <typename F>
Fence submit_graphics(ferry_job_options options, const std::vector<ferry_job_buffer>& buffers, std::uint64_t items,
                      std::uint64_t items_per_wave, const char* name, F f) {
  static_assert(std::is_trivially_copyable_v<F>);
  options.buffers = buffers.data();
  options.buffer_count = buffers.size();
  ferry_error error{};
  const ferry_kernel kernel = [](const void* captures, std::uint64_t first, std::uint64_t count) {
    const F& call = *static_cast<const F*>(captures);
    for (std::uint64_t i = first; i < first + count; ++i) call(i);
  };
  return Fence(
      or_throw(ferry_submit_graphics(&options, kernel, &f, sizeof f, items, items_per_wave, name, &error), error));
}

inline Fence submit_video(const ferry_job_options& options, const ferry_video& video, const Buffer& target,
                          const Buffer& source) {
  ferry_error error{};
  return Fence(or_throw(ferry_submit_video(&options, &video, target.get(), source.get(), &error), error));
}

inline Fence submit_copy(const ferry_job_options& options, const Buffer& target, std::uint64_t target_offset,
                         const Buffer& source, std::uint64_t source_offset, std::uint64_t bytes) {
  ferry_error error{};
  return Fence(or_throw(
      ferry_submit_copy(&options, target.get(), target_offset, source.get(), source_offset, bytes, &error), error));
}

/// Waits, however long it takes up to fence_patience_ns. Throws the job's error.
inline void wait(const Fence& fence) {
  ferry_error error{};
  if (ferry_fence_wait(fence.get(), fence_patience_ns, &error) != FERRY_OK) throw ferry::error(error);
}

}  // namespace ferry::demo
