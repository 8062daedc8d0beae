// User-mode queues, the application's side: writes launches into memory that it shares with the device, waits for
// their ends, and keeps the errors of those that failed until somebody asks.
// Any thread, any number of them a queue. Does not attach devices (devices.h).
#pragma once

#include <ferry/ferry.h>

#include <cstdint>

namespace ferry::client {

struct Launch {
  ferry_kernel kernel = nullptr;
  const void* captures = nullptr;
  std::size_t capture_bytes = 0;
  std::uint64_t items = 0;
  std::uint64_t items_per_wave = 0;  ///< 0: chosen
  const char* name = nullptr;
};

/// Null, with `error` filled: bad_range (no such device), no_memory (all queues of the device are taken).
ferry_queue* create_queue(unsigned device, ferry_error* error);
void destroy_queue(ferry_queue* queue);
ferry_code submit(ferry_queue* queue, const Launch& launch, std::uint64_t* number, ferry_error* error);
ferry_code wait_for(ferry_queue* queue, std::uint64_t number, ferry_error* error);
bool has_ended(ferry_queue* queue, std::uint64_t number);
/// Launches on a queue that nobody else uses meanwhile, and waits.
ferry_code run(const Launch& launch, ferry_error* error);
/// Every launch so far has ended, well or not.
bool all_idle();
/// Until it is so.
void wait_for_all();

}  // namespace ferry::client
