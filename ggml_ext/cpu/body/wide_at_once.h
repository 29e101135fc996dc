/* wide_at_once.h - for wide parts that compute all logits of a chunk at once, with nothing beside the softmax, and keep no
 * state of the processor around a tile. `elem` is the including file's. */
#ifndef PLONG_CPU_BODY_WIDE_AT_ONCE_H
#define PLONG_CPU_BODY_WIDE_AT_ONCE_H

#define AHEAD 0

struct wide_work {
    int left; /* 0 */
};

static inline void wide_enter(void) {}
static inline void wide_config(void) {}
static inline void wide_leave(void) {}
static inline void wide_quarter(struct wide_work * w, int x) { (void) w, (void) x; }
static inline void wide_end(struct wide_work * w) { (void) w; }

#endif
