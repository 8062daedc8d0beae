#include "core/svm/attribute_map.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "core/digest.h"

namespace ferry::core {
namespace {

constexpr Page page_limit = Page{1} << 52;

/// How many of the sorted keys are at most `page`. No branch depends on a key: what decides is memory, not prediction.
std::uint32_t count_up_to(const Page* keys, std::uint32_t count, Page page) {
  if (count == 0) {
    return 0;
  }
  const Page* base = keys;
  while (count > 1) {
    const std::uint32_t half = count / 2;
    base += base[half - 1] <= page ? half : 0;
    count -= half;
  }
  return static_cast<std::uint32_t>(base - keys) + (*base <= page ? 1U : 0U);
}
std::uint32_t count_below(const Page* keys, std::uint32_t count, Page page) {
  return page == 0 ? 0 : count_up_to(keys, count, page - 1);
}

void add_to(Digest& d, const Attributes& a) {
  d.add(a.preferred).add(a.prefetch).add(a.granularity).add(a.flags).add(a.access);
}
void add_to(Digest& d, std::uint32_t value) { d.add(value); }

template <typename Node>
void move_entries(const Node& from, std::uint32_t first, std::uint32_t count, Node& to, std::uint32_t at) {
  if (&from == &to && at > first) {
    std::copy_backward(from.keys + first, from.keys + first + count, to.keys + at + count);
    std::copy_backward(from.values + first, from.values + first + count, to.values + at + count);
  } else {
    std::copy(from.keys + first, from.keys + first + count, to.keys + at);
    std::copy(from.values + first, from.values + first + count, to.values + at);
  }
}

template <typename Node>
void erase_entries(Node& node, std::uint32_t first, std::uint32_t count) {
  move_entries(node, first + count, node.count - first - count, node, first);
  node.count -= count;
}

/// Evens out two neighbours, or empties the right one into the left where both fit. True: it is empty now.
template <typename Node>
bool even_out(Node& left, Node& right, std::uint32_t most) {
  const std::uint32_t total = left.count + right.count;
  if (total <= most) {
    move_entries(right, 0, right.count, left, left.count);
    left.count = total;
    right.count = 0;
    return true;
  }
  const std::uint32_t wanted = total / 2;
  if (left.count < wanted) {
    const std::uint32_t moved = wanted - left.count;
    move_entries(right, 0, moved, left, left.count);
    left.count = wanted;
    erase_entries(right, 0, moved);
  } else {
    const std::uint32_t moved = left.count - wanted;
    move_entries(right, 0, right.count, right, moved);
    move_entries(left, wanted, moved, right, 0);
    right.count += moved;
    left.count = wanted;
  }
  return false;
}

template <typename Node, typename Value>
void put(Node& node, std::uint32_t at, Page key, const Value& value) {
  move_entries(node, at, node.count - at, node, at + 1);
  node.keys[at] = key;
  node.values[at] = value;
  ++node.count;
}

}  // namespace

template <typename Value>
PageMap<Value>::PageMap() : root_(new Leaf), leaves_(1) {}

template <typename Value>
PageMap<Value>::~PageMap() {
  free_nodes(root_, depth_);
}

template <typename Value>
PageMap<Value>::PageMap(const PageMap& other) : PageMap() {
  *this = other;
}

template <typename Value>
PageMap<Value>& PageMap<Value>::operator=(const PageMap& other) {
  if (this == &other) {
    return *this;
  }
  clear();
  if (other.empty()) {
    return *this;
  }
  for (const Leaf* leaf = &other.leaf_of(0); leaf != nullptr; leaf = leaf->next) {
    for (std::uint32_t i = 0; i < leaf->count; ++i) {
      insert(leaf->keys[i], leaf->values[i]);
    }
  }
  return *this;
}

template <typename Value>
PageMap<Value>::PageMap(PageMap&& other) noexcept : PageMap() {
  *this = std::move(other);
}

template <typename Value>
PageMap<Value>& PageMap<Value>::operator=(PageMap&& other) noexcept {
  std::swap(root_, other.root_);
  std::swap(depth_, other.depth_);
  std::swap(spans_, other.spans_);
  std::swap(leaves_, other.leaves_);
  std::swap(inners_, other.inners_);
  return *this;
}

template <typename Value>
void PageMap<Value>::clear() {
  free_nodes(root_, depth_);
  root_ = new Leaf;
  depth_ = 0;
  spans_ = 0;
  leaves_ = 1;
  inners_ = 0;
}

template <typename Value>
void PageMap<Value>::free_nodes(void* node, unsigned depth) {
  if (depth == 0) {
    delete static_cast<Leaf*>(node);
    return;
  }
  auto* inner = static_cast<Inner*>(node);
  for (std::uint32_t i = 0; i < inner->count; ++i) {
    free_nodes(inner->values[i], depth - 1);
  }
  delete inner;
}

// --- looking up ------------------------------------------------------------------------------------------------------

template <typename Value>
const typename PageMap<Value>::Leaf& PageMap<Value>::leaf_of(Page page) const {
  const void* node = root_;
  for (unsigned d = 0; d < depth_; ++d) {
    const auto& inner = *static_cast<const Inner*>(node);
    node = inner.values[count_up_to(inner.keys, inner.count, page) - 1];
    // All lines of the next node at once: a search in it would wait for them one by one.
    const std::size_t size = d + 1 == depth_ ? sizeof(Leaf) : sizeof(Inner);
    for (std::size_t line = 0; line < size; line += 64) {
      __builtin_prefetch(static_cast<const char*>(node) + line);
    }
  }
  return *static_cast<const Leaf*>(node);
}

template <typename Value>
Value PageMap<Value>::value_before(const Leaf& leaf, std::uint32_t index) {
  if (index > 0) {
    return leaf.values[index - 1];
  }
  return leaf.before == nullptr ? Value{} : leaf.before->values[leaf.before->count - 1];
}

template <typename Value>
Value PageMap<Value>::at(Page page) const {
  const Leaf& leaf = leaf_of(page);
  return value_before(leaf, count_up_to(leaf.keys, leaf.count, page));
}

template <typename Value>
typename PageMap<Value>::Run PageMap<Value>::run_at(Page page, PageSpan within) const {
  const Leaf& leaf = leaf_of(page);
  const std::uint32_t index = count_up_to(leaf.keys, leaf.count, page);
  Page first = within.first;
  if (index > 0) {
    first = std::max(first, leaf.keys[index - 1]);
  } else if (leaf.before != nullptr) {
    first = std::max(first, leaf.before->keys[leaf.before->count - 1]);
  }
  Page end = within.end();
  if (index < leaf.count) {
    end = std::min(end, leaf.keys[index]);
  } else if (leaf.next != nullptr) {
    end = std::min(end, leaf.next->keys[0]);
  }
  return {{first, end - first}, value_before(leaf, index)};
}

template <typename Value>
std::uint64_t PageMap<Value>::digest() const {
  Digest d;
  for_runs({0, page_limit}, [&](PageSpan span, const Value& a) {
    if (!(a == Value{})) {
      d.add(span);
      add_to(d, a);
    }
  });
  return d.value();
}

// --- changing --------------------------------------------------------------------------------------------------------

template <typename Value>
void PageMap<Value>::set(PageSpan span, const Value& value) {
  FERRY_DCHECK(span.count_pages > 0 && span.end() <= page_limit);
  if (set_in_leaf(const_cast<Leaf&>(leaf_of(span.first)), span, value)) {
    return;
  }
  const Value before = span.first == 0 ? Value{} : at(span.first - 1);
  const Value after = at(span.end());
  erase_borders(span.first, span.end());
  if (!(value == before)) {
    insert(span.first, value);
  }
  if (!(after == value)) {
    insert(span.end(), after);
  }
}

/// The usual case: all borders that come and go lie in one leaf, which is neither too full nor too empty afterwards.
template <typename Value>
bool PageMap<Value>::set_in_leaf(Leaf& leaf, PageSpan span, const Value& value) {
  const std::uint32_t first = count_below(leaf.keys, leaf.count, span.first);
  const std::uint32_t last = count_up_to(leaf.keys, leaf.count, span.end());
  if (last == leaf.count && leaf.next != nullptr) {
    return false;
  }
  const Value before = value_before(leaf, first);
  const Value after = value_before(leaf, last);
  const bool begins = !(value == before);
  const bool ends = !(after == value);
  const std::uint32_t added = (begins ? 1U : 0U) + (ends ? 1U : 0U);
  const std::uint32_t count = leaf.count - (last - first) + added;
  if (count > leaf_most || (count < leaf_most / 4 && count < leaf.count && depth_ != 0)) {
    return false;
  }
  for (std::uint32_t i = first; i < last; ++i) {
    spans_ -= leaf.values[i] == Value{} ? 0 : 1;
  }
  move_entries(leaf, last, leaf.count - last, leaf, first + added);
  leaf.count = count;
  std::uint32_t at = first;
  if (begins) {
    leaf.keys[at] = span.first;
    leaf.values[at++] = value;
    spans_ += value == Value{} ? 0 : 1;
  }
  if (ends) {
    leaf.keys[at] = span.end();
    leaf.values[at] = after;
    spans_ += after == Value{} ? 0 : 1;
  }
  return true;
}

template <typename Value>
void PageMap<Value>::move(PageSpan from, Page to) {
  if (empty()) {
    return;
  }
  std::vector<Run> runs;
  for_runs(from, [&](PageSpan span, const Value& value) {
    runs.push_back({{to + (span.first - from.first), span.count_pages}, value});
  });
  erase(from);
  for (const Run& run : runs) {
    set(run.span, run.value);
  }
}

template <typename Value>
typename PageMap<Value>::Path PageMap<Value>::path_to(Page page) {
  Path path;
  void* node = root_;
  for (unsigned d = 0; d < depth_; ++d) {
    auto* inner = static_cast<Inner*>(node);
    path.node[d] = inner;
    path.child[d] = count_up_to(inner->keys, inner->count, page) - 1;
    node = inner->values[path.child[d]];
  }
  path.leaf = static_cast<Leaf*>(node);
  return path;
}

/// Forgets all borders from `first` to `last`, both included, a leaf at a time.
template <typename Value>
void PageMap<Value>::erase_borders(Page first, Page last) {
  while (true) {
    Path path = path_to(first);
    Leaf& leaf = *path.leaf;
    const std::uint32_t from = count_below(leaf.keys, leaf.count, first);
    const std::uint32_t to = count_up_to(leaf.keys, leaf.count, last);
    const bool more = to == leaf.count && leaf.next != nullptr && leaf.next->keys[0] <= last;
    if (more) {
      first = leaf.next->keys[0];  // before the leaves are merged
    }
    if (from < to) {
      for (std::uint32_t i = from; i < to; ++i) {
        spans_ -= leaf.values[i] == Value{} ? 0 : 1;
      }
      erase_entries(leaf, from, to - from);
      leaf_shrunk(path);
    }
    if (!more) {
      return;
    }
  }
}

/// REQUIRES: no border is there.
template <typename Value>
void PageMap<Value>::insert(Page key, const Value& value) {
  Path path = path_to(key);
  Leaf* leaf = path.leaf;
  std::uint32_t at = count_below(leaf->keys, leaf->count, key);
  spans_ += value == Value{} ? 0 : 1;
  if (leaf->count < leaf_most) {
    put(*leaf, at, key, value);
    return;
  }
  auto* right = new Leaf;
  ++leaves_;
  right->next = leaf->next;
  right->before = leaf;
  if (right->next != nullptr) {
    right->next->before = right;
  }
  leaf->next = right;
  // Spans that are set in the order of their addresses leave full nodes behind.
  const std::uint32_t kept = at == leaf_most && right->next == nullptr ? leaf_most : leaf_most / 2;
  move_entries(*leaf, kept, leaf_most - kept, *right, 0);
  right->count = leaf_most - kept;
  leaf->count = kept;
  if (at >= kept) {
    at -= kept;
    leaf = right;
  }
  put(*leaf, at, key, value);
  insert_child(path, depth_, right->keys[0], right);
}

/// `child` is the right half of the node that the path takes below depth `depth` - 1.
template <typename Value>
void PageMap<Value>::insert_child(Path& path, unsigned depth, Page key, void* child) {
  if (depth == 0) {
    auto* top = new Inner;
    ++inners_;
    top->count = 2;
    top->keys[0] = 0;
    top->values[0] = root_;
    top->keys[1] = key;
    top->values[1] = child;
    root_ = top;
    ++depth_;
    FERRY_CHECK_LT(depth_, depth_most);
    return;
  }
  Inner* node = path.node[depth - 1];
  std::uint32_t at = path.child[depth - 1] + 1;
  if (node->count < inner_most) {
    put(*node, at, key, child);
    return;
  }
  auto* right = new Inner;
  ++inners_;
  const std::uint32_t kept = at == inner_most ? inner_most - inner_most / 4 : inner_most / 2;
  move_entries(*node, kept, inner_most - kept, *right, 0);
  right->count = inner_most - kept;
  node->count = kept;
  const Page border = right->keys[0];
  if (at > kept) {
    put(*right, at - kept, key, child);
  } else {
    put(*node, at, key, child);
  }
  insert_child(path, depth - 1, border, right);
}

/// The leaf has lost entries: it is evened out with a neighbour of the same parent, or goes.
template <typename Value>
void PageMap<Value>::leaf_shrunk(Path& path) {
  Leaf* leaf = path.leaf;
  if (depth_ == 0 || leaf->count >= leaf_most / 4) {
    return;
  }
  Inner& parent = *path.node[depth_ - 1];
  const std::uint32_t child = path.child[depth_ - 1];
  const std::uint32_t left_child = child + 1 < parent.count ? child : child - 1;
  auto* left = static_cast<Leaf*>(parent.values[left_child]);
  auto* right = static_cast<Leaf*>(parent.values[left_child + 1]);
  if (even_out(*left, *right, leaf_most)) {
    left->next = right->next;
    if (right->next != nullptr) {
      right->next->before = left;
    }
    delete right;
    --leaves_;
    remove_child(path, depth_ - 1, left_child + 1);
  } else {
    parent.keys[left_child + 1] = right->keys[0];
  }
}

template <typename Value>
void PageMap<Value>::remove_child(Path& path, unsigned depth, std::uint32_t child) {
  Inner& node = *path.node[depth];
  erase_entries(node, child, 1);
  if (depth == 0) {
    if (node.count == 1) {
      root_ = node.values[0];
      delete &node;
      --inners_;
      --depth_;
    }
    return;
  }
  if (node.count >= inner_most / 4) {
    return;
  }
  Inner& parent = *path.node[depth - 1];
  const std::uint32_t at = path.child[depth - 1];
  const std::uint32_t left_child = at + 1 < parent.count ? at : at - 1;
  auto* left = static_cast<Inner*>(parent.values[left_child]);
  auto* right = static_cast<Inner*>(parent.values[left_child + 1]);
  // A border between two inner nodes is the right one's first key; when they become one it separates their children.
  if (even_out(*left, *right, inner_most)) {
    delete right;
    --inners_;
    remove_child(path, depth - 1, left_child + 1);
  } else {
    parent.keys[left_child + 1] = right->keys[0];
  }
}

// --- checking --------------------------------------------------------------------------------------------------------

template <typename Value>
void PageMap<Value>::verify() const {
  std::uint64_t spans = 0;
  std::size_t leaves = 0;
  std::size_t inners = 0;
  verify_node(root_, depth_, 0, ~Page{0}, spans, leaves, inners);
  FERRY_CHECK_EQ(spans, spans_);
  FERRY_CHECK_EQ(leaves, leaves_);
  FERRY_CHECK_EQ(inners, inners_);
}

template <typename Value>
void PageMap<Value>::verify_node(const void* node, unsigned depth, Page from, Page to, std::uint64_t& spans,
                                 std::size_t& leaves, std::size_t& inners) const {
  if (depth == 0) {
    const auto& leaf = *static_cast<const Leaf*>(node);
    ++leaves;
    FERRY_CHECK_GE(leaf.count, depth_ == 0 ? 0U : leaf.next == nullptr ? 1U : leaf_most / 4);
    FERRY_CHECK(leaf.before == nullptr || leaf.before->next == &leaf);
    FERRY_CHECK(leaf.next == nullptr || leaf.next->before == &leaf);
    for (std::uint32_t i = 0; i < leaf.count; ++i) {
      FERRY_CHECK(leaf.keys[i] >= from && leaf.keys[i] < to);
      FERRY_CHECK(i == 0 || leaf.keys[i - 1] < leaf.keys[i]);
      FERRY_CHECK(!(leaf.values[i] == value_before(leaf, i)));  // equal neighbours are one
      spans += leaf.values[i] == Value{} ? 0 : 1;
    }
    return;
  }
  const auto& inner = *static_cast<const Inner*>(node);
  ++inners;
  FERRY_CHECK_GE(inner.count, depth == depth_ ? 2U : inner_most / 4);
  FERRY_CHECK_EQ(inner.keys[0], from);
  for (std::uint32_t i = 0; i < inner.count; ++i) {
    const Page end = i + 1 < inner.count ? inner.keys[i + 1] : to;
    FERRY_CHECK_LT(inner.keys[i], end);
    verify_node(inner.values[i], depth - 1, inner.keys[i], end, spans, leaves, inners);
  }
}

template class PageMap<Attributes>;
template class PageMap<std::uint32_t>;

}  // namespace ferry::core
