#include <ferry/ferry.hpp>

#include <cstdio>
#include <vector>

template <typename T>
using managed = std::vector<T, ferry::allocator<T>>;

int main() {
  managed<managed<int>> rows(1000, managed<int>(1000, 1));  // ordinary containers ...
  ferry::parallel_for(rows.size(), [rows = rows.data()](std::size_t i) {
    for (int& cell : rows[i]) cell += static_cast<int>(i);  // ... followed by ordinary pointers on the device
  });
  std::printf("%d %d\n", rows[0][0], rows[999][999]);  // and back on the CPU: 1 1000
}
