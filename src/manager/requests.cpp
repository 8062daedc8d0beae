// Messages of connections. Everything in them is hostile: decoded, bounded, answered with an error where wrong.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <utility>

#include "manager/limits.h"
#include "manager/log.h"
#include "manager/manager.h"

namespace ferry::manager {
namespace {
constexpr int no_wait = 0;
/// Messages of one connection before the others have their turn.
constexpr unsigned messages_a_turn = 16;
/// Messages that make no sense before their sender is let go.
constexpr std::uint32_t garbage_messages_max = messages_a_turn;
/// 1 TiB. Under a budget each block of an allocation is looked at, while everybody waits.
constexpr std::uint64_t budgeted_alloc_pages_max = std::uint64_t{1} << 28;
}  // namespace

void Manager::on_connection(Client& client) {
  for (unsigned i = 0; i < messages_a_turn && !client.closing; ++i) {
    const linux::Receive received = linux::receive_message(client.socket.get(), *incoming_, no_wait);
    if (received == linux::Receive::nothing) return;
    on_received(client, received);
    sweep_descriptors();
  }
}

void Manager::on_received(Client& client, linux::Receive received) {
  switch (received) {
    case linux::Receive::message: on_message(client); return;
    case linux::Receive::nothing: return;
    case linux::Receive::closed: close_client(client, nullptr); return;
    case linux::Receive::no_room:
    case linux::Receive::bad:
      refuse(client, Code::bad_message, "this is no message of Ferry's");
      close_client(client, "it sent what is no message");
      return;
    case linux::Receive::version:
      refuse(client, Code::bad_version, "another version of the protocol");
      close_client(client, "it speaks another version of the protocol");
      return;
  }
}

void Manager::on_message(Client& client) {
  if (on_administration(client)) return;
  if (!client.greeted) {
    if (incoming_->type() == wire::MessageType::hello) {
      hello(client);
      return;
    }
    refuse(client, Code::bad_message, "say hello first");
    close_client(client, "it did not say hello");
    return;
  }
  on_request(client);
}

bool Manager::on_administration(Client& client) {
  const std::uint64_t request = incoming_->head.request;
  switch (incoming_->type()) {
    case wire::MessageType::stats: {
      const Status sent =
          linux::send_text(client.socket.get(), wire::MessageType::reply_text, request, to_json(document()), no_wait);
      if (!sent.ok()) drop_client(client, "it does not take answers");
      return true;
    }
    case wire::MessageType::explain: {
      wire::Span span{};
      if (!incoming_->body(span)) {
        answer(client, request, Code::bad_message);
        return true;
      }
      const auto found = std::find_if(clients_.begin(), clients_.end(), [&](const Client* c) {
        return static_cast<std::uint32_t>(c->process.pid()) == span.pid && !c->closing;
      });
      if (found == clients_.end()) {
        answer(client, request, Code::client_gone);
      } else {
        send_residency(client, request, **found, span.first_page);
      }
      return true;
    }
    case wire::MessageType::shutdown:
      // Answered when the files are written.
      shutdown_serial_ = client.serial;
      shutdown_request_ = request;
      stopping_ = true;
      return true;
    default: return false;
  }
}

void Manager::on_request(Client& client) {
  const std::uint64_t request = incoming_->head.request;
  switch (incoming_->type()) {
    case wire::MessageType::attach_device: attach_device(client); return;
    case wire::MessageType::device_control: device_control(client); return;
    case wire::MessageType::fork_begin: fork_begin(client); return;
    case wire::MessageType::fork_goes: executor_->fork_goes(client); return;
    case wire::MessageType::fork_end: fork_end(client); return;
    default: break;
  }
  if (client.unanswered() >= requests_max && !too_much(client)) return;
  if (on_work(client) || on_svm(client) || on_change(client) || on_adoption(client) || on_files(client)) return;
  wire::Span span{};
  if (!incoming_->body(span)) {
    misunderstood(client);
    return;
  }
  const PageSpan pages{span.first_page, span.count_pages};
  if (!client.contains(pages)) {
    answer(client, request, Code::bad_range);
    return;
  }
  switch (incoming_->type()) {
    case wire::MessageType::alloc: {
      if (config_.machine.system_bytes != 0 && pages.count_pages > budgeted_alloc_pages_max) {
        answer(client, request, Code::no_memory);
        return;
      }
      if (client.spans.size() >= spans_max) {
        answer(client, request, Code::no_memory);
        return;
      }
      if (client.is_adopted(pages.first)) {
        allocate_adopted(client, pages, span.flags);
        return;
      }
      const bool in_system = (span.flags & wire::span_place_system) != 0;
      const Status s =
          core_->alloc(now_ns_, client.id, pages, in_system ? core::Placement::system : core::Placement::automatic);
      if (s.ok()) {
        const bool has_contents = (span.flags & wire::span_has_contents) != 0;
        add_span(client, pages, has_contents, (span.flags & wire::span_converts) != 0);
      }
      answer(client, request, s);
      return;
    }
    case wire::MessageType::converted:
      if (config_.machine.system_bytes != 0) count_converted(client, pages);
      answer(client, request, {});
      return;
    case wire::MessageType::free: {
      // Not awaited: who frees may be who is to unpin.
      if (core_->is_pinned(client.id, pages)) {
        answer(client, request, Code::in_use);
        return;
      }
      if (splits_too_many(client, pages)) {
        answer(client, request, Code::no_memory);
        return;
      }
      if (executor_->give_children(client, pages)) {
        free_span(client, pages, request);
      } else {
        ++client.work.late;
        late_frees_.push_back({client.id, pages, request, false, {}});
      }
      return;
    }
    case wire::MessageType::prefetch: {
      if (span.device != wire::to_system && span.device >= client.devices.size()) {
        answer(client, request, Code::bad_range);
        return;
      }
      const core::Cookie cookie = make_cookie(Request::Kind::answer, client.id, request);
      const DeviceId device = span.device == wire::to_system ? no_device : static_cast<DeviceId>(span.device);
      const Status s = core_->prefetch(now_ns_, client.id, pages, device, cookie);
      if (!s.ok()) on_reply(cookie, s);
      return;
    }
    case wire::MessageType::query: send_residency(client, request, client, pages.first); return;
    default: misunderstood(client); return;
  }
}

/// The application waits for as many requests as it may. True: the message is none that could wait.
bool Manager::too_much(Client& client) {
  switch (incoming_->type()) {
    case wire::MessageType::alloc:
    case wire::MessageType::free:
    case wire::MessageType::prefetch:
    case wire::MessageType::change:
    case wire::MessageType::adopt_begin:
    case wire::MessageType::adopt_settle:
    case wire::MessageType::release:
    case wire::MessageType::file_drop:
    case wire::MessageType::buffer_unmap: answer(client, incoming_->head.request, Code::no_memory); return false;
    default: return true;  // those of svm_requests.cpp say so themselves
  }
}

/// Taking the pages out would leave two pieces where one is, and there are as many as there may be.
bool Manager::splits_too_many(const Client& client, PageSpan pages) {
  if (client.spans.size() < spans_max) return false;
  const auto it = client.spans.lower_bound(pages.first);
  return it != client.spans.begin() && std::prev(it)->first + std::prev(it)->second > pages.end();
}

void Manager::free_span(Client& client, PageSpan pages, std::uint64_t request) {
  const core::Cookie cookie = make_cookie(Request::Kind::answer, client.id, request);
  Status s = core_->free(now_ns_, client.id, pages, cookie);
  if (s.code == Code::not_allocated) {
    // Parts of it may have been unmapped before.
    s = core_->change(now_ns_, client.id, core::Change::unmap, pages, 0, 0, cookie);
    tell_changes(client);
  }
  if (!s.ok()) {
    on_reply(cookie, s);
    return;
  }
  remove_span(client, pages);
}

/// What came with a message and was not taken. REQUIRES, of everybody who receives one: called when it has been dealt with.
void Manager::sweep_descriptors() {
  for (unsigned i = 0; i < incoming_->fd_count; ++i) closer_->close(std::move(incoming_->fds[i]));
  incoming_->fd_count = 0;
}

void Manager::misunderstood(Client& client) {
  answer(client, incoming_->head.request, Code::bad_message);
  if (++client.garbage > garbage_messages_max) drop_client(client, "it sends messages that are not understood");
}

/// Memory that had contents before it was managed: what of it the file has is charged as if it had just been touched.
void Manager::count_converted(Client& client, PageSpan pages) {
  executor_->steer(client, pages);
  const std::uint64_t granule = config_.machine.granule_bytes();
  const std::uint64_t end = pages.end() * page_bytes;
  for (std::uint64_t at = pages.first * page_bytes; at < end;) {
    at = linux::next_data(client.system_file.get(), at, end);
    if (at >= end) return;
    core_->cpu_fault(now_ns_, client.id, at / page_bytes, Access::write);
    at = (at / granule + 1) * granule;
  }
}

/// The core has it. `converts`: it is mapped from the system file later, and said then.
void Manager::add_span(Client& client, PageSpan pages, bool has_contents, bool converts) {
  client.spans.emplace(pages.first, pages.count_pages);
  client.blocks.for_each(pages,
                         [&](BlockIndex index, BlockState& b) { b.managed |= BlockTable::mask_in(index, pages); });
  if (config_.machine.system_bytes == 0) return;
  if (has_contents) {
    count_converted(client, pages);
  } else if (!converts) {
    executor_->steer(client, pages);
  }
}

/// The pages are no longer the client's. Pages of neighbours in the same entry stay.
void Manager::remove_span(Client& client, PageSpan pages) {
  client.own_protections.cut(pages);
  auto it = client.spans.upper_bound(pages.first);
  if (it != client.spans.begin()) --it;
  while (it != client.spans.end() && it->first < pages.end()) {
    const Page first = it->first;
    const Page end = first + it->second;
    if (end <= pages.first) {
      ++it;
      continue;
    }
    it = client.spans.erase(it);
    if (first < pages.first) client.spans.emplace(first, pages.first - first);
    if (end > pages.end()) it = client.spans.emplace(pages.end(), end - pages.end()).first;
  }
  client.blocks.for_each(pages,
                         [&](BlockIndex index, BlockState& b) { b.managed.remove(BlockTable::mask_in(index, pages)); });
}

// --- answers ---------------------------------------------------------------------------------------------------------

core::Cookie Manager::make_cookie(Request::Kind kind, ClientId client, std::uint64_t number, Page page) {
  if (free_requests_.empty()) {
    requests_.emplace_back();
    free_requests_.push_back(static_cast<std::uint32_t>(requests_.size() - 1));
  }
  const std::uint32_t index = free_requests_.back();
  free_requests_.pop_back();
  requests_[index] = {kind, client, number, page};
  if (requests_[index].is_asked()) {
    if (Client* c = find_client(client)) ++c->work.asked;
  }
  return {index + 1U};
}

/// The core did not take it.
void Manager::forget_cookie(core::Cookie cookie) {
  const auto index = static_cast<std::uint32_t>(cookie.value - 1);
  if (requests_[index].is_asked()) {
    if (Client* c = find_client(requests_[index].client)) --c->work.asked;
  }
  requests_[index].kind = Request::Kind::none;
  free_requests_.push_back(index);
}

void Manager::on_reply(core::Cookie cookie, Status status) {
  const auto index = static_cast<std::uint32_t>(cookie.value - 1);
  FERRY_CHECK_LT(index, requests_.size());
  const Request request = requests_[index];
  if (request.kind == Request::Kind::none) return;  // its client has been forgotten
  requests_[index].kind = Request::Kind::none;
  free_requests_.push_back(index);
  if (request.kind == Request::Kind::job) {
    job_visible(request.number, status);
    return;
  }
  Client* client = find_client(request.client);
  if (client == nullptr) return;
  if (request.is_asked()) --client->work.asked;
  if (request.kind == Request::Kind::unmapped) {
    unmapped_done(*client, request);
    return;
  }
  if (request.kind == Request::Kind::go_home) {
    going_home(*client, request);
    return;
  }
  if (request.kind == Request::Kind::come_home) {
    came_home(*client, request);
    return;
  }
  switch (request.kind) {
    case Request::Kind::gone: forget(*client); return;
    case Request::Kind::svm:
      if (client->closing) return;
      client->letting != 0 ? hold_answer(*client, request.number, status) : answer(*client, request.number, status);
      return;
    case Request::Kind::fork: fork_frozen(*client, request.number, status); return;
    case Request::Kind::unmap:
      if (status.ok() && !client->closing) executor_->remove_place(*client, request.page);
      [[fallthrough]];
    case Request::Kind::answer:
      if (!client->closing) answer(*client, request.number, status);
      return;
    default: return;
  }
}

void Manager::hold_answer(Client& client, std::uint64_t request, Status status) {
  if (client.held_answers.empty()) holding_.push_back(client.id);
  client.held_answers.push_back({request, status});
}

/// After the core's actions: answers what was held back for them.
void Manager::answer_held() {
  std::erase_if(holding_, [&](ClientId id) {
    Client* client = find_client(id);
    if (client != nullptr && !client->closing && client->letting != 0) return false;
    if (client == nullptr) return true;
    for (const Client::HeldAnswer& held : std::exchange(client->held_answers, {})) {
      if (!client->closing) answer(*client, held.request, held.status);
    }
    return true;
  });
}

void Manager::answer(Client& client, std::uint64_t request, Status status) {
  wire::Done body{};
  body.code = static_cast<std::uint32_t>(status.code);
  body.sys_errno = status.sys_errno;
  const Status sent = linux::send_message(client.socket.get(), wire::MessageType::done, request, body, {}, no_wait);
  // A peer that never reads fills its socket; it gets no more of this manager's memory than that.
  if (!sent.ok() && !client.closing) drop_client(client, "it does not take answers");
}

void Manager::refuse(Client& client, Code code, const char* text) {
  wire::Refused body{};
  body.code = static_cast<std::uint32_t>(code);
  body.version = wire::wire_version;
  std::snprintf(body.text, sizeof body.text, "%s", text);
  [[maybe_unused]] const Status sent =
      linux::send_message(client.socket.get(), wire::MessageType::refused, 0, body, {}, no_wait);
}

void Manager::send_residency(Client& to, std::uint64_t request, const Client& about, Page page) {
  if (page >= about.page_end()) {
    answer(to, request, Code::bad_range);
    return;
  }
  const core::Residency r = core_->query(about.id, page);
  if (!r.allocated) {
    answer(to, request, Code::not_allocated);
    return;
  }
  wire::PageResidency body{};
  body.client = about.id;
  body.allocated = 1;
  body.system_current = r.system_current ? 1 : 0;
  body.vram_device = r.vram_device;
  body.dirty = r.dirty ? 1 : 0;
  body.cpu_may_map = r.cpu_may_map ? 1 : 0;
  body.moving = r.moving ? 1 : 0;
  body.contended = r.contended ? 1 : 0;
  body.cause = static_cast<std::uint8_t>(r.last_move_cause);
  body.device_mapped = r.device_mapped;
  body.device_writable = r.device_writable;
  body.copies = r.copies;
  body.last_move_age_ns = r.last_move_ns == 0 ? ~std::uint64_t{0} : now_ns_ - r.last_move_ns;
  const Status sent = linux::send_message(to.socket.get(), wire::MessageType::residency, request, body, {}, no_wait);
  if (!sent.ok()) drop_client(to, "it does not take answers");
}

StatsDocument Manager::document() const {
  StatsDocument d;
  d.stats = core_->stats();
  d.machine = config_.machine;
  d.time = time_;
  recorder_->series().times(now_ns_, d.time);
  d.time.copy_to_vram_ns = executor_->copy_to_vram_ns;
  d.time.copy_to_system_ns = executor_->copy_to_system_ns;
  d.clients = static_cast<unsigned>(
      std::count_if(clients_.begin(), clients_.end(), [](const Client* c) { return !c->closing; }));
  d.kernels = recorder_->series().kernels();
  const StoreClient& store = executor_->store_client();
  if (store.get() != nullptr) d.store.stats = store.get()->stats();
  d.store.store_ns = store.store_ns;
  d.store.load_ns = store.load_ns;
  d.store.pressure_events = pressure_events_;
  d.store.pressure_pages = pressure_pages_;
  return d;
}

}  // namespace ferry::manager
