#include "linux/closer.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>

#include <atomic>
#include <deque>

#include "linux/futex.h"
#include "linux/lock.h"

namespace ferry::linux {
namespace {

constinit LockClass closer_lock("descriptors to close", LockRank::leaf);

/// Each may be held by one descriptor, for good. Beyond that descriptors wait, and are as many as the process may have.
constexpr unsigned threads_max = 64;
constexpr std::size_t stack_bytes = std::size_t{256} << 10;

}  // namespace

struct Closer::Shared {
  Mutex mutex{closer_lock};
  std::deque<Fd> waiting;
  unsigned threads = 0;
  unsigned idle = 0;  ///< of them, that wait for descriptors: one, for good, after the first close
  bool stop = false;
  std::atomic<std::uint32_t> word{0};  ///< changes when there is something to do
  Fd bell;
};

Closer::Closer(const Bell& bell) : shared_(std::make_shared<Shared>()) {
  shared_->bell.reset(::fcntl(bell.fd(), F_DUPFD_CLOEXEC, 3));
}

Closer::~Closer() {
  {
    const LockGuard lock(shared_->mutex);
    shared_->stop = true;
  }
  shared_->word.fetch_add(1);
  futex_wake(shared_->word, static_cast<int>(threads_max));
}

void Closer::close(Fd fd) {
  if (!fd) return;
  bool start = false;
  {
    const LockGuard lock(shared_->mutex);
    shared_->waiting.push_back(std::move(fd));
    start = shared_->waiting.size() > shared_->idle && shared_->threads < threads_max;
    if (start) ++shared_->threads;
  }
  shared_->word.fetch_add(1);
  if (!start) {
    futex_wake(shared_->word, 1);
    return;
  }
  // Signals are the main thread's business.
  sigset_t all;
  sigset_t old;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &old);
  pthread_attr_t how;
  pthread_attr_init(&how);
  pthread_attr_setdetachstate(&how, PTHREAD_CREATE_DETACHED);
  pthread_attr_setstacksize(&how, stack_bytes);
  auto* const held = new std::shared_ptr<Shared>(shared_);
  pthread_t thread{};
  if (pthread_create(&thread, &how, work, held) != 0) {
    delete held;
    const LockGuard lock(shared_->mutex);
    --shared_->threads;  // the next one that is closed tries again
  }
  pthread_attr_destroy(&how);
  pthread_sigmask(SIG_SETMASK, &old, nullptr);
}

void* Closer::work(void* shared) {
  auto* const held = static_cast<std::shared_ptr<Shared>*>(shared);
  const std::shared_ptr<Shared> s = std::move(*held);
  delete held;
  for (;;) {
    Fd fd;
    const std::uint32_t seen = s->word.load();
    {
      const LockGuard lock(s->mutex);
      if (!s->waiting.empty()) {
        fd = std::move(s->waiting.front());
        s->waiting.pop_front();
      } else if (s->stop || s->idle != 0) {
        --s->threads;
        return nullptr;
      } else {
        ++s->idle;
      }
    }
    if (fd) {
      fd.reset();
      if (s->bell) Bell::ring_fd(s->bell.get());
      continue;
    }
    futex_wait(s->word, seen);
    const LockGuard lock(s->mutex);
    --s->idle;
  }
}

void Closer::close_socket(Fd fd) {
  if (!fd) return;
  ::shutdown(fd.get(), SHUT_RDWR);
  // Its queue may hold descriptors, which are closed with it. To look whether it does could wait for whoever reads from it.
  close(std::move(fd));
}

}  // namespace ferry::linux
