// Attributes of managed memory as applications set them: what KFD's SVM ioctl, drm_gpusvm and nvidia-uvm offer, with one
// meaning each. docs/design/0017-svm.md has the rules; docs/SVM.md the table for users.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "base/status.h"
#include "base/types.h"

namespace ferry::core {

/// A place that pages can be asked to be in: a device, system memory, or nowhere in particular.
using Location = std::uint8_t;
inline constexpr Location loc_system = 0xfe;
inline constexpr Location loc_undefined =
    0xff;  ///< GET: the pages differ, or nobody said; SET: take back what was said

/// What one device may do with a page.
///
/// | value    | a device touch                                                     | KFD             |
/// |----------|--------------------------------------------------------------------|-----------------|
/// | none     | fails; mappings that exist are taken away when it is set           | NO_ACCESS       |
/// | in_place | is served where the data lies; that device never makes it migrate  | ACCESS_IN_PLACE |
/// | migrate  | is served by the device's memory, as preferred location and policy say | ACCESS      |
enum class DeviceAccess : std::uint8_t { none, in_place, migrate };

/// Bits of Attributes::flags. What a set and a cleared bit mean:
///
/// | flag          | set                                                   | cleared                                             |
/// |---------------|-------------------------------------------------------|-----------------------------------------------------|
/// | host_access   | a CPU touch brings the page home (default)            | a CPU touch of a page that VRAM holds ends in SIGBUS |
/// | coherent      | CPU and devices that contend for it get it in place, all at once (default) | they take turns: one has it at a time, for a slice |
/// | ext_coherent  | never in VRAM: atomics of every processor meet in one memory               | -                              |
/// | hive_local    | what lies in VRAM of a linked device is reached there: neither moved nor copied, unless it is preferred here | taken, or copied |
/// | gpu_ro        | a device write fails; devices may hold copies          | -                                                  |
/// | gpu_exec      | a kernel may call code that lies in it                 | such a call fails                                  |
/// | read_mostly   | each processor that reads has its own copy; the first write from anywhere ends that | one newest copy        |
/// | always_mapped | devices with access have it mapped whenever they could fault; taking it away stops their queues, as with retry faults off | faults map it |
enum SvmFlag : std::uint8_t {
  svm_host_access = 0x01,
  svm_coherent = 0x02,
  svm_hive_local = 0x04,
  svm_gpu_ro = 0x08,
  svm_gpu_exec = 0x10,
  svm_read_mostly = 0x20,
  svm_always_mapped = 0x40,
  svm_ext_coherent = 0x80,
};
inline constexpr std::uint8_t svm_default_flags = svm_host_access | svm_coherent;

/// Everything that was asked for one page. Equal neighbours are one span.
struct Attributes {
  Location preferred = loc_undefined;
  Location prefetch = loc_undefined;  ///< where it was last asked to go; told by GET, steers nothing by itself
  /// log2 of the pages that move together around a fault. 0 to 8 act; 9 and more: as the machine is configured.
  std::uint8_t granularity = 9;
  std::uint8_t flags = svm_default_flags;
  /// Two bits a device, DeviceAccess. Default: migrate for all, with retry faults and without: whoever allocates managed
  /// memory has said by that what KFD without XNACK waits to be told.
  std::uint32_t access = 0xaaaa'aaaa;

  [[nodiscard]] constexpr DeviceAccess access_of(DeviceId device) const {
    return static_cast<DeviceAccess>((access >> (2U * device)) & 3U);
  }
  constexpr void set_access(DeviceId device, DeviceAccess wanted) {
    access = (access & ~(3U << (2U * device))) | (static_cast<std::uint32_t>(wanted) << (2U * device));
  }
  friend constexpr bool operator==(const Attributes&, const Attributes&) = default;
};
static_assert(sizeof(Attributes) == 8);

/// One line of a SET or GET. Numbers are part of the wire and of the C interface.
enum class AttributeType : std::uint32_t {
  preferred_loc = 0,
  prefetch_loc = 1,
  access = 2,  ///< of `device`: value is a DeviceAccess
  set_flags = 3,
  clr_flags = 4,
  granularity = 5,
};

struct Attribute {
  AttributeType type = AttributeType::preferred_loc;
  DeviceId device = no_device;  ///< of `access`
  std::uint32_t value = 0;
};

inline constexpr unsigned attributes_max = 64;  ///< in one call

/// What the application did to its address space. The core hears of each after it is decided and before it is done.
///
/// | change    | the pages of `span` afterwards                                                  |
/// |-----------|---------------------------------------------------------------------------------|
/// | unmap     | are no allocation's; attributes gone; a fault older than this is dropped         |
/// | move      | have what those of `span` had, and lie where those lay; those of `span` read as zeros. What was said of pages stays with the addresses |
/// | protect   | CPU and devices may do what `prot` says, and a touch that may not fails          |
/// | discard   | read as zeros (MADV_DONTNEED, MADV_REMOVE; fallocate punch)                      |
/// | lazy_free | read as before or as zeros (MADV_FREE, ferry_discard)                            |
enum class Change : std::uint8_t { unmap, move, protect, discard, lazy_free };
inline constexpr unsigned change_count = 5;
[[nodiscard]] const char* to_string(Change change);

/// What an application may do with pages of its own, whoever it is (mprotect). Bit set: allowed.
enum SpanProt : std::uint8_t { span_read = 1, span_write = 2, span_exec = 4, span_all = 7 };

}  // namespace ferry::core
