// The budget and its line.
#include "core/reclaim/reclaim.h"

#include "core/impl.h"

namespace ferry::core {

struct Reclaim::State {};

Reclaim::Reclaim(Core::Impl&) : state_(new State) {}
Reclaim::~Reclaim() { delete state_; }
bool Reclaim::counts() const { return false; }
bool Reclaim::take(std::uint64_t, const AllocContext&, const MemoryWaiter&, Request&) { return true; }
void Reclaim::give(std::uint64_t) {}
void Reclaim::withdraw(Request) {}
Reclaim::Entry Reclaim::insert_granule(Block&, std::uint32_t) { return 0; }
Reclaim::Entry Reclaim::insert_buffer(BufferId) { return 0; }
void Reclaim::touch(Entry) {}
void Reclaim::remove(Entry) {}
void Reclaim::pump() {}
void Reclaim::fence_done(Request) {}
void Reclaim::pressure(std::uint64_t) {}
void Reclaim::set_budget(std::uint64_t) {}
void Reclaim::tick() {}
std::uint64_t Reclaim::used_pages() const { return 0; }
bool Reclaim::quiescent() const { return true; }
void Reclaim::verify() const {}
std::uint64_t Reclaim::digest() const { return 0; }

void Core::Impl::op_memory_granted(OpIndex, std::uint64_t, Status) {}
bool Core::Impl::start_store(Block&, std::uint32_t) { return false; }

}  // namespace ferry::core
