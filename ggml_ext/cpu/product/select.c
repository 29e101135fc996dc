/* select.c - decides which products run: the best that this processor has, or the ones that were forced. */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/product/product.h"
#include "ggml-impl.h"
#include "ggml_ext.h"

#if defined(__x86_64__)
extern const struct plong_product plong_product_avx512vnni;
#ifdef PLONG_AVXVNNI
extern const struct plong_product plong_product_avxvnni;
#endif
extern const struct plong_product plong_product_avx2;
#endif

const struct plong_product * const plong_products[] = {
#if defined(__x86_64__)
    &plong_product_avx512vnni,
#ifdef PLONG_AVXVNNI
    &plong_product_avxvnni,
#endif
    &plong_product_avx2,
#endif
    NULL,
};

/* What stands for upstream's products among the choices. */
static const struct plong_product upstream = { .name = "upstream" };

#define MAX_PRODUCTS 8

static _Atomic(const struct plong_product *) chosen;
static atomic_llong                          tiles_run[MAX_PRODUCTS];

static const struct plong_product * best_product(void) {
    for (int i = 0; plong_products[i]; i++) {
        if (plong_products[i]->usable()) {
            return plong_products[i];
        }
    }
    return &upstream;
}

static const struct plong_product * product_named(const char * name) {
    for (int i = 0; plong_products[i]; i++) {
        if (strcmp(plong_products[i]->name, name) == 0) {
            return plong_products[i]->usable() ? plong_products[i] : NULL;
        }
    }
    return strcmp(name, upstream.name) == 0 ? &upstream : NULL;
}

static const struct plong_product * in_use(void) {
    const struct plong_product * product = atomic_load(&chosen);
    if (!product) {
        const char * name = getenv("PLLAMA_PRODUCTS");
        product           = name && *name ? product_named(name) : best_product();
        if (!product) {
            product = best_product();
            GGML_LOG_WARN(
                "PLLAMA_PRODUCTS=%s is unknown or not usable on this processor: using %s\n", name, product->name);
        }
        atomic_store(&chosen, product);
    }
    return product;
}

const struct plong_product * plong_product_in_use(void) { return in_use() == &upstream ? NULL : in_use(); }

const char * plong_product(void) { return in_use()->name; }

const char * plong_product_name(int i) {
    for (int j = 0; j < i; j++) {
        if (!plong_products[j]) {
            return NULL;
        }
    }
    return i >= 0 && plong_products[i] ? plong_products[i]->name : NULL;
}

bool plong_product_usable(int i) { return plong_products[i]->usable(); }

bool plong_product_force(const char * name) {
    const struct plong_product * product = name && *name ? product_named(name) : best_product();
    if (product) {
        atomic_store(&chosen, product);
    }
    return product != NULL;
}

int64_t plong_product_tiles(int i) { return atomic_load(&tiles_run[i]); }

void plong_product_count(const struct plong_product * product, int64_t tiles) {
    for (int i = 0; plong_products[i]; i++) {
        if (plong_products[i] == product) {
            atomic_fetch_add(&tiles_run[i], tiles);
        }
    }
}
