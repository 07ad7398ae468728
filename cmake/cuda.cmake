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

# ringattn_instance(<list> <template> <name> <type> <dim> [<cap>]): one small file per kernel.
function(ringattn_instance list template name type dim)
  set(cap ${ARGV5})
  set(instance ${CMAKE_CURRENT_BINARY_DIR}/cuda/${name}.cu)
  configure_file(${CMAKE_CURRENT_SOURCE_DIR}/cuda/${template} ${instance} @ONLY)
  set(${list} ${${list}} ${instance} PARENT_SCOPE)
endfunction()

file(GLOB cuda_sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/cuda/*.cpp
     ${CMAKE_CURRENT_SOURCE_DIR}/cuda/*.cu ${CMAKE_CURRENT_SOURCE_DIR}/cuda/sm90/*.cpp)
file(GLOB hopper_sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/cuda/sm90/*.cu)
set(portable)
set(hopper)
foreach(dim 64 128 256)
  foreach(type __nv_bfloat16 __half float)
    foreach(pass forward backward)
      ringattn_instance(portable portable/${pass}.cu.in portable_${pass}_${type}_${dim} ${type} ${dim})
    endforeach()
  endforeach()
  foreach(type __nv_bfloat16 __half)
    foreach(cap false true)
      ringattn_instance(hopper sm90/forward.cu.in sm90_forward_${type}_${dim}_${cap} ${type} ${dim} ${cap})
      if(dim LESS_EQUAL 128)
        ringattn_instance(hopper sm90/backward.cu.in sm90_backward_${type}_${dim}_${cap} ${type} ${dim} ${cap})
      else()
        foreach(pass query_gradient key_gradient)
          ringattn_instance(hopper sm90/${pass}.cu.in sm90_${pass}_${type}_${dim}_${cap} ${type} ${dim} ${cap})
        endforeach()
      endif()
    endforeach()
  endforeach()
endforeach()

# ringattn_cuda_objects(<target> <targets of nvcc> <sources>...)
function(ringattn_cuda_objects target architectures)
  add_library(${target} OBJECT ${ARGN})
  ringattn_target(${target})
  set_target_properties(${target} PROPERTIES
    POSITION_INDEPENDENT_CODE ON
    CUDA_ARCHITECTURES OFF CUDA_SEPARABLE_COMPILATION OFF)
  target_compile_options(${target} PRIVATE
    $<$<COMPILE_LANGUAGE:CUDA>:${architectures} -std=c++20 --expt-relaxed-constexpr --extended-lambda>)
  target_include_directories(${target} PRIVATE
    ${CMAKE_CURRENT_SOURCE_DIR} ${PROJECT_SOURCE_DIR}/include)
  target_link_libraries(${target} PUBLIC CUDA::cudart_static)
  target_sources(ringattn PRIVATE $<TARGET_OBJECTS:${target}>)
endfunction()

ringattn_cuda_objects(ringattn_cuda "${targets}" ${cuda_sources} ${portable})
ringattn_cuda_objects(ringattn_cuda_sm90 "-gencode=arch=compute_90a,code=sm_90a" ${hopper} ${hopper_sources})
target_compile_definitions(ringattn PRIVATE RINGATTN_HAVE_CUDA=1)
target_link_libraries(ringattn PRIVATE CUDA::cudart_static)
