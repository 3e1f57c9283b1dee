"use strict";

// TinyGPT, and GPT with all its switches, for inference on one text, as in minigpt/models/: from ids to logits.
// V is the size of the vocabulary, C the width, H the number of heads, D the size of a head.

/** Stop with a sentence that names the damaged part of the file, unless a condition holds. */
function check(condition, fault) {
  if (!condition) throw new Error(`This file is damaged: ${fault}. Export the model again.`);
}

const isSize = (number) => Number.isSafeInteger(number) && number >= 1;

/**
 * Read weights that minigpt/export/packing.py packed, as `{name: {shape, data}}` with float32 numbers. Each is checked
 * before memory is allocated. `specs` is a list of `{name, shape, precision, offset}`, and `bytes` a Uint8Array.
 */
function readWeights(specs, bytes) {
  check(Array.isArray(specs), "it has no list of weights");
  const weights = Object.create(null);
  let total = 0;
  for (const spec of specs) {
    const { name, shape, precision, offset } = spec ?? {};
    const isShape = Array.isArray(shape) && [1, 2].includes(shape.length) && shape.every(isSize);
    check(isShape && ["float32", "int8"].includes(precision), `the description of the weight ${name} is wrong`);
    const count = shape[0] * (shape[1] ?? 1), isInt8 = precision === "int8";
    const middle = offset + 4 * (isInt8 ? shape[0] : count); // the end of the scales of the rows, or of all numbers
    const end = middle + (isInt8 ? count : 0);
    total += end - offset;
    const isInside = (offset === 0 || isSize(offset)) && end <= bytes.length && total <= bytes.length;
    check(isInside, `the weight ${name} is cut off`);
    const floats = new Float32Array(bytes.slice(offset, middle).buffer);
    const whole = new Int8Array(bytes.buffer, bytes.byteOffset + middle, end - middle);
    const data = isInt8 ? Float32Array.from(whole, (number, i) => number * floats[Math.floor(i / shape[1])]) : floats;
    weights[name] = { shape, data };
  }
  return weights;
}

/**
 * Add to y[t * rows + r] the product of vector t and row r, both of `columns` numbers. The vectors begin at `xAt` in x,
 * the rows at `wAt` in w, `stride` apart. Two vectors and four rows at a time make eight products of six numbers; where
 * there are no more rows, the last one is computed again.
 */
function multiply(x, xAt, count, w, wAt, stride, rows, columns, y) {
  for (let r = 0; r < rows; r += 4) {
    const r1 = Math.min(r + 1, rows - 1), r2 = Math.min(r + 2, rows - 1), r3 = Math.min(r + 3, rows - 1);
    const a = wAt + r * stride, b = wAt + r1 * stride, c = wAt + r2 * stride, d = wAt + r3 * stride;
    for (let t = 0; t < count; t += 2) {
      const p = xAt + t * columns, q = p + columns, yp = t * rows, isPair = t + 1 < count, yq = isPair ? yp + rows : yp;
      let p0 = y[yp + r], p1 = y[yp + r1], p2 = y[yp + r2], p3 = y[yp + r3];
      let q0 = y[yq + r], q1 = y[yq + r1], q2 = y[yq + r2], q3 = y[yq + r3];
      for (let i = 0; isPair && i < columns; i++) {
        const xp = x[p + i], xq = x[q + i], wa = w[a + i], wb = w[b + i], wc = w[c + i], wd = w[d + i];
        p0 += xp * wa; p1 += xp * wb; p2 += xp * wc; p3 += xp * wd;
        q0 += xq * wa; q1 += xq * wb; q2 += xq * wc; q3 += xq * wd;
      }
      for (let i = 0; !isPair && i < columns; i++) {
        const xp = x[p + i];
        p0 += xp * w[a + i]; p1 += xp * w[b + i]; p2 += xp * w[c + i]; p3 += xp * w[d + i];
      }
      if (isPair) { y[yq + r] = q0; y[yq + r1] = q1; y[yq + r2] = q2; y[yq + r3] = q3; }
      y[yp + r] = p0; y[yp + r1] = p1; y[yp + r2] = p2; y[yp + r3] = p3;
    }
  }
}

/** Apply `rows` rows of a linear layer, from `row` on, to `count` vectors, from `xAt` on; `add` the results to y. */
function linear(x, xAt, count, { weight, bias, columns }, y, rows, row = 0, add = false) {
  if (!add) y.fill(0, 0, count * rows);
  if (bias) for (let i = 0; i < count * rows; i++) y[i] += bias[row + i % rows];
  multiply(x, xAt, count, weight, row * columns, columns, rows, columns, y);
}

/** Scale `count` vectors, from `xAt` on, to mean square 1; LayerNorm subtracts the mean. Return the results, y. */
function normalise(x, xAt, count, width, y, eps, subtract = false, [weight, bias] = []) {
  for (let t = 0, at = 0; t < count; t++, at += width) {
    let mean = 0, square = 0;
    for (let i = 0; subtract && i < width; i++) mean += x[xAt + at + i] / width;
    for (let i = 0; i < width; i++) square += (x[xAt + at + i] - mean) ** 2 / width;
    const scale = 1 / Math.sqrt(square + eps);
    for (let i = 0; i < width; i++) {
      y[at + i] = (x[xAt + at + i] - mean) * scale * (weight ? weight[i] : 1) + (bias ? bias[i] : 0);
    }
  }
  return y;
}

/** Replace the first `count` numbers by their softmax, and return the array. */
function softmaxInPlace(x, count) {
  let greatest = -Infinity, sum = 0;
  for (let i = 0; i < count; i++) if (x[i] > greatest) greatest = x[i];
  for (let i = 0; i < count; i++) sum += x[i] = Math.exp(x[i] - greatest);
  for (let i = 0; i < count; i++) x[i] /= sum;
  return x;
}

/** Return the array of a store, made or enlarged to at least `length` numbers. */
function arrayIn(store, name, length) {
  const old = store[name] ?? [];
  if (old.length >= length) return old;
  store[name] = new Float32Array(Math.max(length, 2 * old.length));
  store[name].set(old);
  return store[name];
}

const HASH = 1_000_003n; // of n-grams, in big integers: with a large vocabulary the products exceed 2^53
const QK_EPS = 2 ** -23; // in the norm of queries and keys, as in torch for float32
const sigmoid = (z) => 1 / (1 + Math.exp(-z));
const ACTIVATIONS = {
  gelu: (x) => x * sigmoid(Math.sqrt(8 / Math.PI) * (x + 0.044715 * x * x * x)), // since tanh(z) = 2 sigmoid(2 z) - 1
  swiglu: (x) => x * sigmoid(x),
  relu2: (x) => Math.max(x, 0) ** 2,
};
const isNumber = (value) => Number.isFinite(value) && value >= 0;
const oneOf = (...known) => (value) => known.includes(value);
const RULES = { // for the settings; TinyGPT has the first three
  vocab_size: isSize, block_size: isSize, n_embd: isSize, n_layer: isSize, n_head: isSize, n_kv_head: isSize,
  head_size: isSize, mlp_width: isSize, softcap: isNumber, norm_eps: isNumber, rope_base: isNumber, ngrams: isNumber,
  position: oneOf("learned", "rope"), norm: oneOf("layernorm", "rmsnorm"), mlp: oneOf(...Object.keys(ACTIVATIONS)),
  bias: oneOf(false, true), qk_norm: oneOf(false, true),
};

/** A network, made from what `description` in minigpt/export/packing.py says, and from the weights of `readWeights`. */
class Network {
  constructor(description, weights) {
    const { class: kind, settings: s } = description ?? {};
    if (!["GPT", "TinyGPT"].includes(kind)) throw new Error(`This page has no engine for the network ${kind}.`);
    const isGPT = kind === "GPT", names = Object.keys(RULES).slice(0, isGPT ? undefined : 3);
    for (const name of names) check(RULES[name](s?.[name]), `its setting ${name} is wrong`);
    const { vocab_size: V, n_embd: C, block_size: blockSize, n_kv_head: KV, head_size: D, mlp_width: hidden } = s;
    const [nLayer, H] = isGPT ? [s.n_layer, s.n_head] : [0, 0];
    Object.assign(this, { settings: s, bigram: !isGPT, vocabSize: V, blockSize, nLayer, nHead: H, scratch: {} });
    const tensor = (name, ...shape) => {
      check(weights[name], `the weight ${name} is missing`);
      check(String(weights[name].shape) === String(shape), `the weight ${name} is not ${shape.join(" × ")}`);
      return weights[name].data;
    };
    const layer = (name, rows, columns, bias = s.bias) => ({
      rows, columns, weight: tensor(`${name}.weight`, rows, columns), bias: bias && tensor(`${name}.bias`, rows),
    });
    this.embedding = tensor("embed.weight", V, C);
    this.head = layer(weights["lm_head.weight"] ? "lm_head" : "embed", V, C, false); // not stored if both are equal
    if (!isGPT) this.head.bias = tensor("lm_head.bias", V);
    else check(H % KV === 0 && (D % 2 === 0 || s.position === "learned"), "its numbers of heads do not fit together");
    const norm = (name) => [tensor(`${name}.weight`, C), s.bias && s.norm === "layernorm" && tensor(`${name}.bias`, C)];
    this.norm = isGPT && norm("norm");
    this.positions = s.position === "learned" && tensor("position.weight", blockSize, C);
    this.ngrams = isGPT && s.ngrams ? [0, 1].map((n) => tensor(`ngrams.${n}.weight`, s.ngrams, C)) : [];
    this.blocks = [];
    for (let n = 0; n < nLayer; n++) {
      const at = `blocks.${n}`;
      this.blocks.push({
        norm1: norm(`${at}.norm1`), qkv: layer(`${at}.attn.qkv`, (H + 2 * KV) * D, C),
        proj: layer(`${at}.attn.proj`, C, H * D), norm2: norm(`${at}.norm2`), up: layer(`${at}.mlp.up`, hidden, C),
        gate: s.mlp === "swiglu" && layer(`${at}.mlp.gate`, hidden, C), down: layer(`${at}.mlp.down`, C, hidden),
      });
    }
  }

  /** Return an empty cache of keys and values; its `length` is the number of ids in it. */
  newCache = () => ({ length: 0, ids: [], keys: [], values: [] });

  /**
   * Compute one id after those in the cache, add it to the cache, and return the (V) logits of the next id. `off` is a
   * set of heads that add nothing, each as `layer * nHead + head`. `watch`, an object, gets `attention[layer][head]`:
   * the weights over the positions, and `lens[k]`: the logits after k layers.
   */
  step(id, cache, watch = null, off = null) {
    return this.#run([id], cache, false, watch, off)[0];
  }

  /** Compute several ids like `step`. Return the logits after the last one, or with `all` an array: after each id. */
  feed(ids, cache, off = null, all = false) {
    const logits = this.#run(ids, cache, all, null, off);
    return all ? logits : logits[0];
  }

  /** Return the logits after the last `blockSize` ids, as a window of its own: of texts that are longer than that. */
  predict(ids, off = null) {
    this.window = { ...(this.window ?? this.newCache()), length: 0 };
    return this.feed(ids.slice(this.bigram ? -1 : -this.blockSize), this.window, off);
  }

  #run(ids, cache, all, watch, off) {
    const T = ids.length;
    const wrong = ids.find((id) => !(Number.isInteger(id) && id >= 0 && id < this.vocabSize));
    if (wrong !== undefined) throw new Error(`The model has no token ${wrong}.`);
    if (T === 0) throw new Error("There is no token to continue.");
    if (cache.length + T > this.blockSize) throw new Error(`The window of ${this.blockSize} tokens is full.`);
    const x = this.#embed(ids, cache); // the residual stream, (T, C)
    if (watch) Object.assign(watch, { attention: this.blocks.map(() => []), lens: [] });
    const look = () => watch?.lens.push(this.#readOut(x, 0));
    look();
    this.blocks.forEach((block, layer) => {
      const from = all || layer < this.nLayer - 1 ? 0 : T - 1; // in the last layer the others only need keys and values
      this.#attend(block, layer, x, T, from, cache, watch?.attention[layer], off);
      this.#transform(block, x, T, from);
      look();
    });
    cache.length += T;
    return all ? ids.map((_, t) => this.#readOut(x, t)) : [this.#readOut(x, T - 1)];
  }

  /** Return the embeddings of ids, (T, C), and add the ids to the cache. */
  #embed(ids, cache) {
    const C = this.settings.n_embd, x = arrayIn(this.scratch, "x", ids.length * C);
    x.fill(0, 0, ids.length * C);
    cache.ids.length = cache.length;
    ids.forEach((id, t) => {
      const position = cache.ids.push(id) - 1;
      const add = (table, row) => {
        for (let i = 0; i < C; i++) x[t * C + i] += table[row * C + i];
      };
      add(this.embedding, id);
      let hash = BigInt(id);
      this.ngrams.forEach((table, n) => { // of two and three ids; before the first there are zeros
        hash = hash * HASH + BigInt(cache.ids[position - 1 - n] ?? 0);
        add(table, Number(hash % BigInt(this.settings.ngrams)));
      });
      if (this.positions) add(this.positions, position);
    });
    return x;
  }

  /** Normalise the queries or keys of `count` tokens, the first of which is at `position`, and rotate them. */
  #prepare(x, position, count, heads) {
    const { head_size: D, qk_norm, rope_base } = this.settings, half = D / 2, { fround } = Math;
    if (qk_norm) normalise(x, 0, count * heads, D, x, QK_EPS);
    for (let n = 0; !this.positions && n < count * half; n++) {
      const t = Math.floor(n / half), i = n % half; // angles are rounded to float32 as in torch
      const angle = fround((position + t) * fround(rope_base ** -fround(i / half)));
      const cos = Math.cos(angle), sin = Math.sin(angle);
      for (let a = t * heads * D + i, b = a + half; a < (t + 1) * heads * D; a += D, b += D) {
        [x[a], x[b]] = [x[a] * cos - x[b] * sin, x[b] * cos + x[a] * sin];
      }
    }
  }

  /** Return a normalised copy of `count` vectors, from vector `from` of x on. */
  #normalised(x, from, count, weights) {
    const { n_embd: C, norm_eps, norm } = this.settings, y = arrayIn(this.scratch, "normalised", count * C);
    return normalise(x, from * C, count, C, y, norm_eps, norm === "layernorm", weights);
  }

  /** Attention: store the keys and values of all T tokens, and add to the tokens from `from` on what they gather. */
  #attend({ norm1, qkv, proj }, layer, x, T, from, cache, watched, off) {
    const { n_embd: C, n_head: H, n_kv_head: KV, head_size: D } = this.settings;
    const first = cache.length, count = T - from, width = KV * D;
    const normalised = this.#normalised(x, 0, T, norm1), q = arrayIn(this.scratch, "queries", count * H * D);
    const [k, v] = [cache.keys, cache.values].map((all) => arrayIn(all, layer, (first + T) * width));
    const newKeys = k.subarray(first * width);
    linear(normalised, from * C, count, qkv, q, H * D);
    linear(normalised, 0, T, qkv, newKeys, width, H * D);
    linear(normalised, 0, T, qkv, v.subarray(first * width), width, (H + KV) * D);
    this.#prepare(q, first + from, count, H);
    this.#prepare(newKeys, first, T, KV);
    for (let i = 0; i < count * H * D; i++) q[i] /= Math.sqrt(D);
    const gathered = arrayIn(this.scratch, "gathered", count * H * D).fill(0, 0, count * H * D);
    const weights = arrayIn(this.scratch, "weights", first + T);
    for (let n = 0; n < count * H; n++) { // each head of each token
      const seen = first + from + Math.floor(n / H) + 1, head = n % H, base = Math.floor(head / (H / KV)) * D;
      multiply(q, n * D, 1, k, base, width, seen, D, weights.fill(0, 0, seen));
      softmaxInPlace(weights, seen);
      if (watched) watched[head] = weights.slice(0, seen);
      for (let j = 0, at = base; j < seen && !off?.has(layer * H + head); j++, at += width) {
        for (let i = 0, weight = weights[j]; i < D; i++) gathered[n * D + i] += weight * v[at + i];
      }
    }
    linear(gathered, 0, count, proj, x.subarray(from * C), C, 0, true);
  }

  /** MLP: add its output to the tokens from `from` on. */
  #transform({ norm2, up, gate, down }, x, T, from) {
    const { n_embd: C, mlp, mlp_width } = this.settings, count = T - from, total = count * mlp_width;
    const normalised = this.#normalised(x, from, count, norm2), hidden = arrayIn(this.scratch, "hidden", total);
    const inside = gate ? arrayIn(this.scratch, "inside", total) : hidden;
    linear(normalised, 0, count, up, hidden, mlp_width);
    if (gate) linear(normalised, 0, count, gate, inside, mlp_width);
    for (let i = 0; i < total; i++) hidden[i] = ACTIVATIONS[mlp](inside[i]) * (gate ? hidden[i] : 1);
    linear(hidden, 0, count, down, x.subarray(from * C), C, 0, true);
  }

  /** Return the logits after vector t of the residual stream. */
  #readOut(x, t) {
    const { n_embd: C, softcap: cap } = this.settings, logits = new Float32Array(this.vocabSize);
    const last = this.norm ? this.#normalised(x, t, 1, this.norm) : x.subarray(t * C, t * C + C);
    linear(last, 0, 1, this.head, logits, logits.length);
    for (let i = 0; cap && i < logits.length; i++) logits[i] = cap * Math.tanh(logits[i] / cap);
    return logits;
  }
}
