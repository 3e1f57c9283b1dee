// SamplingParams.filter for rows of logits, in place. generation/sampling.py is the same in PyTorch, and
// tests/test_decoding.py compares the two.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <vector>

// Returns the probabilities of the logits.
static std::vector<float> softmax(const std::vector<float>& logits) {
    std::vector<float> p(logits.size());
    float largest = *std::max_element(logits.begin(), logits.end());
    double sum = 0;
    for (size_t i = 0; i < p.size(); i++) sum += p[i] = std::exp(logits[i] - largest);
    for (float& each : p) each /= float(sum);
    return p;
}

// A penalty of 1, a top_k of 0, a top_p of 1 and a min_p of 0 change nothing. `ids` are (rows, length). Returns 1 and does
// nothing if an id is outside the vocabulary; else returns 0.
extern "C" int filter_logits(
    float* logits, int64_t rows, int64_t vocab_size, const int64_t* ids, int64_t length, float penalty,
    float temperature, int64_t top_k, float top_p, float min_p
) {
    for (int64_t n = 0; n < rows * length; n++)
        if (ids[n] < 0 || ids[n] >= vocab_size) return 1;
    for (int64_t row = 0; row < rows; row++) {
        float* x = logits + row * vocab_size;
        std::vector<bool> seen(vocab_size);
        for (int64_t n = row * length; n < (row + 1) * length; n++) {
            if (!seen[ids[n]]) x[ids[n]] = x[ids[n]] < 0 ? x[ids[n]] * penalty : x[ids[n]] / penalty;
            seen[ids[n]] = true;
        }
        for (int64_t i = 0; i < vocab_size; i++) x[i] /= temperature;
        if (std::any_of(x, x + vocab_size, [](float each) { return std::isnan(each); })) continue;  // `draw` raises
        std::vector<int64_t> kept(vocab_size);
        for (int64_t i = 0; i < vocab_size; i++) kept[i] = i;
        std::vector<float> values(x, x + vocab_size);  // of the ids in `kept`
        auto keep = [&](auto condition) {
            size_t n = 0;
            for (size_t i = 0; i < kept.size(); i++) {
                if (condition(i)) {
                    values[n] = values[i];
                    kept[n++] = kept[i];
                } else {
                    x[kept[i]] = -INFINITY;
                }
            }
            kept.resize(n);
            values.resize(n);
        };
        if (0 < top_k && top_k < vocab_size) {
            std::vector<float> ordered = values;
            std::nth_element(ordered.begin(), ordered.begin() + top_k - 1, ordered.end(), std::greater<float>());
            keep([&, kth = ordered[top_k - 1]](size_t i) { return values[i] >= kth; });
        }
        if (top_p < 1) {
            std::stable_sort(kept.begin(), kept.end(), [&](int64_t a, int64_t b) { return x[a] > x[b]; });
            for (size_t i = 0; i < kept.size(); i++) values[i] = x[kept[i]];
            double before = 0;
            keep([&, p = softmax(values)](size_t i) {
                bool within = float(before) <= top_p;
                before += p[i];
                return within;
            });
        }
        if (min_p > 0) {
            std::vector<float> p = softmax(values);
            float least = min_p * *std::max_element(p.begin(), p.end());
            keep([&](size_t i) { return !(p[i] < least); });
        }
    }
    return 0;
}
