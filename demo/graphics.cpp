// The fenced side: jobs that list their buffers and signal.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <deque>

#include "roles.h"
#include "work.h"

namespace ferry::demo {
namespace {

constexpr std::uint64_t page = 4096;
/// Some milliseconds of work that cannot be left out.
void slow_pass(std::uint64_t seed) {
  for (unsigned i = 0; i < 2'000'000; ++i) {
    seed = seed * 6364136223846793005U + 1442695040888963407U;
    asm volatile("" : "+r"(seed));
  }
}

void say(const char* format, auto... values) {
  std::printf(format, values...);
  std::fflush(stdout);
}

std::uint64_t now_ns() {
  return static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
          .count());
}

void sleep_until(std::uint64_t when_ns) {
  timespec when{static_cast<time_t>(when_ns / 1'000'000'000), static_cast<long>(when_ns % 1'000'000'000)};
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &when, nullptr) != 0) {}
}

}  // namespace

int chain_role(const RoleOptions& options) {
  constexpr unsigned side = 512;  // of the picture, in pixels of 4 bytes
  constexpr std::uint64_t bytes = std::uint64_t{side} * side * 4;
  const std::uint64_t canvas_bytes = options.buffer_bytes / page * page;
  std::uint64_t wrong = 0;
  try {
    const Buffer canvas = make_buffer(canvas_bytes);
    const Buffer picture = make_buffer(bytes);
    const Buffer half = make_buffer(bytes / 4);
    std::uint8_t* const drawn = map(canvas);
    std::uint8_t* const pixels = map(picture);
    std::uint8_t* const halves = map(half);
    ferry_job_options one{};
    one.timeout_ns = 50'000'000'000;
    one.cus_min = 1;
    one.cus_max = 1;
    ferry_job_options two = one;
    two.cus_min = 2;
    two.cus_max = 2;
    ferry_video shrink{};
    shrink.op = FERRY_VIDEO_HALF;
    shrink.width = side;
    shrink.height = side;
    for (unsigned round = 1; round <= options.rounds; ++round) {
      const Fence halved = submit_video(one, shrink, half, picture);
      // Takes its time on one unit ...
      const Fence slow = submit_graphics(one, {}, 256, 1, "slow pass", [](std::uint64_t at) { slow_pass(at); });
      // ... and all that time the canvas is memory that nobody touches and that comes back only with this fence. It needs
      // two units.
      ferry_fence* const before[] = {slow.get()};
      ferry_job_options behind = two;
      behind.waits = before;
      behind.wait_count = 1;
      const Fence last = submit_graphics(behind, {{canvas.get(), 1}, {picture.get(), 1}}, canvas_bytes / page, 16,
                                         "one brighter", [drawn, pixels](std::uint64_t at) {
                                           for (std::uint64_t i = at * page; i < (at + 1) * page; ++i) {
                                             drawn[i] = static_cast<std::uint8_t>(drawn[i] + 1);
                                             if (i < bytes) pixels[i] = static_cast<std::uint8_t>(pixels[i] + 1);
                                           }
                                         });
      wait(halved);
      wait(slow);
      wait(last);
      // All bytes were equal, so the half was what the picture was before it became one brighter.
      for (std::uint64_t i = 0; i < bytes / 4; i += 61) wrong += halves[i] != static_cast<std::uint8_t>(round - 1);
      for (std::uint64_t i = 0; i < bytes; i += 61) wrong += pixels[i] != static_cast<std::uint8_t>(round);
      for (std::uint64_t i = 0; i < canvas_bytes; i += 61) wrong += drawn[i] != static_cast<std::uint8_t>(round);
      say("round %u\n", round);
    }
  } catch (const ferry::error& e) {
    say("error %s\n", e.what());
    return 1;
  }
  say("wrong %llu\n", static_cast<unsigned long long>(wrong));
  say("done\n");
  return wrong == 0 ? 0 : 1;
}

int frames_role(const RoleOptions& options) {
  constexpr unsigned in_flight_max = 2;
  const std::uint64_t bytes = std::max<std::uint64_t>(options.buffer_bytes / page * page, page);
  const std::uint64_t period_ns = 1'000'000'000 / options.fps;
  std::uint64_t late = 0;
  std::uint64_t failed = 0;
  try {
    // Double buffering; each frame is drawn over the one before the last.
    const Buffer targets[2] = {make_buffer(bytes), make_buffer(bytes)};
    std::uint8_t* const pixels[2] = {map(targets[0]), map(targets[1])};
    struct Frame {
      Fence fence;
      std::uint64_t asked_ns;
    };
    std::deque<Frame> in_flight;
    std::uint64_t last_drawn[2] = {0, 0};
    const auto finish = [&](Frame& frame) {
      ferry_error error{};
      const ferry_code code = ferry_fence_wait(frame.fence.get(), fence_patience_ns, &error);
      const std::uint64_t took = now_ns() - frame.asked_ns;
      if (code != FERRY_OK) {
        ++failed;
        say("failed 1 %s\n", error.text);
        return;
      }
      say("frame %llu\n", static_cast<unsigned long long>(took));
    };
    const std::uint64_t start = now_ns();
    std::uint64_t number = 0;
    for (std::uint64_t tick = start; tick < start + static_cast<std::uint64_t>(options.seconds * 1e9);
         tick += period_ns) {
      sleep_until(tick);
      // A frame counts from its tick to the moment that its fence is seen to have signalled.
      while (!in_flight.empty() && ferry_fence_query(in_flight.front().fence.get(), nullptr) == FERRY_FENCE_SIGNALLED) {
        finish(in_flight.front());
        in_flight.pop_front();
      }
      if (in_flight.size() >= in_flight_max) {
        ++late;  // no room for another: this frame is dropped
        continue;
      }
      ++number;
      const unsigned side = number % 2;
      last_drawn[side] = number;
      ferry_job_options job{};
      job.timeout_ns = 50'000'000'000;
      job.priority = 3;
      std::uint8_t* const out = pixels[side];
      Fence fence =
          submit_graphics(job, {{targets[side].get(), 1}}, bytes / page, 16, "frame", [out, number](std::uint64_t at) {
            auto* words = reinterpret_cast<std::uint32_t*>(out + at * page);
            for (std::uint64_t i = 0; i < page / 4; ++i)
              words[i] = static_cast<std::uint32_t>(number * 2654435761U + at * 40503U + i);
          });
      ferry_fence_set_deadline(fence.get(), period_ns, nullptr);
      // Whoever shows frames wants them by the next tick: wait for it there, not longer.
      in_flight.push_back({std::move(fence), tick});
      const std::uint64_t left = tick + period_ns > now_ns() ? tick + period_ns - now_ns() : 0;
      ferry_error ignored{};
      if (ferry_fence_wait(in_flight.back().fence.get(), left, &ignored) == FERRY_OK && in_flight.size() == 1) {
        finish(in_flight.front());
        in_flight.pop_front();
      }
    }
    for (Frame& frame : in_flight) finish(frame);
    std::uint64_t wrong = 0;
    for (unsigned side = 0; side < 2 && failed == 0; ++side) {
      if (last_drawn[side] == 0) continue;
      for (std::uint64_t at = 0; at < bytes / page; ++at) {
        const auto* words = reinterpret_cast<const std::uint32_t*>(pixels[side] + at * page);
        wrong += words[17] != static_cast<std::uint32_t>(last_drawn[side] * 2654435761U + at * 40503U + 17);
      }
    }
    say("dropped %llu\n", static_cast<unsigned long long>(late));
    say("wrong %llu\n", static_cast<unsigned long long>(wrong));
    say("done\n");
    return wrong == 0 && failed == 0 ? 0 : 1;
  } catch (const ferry::error& e) {
    say("error %s\n", e.what());
    return 1;
  }
}

int usable_role(const RoleOptions& options) {
  constexpr unsigned pieces = 32;
  std::uint64_t usable = 0;
  try {
    std::vector<Buffer> buffers;
    for (unsigned i = 0; i < pieces; ++i) {
      ferry_error error{};
      Buffer buffer(ferry_buffer_create(options.bytes / pieces, FERRY_IN_SYSTEM, 0, &error));
      if (buffer == nullptr) break;
      buffers.push_back(std::move(buffer));
      if (buffers.size() < 2) continue;
      std::vector<ferry_job_buffer> used;
      for (const Buffer& b : buffers) used.push_back({b.get(), 1});
      ferry_job_options job{};
      job.buffers = used.data();
      job.buffer_count = used.size();
      ferry_fence* fence = ferry_submit_copy(&job, buffers[0].get(), 0, buffers[1].get(), 0, page, &error);
      if (fence == nullptr) break;
      const Fence owned(fence);
      if (ferry_fence_wait(fence, fence_patience_ns, &error) != FERRY_OK) break;
      usable = buffers.size() * (options.bytes / pieces);
    }
  } catch (const ferry::error& e) {
    say("error %s\n", e.what());
    return 1;
  }
  say("usable %llu\n", static_cast<unsigned long long>(usable));
  say("done\n");
  return 0;
}

}  // namespace ferry::demo
