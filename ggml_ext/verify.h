/*
 * verify.h - how large a sample must be, so that the relative errors of numerator and denominator stay under eps with
 * probability 1 - delta (vAttention, arXiv 2510.05688).
 *
 * One key of each of b strata of n keys, whose terms have the variance s^2, estimates the sum of all of them with a variance
 * of at most n^2 s^2 / b, and with a normal error where b is not small. So for a sum S
 *
 *     b = (z n s / (eps |S|))^2,  z = Phi^-1(1 - delta / 4)
 *
 * keeps the error under eps |S| with probability 1 - delta / 2. For the denominator the terms are x = e^logit; for the
 * numerator x v, where s^2 is the trace of their covariance and the norm Euclid's: of all errors with this trace, one along
 * a single direction is the most likely to be large (Szekely & Bakirov, 2003; for delta below 0.4).
 *
 * S and s are estimated from the keys that are read exactly and from a base sample of the others. That misses large terms
 * that are rare, but the index has all keys, and knows the sum of the terms of each piece:
 *
 *   - A piece is read exactly where this costs less than the strata which its terms would ask for: if their sum is x more
 *     than n / N times the sum over all N keys, and all of that one term, (z x / (eps S))^2 N strata.
 *   - What the others have beyond what the base sample lets expect counts as one term each.
 */
#ifndef PLONG_VERIFY_H
#define PLONG_VERIFY_H

#include "sample.h"

#ifdef __cplusplus
extern "C" {
#endif

#define PLONG_ROW_PAD 32

/* What a tile's rows have of its pieces, by the index: sums of 2^logit over the keys of a piece, terms[row * stride + piece]
 * times 2^top[row]. */
struct plong_terms {
    const float * terms;
    const float * top;
    int32_t       stride;
};

/* Sums that a backend computes, of all rows of a tile over keys that are read exactly. */
struct plong_summing {
    /* Adds pieces[which[0 .. n)], `which` ascending; the first time also the keys of set parts. */
    void (*add)(void * self, const struct plong_piece * pieces, const int32_t * which, int32_t n);
    void *               self;
    struct plong_softmax state;
    int32_t              stride; /* floats of a row of state.acc */
};

/* What it takes to verify a tile's choice. */
struct plong_verifying {
    struct plong_terms terms;
    /* Converts a row of K or V; it may write zeros up to a multiple of PLONG_ROW_PAD. */
    void (*to_f32)(int32_t type, const void * src, float * dst, int32_t d);
    struct plong_summing exact;
    void *               scratch; /* of plong_verify_scratch() */
};

/* Scratch bytes for tiles of up to this many rows and pieces. */
PLONG_API size_t plong_verify_scratch(int32_t d_k, int32_t d_v, int32_t rows, int64_t pieces);

/* Whether so few keys are to choose from that all are read without a look at them. */
PLONG_API bool plong_verify_few(const struct plong_piece * pieces, int32_t n);

/* For a tile of one token, whose choice so far is pieces[chosen[0 .. *n_chosen)], ascending: adds pieces to it, and returns the
 * number of strata of the others. Where that is not cheaper than reading all keys, or v is NULL, it chooses all pieces. */
int32_t plong_verify(
    const struct plong_call * call, const struct plong_tile * tile, const struct plong_piece * pieces, int32_t n,
    int32_t * chosen, int32_t * n_chosen, struct plong_verifying * v);

#ifdef __cplusplus
}
#endif

#endif
