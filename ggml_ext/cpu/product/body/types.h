/* types.h - both ways to multiply, for each type of weights. */

union scratch {
    struct many   many;
    struct few    few;
    struct floats floats;
};

struct kernels {
    void (*many)(const struct panel * p, void * scratch);
    void (*few)(const struct panel * p, void * scratch);
};

/* name, type, columns that share a scale, whether they have a min, and codes above 127 */
#define FOR_TYPES(F)                             \
    F(q8_0, GGML_TYPE_Q8_0, 32, false, true)     \
    F(q4_0, GGML_TYPE_Q4_0, 32, false, false)    \
    F(q4_1, GGML_TYPE_Q4_1, 32, true, false)     \
    F(q5_0, GGML_TYPE_Q5_0, 32, false, false)    \
    F(q5_1, GGML_TYPE_Q5_1, 32, true, false)     \
    F(iq4_nl, GGML_TYPE_IQ4_NL, 32, false, true) \
    F(mxfp4, GGML_TYPE_MXFP4, 32, false, false)  \
    F(q4_k, GGML_TYPE_Q4_K, 32, true, false)     \
    F(q5_k, GGML_TYPE_Q5_K, 32, true, false)     \
    F(q6_k, GGML_TYPE_Q6_K, 16, false, false)

#define DEFINE(name, type, group, mins, wide)                       \
    static void many_##name(const struct panel * p, void * s) {     \
        many_rows(type, (struct kind) { group, mins, wide }, p, s); \
    }                                                               \
    static void few_##name(const struct panel * p, void * s) {      \
        few_rows(type, (struct kind) { group, mins, wide }, p, s);  \
    }
FOR_TYPES(DEFINE)

static void floats_f32(const struct panel * p, void * s) { float_rows(p, s); }

#define CASE(name, type, group, mins, wide) \
    case type: return (struct kernels) { many_##name, few_##name };
static struct kernels kernels_of(enum ggml_type type) {
    switch (type) {
        FOR_TYPES(CASE)
        case GGML_TYPE_F32: return (struct kernels) { floats_f32, floats_f32 };
        default: GGML_ABORT("no products of this type");
    }
}
