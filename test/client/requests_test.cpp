// Questions and answers: out of order, from many threads, with a manager that says nonsense.
#include "client/requests.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

namespace ferry::client {
namespace {

class RequestsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto pair = linux::make_socket_pair();
    ASSERT_TRUE(pair.ok());
    ours_ = std::move(pair.value().first);
    theirs_ = std::move(pair.value().second);
    requests_->start(ours_.get());
  }
  void start_reader() {
    reader_ = std::jthread([this] {
      auto in = std::make_unique<linux::Incoming>();
      while (linux::receive_message(ours_.get(), *in, -1) == linux::Receive::message) {
        if (!requests_->deliver(*in)) ++undelivered_;
      }
    });
  }
  void TearDown() override {
    theirs_.reset();
    if (reader_.joinable()) reader_.join();
  }

  std::unique_ptr<Requests> requests_ = std::make_unique<Requests>();
  linux::Fd ours_;
  linux::Fd theirs_;
  std::jthread reader_;
  std::atomic<int> undelivered_{0};
};

TEST_F(RequestsTest, AnswersFindTheirAskersInAnyOrder) {
  start_reader();
  constexpr int askers = 100;  // more than there are slots
  std::jthread manager([this] {
    auto in = std::make_unique<linux::Incoming>();
    std::vector<std::pair<std::uint64_t, std::uint64_t>> held;
    for (int answered = 0; answered < askers;) {
      // Collect what is there, then answer backwards.
      const auto got = linux::receive_message(theirs_.get(), *in, held.empty() ? -1 : 0);
      if (got == linux::Receive::message) {
        wire::Span span{};
        ASSERT_TRUE(in->body(span));
        held.emplace_back(in->head.request, span.first_page);
        continue;
      }
      for (; !held.empty(); held.pop_back(), ++answered) {
        wire::PageResidency r{};
        r.client = static_cast<std::uint32_t>(held.back().second);
        ASSERT_TRUE(linux::send_message(theirs_.get(), wire::MessageType::residency, held.back().first, r).ok());
      }
    }
  });
  std::vector<std::jthread> threads;
  for (int i = 0; i < askers; ++i) {
    threads.emplace_back([this, i] {
      wire::Span span{};
      span.first_page = static_cast<std::uint64_t>(i);
      Answer answer;
      wire::PageResidency r{};
      ASSERT_TRUE(requests_->ask(wire::MessageType::query, span, answer).ok());
      ASSERT_EQ(answer.type(), wire::MessageType::residency);
      ASSERT_TRUE(answer.body(r));
      EXPECT_EQ(r.client, static_cast<std::uint32_t>(i));
    });
  }
  threads.clear();
  manager.join();
  EXPECT_EQ(undelivered_.load(), 0);
}

TEST_F(RequestsTest, ErrorsOfDoneBecomeTheStatus) {
  start_reader();
  std::jthread manager([this] {
    auto in = std::make_unique<linux::Incoming>();
    ASSERT_EQ(linux::receive_message(theirs_.get(), *in, -1), linux::Receive::message);
    // An answer to a question that nobody asked is dropped; the right one still arrives.
    ASSERT_TRUE(linux::send_message(theirs_.get(), wire::MessageType::done, in->head.request + 1, wire::Done{}).ok());
    ASSERT_TRUE(linux::send_message(theirs_.get(), wire::MessageType::done, in->head.request,
                                    wire::Done{static_cast<std::uint32_t>(Code::no_memory), 12})
                    .ok());
    // A done without its body.
    ASSERT_EQ(linux::receive_message(theirs_.get(), *in, -1), linux::Receive::message);
    ASSERT_TRUE(linux::send_text(theirs_.get(), wire::MessageType::done, in->head.request).ok());
  });
  EXPECT_EQ(requests_->tell(wire::MessageType::alloc, wire::Span{}), Status(Code::no_memory, 12));
  EXPECT_EQ(requests_->tell(wire::MessageType::alloc, wire::Span{}).code, Code::bad_message);
  manager.join();
  EXPECT_EQ(undelivered_.load(), 1);
}

TEST_F(RequestsTest, LongTextArrivesWholeOrCutWithItsLength) {
  start_reader();
  const std::string sent(40'000, 'j');
  std::jthread manager([&] {
    auto in = std::make_unique<linux::Incoming>();
    for (int i = 0; i < 2; ++i) {
      ASSERT_EQ(linux::receive_message(theirs_.get(), *in, -1), linux::Receive::message);
      ASSERT_TRUE(linux::send_text(theirs_.get(), wire::MessageType::reply_text, in->head.request, sent).ok());
    }
  });
  for (const std::size_t room : {std::size_t{50'000}, std::size_t{100}}) {
    std::string text(room, '?');
    std::size_t bytes = 0;
    Answer answer;
    ASSERT_TRUE(requests_->ask(wire::MessageType::stats, {}, {}, answer, text, &bytes).ok());
    EXPECT_EQ(bytes, sent.size());
    EXPECT_EQ(text.substr(0, std::min(room, sent.size())), sent.substr(0, std::min(room, sent.size())));
  }
}

TEST_F(RequestsTest, AManagerThatIsGoneIsAnError) {
  theirs_.reset();
  EXPECT_EQ(requests_->tell(wire::MessageType::alloc, wire::Span{}).code, Code::manager_lost);
}

TEST_F(RequestsTest, WhoAsksAfterTheManagerHasGoneEndsTheProgramAsTheReaderWould) {
  theirs_.reset();
  requests_->start(ours_.get(), [] { std::_Exit(117); });
  EXPECT_EXIT([[maybe_unused]] const Status told = requests_->tell(wire::MessageType::alloc, wire::Span{}),
              testing::ExitedWithCode(117), "");
}

}  // namespace
}  // namespace ferry::client
