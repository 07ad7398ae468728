# SPDX-License-Identifier: Apache-2.0
# The CPU kernels: one source, compiled once per instruction set. The machine's own is chosen at
# run time, so that one build runs anywhere; nothing here may use -march=native.

# -O3 vectorises at every optimised build type; errno and traps of sqrtf or a division are not
# read by anyone, and keeping them would forbid vectors. NaN and inf keep their meaning.
# A product and the sum it feeds are one rounding where the machine can.
set(kernel_options $<$<NOT:$<CONFIG:Debug>>:-O3> -fno-math-errno -fno-trapping-math
    -ffp-contract=fast)

function(ringattn_kernels isa)
  add_library(ringattn_kernels_${isa} OBJECT ${CMAKE_CURRENT_SOURCE_DIR}/cpu/kernels.cpp)
  ringattn_target(ringattn_kernels_${isa})
  target_compile_definitions(ringattn_kernels_${isa} PRIVATE RINGATTN_ISA=${isa})
  target_compile_options(ringattn_kernels_${isa} PRIVATE ${kernel_options} ${ARGN})
  target_include_directories(ringattn_kernels_${isa} PRIVATE
    ${CMAKE_CURRENT_SOURCE_DIR} ${PROJECT_SOURCE_DIR}/include)
  set_target_properties(ringattn_kernels_${isa} PROPERTIES POSITION_INDEPENDENT_CODE ON)
  target_sources(ringattn PRIVATE $<TARGET_OBJECTS:ringattn_kernels_${isa}>)
endfunction()

if(EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/cpu/kernels.cpp)
  ringattn_kernels(baseline)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
    set(avx512 -march=x86-64-v4 -mprefer-vector-width=512)
    ringattn_kernels(avx2 -mavx2 -mfma -mf16c)
    ringattn_kernels(avx512 ${avx512})
    ringattn_kernels(avx512_bf16 ${avx512} -mavx512bf16)
    target_compile_definitions(ringattn PRIVATE RINGATTN_HAVE_X86=1)
  endif()
endif()
