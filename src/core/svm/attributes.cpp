// SET, GET and RESET of attributes; range groups; what a SET takes away, brings and maps before it is answered.
#include <algorithm>

#include "core/impl.h"

namespace ferry::core {
namespace {

constexpr Page page_limit = Page{1} << 52;

bool well_formed(PageSpan span) {
  return span.count_pages > 0 && span.first < page_limit && span.count_pages <= page_limit - span.first;
}

/// Calls fn(PageSpan) for each part of the span that is allocated and not being freed.
template <typename Fn>
void for_allocated(const Client& client, PageSpan span, Fn&& fn) {
  auto it = client.ranges.upper_bound(span.first);
  if (it != client.ranges.begin()) {
    --it;
  }
  for (; it != client.ranges.end() && it->first < span.end(); ++it) {
    const Page first = std::max(it->first, span.first);
    const Page end = std::min(it->first + it->second.count_pages, span.end());
    if (first < end && !it->second.freeing) {
      fn(PageSpan{first, end - first});
    }
  }
}

bool any_allocated(const Client& client, PageSpan span) {
  bool any = false;
  for_allocated(client, span, [&](PageSpan) { any = true; });
  return any;
}

bool is_place(std::uint32_t value, std::size_t device_count) { return value < device_count || value == loc_system; }

bool is_valid(const Attribute& a, std::size_t device_count) {
  switch (a.type) {
    case AttributeType::preferred_loc: return is_place(a.value, device_count) || a.value == loc_undefined;
    case AttributeType::prefetch_loc: return is_place(a.value, device_count);
    case AttributeType::access:
      return a.device < device_count && a.value <= static_cast<std::uint32_t>(DeviceAccess::migrate);
    case AttributeType::set_flags:
    case AttributeType::clr_flags: return a.value <= 0xff;
    case AttributeType::granularity: return a.value <= 63;
  }
  return false;
}

void apply(Attributes& to, const Attribute& a) {
  switch (a.type) {
    case AttributeType::preferred_loc: to.preferred = static_cast<Location>(a.value); break;
    case AttributeType::prefetch_loc: to.prefetch = static_cast<Location>(a.value); break;
    case AttributeType::access: to.set_access(a.device, static_cast<DeviceAccess>(a.value)); break;
    case AttributeType::set_flags: to.flags = static_cast<std::uint8_t>(to.flags | a.value); break;
    case AttributeType::clr_flags: to.flags = static_cast<std::uint8_t>(to.flags & ~a.value); break;
    case AttributeType::granularity: to.granularity = static_cast<std::uint8_t>(a.value); break;
  }
}

/// What a change of one run means for mappings that exist.
struct Effect {
  bool takes = false;           ///< some may allow too much now
  bool gives = false;           ///< a device may reach more than before
  bool unite = false;           ///< pages may have copies that they are not to have any more
  bool home = false;            ///< pages may not stay in VRAM
  bool map = false;             ///< some must exist that may not
  std::vector<PageSpan> remap;  ///< what they allow cannot be told from their state (exec): all go
};

void note(Effect& effect, PageSpan span, const Attributes& before, const Attributes& after) {
  const unsigned set = after.flags & ~before.flags;
  for (DeviceId d = 0; d < max_devices; ++d) {
    const bool had = before.access_of(d) != DeviceAccess::none;
    const bool has = after.access_of(d) != DeviceAccess::none;
    effect.takes = effect.takes || (had && !has);
    effect.gives = effect.gives || (has && !had);
  }
  effect.takes = effect.takes || (set & svm_gpu_ro) != 0;
  effect.gives = effect.gives || ((before.flags & ~after.flags) & svm_gpu_ro) != 0;
  effect.home = effect.home || (set & svm_ext_coherent) != 0;
  effect.unite = effect.unite || ((before.flags & ~after.flags) & svm_read_mostly) != 0 ||
                 ((before.flags & svm_read_mostly) != 0 && (set & (svm_ext_coherent | svm_always_mapped)) != 0);
  effect.map = effect.map || ((after.flags & svm_always_mapped) != 0 && !(before == after));
  if (((before.flags ^ after.flags) & svm_gpu_exec) != 0) {
    effect.remap.push_back(span);
  }
}

PageMask mask_in(const Block& block, PageSpan span) {
  const Page first = std::max(first_page_of(block.index), span.first);
  const Page end = std::min(first_page_of(block.index) + block_pages, span.end());
  return first >= end
             ? PageMask()
             : PageMask::range(static_cast<unsigned>(first & (block_pages - 1)), static_cast<unsigned>(end - first));
}

}  // namespace

// --- set -------------------------------------------------------------------------------------------------------------

Status Core::Impl::svm_set(ClientId id, PageSpan span, const std::vector<Attribute>& changes, Cookie cookie,
                           unsigned& wrong) {
  wrong = static_cast<unsigned>(changes.size());
  Client* client = find_client(id);
  if (client == nullptr || client->dying) {
    return Code::client_gone;
  }
  if (!well_formed(span)) {
    return Code::bad_range;
  }
  if (changes.size() > attributes_max) {
    wrong = attributes_max;
    return Code::bad_range;
  }
  Location prefetch = loc_undefined;
  for (unsigned i = 0; i < changes.size(); ++i) {
    if (!is_valid(changes[i], devices.size())) {
      wrong = i;
      return Code::bad_range;
    }
    if (changes[i].type == AttributeType::prefetch_loc) {
      prefetch = static_cast<Location>(changes[i].value);
    }
  }
  if (!any_allocated(*client, span)) {
    return Code::not_allocated;
  }
  if (prefetch != loc_undefined) {
    // Asked with the access that each page has by then.
    for_allocated(*client, span, [&](PageSpan part) {
      client->svm.map.for_runs(part, [&](PageSpan, Attributes a) {
        for (unsigned i = 0; i < changes.size(); ++i) {
          apply(a, changes[i]);
          if (changes[i].type == AttributeType::prefetch_loc && changes[i].value < devices.size() &&
              a.access_of(static_cast<DeviceId>(changes[i].value)) == DeviceAccess::none) {
            wrong = std::min(wrong, i);
          }
        }
      });
    });
    if (wrong < changes.size()) {
      return Code::not_permitted;
    }
  }
  svm_change(
      *client, span,
      [&](Attributes& a) {
        for (const Attribute& change : changes) {
          apply(a, change);
        }
      },
      prefetch, cookie);
  return {};
}

Status Core::Impl::svm_reset(ClientId id, PageSpan span, Cookie cookie) {
  Client* client = find_client(id);
  if (client == nullptr || client->dying) {
    return Code::client_gone;
  }
  if (!well_formed(span)) {
    return Code::bad_range;
  }
  if (!any_allocated(*client, span)) {
    return Code::not_allocated;
  }
  svm_change(
      *client, span, [](Attributes& a) { a = {}; }, loc_undefined, cookie);
  return {};
}

/// REQUIRES: some page of the span is allocated.
template <typename Fn>
void Core::Impl::svm_change(Client& client, PageSpan span, Fn&& fn, Location prefetch, Cookie cookie) {
  Effect effect;
  for_allocated(client, span, [&](PageSpan part) {
    client.svm.map.change(part, [&](PageSpan run, Attributes& a) {
      const Attributes before = a;
      fn(a);
      note(effect, run, before, a);
    });
  });
  client.svm.always_mapped = client.svm.always_mapped || effect.map;
  if (effect.gives) {
    work.range_added(client.id);  // who runs without retry faults has it mapped first
  }
  const std::uint32_t index = new_svm_request(client, span, cookie);
  SvmRequest& request = svm_requests[index];
  request.home = effect.home;
  request.unite = effect.unite;
  request.prefetch = prefetch;
  request.map = effect.map;
  request.remaining = 1;
  for_blocks(client, span, [&](Block& block) {
    if (!planted(PlantedBug::forget_to_look_again)) {
      look_plain(block);
    }
    let_cpu(block);
    if (effect.takes || effect.home || !effect.remap.empty()) {
      // They are in order, and may be as many as pages: each block looks at its own.
      const Page first = first_page_of(block.index);
      auto part = std::partition_point(effect.remap.begin(), effect.remap.end(),
                                       [first](const PageSpan& s) { return s.end() <= first; });
      PageMask remap;
      for (; part != effect.remap.end() && part->first < first + block_pages; ++part) {
        remap |= mask_in(block, *part);
      }
      svm_take(index, block, mask_in(block, span), remap);
    }
  });
  svm_told(index);
}

std::uint32_t Core::Impl::new_svm_request(Client& client, PageSpan span, Cookie cookie) {
  std::uint32_t index = 0;
  while (index < svm_requests.size() && svm_requests[index].in_use) {
    ++index;
  }
  if (index == svm_requests.size()) {
    svm_requests.emplace_back();
  }
  SvmRequest& request = svm_requests[index];
  request = {};
  request.in_use = true;
  request.client = &client;
  request.span = span;
  request.cookie = cookie;
  request.cursor = span.first;
  return index;
}

/// The request waits until nothing of the block's pages is mapped that may not be. `remap`: nothing at all of these.
void Core::Impl::svm_take(std::uint32_t request, Block& block, const PageMask& pages, const PageMask& remap) {
  ++block.holds;
  for (std::uint32_t g = 0; g < block.granules.size(); ++g) {
    const PageMask mask = granule_mask(g);
    if (!pages.intersects(mask)) {
      continue;
    }
    const bool busy = block.granules[g].op != none_index;
    if (!busy && !start_taking(block, g, remap)) {
      continue;
    }
    Op& op = ops[block.granules[g].op];
    op.svm.push_back(request);
    ++svm_requests[request].remaining;
    if (busy) {
      op.remap_next |= remap & mask;  // what it maps, it may map by what was said before
    } else {
      run_op(op.self);
    }
  }
  --block.holds;
  drop_block_if_empty(*block.client, block);
}

/// Starts an operation that takes away what is mapped in the granule and may not be; it is to be run. False: nothing is.
bool Core::Impl::start_taking(Block& block, std::uint32_t granule, const PageMask& remap) {
  const PageMask mask = granule_mask(granule);
  PageMask pages;
  for (DeviceId d = 0; d < devices.size(); ++d) {
    pages |= (forbidden(block, granule, d) | (remap & mask)) & block.devices[d].mapped;
  }
  if (pages.none() || planted(PlantedBug::keep_lost_access) || planted(PlantedBug::write_map_read_only)) {
    return false;
  }
  Op& op = start_op(block, granule, Goal::take, Cause::prefetch, no_device, Access::read);
  op.pages = pages;
  op.remap = remap & mask;
  return true;
}

void Core::Impl::take_mappings(Op& op) {
  for (DeviceId d = 0; d < devices.size(); ++d) {
    revoke_device(op, d, op.pages & (op.remap | forbidden(*op.block, op.granule, d)));
  }
}

/// The operation that has just ended may have mapped what may not be mapped any more. True: the next one takes it, and
/// whoever waits for the granule waits for that. REQUIRES: the granule has no operation.
bool Core::Impl::take_next(Block& block, std::uint32_t granule, const PageMask& remap, std::vector<std::uint32_t>& told,
                           std::vector<Waiter>& waiters, std::vector<std::uint32_t>& changes) {
  if (!start_taking(block, granule, remap)) {
    return false;
  }
  Op& op = ops[block.granules[granule].op];
  op.svm.swap(told);
  op.waiters.swap(waiters);
  op.next_changes.swap(changes);
  run_op(op.self);
  return true;
}

/// One thing that the request waited for is done.
void Core::Impl::svm_told(std::uint32_t index) {
  SvmRequest& request = svm_requests[index];
  if (!request.in_use) {
    return;
  }
  FERRY_CHECK_GE(request.remaining, 1U);
  if (--request.remaining == 0) {
    svm_go_on(index);
  }
}

/// Some page of the span that is to be in system memory only (ext_coherent) is in VRAM.
bool Core::Impl::any_away(Client& client, PageSpan span) {
  bool away = false;
  for_blocks(client, span, [&](Block& block) {
    const PageMask there = block.vram_current & ~block.freeing & mask_in(block, span);
    if (away || block.plain || there.none()) {
      return;
    }
    client.svm.map.for_runs({first_page_of(block.index), block_pages}, [&](PageSpan run, const Attributes& a) {
      away = away || ((a.flags & svm_ext_coherent) != 0 && there.intersects(mask_in(block, run)));
    });
  });
  return away;
}

void Core::Impl::svm_go_on(std::uint32_t index) {
  SvmRequest& request = svm_requests[index];
  // An operation that was on its way up when the SET came ends there: then once more. What cannot come home (a copy that
  // fails, a pin) stays.
  constexpr unsigned home_tries = 3;
  if (request.home && request.tries < home_tries && any_away(*request.client, request.span)) {
    ++request.tries;
    request.remaining = 1;
    prefetch_for(index, *request.client, request.span, no_device);
    return;
  }
  if (request.home) {
    request.home = false;
    request.tries = 0;
  }
  if (request.unite && !unite_span(index)) {
    return;
  }
  if (request.unite) {
    request.unite = false;
    request.tries = 0;
  }
  if (request.prefetch != loc_undefined) {
    const DeviceId device = request.prefetch == loc_system ? no_device : request.prefetch;
    request.prefetch = loc_undefined;
    request.remaining = 1;
    prefetch_for(index, *request.client, request.span, device);
    return;
  }
  if (request.map && !svm_map(index)) {
    return;
  }
  svm_requests[index].in_use = false;
  reply(svm_requests[index].cookie, *svm_requests[index].client, {});
}

// --- get -------------------------------------------------------------------------------------------------------------

Status Core::Impl::svm_get(ClientId id, PageSpan span, std::vector<Attribute>& queries, unsigned& wrong) const {
  wrong = static_cast<unsigned>(queries.size());
  const Client* client = find_client(id);
  if (client == nullptr || client->dying) {
    return Code::client_gone;
  }
  if (!well_formed(span)) {
    return Code::bad_range;
  }
  if (queries.size() > attributes_max) {
    wrong = attributes_max;
    return Code::bad_range;
  }
  for (unsigned i = 0; i < queries.size(); ++i) {
    Attribute asked = queries[i];
    asked.value = 0;  // what it is does not matter, in a GET
    if (!is_valid(asked, devices.size())) {
      wrong = i;
      return Code::bad_range;
    }
  }
  bool first = true;
  Attributes sum;
  std::uint8_t any_flags = 0;
  for_allocated(*client, span, [&](PageSpan part) {
    client->svm.map.for_runs(part, [&](PageSpan, const Attributes& a) {
      any_flags = static_cast<std::uint8_t>(any_flags | a.flags);
      if (first) {
        sum = a;
        first = false;
        return;
      }
      sum.preferred = sum.preferred == a.preferred ? sum.preferred : loc_undefined;
      sum.prefetch = sum.prefetch == a.prefetch ? sum.prefetch : loc_undefined;
      sum.granularity = std::min(sum.granularity, a.granularity);
      sum.flags = static_cast<std::uint8_t>(sum.flags & a.flags);
      for (DeviceId d = 0; d < devices.size(); ++d) {
        sum.set_access(d, std::min(sum.access_of(d), a.access_of(d)));
      }
    });
  });
  if (first) {
    return Code::not_allocated;
  }
  for (Attribute& query : queries) {
    switch (query.type) {
      case AttributeType::preferred_loc: query.value = sum.preferred; break;
      case AttributeType::prefetch_loc: query.value = sum.prefetch; break;
      case AttributeType::access: query.value = static_cast<std::uint32_t>(sum.access_of(query.device)); break;
      case AttributeType::set_flags: query.value = sum.flags; break;
      case AttributeType::clr_flags: query.value = static_cast<std::uint8_t>(~any_flags); break;
      case AttributeType::granularity: query.value = sum.granularity; break;
    }
  }
  return {};
}

Attributes Core::Impl::attributes(ClientId id, Page page) const {
  const Client* client = find_client(id);
  return client == nullptr || page >= page_limit ? Attributes{} : client->svm.map.at(page);
}

// --- groups ----------------------------------------------------------------------------------------------------------

Status Core::Impl::group_assign(ClientId id, PageSpan span, std::uint32_t group) {
  Client* client = find_client(id);
  if (client == nullptr || client->dying) {
    return Code::client_gone;
  }
  if (!well_formed(span)) {
    return Code::bad_range;
  }
  if (!any_allocated(*client, span)) {
    return Code::not_allocated;
  }
  for_allocated(*client, span, [&](PageSpan part) { client->svm.groups.set(part, group); });
  for_blocks(*client, span, [&](Block& block) {
    look_plain(block);
    let_cpu(block);
  });
  return {};
}

Status Core::Impl::group_migration(ClientId id, std::uint32_t group, bool allowed) {
  Client* client = find_client(id);
  if (client == nullptr || client->dying) {
    return Code::client_gone;
  }
  if (group == 0) {
    return Code::bad_range;
  }
  if (allowed) {
    client->svm.fixed.erase(group);
    for (const auto& block : client->blocks) {
      if (client->refused_blocks == 0) {
        break;
      }
      if (block != nullptr) {
        let_cpu(*block);
      }
    }
    pump_all();  // there are victims again
  } else {
    client->svm.fixed.insert(group);
  }
  return {};
}

// --- pages come and go -----------------------------------------------------------------------------------------------

/// They are nobody's any more: what is allocated there next starts from defaults.
void Core::Impl::svm_forget(Client& client, PageSpan span) {
  if (planted(PlantedBug::leak_attributes)) {
    return;
  }
  if (client.svm.map.empty() && client.svm.groups.empty()) {
    return;
  }
  client.svm.map.erase(span);
  client.svm.groups.erase(span);
  for_blocks(client, span, [&](Block& block) {
    look_plain(block);
    let_cpu(block);
  });
}

void Core::Impl::svm_move(Client& client, PageSpan from, Page to) {
  if (client.svm.map.empty() && client.svm.groups.empty()) {
    return;
  }
  client.svm.map.move(from, to);
  client.svm.groups.move(from, to);
  for (const PageSpan span : {from, PageSpan{to, from.count_pages}}) {
    for_blocks(client, span, [&](Block& block) {
      look_plain(block);
      let_cpu(block);
    });
  }
}

void Core::Impl::svm_copy(const Client& parent, Client& child) {
  child.svm = parent.svm;
  for (const auto& block : child.blocks) {
    if (block != nullptr) {
      look_plain(*block);
    }
  }
}

void Core::Impl::look_plain(Block& block) {
  const PageSpan span{first_page_of(block.index), block_pages};
  block.plain = block.client->svm.map.plain(span) && block.client->svm.groups.plain(span);
}

// --- entry points ----------------------------------------------------------------------------------------------------

Status Core::svm_set(std::uint64_t now_ns, ClientId client, PageSpan span, const std::vector<Attribute>& changes,
                     Cookie cookie, unsigned& wrong) {
  impl_->now_ns = now_ns;
  return impl_->svm_set(client, span, changes, cookie, wrong);
}

Status Core::svm_get(ClientId client, PageSpan span, std::vector<Attribute>& queries, unsigned& wrong) const {
  return impl_->svm_get(client, span, queries, wrong);
}

Status Core::svm_reset(std::uint64_t now_ns, ClientId client, PageSpan span, Cookie cookie) {
  impl_->now_ns = now_ns;
  return impl_->svm_reset(client, span, cookie);
}

Attributes Core::attributes(ClientId client, Page page) const { return impl_->attributes(client, page); }

Status Core::group_assign(std::uint64_t now_ns, ClientId client, PageSpan span, std::uint32_t group) {
  impl_->now_ns = now_ns;
  return impl_->group_assign(client, span, group);
}

Status Core::group_migration(std::uint64_t now_ns, ClientId client, std::uint32_t group, bool allowed) {
  impl_->now_ns = now_ns;
  return impl_->group_migration(client, group, allowed);
}

}  // namespace ferry::core
