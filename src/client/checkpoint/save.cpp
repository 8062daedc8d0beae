// ferry_checkpoint_save: what lives, where it lives, what was asked for it, what is in it.
#include <ferry/svm.h>
#include <unistd.h>
#include <zstd.h>

#include <algorithm>
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
#include "client/process_state.h"
#include "client/queues.h"
#include "client/svm/ask.h"

using namespace ferry;                      // NOLINT(google-build-using-namespace)
using namespace ferry::client;              // NOLINT(google-build-using-namespace)
using namespace ferry::client::checkpoint;  // NOLINT(google-build-using-namespace)

namespace {

struct Tables {
  std::vector<FileSpan> spans;
  std::vector<FileObject> objects;
  std::vector<FileRun> runs;
};

/// Writes all of it, in pieces where a pipe takes no more. 0, or errno.
int write_all(int fd, const void* data, std::size_t bytes) {
  const auto* at = static_cast<const char*>(data);
  while (bytes != 0) {
    const ssize_t done = ::write(fd, at, bytes);
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) return errno;
    if (done == 0) return EIO;
    at += done;
    bytes -= static_cast<std::size_t>(done);
  }
  return 0;
}

template <typename T>
int write_all(int fd, const std::vector<T>& table) {
  return write_all(fd, table.data(), table.size() * sizeof(T));
}

void collect(Tables& tables) {
  const auto visit_object = [](void* context, const void* object, std::size_t bytes) {
    static_cast<Tables*>(context)->objects.push_back({reinterpret_cast<std::uint64_t>(object), bytes});
  };
  const auto visit_span = [](void* context, void* span, std::size_t bytes, SpanKind) {
    static_cast<Tables*>(context)->spans.push_back({reinterpret_cast<std::uint64_t>(span), bytes});
  };
  Heap& heap = process_heap();
  heap.flush_thread_cache();
  heap.visit_objects(visit_object, &tables);
  heap.visit_spans(visit_span, &tables);
  visit_restored(
      visit_object,
      [](void* context, void* span, std::size_t bytes) {
        static_cast<Tables*>(context)->spans.push_back({reinterpret_cast<std::uint64_t>(span), bytes});
      },
      &tables);
  const auto by_address = [](const auto& a, const auto& b) { return a.address < b.address; };
  std::sort(tables.objects.begin(), tables.objects.end(), by_address);
  std::sort(tables.spans.begin(), tables.spans.end(), by_address);
  // Spans without an allocation are the heap's own, kept for the next one.
  std::erase_if(tables.spans, [&](const FileSpan& span) {
    const auto first =
        std::lower_bound(tables.objects.begin(), tables.objects.end(), FileObject{span.address, 0}, by_address);
    return first == tables.objects.end() || first->address >= span.address + span.bytes;
  });
}

/// Attributes of [address, address + bytes), run by run, but for defaults. False, with `error` filled.
bool ask_runs(Session& session, std::uint64_t address, std::uint64_t bytes, std::vector<FileRun>& runs,
              ferry_error* error) {
  while (bytes != 0) {
    wire::Span span{};
    span.first_page = session.page_of(reinterpret_cast<const void*>(address));
    span.count_pages = bytes / page_bytes;
    span.device = wire::to_system;
    wire::SvmAnswer answer;
    if (!ask_svm(session, wire::MessageType::attributes_run, span, answer, "checkpoint_save", error)) return false;
    const std::uint64_t run_bytes = std::uint64_t{answer.values[0]} * page_bytes;
    if (answer.count != 7 || run_bytes == 0 || run_bytes > bytes) {
      fail(error, Code::bad_message, 0, "checkpoint_save: the manager tells of a run of %u pages", answer.values[0]);
      return false;
    }
    if (answer.values[1] == 0) {
      runs.push_back({address, run_bytes, static_cast<std::uint8_t>(answer.values[2]),
                      static_cast<std::uint8_t>(answer.values[3]), static_cast<std::uint8_t>(answer.values[4]),
                      static_cast<std::uint8_t>(answer.values[5]), answer.values[6]});
    }
    address += run_bytes;
    bytes -= run_bytes;
  }
  return true;
}

/// Writes the pages that objects lie on, but for those of zeros.
class ChunkWriter {
 public:
  explicit ChunkWriter(int fd) : fd_(fd), context_(ZSTD_createCCtx(), &ZSTD_freeCCtx) {
    memory_.reserve(chunk_bytes_max);
    packed_.resize(ZSTD_compressBound(chunk_bytes_max));
  }
  /// 0, or errno.
  int page(std::uint64_t address) {
    // Copied first: a write() from a page that lies in VRAM would fail.
    unsigned char bytes[page_bytes];
    std::memcpy(bytes, reinterpret_cast<const void*>(address), page_bytes);
    const bool zeros = bytes[0] == 0 && std::memcmp(bytes, bytes + 1, page_bytes - 1) == 0;
    if (!memory_.empty() && (zeros || address != first_ + memory_.size() || memory_.size() == chunk_bytes_max)) {
      if (const int e = flush()) return e;
    }
    if (zeros) return 0;
    if (memory_.empty()) first_ = address;
    memory_.insert(memory_.end(), bytes, bytes + page_bytes);
    return 0;
  }
  int finish() {
    if (!memory_.empty()) {
      if (const int e = flush()) return e;
    }
    FileChunk last{0, 0, 0, number_, 0};
    last.hash = Hash().add(&last, offsetof(FileChunk, hash)).value();
    return write_all(fd_, &last, sizeof last);
  }

 private:
  int flush() {
    if (context_ == nullptr) return ENOMEM;
    const std::size_t packed =
        ZSTD_compressCCtx(context_.get(), packed_.data(), packed_.size(), memory_.data(), memory_.size(), 1);
    const bool smaller = ZSTD_isError(packed) == 0 && packed < memory_.size();
    FileChunk chunk{first_, static_cast<std::uint32_t>(memory_.size()),
                    static_cast<std::uint32_t>(smaller ? packed : memory_.size()), number_++, 0};
    chunk.hash = Hash().add(&chunk, offsetof(FileChunk, hash)).add(memory_.data(), memory_.size()).value();
    int e = write_all(fd_, &chunk, sizeof chunk);
    if (e == 0) e = write_all(fd_, smaller ? packed_.data() : memory_.data(), chunk.stored_bytes);
    memory_.clear();
    return e;
  }

  int fd_;
  std::unique_ptr<ZSTD_CCtx, std::size_t (*)(ZSTD_CCtx*)> context_;
  std::vector<unsigned char> memory_;  ///< of the chunk that is being filled
  std::vector<unsigned char> packed_;
  std::uint64_t first_ = 0;
  std::uint64_t number_ = 0;
};

ferry_code save(int fd, Session& session, ferry_error* error) {
  Tables tables;
  collect(tables);
  for (const FileSpan& span : tables.spans) {
    if (!ask_runs(session, span.address, span.bytes, tables.runs, error)) return error->code;
  }
  FileHeader header{};
  std::memcpy(header.magic, magic, sizeof magic);
  header.version = version;
  header.page_bytes = page_bytes;
  header.window_base = session.window_base;
  header.window_bytes = process_window().bytes;
  header.span_count = tables.spans.size();
  header.object_count = tables.objects.size();
  header.run_count = tables.runs.size();
  header.tables_hash = Hash()
                           .add(tables.spans.data(), tables.spans.size() * sizeof(FileSpan))
                           .add(tables.objects.data(), tables.objects.size() * sizeof(FileObject))
                           .add(tables.runs.data(), tables.runs.size() * sizeof(FileRun))
                           .value();
  header.header_hash = Hash().add(&header, offsetof(FileHeader, header_hash)).value();
  int e = write_all(fd, &header, sizeof header);
  if (e == 0) e = write_all(fd, tables.spans);
  if (e == 0) e = write_all(fd, tables.objects);
  if (e == 0) e = write_all(fd, tables.runs);
  ChunkWriter chunks(fd);
  std::uint64_t next = 0;  // pages before it are written
  for (const FileObject& object : tables.objects) {
    std::uint64_t page = std::max(object.address / page_bytes * page_bytes, next);
    for (; e == 0 && page < object.address + object.bytes; page += page_bytes) e = chunks.page(page);
    next = std::max(next, page);
  }
  if (e == 0) e = chunks.finish();
  if (e == 0) return FERRY_OK;
  return fail(error, Status(e == ENOSPC ? Code::no_space : Code::io_error, e), "checkpoint_save: writing the file");
}

}  // namespace

ferry_code ferry_checkpoint_save(int fd, ferry_error* error) {
  ferry_error own{};
  Session* session = open_session(nullptr, &own);
  if (session == nullptr) {
    if (error != nullptr) *error = own;
    return own.code;
  }
  if (!all_idle()) return fail(error, Code::in_use, 0, "checkpoint_save: kernels run or wait");
  const NativeMallocScope native;  // what is made here is no part of what is saved
  ferry_code code = FERRY_OK;
  try {
    code = save(fd, *session, &own);
  } catch (const std::bad_alloc&) {
    code = fail(&own, Code::no_memory, 0, "checkpoint_save: no memory for its tables");
  }
  if (code != FERRY_OK && error != nullptr) *error = own;
  return code;
}
