#include <ferry/ferry.hpp>
#include <stdexcept>
#include <string>

#include "own_library.h"

namespace ferry::test {

int library_initialised = 5;
std::vector<int> library_vector(3000, 4);

namespace {
int hidden = 17;
}  // namespace

int& library_hidden() { return hidden; }
int& library_of_a_function() {
  static int n = 20 + static_cast<int>(library_vector.size() / 1000);
  return n;
}

void run_library_kernel() {
  ferry::parallel_for(1, [](std::size_t) {
    ++library_initialised;
    ++hidden;
    ++library_of_a_function();
    for (int& v : library_vector) ++v;
    try {
      if (hidden > 0) throw std::runtime_error(std::string(100, 'x'));
    } catch (const std::exception& e) {
      hidden += e.what()[99] == 'x' ? 1 : 0;
    }
  });
}

}  // namespace ferry::test
