/* wide_at_once.h - for wide parts that compute all logits of a chunk at once, with nothing during the softmax, and set
 * no state of the processor for a tile. The including file defines `elem`. */
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
