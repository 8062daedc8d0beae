// The store as the executor and the buffers use it: spans of the manager's mappings in, handles out, answers on the main
// thread. Without a budget there is no store; then every store ends with no_space.
// Main thread only. Owns the store and nothing of what its users keep.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/status.h"
#include "linux/store/store.h"

namespace ferry::manager {

/// Who asks; told from poll(), never from inside store() or load().
class StoreUser {
 public:
  /// `handles`: one a page, the user's own from now on; empty if it failed. Take them, or copy.
  virtual void stored(std::uint64_t tag, Status status, std::span<const linux::StoreHandle> handles) = 0;
  virtual void loaded(std::uint64_t tag, Status status) = 0;

 protected:
  ~StoreUser() = default;
};

class StoreClient {
 public:
  StoreClient() = default;
  explicit StoreClient(std::unique_ptr<linux::Store> store) : store_(std::move(store)) {}

  /// Stores `count_pages` from `memory`, page aligned. `source_fd` >= 0: the file that is mapped there, at
  /// `source_offset`; its holes are stored as zeros without filling them. ERRORS in the answer: no_space, io_error.
  void store(StoreUser& user, std::uint64_t tag, const std::byte* memory, std::uint32_t count_pages, int source_fd,
             std::uint64_t source_offset);
  /// Writes the pages behind `handles` to `memory`, giving it memory first. The handles must not be dropped before the
  /// answer. ERRORS in the answer: io_error, no_memory.
  void load(StoreUser& user, std::uint64_t tag, std::byte* memory, std::span<const linux::StoreHandle> handles);
  /// Forgets pages; 0 is passed over.
  void drop(std::span<const linux::StoreHandle> handles) {
    if (store_ != nullptr) store_->drop(handles.data(), handles.size());
  }

  /// Tells users of what has ended. True: something had.
  bool poll();
  [[nodiscard]] bool has_completions() const {
    return !refused_.empty() || (store_ != nullptr && store_->has_completions());
  }
  [[nodiscard]] std::size_t in_flight() const {
    return refused_.size() + (store_ == nullptr ? 0 : store_->in_flight());
  }
  void set_owner_sleeping(bool sleeping) {
    if (store_ != nullptr) store_->set_owner_sleeping(sleeping);
  }
  /// Null: there is none.
  [[nodiscard]] const linux::Store* get() const { return store_.get(); }

  std::uint64_t store_ns = 0;  ///< of worker threads, summed
  std::uint64_t load_ns = 0;

 private:
  struct Pending {
    StoreUser* user = nullptr;
    std::uint64_t tag = 0;
  };
  std::uint64_t remember(StoreUser& user, std::uint64_t tag);
  std::vector<linux::StoreHandle> spare();

  std::unique_ptr<linux::Store> store_;
  std::vector<Pending> pending_;
  std::vector<std::uint32_t> free_;
  std::vector<std::vector<linux::StoreHandle>> spares_;
  std::vector<linux::StoreCompletion> completions_;
  std::vector<Pending> refused_;  ///< stores without a store
  std::vector<Pending> refusing_;
};

}  // namespace ferry::manager
