// Heat that spreads over a plate: a five-point stencil between two grids, with a picture before and after.
#include <CLI/CLI.hpp>

#include <cmath>
#include <fstream>
#include <string>
#include <vector>

#include "common/example.h"

namespace example {
namespace {

using Cell = float;
constexpr Cell rate = 0.2F;

struct Plate {
  std::size_t width = 0;
  std::size_t height = 0;
};

/// Hot discs and cold bars on a lukewarm plate.
Cell initial(Plate plate, std::size_t x, std::size_t y) {
  const double u = static_cast<double>(x) / static_cast<double>(plate.width);
  const double v = static_cast<double>(y) / static_cast<double>(plate.height);
  for (int i = 0; i < 5; ++i) {
    const double cx = 0.15 + 0.17 * i;
    const double cy = 0.3 + 0.1 * std::sin(3.0 * i);
    if ((u - cx) * (u - cx) + (v - cy) * (v - cy) < 0.004) {
      return 1.0F;
    }
  }
  return v > 0.7 && v < 0.75 && u > 0.1 && u < 0.9 ? 0.0F : 0.35F;
}

template <typename From, typename To>
inline void update(From from, To to, std::size_t width, std::size_t row) {
  const Cell* above = from + (row - 1) * width;
  const Cell* here = from + row * width;
  const Cell* below = from + (row + 1) * width;
  Cell* out = to + row * width;
  for (std::size_t x = 1; x + 1 < width; ++x) {
    out[x] = here[x] + rate * (above[x] + below[x] + here[x - 1] + here[x + 1] - 4 * here[x]);
  }
}

/// A portable pixmap of at most 1024 pixels a side: blue is cold, red is hot.
void write_picture(const std::string& path, const Cell* cells, Plate plate) {
  const std::size_t step = std::max<std::size_t>(1, std::max(plate.width, plate.height) / 1024);
  const std::size_t w = plate.width / step;
  const std::size_t h = plate.height / step;
  std::string pixels;
  pixels.reserve(w * h * 3);
  for (std::size_t y = 0; y < h; ++y) {
    for (std::size_t x = 0; x < w; ++x) {
      const Cell t = std::min(1.0F, std::max(0.0F, cells[y * step * plate.width + x * step]));
      pixels += static_cast<char>(static_cast<int>(255 * t));
      pixels += static_cast<char>(static_cast<int>(255 * (1 - std::abs(2 * t - 1)) * 0.6F));
      pixels += static_cast<char>(static_cast<int>(255 * (1 - t)));
    }
  }
  std::ofstream file(path, std::ios::binary);
  file << "P6\n" << w << ' ' << h << "\n255\n" << pixels;
  if (!file.flush()) {
    throw std::runtime_error("cannot write " + path);
  }
  fmt::print("  wrote {} ({} x {})\n", path, w, h);
}

int run(Plate plate, int steps, const std::string& out) {
  const std::size_t cells = plate.width * plate.height;
  std::vector<Cell, ferry::allocator<Cell>> a(cells);
  std::vector<Cell, ferry::allocator<Cell>> b(cells);
  std::vector<Cell> wanted(cells);
  for (std::size_t y = 0; y < plate.height; ++y) {
    for (std::size_t x = 0; x < plate.width; ++x) {
      a[y * plate.width + x] = b[y * plate.width + x] = wanted[y * plate.width + x] = initial(plate, x, y);
    }
  }
  describe(fmt::format("heat on a plate of {} x {}", plate.width, plate.height), 2 * cells * sizeof(Cell));
  write_picture(out + "-before.ppm", a.data(), plate);

  Timer timer;
  Cell* from = a.data();
  Cell* to = b.data();
  for (int step = 0; step < steps; ++step) {
    ferry::parallel_for(
        plate.height - 2, [=](std::size_t i) { update(from, to, plate.width, i + 1); }, "heat step");
    std::swap(from, to);
  }
  fmt::print("  {} steps: {:.3f} s\n", steps, timer.seconds());
  write_picture(out + "-after.ppm", from, plate);

  std::vector<Cell> next = wanted;
  for (int step = 0; step < steps; ++step) {
    on_cpu(plate.height - 2, [&](std::uint64_t first, std::uint64_t last) {
      for (std::uint64_t i = first; i < last; ++i) {
        update(wanted.data(), next.data(), plate.width, i + 1);
      }
    });
    wanted.swap(next);
  }
  std::uint64_t wrong = 0;
  for (std::size_t i = 0; i < cells; ++i) {
    wrong += std::abs(from[i] - wanted[i]) > 1e-6F ? 1 : 0;
  }
  return verdict("  stencil", wrong, cells);
}

}  // namespace
}  // namespace example

int main(int argc, char** argv) {
  CLI::App app{
      "A 2-D stencil on twice the device's memory, with a picture before and after.\n"
      "Example: ferry run --vram 64M -- stencil --steps 10 --out /tmp/heat"};
  std::uint64_t data_mib = 0;
  int steps = 6;
  std::string out = "heat";
  app.add_option("--data", data_mib, "MiB of managed data (default: twice the device's memory)")
      ->check(CLI::Range(1, 1 << 20));
  app.add_option("--steps", steps, "time steps")->check(CLI::Range(1, 100000));
  app.add_option("--out", out, "pictures go to OUT-before.ppm and OUT-after.ppm");
  CLI11_PARSE(app, argc, argv);
  try {
    const std::uint64_t cells = example::data_bytes(data_mib) / (2 * sizeof(example::Cell));
    example::Plate plate;
    plate.width = std::max<std::size_t>(16, static_cast<std::size_t>(std::sqrt(static_cast<double>(cells))) / 16 * 16);
    plate.height = std::max<std::size_t>(16, cells / plate.width);
    return example::run(plate, steps, out);
  } catch (const std::exception& e) {
    fmt::print(stderr, "stencil: {}\n", e.what());
    return EXIT_FAILURE;
  }
}
