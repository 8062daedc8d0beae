// The mutex of everything that runs on threads: src/linux, src/device, src/client, src/manager.
// In builds without NDEBUG every lock belongs to a class with a rank. A thread takes locks in rising rank only; what was
// ever held while what was taken is remembered by class for the whole run, and a circle among classes ends the program
// with a sentence for each side, although nobody has met anybody yet. In other builds it is a std::mutex.
// Where a lock would be wrong altogether (signal handlers, threads that serve those who hold locks), NoLocks says so.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <source_location>

#ifndef FERRY_TRACK_LOCKS
#ifdef NDEBUG
#define FERRY_TRACK_LOCKS 0
#else
#define FERRY_TRACK_LOCKS 1
#endif
#endif

namespace ferry::linux {

/// The order of taking, from the first to the last. A thread that holds one takes only those below it.
enum class LockRank : std::uint8_t {
  unranked = 0,  ///< no order is known; circles of classes are found all the same
  session = 10,  ///< opens the session: starts managers and processes
  queue_set = 20,
  queue = 30,
  notice = 32,  ///< fences that an eventfd is waiting for
  object = 35,  ///< a buffer, a fence: asks the manager while held
  kept = 36,    ///< memory that pins keep: asks the manager while held
  files = 38,   ///< which files devices have: asks the manager while held
  device = 40,  ///< a device's files and process: asks the manager and the zygote
  zygote = 50,
  request_text = 60,
  request_send = 70,
  output = 80,
  leaf = 100,  ///< held for some instructions; nothing is taken under it
};

/// One for each kind of lock, with static storage.
class LockClass {
 public:
  constexpr LockClass(const char* name, LockRank rank) : name_(name), rank_(rank) {}
  LockClass(const LockClass&) = delete;
  LockClass& operator=(const LockClass&) = delete;
  [[nodiscard]] const char* name() const { return name_; }
  [[nodiscard]] LockRank rank() const { return rank_; }

 private:
  friend class LockTracker;
  const char* name_;
  LockRank rank_;
  std::atomic<std::uint8_t> number_{0};  ///< from 1 on, given at the first lock; 0: none yet
};

/// What this thread holds, and what all threads ever held while they took what. Neither allocates nor blocks, so it may
/// run anywhere. A broken rule is told on stderr and ends the program.
class LockTracker {
 public:
  static void before_lock(const void* mutex, LockClass& cls, const std::source_location& where);
  static void locked(const void* mutex, LockClass& cls, const std::source_location& where);
  static void unlocked(const void* mutex, const LockClass& cls);
  /// Returns the reason of before. nullptr: locks are allowed.
  static const char* forbid(const char* reason);

 private:
  static void check_allowed(const LockClass& cls, const std::source_location& where);
  static unsigned number_of(LockClass& cls);
};

// Both forms can be in one program, such as a test with tracking and the layers without: they are different types.
#if FERRY_TRACK_LOCKS
inline namespace tracked {

class Mutex {
 public:
  explicit constexpr Mutex(LockClass& cls) : class_(&cls) {}
  Mutex(const Mutex&) = delete;
  Mutex& operator=(const Mutex&) = delete;

  void lock(const std::source_location& where = std::source_location::current()) {
    LockTracker::before_lock(this, *class_, where);
    mutex_.lock();
    LockTracker::locked(this, *class_, where);
  }
  /// Cannot wait, so it breaks no order.
  bool try_lock(const std::source_location& where = std::source_location::current()) {
    if (!mutex_.try_lock()) return false;
    LockTracker::locked(this, *class_, where);
    return true;
  }
  void unlock() {
    LockTracker::unlocked(this, *class_);
    mutex_.unlock();
  }

 private:
  friend class Condition;
  void leave() { LockTracker::unlocked(this, *class_); }
  void enter(const std::source_location& where) { LockTracker::locked(this, *class_, where); }

  std::mutex mutex_;
  LockClass* class_;
};

/// From its beginning to its end this thread may take no lock. `reason` is static text.
class [[nodiscard]] NoLocks {
 public:
  explicit NoLocks(const char* reason) : before_(LockTracker::forbid(reason)) {}
  ~NoLocks() { LockTracker::forbid(before_); }
  NoLocks(const NoLocks&) = delete;
  NoLocks& operator=(const NoLocks&) = delete;

 private:
  const char* before_;
};

#else
inline namespace untracked {

class Mutex {
 public:
  explicit constexpr Mutex(LockClass&) {}
  Mutex(const Mutex&) = delete;
  Mutex& operator=(const Mutex&) = delete;
  void lock(const std::source_location& = std::source_location::current()) { mutex_.lock(); }
  bool try_lock(const std::source_location& = std::source_location::current()) { return mutex_.try_lock(); }
  void unlock() { mutex_.unlock(); }

 private:
  friend class Condition;
  void leave() {}
  void enter(const std::source_location&) {}

  std::mutex mutex_;
};
static_assert(sizeof(Mutex) == sizeof(std::mutex));

class [[nodiscard]] NoLocks {
 public:
  explicit NoLocks(const char*) {}
  ~NoLocks() {}
  NoLocks(const NoLocks&) = delete;
  NoLocks& operator=(const NoLocks&) = delete;
};

#endif

/// std::lock_guard that knows where it stands.
class [[nodiscard]] LockGuard {
 public:
  explicit LockGuard(Mutex& mutex, const std::source_location& where = std::source_location::current())
      : mutex_(mutex) {
    mutex_.lock(where);
  }
  ~LockGuard() { mutex_.unlock(); }
  LockGuard(const LockGuard&) = delete;
  LockGuard& operator=(const LockGuard&) = delete;

 private:
  Mutex& mutex_;
};

/// std::unique_lock that knows where it stands.
class [[nodiscard]] UniqueLock {
 public:
  UniqueLock() = default;
  explicit UniqueLock(Mutex& mutex, const std::source_location& where = std::source_location::current())
      : mutex_(&mutex) {
    lock(where);
  }
  UniqueLock(UniqueLock&& other) noexcept : mutex_(other.mutex_), owns_(other.owns_) {
    other.mutex_ = nullptr;
    other.owns_ = false;
  }
  UniqueLock& operator=(UniqueLock&& other) noexcept {
    if (this != &other) {
      if (owns_) unlock();
      mutex_ = other.mutex_;
      owns_ = other.owns_;
      other.mutex_ = nullptr;
      other.owns_ = false;
    }
    return *this;
  }
  ~UniqueLock() {
    if (owns_) unlock();
  }
  void lock(const std::source_location& where = std::source_location::current()) {
    mutex_->lock(where);
    owns_ = true;
  }
  void unlock() {
    mutex_->unlock();
    owns_ = false;
  }
  [[nodiscard]] bool owns_lock() const { return owns_; }
  [[nodiscard]] Mutex& mutex() const { return *mutex_; }

 private:
  Mutex* mutex_ = nullptr;
  bool owns_ = false;
};

/// std::condition_variable. Who waits holds nothing meanwhile, and holds the lock again afterwards.
class Condition {
 public:
  void wait(UniqueLock& lock, const std::source_location& where = std::source_location::current()) {
    Mutex& mutex = lock.mutex();
    mutex.leave();
    std::unique_lock<std::mutex> native(mutex.mutex_, std::adopt_lock);
    condition_.wait(native);
    native.release();
    mutex.enter(where);
  }
  template <typename Predicate>
  void wait(UniqueLock& lock, Predicate predicate,
            const std::source_location& where = std::source_location::current()) {
    while (!predicate()) wait(lock, where);
  }
  void notify_one() { condition_.notify_one(); }
  void notify_all() { condition_.notify_all(); }

 private:
  std::condition_variable condition_;
};

}  // namespace tracked or untracked

}  // namespace ferry::linux
