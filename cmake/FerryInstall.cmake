# cmake --install: headers, find_package(ferry) and pkg-config. Libraries and programs are installed below, where
# their targets exist, so that no layer has to know the layout.
include(CMakePackageConfigHelpers)

install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/ferry TYPE INCLUDE
  FILES_MATCHING PATTERN "*.h" PATTERN "*.hpp")
install(DIRECTORY ${PROJECT_SOURCE_DIR}/scenarios DESTINATION ${CMAKE_INSTALL_DATADIR}/ferry FILES_MATCHING PATTERN "*.scn")
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})

# The same run path in both trees. CMake would otherwise leave room for the other one by padding with colons, and an
# empty entry makes the loader look in the current folder.
set(program_rpath "$ORIGIN/../lib" "$ORIGIN/${FERRY_BIN_TO_LIB}")
list(REMOVE_DUPLICATES program_rpath)
foreach(library ferry ferry_malloc ferry_progress)
  if(TARGET ${library})
    set_target_properties(${library} PROPERTIES BUILD_WITH_INSTALL_RPATH ON INSTALL_RPATH "$ORIGIN")
  endif()
endforeach()
foreach(program ferryd ferry_cli ferry-bench ferry-demo)
  if(TARGET ${program})
    set_target_properties(${program} PROPERTIES BUILD_WITH_INSTALL_RPATH ON INSTALL_RPATH "${program_rpath}")
    install(TARGETS ${program} RUNTIME)
  endif()
endforeach()

# Needs no other part of Ferry; the package ferry has both, ferry::ferry and ferry::progress.
if(TARGET ferry_progress)
  set_target_properties(ferry_progress PROPERTIES VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR})
  target_compile_features(ferry_progress INTERFACE cxx_std_20)
  install(TARGETS ferry_progress EXPORT ferryTargets LIBRARY INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
  configure_file(${CMAKE_CURRENT_LIST_DIR}/ferry_progress.pc.in ${PROJECT_BINARY_DIR}/cmake/ferry_progress.pc @ONLY)
  install(FILES ${PROJECT_BINARY_DIR}/cmake/ferry_progress.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
endif()
if(TARGET ferry)
  set_target_properties(ferry PROPERTIES VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR})
  target_compile_features(ferry INTERFACE cxx_std_20)
  install(TARGETS ferry EXPORT ferryTargets LIBRARY INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
  install(EXPORT ferryTargets NAMESPACE ferry:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/ferry)
  configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/ferryConfig.cmake.in
    ${PROJECT_BINARY_DIR}/cmake/ferryConfig.cmake INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/ferry)
  # Before 1.0 any minor version may change the interface.
  write_basic_package_version_file(${PROJECT_BINARY_DIR}/cmake/ferryConfigVersion.cmake
    COMPATIBILITY SameMinorVersion)
  install(FILES ${PROJECT_BINARY_DIR}/cmake/ferryConfig.cmake ${PROJECT_BINARY_DIR}/cmake/ferryConfigVersion.cmake
    DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/ferry)
  configure_file(${CMAKE_CURRENT_LIST_DIR}/ferry.pc.in ${PROJECT_BINARY_DIR}/cmake/ferry.pc @ONLY)
  install(FILES ${PROJECT_BINARY_DIR}/cmake/ferry.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
endif()
if(TARGET ferry_malloc)
  install(TARGETS ferry_malloc LIBRARY)
endif()

set(completions ${PROJECT_SOURCE_DIR}/share/completions)
if(EXISTS ${completions}/ferry.bash)
  install(FILES ${completions}/ferry.bash DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions RENAME ferry)
endif()
if(EXISTS ${completions}/_ferry)
  install(FILES ${completions}/_ferry DESTINATION ${CMAKE_INSTALL_DATADIR}/zsh/site-functions)
endif()
if(EXISTS ${completions}/ferry.fish)
  install(FILES ${completions}/ferry.fish DESTINATION ${CMAKE_INSTALL_DATADIR}/fish/vendor_completions.d)
endif()
