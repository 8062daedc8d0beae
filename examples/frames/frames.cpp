// Frames on their way to a screen: a graphics job draws into a buffer, the video engine makes it smaller, a copy engine
// brings it where it is shown. Nobody waits for anybody but at the end: jobs are in order by the buffers they share.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ferry/work.hpp>
#include <vector>

namespace {

constexpr unsigned width = 640;
constexpr unsigned height = 360;

/// A pixel of frame number `t`: rings that grow.
std::uint32_t colour(std::size_t i, unsigned t) {
  const unsigned x = static_cast<unsigned>(i % width);
  const unsigned y = static_cast<unsigned>(i / width);
  const unsigned d = (x - width / 2) * (x - width / 2) + (y - height / 2) * (y - height / 2) + 64 * t;
  return 0xff000000U | (d & 0xff) << 16 | (d >> 4 & 0xff) << 8 | (d >> 8 & 0xff);
}

/// The same on the CPU, to compare.
std::vector<unsigned char> expected(unsigned t) {
  std::vector<unsigned char> big(std::size_t{width} * height * 4);
  for (std::size_t i = 0; i < std::size_t{width} * height; ++i) {
    const std::uint32_t c = colour(i, t);
    std::memcpy(&big[4 * i], &c, 4);
  }
  std::vector<unsigned char> half(big.size() / 4);
  for (std::size_t at = 0; at < half.size(); ++at) {
    const std::size_t row = at / (width * 2) * 2 * width * 4;
    const std::size_t first = row + at % (width * 2) / 4 * 8 + at % 4;
    const std::size_t below = first + width * 4;
    half[at] = static_cast<unsigned char>((big[first] + big[first + 4] + big[below] + big[below + 4] + 2) >> 2);
  }
  return half;
}

}  // namespace

int main(int argc, char** argv) {
  const unsigned frames = argc > 1 ? static_cast<unsigned>(std::strtoul(argv[1], nullptr, 10)) : 60;
  const ferry::buffer drawn(width * height * 4, ferry::in_vram(0));
  const ferry::buffer scaled(width * height, ferry::in_vram(0));
  const ferry::buffer shown(std::size_t{width} * height * frames);  // all of them, one after the other
  auto* const pixels = drawn.map<std::uint32_t>();

  std::vector<ferry::fence> fences;
  for (unsigned t = 0; t < frames; ++t) {
    const ferry::fence picture = ferry::submit_graphics(
        {.buffers = {ferry::writes(drawn)}}, width * height, [=](std::size_t i) { pixels[i] = colour(i, t); }, "draw");
    const ferry::fence small =
        ferry::submit_video({}, {.op = ferry::video_op::half, .width = width, .height = height}, scaled, drawn);
    fences.push_back(ferry::submit_copy({}, shown, std::size_t{width} * height * t, scaled, 0, width * height));
  }
  for (const ferry::fence& f : fences) f.wait();

  unsigned wrong = 0;
  const auto* const bytes = shown.map<unsigned char>();
  for (unsigned t = 0; t < frames; ++t) {
    const auto want = expected(t);
    if (std::memcmp(bytes + want.size() * t, want.data(), want.size()) != 0) ++wrong;
  }
  std::printf("%u frames of %ux%u: drawn, halved, copied; %u wrong\n", frames, width, height, wrong);
  return wrong == 0 ? 0 : 1;
}
