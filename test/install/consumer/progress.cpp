// Uses libferry_progress alone.
#include <ferry/progress.hpp>

#include <cstdio>

int main() {
  ferry::progress::Model model;
  const auto fences = model.define(ferry::progress::Kind::fence, "fence");
  ferry::progress::Node a = model.add(fences, 1);
  ferry::progress::Node b = model.add(fences, 2);
  a.wait(b);
  b.wait(a);
  for (const auto& report : model.take()) std::puts(report.text.c_str());
}
