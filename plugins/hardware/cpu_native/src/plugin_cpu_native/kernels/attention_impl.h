/* Attention of some query heads over a range of one sequence's keys, for one element type. Included once per type
 * with T (element), NAME(x), LOAD(p) and STORE(p, x). */

/* scores[0..15] = q . k[i] * scale for the first `count` of 16 keys; the others repeat the last. */
INLINE vec NAME(dot16)(const T *const *k, const T *q, int dim) {
    vec sum[LANES];
    for (int j = 0; j < LANES; j++) sum[j] = splat(0);
#ifdef DOT_PAIRS
    if (dim % 32 == 0) {
        for (int d = 0; d < dim; d += 32) {
            __m512bh x = (__m512bh)_mm512_loadu_si512(q + d);
#pragma GCC unroll 16
            for (int j = 0; j < LANES; j++)
                sum[j] = (vec)_mm512_dpbf16_ps((__m512)sum[j], x, (__m512bh)_mm512_loadu_si512(k[j] + d));
        }
        return sum_rows(sum);
    }
#endif
    for (int d = 0; d < dim; d += LANES) {
        vec x = LOAD(q + d);
#pragma GCC unroll 16
        for (int j = 0; j < LANES; j++) sum[j] += x * LOAD(k[j] + d);
    }
    return sum_rows(sum);
}

/* out[i][..] += sum over keys of weights[i][key] * v[key][..] for `num` (a constant) query heads. */
INLINE void NAME(gather_values)(float *out, int stride, const float *weights, const T *const *v, int num_keys, int dim,
                                const int num) {
    int d = 0;
    for (; d + 2 * LANES <= dim; d += 2 * LANES) {
        vec a[4], b[4];
#pragma GCC unroll 4
        for (int i = 0; i < num; i++) {
            a[i] = load_f32(out + i * stride + d);
            b[i] = load_f32(out + i * stride + d + LANES);
        }
        for (int key = 0; key < num_keys; key++) {
            vec x = LOAD(v[key] + d), y = LOAD(v[key] + d + LANES);
#pragma GCC unroll 4
            for (int i = 0; i < num; i++) {
                vec w = splat(weights[i * BLOCK_KEYS + key]);
                a[i] += w * x;
                b[i] += w * y;
            }
        }
#pragma GCC unroll 4
        for (int i = 0; i < num; i++) {
            store_f32(out + i * stride + d, a[i]);
            store_f32(out + i * stride + d + LANES, b[i]);
        }
    }
    for (; d < dim; d += LANES)
        for (int i = 0; i < num; i++) {
            vec a = load_f32(out + i * stride + d);
            for (int key = 0; key < num_keys; key++) a += weights[i * BLOCK_KEYS + key] * LOAD(v[key] + d);
            store_f32(out + i * stride + d, a);
        }
}

#ifdef DOT_PAIRS
/* The same for pairs of keys with weights in bfloat16, dims a multiple of 32. Unpacking two rows of values leaves each
 * 32 dimensions of `out` in another order, which `restore_order` undoes at the end. */
INLINE void NAME(gather_pairs)(float *out, int stride, const bf16 *weights, const T *const *v, int num_keys, int dim,
                               const int num) {
    for (int d = 0; d < dim; d += 32) {
        __m512 a[4], b[4];
#pragma GCC unroll 4
        for (int i = 0; i < num; i++) {
            a[i] = _mm512_loadu_ps(out + i * stride + d);
            b[i] = _mm512_loadu_ps(out + i * stride + d + LANES);
        }
        for (int key = 0; key < num_keys; key += 2) {
            __m512i first = _mm512_loadu_si512(v[key] + d), second = _mm512_loadu_si512(v[key + 1] + d);
            __m512bh x = (__m512bh)_mm512_unpacklo_epi16(first, second);
            __m512bh y = (__m512bh)_mm512_unpackhi_epi16(first, second);
#pragma GCC unroll 4
            for (int i = 0; i < num; i++) {
                int32_t pair;
                memcpy(&pair, weights + i * BLOCK_KEYS + key, sizeof pair);
                __m512bh w = (__m512bh)_mm512_set1_epi32(pair);
                a[i] = _mm512_dpbf16_ps(a[i], w, x);
                b[i] = _mm512_dpbf16_ps(b[i], w, y);
            }
        }
#pragma GCC unroll 4
        for (int i = 0; i < num; i++) {
            _mm512_storeu_ps(out + i * stride + d, a[i]);
            _mm512_storeu_ps(out + i * stride + d + LANES, b[i]);
        }
    }
}

static void NAME(restore_order)(float *out, int64_t count) {
    const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i high = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
    for (int64_t d = 0; d < count; d += 32) {
        __m512 a = _mm512_loadu_ps(out + d), b = _mm512_loadu_ps(out + d + LANES);
        _mm512_storeu_ps(out + d, _mm512_permutex2var_ps(a, low, b));
        _mm512_storeu_ps(out + d + LANES, _mm512_permutex2var_ps(a, high, b));
    }
}
#endif

static void NAME(attend)(const struct call *c, const struct job *job, int kv_head, struct scratch *s) {
    const struct rule *rule = c->plan;
    int group = c->num_heads / c->num_kv_heads, num_rows = job->last_row - job->first_row, num = num_rows * group;
    int dim = c->head_dim, v_dim = c->v_head_dim;
    const int32_t *pages = rule->page_table + (int64_t)job->sequence * rule->table_width;
    const T *keys = (const T *)c->k_cache + (int64_t)kv_head * dim;
    const T *values = (const T *)c->v_cache + (int64_t)kv_head * v_dim;
    int64_t k_stride = (int64_t)c->num_kv_heads * dim, v_stride = (int64_t)c->num_kv_heads * v_dim;
    const T *k[BLOCK_KEYS], *v[BLOCK_KEYS];
    const int32_t *rows = rule->order + job->first_row;

    for (int i = 0; i < num; i++) {
        s->top[i] = LOWEST;
        s->total[i] = 0;
    }
    memset(s->out, 0, sizeof(float) * num * v_dim);
    for (int first = job->first_key; first < job->last_key; first += BLOCK_KEYS) {
        int count = job->last_key - first < BLOCK_KEYS ? job->last_key - first : BLOCK_KEYS;
        int page = first / rule->page_size, offset = first % rule->page_size;
        for (int j = 0; j < count;) {
            int64_t slot = (int64_t)pages[page] * rule->page_size + offset;
            for (; j < count && offset < rule->page_size; j++, offset++, slot++) {
                k[j] = keys + slot * k_stride;
                v[j] = values + slot * v_stride;
            }
            offset = 0;
            page++;
        }
        int padded = (count + LANES - 1) / LANES * LANES;
        for (int j = count; j < padded; j++) k[j] = k[count - 1];

        for (int i = 0; i < num; i++) {
            int row = rows[i / group];
            const T *q = (const T *)c->q + row * c->q_stride + (int64_t)(kv_head * group + i % group) * dim;
            /* What this row sees of the block. */
            int from = rule->row_first[row] - first, to = rule->row_last[row] - first;
            if (from <= 0 && to >= count) from = 0, to = count;
            float *w = s->weights + i * BLOCK_KEYS;
            vec most = splat(s->top[i]), lowest = splat(LOWEST);
            for (int j = 0; j < padded; j += LANES) {
                vec x = NAME(dot16)(k + j, q, dim) * c->scale;
                if (c->softcap > 0) {
                    vec e = exp_vec(x * (2.0f / c->softcap));
                    x = c->softcap * ((e - 1.0f) / (e + 1.0f));
                }
                if (from > j || to < j + LANES) {
                    ivec at = lane_numbers() + j;
                    x = select_vec((at >= from) & (at < to), x, lowest);
                }
                store_f32(w + j, x);
                most = max_vec(most, x);
            }
            float top = largest_vec(most), before = s->top[i];
            if (top > LOWEST) {
                vec sum = splat(0);
                for (int j = 0; j < padded; j += LANES) {
                    vec x = load_f32(w + j), y = exp_vec(x - top);
                    y = select_vec(x == lowest, splat(0), y);
                    sum += y;
                    store_f32(w + j, y);
                }
                float part = sum_vec(sum);
                if (top != before) {
                    float shrink = before == LOWEST ? 0.0f : expf(before - top);
                    s->total[i] *= shrink;
                    float *out = s->out + i * v_dim;
                    for (int d = 0; d < v_dim; d += LANES) store_f32(out + d, load_f32(out + d) * shrink);
                    s->top[i] = top;
                }
                s->total[i] += part;
            } else { /* it sees nothing here, or only not-a-numbers, which leave the sum at 0 and the result undefined */
                memset(w, 0, sizeof(float) * padded);
            }
        }
        int i = 0;
#ifdef DOT_PAIRS
        if (v_dim % 32 == 0) {
            bf16 *w = s->pairs;
            int even = (count + 1) / 2 * 2; /* the key after an odd last one repeats it with weight 0 */
            if (even > count) v[count] = v[count - 1];
            for (; i < num; i++) {
                for (int j = 0; j < padded; j += LANES)
                    store_bf16(w + i * BLOCK_KEYS + j, load_f32(s->weights + i * BLOCK_KEYS + j));
            }
            for (i = 0; i + 4 <= num; i += 4)
                NAME(gather_pairs)(s->out + i * v_dim, v_dim, w + i * BLOCK_KEYS, v, even, v_dim, 4);
            if (i + 2 <= num) {
                NAME(gather_pairs)(s->out + i * v_dim, v_dim, w + i * BLOCK_KEYS, v, even, v_dim, 2);
                i += 2;
            }
            if (i < num) NAME(gather_pairs)(s->out + i * v_dim, v_dim, w + i * BLOCK_KEYS, v, even, v_dim, 1);
            continue;
        }
#endif
        for (; i + 4 <= num; i += 4)
            NAME(gather_values)(s->out + i * v_dim, v_dim, s->weights + i * BLOCK_KEYS, v, count, v_dim, 4);
        if (i + 2 <= num) {
            NAME(gather_values)(s->out + i * v_dim, v_dim, s->weights + i * BLOCK_KEYS, v, count, v_dim, 2);
            i += 2;
        }
        if (i < num) NAME(gather_values)(s->out + i * v_dim, v_dim, s->weights + i * BLOCK_KEYS, v, count, v_dim, 1);
    }

#ifdef DOT_PAIRS
    if (v_dim % 32 == 0) NAME(restore_order)(s->out, (int64_t)num * v_dim);
#endif
    for (int i = 0; i < num; i++) {
        int row = rows[i / group], head = kv_head * group + i % group;
        const float *out = s->out + i * v_dim;
        if (job->part < 0) {
            NAME(write)(c, row, head, out, s->top[i], s->total[i]);
        } else {
            float *part = c->parts + ((int64_t)(job->part + i / group) * c->num_heads + head) * (v_dim + LANES);
            part[0] = s->top[i];
            part[1] = s->total[i];
            memcpy(part + LANES, out, sizeof(float) * v_dim);
        }
    }
}
