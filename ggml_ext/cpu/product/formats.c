/* formats.c - the types of weights whose products are computed here. */
#include "cpu/product/product.h"

static const struct plong_format formats[] = {
    { .type = GGML_TYPE_F32, .floats = true },
    { .type = GGML_TYPE_Q8_0, .group = 32, .offset = 128, .wide = true },
    { .type = GGML_TYPE_Q4_0, .group = 32, .offset = 8 },
    { .type = GGML_TYPE_Q4_1, .group = 32, .mins = true },
    { .type = GGML_TYPE_Q5_0, .group = 32, .offset = 16 },
    { .type = GGML_TYPE_Q5_1, .group = 32, .mins = true },
    { .type = GGML_TYPE_IQ4_NL, .group = 32, .offset = 128, .wide = true },
    { .type = GGML_TYPE_MXFP4, .group = 32, .offset = 12 },
    { .type = GGML_TYPE_Q4_K, .group = 32, .mins = true },
    { .type = GGML_TYPE_Q5_K, .group = 32, .mins = true },
    { .type = GGML_TYPE_Q6_K, .group = 16, .offset = 32 },
};

const struct plong_format * plong_format_of(enum ggml_type type) {
    for (size_t i = 0; i < sizeof(formats) / sizeof(*formats); i++) {
        if (formats[i].type == type) {
            return &formats[i];
        }
    }
    return NULL;
}
