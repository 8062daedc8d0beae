#include "device/device.h"

#include <poll.h>
#include <pthread.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cxxabi.h>
#include <boost/context/detail/fcontext.hpp>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string_view>

#include "device/agent.h"
#include "device/before_main.h"
#include "device/cu.h"
#include "device/memory.h"
#include "device/process.h"
#include "device/program_data.h"
#include "device/queue.h"
#include "device/signals.h"
#include "device/text.h"
#include "device/wave.h"
#include "linux/futex.h"
#include "linux/process.h"
#include "linux/socket.h"
#include "wire/message.h"
#include "wire/ring.h"

namespace ferry::device {
namespace {

constexpr std::size_t thread_stack_bytes = 512 * 1024;

/// Everything of the process. Lives in own memory, made once, never destroyed: the process ends by _exit.
struct Process {
  DeviceStart start;
  DeviceMemory memory;
  wire::DeviceControl* control = nullptr;
  wire::QueueControl* queue_control = nullptr;
  QueueSet queues;
  Units units;
  Cu* cus = nullptr;  ///< start.cu_count of them
};

Process* process = nullptr;

[[noreturn]] void give_up(std::string_view what, int error) {
  char buffer[256];
  Text text(buffer, sizeof buffer);
  text << "ferry: the device cannot start: " << what;
  if (error != 0)
    text << ": " << std::string_view(strerrordesc_np(error) != nullptr ? strerrordesc_np(error) : "error");
  text << "\n";
  [[maybe_unused]] const ssize_t rc = ::write(STDERR_FILENO, buffer, text.size());
  _exit(70);
}

template <typename T>
T* map_control(int fd, std::string_view name) {
  struct stat status {};
  if (fstat(fd, &status) != 0) give_up(name, errno);
  if (status.st_size < static_cast<off_t>(sizeof(T))) give_up(name, EINVAL);
  auto* control = static_cast<T*>(map_own_file(fd, sizeof(T)));
  if (control == nullptr) give_up(name, errno);
  if (!wire::compatible(control->head)) give_up("the manager is of another version", 0);
  return control;
}

bool start_thread(const char* name, void* (*body)(void*), void* argument) {
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  void* stack = map_own(thread_stack_bytes);
  if (stack != nullptr) pthread_attr_setstack(&attributes, stack, thread_stack_bytes);
  pthread_t thread{};
  int error = pthread_create(&thread, &attributes, body, argument);
  pthread_attr_destroy(&attributes);
  // A program with much thread-local data needs more: glibc's own choice then.
  if (error == EINVAL) {
    error = pthread_create(&thread, nullptr, body, argument);
    if (error == 0) pthread_detach(thread);
  }
  if (error != 0) return false;
  pthread_setname_np(thread, name);
  return true;
}

/// Compute units wait until the device is ready. A thread that begins still reads what the program has made (its locale).
struct Gate {
  std::atomic<std::uint32_t> arrived{0};
  std::atomic<std::uint32_t> open{0};
};
constinit Gate gate;

void wait_at_gate() {
  gate.arrived.fetch_add(1, std::memory_order_seq_cst);
  linux::futex_wake(gate.arrived, 1);
  while (gate.open.load(std::memory_order_seq_cst) == 0) linux::futex_wait(gate.open, 0);
}

/// Ends the process when manager or application are gone.
void* watch(void*) {
  wait_at_gate();
  // What the manager sends is read by the agent when a command needs it.
  pollfd sockets[2] = {{process->start.manager_socket, POLLRDHUP, 0},
                       {process->start.owner_socket, POLLIN | POLLRDHUP, 0}};  // poll passes over -1
  for (;;) {
    if (poll(sockets, 2, -1) < 0 && errno != EINTR) _exit(0);
    for (const pollfd& socket : sockets) {
      if (socket.fd < 0 || socket.revents == 0) continue;
      char byte = 0;
      const ssize_t got = recv(socket.fd, &byte, 1, MSG_DONTWAIT | MSG_PEEK | MSG_TRUNC);
      // The owner never sends anything: data are as good a sign of a broken peer as the end of the stream.
      if (got >= 0 || (errno != EAGAIN && errno != EINTR)) _exit(0);
    }
  }
}

/// What is called outside of kernels is called here once, without effect. Libraries, and Ferry for what it exports in the C
/// library's place, find a function when they call it first, and look through the loader's tables, which lie in the program's
/// heap where a static constructor has opened a library (dlopen).
void find_calls() {
  char byte = 0;
  msghdr message{};
  [[maybe_unused]] ssize_t rc = ::read(-1, &byte, 0);
  rc = ::write(-1, &byte, 0);
  rc = ::recv(-1, &byte, 0, 0);
  rc = ::recvmsg(-1, &message, 0);
  rc = ::sendmsg(-1, &message, 0);
}

void* run_cu(void* cu) {
  [[maybe_unused]] const void* volatile exceptions = abi::__cxa_get_globals();  // as find_calls() does
  wait_at_gate();
  static_cast<Cu*>(cu)->run();
}

void start_threads(unsigned cu_count) {
  for (unsigned i = 0; i < cu_count; ++i) {
    char name[16];
    Text(name, sizeof name) << "ferry-cu" << i;
    if (!start_thread(name, run_cu, &process->cus[i])) give_up("a compute unit's thread", EAGAIN);
  }
  if (!start_thread("ferry-watch", watch, nullptr)) give_up("a thread", EAGAIN);
  for (std::uint32_t there = 0; there != cu_count + 1; there = gate.arrived.load(std::memory_order_seq_cst)) {
    linux::futex_wait(gate.arrived, there);
  }
}

void say_hello(const DeviceStart& start, int userfaultfd) {
  wire::DeviceHello hello{};
  hello.pid = static_cast<std::uint32_t>(getpid());
  hello.device = start.device;
  const int fds[] = {userfaultfd};
  const Status sent =
      linux::send_message(start.manager_socket, wire::MessageType::device_hello, 0, hello, std::span<const int>(fds));
  if (!sent.ok()) give_up("greeting the manager", sent.sys_errno);
}

/// On a stack of the device's own; the transfer's data is an address in the application's.
[[noreturn]] void device_main(boost::context::detail::transfer_t transfer) {
  const DeviceStart& start = process->start;
  if (start.cu_count == 0 || start.cu_count > wire::max_cus) give_up("a device has 1 to 64 compute units", 0);
  prctl(PR_SET_NAME, "ferry-device");
  process->control = map_control<wire::DeviceControl>(start.control_fd, "mapping the control file");
  process->queue_control = map_control<wire::QueueControl>(start.queue_fd, "mapping the queues");
  install_signals(process->memory, process->control->adopts != 0);
  process->queues.open(*process->queue_control, start.cu_count);
  process->units.open(*process->control, process->queues, start.cu_count);
  process->cus = static_cast<Cu*>(map_own(sizeof(Cu) * start.cu_count));
  if (process->cus == nullptr) give_up("memory for compute units", errno);
  for (unsigned i = 0; i < start.cu_count; ++i) {
    new (process->cus + i) Cu;
    if (!process->cus[i].open(i, start.waves_per_cu, *process->control, process->queues, process->units,
                              process->memory, start.kick_fd)) {
      give_up("stacks for waves", errno);
    }
  }
  keep_own_environment();
  find_calls();
  start_threads(start.cu_count);
  // Before any kernel can run, and after loader and C library have needed it last: globals, then the window, which is the heap
  // with Ferry's malloc, then the heap that the C library had.
  int given_up = give_up_program_data();
  const char* failed = nullptr;
  const int error =
      process->memory.open(start.window_base, start.window_bytes, start.system_fd, start.vram_fd, &failed);
  if (error != 0) give_up(failed, error);
  if (given_up == 0) given_up = give_up_program_memory();
  if (given_up != 0) give_up("the program's globals and heap", given_up);
  hide_application_stack(transfer.data);
  say_hello(start, process->memory.userfaultfd());
  gate.open.store(1, std::memory_order_seq_cst);
  linux::futex_wake(gate.open, INT_MAX);
  process->queue_control->device_state.store(1, std::memory_order_seq_cst);
  linux::futex_wake(process->queue_control->device_state, INT_MAX);
  run_agent(*process->control, process->memory, process->units, {process->cus, start.cu_count}, start.kick_fd,
            start.manager_socket, start.files_socket);
}

}  // namespace

wire::QueueControl* process_queues() { return process != nullptr ? process->queue_control : nullptr; }

bool in_device() { return process != nullptr; }

const WaveInfo* current_wave() {
  const Cu* cu = current_cu();
  return cu != nullptr && cu->running() != nullptr ? &cu->running()->wave : nullptr;
}

void run_device(const DeviceStart& start) {
  linux::raise_descriptor_limit();  // it holds the file of each buffer that is mapped in it
  void* memory = map_own(sizeof(Process));
  auto* stack = static_cast<std::byte*>(map_own(thread_stack_bytes));
  if (memory == nullptr || stack == nullptr) give_up("memory", errno);
  process = new (memory) Process;
  process->start = start;
  // The application's stack is hidden later on.
  const auto context =
      boost::context::detail::make_fcontext(stack + thread_stack_bytes, thread_stack_bytes, &device_main);
  boost::context::detail::jump_fcontext(context, &memory);
  _exit(70);
}

}  // namespace ferry::device
