# ferry_options: what every target of Ferry is compiled with. Link it PRIVATE to a target that is installed and
# PUBLIC or INTERFACE to any other.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS ON)
set(CMAKE_C_STANDARD 11)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
# The static layers end up in libferry.so.
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
# -g1: line numbers for backtraces without the weight of full debug information.
set(CMAKE_CXX_FLAGS_RELEASE "-O3 -g1 -DNDEBUG")
set(CMAKE_C_FLAGS_RELEASE "-O3 -g1 -DNDEBUG")
# Used by the sanitizer presets: fast enough to finish, and with the debug checks (no NDEBUG).
set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O2 -g")
set(CMAKE_C_FLAGS_RELWITHDEBINFO "-O2 -g")

find_package(Threads REQUIRED)

add_library(ferry_options INTERFACE)
target_compile_features(ferry_options INTERFACE cxx_std_20)
target_include_directories(ferry_options INTERFACE ${PROJECT_SOURCE_DIR}/include)
target_compile_options(ferry_options INTERFACE
  # Quoted includes only: src/linux has names that the kernel's <linux/...> headers have too.
  "SHELL:-iquote ${PROJECT_SOURCE_DIR}/src"
  # GCC's GNU dialects predefine it as 1; it is a layer and a namespace here.
  -Ulinux
  -Wall -Wextra -Wconversion
  # At -O3 g++ 12 finds overlaps of 2^63 bytes in "text" + std::string.
  -Wno-restrict
  $<$<BOOL:${FERRY_WERROR}>:-Werror>
  # Backtraces out of signal handlers and fibers walk frame pointers.
  -fno-omit-frame-pointer)
target_link_libraries(ferry_options INTERFACE Threads::Threads)

# For the whole tree, not only for users of ferry_options: sanitized and plain objects do not mix.
if(FERRY_SANITIZE)
  # The instrumentation itself makes g++ 12 see uninitialized uses where there are none.
  add_compile_options(-fsanitize=${FERRY_SANITIZE} -fno-sanitize-recover=all -Wno-maybe-uninitialized)
  add_link_options(-fsanitize=${FERRY_SANITIZE})
  if(FERRY_SANITIZE MATCHES "address")
    # Instrumented functions would look whether the option is on, in a variable that the linker puts among the program's:
    # Ferry itself may touch none of those, since devices have them too.
    add_compile_options("SHELL:--param asan-use-after-return=0")
  endif()
  if(FERRY_SANITIZE MATCHES "undefined")
    # The vptr check probes memory through a pipe, and takes a failed pipe() for a broken object: programs at their
    # limit of descriptors, which the tests have, cannot be told apart from wrong ones.
    add_compile_options(-fno-sanitize=vptr)
    add_link_options(-fno-sanitize=vptr)
  endif()
endif()
set(FERRY_ASAN OFF)
set(FERRY_TSAN OFF)
if(FERRY_SANITIZE MATCHES "address")
  set(FERRY_ASAN ON)
endif()
if(FERRY_SANITIZE MATCHES "thread")
  set(FERRY_TSAN ON)
  # Fences are not modelled by ThreadSanitizer; the compiler says so at every one of them.
  add_compile_options(-Wno-tsan)
endif()

find_program(FERRY_CCACHE ccache)
if(FERRY_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${FERRY_CCACHE})
  set(CMAKE_C_COMPILER_LAUNCHER ${FERRY_CCACHE})
endif()
