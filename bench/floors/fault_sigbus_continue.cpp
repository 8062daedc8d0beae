// The floor of a device fault. The child stands for the device, the calling process for the manager.
#include <linux/userfaultfd.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <stdexcept>
#include <thread>
#include <vector>

#include "floors/floors.h"
#include "floors/posix.h"
#include "harness.h"

namespace ferry::bench::floors {

namespace {

constexpr unsigned max_threads = 64;

struct alignas(64) Slot {
  std::atomic<std::uint64_t> address;  ///< page that faulted; 0: nothing to serve
};

struct alignas(64) Interval {
  std::uint64_t begin_ns;
  std::uint64_t end_ns;
};

/// What the two processes share. Zero-filled memory is its initial state.
struct Shared {
  std::array<Slot, max_threads> slots;
  std::array<Interval, max_threads> intervals;
  alignas(64) std::atomic<std::uint32_t> finished;  ///< threads that have touched all their pages in this sample
};
static_assert(std::atomic<std::uint64_t>::is_always_lock_free);

// Set once a thread before it can fault; read by the signal handler.
thread_local Slot* own_slot = nullptr;

void on_sigbus(int /*signal*/, siginfo_t* info, void* /*context*/) {
  const auto address = reinterpret_cast<std::uint64_t>(info->si_addr) & ~std::uint64_t{page_bytes - 1};
  own_slot->address.store(address, std::memory_order_release);
  Spin spin;
  while (own_slot->address.load(std::memory_order_acquire) != 0) spin.pause();
}

/// The device process: serves samples until its parent closes the socket.
void run_device(int socket, int memory_file, Shared& shared, unsigned threads, std::size_t pages) {
  struct sigaction action {};
  action.sa_sigaction = on_sigbus;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  if (sigaction(SIGBUS, &action, nullptr) != 0) throw_errno("sigaction");
  const Mapping memory(memory_file, pages * page_bytes);
  const Fd userfaultfd = register_userfaultfd(memory, UFFD_FEATURE_SIGBUS);
  send_fd(socket, userfaultfd.get());

  std::atomic<std::uint32_t> round{0};
  std::atomic<std::uint32_t> ready{0};
  std::vector<std::jthread> workers;
  for (unsigned index = 0; index < threads; ++index) {
    workers.emplace_back([&, index] {
      own_slot = &shared.slots[index];
      for (std::uint32_t seen = 0;;) {
        round.wait(seen);
        ++seen;
        // All start together: the sample is of faults that compete.
        ready.fetch_add(1);
        Spin spin;
        while (ready.load() < seen * threads) spin.pause();
        shared.intervals[index].begin_ns = now_ns();
        // Adjoining pages a thread, as waves have: threads that share a page table slow each other down.
        for (std::size_t page = pages * index / threads; page < pages * (index + 1) / threads; ++page) {
          auto* word = reinterpret_cast<volatile std::uint64_t*>(memory.data() + page * page_bytes);
          *word = page;
        }
        shared.intervals[index].end_ns = now_ns();
        shared.finished.fetch_add(1);
      }
    });
  }
  char command = 0;
  while (recv(socket, &command, 1, 0) == 1) {
    // Unmaps; the pages stay in the page cache and the registration stays.
    if (madvise(memory.data(), memory.bytes(), MADV_DONTNEED) != 0) throw_errno("madvise");
    round.fetch_add(1);
    round.notify_all();
  }
  _exit(0);  // the workers wait for a round that will not come
}

}  // namespace

struct FaultSigbusContinue::State {
  unsigned threads;
  std::size_t pages;
  Fd memory_file;
  Mapping shared_memory;
  std::pair<Fd, Fd> sockets;
  std::unique_ptr<Child> child;
  Fd userfaultfd;
  [[nodiscard]] Shared& shared() const { return *reinterpret_cast<Shared*>(shared_memory.data()); }
};

FaultSigbusContinue::FaultSigbusContinue(unsigned threads, std::size_t pages) : state_(std::make_unique<State>()) {
  if (threads == 0 || threads > max_threads) throw std::invalid_argument("a floor runs 1 to 64 faulting threads");
  state_->threads = threads;
  state_->pages = pages;
  state_->memory_file = warm_memfd("ferry-bench-floor", pages * page_bytes);
  state_->shared_memory = Mapping(-1, sizeof(Shared));
  state_->sockets = socket_pair();
  state_->child = std::make_unique<Child>([this] {
    state_->sockets.first = Fd();
    run_device(state_->sockets.second.get(), state_->memory_file.get(), state_->shared(), state_->threads,
               state_->pages);
  });
  state_->sockets.second = Fd();
  state_->userfaultfd = receive_fd(state_->sockets.first.get());
}

FaultSigbusContinue::~FaultSigbusContinue() = default;

double FaultSigbusContinue::sample() {
  Shared& shared = state_->shared();
  shared.finished.store(0);
  const char command = 's';
  if (send(state_->sockets.first.get(), &command, 1, MSG_NOSIGNAL) != 1) throw_errno("send to a floor's process");
  const std::uint64_t give_up_ns = now_ns() + 60'000'000'000U;
  for (std::uint32_t turn = 0; shared.finished.load(std::memory_order_acquire) < state_->threads; ++turn) {
    for (unsigned index = 0; index < state_->threads; ++index) {
      Slot& slot = shared.slots[index];
      const std::uint64_t page = slot.address.load(std::memory_order_acquire);
      if (page == 0) continue;
      continue_page(state_->userfaultfd.get(), page, false);
      slot.address.store(0, std::memory_order_release);
    }
    cpu_pause();
    if (turn % (1U << 20U) == 0) {
      state_->child->check_alive();
      if (now_ns() > give_up_ns) throw std::runtime_error("the fault floor did not end within 60 s");
    }
  }
  std::uint64_t begin_ns = UINT64_MAX;
  std::uint64_t end_ns = 0;
  for (unsigned index = 0; index < state_->threads; ++index) {
    begin_ns = std::min(begin_ns, shared.intervals[index].begin_ns);
    end_ns = std::max(end_ns, shared.intervals[index].end_ns);
  }
  return static_cast<double>(end_ns - begin_ns) / 1e3 / static_cast<double>(state_->pages);
}

}  // namespace ferry::bench::floors
