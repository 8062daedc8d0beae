// What the environment says of the machine.
#include <cstdlib>

#include "manager/options.h"

namespace ferry::manager {
namespace {

/// What the environment says where the command line does not.
void from_environment(std::optional<std::string>& flag, const char* name) {
  const char* value = std::getenv(name);
  if (!flag && value != nullptr && *value != '\0') flag = value;
}

}  // namespace

void add_environment(MachineFlags& flags) {
  from_environment(flags.vram, "FERRY_VRAM");
  from_environment(flags.cus, "FERRY_CUS");
  from_environment(flags.devices, "FERRY_DEVICES");
  from_environment(flags.hive, "FERRY_HIVE");
  from_environment(flags.granularity, "FERRY_GRANULARITY");
  from_environment(flags.policy, "FERRY_POLICY");
  from_environment(flags.hardware, "FERRY_HARDWARE");
  from_environment(flags.reserved_cus, "FERRY_RESERVED_CUS");
  from_environment(flags.config, "FERRY_CONFIG");
  from_environment(flags.system, "FERRY_SYSTEM");
  from_environment(flags.store, "FERRY_STORE");
  from_environment(flags.store_memory, "FERRY_STORE_MEMORY");
  from_environment(flags.store_directory, "FERRY_STORE_DIR");
  from_environment(flags.store_codec, "FERRY_STORE_CODEC");
  from_environment(flags.prefetch, "FERRY_PREFETCH");
  from_environment(flags.victims, "FERRY_VICTIMS");
  from_environment(flags.leave, "FERRY_LEAVE");
  from_environment(flags.store_io, "FERRY_STORE_IO");
}

}  // namespace ferry::manager
