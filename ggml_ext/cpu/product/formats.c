/* formats.c - the types of weights whose products are computed here. */
#include "cpu/product/product.h"

#define FORMAT(name, type, group, offset, mins, wide) { type, false, group, offset, mins, wide },

static const struct plong_format formats[] = { { .type = GGML_TYPE_F32, .floats = true }, PLONG_FORMATS(FORMAT) };

const struct plong_format * plong_format_of(enum ggml_type type) {
    for (size_t i = 0; i < sizeof(formats) / sizeof(*formats); i++) {
        if (formats[i].type == type) {
            return &formats[i];
        }
    }
    return NULL;
}
