#include "client/heap/size_classes.h"

#include <gtest/gtest.h>

namespace ferry::client {
namespace {

TEST(SizeClasses, SmallestThatFits) {
  for (std::size_t bytes = 1; bytes <= slab_bytes_max; ++bytes) {
    const unsigned c = class_of(bytes);
    ASSERT_LT(c, class_count) << bytes;
    ASSERT_GE(class_bytes(c), bytes);
    ASSERT_TRUE(c == 0 || class_bytes(c - 1) < bytes) << bytes;
  }
}

TEST(SizeClasses, RoundingLosesAtMostAFifth) {
  for (unsigned c = 8; c < class_count; ++c) {
    EXPECT_LE((class_bytes(c) - class_bytes(c - 1) - 1) * 5, class_bytes(c)) << c;
    EXPECT_EQ(class_bytes(c) % 16, 0U) << c;
  }
}

TEST(SizeClasses, DivisionByReciprocalIsExact) {
  for (const SizeClass& shape : size_classes) {
    const std::size_t slab = heap_unit_bytes << shape.order;
    ASSERT_LE(std::size_t{shape.slots} * shape.bytes, slab);
    ASSERT_GE(shape.slots, 8U);
    ASSERT_LE(shape.slots, slots_max);
    for (std::size_t offset = 0; offset < slab; ++offset) {
      ASSERT_EQ((offset * shape.reciprocal) >> reciprocal_shift, offset / shape.bytes) << shape.bytes << " " << offset;
    }
  }
}

TEST(SizeClasses, EveryPowerOfTwoUpToAUnitDividesSomeClassAboveEverySize) {
  for (std::size_t align = 16; align <= heap_unit_bytes; align *= 2) {
    for (std::size_t bytes = align; bytes <= heap_unit_bytes; bytes += align) {
      unsigned c = class_of(bytes);
      while (c < class_count && class_bytes(c) % align != 0) ++c;
      ASSERT_LT(c, class_count) << bytes << " aligned " << align;
      EXPECT_LE(class_bytes(c), 2 * bytes);
    }
  }
}

}  // namespace
}  // namespace ferry::client
