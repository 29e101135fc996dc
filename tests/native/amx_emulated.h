/*
 * amx_emulated.h - AMX's tiles in plain C, included ahead of amx.c by the builds of run_cases that emulate them: so its
 * body runs on processors without AMX, and AddressSanitizer sees what tiles load and store.
 */
#ifndef PLONG_AMX_EMULATED_H
#define PLONG_AMX_EMULATED_H

#include <cpuid.h>
#include <immintrin.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define EMU_TILES 8

struct emu_config { /* 64 bytes, as the processor reads them */
    uint8_t  palette, start_row, zero[14];
    uint16_t bytes[16];
    uint8_t  rows[16];
};

static _Thread_local struct emu_config emu;
static _Thread_local uint8_t           emu_tile[EMU_TILES][16][64];

static inline void emu_load_config(const void * p) {
    memcpy(&emu, p, sizeof(emu));
    memset(emu_tile, 0, sizeof(emu_tile));
}

static inline void emu_store_config(void * p) { memcpy(p, &emu, sizeof(emu)); }

/* The processor faults where a tile is used that has no rows. */
static inline int emu_rows(int t) {
    if (emu.palette != 1 || emu.rows[t] < 1 || emu.rows[t] > 16 || emu.bytes[t] < 4 || emu.bytes[t] > 64) {
        fprintf(stderr, "tile %d is not configured: %d rows of %d bytes\n", t, emu.rows[t], emu.bytes[t]);
        abort();
    }
    return emu.rows[t];
}

static inline void emu_zero(int t) {
    emu_rows(t);
    memset(emu_tile[t], 0, sizeof(emu_tile[t]));
}

static inline void emu_load(int t, const void * p, size_t stride) {
    const int rows = emu_rows(t);
    memset(emu_tile[t], 0, sizeof(emu_tile[t]));
    for (int r = 0; r < rows; r++) {
        memcpy(emu_tile[t][r], (const char *) p + (size_t) r * stride, emu.bytes[t]);
    }
}

static inline void emu_store(int t, void * p, size_t stride) {
    for (int r = 0; r < emu_rows(t); r++) {
        memcpy((char *) p + (size_t) r * stride, emu_tile[t][r], emu.bytes[t]);
    }
}

/* c += a * b; rows of a by words of 4 bytes, which are rows of b */
static inline int emu_shape(int c, int a, int b, int * rows, int * columns) {
    *rows    = emu_rows(c);
    *columns = emu.bytes[c] / 4;
    if (emu_rows(a) != *rows || emu_rows(b) * 4 != emu.bytes[a] || emu.bytes[b] != emu.bytes[c]) {
        fprintf(stderr, "tiles %d, %d and %d do not fit\n", c, a, b);
        abort();
    }
    return emu.bytes[a] / 4;
}

static inline float emu_bf16(const uint8_t * p) {
    const uint32_t bits = (uint32_t) p[0] << 16 | (uint32_t) p[1] << 24;
    float          x;
    memcpy(&x, &bits, sizeof(x));
    return x;
}

static inline void emu_dot_bf16(int c, int a, int b) {
    int       rows, columns;
    const int depth = emu_shape(c, a, b, &rows, &columns);
    for (int m = 0; m < rows; m++) {
        for (int n = 0; n < columns; n++) {
            float sum;
            memcpy(&sum, emu_tile[c][m] + 4 * n, sizeof(sum));
            for (int k = 0; k < 2 * depth; k++) {
                sum += emu_bf16(emu_tile[a][m] + 2 * k) * emu_bf16(emu_tile[b][k / 2] + 4 * n + k % 2 * 2);
            }
            memcpy(emu_tile[c][m] + 4 * n, &sum, sizeof(sum));
        }
    }
}

static inline void emu_dot_int8(int c, int a, int b) {
    int       rows, columns;
    const int depth = emu_shape(c, a, b, &rows, &columns);
    for (int m = 0; m < rows; m++) {
        for (int n = 0; n < columns; n++) {
            int32_t sum;
            memcpy(&sum, emu_tile[c][m] + 4 * n, sizeof(sum));
            for (int k = 0; k < 4 * depth; k++) {
                sum += (int8_t) emu_tile[a][m][k] * (int8_t) emu_tile[b][k / 4][4 * n + k % 4];
            }
            memcpy(emu_tile[c][m] + 4 * n, &sum, sizeof(sum));
        }
    }
}

/* The processor's own answer, with AMX-BF16, AMX-TILE and AMX-INT8 in it. */
static inline int emu_cpuid(unsigned leaf, unsigned sub, unsigned * a, unsigned * b, unsigned * c, unsigned * d) {
    const int known = __get_cpuid_count(leaf, sub, a, b, c, d);
    if (leaf == 7 && sub == 0) {
        *d |= 1u << 22 | 1u << 24 | 1u << 25;
    }
    return known;
}

#undef _tile_loadconfig
#undef _tile_storeconfig
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stream_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#undef _tile_dpbssd
#define _tile_loadconfig(p)         emu_load_config(p)
#define _tile_storeconfig(p)        emu_store_config(p)
#define _tile_zero(t)               emu_zero(t)
#define _tile_loadd(t, p, s)        emu_load(t, p, s)
#define _tile_stream_loadd(t, p, s) emu_load(t, p, s)
#define _tile_stored(t, p, s)       emu_store(t, p, s)
#define _tile_dpbf16ps(c, a, b)     emu_dot_bf16(c, a, b)
#define _tile_dpbssd(c, a, b)       emu_dot_int8(c, a, b)
#define __get_cpuid_count           emu_cpuid
#define syscall(...)                0 /* the kernel is not asked for permission to use tiles */

#endif
