// Counts words in the text that lies on the machine. The kernel fills an open-addressing table with atomics; entries
// point to the words, each written once into a dictionary, so look-ups follow pointers from one managed array into
// another. Pointers into the text itself would do, but then every look-up touches text that was long passed, and the
// device's memory would have to hold all of it.
#include <CLI/CLI.hpp>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <unordered_map>

#include "common/example.h"

namespace example {
namespace {

struct Word {
  const char* text;  ///< null: free
  std::uint64_t count;
};

constexpr bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

/// Calls fn(begin, end) for each word that starts in [first, last).
template <typename Fn>
void for_words(const char* text, std::size_t size, std::size_t first, std::size_t last, Fn fn) {
  std::size_t i = first;
  if (i > 0) {
    while (i < last && is_letter(text[i]) && is_letter(text[i - 1])) {
      ++i;  // the word that began before belongs to whoever has its start
    }
  }
  while (i < last) {
    if (!is_letter(text[i])) {
      ++i;
      continue;
    }
    std::size_t end = i;
    while (end < size && is_letter(text[end])) {
      ++end;
    }
    fn(text + i, text + end);
    i = end;
  }
}

std::uint64_t hash_of(const char* begin, const char* end) {
  std::uint64_t h = 0xcbf29ce484222325;
  for (; begin != end; ++begin) {
    h = (h ^ static_cast<unsigned char>(*begin)) * 0x100000001b3;
  }
  return h ^ (h >> 29U);
}

bool same_word(const char* word, const char* begin, const char* end) {
  for (; begin != end; ++word, ++begin) {
    if (*word != *begin) {
      return false;
    }
  }
  return !is_letter(*word);
}

/// Text files below the usual places, until there are `bytes`, read again from the start if the machine has less.
std::string collect_text(std::size_t bytes, const std::vector<std::string>& roots, std::size_t& files,
                         unsigned& times) {
  namespace fs = std::filesystem;
  std::string text;
  text.reserve(bytes);
  files = 0;
  for (times = 0; text.size() < bytes && (times == 0 || files > 0); ++times) {
    for (const std::string& root : roots) {
      std::error_code error;
      for (auto it = fs::recursive_directory_iterator(root, fs::directory_options::skip_permission_denied, error);
           !error && it != fs::recursive_directory_iterator() && text.size() < bytes; it.increment(error)) {
        std::error_code ignored;
        const auto extension = it->path().extension();
        if (!it->is_regular_file(ignored) || it->is_symlink(ignored) || extension == ".gz" || extension == ".png" ||
            extension == ".so" || extension == ".a" || extension == ".pyc") {
          continue;
        }
        std::ifstream file(it->path(), std::ios::binary);
        std::string content(std::min<std::size_t>(it->file_size(ignored), bytes), '\0');
        if (!file.read(content.data(), static_cast<std::streamsize>(content.size()))) {
          continue;
        }
        if (content.empty() || content.find('\0') != std::string::npos) {
          continue;
        }
        text.append(content, 0, std::min(content.size(), bytes - text.size()));
        text += '\n';
        files += times == 0 ? 1 : 0;
      }
    }
  }
  return text;
}

/// Where the kernel writes words down: all of `text` is taken from the front, by whoever needs some.
struct Dictionary {
  char* text;
  std::size_t capacity;
  std::uint64_t* used;

  /// A copy that ends with NUL, or null where nothing is left.
  const char* copy(const char* begin, const char* end) const {
    const auto size = static_cast<std::size_t>(end - begin);
    const std::size_t at = std::atomic_ref(*used).fetch_add(size + 1, std::memory_order_relaxed);
    if (at + size + 1 > capacity) {
      return nullptr;
    }
    std::copy(begin, end, text + at);
    text[at + size] = '\0';
    return text + at;
  }
};

int run(std::uint64_t bytes, const std::vector<std::string>& roots) {
  // An eighth of the data each is the table and the dictionary, the rest is text.
  std::size_t slots = 16384;
  while (2 * slots * sizeof(Word) <= bytes / 8) {
    slots *= 2;
  }
  const std::size_t table_bytes = slots * sizeof(Word);
  if (bytes < 4 * table_bytes) {
    throw std::runtime_error("the data must be 1 MiB at least");
  }
  std::size_t files = 0;
  unsigned times = 0;
  const std::string source = collect_text(bytes - 2 * table_bytes, roots, files, times);
  if (source.empty()) {
    throw std::runtime_error("no text found below " + roots.front());
  }
  const std::size_t size = source.size();
  std::vector<char, ferry::allocator<char>> text(source.begin(), source.end());
  text.push_back('\0');
  std::vector<Word, ferry::allocator<Word>> table(slots, Word{nullptr, 0});
  std::vector<char, ferry::allocator<char>> words_written(table_bytes);
  // What every wave adds to lives where both sides reach it.
  auto* counters = static_cast<std::uint64_t*>(ferry::alloc(2 * sizeof(std::uint64_t), ferry::placement::system));
  std::uint64_t* lost = &counters[0];
  const Dictionary dictionary{words_written.data(), words_written.size(), &counters[1]};
  counters[0] = counters[1] = 0;
  describe(fmt::format("text of {} files{}", files, times > 1 ? fmt::format(", read {} times", times) : ""),
           text.size() + 2 * table_bytes);

  Timer timer;
  constexpr std::size_t piece = 16384;
  ferry::parallel_for(
      (size + piece - 1) / piece,
      [text = static_cast<const char*>(text.data()), table = table.data(), lost, dictionary, size,
       slots](std::size_t p) {
        for_words(text, size, p * piece, std::min(size, (p + 1) * piece), [&](const char* begin, const char* end) {
          std::size_t at = hash_of(begin, end) & (slots - 1);
          const char* written = nullptr;
          for (std::size_t probe = 0; probe < slots; ++probe, at = (at + 1) & (slots - 1)) {
            const char* there = std::atomic_ref(table[at].text).load(std::memory_order_acquire);
            if (there == nullptr) {
              written = written == nullptr ? dictionary.copy(begin, end) : written;
              if (written == nullptr) {
                break;
              }
              if (std::atomic_ref(table[at].text).compare_exchange_strong(there, written)) {
                there = written;
              }
            }
            if (there == written || same_word(there, begin, end)) {
              std::atomic_ref(table[at].count).fetch_add(1, std::memory_order_relaxed);
              return;
            }
          }
          std::atomic_ref(*lost).fetch_add(1);
        });
      },
      "count words");
  const double seconds = timer.seconds();

  std::unordered_map<std::string_view, std::uint64_t> wanted;
  std::uint64_t words = 0;
  for_words(source.data(), size, 0, size, [&](const char* begin, const char* end) {
    ++wanted[{begin, static_cast<std::size_t>(end - begin)}];
    ++words;
  });
  std::uint64_t wrong = *lost;
  std::size_t different = 0;
  std::vector<std::pair<std::uint64_t, std::string_view>> top;
  for (const Word& word : table) {
    if (word.text == nullptr) {
      continue;
    }
    ++different;
    const char* end = word.text;
    while (is_letter(*end)) {
      ++end;
    }
    const std::string_view name(word.text, static_cast<std::size_t>(end - word.text));
    const auto it = wanted.find(name);
    wrong += it == wanted.end() || it->second != word.count ? 1 : 0;
    top.emplace_back(word.count, name);
  }
  wrong += different != wanted.size() ? 1 : 0;
  std::partial_sort(top.begin(), top.begin() + static_cast<std::ptrdiff_t>(std::min<std::size_t>(5, top.size())),
                    top.end(), std::greater<>());
  fmt::print("  {} words, {} different: {:.3f} s; most often:", words, different, seconds);
  for (std::size_t i = 0; i < std::min<std::size_t>(5, top.size()); ++i) {
    fmt::print(" {} ({})", top[i].second, top[i].first);
  }
  fmt::print("\n");
  ferry::free(counters);
  return verdict("  word counts", wrong, wanted.size());
}

}  // namespace
}  // namespace example

int main(int argc, char** argv) {
  CLI::App app{
      "Counts the words of the machine's own text files on the device.\n"
      "Example: ferry run --vram 32M -- wordcount /usr/share/doc"};
  std::uint64_t data_mib = 0;
  std::vector<std::string> roots{"/usr/share/doc",  "/usr/share/common-licenses", "/usr/include",
                                 "/usr/share/perl", "/usr/lib/python3",           "/usr/lib/python3.11"};
  app.add_option("--data", data_mib, "MiB of managed data (default: twice the device's memory)")
      ->check(CLI::Range(1, 1 << 20));
  app.add_option("roots", roots, "folders to read");
  CLI11_PARSE(app, argc, argv);
  try {
    return example::run(example::data_bytes(data_mib), roots);
  } catch (const std::exception& e) {
    fmt::print(stderr, "wordcount: {}\n", e.what());
    return EXIT_FAILURE;
  }
}
