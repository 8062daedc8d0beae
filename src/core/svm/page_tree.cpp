#include "core/svm/page_tree.h"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <new>
#include <utility>

#include "base/check.h"

namespace ferry::core {
namespace {

constexpr std::size_t cache_line = 64;

unsigned width_of(PageTree::Id id) { return id < 0x10 ? 4 : id < 0x100 ? 8 : id < 0x1'0000 ? 16 : 32; }

}  // namespace

// --- leaves ----------------------------------------------------------------------------------------------------------

unsigned PageTree::Leaf::begin_of(unsigned page) const {
  unsigned word = page / 64;
  std::uint64_t bits = begins[word] & (~std::uint64_t{0} >> (63 - page % 64));
  while (bits == 0) {
    bits = begins[--word];
  }
  return word * 64 + 63 - static_cast<unsigned>(std::countl_zero(bits));
}

unsigned PageTree::Leaf::end_of(unsigned page) const {
  unsigned word = page / 64;
  std::uint64_t bits = begins[word] & (~std::uint64_t{1} << (page % 64));
  while (bits == 0) {
    if (++word == begins.size()) {
      return leaf_pages;
    }
    bits = begins[word];
  }
  return word * 64 + static_cast<unsigned>(std::countr_zero(bits));
}

void PageTree::Leaf::put(unsigned run, Id id) {
  if (width == 4) {
    const unsigned shift = run % 2 * 4;
    const std::byte other = ids[run / 2] & static_cast<std::byte>(0xf0U >> shift);
    ids[run / 2] = other | static_cast<std::byte>(id << shift);
  } else {
    std::memcpy(ids + std::size_t{run} * (width / 8U), &id, width / 8U);
  }
}

void PageTree::Leaf::move_runs(unsigned from, unsigned to, unsigned number) {
  if (from == to || number == 0) {
    return;
  }
  if (width != 4) {
    const std::size_t bytes = width / 8U;
    std::memmove(ids + to * bytes, ids + from * bytes, number * bytes);
  } else if (to < from) {
    for (unsigned n = 0; n < number; ++n) {
      put(to + n, id(from + n));
    }
  } else {
    for (unsigned n = number; n-- > 0;) {
      put(to + n, id(from + n));
    }
  }
}

unsigned PageTree::steps_for(unsigned count, unsigned width) {
  const std::size_t bytes = ids_offset + (std::size_t{count} * width + 7) / 8;
  for (unsigned steps = 0; steps < pool_count; ++steps) {
    if (bytes <= bytes_of(steps)) {
      return steps;
    }
  }
  return static_cast<unsigned>((heap_overhead + bytes + leaf_step - 1) / leaf_step);
}

void* PageTree::Pool::take(std::size_t size) {
  if (free_ != nullptr) {
    return std::exchange(free_, free_->next);
  }
  if (fresh_ == fresh_end_) {
    constexpr std::size_t slab_leaves_most = 1024;
    const std::size_t leaves = std::min(std::size_t{8} << std::min<std::size_t>(slabs_.size(), 16), slab_leaves_most);
    std::size_t slab_bytes = leaves * size + cache_line;
    slabs_.push_back(std::make_unique_for_overwrite<std::byte[]>(slab_bytes));
    bytes_ += slab_bytes;
    void* first = slabs_.back().get();
    fresh_ = static_cast<std::byte*>(std::align(cache_line, leaves * size, first, slab_bytes));
    fresh_end_ = fresh_ + leaves * size;
  }
  return std::exchange(fresh_, fresh_ + size);
}

/// REQUIRES: none of its leaves is there any more.
void PageTree::Pool::clear() { *this = Pool(); }

PageTree::Leaf* PageTree::new_leaf(unsigned count, unsigned width) {
  static_assert(offsetof(Leaf, ids) == ids_offset);
  const unsigned steps = steps_for(count, width);
  const std::size_t bytes = bytes_of(steps);
  auto* leaf = static_cast<Leaf*>(steps < pool_count ? pools_[steps].take(bytes) : ::operator new(bytes));
  leaf->begins = {};
  leaf->low = 0;
  leaf->count = 0;
  leaf->width = static_cast<std::uint8_t>(width);
  leaf->steps = static_cast<std::uint8_t>(steps);
  bytes_ += steps < pool_count ? 0 : steps * leaf_step;
  return leaf;
}

void PageTree::delete_leaf(Leaf* leaf) {
  const unsigned steps = leaf->steps;
  if (steps < pool_count) {
    pools_[steps].put_back(leaf);
  } else {
    bytes_ -= steps * leaf_step;
    ::operator delete(leaf);
  }
}

/// Another one with its contents and room for so many numbers of this width, or more. REQUIRES: its own have room.
PageTree::Leaf* PageTree::moved(Leaf* leaf, unsigned count, unsigned width) {
  Leaf* other = new_leaf(count, std::max<unsigned>(width, leaf->width));
  other->begins = leaf->begins;
  other->low = leaf->low;
  other->count = leaf->count;
  if (other->width == leaf->width) {
    std::memcpy(other->ids, leaf->ids, (std::size_t{leaf->count} * leaf->width + 7) / 8);
  } else {
    for (unsigned run = 0; run < leaf->count; ++run) {
      other->put(run, leaf->id(run));
    }
  }
  delete_leaf(leaf);
  return other;
}

// --- looking up ------------------------------------------------------------------------------------------------------

/// As long as can be told without leaving the leaf or node.
PageTree::LocalRun PageTree::local_run(Page page, PageSpan within) const {
  if (page >= reach()) {
    return {.first = reach(), .end = page_limit, .ends = true};
  }
  Entry entry = root_;
  const Node* node = nullptr;
  unsigned height = height_;
  while (height > 0 && is_child(entry)) {
    node = &node_of(entry);
    entry = node->entries[index_in_node(page, height)];
    --height;
  }
  const unsigned shift = shift_of(height);
  LocalRun run;
  run.first = page >> shift << shift;
  run.end = run.first + (Page{1} << shift);
  if (is_child(entry)) {
    const Leaf& leaf = leaf_of(entry);
    const unsigned at = static_cast<unsigned>(page % leaf_pages);
    const unsigned first = leaf.begin_of(at);
    const unsigned end = leaf.end_of(at);
    run.end = run.first + end;
    run.first += first;
    run.id = leaf.at(at);
    run.begins = first > 0;
    run.ends = end < leaf_pages;
    return run;
  }
  run.id = id_of(entry);
  if (node == nullptr) {
    return run;
  }
  std::size_t at = (page >> shift) % node_entries;
  const std::size_t here = at;
  for (; at > 0 && run.first > within.first && node->entries[at - 1] == entry; --at) {
    run.first -= Page{1} << shift;
  }
  for (at = here; at + 1 < node_entries && run.end < within.end() && node->entries[at + 1] == entry; ++at) {
    run.end += Page{1} << shift;
  }
  return run;
}

PageTree::Run PageTree::run_at(Page page, PageSpan within) const {
  const LocalRun here = local_run(page, within);
  Page first = here.first;
  Page end = here.end;
  for (bool open = !here.begins; open && first > within.first;) {
    const LocalRun left = local_run(first - 1, within);
    if (left.id != here.id) {
      break;
    }
    first = left.first;
    open = !left.begins;
  }
  for (bool open = !here.ends; open && end < within.end();) {
    const LocalRun right = local_run(end, within);
    if (right.id != here.id) {
      break;
    }
    end = right.end;
    open = !right.ends;
  }
  first = std::max(first, within.first);
  end = std::min(end, within.end());
  return {{first, end - first}, here.id};
}

/// Calls fn(Id) for each part of the pages from `first` to `end` that an entry or a leaf's run stands for, in order.
/// Pages count from the entry's first.
template <typename Fn>
void PageTree::walk(Entry entry, unsigned height, Page first, Page end, Fn&& fn) {
  if (!is_child(entry)) {
    fn(id_of(entry));
    return;
  }
  if (height == 0) {
    const Leaf& leaf = leaf_of(entry);
    const unsigned last = leaf.runs_up_to(static_cast<unsigned>(end - 1));
    for (unsigned run = leaf.runs_up_to(static_cast<unsigned>(first)) - 1; run < last; ++run) {
      fn(leaf.id(run));
    }
    return;
  }
  const unsigned shift = shift_of(height - 1);
  const Page pages = Page{1} << shift;
  for (Page i = first >> shift; i << shift < end; ++i) {
    const Page base = i << shift;
    walk(node_of(entry).entries[i], height - 1, first > base ? first - base : 0, std::min(end - base, pages), fn);
  }
}

std::uint64_t PageTree::begins_in(Page first, Page end) const {
  end = std::min(end, reach());
  if (first >= end) {
    return 0;
  }
  std::uint64_t count = 0;
  Id before = 0;
  bool begins = first == 0;
  walk(root_, height_, first == 0 ? 0 : first - 1, end, [&](Id id) {
    count += begins && id != before && id != 0 ? 1 : 0;
    before = id;
    begins = true;
  });
  return count;
}

// --- changing --------------------------------------------------------------------------------------------------------

void PageTree::use(Id id, std::uint32_t times) {
  if (id >= uses_.size()) {
    uses_.resize(id + 1);
  }
  uses_[id] += times;
}

void PageTree::set(PageSpan span, Id id) {
  FERRY_DCHECK(span.count_pages > 0 && span.end() <= page_limit);
  Page end = span.end();
  if (uses_.empty()) {
    use(0);  // the root
  }
  if (id == 0) {
    end = std::min(end, reach());
    if (span.first >= end) {
      return;
    }
  }
  while (end > reach()) {
    if (root_ != 0) {
      auto* top = new Node{};
      bytes_ += sizeof(Node);
      top->entries[0] = root_;
      root_ = entry_of(top);
      use(0, node_entries - 1);
    }
    ++height_;
  }
  const Id before = span.first == 0 ? 0 : at(span.first - 1);
  const Id after = at(end);
  const std::uint64_t gone = begins_in(span.first, end + 1);
  write(root_, height_, span.first, end, id);
  spans_ += (id != 0 && id != before ? 1U : 0U) + (after != 0 && after != id ? 1U : 0U) - gone;
  if (root_ == 0) {
    height_ = 0;
  }
}

/// Pages count from the entry's first.
void PageTree::write(Entry& entry, unsigned height, Page first, Page end, Id id) {
  if (first == 0 && end >> shift_of(height) != 0) {
    release(entry, height);
    entry = entry_of(id);
    use(id);
    return;
  }
  if (entry == entry_of(id)) {
    return;
  }
  if (!is_child(entry)) {
    split(entry, height);
  }
  if (height == 0) {
    write_leaf(entry, static_cast<unsigned>(first), static_cast<unsigned>(end), id);
    return;
  }
  Node& node = node_of(entry);
  const unsigned shift = shift_of(height - 1);
  const Page pages = Page{1} << shift;
  for (Page i = first >> shift; i << shift < end; ++i) {
    const Page base = i << shift;
    write(node.entries[i], height - 1, first > base ? first - base : 0, std::min(end - base, pages), id);
  }
  fold(entry, first >> shift);
}

/// An entry that stands for all of its pages becomes a node or leaf that says the same.
void PageTree::split(Entry& entry, unsigned height) {
  const Id id = id_of(entry);
  if (height == 0) {
    Leaf* leaf = new_leaf(1, width_of(id));
    leaf->begins[0] = 1;
    leaf->low = 1;
    leaf->count = 1;
    leaf->put(0, id);
    entry = entry_of(leaf);
    return;
  }
  auto* node = new Node;
  bytes_ += sizeof(Node);
  node->entries.fill(entry);
  use(id, node_entries - 1);
  entry = entry_of(node);
}

/// A node whose entries all say the same goes. `index`: one that may have changed.
void PageTree::fold(Entry& entry, std::size_t index) {
  const Node& node = node_of(entry);
  const Entry child = node.entries[index];
  if (is_child(child) ||
      std::any_of(node.entries.begin(), node.entries.end(), [child](Entry e) { return e != child; })) {
    return;
  }
  drop(id_of(child), node_entries - 1);
  delete &node;
  bytes_ -= sizeof(Node);
  entry = child;
}

void PageTree::write_leaf(Entry& entry, unsigned first, unsigned end, Id id) {
  Leaf* leaf = &leaf_of(entry);
  const unsigned from = first == 0 ? 0 : leaf->runs_up_to(first - 1);           // runs that stay, before ...
  const unsigned to = end == leaf_pages ? leaf->count : leaf->runs_up_to(end);  // ... and from there on
  const bool begins = first == 0 || leaf->id(from - 1) != id;
  const Id after = end == leaf_pages ? id : leaf->id(to - 1);
  const bool ends = after != id;
  const unsigned added = (begins ? 1U : 0U) + (ends ? 1U : 0U);
  const unsigned count = leaf->count - (to - from) + added;
  if (count == 1) {
    release(entry, 0);
    entry = entry_of(id);
    use(id);
    return;
  }
  if (begins) {
    use(id);
  }
  if (ends) {
    use(after);
  }
  for (unsigned run = from; run < to; ++run) {
    drop(leaf->id(run));
  }
  // A quarter in reserve, or each change would move all but the smallest.
  const unsigned reserve = std::min(count + count / 4, leaf_pages);
  if (count > leaf->room() || (begins && width_of(id) > leaf->width)) {
    leaf = moved(leaf, std::max<unsigned>(reserve, leaf->count), width_of(id));
  }
  leaf->move_runs(to, from + added, leaf->count - to);
  leaf->count = static_cast<std::uint8_t>(count);
  for (unsigned word = first / 64; word <= std::min(end, leaf_pages - 1) / 64; ++word) {
    const unsigned base = word * 64;
    const std::uint64_t from_first = first > base ? ~std::uint64_t{0} << (first - base) : ~std::uint64_t{0};
    const std::uint64_t up_to_end = end < base + 63 ? ~std::uint64_t{0} >> (63 - (end - base)) : ~std::uint64_t{0};
    leaf->begins[word] &= ~(from_first & up_to_end);
  }
  if (begins) {
    leaf->begins[first / 64] |= std::uint64_t{1} << (first % 64);
    leaf->put(from, id);
  }
  if (ends) {
    leaf->begins[end / 64] |= std::uint64_t{1} << (end % 64);
    leaf->put(from + added - 1, after);
  }
  leaf->low = static_cast<std::uint8_t>(count_set(leaf->begins[0]));
  if (count < leaf->room() / 2 && steps_for(reserve, leaf->width) < leaf->steps) {
    leaf = moved(leaf, reserve, leaf->width);
  }
  entry = entry_of(leaf);
}

void PageTree::release(Entry entry, unsigned height) {
  if (!is_child(entry)) {
    drop(id_of(entry));
    return;
  }
  if (height == 0) {
    Leaf& leaf = leaf_of(entry);
    for (unsigned run = 0; run < leaf.count; ++run) {
      drop(leaf.id(run));
    }
    delete_leaf(&leaf);
    return;
  }
  Node& node = node_of(entry);
  for (const Entry child : node.entries) {
    release(child, height - 1);
  }
  delete &node;
  bytes_ -= sizeof(Node);
}

void PageTree::clear() {
  if (!uses_.empty()) {
    release(root_, height_);
  }
  FERRY_DCHECK(bytes_ == 0);
  for (Pool& pool : pools_) {
    pool.clear();
  }
  root_ = 0;
  height_ = 0;
  spans_ = 0;
  uses_ = std::vector<std::uint32_t>();  // {} would keep the memory
}

PageTree& PageTree::operator=(const PageTree& other) {
  if (this == &other) {
    return *this;
  }
  clear();
  root_ = copy_of(other.root_, other.height_);
  height_ = other.height_;
  spans_ = other.spans_;
  uses_ = other.uses_;
  return *this;
}

PageTree& PageTree::operator=(PageTree&& other) noexcept {
  std::swap(root_, other.root_);
  std::swap(height_, other.height_);
  std::swap(spans_, other.spans_);
  std::swap(bytes_, other.bytes_);
  std::swap(pools_, other.pools_);
  std::swap(uses_, other.uses_);
  return *this;
}

PageTree::Entry PageTree::copy_of(Entry entry, unsigned height) {
  if (!is_child(entry)) {
    return entry;
  }
  if (height == 0) {
    const Leaf& leaf = leaf_of(entry);
    Leaf* other = new_leaf(leaf.count, leaf.width);
    other->begins = leaf.begins;
    other->low = leaf.low;
    other->count = leaf.count;
    std::memcpy(other->ids, leaf.ids, (std::size_t{leaf.count} * leaf.width + 7) / 8);
    return entry_of(other);
  }
  const Node& node = node_of(entry);
  auto* other = new Node;
  bytes_ += sizeof(Node);
  std::transform(node.entries.begin(), node.entries.end(), other->entries.begin(),
                 [&](Entry child) { return copy_of(child, height - 1); });
  return entry_of(other);
}

// --- checking --------------------------------------------------------------------------------------------------------

void PageTree::verify() const {
  if (uses_.empty()) {
    FERRY_CHECK(root_ == 0 && height_ == 0 && spans_ == 0 && bytes() == 0);
    return;
  }
  FERRY_CHECK(root_ != 0 || height_ == 0);
  FERRY_CHECK_LE(height_, (52 - leaf_shift + node_shift - 1) / node_shift);
  std::vector<std::uint32_t> uses(uses_.size());
  std::size_t bytes = 0;
  verify_entry(root_, height_, uses, bytes);
  FERRY_CHECK(uses == uses_);
  FERRY_CHECK_EQ(bytes, bytes_);
  FERRY_CHECK_EQ(begins_in(0, reach()), spans_);
}

void PageTree::verify_entry(Entry entry, unsigned height, std::vector<std::uint32_t>& uses, std::size_t& bytes) const {
  if (!is_child(entry)) {
    FERRY_CHECK_LT(id_of(entry), uses.size());
    ++uses[id_of(entry)];
    return;
  }
  if (height == 0) {
    const Leaf& leaf = leaf_of(entry);
    FERRY_CHECK(leaf.width == 4 || leaf.width == 8 || leaf.width == 16 || leaf.width == 32);
    FERRY_CHECK_GE(leaf.count, 2U);  // else the entry says it
    FERRY_CHECK_LE(leaf.count, leaf.room());
    FERRY_CHECK((leaf.begins[0] & 1U) != 0);
    FERRY_CHECK_EQ(leaf.low, count_set(leaf.begins[0]));
    FERRY_CHECK_EQ(leaf.count, leaf.low + count_set(leaf.begins[1]));
    for (unsigned run = 0; run < leaf.count; ++run) {
      FERRY_CHECK_LT(leaf.id(run), uses.size());
      FERRY_CHECK(run == 0 || leaf.id(run) != leaf.id(run - 1));  // equal neighbours are one
      ++uses[leaf.id(run)];
    }
    bytes += leaf.steps < pool_count ? 0 : leaf.steps * leaf_step;
    return;
  }
  const Node& node = node_of(entry);
  bool folds = true;
  for (const Entry child : node.entries) {
    folds = folds && !is_child(child) && child == node.entries[0];
    verify_entry(child, height - 1, uses, bytes);
  }
  FERRY_CHECK(!folds);
  bytes += sizeof(Node);
}

}  // namespace ferry::core
