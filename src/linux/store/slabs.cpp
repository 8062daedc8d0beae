#include "linux/store/slabs.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/types.h"

namespace ferry::linux {
namespace {

/// Slabs that a class may have open at once would starve the others in less.
constexpr std::uint64_t frames_min = 16;
/// A slab in the file that holds less than one part in so many is worth emptying.
constexpr unsigned sparse_share = 4;
/// Old slabs that are looked at for one that is well filled.
constexpr unsigned looked_at_max = 16;

}  // namespace

Slabs::~Slabs() {
  if (arena_ != nullptr) ::munmap(arena_, frame_count_ * slab_bytes);
}

Status Slabs::reserve_memory(std::uint64_t bytes) {
  const std::uint64_t count = std::min<std::uint64_t>(bytes / slab_bytes, none - 1);
  if (count < frames_min) return {};
  void* const at =
      ::mmap(nullptr, count * slab_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) return {Code::no_memory, errno};
  // Memory is counted in slabs: a huge page would hold more than was counted.
  ::madvise(at, count * slab_bytes, MADV_NOHUGEPAGE);
  ::madvise(at, count * slab_bytes, MADV_DONTDUMP);
  arena_ = static_cast<std::byte*>(at);
  frame_count_ = count;
  return {};
}

unsigned Slabs::class_of(std::size_t bytes) {
  return static_cast<unsigned>(std::lower_bound(class_bytes.begin(), class_bytes.end(), bytes) - class_bytes.begin());
}

// --- lists -----------------------------------------------------------------------------------------------------------

template <Slabs::Links Slabs::SlabEntry::*Which>
void Slabs::append(List& list, Slab slab) {
  (slabs_[slab].*Which) = {list.last, none};
  (list.last == none ? list.first : (slabs_[list.last].*Which).next) = slab;
  list.last = slab;
  ++list.size;
}

template <Slabs::Links Slabs::SlabEntry::*Which>
void Slabs::remove(List& list, Slab slab) {
  const Links links = slabs_[slab].*Which;
  (links.previous == none ? list.first : (slabs_[links.previous].*Which).next) = links.next;
  (links.next == none ? list.last : (slabs_[links.next].*Which).previous) = links.previous;
  --list.size;
}

void Slabs::set_partial(Slab slab, bool wanted) {
  SlabEntry& s = slabs_[slab];
  if (s.in_partial == wanted) return;
  s.in_partial = wanted;
  if (wanted) {
    append<&SlabEntry::partial>(partial_[s.size_class], slab);
  } else {
    remove<&SlabEntry::partial>(partial_[s.size_class], slab);
  }
}

// --- objects ---------------------------------------------------------------------------------------------------------

Slabs::Object Slabs::new_object() {
  ++objects_in_use_;
  if (free_entry_ != none) {
    const Object object = free_entry_;
    free_entry_ = entries_[object].detail;
    return object;
  }
  entries_.emplace_back();
  return static_cast<Object>(entries_.size() - 1);
}

void Slabs::free_object(Object object) {
  --objects_in_use_;
  entries_[object] = {mark_free, free_entry_, 0};
  free_entry_ = object;
}

Slabs::Object Slabs::put_fill(std::uint64_t word) {
  const Object object = new_object();
  entries_[object] = {mark_fill, 0, word};
  ++fills_;
  return object;
}

Slabs::Object Slabs::put_page(SlotFile::Slot slot, std::uint64_t checksum) {
  const Object object = new_object();
  entries_[object] = {mark_page, slot, checksum};
  ++file_pages_;
  return object;
}

Slabs::Object Slabs::put(std::size_t bytes, std::uint64_t checksum, std::byte*& at) {
  FERRY_CHECK(bytes > 0 && bytes <= object_bytes_max);
  const unsigned size_class = class_of(bytes);
  Slab slab = partial_[size_class].first;
  if (slab == none) slab = new_slab(size_class);
  if (slab == none) return none;
  const Object object = new_object();
  const std::uint32_t place = take_place(slab, object);
  entries_[object] = {slab, (place << 16) | static_cast<std::uint32_t>(bytes), checksum};
  payload_bytes_ += bytes;
  ++slabs_[slab].pins;
  at = frame(slabs_[slab].frame) + std::size_t{place} * class_bytes[size_class];
  return object;
}

bool Slabs::known(Object object) const { return object < entries_.size() && entries_[object].where != mark_free; }

Slabs::Found Slabs::find(Object object) const {
  FERRY_CHECK(known(object));
  const Entry& e = entries_[object];
  Found f;
  f.checksum = e.checksum;
  if (e.where == mark_fill) return f;
  if (e.where == mark_page) {
    f.place = Place::file_page;
    f.bytes = page_bytes;
    f.file_offset = std::uint64_t{e.detail} * page_bytes;
    return f;
  }
  const SlabEntry& s = slabs_[e.where];
  const std::size_t offset = std::size_t{e.detail >> 16} * class_bytes[s.size_class];
  f.slab = e.where;
  f.bytes = e.detail & 0xffff;
  if (s.frame != none) {
    f.place = Place::memory;
    f.memory = frame(s.frame) + offset;
  } else {
    f.place = Place::file_slab;
    f.file_offset = std::uint64_t{s.slot} * page_bytes + offset;
  }
  return f;
}

void Slabs::drop(Object object, SlotFile& file) {
  FERRY_CHECK(known(object));
  const Entry e = entries_[object];
  free_object(object);
  if (e.where == mark_fill) {
    --fills_;
  } else if (e.where == mark_page) {
    --file_pages_;
    file.give(e.detail, 1);
  } else {
    payload_bytes_ -= e.detail & 0xffff;
    give_place(e.where, e.detail >> 16);
    settle(e.where, file, true);
  }
}

void Slabs::unpin(Slab slab, SlotFile& file) {
  FERRY_CHECK(slabs_[slab].pins > 0);
  if (--slabs_[slab].pins == 0) settle(slab, file, false);
}

// --- slabs -----------------------------------------------------------------------------------------------------------

Slabs::Slab Slabs::new_slab(unsigned size_class) {
  std::uint32_t index = none;
  if (!warm_.empty()) {
    index = warm_.back();
    warm_.pop_back();
  } else if (!cool_.empty()) {
    index = cool_.back();
    cool_.pop_back();
  } else if (untouched_ < frame_count_) {
    index = untouched_++;
  } else {
    return none;
  }
  ++used_frames_;
  if (unused_slabs_.empty()) {
    slabs_.emplace_back();
    unused_slabs_.push_back(static_cast<Slab>(slabs_.size() - 1));
  }
  const Slab slab = unused_slabs_.back();
  unused_slabs_.pop_back();
  SlabEntry& s = slabs_[slab];
  s.state = State::memory;
  s.size_class = static_cast<std::uint8_t>(size_class);
  s.live = 0;
  s.capacity = static_cast<std::uint16_t>(slab_bytes / class_bytes[size_class]);
  s.pins = 0;
  s.frame = index;
  s.slot = SlotFile::none;
  s.owners.resize(s.capacity);
  for (std::uint32_t i = 0; i < s.capacity; ++i) s.owners[i] = free_bit | (i + 1);
  s.free_head = 0;
  append<&SlabEntry::cold>(cold_, slab);
  set_partial(slab, true);
  return slab;
}

std::uint32_t Slabs::take_place(Slab slab, Object owner) {
  SlabEntry& s = slabs_[slab];
  const std::uint32_t place = s.free_head;
  FERRY_CHECK_LT(place, s.capacity);
  s.free_head = s.owners[place] & ~free_bit;
  s.owners[place] = owner;
  if (++s.live == s.capacity) set_partial(slab, false);
  return place;
}

void Slabs::give_place(Slab slab, std::uint32_t place) {
  SlabEntry& s = slabs_[slab];
  s.owners[place] = free_bit | s.free_head;
  s.free_head = place;
  --s.live;
  if (s.state == State::memory) set_partial(slab, true);
}

void Slabs::release_frame(SlabEntry& s) {
  if (s.frame == none) return;
  warm_.push_back(s.frame);
  s.frame = none;
  --used_frames_;
}

/// An object `left`, or a user of the bytes did: frees what nobody needs any more.
void Slabs::settle(Slab slab, SlotFile& file, bool left) {
  SlabEntry& s = slabs_[slab];
  if (s.pins != 0) return;
  switch (s.state) {
    case State::memory:
      if (s.live == 0) free_slab(slab, file);
      break;
    case State::file:
      if (s.frame != none) release_frame(s);
      if (s.live == 0) {
        free_slab(slab, file);
      } else if (left && !s.sparse && s.live * sparse_share <= s.capacity) {
        s.sparse = true;
        sparse_.push_back(slab);
      }
      break;
    case State::unused:
    case State::moving_out:
    case State::moving_in: break;
  }
}

void Slabs::free_slab(Slab slab, SlotFile& file) {
  SlabEntry& s = slabs_[slab];
  if (s.state == State::memory) {
    set_partial(slab, false);
    remove<&SlabEntry::cold>(cold_, slab);
  } else {
    --slabs_in_file_;
    file.give(s.slot, slots_of_slab);
    s.slot = SlotFile::none;
  }
  release_frame(s);
  if (s.sparse) std::erase(sparse_, slab);
  s.sparse = false;
  s.state = State::unused;
  unused_slabs_.push_back(slab);
}

// --- between memory and file -----------------------------------------------------------------------------------------

Slabs::Slab Slabs::coldest() {
  Slab first = none;
  unsigned looked = 0;
  for (Slab slab = cold_.first; slab != none && looked < looked_at_max; slab = slabs_[slab].cold.next) {
    const SlabEntry& s = slabs_[slab];
    if (s.pins != 0) continue;
    ++looked;
    // What is half empty would take as much of the file as what is full.
    if (s.live * 4U >= s.capacity * 3U) return slab;
    if (first == none) first = slab;
  }
  return first;
}

void Slabs::begin_move_out(Slab slab, SlotFile::Slot first) {
  SlabEntry& s = slabs_[slab];
  FERRY_CHECK(s.state == State::memory && s.pins == 0);
  set_partial(slab, false);
  remove<&SlabEntry::cold>(cold_, slab);
  s.state = State::moving_out;
  s.slot = first;
}

void Slabs::end_move_out(Slab slab, bool written, SlotFile& file) {
  SlabEntry& s = slabs_[slab];
  FERRY_CHECK(s.state == State::moving_out);
  if (written) {
    s.state = State::file;
    ++slabs_in_file_;
  } else {
    file.give(s.slot, slots_of_slab);
    s.slot = SlotFile::none;
    s.state = State::memory;
    append<&SlabEntry::cold>(cold_, slab);
    set_partial(slab, s.live < s.capacity);
  }
  settle(slab, file, false);
}

Slabs::Slab Slabs::begin_move_in(std::uint64_t& file_offset) {
  while (!sparse_.empty()) {
    const Slab slab = sparse_.back();
    sparse_.pop_back();
    SlabEntry& s = slabs_[slab];
    s.sparse = false;
    if (s.pins != 0) continue;  // listed again when the next object leaves it
    s.state = State::moving_in;
    file_offset = std::uint64_t{s.slot} * page_bytes;
    return slab;
  }
  return none;
}

void Slabs::end_move_in(Slab slab, const std::byte* bytes, SlotFile& file) {
  SlabEntry& s = slabs_[slab];
  FERRY_CHECK(s.state == State::moving_in);
  s.state = State::file;
  const std::size_t size = class_bytes[s.size_class];
  for (std::uint32_t place = 0; bytes != nullptr && place < s.capacity && s.live > 0; ++place) {
    const std::uint32_t owner = s.owners[place];
    if ((owner & free_bit) != 0) continue;
    if (s.pins != 0) break;  // somebody reads the file's copy of one of them just now
    Slab to = partial_[s.size_class].first;
    if (to == none && used_frames_ < frame_count_ - frame_count_ / 4) to = new_slab(s.size_class);
    if (to == none) break;
    const std::uint32_t new_place = take_place(to, owner);
    std::memcpy(frame(slabs_[to].frame) + new_place * size, bytes + place * size, size);
    entries_[owner].where = to;
    entries_[owner].detail = (new_place << 16) | (entries_[owner].detail & 0xffff);
    give_place(slab, place);
  }
  // What stays, stays: it is listed again when more of it goes.
  settle(slab, file, false);
}

bool Slabs::merge_one() {
  for (std::size_t c = 0; c < class_bytes.size(); ++c) {
    const List& list = partial_[c];
    if (list.size < 2) continue;
    Slab emptiest = none;
    std::uint32_t room = 0;
    for (Slab slab = list.first; slab != none; slab = slabs_[slab].partial.next) {
      const SlabEntry& s = slabs_[slab];
      room += s.capacity - s.live;
      if (s.pins == 0 && (emptiest == none || s.live < slabs_[emptiest].live)) emptiest = slab;
    }
    if (emptiest == none) continue;
    SlabEntry& from = slabs_[emptiest];
    if (room - (from.capacity - from.live) < from.live) continue;
    set_partial(emptiest, false);
    const std::size_t size = class_bytes[c];
    for (std::uint32_t place = 0; from.live > 0; ++place) {
      const std::uint32_t owner = from.owners[place];
      if ((owner & free_bit) != 0) continue;
      const Slab to = partial_[c].first;
      const std::uint32_t new_place = take_place(to, owner);
      std::memcpy(frame(slabs_[to].frame) + new_place * size, frame(from.frame) + place * size, size);
      entries_[owner].where = to;
      entries_[owner].detail = (new_place << 16) | (entries_[owner].detail & 0xffff);
      from.owners[place] = free_bit | from.free_head;
      from.free_head = place;
      --from.live;
    }
    remove<&SlabEntry::cold>(cold_, emptiest);
    release_frame(from);
    from.state = State::unused;
    unused_slabs_.push_back(emptiest);
    return true;
  }
  return false;
}

// --- memory ----------------------------------------------------------------------------------------------------------

std::byte* Slabs::take_warm_frame() {
  if (warm_.empty()) return nullptr;
  const std::uint32_t index = warm_.back();
  warm_.pop_back();
  return frame(index);
}

void Slabs::frame_is_cold(const std::byte* memory) {
  cool_.push_back(static_cast<std::uint32_t>(static_cast<std::size_t>(memory - arena_) / slab_bytes));
}

void Slabs::verify(const SlotFile& file) const {
  std::uint64_t live = 0;
  std::uint64_t frames = 0;
  std::uint64_t slots = file_pages_;
  std::uint64_t in_file = 0;
  for (Slab slab = 0; slab < slabs_.size(); ++slab) {
    const SlabEntry& s = slabs_[slab];
    if (s.state == State::unused) continue;
    std::uint32_t here = 0;
    for (std::uint32_t place = 0; place < s.capacity; ++place) {
      if ((s.owners[place] & free_bit) != 0) continue;
      ++here;
      FERRY_CHECK_EQ(entries_[s.owners[place]].where, slab);
      FERRY_CHECK_EQ(entries_[s.owners[place]].detail >> 16, place);
    }
    FERRY_CHECK_EQ(here, s.live);
    live += here;
    if (s.frame != none) ++frames;
    if (s.slot != SlotFile::none) slots += slots_of_slab;
    if (s.state == State::file || s.state == State::moving_in) ++in_file;
    FERRY_CHECK_EQ(s.in_partial, s.state == State::memory && s.live < s.capacity);
  }
  FERRY_CHECK_EQ(live + fills_ + file_pages_, objects_in_use_);
  FERRY_CHECK_EQ(frames, used_frames_);
  FERRY_CHECK_EQ(slots, file.used_slots());
  FERRY_CHECK_EQ(in_file, slabs_in_file_);
}

}  // namespace ferry::linux
