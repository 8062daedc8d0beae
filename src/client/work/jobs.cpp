// Jobs: checks what only the application can know (handles, code, captures), and asks the manager, which checks the rest.
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "client/adopt/code_data.h"
#include "client/devices.h"
#include "client/error.h"
#include "client/work/objects.h"
#include "client/zygote.h"
#include "core/work/types.h"

using namespace ferry;          // NOLINT(google-build-using-namespace)
using namespace ferry::client;  // NOLINT(google-build-using-namespace)

namespace {

constexpr unsigned default_priority = 1;
constexpr std::uint64_t default_timeout_ns = 10'000'000'000;
// As for launches: large enough for a wave's cost to vanish, and enough of them that no compute unit is idle for long.
constexpr std::uint64_t waves_per_cu_wanted = 16;
constexpr std::uint64_t items_per_wave_max = 65536;
constexpr std::uint64_t side_max = 16384;

/// The body of a question. Filled on the asker's stack, which the manager's socket copies from.
class Submission {
 public:
  Submission(core::Engine engine, ferry_error* error) : error_(error) {
    job_.engine = static_cast<std::uint32_t>(engine);
  }

  bool take(const ferry_job_options* options) {
    static const ferry_job_options defaults{};
    const ferry_job_options& o = options == nullptr ? defaults : *options;
    if (o.priority > core::job_priorities) {
      fail(error_, Code::bad_range, 0, "submit: priority %u (1 to %u; 0: the default)", o.priority,
           core::job_priorities);
      return false;
    }
    if (o.timeout_ns > core::job_timeout_max_ns) {
      fail(error_, Code::bad_range, 0, "submit: a timeout of %llu ns (at most %llu)",
           static_cast<unsigned long long>(o.timeout_ns), static_cast<unsigned long long>(core::job_timeout_max_ns));
      return false;
    }
    job_.device = o.device;
    job_.priority = o.priority == 0 ? default_priority : o.priority - 1;
    job_.cus_min = std::max(1U, o.cus_min);
    job_.cus_max = o.cus_max;
    job_.timeout_ns = o.timeout_ns == 0 ? default_timeout_ns : o.timeout_ns;
    return take_lists(o);
  }

  bool add_buffer(const ferry_buffer* buffer, bool write) {
    if (buffer == nullptr) return is_null("a buffer");
    // Listed twice it is one use, that of the stronger kind.
    for (std::uint32_t i = 0; i < job_.buffer_count; ++i) {
      if (job_.buffers[i].buffer != buffer->id) continue;
      if (write) job_.buffers[i].write = 1;
      return true;
    }
    if (job_.buffer_count == wire::work_list_max) return is_too_long("buffers", wire::work_list_max);
    job_.buffers[job_.buffer_count++] = {buffer->id, write ? 1U : 0U, 0};
    return true;
  }

  template <typename T>
  void set_arguments(const T& arguments) {
    job_.packet.capture_bytes = sizeof arguments;
    std::memcpy(job_.packet.captures, &arguments, sizeof arguments);
  }

  ferry_fence* submit(Session& session, const char* what) {
    if (job_.cus_max == 0) job_.cus_max = session.machine.cu_count;
    Answer answer;
    wire::WorkAnswer out{};
    if (!ask_work(session, wire::MessageType::job_submit, job_, answer, out, what, error_)) return nullptr;
    return make_fence(out);
  }

  wire::JobSubmit& job() { return job_; }

 private:
  bool is_null(const char* what) {
    fail(error_, Code::bad_range, 0, "submit: %s in the list is NULL", what);
    return false;
  }
  bool is_too_long(const char* what, unsigned most) {
    fail(error_, Code::bad_range, 0, "submit: too many %s for one job (at most %u)", what, most);
    return false;
  }

  bool take_points(const ferry_job_point* list, std::size_t count, wire::JobPoint* out) {
    for (std::size_t i = 0; i < count; ++i) {
      if (list[i].timeline == nullptr) return is_null("a timeline");
      out[i] = {list[i].timeline->id, list[i].point};
    }
    return true;
  }

  bool take_lists(const ferry_job_options& o) {
    for (std::size_t i = 0; i < o.buffer_count; ++i) {
      if (!add_buffer(o.buffers[i].buffer, o.buffers[i].write != 0)) return false;
    }
    if (o.wait_count > wire::work_list_max) return is_too_long("waits", wire::work_list_max);
    for (std::size_t i = 0; i < o.wait_count; ++i) {
      if (o.waits[i] == nullptr) return is_null("a fence");
      job_.waits[i] = o.waits[i]->id;
    }
    job_.wait_count = static_cast<std::uint32_t>(o.wait_count);
    if (o.wait_point_count > wire::work_list_max) return is_too_long("points to wait for", wire::work_list_max);
    if (!take_points(o.wait_points, o.wait_point_count, job_.wait_points)) return false;
    job_.wait_point_count = static_cast<std::uint32_t>(o.wait_point_count);
    if (o.signal_point_count >= wire::work_list_max) return is_too_long("points to signal", wire::work_list_max - 1);
    if (!take_points(o.signal_points, o.signal_point_count, job_.signal_points)) return false;
    job_.signal_point_count = static_cast<std::uint32_t>(o.signal_point_count);
    return true;
  }

  wire::JobSubmit job_{};
  ferry_error* error_;
};

bool is_inside(const ferry_buffer& buffer, std::uint64_t offset, std::uint64_t bytes) {
  return bytes != 0 && offset <= buffer.bytes && bytes <= buffer.bytes - offset;
}

}  // namespace

ferry_fence* ferry_submit_graphics(const ferry_job_options* options, ferry_kernel kernel, const void* captures,
                                   size_t capture_bytes, uint64_t items, uint64_t items_per_wave, const char* name,
                                   ferry_error* error) {
  Session* session = open_session(nullptr, error);
  if (session == nullptr) return nullptr;
  Submission submission(core::Engine::graphics, error);
  if (!submission.take(options)) return nullptr;
  wire::JobSubmit& job = submission.job();
  if (capture_bytes > wire::capture_bytes_max) {
    fail(error, Code::bad_range, 0, "submit: %zu bytes of captures are more than the %u that a job carries",
         capture_bytes, wire::capture_bytes_max);
    return nullptr;
  }
  if (items == 0) {
    fail(error, Code::bad_range, 0, "submit: a graphics job of 0 items");
    return nullptr;
  }
  if (!zygote_has_code(reinterpret_cast<std::uintptr_t>(kernel))) {
    fail(error, Code::bad_range, 0, "submit: the function at %p is not code that the device has",
         reinterpret_cast<const void*>(kernel));
    return nullptr;
  }
  if (job.device >= session->machine.device_count) {
    fail(error, Code::bad_range, 0, "submit: there is no device %u: this machine has %u", job.device,
         session->machine.device_count);
    return nullptr;
  }
  if (attached_queues(*session, job.device, error) == nullptr) return nullptr;
  map_code_data(*session, job.device);
  const std::uint64_t waves = session->machine.cu_count * waves_per_cu_wanted;
  wire::LaunchPacket& packet = job.packet;
  packet.entry = reinterpret_cast<std::uint64_t>(kernel);
  packet.items = items;
  packet.items_per_wave = items_per_wave != 0
                              ? items_per_wave
                              : std::clamp<std::uint64_t>((items + waves - 1) / waves, 1, items_per_wave_max);
  packet.capture_bytes = static_cast<std::uint32_t>(capture_bytes);
  std::snprintf(packet.name, sizeof packet.name, "%s", name == nullptr ? "graphics" : name);
  if (capture_bytes != 0) std::memcpy(packet.captures, captures, capture_bytes);
  const unsigned device = job.device;
  ferry_fence* fence = submission.submit(*session, "submit graphics");
  if (fence != nullptr) {
    fence->prints = true;
    fence->device = device;
  }
  return fence;
}

ferry_fence* ferry_submit_copy(const ferry_job_options* options, ferry_buffer* target, uint64_t target_offset,
                               ferry_buffer* source, uint64_t source_offset, uint64_t bytes, ferry_error* error) {
  Session* session = open_session(nullptr, error);
  if (session == nullptr) return nullptr;
  Submission submission(core::Engine::copy, error);
  if (!submission.take(options) || !submission.add_buffer(source, false) || !submission.add_buffer(target, true)) {
    return nullptr;
  }
  if (!is_inside(*source, source_offset, bytes) || !is_inside(*target, target_offset, bytes)) {
    fail(error, Code::bad_range, 0,
         "submit copy: %llu bytes from %llu of %llu to %llu of %llu: nothing, or not inside the buffers",
         static_cast<unsigned long long>(bytes), static_cast<unsigned long long>(source_offset),
         static_cast<unsigned long long>(source->bytes), static_cast<unsigned long long>(target_offset),
         static_cast<unsigned long long>(target->bytes));
    return nullptr;
  }
  if (source == target && source_offset < target_offset + bytes && target_offset < source_offset + bytes) {
    fail(error, Code::bad_range, 0, "submit copy: the spans overlap");
    return nullptr;
  }
  submission.set_arguments(wire::CopyArguments{source->id, source_offset, target->id, target_offset, bytes});
  return submission.submit(*session, "submit copy");
}

ferry_fence* ferry_submit_video(const ferry_job_options* options, const ferry_video* video, ferry_buffer* target,
                                ferry_buffer* source, ferry_error* error) {
  Session* session = open_session(nullptr, error);
  if (session == nullptr) return nullptr;
  Submission submission(core::Engine::video, error);
  if (!submission.take(options) || !submission.add_buffer(source, false) || !submission.add_buffer(target, true)) {
    return nullptr;
  }
  if (video->width == 0 || video->height == 0 || video->width > side_max || video->height > side_max) {
    fail(error, Code::bad_range, 0, "submit video: %u x %u pixels (1 to %llu each way)", video->width, video->height,
         static_cast<unsigned long long>(side_max));
    return nullptr;
  }
  const bool nv12 = video->op == FERRY_VIDEO_NV12_TO_RGBA;
  const std::uint64_t source_row = nv12 ? video->width : std::uint64_t{video->width} * 4;
  const std::uint64_t target_row = std::uint64_t{video->op == FERRY_VIDEO_HALF ? video->width / 2 : video->width} * 4;
  wire::VideoArguments a{};
  a.op = static_cast<std::uint32_t>(video->op);
  a.width = video->width;
  a.height = video->height;
  a.alpha = video->alpha;
  a.source = source->id;
  a.source_offset = video->source_offset;
  a.source_pitch = video->source_pitch != 0 ? video->source_pitch : source_row;
  a.chroma_offset = video->chroma_offset != 0 ? video->chroma_offset : a.source_offset + a.source_pitch * a.height;
  a.target = target->id;
  a.target_offset = video->target_offset;
  a.target_pitch = video->target_pitch != 0 ? video->target_pitch : target_row;
  submission.set_arguments(a);
  return submission.submit(*session, "submit video");
}

ferry_code ferry_job_cancel(ferry_fence* fence, ferry_error* error) {
  ferry_error own{};
  if (tell_work(wire::MessageType::job_cancel, {fence->id, 0}, "cancel job", &own)) return FERRY_OK;
  if (error != nullptr) *error = own;
  return own.code;
}
