// Messages about buffers, fences, timelines and jobs. Everything in them is hostile: decoded, bounded, looked up among
// what the sender holds, answered with an error where wrong.
#include <algorithm>
#include <climits>
#include <cstdio>
#include <cstring>

#include "linux/futex.h"
#include "manager/manager.h"

namespace ferry::manager {
namespace {

constexpr int no_wait = 0;
/// 4 TiB: both halves of its file are far from what a file and an address space can have.
constexpr std::uint64_t buffer_pages_max = std::uint64_t{1} << 30;
constexpr std::uint64_t deadline_max_ns = 3'600'000'000'000;

template <typename Map>
auto find_handle(Map& map, std::uint64_t id) {
  const auto it = map.find(id);
  return it == map.end() ? nullptr : &it->second;
}

}  // namespace

/// False: the message is of another kind.
bool Manager::on_work(Client& client) {
  using wire::MessageType;
  const MessageType type = incoming_->type();
  switch (type) {
    case MessageType::buffer_create: buffer_create(client); return true;
    case MessageType::buffer_import:
    case MessageType::fence_import:
    case MessageType::timeline_import: import_token(client); return true;
    case MessageType::fence_merge: fence_merge(client); return true;
    case MessageType::timeline_create: timeline_create(client); return true;
    case MessageType::job_submit: job_submit(client); return true;
    case MessageType::buffer_close:
    case MessageType::buffer_map:
    case MessageType::buffer_unmap:
    case MessageType::buffer_query:
    case MessageType::buffer_export:
    case MessageType::fence_close:
    case MessageType::fence_hold:
    case MessageType::fence_deadline:
    case MessageType::fence_export:
    case MessageType::timeline_close:
    case MessageType::timeline_signal:
    case MessageType::timeline_export:
    case MessageType::job_cancel: break;
    default: return false;
  }
  wire::ObjectRef ref{};
  if (!incoming_->body(ref)) {
    misunderstood(client);
    return true;
  }
  switch (type) {
    case MessageType::buffer_close: buffer_close(client, ref); break;
    case MessageType::buffer_map: buffer_map(client, ref); break;
    case MessageType::buffer_unmap: buffer_unmap(client, ref); break;
    case MessageType::buffer_query: buffer_query(client, ref); break;
    case MessageType::fence_close: refuse_work(client, fence_close(client, ref.id)); break;
    case MessageType::fence_hold: fence_hold(client, ref.id); break;
    case MessageType::fence_deadline: fence_deadline(client, ref); break;
    case MessageType::timeline_close: timeline_close(client, ref.id); break;
    case MessageType::timeline_signal: timeline_signal(client, ref); break;
    case MessageType::job_cancel: job_cancel(client, ref.id); break;
    default: export_token(client, ref); break;
  }
  return true;
}

// --- answers ---------------------------------------------------------------------------------------------------------

void Manager::answer_work(Client& client, const wire::WorkAnswer& body, int fd) {
  const int fds[] = {fd};
  const std::span<const int> sent_fds(fds, fd >= 0 ? 1 : 0);
  const Status sent = linux::send_message(client.socket.get(), wire::MessageType::work_answer, incoming_->head.request,
                                          body, sent_fds, no_wait);
  if (!sent.ok() && !client.closing) drop_client(client, "it does not take answers");
}

/// Status ok: an answer that says no more than that.
void Manager::refuse_work(Client& client, Status status, const std::string& text) {
  wire::WorkAnswer body{};
  body.code = static_cast<std::uint32_t>(status.code);
  body.sys_errno = status.sys_errno;
  std::snprintf(body.text, sizeof body.text, "%s", text.c_str());
  answer_work(client, body);
}

// --- buffers ---------------------------------------------------------------------------------------------------------

void Manager::answer_buffer(Client& client, core::BufferId id) {
  Handle& handle = client.work.buffers.at(id);
  wire::WorkAnswer body{};
  body.id = id;
  body.slot = handle.slot;
  body.count_pages = executor_->buffer_pages(id);
  answer_work(client, body, executor_->buffer_file(id));
}

void Manager::buffer_create(Client& client) {
  wire::BufferCreate create{};
  if (!incoming_->body(create)) {
    misunderstood(client);
    return;
  }
  core::BufferSpec spec;
  spec.count_pages = create.count_pages;
  spec.implicit_sync = (create.flags & wire::buffer_no_implicit_sync) == 0;
  spec.userptr = (create.flags & wire::buffer_userptr) != 0;
  const bool home_ok = create.home == wire::to_system || create.home < client.devices.size();
  const bool size_ok = create.count_pages != 0 && create.count_pages <= buffer_pages_max;
  if (!home_ok || !size_ok || (spec.userptr && create.home != wire::to_system) ||
      (create.flags & ~(wire::buffer_no_implicit_sync | wire::buffer_userptr)) != 0) {
    refuse_work(client, Code::bad_range);
    return;
  }
  spec.home = create.home == wire::to_system ? no_device : static_cast<DeviceId>(create.home);
  if (spec.userptr) {
    spec.user_pages = {create.user_first_page, create.count_pages};
    if (!client.contains(spec.user_pages)) {
      refuse_work(client, Code::bad_range);
      return;
    }
  }
  const auto slot = client.work.buffers.size() < config_.buffers_max ? client.work.buffer_slots.take() : std::nullopt;
  if (!slot) {
    refuse_work(client, Code::no_memory,
                "this application has " + std::to_string(client.work.buffers.size()) + " buffers, the most it may");
    return;
  }
  const core::BufferId id = work_.next_id++;
  Status status = executor_->make_buffer(id, spec, client.id);
  if (status.ok()) {
    status = core_->buffer_create(now_ns_, client.id, id, spec);
    if (!status.ok()) executor_->drop_buffer(id);
  }
  if (!status.ok()) {
    client.work.buffer_slots.give(*slot);
    refuse_work(client, status);
    return;
  }
  client.work.buffers.emplace(id, Handle{*slot, 1});
  work_.buffer_holds[id] = 1;
  answer_buffer(client, id);
}

void Manager::buffer_close(Client& client, const wire::ObjectRef& ref) {
  Handle* handle = find_handle(client.work.buffers, ref.id);
  if (handle == nullptr) {
    refuse_work(client, Code::not_held);
    return;
  }
  const Status status = core_->buffer_close(now_ns_, client.id, ref.id);
  if (status.ok()) {
    if (--handle->holds == 0) {
      executor_->forget_buffer_file(client, handle->slot);
      client.work.buffer_slots.give(handle->slot);
      client.work.buffers.erase(ref.id);
    }
    drop_buffer_hold(ref.id);
  }
  refuse_work(client, status);
}

void Manager::buffer_map(Client& client, const wire::ObjectRef& ref) {
  if (find_handle(client.work.buffers, ref.id) == nullptr) {
    refuse_work(client, Code::not_held);
    return;
  }
  if (client.work.places.size() >= config_.places_max) {
    refuse_work(client, Code::no_mappings, "this application has mapped as many buffers as it may");
    return;
  }
  const PageSpan span{ref.value, executor_->buffer_pages(ref.id)};
  if (!client.contains(span) || span.first % block_pages != 0) {
    refuse_work(client, Code::bad_range);
    return;
  }
  Status status = core_->buffer_map(now_ns_, client.id, ref.id, span.first);
  if (status.ok()) {
    // What lies there by our count is of a mapping that went with its buffer's last hold.
    executor_->forget_places(client, span);
    status = executor_->add_place(client, ref.id, span);
    if (!status.ok()) {
      // Nobody knows the address yet, so nothing has to be waited for.
      const Status undone =
          core_->buffer_unmap(now_ns_, client.id, span.first, make_cookie(Request::Kind::nobody, client.id, 0));
      FERRY_CHECK(undone.ok());
    }
  }
  refuse_work(client, status);
}

void Manager::buffer_unmap(Client& client, const wire::ObjectRef& ref) {
  const std::uint64_t request = incoming_->head.request;
  const core::Cookie cookie = make_cookie(Request::Kind::unmap, client.id, request, ref.value);
  const Status status = core_->buffer_unmap(now_ns_, client.id, ref.value, cookie);
  if (!status.ok()) on_reply(cookie, status);
}

void Manager::buffer_query(Client& client, const wire::ObjectRef& ref) {
  const core::BufferInfo info = core_->buffer_info(ref.id);
  if (find_handle(client.work.buffers, ref.id) == nullptr || !info.known) {
    refuse_work(client, Code::not_held);
    return;
  }
  wire::BufferState body{};
  body.where = static_cast<std::uint8_t>(info.where);
  body.device = info.device;
  body.busy = info.busy ? 1 : 0;
  body.moving = info.moving ? 1 : 0;
  body.stale = info.stale ? 1 : 0;
  body.holders = info.holders;
  const Status sent = linux::send_message(client.socket.get(), wire::MessageType::buffer_state, incoming_->head.request,
                                          body, {}, no_wait);
  if (!sent.ok()) drop_client(client, "it does not take answers");
}

void Manager::drop_buffer_hold(core::BufferId id, std::uint32_t count) {
  const auto it = work_.buffer_holds.find(id);
  FERRY_CHECK(it != work_.buffer_holds.end() && it->second >= count);
  it->second -= count;
  if (it->second != 0) return;
  work_.buffer_holds.erase(it);
  work_.leaving.push_back(id);
}

/// Jobs may use a buffer for a while after its last hold, and taking it from processors takes time.
void Manager::drop_left_buffers() {
  std::erase_if(work_.leaving, [&](core::BufferId id) {
    if (core_->buffer_info(id).known) return false;
    executor_->drop_buffer(id);
    return true;
  });
}

// --- fences ----------------------------------------------------------------------------------------------------------

/// A handle more of a fence for the application, which then sees how it stands. False: it has as many as it may.
bool Manager::give_fence(Client& client, core::FenceId id) {
  FenceEntry& entry = work_.fences.at(id);
  if (Handle* handle = find_handle(client.work.fences, id)) {
    ++handle->holds;
    ++entry.holds;
    return true;
  }
  const auto slot = client.work.fence_slots.take();
  if (!slot) return false;
  client.work.fences.emplace(id, Handle{*slot, 1});
  ++entry.holds;
  wire::FenceSlot& word = client.control()->work.fences[*slot];
  word.state.store(static_cast<std::uint32_t>(wire::FenceState::submitted), std::memory_order_relaxed);
  show_fence(client, *slot, entry);
  return true;
}

void Manager::show_fence(Client& client, std::uint32_t slot, const FenceEntry& entry) {
  if (!entry.visible && !entry.signalled) return;
  wire::WorkPage& page = client.control()->work;
  wire::FenceSlot& word = page.fences[slot];
  auto state = wire::FenceState::visible;
  if (entry.signalled) {
    word.code = static_cast<std::uint32_t>(entry.status.code);
    word.sys_errno = entry.status.sys_errno;
    state = wire::FenceState::signalled;
  }
  word.state.store(static_cast<std::uint32_t>(state), std::memory_order_release);
  linux::futex_wake(word.state, INT_MAX);
  if (!entry.signalled) return;
  page.signals.fetch_add(1, std::memory_order_seq_cst);
  if (page.signal_sleepers.load(std::memory_order_seq_cst) != 0) linux::futex_wake(page.signals, INT_MAX);
}

void Manager::show_fence_to_all(core::FenceId id, const FenceEntry& entry) {
  for (Client* client : clients_) {
    if (client->closing) continue;
    if (const Handle* handle = find_handle(client->work.fences, id)) show_fence(*client, handle->slot, entry);
  }
}

void Manager::answer_fence(Client& client, core::FenceId id) {
  wire::WorkAnswer body{};
  body.id = id;
  body.slot = client.work.fences.at(id).slot;
  answer_work(client, body);
}

Status Manager::fence_close(Client& client, core::FenceId id) {
  Handle* handle = find_handle(client.work.fences, id);
  if (handle == nullptr) return Code::not_held;
  if (--handle->holds == 0) {
    client.work.fence_slots.give(handle->slot);
    client.work.fences.erase(id);
  }
  drop_fence_hold(id);
  return {};
}

void Manager::drop_fence_hold(core::FenceId id, std::uint32_t count) {
  const auto it = work_.fences.find(id);
  FERRY_CHECK(it != work_.fences.end() && it->second.holds >= count);
  it->second.holds -= count;
  if (it->second.holds != 0) return;
  core_->fence_forget(id);
  if (it->second.signalled) work_.fences.erase(it);
}

void Manager::fence_hold(Client& client, core::FenceId id) {
  Handle* handle = find_handle(client.work.fences, id);
  if (handle == nullptr || handle->holds == UINT32_MAX) {
    refuse_work(client, Code::not_held);
    return;
  }
  FERRY_CHECK(give_fence(client, id));
  answer_fence(client, id);
}

void Manager::fence_deadline(Client& client, const wire::ObjectRef& ref) {
  if (find_handle(client.work.fences, ref.id) == nullptr) {
    refuse_work(client, Code::not_held);
    return;
  }
  const FenceEntry& entry = work_.fences.at(ref.id);
  Status status;
  if (!entry.signalled) {
    status = core_->fence_deadline(now_ns_, ref.id, now_ns_ + std::min(ref.value, deadline_max_ns));
    // It signalled in this turn.
    if (status.code == Code::not_held) status = {};
  }
  refuse_work(client, status);
}

void Manager::fence_merge(Client& client) {
  wire::FenceMerge merge{};
  if (!incoming_->body(merge)) {
    misunderstood(client);
    return;
  }
  if (merge.count == 0 || merge.count > wire::work_list_max || merge.any > 1) {
    refuse_work(client, Code::bad_range);
    return;
  }
  std::vector<core::FenceId> parts;
  Status early;  // of parts that failed before anybody could wait for them
  bool over = false;
  for (std::uint32_t i = 0; i < merge.count; ++i) {
    if (find_handle(client.work.fences, merge.fences[i]) == nullptr) {
      refuse_work(client, Code::not_held);
      return;
    }
    const FenceEntry& part = work_.fences.at(merge.fences[i]);
    if (part.signalled) {
      if (early.ok() && !over) early = part.status;
      over = over || merge.any != 0;
    } else {
      parts.push_back(merge.fences[i]);
    }
  }
  if (client.work.arrays >= config_.arrays_max) {
    refuse_work(client, Code::no_memory,
                "this application has as many merged fences that have not signalled as it may");
    return;
  }
  const core::FenceId id = work_.next_id++;
  Status status;
  if (!over && !parts.empty()) status = core_->fence_array(now_ns_, client.id, id, parts, merge.any != 0);
  if (!status.ok()) {
    refuse_work(client, status, status.code == Code::not_held ? "the job of a part is not visible yet" : "");
    return;
  }
  FenceEntry& entry = work_.fences[id];
  entry.owner = client.id;
  entry.visible = true;
  entry.early = early;
  if (over || parts.empty()) {
    entry.signalled = true;
    entry.status = early;
  } else {
    ++client.work.arrays;
  }
  if (!give_fence(client, id)) {
    forget_new_fence(id);
    refuse_work(client, Code::no_memory, too_many_fences());
    return;
  }
  answer_fence(client, id);
}

std::string Manager::too_many_fences() {
  return "this application has " + std::to_string(wire::fence_slots) + " fences, the most it may: close some";
}

/// Nobody was told of it.
void Manager::forget_new_fence(core::FenceId id) {
  core_->fence_forget(id);
  if (work_.fences.at(id).signalled) work_.fences.erase(id);
}

/// The fence is final: everybody outside is told.
void Manager::on_fence(core::FenceId id, Status status) {
  work_.timelines_changed = true;
  const auto it = work_.fences.find(id);
  if (it == work_.fences.end() || it->second.signalled) return;
  FenceEntry& entry = it->second;
  entry.signalled = true;
  entry.status = !status.ok() || entry.early.ok() ? status : entry.early;
  if (entry.is_job) {
    executor_->drop_payload(id);
    if (Client* owner = find_client(entry.owner)) {
      close_gate(*owner, entry);
      --owner->work.jobs;
    }
  } else if (Client* owner = find_client(entry.owner)) {
    --owner->work.arrays;
  }
  show_fence_to_all(id, entry);
  for (const std::uint64_t token : entry.tokens) tell_token(work_.tokens.at(token), entry);
  if (entry.holds == 0) work_.fences.erase(it);
}

// --- timelines -------------------------------------------------------------------------------------------------------

bool Manager::give_timeline(Client& client, core::TimelineId id) {
  if (Handle* handle = find_handle(client.work.timelines, id)) {
    ++handle->holds;
    return true;
  }
  const auto slot = client.work.timeline_slots.take();
  if (!slot) return false;
  client.work.timelines.emplace(id, Handle{*slot, 1});
  wire::TimelineSlot& word = client.control()->work.timelines[*slot];
  word.value.store(core_->timeline_value(id), std::memory_order_release);
  return true;
}

void Manager::answer_timeline(Client& client, core::TimelineId id) {
  wire::WorkAnswer body{};
  body.id = id;
  body.slot = client.work.timelines.at(id).slot;
  answer_work(client, body);
}

void Manager::timeline_create(Client& client) {
  if (!incoming_->bytes().empty()) {
    misunderstood(client);
    return;
  }
  const core::TimelineId id = work_.next_id++;
  const Status status = core_->timeline_create(now_ns_, client.id, id);
  if (!status.ok()) {
    refuse_work(client, status);
    return;
  }
  if (!give_timeline(client, id)) {
    FERRY_CHECK(core_->timeline_close(now_ns_, client.id, id).ok());
    refuse_work(client, Code::no_memory,
                "this application has " + std::to_string(wire::timeline_slots) + " timelines, the most it may");
    return;
  }
  answer_timeline(client, id);
}

void Manager::timeline_close(Client& client, core::TimelineId id) {
  Handle* handle = find_handle(client.work.timelines, id);
  if (handle == nullptr) {
    refuse_work(client, Code::not_held);
    return;
  }
  const Status status = core_->timeline_close(now_ns_, client.id, id);
  if (status.ok() && --handle->holds == 0) {
    client.work.timeline_slots.give(handle->slot);
    client.work.timelines.erase(id);
  }
  refuse_work(client, status);
}

void Manager::timeline_signal(Client& client, const wire::ObjectRef& ref) {
  if (find_handle(client.work.timelines, ref.id) == nullptr) {
    refuse_work(client, Code::not_held);
    return;
  }
  if (ref.value == 0) {
    refuse_work(client, Code::bad_range);
    return;
  }
  const Status status = core_->timeline_signal(now_ns_, client.id, {ref.id, ref.value});
  // Before the answer: who has signalled a point sees it.
  work_.timelines_changed = true;
  show_timelines();
  refuse_work(client, status);
}

/// Writes where timelines stand for those that changed.
void Manager::show_timelines() {
  if (!work_.timelines_changed) return;
  work_.timelines_changed = false;
  for (Client* client : clients_) {
    if (client->closing) continue;
    for (const auto& [id, handle] : client->work.timelines) {
      wire::TimelineSlot& word = client->control()->work.timelines[handle.slot];
      const std::uint64_t value = core_->timeline_value(id);
      if (word.value.load(std::memory_order_relaxed) == value) continue;
      word.value.store(value, std::memory_order_release);
      word.changes.fetch_add(1, std::memory_order_release);
      linux::futex_wake(word.changes, INT_MAX);
    }
  }
}

}  // namespace ferry::manager
