// Messages about attributes, moves on request, pins and events. Everything in them is hostile: decoded, bounded, answered
// with an error where wrong: which line, which value.
#include <algorithm>
#include <cstdio>

#include "linux/userfaultfd.h"
#include "manager/limits.h"
#include "manager/log.h"
#include "manager/manager.h"
#include "manager/svm_text.h"

namespace ferry::manager {
namespace {

using wire::MessageType;

constexpr int no_wait = 0;

}  // namespace

/// False: the message is of another kind.
bool Manager::on_svm(Client& client) {
  const MessageType type = incoming_->type();
  switch (type) {
    case MessageType::svm_set: svm_list(client, true); return true;
    case MessageType::svm_get: svm_list(client, false); return true;
    case MessageType::retry_faults: retry_faults(client); return true;
    case MessageType::attributes_run: attributes_run(client); return true;
    case MessageType::group_create:
    case MessageType::group_destroy:
    case MessageType::group_assign:
    case MessageType::group_migration: on_group(client, type); return true;
    case MessageType::events_open: events_open(client); return true;
    case MessageType::events_close: {
      wire::EventsRef ref{};
      if (incoming_->body(ref)) {
        refuse_svm(client, recorder_->streams().close(client.id, ref.stream));
      } else {
        misunderstood(client);
      }
      return true;
    }
    case MessageType::svm_reset:
    case MessageType::migrate_async:
    case MessageType::populate:
    case MessageType::svm_discard:
    case MessageType::pin:
    case MessageType::unpin: on_svm_span(client, type); return true;
    default: return false;
  }
}

// --- answers ---------------------------------------------------------------------------------------------------------

void Manager::answer_svm(Client& client, const wire::SvmAnswer& body, std::span<const int> fds) {
  const Status sent =
      linux::send_message(client.socket.get(), MessageType::svm_answer, incoming_->head.request, body, fds, no_wait);
  if (!sent.ok() && !client.closing) drop_client(client, "it does not take answers");
}

/// Status ok: an answer that says no more than that.
void Manager::refuse_svm(Client& client, Status status, const std::string& text) {
  wire::SvmAnswer body{};
  body.code = static_cast<std::uint32_t>(status.code);
  body.sys_errno = status.sys_errno;
  std::snprintf(body.text, sizeof body.text, "%s", text.c_str());
  answer_svm(client, body);
}

/// An answer that may let CPU threads touch pages again: not before they can.
void Manager::end_letting(Client& client, Status status) {
  if (status.ok() && client.refused_pages != 0 && client.held_answers.size() < requests_max) {
    hold_answer(client, incoming_->head.request, status);
  } else {
    refuse_svm(client, status);
  }
}

/// The core took the request, and its reply will be the answer; or it did not, and this is.
void Manager::end_svm(Client& client, core::Cookie cookie, Status status, const std::string& text) {
  if (status.ok()) {
    return;
  }
  forget_cookie(cookie);
  refuse_svm(client, status, text);
}

/// False, and the message is answered: there can be no such pages.
bool Manager::svm_span(Client& client, PageSpan pages) {
  if (!client.contains(pages)) {
    refuse_svm(client, Code::bad_range,
               pages.count_pages == 0 ? "a span of no pages" : "the span is not within managed memory");
    return false;
  }
  if (client.unanswered() >= requests_max) {
    refuse_svm(client, Code::no_memory, "this application waits for as many requests as it may");
    return false;
  }
  return true;
}

// --- attributes ------------------------------------------------------------------------------------------------------

void Manager::svm_list(Client& client, bool set) {
  wire::SvmList list;
  if (!incoming_->body(list)) {
    misunderstood(client);
    return;
  }
  const PageSpan pages{list.first_page, list.count_pages};
  if (!svm_span(client, pages)) return;
  if (list.count == 0 || list.count > wire::svm_lines_max) {
    refuse_svm(
        client, Code::bad_range,
        std::to_string(list.count) + " attributes (1 to " + std::to_string(wire::svm_lines_max) + " are allowed)");
    return;
  }
  std::vector<core::Attribute> lines;
  lines.reserve(list.count);
  for (std::uint32_t i = 0; i < list.count; ++i) lines.push_back(attribute_of(list.lines[i]));
  unsigned wrong = ~0U;
  const auto why = [&](Status status) {
    if (wrong >= list.count) return std::string();
    return text_of_wrong(wrong, list.lines[wrong], status, static_cast<unsigned>(client.devices.size()), set);
  };
  if (set && !linux::can_poison()) {
    for (std::uint32_t i = 0; i < list.count; ++i) {
      if (lines[i].type != core::AttributeType::clr_flags || (lines[i].value & core::svm_host_access) == 0) continue;
      refuse_svm(client, Code::unsupported,
                 text_of_wrong(i, list.lines[i], Code::unsupported, static_cast<unsigned>(client.devices.size()), set));
      return;
    }
  }
  if (set) {
    const core::Cookie cookie = make_cookie(Request::Kind::svm, client.id, incoming_->head.request);
    const Status status = core_->svm_set(now_ns_, client.id, pages, lines, cookie, wrong);
    end_svm(client, cookie, status, status.ok() ? std::string() : why(status));
    return;
  }
  const Status status = core_->svm_get(client.id, pages, lines, wrong);
  if (!status.ok()) {
    refuse_svm(client, status, why(status));
    return;
  }
  wire::SvmAnswer body{};
  body.count = list.count;
  for (std::uint32_t i = 0; i < list.count; ++i) body.values[i] = lines[i].value;
  answer_svm(client, body);
}

void Manager::retry_faults(Client& client) {
  wire::RetryFaults wanted{};
  if (!incoming_->body(wanted)) {
    misunderstood(client);
    return;
  }
  if (wanted.mode < -1 || wanted.mode > 1) {
    refuse_svm(client, Code::bad_range, std::to_string(wanted.mode) + " is no mode (1 on, 0 off, -1 ask)");
    return;
  }
  wire::SvmAnswer body{};
  body.count = 1;
  body.values[0] = core_->retry_faults(client.id, 0) ? 1 : 0;
  if (wanted.mode >= 0) {
    // An application that has a device for itself is said to want all its units all the time, so that launches need no
    // manager: what it wants at this moment is asked its devices now.
    for (DeviceId d = 0; d < client.devices.size(); ++d) {
      DevicePeer& peer = client.devices[d];
      if (peer.state != DeviceState::attached) continue;
      std::atomic_thread_fence(std::memory_order_seq_cst);
      peer.demand = std::min<unsigned>(static_cast<unsigned>(peer.cus.size()),
                                       peer.control()->units.demand.load(std::memory_order_relaxed));
      core_->compute_demand(now_ns_, client.id, d, peer.demand);
    }
    const Status status = core_->set_retry_faults(now_ns_, client.id, wanted.mode == 1);
    for (DeviceId d = 0; d < client.devices.size(); ++d) {
      if (client.devices[d].state == DeviceState::attached) tell_demand(client, d);
    }
    if (!status.ok()) {
      refuse_svm(client, status,
                 status.code == Code::in_use ? "kernels of this application run or wait"
                 : status.code == Code::unsupported
                     ? "a device of this machine has no retry faults, or cannot do without"
                     : "");
      return;
    }
  }
  answer_svm(client, body);
}

// --- spans -----------------------------------------------------------------------------------------------------------

void Manager::attributes_run(Client& client) {
  wire::Span span{};
  if (!incoming_->body(span)) {
    misunderstood(client);
    return;
  }
  if (!svm_span(client, {span.first_page, span.count_pages})) return;
  constexpr std::uint64_t pages_most = 16 * block_pages;  // of one answer: others wait meanwhile
  const core::Attributes first = core_->attributes(client.id, span.first_page);
  std::uint64_t count = 1;
  while (count < std::min(span.count_pages, pages_most) &&
         core_->attributes(client.id, span.first_page + count) == first) {
    ++count;
  }
  wire::SvmAnswer body{};
  body.count = 7;
  const std::uint32_t values[] = {static_cast<std::uint32_t>(count),
                                  first == core::Attributes{} ? 1U : 0U,
                                  first.preferred,
                                  first.prefetch,
                                  first.granularity,
                                  first.flags,
                                  first.access};
  std::copy(std::begin(values), std::end(values), body.values);
  answer_svm(client, body);
}

void Manager::on_svm_span(Client& client, MessageType type) {
  wire::Span span{};
  if (!incoming_->body(span)) {
    misunderstood(client);
    return;
  }
  const PageSpan pages{span.first_page, span.count_pages};
  if (!svm_span(client, pages)) return;
  if (span.device != wire::to_system && span.device >= client.devices.size()) {
    refuse_svm(client, Code::bad_range,
               "there is no device " + std::to_string(span.device) + ": this machine has " +
                   std::to_string(client.devices.size()));
    return;
  }
  const DeviceId device = span.device == wire::to_system ? no_device : static_cast<DeviceId>(span.device);
  if (type == MessageType::migrate_async) {
    migrate_async(client, pages, device);
    return;
  }
  if (type == MessageType::unpin) {
    const Status status = core_->unpin(now_ns_, client.id, pages);
    if (status.ok()) unpinned(client, pages);
    end_letting(client, status);
    return;
  }
  if (type == MessageType::svm_discard && !executor_->give_children(client, pages)) {
    // A child needs what only the store has: the contents may be dropped, and need not be.
    refuse_svm(client, {});
    return;
  }
  const core::Cookie cookie = make_cookie(Request::Kind::svm, client.id, incoming_->head.request);
  Status status;
  switch (type) {
    case MessageType::svm_reset: status = core_->svm_reset(now_ns_, client.id, pages, cookie); break;
    case MessageType::populate: status = core_->populate(now_ns_, client.id, pages, device, cookie); break;
    case MessageType::pin:
      // Memory that is being given back would be kept from it.
      status =
          client.is_releasing(pages) ? Status(Code::in_use) : core_->pin(now_ns_, client.id, pages, device, cookie);
      break;
    default:
      status = core_->change(now_ns_, client.id, core::Change::lazy_free, pages, 0, core::span_all, cookie);
      break;
  }
  end_svm(client, cookie, status);
}

void Manager::migrate_async(Client& client, PageSpan pages, DeviceId device) {
  if (client.work.arrays >= config_.arrays_max) {
    refuse_svm(client, Code::no_memory, "this application has as many moves under way as it may");
    return;
  }
  const core::FenceId id = work_.next_id++;
  const Status status = core_->migrate(now_ns_, client.id, pages, device, id);
  if (!status.ok()) {
    refuse_svm(client, status);
    return;
  }
  FenceEntry& entry = work_.fences[id];
  entry.owner = client.id;
  // Memory management may not wait for it: not visible before all has moved, and no job may wait for it before.
  ++client.work.arrays;
  if (!give_fence(client, id)) {
    core_->fence_forget(id);
    refuse_svm(client, Code::no_memory, too_many_fences());
    return;
  }
  answer_fence(client, id);
}

// --- range groups ----------------------------------------------------------------------------------------------------

void Manager::on_group(Client& client, MessageType type) {
  std::set<std::uint32_t>& groups = client.work.groups;
  if (type == MessageType::group_create) {
    if (groups.size() >= config_.groups_max || client.work.next_group == 0) {
      refuse_svm(client, Code::no_memory, "this application has as many range groups as it may");
      return;
    }
    wire::SvmAnswer body{};
    body.count = 1;
    body.values[0] = client.work.next_group;
    groups.insert(client.work.next_group++);
    answer_svm(client, body);
    return;
  }
  wire::GroupRef ref{};
  if (!incoming_->body(ref)) {
    misunderstood(client);
    return;
  }
  const bool none = type == MessageType::group_assign && ref.group == 0;
  if (!none && !groups.contains(ref.group)) {
    refuse_svm(client, Code::not_held, "there is no range group " + std::to_string(ref.group));
    return;
  }
  if (type == MessageType::group_assign) {
    const PageSpan pages{ref.first_page, ref.count_pages};
    if (svm_span(client, pages)) end_letting(client, core_->group_assign(now_ns_, client.id, pages, ref.group));
    return;
  }
  if (type == MessageType::group_migration && ref.value > 1) {
    refuse_svm(client, Code::bad_range, "migration is allowed (1) or not (0)");
    return;
  }
  // A group that is no more forbids nothing; as its number is never given again, its pages are as those of none.
  const bool allowed = type == MessageType::group_destroy || ref.value == 1;
  const Status status = core_->group_migration(now_ns_, client.id, ref.group, allowed);
  if (type == MessageType::group_destroy && status.ok()) groups.erase(ref.group);
  end_letting(client, status);
}

// --- events ----------------------------------------------------------------------------------------------------------

void Manager::events_open(Client& client) {
  wire::EventsOpen open{};
  if (!incoming_->body(open)) {
    misunderstood(client);
    return;
  }
  constexpr std::uint64_t known = (std::uint64_t{1} << wire::event_type_count) - 1;
  if (open.mask == 0 || (open.mask & ~known) != 0) {
    refuse_svm(client, Code::bad_range,
               open.mask == 0 ? "no kind of event is asked for" : "there are no such kinds of events");
    return;
  }
  auto opened = recorder_->streams().open(client.id, {client.window_base, client.window_bytes}, open.mask);
  if (!opened) {
    refuse_svm(client, opened.status(),
               opened.status().sys_errno == 0 ? "this application reads as many streams of events as it may" : "");
    return;
  }
  wire::SvmAnswer body{};
  body.count = 1;
  body.values[0] = opened.value().stream;
  const int fds[] = {opened.value().ring.get(), opened.value().reader.get(), opened.value().waker.get()};
  answer_svm(client, body, fds);
}

}  // namespace ferry::manager
