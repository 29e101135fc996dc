/* pack.h - activations rounded to 8 bits. */

/* The larger of the absolute values' bits: those of a NaN are larger than all others. */
static inline uint32_t largest_bits(const float * x) {
    uint32_t most = 0;
    for (int i = 0; i < 32; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof(bits));
        bits &= 0x7fffffff;
        most = bits > most ? bits : most;
    }
    return most;
}

/* Rounds 32 values; returns their scale. One that is not finite makes it NaN, and with it the row's outputs. */
static inline float round_group(const float * x, int8_t * q) {
    const uint32_t bits = largest_bits(x);
    float          most;
    memcpy(&most, &bits, sizeof(most));
    if (!(most <= FLT_MAX)) {
        memset(q, 0, 32);
        return NAN;
    }
    const float up = most > 0 ? 127 / most : 0;
    if (!(up <= FLT_MAX)) { /* so small that they are as good as zero */
        memset(q, 0, 32);
        return 0;
    }
    for (int i = 0; i < 32; i++) {
        q[i] = (int8_t) (int32_t) rintf(x[i] * up);
    }
    return most / 127;
}

static void PLONG_NAME(pack)(const struct plong_format * format, const float * x, int n, void * panel) {
    struct plong_activations * to = panel;
    if (format->floats) {
        memcpy(panel, x, (size_t) n * sizeof(float));
        return;
    }
    const int offset = format->wide && SIGNED_CODES ? 0 : format->offset;
    for (int i = 0; i < n; i += 32) {
        const float scale = round_group(x + i, to->q + i);
        for (int g = i / format->group; g < (i + 32) / format->group; g++) {
            to->scale[g] = scale;
        }
    }
    for (int g = 0; g < n / format->group; g++) {
        int32_t sum = 0;
        for (int i = 0; i < format->group; i++) {
            sum += to->q[g * format->group + i];
        }
        if (format->mins) {
            to->sum[g] = to->scale[g] * (float) sum;
        } else {
            to->shift[g] = -offset * sum;
        }
    }
}
