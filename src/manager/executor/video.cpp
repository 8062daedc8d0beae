#include "manager/executor/video.h"

#include <pthread.h>
#include <signal.h>

#include <algorithm>

#include "base/types.h"
#include "linux/memory_file.h"

namespace ferry::manager {
namespace {

constexpr std::uint64_t side_max = 16384;
constexpr std::uint64_t offset_max = std::uint64_t{1} << 46;
constexpr std::uint64_t pitch_max = std::uint64_t{1} << 20;

using Byte = unsigned char;

Byte clamp_byte(int v) { return static_cast<Byte>(std::clamp(v, 0, 255)); }

void nv12_row(const Byte* y, const Byte* uv, Byte* out, unsigned width) {
  for (unsigned x = 0; x < width; ++x) {
    const int c = 298 * (y[x] - 16) + 128;
    const int d = uv[x & ~1U] - 128;
    const int e = uv[(x & ~1U) + 1] - 128;
    out[4 * x] = clamp_byte((c + 409 * e) >> 8);
    out[4 * x + 1] = clamp_byte((c - 100 * d - 208 * e) >> 8);
    out[4 * x + 2] = clamp_byte((c + 516 * d) >> 8);
    out[4 * x + 3] = 255;
  }
}

void half_row(const Byte* upper, const Byte* lower, Byte* out, unsigned out_width) {
  for (unsigned x = 0; x < out_width; ++x) {
    for (unsigned k = 0; k < 4; ++k) {
      const unsigned at = 8 * x + k;
      out[4 * x + k] = static_cast<Byte>((upper[at] + upper[at + 4] + lower[at] + lower[at + 4] + 2) >> 2);
    }
  }
}

void blend_row(const Byte* in, Byte* out, unsigned width, unsigned alpha) {
  for (unsigned i = 0; i < 4 * width; ++i) {
    out[i] = static_cast<Byte>((alpha * in[i] + (255 - alpha) * out[i] + 127) / 255);
  }
}

/// Memory for what is touched: lack of it must be an error, not a signal.
Status back(std::byte* base, std::uint64_t from, std::uint64_t end, bool write) {
  const std::uint64_t first = from / page_bytes * page_bytes;
  return linux::populate(base + first, (end - first + page_bytes - 1) / page_bytes * page_bytes, write);
}

Status run(const VideoJob& job) {
  const wire::VideoArguments& a = job.arguments;
  const VideoSpans spans = video_spans(a);
  const auto op = static_cast<wire::VideoOp>(a.op);
  const std::uint64_t source_from =
      op == wire::VideoOp::nv12_to_rgba ? std::min(a.source_offset, a.chroma_offset) : a.source_offset;
  if (const Status s = back(job.source, source_from, spans.source_end, false); !s.ok()) return s;
  if (const Status s = back(job.target, a.target_offset, spans.target_end, true); !s.ok()) return s;
  const auto* const source = reinterpret_cast<const Byte*>(job.source);
  auto* const target = reinterpret_cast<Byte*>(job.target) + a.target_offset;
  const unsigned rows = op == wire::VideoOp::half ? a.height / 2 : a.height;
  for (unsigned y = 0; y < rows; ++y) {
    if (job.cancelled->load(std::memory_order_relaxed)) return Code::cancelled;
    Byte* const out = target + y * a.target_pitch;
    const Byte* const in = source + a.source_offset + y * a.source_pitch;
    switch (op) {
      case wire::VideoOp::nv12_to_rgba:
        nv12_row(in, source + a.chroma_offset + y / 2 * a.source_pitch, out, a.width);
        break;
      case wire::VideoOp::half: {
        const Byte* const upper = source + a.source_offset + 2 * y * a.source_pitch;
        half_row(upper, upper + a.source_pitch, out, a.width / 2);
        break;
      }
      case wire::VideoOp::blend: blend_row(in, out, a.width, a.alpha); break;
    }
  }
  return {};
}

}  // namespace

VideoSpans video_spans(const wire::VideoArguments& a) {
  if (a.width == 0 || a.height == 0 || a.width > side_max || a.height > side_max || a.alpha > 255 ||
      a.source_offset > offset_max || a.target_offset > offset_max || a.chroma_offset > offset_max ||
      a.source_pitch > pitch_max || a.target_pitch > pitch_max) {
    return {};
  }
  const bool even = a.width % 2 == 0 && a.height % 2 == 0;
  const std::uint64_t pixels = std::uint64_t{a.width} * 4;
  const auto end_of = [](std::uint64_t offset, std::uint64_t pitch, std::uint64_t rows, std::uint64_t row) {
    return offset + (rows - 1) * pitch + row;
  };
  switch (static_cast<wire::VideoOp>(a.op)) {
    case wire::VideoOp::nv12_to_rgba:
      if (!even || a.source_pitch < a.width || a.target_pitch < pixels) return {};
      return {std::max(end_of(a.source_offset, a.source_pitch, a.height, a.width),
                       end_of(a.chroma_offset, a.source_pitch, a.height / 2, a.width)),
              end_of(a.target_offset, a.target_pitch, a.height, pixels)};
    case wire::VideoOp::half:
      if (!even || a.source_pitch < pixels || a.target_pitch < pixels / 2) return {};
      return {end_of(a.source_offset, a.source_pitch, a.height, pixels),
              end_of(a.target_offset, a.target_pitch, a.height / 2, pixels / 2)};
    case wire::VideoOp::blend:
      if (a.source_pitch < pixels || a.target_pitch < pixels) return {};
      return {end_of(a.source_offset, a.source_pitch, a.height, pixels),
              end_of(a.target_offset, a.target_pitch, a.height, pixels)};
  }
  return {};
}

VideoEngine::~VideoEngine() {
  {
    const linux::LockGuard lock(mutex_);
    stop_ = true;
    for (const VideoJob& job : running_) job.cancelled->store(true);
  }
  wanted_.notify_all();
  for (std::thread& t : threads_) t.join();
}

void VideoEngine::submit(VideoJob job) {
  bool more = false;
  {
    const linux::LockGuard lock(mutex_);
    jobs_.push_back(std::move(job));
    more = idle_ < jobs_.size();
  }
  ++in_flight_;
  // As many threads as jobs ever ran at a time, which the core bounds by the devices' slots.
  if (more && threads_.size() < in_flight_) {
    sigset_t all;
    sigset_t old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    threads_.emplace_back([this] { worker(); });
    pthread_sigmask(SIG_SETMASK, &old, nullptr);
  }
  wanted_.notify_one();
}

void VideoEngine::take_completions(std::vector<VideoCompletion>& out) {
  const linux::LockGuard lock(mutex_);
  out.insert(out.end(), completions_.begin(), completions_.end());
  taken_ += completions_.size();
  in_flight_ -= completions_.size();
  completions_.clear();
}

void VideoEngine::worker() {
  pthread_setname_np(pthread_self(), "ferryd-video");
  linux::UniqueLock lock(mutex_);
  for (;;) {
    ++idle_;
    wanted_.wait(lock, [&] { return stop_ || !jobs_.empty(); });
    --idle_;
    if (stop_) return;
    const VideoJob job = std::move(jobs_.front());
    jobs_.pop_front();
    running_.push_back(job);
    lock.unlock();
    const Status status = run(job);
    lock.lock();
    std::erase_if(running_, [&](const VideoJob& r) { return r.tag == job.tag; });
    completions_.push_back({job.tag, status});
    completed_.fetch_add(1, std::memory_order_release);
    bell_.ring();
  }
}

}  // namespace ferry::manager
