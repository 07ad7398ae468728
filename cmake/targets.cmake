# SPDX-License-Identifier: Apache-2.0
# What every target of this project has in common: the language, the warnings, the sanitizers.

if(RINGATTN_SANITIZE)
  # For the whole build tree: a sanitizer that covers half of a program reports nonsense.
  add_compile_options(-fsanitize=${RINGATTN_SANITIZE} -fno-sanitize-recover=all
                      -fno-omit-frame-pointer)
  add_link_options(-fsanitize=${RINGATTN_SANITIZE})
endif()

# ringattn_target(<target>): language and warnings.
function(ringattn_target target)
  target_compile_features(${target} PUBLIC cxx_std_20)
  set_target_properties(${target} PROPERTIES CXX_EXTENSIONS OFF)
  target_compile_options(${target} PRIVATE
    $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wshadow;-Wconversion;-Wno-sign-conversion>)
  if(RINGATTN_WARNINGS_AS_ERRORS)
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-Werror>)
  endif()
endfunction()

# ringattn_quick_build(<target>): code that is never hot, and slow to compile for the headers that it
# includes, is optimised less while developing.
function(ringattn_quick_build target)
  target_compile_options(${target} PRIVATE $<$<CONFIG:RelWithDebInfo>:-O1> $<$<CONFIG:RelWithDebInfo>:-g1>)
endfunction()

# ringattn_fuzzed(<target>): code that reads what comes from outside; fuzzers watch where it goes.
function(ringattn_fuzzed target)
  if(RINGATTN_BUILD_FUZZ)
    target_compile_options(${target} PRIVATE -fsanitize=fuzzer-no-link)
  endif()
endfunction()

# ringattn_library(<target> <sources>...): a static library, or an interface while there are no
# sources. Never installed.
function(ringattn_library target)
  if(ARGN)
    add_library(${target} STATIC ${ARGN})
    ringattn_target(${target})
    set_target_properties(${target} PROPERTIES POSITION_INDEPENDENT_CODE ON)
  else()
    add_library(${target} INTERFACE)
  endif()
endfunction()

# ringattn_link(<target> <libraries>...): PUBLIC, or INTERFACE where that is all there can be.
function(ringattn_link target)
  get_target_property(type ${target} TYPE)
  if(type STREQUAL "INTERFACE_LIBRARY")
    target_link_libraries(${target} INTERFACE ${ARGN})
  else()
    target_link_libraries(${target} PUBLIC ${ARGN})
  endif()
endfunction()
