/* yarn.h - YaRN's ramp over the pairs of dimensions, for its policy and for the RoPE nodes of models. */
#ifndef PLONG_YARN_H
#define PLONG_YARN_H

#include <math.h>

#ifndef M_PI
#define M_PI 3.14159265358979323846
#endif

/* Pairs up to `low` keep their frequency, pairs from `high` on are interpolated. */
struct plong_yarn_ramp {
    double low, high;
};

/* The pair whose wave fits `beta` times into the trained length, as a real number. */
static inline double plong_yarn_pair(double n_rot, double base, double n_train, double beta) {
    return n_rot * log(n_train / (2 * M_PI * beta)) / (2 * log(base));
}

static inline struct plong_yarn_ramp plong_yarn_ramp_of(
    double n_rot, double base, double n_train, double beta_fast, double beta_slow) {
    const struct plong_yarn_ramp ramp = {
        fmax(0, floor(plong_yarn_pair(n_rot, base, n_train, beta_fast))),
        fmin(n_rot - 1, ceil(plong_yarn_pair(n_rot, base, n_train, beta_slow))),
    };
    return ramp;
}

/* The share of interpolation of pair i: 0 to 1. */
static inline double plong_yarn_ramp_at(struct plong_yarn_ramp ramp, int i) {
    return fmin(1, fmax(0, (i - ramp.low) / fmax(0.001, ramp.high - ramp.low)));
}

#endif
