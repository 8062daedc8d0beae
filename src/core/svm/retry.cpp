// Memory that is mapped on a device before it is touched: all that its client's compute may touch while retry faults are
// off for it, and what is svm_always_mapped. work/stop.cpp stops compute before such a mapping is taken.
#include <algorithm>

#include "core/impl.h"

namespace ferry::core {

bool Core::Impl::retry_faults(const Client& client, DeviceId device) const {
  return client.svm.retry_faults && work.model(device).retry_faults;
}

/// Compute of the client on the device waits for mappings before it runs.
bool Core::Impl::maps_ahead(const Client& client, DeviceId device) const {
  return client.svm.always_mapped || !retry_faults(client, device);
}

/// Pages of the granule that the device is to have mapped before it runs.
PageMask Core::Impl::must_map(const Block& block, std::uint32_t granule, DeviceId device) const {
  PageMask out = block.allocated & granule_mask(granule);
  out.remove(block.freeing);
  if (block.protection != nullptr) {
    out.remove(block.protection->no_read);
  }
  const bool retries = retry_faults(*block.client, device);
  if (block.plain) {
    return retries ? PageMask() : out;
  }
  PageMask wanted;
  block.client->svm.map.for_runs(granule_span(block, granule), [&](PageSpan span, const Attributes& a) {
    if (a.access_of(device) != DeviceAccess::none && (!retries || (a.flags & svm_always_mapped) != 0)) {
      wanted |= PageMask::range(static_cast<unsigned>(span.first & (block_pages - 1)),
                                static_cast<unsigned>(span.count_pages));
    }
  });
  return out & wanted;
}

/// Those of them that are not, or not for writing where it may write.
PageMask Core::Impl::not_mapped(const Block& block, std::uint32_t granule, DeviceId device) const {
  PageMask missing = must_map(block, granule, device);
  const DeviceView& view = block.devices[device];
  if (missing.none() || (view.mapped & view.writable).contains(missing)) {
    return {};
  }
  PageMask good = view.mapped & view.writable;
  if (block.protection != nullptr) {
    good |= view.mapped & block.protection->no_write;
  }
  if (!block.plain) {
    block.client->svm.map.for_runs(granule_span(block, granule), [&](PageSpan span, const Attributes& a) {
      if ((a.flags & svm_gpu_ro) != 0) {
        good |= view.mapped & PageMask::range(static_cast<unsigned>(span.first & (block_pages - 1)),
                                              static_cast<unsigned>(span.count_pages));
      }
    });
  }
  missing.remove(good);
  return missing;
}

/// Starts the operation that maps some of the pages where they are: in the device's own VRAM, or in place. To be run.
Op& Core::Impl::start_mapping(Block& block, std::uint32_t granule, DeviceId device, const PageMask& pages) {
  const Granule& state = block.granules[granule];
  const PageMask here = state.slot != none_index && state.owner == device ? pages & block.vram_current : PageMask();
  Op& op = start_op(block, granule, here.any() ? Goal::vram : Goal::in_place, Cause::prefetch, device, Access::write);
  op.pages &= here.any() ? here : pages;
  return op;
}

/// Maps what must be mapped in the request's span, one operation at a time. True: done.
bool Core::Impl::svm_map(std::uint32_t index) {
  if (svm_requests[index].mapping) {
    return false;  // the loop below looks again
  }
  svm_requests[index].mapping = true;
  const Client& asker = *svm_requests[index].client;
  if (std::none_of(asker.devices.begin(), asker.devices.end(), [](const ClientDevice& d) { return d.attached; })) {
    svm_requests[index].cursor = svm_requests[index].span.end();  // each maps it before it runs
  }
  MadeBlock made;
  unsigned visited = 0;
  const unsigned tries_most = 2 * static_cast<unsigned>(devices.size()) + 2;
  while (svm_requests[index].remaining == 0 && svm_requests[index].cursor < svm_requests[index].span.end()) {
    SvmRequest& request = svm_requests[index];
    Client& client = *request.client;
    const AttributeMap::Run run =
        client.svm.map.run_at(request.cursor, {request.cursor, request.span.end() - request.cursor});
    if ((run.value.flags & svm_always_mapped) == 0) {
      request.cursor = run.span.end();
      request.tries = 0;
      continue;
    }
    if (++visited > walk_granules_most) {
      rest(request.rests, Rest::Of::set, index);
      break;
    }
    look_in(client, block_of(request.cursor), made);
    Block& block = make_block(client, block_of(request.cursor));
    const std::uint32_t granule = granule_of(request.cursor);
    if (block.granules[granule].op != none_index) {
      request.remaining = 1;
      ops[block.granules[granule].op].svm.push_back(index);
      break;
    }
    bool started = false;
    for (DeviceId d = 0; d < devices.size() && !started && request.tries < tries_most; ++d) {
      const PageMask missing = client.devices[d].attached ? not_mapped(block, granule, d) : PageMask();
      if (missing.any()) {
        started = true;
        ++request.tries;
        request.remaining = 1;
        Op& op = start_mapping(block, granule, d, missing);
        op.svm.push_back(index);
        run_op(op.self);
      }
    }
    if (!started) {
      request.cursor = granule_span(block, granule).end();
      request.tries = 0;
    }
  }
  SvmRequest& request = svm_requests[index];
  look_in(*request.client, no_block, made);
  request.mapping = false;
  return request.remaining == 0 && request.cursor >= request.span.end();
}

/// Some page of the span is to stay mapped on the device: who runs there is stopped before it is taken.
bool Core::Impl::always_mapped(const Block& block, PageSpan span, DeviceId device) const {
  bool found = false;
  if (!block.plain && block.client->svm.always_mapped) {
    block.client->svm.map.for_runs(span, [&](PageSpan, const Attributes& a) {
      found = found || ((a.flags & svm_always_mapped) != 0 && a.access_of(device) != DeviceAccess::none);
    });
  }
  return found;
}

Status Core::Impl::set_retry_faults(ClientId id, bool on) {
  Client* client = find_client(id);
  if (client == nullptr || client->dying) {
    return Code::client_gone;
  }
  for (DeviceId d = 0; d < devices.size(); ++d) {
    if (on && client->devices[d].attached && !work.model(d).retry_faults) {
      return Code::unsupported;
    }
  }
  if (client->svm.retry_faults == on) {
    return {};
  }
  if (work.computes(id)) {
    return Code::in_use;
  }
  client->svm.retry_faults = on;
  work.mode_changed(id);
  return {};
}

Status Core::set_retry_faults(std::uint64_t now_ns, ClientId client, bool on) {
  impl_->now_ns = now_ns;
  return impl_->set_retry_faults(client, on);
}

bool Core::retry_faults(ClientId id, DeviceId device) const {
  const Client* client = impl_->find_client(id);
  return client != nullptr && device < impl_->devices.size() && impl_->retry_faults(*client, device);
}

}  // namespace ferry::core
