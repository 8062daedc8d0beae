#include "base/status.h"

namespace ferry {

const char* to_string(Code code) {
  switch (code) {
    case Code::ok: return "ok";
    case Code::bad_range: return "bad range";
    case Code::not_allocated: return "not allocated";
    case Code::overlap: return "already allocated";
    case Code::not_held: return "no such object of this application";
    case Code::in_use: return "taken already";
    case Code::would_deadlock: return "the wait would close a loop";
    case Code::bad_message: return "message not understood";
    case Code::bad_version: return "other protocol version";
    case Code::not_permitted: return "not permitted";
    case Code::no_memory: return "out of memory";
    case Code::no_mappings: return "out of mappings";
    case Code::no_space: return "no space left";
    case Code::device_lost: return "device lost";
    case Code::client_gone: return "application gone";
    case Code::manager_lost: return "manager lost";
    case Code::timed_out: return "timed out";
    case Code::io_error: return "input/output error";
    case Code::kernel_fault: return "kernel fault";
    case Code::kernel_threw: return "exception in kernel";
    case Code::cancelled: return "cancelled";
    case Code::unsupported: return "unsupported here";
  }
  return "unknown code";
}

}  // namespace ferry
