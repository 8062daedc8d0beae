// Tokens: one end of a socket pair stands for a buffer, a fence or a timeline. Who has it may import the object, nobody
// else; the kernel's number of that socket says which it is, and our end hangs up when no process has it any more.
#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

#include "linux/socket.h"
#include "manager/manager.h"

namespace ferry::manager {
namespace {

constexpr int no_wait = 0;

/// 0: it is no socket.
std::uint64_t socket_cookie(int fd) {
  std::uint64_t cookie = 0;
  socklen_t size = sizeof cookie;
  return ::getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &size) == 0 ? cookie : 0;
}

}  // namespace

/// The core's holds behind tokens are this one's, so that they outlive the application that made them.
ClientId Manager::exports_client() {
  if (work_.exports == 0) {
    work_.exports = next_client_++;
    core_->client_open(work_.exports);
  }
  return work_.exports;
}

void Manager::export_token(Client& client, const wire::ObjectRef& ref) {
  Token token;
  bool held = false;
  switch (incoming_->type()) {
    case wire::MessageType::buffer_export:
      token.kind = Token::Kind::buffer;
      held = client.work.buffers.contains(ref.id);
      break;
    case wire::MessageType::fence_export:
      token.kind = Token::Kind::fence;
      held = client.work.fences.contains(ref.id);
      break;
    default:
      token.kind = Token::Kind::timeline;
      held = client.work.timelines.contains(ref.id);
      break;
  }
  if (!held) {
    refuse_work(client, Code::not_held);
    return;
  }
  if (client.work.tokens >= config_.exports_max) {
    refuse_work(
        client, Code::no_memory,
        "this application has " + std::to_string(client.work.tokens) + " exported descriptors open, the most it may");
    return;
  }
  int pair[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) {
    refuse_work(client, Status(Code::no_memory, errno));
    return;
  }
  token.end = linux::Fd(pair[0]);
  const linux::Fd theirs(pair[1]);
  token.cookie = socket_cookie(theirs.get());
  token.object = ref.id;
  token.exporter = client.id;
  Status status = token.cookie == 0 ? Status(Code::unsupported) : Status();
  if (status.ok() && token.kind == Token::Kind::buffer) {
    status = core_->buffer_open(now_ns_, exports_client(), ref.id);
  } else if (status.ok() && token.kind == Token::Kind::timeline) {
    status = core_->timeline_open(now_ns_, exports_client(), ref.id);
  }
  if (!status.ok()) {
    refuse_work(client, status);
    return;
  }
  if (token.kind == Token::Kind::buffer) ++work_.buffer_holds[ref.id];
  const std::uint64_t number = work_.next_token++;
  if (!watch_token(token.end.get(), number)) {
    undo_export(token);
    refuse_work(client, Status(Code::no_memory, errno));
    return;
  }
  ++client.work.tokens;
  if (token.kind == Token::Kind::fence) {
    FenceEntry& entry = work_.fences.at(ref.id);
    ++entry.holds;
    if (entry.signalled) {
      tell_token(token, entry);
    } else {
      entry.tokens.push_back(number);
    }
  }
  work_.by_cookie.emplace(token.cookie, number);
  work_.tokens.emplace(number, std::move(token));
  wire::WorkAnswer body{};
  body.id = ref.id;
  answer_work(client, body, theirs.get());
}

/// The core's hold behind a token goes.
void Manager::undo_export(const Token& token) {
  switch (token.kind) {
    case Token::Kind::buffer:
      FERRY_CHECK(core_->buffer_close(now_ns_, work_.exports, token.object).ok());
      drop_buffer_hold(token.object);
      break;
    case Token::Kind::timeline: FERRY_CHECK(core_->timeline_close(now_ns_, work_.exports, token.object).ok()); break;
    case Token::Kind::fence: break;
  }
}

bool Manager::watch_token(int fd, std::uint64_t number) {
  epoll_event event{};
  // Nothing is asked for: a hang-up is told in any case, and what others write is not our business.
  event.events = 0;
  event.data.u64 = (std::uint64_t{static_cast<unsigned>(Source::token)} << 56) | number;
  return epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) == 0;
}

/// How the fence signalled, for all holders of the descriptor; then nothing more will come, so it stays readable.
void Manager::tell_token(const Token& token, const FenceEntry& entry) {
  wire::FenceRecord record{};
  record.code = static_cast<std::uint32_t>(entry.status.code);
  record.sys_errno = entry.status.sys_errno;
  // A holder that shut its end down has no need of it.
  [[maybe_unused]] const Status sent =
      linux::send_message(token.end.get(), wire::MessageType::fence_record, 0, record, {}, no_wait);
  ::shutdown(token.end.get(), SHUT_WR);
}

/// No process has the descriptor any more (or somebody has shut it down for all).
void Manager::drop_token(std::uint64_t number) {
  const auto it = work_.tokens.find(number);
  if (it == work_.tokens.end()) return;
  const Token token = std::move(it->second);
  unwatch(token.end.get());
  work_.tokens.erase(it);
  work_.by_cookie.erase(token.cookie);
  if (Client* exporter = find_client(token.exporter)) --exporter->work.tokens;
  undo_export(token);
  if (token.kind != Token::Kind::fence) return;
  std::erase(work_.fences.at(token.object).tokens, number);
  drop_fence_hold(token.object);
}

void Manager::import_token(Client& client) {
  if (incoming_->fd_count != 1 || !incoming_->bytes().empty()) {
    misunderstood(client);
    return;
  }
  const std::uint64_t cookie = socket_cookie(incoming_->fds[0].get());
  const auto found = work_.by_cookie.find(cookie);
  const Token* token = cookie == 0 || found == work_.by_cookie.end() ? nullptr : &work_.tokens.at(found->second);
  const wire::MessageType type = incoming_->type();
  const Token::Kind kind = type == wire::MessageType::buffer_import  ? Token::Kind::buffer
                           : type == wire::MessageType::fence_import ? Token::Kind::fence
                                                                     : Token::Kind::timeline;
  if (token == nullptr || token->kind != kind) {
    refuse_work(client, Code::not_held,
                token == nullptr ? "the descriptor stands for nothing of this ferryd's"
                                 : "the descriptor stands for something else");
    return;
  }
  const std::uint64_t id = token->object;
  switch (kind) {
    case Token::Kind::buffer: import_buffer(client, id); return;
    case Token::Kind::fence:
      if (!give_fence(client, id)) {
        refuse_work(client, Code::no_memory, too_many_fences());
        return;
      }
      answer_fence(client, id);
      return;
    case Token::Kind::timeline: {
      const Status status = core_->timeline_open(now_ns_, client.id, id);
      if (!status.ok()) {
        refuse_work(client, status);
        return;
      }
      if (!give_timeline(client, id)) {
        FERRY_CHECK(core_->timeline_close(now_ns_, client.id, id).ok());
        refuse_work(client, Code::no_memory, "this application has as many timelines as it may");
        return;
      }
      answer_timeline(client, id);
      return;
    }
  }
}

void Manager::import_buffer(Client& client, core::BufferId id) {
  const auto it = client.work.buffers.find(id);
  const bool is_new = it == client.work.buffers.end();
  const auto slot = !is_new                                            ? std::optional(it->second.slot)
                    : client.work.buffers.size() < config_.buffers_max ? client.work.buffer_slots.take()
                                                                       : std::nullopt;
  if (!slot) {
    refuse_work(client, Code::no_memory, "this application has as many buffers as it may");
    return;
  }
  const Status status = core_->buffer_open(now_ns_, client.id, id);
  if (!status.ok()) {
    if (is_new) client.work.buffer_slots.give(*slot);
    refuse_work(client, status);
    return;
  }
  Handle& handle = client.work.buffers[id];
  handle.slot = *slot;
  ++handle.holds;
  ++work_.buffer_holds[id];
  answer_buffer(client, id);
}

/// The application is gone, and the core has let go of all that it held.
void Manager::forget_work(Client& client) {
  for (const auto& [id, handle] : client.work.buffers) drop_buffer_hold(id, handle.holds);
  client.work.buffers.clear();
  for (const auto& [id, handle] : client.work.fences) drop_fence_hold(id, handle.holds);
  client.work.fences.clear();
  std::vector<core::FenceId> orphans;
  for (const auto& [id, entry] : work_.fences) {
    if (entry.owner == client.id && !entry.signalled) orphans.push_back(id);
  }
  std::sort(orphans.begin(), orphans.end());
  for (const core::FenceId id : orphans) on_fence(id, Code::client_gone);
}

}  // namespace ferry::manager
