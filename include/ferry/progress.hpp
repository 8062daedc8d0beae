/// @file progress.hpp
/// The C++ interface of libferry_progress: does my driver's fence model deadlock? What the words mean, and the rules,
/// are in progress.h.
///
/// Errors: std::bad_alloc for want of memory; std::invalid_argument for what can only be a mistake (a node of another
/// model, a class too many). Threads: as in progress.h; a Node is moved and destroyed by one thread at a time.
/// Ownership: a Node is removed from its model with its object, which must not outlive the model's.
#pragma once

#include <ferry/progress.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace ferry::progress {

enum class Kind {
  work = FERRY_PROGRESS_WORK,
  fence = FERRY_PROGRESS_FENCE,
  engine = FERRY_PROGRESS_ENGINE,
  lock = FERRY_PROGRESS_LOCK,
  reservation = FERRY_PROGRESS_RESERVATION,
  memory = FERRY_PROGRESS_MEMORY,
  fault = FERRY_PROGRESS_FAULT,
  user = FERRY_PROGRESS_USER,
};

enum class What {
  circle = FERRY_PROGRESS_CIRCLE,
  class_circle = FERRY_PROGRESS_CLASS_CIRCLE,
  wait_in_section = FERRY_PROGRESS_WAIT_IN_SECTION,
  never_signalled = FERRY_PROGRESS_NEVER_SIGNALLED,
  signalled_twice = FERRY_PROGRESS_SIGNALLED_TWICE,
  signal_outside = FERRY_PROGRESS_SIGNAL_OUTSIDE,
};

/// "deadlock", "possible deadlock", ... Static storage.
inline const char* to_string(What what) { return ferry_progress_what_text(static_cast<ferry_progress_what>(what)); }

/// When a node that waits for several may go on.
enum class Needs { all, any };

struct Report {
  What what = What::circle;
  std::string text;
};

inline constexpr std::uint64_t unnumbered = FERRY_PROGRESS_UNNUMBERED;

/// Names a class of a model. Plain value.
class Class {
 public:
  Class() = default;
  explicit Class(ferry_progress_class id) : id_(id) {}
  [[nodiscard]] ferry_progress_class id() const { return id_; }

 private:
  ferry_progress_class id_ = -1;
};

/// @cond
namespace detail {
inline bool check(ferry_progress_result result) {
  switch (result) {
    case FERRY_PROGRESS_OK: return false;
    case FERRY_PROGRESS_REPORTED: return true;
    case FERRY_PROGRESS_NO_MEMORY: throw std::bad_alloc();
    case FERRY_PROGRESS_GONE: throw std::invalid_argument("ferry::progress: no such node");
    case FERRY_PROGRESS_FULL: throw std::invalid_argument("ferry::progress: too many classes");
    case FERRY_PROGRESS_BAD_ARGUMENT: break;
  }
  throw std::invalid_argument("ferry::progress: bad argument");
}

template <typename Tell>
std::string text(Tell tell) {
  std::string out(256, '\0');
  while (true) {
    const std::size_t length = tell(out.data(), out.size());
    if (length < out.size()) {
      out.resize(length);
      return out;
    }
    out.resize(length + 1);
  }
}
}  // namespace detail
/// @endcond

/// One thing that waits or is waited for. Functions that return bool: true if the call led to a report.
class Node {
 public:
  Node() = default;
  Node(Node&& other) noexcept
      : model_(std::exchange(other.model_, nullptr)), id_(std::exchange(other.id_, FERRY_PROGRESS_NONE)) {}
  Node& operator=(Node&& other) noexcept {
    if (this != &other) {
      remove();
      model_ = std::exchange(other.model_, nullptr);
      id_ = std::exchange(other.id_, FERRY_PROGRESS_NONE);
    }
    return *this;
  }
  ~Node() { remove(); }

  [[nodiscard]] ferry_progress_node id() const { return id_; }
  bool describe(const std::string& words) { return detail::check(ferry_progress_describe(model_, id_, words.c_str())); }

  /// `how` has to stay valid as long as the model.
  bool wait(const Node& other, const char* how = "waits for") {
    return detail::check(ferry_progress_wait(model_, id_, other.id_, how));
  }
  bool wait_any(std::initializer_list<const Node*> others, const char* how = "waits for") {
    std::vector<ferry_progress_node> ids;
    for (const Node* other : others) ids.push_back(other->id_);
    return detail::check(ferry_progress_wait_any(model_, id_, ids.data(), ids.size(), how));
  }
  bool done(const Node& other) { return detail::check(ferry_progress_done(model_, id_, other.id_)); }
  bool done_all() { return detail::check(ferry_progress_done_all(model_, id_)); }
  /// Empty: it would not.
  [[nodiscard]] std::string would_close(const Node& other) const {
    return detail::text([&](char* buffer, std::size_t bytes) {
      return ferry_progress_would_close(model_, id_, other.id_, buffer, bytes);
    });
  }
  /// Empty: it is not stuck.
  [[nodiscard]] std::string stuck() const {
    return detail::text(
        [&](char* buffer, std::size_t bytes) { return ferry_progress_stuck(model_, id_, buffer, bytes); });
  }

  /// This node holds `what`, an engine or a lock.
  bool acquire(const Node& what) { return detail::check(ferry_progress_acquire(model_, id_, what.id_)); }
  bool release(const Node& what) { return detail::check(ferry_progress_release(model_, id_, what.id_)); }

  /// Of fences.
  bool publish() { return detail::check(ferry_progress_publish(model_, id_)); }
  bool signal() { return detail::check(ferry_progress_signal(model_, id_)); }

 private:
  friend class Model;
  Node(ferry_progress* model, ferry_progress_node id) : model_(model), id_(id) {}
  void remove() {
    if (model_ != nullptr) static_cast<void>(ferry_progress_remove(model_, id_));
  }

  ferry_progress* model_ = nullptr;
  ferry_progress_node id_ = FERRY_PROGRESS_NONE;
};

/// Who waits for whom in one driver, or in several that wait for each other.
class Model {
 public:
  Model() : model_(ferry_progress_create()) {
    if (model_ == nullptr) throw std::bad_alloc();
  }

  [[nodiscard]] Class define(Kind kind, const std::string& name) {
    const ferry_progress_class cls =
        ferry_progress_define(model_.get(), static_cast<ferry_progress_kind>(kind), name.c_str());
    if (cls < 0) detail::check(static_cast<ferry_progress_result>(cls));
    return Class(cls);
  }
  void ordered(Class from, Class to) { detail::check(ferry_progress_ordered(model_.get(), from.id(), to.id())); }
  [[nodiscard]] Node add(Class cls, std::uint64_t number = unnumbered, Needs needs = Needs::all) {
    const ferry_progress_node node =
        ferry_progress_add(model_.get(), cls.id(), number, needs == Needs::any ? FERRY_PROGRESS_ANY : 0U);
    if (node == FERRY_PROGRESS_NONE) throw std::invalid_argument("ferry::progress: no such class, or no memory");
    return Node(model_.get(), node);
  }

  /// Called on the thread whose call led to a report. It must not throw. Not while other threads use the model.
  void on_report(std::function<void(const Report&)> callback) {
    detail::check(ferry_progress_set_callback(model_.get(), nullptr, nullptr));
    callback_ = std::make_unique<std::function<void(const Report&)>>(std::move(callback));
    if (!*callback_) return;
    detail::check(ferry_progress_set_callback(
        model_.get(),
        [](void* user, ferry_progress_what what, const char* text) {
          (*static_cast<std::function<void(const Report&)>*>(user))({static_cast<What>(what), text});
        },
        callback_.get()));
  }
  /// Reports since the last call, oldest first; none while there is a callback.
  [[nodiscard]] std::vector<Report> take() {
    std::vector<Report> reports;
    while (true) {
      ferry_progress_what what = FERRY_PROGRESS_CIRCLE;
      std::string text = detail::text(
          [&](char* buffer, std::size_t bytes) { return ferry_progress_take(model_.get(), &what, buffer, bytes); });
      if (text.empty()) return reports;
      reports.push_back({static_cast<What>(what), std::move(text)});
    }
  }
  /// Everything that is waited for now, a line a wait.
  [[nodiscard]] std::string waits() const {
    return detail::text(
        [&](char* buffer, std::size_t bytes) { return ferry_progress_waits(model_.get(), buffer, bytes); });
  }
  /// The run is over: fences that are still owed a signal are reported.
  bool finish() { return detail::check(ferry_progress_finish(model_.get())); }
  [[nodiscard]] ferry_progress* get() const { return model_.get(); }

 private:
  struct Destroy {
    void operator()(ferry_progress* model) const { ferry_progress_destroy(model); }
  };
  std::unique_ptr<std::function<void(const Report&)>> callback_;  // outlives the model
  std::unique_ptr<ferry_progress, Destroy> model_;
};

}  // namespace ferry::progress
