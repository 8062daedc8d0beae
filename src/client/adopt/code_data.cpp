#include "client/adopt/code_data.h"

#include <ferry/svm.h>

#include <algorithm>
#include <array>
#include <atomic>

#include "client/adopt/adopter.h"
#include "client/requests.h"
#include "device/program_data.h"
#include "wire/message.h"

namespace ferry::client {
namespace {

/// Two more than the adoptions' generation that the device has them of; 0: it has never needed them.
constinit std::array<std::atomic<std::uint32_t>, max_devices> mapped_in{};

void say(Session& session, const device::ProgramPart& part, std::uint32_t type) {
  wire::SvmList list{};
  list.first_page = session.window().page_of_address(part.begin);
  list.count_pages = (part.end - part.begin) / page_bytes;
  list.count = 1;
  list.lines[0] = {type, 0, FERRY_SVM_ALWAYS_MAPPED, 0};
  Answer answer;
  [[maybe_unused]] const Status asked = session.requests.ask(wire::MessageType::svm_set, list, answer);
}

}  // namespace

void map_code_data(Session& session, unsigned device) {
  const std::uint32_t generation = adoption_generation() + 2;
  const std::uint32_t before = mapped_in[device].load(std::memory_order_acquire);
  if (before == generation) return;
  // Needed from here on, and not yet had.
  if (before == 0) mapped_in[device].store(generation - 1, std::memory_order_seq_cst);
  for (const device::ProgramPart& part : device::program_parts()) {
    if (!part.in_place || !adopt(part.begin, part.end - part.begin).status.ok()) continue;
    // Said anew, it concerns devices that have come since.
    say(session, part, FERRY_SVM_CLR_FLAGS);
    say(session, part, FERRY_SVM_SET_FLAGS);
  }
  mapped_in[device].store(generation, std::memory_order_release);
}

void map_code_data_again(Session& session) {
  for (unsigned device = 0; device < mapped_in.size(); ++device) {
    if (mapped_in[device].load(std::memory_order_acquire) != 0) map_code_data(session, device);
  }
}

bool code_data_are_needed() {
  return std::any_of(mapped_in.begin(), mapped_in.end(),
                     [](const auto& m) { return m.load(std::memory_order_acquire) != 0; });
}

bool cut_at_code_data(std::uint64_t& begin, std::uint64_t& end) {
  for (const device::ProgramPart& part : device::program_parts()) {
    if (!part.in_place || part.begin >= end || part.end <= begin) continue;
    if (part.begin > begin) {
      end = part.begin;
      return true;
    }
    begin = part.end;
    if (begin >= end) return false;
  }
  return true;
}

void forget_code_data(unsigned device) { mapped_in[device].store(0, std::memory_order_release); }

}  // namespace ferry::client
