// Every bench there is.
#pragma once

#include "harness.h"

namespace ferry::bench {

/// The core alone: faults and migrations decided a second on one thread, nothing performed.
[[nodiscard]] Bench core_decisions();

/// Attributes at a thousand and a million spans. The core alone.
[[nodiscard]] Bench attributes();

/// Migration policies over patterns of access. The core alone.
[[nodiscard]] Bench migration_policies();

/// The wait graph: what it costs a fault, and how fast it is alone. With a device.
[[nodiscard]] Bench progress();
[[nodiscard]] Bench progress_reclaim();
/// The search of `ferry check`.
[[nodiscard]] Bench progress_explorer();

/// The store beneath system memory, beside the codec and the disk alone.
[[nodiscard]] Bench store_zstd();
[[nodiscard]] Bench store_lz4();
[[nodiscard]] Bench store_file();

// On a device:
[[nodiscard]] Bench fault_device_one();
[[nodiscard]] Bench fault_device_all();
[[nodiscard]] Bench fault_cpu();
[[nodiscard]] Bench migrate();
[[nodiscard]] Bench move();
[[nodiscard]] Bench peer();
[[nodiscard]] Bench kernels();
[[nodiscard]] Bench traffic_bfs();
[[nodiscard]] Bench traffic_page_rank();
[[nodiscard]] Bench traffic_stencil();

}  // namespace ferry::bench
