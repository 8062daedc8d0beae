// One application of the soak: everything that the public API has, from a seed, each result checked against what the CPU
// knows it must be.
#include <poll.h>
#include <unistd.h>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>

#include "roles.h"
#include "work.h"

namespace ferry::demo {
namespace {

constexpr std::uint64_t page = 4096;
constexpr unsigned side = 256;  // of the pictures, in pixels
constexpr std::uint64_t picture_bytes = std::uint64_t{side} * side * 4;

class Mixed {
 public:
  explicit Mixed(const RoleOptions& options) : options_(options), random_(options.seed) {
    renew_memory();
    for (unsigned d = 0; d < options.devices; ++d) {
      Picture& p = pictures_.emplace_back();
      p.device = d;
      p.buffer = make_buffer(picture_bytes, random_() % 2 == 0 ? static_cast<int>(d) : FERRY_IN_SYSTEM);
      p.half = make_buffer(picture_bytes / 4);
      p.pixels = map(p.buffer);
      p.halves = map(p.half);
    }
  }
  ~Mixed() { ferry_free(words_, nullptr); }
  Mixed(const Mixed&) = delete;
  Mixed& operator=(const Mixed&) = delete;

  void run() {
    using Clock = std::chrono::steady_clock;
    const auto start = Clock::now();
    auto last = start;
    std::uint64_t steps = 0;
    const auto seconds = [&] { return std::chrono::duration<double>(Clock::now() - start).count(); };
    while (seconds() < options_.seconds && wrong_ == 0) {
      step();
      ++steps;
      if (Clock::now() - last > std::chrono::milliseconds(500)) {
        last = Clock::now();
        std::printf("alive %llu\n", static_cast<unsigned long long>(steps));
        std::fflush(stdout);
      }
    }
    check_all();
    std::printf("wrong %llu %s\n", static_cast<unsigned long long>(wrong_), what_.c_str());
    std::printf("done\n");
    std::fflush(stdout);
  }
  [[nodiscard]] bool well() const { return wrong_ == 0; }

 private:
  struct Picture {
    unsigned device = 0;
    Buffer buffer;
    Buffer half;
    std::uint8_t* pixels = nullptr;
    std::uint8_t* halves = nullptr;
    std::uint8_t value = 0;  ///< of every byte
    std::uint8_t half_value = 0;
  };

  void step() {
    switch (random_() % 10) {
      case 0:
      case 1:
      case 2: kernel(); break;
      case 3: touch(); break;
      case 4: brighten(some_picture()); break;
      case 5: shrink(some_picture()); break;
      case 6: copy(); break;
      case 7: user_memory(); break;
      case 8: hold_back(); break;
      default:
        if (random_() % 8 == 0) {
          renew_memory();
        } else {
          move();
        }
    }
  }

  Picture& some_picture() { return pictures_[random_() % pictures_.size()]; }

  void expect(bool good, const char* what) {
    if (good) return;
    if (wrong_++ == 0) what_ = what;
  }

  /// Other memory, or the same, fresh.
  void renew_memory() {
    if (words_ != nullptr) {
      check_all();
      ferry_free(words_, nullptr);
    }
    pages_ = options_.bytes / page * (50 + random_() % 50) / 100;
    ferry_error error{};
    words_ =
        static_cast<std::uint64_t*>(or_throw(ferry_alloc_aligned(pages_ * page, page, FERRY_AUTOMATIC, &error), error));
    shadow_.assign(pages_, 0);
    for (std::uint64_t i = 0; i < pages_; ++i) words_[i * (page / 8)] = 0;
  }

  void kernel() {
    const std::uint64_t first = random_() % pages_;
    const std::uint64_t count = 1 + random_() % (pages_ - first);
    const auto device = static_cast<unsigned>(random_() % options_.devices);
    ferry::queue queue(device);
    queue
        .parallel_for(
            count, [at = words_ + first * (page / 8)](std::size_t i) { at[i * (page / 8)] += i + 1; }, "add")
        .wait();
    for (std::uint64_t i = 0; i < count; ++i) shadow_[first + i] += i + 1;
  }

  void touch() {
    for (unsigned n = 0; n < 16; ++n) {
      const std::uint64_t at = random_() % pages_;
      expect(words_[at * (page / 8)] == shadow_[at], "managed memory");
      words_[at * (page / 8)] = ++shadow_[at];
    }
  }

  void move() {
    const std::uint64_t first = random_() % pages_;
    const std::uint64_t count = 1 + random_() % (pages_ - first);
    const int device = random_() % 3 == 0 ? -1 : static_cast<int>(random_() % options_.devices);
    ferry_prefetch(words_ + first * (page / 8), count * page, device, nullptr);
  }

  ferry_job_options job_on(unsigned device) {
    ferry_job_options job{};
    job.device = device;
    job.priority = static_cast<unsigned>(1 + random_() % 4);
    job.timeout_ns = 60'000'000'000;
    return job;
  }

  Fence brighten_later(Picture& p) {
    ++p.value;
    return submit_graphics(job_on(p.device), {{p.buffer.get(), 1}}, picture_bytes / page, 8, "brighten",
                           [pixels = p.pixels](std::uint64_t at) {
                             for (std::uint64_t i = at * page; i < (at + 1) * page; ++i)
                               pixels[i] = static_cast<std::uint8_t>(pixels[i] + 1);
                           });
  }

  void brighten(Picture& p) {
    Fence last;
    for (std::uint64_t n = 1 + random_() % 4; n > 0; --n) last = brighten_later(p);
    wait(last);
    const std::uint64_t at = random_() % picture_bytes;
    expect(p.pixels[at] == p.value, "a picture that graphics drew");
  }

  void shrink(Picture& p) {
    ferry_video video{};
    video.op = FERRY_VIDEO_HALF;
    video.width = side;
    video.height = side;
    const Fence fence = submit_video(job_on(p.device), video, p.half, p.buffer);
    p.half_value = p.value;
    wait(fence);
    expect(p.halves[random_() % (picture_bytes / 4)] == p.half_value, "a picture that video halved");
  }

  void copy() {
    Picture& from = some_picture();
    Picture& to = some_picture();
    if (&from == &to) return;
    // Without a wait in between: the buffers' own fences put them in order.
    const Fence first = brighten_later(from);
    const Fence second = submit_copy(job_on(to.device), to.buffer, 0, from.buffer, 0, picture_bytes);
    to.value = from.value;
    const Fence third = brighten_later(to);
    wait(third);
    expect(to.pixels[random_() % picture_bytes] == to.value, "a picture that was copied");
    expect(from.pixels[random_() % picture_bytes] == from.value, "a picture that was copied from");
  }

  void user_memory() {
    const std::uint64_t bytes = picture_bytes / 4;
    ferry_error error{};
    auto* memory =
        static_cast<std::uint8_t*>(or_throw(ferry_alloc_aligned(bytes, page, FERRY_AUTOMATIC, &error), error));
    Picture& p = some_picture();
    {
      const Buffer user(or_throw(ferry_buffer_from_memory(memory, bytes, 0, &error), error));
      for (unsigned round = 0; round < 2; ++round) {
        brighten(p);
        wait(submit_copy(job_on(p.device), user, 0, p.buffer, 0, bytes));
        expect(memory[random_() % bytes] == p.value, "the program's own memory, written by a copy engine");
      }
    }
    ferry_free(memory, nullptr);
  }

  /// A job that waits for a point that nobody has promised, which the CPU then signals.
  void hold_back() {
    ferry_error error{};
    ferry_timeline* timeline = or_throw(ferry_timeline_create(&error), error);
    Picture& p = some_picture();
    const ferry_job_point point{timeline, 1};
    ferry_job_options job = job_on(p.device);
    job.wait_points = &point;
    job.wait_point_count = 1;
    const ferry_job_buffer used{p.buffer.get(), 1};
    job.buffers = &used;
    job.buffer_count = 1;
    const Fence fence = submit_copy(job, p.half, 0, p.buffer, 0, picture_bytes / 4);
    p.half_value = p.value;
    expect(ferry_fence_query(fence.get(), nullptr) != FERRY_FENCE_SIGNALLED, "a job that was to be held back");
    ferry_timeline_signal(timeline, 1, nullptr);
    wait(fence);
    expect(p.halves[random_() % (picture_bytes / 4)] == p.half_value, "a copy that was held back");
    const int fd = ferry_fence_export(fence.get(), nullptr);
    ferry_code status = FERRY_OK;
    expect(fd >= 0 && ferry_sync_fd_status(fd, &status) == 1 && status == FERRY_OK, "an exported fence");
    if (fd >= 0) close(fd);
    ferry_timeline_close(timeline);
  }

  void check_all() {
    for (std::uint64_t i = 0; i < pages_; ++i)
      expect(words_[i * (page / 8)] == shadow_[i], "managed memory at the end");
    for (const Picture& p : pictures_) {
      for (std::uint64_t i = 0; i < picture_bytes; i += 509) expect(p.pixels[i] == p.value, "a picture at the end");
      for (std::uint64_t i = 0; i < picture_bytes / 4; i += 509)
        expect(p.halves[i] == p.half_value, "a half at the end");
    }
  }

  RoleOptions options_;
  std::mt19937_64 random_;
  std::uint64_t* words_ = nullptr;
  std::uint64_t pages_ = 0;
  std::vector<std::uint64_t> shadow_;  ///< what the first word of each page has to be
  std::vector<Picture> pictures_;
  std::uint64_t wrong_ = 0;
  std::string what_;
};

}  // namespace

int mixed_role(const RoleOptions& options) {
  try {
    Mixed mixed(options);
    mixed.run();
    return mixed.well() ? 0 : 1;
  } catch (const ferry::error& e) {
    std::printf("error %s\n", e.what());
    std::fflush(stdout);
    return 1;
  }
}

int settle_role(const RoleOptions& options) {
  // The machine is left alone when nobody but this process is there: then nothing may be held any more.
  ferry::context session;
  std::string text;
  for (int i = 0; i < static_cast<int>(options.seconds * 20); ++i) {
    text.assign(1 << 20, '\0');
    text.resize(std::min(ferry_stats(text.data(), text.size(), nullptr), text.size()));
    if (text.find("\"vram_bytes_now\": 0,") != std::string::npos && text.find("\"clients\": 1,") != std::string::npos)
      break;
    poll(nullptr, 0, 50);
  }
  std::string line;
  for (const char c : text) line += c == '\n' || c == '\0' ? ' ' : c;
  std::printf("stats %s\n", line.c_str());
  std::fflush(stdout);
  return 0;
}

}  // namespace ferry::demo
