// The graph for people.
#include <algorithm>

#include "graph/impl.h"

namespace ferry::graph {

std::string Graph::Impl::name(Index node) const {
  const Node& n = nodes[node];
  std::string text = classes[n.cls].name;
  if (n.number != unnumbered) text += " " + std::to_string(n.number);
  if (n.pattern != nullptr) {
    text += ' ';
    unsigned taken = 0;
    for (const char* c = n.pattern; *c != '\0'; ++c) {
      if (*c == '%' && taken < 2) {
        text += std::to_string(taken++ == 0 ? n.first_number : n.second_number);
      } else {
        text += *c;
      }
    }
  }
  if (n.worded) text += " " + words.at(node);
  return text;
}

std::string Graph::Impl::sentences(const Circle& circle) const {
  std::string text;
  for (const Step& step : circle) {
    const Index from = find(step.from);
    const Index to = find(step.to);
    if (!text.empty()) text += "; ";
    text += from == nil ? "something that is gone" : name(from);
    text += ' ';
    text += step.how;
    text += ' ';
    text += to == nil ? "something that is gone" : name(to);
    if (from == nil || !nodes[from].any || nodes[from].outs < 2) continue;
    text += nodes[from].outs == 2 ? " or one other" : " or " + std::to_string(nodes[from].outs - 1) + " others";
    text += ", which can as little go on";
  }
  return text;
}

void Graph::Impl::report(Report::What what, std::string text) {
  if (reports.size() < reports_max) reports.push_back({what, std::move(text)});
}

std::string Graph::sentences(const Circle& circle) const { return impl_->sentences(circle); }

std::string Graph::name(NodeId node) const {
  const Index index = impl_->find(node);
  return index == nil ? std::string() : impl_->name(index);
}

std::string Graph::dump() const {
  const Impl& g = *impl_;
  std::vector<std::string> lines;
  for (Index node = 0; node < g.nodes.size(); ++node) {
    if (!g.nodes[node].alive) continue;
    const bool any = g.nodes[node].any && g.nodes[node].outs > 1;
    for (Index e = g.nodes[node].first_out; e != nil; e = g.edges[e].next_out) {
      lines.push_back(g.name(node) + " " + g.edges[e].how + " " + g.name(g.edges[e].to) +
                      (any ? " (any of " + std::to_string(g.nodes[node].outs) + " will do)" : "") + "\n");
    }
  }
  // By name, so that equal graphs are told equally.
  std::sort(lines.begin(), lines.end());
  std::string text;
  for (const std::string& line : lines) text += line;
  return text;
}

}  // namespace ferry::graph
