// Files of the application that its devices map: what the application says of them (wire/files.h).
#include "manager/manager.h"

namespace ferry::manager {

/// False: the message is about something else.
bool Manager::on_files(Client& client) {
  const std::uint64_t request = incoming_->head.request;
  switch (incoming_->type()) {
    case wire::MessageType::file_serve: {
      wire::FileServe body{};
      if (!incoming_->body(body)) {
        misunderstood(client);
        return true;
      }
      const Status served = client.asking == body.address && client.asking != 0 ? executor_->serve_file(client, body)
                                                                                : Status(Code::bad_range);
      answer(client, request, served);
      // It is the answer to the question, too, unless it was refused.
      if (served.ok() && !client.closing) executor_->on_adopt_answer(client, {body.address, 0, 0});
      return true;
    }
    case wire::MessageType::file_drop: {
      wire::Span span{};
      if (!incoming_->body(span)) {
        misunderstood(client);
        return true;
      }
      const PageSpan pages{span.first_page, span.count_pages};
      if (client.contains(pages) && client.is_adopted(pages.first)) {
        executor_->drop_files(client, pages, request);
      } else {
        answer(client, request, Code::bad_range);
      }
      return true;
    }
    default: return false;
  }
}

void Manager::answer_request(Client& client, std::uint64_t request, Status status) { answer(client, request, status); }

}  // namespace ferry::manager
