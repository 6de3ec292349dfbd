/* Attention of decoding sequences on a CPU: one query row a sequence, over its own keys and values where they lie in the
 * cache. Each key and value is read once for all query heads that share it; scores are kept in fp32.
 * Vector types are GCC's and Clang's own, so that one text serves every processor. */

#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Numbers in a register of the processor; what is wider goes through memory. */
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#define MAX_GROUP 8
/* Read from memory through pointers and not by memcpy: tuned for Intel GCC copies in halves, the whole then waits for
 * both, and a call takes eight times as long. */
typedef float vec __attribute__((vector_size(LANES * sizeof(float)), aligned(4), may_alias));
typedef uint16_t half_vec __attribute__((vector_size(LANES * sizeof(uint16_t)), aligned(2), may_alias));
typedef uint32_t wide_vec __attribute__((vector_size(LANES * sizeof(uint32_t)), aligned(4), may_alias));

/* Strides are in elements. q is [kv_heads * group, rows, key_dim], out [rows, kv_heads * group, value_dim]. */
typedef struct {
    const void *q, *k, *v;
    void *out;
    const int64_t *slots;     /* of each row */
    const int64_t *positions; /* of each row: the last key it sees */
    const float *sinks;       /* one score a query head, of a key without a value; or NULL */
    float *scores;            /* room for group * max_keys of each thread */
    int64_t num_rows, kv_heads, group, key_dim, value_dim, max_keys;
    int64_t q_head_stride, q_row_stride;
    int64_t k_head_stride, k_slot_stride, v_head_stride, v_slot_stride;
    int64_t window;           /* keys that a query sees, itself included; 0: all */
    int64_t is_bf16, num_threads;
    float scale, softcap;     /* softcap 0: none */
} Call;

static inline vec load_fp32(const void *at) { return *(const vec *)at; }

static inline vec load_bf16(const void *at) {
    return (vec)(__builtin_convertvector(*(const half_vec *)at, wide_vec) << 16);
}

typedef float quarter __attribute__((vector_size(4 * sizeof(float))));

static inline float sum(vec x) {
    quarter parts[LANES / 4];
    memcpy(parts, &x, sizeof x);
    for (int width = LANES / 8; width; width /= 2)
        for (int i = 0; i < width; i++) parts[i] += parts[i + width];
    return (parts[0][0] + parts[0][2]) + (parts[0][1] + parts[0][3]);
}

static inline uint16_t to_bf16(float x) { /* to nearest, ties to even */
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

/* Scores become shares of a total, which is returned: exp(score - the best). */
static inline float soften(const Call *c, float *scores, int64_t num_keys, int64_t query_head) {
    const float sink = c->sinks ? c->sinks[query_head] : -FLT_MAX;
    float best = sink, total = 0;
    if (c->softcap)
        for (int64_t t = 0; t < num_keys; t++) scores[t] = tanhf(scores[t] * c->scale / c->softcap) * c->softcap;
    else
        for (int64_t t = 0; t < num_keys; t++) scores[t] *= c->scale;
    for (int64_t t = 0; t < num_keys; t++) best = scores[t] > best ? scores[t] : best;
    for (int64_t t = 0; t < num_keys; t++) total += scores[t] = expf(scores[t] - best);
    return c->sinks ? total + expf(sink - best) : total;
}

#define KERNEL(NAME, TYPE, LOAD)                                                                                       \
    static inline __attribute__((always_inline)) void NAME##_of(                                                       \
        const Call *c, int64_t row, int64_t head, float *scores, const int group, const int64_t key_dim,               \
        const int64_t value_dim) {                                                                                     \
        const int64_t last = c->positions[row], slot = c->slots[row];                                                  \
        const int64_t first = c->window && last + 1 > c->window ? last + 1 - c->window : 0;                            \
        const int64_t num_keys = last + 1 - first;                                                                     \
        const TYPE *k = (const TYPE *)c->k + head * c->k_head_stride + slot * c->k_slot_stride + first * key_dim;      \
        const TYPE *v = (const TYPE *)c->v + head * c->v_head_stride + slot * c->v_slot_stride + first * value_dim;    \
        const TYPE *q = (const TYPE *)c->q + head * group * c->q_head_stride + row * c->q_row_stride;                  \
float total[MAX_GROUP];                                                                                        \
        for (int64_t t = 0; t < num_keys; t++) {                                                                       \
            vec dots[MAX_GROUP];                                                                                       \
            for (int g = 0; g < group; g++) dots[g] = (vec){0};                                                        \
            for (int64_t d = 0; d < key_dim; d += LANES) {                                                             \
                const vec key = LOAD(k + t * key_dim + d);                                                             \
                for (int g = 0; g < group; g++) dots[g] += key * LOAD(q + g * c->q_head_stride + d);                   \
            }                                                                                                          \
            for (int g = 0; g < group; g++) scores[g * c->max_keys + t] = sum(dots[g]);                                \
        }                                                                                                              \
        for (int g = 0; g < group; g++)                                                                                \
            total[g] = soften(c, scores + g * c->max_keys, num_keys, head * group + g);                                \
        for (int64_t d = 0; d < value_dim; d += 2 * LANES) {                                                           \
            const int is_pair = d + LANES < value_dim;                                                                 \
            vec left[MAX_GROUP], right[MAX_GROUP];                                                                     \
            for (int g = 0; g < group; g++) left[g] = right[g] = (vec){0};                                             \
            for (int64_t t = 0; t < num_keys; t++) {                                                                   \
                const vec low = LOAD(v + t * value_dim + d);                                                           \
                const vec high = is_pair ? LOAD(v + t * value_dim + d + LANES) : low;                                  \
                for (int g = 0; g < group; g++) {                                                                      \
                    const float share = scores[g * c->max_keys + t];                                                   \
                    left[g] += low * share;                                                                            \
                    right[g] += high * share;                                                                          \
                }                                                                                                      \
            }                                                                                                          \
            for (int g = 0; g < group; g++) {                                                                          \
                const int64_t at = ((row * c->kv_heads + head) * group + g) * value_dim + d;                           \
                for (int i = 0; i < LANES; i++) put_##NAME(c->out, at + i, left[g][i] / total[g]);                     \
                for (int i = 0; is_pair && i < LANES; i++) put_##NAME(c->out, at + LANES + i, right[g][i] / total[g]); \
            }                                                                                                          \
        }                                                                                                              \
    }                                                                                                                  \
    static void NAME(const Call *c, int64_t row, int64_t head, float *scores) {                                        \
        const int64_t k = c->key_dim, v = c->value_dim;                                                                \
        const int is_64 = k == 64 && v == 64, is_128 = k == 128 && v == 128;                                           \
        switch (c->group) {                                                                                            \
        CASE(NAME, 1) CASE(NAME, 2) CASE(NAME, 3) CASE(NAME, 4)                                                        \
        CASE(NAME, 5) CASE(NAME, 6) CASE(NAME, 7) CASE(NAME, 8)                                                        \
        }                                                                                                              \
    }

/* With constants in the place of sizes the compiler keeps all sums in registers. */
#define CASE(NAME, GROUP)                                                                                              \
    case GROUP:                                                                                                        \
        if (is_64) NAME##_of(c, row, head, scores, GROUP, 64, 64);                                                     \
        else if (is_128) NAME##_of(c, row, head, scores, GROUP, 128, 128);                                             \
        else NAME##_of(c, row, head, scores, GROUP, k, v);                                                             \
        break;

static inline void put_fp32(void *out, int64_t at, float x) { ((float *)out)[at] = x; }
static inline void put_bf16(void *out, int64_t at, float x) { ((uint16_t *)out)[at] = to_bf16(x); }

KERNEL(fp32, float, load_fp32)
KERNEL(bf16, uint16_t, load_bf16)

#ifdef _OPENMP
extern int omp_get_thread_num(void);
#else
static int omp_get_thread_num(void) { return 0; }
#endif

void decode_attention(const Call *c) {
    const int64_t num_pairs = c->num_rows * c->kv_heads;
#pragma omp parallel for schedule(dynamic) num_threads(c->num_threads) if (c->num_threads > 1)
    for (int64_t pair = 0; pair < num_pairs; pair++) {
        float *scores = c->scores + omp_get_thread_num() * c->group * c->max_keys;
        if (c->is_bf16) bf16(c, pair / c->kv_heads, pair % c->kv_heads, scores);
        else fp32(c, pair / c->kv_heads, pair % c->kv_heads, scores);
    }
}
