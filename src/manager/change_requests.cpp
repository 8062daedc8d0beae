// What applications do to their address space, as requests.
#include "core/svm/types.h"
#include "manager/limits.h"
#include "manager/manager.h"

namespace ferry::manager {

/// False: the message is about something else.
bool Manager::on_change(Client& client) {
  const std::uint64_t request = incoming_->head.request;
  if (incoming_->type() == wire::MessageType::changed) {
    wire::Span span{};
    if (!incoming_->body(span)) {
      misunderstood(client);
      return true;
    }
    const PageSpan pages{span.first_page, span.count_pages};
    const bool fits = client.contains(pages);
    if (fits) executor_->mapped_over(client, pages);
    answer(client, request, fits ? Status() : Status(Code::bad_range));
    return true;
  }
  if (incoming_->type() != wire::MessageType::change) return false;
  wire::Change body{};
  if (!incoming_->body(body)) {
    misunderstood(client);
    return true;
  }
  const PageSpan pages{body.first_page, body.count_pages};
  if (!client.contains(pages) || body.change >= core::change_count || body.prot > core::span_all) {
    answer(client, request, Code::bad_range);
    return true;
  }
  // Not awaited: who unmaps may be who is to unpin.
  if (static_cast<core::Change>(body.change) == core::Change::unmap && core_->is_pinned(client.id, pages)) {
    answer(client, request, Code::in_use);
    return true;
  }
  if (body.change == static_cast<std::uint32_t>(core::Change::move) &&
      (body.to_page > ~body.count_pages || !client.contains({body.to_page, body.count_pages}))) {
    answer(client, request, Code::bad_range);
    return true;
  }
  // To where it is: nothing moves, and the answer says whether it might.
  if (body.change == static_cast<std::uint32_t>(core::Change::move) && body.to_page == body.first_page) {
    answer(client, request, core_->is_pinned(client.id, pages) ? Status(Code::in_use) : Status());
    return true;
  }
  const bool splits = static_cast<core::Change>(body.change) == core::Change::unmap && splits_too_many(client, pages);
  const bool protects = static_cast<core::Change>(body.change) == core::Change::protect;
  if (splits || (protects && client.own_protections.size() >= protections_max)) {
    answer(client, request, Code::no_memory);
    return true;
  }
  if (!children_have(client, body)) {
    ++client.work.late;
    late_frees_.push_back({client.id, pages, request, true, body});
  } else {
    make_change(client, body, request);
  }
  return true;
}

/// Children of a fork have the pages as they are now, and one that begins is over where that matters.
bool Manager::children_have(Client& client, const wire::Change& body) {
  const auto change = static_cast<core::Change>(body.change);
  if (change == core::Change::protect) return true;
  const bool own = executor_->give_children(client, {body.first_page, body.count_pages});
  if (change != core::Change::move) return own;
  // Its bytes go elsewhere with no mapping that would tell the fork.
  return executor_->give_children(client, {body.to_page, body.count_pages}) && own && client.gate == nullptr;
}

/// Memory that nobody may write, just allocated: answers the allocation.
void Manager::protect_new(Client& client, PageSpan pages, std::uint64_t request) {
  wire::Change body{};
  body.first_page = pages.first;
  body.count_pages = pages.count_pages;
  body.change = static_cast<std::uint32_t>(core::Change::protect);
  body.prot = core::span_read;
  make_change(client, body, request);
}

void Manager::make_change(Client& client, const wire::Change& body, std::uint64_t request) {
  const PageSpan pages{body.first_page, body.count_pages};
  const auto change = static_cast<core::Change>(body.change);
  const core::Cookie cookie = make_cookie(Request::Kind::answer, client.id, request);
  const Status s =
      core_->change(now_ns_, client.id, change, pages, body.to_page, static_cast<std::uint8_t>(body.prot), cookie);
  if (!s.ok()) {
    on_reply(cookie, s);
    return;
  }
  if (change == core::Change::unmap) {
    remove_span(client, pages);
    tell_changes(client);
  } else if (change == core::Change::protect) {
    executor_->protected_by_application(client, pages, body.prot == core::span_all);
  }
}

/// Its devices name this number in their faults.
void Manager::tell_changes(Client& client) {
  const std::uint64_t number = core_->changes(client.id);
  for (DevicePeer& peer : client.devices) {
    if (wire::DeviceControl* control = peer.control(); control != nullptr) {
      control->changes.store(number, std::memory_order_release);
    }
  }
}

}  // namespace ferry::manager
