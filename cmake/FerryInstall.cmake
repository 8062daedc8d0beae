# cmake --install: headers, find_package(ferry) and pkg-config. Libraries and programs are installed below, where
# their targets exist, so that no layer has to know the layout.
include(CMakePackageConfigHelpers)

install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/ferry TYPE INCLUDE
  FILES_MATCHING PATTERN "*.h" PATTERN "*.hpp")
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})

if(TARGET ferry)
  set_target_properties(ferry PROPERTIES VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR}
    INSTALL_RPATH "$ORIGIN")
  install(TARGETS ferry EXPORT ferryTargets LIBRARY)
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
  set_target_properties(ferry_malloc PROPERTIES INSTALL_RPATH "$ORIGIN")
  install(TARGETS ferry_malloc LIBRARY)
endif()
foreach(program ferryd ferry_cli)
  if(TARGET ${program})
    install(TARGETS ${program} RUNTIME)
  endif()
endforeach()

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
