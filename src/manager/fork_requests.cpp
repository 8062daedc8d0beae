// Forks, as applications and their children speak of them. docs/design/0018-fork.md.
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "manager/limits.h"
#include "manager/log.h"
#include "manager/manager.h"

namespace ferry::manager {
namespace {
constexpr int no_wait = 0;
/// Children of one application that still need pages of it; each costs descriptors and a mask a block.
constexpr unsigned forks_max = 1024;

bool is_pipe(int fd) {
  struct stat of {};
  return ::fstat(fd, &of) == 0 && S_ISFIFO(of.st_mode);
}

void answer_child(const Fork& fork, std::uint64_t request, Status status) {
  wire::Done body{};
  body.code = static_cast<std::uint32_t>(status.code);
  [[maybe_unused]] const Status sent =
      linux::send_message(fork.socket.get(), wire::MessageType::done, request, body, {}, no_wait);
}
}  // namespace

void Manager::watch_fork(const Fork& fork) { watch_number(fork.socket.get(), Source::fork, fork.number, EPOLLIN); }

/// The application is about to fork; its answer comes when nobody can write its memory.
void Manager::fork_begin(Client& client) {
  const std::uint64_t request = incoming_->head.request;
  wire::ForkBegin begin{};
  if (!incoming_->body(begin) || incoming_->fd_count != 1 || !linux::is_message_socket(incoming_->fds[0].get())) {
    misunderstood(client);
    return;
  }
  if (client.gate != nullptr) {
    answer(client, request, Code::in_use);
    return;
  }
  if (client.forks >= forks_max) {
    answer(client, request, Code::no_memory);
    return;
  }
  Fork& fork = executor_->add_fork(client, std::move(incoming_->fds[0]));
  watch_fork(fork);
  client.gate = std::make_unique<ForkGate>();
  client.gate->thread = begin.thread;
  client.gate->request = request;
  client.gate->fork = fork.number;
  client.gate->at_once = begin.at_once != 0;
  executor_->note_gate();
  const core::Cookie cookie = make_cookie(Request::Kind::fork, client.id, fork.number);
  const Status s = core_->client_fork(now_ns_, client.id, cookie);
  if (!s.ok()) on_reply(cookie, s);
}

/// The core's answer to fork_begin.
void Manager::fork_frozen(Client& client, std::uint64_t number, Status status) {
  if (client.gate == nullptr || client.gate->fork != number) return;
  Fork* fork = executor_->find_fork(number);
  if (status.ok() && fork != nullptr && !client.closing) {
    executor_->zap_for_fork(client);
    return;
  }
  const std::uint64_t request = client.gate->request;
  if (fork != nullptr) executor_->end_fork(*fork);
  executor_->open_gate(client);
  if (!client.closing) answer(client, request, status.ok() ? Status(Code::client_gone) : status);
}

void Manager::fork_ready(Client& client, std::uint64_t request) { answer(client, request, {}); }

/// The application has forked, or could not.
void Manager::fork_end(Client& client) {
  wire::Done result{};
  if (!incoming_->body(result)) {
    misunderstood(client);
    return;
  }
  if (client.gate == nullptr) return;  // the child was quicker
  if (result.code != 0) {
    if (Fork* fork = executor_->find_fork(client.gate->fork)) executor_->end_fork(*fork);
  }
  executor_->open_gate(client);
}

/// The application has ended. Its children are served on; a fork that was being prepared is none.
void Manager::close_forks(Client& client) {
  if (client.gate != nullptr) {
    if (client.gate->state != ForkGate::State::frozen) {
      if (Fork* fork = executor_->find_fork(client.gate->fork)) executor_->end_fork(*fork);
    }
    executor_->open_gate(client);
  }
}

/// Messages of a child.
void Manager::on_fork(std::uint64_t number) {
  Fork* fork = executor_->find_fork(number);
  if (fork == nullptr) return;
  const linux::Receive received = linux::receive_message(fork->socket.get(), *incoming_, no_wait);
  if (received == linux::Receive::nothing) return;
  on_fork_message(*fork, received);
  sweep_descriptors();
}

void Manager::on_fork_message(Fork& of, linux::Receive received) {
  Fork* const fork = &of;
  if (received != linux::Receive::message) {
    // It has ended, or executes another program, which the next page given to it tells; or has closed all that it had
    // not opened itself.
    unwatch(fork->socket.get());
    executor_->child_left(*fork);
    return;
  }
  wire::ForkBegin body{};
  const bool well = incoming_->body(body);
  if (well && incoming_->type() == wire::MessageType::fork_child && incoming_->fd_count == 3 && !fork->userfault &&
      is_pipe(incoming_->fds[1].get()) && is_pipe(incoming_->fds[2].get())) {
    auto userfault = linux::Userfaultfd::adopt(std::move(incoming_->fds[0]), linux::Userfaultfd::Tells::changes);
    if (userfault) {
      fork->alarm = std::move(incoming_->fds[1]);
      fork->alarm_held = std::move(incoming_->fds[2]);
      const int fd = userfault.value().fd();
      const std::uint64_t number = fork->number;
      // The child is there, so the fork is over.
      if (fork->origin != nullptr && fork->origin->gate != nullptr && fork->origin->gate->fork == number) {
        if (fork->origin->gate->at_once) {
          fork->hurry = true;
        } else {
          executor_->open_gate(*fork->origin);
        }
      }
      watch_number(fd, Source::fork_memory, number, EPOLLIN);
      executor_->child_arrived(*fork, std::move(userfault).value());
      return;
    }
  } else if (well && incoming_->type() == wire::MessageType::fork_begin && incoming_->fd_count == 1 &&
             linux::is_message_socket(incoming_->fds[0].get())) {
    const std::uint64_t request = incoming_->head.request;
    if ((fork->origin != nullptr ? fork->origin->forks : executor_->fork_count()) >= forks_max ||
        executor_->taken_pages(*fork) + fork->taken.size() > taken_pages_max) {
      answer_child(*fork, request, Code::no_memory);
      return;
    }
    watch_fork(executor_->add_grandchild(*fork, std::move(incoming_->fds[0])));
    answer_child(*fork, request, {});
    return;
  }
  log("a child of a fork sent what is not understood");
  executor_->end_fork(*fork);
}

void Manager::fork_ended(Fork& fork) {
  unwatch(fork.socket.get());
  if (fork.userfault) unwatch(fork.userfault.fd());
  fork.userfault.close();
  // Disarmed before it rings, and before the child sees the socket close.
  if (fork.alarm && !fork.rings) ::fcntl(fork.alarm.get(), F_SETFL, 0);
  closer_->close(std::move(fork.alarm));
  closer_->close(std::move(fork.alarm_held));
  closer_->close_socket(std::move(fork.socket));
}

/// What children wait for. True: something was done.
bool Manager::serve_forks() {
  // What waits for forks is looked at once more when the last of them has gone, by whichever way.
  if (!executor_->has_forks() && late_frees_.empty() && !closes_wait_) return false;
  bool progress = executor_->serve_children();
  progress |= executor_->copy_for_forks();
  progress |= executor_->drain_hurried();
  for (std::size_t i = 0; i < late_frees_.size();) {
    const LateFree late = late_frees_[i];
    Client* client = find_client(late.client);
    if (client != nullptr && !client->closing &&
        !(late.is_change ? children_have(*client, late.change) : executor_->give_children(*client, late.pages))) {
      ++i;
      continue;
    }
    late_frees_.erase(late_frees_.begin() + static_cast<std::ptrdiff_t>(i));
    if (client != nullptr) --client->work.late;
    if (client != nullptr && !client->closing) {
      if (late.is_change) {
        make_change(*client, late.change, late.request);
      } else {
        free_span(*client, late.pages, late.request);
      }
    }
    progress = true;
  }
  closes_wait_ = false;
  for (std::size_t i = 0; i < clients_.size(); ++i) {
    Client& client = *clients_[i];
    if (!client.closing || client.told_core) continue;
    if (client.forks != 0) {
      executor_->drain_forks(client);
      progress = true;
    }
    finish_close(client);
    progress |= client.told_core;
  }
  executor_->check_gates();
  executor_->forget_forks();
  if (!executor_->has_forks()) progress |= !late_frees_.empty() || closes_wait_;
  if (!executor_->has_forks() && stop_after_forks_) stopping_ = true;
  return progress;
}

}  // namespace ferry::manager
