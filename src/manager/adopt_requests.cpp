// Memory outside the window: what the application says of it (wire/adopt.h).
#include <sys/epoll.h>

#include <algorithm>

#include "linux/memory_file.h"
#include "manager/manager.h"

namespace ferry::manager {
namespace {

/// What of Request::Kind::unmapped is answered.
constexpr std::uint64_t is_gone = 0;
constexpr std::uint64_t is_out_of_reach = 1;

}  // namespace

bool Manager::on_adoption(Client& client) {
  switch (incoming_->type()) {
    case wire::MessageType::adopt_faults: {
      wire::AdoptFaults body{};
      const bool well = incoming_->body(body) && incoming_->fd_count == 1 && !client.outside_userfault;
      auto userfault = well ? linux::Userfaultfd::adopt(std::move(incoming_->fds[0]), linux::Userfaultfd::Tells::unmaps)
                            : Code::bad_message;
      if (userfault) {
        client.outside_userfault = std::move(userfault).value();
        watch(client.outside_userfault.fd(), Source::userfault, &client, no_device, EPOLLIN);
      }
      answer(client, incoming_->head.request, userfault.status());
      return true;
    }
    case wire::MessageType::adopt_answer: {
      wire::AdoptAnswer body{};
      if (incoming_->body(body)) {
        executor_->on_adopt_answer(client, body);
      } else {
        misunderstood(client);
      }
      return true;
    }
    case wire::MessageType::adopt_settle: {
      wire::AdoptFaults body{};
      if (incoming_->body(body)) {
        settle_unmaps(client);
      } else {
        misunderstood(client);
      }
      return true;
    }
    case wire::MessageType::adopt_begin:
    case wire::MessageType::release:
    case wire::MessageType::released: {
      wire::Span span{};
      if (!incoming_->body(span)) {
        misunderstood(client);
        return true;
      }
      const PageSpan pages{span.first_page, span.count_pages};
      if (!client.contains(pages) || !client.is_adopted(pages.first)) {
        answer(client, incoming_->head.request, Code::bad_range);
      } else if (incoming_->type() == wire::MessageType::adopt_begin) {
        begin_adoption(client, pages, span.flags);
      } else if (incoming_->type() == wire::MessageType::release) {
        release(client, pages);
      } else {
        released(client, pages, span.flags);
      }
      return true;
    }
    default: return false;
  }
}

bool Manager::poll_outside(Client& client) {
  if (!Executor::read_outside(client)) {
    drop_client(client, "its userfaultfd cannot be read");
    return false;
  }
  if (client.told.empty()) {
    note_unmapping(client);
    return false;
  }
  const std::vector<Client::Told> told = std::move(client.told);
  client.told.clear();
  for (const Client::Told& t : told) {
    if (t.unmapped) {
      const Window window = client.window();
      if (t.begin >= t.end || t.end > user_address_end || window.contains(t.begin)) continue;
      const PageSpan gone{window.page_of_address(t.begin), (t.end - t.begin) / page_bytes};
      // Never older than an adoption at the same place: the application has all such news read before it begins one.
      if (client.contains(gone)) unmapped(client, gone);
    } else {
      executor_->on_cpu_fault(client, t.begin, t.access, 0);
    }
  }
  note_unmapping(client);
  return true;
}

/// Said to the application before anything is read (read_outside), and taken back when all of it is done.
void Manager::note_unmapping(Client& client) {
  if (client.told.empty() && client.unmapped.empty()) {
    client.control()->unmapping.store(0, std::memory_order_seq_cst);
  }
}

void Manager::settle_unmaps(Client& client) {
  const std::uint64_t request = incoming_->head.request;
  if (client.outside_userfault) poll_outside(client);
  if (client.closing) return;
  if (client.unmapped.empty()) {
    answer(client, request, {});
  } else {
    client.beginning.push_back({request, {0, client.page_end()}});
  }
}

void Manager::allocate_adopted(Client& client, PageSpan pages, std::uint32_t flags) {
  const std::uint64_t request = incoming_->head.request;
  // Nothing is being unmapped while the application maps the span from the file. What was before that has been read, and
  // is of the mappings of before: it has to be done with now.
  if (client.outside_userfault) poll_outside(client);
  if (client.closing) return;
  const bool in_system = (flags & wire::span_place_system) != 0;
  const Status s =
      core_->alloc(now_ns_, client.id, pages, in_system ? core::Placement::system : core::Placement::automatic);
  if (!s.ok()) {
    answer(client, request, s);
    return;
  }
  add_span(client, pages, true, false);
  // An answer may come when what it tells of has been used and unmapped, time after time where its sender is seldom on a
  // processor: who adopts in between does not say so for ever.
  client.stale_answers = 0;
  const bool protects = (flags & wire::span_read_only) != 0;
  if (protects) protect_new(client, pages, request);
  executor_->look_at_held(client, pages);
  if (!protects) answer(client, request, {});
}

/// The application, or its C library, has unmapped adopted memory. What it maps there next is something else.
void Manager::unmapped(Client& client, PageSpan gone) {
  std::vector<PageSpan> spans;
  auto it = client.spans.upper_bound(gone.first);
  if (it != client.spans.begin()) --it;
  for (; it != client.spans.end() && it->first < gone.end(); ++it) {
    const PageSpan span{it->first, it->second};
    if (!span.overlaps(gone)) continue;
    const Page from = std::max(span.first, gone.first);
    const PageSpan part{from, std::min(span.end(), gone.end()) - from};
    // What goes already, stays for its pins, or is being taken back is seen to; what lies beside it is not.
    SpanSet news;
    news.add(part);
    const auto known = [&](PageSpan other) { news.cut(other); };
    client.unmapped.for_each_in(part, known);
    client.kept.for_each_in(part, known);
    client.for_each_releasing(part, known);
    news.for_each_in(part, [&](PageSpan piece) { spans.push_back(piece); });
  }
  for (const PageSpan& span : spans) {
    if (!core_->is_pinned(client.id, span)) {
      if (free_unmapped(client, span)) client.unmapped.add(span);
      continue;
    }
    // It stays until the unpin, out of the reach of devices: first that, then the free.
    const core::Cookie cookie = make_cookie(Request::Kind::unmapped, client.id, is_out_of_reach, span.first);
    if (core_->change(now_ns_, client.id, core::Change::protect, span, 0, 0, cookie).ok()) {
      client.unmapped.add(span);
    } else {
      forget_cookie(cookie);
    }
  }
}

/// Answered as a request of its own when nothing of it is left.
bool Manager::free_unmapped(Client& client, PageSpan span) {
  const core::Cookie cookie = make_cookie(Request::Kind::unmapped, client.id, is_gone, span.first);
  const bool freed = core_->free(now_ns_, client.id, span, cookie).ok();
  if (freed) {
    remove_span(client, span);
  } else {
    forget_cookie(cookie);
  }
  return freed;
}

/// Of what was unmapped there some is about to be gone now.
void Manager::unpinned(Client& client, PageSpan pages) {
  std::vector<PageSpan> going;
  client.kept.for_each_in(pages, [&](PageSpan span) {
    if (!core_->is_pinned(client.id, span)) going.push_back(span);
  });
  for (const PageSpan& span : going) {
    client.kept.erase(span.first);
    client.unmapped.add(span);
  }
}

void Manager::unmapped_done(Client& client, const Request& request) {
  if (request.number == is_gone || client.closing) {
    client.unmapped.erase(request.page);
    client.kept.erase(request.page);
  } else if (const PageSpan span = client.unmapped.at(request.page); span.count_pages != 0) {
    // What is pinned stays until the unpin, which nobody waits for: who would may be who is to unpin. No device reaches it.
    const bool freed = free_unmapped(client, span);
    if (!freed || core_->is_pinned(client.id, span)) client.unmapped.erase(span.first);
    if (freed && core_->is_pinned(client.id, span)) client.kept.add(span);
  }
  std::vector<Client::Beginning> ready;
  std::erase_if(client.beginning, [&](const Client::Beginning& b) {
    const bool waits = client.unmapped.overlaps(b.pages);
    if (!waits) ready.push_back(b);
    return !waits;
  });
  for (const Client::Beginning& b : ready) {
    // A page is its address: what the pins keep is in the way of whatever is there now.
    if (!client.closing) answer(client, b.request, b.adopts && client.kept.overlaps(b.pages) ? Code::in_use : Code::ok);
  }
  if (!client.closing) note_unmapping(client);
}

/// The application has looked: nothing of the span is adopted. Where something was, the news of its end is on its way.
void Manager::begin_adoption(Client& client, PageSpan pages, std::uint32_t flags) {
  if ((flags & wire::span_wait_only) == 0) unmapped(client, pages);
  if ((flags & wire::span_no_wait) != 0) {
    answer(client, incoming_->head.request, {});
    return;
  }
  const bool adopts = (flags & wire::span_wait_only) == 0;
  if (client.unmapped.overlaps(pages)) {
    client.beginning.push_back({incoming_->head.request, pages, adopts});
    return;
  }
  const bool kept = client.kept.overlaps(pages);
  answer(client, incoming_->head.request, kept && adopts ? Code::in_use : Status());
}

/// Waves that touch the span from here on are held, so the pages are home when the core says so.
void Manager::release(Client& client, PageSpan pages) {
  const std::uint64_t request = incoming_->head.request;
  if (!client.is_allocated(pages)) {
    answer(client, request, Code::not_allocated);
    return;
  }
  // Not awaited: who is to unpin it may itself wait for memory that cannot be adopted before this has ended.
  const core::SpanState state = core_->span_state(client.id, pages);
  if (state.pinned || client.is_releasing(pages)) {
    answer(client, request, Code::in_use);
    return;
  }
  client.releasing.emplace(pages.first, Client::Releasing{pages, state.placed_system});
  go_home(client, pages, request);
}

/// Their attributes end with their being managed, and first: pages that are read mostly would get a copy at home and stay
/// where they are.
void Manager::go_home(Client& client, PageSpan pages, std::uint64_t request) {
  const core::Cookie cookie = make_cookie(Request::Kind::go_home, client.id, request, pages.first);
  const Status s = core_->svm_reset(now_ns_, client.id, pages, cookie);
  if (!s.ok()) on_reply(cookie, s);
}

void Manager::going_home(Client& client, const Request& request) {
  const auto found = client.releasing.find(request.page);
  if (found == client.releasing.end() || client.closing) return;
  const core::Cookie cookie = make_cookie(Request::Kind::come_home, client.id, request.number, request.page);
  const Status s = core_->prefetch(now_ns_, client.id, found->second, no_device, cookie);
  if (s.ok()) return;
  forget_cookie(cookie);
  const PageSpan pages = found->second;
  client.releasing.erase(found);
  answer(client, request.number, s);
  executor_->look_at_held(client, pages);
}

void Manager::came_home(Client& client, const Request& request) {
  const auto found = client.releasing.find(request.page);
  if (found == client.releasing.end() || client.closing) return;
  const PageSpan pages = found->second;
  if (!core_->span_state(client.id, pages).home) {
    // Waves that the core had before may have taken pages away again. There is an end to them: new ones are held.
    go_home(client, pages, request.number);
    return;
  }
  const core::Cookie cookie = make_cookie(Request::Kind::answer, client.id, request.number);
  const Status s = core_->free(now_ns_, client.id, pages, cookie);
  if (s.ok()) {
    remove_span(client, pages);
    return;
  }
  client.releasing.erase(found);
  on_reply(cookie, s);
  executor_->look_at_held(client, pages);
}

void Manager::released(Client& client, PageSpan pages, std::uint32_t flags) {
  const std::uint64_t request = incoming_->head.request;
  const auto found = client.releasing.find(pages.first);
  const bool freed = found != client.releasing.end() && found->second == pages && !client.is_allocated(pages.first);
  if (!freed) {
    answer(client, request, Code::not_allocated);
    return;
  }
  const bool placed_system = found->second.placed_system;
  client.releasing.erase(found);
  if ((flags & wire::span_has_contents) != 0) {
    allocate_adopted(client, pages, (flags & wire::span_read_only) | (placed_system ? wire::span_place_system : 0U));
    return;
  }
  // What the machine does not take back goes with the client's file.
  [[maybe_unused]] const Status punched =
      linux::punch_hole(client.system_file.get(), pages.first * page_bytes, pages.count_pages * page_bytes);
  answer(client, request, {});
  executor_->look_at_held(client, pages);
}

}  // namespace ferry::manager
