// What the stress test asks of svm.h.
#include <ferry/svm.h>

#include <iterator>

#include "stress.h"
#include "work.h"

namespace ferry::demo::stress {
namespace {

/// The memory was not Ferry's at that moment: of the program's own, none may be adopted, or it is being given back.
bool not_there(const Region& region, ferry_code code) {
  return code == FERRY_NOT_ALLOCATED || (code == FERRY_IN_USE && region.origin == Origin::own);
}

/// Runs a call on an allocation of its own. What it says, where it is not supported.
template <typename Call>
std::optional<std::string> try_it(Call&& call) {
  void* memory = ferry::alloc_aligned(4 * page_size, page_size);
  ferry_error error{};
  const ferry_code code = call(memory, &error);
  ferry::free(memory);
  if (code == FERRY_UNSUPPORTED) return std::string("unsupported: ") + error.text;
  return {};
}

}  // namespace

std::optional<std::string> missing_attributes() {
  return try_it([](void* memory, ferry_error* error) { return ferry_svm_reset(memory, page_size, error); });
}

std::optional<std::string> missing_migrate() {
  return try_it([](void* memory, ferry_error* error) {
    ferry_fence* fence = nullptr;
    const ferry_code code = ferry_migrate_async(memory, page_size, FERRY_TO_CPU, &fence, error);
    if (code == FERRY_OK) wait(Fence(fence));
    return code;
  });
}

std::optional<std::string> missing_populate() {
  return try_it(
      [](void* memory, ferry_error* error) { return ferry_populate(memory, page_size, FERRY_TO_CPU, error); });
}

std::optional<std::string> missing_discard() {
  return try_it([](void* memory, ferry_error* error) { return ferry_discard(memory, page_size, error); });
}

std::optional<std::string> missing_pin() {
  return try_it([](void* memory, ferry_error* error) {
    const ferry_code code = ferry_pin(memory, page_size, FERRY_TO_CPU, error);
    if (code == FERRY_OK) ferry_unpin(memory, page_size, nullptr);
    return code;
  });
}

/// Attributes that change where pages lie and how they move, and nothing about what is in them.
bool Worker::attribute() {
  Region& region = some_region();
  const Span span = some_span(region, region.pages);
  if (span.pages == 0) return false;
  note(region, "attribute", span);
  const auto flag = std::uint32_t{1} << draw(8);
  constexpr std::uint32_t harmless =
      FERRY_SVM_COHERENT | FERRY_SVM_HIVE_LOCAL | FERRY_SVM_GPU_EXEC | FERRY_SVM_READ_MOSTLY | FERRY_SVM_EXT_COHERENT;
  const auto device = static_cast<std::uint32_t>(draw(common_.devices));
  ferry_svm_attribute line{};
  switch (draw(5)) {
    case 0: {
      const std::uint32_t where[] = {FERRY_LOC_SYSTEM, FERRY_LOC_UNDEFINED, device};
      line = {FERRY_SVM_PREFERRED_LOC, 0, where[draw(std::size(where))], 0};
      break;
    }
    case 1:
      line = {FERRY_SVM_ACCESS_OF, device,
              static_cast<std::uint32_t>(draw(2) == 0 ? FERRY_ACCESS_IN_PLACE : FERRY_ACCESS), 0};
      break;
    case 2: line = {FERRY_SVM_SET_FLAGS, 0, flag & harmless, 0}; break;
    case 3: line = {FERRY_SVM_CLR_FLAGS, 0, flag & harmless, 0}; break;
    default: line = {FERRY_SVM_GRANULARITY, 0, static_cast<std::uint32_t>(draw(12)), 0};
  }
  ferry_error error{};
  const ferry_code code =
      ferry_svm_set(region.words + span.first * page_words, span.pages * page_size, &line, 1, &error);
  if (code == FERRY_OK || not_there(region, code)) return code == FERRY_OK;
  throw ferry::error(error);
}

bool Worker::reset_attributes() {
  Region& region = some_region();
  const Span span = some_span(region, region.pages);
  if (span.pages == 0) return false;
  note(region, "reset attributes", span);
  ferry_error error{};
  const ferry_code code = ferry_svm_reset(region.words + span.first * page_words, span.pages * page_size, &error);
  if (code == FERRY_OK || not_there(region, code)) return code == FERRY_OK;
  throw ferry::error(error);
}

bool Worker::migrate() {
  Region& region = some_region();
  const Span span = some_span(region, region.pages);
  if (span.pages == 0) return false;
  note(region, "migrate", span);
  ferry_error error{};
  ferry_fence* fence = nullptr;
  const int to = static_cast<int>(draw(common_.devices + 1)) - 1;
  const ferry_code code =
      ferry_migrate_async(region.words + span.first * page_words, span.pages * page_size, to, &fence, &error);
  if (not_there(region, code)) return false;
  if (code != FERRY_OK) throw ferry::error(error);
  const Fence done(fence);
  if (draw(2) == 0) {  // while they move
    const Span some = usable_span(region, 1, 4);
    settle(region, some);
    check(region, some);
  }
  wait(done);
  return true;
}

bool Worker::populate() {
  Region& region = some_region();
  const Span span = some_span(region, region.pages);
  if (span.pages == 0) return false;
  note(region, "populate", span);
  ferry_error error{};
  const int to = static_cast<int>(draw(common_.devices + 1)) - 1;
  const ferry_code code = ferry_populate(region.words + span.first * page_words, span.pages * page_size, to, &error);
  if (code == FERRY_OK || code == FERRY_NO_MEMORY || not_there(region, code)) return code == FERRY_OK;
  throw ferry::error(error);
}

bool Worker::discard() {
  Region& region = some_region();
  const Span span = usable_span(region, 3, 16);
  if (span.pages == 0) return false;
  note(region, "discard", span);
  ferry_error error{};
  const ferry_code code = ferry_discard(region.words + span.first * page_words, span.pages * page_size, &error);
  if (code == FERRY_IN_USE || code == FERRY_NOT_ALLOCATED) return false;
  if (code != FERRY_OK) throw ferry::error(error);
  for (std::size_t p = span.first; p < span.first + span.pages; ++p) region.states[p].lazy = true;
  return true;
}

/// Pages pinned in system memory are reached by all, those in VRAM by its device alone.
bool Worker::pin() {
  Region& region = some_region();
  const Span span = usable_span(region, 3, 8);
  if (span.pages == 0) return false;
  note(region, "pin", span);
  settle(region, span);
  std::uint64_t* words = region.words + span.first * page_words;
  ferry_error error{};
  const int to = static_cast<int>(draw(common_.devices + 1)) - 1;
  const ferry_code code = ferry_pin(words, span.pages * page_size, to, &error);
  if (code == FERRY_NO_MEMORY || code == FERRY_NOT_ALLOCATED || code == FERRY_IN_USE) return false;
  if (code != FERRY_OK) throw ferry::error(error);
  const std::uint64_t salt = random_();
  ferry::queue& queue = to == FERRY_TO_CPU ? some_queue() : queues_[static_cast<std::size_t>(to)];
  queue
      .launch(
          {span.pages, 1},
          [words, salt](const item& i) { change_page(words + i.global() * page_words, salt, page_words); }, "pinned")
      .wait();
  for (std::size_t p = 0; p < span.pages; ++p) {
    change_page(region.shadow.data() + (span.first + p) * page_words, salt, page_words);
  }
  if (to == FERRY_TO_CPU) check(region, span);
  if (ferry_unpin(words, span.pages * page_size, &error) != FERRY_OK) throw ferry::error(error);
  return true;
}

}  // namespace ferry::demo::stress
