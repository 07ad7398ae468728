# SPDX-License-Identifier: Apache-2.0
# The CUDA backend: built where nvcc is, refused by name elsewhere.
set(RINGATTN_CUDA AUTO CACHE STRING "Build the CUDA backend: AUTO (if nvcc is there), ON or OFF")
set_property(CACHE RINGATTN_CUDA PROPERTY STRINGS AUTO ON OFF)

set(RINGATTN_HAVE_CUDA OFF CACHE INTERNAL "")
if(RINGATTN_CUDA STREQUAL "ON")
  enable_language(CUDA)
  set(RINGATTN_HAVE_CUDA ON CACHE INTERNAL "")
elseif(RINGATTN_CUDA STREQUAL "AUTO")
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    set(RINGATTN_HAVE_CUDA ON CACHE INTERNAL "")
  else()
    message(STATUS "ringattn: no nvcc, so no CUDA backend")
  endif()
endif()
if(NOT RINGATTN_HAVE_CUDA)
  return()
endif()

find_package(CUDAToolkit REQUIRED)
# What a program built by hand links beside libringattn.a.
set(RINGATTN_CUDA_LINK "${CUDA_cudart_static_LIBRARY}" CACHE INTERNAL "")
# sm_80 and its virtual machine code for what comes after; sm_90 for Hopper.
set(targets -gencode=arch=compute_80,code=[sm_80,compute_80] -gencode=arch=compute_80,code=sm_90)

file(GLOB cuda_sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/cuda/*.cpp
     ${CMAKE_CURRENT_SOURCE_DIR}/cuda/*.cu)
set(instances)
foreach(pass forward backward)
  foreach(type __nv_bfloat16 __half float)
    foreach(dim 64 128 256)
      set(instance ${CMAKE_CURRENT_BINARY_DIR}/cuda/${pass}_${type}_${dim}.cu)
      configure_file(${CMAKE_CURRENT_SOURCE_DIR}/cuda/portable/${pass}.cu.in ${instance} @ONLY)
      list(APPEND instances ${instance})
    endforeach()
  endforeach()
endforeach()

add_library(ringattn_cuda OBJECT ${cuda_sources} ${instances})
ringattn_target(ringattn_cuda)
set_target_properties(ringattn_cuda PROPERTIES
  POSITION_INDEPENDENT_CODE ON
  CUDA_ARCHITECTURES OFF CUDA_SEPARABLE_COMPILATION OFF)
target_compile_options(ringattn_cuda PRIVATE
  $<$<COMPILE_LANGUAGE:CUDA>:${targets} -std=c++20 --expt-relaxed-constexpr --extended-lambda>)
target_include_directories(ringattn_cuda PRIVATE
  ${CMAKE_CURRENT_SOURCE_DIR} ${PROJECT_SOURCE_DIR}/include)
target_link_libraries(ringattn_cuda PUBLIC CUDA::cudart_static)
target_sources(ringattn PRIVATE $<TARGET_OBJECTS:ringattn_cuda>)
target_compile_definitions(ringattn PRIVATE RINGATTN_HAVE_CUDA=1)
target_link_libraries(ringattn PRIVATE CUDA::cudart_static)
