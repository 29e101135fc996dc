/*
 * body.h - the products, written once for all instruction sets. Before it is included, a file defines PLONG_NAME(x),
 * PLONG_ISA_STRING, isa_usable(), and the vectors that it computes with:
 *
 *     vf, VW, vf_*             floats (simd/vf.h), and how many are in a vector
 *     vi, vi_*                 as many 32-bit integers: zero set1 load add float
 *     vc, vc_load              4 * VW bytes
 *     vi_dot(acc, w, x)        acc + w . x in each lane: 4 unsigned codes of w, 4 signed ones of x
 *     vi_sums_32(a), vi_sums_16(a)     sums of lanes of a[8] and a[4], for each 32 and 16 bytes of the vectors that made
 *                              them, one after another
 *     ROWS, FLOAT_ROWS         rows of activations that are multiplied at once with quantized weights, and with floats
 *     SIGNED_CODES             1: codes of Q8_0 and IQ4_NL are signed bytes here, and vi_dot_wide() takes them; 0: plus 128
 *     b32, b32_*               32 bytes: load, or; flip: ^ 128; field(x, n, mask): x >> n & mask, n < 0: x << -n;
 *                              nibbles(q): the low ones of 16 bytes, then the high ones; bits(q): 16 where one of 32 bits
 *                              is set; look_up(values, at): values[at], 16 of them
 *     vc_codes(b)              the codes of b[VW / 8]
 *     halves, exponents        n scales that are `stride` bytes apart, as floats
 *     six_bits(block, ...)     the 8 scales and mins of a block of Q4_K or Q5_K; signed_16(d, bytes, to) those of Q6_K
 *     whole_codes, whole_scales    if WHOLE_CODES or WHOLE_SCALES is defined: other ways for the types that has_whole_*() names
 */
#include "cpu/product/body/pack.h"
#include "cpu/product/body/unpack.h"
#include "cpu/product/body/panel.h"
#include "cpu/product/body/many.h"
#include "cpu/product/body/few.h"
#include "cpu/product/body/floats.h"
#include "cpu/product/body/types.h"

static void PLONG_NAME(run)(const struct plong_tile_product * job, void * scratch) {
    const struct kernels k = kernels_of(job->format->type);
    for (int64_t column = 0; column < job->columns; column += PLONG_PANEL) {
        const int64_t      left = job->columns - column;
        const struct panel p    = panel_of(job, column, left < PLONG_PANEL ? (int) left : PLONG_PANEL);
        (job->n_rows <= FEW ? k.few : k.many)(&p, scratch);
    }
}

const struct plong_product PLONG_NAME(plong_product) = {
    .name    = PLONG_ISA_STRING,
    .usable  = isa_usable,
    .tile    = TILE,
    .scratch = sizeof(union scratch),
    .pack    = PLONG_NAME(pack),
    .run     = PLONG_NAME(run),
};
