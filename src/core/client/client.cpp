// Clients and device processes come and go, at any moment, with operations under way.
#include "core/impl.h"

namespace ferry::core {

Client* Core::Impl::find_client(ClientId id) {
  const auto it = clients.find(id);
  return it == clients.end() ? nullptr : it->second.get();
}

const Client* Core::Impl::find_client(ClientId id) const {
  const auto it = clients.find(id);
  return it == clients.end() ? nullptr : it->second.get();
}

void Core::Impl::client_open(ClientId id) {
  FERRY_CHECK(find_client(id) == nullptr);
  auto client = std::make_unique<Client>();
  client->id = id;
  client->devices.resize(devices.size());
  for (ClientDevice& own : client->devices) {
    own.prefetchers = make_prefetchers({config.prefetch, config.granularity_pages, config.density_percent});
  }
  clients.emplace(id, std::move(client));
  gone_stats.erase(id);
  work.client_open(id);
}

void Core::Impl::device_attach(ClientId id, DeviceId device) {
  Client* client = find_client(id);
  if (client == nullptr || client->dying) {
    return;
  }
  FERRY_CHECK_LT(device, devices.size());
  FERRY_CHECK(!client->devices[device].attached);
  client->devices[device].attached = true;
  ++client->devices[device].process;
  work.device_attach(id, device);
}

void Core::Impl::device_gone(ClientId id, DeviceId device) {
  Client* client = find_client(id);
  if (client == nullptr) {
    return;
  }
  FERRY_CHECK_LT(device, devices.size());
  client->devices[device].attached = false;
  for (auto& block : client->blocks) {
    if (block != nullptr) {
      mark_revoked(*block, device, PageMask::all());
    }
  }
  // Its waves are gone with it: what waits only for them still ends (an operation cannot be cut short while the
  // machine works on it), but wakes nobody.
  for (Op& op : ops) {
    if (op.in_use && op.block->client == client) {
      std::erase_if(op.waiters, [device](const Waiter& w) { return w.device == device; });
    }
  }
  work.device_gone(id, device);
  if ((client = find_client(id)) != nullptr) {
    finish_client_if_idle(*client);
  }
}

void Core::Impl::client_gone(ClientId id, Cookie cookie) {
  Client* client = find_client(id);
  FERRY_CHECK(client != nullptr);
  FERRY_CHECK(!client->dying);
  client->dying = true;
  client->gone_cookie = cookie;
  for (auto& request : prefetches) {
    if (request.in_use && request.client == client) {
      request.in_use = false;
      if (request.fence != 0) {
        work.fence_publish(request.fence);
        work.fence_signal(request.fence, Code::client_gone);
      }
    }
  }
  for (auto& request : svm_requests) {
    if (request.in_use && request.client == client) {
      request.in_use = false;
    }
  }
  std::erase_if(kept_frees, [&](const KeptFree& kept) { return frees[kept.request].client == client; });
  forget_changes(*client);
  // Operations that wait for room have nothing under way: they end here. All others end with their last answer.
  std::vector<OpIndex> waiting;
  for (auto& device : devices) {
    for (auto it = device.waiting.begin(); it != device.waiting.end();) {
      if (ops[*it].block->client == client) {
        waiting.push_back(*it);
        it = device.waiting.erase(it);
      } else {
        ++it;
      }
    }
  }
  for (const OpIndex op : waiting) {
    hide_waits(ops[op]);
    end_op(op);
  }
  if ((client = find_client(id)) != nullptr) {
    forget_turns(*client);
  }
  if (reclaim.counts() && (client = find_client(id)) != nullptr) {
    withdraw_memory(*client);
  }
  work.client_gone(id);
  if ((client = find_client(id)) != nullptr) {
    finish_client_if_idle(*client);
  }
  pump_all();
  reclaim.pump();
}

void Core::Impl::finish_client_if_idle(Client& client) {
  if (!client.dying || client.ops != 0 || client.upkeep != 0 || !work.memory_idle(client.id)) {
    return;
  }
  for (const auto& device : client.devices) {
    if (device.attached) {
      return;
    }
  }
  // First pass: no copy and no mapping is left, so all VRAM goes back. Second pass, when the machine has taken it: the
  // client is forgotten.
  bool released_all = true;
  for (DeviceId d = 0; d < devices.size(); ++d) {
    ClientDevice& own = client.devices[d];
    for (const SlotIndex slot : own.slot_at) {
      if (slot != none_index) {
        forget_slot(d, slot);
      }
    }
    own.slot_at.clear();
    own.free_slots.clear();
    own.idle_chunks = 0;
    bool leaked = false;
    for (std::uint32_t c = 0; c < own.chunks.size(); ++c) {
      Chunk& chunk = own.chunks[c];
      chunk.used = 0;
      if (chunk.owned && !chunk.releasing) {
        if (planted(PlantedBug::leak_chunk) && !leaked) {
          leaked = true;
          chunk.owned = false;
          continue;
        }
        chunk.draining = true;
        start_release(d, client, c);
      }
      released_all = released_all && !chunk.owned;
    }
  }
  if (reclaim.counts()) {
    forget_client_memory(client);
  }
  forget_pins(client);
  client.blocks.clear();
  client.block_at.clear();
  client.last_index = ~BlockIndex{0};
  client.last_block = nullptr;
  if (!released_all) {
    return;
  }
  if (!work.client_idle(client.id)) {
    discard_ranges(client);
    return;
  }
  for (auto& request : frees) {
    if (request.in_use && request.client == &client) {
      request.in_use = false;
    }
  }
  const std::uint64_t charged = client.charged_pages;
  client.charged_pages = client.stats.system_pages = 0;
  gone_stats[client.id] = client.stats;
  reply(client.gone_cookie, client, {});
  clients.erase(client.id);
  reclaim.give(charged);
}

/// Jobs of the client run on, maybe for long: its memory does not wait for them, since they may wait for memory.
void Core::Impl::discard_ranges(Client& client) {
  if (client.charged_pages == 0) {
    return;
  }
  for (const auto& [first, range] : client.ranges) {
    std::uint32_t pending = 0;
    Action& action = ask_client(Verb::discard_system, client, pending);
    action.pages = {first, range.count_pages};
    action.cause = Cause::client_gone;
  }
  client.ranges.clear();
}

void Core::Impl::ranges_discarded(Client& client) {
  if (client.upkeep == 0) {
    const ClientId id = client.id;
    uncharge(client, client.charged_pages);
    if (Client* left = find_client(id); left != nullptr) {
      finish_client_if_idle(*left);
    }
  }
}

}  // namespace ferry::core
