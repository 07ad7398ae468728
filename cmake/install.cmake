# SPDX-License-Identifier: Apache-2.0
# `cmake --install`: headers, library and the package that find_package(ringattn) reads.
include(CMakePackageConfigHelpers)

set(package ${CMAKE_INSTALL_LIBDIR}/cmake/ringattn)
install(TARGETS ringattn EXPORT ringattnTargets
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
  RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR}
  FILE_SET public DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT ringattnTargets NAMESPACE ringattn:: DESTINATION ${package})
if(TARGET ringattn_mpi)
  install(TARGETS ringattn_mpi EXPORT ringattnMpiTargets
    ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
    LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
    RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
  install(EXPORT ringattnMpiTargets NAMESPACE ringattn:: DESTINATION ${package})
endif()

configure_package_config_file(cmake/ringattnConfig.cmake.in
  ${PROJECT_BINARY_DIR}/ringattnConfig.cmake INSTALL_DESTINATION ${package})
# Before 1.0 a new minor version may break its users.
write_basic_package_version_file(${PROJECT_BINARY_DIR}/ringattnConfigVersion.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/ringattnConfig.cmake
              ${PROJECT_BINARY_DIR}/ringattnConfigVersion.cmake DESTINATION ${package})
