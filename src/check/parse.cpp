// The text of a scenario, line by line. Everything a later part indexes with is checked here.
#include <algorithm>
#include <set>

#include "check/scenario.h"
#include "check/words.h"

namespace ferry::check {
namespace {

std::uint32_t find_in(const std::vector<std::string>& names, const std::string& name) {
  const auto it = std::find(names.begin(), names.end(), name);
  return it == names.end() ? none : static_cast<std::uint32_t>(it - names.begin());
}

template <typename T>
std::uint32_t find_named(const std::vector<T>& things, const std::string& name) {
  for (std::uint32_t i = 0; i < things.size(); ++i) {
    if (things[i].name == name) return i;
  }
  return none;
}

class Parser {
 public:
  explicit Parser(Scenario& scenario) : s_(scenario) {}

  void line(std::string_view text) {
    Words words(text);
    if (words.empty()) return;
    if (text[0] == ' ' || text[0] == '\t') {
      if (s_.agents.empty() || !in_agent_) throw Bad("a step belongs to a thread or a wave");
      step(words, text);
    } else {
      in_agent_ = false;
      statement(words, text);
    }
    words.end();
  }

  void finish() {
    if (s_.devices.empty()) throw Bad("no device");
    if (s_.agents.empty()) throw Bad("nobody runs: no thread and no wave");
    for (std::uint32_t f = 0; f < s_.fences.size(); ++f) {
      if (!made_.contains(f)) throw Bad("fence '" + s_.fences[f] + "' is waited for, but nobody submits it");
    }
    for (const std::uint32_t w : awaited_) {
      if (!signalled_.contains(w)) throw Bad("word '" + s_.words[w] + "' is waited for, but nobody signals it");
    }
  }

 private:
  static std::string rest(std::string_view text, std::string_view keyword) {
    text.remove_prefix(std::min(text.size(), text.find(keyword) + keyword.size()));
    while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
    while (!text.empty() && (text.back() == ' ' || text.back() == '\r')) text.remove_suffix(1);
    return std::string(text);
  }

  std::uint32_t client(const std::string& name) const {
    const std::uint32_t c = find_in(s_.clients, name);
    if (c == none) throw Bad("no client is called '" + name + "'");
    return c;
  }
  DeviceId device(const std::string& word) const {
    if (s_.devices.empty()) throw Bad("no device has been declared");
    return static_cast<DeviceId>(number(word, s_.devices.size() - 1));
  }
  std::uint32_t buffer(const std::string& name) const {
    const std::uint32_t b = find_named(s_.buffers, name);
    if (b == none) throw Bad("no buffer is called '" + name + "'");
    return b;
  }
  std::uint32_t page(const std::string& name) const {
    const std::uint32_t p = find_named(s_.pages, name);
    if (p == none) throw Bad("no page is called '" + name + "'");
    return p;
  }
  static std::uint32_t intern(std::vector<std::string>& names, const std::string& name) {
    const std::uint32_t found = find_in(names, name);
    if (found != none) return found;
    names.push_back(name);
    return static_cast<std::uint32_t>(names.size() - 1);
  }
  void fresh(const std::string& name) {
    if (!names_.insert(name).second) throw Bad("'" + name + "' has been declared already");
  }
  PointName point(const std::string& word) const {
    const auto at = word.find('@');
    if (at == std::string::npos) throw Bad("'" + word + "' is no point of a timeline, such as t@1");
    const std::uint32_t t = find_named(s_.timelines, word.substr(0, at));
    if (t == none) throw Bad("no timeline is called '" + word.substr(0, at) + "'");
    return {t, number(word.substr(at + 1), 1000, 1)};
  }

  void statement(Words& w, std::string_view text) {
    const std::string key = w.next("a word");
    if (key == "title" || key == "claim") {
      if (key == "title") {
        s_.title = rest(text, key);
      } else {
        s_.claims.push_back(rest(text, key));
      }
      while (!w.empty()) (void)w.next("");
    } else if (key == "shows") {
      while (!w.empty()) {
        const std::string name = w.next("");
        const auto bug = parse_bug(name);
        if (!bug) throw Bad("no planted bug is called '" + name + "'");
        s_.shows.push_back(*bug);
      }
    } else if (key == "device") {
      device_line(w);
    } else if (key == "sweep") {
      sweep_line(w);
    } else if (key == "vram") {
      s_.vram_granules = number(w.next("a number of granules"), 64);
    } else if (key == "system") {
      s_.system_pages = number(w.next("a number of pages"), 4096, 1);
    } else if (key == "store") {
      s_.store_pages = number(w.next("a number of pages"), 1 << 20, 1);
    } else if (key == "bound") {
      bound_line(w);
    } else if (key == "strict") {
      do {
        const std::string word = w.next("a policy");
        const auto policy = parse_policy(word);
        if (!policy) throw Bad("no policy is called '" + word + "'");
        s_.strict.push_back(*policy);
      } while (!w.empty());
    } else if (key == "apart") {
      s_.apart = true;
    } else if (key == "large") {
      s_.large = true;
    } else if (key == "client") {
      while (!w.empty()) {
        s_.clients.push_back(w.next("a name"));
        fresh(s_.clients.back());
      }
      if (s_.clients.size() > 8) throw Bad("more than 8 clients");
    } else if (key == "page") {
      page_line(w);
    } else if (key == "buffer") {
      buffer_line(w);
    } else if (key == "timeline") {
      TimelineDef def;
      def.name = w.next("a name");
      fresh(def.name);
      w.need(":");
      while (!w.empty()) def.clients.push_back(client(w.next("a client")));
      if (def.clients.empty()) throw Bad("a timeline belongs to a client");
      s_.timelines.push_back(def);
    } else if (key == "wave" || key == "thread") {
      agent_line(w, key == "wave");
    } else if (key == "expect") {
      expect_line(w);
    } else {
      throw Bad("'" + key + "' is not understood");
    }
  }

  void device_line(Words& w) {
    const auto d = number(w.next("the device's number"), max_devices - 1);
    if (d != s_.devices.size()) throw Bad("devices are numbered 0, 1, ...");
    DeviceDef def;
    def.model.cu_count = 1;
    while (!w.empty()) {
      const std::string key = w.next("");
      const std::string value = w.next("a value");
      if (key == "units") {
        def.model.cu_count = static_cast<unsigned>(number(value, 8, 1));
        def.fixed_units = true;
      } else if (key == "preempts") {
        def.model.preempts_while_faulting = yes_no(value);
        def.fixed_preempts = true;
      } else if (key == "retry") {
        def.model.retry_faults = yes_no(value);
        def.fixed_retry = true;
      } else if (key == "copy") {
        def.model.copy_slots = static_cast<unsigned>(number(value, 8, 1));
      } else if (key == "video") {
        def.model.video_slots = static_cast<unsigned>(number(value, 8, 1));
      } else if (key == "reserved") {
        def.model.reserved_cus = static_cast<unsigned>(number(value, 8, 1));
      } else if (key == "repair") {
        def.model.repair_reserve_granules = number(value, 64);
      } else if (key == "slice") {
        def.model.slice_ns = duration_ns(value);
      } else if (key == "min_run") {
        def.model.min_run_ns = duration_ns(value);
      } else if (key == "policy") {
        def.policy = parse_policy(value);
        if (!def.policy) throw Bad("no policy is called '" + value + "'");
      } else {
        throw Bad("a device has no '" + key + "'");
      }
    }
    s_.devices.push_back(def);
  }

  void sweep_line(Words& w) {
    const std::string key = w.next("what is swept");
    // Which is then no longer fixed, whatever the device's line says.
    while (!w.empty()) {
      const std::string value = w.next("a value");
      if (key == "units") {
        s_.sweep_units.push_back(static_cast<unsigned>(number(value, 8, 1)));
        for (auto& d : s_.devices) d.fixed_units = false;
      } else if (key == "preempts") {
        s_.sweep_preempts.push_back(yes_no(value));
        for (auto& d : s_.devices) d.fixed_preempts = false;
      } else if (key == "retry") {
        s_.sweep_retry.push_back(yes_no(value));
        for (auto& d : s_.devices) d.fixed_retry = false;
      } else {
        throw Bad("'" + key + "' cannot be swept: units, preempts or retry");
      }
    }
  }

  void bound_line(Words& w) {
    const std::string key = w.next("what is bounded");
    const auto value = static_cast<unsigned>(number(w.next("a number"), 100));
    if (key == "timers") {
      s_.early_ticks = value;
    } else if (key == "failures") {
      s_.failures = value;
      w.need("of");
      while (!w.empty()) {
        const std::string verb = w.next("a verb");
        bool found = false;
        for (unsigned i = 0; i < core::verb_count; ++i) {
          if (verb == core::to_string(static_cast<core::Verb>(i))) {
            s_.failing.push_back(static_cast<core::Verb>(i));
            found = true;
          }
        }
        if (!found) throw Bad("no action is called '" + verb + "'");
      }
    } else {
      throw Bad("'" + key + "' has no bound: timers or failures");
    }
  }

  void page_line(Words& w) {
    std::vector<PageDef> defs;
    while (!w.empty() && w.peek() != ":") {
      defs.emplace_back().name = w.next("");
      fresh(defs.back().name);
    }
    w.need(":");
    const std::uint32_t owner = client(w.next("a client"));
    bool stays_home = false;
    bool later = false;
    bool read_mostly = false;
    while (!w.empty()) {
      const std::string word = w.next("");
      if (word == "system") {
        stays_home = true;
      } else if (word == "read-mostly") {
        read_mostly = true;
      } else if (word == "later") {
        later = true;
      } else {
        throw Bad("a page has no '" + word + "'");
      }
    }
    for (PageDef& def : defs) {
      def.client = owner;
      def.stays_home = stays_home;
      def.later = later;
      def.read_mostly = read_mostly;
      s_.pages.push_back(def);
    }
    if (s_.pages.size() > 32) throw Bad("more than 32 pages");
  }

  void buffer_line(Words& w) {
    BufferDef def;
    def.name = w.next("a name");
    fresh(def.name);
    w.need(":");
    while (find_in(s_.clients, w.peek()) != none) def.clients.push_back(client(w.next("")));
    if (def.clients.empty()) throw Bad("a buffer belongs to a client");
    while (!w.empty()) {
      const std::string key = w.next("");
      if (key == "pages") {
        def.pages = number(w.next("a number"), 8, 1);
      } else if (key == "home") {
        const std::string home = w.next("system or a device");
        def.home = home == "system" ? no_device : device(home);
      } else if (key == "explicit") {
        def.implicit_sync = false;
      } else if (key == "userptr") {
        def.user_page = page(w.next("a page"));
        if (s_.pages[def.user_page].client != def.clients[0]) throw Bad("a userptr buffer lies over its maker's pages");
      } else if (key == "later") {
        def.later = true;
      } else {
        throw Bad("a buffer has no '" + key + "'");
      }
    }
    s_.buffers.push_back(def);
  }

  void agent_line(Words& w, bool is_wave) {
    Agent agent;
    agent.is_wave = is_wave;
    agent.name = w.next("a name");
    fresh(agent.name);
    w.need(":");
    agent.client = client(w.next("a client"));
    if (is_wave) {
      w.need("on");
      agent.device = device(w.next("a device"));
    }
    agent.may_hang = w.take("may_hang");
    s_.agents.push_back(agent);
    if (s_.agents.size() > 16) throw Bad("more than 16 agents");
    in_agent_ = true;
  }

  void expect_line(Words& w) {
    Expectation e;
    while (!w.empty() && w.peek() != ":" && w.peek() != "if") {
      const std::string word = w.next("");
      if (word == "all") continue;
      const auto policy = parse_policy(word);
      if (!policy) throw Bad("no policy is called '" + word + "'");
      e.policies.push_back(*policy);
    }
    if (w.take("if")) {
      while (w.peek() != ":") {
        const std::string key = w.next("a condition");
        std::string value = w.next("a value");
        if (key == "units") {
          e.or_more = value.ends_with('+');
          if (e.or_more) value.pop_back();
          e.units = static_cast<unsigned>(number(value, 8, 1));
        } else if (key == "preempts") {
          e.preempts = yes_no(value);
        } else if (key == "retry") {
          e.retry = yes_no(value);
        } else {
          throw Bad("no condition is called '" + key + "': units, preempts or retry");
        }
      }
    }
    w.need(":");
    do {
      const std::string word = w.next("a verdict");
      const auto verdict = parse_verdict(word);
      if (!verdict) throw Bad("no verdict is called '" + word + "'");
      e.verdicts.push_back(*verdict);
    } while (w.take("or"));
    s_.expectations.push_back(e);
  }

  void step(Words& w, std::string_view text);
  void submit(Words& w, Step& out);
  void access(Words& w, Step& out, const Agent& agent);

  DeviceId place(const std::string& word) const { return word == "system" ? no_device : device(word); }

  /// A step on shared virtual memory. False: it is another.
  bool svm_step(Words& w, const std::string& key, Step& out) {
    using K = Step::Kind;
    constexpr std::pair<const char*, K> kinds[] = {
        {"unmap", K::unmap},     {"pin", K::pin},         {"unpin", K::unpin}, {"access", K::access},
        {"discard", K::discard}, {"migrate", K::migrate}, {"fork", K::fork},   {"move", K::move}};
    const auto it = std::find_if(std::begin(kinds), std::end(kinds), [&](const auto& k) { return key == k.first; });
    if (it == std::end(kinds)) return false;
    out.kind = it->second;
    if (out.kind == K::fork) return true;
    out.page = page(w.next("a page"));
    if (out.kind == K::pin || out.kind == K::migrate) {
      w.need("to");
      out.device = place(w.next("system or a device"));
    }
    if (out.kind == K::move) {
      w.need("to");
      out.to_page = page(w.next("a page"));
      if (s_.system_pages != 0) throw Bad("what 'move' does cannot be told where system memory has a budget");
    }
    if (out.kind == K::migrate) {
      w.need("signals");
      out.fence = fence_to_make(w.next("a fence"));
    }
    if (out.kind == K::access) {
      const std::string word = w.next("none, in_place or migrate");
      if (word != "none" && word != "in_place" && word != "migrate") throw Bad("no access is called '" + word + "'");
      out.number = word == "none" ? 0 : word == "in_place" ? 1 : 2;
      w.need("on");
      out.device = device(w.next("a device"));
    }
    return true;
  }

  std::uint32_t fence_to_make(const std::string& name) {
    const std::uint32_t f = intern(s_.fences, name);
    if (!made_.insert(f).second) throw Bad("fence '" + name + "' is made twice");
    return f;
  }

  Scenario& s_;
  bool in_agent_ = false;
  std::set<std::string> names_;
  std::set<std::uint32_t> made_;
  std::set<std::uint32_t> awaited_;
  std::set<std::uint32_t> signalled_;
};

void Parser::access(Words& w, Step& out, const Agent& agent) {
  const std::string name = w.next("a page or buffer");
  out.page = find_named(s_.pages, name);
  if (out.page != none) {
    if (s_.pages[out.page].client != agent.client) throw Bad("page '" + name + "' is another client's");
    return;
  }
  out.buffer = find_named(s_.buffers, name);
  if (out.buffer == none) throw Bad("no page or buffer is called '" + name + "'");
  BufferDef& def = s_.buffers[out.buffer];
  if (std::count(def.clients.begin(), def.clients.end(), agent.client) == 0) {
    throw Bad("buffer '" + name + "' is not held by '" + s_.clients[agent.client] + "'");
  }
  if (def.later || def.user_page != none) throw Bad("buffer '" + name + "' cannot be reached by address here");
  def.mapped = true;
}

void Parser::submit(Words& w, Step& out) {
  JobDef job;
  job.fence = out.fence = fence_to_make(w.next("a fence"));
  const std::string engine = w.next("an engine");
  if (engine == "graphics") {
    job.engine = core::Engine::graphics;
  } else if (engine == "copy") {
    job.engine = core::Engine::copy;
  } else if (engine == "video") {
    job.engine = core::Engine::video;
  } else {
    throw Bad("no engine is called '" + engine + "': graphics, copy or video");
  }
  w.need("on");
  job.device = device(w.next("a device"));
  const std::set<std::string> keys{"reads",    "writes",  "waits", "after", "signals", "cus",
                                   "priority", "timeout", "async", "hangs", "fails"};
  const auto each = [&](auto&& take) {
    do take(w.next("a name"));
    while (!w.empty() && !keys.contains(w.peek()));
  };
  while (!w.empty()) {
    const std::string key = w.next("");
    if (key == "reads") {
      each([&](const std::string& n) { job.reads.push_back(buffer(n)); });
    } else if (key == "writes") {
      each([&](const std::string& n) { job.writes.push_back(buffer(n)); });
    } else if (key == "waits") {
      each([&](const std::string& n) { job.waits.push_back(intern(s_.fences, n)); });
    } else if (key == "after") {
      each([&](const std::string& n) { job.wait_points.push_back(point(n)); });
    } else if (key == "signals") {
      each([&](const std::string& n) { job.signal_points.push_back(point(n)); });
    } else if (key == "cus") {
      job.cus_min = static_cast<unsigned>(number(w.next("a number"), 8, 1));
      job.cus_max = job.cus_min;
    } else if (key == "priority") {
      job.priority = static_cast<unsigned>(number(w.next("a number"), core::job_priorities - 1));
    } else if (key == "timeout") {
      job.timeout_ns = duration_ns(w.next("a time"));
    } else if (key == "async") {
      job.async = true;
    } else if (key == "hangs") {
      job.hangs = true;
    } else if (key == "fails") {
      job.fails = true;
    } else {
      throw Bad("a job has no '" + key + "'");
    }
  }
  out.job = static_cast<std::uint32_t>(s_.jobs.size());
  s_.jobs.push_back(job);
}

void Parser::step(Words& w, std::string_view text) {
  Agent& agent = s_.agents.back();
  Step out;
  out.text = rest(text, "");
  out.text = out.text.substr(0, out.text.find('#'));
  while (!out.text.empty() && (out.text.back() == ' ' || out.text.back() == '\t')) out.text.pop_back();
  const std::string key = w.next("a step");
  using K = Step::Kind;
  const auto threads_only = [&] {
    if (agent.is_wave) throw Bad("a wave cannot " + key);
  };
  if (!agent.steps.empty() && agent.steps.back().kind == K::spin) throw Bad("nothing can follow spin");
  if (key == "read" || key == "write") {
    out.kind = key == "read" ? K::read : K::write;
    access(w, out, agent);
  } else if (key == "signal") {
    out.kind = K::signal;
    out.word = intern(s_.words, w.next("a word"));
    signalled_.insert(out.word);
  } else if (key == "await") {
    out.kind = K::await;
    out.word = intern(s_.words, w.next("a word"));
    awaited_.insert(out.word);
  } else if (key == "spin") {
    if (!agent.is_wave) throw Bad("only a wave can spin");
    out.kind = K::spin;
  } else if (key == "lock" || key == "unlock") {
    threads_only();
    out.kind = key == "lock" ? K::lock : K::unlock;
    out.lock = intern(s_.locks, w.next("a lock"));
  } else if (key == "submit") {
    threads_only();
    out.kind = K::submit;
    submit(w, out);
  } else if (key == "wait") {
    threads_only();
    out.kind = K::wait_fence;
    out.fence = intern(s_.fences, w.next("a fence"));
  } else if (key == "array") {
    threads_only();
    out.kind = K::array;
    out.fence = fence_to_make(w.next("a fence"));
    w.need("of");
    out.any = w.take("any");
    while (!w.empty()) out.fences.push_back(intern(s_.fences, w.next("")));
    if (out.fences.empty()) throw Bad("an array has parts");
  } else if (key == "deadline" || key == "cancel") {
    threads_only();
    out.kind = key == "deadline" ? K::deadline : K::cancel;
    out.fence = intern(s_.fences, w.next("a fence"));
    if (key == "deadline") out.number = duration_ns(w.next("a time"));
  } else if (key == "create" || key == "close") {
    threads_only();
    out.kind = key == "create" ? K::create : K::close;
    out.buffer = buffer(w.next("a buffer"));
  } else if (key == "alloc" || key == "free" || key == "prefetch" || key == "invalidate") {
    threads_only();
    out.kind = key == "alloc" ? K::alloc : key == "free" ? K::free : key == "prefetch" ? K::prefetch : K::invalidate;
    out.page = page(w.next("a page"));
    if (s_.pages[out.page].client != agent.client) throw Bad("the page is another client's");
    if (out.kind == K::prefetch) {
      w.need("to");
      const std::string to = w.next("system or a device");
      out.device = to == "system" ? no_device : device(to);
    }
  } else if (svm_step(w, key, out)) {
    threads_only();
    if (out.page != none && s_.pages[out.page].client != agent.client) throw Bad("the page is another client's");
  } else if (key == "advance") {
    threads_only();
    out.kind = K::advance;
    const PointName p = point(w.next("a point"));
    out.timeline = p.timeline;
    out.number = p.point;
  } else if (key == "kill") {
    threads_only();
    out.kind = K::kill;
    out.client = client(w.next("a client"));
    if (w.take("on")) out.device = device(w.next("a device"));
  } else if (key == "pressure" || key == "budget") {
    threads_only();
    out.kind = key == "pressure" ? K::pressure : K::budget;
    out.number = number(w.next("a number of pages"), 4096, 1);
  } else {
    throw Bad("no step is called '" + key + "'");
  }
  agent.steps.push_back(std::move(out));
  if (agent.steps.size() > 60) throw Bad("more than 60 steps");
}

}  // namespace

Parsed parse_scenario(std::string_view text, std::string_view name) {
  Parsed out;
  Scenario scenario;
  scenario.name = name;
  scenario.text = text;
  Parser parser(scenario);
  std::size_t line_number = 0;
  try {
    while (!text.empty()) {
      const auto end = text.find('\n');
      ++line_number;
      parser.line(text.substr(0, end));
      text = end == std::string_view::npos ? std::string_view() : text.substr(end + 1);
    }
    line_number = 0;
    parser.finish();
  } catch (const Bad& bad) {
    out.error = std::string(name) + (line_number == 0 ? "" : ":" + std::to_string(line_number)) + ": " + bad.what();
    return out;
  }
  out.scenario = std::move(scenario);
  return out;
}

}  // namespace ferry::check
