/* Attention over paged keys and values, read where they lie.
 *
 * A plan is made once a step for all layers that follow one rule: it lists jobs, each a few token rows against a range
 * of one sequence's keys. Every job is done for each KV head by one thread. Rows whose keys are spread over several
 * jobs (long sequences over several threads, prefixes shared by many rows) are joined afterwards by the largest scores
 * and sums that each part leaves. */
#include "common.h"

#define BLOCK_KEYS 64
#define LOWEST (-3.0e38f)
#define MAX_JOB_HEADS 64
#define PIECES 4 /* a thread, where a step's work has to be cut */

struct job {
    int32_t sequence, first_row, last_row; /* rows: places in `order` */
    int32_t first_key, last_key;
    int32_t part; /* number of its first row's part, -1 when it holds all that its rows see */
};

struct rule {
    int32_t page_size, window; /* window 0: all */
    int32_t num_jobs, num_parts, num_tokens, num_merged;
    int32_t table_width;
    int32_t *page_table;
    int32_t *order;                  /* [.] token rows, those of a job together */
    int32_t *row_first, *row_last;   /* [T] keys that a token row sees */
    struct job *jobs;
    int32_t *merged;                 /* [M] rows with several parts */
    int32_t *merged_at;              /* [M+1] their places in merged_parts */
    int32_t *merged_parts;
    int64_t room[8];
};

struct call {
    const struct rule *plan;
    const void *q, *k, *v, *sinks;
    void *k_cache, *v_cache, *out;
    const int64_t *slots;
    int64_t q_stride, k_stride, v_stride; /* elements between token rows */
    int num_tokens, num_heads, num_kv_heads, head_dim, v_head_dim, element;
    float scale, softcap;
    float *parts;
    int next_job, next_row;
};

struct scratch {
    float *out, *weights, *top, *total;
    bf16 *pairs;
};

INLINE ivec lane_numbers(void) { return (ivec){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}; }

/* Sums of 16 vectors as the lanes of one. */
INLINE vec sum_rows(vec *x) {
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++)
        x[j] = __builtin_shufflevector(x[j], x[j + 8], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
               __builtin_shufflevector(x[j], x[j + 8], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++)
        x[j] = __builtin_shufflevector(x[j], x[j + 4], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
               __builtin_shufflevector(x[j], x[j + 4], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
#pragma GCC unroll 2
    for (int j = 0; j < 2; j++)
        x[j] = __builtin_shufflevector(x[j], x[j + 2], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
               __builtin_shufflevector(x[j], x[j + 2], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    return __builtin_shufflevector(x[0], x[1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
           __builtin_shufflevector(x[0], x[1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
}

/* Normalise and store one head's result. A sink is one more logit in the denominator. */
#define DEFINE_WRITE(NAME_, T_, STORE_, SINK_)                                                                        \
    static void NAME_(const struct call *c, int row, int head, const float *out, float top, float total) {            \
        if (c->sinks) {                                                                                               \
            float sink = SINK_(((const T_ *)c->sinks)[head]);                                                         \
            total += expf(sink - top); /* infinite when the sink outweighs all: the result is 0 */                    \
        }                                                                                                             \
        float factor = 1.0f / total;                                                                                  \
        T_ *to = (T_ *)c->out + ((int64_t)row * c->num_heads + head) * c->v_head_dim;                                 \
        for (int d = 0; d < c->v_head_dim; d += LANES) STORE_(to + d, load_f32(out + d) * factor);                    \
    }

INLINE float same(float x) { return x; }
DEFINE_WRITE(write_bf16, bf16, store_bf16, scalar_bf16)
DEFINE_WRITE(write_f32, float, store_f32, same)

#if defined(__AVX512BF16__)
#define DOT_PAIRS
#endif
#define T bf16
#define NAME(x) x##_bf16
#define LOAD load_bf16
#include "attention_impl.h"
#undef T
#undef NAME
#undef LOAD
#undef DOT_PAIRS
#define T float
#define NAME(x) x##_f32
#define LOAD load_f32
#include "attention_impl.h"

static void join(const struct call *c, int place, int head, float *out) {
    const struct rule *rule = c->plan;
    int row = rule->merged[place], size = c->v_head_dim + LANES;
    float top = LOWEST, total = 0;
    memset(out, 0, sizeof(float) * c->v_head_dim);
    for (int i = rule->merged_at[place]; i < rule->merged_at[place + 1]; i++) {
        const float *part = c->parts + ((int64_t)rule->merged_parts[i] * c->num_heads + head) * size;
        top = part[0] > top ? part[0] : top;
    }
    for (int i = rule->merged_at[place]; i < rule->merged_at[place + 1]; i++) {
        const float *part = c->parts + ((int64_t)rule->merged_parts[i] * c->num_heads + head) * size;
        float weight = part[0] == LOWEST && part[1] == 0 ? 0.0f : expf(part[0] - top);
        total += part[1] * weight;
        for (int d = 0; d < c->v_head_dim; d += LANES)
            store_f32(out + d, load_f32(out + d) + load_f32(part + LANES + d) * weight);
    }
    (c->element == 2 ? write_bf16 : write_f32)(c, row, head, out, top, total);
}

static void store_rows(const struct call *c, int64_t first, int64_t last) {
    size_t k_bytes = (size_t)c->num_kv_heads * c->head_dim * c->element;
    size_t v_bytes = (size_t)c->num_kv_heads * c->v_head_dim * c->element;
    for (int64_t row = first; row < last; row++) {
        memcpy((char *)c->k_cache + c->slots[row] * k_bytes, (const char *)c->k + row * c->k_stride * c->element, k_bytes);
        memcpy((char *)c->v_cache + c->slots[row] * v_bytes, (const char *)c->v + row * c->v_stride * c->element, v_bytes);
    }
}

static void work(void *data) {
    struct call *c = data;
    const struct rule *rule = c->plan;
    int several = omp_get_num_threads() > 1;
    if (c->k) {
        int64_t first, last;
        share(c->num_tokens, &first, &last);
        store_rows(c, first, last);
        if (several) GOMP_barrier();
    }
    int group = c->num_heads / c->num_kv_heads, heads = group > MAX_JOB_HEADS ? group : MAX_JOB_HEADS;
    int v_dim = c->v_head_dim;
    float memory[heads * (v_dim + BLOCK_KEYS + 2)];
    bf16 pairs[heads * BLOCK_KEYS];
    struct scratch s = {memory, memory + heads * v_dim, memory + heads * (v_dim + BLOCK_KEYS), NULL, pairs};
    s.total = s.top + heads;
    /* The heads of a key lie next to each other: with jobs enough for all, one thread reads them together. */
    int together = rule->num_jobs >= 4 * omp_get_num_threads() ? c->num_kv_heads : 1;
    int items = rule->num_jobs * c->num_kv_heads;
    for (;;) {
        int item = __atomic_fetch_add(&c->next_job, together, __ATOMIC_RELAXED);
        if (item >= items) break;
        for (int i = item; i < item + together; i++)
            (c->element == 2 ? attend_bf16 : attend_f32)(c, rule->jobs + i / c->num_kv_heads, i % c->num_kv_heads, &s);
    }
    if (!rule->num_merged) return;
    if (several) GOMP_barrier();
    int64_t first, last;
    share((int64_t)rule->num_merged * c->num_heads, &first, &last);
    for (int64_t i = first; i < last; i++) join(c, (int)(i / c->num_heads), (int)(i % c->num_heads), s.out);
}

/* Store k and v (unless NULL), then attend for the plan's rows. Returns 0, or 1 without memory for the parts. */
EXPORT int cpu_native_attention(const struct rule *rule, const void *q, const void *k, const void *v, const void *sinks,
                                void *k_cache, void *v_cache, void *out, const int64_t *slots, int64_t q_stride,
                                int64_t k_stride, int64_t v_stride, int num_tokens, int num_heads, int num_kv_heads,
                                int head_dim, int v_head_dim, int element, float scale, float softcap) {
    struct call c = {rule, q, k, v, sinks, k_cache, v_cache, out, slots, q_stride, k_stride, v_stride,
                     num_tokens, num_heads, num_kv_heads, head_dim, v_head_dim, element, scale, softcap, NULL, 0, 0};
    if (rule->num_parts) {
        c.parts = malloc(sizeof(float) * (size_t)rule->num_parts * num_heads * (v_head_dim + LANES));
        if (!c.parts) return 1;
    }
    int items = rule->num_jobs * num_kv_heads, threads = omp_get_max_threads();
    if (items < threads) threads = items > 1 ? items : 1;
    run_parallel(work, &c, threads);
    free(c.parts);
    return 0;
}

/* The plan. */

EXPORT struct rule *cpu_native_plan_new(int page_size, int window) {
    struct rule *rule = calloc(1, sizeof *rule);
    if (rule) {
        rule->page_size = page_size;
        rule->window = window;
    }
    return rule;
}

EXPORT void cpu_native_plan_free(struct rule *rule) {
    if (!rule) return;
    void *all[] = {rule->page_table, rule->order,  rule->row_first, rule->row_last,
                   rule->jobs,       rule->merged, rule->merged_at, rule->merged_parts};
    for (int i = 0; i < 8; i++) free(all[i]);
    free(rule);
}

static int grow(struct rule *rule, int which, void *memory, int64_t count, size_t size) {
    void **at = memory;
    if (rule->room[which] >= count) return 1;
    int64_t wanted = count + count / 2 + 64;
    void *bigger = realloc(*at, (size_t)wanted * size);
    if (!bigger) return 0;
    *at = bigger;
    rule->room[which] = wanted;
    return 1;
}

static int add_job(struct rule *rule, struct job job) {
    if (!grow(rule, 4, &rule->jobs, rule->num_jobs + 1, sizeof job)) return 0;
    rule->jobs[rule->num_jobs++] = job;
    return 1;
}

/* Keys a job should have at most, so that all threads have work and no piece is too small. */
static int keys_per_job(int64_t cost, int rows, int num_kv_heads) {
    int threads = omp_get_max_threads();
    if (threads == 1) return INT32_MAX;
    int64_t target = cost * num_kv_heads / (PIECES * threads) / (rows > 0 ? rows : 1);
    int64_t least = rows > 4 ? 64 : 256;
    target = target < least ? least : target;
    return (int)((target + BLOCK_KEYS - 1) / BLOCK_KEYS * BLOCK_KEYS);
}

/* Plan sequences 0..num_sequences-1; those with take[i] == 0 are somebody else's.
 *
 * Rows of a sequence see keys up to their own. prefix_of[i]: number of the shared prefix that sequence i begins with,
 * or -1 (it has one new token then). prefix_tokens[p]: its length. Copies what it needs. Returns 0, or 1 without
 * memory. */
EXPORT int cpu_native_plan(struct rule *rule, const int32_t *page_table, int table_width, int num_sequences,
                           const int32_t *first_rows, const int32_t *lengths, const uint8_t *take,
                           const int32_t *prefix_of, const int32_t *prefix_tokens, int num_prefixes, int num_heads,
                           int num_kv_heads) {
    int tokens = first_rows[num_sequences], group = num_heads / num_kv_heads, memory = 1;
    int tile = MAX_JOB_HEADS / group > 0 ? MAX_JOB_HEADS / group : 1;
    int64_t table = (int64_t)num_sequences * table_width;
    memory &= grow(rule, 0, &rule->page_table, table, sizeof(int32_t));
    memory &= grow(rule, 1, &rule->order, 2 * (int64_t)tokens, sizeof(int32_t));
    memory &= grow(rule, 2, &rule->row_first, tokens, sizeof(int32_t));
    memory &= grow(rule, 3, &rule->row_last, tokens, sizeof(int32_t));
    if (!memory) return 1;
    memcpy(rule->page_table, page_table, sizeof(int32_t) * table);
    rule->table_width = table_width;
    rule->num_tokens = tokens;
    rule->num_jobs = rule->num_parts = rule->num_merged = 0;

    int64_t cost = 0; /* rows times keys */
    for (int i = 0; i < num_sequences; i++) {
        if (take && !take[i]) continue;
        int count = first_rows[i + 1] - first_rows[i];
        for (int n = 0; n < count; n++) {
            int row = first_rows[i] + n, end = lengths[i] - count + n + 1;
            end = end < 1 ? 1 : end;
            rule->row_last[row] = end;
            rule->row_first[row] = rule->window && end > rule->window ? end - rule->window : 0;
            cost += end - rule->row_first[row];
        }
    }
    int used = 0;
    for (int p = 0; p < num_prefixes; p++) {
        int begin = used, any = -1;
        for (int i = 0; i < num_sequences; i++)
            if (prefix_of[i] == p) {
                rule->order[used++] = first_rows[i];
                any = i;
            }
        for (int at = begin; at < used; at += tile) {
            int rows = used - at < tile ? used - at : tile;
            int step = keys_per_job(cost, rows, num_kv_heads);
            for (int64_t key = 0; key < prefix_tokens[p]; key += step) {
                int64_t end = key + step < prefix_tokens[p] ? key + step : prefix_tokens[p];
                struct job job = {any, at, at + rows, (int)key, (int)end, rule->num_parts};
                rule->num_parts += rows;
                if (!add_job(rule, job)) return 1;
            }
        }
    }
    for (int i = 0; i < num_sequences; i++) {
        if (take && !take[i]) continue;
        int prefix = num_prefixes ? prefix_of[i] : -1;
        for (int row = first_rows[i]; row < first_rows[i + 1]; row += tile) {
            int rows = first_rows[i + 1] - row < tile ? first_rows[i + 1] - row : tile;
            int begin = used;
            for (int n = 0; n < rows; n++) rule->order[used++] = row + n;
            int first = prefix >= 0 ? prefix_tokens[prefix] : rule->row_first[row];
            int last = rule->row_last[row + rows - 1], step = keys_per_job(cost, rows, num_kv_heads);
            int whole = prefix < 0 && last - first <= step;
            for (int64_t key = first; key < last; key += step) {
                int64_t end = key + step < last ? key + step : last;
                struct job job = {i, begin, begin + rows, (int)key, (int)end, whole ? -1 : rule->num_parts};
                if (!whole) rule->num_parts += rows;
                if (!add_job(rule, job)) return 1;
            }
        }
    }
    if (!rule->num_parts) return 0;

    /* Which parts belong to which row: counted, then placed. */
    memory &= grow(rule, 5, &rule->merged, tokens, sizeof(int32_t));
    memory &= grow(rule, 6, &rule->merged_at, tokens + 1, sizeof(int32_t));
    memory &= grow(rule, 7, &rule->merged_parts, rule->num_parts, sizeof(int32_t));
    int32_t *count = calloc(2 * (size_t)tokens, sizeof(int32_t)), *place = count ? count + tokens : NULL;
    if (!memory || !count) {
        free(count);
        return 1;
    }
    for (int j = 0; j < rule->num_jobs; j++)
        if (rule->jobs[j].part >= 0)
            for (int n = rule->jobs[j].first_row; n < rule->jobs[j].last_row; n++) count[rule->order[n]]++;
    int total = 0;
    for (int row = 0; row < tokens; row++) {
        if (!count[row]) continue;
        rule->merged[rule->num_merged] = row;
        rule->merged_at[rule->num_merged++] = total;
        place[row] = total;
        total += count[row];
    }
    rule->merged_at[rule->num_merged] = total;
    for (int j = 0; j < rule->num_jobs; j++)
        if (rule->jobs[j].part >= 0)
            for (int n = rule->jobs[j].first_row; n < rule->jobs[j].last_row; n++)
                rule->merged_parts[place[rule->order[n]]++] = rule->jobs[j].part + n - rule->jobs[j].first_row;
    free(count);
    return 0;
}
