// What a worker does: pages of a slice into the store and out of it, slabs to the file and back.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "linux/memory_file.h"
#include "linux/store/shared.h"

namespace ferry::linux {
namespace {

/// Enough for the disk to be busy with, few enough to begin early.
constexpr std::uint32_t pages_a_write = 16;
constexpr std::uint32_t pages_a_read = 32;

/// Pages of the slice that have memory; a page that has none is zeros, and reading it would give it some.
std::uint64_t pages_with_memory(const StoreJob& job, std::uint32_t first, std::uint32_t count) {
  const std::uint64_t all = count == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << count) - 1;
  const std::byte* const at = job.memory + std::size_t{first} * page_bytes;
  if (job.source_fd < 0 || all_resident(at, std::size_t{count} * page_bytes)) return all;
  // Not resident may mean swapped out: only the file knows.
  std::uint64_t mask = 0;
  const std::uint64_t begin = job.source_offset + std::uint64_t{first} * page_bytes;
  for (std::uint32_t i = 0; i < count; ++i) {
    const std::uint64_t from = begin + i * page_bytes;
    const std::uint64_t data = next_data(job.source_fd, from, begin + count * page_bytes);
    i = static_cast<std::uint32_t>((data - begin) / page_bytes);
    if (i < count) mask |= std::uint64_t{1} << i;
  }
  return mask;
}

}  // namespace

// --- store -----------------------------------------------------------------------------------------------------------

Status Store::store_slice(Worker& worker, Running& job, std::uint32_t first, std::uint32_t count) {
  static_assert(slice_pages == 64);
  struct Packed {
    std::uint32_t page;
    std::uint32_t bytes;
    std::uint64_t checksum;
    std::byte* at;
    Slabs::Slab slab;
  };
  std::array<Packed, slice_pages> packed;
  std::size_t packed_count = 0;
  std::array<std::pair<std::uint32_t, std::uint64_t>, slice_pages> fills;
  std::size_t fill_count = 0;
  const bool has_memory = shared_->slabs.frames() != 0;
  const std::uint64_t present = pages_with_memory(job.job, first, count);
  StoreHandle* const handles = job.job.handles.data() + first;

  // The page is copied first: whoever may still write it must not make one that cannot be read back. It is copied to
  // where it would be written to the file from.
  Raw& raw = worker.raw;
  raw = {};
  for (std::uint32_t i = 0; i < count; ++i) {
    std::uint64_t word = 0;
    std::byte* const page = worker.buffer.get() + std::size_t{raw.count} * page_bytes;
    if (((present >> i) & 1U) != 0) {
      std::memcpy(page, job.job.memory + std::size_t{first + i} * page_bytes, page_bytes);
      if (!same_filled(page, word)) {
        std::byte* const out = worker.packed.get() + packed_count * Slabs::object_bytes_max;
        const std::size_t bytes = has_memory ? worker.codec.compress(page, out, Slabs::object_bytes_max) : 0;
        if (bytes != 0) {
          packed[packed_count++] = {i, static_cast<std::uint32_t>(bytes), page_checksum(page), nullptr, 0};
        } else {
          raw.pages[raw.count] = i;
          raw.checksums[raw.count] = page_checksum(page);
          // The disk works while the next pages are looked at.
          if (++raw.count % pages_a_write == 0) begin_pages(worker);
        }
        continue;
      }
    }
    fills[fill_count++] = {i, word};
  }

  Status status;
  UniqueLock lock(shared_->mutex);
  for (std::size_t k = 0; k < fill_count; ++k) {
    const auto [page, word] = fills[k];
    if (word >> 32 == (word & 0xffff'ffff)) {
      handles[page] = small_fill_bit | (word & 0xffff'ffff);
      ++shared_->small_fills;
    } else {
      handles[page] = StoreHandle{shared_->slabs.put_fill(word)} + 1;
    }
  }
  std::size_t placed = 0;
  while (placed < packed_count) {
    Packed& p = packed[placed];
    const Slabs::Object object = shared_->slabs.put(p.bytes, p.checksum, p.at);
    if (object != Slabs::none) {
      handles[p.page] = StoreHandle{object} + 1;
      p.slab = shared_->slabs.find(object).slab;
      ++placed;
      continue;
    }
    if (shared_->slabs.merge_one()) continue;
    // What was placed so far is pinned and cannot go: its bytes first.
    const std::size_t end = placed;
    lock.unlock();
    for (std::size_t k = 0; k < end; ++k) {
      if (packed[k].at != nullptr) {
        std::memcpy(packed[k].at, worker.packed.get() + k * Slabs::object_bytes_max, packed[k].bytes);
      }
    }
    lock.lock();
    for (std::size_t k = 0; k < end; ++k) {
      if (packed[k].at != nullptr) shared_->unpin(packed[k].slab);
      packed[k].at = nullptr;
    }
    lock.unlock();
    status = move_out(worker);
    lock.lock();
    if (!status.ok()) break;
  }
  lock.unlock();
  for (std::size_t k = 0; k < placed; ++k) {
    if (packed[k].at != nullptr) {
      std::memcpy(packed[k].at, worker.packed.get() + k * Slabs::object_bytes_max, packed[k].bytes);
    }
  }
  lock.lock();
  for (std::size_t k = 0; k < placed; ++k) {
    if (packed[k].at != nullptr) shared_->unpin(packed[k].slab);
  }
  lock.unlock();
  if (raw.count == 0) return status;
  begin_pages(worker);
  return end_pages(worker, handles, status);
}

/// Pages that do not compress go from the worker's buffer straight to the file: those since the last call.
void Store::begin_pages(Worker& worker) {
  Raw& raw = worker.raw;
  const std::uint32_t first = raw.taken;
  if (first == raw.count) return;
  {
    UniqueLock lock(shared_->mutex);
    while (raw.taken < raw.count) {
      std::uint32_t got = 0;
      const SlotFile::Slot slot = shared_->take_slots(lock, raw.count - raw.taken, false, got);
      if (slot == SlotFile::none) return;
      for (std::uint32_t i = 0; i < got; ++i) raw.slots[raw.taken++] = slot + i;
    }
  }
  for (std::uint32_t i = first; i < raw.taken;) {
    std::uint32_t end = i + 1;
    while (end < raw.taken && raw.slots[end] == raw.slots[end - 1] + 1) ++end;
    worker.io.write(worker.buffer.get() + std::size_t{i} * page_bytes, std::size_t{end - i} * page_bytes,
                    std::uint64_t{raw.slots[i]} * page_bytes);
    i = end;
  }
  worker.io.go();
}

/// `status`: how the rest of the slice went; what is on its way is waited for in any case.
Status Store::end_pages(Worker& worker, StoreHandle* handles, Status status) {
  const Raw& raw = worker.raw;
  const Status written = worker.io.wait();
  if (status.ok()) status = written;
  if (status.ok() && raw.taken < raw.count) status = Code::no_space;
  const LockGuard lock(shared_->mutex);
  for (std::uint32_t i = 0; i < raw.taken; ++i) {
    if (status.ok()) {
      handles[raw.pages[i]] = StoreHandle{shared_->slabs.put_page(raw.slots[i], raw.checksums[i])} + 1;
      shared_->written_bytes += page_bytes;
    } else {
      shared_->file.give(raw.slots[i], 1);
    }
  }
  return status;
}

/// Makes room in memory: the coldest slabs go to the file in one batch.
Status Store::move_out(Worker& worker) {
  struct Moving {
    Slabs::Slab slab;
    SlotFile::Slot slot;
    const std::byte* memory;
  };
  std::array<Moving, slabs_a_batch> moving;
  std::size_t count = 0;
  UniqueLock lock(shared_->mutex);
  if (shared_->slabs.merge_one()) return {};
  bool full = false;
  while (count < slabs_a_batch) {
    const Slabs::Slab slab = shared_->slabs.coldest();
    if (slab == Slabs::none) break;
    std::uint32_t got = 0;
    const SlotFile::Slot slot = shared_->take_slots(lock, Slabs::slots_of_slab, true, got);
    full = slot == SlotFile::none;
    if (full) break;
    // take_slots() may have let others in.
    if (shared_->slabs.coldest() != slab) {
      shared_->file.give(slot, Slabs::slots_of_slab);
      continue;
    }
    shared_->slabs.begin_move_out(slab, slot);
    moving[count++] = {slab, slot, shared_->slabs.memory_of(slab)};
  }
  if (count == 0) {
    if (full) return Code::no_space;
    // Everything is on its way already, or used this moment: whoever does that tells when it is not any more.
    if (shared_->slabs.used_frames() == shared_->slabs.frames()) {
      ++shared_->room_waiters;
      shared_->changed.wait(lock);
      --shared_->room_waiters;
    }
    return {};
  }
  ++shared_->background_busy;
  lock.unlock();
  for (std::size_t i = 0; i < count; ++i) {
    worker.io.write(moving[i].memory, Slabs::slab_bytes, std::uint64_t{moving[i].slot} * page_bytes);
  }
  const Status status = worker.io.wait();
  lock.lock();
  for (std::size_t i = 0; i < count; ++i) {
    shared_->slabs.end_move_out(moving[i].slab, status.ok(), shared_->file);
    if (status.ok()) shared_->written_bytes += Slabs::slab_bytes;
  }
  --shared_->background_busy;
  shared_->changed.notify_all();
  return status;
}

// --- load ------------------------------------------------------------------------------------------------------------

Status Store::load_slice(Worker& worker, Running& job, std::uint32_t first, std::uint32_t count) {
  std::byte* const target = job.job.memory + std::size_t{first} * page_bytes;
  if (const Status s = populate(target, std::size_t{count} * page_bytes); !s.ok()) return s;
  std::vector<Plan>& plans = worker.plans;
  plans.clear();
  {
    const LockGuard lock(shared_->mutex);
    for (std::uint32_t i = 0; i < count; ++i) {
      const StoreHandle handle = job.job.handles[first + i];
      Plan plan;
      plan.target = target + std::size_t{i} * page_bytes;
      if ((handle & small_fill_bit) != 0) {
        const std::uint64_t half = handle & 0xffff'ffff;
        plan.found.checksum = half << 32 | half;
      } else {
        FERRY_CHECK(handle != 0);
        plan.found = shared_->slabs.find(static_cast<Slabs::Object>(handle - 1));
        if (plan.found.slab != Slabs::none) shared_->slabs.pin(plan.found.slab);
      }
      plans.push_back(plan);
    }
  }
  Status status;
  const auto is_bad = [&](const Plan& plan, const std::byte* bytes) {
    const bool well =
        plan.found.place == Slabs::Place::file_page || worker.codec.decompress(bytes, plan.found.bytes, plan.target);
    if (plan.found.place == Slabs::Place::file_page && bytes != plan.target) {
      std::memcpy(plan.target, bytes, page_bytes);
    }
    return !well || page_checksum(plan.target) != plan.found.checksum;
  };
  bool from_file = false;
  for (const Plan& plan : plans) {
    switch (plan.found.place) {
      case Slabs::Place::fill: fill_page(plan.target, plan.found.checksum); break;
      case Slabs::Place::memory:
        if (is_bad(plan, plan.found.memory)) status = {Code::io_error, EBADMSG};
        break;
      case Slabs::Place::file_slab:
      case Slabs::Place::file_page: from_file = true; break;
    }
  }
  if (from_file && status.ok()) {
    order_reads(worker, plans);
    for (std::size_t done = 0; done < worker.order.size() && status.ok();) {
      const std::size_t begun = begin_reads(worker, done);
      for (; done < begun; ++done) {
        const Plan& plan = *worker.order[done];
        // The others are on their way meanwhile.
        if (!worker.io.wait_for(plan.number)) break;
        if (is_bad(plan, plan.bytes)) status = {Code::io_error, EBADMSG};
      }
      const Status read = worker.io.wait();
      if (status.ok()) status = read;
    }
  }
  const LockGuard lock(shared_->mutex);
  for (const Plan& plan : plans) {
    if (plan.found.slab != Slabs::none) shared_->unpin(plan.found.slab);
  }
  return status;
}

/// What the plans need of the file, in its order.
void Store::order_reads(Worker& worker, std::vector<Plan>& plans) {
  std::vector<Plan*>& order = worker.order;
  order.clear();
  for (Plan& plan : plans) {
    if (plan.found.place == Slabs::Place::file_slab || plan.found.place == Slabs::Place::file_page) {
      order.push_back(&plan);
    }
  }
  std::sort(order.begin(), order.end(),
            [](const Plan* a, const Plan* b) { return a->found.file_offset < b->found.file_offset; });
}

/// Begins to read from `first` of the order on, neighbours in one go, pages to where they are wanted where that can be,
/// else into the worker's buffer, until that is full. Returns up to where; all of it has been waited for before.
std::size_t Store::begin_reads(Worker& worker, std::size_t first) {
  const std::vector<Plan*>& order = worker.order;
  std::size_t used = 0;
  std::uint64_t read = 0;
  unsigned reads = 0;
  std::size_t i = first;
  while (i < order.size() && reads < BlockIo::depth) {
    const std::uint64_t begin = order[i]->found.file_offset & ~(page_bytes - 1);
    std::uint64_t end = begin;
    std::size_t last = i;
    bool straight = true;  // pages as they are, in the order of their targets: no copy is needed
    for (; last < order.size(); ++last) {
      const Slabs::Found& f = order[last]->found;
      if (last != i && (f.file_offset > end || end - begin >= pages_a_read * page_bytes)) break;
      straight &=
          f.place == Slabs::Place::file_page && order[last]->target == order[i]->target + (f.file_offset - begin);
      end = std::max(end, (f.file_offset + f.bytes + page_bytes - 1) & ~(page_bytes - 1));
    }
    // Whoever comes first in the next piece may lie in the last page of this one too.
    if (!straight && used + (end - begin) > Worker::buffer_bytes) {
      FERRY_CHECK_GE(used, 1U);
      break;
    }
    std::byte* const to = straight ? order[i]->target : worker.buffer.get() + used;
    const unsigned number = worker.io.read(to, end - begin, begin);
    ++reads;
    for (std::size_t k = i; k < last; ++k) {
      order[k]->number = number;
      order[k]->bytes = to + (order[k]->found.file_offset - begin);
    }
    if (!straight) used += end - begin;
    read += end - begin;
    i = last;
  }
  worker.io.go();
  const LockGuard lock(shared_->mutex);
  shared_->read_bytes += read;
  return i;
}

// --- background ------------------------------------------------------------------------------------------------------

bool Store::background(Worker& worker) {
  UniqueLock lock(shared_->mutex);
  if (!shared_->wants_background()) return false;
  if (shared_->slabs.warm_frames() > warm_frames_max) {
    std::byte* const frame = shared_->slabs.take_warm_frame();
    lock.unlock();
    ::madvise(frame, Slabs::slab_bytes, MADV_DONTNEED);
    lock.lock();
    shared_->slabs.frame_is_cold(frame);
    return true;
  }
  if (shared_->can_cut()) {
    shared_->cutting = true;
    shared_->file.restart();
    lock.unlock();
    [[maybe_unused]] const int rc = ::ftruncate(shared_->file.fd(), 0);
    lock.lock();
    shared_->cutting = false;
    shared_->changed.notify_all();
    return true;
  }
  if (shared_->over_high_water()) {
    lock.unlock();
    const Status status = move_out(worker);
    if (status.ok()) return true;
    lock.lock();
    shared_->background_failed = true;
    ++shared_->failed;
    return false;
  }
  std::uint64_t offset = 0;
  const Slabs::Slab slab = shared_->slabs.begin_move_in(offset);
  if (slab == Slabs::none) return true;
  ++shared_->background_busy;
  lock.unlock();
  worker.io.read(worker.buffer.get(), Slabs::slab_bytes, offset);
  const Status status = worker.io.wait();
  lock.lock();
  shared_->slabs.end_move_in(slab, status.ok() ? worker.buffer.get() : nullptr, shared_->file);
  if (!status.ok()) ++shared_->failed;
  --shared_->background_busy;
  shared_->changed.notify_all();
  return true;
}

// --- tests -----------------------------------------------------------------------------------------------------------

void Store::verify() {
  UniqueLock lock(shared_->mutex);
  while (shared_->background_busy != 0 || shared_->cutting) shared_->changed.wait(lock);
  shared_->slabs.verify(shared_->file);
}

bool Store::corrupt(StoreHandle handle) {
  const LockGuard lock(shared_->mutex);
  if (handle == 0 || (handle & small_fill_bit) != 0) return false;
  const Slabs::Found f = shared_->slabs.find(static_cast<Slabs::Object>(handle - 1));
  switch (f.place) {
    case Slabs::Place::fill: return false;
    case Slabs::Place::memory: {
      auto* const at = const_cast<std::byte*>(f.memory) + f.bytes / 2;
      *at ^= std::byte{0x20};
      return true;
    }
    case Slabs::Place::file_slab:
    case Slabs::Place::file_page: {
      auto page = Worker::allocate(2 * page_bytes);
      const std::uint64_t where = f.file_offset + f.bytes / 2;
      const auto from = static_cast<off_t>(where & ~(page_bytes - 1));
      if (::pread(shared_->file.fd(), page.get(), page_bytes, from) != static_cast<ssize_t>(page_bytes)) return false;
      page[where % page_bytes] ^= std::byte{0x20};
      return ::pwrite(shared_->file.fd(), page.get(), page_bytes, from) == static_cast<ssize_t>(page_bytes);
    }
  }
  return false;
}

}  // namespace ferry::linux
