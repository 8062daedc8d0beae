# Everything from outside, by the name the layers link: Boost::context, CLI11::CLI11, nlohmann_json::nlohmann_json,
# tomlplusplus::tomlplusplus, fmt::fmt, PkgConfig::zstd, PkgConfig::lz4, PkgConfig::xxhash, PkgConfig::liburing,
# PNG::PNG, GTest::gtest_main. All are Debian packages (dev.d/packages.txt); nothing is fetched.
find_package(PkgConfig REQUIRED)
find_package(Boost 1.74 REQUIRED COMPONENTS context)
find_package(CLI11 REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(fmt REQUIRED)
pkg_check_modules(tomlplusplus REQUIRED IMPORTED_TARGET tomlplusplus)
add_library(tomlplusplus::tomlplusplus ALIAS PkgConfig::tomlplusplus)
pkg_check_modules(zstd REQUIRED IMPORTED_TARGET libzstd)
pkg_check_modules(lz4 REQUIRED IMPORTED_TARGET liblz4)
pkg_check_modules(xxhash REQUIRED IMPORTED_TARGET libxxhash)
pkg_check_modules(liburing REQUIRED IMPORTED_TARGET liburing)
find_package(PNG REQUIRED)
if(FERRY_BUILD_TESTS)
  find_package(GTest REQUIRED)
endif()
