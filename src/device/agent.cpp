#include "device/agent.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <new>
#include <span>
#include <utility>

#include "base/types.h"
#include "linux/futex.h"
#include "linux/lock.h"
#include "linux/socket.h"
#include "wire/ring.h"

namespace ferry::device {
namespace {

/// Mappings in stock. A revoke in the middle of a mapping needs up to two more of them, and it must not fail where the
/// process is at the kernel's limit: it is what memory is freed with. Map commands may fail there.
class SpareMappings {
 public:
  SpareMappings() {
    pages_ = static_cast<std::byte*>(map_own(count * page_bytes));
    if (pages_ == nullptr) {
      used_ = count;
      return;
    }
    // Neighbours with unequal protection stay separate mappings.
    for (unsigned i = 0; i < count; i += 2) mprotect(pages_ + i * page_bytes, page_bytes, PROT_NONE);
  }
  /// Gives two back to the process. False: the stock is empty.
  bool release() {
    if (used_ + 2 > count) return false;
    munmap(pages_ + used_ * page_bytes, 2 * page_bytes);
    used_ += 2;
    return true;
  }

 private:
  static constexpr unsigned count = 256;
  std::byte* pages_ = nullptr;
  unsigned used_ = 0;
};

class Agent {
 public:
  Agent(wire::DeviceControl& control, DeviceMemory& memory, Units& units, std::span<const Cu> cus, int kick_fd,
        int manager_socket, int files_socket)
      : port_(control.agent, control.head),
        memory_(memory),
        units_(units),
        cus_(cus),
        kick_fd_(kick_fd),
        manager_socket_(manager_socket),
        files_socket_(files_socket) {
    incoming_ = static_cast<linux::Incoming*>(map_own(sizeof(linux::Incoming)));
    if (incoming_ != nullptr) new (incoming_) linux::Incoming;
  }

  [[noreturn]] void run() {
    for (;;) {
      port_.take(batch_[0], spin_,
                 [](std::atomic<std::uint32_t>& word, std::uint32_t expected) { linux::futex_wait(word, expected); });
      std::size_t count = 1;
      while (count < batch_.size() && port_.try_take(batch_[count])) ++count;
      execute({batch_.data(), count});
    }
  }

 private:
  static bool is(const wire::DownRecord& record, wire::DownKind kind) {
    return record.kind == static_cast<std::uint32_t>(kind);
  }

  void execute(std::span<wire::DownRecord> commands) {
    for (std::size_t i = 0; i < commands.size();) {
      const wire::DownRecord& command = commands[i];
      if (is(command, wire::DownKind::revoke)) {
        std::size_t end = i + 1;
        while (end < commands.size() && is(commands[end], wire::DownKind::revoke)) ++end;
        revoke(commands.subspan(i, end - i));
        i = end;
        continue;
      }
      if (is(command, wire::DownKind::zap)) {
        std::size_t end = i + 1;
        while (end < commands.size() && is(commands[end], wire::DownKind::zap)) ++end;
        zap(commands.subspan(i, end - i));
        i = end;
        continue;
      }
      if (is(command, wire::DownKind::quit)) _exit(0);
      int error = EINVAL;
      if (is(command, wire::DownKind::map_file)) {
        map_file(command);
        ++i;
        continue;
      }
      if (is(command, wire::DownKind::map)) {
        take_files(command);
        error = memory_.map(command);
      } else if (is(command, wire::DownKind::forget_buffer)) {
        memory_.set_buffer_file(command.buffer, linux::Fd());
        error = 0;
      } else if (change_units(command)) {
        error = 0;
      } else if (is(command, wire::DownKind::admit)) {
        error = memory_.admit(command.address, command.length_bytes);
        while (error == ENOMEM && spare_.release()) error = memory_.admit(command.address, command.length_bytes);
      } else if (is(command, wire::DownKind::rearm)) {
        error = memory_.rearm(command.address, command.length_bytes);
        while (error == ENOMEM && spare_.release()) error = memory_.rearm(command.address, command.length_bytes);
      }
      done(command, error);
      ++i;
    }
  }

  [[nodiscard]] bool has_file(const wire::DownRecord& command) const {
    switch (static_cast<wire::File>(command.file)) {
      case wire::File::buffer: return memory_.has_buffer_file(command.buffer);
      case wire::File::peer: return memory_.has_peer_file(command.buffer);
      default: return true;
    }
  }

  /// The manager has sent the file before the command that names it first.
  void take_files(const wire::DownRecord& command) {
    while (!has_file(command) && incoming_ != nullptr) {
      wire::BufferFile buffer{};
      wire::PeerFile peer{};
      if (linux::receive_message(manager_socket_, *incoming_, file_patience_ms) != linux::Receive::message ||
          incoming_->fd_count != 1) {
        return;
      }
      if (incoming_->type() == wire::MessageType::buffer_file && incoming_->body(buffer)) {
        memory_.set_buffer_file(buffer.slot, std::move(incoming_->fds[0]));
      } else if (incoming_->type() == wire::MessageType::peer_file && incoming_->body(peer)) {
        memory_.set_peer_file(peer.device, std::move(incoming_->fds[0]));
      } else {
        return;
      }
    }
  }

  /// The application has sent the descriptor before it asked for the command.
  linux::Fd take_served_file(std::uint32_t serial) {
    while (files_socket_ >= 0 && incoming_ != nullptr) {
      wire::ServedFile served{};
      if (linux::receive_message(files_socket_, *incoming_, file_patience_ms) != linux::Receive::message ||
          incoming_->type() != wire::MessageType::served_file || !incoming_->body(served) || incoming_->fd_count != 1) {
        break;
      }
      linux::Fd file = std::move(incoming_->fds[0]);
      if (served.serial == serial) return file;
    }
    return {};
  }

  /// The descriptor is not kept: the mapping has the file.
  void map_file(const wire::DownRecord& command) {
    const linux::Fd file = take_served_file(command.buffer);
    wire::UpRecord record{};
    int error = file.valid() ? memory_.map_file(command, file.get(), record.address, record.value) : EBADF;
    while (error == ENOMEM && spare_.release()) {
      error = memory_.map_file(command, file.get(), record.address, record.value);
    }
    record.kind = static_cast<std::uint32_t>(wire::UpKind::done);
    record.action = command.action;
    record.error = error;
    post(record);
  }

  /// False: the command is none of these.
  bool change_units(const wire::DownRecord& command) {
    switch (static_cast<wire::DownKind>(command.kind)) {
      case wire::DownKind::grant_units: units_.grant(command.units); return true;
      case wire::DownKind::take_units: {
        std::uint64_t holders = 0;
        const std::uint64_t left = units_.take(command.units, holders);
        if (left != 0) tell(wire::UpKind::units_left, 0, left);
        for (std::size_t i = 0; i < cus_.size(); ++i) {
          if ((holders >> i & 1) != 0) cus_[i].interrupt();
        }
        return true;
      }
      case wire::DownKind::run_job:
        if (units_.start(command.slot, command.units)) tell(wire::UpKind::job_done, command.slot, 0);
        return true;
      case wire::DownKind::cancel_job:
        if (units_.cancel(command.slot)) tell(wire::UpKind::job_done, command.slot, 0);
        for (const Cu& cu : cus_) cu.interrupt();
        return true;
      default: return false;
    }
  }

  /// Neighbours in one system call: each costs a shootdown while compute units run, whatever its size.
  void revoke(std::span<wire::DownRecord> commands) {
    for (std::size_t i = 0; i < commands.size(); ++i) order_[i] = static_cast<std::uint16_t>(i);
    const auto order = std::span(order_).first(commands.size());
    std::sort(order.begin(), order.end(),
              [&](std::uint16_t a, std::uint16_t b) { return commands[a].address < commands[b].address; });
    for (std::size_t first = 0; first < order.size();) {
      const std::uint64_t begin = commands[order[first]].address;
      std::uint64_t end = begin + commands[order[first]].length_bytes;
      std::size_t next = first + 1;
      while (next < order.size() && commands[order[next]].address == end) {
        end += commands[order[next]].length_bytes;
        ++next;
      }
      int error = memory_.revoke(begin, end - begin);
      while (error == ENOMEM && spare_.release()) error = memory_.revoke(begin, end - begin);
      for (; first < next; ++first) done(commands[order[first]], error);
    }
  }

  void zap(std::span<const wire::DownRecord> commands) {
    std::size_t count = 0;
    for (const wire::DownRecord& command : commands) {
      if (!memory_.valid(command.address, command.length_bytes)) break;
      extents_[count++] = {reinterpret_cast<void*>(command.address), command.length_bytes};
    }
    const std::size_t zapped = count > 1 ? memory_.zap_many({extents_.data(), count}) : 0;
    for (std::size_t i = 0; i < commands.size(); ++i) {
      done(commands[i], i < zapped ? 0 : memory_.zap(commands[i].address, commands[i].length_bytes));
    }
  }

  void done(const wire::DownRecord& command, int error) {
    if (command.action == 0) return;
    wire::UpRecord record{};
    record.kind = static_cast<std::uint32_t>(wire::UpKind::done);
    record.action = command.action;
    record.error = error;
    post(record);
  }

  void tell(wire::UpKind kind, std::uint16_t slot, std::uint64_t value) {
    wire::UpRecord record{};
    record.kind = static_cast<std::uint32_t>(kind);
    record.slot = slot;
    record.value = value;
    post(record);
  }

  void post(wire::UpRecord& record) {
    record.time_ns = linux::monotonic_ns();
    // The manager leaves no more commands unanswered than the ring holds.
    while (!port_.post(record, [this] { kick(); })) cpu_relax();
  }

  void kick() const {
    const std::uint64_t one = 1;
    [[maybe_unused]] const ssize_t rc = ::write(kick_fd_, &one, sizeof one);
  }

  wire::PeerPort port_;
  /// A command without its file is a mistake of the manager's, and answered as one.
  static constexpr int file_patience_ms = 1000;

  DeviceMemory& memory_;
  Units& units_;
  std::span<const Cu> cus_;
  int kick_fd_;
  int manager_socket_;
  int files_socket_;
  linux::Incoming* incoming_ = nullptr;
  linux::AdaptiveSpin spin_{2'000, 50'000};
  SpareMappings spare_;
  std::array<wire::DownRecord, wire::ring_entries> batch_{};
  std::array<std::uint16_t, wire::ring_entries> order_{};
  std::array<iovec, wire::ring_entries> extents_{};
};

}  // namespace

void run_agent(wire::DeviceControl& control, DeviceMemory& memory, Units& units, std::span<const Cu> cus, int kick_fd,
               int manager_socket, int files_socket) {
  const linux::NoLocks none("whoever holds a lock may wait for a page, and this thread brings it");
  Agent agent(control, memory, units, cus, kick_fd, manager_socket, files_socket);
  agent.run();
}

}  // namespace ferry::device
