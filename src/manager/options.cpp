#include "manager/options.h"

#include <sched.h>

#include <toml++/toml.h>
#include <algorithm>
#include <bit>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>

#include "base/size.h"
#include "wire/control.h"
#include "wire/port.h"

namespace ferry::manager {
namespace {

using Error = std::optional<std::string>;

constexpr unsigned waves_limit = wire::max_waves_per_cu;
constexpr std::uint64_t store_memory_least = std::uint64_t{1} << 20;
constexpr std::uint64_t vram_limit = std::uint64_t{1} << 44;  // VramPage counts 2^32 pages

Error vram_of(std::uint64_t bytes, MachineOptions& options) {
  if (bytes < block_bytes) return "is too small: a device needs at least 2M";
  if (bytes >= vram_limit) return "is too large: a device has less than 16T";
  options.vram_bytes = bytes / block_bytes * block_bytes;
  return {};
}

Error granularity_of(std::uint64_t bytes, MachineOptions& options) {
  if (!std::has_single_bit(bytes) || bytes < page_bytes || bytes > block_bytes) {
    return "has to be a power of two from 4K to 2M";
  }
  options.granularity_bytes = bytes;
  return {};
}

Error count_of(std::int64_t value, unsigned least, unsigned most, unsigned& out) {
  if (value < least || value > most) {
    return "has to be " + std::to_string(least) + " to " + std::to_string(most);
  }
  out = static_cast<unsigned>(value);
  return {};
}

Error milliseconds_of(std::int64_t value, std::uint64_t& out_ns) {
  if (value < 0 || value > 3'600'000) return "has to be 0 to 3600000 (milliseconds)";
  out_ns = static_cast<std::uint64_t>(value) * 1'000'000;
  return {};
}

Error microseconds_of(std::int64_t value, std::uint64_t& out_ns) {
  if (value < 0 || value > 1'000'000) return "has to be 0 to 1000000 (microseconds)";
  out_ns = static_cast<std::uint64_t>(value) * 1'000;
  return {};
}

Error system_of(std::uint64_t bytes, MachineOptions& options) {
  // Less could not hold what a few faults need at a time.
  if (bytes != 0 && bytes < block_bytes) return "is too small: 2M at least, or 0 for no budget";
  options.system_bytes = bytes / page_bytes * page_bytes;
  return {};
}

Error store_of(std::uint64_t bytes, MachineOptions& options) {
  if (bytes >= vram_limit) return "is too large: a store has less than 16T";
  options.store_bytes = bytes / page_bytes * page_bytes;
  return {};
}

Error store_memory_of(std::uint64_t bytes, MachineOptions& options) {
  if (bytes != 0 && bytes < store_memory_least) return "is too small: 1M at least, or 0 for the file alone";
  options.store_memory_bytes = bytes;
  return {};
}

Error directory_of(std::string_view path, MachineOptions& options) {
  options.store_directory = std::string(path);
  return {};
}

Error codec_of(std::string_view name, MachineOptions& options) {
  for (const linux::Codec codec : {linux::Codec::zstd, linux::Codec::lz4, linux::Codec::none}) {
    if (name == linux::to_string(codec)) {
      options.store_codec = codec;
      return {};
    }
  }
  return "has to be zstd, lz4 or none";
}

Error io_of(std::string_view name, MachineOptions& options) {
  if (name != "uring" && name != "threads") return "has to be uring or threads";
  options.store_io = name == "uring" ? linux::IoKind::automatic : linux::IoKind::threads;
  return {};
}

Error level_of(std::int64_t value, MachineOptions& options) {
  if (value < 1 || value > 19) return "has to be 1 to 19";
  options.store_level = static_cast<int>(value);
  return {};
}

Error cus_of(std::int64_t value, MachineOptions& o) { return count_of(value, 1, wire::max_cus, o.cus); }
Error devices_of(std::int64_t value, MachineOptions& o) { return count_of(value, 1, max_devices, o.devices); }

/// Words with commas between them: preempt or no-preempt, retry or no-retry.
Error hardware_of(std::string_view text, DeviceOptions& device) {
  for (std::size_t at = 0; at <= text.size();) {
    const std::size_t end = std::min(text.find(',', at), text.size());
    const std::string_view word = text.substr(at, end - at);
    if (word == "preempt" || word == "no-preempt") {
      device.preempts_while_faulting = word == "preempt";
    } else if (word == "retry" || word == "no-retry") {
      device.retry_faults = word == "retry";
    } else {
      return "has to be preempt or no-preempt, retry or no-retry, with a comma between two of them";
    }
    at = end + 1;
  }
  return {};
}

/// "all", or devices with commas between them, a slash between hives: "0,1/2,3".
Error hives_of(std::string_view text, MachineOptions& options) {
  const std::string wrong =
      "has to be all, or devices with a comma between them and a slash between hives, such as 0,1/2,3";
  options.flag_hives.assign(max_devices, 0);
  if (text == "all") {
    options.flag_hives.assign(max_devices, 1);
    return {};
  }
  std::uint8_t hive = 1;
  for (std::size_t at = 0; at <= text.size();) {
    const std::size_t end = std::min(text.find_first_of(",/", at), text.size());
    unsigned device = 0;
    const auto [stop, code] = std::from_chars(text.data() + at, text.data() + end, device);
    if (code != std::errc() || stop != text.data() + end) return wrong;
    if (device >= options.devices) return "names device " + std::to_string(device) + ", which there is not";
    if (options.flag_hives[device] != 0) return "names device " + std::to_string(device) + " twice";
    options.flag_hives[device] = hive;
    if (end < text.size() && text[end] == '/') ++hive;
    at = end + 1;
  }
  return {};
}

Error policy_of(std::string_view text, DeviceOptions& device) {
  std::string names;
  for (unsigned p = 0; p < core::policy_count; ++p) {
    const auto policy = static_cast<core::Policy>(p);
    if (text == core::to_string(policy)) {
      device.policy = policy;
      return {};
    }
    names += (p == 0 ? "" : p + 1 == core::policy_count ? " or " : ", ") + std::string(core::to_string(policy));
  }
  return "has to be " + names;
}

/// One of the `count` kinds of a policy, by its name.
template <typename Kind>
Error kind_of(std::string_view text, unsigned count, Kind& out) {
  std::string names;
  for (unsigned k = 0; k < count; ++k) {
    const auto kind = static_cast<Kind>(k);
    if (text == core::to_string(kind)) {
      out = kind;
      return {};
    }
    names += (k == 0 ? "" : k + 1 == count ? " or " : ", ") + std::string(core::to_string(kind));
  }
  return "has to be " + names;
}

Error prefetch_of(std::string_view text, MachineOptions& o) {
  return kind_of(text, core::prefetch_kind_count, o.prefetch);
}

Error victims_of(std::string_view text, MachineOptions& o) { return kind_of(text, core::victim_kind_count, o.victims); }

Error leave_of(std::string_view text, MachineOptions& o) { return kind_of(text, core::leave_kind_count, o.leave); }

Error reserved_of(std::int64_t value, DeviceOptions& device) {
  unsigned count = 0;
  if (Error error = count_of(value, 1, wire::max_cus, count)) return error;
  device.reserved_cus = count;
  return {};
}

Error time_of(std::int64_t value, std::optional<std::uint64_t>& out_ns) {
  std::uint64_t ns = 0;
  if (Error error = milliseconds_of(value, ns)) return error;
  out_ns = ns;
  return {};
}

// --- flags -----------------------------------------------------------------------------------------------------------

template <typename Fn>
Error flag_size(const char* name, const std::optional<std::string>& text, MachineOptions& options, Fn&& take) {
  if (!text) return {};
  const ParsedSize size = parse_size(*text);
  const Error error = size.ok() ? take(size.bytes, options) : Error(to_string(size.error));
  if (error) return std::string(name) + " '" + *text + "' " + *error;
  return {};
}

template <typename Options, typename Fn>
Error flag_word(const char* name, const std::optional<std::string>& text, Options& options, Fn&& take) {
  if (!text) return {};
  if (const Error error = take(std::string_view(*text), options))
    return std::string(name) + " '" + *text + "' " + *error;
  return {};
}

template <typename Options, typename Fn>
Error flag_count(const char* name, const std::optional<std::string>& text, Options& options, Fn&& take) {
  if (!text) return {};
  std::int64_t value = 0;
  const auto [end, code] = std::from_chars(text->data(), text->data() + text->size(), value);
  Error error;
  if (text->empty() || code != std::errc() || end != text->data() + text->size()) {
    error = "is not a whole number";
  } else {
    error = take(value, options);
  }
  if (error) return std::string(name) + " '" + *text + "' " + *error;
  return {};
}

// --- TOML ------------------------------------------------------------------------------------------------------------

using Setter = std::function<Error(const toml::node&, MachineOptions&)>;

template <typename Fn>
Setter size_key(Fn take) {
  return [take](const toml::node& node, MachineOptions& options) -> Error {
    if (const auto number = node.value_exact<std::int64_t>()) {
      if (*number < 0) return "is negative";
      return take(static_cast<std::uint64_t>(*number), options);
    }
    const auto text = node.value_exact<std::string>();
    if (!text) return "has to be a size, such as \"64M\"";
    const ParsedSize size = parse_size(*text);
    if (!size.ok()) return to_string(size.error);
    return take(size.bytes, options);
  };
}

template <typename Fn>
Setter count_key(Fn take) {
  return [take](const toml::node& node, MachineOptions& options) -> Error {
    const auto number = node.value_exact<std::int64_t>();
    if (!number) return "has to be a whole number";
    return take(*number, options);
  };
}

template <typename Fn>
Setter text_key(Fn take) {
  return [take](const toml::node& node, MachineOptions& options) -> Error {
    const auto text = node.value_exact<std::string>();
    if (!text) return "has to be text in quotation marks";
    return take(std::string_view(*text), options);
  };
}

using Table = std::map<std::string, Setter, std::less<>>;

using DeviceSetter = std::function<Error(const toml::node&, DeviceOptions&)>;
using DeviceTable = std::map<std::string, DeviceSetter, std::less<>>;

template <typename Fn>
DeviceSetter word_key(Fn take) {
  return [take](const toml::node& node, DeviceOptions& device) -> Error {
    const auto text = node.value_exact<std::string>();
    if (!text) return "has to be text in quotation marks";
    return take(std::string_view(*text), device);
  };
}

template <typename Fn>
DeviceSetter number_key(Fn take) {
  return [take](const toml::node& node, DeviceOptions& device) -> Error {
    const auto number = node.value_exact<std::int64_t>();
    if (!number) return "has to be a whole number";
    return take(*number, device);
  };
}

/// Keys of [[device]], and of [machine] for every device.
const DeviceTable& device_keys() {
  static const DeviceTable all = {
      {"hardware", word_key(hardware_of)},
      {"policy", word_key(policy_of)},
      {"reserved_cus", number_key(reserved_of)},
      {"slice_ms", number_key([](std::int64_t v, DeviceOptions& o) { return time_of(v, o.slice_ns); })},
      {"min_run_ms", number_key([](std::int64_t v, DeviceOptions& o) { return time_of(v, o.min_run_ns); })},
      {"hive", number_key([](std::int64_t v, DeviceOptions& o) {
         o.hive = 0;
         return count_of(v, 0, max_devices, *o.hive);
       })},
  };
  return all;
}

Table machine_keys(Table keys) {
  for (const auto& [name, set] : device_keys()) {
    if (name == "hive") continue;  // one for all would say nothing
    keys.emplace(name,
                 [set](const toml::node& node, MachineOptions& options) { return set(node, options.every_device); });
  }
  return keys;
}

const std::map<std::string, Table, std::less<>>& tables() {
  static const std::map<std::string, Table, std::less<>> all = {
      {"machine", machine_keys({{"vram", size_key(vram_of)},
                                {"system", size_key(system_of)},
                                {"granularity", size_key(granularity_of)},
                                {"cus", count_key(cus_of)},
                                {"devices", count_key(devices_of)},
                                {"waves_per_cu", count_key([](std::int64_t v, MachineOptions& o) {
                                   return count_of(v, 1, waves_limit, o.waves_per_cu);
                                 })}})},
      {"policy",
       {{"speculation",
         count_key([](std::int64_t v, MachineOptions& o) { return count_of(v, 0, 512, o.speculation_granules); })},
        {"prefetch", text_key(prefetch_of)},
        {"density_percent",
         count_key([](std::int64_t v, MachineOptions& o) { return count_of(v, 1, 100, o.density_percent); })},
        {"victims", text_key(victims_of)},
        {"leave", text_key(leave_of)},
        {"leave_returns",
         count_key([](std::int64_t v, MachineOptions& o) { return count_of(v, 0, 15, o.leave_returns); })},
        {"contention_threshold",
         count_key([](std::int64_t v, MachineOptions& o) { return count_of(v, 1, 1000, o.contention_threshold); })},
        {"contention_window_ms",
         count_key([](std::int64_t v, MachineOptions& o) { return milliseconds_of(v, o.contention_window_ns); })},
        {"contention_hold_ms",
         count_key([](std::int64_t v, MachineOptions& o) { return milliseconds_of(v, o.contention_hold_ns); })},
        {"contention_slice_us",
         count_key([](std::int64_t v, MachineOptions& o) { return microseconds_of(v, o.contention_slice_ns); })},
        {"copy_retries",
         count_key([](std::int64_t v, MachineOptions& o) { return count_of(v, 0, 100, o.copy_retries); })},
        {"keep_free", count_key([](std::int64_t v, MachineOptions& o) { return count_of(v, 0, 1, o.keep_free); })}}},
      {"store",
       {{"room", size_key(store_of)},
        {"memory", size_key(store_memory_of)},
        {"directory", text_key(directory_of)},
        {"codec", text_key(codec_of)},
        {"level", count_key(level_of)},
        {"io", text_key(io_of)}}},
  };
  return all;
}

template <typename Map>
std::string names(const Map& map) {
  std::string out;
  for (const auto& entry : map) out += (out.empty() ? "" : ", ") + entry.first;
  return out;
}

std::string where(const std::string& name, const toml::node& node) {
  return name + ":" + std::to_string(node.source().begin.line) + ": ";
}

Error read_devices(const toml::array& devices, const std::string& name, MachineOptions& options) {
  for (const toml::node& node : devices) {
    const toml::table* device = node.as_table();
    if (device == nullptr) return where(name, node) + "every device is a table of its own: [[device]]";
    DeviceOptions& said = options.each_device.emplace_back();
    for (const auto& [key, value] : *device) {
      const auto setter = device_keys().find(key.str());
      if (setter == device_keys().end()) {
        return where(name, value) + "no key '" + std::string(key.str()) + "' in [[device]]: there are " +
               names(device_keys());
      }
      if (const Error error = setter->second(value, said)) {
        return where(name, value) + "'device." + std::string(key.str()) + "' " + *error;
      }
    }
  }
  return {};
}

/// What the parts mean together.
Error check_devices(const MachineOptions& options) {
  if (options.each_device.size() > options.devices) {
    return std::to_string(options.each_device.size()) + " [[device]] for " + std::to_string(options.devices) +
           (options.devices == 1 ? " device" : " devices");
  }
  for (unsigned d = 0; d < options.devices; ++d) {
    const core::DeviceModel model = options.model(d);
    if (model.policy == core::Policy::reserve && model.reserved_cus >= model.cu_count) {
      return "policy reserve with " + std::to_string(model.reserved_cus) + " reserved of " +
             std::to_string(model.cu_count) + (model.cu_count == 1 ? " compute unit" : " compute units") +
             " leaves none for compute";
    }
  }
  return {};
}

/// errno, or 0.
int read_file(const std::string& path, std::string& out) {
  std::FILE* file = std::fopen(path.c_str(), "re");
  if (file == nullptr) return errno;
  char buffer[4096];
  std::size_t got = 0;
  errno = 0;
  while ((got = std::fread(buffer, 1, sizeof buffer, file)) > 0) out.append(buffer, got);
  const int e = std::ferror(file) != 0 ? (errno != 0 ? errno : EIO) : 0;
  std::fclose(file);
  return e;
}

}  // namespace

unsigned MachineOptions::cu_count() const {
  if (cus != 0) return cus;
  cpu_set_t set;
  CPU_ZERO(&set);
  const int count = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
  return static_cast<unsigned>(count) < wire::max_cus ? static_cast<unsigned>(count) : wire::max_cus;
}

std::uint64_t MachineOptions::granule_bytes() const {
  if (granularity_bytes != 0) return granularity_bytes;
  return std::clamp<std::uint64_t>(std::bit_floor(vram_bytes / 1024), 64 * 1024, block_bytes);
}

void DeviceOptions::apply_to(core::DeviceModel& model) const {
  model.preempts_while_faulting = preempts_while_faulting.value_or(model.preempts_while_faulting);
  model.retry_faults = retry_faults.value_or(model.retry_faults);
  model.policy = policy.value_or(model.policy);
  model.reserved_cus = reserved_cus.value_or(model.reserved_cus);
  model.slice_ns = slice_ns.value_or(model.slice_ns);
  model.min_run_ns = min_run_ns.value_or(model.min_run_ns);
}

core::DeviceModel MachineOptions::model(unsigned device) const {
  core::DeviceModel model;
  model.cu_count = cu_count();
  every_device.apply_to(model);
  if (device < each_device.size()) each_device[device].apply_to(model);
  flag_device.apply_to(model);
  return model;
}

std::vector<std::uint8_t> MachineOptions::hives() const {
  std::vector<std::uint8_t> hives(devices, 0);
  for (unsigned d = 0; d < devices; ++d) {
    if (!flag_hives.empty()) {
      hives[d] = flag_hives[d];
    } else if (d < each_device.size()) {
      hives[d] = static_cast<std::uint8_t>(each_device[d].hive.value_or(0));
    }
  }
  return hives;
}

std::uint64_t MachineOptions::store_room_bytes() const {
  return system_bytes == 0 ? 0 : store_bytes.value_or(8 * system_bytes);
}

linux::StoreConfig MachineOptions::store_config() const {
  linux::StoreConfig config;
  config.codec = store_codec;
  config.level = store_level;
  config.io = store_io;
  const std::uint64_t room = store_room_bytes();
  if (room == 0) return config;
  config.memory_bytes =
      std::min(store_memory_bytes.value_or(std::max(system_bytes / 5, store_memory_least)), std::max(room, page_bytes));
  config.directory = store_directory.value_or("/var/tmp");
  // No page takes more of the file than itself.
  config.file_bytes = config.directory.empty() ? 0 : room;
  return config;
}

core::Config MachineOptions::core_config() const {
  core::Config config;
  for (unsigned d = 0; d < devices; ++d) config.models.push_back(model(d));
  config.device_count = devices;
  config.hives = hives();
  config.vram_pages = vram_bytes / page_bytes;
  config.granularity_pages = static_cast<unsigned>(granule_bytes() / page_bytes);
  config.contention_threshold = contention_threshold;
  config.contention_window_ns = contention_window_ns;
  config.contention_hold_ns = contention_hold_ns;
  config.contention_slice_ns = contention_slice_ns;
  config.copy_retries = copy_retries;
  config.speculation_granules = speculation_granules;
  config.prefetch = prefetch;
  config.density_percent = density_percent;
  config.victims = victims;
  config.leave = leave;
  config.leave_returns = leave_returns;
  config.waves_per_cu = waves_per_cu;
  config.system_pages = system_bytes / page_bytes;
  config.store_pages = store_room_bytes() / page_bytes;
  return config;
}

std::optional<std::string> read_toml(std::string_view text, const std::string& name, MachineOptions& options) {
  toml::table document;
  try {
    document = toml::parse(text, name);
  } catch (const toml::parse_error& e) {
    return name + ":" + std::to_string(e.source().begin.line) + ": " + std::string(e.description());
  }
  for (const auto& [table_name, node] : document) {
    if (table_name.str() == "device" && node.is_array()) {
      if (const Error error = read_devices(*node.as_array(), name, options)) return error;
      continue;
    }
    const auto known = tables().find(table_name.str());
    if (known == tables().end() || !node.is_table()) {
      return where(name, node) + "'" + std::string(table_name.str()) + "' is not a table known here: there are " +
             names(tables()) + ", and [[device]]";
    }
    for (const auto& [key, value] : *node.as_table()) {
      const auto setter = known->second.find(key.str());
      if (setter == known->second.end()) {
        return where(name, value) + "no key '" + std::string(key.str()) + "' in [" + known->first + "]: there are " +
               names(known->second);
      }
      if (const Error error = setter->second(value, options)) {
        return where(name, value) + "'" + known->first + "." + std::string(key.str()) + "' " + *error;
      }
    }
  }
  return {};
}

std::optional<std::string> read_options(const MachineFlags& flags, MachineOptions& options) {
  if (flags.config) {
    std::string text;
    if (const int e = read_file(*flags.config, text); e != 0) {
      return "cannot read --config '" + *flags.config + "': " + std::strerror(e);
    }
    if (auto error = read_toml(text, *flags.config, options)) return error;
  }
  if (auto error = flag_size("--vram", flags.vram, options, vram_of)) return error;
  if (auto error = flag_size("--granularity", flags.granularity, options, granularity_of)) return error;
  if (auto error = flag_count("--cus", flags.cus, options, cus_of)) return error;
  if (auto error = flag_size("--system", flags.system, options, system_of)) return error;
  if (auto error = flag_size("--store", flags.store, options, store_of)) return error;
  if (auto error = flag_size("--store-memory", flags.store_memory, options, store_memory_of)) return error;
  if (auto error = flag_word("--store-dir", flags.store_directory, options, directory_of)) return error;
  if (auto error = flag_word("--prefetch", flags.prefetch, options, prefetch_of)) return error;
  if (auto error = flag_word("--victims", flags.victims, options, victims_of)) return error;
  if (auto error = flag_word("--leave", flags.leave, options, leave_of)) return error;
  if (auto error = flag_word("--store-codec", flags.store_codec, options, codec_of)) return error;
  if (auto error = flag_word("--store-io", flags.store_io, options, io_of)) return error;
  if (auto error = flag_count("--devices", flags.devices, options, devices_of)) return error;
  if (auto error = flag_count("--reserved-cus", flags.reserved_cus, options.flag_device, reserved_of)) return error;
  if (auto error = flag_word("--hive", flags.hive, options, hives_of)) return error;
  if (auto error = flag_word("--hardware", flags.hardware, options.flag_device, hardware_of)) return error;
  if (auto error = flag_word("--policy", flags.policy, options.flag_device, policy_of)) return error;
  return check_devices(options);
}

namespace {
/// "; devices 0, 1 linked, 2, 3 linked", or nothing.
std::string hive_text(const MachineOptions& options) {
  std::map<std::uint8_t, std::vector<unsigned>> members;
  const std::vector<std::uint8_t> hives = options.hives();
  for (unsigned d = 0; d < hives.size(); ++d) {
    if (hives[d] != 0) members[hives[d]].push_back(d);
  }
  std::string text;
  for (const auto& [hive, devices] : members) {
    if (devices.size() < 2) continue;
    text += text.empty() ? "; hives " : " and ";
    for (std::size_t i = 0; i < devices.size(); ++i) text += (i == 0 ? "" : "-") + std::to_string(devices[i]);
  }
  return text;
}
}  // namespace

std::string machine_line(const MachineOptions& options) {
  const unsigned cus = options.cu_count();
  return std::to_string(options.devices) + (options.devices == 1 ? " device, " : " devices, each ") +
         format_size(options.vram_bytes) + " VRAM, " + std::to_string(cus) + (cus == 1 ? " CU, " : " CUs, ") +
         "granules of " + format_size(options.granule_bytes()) + hive_text(options) +
         (options.system_bytes == 0 ? ""
                                    : "; " + format_size(options.system_bytes) + " of system memory, " +
                                          format_size(options.store_room_bytes()) + " beneath it");
}

}  // namespace ferry::manager
