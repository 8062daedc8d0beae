// ferry_checkpoint_restore: the whole file is read and checked before anything is made of it; what then cannot be made
// is given back.
#include <ferry/svm.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>

#include <cerrno>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "base/types.h"
#include "client/checkpoint/format.h"
#include "client/checkpoint/restored.h"
#include "client/error.h"
#include "client/heap/process_heap.h"
#include "client/heap/size_classes.h"
#include "client/process_state.h"
#include "client/spans.h"
#include "client/svm/ask.h"
#include "core/svm/types.h"

using namespace ferry;                      // NOLINT(google-build-using-namespace)
using namespace ferry::client;              // NOLINT(google-build-using-namespace)
using namespace ferry::client::checkpoint;  // NOLINT(google-build-using-namespace)

namespace {

class Reader {
 public:
  Reader(int fd, std::uint64_t at, std::uint64_t end) : fd_(fd), at_(at), end_(end) {}
  [[nodiscard]] std::uint64_t left() const { return end_ - at_; }
  [[nodiscard]] std::uint64_t at() const { return at_; }
  void go(std::uint64_t to) { at_ = to; }
  /// False: the file ends before, or cannot be read.
  bool read(void* into, std::size_t bytes) {
    if (bytes > left()) return false;
    auto* to = static_cast<char*>(into);
    while (bytes != 0) {
      const ssize_t got = ::pread(fd_, to, bytes, static_cast<off_t>(at_));
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) return false;
      to += got;
      at_ += static_cast<std::uint64_t>(got);
      bytes -= static_cast<std::size_t>(got);
    }
    return true;
  }

 private:
  int fd_;
  std::uint64_t at_;
  std::uint64_t end_;
};

struct Checkpoint {
  FileHeader header{};
  std::vector<FileSpan> spans;
  std::vector<FileObject> objects;
  std::vector<FileRun> runs;
  std::uint64_t contents = 0;  ///< where the chunks begin
};

template <typename T>
bool read_table(Reader& reader, std::uint64_t count, std::vector<T>& table) {
  if (count > reader.left() / sizeof(T)) return false;  // before memory is taken for it
  table.resize(count);
  return reader.read(table.data(), count * sizeof(T));
}

/// What is wrong with the tables, or nothing.
const char* check_tables(const Checkpoint& file) {
  const std::uint64_t window_end = file.header.window_base + file.header.window_bytes;
  std::uint64_t end = file.header.window_base;
  for (const FileSpan& span : file.spans) {
    if (span.address < end || span.address % heap_unit_bytes != 0 || span.bytes == 0 ||
        span.bytes % heap_unit_bytes != 0 || span.bytes > window_end || span.address > window_end - span.bytes) {
      return "a span is not where one can be";
    }
    end = span.address + span.bytes;
  }
  std::size_t span = 0;
  end = 0;
  for (const FileObject& object : file.objects) {
    while (span < file.spans.size() && object.address >= file.spans[span].address + file.spans[span].bytes) ++span;
    if (span == file.spans.size() || object.address < file.spans[span].address || object.address < end ||
        object.address % 16 != 0 || object.bytes == 0 ||
        object.bytes > file.spans[span].address + file.spans[span].bytes - object.address) {
      return "an allocation is not where one can be";
    }
    end = object.address + object.bytes;
  }
  span = 0;
  end = 0;
  for (const FileRun& run : file.runs) {
    while (span < file.spans.size() && run.address >= file.spans[span].address + file.spans[span].bytes) ++span;
    if (span == file.spans.size() || run.address < file.spans[span].address || run.address < end ||
        run.address % page_bytes != 0 || run.bytes == 0 || run.bytes % page_bytes != 0 ||
        run.bytes > file.spans[span].address + file.spans[span].bytes - run.address) {
      return "attributes are not where they can be";
    }
    end = run.address + run.bytes;
  }
  return nullptr;
}

/// What is wrong with the file up to the contents, or nothing.
const char* read_head(Reader& reader, Checkpoint& file) {
  FileHeader& header = file.header;
  if (!reader.read(&header, sizeof header) || std::memcmp(header.magic, magic, sizeof magic) != 0) {
    return "it is no checkpoint";
  }
  if (header.header_hash != Hash().add(&header, offsetof(FileHeader, header_hash)).value())
    return "its head is damaged";
  if (header.version != version) return "it is of another version";
  if (header.page_bytes != page_bytes) return "its pages have another size";
  if (header.window_base != process_window().base || header.window_bytes != process_window().bytes) {
    return "its addresses are of another window (FERRY_WINDOW_BASE, FERRY_WINDOW_BYTES)";
  }
  if (!read_table(reader, header.span_count, file.spans) || !read_table(reader, header.object_count, file.objects) ||
      !read_table(reader, header.run_count, file.runs)) {
    return "it ends too early";
  }
  const std::uint64_t hash = Hash()
                                 .add(file.spans.data(), file.spans.size() * sizeof(FileSpan))
                                 .add(file.objects.data(), file.objects.size() * sizeof(FileObject))
                                 .add(file.runs.data(), file.runs.size() * sizeof(FileRun))
                                 .value();
  if (header.tables_hash != hash) return "its tables are damaged";
  file.contents = reader.at();
  return check_tables(file);
}

/// Goes through the contents. With `put`, they are written to memory. What is wrong, or nothing.
const char* read_contents(Reader& reader, const Checkpoint& file, bool put) {
  const std::unique_ptr<ZSTD_DCtx, std::size_t (*)(ZSTD_DCtx*)> context(ZSTD_createDCtx(), &ZSTD_freeDCtx);
  if (context == nullptr) throw std::bad_alloc();
  std::vector<unsigned char> stored(stored_bytes_max);
  std::vector<unsigned char> memory(chunk_bytes_max);
  std::size_t span = 0;
  std::uint64_t end = 0;
  for (std::uint64_t number = 0;; ++number) {
    FileChunk chunk{};
    if (!reader.read(&chunk, sizeof chunk)) return "it ends too early";
    if (chunk.number != number || chunk.bytes > chunk_bytes_max || chunk.stored_bytes > stored_bytes_max) {
      return "its contents are damaged";
    }
    if (!reader.read(stored.data(), chunk.stored_bytes)) return "it ends too early";
    Hash hash;
    hash.add(&chunk, offsetof(FileChunk, hash));
    if (chunk.bytes == 0) {
      return chunk.address == 0 && chunk.stored_bytes == 0 && chunk.hash == hash.value() ? nullptr
                                                                                         : "its contents are damaged";
    }
    while (span < file.spans.size() && chunk.address >= file.spans[span].address + file.spans[span].bytes) ++span;
    if (span == file.spans.size() || chunk.address < file.spans[span].address || chunk.address < end ||
        chunk.address % page_bytes != 0 || chunk.bytes % page_bytes != 0 || chunk.stored_bytes > chunk.bytes) {
      return "its contents are damaged";
    }
    end = chunk.address + chunk.bytes;
    const unsigned char* bytes = stored.data();
    if (chunk.stored_bytes < chunk.bytes) {
      const std::size_t got =
          ZSTD_decompressDCtx(context.get(), memory.data(), chunk.bytes, stored.data(), chunk.stored_bytes);
      if (ZSTD_isError(got) != 0 || got != chunk.bytes) return "its contents are damaged";
      bytes = memory.data();
    }
    if (hash.add(bytes, chunk.bytes).value() != chunk.hash) return "its contents are damaged";
    if (!put) continue;
    // A chunk may go from one span into the next, where they lie side by side.
    if (end > file.spans[span].address + file.spans[span].bytes) {
      std::uint64_t reached = file.spans[span].address + file.spans[span].bytes;
      for (std::size_t s = span + 1; reached < end; ++s) {
        if (s == file.spans.size() || file.spans[s].address != reached) return "its contents are damaged";
        reached += file.spans[s].bytes;
      }
    }
    std::memcpy(reinterpret_cast<void*>(chunk.address), bytes, chunk.bytes);
  }
}

bool set_attributes(const Checkpoint& file, Session& session, ferry_error* error) {
  for (const FileRun& run : file.runs) {
    std::vector<ferry_svm_attribute> lines = {
        {FERRY_SVM_PREFERRED_LOC, 0, run.preferred, 0},
        {FERRY_SVM_SET_FLAGS, 0, run.flags, 0},
        {FERRY_SVM_CLR_FLAGS, 0, static_cast<std::uint32_t>(static_cast<std::uint8_t>(~run.flags)), 0},
        {FERRY_SVM_GRANULARITY, 0, run.granularity, 0},
    };
    for (std::uint32_t d = 0; d < session.machine.device_count; ++d) {
      lines.push_back({FERRY_SVM_ACCESS_OF, d, run.access >> (2 * d) & 3U, 0});
    }
    auto* at = reinterpret_cast<void*>(run.address);
    if (ferry_svm_set(at, run.bytes, lines.data(), lines.size(), error) != FERRY_OK) return false;
    // Where it was asked to go says where the pages lay, and steers nothing: not there is no error.
    const ferry_svm_attribute prefetch{FERRY_SVM_PREFETCH_LOC, 0, run.prefetch, 0};
    if (run.prefetch != FERRY_LOC_UNDEFINED) ferry_svm_set(at, run.bytes, &prefetch, 1, nullptr);
  }
  return true;
}

ferry_code restore(int fd, Session& session, ferry_error* error) {
  struct stat about {};
  const off_t begin = ::lseek(fd, 0, SEEK_CUR);
  if (begin < 0 || ::fstat(fd, &about) != 0 || about.st_size < begin) {
    return fail(error, Code::unsupported, errno, "checkpoint_restore: a file that can be read twice is needed");
  }
  Reader reader(fd, static_cast<std::uint64_t>(begin), static_cast<std::uint64_t>(about.st_size));
  Checkpoint file;
  const char* wrong = read_head(reader, file);
  if (wrong == nullptr) wrong = read_contents(reader, file, false);
  if (wrong != nullptr) return fail(error, Code::bad_message, 0, "checkpoint_restore: %s; nothing was restored", wrong);
  std::size_t made = 0;
  const auto undo = [&] {
    while (made > 0) {
      const FileSpan& span = file.spans[--made];
      drop_restored_span(reinterpret_cast<void*>(span.address), span.bytes);
    }
  };
  for (; made < file.spans.size(); ++made) {
    const FileSpan& span = file.spans[made];
    clear_last_span_status();
    switch (make_restored_span(reinterpret_cast<void*>(span.address), span.bytes)) {
      case RestoredSpan::made: continue;
      case RestoredSpan::taken:
        undo();
        return fail(error, Code::overlap, 0, "checkpoint_restore: memory at %#lx is in use here already", span.address);
      case RestoredSpan::no_memory: undo(); return fail(error, Code::no_memory, 0, "checkpoint_restore: no room");
    }
  }
  reader.go(file.contents);
  if ((wrong = read_contents(reader, file, true)) != nullptr) {
    undo();
    return fail(error, Code::bad_message, 0, "checkpoint_restore: the file changed meanwhile; nothing was restored");
  }
  if (!set_attributes(file, session, error)) {
    undo();
    return error->code;
  }
  RestoredMemory memory;
  for (const FileSpan& span : file.spans) memory.spans.push_back({span.address, span.bytes});
  for (const FileObject& object : file.objects) memory.objects.push_back({object.address, object.bytes});
  add_restored(memory);
  ::lseek(fd, static_cast<off_t>(reader.at()), SEEK_SET);
  return FERRY_OK;
}

}  // namespace

ferry_code ferry_checkpoint_restore(int fd, ferry_error* error) {
  ferry_error own{};
  Session* session = open_session(nullptr, &own);
  if (session == nullptr) {
    if (error != nullptr) *error = own;
    return own.code;
  }
  const NativeMallocScope native;
  ferry_code code = FERRY_OK;
  try {
    code = restore(fd, *session, &own);
  } catch (const std::bad_alloc&) {
    code = fail(&own, Code::no_memory, 0, "checkpoint_restore: no memory to read the file");
  }
  if (code != FERRY_OK && error != nullptr) *error = own;
  return code;
}
