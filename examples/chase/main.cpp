// Pointer chasing: the device looks keys up in a std::map and a std::unordered_map that the CPU built, and adds to what
// it finds, while CPU threads do the same to the same entries. Every addition of either side must be there at the end.
#include <CLI/CLI.hpp>

#include <atomic>
#include <map>
#include <unordered_map>

#include "common/example.h"

namespace example {
namespace {

struct Entry {
  std::uint64_t sum = 0;
  std::uint64_t payload[6] = {};
};

using Key = std::uint64_t;
using Tree = std::map<Key, Entry, std::less<>, ferry::allocator<std::pair<const Key, Entry>>>;
using Table =
    std::unordered_map<Key, Entry, std::hash<Key>, std::equal_to<>, ferry::allocator<std::pair<const Key, Entry>>>;

/// The n-th key: scattered, and no two alike (an odd multiplier is a bijection of 64-bit numbers).
constexpr Key key_of(std::uint64_t n) { return n * 0x9e3779b97f4a7c15; }

void add(Entry& entry, std::uint64_t amount) {
  std::atomic_ref(entry.sum).fetch_add(amount, std::memory_order_relaxed);
}

int run(std::uint64_t bytes, std::uint64_t rounds) {
  // A tree node has four words of its own, a table node two, and the table a word for its bucket.
  constexpr std::uint64_t pair_bytes = 2 * sizeof(std::pair<const Key, Entry>) + 7 * 8;
  const std::uint64_t n = std::max<std::uint64_t>(64, bytes / pair_bytes);
  // The containers themselves lie in managed memory too: the kernel follows them from their first word.
  auto tree_owner = ferry::make_unique<Tree>();
  auto table_owner = ferry::make_unique<Table>();
  Tree* tree = tree_owner.get();
  Table* table = table_owner.get();
  table->reserve(n);
  for (std::uint64_t i = 0; i < n; ++i) {
    (*tree)[key_of(i)].payload[0] = i;
    (*table)[key_of(i)].payload[0] = i;
  }
  describe(fmt::format("map and hash table of {} keys", n), n * pair_bytes);

  auto* wrong_lookups = static_cast<std::uint64_t*>(ferry::alloc(sizeof(std::uint64_t), ferry::placement::system));
  *wrong_lookups = 0;
  Timer timer;
  std::atomic<bool> stop{false};
  std::atomic<std::uint64_t> cpu_additions{0};
  std::vector<std::uint64_t> cpu_added(n, 0);
  // Two CPU threads go on updating entries, by the same atomics, for as long as the device runs.
  std::vector<std::thread> threads;
  for (std::uint64_t t = 0; t < 2; ++t) {
    threads.emplace_back([&, t] {
      std::uint64_t done = 0;
      for (std::uint64_t i = t; !stop.load(std::memory_order_relaxed); i = (i + 2 * 7919) % n) {
        add(tree->find(key_of(i))->second, 1);
        add(table->find(key_of(i))->second, 1);
        std::atomic_ref(cpu_added[i]).fetch_add(1, std::memory_order_relaxed);
        ++done;
      }
      cpu_additions += done;
    });
  }
  for (std::uint64_t round = 0; round < rounds; ++round) {
    ferry::parallel_for(
        n,
        [=](std::size_t i) {
          const auto in_tree = tree->find(key_of(i));
          const auto in_table = table->find(key_of(i));
          if (in_tree == tree->end() || in_table == table->end() || in_tree->second.payload[0] != i ||
              in_table->second.payload[0] != i) {
            std::atomic_ref(*wrong_lookups).fetch_add(1);
            return;
          }
          add(in_tree->second, 1000);
          add(in_table->second, 1000);
        },
        "chase");
  }
  stop = true;
  for (auto& thread : threads) {
    thread.join();
  }
  fmt::print("  {} look-ups on the device beside {} on the CPU: {:.3f} s\n", 2 * n * rounds, 2 * cpu_additions.load(),
             timer.seconds());

  std::uint64_t wrong = *wrong_lookups;
  for (std::uint64_t i = 0; i < n; ++i) {
    const std::uint64_t wanted = cpu_added[i] + 1000 * rounds;
    wrong += tree->at(key_of(i)).sum != wanted ? 1 : 0;
    wrong += table->at(key_of(i)).sum != wanted ? 1 : 0;
  }
  ferry::free(wrong_lookups);
  return verdict("  additions of both sides", wrong, 2 * n);
}

}  // namespace
}  // namespace example

int main(int argc, char** argv) {
  CLI::App app{
      "Look-ups in a std::map and a hash table on the device while CPU threads update them.\n"
      "Example: ferry run --vram 32M -- chase --rounds 2"};
  std::uint64_t data_mib = 0;
  std::uint64_t rounds = 2;
  app.add_option("--data", data_mib, "MiB of managed data (default: twice the device's memory)")
      ->check(CLI::Range(1, 1 << 20));
  app.add_option("--rounds", rounds, "times that the device visits every key")->check(CLI::Range(1, 1000));
  CLI11_PARSE(app, argc, argv);
  try {
    return example::run(example::data_bytes(data_mib), rounds);
  } catch (const std::exception& e) {
    fmt::print(stderr, "chase: {}\n", e.what());
    return EXIT_FAILURE;
  }
}
