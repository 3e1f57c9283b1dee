"use strict";

// From logits to the next id, as in minigpt/generation/sampling.py: the same tokens are kept, in float32.

const greatestOf = (numbers) => numbers.reduce((a, b) => Math.max(a, b), -Infinity);
const descending = (numbers) => Float32Array.from(numbers).sort().reverse();
const keep = (logits, test) => logits.map((logit, id) => (test(logit, id) ? logit : -Infinity));

/** Return the probabilities of logits, both (V). */
const softmax = (logits) => softmaxInPlace(Float32Array.from(logits), logits.length);

/** Return how surprising an id is, in bits: 0 is certain, 1 a toss of a coin. */
function surprisal(logits, id) {
  const greatest = greatestOf(logits);
  const sum = logits.reduce((total, logit) => total + Math.exp(logit - greatest), 0);
  return (Math.log(sum) + greatest - logits[id]) / Math.LN2;
}

const GREEDY_BELOW = 1e-5; // a temperature below leaves one token, and nothing to cut
// The steps in their order; each takes logits, the value of its parameter, and the ids so far.
const STEPS = {
  repetition_penalty(logits, penalty, ids) {
    const lowered = Float32Array.from(logits), by = Math.fround(penalty);
    for (const id of ids) lowered[id] = logits[id] < 0 ? logits[id] * by : logits[id] / by;
    return lowered;
  },
  temperature(logits, temperature) {
    if (temperature >= GREEDY_BELOW) return logits.map((logit) => logit / Math.fround(temperature));
    const best = logits.indexOf(greatestOf(logits)); // the first maximum
    return keep(logits, (_, id) => id === best);
  },
  top_k(logits, k) { // with all that are equal to the k-th
    const least = descending(logits)[Math.min(k, logits.length) - 1];
    return keep(logits, (logit) => logit >= least);
  },
  top_p(logits, p) { // up to the token with which the sum of probabilities exceeds p; among equal ones the first ids
    const ordered = descending(logits), probabilities = softmax(ordered);
    let kept = 0, before = 0, ties = 0;
    while (kept < ordered.length && (p >= 1 || Math.fround(before) <= Math.fround(p))) before += probabilities[kept++];
    const least = ordered[kept - 1], most = kept - ordered.indexOf(least);
    return keep(logits, (logit) => logit > least || (logit === least && ties++ < most));
  },
  min_p(logits, share) {
    const probabilities = softmax(logits), least = Math.fround(Math.fround(share) * greatestOf(probabilities));
    return keep(logits, (_, id) => probabilities[id] >= least);
  },
};

/**
 * Apply the parameters that are set: temperature, top_k, top_p, min_p, repetition_penalty; null or undefined for off.
 * @returns {{name: string, logits: Float32Array}[]} The (V) logits after each step, -Infinity for tokens that are cut.
 */
function filterSteps(logits, params, ids = []) {
  const names = Object.keys(STEPS).slice(0, (params.temperature ?? 1) < GREEDY_BELOW ? 2 : 5);
  return names.filter((name) => (params[name] ?? null) !== null).map((name) => {
    logits = STEPS[name](logits, params[name], ids);
    return { name, logits };
  });
}

/** Return the logits after the last step of `filterSteps`. */
const filterLogits = (logits, params, ids = []) => filterSteps(logits, params, ids).at(-1)?.logits ?? logits.slice();

/**
 * Return a function that draws uniform numbers in (0, 1), the same for a seed: a counter, hashed as in SplitMix (Steele
 * et al., "Fast splittable pseudorandom number generators", 2014), in 32 bits with the finaliser of MurmurHash3.
 */
function makeRandom(seed) {
  const hash = (number) => {
    const half = Math.imul(number ^ (number >>> 16), 0x85ebca6b), most = Math.imul(half ^ (half >>> 13), 0xc2b2ae35);
    return (most ^ (most >>> 16)) >>> 0;
  };
  let count = hash(hash(seed) + seed / 2 ** 32);
  return () => {
    count = (count + 0x9e3779b9) >>> 0;
    return (hash(count) + 0.5) / 2 ** 32;
  };
}

/** Draw an id with its probability, given a function that `makeRandom` returned. */
function draw(probabilities, random) {
  let left = random() * probabilities.reduce((a, b) => a + b, 0);
  if (Number.isNaN(left)) throw new Error("The model produced NaN: its training diverged.");
  const id = probabilities.findIndex((probability) => (left -= probability) < 0);
  return id >= 0 ? id : probabilities.findLastIndex((probability) => probability > 0);
}
