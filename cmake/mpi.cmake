# SPDX-License-Identifier: Apache-2.0
# The ring over MPI: a library of its own, so that the core needs no MPI. Included by src/.
set(RINGATTN_MPI AUTO CACHE STRING "Build the ring over MPI: AUTO (if MPI is found), ON or OFF")
set_property(CACHE RINGATTN_MPI PROPERTY STRINGS AUTO ON OFF)
if(NOT RINGATTN_MPI MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "RINGATTN_MPI: expected AUTO, ON or OFF, got '${RINGATTN_MPI}'")
endif()

# ringattn_mpi_library(<target> <mpi>): the ring over the MPI that the target <mpi> stands for.
function(ringattn_mpi_library target mpi)
  add_library(${target} ${PROJECT_SOURCE_DIR}/src/comm/mpi.cpp)
  ringattn_target(${target})
  target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR}/src)
  # The C++ bindings of old are no part of MPI any more.
  target_compile_definitions(${target} PRIVATE OMPI_SKIP_MPICXX MPICH_SKIP_MPICXX)
  target_link_libraries(${target} PUBLIC ringattn PRIVATE ${mpi})
  set_target_properties(${target} PROPERTIES
    VERSION ${PROJECT_VERSION}
    SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR}
    POSITION_INDEPENDENT_CODE ON)
endfunction()

# AddressSanitizer sees MPI's own shared memory and leaks, not ringattn's; ThreadSanitizer can be told.
set(sanitized_without_mpi FALSE)
if(RINGATTN_SANITIZE AND NOT RINGATTN_SANITIZE STREQUAL "thread")
  set(sanitized_without_mpi TRUE)
endif()
if(RINGATTN_MPI STREQUAL "OFF" OR (RINGATTN_MPI STREQUAL "AUTO" AND sanitized_without_mpi))
  return()
endif()
set(MPI_CXX_SKIP_MPICXX TRUE)
if(RINGATTN_MPI STREQUAL "ON")
  find_package(MPI REQUIRED COMPONENTS CXX)
else()
  find_package(MPI COMPONENTS CXX)
endif()
if(MPI_CXX_FOUND)
  set_target_properties(MPI::MPI_CXX PROPERTIES IMPORTED_GLOBAL TRUE)  # for the examples
  ringattn_mpi_library(ringattn_mpi MPI::MPI_CXX)
  add_library(ringattn::mpi ALIAS ringattn_mpi)
  set_target_properties(ringattn_mpi PROPERTIES EXPORT_NAME mpi)
endif()
