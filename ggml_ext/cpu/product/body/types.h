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

#define DEFINE(name, type, group, offset, mins, wide)               \
    static void many_##name(const struct panel * p, void * s) {     \
        many_rows(type, (struct kind) { group, mins, wide }, p, s); \
    }                                                               \
    static void few_##name(const struct panel * p, void * s) {      \
        few_rows(type, (struct kind) { group, mins, wide }, p, s);  \
    }
PLONG_FORMATS(DEFINE)

static void floats_f32(const struct panel * p, void * s) { float_rows(p, s); }

#define CASE(name, type, group, offset, mins, wide) \
    case type: return (struct kernels) { many_##name, few_##name };
static struct kernels kernels_of(enum ggml_type type) {
    switch (type) {
        PLONG_FORMATS(CASE)
        case GGML_TYPE_F32: return (struct kernels) { floats_f32, floats_f32 };
        default: GGML_ABORT("no products of this type");
    }
}
