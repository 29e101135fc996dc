/* op.c - the ggml op: checks, construction, and the layout of its batch tensor. */
#include <math.h>
#include <string.h>

#include "ggml-impl.h"
#include "backend.h"
#include "choose.h"

_Static_assert(sizeof(struct plong_attn_params) <= GGML_MAX_OP_PARAMS, "parameters must fit into op_params");
_Static_assert(sizeof(struct plong_batch) % sizeof(int32_t) == 0, "a batch is a whole number of I32");

#define WORDS(n, type) ((size_t) (n) * (sizeof(type) / sizeof(int32_t)))

size_t plong_batch_words(int32_t n_slots, int32_t n_groups, int32_t n_runs, int32_t n_pages, int32_t n_checks) {
    return WORDS(1, struct plong_batch) + WORDS(n_slots, struct plong_slot) + WORDS(n_groups, struct plong_group) +
           WORDS(n_runs, struct plong_run) + WORDS(n_pages, struct plong_page) + WORDS(n_checks, int32_t);
}

const struct plong_slot * plong_batch_slots(const struct plong_batch * b) {
    return (const struct plong_slot *) (b + 1);
}

const struct plong_group * plong_batch_groups(const struct plong_batch * b) {
    return (const struct plong_group *) (plong_batch_slots(b) + b->n_slots);
}

const struct plong_run * plong_batch_runs(const struct plong_batch * b) {
    return (const struct plong_run *) (plong_batch_groups(b) + b->n_groups);
}

const struct plong_page * plong_batch_pages(const struct plong_batch * b) {
    return (const struct plong_page *) (plong_batch_runs(b) + b->n_runs);
}

const int32_t * plong_batch_checks(const struct plong_batch * b) {
    return (const int32_t *) (plong_batch_pages(b) + b->n_pages);
}

/* ---- the op --------------------------------------------------------------------------------------------------- */

static const char * check(
    const struct ggml_tensor * q, const struct ggml_tensor * k, const struct ggml_tensor * v,
    const struct plong_attn_params * params) {
    if (q->type != GGML_TYPE_F32) {
        return "the query is not F32";
    }
    if (q->ne[0] != k->ne[0]) {
        return "query and key head sizes differ";
    }
    if (k->ne[0] % ggml_blck_size(k->type) || v->ne[0] % ggml_blck_size(v->type)) {
        return "the head size is no multiple of the quantized cache's block";
    }
    if (k->ne[1] < 1 || q->ne[1] % k->ne[1] != 0 || k->ne[1] != v->ne[1]) {
        return "query heads are no multiple of the key heads";
    }
    if (k->ne[2] != v->ne[2] || k->ne[3] != v->ne[3]) {
        return "K and V hold different cells";
    }
    if (q->ne[3] != 1) {
        return "the query has a fourth dimension";
    }
    if (q->nb[0] != sizeof(float) || k->nb[0] != ggml_type_size(k->type) || v->nb[0] != ggml_type_size(v->type)) {
        return "rows are not contiguous (V is transposed when flash attention is off)";
    }
    if (params->n_rot < 0 || params->n_rot % 2 || params->n_rot > PLONG_MAX_ROT || params->rot_first < 0 ||
        params->rot_first > k->ne[0] - params->n_rot) {
        return "rotated dimensions do not fit the head size";
    }
    if (!(params->max_bias >= 0.0f)) {
        return "the ALiBi bias is negative";
    }
    if (!(params->soft_cap >= 0.0f && params->soft_cap < INFINITY)) {
        return "the cap of the logits is negative";
    }
    if (params->hadamard < 0 || (params->hadamard & (params->hadamard - 1)) ||
        (params->hadamard && k->ne[0] % params->hadamard)) {
        return "the Hadamard block does not divide the head size";
    }
    return NULL;
}

const char * plong_backend_supports(
    const struct plong_backend * backend, struct ggml_tensor * q, struct ggml_tensor * k, struct ggml_tensor * v,
    const struct plong_attn_params * params) {
    const char *       refusal = check(q, k, v, params);
    struct ggml_tensor op      = { .op = GGML_OP_LONG_ATTN };
    op.src[0]                  = q;
    op.src[1]                  = k;
    op.src[2]                  = v;
    ggml_set_op_params(&op, params, sizeof(*params));
    return refusal ? refusal : backend->supports(&op);
}

struct ggml_tensor * ggml_long_attn(
    struct ggml_context * ctx, struct ggml_tensor * q, struct ggml_tensor * k, struct ggml_tensor * v,
    const struct plong_inputs * inputs, const struct plong_attn_params * params) {
    const struct ggml_tensor * batch = inputs->batch, *work = inputs->work, *table = inputs->table;
    const struct ggml_tensor * sinks = inputs->sink_logits;
    GGML_ASSERT(check(q, k, v, params) == NULL);
    GGML_ASSERT(batch->type == GGML_TYPE_I32 && ggml_is_contiguous(batch));
    GGML_ASSERT(work->type == GGML_TYPE_I32 && ggml_is_contiguous(work));
    GGML_ASSERT(
        !table || (table->type == GGML_TYPE_F32 && ggml_is_contiguous(table) &&
                   (size_t) ggml_nelements(table) == PLONG_ROPE_TABLE_FLOATS(params->n_rot)));
    GGML_ASSERT(
        !sinks || (sinks->type == GGML_TYPE_F32 && ggml_is_contiguous(sinks) && ggml_nelements(sinks) == q->ne[1]));

    const int64_t        ne[4]  = { v->ne[0], q->ne[1], q->ne[2], 1 };
    struct ggml_tensor * result = ggml_new_tensor(ctx, GGML_TYPE_F32, 4, ne);
    ggml_set_op_params(result, params, sizeof(*params));
    result->op     = GGML_OP_LONG_ATTN;
    result->src[0] = q;
    result->src[1] = k;
    result->src[2] = v;
    result->src[3] = inputs->batch;
    result->src[4] = inputs->work;
    result->src[5] = inputs->table;
    result->src[6] = inputs->sink_logits;
    result->src[7] = inputs->choices;
    return result;
}

/* Whether a page of some index has this many bytes. */
static bool holds_page(int64_t bytes, int32_t d_k) {
    return bytes == (int64_t) plong_page_bytes(PLONG_INDEX_DIGITS, d_k) ||
           bytes == (int64_t) plong_page_bytes(PLONG_INDEX_RANKS, d_k) ||
           bytes == (int64_t) plong_page_bytes(PLONG_INDEX_DIGITS | PLONG_INDEX_RANKS, d_k);
}

struct ggml_tensor * ggml_long_choose(
    struct ggml_context * ctx, struct ggml_tensor * q, struct ggml_tensor * k, struct ggml_tensor * v,
    const struct plong_inputs * inputs, const struct plong_attn_params * params, int64_t n_words) {
    struct ggml_tensor * index = inputs->index;
    GGML_ASSERT(check(q, k, v, params) == NULL);
    GGML_ASSERT(!inputs->exact || (inputs->exact->type == GGML_TYPE_F32 && ggml_is_contiguous(inputs->exact)));
    GGML_ASSERT(
        !index || (index->type == GGML_TYPE_I8 && holds_page(index->ne[0], (int32_t) k->ne[0]) &&
                   index->ne[1] * PLONG_PAGE >= k->ne[2] && index->ne[2] == k->ne[1] && index->ne[3] == k->ne[3]));
    struct ggml_tensor * result = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, n_words);
    ggml_set_op_params(result, params, sizeof(*params));
    result->op     = GGML_OP_LONG_CHOOSE;
    result->src[0] = q;
    result->src[1] = k;
    result->src[2] = index;
    result->src[3] = inputs->batch;
    result->src[4] = inputs->work;
    result->src[5] = inputs->table;
    result->src[6] = inputs->sink_logits;
    result->src[7] = v;
    result->src[8] = inputs->exact;
    return result;
}

/* What both ops are given. */
static struct plong_call call_of(const struct ggml_tensor * op, const struct ggml_tensor * v) {
    const struct ggml_tensor *q = op->src[0], *k = op->src[1];
    struct plong_call         c = {
        .q           = q->data,
        .k           = k->data,
        .v           = v->data,
        .q_head      = q->nb[1],
        .q_tok       = q->nb[2],
        .k_head      = k->nb[1],
        .k_cell      = k->nb[2],
        .k_stream    = k->nb[3],
        .v_head      = v->nb[1],
        .v_cell      = v->nb[2],
        .v_stream    = v->nb[3],
        .k_type      = k->type,
        .v_type      = v->type,
        .d_k         = (int32_t) q->ne[0],
        .d_v         = (int32_t) v->ne[0],
        .n_head      = (int32_t) q->ne[1],
        .n_group     = (int32_t) (q->ne[1] / k->ne[1]),
        .batch       = (const struct plong_batch *) op->src[3]->data,
        .work        = (const struct plong_work *) op->src[4]->data,
        .table       = op->src[5] ? (const float *) op->src[5]->data : NULL,
        .sink_logits = op->src[6] ? (const float *) op->src[6]->data : NULL,
        .n_cells     = k->ne[2],
    };
    memcpy(&c.params, op->op_params, sizeof(c.params));
    return c;
}

struct plong_call plong_call_of(const struct ggml_tensor * op) {
    struct plong_call c = call_of(op, op->src[2]);
    c.out               = op->data;
    c.choices           = op->src[7] ? op->src[7]->data : NULL;
    return c;
}

struct plong_call plong_choosing_call_of(const struct ggml_tensor * op) {
    const struct ggml_tensor * index = op->src[2];
    struct plong_call          c     = call_of(op, op->src[7]);
    c.exact                          = op->src[8] ? (const float *) op->src[8]->data : NULL;
    c.choices                        = op->data;
    if (index) {
        c.index        = index->data;
        c.index_page   = index->nb[1];
        c.index_head   = index->nb[2];
        c.index_stream = index->nb[3];
    }
    return c;
}

float plong_alibi_slope(float max_bias, int32_t n_head, int32_t head) {
    int32_t even = 1;
    while (2 * even <= n_head) {
        even *= 2;
    }
    const float power = head < even ? (float) (head + 1) : (float) (2 * (head - even) + 1) / 2;
    return max_bias > 0.0f ? exp2f(-max_bias * power / (float) even) : 0.0f;
}

float plong_sink_weight(const struct plong_call * c, int32_t head, float m) {
    return c->sink_logits ? exp2f(c->sink_logits[head] * 1.44269504f - m) : 0.0f;
}

void plong_zero_strays(const struct plong_call * c) {
    const size_t               row = (size_t) c->n_head * c->d_v * sizeof(float);
    const struct plong_group * g   = plong_batch_groups(c->batch);
    int32_t                    at  = 0;
    for (int i = 0; i <= c->batch->n_groups; i++) {
        const int32_t next = i < c->batch->n_groups ? g[i].tok : c->batch->n_tokens;
        if (next > at) {
            memset(c->out + at * row, 0, (size_t) (next - at) * row);
        }
        at = i < c->batch->n_groups ? g[i].tok + g[i].n : at;
    }
}
