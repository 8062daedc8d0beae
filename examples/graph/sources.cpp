// Where the graphs come from.
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <istream>
#include <memory>
#include <random>
#include <sstream>
#include <unordered_map>

#include "graph.h"

namespace example {

std::uint64_t Graph::edges() const {
  std::uint64_t n = 0;
  for (const auto& list : out) {
    n += list.size();
  }
  return n;
}

std::uint64_t Graph::bytes() const {
  std::uint64_t n = 0;
  for (const Adjacency* side : {&out, &in}) {
    n += side->capacity() * sizeof(Managed<Vertex>);
    for (const auto& list : *side) {
      n += list.capacity() * sizeof(Vertex);
    }
  }
  return n;
}

Graph make_graph(std::string name, std::size_t vertices, const std::vector<Edge>& edges) {
  std::vector<std::uint32_t> out_degree(vertices), in_degree(vertices);
  for (const auto& [from, to] : edges) {
    ++out_degree[from];
    ++in_degree[to];
  }
  Graph graph;
  graph.name = std::move(name);
  graph.out.resize(vertices);
  graph.in.resize(vertices);
  for (std::size_t v = 0; v < vertices; ++v) {
    graph.out[v].reserve(out_degree[v]);
    graph.in[v].reserve(in_degree[v]);
  }
  for (const auto& [from, to] : edges) {
    graph.out[from].push_back(to);
    graph.in[to].push_back(from);
  }
  return graph;
}

namespace {

/// Reads Debian control paragraphs and collects who names whom.
class ControlReader {
 public:
  void read_line(const std::string& line) {
    if (line.rfind("Package: ", 0) == 0) {
      current_ = number_of(line.substr(9));
      in_relation_ = false;
    } else if (line.rfind("Depends: ", 0) == 0 || line.rfind("Pre-Depends: ", 0) == 0 ||
               line.rfind("Recommends: ", 0) == 0 || line.rfind("Suggests: ", 0) == 0) {
      in_relation_ = true;
      relate(line.substr(line.find(' ') + 1));
    } else if (!line.empty() && line[0] == ' ') {
      if (in_relation_) {
        relate(line);
      }
    } else {
      in_relation_ = false;
    }
  }
  Graph graph(std::string name) const { return make_graph(std::move(name), numbers_.size(), edges_); }
  [[nodiscard]] std::size_t packages() const { return numbers_.size(); }

 private:
  Vertex number_of(const std::string& package) {
    return numbers_.emplace(package, static_cast<Vertex>(numbers_.size())).first->second;
  }
  /// "libc6 (>= 2.36), default-mta | mail-transport-agent": every name is a neighbour.
  void relate(const std::string& field) {
    std::string name;
    int depth = 0;
    for (std::size_t i = 0; i <= field.size(); ++i) {
      const char c = i < field.size() ? field[i] : ',';
      if (c == '(' || c == '[') {
        ++depth;
      } else if (c == ')' || c == ']') {
        --depth;
      } else if (depth == 0 && (c == ',' || c == '|')) {
        if (!name.empty()) {
          edges_.emplace_back(current_, number_of(name));
        }
        name.clear();
      } else if (depth == 0 && c != ' ') {
        if (c == ':') {
          while (i + 1 < field.size() && field[i + 1] != ',' && field[i + 1] != '|' && field[i + 1] != ' ') {
            ++i;  // ":any"
          }
        } else {
          name += c;
        }
      }
    }
  }

  std::unordered_map<std::string, Vertex> numbers_;
  std::vector<Edge> edges_;
  Vertex current_ = 0;
  bool in_relation_ = false;
};

}  // namespace

Graph debian_packages() {
  ControlReader reader;
  {
    const std::unique_ptr<FILE, int (*)(FILE*)> pipe(popen("apt-cache dumpavail 2>/dev/null", "r"), pclose);
    std::string line;
    for (int c = 0; pipe != nullptr && (c = std::getc(pipe.get())) != EOF;) {
      if (c == '\n') {
        reader.read_line(line);
        line.clear();
      } else {
        line += static_cast<char>(c);
      }
    }
  }
  if (reader.packages() > 1000) {
    return reader.graph("Debian packages (apt's lists)");
  }
  ControlReader installed;
  std::ifstream status("/var/lib/dpkg/status");
  for (std::string line; std::getline(status, line);) {
    installed.read_line(line);
  }
  return installed.graph("Debian packages (installed here)");
}

Graph kronecker(unsigned scale, unsigned edge_factor, std::uint64_t seed) {
  const std::size_t vertices = std::size_t{1} << scale;
  std::mt19937_64 random(seed);
  std::vector<Edge> edges;
  edges.reserve(vertices * edge_factor);
  // Labels are shuffled as Graph500 asks, so that degree tells nothing about place.
  std::vector<Vertex> label(vertices);
  for (std::size_t v = 0; v < vertices; ++v) {
    label[v] = static_cast<Vertex>(v);
  }
  std::shuffle(label.begin(), label.end(), random);
  for (std::size_t e = 0; e < vertices * edge_factor; ++e) {
    Vertex from = 0;
    Vertex to = 0;
    for (unsigned level = 0; level < scale; ++level) {
      const auto r = static_cast<double>(random() >> 11U) * 0x1.0p-53;
      const unsigned quadrant = r < 0.57 ? 0 : r < 0.76 ? 1 : r < 0.95 ? 2 : 3;
      from = from * 2 + (quadrant >> 1U);
      to = to * 2 + (quadrant & 1U);
    }
    edges.emplace_back(label[from], label[to]);
  }
  return make_graph(fmt::format("Kronecker graph, scale {}, edge factor {}", scale, edge_factor), vertices, edges);
}

}  // namespace example
