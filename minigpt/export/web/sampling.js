"use strict";

// From logits to the next id, as in minigpt/generation/sampling.py: float32 arithmetic, the same tokens kept.

const GREEDY_BELOW = 1e-5; // temperatures below take the likeliest token

const greatestOf = (numbers) => numbers.reduce((a, b) => Math.max(a, b), -Infinity);

/** Return the probabilities of logits, (V), as a Float32Array. */
function softmax(logits) {
  const greatest = greatestOf(logits);
  const powers = logits.map((logit) => Math.exp(logit - greatest));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / sum);
}

/** Return how surprising an id is, in bits: 0 is certain, 1 a toss of a coin. */
function surprisal(logits, id) {
  const greatest = greatestOf(logits);
  const sum = logits.reduce((total, logit) => total + Math.exp(logit - greatest), 0);
  return (Math.log(sum) + greatest - logits[id]) / Math.LN2;
}

/** Return the logits that `keeps` accepts, and -Infinity for the others. */
const cut = (logits, keeps) => logits.map((logit, id) => (keeps(logit, id) ? logit : -Infinity));

const descending = (logits) => Float32Array.from(logits).sort().reverse();

// Each step takes logits, a parameter and the ids so far. The order of the steps is that of their application.
const STEPS = {
  repetition_penalty(logits, penalty, ids) {
    const lowered = Float32Array.from(logits), by = Math.fround(penalty);
    for (const id of ids) lowered[id] = logits[id] < 0 ? logits[id] * by : logits[id] / by;
    return lowered;
  },
  temperature(logits, temperature) {
    if (temperature >= GREEDY_BELOW) return logits.map((logit) => logit / Math.fround(temperature));
    const best = logits.indexOf(greatestOf(logits)); // the first maximum
    return cut(logits, (_, id) => id === best);
  },
  top_k(logits, k) { // ties with the k-th are kept
    const least = descending(logits)[Math.min(k, logits.length) - 1];
    return cut(logits, (logit) => logit >= least);
  },
  top_p(logits, p) { // up to the token with which the sum of the probabilities exceeds p; of equal ones the first ids
    if (p >= 1) return logits;
    const ordered = descending(logits), probabilities = softmax(ordered);
    let kept = 0, before = 0; // before: the sum of those that are kept
    while (kept < ordered.length && Math.fround(before) <= Math.fround(p)) before += probabilities[kept++];
    const least = ordered[kept - 1];
    let ties = kept - ordered.indexOf(least);
    return cut(logits, (logit) => logit > least || (logit === least && ties-- > 0));
  },
  min_p(logits, share) {
    const probabilities = softmax(logits);
    const least = Math.fround(Math.fround(share) * greatestOf(probabilities));
    return cut(logits, (_, id) => probabilities[id] >= least);
  },
};

/**
 * Apply the sampling parameters that are set, one after the other.
 * @param {Float32Array} logits - (V)
 * @param {Object} params - temperature, top_k, top_p, min_p and repetition_penalty; null or undefined for off.
 * @param {number[]} ids - The ids so far, for the repetition penalty.
 * @returns {{name: string, logits: Float32Array}[]} The logits after each step, -Infinity for tokens that are cut.
 */
function filterSteps(logits, params, ids = []) {
  const steps = [];
  const greedy = (params.temperature ?? 1) < GREEDY_BELOW; // leaves nothing to cut
  for (const [name, step] of Object.entries(STEPS)) {
    const value = params[name] ?? null;
    if (value === null || (greedy && ["top_k", "top_p", "min_p"].includes(name))) continue;
    logits = step(logits, value, ids);
    steps.push({ name, logits });
  }
  return steps;
}

/** Return the logits after the last step of `filterSteps`. */
function filterLogits(logits, params, ids = []) {
  return filterSteps(logits, params, ids).at(-1)?.logits ?? Float32Array.from(logits);
}

/**
 * Return a function that returns uniform random numbers in (0, 1), the same ones for a seed: xoshiro128++ (Blackman and
 * Vigna, "Scrambled linear pseudorandom number generators", 2021), with a state from the finaliser of MurmurHash3.
 */
function makeRandom(seed) {
  const state = Uint32Array.from({ length: 4 }, (_, n) => {
    let hash = (seed >>> 0) + Math.imul(seed / 2 ** 32, 0x9e3779b9) + Math.imul(n + 1, 0x6a09e667);
    hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
    hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
    return hash ^ (hash >>> 16);
  });
  const rotated = (number, by) => (number << by) | (number >>> (32 - by));
  return () => {
    const drawn = (rotated(state[0] + state[3], 7) + state[0]) >>> 0, shifted = state[1] << 9;
    state[2] ^= state[0];
    state[3] ^= state[1];
    state[1] ^= state[2];
    state[0] ^= state[3];
    state[2] ^= shifted;
    state[3] = rotated(state[3], 11);
    return (drawn + 0.5) / 2 ** 32;
  };
}

/** Draw an id with its probability, given a function like that of `makeRandom`. */
function draw(probabilities, random) {
  const total = probabilities.reduce((a, b) => a + b, 0);
  if (!(total > 0)) throw new Error("The model produced NaN: its training diverged. Train it again, more slowly.");
  let left = random() * total;
  const id = probabilities.findIndex((probability) => (left -= probability) < 0);
  return id >= 0 ? id : probabilities.findLastIndex((probability) => probability > 0);
}
