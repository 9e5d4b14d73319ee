/* Vectors of 16 floats, bfloat16, threads. Plain C with the vector extensions that GCC and Clang share: the compiler
 * splits a vector where the processor has shorter ones. */
#ifndef CORE_CPU_NATIVE_COMMON_H
#define CORE_CPU_NATIVE_COMMON_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#define EXPORT __attribute__((visibility("default")))
#define INLINE static inline __attribute__((always_inline))
#define LANES 16

typedef uint16_t bf16;
typedef float vec __attribute__((vector_size(64)));
typedef int32_t ivec __attribute__((vector_size(64)));
typedef uint32_t uvec __attribute__((vector_size(64)));
typedef uint16_t hvec __attribute__((vector_size(32)));

/* Threads are those of the process's OpenMP runtime, which PyTorch has loaded: a pool of our own would fight with
 * PyTorch's for the cores. Calling the runtime by name needs neither -fopenmp nor a link against a second one. */
extern void GOMP_parallel(void (*body)(void *), void *data, unsigned num_threads, unsigned flags);
extern void GOMP_barrier(void);
extern int omp_get_thread_num(void);
extern int omp_get_num_threads(void);
extern int omp_get_max_threads(void);

INLINE void run_parallel(void (*body)(void *), void *data, int num_threads) {
    if (num_threads <= 1)
        body(data);
    else
        GOMP_parallel(body, data, (unsigned)num_threads, 0);
}

/* Threads worth waking for `work` units when one thread should have at least `least`. */
INLINE int threads_for(int64_t work, int64_t least) {
    int most = omp_get_max_threads();
    int64_t wanted = work / least;
    return wanted < 1 ? 1 : wanted < most ? (int)wanted : most;
}

/* This thread's share of 0..count-1. */
INLINE void share(int64_t count, int64_t *first, int64_t *last) {
    int64_t threads = omp_get_num_threads(), mine = omp_get_thread_num();
    *first = count * mine / threads;
    *last = count * (mine + 1) / threads;
}

INLINE vec splat(float x) { return (vec){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }

INLINE vec load_f32(const float *p) {
    vec x;
    memcpy(&x, p, sizeof x);
    return x;
}

INLINE void store_f32(float *p, vec x) { memcpy(p, &x, sizeof x); }

INLINE vec load_bf16(const bf16 *p) {
    hvec raw;
    memcpy(&raw, p, sizeof raw);
    return (vec)(__builtin_convertvector(raw, uvec) << 16);
}

INLINE void store_bf16(bf16 *p, vec x) { /* to nearest, ties to even; not-a-number stays one */
#if defined(__AVX512BF16__)
    __m256bh narrow = _mm512_cvtneps_pbh((__m512)x);
    memcpy(p, &narrow, sizeof narrow);
#else
    uvec bits = (uvec)x;
    uvec rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    uvec quiet = (bits >> 16) | 0x40;
    uvec nan = (uvec)(x != x);
    hvec narrow = __builtin_convertvector((rounded & ~nan) | (quiet & nan), hvec);
    memcpy(p, &narrow, sizeof narrow);
#endif
}

INLINE float scalar_bf16(bf16 x) {
    uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, sizeof y);
    return y;
}

INLINE bf16 round_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (x != x) return (bf16)((bits >> 16) | 0x40);
    return (bf16)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

INLINE vec select_vec(ivec mask, vec yes, vec no) { return (vec)(((ivec)yes & mask) | ((ivec)no & ~mask)); }
INLINE vec min_vec(vec a, vec b) { return select_vec(a > b, b, a); } /* a's not-a-number stays */
INLINE vec max_vec(vec a, vec b) { return select_vec(a < b, b, a); }

INLINE float sum_vec(vec x) {
    float lanes[LANES], total = 0;
    x += __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    x += __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    store_f32(lanes, x);
    for (int i = 0; i < 4; i++) total += lanes[i];
    return total;
}

INLINE float largest_vec(vec x) {
    float lanes[LANES];
    x = max_vec(x, __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
    x = max_vec(x, __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
    store_f32(lanes, x);
    float most = lanes[0];
    for (int i = 1; i < 4; i++) most = lanes[i] > most ? lanes[i] : most;
    return most;
}

/* exp with an error below 2 units in the last place for -87 <= x <= 88; beyond, the value at the border.
 * Not-a-number stays. */
INLINE vec exp_vec(vec x) {
    x = min_vec(max_vec(x, splat(-87.0f)), splat(88.0f));
    vec magic = splat(12582912.0f); /* 1.5 * 2^23: adding it rounds to a whole number, kept in the low bits */
    vec shifted = x * 1.44269504f + magic;
    vec n = shifted - magic;
    vec r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    vec y = splat(1.9875691500e-4f);
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * (r * r) + r + 1.0f;
    ivec scale = ((ivec)shifted + 127) << 23;
    return y * (vec)scale;
}

#endif
