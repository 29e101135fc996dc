/*
 * wide.h - a block of keys for a wide job, one of many rows: packed once, then used by one sub of rows after another.
 *
 * The wide part of an instruction set (its wide.h, or wide_f32.h) comes before this and defines what follows; empty
 * versions of some are in wide_at_once.h and fixed_none.h.
 *
 *     elem                   what is packed: float, or uint16_t for bf16
 *     BLOCK, CHUNK           keys that are packed at a time, and between one softmax and the next: the row lengths of
 *                            probabilities and of logits
 *     SUB                    rows whose logits and probabilities stay in the L1 cache
 *     PAD                    logits of a chunk are padded to a multiple of this, 16 or 32
 *     AHEAD                  1 where the next logits are computed during a softmax, else 0: one more room for logits
 *     wide_enter, wide_leave             around a tile
 *     wide_config                        before each job
 *     wide_pack_query(dst, q, dk)        one row of dk dims
 *     wide_pack_keys, wide_pack_values(dst, type, row, n, d, stage)
 *                            n rows of the cache; keys: whether all are small enough for fixed point
 *     wide_begin, wide_quarter, wide_end computes logits s[SUB][CHUNK], at once or a quarter at a time
 *     wide_probabilities(s, p)           where probabilities are written: in place of the logits, or at p
 *     wide_fixed(s, p, n, shift, l), fixed_shift(m, reach)
 *                            weights of one row in fixed point; FIXED_FAILED where there is none
 *     wide_exp(s, p, n, m, l)            weights of one row, and their sum
 *     wide_rescale(p, n, f)              weights that were made under another maximum
 *     wide_values(p, v, rows, j0, n, dv, acc)         acc += p * v
 */
#ifndef PLONG_CPU_BODY_WIDE_H
#define PLONG_CPU_BODY_WIDE_H

#include "cpu/body/blocks.h"

/* The part of the block that has been packed so far. */
struct packed {
    bool k, k_near, v;
    bool tame; /* whether the packed part of K is */
};

static void pack_keys(struct tile_run * t, const struct keys * b, bool near, struct packed * done) {
    const void * row[BLOCK];
    if (near ? done->k_near : done->k) {
        return;
    }
    cache_rows(row, b, t->k_base, t->call->k_cell);
    if (near) {
        near_rows(t, row, b);
        done->tame &= wide_pack_keys(t->mem.k_near, GGML_TYPE_F32, row, b->n, t->call->d_k, t->mem.stage);
        done->k_near = true;
    } else {
        done->tame &= wide_pack_keys(t->mem.k, t->call->k_type, row, b->n, t->call->d_k, t->mem.stage);
        done->k = true;
    }
}

static void pack_values(struct tile_run * t, const struct keys * b, struct packed * done) {
    const void * row[BLOCK];
    if (!done->v) {
        cache_rows(row, b, t->v_base, t->call->v_cell);
        wide_pack_values(t->mem.v, t->call->v_type, row, b->n, t->call->d_v, t->mem.stage);
        done->v = true;
    }
}

/* Prefetches the next key of the next block, in K and in V. A few lines at a time, during the softmax, since AMD's
 * cores drop prefetches for which they have no room. Intel's cores gain nothing: few rows of a prefetched block survive
 * in the sets that a stride shares, and the matrix unit's loads need the same slots. */
PLONG_INLINE void prefetch_next_key(struct tile_run * t) {
    const struct plong_call * c = t->call;
    if (t->prefetched < t->next->n) {
        const size_t cell = (size_t) t->next->cell[t->prefetched++];
        prefetch_lines(t->k_then + cell * c->k_cell, (int) (t->k_bytes + 63) / 64);
        prefetch_lines(t->v_then + cell * c->v_cell, (int) (t->v_bytes + 63) / 64);
    }
}

/* Rows of a sub and some keys of the block: the unit of work between two softmaxes. */
struct part {
    int         sub;
    int         j0; /* first key */
    struct keys keys;
    enum cover  cover;
};

/* The end of the chunk of key j: a multiple of CHUNK, counted from the tile of the matrix unit that holds the key, or from
 * the block's first key where blocks do not end at multiples of their size (chosen keys). */
static int chunk_end(const struct tile_run * t, const struct keys * all, int j) {
    const bool aligned = t->job.readers->branch < 0 && all->pos[0] % BLOCK + all->n <= BLOCK;
    const int  before  = aligned ? all->pos[0] % CHUNK & ~31 : 0;
    const int  end     = (j + before) / CHUNK * CHUNK + CHUNK - before;
    return end < all->n ? end : all->n;
}

/* Finds the first part at or after sub, j0 in which some pair is read; false if there is none. */
static bool find_part(const struct tile_run * t, const struct keys * all, int sub, int j0, struct part * part) {
    for (; sub < t->job.n_sub; sub++, j0 = 0) {
        for (int end; j0 < all->n; j0 = end) {
            end         = chunk_end(t, all, j0);
            *part       = (struct part) { sub, j0, { end - j0, all->pos + j0, all->cell + j0 }, COVER_NONE };
            part->cover = job_cover(&t->job, &t->job.subs[sub], &part->keys);
            if (part->cover != COVER_NONE) {
                return true;
            }
        }
    }
    return false;
}

static const elem * part_queries(const struct tile_run * t, const struct part * part, int zone) {
    return (const elem *) t->jq + zone * t->jq_zone + (size_t) part->sub * SUB * t->dk;
}

static int part_rows(const struct tile_run * t, const struct part * part) {
    const int left = t->job.n - part->sub * SUB;
    return left < SUB ? left : SUB;
}

/* Computes the logits of a part, zone by zone of a position map. */
static void part_logits(
    struct tile_run * t, const struct part * part, const struct keys * all, struct packed * done, float * s) {
    int z0, z1;
    zone_span(t, &t->job.subs[part->sub], &part->keys, &z0, &z1);
    for (int z = z0; z <= z1; z++) {
        const bool near = plong_map_unfolds(t->map, z);
        pack_keys(t, all, near, done);
        struct wide_work work = wide_begin(
            part_queries(t, part, z), near ? t->mem.k_near : t->mem.k, part_rows(t, part), part->j0, part->keys.n,
            t->call->d_k, z == z0 ? s : t->mem.s_zone);
        wide_end(&work);
        if (z > z0) {
            merge_zone(t, (struct logits) { s, CHUNK, part->sub * SUB, part_rows(t, part) }, &part->keys, z);
        }
    }
}

/* Writes the probabilities of n logits s of a row to p; false if none of them matters. The `before` keys before them in
 * p already have theirs. */
PLONG_INLINE bool row_probabilities(struct tile_run * t, int i, float * s, int n, int before, elem * p, bool tame) {
    const float      m    = t->mem.js.m[i];
    const enum fixed done = tame ? wide_fixed(s, p, n, t->mem.shift[i], t->mem.js.l + (size_t) i * VW) : FIXED_FAILED;
    if (done == FIXED_FAILED && row_max(t, i, s, n)) {
        if (before > 0 && m != t->mem.js.m[i] && m != -INFINITY) {
            wide_rescale(p - before, before, exp2f(m - t->mem.js.m[i]));
        }
        wide_exp(s, p, n, t->mem.js.m[i], t->mem.js.l + (size_t) i * VW);
        t->mem.shift[i] = fixed_shift(t->mem.js.m[i], t->mem.reach[t->job.rows[i].row]);
        return true;
    }
    if (done != FIXED_DONE) {
        memset(p, 0, (size_t) ((n + 31) & ~31) * sizeof(elem));
    }
    return done == FIXED_DONE;
}

/* The same for all rows of a part. Other logits are computed in between. */
static bool part_probabilities(
    struct tile_run * t, const struct part * part, float * s, int before, struct packed * done, struct wide_work * work,
    elem * p) {
    const int i0 = part->sub * SUB, rows = part_rows(t, part);
    const int n   = finish_logits(t, (struct logits) { s, CHUNK, i0, rows }, &part->keys, part->cover, PAD);
    bool      any = false;
    for (int i = 0; i < rows; i += 4) {
        const bool more = work->left > 0;
        prefetch_next_key(t);
#pragma GCC unroll 4
        for (int x = 0; x < 4; x++) {
            if (more) {
                wide_quarter(work, x);
            }
            if (i + x < rows) {
                add_count(t, i0 + i + x, s + (i + x) * CHUNK, n, &part->keys);
                any |=
                    row_probabilities(t, i0 + i + x, s + (i + x) * CHUNK, n, before, p + (i + x) * BLOCK, done->tame);
            }
        }
    }
    wide_end(work);
    return any;
}

static void block_wide(struct tile_run * t, const struct key_block * block, const struct key_block * next) {
    const struct keys b    = block_keys(block, 0, BLOCK);
    struct packed     done = { .tame = true };
    struct part       part, then;
    bool              ready = false; /* the part's logits are ready */
    float *           s     = t->mem.s;
    int               first = -1, last = 0; /* keys of the sub whose probabilities are in p and matter */
    int               filled = 0;           /* the end of those that are ready */
    t->next                  = next;
    t->prefetched            = t->one_stream ? 0 : next->n;
    for (bool more = find_part(t, &b, 0, 0, &part); more; part = then) {
        elem *           p    = wide_probabilities(t->mem.s, t->mem.p);
        struct wide_work work = { .left = 0 };
        float *          now  = s;
        for (int i = 0; i < SUB && first >= 0 && filled < part.j0; i++) {
            memset(p + i * BLOCK + filled, 0, (size_t) (part.j0 - filled) * sizeof(elem));
        }
        filled = part.j0 + part.keys.n;
        if (!ready) {
            part_logits(t, &part, &b, &done, now);
        }
        more = find_part(t, &b, part.sub, part.j0 + part.keys.n, &then);
        /* without a map all parts have the same packed keys */
        ready = AHEAD && more && t->map == PLONG_MAP_ABSOLUTE;
        if (ready) {
            s    = now == t->mem.s ? t->mem.s + SUB * CHUNK : t->mem.s;
            work = wide_begin(
                part_queries(t, &then, 0), t->mem.k, part_rows(t, &then), then.j0, then.keys.n, t->call->d_k, s);
        }
        if (part_probabilities(t, &part, now, first < 0 ? 0 : part.j0 - first, &done, &work, p + part.j0)) {
            first = first < 0 ? part.j0 : first;
            last  = filled;
        }
        if (first >= 0 && (!more || then.sub != part.sub)) {
            pack_values(t, &b, &done);
            wide_values(
                p, t->mem.v, part_rows(t, &part), first, last - first, t->dv,
                t->mem.js.acc + (size_t) part.sub * SUB * t->dv);
            first = -1;
        }
    }
}

#endif
