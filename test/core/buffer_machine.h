// What tests of buffers share: a WorkMachine that makes, maps and looks at them.
#pragma once

#include "work_machine.h"

namespace ferry::core::test {

class BufferMachine : public WorkMachine {
 public:
  using WorkMachine::WorkMachine;

  Status create(BufferId buffer, std::uint64_t pages, DeviceId home = no_device, ClientId client = 1) {
    BufferSpec spec;
    spec.count_pages = pages;
    spec.home = home;
    return done(core.buffer_create(++now, client, buffer, spec));
  }
  Status create_userptr(BufferId buffer, PageSpan pages, ClientId client = 1) {
    BufferSpec spec;
    spec.count_pages = pages.count_pages;
    spec.userptr = true;
    spec.user_pages = pages;
    return done(core.buffer_create(++now, client, buffer, spec));
  }
  Status open_buffer(BufferId buffer, ClientId client) { return done(core.buffer_open(++now, client, buffer)); }
  Status close(BufferId buffer, ClientId client = 1) { return done(core.buffer_close(++now, client, buffer)); }
  Status map(BufferId buffer, Page at, ClientId client = 1) { return done(core.buffer_map(++now, client, buffer, at)); }
  Status unmap(Page at, std::uint64_t cookie, ClientId client = 1) {
    return done(core.buffer_unmap(++now, client, at, Cookie{cookie}));
  }
  void pressure(std::uint64_t pages) {
    core.pressure(++now, pages);
    take();
    core.verify();
  }
  void open_client(ClientId client, unsigned devices) {
    core.client_open(client);
    for (DeviceId d = 0; d < devices; ++d) {
      core.device_attach(client, d);
    }
  }
  void kill(ClientId client, unsigned devices, std::uint64_t cookie) {
    for (DeviceId d = 0; d < devices; ++d) {
      core.device_gone(++now, client, d);
    }
    core.client_gone(++now, client, Cookie{cookie});
    take();
    core.verify();
  }

  [[nodiscard]] const Action* asked(Verb verb, BufferId buffer, DeviceId device = no_device,
                                    ClientId client = 0) const {
    const auto it = std::find_if(open.begin(), open.end(), [&](const Action& a) {
      return a.verb == verb && a.buffer == buffer && (device == no_device || a.device == device) &&
             (client == 0 || a.client == client);
    });
    return it == open.end() ? nullptr : &*it;
  }
  /// Answers the first open action of the verb for the buffer. False: there is none.
  bool reply_to(Verb verb, BufferId buffer, Status status = {}) {
    take();
    const Action* action = asked(verb, buffer);
    if (action == nullptr) {
      return false;
    }
    const ActionId id = action->id;
    std::erase_if(open, [id](const Action& a) { return a.id == id; });
    core.action_done(++now, id, status);
    core.verify();
    take();
    return true;
  }
  [[nodiscard]] std::size_t wakes(std::uint64_t token) const {
    return static_cast<std::size_t>(std::count_if(said.begin(), said.end(), [token](const Action& a) {
      return a.verb == Verb::wake_wave && a.token.value == token;
    }));
  }
  [[nodiscard]] std::size_t cpu_wakes(Page page, ClientId client = 1) const {
    return static_cast<std::size_t>(std::count_if(said.begin(), said.end(), [&](const Action& a) {
      return a.verb == Verb::wake_cpu && a.pages.contains(page) && a.client == client;
    }));
  }
  [[nodiscard]] BufferInfo::Where where(BufferId buffer) const { return core.buffer_info(buffer).where; }

 private:
  Status done(Status status) {
    take();
    core.verify();
    return status;
  }
};

inline JobSpec with_buffers(JobSpec spec, std::vector<JobBuffer> buffers) {
  spec.buffers = std::move(buffers);
  return spec;
}
inline JobSpec on_device(JobSpec spec, DeviceId device) {
  spec.device = device;
  return spec;
}

/// Two devices with four chunks of VRAM each.
inline Config buffer_config(std::uint64_t system_pages = 0, std::uint64_t store_pages = 0) {
  Config config = plain_config();
  config.device_count = 2;
  config.models.resize(2);
  config.models[0].copy_slots = 8;
  config.models[1].copy_slots = 8;
  config.system_pages = system_pages;
  config.store_pages = store_pages;
  return config;
}

}  // namespace ferry::core::test
