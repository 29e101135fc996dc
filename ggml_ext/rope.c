/* rope.c - frequencies, position maps and exact rotation tables. Angles are computed in double precision. */
#include <math.h>
#include <string.h>

#include "ggml_ext.h"
#include "position_map.h"
#include "yarn.h"

const char * plong_rope_check(const struct plong_rope * rope) {
    if (rope->freq < PLONG_FREQ_NATIVE || rope->freq > PLONG_FREQ_LONGROPE) {
        return "RoPE policy: unknown frequency policy";
    }
    if (rope->map < PLONG_MAP_ABSOLUTE || rope->map > PLONG_MAP_REROPE) {
        return "RoPE policy: unknown position map";
    }
    if (rope->freq != PLONG_FREQ_NATIVE && !(rope->factor >= 1.0f && isfinite(rope->factor))) {
        return "RoPE policy: the factor must be a finite number >= 1";
    }
    if (rope->freq == PLONG_FREQ_YARN &&
        !(rope->beta_slow > 0.0f && rope->beta_fast > rope->beta_slow && isfinite(rope->beta_fast))) {
        return "RoPE policy: yarn needs finite numbers beta_fast > beta_slow > 0";
    }
    if (rope->freq == PLONG_FREQ_LLAMA3 &&
        !(rope->low_freq > 0.0f && rope->high_freq > rope->low_freq && isfinite(rope->high_freq))) {
        return "RoPE policy: llama3 needs finite numbers high_freq > low_freq > 0";
    }
    if (rope->freq == PLONG_FREQ_LONGROPE) {
        if (rope->n_factors < 1 || rope->n_factors > PLONG_MAX_ROT / 2) {
            return "RoPE policy: longrope needs one factor per pair of dimensions";
        }
        for (int i = 0; i < rope->n_factors; i++) {
            if (!(rope->factors[i] > 0.0f && isfinite(rope->factors[i]))) {
                return "RoPE policy: longrope factors must be positive";
            }
        }
    }
    if ((rope->freq >= PLONG_FREQ_YARN || rope->logn || rope->map != PLONG_MAP_ABSOLUTE) && rope->n_train < 2) {
        return "RoPE policy: the trained length is missing";
    }
    if (rope->dynamic) {
        if (rope->freq != PLONG_FREQ_NTK && rope->freq != PLONG_FREQ_YARN) {
            return "RoPE policy: only ntk and yarn have a dynamic factor";
        }
        if (rope->map != PLONG_MAP_ABSOLUTE) {
            return "RoPE policy: a dynamic factor and a position map exclude each other";
        }
        if (rope->n_train < 2) {
            return "RoPE policy: the trained length is missing";
        }
    }
    if (rope->map != PLONG_MAP_ABSOLUTE && (rope->chunk > PLONG_LONGEST || rope->local > PLONG_LONGEST)) {
        return "RoPE policy: a chunk, group or window is longer than 2^30 tokens";
    }
    switch (rope->map) {
        case PLONG_MAP_DCA:
            if (rope->local < 0 || rope->chunk < 2 || rope->local >= rope->chunk) {
                return "RoPE policy: dca needs 0 <= local < chunk";
            }
            break;
        case PLONG_MAP_SELF_EXTEND:
            if (rope->chunk < 1 || rope->local < 1) {
                return "RoPE policy: self-extend needs group >= 1 and window >= 1";
            }
            break;
        case PLONG_MAP_REROPE:
            if (rope->chunk < 1) {
                return "RoPE policy: rerope needs window >= 1";
            }
            break;
        default: break;
    }
    return NULL;
}

float plong_rope_freqs(
    const struct plong_rope * rope, int32_t n_rot, double base, const float * model_factors, double * f) {
    const int    n = n_rot / 2;
    const double s = (double) rope->factor, L = rope->n_train, d = n_rot;
    for (int i = 0; i < n; i++) {
        f[i] = pow(base, -2.0 * i / d);
        if (rope->freq == PLONG_FREQ_NATIVE && model_factors) {
            f[i] /= (double) model_factors[i];
        }
    }
    switch (rope->freq) {
        case PLONG_FREQ_LINEAR:
            for (int i = 0; i < n; i++) {
                f[i] /= s;
            }
            return 1.0f;
        case PLONG_FREQ_NTK: {
            const double scaled = base * pow(s, d > 2 ? d / (d - 2) : 1.0);
            for (int i = 0; i < n; i++) {
                f[i] = pow(scaled, -2.0 * i / d);
            }
            return 1.0f;
        }
        case PLONG_FREQ_YARN: {
            const struct plong_yarn_ramp ramp =
                plong_yarn_ramp_of(d, base, L, (double) rope->beta_fast, (double) rope->beta_slow);
            for (int i = 0; i < n; i++) {
                const double share = plong_yarn_ramp_at(ramp, i);
                f[i] *= share / s + (1 - share);
            }
            return (float) (0.1 * log(s) + 1.0);
        }
        case PLONG_FREQ_LLAMA3: {
            const double low = (double) rope->low_freq, high = (double) rope->high_freq;
            for (int i = 0; i < n; i++) {
                const double wave = 2 * M_PI / f[i];
                if (wave > L / low) {
                    f[i] /= s;
                } else if (wave >= L / high) {
                    const double smooth = (L / wave - low) / (high - low);
                    f[i] *= (1 - smooth) / s + smooth;
                }
            }
            return 1.0f;
        }
        case PLONG_FREQ_LONGROPE:
            for (int i = 0; i < n; i++) {
                f[i] /= i < rope->n_factors ? (double) rope->factors[i] : 1.0;
            }
            return (float) (s <= 1 ? 1.0 : sqrt(1 + log(s) / log(L)));
        default: return 1.0f;
    }
}

int32_t plong_rope_stored(const struct plong_rope * rope, int32_t t) { return plong_map_stored(rope, rope->map, t); }

int32_t plong_rope_distance(const struct plong_rope * rope, int32_t p, int32_t t) {
    const int     zone = plong_map_zone(rope, rope->map, p, t);
    const int32_t key  = plong_map_unfolds(rope->map, zone) ? t : plong_map_stored(rope, rope->map, t);
    return plong_map_query(rope, rope->map, zone, p) - key;
}

float plong_rope_logn(const struct plong_rope * rope, int32_t p) {
    if (!rope->logn || (int64_t) p + 1 <= rope->n_train) {
        return 1.0f;
    }
    return (float) (log((double) p + 1) / log((double) rope->n_train));
}

void plong_rope_table(const double * f, int32_t n_rot, float * table) {
    const int n = n_rot / 2;
    for (int level = 0; level < 4; level++) {
        const double step = (double) ((int64_t) 1 << (8 * level));
        for (int digit = 0; digit < 256; digit++) {
            float * row = table + ((size_t) level * 256 + digit) * n_rot;
            for (int i = 0; i < n; i++) {
                /* |position| < 2^32 and f <= 1: the double product keeps the angle to 1e-6 rad */
                const double angle = fmod(f[i] * (step * digit), 2 * M_PI);
                row[2 * i]         = (float) cos(angle);
                row[2 * i + 1]     = (float) sin(angle);
            }
        }
    }
}

void plong_rope_angles(const float * table, int32_t n_rot, const int64_t * pos, int64_t n, float * out) {
    const int pairs = n_rot / 2;
    for (int64_t j = 0; j < n; j++) {
        const bool negative = pos[j] < 0;
        uint64_t   rest     = (uint64_t) (negative ? -pos[j] : pos[j]);
        float *    row      = out + j * n_rot;
        for (int i = 0; i < pairs; i++) {
            row[2 * i]     = 1.0f;
            row[2 * i + 1] = 0.0f;
        }
        for (int level = 0; level < 4 && rest; level++, rest >>= 8) {
            const float * e = table + ((size_t) level * 256 + (rest & 255)) * n_rot;
            if ((rest & 255) == 0) {
                continue;
            }
            for (int i = 0; i < pairs; i++) {
                const float c = row[2 * i], s = row[2 * i + 1];
                row[2 * i]     = c * e[2 * i] - s * e[2 * i + 1];
                row[2 * i + 1] = c * e[2 * i + 1] + s * e[2 * i];
            }
        }
        if (negative) {
            for (int i = 0; i < pairs; i++) {
                row[2 * i + 1] = -row[2 * i + 1];
            }
        }
    }
}
