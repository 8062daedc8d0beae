// Files of the application that its devices map where they are. The core never hears of such memory: it has no copies,
// does not move, and nobody can want room from it. A wave that touches it is held while the application is asked, as with
// all memory outside the window (adopt.cpp); neither answer waits for a device, a fence or memory of the core.
#include <algorithm>
#include <cerrno>

#include "manager/executor/executor.h"

namespace ferry::manager {
namespace {

/// More than any machine can address in a file.
constexpr std::uint64_t file_bytes_max = std::uint64_t{1} << 62;
constexpr std::size_t drops_max = 1024;

}  // namespace

/// True: the wave is held, refused or goes on. False: no file that is mapped for its device serves it.
bool Executor::hold_for_file(Client& client, const HeldWave& wave) {
  const Page page = client.window().page_of_address(wave.address);
  const FileSpan* span = client.files.at(wave.device, page);
  if (span == nullptr) return false;
  if (span->state != FileSpan::State::mapped || span->leaving) {
    hold(client, wave);
    return true;
  }
  if (wave.wants() == Access::write && !span->writable) return false;
  WaveSlot& slot = client.devices[wave.device].cus[wave.cu].slots[wave.slot];
  if (slot.file_epoch == span->epoch) {
    // It went on with this mapping already: what has failed is the file itself.
    refuse_wave(client, wave, wire::Refusal::file_end);
    return true;
  }
  slot.file_epoch = span->epoch;
  resume_slot(client, wave.device, wave.cu, wave.slot, {});
  return true;
}

/// The wave need not be asked about: it is looked at again when the device has answered.
bool Executor::file_serves(const Client& client, const HeldWave& wave) {
  const FileSpan* span = client.files.at(wave.device, client.window().page_of_address(wave.address));
  if (span == nullptr) return false;
  return span->state != FileSpan::State::mapped || span->leaving;
}

/// The part of the span around the page that nothing else of the device lies in. Empty: not even the page is free.
PageSpan Executor::free_around(const Client& client, DeviceId device, PageSpan span, Page page) {
  Page first = span.first;
  Page end = span.end();
  bool taken = false;
  const auto cut = [&](PageSpan other) {
    if (other.end() <= first || other.first >= end) return;
    if (other.end() <= page) {
      first = other.end();
    } else if (other.first > page) {
      end = other.first;
    } else {
      taken = true;
    }
  };
  auto it = client.spans.upper_bound(first);
  if (it != client.spans.begin()) --it;
  for (; it != client.spans.end() && it->first < end; ++it) cut({it->first, it->second});
  for (auto r = client.releasing.lower_bound(first); r != client.releasing.end() && r->first < end; ++r) cut(r->second);
  if (const auto r = client.releasing.lower_bound(first); r != client.releasing.begin()) cut(std::prev(r)->second);
  client.unmapped.for_each_in(span, cut);
  client.kept.for_each_in(span, cut);
  client.files.for_each([&](const FileSpan& s) {
    if (s.device == device) cut(s.pages);
  });
  return taken ? PageSpan{page, 0} : PageSpan{first, end - first};
}

Status Executor::serve_file(Client& client, const wire::FileServe& body) {
  const PageSpan span{body.first_page, body.count_pages};
  const Page page = client.window().page_of_address(body.address);
  const bool well = client.contains(span) && client.is_adopted(span.first) && span.contains(page) &&
                    (body.rights & ~wire::map_write) == 0 && body.file_offset % page_bytes == 0 &&
                    body.file_offset <= file_bytes_max;
  if (!well) return Code::bad_range;
  if (client.files.full()) return Code::no_mappings;
  for (DeviceId device = 0; device < client.devices.size(); ++device) {
    DevicePeer& peer = client.devices[device];
    if ((body.devices >> device & 1) == 0 || peer.state != DeviceState::attached || client.files.full()) continue;
    const PageSpan part = free_around(client, device, span, page);
    if (part.count_pages == 0) continue;
    FileSpan made;
    made.device = device;
    made.pages = part;
    made.asked = page;
    made.writable = (body.rights & wire::map_write) != 0;
    const std::uint64_t epoch = client.files.add(made).epoch;
    peer.file_pages += part.count_pages;
    const std::uint32_t index = make_command(client, device, CommandKind::map_file, part, 0);
    Command& c = commands_.at(index);
    c.epoch = epoch;
    c.record.rights = static_cast<std::uint8_t>(body.rights);
    c.record.file_offset = body.file_offset + (part.first - span.first) * page_bytes;
    c.record.buffer = body.serial;
    c.record.units = client.address_of(page);
    send(index);
  }
  return {};
}

/// The device has answered; it may say anything.
void Executor::file_mapped(std::uint32_t index, const wire::UpRecord& record) {
  Command& c = commands_.at(index);
  Client& client = *c.client;
  const DeviceId device = c.device;
  DevicePeer& peer = client.devices[device];
  FileSpan* span = client.files.find(c.epoch);
  FERRY_CHECK(span != nullptr && span->state == FileSpan::State::mapping);
  const PageSpan asked = span->pages;
  const Page page = span->asked;
  const bool in_window =
      record.address % page_bytes != 0 || record.value % page_bytes != 0 || client.window().contains(record.address);
  const PageSpan got = in_window || record.error != 0
                           ? PageSpan{}
                           : PageSpan{client.window().page_of_address(record.address), record.value / page_bytes};
  if (record.error == 0 && (got.first < asked.first || got.count_pages > asked.count_pages ||
                            got.first - asked.first > asked.count_pages - got.count_pages || !got.contains(page))) {
    // Its end answers the command.
    household_.drop_device(client, device, "it has mapped what it was not told to");
    return;
  }
  --client.expected;
  commands_.release(index);
  peer.file_pages -= asked.count_pages - got.count_pages;
  if (record.error != 0) {
    client.files.remove(span->epoch);
    refuse_file(client, device, page, record.error);
    answer_drops(client);
    look_at_held(client, asked);
    return;
  }
  span->pages = got;
  span->state = FileSpan::State::mapped;
  // What was armed there is not any more.
  client.blocks.for_each(got, [&](BlockIndex block, BlockState& b) {
    if (b.devices.empty()) return;
    const PageMask mask = BlockTable::mask_in(block, got);
    b.devices[device].admitted.remove(mask);
    b.devices[device].given.remove(mask);
    b.devices[device].replaced |= mask;
  });
  if (span->leaving) {
    revoke_file(client, *span);
  } else {
    look_at_held(client, asked);
  }
}

/// It could not be mapped for the page that it was wanted for.
void Executor::refuse_file(Client& client, DeviceId device, Page page, int error) {
  // Another process of the same device was sent it: the application is asked again.
  if (error == EBADF) return;
  std::vector<HeldWave> refused;
  std::erase_if(client.held, [&](const HeldWave& h) {
    const bool same = h.device == device && client.window().page_of_address(h.address) == page;
    if (same) refused.push_back(h);
    return same;
  });
  const wire::Refusal why = error == EEXIST   ? wire::Refusal::device_memory
                            : error == ENOMEM ? wire::Refusal::no_mappings
                                              : wire::Refusal::kernel;
  for (const HeldWave& wave : refused) refuse_wave(client, wave, why);
}

void Executor::revoke_file(Client& client, FileSpan& span) {
  span.state = FileSpan::State::revoking;
  const std::uint64_t epoch = span.epoch;
  const std::uint32_t index = make_command(client, span.device, CommandKind::revoke_file, span.pages, 0);
  commands_.at(index).epoch = epoch;
  // A device that is ending may still run: answered when its process has gone.
  if (client.devices[span.device].state == DeviceState::attached) send(index);
}

void Executor::drop_files(Client& client, PageSpan pages, std::uint64_t request) {
  if (client.file_drops.size() >= drops_max) {
    household_.answer_request(client, request, Code::no_memory);
    return;
  }
  std::vector<std::uint64_t> now;
  client.files.for_each([&](FileSpan& s) {
    if (!s.pages.overlaps(pages)) return;
    s.leaving = true;
    if (s.state == FileSpan::State::mapped) now.push_back(s.epoch);
  });
  for (const std::uint64_t epoch : now) {
    if (FileSpan* span = client.files.find(epoch)) revoke_file(client, *span);
  }
  client.file_drops.push_back({request, pages});
  answer_drops(client);
}

/// No device reaches the span any more.
void Executor::file_gone(Client& client, std::uint64_t epoch) {
  const FileSpan* span = client.files.find(epoch);
  if (span == nullptr) return;
  const PageSpan pages = span->pages;
  DevicePeer& peer = client.devices[span->device];
  FERRY_CHECK(peer.file_pages >= pages.count_pages);
  peer.file_pages -= pages.count_pages;
  client.files.remove(epoch);
  answer_drops(client);
  // Waves of one that has ended wait for nothing.
  if (!client.closing && peer.state == DeviceState::attached) look_at_held(client, pages);
}

/// Its process is gone: nothing of it can be reached.
void Executor::forget_files(Client& client, DeviceId device) {
  DevicePeer& peer = client.devices[device];
  FERRY_CHECK(peer.file_pages == client.files.pages_of(device));
  peer.file_pages = 0;
  client.files.remove_device(device);
  answer_drops(client);
}

void Executor::answer_drops(Client& client) {
  std::vector<std::uint64_t> ready;
  std::erase_if(client.file_drops, [&](const Client::Beginning& d) {
    const bool waits = !client.closing && client.files.overlaps(d.pages);
    if (!waits) ready.push_back(d.request);
    return !waits;
  });
  for (const std::uint64_t request : ready) {
    if (!client.closing) household_.answer_request(client, request, {});
  }
}

}  // namespace ferry::manager
