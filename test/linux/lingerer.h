// A socket whose last close waits: what was written to it is never read, and its owner asked to wait for that.
#pragma once

#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cstddef>

#include "linux/fd.h"

namespace ferry::linux::test {

struct Lingerer {
  /// Longer than any test waits.
  static constexpr int patience_s = 120;

  Lingerer() {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    auto* const at = reinterpret_cast<sockaddr*>(&address);
    const Fd listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    closing.reset(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    EXPECT_EQ(::bind(listener.get(), at, size), 0);
    EXPECT_EQ(::listen(listener.get(), 1), 0);
    EXPECT_EQ(::getsockname(listener.get(), at, &size), 0);
    EXPECT_EQ(::connect(closing.get(), at, size), 0);
    reader.reset(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
    EXPECT_TRUE(reader);
    const linger how{1, patience_s};
    EXPECT_EQ(::setsockopt(closing.get(), SOL_SOCKET, SO_LINGER, &how, sizeof how), 0);
    const std::array<char, 4096> bytes{};
    while (::send(closing.get(), bytes.data(), bytes.size(), MSG_DONTWAIT | MSG_NOSIGNAL) > 0) {}
  }

  Fd closing;
  Fd reader;  ///< closing it ends the wait
};

}  // namespace ferry::linux::test
