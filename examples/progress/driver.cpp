// A driver asks: does my fence model deadlock? It tells libferry_progress who waits for whom, as a real one would beside
// its own queues and locks, and prints what it hears.
//   progress wrong      three mistakes that drivers make; exit status 1, because something was told
//   progress repaired   the same driver without them; exit status 0
#include <ferry/progress.hpp>

#include <cstdio>
#include <cstring>

namespace {

using ferry::progress::Class;
using ferry::progress::Kind;
using ferry::progress::Model;
using ferry::progress::Needs;
using ferry::progress::Node;

class Driver {
 public:
  explicit Driver(bool repaired) : repaired_(repaired) {
    model_.on_report([this](const ferry::progress::Report& report) {
      std::printf("  [%s] %s\n", to_string(report.what), report.text.c_str());
      ++told_;
    });
  }

  // A compute wave holds the unit that a frame needs. The wave faults, repair needs memory, and the only memory that
  // reclaim finds belongs to the frame. Repaired: a wave that faults leaves its unit.
  void frame_beside_compute() {
    std::puts("a frame is submitted while a compute wave faults:");
    Node unit = model_.add(units_, 0);
    Node wave = model_.add(waves_, 3);
    wave.acquire(unit);

    Node frame = model_.add(fences_, 42);
    frame.publish();  // in the buffer's reservation: whoever wants the buffer waits for it
    frame.wait(unit);

    Node fault = model_.add(faults_, 17);
    Node memory = model_.add(memory_, ferry::progress::unnumbered, Needs::any);
    if (repaired_) wave.release(unit);
    wave.wait(fault);
    fault.wait(memory);
    memory.wait(frame);

    // The machine goes on, if it can: the frame gets the unit, signals, and its memory repairs the fault.
    if (const auto stuck = frame.stuck(); !stuck.empty()) std::puts("  the frame never ends.");
    wave.done_all();
    if (!repaired_) wave.release(unit);
    frame.acquire(unit);
    frame.release(unit);
    frame.signal();
  }

  // Submission locks the address space, then the ring; the reset path the other way round. It never met itself in this
  // run, there is but one thread.
  void submit_and_reset() {
    std::puts("a submission, and later a reset:");
    Node space = model_.add(space_lock_);
    Node ring = model_.add(ring_lock_);
    {
      Node thread = model_.add(threads_, 1);
      thread.describe("in submit()");
      thread.acquire(space);
      thread.acquire(ring);
      thread.release(ring);
      thread.release(space);
    }
    Node thread = model_.add(threads_, 2);
    thread.describe("in reset()");
    Node& first = repaired_ ? space : ring;
    Node& second = repaired_ ? ring : space;
    thread.acquire(first);
    thread.acquire(second);
    thread.release(second);
    thread.release(first);
  }

  // A job fails on its way to the ring, and the error path frees it without a thought for those who wait for its fence.
  void failed_job() {
    std::puts("a job that fails before it reaches the ring:");
    Node display = model_.add(threads_, 5);
    display.describe("of the display");
    Node fence = model_.add(fences_, 43);
    fence.publish();
    display.wait(fence);
    if (repaired_) fence.signal();  // with an error
  }

  int told() {
    model_.finish();
    return told_;
  }

 private:
  bool repaired_;
  int told_ = 0;
  Model model_;
  Class waves_ = model_.define(Kind::work, "wave");
  Class threads_ = model_.define(Kind::work, "thread");
  Class units_ = model_.define(Kind::engine, "compute unit");
  Class fences_ = model_.define(Kind::fence, "fence");
  Class faults_ = model_.define(Kind::fault, "fault");
  Class memory_ = model_.define(Kind::memory, "memory");
  Class space_lock_ = model_.define(Kind::lock, "address space lock");
  Class ring_lock_ = model_.define(Kind::lock, "ring lock");
};

}  // namespace

int main(int argc, char** argv) {
  const bool wrong = argc == 2 && std::strcmp(argv[1], "wrong") == 0;
  if (!wrong && (argc != 2 || std::strcmp(argv[1], "repaired") != 0)) {
    std::fputs("usage: progress wrong|repaired\n", stderr);
    return 2;
  }
  Driver driver(!wrong);
  driver.frame_beside_compute();
  driver.submit_and_reset();
  driver.failed_job();
  const int told = driver.told();
  std::printf(told == 0 ? "clean\n" : "%d things were told\n", told);
  return told == 0 ? 0 : 1;
}
