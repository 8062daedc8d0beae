// The application of checkpoint_test: `save FILE` makes data and saves them, and says where they begin; `restore FILE ROOT`
// is another process, in which they are restored, used on a device, and freed; `mutate FILE ROOT COUNT` tries damaged copies.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ferry/ferry.hpp>
#include <ferry/svm.hpp>
#include <random>
#include <string>
#include <vector>

#include <ferry/svm.hpp>

namespace {

#define EXPECT(condition)                                                          \
  do {                                                                             \
    if (!(condition)) {                                                            \
      std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                                \
    }                                                                              \
  } while (false)

constexpr std::size_t page = 4096;
constexpr std::size_t words = 3 * 512 * 512 / 4;  // of the array: 1.5 MiB
constexpr std::size_t nodes = 500;

struct Node {
  Node* next;
  std::uint64_t value;
};

struct Root {
  Node* list;
  std::uint64_t* array;
  std::uint64_t* sparse;  ///< 64 pages of zeros but for two words
  std::uint64_t* result;
};

std::uint64_t value_of(std::size_t i) { return i * 0x9e37'79b9'7f4a'7c15U; }

/// Pages that are read mostly, read by the device and by this thread: each has a copy. The file gets one, and whoever
/// restores it none but what it asks for.
void read_by_all(const Root* root) {
  ferry::parallel_for(1, [root](std::size_t) {
    std::uint64_t sum = 0;
    for (std::size_t i = 512; i < 4 * 512; ++i) sum += root->sparse[i];
    *root->result = sum;
  });
  EXPECT(*root->result == 0);
  for (std::size_t i = 512; i < 4 * 512; i += 512) {
    EXPECT(root->sparse[i] == 0);
    const std::uint32_t copies = ferry::copies_of(root->sparse + i);
    EXPECT((copies & FERRY_COPY_SYSTEM) != 0 && (copies & ~FERRY_COPY_SYSTEM) != 0);
  }
}

Root* make() {
  auto* root = static_cast<Root*>(ferry::alloc(sizeof(Root)));
  *root = {};
  void* holes[nodes];
  for (std::size_t i = 0; i < nodes; ++i) {
    auto* node = static_cast<Node*>(ferry::alloc(sizeof(Node)));
    holes[i] = ferry::alloc(40 + i);
    *node = {root->list, i};
    root->list = node;
  }
  for (void* hole : holes) ferry::free(hole);
  root->array = static_cast<std::uint64_t*>(ferry::alloc_aligned(words * 8, page));
  root->sparse = static_cast<std::uint64_t*>(ferry::alloc_aligned(64 * page, page));
  root->result = static_cast<std::uint64_t*>(ferry::alloc(8, ferry::placement::system));
  std::memset(root->sparse, 0, 64 * page);
  // Most of the newest bytes lie in VRAM.
  ferry::parallel_for(words, [a = root->array](std::size_t i) { a[i] = value_of(i); });
  ferry::parallel_for(2, [s = root->sparse](std::size_t i) { s[i * 63 * 512 + 7] = 5 + i; });
  const ferry_svm_attribute lines[] = {{FERRY_SVM_GRANULARITY, 0, 3, 0},
                                       {FERRY_SVM_SET_FLAGS, 0, FERRY_SVM_READ_MOSTLY, 0},
                                       {FERRY_SVM_PREFERRED_LOC, 0, 1, 0}};
  ferry_error error{};
  EXPECT(ferry_svm_set(root->sparse + 512, 3 * page, lines, 3, &error) == FERRY_OK);
  read_by_all(root);
  return root;
}

/// Everything is as make() made it, seen from here and from a device; then it is freed.
void check_and_free(Root* root) {
  std::size_t count = nodes;
  for (Node* node = root->list; node != nullptr; node = node->next) EXPECT(node->value == --count);
  EXPECT(count == 0);
  for (std::size_t i = 0; i < 64 * 512; ++i) {
    EXPECT(root->sparse[i] == (i == 7 ? 5U : i == 63 * 512 + 7 ? 6U : 0U));
  }
  ferry::parallel_for(1, [root](std::size_t) {
    std::uint64_t sum = 0;
    for (Node* node = root->list; node != nullptr; node = node->next) sum += ++node->value;
    for (std::size_t i = 0; i < words; ++i) sum += root->array[i] == value_of(i) ? 1U : 0U;
    *root->result = sum;
  });
  EXPECT(*root->result == nodes * (nodes + 1) / 2 + words);
  read_by_all(root);
  for (std::size_t i = 0; i < words; ++i) EXPECT(root->array[i] == value_of(i));
  ferry_svm_attribute lines[] = {
      {FERRY_SVM_GRANULARITY, 0, 0, 0}, {FERRY_SVM_SET_FLAGS, 0, 0, 0}, {FERRY_SVM_PREFERRED_LOC, 0, 0, 0}};
  EXPECT(ferry_svm_get(root->sparse + 512, 3 * page, lines, 3, nullptr) == FERRY_OK);
  EXPECT(lines[0].value == 3 && (lines[1].value & FERRY_SVM_READ_MOSTLY) != 0 && lines[2].value == 1);
  EXPECT(ferry_svm_get(root->sparse, page, lines, 3, nullptr) == FERRY_OK);
  EXPECT(lines[0].value == 9 && (lines[1].value & FERRY_SVM_READ_MOSTLY) == 0 && lines[2].value == FERRY_LOC_UNDEFINED);
  EXPECT(ferry_free(reinterpret_cast<char*>(root->array) + 16, nullptr) == FERRY_NOT_ALLOCATED);
  for (Node* node = root->list; node != nullptr;) {
    Node* next = node->next;
    ferry::free(node);
    node = next;
  }
  ferry::free(root->array);
  EXPECT(ferry_free(root->array, nullptr) == FERRY_NOT_ALLOCATED);
  ferry::free(root->sparse);
  ferry::free(root->result);
  ferry::free(root);
}

/// A fork's child has what was restored, its own from then on, and so has a child of that one.
void check_in_child(Root* root) {
  root->array[0] = 1;  // seen from the CPU, beside much that is in the file alone
  const pid_t child = fork();
  EXPECT(child >= 0);
  if (child == 0) {
    EXPECT(root->array[0] == 1);
    const pid_t own = fork();
    for (std::size_t i = 1; i < words; ++i) {
      if (root->array[i] != value_of(i)) _exit(1);
      root->array[i] = own == 0 ? 2 : 3;
    }
    std::size_t count = nodes;
    for (Node* node = root->list; node != nullptr;) {
      Node* next = node->next;
      if (node->value != --count) _exit(2);
      ferry::free(node);
      node = next;
    }
    int status = 0;
    if (own != 0 && (waitpid(own, &status, 0) != own || status != 0)) _exit(3);
    for (std::size_t i = 1; i < words; ++i) {
      if (root->array[i] != (own == 0 ? 2U : 3U)) _exit(4);
    }
    _exit(0);
  }
  int status = 0;
  EXPECT(waitpid(child, &status, 0) == child);
  if (status != 0) std::fprintf(stderr, "the child ended with %x\n", static_cast<unsigned>(status));
  EXPECT(status == 0);
  root->array[0] = value_of(0);
}

bool is_allocated(const void* pointer) {
  ferry_error error{};
  return ferry_prefetch(pointer, 1, FERRY_TO_CPU, &error) == FERRY_OK;
}

std::vector<char> contents_of(const char* path) {
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  EXPECT(fd >= 0);
  struct stat about {};
  EXPECT(fstat(fd, &about) == 0);
  std::vector<char> bytes(static_cast<std::size_t>(about.st_size));
  EXPECT(pread(fd, bytes.data(), bytes.size(), 0) == about.st_size);
  close(fd);
  return bytes;
}

ferry_code restore_bytes(const std::vector<char>& bytes, ferry_error& error) {
  const int fd = memfd_create("mutant", MFD_CLOEXEC);
  EXPECT(fd >= 0 && pwrite(fd, bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size()));
  const ferry_code code = ferry_checkpoint_restore(fd, &error);
  close(fd);
  return code;
}

void mutate(const char* path, Root* root, unsigned long count) {
  const std::vector<char> good = contents_of(path);
  std::mt19937_64 random(11);
  const auto draw = [&](std::uint64_t below) { return random() % below; };
  unsigned long refused = 0;
  for (unsigned long i = 0; i < count; ++i) {
    std::vector<char> bad = good;
    switch (draw(5)) {
      case 0: bad.resize(draw(bad.size())); break;
      case 1: bad[draw(bad.size())] ^= static_cast<char>(1U << draw(8)); break;
      case 2: bad[draw(std::min<std::size_t>(bad.size(), 2048))] = static_cast<char>(random()); break;
      case 3: {
        const std::uint64_t word = draw(2) == 0 ? ~0ULL : random();
        std::memcpy(bad.data() + draw(std::min<std::size_t>(bad.size(), 20'000) - 8), &word, 8);
        break;
      }
      default: bad.erase(bad.begin() + static_cast<long>(draw(bad.size())));
    }
    ferry_error error{};
    const ferry_code code = restore_bytes(bad, error);
    if (code == FERRY_OK) {
      check_and_free(root);  // by chance it was changed into itself
      continue;
    }
    ++refused;
    EXPECT(code == FERRY_BAD_MESSAGE || code == FERRY_UNSUPPORTED);
    EXPECT(std::strlen(error.text) > 20);
    if (i % 64 == 0) EXPECT(!is_allocated(root));
  }
  EXPECT(refused > count / 2);
  ferry_error error{};
  EXPECT(restore_bytes({}, error) == FERRY_BAD_MESSAGE);
  EXPECT(restore_bytes(good, error) == FERRY_OK);
  EXPECT(restore_bytes(good, error) == FERRY_OVERLAP);
  check_and_free(root);
  int ends[2];
  EXPECT(pipe(ends) == 0 && ferry_checkpoint_restore(ends[0], &error) == FERRY_UNSUPPORTED);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string verb = argc > 2 ? argv[1] : "";
  try {
    if (verb == "save") {
      Root* root = make();
      const int fd = open(argv[2], O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
      EXPECT(fd >= 0);
      const std::uint64_t bytes = ferry::machine().vram_bytes;
      EXPECT(bytes != 0);
      ferry_error error{};
      ferry::save_checkpoint(fd);
      std::printf("%p\n", static_cast<void*>(root));
      check_and_free(root);  // saving changed nothing
      EXPECT(ferry_checkpoint_save(-1, &error) == FERRY_IO_ERROR);
      return 0;
    }
    EXPECT(argc > 3);
    auto* root = reinterpret_cast<Root*>(std::strtoull(argv[3], nullptr, 16));
    if (verb == "restore") {
      const int fd = open(argv[2], O_RDONLY | O_CLOEXEC);
      ferry_error error{};
      ferry::restore_checkpoint(fd);
      void* other = ferry::alloc(1 << 20);  // beside what was restored
      std::memset(other, 0xee, 1 << 20);
      // What was restored can be saved again.
      const int again = memfd_create("again", MFD_CLOEXEC);
      EXPECT(ferry_checkpoint_save(again, &error) == FERRY_OK);
      check_in_child(root);
      check_and_free(root);
      EXPECT(!is_allocated(root));
      ferry::free(other);
      EXPECT(lseek(again, 0, SEEK_SET) == 0 && ferry_checkpoint_restore(again, &error) == FERRY_OK);
      check_and_free(root);
      return 0;
    }
    EXPECT(verb == "mutate" && argc == 5);
    mutate(argv[2], root, std::strtoul(argv[4], nullptr, 10));
    return 0;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s: %s\n", verb.c_str(), e.what());
    return 1;
  }
}
