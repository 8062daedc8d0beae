// The public face of the wait graph (include/ferry/progress.h): checks what comes from outside, one lock a model, and
// hands out reports. Owns no rule of its own beyond which kind of class keeps which.
// Runs on whichever thread calls; callbacks run there too, after the lock is given back.
#include <ferry/progress.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <mutex>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "graph/graph.h"

using ferry::graph::Circle;
using ferry::graph::Graph;
using ferry::graph::Needs;
using ferry::graph::NodeId;
using ferry::graph::Report;

struct ferry_progress {
  std::mutex mutex;  // guards all below; never held across a callback
  Graph graph;
  std::vector<ferry_progress_kind> kinds;  // by class
  std::deque<Report> reports;
  ferry_progress_callback callback = nullptr;
  void* user = nullptr;
};

namespace {

static_assert(FERRY_PROGRESS_CLASSES_MAX == ferry::graph::max_classes);
static_assert(FERRY_PROGRESS_UNNUMBERED == ferry::graph::unnumbered);
static_assert(static_cast<int>(Report::What::circle) == FERRY_PROGRESS_CIRCLE);
static_assert(static_cast<int>(Report::What::class_circle) == FERRY_PROGRESS_CLASS_CIRCLE);
static_assert(static_cast<int>(Report::What::wait_in_section) == FERRY_PROGRESS_WAIT_IN_SECTION);
static_assert(static_cast<int>(Report::What::never_signalled) == FERRY_PROGRESS_NEVER_SIGNALLED);
static_assert(static_cast<int>(Report::What::signalled_twice) == FERRY_PROGRESS_SIGNALLED_TWICE);
static_assert(static_cast<int>(Report::What::signal_outside) == FERRY_PROGRESS_SIGNAL_OUTSIDE);

ferry_progress_what what_of(const Report& report) { return static_cast<ferry_progress_what>(report.what); }

bool is_class(const ferry_progress& model, ferry_progress_class cls) {
  return cls >= 0 && static_cast<std::size_t>(cls) < model.kinds.size();
}

std::size_t copy_out(const std::string& text, char* buffer, std::size_t buffer_bytes) {
  if (buffer != nullptr && buffer_bytes != 0) {
    const std::size_t bytes = std::min(text.size(), buffer_bytes - 1);
    std::memcpy(buffer, text.data(), bytes);
    buffer[bytes] = '\0';
  }
  return text.size();
}

/// Does `work` under the model's lock, then hands out what it led to. `nodes` have to exist.
template <typename Work>
ferry_progress_result change(ferry_progress* model, std::initializer_list<NodeId> nodes, Work work) {
  if (model == nullptr) return FERRY_PROGRESS_BAD_ARGUMENT;
  try {
    std::vector<Report> told;
    ferry_progress_callback callback = nullptr;
    void* user = nullptr;
    {
      const std::lock_guard lock(model->mutex);
      for (const NodeId node : nodes) {
        if (!model->graph.exists(node)) return FERRY_PROGRESS_GONE;
      }
      const ferry_progress_result result = work();
      if (result < 0 || !model->graph.has_reports()) return result;
      told = model->graph.take_reports();
      callback = model->callback;
      user = model->user;
      if (callback == nullptr) {
        for (Report& report : told) {
          if (model->reports.size() < Graph::reports_max) model->reports.push_back(std::move(report));
        }
        return FERRY_PROGRESS_REPORTED;
      }
    }
    for (const Report& report : told) callback(user, what_of(report), report.text.c_str());
    return FERRY_PROGRESS_REPORTED;
  } catch (const std::bad_alloc&) {
    return FERRY_PROGRESS_NO_MEMORY;
  }
}

/// The length of what `words` returns under the lock.
template <typename Words>
std::size_t tell(ferry_progress* model, char* buffer, std::size_t buffer_bytes, Words words) {
  if (buffer != nullptr && buffer_bytes != 0) buffer[0] = '\0';
  if (model == nullptr) return 0;
  try {
    const std::lock_guard lock(model->mutex);
    return copy_out(words(), buffer, buffer_bytes);
  } catch (const std::bad_alloc&) {
    return 0;
  }
}

const char* how_or_default(const char* how) { return how == nullptr ? "waits for" : how; }

}  // namespace

extern "C" {

const char* ferry_progress_what_text(ferry_progress_what what) {
  switch (what) {
    case FERRY_PROGRESS_CIRCLE: return "deadlock";
    case FERRY_PROGRESS_CLASS_CIRCLE: return "possible deadlock";
    case FERRY_PROGRESS_WAIT_IN_SECTION: return "forbidden wait before a signal";
    case FERRY_PROGRESS_NEVER_SIGNALLED: return "fence never signalled";
    case FERRY_PROGRESS_SIGNALLED_TWICE: return "fence signalled twice";
    case FERRY_PROGRESS_SIGNAL_OUTSIDE: return "fence signalled without being published";
  }
  return "unknown";
}

ferry_progress* ferry_progress_create(void) {
  try {
    return new ferry_progress;
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

void ferry_progress_destroy(ferry_progress* model) { delete model; }

ferry_progress_class ferry_progress_define(ferry_progress* model, ferry_progress_kind kind, const char* name) {
  if (name == nullptr || kind < FERRY_PROGRESS_WORK || kind > FERRY_PROGRESS_USER) return FERRY_PROGRESS_BAD_ARGUMENT;
  ferry_progress_class made = 0;
  const ferry_progress_result result = change(model, {}, [&] {
    if (model->kinds.size() == FERRY_PROGRESS_CLASSES_MAX) return FERRY_PROGRESS_FULL;
    model->kinds.reserve(FERRY_PROGRESS_CLASSES_MAX);
    const bool forbidden = kind == FERRY_PROGRESS_RESERVATION || kind == FERRY_PROGRESS_MEMORY ||
                           kind == FERRY_PROGRESS_FAULT || kind == FERRY_PROGRESS_USER;
    const auto cls = model->graph.define(name, forbidden ? Graph::InSection::forbidden : Graph::InSection::allowed);
    model->kinds.push_back(kind);
    if (kind == FERRY_PROGRESS_ENGINE || kind == FERRY_PROGRESS_LOCK || kind == FERRY_PROGRESS_RESERVATION) {
      model->graph.resource(cls);
    }
    if (kind == FERRY_PROGRESS_FENCE) model->graph.ordered(cls, cls);
    made = cls;
    return FERRY_PROGRESS_OK;
  });
  return result < 0 ? static_cast<ferry_progress_class>(result) : made;
}

ferry_progress_result ferry_progress_ordered(ferry_progress* model, ferry_progress_class from,
                                             ferry_progress_class to) {
  return change(model, {}, [&] {
    if (!is_class(*model, from) || !is_class(*model, to)) return FERRY_PROGRESS_BAD_ARGUMENT;
    model->graph.ordered(static_cast<ferry::graph::ClassId>(from), static_cast<ferry::graph::ClassId>(to));
    return FERRY_PROGRESS_OK;
  });
}

ferry_progress_node ferry_progress_add(ferry_progress* model, ferry_progress_class cls, uint64_t number,
                                       unsigned flags) {
  ferry_progress_node node = FERRY_PROGRESS_NONE;
  static_cast<void>(change(model, {}, [&] {
    if (!is_class(*model, cls) || (flags & ~FERRY_PROGRESS_ANY) != 0) return FERRY_PROGRESS_BAD_ARGUMENT;
    node = model->graph.add(static_cast<ferry::graph::ClassId>(cls), number,
                            (flags & FERRY_PROGRESS_ANY) != 0 ? Needs::any : Needs::all);
    return FERRY_PROGRESS_OK;
  }));
  return node;
}

ferry_progress_result ferry_progress_describe(ferry_progress* model, ferry_progress_node node, const char* words) {
  return change(model, {node}, [&] {
    model->graph.describe(node, std::string_view(words == nullptr ? "" : words));
    return FERRY_PROGRESS_OK;
  });
}

ferry_progress_result ferry_progress_remove(ferry_progress* model, ferry_progress_node node) {
  return change(model, {node}, [&] {
    model->graph.remove(node);
    return FERRY_PROGRESS_OK;
  });
}

ferry_progress_result ferry_progress_wait(ferry_progress* model, ferry_progress_node from, ferry_progress_node to,
                                          const char* how) {
  return change(model, {from, to}, [&] {
    static_cast<void>(model->graph.wait(from, to, how_or_default(how)));
    return FERRY_PROGRESS_OK;
  });
}

ferry_progress_result ferry_progress_wait_any(ferry_progress* model, ferry_progress_node from,
                                              const ferry_progress_node* to, size_t count, const char* how) {
  if (to == nullptr && count != 0) return FERRY_PROGRESS_BAD_ARGUMENT;
  return change(model, {from}, [&] {
    for (std::size_t i = 0; i < count; ++i) {
      if (!model->graph.exists(to[i])) return FERRY_PROGRESS_GONE;
    }
    static_cast<void>(model->graph.wait_any(from, {to, count}, how_or_default(how)));
    return FERRY_PROGRESS_OK;
  });
}

ferry_progress_result ferry_progress_done(ferry_progress* model, ferry_progress_node from, ferry_progress_node to) {
  return change(model, {from, to}, [&] {
    model->graph.done(from, to);
    return FERRY_PROGRESS_OK;
  });
}

ferry_progress_result ferry_progress_done_all(ferry_progress* model, ferry_progress_node from) {
  return change(model, {from}, [&] {
    model->graph.done_all(from);
    return FERRY_PROGRESS_OK;
  });
}

size_t ferry_progress_would_close(ferry_progress* model, ferry_progress_node from, ferry_progress_node to, char* buffer,
                                  size_t buffer_bytes) {
  return tell(model, buffer, buffer_bytes, [&] { return model->graph.sentences(model->graph.would_close(from, to)); });
}

ferry_progress_result ferry_progress_acquire(ferry_progress* model, ferry_progress_node who, ferry_progress_node what) {
  return change(model, {who, what}, [&] {
    // As if it had waited for a moment: the classes remember what it held then.
    static_cast<void>(model->graph.wait(who, what));
    while (model->graph.waits(who, what)) model->graph.done(who, what);
    static_cast<void>(model->graph.wait(what, who, "is held by"));
    return FERRY_PROGRESS_OK;
  });
}

ferry_progress_result ferry_progress_release(ferry_progress* model, ferry_progress_node who, ferry_progress_node what) {
  return change(model, {who, what}, [&] {
    model->graph.done(what, who);
    return FERRY_PROGRESS_OK;
  });
}

ferry_progress_result ferry_progress_publish(ferry_progress* model, ferry_progress_node fence) {
  return change(model, {fence}, [&] {
    if (model->kinds[model->graph.class_of(fence)] != FERRY_PROGRESS_FENCE) return FERRY_PROGRESS_BAD_ARGUMENT;
    model->graph.begin_section(fence);
    return FERRY_PROGRESS_OK;
  });
}

ferry_progress_result ferry_progress_signal(ferry_progress* model, ferry_progress_node fence) {
  return change(model, {fence}, [&] {
    if (model->kinds[model->graph.class_of(fence)] != FERRY_PROGRESS_FENCE) return FERRY_PROGRESS_BAD_ARGUMENT;
    model->graph.end_section(fence);
    model->graph.let_go(fence);
    model->graph.done_all(fence);
    return FERRY_PROGRESS_OK;
  });
}

ferry_progress_result ferry_progress_finish(ferry_progress* model) {
  return change(model, {}, [&] {
    model->graph.expect_no_sections();
    return FERRY_PROGRESS_OK;
  });
}

ferry_progress_result ferry_progress_set_callback(ferry_progress* model, ferry_progress_callback callback, void* user) {
  if (model == nullptr) return FERRY_PROGRESS_BAD_ARGUMENT;
  std::deque<Report> waiting;
  {
    const std::lock_guard lock(model->mutex);
    model->callback = callback;
    model->user = user;
    if (callback != nullptr) waiting.swap(model->reports);
  }
  for (const Report& report : waiting) callback(user, what_of(report), report.text.c_str());
  return FERRY_PROGRESS_OK;
}

size_t ferry_progress_take(ferry_progress* model, ferry_progress_what* what, char* buffer, size_t buffer_bytes) {
  return tell(model, buffer, buffer_bytes, [&] {
    if (model->reports.empty()) return std::string();
    Report& report = model->reports.front();
    if (what != nullptr) *what = what_of(report);
    if (buffer == nullptr || report.text.size() >= buffer_bytes) return report.text;
    std::string text = std::move(report.text);
    model->reports.pop_front();
    return text;
  });
}

size_t ferry_progress_stuck(ferry_progress* model, ferry_progress_node node, char* buffer, size_t buffer_bytes) {
  return tell(model, buffer, buffer_bytes, [&] { return model->graph.sentences(model->graph.stuck(node)); });
}

size_t ferry_progress_waits(ferry_progress* model, char* buffer, size_t buffer_bytes) {
  return tell(model, buffer, buffer_bytes, [&] { return model->graph.dump(); });
}

}  // extern "C"
