# Adds the extension to upstream's ggml-base and ggml-cpu. Included by the last line of ggml/src/CMakeLists.txt.

target_sources(ggml-base PRIVATE
    ${PLONG_EXT_DIR}/choose.c
    ${PLONG_EXT_DIR}/lsh.c
    ${PLONG_EXT_DIR}/op.c
    ${PLONG_EXT_DIR}/plan.c
    ${PLONG_EXT_DIR}/ranges.c
    ${PLONG_EXT_DIR}/readers.c
    ${PLONG_EXT_DIR}/rope.c
    ${PLONG_EXT_DIR}/sample.c
    ${PLONG_EXT_DIR}/tiles.c
    ${PLONG_EXT_DIR}/verify.c
    ${PLONG_EXT_DIR}/work.c)
# Backends that the op has no kernels for.
target_sources(ggml-base PRIVATE ${PLONG_EXT_DIR}/cuda/absent.c ${PLONG_EXT_DIR}/metal/absent.c)
target_include_directories(ggml-base PUBLIC $<BUILD_INTERFACE:${PLONG_EXT_DIR}>)

if (TARGET ggml-cpu)
    # A target of its own, so that -march=native of ggml-cpu does not reach the per-ISA bodies.
    add_library(plong-cpu OBJECT)
    set_target_properties(plong-cpu PROPERTIES POSITION_INDEPENDENT_CODE ON C_STANDARD 11)
    target_link_libraries(plong-cpu PRIVATE ggml-base)
    target_include_directories(plong-cpu PRIVATE ${PLONG_EXT_DIR} . ggml-cpu)

    if (CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
        set(plong_isas avx512 avx2 scalar)
        set(plong_table x86)
        include(CheckCSourceCompiles)
        set(CMAKE_REQUIRED_FLAGS "-mavx512f -mavx512bf16 -mavx512vnni -mavx512vbmi")
        check_c_source_compiles("
            #include <immintrin.h>
            int main(void) { __m512 x = _mm512_setzero_ps();
                             x = _mm512_dpbf16_ps(x, (__m512bh) x, (__m512bh) x);
                             return (int) _mm512_reduce_add_ps(x); }" PLONG_HAVE_AVX512BF16)
        if (PLONG_HAVE_AVX512BF16)
            list(PREPEND plong_isas avx512bf16)
            target_compile_definitions(plong-cpu PRIVATE PLONG_AVX512BF16)
        endif()
        set(CMAKE_REQUIRED_FLAGS "-mamx-tile -mamx-bf16 -mamx-int8 -mavx512bf16 -mavx512f")
        check_c_source_compiles("
            #include <immintrin.h>
            int main(void) { _tile_zero(0); _tile_dpbf16ps(0, 1, 2); return 0; }" PLONG_HAVE_AMX)
        unset(CMAKE_REQUIRED_FLAGS)
        if (PLONG_HAVE_AMX AND PLONG_HAVE_AVX512BF16 AND CMAKE_SYSTEM_NAME STREQUAL "Linux")
            list(PREPEND plong_isas amx)
            target_compile_definitions(plong-cpu PRIVATE PLONG_AMX)
        endif()
    elseif (CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64|ARM64)$")
        set(plong_isas neon scalar)
        set(plong_table arm)
        include(CheckCSourceCompiles)
        set(CMAKE_REQUIRED_FLAGS "-march=armv8.2-a+bf16")
        check_c_source_compiles("
            #include <arm_neon.h>
            int main(void) { bfloat16x8_t x = vreinterpretq_bf16_u16(vdupq_n_u16(0));
                             return (int) vaddvq_f32(vbfmmlaq_f32(vdupq_n_f32(0), x, x)); }" PLONG_HAVE_NEONBF16)
        unset(CMAKE_REQUIRED_FLAGS)
        if (PLONG_HAVE_NEONBF16)
            list(PREPEND plong_isas neonbf16)
            target_compile_definitions(plong-cpu PRIVATE PLONG_NEONBF16)
        endif()
    else()
        set(plong_isas scalar)
        set(plong_table generic)
    endif()
    set(PLONG_OPTIMIZE -O3 CACHE STRING "How the kernels are optimized")
    set(plong_flags_avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c)
    set(plong_flags_avx512bf16 ${plong_flags_avx512} -mavx512bf16 -mavx512vbmi -mavx512vnni)
    set(plong_flags_amx ${plong_flags_avx512bf16} -mamx-tile -mamx-bf16 -mamx-int8)
    set(plong_flags_avx2 -mavx2 -mfma -mf16c)
    set(plong_flags_neonbf16 -march=armv8.2-a+bf16)

    target_sources(plong-cpu PRIVATE ${PLONG_EXT_DIR}/cpu/apart.c ${PLONG_EXT_DIR}/cpu/choose.c ${PLONG_EXT_DIR}/cpu/dispatch.c
        ${PLONG_EXT_DIR}/cpu/isa.c ${PLONG_EXT_DIR}/cpu/queue.c ${PLONG_EXT_DIR}/cpu/trial.c ${PLONG_EXT_DIR}/cpu/table_${plong_table}.c)
    foreach (isa ${plong_isas})
        target_sources(plong-cpu PRIVATE ${PLONG_EXT_DIR}/cpu/${isa}/${isa}.c)
        set_source_files_properties(${PLONG_EXT_DIR}/cpu/${isa}/${isa}.c PROPERTIES
            COMPILE_OPTIONS "${plong_flags_${isa}};${PLONG_OPTIMIZE};-fno-math-errno")
    endforeach()
    # Products of quantized weights: instruction sets of their own.
    set(plong_product_flags_avx512vnni -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mavx2 -mfma -mf16c)
    set(plong_product_flags_avx2 -mavx2 -mfma -mf16c)
    set(plong_product_flags_avxvnni ${plong_product_flags_avx2} -mavxvnni)
    set(plong_products)
    if (plong_table STREQUAL "x86")
        set(plong_products avx512vnni avx2)
        set(CMAKE_REQUIRED_FLAGS "-mavx2 -mavxvnni")
        check_c_source_compiles("
            #include <immintrin.h>
            int main(void) { __m256i x = _mm256_setzero_si256();
                             return _mm256_extract_epi32(_mm256_dpbusd_avx_epi32(x, x, x), 0); }" PLONG_HAVE_AVXVNNI)
        unset(CMAKE_REQUIRED_FLAGS)
        if (PLONG_HAVE_AVXVNNI)
            list(APPEND plong_products avxvnni)
            target_compile_definitions(plong-cpu PRIVATE PLONG_AVXVNNI)
        endif()
    endif()
    target_sources(plong-cpu PRIVATE ${PLONG_EXT_DIR}/cpu/product/formats.c ${PLONG_EXT_DIR}/cpu/product/mul_mat.c
        ${PLONG_EXT_DIR}/cpu/product/select.c)
    foreach (isa ${plong_products})
        target_sources(plong-cpu PRIVATE ${PLONG_EXT_DIR}/cpu/product/${isa}.c)
        set_source_files_properties(${PLONG_EXT_DIR}/cpu/product/${isa}.c PROPERTIES
            COMPILE_OPTIONS "${plong_product_flags_${isa}};${PLONG_OPTIMIZE};-fno-math-errno;-fno-trapping-math")
    endforeach()
    target_sources(ggml-cpu PRIVATE $<TARGET_OBJECTS:plong-cpu>)
endif()
