// The floor of a CPU fault. The child stands for the application, the calling process for the manager.
#include <linux/userfaultfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <stdexcept>

#include "floors/floors.h"
#include "floors/posix.h"
#include "harness.h"

namespace ferry::bench::floors {

namespace {

/// What the two processes share. Zero-filled memory is its initial state.
struct Shared {
  std::uint64_t elapsed_ns;
  alignas(64) std::atomic<std::uint32_t> finished;
};

void run_application(int socket, int memory_file, Shared& shared, std::size_t pages) {
  const Mapping memory(memory_file, pages * page_bytes);
  const Fd userfaultfd = register_userfaultfd(memory, 0);
  send_fd(socket, userfaultfd.get());
  char command = 0;
  while (recv(socket, &command, 1, 0) == 1) {
    if (madvise(memory.data(), memory.bytes(), MADV_DONTNEED) != 0) throw_errno("madvise");
    const std::uint64_t begin_ns = now_ns();
    for (std::size_t page = 0; page < pages; ++page) {
      auto* word = reinterpret_cast<volatile std::uint64_t*>(memory.data() + page * page_bytes);
      *word = page;
    }
    shared.elapsed_ns = now_ns() - begin_ns;
    shared.finished.store(1, std::memory_order_release);
  }
}

}  // namespace

struct FaultCpuRoundtrip::State {
  std::size_t pages;
  Fd memory_file;
  Mapping shared_memory;
  std::pair<Fd, Fd> sockets;
  std::unique_ptr<Child> child;
  Fd userfaultfd;
  [[nodiscard]] Shared& shared() const { return *reinterpret_cast<Shared*>(shared_memory.data()); }
};

FaultCpuRoundtrip::FaultCpuRoundtrip(std::size_t pages) : state_(std::make_unique<State>()) {
  state_->pages = pages;
  state_->memory_file = warm_memfd("ferry-bench-floor", pages * page_bytes);
  state_->shared_memory = Mapping(-1, sizeof(Shared));
  state_->sockets = socket_pair();
  state_->child = std::make_unique<Child>([this] {
    state_->sockets.first = Fd();
    run_application(state_->sockets.second.get(), state_->memory_file.get(), state_->shared(), state_->pages);
  });
  state_->sockets.second = Fd();
  state_->userfaultfd = receive_fd(state_->sockets.first.get());
}

FaultCpuRoundtrip::~FaultCpuRoundtrip() = default;

double FaultCpuRoundtrip::sample() {
  Shared& shared = state_->shared();
  shared.finished.store(0);
  const char command = 's';
  if (send(state_->sockets.first.get(), &command, 1, MSG_NOSIGNAL) != 1) throw_errno("send to a floor's process");
  const std::uint64_t give_up_ns = now_ns() + 60'000'000'000U;
  std::array<uffd_msg, 8> messages{};
  for (std::uint32_t turn = 0; shared.finished.load(std::memory_order_acquire) == 0; ++turn) {
    const ssize_t got = read(state_->userfaultfd.get(), messages.data(), sizeof messages);
    if (got < 0 && errno != EAGAIN) throw_errno("read of a userfaultfd");
    for (std::size_t index = 0; got > 0 && index < static_cast<std::size_t>(got) / sizeof(uffd_msg); ++index) {
      if (messages[index].event != UFFD_EVENT_PAGEFAULT) continue;
      const std::uint64_t address = messages[index].arg.pagefault.address;
      continue_page(state_->userfaultfd.get(), address & ~std::uint64_t{page_bytes - 1}, true);
    }
    if (turn % (1U << 16U) == 0) {
      state_->child->check_alive();
      if (now_ns() > give_up_ns) throw std::runtime_error("the CPU fault floor did not end within 60 s");
    }
  }
  return static_cast<double>(shared.elapsed_ns) / 1e3 / static_cast<double>(state_->pages);
}

}  // namespace ferry::bench::floors
