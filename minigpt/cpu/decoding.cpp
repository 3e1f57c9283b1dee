// GPT's forward for one new token per row, with a cache of keys and values. models/gpt.py is the same in PyTorch, and
// tests/test_decoding.py compares the two. All threads go through the layers together and synchronise after each
// product. Weights are read from memory once, in the order in which they are stored.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

// Numbers in a vector; rows at once, such that their sums fit into registers; outputs with adjacent weights.
#if defined(__AVX512F__)
constexpr int64_t WIDTH = 16, ROWS = 8;
#elif defined(__AVX__)
constexpr int64_t WIDTH = 8, ROWS = 4;
#else
constexpr int64_t WIDTH = 4, ROWS = 4;
#endif
constexpr int64_t COLUMNS = 2 * WIDTH;
using Floats = float __attribute__((vector_size(4 * WIDTH)));
using Ints = int32_t __attribute__((vector_size(4 * WIDTH)));
using Pairs = uint32_t __attribute__((vector_size(4 * WIDTH)));
using Shorts = uint16_t __attribute__((vector_size(2 * WIDTH)));

// decoding.py declares the same structures.
enum Activation { GELU, RELU2, SWIGLU };
struct Linear {
    const void* weight;         // (outputs / COLUMNS, inputs / TOGETHER, COLUMNS, TOGETHER), or null
    const float *scale, *bias;  // the factors of each output's int8 weights, or null; the bias, or null
    int64_t inputs, outputs;
};
struct Norm {
    const float *weight, *bias;  // the bias may be null
};
struct Layer {
    Norm norm1, norm2;
    Linear qkv, proj, gate, up, down;
};
struct Model {
    int64_t n_layer, n_head, n_kv_head, head_size, n_embd, vocab_size, ngrams, threads;
    int64_t rmsnorm, activation, qk_norm;
    int64_t stream;  // whether the weights are read from memory at each token
    float norm_eps, softcap;
    const float *embed, *pair, *triple, *position, *cos, *sin;  // null for parts that the model does not have
    const Layer* layers;
    Norm norm;
    Linear head;
};

struct BFloat16 {
    uint16_t bits;
};
template <class Weight>  // the type of inputs in products with such weights, and of keys and values
using Number = std::conditional_t<std::is_same_v<Weight, BFloat16>, BFloat16, float>;
template <class Weight>
constexpr int64_t TOGETHER = 4 / sizeof(Weight);  // inputs with adjacent weights

static Floats load(const float* p) {
    Floats x;
    std::memcpy(&x, p, sizeof x);
    return x;
}
static Floats load(const BFloat16* p) {
    Shorts bits;
    std::memcpy(&bits, p, sizeof bits);
    return (Floats)(__builtin_convertvector(bits, Ints) << 16);
}
static float load_one(const float* p) { return *p; }
static float load_one(const BFloat16* p) {
    uint32_t bits = uint32_t(p->bits) << 16;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}
static void store(float* p, float x) { *p = x; }
static void store(BFloat16* p, float x) {  // to the nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof x);
    p->bits = uint16_t((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

// Loads up to a vector of the remaining `n` numbers of a row; a copy of a constant size is one instruction.
static Floats get(const float* p, int64_t n) {
    Floats x = {};
    n >= WIDTH ? std::memcpy(&x, p, sizeof x) : std::memcpy(&x, p, 4 * n);
    return x;
}
static void put(Floats x, float* p, int64_t n) {
    n >= WIDTH ? std::memcpy(p, &x, sizeof x) : std::memcpy(p, &x, 4 * n);
}

static float total(Floats x) {
    float halves[2][WIDTH / 2], sum = 0;
    std::memcpy(halves, &x, sizeof x);
    for (int i = 0; i < WIDTH / 2; i++) sum += halves[0][i] + halves[1][i];
    return sum;
}
static Floats exp(Floats x) {
    x = x < -87.0f ? Floats{} - 87.0f : x > 88.0f ? Floats{} + 88.0f : x;
    Ints n = __builtin_convertvector(x * 1.44269504f, Ints);
    Floats r = x - __builtin_convertvector(n, Floats) * 0.693147181f, e = 0.1f * r + 1;
    for (int i = 9; i > 0; i--) e = e * r * (1 / float(i)) + 1;  // Taylor's series: |r| stays below ln 2
    return e * (Floats)((n + 127) << 23);
}
static Floats sigmoid(Floats x) { return 1 / (1 + exp(-x)); }

// Loads the weights of `WIDTH` outputs for adjacent inputs, and adds their products to the sums.
static Floats weights(const float* w) { return load(w); }
static Pairs weights(const BFloat16* w) {
    Pairs pairs;
    std::memcpy(&pairs, w, sizeof pairs);
    return pairs;
}
struct Four {
    Floats input[4];
};
static Four weights(const int8_t* w) {  // times 2^24, so that they need not be shifted back
    Ints fours, upper = Ints{} + int32_t(0xFF000000);
    std::memcpy(&fours, w, sizeof fours);
    return {
        __builtin_convertvector(fours << 24, Floats), __builtin_convertvector(fours << 16 & upper, Floats),
        __builtin_convertvector(fours << 8 & upper, Floats), __builtin_convertvector(fours & upper, Floats),
    };
}
static Floats add(Floats sums, const float* x, Floats weights) { return sums + *x * weights; }
static Floats add(Floats sums, const float* x, const Four& weights) {
    for (int i = 0; i < 4; i++) sums += x[i] * weights.input[i];
    return sums;
}
static Floats add(Floats sums, const BFloat16* x, Pairs weights) {
#ifdef __AVX512BF16__
    uint32_t pair;
    std::memcpy(&pair, x, sizeof pair);
    return (Floats)_mm512_dpbf16_ps((__m512)sums, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)weights);
#else
    return sums + load_one(x) * (Floats)(weights << 16) + load_one(x + 1) * (Floats)(weights & 0xFFFF0000);
#endif
}

// Prefetches the weights of `STEPS` steps that are to come. The last 0 keeps them out of the caches behind the first
// one, which they would empty without being there at the next token.
template <int STEPS>
static void prefetch(const void* w) {
    constexpr int AHEAD = 4096, LINE = 64;  // bytes
    for (int i = 0; i < STEPS * 4 * COLUMNS; i += LINE) __builtin_prefetch((const char*)w + AHEAD + i, 0, 0);
}

// Computes the sums of `COLUMNS` outputs for M rows of inputs.
template <int M, class Weight>
static void products(const Weight* w, const Number<Weight>* x, int64_t inputs, bool stream, Floats (&sums)[M][2]) {
    constexpr int64_t N = TOGETHER<Weight>;
    Floats other[2] = {};
    int64_t k = 0;
    if (M == 1)  // two independent sums, since one row would wait for each addition
        for (; k + N < inputs; k += 2 * N, w += 2 * N * COLUMNS) {
            if (stream) prefetch<2>(w);
            for (int half = 0; half < 2; half++) {
                sums[0][half] = add(sums[0][half], x + k, weights(w + half * N * WIDTH));
                other[half] = add(other[half], x + k + N, weights(w + N * COLUMNS + half * N * WIDTH));
            }
        }
    for (; k < inputs; k += N, w += N * COLUMNS) {
        if (stream) prefetch<1>(w);
        auto first = weights(w), second = weights(w + N * WIDTH);
        for (int m = 0; m < M; m++) {
            sums[m][0] = add(sums[m][0], x + m * inputs + k, first);
            sums[m][1] = add(sums[m][1], x + m * inputs + k, second);
        }
    }
    for (int half = 0; half < 2; half++) sums[0][half] += other[half];
}

// Passes `WIDTH` outputs at a time to `take(row, column, outputs)`.
template <class Weight, int M, class Take>
static void some_rows(
    const Linear& layer, int64_t block, const Number<Weight>* x, int64_t inputs, int64_t row, bool stream, Take take
) {
    Floats sums[M][2] = {};
    products<M>((const Weight*)layer.weight + block * inputs * COLUMNS, x + row * inputs, inputs, stream, sums);
    for (int m = 0; m < M; m++)
        for (int half = 0; half < 2; half++) {
            int64_t column = block * COLUMNS + half * WIDTH;
            if (layer.scale) sums[m][half] *= load(layer.scale + column);
            if (layer.bias) sums[m][half] += load(layer.bias + column);
            if (column < layer.outputs) take(row + m, column, sums[m][half]);
        }
}
template <class Weight, class Take>
static void linear(const Model& model, const Linear& layer, const float* x, int64_t rows, Take take) {
    const bool stream = model.stream && (rows <= 2 || rows == 4 || rows == ROWS);  // each weight is read once
    const int64_t inputs = (layer.inputs + TOGETHER<Weight> - 1) / TOGETHER<Weight> * TOGETHER<Weight>;
    std::vector<Number<Weight>> rounded;
    const Number<Weight>* given = nullptr;
    if constexpr (std::is_same_v<Number<Weight>, float>) given = inputs == layer.inputs ? x : nullptr;
    if (!given) {  // every thread computes this, which is faster than sharing
        rounded.resize(rows * inputs);
        for (int64_t row = 0; row < rows; row++)
            for (int64_t i = 0; i < layer.inputs; i++) store(&rounded[row * inputs + i], x[row * layer.inputs + i]);
        given = rounded.data();
    }
#pragma omp for schedule(static)
    for (int64_t block = 0; block < (layer.outputs + COLUMNS - 1) / COLUMNS; block++) {
        int64_t row = 0;  // the more rows share one read of a weight the better
        for (; row + ROWS <= rows; row += ROWS) some_rows<Weight, ROWS>(layer, block, given, inputs, row, stream, take);
        for (; row + 4 <= rows; row += 4) some_rows<Weight, 4>(layer, block, given, inputs, row, stream, take);
        for (; row + 2 <= rows; row += 2) some_rows<Weight, 2>(layer, block, given, inputs, row, stream, take);
        for (; row < rows; row++) some_rows<Weight, 1>(layer, block, given, inputs, row, stream, take);
    }
}
static auto into(float* y, int64_t outputs) {
    return [=](int64_t row, int64_t column, Floats value) { put(value, y + row * outputs + column, outputs - column); };
}

static void normalise(const Model& model, const Norm& norm, const float* x, float* y) {
    int64_t n = model.n_embd;
    float mean = 0, square = 0;
    if (!model.rmsnorm)
        for (int64_t i = 0; i < n; i++) mean += x[i];
    mean /= n;
    for (int64_t i = 0; i < n; i++) square += (x[i] - mean) * (x[i] - mean);
    float scale = 1 / std::sqrt(square / n + model.norm_eps);
    for (int64_t i = 0; i < n; i++) y[i] = (x[i] - mean) * scale * norm.weight[i] + (norm.bias ? norm.bias[i] : 0);
}

// Normalises and rotates a head's query or key according to the model's switches.
static void prepare(const Model& model, float* x, int64_t size, int64_t position) {
    if (model.qk_norm) {
        float square = 0;
        for (int64_t i = 0; i < size; i++) square += x[i] * x[i];
        float scale = 1 / std::sqrt(square / size + std::numeric_limits<float>::epsilon());
        for (int64_t i = 0; i < size; i++) x[i] *= scale;
    }
    if (model.cos) {
        const float *cos = model.cos + position * size, *sin = model.sin + position * size;
        for (int64_t i = 0; i < size / 2; i++) {
            float first = x[i], second = x[i + size / 2];
            x[i] = first * cos[i] + second * sin[i];
            x[i + size / 2] = second * cos[i + size / 2] + first * sin[i + size / 2];
        }
    }
}

// Sums `n` weighted values, N vectors of each `size`.
template <int N, class Number>
static void gather(const float* weights, const Number* values, int64_t n, int64_t size, float* y) {
    Floats sums[N] = {};
    for (int64_t s = 0; s < n; s++)
        for (int i = 0; i < N; i++) sums[i] += weights[s] * load(values + s * size + i * WIDTH);
    std::memcpy(y, sums, sizeof sums);
}

// Computes what a query `(size)` gathers from the first `n` keys and values `(n, size)`.
template <class Number>
static void attend(
    const float* query, const Number* keys, const Number* values, int64_t n, int64_t size,
    float* weights, float* y
) {
    float largest = -INFINITY, sum = 0;
    for (int64_t s = 0; s < n; s++) {
        const Number* key = keys + s * size;
        Floats sums = {};
        int64_t i = 0;
        for (; i + WIDTH <= size; i += WIDTH) sums += load(query + i) * load(key + i);
        weights[s] = total(sums);
        for (; i < size; i++) weights[s] += query[i] * load_one(key + i);
        largest = std::max(largest, weights[s]);
    }
    float scale = 1 / std::sqrt(float(size));
    for (int64_t s = 0; s < n; s += WIDTH) {  // `weights` has room for whole vectors
        Floats e = exp(scale * (load(weights + s) - largest));
        std::memcpy(weights + s, &e, sizeof e);
    }
    for (int64_t s = 0; s < n; s++) sum += weights[s];
    int64_t i = 0;
    for (; i + 4 * WIDTH <= size; i += 4 * WIDTH) gather<4>(weights, values + i, n, size, y + i);
    for (; i + WIDTH <= size; i += WIDTH) gather<1>(weights, values + i, n, size, y + i);
    for (; i < size; i++) {
        y[i] = 0;
        for (int64_t s = 0; s < n; s++) y[i] += weights[s] * load_one(values + s * size + i);
    }
    for (i = 0; i < size; i++) y[i] /= sum;
}

// Keys and values are (n_layer, rows, n_kv_head, room, size). Returns 1 and does nothing if an id is outside the
// vocabulary or does not fit into the cache; else returns 0.
template <class Weight>
static int decode(
    const Model& model, int64_t rows, int64_t room, const int64_t* ids, const int64_t* before, const int64_t* positions,
    Number<Weight>* keys, Number<Weight>* values, float* logits
) {
    for (int64_t row = 0; row < rows; row++) {
        if (ids[row] < 0 || ids[row] >= model.vocab_size) return 1;
        if (positions[row] < 0 || positions[row] >= room) return 1;
    }
    const int64_t n_embd = model.n_embd, size = model.head_size, groups = model.n_head / model.n_kv_head;
    const int64_t n_heads = model.n_head * size, n_qkv = n_heads + 2 * model.n_kv_head * size;
    const int64_t n_hidden = model.layers[0].up.outputs;
    std::vector<float> x(rows * n_embd), qkv(rows * n_qkv), y(rows * n_heads), hidden(rows * n_hidden), gate;
    if (model.layers[0].gate.weight) gate.resize(rows * n_hidden);
    auto to_x = [&](int64_t row, int64_t column, Floats value) {
        float* sums = &x[row * n_embd + column];
        put(get(sums, n_embd - column) + value, sums, n_embd - column);
    };

#pragma omp parallel num_threads(model.threads)
    {
        std::vector<float> normed(rows * n_embd), weights(room + WIDTH);
        auto norm_all = [&](const Norm& norm) {  // every thread computes this, which is faster than sharing
            for (int64_t row = 0; row < rows; row++) normalise(model, norm, &x[row * n_embd], &normed[row * n_embd]);
        };
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row++) {
            int64_t pair = ids[row] * 1000003, triple = 0;
            if (model.ngrams) {
                pair += before[2 * row + 1];
                triple = (pair * 1000003 + before[2 * row]) % model.ngrams;
                pair %= model.ngrams;
            }
            for (int64_t i = 0; i < n_embd; i++) {
                float sum = model.embed[ids[row] * n_embd + i];
                if (model.ngrams) sum += model.pair[pair * n_embd + i] + model.triple[triple * n_embd + i];
                if (model.position) sum += model.position[positions[row] * n_embd + i];
                x[row * n_embd + i] = sum;
            }
        }
        for (int64_t n = 0; n < model.n_layer; n++) {
            const Layer& layer = model.layers[n];
            norm_all(layer.norm1);
            linear<Weight>(model, layer.qkv, normed.data(), rows, into(qkv.data(), n_qkv));
#pragma omp for schedule(static)
            for (int64_t task = 0; task < rows * model.n_kv_head; task++) {
                int64_t row = task / model.n_kv_head, head = task % model.n_kv_head;
                int64_t first = (n * rows * model.n_kv_head + task) * room * size;  // this head's cache
                Number<Weight> *kept_keys = keys + first, *kept_values = values + first;
                float* query = &qkv[row * n_qkv + head * groups * size];
                float* key = &qkv[row * n_qkv + (model.n_head + head) * size];
                float* value = key + model.n_kv_head * size;
                prepare(model, key, size, positions[row]);
                for (int64_t i = 0; i < size; i++) {
                    store(kept_keys + positions[row] * size + i, key[i]);
                    store(kept_values + positions[row] * size + i, value[i]);
                }
                for (int64_t g = 0; g < groups; g++) {
                    prepare(model, query + g * size, size, positions[row]);
                    attend(
                        query + g * size, kept_keys, kept_values, positions[row] + 1, size, weights.data(),
                        &y[row * n_heads + (head * groups + g) * size]
                    );
                }
            }
            linear<Weight>(model, layer.proj, y.data(), rows, to_x);
            norm_all(layer.norm2);
            if (layer.gate.weight) linear<Weight>(model, layer.gate, normed.data(), rows, into(gate.data(), n_hidden));
            auto to_hidden = into(hidden.data(), n_hidden);
            linear<Weight>(model, layer.up, normed.data(), rows, [&](int64_t row, int64_t column, Floats value) {
                if (model.activation == SWIGLU) {
                    Floats g = get(&gate[row * n_hidden + column], n_hidden - column);
                    value *= g * sigmoid(g);
                } else if (model.activation == RELU2) {
                    value = value < 0.0f ? Floats{} : value * value;  // NaN stays NaN
                } else if (model.activation == GELU) {
                    value *= sigmoid(1.59576912f * (value + 0.044715f * value * value * value));  // GPT-2's GELU
                }
                to_hidden(row, column, value);
            });
            linear<Weight>(model, layer.down, hidden.data(), rows, to_x);
        }
        norm_all(model.norm);
        auto to_logits = into(logits, model.vocab_size);
        auto capped = [&](int64_t row, int64_t column, Floats value) {
            if (model.softcap) value = model.softcap * (2 * sigmoid(2 / model.softcap * value) - 1);
            to_logits(row, column, value);
        };
        if (model.head.scale)
            linear<Weight>(model, model.head, normed.data(), rows, capped);
        else  // an output layer that shares the embedding's weights has their type
            linear<Number<Weight>>(model, model.head, normed.data(), rows, capped);
    }
    return 0;
}

extern "C" int columns() { return COLUMNS; }

extern "C" int decode_float(
    const Model* model, int64_t rows, int64_t room, const int64_t* ids, const int64_t* before, const int64_t* positions,
    float* keys, float* values, float* logits
) {
    return decode<float>(*model, rows, room, ids, before, positions, keys, values, logits);
}
extern "C" int decode_bfloat16(
    const Model* model, int64_t rows, int64_t room, const int64_t* ids, const int64_t* before, const int64_t* positions,
    BFloat16* keys, BFloat16* values, float* logits
) {
    return decode<BFloat16>(*model, rows, room, ids, before, positions, keys, values, logits);
}
extern "C" int decode_int8(
    const Model* model, int64_t rows, int64_t room, const int64_t* ids, const int64_t* before, const int64_t* positions,
    float* keys, float* values, float* logits
) {
    return decode<int8_t>(*model, rows, room, ids, before, positions, keys, values, logits);
}
