#include "manager/store_client.h"

#include <utility>

namespace ferry::manager {

std::uint64_t StoreClient::remember(StoreUser& user, std::uint64_t tag) {
  if (free_.empty()) {
    pending_.emplace_back();
    free_.push_back(static_cast<std::uint32_t>(pending_.size() - 1));
  }
  const std::uint32_t index = free_.back();
  free_.pop_back();
  pending_[index] = {&user, tag};
  return index;
}

std::vector<linux::StoreHandle> StoreClient::spare() {
  std::vector<linux::StoreHandle> handles;
  if (!spares_.empty()) {
    handles = std::move(spares_.back());
    spares_.pop_back();
  }
  return handles;
}

void StoreClient::store(StoreUser& user, std::uint64_t tag, const std::byte* memory, std::uint32_t count_pages,
                        int source_fd, std::uint64_t source_offset) {
  if (store_ == nullptr) {
    refused_.push_back({&user, tag});
    return;
  }
  linux::StoreJob job;
  job.memory = const_cast<std::byte*>(memory);
  job.count_pages = count_pages;
  job.tag = remember(user, tag);
  job.source_fd = source_fd;
  job.source_offset = source_offset;
  job.handles = spare();
  store_->submit(std::move(job));
}

void StoreClient::load(StoreUser& user, std::uint64_t tag, std::byte* memory,
                       std::span<const linux::StoreHandle> handles) {
  FERRY_CHECK(store_ != nullptr);
  linux::StoreJob job;
  job.kind = linux::StoreJob::Kind::load;
  job.memory = memory;
  job.count_pages = static_cast<std::uint32_t>(handles.size());
  job.tag = remember(user, tag);
  job.handles = spare();
  job.handles.assign(handles.begin(), handles.end());
  store_->submit(std::move(job));
}

bool StoreClient::poll() {
  if (!has_completions()) return false;
  refusing_.swap(refused_);
  for (const Pending& p : refusing_) p.user->stored(p.tag, Code::no_space, {});
  refusing_.clear();
  if (store_ == nullptr) return true;
  completions_.clear();
  store_->take_completions(completions_);
  for (linux::StoreCompletion& c : completions_) {
    const Pending p = pending_[c.tag];
    free_.push_back(static_cast<std::uint32_t>(c.tag));
    if (c.kind == linux::StoreJob::Kind::store) {
      store_ns += c.work_ns;
      p.user->stored(
          p.tag, c.status,
          c.status.ok() ? std::span<const linux::StoreHandle>(c.handles) : std::span<const linux::StoreHandle>());
    } else {
      load_ns += c.work_ns;
      p.user->loaded(p.tag, c.status);
    }
    spares_.push_back(std::move(c.handles));
  }
  return true;
}

}  // namespace ferry::manager
