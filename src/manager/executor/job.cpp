// Jobs: copies by the copy threads, video by the video engine's, graphics on the device process (unit.cpp). While a job
// runs, its buffers stay where they are: memory management waits for its fence.
#include <algorithm>
#include <cstring>

#include "manager/executor/executor.h"

namespace ferry::manager {
namespace {

/// A copy can be cancelled between two of these.
constexpr std::uint64_t copy_part_bytes = std::uint64_t{8} << 20;

template <typename T>
bool arguments_of(const wire::LaunchPacket& packet, T& out) {
  if (packet.capture_bytes != sizeof out) return false;
  std::memcpy(&out, packet.captures, sizeof out);
  return true;
}

bool lists(const core::JobSpec& spec, core::BufferId id, Access access) {
  return std::any_of(spec.buffers.begin(), spec.buffers.end(), [&](const core::JobBuffer& b) {
    return b.buffer == id && (access == Access::read || b.access == Access::write);
  });
}

bool inside(std::uint64_t offset, std::uint64_t bytes, std::uint64_t whole) {
  return bytes != 0 && offset <= whole && bytes <= whole - offset;
}

}  // namespace

bool Executor::may_run(const core::JobSpec& spec, const wire::LaunchPacket& packet) const {
  switch (spec.engine) {
    case core::Engine::graphics: return packet.items != 0 && packet.items_per_wave != 0 && packet.entry != 0;
    case core::Engine::copy: {
      wire::CopyArguments a{};
      if (!arguments_of(packet, a) || !lists(spec, a.source, Access::read) || !lists(spec, a.target, Access::write)) {
        return false;
      }
      const bool fits = inside(a.source_offset, a.bytes, buffer_pages(a.source) * page_bytes) &&
                        inside(a.target_offset, a.bytes, buffer_pages(a.target) * page_bytes);
      const bool apart = a.source != a.target || a.source_offset >= a.target_offset + a.bytes ||
                         a.target_offset >= a.source_offset + a.bytes;
      return fits && apart;
    }
    case core::Engine::video: {
      wire::VideoArguments a{};
      if (!arguments_of(packet, a) || a.source == a.target || !lists(spec, a.source, Access::read) ||
          !lists(spec, a.target, Access::write)) {
        return false;
      }
      const VideoSpans spans = video_spans(a);
      return spans.source_end != 0 && spans.source_end <= buffer_pages(a.source) * page_bytes &&
             spans.target_end <= buffer_pages(a.target) * page_bytes;
    }
    case core::Engine::compute: break;
  }
  return false;
}

void Executor::add_payload(core::FenceId fence, const wire::LaunchPacket& packet) {
  auto payload = std::make_unique<JobPayload>();
  payload->packet = packet;
  payload->packet.name[sizeof packet.name - 1] = '\0';
  payloads_[fence] = std::move(payload);
}

void Executor::drop_payload(core::FenceId fence) { payloads_.erase(fence); }

/// First byte of the buffer where it is now, as the manager's threads see it; null: it cannot be mapped.
std::byte* Executor::buffer_now(core::BufferId id) {
  const auto found = buffers_.find(id);
  if (found == buffers_.end()) return nullptr;
  const auto where = core_.buffer_info(id).where;
  return buffer_half(found->second, where == core::BufferInfo::Where::vram ? core::Place::vram : core::Place::system);
}

void Executor::run_job(Client* client, const core::Action& action) {
  const auto found = payloads_.find(action.fence);
  if (found == payloads_.end()) {
    done(action.id, Code::cancelled);
    return;
  }
  if (action.engine == core::Engine::graphics) {
    if (client == nullptr) {
      done(action.id, Code::client_gone);
    } else {
      run_graphics(*client, action, *found->second);
    }
    return;
  }
  RunningJob& job = running_[action.fence];
  job.action = action.id;
  job.cancelled = std::make_shared<std::atomic<bool>>(false);
  const wire::LaunchPacket& packet = found->second->packet;
  if (action.engine == core::Engine::copy && arguments_of(packet, job.copy)) {
    job.source = buffer_now(job.copy.source);
    job.target = buffer_now(job.copy.target);
    if (job.source != nullptr && job.target != nullptr) {
      copy_part(action.fence, job);
      return;
    }
  } else if (VideoJob video; action.engine == core::Engine::video && arguments_of(packet, video.arguments)) {
    video.tag = action.fence;
    video.source = buffer_now(video.arguments.source);
    video.target = buffer_now(video.arguments.target);
    video.cancelled = job.cancelled;
    if (video.source != nullptr && video.target != nullptr) {
      video_.submit(std::move(video));
      return;
    }
  }
  end_job(action.fence, Code::no_memory);
}

/// The next part of a copy.
void Executor::copy_part(core::FenceId fence, RunningJob& running) {
  const wire::CopyArguments& a = running.copy;
  const BufferMemory& source = buffers_.at(a.source);
  linux::CopyJob job;
  job.bytes = std::min(copy_part_bytes, a.bytes - running.copied);
  job.source = running.source + a.source_offset + running.copied;
  job.target = running.target + a.target_offset + running.copied;
  // Holes of the source are not to be filled for being read. (A mapping's first byte says where in the file it is.)
  if (!source.userptr) {
    job.source_fd = source.file.get();
    job.source_offset = static_cast<std::uint64_t>(job.source - source.map.data());
  }
  job.prepare_target = linux::Prepare::populate;
  const std::uint64_t at = a.target_offset + running.copied;
  const std::uint64_t first = at / page_bytes * page_bytes;
  job.prepare_at = running.target + first;
  job.prepare_bytes = (at + job.bytes - first + page_bytes - 1) / page_bytes * page_bytes;
  const std::uint32_t index = take_copy();
  copies_[index].verb = core::Verb::run_job;
  copies_[index].fence = fence;
  copies_[index].bytes = job.bytes;
  job.tag = index;
  engine_.submit(job);
}

void Executor::copy_part_done(const Copy& copy, Status status) {
  const auto found = running_.find(copy.fence);
  FERRY_CHECK(found != running_.end());
  RunningJob& job = found->second;
  job.copied += copy.bytes;
  if (!status.ok()) {
    end_job(copy.fence, status);
  } else if (job.copied >= job.copy.bytes) {
    end_job(copy.fence, {});
  } else if (job.cancelled->load(std::memory_order_relaxed)) {
    end_job(copy.fence, Code::cancelled);
  } else {
    copy_part(copy.fence, job);
  }
}

void Executor::end_job(core::FenceId fence, Status status) {
  const auto found = running_.find(fence);
  FERRY_CHECK(found != running_.end());
  const core::ActionId action = found->second.action;
  running_.erase(found);
  done(action, status);
}

bool Executor::poll_video() {
  if (!video_.has_completions()) return false;
  std::vector<VideoCompletion> ended;
  video_.take_completions(ended);
  for (const VideoCompletion& c : ended) end_job(c.tag, c.status);
  return true;
}

void Executor::cancel_job(Client* client, const core::Action& action) {
  if (const auto found = running_.find(action.fence); found != running_.end()) {
    found->second.cancelled->store(true, std::memory_order_relaxed);
  } else if (client != nullptr && action.engine == core::Engine::graphics) {
    cancel_graphics(*client, action);
  }
}

void Executor::signal_fence(const core::Action& action) { household_.on_fence(action.fence, action.status); }

}  // namespace ferry::manager
