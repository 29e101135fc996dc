/* plan.c - which keys a query reads: checks, brute-force listings, counts, and the key ranges of a query tile. */
#include "plan.h"

#include <math.h>
#include <stdio.h>

#define VERIFY_MOST 4096 /* keys of a verified sample: choices are memory */

static inline int32_t min_i32(int32_t a, int32_t b) { return a < b ? a : b; }
static inline int32_t max_i32(int32_t a, int32_t b) { return a > b ? a : b; }

static const char * phase_check(const struct plong_phase * ph) {
    if (ph->sinks < 0 || ph->window < 0 || ph->global < 0 || ph->dense_below < 0) {
        return "attention plan: negative token count";
    }
    if (ph->weight < PLONG_WEIGHT_COUNT || ph->weight > PLONG_WEIGHT_NONE) {
        return "attention plan: unknown dilated weight";
    }
    if (ph->align < PLONG_ALIGN_SEGMENT || ph->align > PLONG_ALIGN_QUERY) {
        return "attention plan: unknown dilated alignment";
    }
    if (ph->n_branches < 0 || ph->n_branches > PLONG_MAX_BRANCHES) {
        return "attention plan: too many dilated branches";
    }
    if (ph->top_blocks < 0 || ph->top_least < 0) {
        return "attention plan: negative number of blocks";
    }
    if (ph->top_blocks > 0) {
        if (ph->top_block != 16 && ph->top_block != 32 && ph->top_block != 64) {
            return "attention plan: blocks have 16, 32 or 64 keys";
        }
        if (!(ph->top_share > 0.0f && ph->top_share <= 1.0f) || !(ph->top_mass > 0.0f && ph->top_mass <= 1.0f)) {
            return "attention plan: a share or mass of blocks is not in (0, 1]";
        }
    }
    if (ph->lsh_keys < 0 || (ph->lsh_keys > 0 && !(ph->lsh_share > 0.0f && ph->lsh_share <= 1.0f))) {
        return "attention plan: a number of hashed keys is negative, or their share not in (0, 1]";
    }
    if (ph->lsh_keys > 0 && ph->top_blocks > 0) {
        return "attention plan: a phase chooses keys by their hashes or by their weights, not by both";
    }
    if (ph->sample < 0 || ph->sample_seed < 0) {
        return "attention plan: negative size or seed of a sample";
    }
    if (ph->sample > 0 && !(ph->sample_share > 0.0f && ph->sample_share <= 1.0f)) {
        return "attention plan: the share of a sample is not in (0, 1]";
    }
    if (!(ph->verify_eps >= 0.0f && ph->verify_eps < 1.0f)) {
        return "attention plan: the error of a verified sample is not in (0, 1)";
    }
    if (plong_phase_verifies(ph) && !(ph->verify_delta > 0.0f && ph->verify_delta < 1.0f)) {
        return "attention plan: the probability of a verified sample is not in (0, 1)";
    }
    if (plong_phase_verifies(ph) && (ph->query_block != 1 || ph->sample > 0 || ph->lsh_keys > 0)) {
        return "attention plan: a verified sample is for single queries, and the only one";
    }
    if (plong_phase_chooses(ph)) {
        if (ph->query_block != 1 && ph->query_block != PLONG_PAGE) {
            return "attention plan: query blocks have 1 or 64 rows";
        }
        if (ph->n_branches > 0) {
            return "attention plan: chosen keys do not go with dilated branches";
        }
    }
    for (int i = 0; i < ph->n_branches; i++) {
        if (ph->segment[i] > PLONG_LONGEST) {
            return "attention plan: a dilated segment is longer than 2^30 tokens";
        }
        if (ph->rate[i] < 1 || ph->segment[i] < ph->rate[i]) {
            return "attention plan: a dilated branch needs 1 <= rate <= segment length";
        }
        if (i > 0 && ph->segment[i] < ph->segment[i - 1]) {
            return "attention plan: segment lengths must ascend";
        }
    }
    return NULL;
}

const char * plong_plan_check(const struct plong_plan * plan) {
    if (plan->dense_layers < 0) {
        return "attention plan: dense_layers is negative";
    }
    if (plan->check != 0 && plan->check != PLONG_PAGE / 4 && plan->check != PLONG_PAGE / 2 &&
        plan->check != PLONG_PAGE) {
        return "attention plan: not every 16th, 32nd or 64th query is checked";
    }
    if (!(plan->error >= 0.0f && plan->error < 1.0f) || (plan->error > 0.0f && plan->check == 0)) {
        return "attention plan: an error is not in [0, 1), or is to hold without checks";
    }
    const char * err = phase_check(&plan->phase[0]);
    return err ? err : phase_check(&plan->phase[1]);
}

int32_t plong_head_number(int32_t head, int32_t n_head, int32_t n_head_kv) {
    const int32_t n_group = n_head / n_head_kv;
    return head % n_group * n_head_kv + head / n_group;
}

/* ---- the phase as a whole ------------------------------------------------------------------------------------- */

bool plong_phase_is_exact(const struct plong_phase * ph) { return ph->window == PLONG_ALL; }

const struct plong_phase * plong_batch_phase(const struct plong_batch * batch, int32_t i) {
    static const struct plong_phase exact = { .window = PLONG_ALL };
    return i == PLONG_PHASE_EXACT ? &exact : &batch->plan.phase[i];
}

bool plong_phase_weighs(const struct plong_phase * ph) { return ph->top_blocks > 0 || plong_phase_verifies(ph); }
bool plong_phase_wants_index(const struct plong_phase * ph) { return plong_phase_weighs(ph) || ph->lsh_keys > 0; }

int32_t plong_plan_index(const struct plong_plan * plan) {
    int32_t parts = 0;
    for (int i = 0; i < 2; i++) {
        parts |= plong_phase_weighs(&plan->phase[i]) ? PLONG_INDEX_DIGITS : 0;
        parts |= plan->phase[i].lsh_keys > 0 ? PLONG_INDEX_RANKS : 0;
    }
    return parts;
}

bool plong_plan_wants_index(const struct plong_plan * plan) {
    return plong_phase_wants_index(&plan->phase[0]) || plong_phase_wants_index(&plan->phase[1]);
}

bool plong_phase_chooses(const struct plong_phase * ph) { return plong_phase_wants_index(ph) || ph->sample > 0; }

bool plong_plan_chooses(const struct plong_plan * plan) {
    return plong_phase_chooses(&plan->phase[0]) || plong_phase_chooses(&plan->phase[1]);
}

bool plong_phase_grows(const struct plong_batch * batch, int32_t phase) {
    return phase == 0 && batch->plan.error > 0.0f && plong_phase_weighs(&batch->plan.phase[0]);
}

int32_t plong_phase_block(const struct plong_phase * ph) {
    return ph->top_blocks > 0         ? ph->top_block
           : plong_phase_verifies(ph) ? PLONG_PAGE / 2
           : ph->lsh_keys > 0         ? PLONG_PAGE
                                      : INT32_MAX;
}

int32_t plong_phase_rows(const struct plong_phase * ph) { return ph->query_block; }
int32_t plong_phase_least(const struct plong_phase * ph) { return ph->top_least; }
float   plong_phase_mass(const struct plong_phase * ph) { return ph->top_mass; }

/* A share of n things, at least one; 10% of 20 are 2, also in float32. */
static int32_t share_of(float share, int64_t n) {
    return (int32_t) fmin(ceil((double) share * (double) n * (1 - 1e-6)), PLONG_ALL);
}

int32_t plong_phase_budget(const struct plong_phase * ph, int32_t n) {
    return min_i32(n, max_i32(ph->top_least, min_i32(ph->top_blocks, share_of(ph->top_share, n))));
}

/* A limit of keys, and of a share of all n. */
static int32_t limited(int32_t keys, float share, int64_t n) {
    const int32_t most = n < PLONG_ALL ? (int32_t) n : PLONG_ALL;
    return min_i32(most, min_i32(keys, share_of(share, n)));
}

int32_t plong_phase_hashed(const struct plong_phase * ph, int64_t n) { return limited(ph->lsh_keys, ph->lsh_share, n); }

int32_t plong_phase_sample(const struct plong_phase * ph, int64_t n) {
    return limited(ph->sample, ph->sample_share, n);
}

int32_t plong_phase_seed(const struct plong_phase * ph) { return ph->sample_seed; }

bool plong_phase_verifies(const struct plong_phase * ph) { return ph->verify_eps > 0.0f; }

double plong_phase_precision(const struct plong_phase * ph) {
    double lo = 0, hi = 40;
    for (int i = 0; i < 60; i++) {
        const double z = (lo + hi) / 2;
        if (erfc(z / sqrt(2)) > (double) ph->verify_delta / 2) {
            lo = z;
        } else {
            hi = z;
        }
    }
    return hi * hi / ((double) ph->verify_eps * (double) ph->verify_eps);
}

int32_t plong_verify_most(int64_t n) { return (int32_t) (n / 8 < VERIFY_MOST ? n / 8 : VERIFY_MOST); }

/* First position of the window of a query at p; it may be negative. Where keys are chosen, all queries of a block have
 * the same window, which begins with a page and has at least the keys that the plan gives to each of them. */
static int64_t window_begin(const struct plong_phase * ph, int32_t p) {
    if (!plong_phase_chooses(ph) || plong_phase_is_exact(ph)) {
        return (int64_t) p - ph->window + 1;
    }
    const int64_t first = (int64_t) p - p % ph->query_block - max_i32(ph->window, PLONG_PAGE) + 1;
    return first < 0 ? first : first / PLONG_PAGE * PLONG_PAGE;
}

int32_t plong_sinks_end(const struct plong_phase * ph) {
    return min_i32(max_i32(ph->sinks, ph->global), PLONG_LONGEST);
}

bool plong_phase_window(const struct plong_phase * ph, int32_t p, int32_t * begin) {
    *begin = p - ph->window + 1;
    return ph->n_branches == 0 && p >= ph->dense_below && p >= ph->window && !plong_phase_chooses(ph);
}

void plong_phase_candidates(const struct plong_phase * ph, int32_t p, int32_t * beg, int32_t * end) {
    const int64_t first = p < ph->dense_below ? 0 : window_begin(ph, p);
    *beg                = plong_sinks_end(ph);
    *end                = plong_phase_chooses(ph) && first > *beg ? (int32_t) first : *beg;
}

int32_t plong_phase_dense_end(const struct plong_phase * ph) { return ph->dense_below; }

int plong_phase_branches(const struct plong_phase * ph) { return ph->n_branches; }

int plong_phase_branches_at(const struct plong_phase * ph, int32_t p) {
    return plong_phase_is_exact(ph) || p < ph->dense_below ? 0 : ph->n_branches;
}

bool plong_phase_counts(const struct plong_phase * ph) {
    return ph->weight == PLONG_WEIGHT_COUNT && plong_phase_nests(ph);
}

/* ---- branches and keys ---------------------------------------------------------------------------------------- */

int32_t plong_branch_rate(const struct plong_phase * ph, int k) { return ph->rate[k]; }

int32_t plong_branch_step(const struct plong_phase * ph, int k) {
    return ph->align == PLONG_ALIGN_SEGMENT ? ph->rate[k] : 1;
}

float plong_branch_log2_weight(const struct plong_phase * ph, int k) {
    return k >= 0 && ph->weight == PLONG_WEIGHT_STRIDE ? log2f((float) ph->rate[k]) : 0.0f;
}

bool plong_branch_checks(const struct plong_phase * ph, int k) {
    return k > 0 && ph->weight == PLONG_WEIGHT_NONE && !plong_phase_nests(ph);
}

int32_t plong_branch_begin(const struct plong_phase * ph, int k, int32_t p) {
    const int32_t w = ph->segment[k];
    return ph->align == PLONG_ALIGN_SEGMENT ? p - p % w : max_i32(0, p - w + 1);
}

/* Whether the query takes part in branch k at all (LongNet dilates the rows of Q as it does those of K and V). */
bool plong_branch_joins(const struct plong_phase * ph, int k, int32_t p, int32_t h) {
    if (ph->align == PLONG_ALIGN_QUERY) {
        return true;
    }
    const int32_t r = ph->rate[k];
    return (p - plong_branch_begin(ph, k, p)) % r == h % r;
}

bool plong_branch_reads(const struct plong_phase * ph, int k, int32_t p, int32_t h, int32_t t) {
    const int32_t r = ph->rate[k];
    const int32_t b = plong_branch_begin(ph, k, p);
    if (t < b) {
        return false;
    }
    return (ph->align == PLONG_ALIGN_SEGMENT ? (t - b) % r : t % r) == h % r;
}

bool plong_phase_nests(const struct plong_phase * ph) {
    for (int k = 1; k < ph->n_branches; k++) {
        const bool segments = ph->segment[k] % ph->segment[k - 1] == 0 && ph->segment[k - 1] % ph->rate[k - 1] == 0;
        if (ph->rate[k] % ph->rate[k - 1] != 0 || (ph->align == PLONG_ALIGN_SEGMENT && !segments)) {
            return false;
        }
    }
    return ph->n_branches > 0;
}

int plong_branch_top(const struct plong_phase * ph, int k, int32_t p, int32_t h) {
    while (k + 1 < ph->n_branches && plong_branch_joins(ph, k + 1, p, h)) {
        k++;
    }
    return k;
}

bool plong_phase_in_set(const struct plong_phase * ph, int32_t p, int32_t t) {
    return p < ph->dense_below || t >= window_begin(ph, p) || t < ph->sinks || t < ph->global;
}

float plong_branch_weight(const struct plong_phase * ph, int k, int32_t p, int32_t h, int32_t t) {
    if (t > p || plong_phase_in_set(ph, p, t) || !plong_branch_joins(ph, k, p, h) ||
        !plong_branch_reads(ph, k, p, h, t)) {
        return -INFINITY;
    }
    if (ph->weight == PLONG_WEIGHT_COUNT) {
        return 0.0f;
    }
    for (int i = 0; i < k; i++) {
        if (!plong_branch_joins(ph, i, p, h)) {
            continue;
        }
        const bool owned =
            ph->weight == PLONG_WEIGHT_STRIDE ? t >= plong_branch_begin(ph, i, p) : plong_branch_reads(ph, i, p, h, t);
        if (owned) {
            return -INFINITY;
        }
    }
    return ph->weight == PLONG_WEIGHT_STRIDE ? logf((float) ph->rate[k]) : 0.0f;
}

int64_t plong_phase_keys(
    const struct plong_phase * ph, int32_t p, int32_t h, int64_t cap, int32_t * pos, float * log_w) {
    int64_t n = 0;
    for (int32_t t = 0; t <= p; t++) {
        double count = plong_phase_in_set(ph, p, t) ? 1.0 : 0.0;
        for (int k = 0; k < ph->n_branches; k++) {
            const float w = plong_branch_weight(ph, k, p, h, t);
            count += w == -INFINITY ? 0.0 : exp((double) w);
        }
        if (count > 0.0) {
            if (n < cap) {
                pos[n]   = t;
                log_w[n] = (float) log(count);
            }
            n++;
        }
    }
    return n;
}

/* ---- ranges and bounds ---------------------------------------------------------------------------------------- */

int plong_set_ranges(const struct plong_phase * ph, int32_t p0, int32_t p1, struct plong_range out[2]) {
    const int32_t end = p1 + 1;
    /* a range [0, a) and a range [b, end), merged if they touch */
    const int32_t a     = min_i32(plong_sinks_end(ph), end);
    const int64_t first = window_begin(ph, p0);
    int32_t       b     = first <= 0 || p0 < ph->dense_below ? 0 : (int32_t) first;
    int           n     = 0;
    if (ph->window == 0 && !plong_phase_chooses(ph) && p0 >= ph->dense_below) {
        b = end;
    }
    if (b <= a) {
        out[n++] = (struct plong_range) { .beg = 0, .end = end, .stride = 1, .branch = -1 };
        return n;
    }
    if (a > 0) {
        out[n++] = (struct plong_range) { .beg = 0, .end = a, .stride = 1, .branch = -1 };
    }
    if (b < end) {
        out[n++] = (struct plong_range) { .beg = b, .end = end, .stride = 1, .branch = -1 };
    }
    return n;
}

int plong_set_ranges_aligned(
    const struct plong_phase * ph, struct plong_bounds p, int32_t align, struct plong_range out[2], bool * window) {
    const bool some = ph->window > 0 || plong_phase_chooses(ph);
    *window         = some && !plong_phase_is_exact(ph) && p.lo >= ph->dense_below;
    if (!*window) {
        return plong_set_ranges(ph, p.lo, p.hi, out);
    }
    const int32_t sinks_end = plong_sinks_end(ph), end = p.hi + 1;
    const int64_t beg = window_begin(ph, p.lo);
    int           n   = 0;
    if (sinks_end > 0) {
        out[n++] = (struct plong_range) { .beg = 0, .end = min_i32(sinks_end, end), .stride = 1, .branch = -1 };
    }
    out[n++] =
        (struct plong_range) { .beg = beg > 0 ? (int32_t) beg & -align : 0, .end = end, .stride = 1, .branch = -1 };
    return n;
}

struct plong_bounds plong_set_bounds(const struct plong_phase * ph, int32_t p) {
    const int32_t sinks_end = plong_sinks_end(ph);
    const int64_t first     = window_begin(ph, p);
    return (struct plong_bounds) { p < ph->dense_below || first < sinks_end ? sinks_end : (int32_t) first, p };
}

struct plong_bounds plong_branch_bounds(const struct plong_phase * ph, bool nests, int k, int32_t p, int32_t h) {
    const int64_t       last = (int64_t) p - ph->window;
    struct plong_bounds b    = { max_i32(plong_branch_begin(ph, k, p), plong_sinks_end(ph)), (int32_t) last };
    if (p < ph->dense_below || last < 0) {
        b.hi = -1;
    }
    for (int i = 0; i < k && (nests || ph->weight == PLONG_WEIGHT_STRIDE); i++) {
        if (nests || plong_branch_joins(ph, i, p, h)) {
            b.hi = min_i32(b.hi, plong_branch_begin(ph, i, p) - 1);
        }
    }
    return b;
}

bool plong_branch_range(
    const struct plong_phase * ph, int k, int32_t p0, int32_t p1, int32_t h, struct plong_range * out) {
    const int32_t w = ph->segment[k], r = ph->rate[k], s = h % r;
    const int64_t last = (int64_t) p1 - ph->window;
    int32_t       end  = last < 0 ? 0 : (int32_t) last + 1;
    int64_t       beg;
    if (k > 0 && plong_phase_nests(ph)) {
        end = min_i32(end, plong_branch_begin(ph, k - 1, p1));
    }
    if (ph->align == PLONG_ALIGN_QUERY) {
        const int32_t lo = max_i32(0, p0 - w + 1);
        beg              = (int64_t) lo + ((s - lo % r) + r) % r;
    } else {
        /* plong_phase_cut() ensures that a tile never crosses a segment boundary of its plan */
        const int32_t lo  = p0 - p0 % w;
        const int64_t row = (int64_t) p0 + ((s - (p0 - lo) % r) + r) % r; /* the first at or after p0 that takes part */
        if (row > p1) {
            return false;
        }
        beg = (int64_t) lo + s;
    }
    const int64_t head = plong_sinks_end(ph), skip = beg < head ? (head - beg + r - 1) / r * r : 0;
    if (beg + skip >= end) {
        return false;
    }
    *out = (struct plong_range) { .beg = (int32_t) (beg + skip), .end = end, .stride = r, .branch = k };
    return true;
}

/* The number of keys that set parts give to a query at p. */
static int64_t set_count(const struct plong_phase * ph, int32_t p) {
    struct plong_range set[2];
    const int          n    = plong_set_ranges(ph, p, p, set);
    int64_t            keys = 0;
    for (int i = 0; i < n; i++) {
        keys += plong_range_count(&set[i]);
    }
    return keys;
}

/* How many keys the query chooses by content: the most, or the fewest with mass, and by hashes. */
static int64_t chosen_keys(const struct plong_phase * ph, int32_t p, bool fewest) {
    int32_t beg, end;
    plong_phase_candidates(ph, p, &beg, &end);
    if (end <= beg) {
        return 0;
    }
    int64_t best = plong_phase_hashed(ph, end - beg);
    best         = fewest && best < end - beg ? 0 : best;
    if (ph->top_blocks > 0) {
        const int32_t n   = (end + ph->top_block - 1) / ph->top_block - beg / ph->top_block;
        const int32_t few = fewest && ph->top_mass < 1.0f ? min_i32(ph->top_least, n) : n;
        best              = (int64_t) min_i32(few, plong_phase_budget(ph, n)) * ph->top_block;
        best              = best < end - beg ? best : end - beg;
    }
    if (plong_phase_verifies(ph)) { /* in the end perhaps all */
        return fewest && end - beg >= PLONG_VERIFY_LEAST ? best : end - beg;
    }
    return best + plong_phase_sample(ph, end - beg - best);
}

int64_t plong_phase_chosen(const struct plong_phase * ph, int32_t p) { return chosen_keys(ph, p, false); }

int64_t plong_phase_cost(const struct plong_phase * ph, int32_t p, int32_t h) {
    struct plong_range r;
    int64_t            keys = set_count(ph, p) + plong_phase_chosen(ph, p);
    for (int k = 0; k < ph->n_branches; k++) {
        if (keys <= p && plong_branch_range(ph, k, p, p, h, &r)) {
            keys += plong_range_count(&r);
        }
    }
    return keys <= p ? keys : (int64_t) p + 1;
}

bool plong_phase_reads_all(const struct plong_phase * ph, int32_t p) {
    return ph->n_branches == 0 || p < ph->dense_below ? set_count(ph, p) + chosen_keys(ph, p, true) > p : false;
}

int32_t plong_phase_cut(const struct plong_phase * ph, int32_t p0, int32_t p1) {
    int32_t cut = p1;
    if (p0 < ph->dense_below && ph->dense_below <= cut) {
        cut = ph->dense_below - 1;
    }
    if (plong_phase_chooses(ph)) {
        cut = min_i32(cut, p0 - p0 % ph->query_block + (ph->query_block - 1));
    }
    if (ph->align == PLONG_ALIGN_SEGMENT) {
        for (int k = 0; k < ph->n_branches; k++) {
            const int32_t last = p0 - p0 % ph->segment[k] + (ph->segment[k] - 1);
            cut                = last < cut ? last : cut;
        }
    }
    return cut;
}

int64_t plong_range_count(const struct plong_range * r) {
    return r->end <= r->beg ? 0 : ((int64_t) r->end - r->beg + r->stride - 1) / r->stride;
}

int64_t plong_phase_count(const struct plong_phase * ph, int32_t p, int32_t h) {
    struct plong_range r;
    int64_t            count = set_count(ph, p);
    if (plong_phase_is_exact(ph) || p < ph->dense_below) {
        return count;
    }
    if (plong_phase_chooses(ph)) { /* each layer and kv head chooses its own, as many as it may */
        return plong_phase_cost(ph, p, h);
    }
    for (int k = 0; k < ph->n_branches; k++) {
        if (!plong_branch_range(ph, k, p, p, h, &r)) {
            continue;
        }
        /* each position counts once, so all branches but the first must be checked key by key */
        for (int64_t at = r.beg; at < r.end; at += r.stride) {
            const int32_t t    = (int32_t) at;
            bool          seen = plong_phase_in_set(ph, p, t);
            for (int i = 0; !seen && i < k; i++) {
                seen = plong_branch_joins(ph, i, p, h) && plong_branch_reads(ph, i, p, h, t);
            }
            count += !seen && plong_branch_weight(ph, k, p, h, t) != -INFINITY;
        }
    }
    return count;
}
