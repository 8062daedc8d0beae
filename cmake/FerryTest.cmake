# ferry_test(NAME name SOURCES files... [LIBS targets...] [LABELS labels...] [TIMEOUT seconds]
#            [DEPENDS targets...] [ENV VAR=value...] [NO_MAIN] [WHOLE] [SERIAL]
#            [SKIP_ASAN reason] [SKIP_TSAN reason])
#
# A GoogleTest executable in <build>/bin/test, every TEST of it known to ctest as "name.Suite.Test".
#   DEPENDS    programs that the test starts and does not link (ferryd, ferry_cli, ...); those that do not exist
#              in this build are passed over
#   ENV        environment of the test
#   NO_MAIN    the sources have their own main
#   WHOLE      one ctest test for the executable (a suite whose tests share an expensive set-up)
#   SERIAL     never beside another test (it looks at the whole machine, or fills it)
#   SKIP_ASAN, SKIP_TSAN  this suite cannot run under that sanitizer: it is not built, and is listed by name as
#              skipped with the reason
# FERRY_TEST_BUILD_DIR and FERRY_TEST_SOURCE_DIR are defined as strings for the sources.
include(GoogleTest)

function(ferry_test)
  cmake_parse_arguments(T "NO_MAIN;WHOLE;SERIAL" "NAME;TIMEOUT;SKIP_ASAN;SKIP_TSAN" "SOURCES;LIBS;LABELS;DEPENDS;ENV" ${ARGN})
  if(T_UNPARSED_ARGUMENTS OR NOT T_NAME OR NOT T_SOURCES)
    message(FATAL_ERROR "ferry_test(${T_NAME}): needs NAME and SOURCES, and does not know '${T_UNPARSED_ARGUMENTS}'")
  endif()
  if(NOT T_TIMEOUT)
    set(T_TIMEOUT 120)
  endif()
  if(FERRY_ASAN OR FERRY_TSAN)
    math(EXPR T_TIMEOUT "${T_TIMEOUT} * 5")
  endif()

  set(skip "")
  if(FERRY_ASAN AND T_SKIP_ASAN)
    set(skip "under AddressSanitizer: ${T_SKIP_ASAN}")
  elseif(FERRY_TSAN AND T_SKIP_TSAN)
    set(skip "under ThreadSanitizer: ${T_SKIP_TSAN}")
  endif()
  if(skip)
    message(STATUS "test ${T_NAME} is skipped ${skip}")
    add_test(NAME ${T_NAME} COMMAND ${CMAKE_COMMAND} -E echo "SKIPPED ${T_NAME} ${skip}")
    set_tests_properties(${T_NAME} PROPERTIES SKIP_REGULAR_EXPRESSION "^SKIPPED" LABELS "${T_LABELS}")
    return()
  endif()

  add_executable(${T_NAME} ${T_SOURCES})
  target_link_libraries(${T_NAME} PRIVATE ferry_options ${T_LIBS} GTest::gtest)
  if(NOT T_NO_MAIN)
    target_link_libraries(${T_NAME} PRIVATE GTest::gtest_main)
  endif()
  target_compile_definitions(${T_NAME} PRIVATE
    FERRY_TEST_BUILD_DIR="${PROJECT_BINARY_DIR}" FERRY_TEST_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  foreach(program IN LISTS T_DEPENDS)
    if(TARGET ${program})
      add_dependencies(${T_NAME} ${program})
    endif()
  endforeach()

  set(properties TIMEOUT ${T_TIMEOUT})
  set(environment ${FERRY_TEST_ENV} ${T_ENV})
  if(T_SERIAL)
    list(APPEND properties RUN_SERIAL ON)
  endif()
  if(T_WHOLE)
    add_test(NAME ${T_NAME} COMMAND ${T_NAME} --gtest_brief=1)
    set_tests_properties(${T_NAME} PROPERTIES ${properties} LABELS "${T_LABELS}" ENVIRONMENT "${environment}")
  else()
    # PRE_TEST: a build never runs what it has built; the list is made when ctest starts.
    gtest_discover_tests(${T_NAME}
      # Values that print as addresses would give a test another name in each run.
      NO_PRETTY_VALUES
      TEST_PREFIX "${T_NAME}." TEST_LIST discovered_tests DISCOVERY_MODE PRE_TEST DISCOVERY_TIMEOUT 60
      PROPERTIES ${properties})
    # Properties that are lists do not survive the way through PROPERTIES above.
    set(script ${CMAKE_CURRENT_BINARY_DIR}/${T_NAME}_lists.cmake)
    file(WRITE ${script} "foreach(test IN LISTS discovered_tests)
  set_tests_properties(\"\${test}\" PROPERTIES LABELS [==[${T_LABELS}]==] ENVIRONMENT [==[${environment}]==])
endforeach()
set(discovered_tests)
")
    set_property(DIRECTORY APPEND PROPERTY TEST_INCLUDE_FILES ${script})
  endif()
endfunction()
