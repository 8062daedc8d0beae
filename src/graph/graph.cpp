// Nodes, edges and circles.
#include "graph/graph.h"

namespace ferry::graph {

struct Graph::Impl {
  std::uint8_t classes = 0;
};

Graph::Graph() : impl_(new Impl) {}
Graph::~Graph() { delete impl_; }
ClassId Graph::define(std::string_view, InSection) { return impl_->classes++; }
NodeId Graph::add(ClassId, std::uint64_t, Needs) { return no_node; }
void Graph::remove(NodeId) {}
bool Graph::exists(NodeId) const { return false; }
void Graph::describe(NodeId, std::string_view) {}
Circle Graph::wait(NodeId, NodeId, const char*) { return {}; }
void Graph::done(NodeId, NodeId) {}
void Graph::done_all(NodeId) {}
Circle Graph::would_close(NodeId, NodeId) const { return {}; }
Circle Graph::stuck(NodeId) const { return {}; }
void Graph::note(ClassId, ClassId) {}
void Graph::begin_section(NodeId) {}
void Graph::end_section(NodeId) {}
std::string Graph::sentences(const Circle&) const { return {}; }
std::string Graph::name(NodeId) const { return {}; }
std::vector<Report> Graph::take_reports() { return {}; }
bool Graph::has_reports() const { return false; }
std::string Graph::dump() const { return {}; }
std::uint64_t Graph::node_count() const { return 0; }
std::uint64_t Graph::edge_count() const { return 0; }
std::uint64_t Graph::digest() const { return 0; }

}  // namespace ferry::graph
