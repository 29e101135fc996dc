# Adds the extension's hooks to upstream's libllama. Included by the last line of src/CMakeLists.txt.

set(plong_llama_sources
    ${PLONG_EXT_DIR}/llama/checks.cpp
    ${PLONG_EXT_DIR}/llama/config.cpp
    ${PLONG_EXT_DIR}/llama/graph.cpp
    ${PLONG_EXT_DIR}/llama/images.cpp
    ${PLONG_EXT_DIR}/llama/index.cpp
    ${PLONG_EXT_DIR}/llama/input.cpp
    ${PLONG_EXT_DIR}/llama/policy.cpp
    ${PLONG_EXT_DIR}/llama/positions.cpp
    ${PLONG_EXT_DIR}/llama/probe.cpp
    ${PLONG_EXT_DIR}/llama/cells.cpp
    ${PLONG_EXT_DIR}/llama/pretokenize.cpp
    ${PLONG_EXT_DIR}/llama/reads.cpp
    ${PLONG_EXT_DIR}/llama/regex_compile.cpp
    ${PLONG_EXT_DIR}/llama/factors.cpp
    ${PLONG_EXT_DIR}/llama/saved_factors.cpp
    ${PLONG_EXT_DIR}/llama/shift.cpp
    ${PLONG_EXT_DIR}/llama/rotate_cells.cpp
    ${PLONG_EXT_DIR}/llama/rope_node.cpp
    ${PLONG_EXT_DIR}/llama/rope_rotate.cpp
    ${PLONG_EXT_DIR}/llama/vocab.cpp)
target_sources(llama PRIVATE ${plong_llama_sources})
set_source_files_properties(${plong_llama_sources} PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
target_include_directories(llama PRIVATE ${PLONG_EXT_DIR} ${PLONG_EXT_DIR}/llama)
