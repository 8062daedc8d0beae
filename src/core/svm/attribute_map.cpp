#include "core/svm/attribute_map.h"

#include <bit>

#include "base/check.h"
#include "core/digest.h"

namespace ferry::core {
namespace {

void add_to(Digest& d, const Attributes& a) {
  d.add(a.preferred).add(a.prefetch).add(a.granularity).add(a.flags).add(a.access);
}
void add_to(Digest& d, std::uint32_t value) { d.add(value); }

std::uint64_t bits_of(const Attributes& a) { return std::bit_cast<std::uint64_t>(a); }
std::uint64_t bits_of(std::uint32_t value) { return value; }

}  // namespace

template <typename Value>
std::uint64_t PageMap<Value>::digest() const {
  Digest d;
  if (empty()) {
    return d.value();
  }
  for_runs({0, PageTree::page_limit}, [&](PageSpan span, const Value& a) {
    if (!(a == Value{})) {
      d.add(span);
      add_to(d, a);
    }
  });
  return d.value();
}

template <typename Value>
void PageMap<Value>::set(PageSpan span, const Value& value) {
  tree_.set(span, number_of(value));
  if (empty()) {
    clear();
  }
}

template <typename Value>
void PageMap<Value>::clear() {
  tree_.clear();
  values_ = std::vector<Value>();  // {} would keep the memory
  free_ = std::vector<Id>();
  slots_ = std::vector<Id>();
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

// --- values ----------------------------------------------------------------------------------------------------------

/// Where it is, or would be put.
template <typename Value>
std::size_t PageMap<Value>::slot_of(const Value& value) const {
  constexpr std::uint64_t golden_ratio = 0x9e37'79b9'7f4a'7c15;
  const std::size_t mask = slots_.size() - 1;
  std::size_t slot = bits_of(value) * golden_ratio >> (64 - std::countr_zero(slots_.size()));
  while (slots_[slot] != 0 && !(values_[slots_[slot]] == value)) {
    slot = (slot + 1) & mask;
  }
  return slot;
}

template <typename Value>
PageTree::Id PageMap<Value>::number_of(const Value& value) {
  if (value == Value{}) {
    return 0;
  }
  if (!slots_.empty()) {
    const Id known = slots_[slot_of(value)];
    if (known != 0) {
      return known;
    }
  }
  if (2 * (values_.size() - free_.size()) >= slots_.size()) {
    make_room();
  }
  Id id = 0;
  if (free_.empty()) {
    id = static_cast<Id>(values_.size());
    values_.push_back(value);
  } else {
    id = free_.back();
    free_.pop_back();
    values_[id] = value;
  }
  slots_[slot_of(value)] = id;
  return id;
}

/// Forgets values that no page has any more; where most are in use, the table grows.
template <typename Value>
void PageMap<Value>::make_room() {
  constexpr std::size_t slots_least = 16;
  if (values_.empty()) {
    values_.push_back({});
  }
  free_.clear();
  for (Id id = static_cast<Id>(values_.size()) - 1; id > 0; --id) {  // low numbers are given out first
    if (!tree_.in_use(id)) {
      free_.push_back(id);
    }
  }
  const std::size_t used = values_.size() - free_.size();
  slots_.assign(std::max(slots_least, std::bit_ceil(4 * used)), 0);
  for (Id id = 1; id < values_.size(); ++id) {
    if (tree_.in_use(id)) {
      slots_[slot_of(values_[id])] = id;
    }
  }
}

template <typename Value>
void PageMap<Value>::verify() const {
  tree_.verify();
  FERRY_CHECK(!empty() || values_.empty());
  std::size_t used = 0;
  for (Id id = 1; id < values_.size(); ++id) {
    if (tree_.in_use(id)) {
      ++used;
      FERRY_CHECK(!(values_[id] == Value{}));
      FERRY_CHECK_EQ(slots_[slot_of(values_[id])], id);  // two numbers of one value would be neighbours that differ
    }
  }
  FERRY_CHECK_LE(2 * used, slots_.size());
}

template class PageMap<Attributes>;
template class PageMap<std::uint32_t>;

}  // namespace ferry::core
