#include "manager/svm_text.h"

#include <algorithm>

namespace ferry::manager {
namespace {

using core::AttributeType;

constexpr std::uint32_t granularity_most = 63;
constexpr std::uint32_t all_flags = 0xff;

const char* name_of(std::uint32_t type) {
  switch (static_cast<AttributeType>(type)) {
    case AttributeType::preferred_loc: return "FERRY_SVM_PREFERRED_LOC";
    case AttributeType::prefetch_loc: return "FERRY_SVM_PREFETCH_LOC";
    case AttributeType::access: return "FERRY_SVM_ACCESS_OF";
    case AttributeType::set_flags: return "FERRY_SVM_SET_FLAGS";
    case AttributeType::clr_flags: return "FERRY_SVM_CLR_FLAGS";
    case AttributeType::granularity: return "FERRY_SVM_GRANULARITY";
  }
  return nullptr;
}

std::string hex(std::uint32_t value) {
  static constexpr char digits[] = "0123456789abcdef";
  std::string out;
  for (int shift = 28; shift >= 0; shift -= 4) {
    const std::uint32_t digit = (value >> shift) & 15U;
    if (digit != 0 || !out.empty() || shift == 0) out += digits[digit];
  }
  return "0x" + out;
}

std::string no_device_text(std::uint32_t value, unsigned devices) {
  return std::to_string(value) + " is no device (this machine has " + std::to_string(devices) + ")";
}

bool is_location(std::uint32_t value, unsigned devices, bool undefined) {
  return value < devices || value == core::loc_system || (undefined && value == core::loc_undefined);
}

}  // namespace

core::Attribute attribute_of(const wire::SvmLine& line) {
  core::Attribute out;
  out.type = static_cast<AttributeType>(line.type);
  out.device = static_cast<DeviceId>(std::min<std::uint32_t>(line.device, no_device));
  out.value = line.value;
  return out;
}

std::string text_of_wrong(unsigned number, const wire::SvmLine& line, Status status, unsigned devices, bool set) {
  const char* name = name_of(line.type);
  std::string text = "line " + std::to_string(number);
  if (name == nullptr) return text + ": " + std::to_string(line.type) + " is no attribute (0 to 5 are)";
  text += std::string(", ") + name + ": ";
  const auto type = static_cast<AttributeType>(line.type);
  if (status.code == Code::not_permitted) {
    return text + "device " + std::to_string(line.value) + " has no access to some page of the span";
  }
  if (status.code == Code::unsupported && type == AttributeType::clr_flags) {
    return text +
           "HOST_ACCESS cannot be cleared: this kernel has no way to stop a CPU thread at a page (UFFDIO_POISON, "
           "Linux 6.6)";
  }
  switch (type) {
    case AttributeType::preferred_loc:
      if (!set || is_location(line.value, devices, true)) break;
      return text + no_device_text(line.value, devices) + ", nor FERRY_LOC_SYSTEM, nor FERRY_LOC_UNDEFINED";
    case AttributeType::prefetch_loc:
      if (!set || is_location(line.value, devices, false)) break;
      return text + no_device_text(line.value, devices) + ", nor FERRY_LOC_SYSTEM";
    case AttributeType::access:
      if (line.device >= devices) return text + "of device " + no_device_text(line.device, devices);
      if (!set || line.value <= static_cast<std::uint32_t>(core::DeviceAccess::migrate)) break;
      return text + std::to_string(line.value) +
             " is no access (FERRY_NO_ACCESS, FERRY_ACCESS_IN_PLACE, FERRY_ACCESS are)";
    case AttributeType::set_flags:
    case AttributeType::clr_flags:
      if (!set || (line.value & ~all_flags) == 0) break;
      return text + hex(line.value & ~all_flags) + " is no flag";
    case AttributeType::granularity:
      if (!set || line.value <= granularity_most) break;
      return text + std::to_string(line.value) + " is more than 63";
  }
  return text + std::to_string(line.value) + ": " + to_string(status.code);
}

}  // namespace ferry::manager
