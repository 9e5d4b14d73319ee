/* Norms, rotary embedding and gated activation. Statistics and arithmetic in float32. */
#include "common.h"

#define LEAST_ELEMENTS 16384 /* a thread; below, waking another costs more than it saves */

struct rows {
    const void *x, *residual, *weight;
    void *out, *sum;
    int64_t num_outer, outer_stride, inner_stride; /* of x, in elements */
    int num_inner, size, element;
    float eps;
};


/* One row of a norm; x + residual is stored to `sum` first where there is one. `wide` holds a row in float32. */
#define DEFINE_NORM(NAME_, T_, LOAD_, STORE_, READ_, WRITE_)                                                           \
    static void NAME_(const struct rows *c, const T_ *x, const T_ *residual, T_ *sum, T_ *out, float *wide) {          \
        int size = c->size, i = 0;                                                                                     \
        const T_ *weight = c->weight;                                                                                  \
        vec squares = splat(0);                                                                                        \
        float rest = 0;                                                                                                \
        for (; i + LANES <= size; i += LANES) {                                                                        \
            vec y = LOAD_(x + i);                                                                                      \
            if (residual) {                                                                                            \
                y += LOAD_(residual + i);                                                                              \
                STORE_(sum + i, y);                                                                                    \
                y = LOAD_(sum + i); /* rounded, as a following layer reads it */                                       \
            }                                                                                                          \
            store_f32(wide + i, y);                                                                                    \
            squares += y * y;                                                                                          \
        }                                                                                                              \
        for (; i < size; i++) {                                                                                        \
            float y = READ_(x[i]);                                                                                     \
            if (residual) {                                                                                            \
                sum[i] = WRITE_(y + READ_(residual[i]));                                                               \
                y = READ_(sum[i]);                                                                                     \
            }                                                                                                          \
            wide[i] = y;                                                                                               \
            rest += y * y;                                                                                             \
        }                                                                                                              \
        float factor = 1.0f / sqrtf((sum_vec(squares) + rest) / size + c->eps);                                        \
        for (i = 0; i + LANES <= size; i += LANES)                                                                     \
            STORE_(out + i, load_f32(wide + i) * factor * LOAD_(weight + i));                                          \
        for (; i < size; i++) out[i] = WRITE_(wide[i] * factor * READ_(weight[i]));                                    \
    }

INLINE float same(float x) { return x; }
DEFINE_NORM(norm_bf16, bf16, load_bf16, store_bf16, scalar_bf16, round_bf16)
DEFINE_NORM(norm_f32, float, load_f32, store_f32, same, same)

static void norm_rows(void *data) {
    const struct rows *c = data;
    int64_t first, last;
    float wide[c->size];
    share(c->num_outer * c->num_inner, &first, &last);
    for (int64_t i = first; i < last; i++) {
        int64_t from = i / c->num_inner * c->outer_stride + i % c->num_inner * c->inner_stride, to = i * c->size;
        if (c->element == 2)
            norm_bf16(c, (const bf16 *)c->x + from, c->residual ? (const bf16 *)c->residual + to : NULL,
                      c->sum ? (bf16 *)c->sum + to : NULL, (bf16 *)c->out + to, wide);
        else
            norm_f32(c, (const float *)c->x + from, c->residual ? (const float *)c->residual + to : NULL,
                     c->sum ? (float *)c->sum + to : NULL, (float *)c->out + to, wide);
    }
}

/* x [num_outer, num_inner, size] by strides; out, residual and sum lie densely. residual and sum may be NULL. */
EXPORT void cpu_native_norm(const void *x, const void *residual, const void *weight, void *sum, void *out,
                            int64_t num_outer, int64_t outer_stride, int num_inner, int64_t inner_stride, int size,
                            int element, float eps) {
    struct rows c = {x, residual, weight, out, sum, num_outer, outer_stride, inner_stride, num_inner, size, element, eps};
    run_parallel(norm_rows, &c, threads_for(num_outer * num_inner * size, LEAST_ELEMENTS));
}

struct gate {
    const void *x;
    void *out;
    int64_t num_rows, stride, size;
    int element;
};

INLINE vec silu_vec(vec x) { return x / (1.0f + exp_vec(-x)); }

#define GATE_ROW(T_, LOAD_, STORE_, READ_, WRITE_)                                                                     \
    {                                                                                                                  \
        const T_ *gate = (const T_ *)c->x + row * c->stride + begin, *up = gate + c->size;                             \
        T_ *out = (T_ *)c->out + row * c->size + begin;                                                                \
        int64_t i = 0, n = end - begin;                                                                                \
        for (; i + LANES <= n; i += LANES) STORE_(out + i, silu_vec(LOAD_(gate + i)) * LOAD_(up + i));                 \
        for (; i < n; i++) {                                                                                           \
            float g = READ_(gate[i]);                                                                                  \
            out[i] = WRITE_(g / (1.0f + expf(-g)) * READ_(up[i]));                                                     \
        }                                                                                                              \
    }

static void gate_rows(void *data) {
    const struct gate *c = data;
    int64_t first, last;
    share(c->num_rows * c->size, &first, &last);
    while (first < last) {
        int64_t row = first / c->size, begin = first % c->size;
        int64_t end = begin + (last - first) < c->size ? begin + (last - first) : c->size;
        if (c->element == 2)
            GATE_ROW(bf16, load_bf16, store_bf16, scalar_bf16, round_bf16)
        else
            GATE_ROW(float, load_f32, store_f32, same, same)
        first += end - begin;
    }
}

/* x [num_rows, 2 * size], rows `stride` elements apart -> out [num_rows, size] = silu(left) * right */
EXPORT void cpu_native_silu_and_mul(const void *x, void *out, int64_t num_rows, int64_t stride, int64_t size, int element) {
    struct gate c = {x, out, num_rows, stride, size, element};
    run_parallel(gate_rows, &c, threads_for(num_rows * size, LEAST_ELEMENTS / 2));
}

struct turn {
    void *x;
    const void *q_weight, *k_weight;
    const float *table;
    const int64_t *positions;
    int64_t num_tokens, stride, table_stride;
    int num_q, num_k, dim, half, element, interleaved;
    float eps;
};

/* Norm of one head in place, in float32, then its rotation. */
#define DEFINE_TURN(NAME_, T_, LOAD_, STORE_, READ_, WRITE_)                                                           \
    static void NAME_(const struct turn *c, T_ *x, const T_ *weight, const float *cosines, float *wide) {              \
        int dim = c->dim, half = c->half, i;                                                                           \
        const float *sines = cosines + half;                                                                           \
        vec squares = splat(0);                                                                                        \
        float rest = 0;                                                                                                \
        for (i = 0; i + LANES <= dim; i += LANES) {                                                                    \
            vec y = LOAD_(x + i);                                                                                      \
            store_f32(wide + i, y);                                                                                    \
            squares += y * y;                                                                                          \
        }                                                                                                              \
        for (; i < dim; i++) {                                                                                         \
            wide[i] = READ_(x[i]);                                                                                     \
            rest += wide[i] * wide[i];                                                                                 \
        }                                                                                                              \
        if (weight) {                                                                                                  \
            float factor = 1.0f / sqrtf((sum_vec(squares) + rest) / dim + c->eps);                                     \
            for (i = 0; i + LANES <= dim; i += LANES)                                                                  \
                store_f32(wide + i, load_f32(wide + i) * factor * LOAD_(weight + i));                                  \
            for (; i < dim; i++) wide[i] *= factor * READ_(weight[i]);                                                 \
        }                                                                                                              \
        if (c->interleaved) {                                                                                          \
            for (i = 0; i < half; i++) {                                                                               \
                float a = wide[2 * i], b = wide[2 * i + 1];                                                            \
                wide[2 * i] = a * cosines[i] - b * sines[i];                                                           \
                wide[2 * i + 1] = b * cosines[i] + a * sines[i];                                                       \
            }                                                                                                          \
        } else {                                                                                                       \
            for (i = 0; i + LANES <= half; i += LANES) {                                                               \
                vec a = load_f32(wide + i), b = load_f32(wide + half + i);                                             \
                vec turn_cos = load_f32(cosines + i), turn_sin = load_f32(sines + i);                                  \
                store_f32(wide + i, a * turn_cos - b * turn_sin);                                                      \
                store_f32(wide + half + i, b * turn_cos + a * turn_sin);                                               \
            }                                                                                                          \
            for (; i < half; i++) {                                                                                    \
                float a = wide[i], b = wide[half + i];                                                                 \
                wide[i] = a * cosines[i] - b * sines[i];                                                               \
                wide[half + i] = b * cosines[i] + a * sines[i];                                                        \
            }                                                                                                          \
        }                                                                                                              \
        for (i = 0; i + LANES <= dim; i += LANES) STORE_(x + i, load_f32(wide + i));                                   \
        for (; i < dim; i++) x[i] = WRITE_(wide[i]);                                                                   \
    }

DEFINE_TURN(turn_bf16, bf16, load_bf16, store_bf16, scalar_bf16, round_bf16)
DEFINE_TURN(turn_f32, float, load_f32, store_f32, same, same)

static void turn_rows(void *data) {
    const struct turn *c = data;
    int64_t first, last;
    float wide[c->dim];
    share(c->num_tokens, &first, &last);
    for (int64_t row = first; row < last; row++) {
        const float *cosines = c->table + c->positions[row] * c->table_stride;
        for (int head = 0; head < c->num_q + c->num_k; head++) {
            const void *weight = head < c->num_q ? c->q_weight : c->k_weight;
            int64_t at = row * c->stride + (int64_t)head * c->dim;
            if (c->element == 2)
                turn_bf16(c, (bf16 *)c->x + at, weight, cosines, wide);
            else
                turn_f32(c, (float *)c->x + at, weight, cosines, wide);
        }
    }
}

/* In place: x [num_tokens, num_q + num_k, dim], rows `stride` elements apart. RMS norm of each head where there are
 * weights [dim] (either may be NULL), then rotation of the first 2 * half dimensions by table [.., 2 * half], cosines
 * first. */
EXPORT void cpu_native_norm_rope(void *x, const void *q_weight, const void *k_weight, const float *table,
                                 const int64_t *positions, int64_t num_tokens, int64_t stride, int64_t table_stride,
                                 int num_q, int num_k, int dim, int half, int element, int interleaved, float eps) {
    struct turn c = {x, q_weight, k_weight, table, positions, num_tokens, stride, table_stride,
                     num_q, num_k, dim, half, element, interleaved, eps};
    run_parallel(turn_rows, &c, threads_for(num_tokens * (num_q + num_k) * dim, LEAST_ELEMENTS));
}
