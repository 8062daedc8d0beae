// What one thread of the stress test does to its own memory. Everything that it or a device writes goes into the shadow
// too, and every read is compared with it.
#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <stdexcept>

#include "stress.h"
#include "work.h"

namespace ferry::demo::stress {
namespace {

constexpr std::size_t regions_of_thread = 4;
constexpr std::size_t region_pages_most = 192;
/// Allocations of that many pages have their addresses for themselves.
constexpr std::size_t whole_pages_least = 512;
constexpr std::size_t whole_pages_most = 640;
constexpr Origin origins[regions_of_thread] = {Origin::shared_out, Origin::allocated, Origin::own, Origin::own};
constexpr std::size_t result_pages_most = 64;
/// What no page is likely to have as its hash.
constexpr std::uint64_t not_a_hash = 0x6e6f'2072'6573'756c;

std::uint64_t hash_page(const std::uint64_t* words) {
  std::uint64_t hash = 0;
  for (std::size_t i = 0; i < page_words; ++i) hash = mix(hash + words[i], i);
  return hash;
}

}  // namespace

Worker::Worker(Common& common, unsigned number)
    : common_(common), number_(number), random_(common.seed * 1'000'003 + number), regions_(regions_of_thread) {
  for (unsigned d = 0; d < common.devices; ++d) queues_.emplace_back(d);
  results_ = static_cast<std::uint64_t*>(ferry::alloc_aligned(result_pages_most * 8, page_size, placement::system));
  for (std::size_t r = 0; r < regions_.size(); ++r) {
    regions_[r].origin = origins[r];
    if (!common.own_memory && origins[r] == Origin::own) regions_[r].origin = Origin::shared_out;
    make(regions_[r]);
  }
}

Worker::~Worker() {
  for (Region& region : regions_) {
    if (region.words == nullptr) continue;
    if (region.origin == Origin::own) {
      unmap_own(region);
    } else {
      ferry_free(region.words, nullptr);
    }
  }
  ferry_free(results_, nullptr);
}

void Worker::make(Region& region) {
  region.pages = region.origin == Origin::allocated ? whole_pages_least + draw(whole_pages_most - whole_pages_least + 1)
                                                    : 1 + draw(region_pages_most);
  if (region.origin == Origin::own) {
    void* memory = mmap(nullptr, region.pages * page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::runtime_error("there is no memory of the program's own");
    region.words = static_cast<std::uint64_t*>(memory);
  } else {
    region.words = static_cast<std::uint64_t*>(ferry::alloc_aligned(region.pages * page_size, page_size));
  }
  region.states.assign(region.pages, {});
  region.shadow.resize(region.pages * page_words);
  const std::uint64_t salt = random_();
  for (std::size_t i = 0; i < region.shadow.size(); ++i) region.shadow[i] = region.words[i] = mix(i, salt);
  note(region, "made", {0, region.pages});
}

void Worker::drop(Region& region) {
  settle(region, {0, region.pages});
  check(region, {0, region.pages});
  if (region.origin == Origin::own) {
    unmap_own(region);
    return;
  }
  // Memory is given back as it was got: what is allocated there next has the protection that is left.
  if (region.origin == Origin::shared_out && !uniform(region) &&
      mprotect(region.words, region.pages * page_size, PROT_READ | PROT_WRITE) != 0) {
    common_.tell_wrong("protection cannot be given back");
  }
  ferry::free(region.words);
  region.words = nullptr;
}

Worker::Span Worker::some_span(const Region& region, std::size_t most) {
  Span span{draw(region.pages), 0};
  const std::size_t wanted = 1 + draw(std::min(most, region.pages - span.first));
  while (span.pages < wanted && region.states[span.first + span.pages].mapped) ++span.pages;
  return span;
}

Region& Worker::some_region(Origin origin) {
  const std::size_t from = draw(regions_.size());
  for (std::size_t r = 0; r < regions_.size(); ++r) {
    last_ = &regions_[(from + r) % regions_.size()];
    if (last_->origin == origin) break;
  }
  return *last_;
}

Worker::Span Worker::usable_span(const Region& region, int prot, std::size_t most) {
  Span span = some_span(region, most);
  std::size_t good = 0;
  while (good < span.pages) {
    const PageState& state = region.states[span.first + good];
    if ((state.prot & prot) != prot) break;
    ++good;
  }
  span.pages = good;
  return span;
}

void Worker::note(const Region& region, const char* what, Span span) {
  log_[logged_++ % log_.size()] = {&region, what, span};
}

std::string Worker::place(const Region& region, std::size_t page) const {
  std::string text = fmt::format("thread {}, page {} of {} at {}", number_, page, region.pages,
                                 static_cast<const void*>(region.words + page * page_words));
  text += "; done to it, newest first:";
  for (std::uint64_t i = 0; i < std::min<std::uint64_t>(logged_, log_.size()); ++i) {
    const Did& did = log_[(logged_ - 1 - i) % log_.size()];
    if (did.region != &region || page < did.span.first || page >= did.span.first + did.span.pages) continue;
    text += fmt::format(" {} [{}+{}]", did.what, did.span.first, did.span.pages);
  }
  char where[1024] = "";
  ferry_explain(region.words + page * page_words, where, sizeof where, nullptr);
  return text + "; now: " + where;
}

void Worker::check_page(const Region& region, std::size_t page) {
  const PageState& state = region.states[page];
  if (!state.mapped || (state.prot & PROT_READ) == 0) return;
  const std::uint64_t* is = region.words + page * page_words;
  const std::uint64_t* should = region.shadow.data() + page * page_words;
  for (std::size_t i = 0; i < page_words; ++i) {
    const std::uint64_t found = *static_cast<const volatile std::uint64_t*>(is + i);
    if (found == should[i] || (state.lazy && found == 0)) continue;
    common_.tell_wrong(
        fmt::format("word {} is {:#x} and should be {:#x}: {}", i, found, should[i], place(region, page)));
    return;
  }
}

void Worker::check(const Region& region, Span span) {
  for (std::size_t p = span.first; p < span.first + span.pages && !common_.stop; ++p) check_page(region, p);
}

void Worker::settle(Region& region, Span span) {
  for (std::size_t p = span.first; p < span.first + span.pages; ++p) {
    PageState& state = region.states[p];
    if (!state.lazy || !state.mapped || state.prot != (PROT_READ | PROT_WRITE)) continue;
    state.lazy = false;
    // Only a write ends it: what is read may be gone a moment later. The write may not give back what it read before.
    const std::atomic_ref<std::uint64_t> word(region.words[p * page_words]);
    word.fetch_add(1);
    word.fetch_sub(1);
    const volatile std::uint64_t* is = region.words + p * page_words;
    bool zeros = true;
    for (std::size_t i = 0; i < page_words; ++i) zeros = zeros && is[i] == 0;
    if (zeros) std::fill_n(region.shadow.data() + p * page_words, page_words, 0);
  }
}

bool Worker::read() {
  Region& region = some_region();
  const Span span = usable_span(region, PROT_READ, 16);
  note(region, "read", span);
  check(region, span);
  return span.pages != 0;
}

bool Worker::write() {
  Region& region = some_region();
  const Span span = usable_span(region, PROT_READ | PROT_WRITE, 16);
  settle(region, span);
  const std::uint64_t salt = random_();
  const std::size_t stride = draw(2) == 0 ? 1 : page_words;
  note(region, "write", span);
  for (std::size_t p = span.first; p < span.first + span.pages; ++p) {
    change_page(region.words + p * page_words, salt, stride);
    change_page(region.shadow.data() + p * page_words, salt, stride);
  }
  return span.pages != 0;
}

bool Worker::device_change() {
  Region& region = some_region();
  const Span span = usable_span(region, PROT_READ | PROT_WRITE, region_pages_most);
  settle(region, span);
  if (span.pages == 0) return false;
  const std::uint64_t salt = random_();
  const std::size_t stride = draw(2) == 0 ? 1 : page_words / 2;
  note(region, "device change", span);
  some_queue()
      .launch(
          {span.pages, 1 + draw(8)},
          [at = region.words + span.first * page_words, salt, stride](const item& i) {
            change_page(at + i.global() * page_words, salt, stride);
          },
          "change")
      .wait();
  for (std::size_t p = span.first; p < span.first + span.pages; ++p) {
    change_page(region.shadow.data() + p * page_words, salt, stride);
  }
  return true;
}

bool Worker::device_read() {
  Region& region = some_region();
  // Memory of the program's own that may only be read is not adopted.
  const Span span =
      usable_span(region, region.origin == Origin::own ? PROT_READ | PROT_WRITE : PROT_READ, result_pages_most);
  settle(region, span);
  if (span.pages == 0) return false;
  note(region, "device read", span);
  ferry::queue& queue = some_queue();
  const auto read = [&] {
    queue
        .launch(
            {span.pages, 1 + draw(8)},
            [at = region.words + span.first * page_words, to = results_](const item& i) {
              to[i.global()] = hash_page(at + i.global() * page_words);
            },
            "read")
        .wait();
  };
  const auto should = [&](std::size_t p) { return hash_page(region.shadow.data() + (span.first + p) * page_words); };
  const auto wrong = [&] {
    std::vector<std::size_t> pages;
    for (std::size_t p = 0; p < span.pages; ++p) {
      if (results_[p] != should(p)) pages.push_back(p);
    }
    return pages;
  };
  // A result that the device did not write, or whose write is not seen, is none.
  for (std::size_t p = 0; p < span.pages; ++p) results_[p] = not_a_hash;
  read();
  const std::vector<std::size_t> first = wrong();
  if (first.empty()) return true;
  static constexpr std::array<std::uint64_t, page_words> zeros{};
  const std::uint64_t got = results_[first.front()];
  const std::size_t page = span.first + first.front();
  const std::string now = place(region, page);
  const bool cpu_right = hash_page(region.words + page * page_words) == should(first.front());
  read();
  common_.tell_wrong(
      fmt::format("a device read what is not there, in {} pages from the {}th of {}: {}; the CPU reads the first as it "
                  "should be: {}; a second time {} pages are wrong: {}",
                  first.size(), first.front(), span.pages,
                  got == not_a_hash                ? "there is no result"
                  : got == hash_page(zeros.data()) ? "zeros"
                                                   : "something else",
                  cpu_right, wrong().size(), now));
  return true;
}

bool Worker::count_on_cpu() {
  for (unsigned n = 0; n < 8; ++n) {
    const std::size_t which = draw(Common::counters);
    std::atomic_ref<std::uint64_t>(*common_.counter[which]).fetch_add(1);
    ++common_.added[which];
  }
  return true;
}

bool Worker::count_on_device() {
  const std::uint64_t each = 1 + draw(8);
  some_queue()
      .parallel_for(
          Common::counters * each,
          [counter = common_.counter](std::size_t i) {
            std::atomic_ref<std::uint64_t>(*counter[i % Common::counters]).fetch_add(1);
          },
          "count")
      .wait();
  for (auto& added : common_.added) added += each;
  return true;
}

bool Worker::prefetch() {
  const Region& region = some_region();
  const Span span = some_span(region, region_pages_most);
  note(region, "prefetch", span);
  const int to = static_cast<int>(draw(common_.devices + 1)) - 1;
  ferry_error error{};
  if (span.pages == 0) return false;
  const ferry_code code = ferry_prefetch(region.words + span.first * page_words, span.pages * page_size, to, &error);
  if (code == FERRY_NOT_ALLOCATED || (code == FERRY_BAD_RANGE && region.origin == Origin::own)) return false;
  if (code != FERRY_OK) throw ferry::error(error);
  return true;
}

bool Worker::renew() {
  Region& region = some_region();
  drop(region);
  if (common_.stop) return false;
  make(region);
  return true;
}

bool Worker::explain() {
  const Region& region = some_region();
  char text[512];
  // Nothing is said of what is not Ferry's at that moment.
  return ferry_explain(region.words + draw(region.pages) * page_words, text, sizeof text, nullptr) != 0;
}

/// One wrong byte, to show that it is found.
bool Worker::spoil() {
  Region& region = some_region();
  const Span span = usable_span(region, PROT_READ | PROT_WRITE, 1);
  settle(region, span);
  if (span.pages == 0) return false;
  note(region, "spoil", span);
  region.words[span.first * page_words + draw(page_words)] ^= 0xff;
  return true;
}

void Worker::run() {
  std::vector<unsigned> drawn;  // an operation as often as its weight says
  for (unsigned o = 0; o < operations().size(); ++o) {
    if (common_.enabled[o]) drawn.insert(drawn.end(), std::max(operations()[o].weight, 1U), o);
  }
  try {
    while (!common_.stop && !drawn.empty()) {
      const unsigned o = drawn[draw(drawn.size())];
      last_ = nullptr;
      if ((this->*operations()[o].run)()) {
        ++common_.done[o];
        if (last_ != nullptr && last_->origin == Origin::own) ++common_.on_adopted[o];
      }
      ++common_.steps;
    }
    for (Region& region : regions_) {
      settle(region, {0, region.pages});
      check(region, {0, region.pages});
    }
    const std::lock_guard lock(common_.mutex);
    if (!common_.wrong.empty()) return;
  } catch (const ferry::error& e) {
    const Did& last = log_[(logged_ + log_.size() - 1) % log_.size()];
    common_.tell_wrong(
        fmt::format("thread {} after '{}': {}", number_, last.what == nullptr ? "nothing" : last.what, e.what()));
  }
}

const std::vector<Operation>& operations() {
  static const auto always = []() -> std::optional<std::string> { return {}; };
  static const std::vector<Operation> all = {
      {"read", 8, &Worker::read, always, true},
      {"write", 8, &Worker::write, always, true},
      {"device-change", 8, &Worker::device_change, always, true},
      {"device-read", 6, &Worker::device_read, always, true},
      {"count-cpu", 4, &Worker::count_on_cpu, always},
      {"count-device", 2, &Worker::count_on_device, always},
      {"prefetch", 4, &Worker::prefetch, always, true},
      {"renew", 3, &Worker::renew, always, true},
      {"explain", 1, &Worker::explain, always, true},
      {"attribute", 3, &Worker::attribute, missing_attributes, true},
      {"reset-attributes", 1, &Worker::reset_attributes, missing_attributes, true},
      {"migrate-async", 3, &Worker::migrate, missing_migrate, true},
      {"populate", 1, &Worker::populate, missing_populate, true},
      {"discard", 1, &Worker::discard, missing_discard, true},
      {"pin", 2, &Worker::pin, missing_pin, true},
      {"fork", 1, &Worker::fork_and_write, missing_fork, true},
      {"munmap", 2, &Worker::unmap, missing_change, true},
      {"mmap-again", 1, &Worker::map_again, missing_change, true, true},
      {"mremap", 2, &Worker::remap, missing_change, true},
      {"mprotect", 2, &Worker::protect, missing_change, true},
      {"madvise-dontneed", 1, &Worker::zero, missing_change, true},
      {"madvise-free", 1, &Worker::free_lazily, missing_change, true},
      {"adopt", 2, &Worker::adopt, missing_adoption, true, true},
      {"release", 1, &Worker::release, missing_adoption, true, true},
      {"spoil", 0, &Worker::spoil, always},
  };
  return all;
}

}  // namespace ferry::demo::stress
