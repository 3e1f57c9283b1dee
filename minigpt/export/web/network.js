"use strict";

// The networks of minigpt, TinyGPT and GPT with all its switches, for inference on one text: ids to logits.
// It computes what minigpt/models/ does. C is the width, H the number of heads, D the size of a head, V the vocabulary.

/** Stop with a sentence unless a condition holds; `what` says which part of the file is wrong. */
function check(condition, what) {
  if (!condition) throw new Error(`This file is damaged: ${what}. Export the model again.`);
}

const isSize = (number) => Number.isSafeInteger(number) && number >= 1;

/**
 * Read the weights that `pack` in minigpt/export/packing.py wrote, as float32. Int8 matrices are multiplied by the
 * scales of their rows. Everything is checked before memory is allocated.
 * @param {{name: string, shape: number[], precision: string, offset: number}[]} specs
 * @param {Uint8Array} bytes
 * @returns {Object<string, {shape: number[], data: Float32Array}>}
 */
function readWeights(specs, bytes) {
  check(Array.isArray(specs), "it has no list of weights");
  let total = 0;
  for (const spec of specs) {
    const { name, shape, precision, offset } = spec ?? {};
    const named = `the weight ${String(name).slice(0, 100)}`;
    check(Array.isArray(shape) && (shape.length === 1 || shape.length === 2) && shape.every(isSize),
      `${named} has no shape`);
    const count = shape.reduce((product, size) => product * size);
    check(precision === "float32" || (precision === "int8" && shape.length === 2), `${named} has no known precision`);
    const size = precision === "int8" ? 4 * shape[0] + count : 4 * count;
    total += size;
    check(Number.isSafeInteger(offset) && offset >= 0 && offset % 4 === 0 && offset + size <= bytes.length
      && total <= bytes.length, `${named} lies outside its ${bytes.length} bytes`);
  }
  const weights = Object.create(null);
  for (const { name, shape, precision, offset } of specs) {
    const count = shape.reduce((product, size) => product * size);
    const floats = precision === "int8" ? shape[0] : count;
    let data = new Float32Array(bytes.slice(offset, offset + 4 * floats).buffer);
    if (precision === "int8") {
      const [scales, start] = [data, bytes.byteOffset + offset + 4 * floats];
      const values = new Int8Array(bytes.buffer, start, count);
      data = new Float32Array(count);
      for (let row = 0, i = 0; row < shape[0]; row++) {
        for (const end = i + shape[1]; i < end; i++) data[i] = values[i] * scales[row];
      }
    }
    weights[name] = { shape, data };
  }
  return weights;
}

/**
 * Multiply `count` vectors x by the rows of a matrix w: y[t * rows + r] is the product of vector t and row r.
 * Four rows and two vectors at a time: eight sums for six numbers read.
 * @param {number} xAt - Where the vectors begin in x; they have `columns` numbers and follow each other.
 * @param {number} wAt - Where the first row begins in w; the others follow at distances of `stride`.
 */
function multiply(x, xAt, count, w, wAt, stride, rows, columns, y) {
  for (let r = 0; r < rows; r += 4) {
    // After the last row it is computed again, so that there are always four.
    const [r1, r2, r3] = [Math.min(r + 1, rows - 1), Math.min(r + 2, rows - 1), Math.min(r + 3, rows - 1)];
    const [a, b, c, d] = [wAt + r * stride, wAt + r1 * stride, wAt + r2 * stride, wAt + r3 * stride];
    let t = 0;
    for (; t + 1 < count; t += 2) {
      const [p, q] = [xAt + t * columns, xAt + (t + 1) * columns];
      let p0 = 0, p1 = 0, p2 = 0, p3 = 0, q0 = 0, q1 = 0, q2 = 0, q3 = 0;
      for (let i = 0; i < columns; i++) {
        const xp = x[p + i], xq = x[q + i], wa = w[a + i], wb = w[b + i], wc = w[c + i], wd = w[d + i];
        p0 += xp * wa; p1 += xp * wb; p2 += xp * wc; p3 += xp * wd;
        q0 += xq * wa; q1 += xq * wb; q2 += xq * wc; q3 += xq * wd;
      }
      const [first, second] = [t * rows, (t + 1) * rows];
      y[first + r] = p0; y[first + r1] = p1; y[first + r2] = p2; y[first + r3] = p3;
      y[second + r] = q0; y[second + r1] = q1; y[second + r2] = q2; y[second + r3] = q3;
    }
    if (t < count) {
      const [p, first] = [xAt + t * columns, t * rows];
      let p0 = 0, p1 = 0, p2 = 0, p3 = 0;
      for (let i = 0; i < columns; i++) {
        const xp = x[p + i];
        p0 += xp * w[a + i]; p1 += xp * w[b + i]; p2 += xp * w[c + i]; p3 += xp * w[d + i];
      }
      y[first + r] = p0; y[first + r1] = p1; y[first + r2] = p2; y[first + r3] = p3;
    }
  }
}

/** Compute a linear layer for `count` vectors x from vector `from` of x on; y begins with the first result. */
function linear(x, from, count, { weight, bias, rows, columns }, y) {
  multiply(x, from * columns, count, weight, 0, columns, rows, columns, y);
  if (bias) for (let t = 0, i = 0; t < count; t++) for (let r = 0; r < rows; r++) y[i++] += bias[r];
}

/** Scale each vector of `width` numbers to mean square 1, in place; LayerNorm first subtracts the mean. */
function normalise(x, count, width, eps, subtractMean = false, weight = null, bias = null) {
  for (let t = 0, at = 0; t < count; t++, at += width) {
    let mean = 0, square = 0;
    if (subtractMean) for (let i = 0; i < width; i++) mean += x[at + i] / width;
    for (let i = 0; i < width; i++) square += (x[at + i] - mean) ** 2;
    const scale = 1 / Math.sqrt(square / width + eps);
    for (let i = 0; i < width; i++) {
      x[at + i] = (x[at + i] - mean) * scale * (weight ? weight[i] : 1) + (bias ? bias[i] : 0);
    }
  }
}

const HASH = 1000003n; // of n-grams; its products exceed 2^53 with large vocabularies, hence big integers
const QK_EPS = 2 ** -23; // what torch's rms_norm takes for float32
// x * sigmoid(z) is SiLU with z = x, and GELU's approximation by a tanh with this z.
const gelu = (x) => x / (1 + Math.exp(-2 * Math.sqrt(2 / Math.PI) * (x + 0.044715 * x * x * x)));
const silu = (x) => x / (1 + Math.exp(-x));

/** A network with its weights. */
class Network {
  /**
   * @param {{class: string, settings: Object}} description - `description` in minigpt/export/packing.py.
   * @param {Object} weights - From `readWeights`.
   * @throws {Error} The class is unknown, or settings and weights do not fit together.
   */
  constructor(description, weights) {
    const { class: kind, settings } = description ?? {};
    if (kind !== "GPT" && kind !== "TinyGPT") {
      throw new Error(`This page has no engine for the network ${String(kind).slice(0, 100)}.`);
    }
    check(settings && typeof settings === "object", "it has no settings of its network");
    const size = (name) => (check(isSize(settings[name]), `${name} is not a positive whole number`), settings[name]);
    const choice = (name, ...known) => (check(known.includes(settings[name]), `${name} is unknown`), settings[name]);
    const number = (name, least) => {
      check(Number.isFinite(settings[name]) && settings[name] >= least, `${name} is out of its range`);
      return settings[name];
    };
    const tensor = (name, ...shape) => {
      const found = weights[name];
      check(found, `the weight ${name} is missing`);
      check(String(found.shape) === String(shape), `the weight ${name} is not of shape ${shape.join(" × ")}`);
      return found.data;
    };
    const layer = (name, rows, columns, bias) => ({
      rows, columns, weight: tensor(`${name}.weight`, rows, columns), bias: bias && tensor(`${name}.bias`, rows),
    });
    const [V, C] = [size("vocab_size"), size("n_embd")];
    Object.assign(this, { vocabSize: V, width: C, blockSize: size("block_size"), bigram: kind === "TinyGPT" });
    this.embedding = tensor("embed.weight", V, C);
    // An output layer that equals the embedding is not stored.
    const head = weights["lm_head.weight"] ? "lm_head" : "embed";
    this.head = { rows: V, columns: C, weight: tensor(`${head}.weight`, V, C) };
    Object.assign(this, { nLayer: 0, nHead: 0, blocks: [], ngrams: [], buffers: Object.create(null) });
    if (this.bigram) {
      this.head.bias = tensor("lm_head.bias", V);
      return;
    }
    const [H, KV, D, hidden] = [size("n_head"), size("n_kv_head"), size("head_size"), size("mlp_width")];
    check(H % KV === 0, "n_head is not divisible by n_kv_head");
    Object.assign(this, { nLayer: size("n_layer"), nHead: H, nKvHead: KV, headSize: D, softcap: number("softcap", 0) });
    Object.assign(this, { mlp: choice("mlp", "gelu", "swiglu", "relu2"), qkNorm: choice("qk_norm", false, true) });
    this.layerNorm = choice("norm", "layernorm", "rmsnorm") === "layernorm";
    this.eps = number("norm_eps", 0);
    const bias = choice("bias", false, true);
    const norm = (name) => ({
      weight: tensor(`${name}.weight`, C), bias: bias && this.layerNorm && tensor(`${name}.bias`, C),
    });
    if (choice("position", "learned", "rope") === "learned") {
      this.positions = tensor("position.weight", this.blockSize, C);
    } else {
      check(D % 2 === 0, "head_size is odd");
      this.ropeBase = number("rope_base", Number.MIN_VALUE);
      this.rotations = { cos: new Float32Array(0), sin: new Float32Array(0), count: 0 };
    }
    const rows = number("ngrams", 0);
    if (rows) this.ngrams = [0, 1].map((n) => tensor(`ngrams.${n}.weight`, rows, C));
    for (let n = 0; n < this.nLayer; n++) {
      const name = `blocks.${n}`;
      const qkv = layer(`${name}.attn.qkv`, (H + 2 * KV) * D, C, bias);
      const part = (first, count) => ({
        rows: count * D, columns: C, weight: qkv.weight.subarray(first * D * C, (first + count) * D * C),
        bias: qkv.bias && qkv.bias.subarray(first * D, (first + count) * D),
      });
      this.blocks.push({
        norm1: norm(`${name}.norm1`), queries: part(0, H), keys: part(H, KV), values: part(H + KV, KV),
        proj: layer(`${name}.attn.proj`, C, H * D, bias), norm2: norm(`${name}.norm2`),
        up: layer(`${name}.mlp.up`, hidden, C, bias), down: layer(`${name}.mlp.down`, C, hidden, bias),
        gate: this.mlp === "swiglu" ? layer(`${name}.mlp.gate`, hidden, C, bias) : null,
      });
    }
    this.norm = norm("norm");
  }

  /** Return an empty cache, which stores the keys and values of the ids so far. Its `length` is their number. */
  newCache() {
    return { length: 0, room: 0, ids: [], keys: [], values: [] };
  }

  /**
   * Compute one id after those in the cache, and add it to the cache.
   * @param {Object} [watch] - Is filled with what happens inside: `attention[layer][head]`, the weights over the
   *   positions so far; `lens[k]`, the logits if the model ended after k layers; `norms[k]`, the length of the residual
   *   stream there.
   * @param {Set<number>} [off] - The heads to switch off, each as `layer * nHead + head`.
   * @returns {Float32Array} The V logits of the next id.
   */
  step(id, cache, watch = null, off = null) {
    return this.#run([id], cache, false, watch, off)[0];
  }

  /** Compute several ids like `step`: the logits after the last one, or with `all` an array of those after each. */
  feed(ids, cache, off = null, all = false) {
    const logits = this.#run(ids, cache, all, null, off);
    return all ? logits : logits[0];
  }

  /** Return the logits after the last `blockSize` of some ids: those of a text that is longer than the window. */
  predict(ids, off = null) {
    this.window ??= this.newCache();
    Object.assign(this.window, { length: 0, ids: [] });
    return this.feed(ids.slice(this.bigram ? -1 : -this.blockSize), this.window, off);
  }

  #run(ids, cache, all, watch, off) {
    const [T, C, first] = [ids.length, this.width, cache.length];
    if (T === 0) throw new Error("There is no id to continue.");
    if (first + T > this.blockSize) throw new Error(`The window of ${this.blockSize} ids is full.`);
    for (const id of ids) {
      if (!(Number.isInteger(id) && id >= 0 && id < this.vocabSize)) throw new Error(`There is no token ${id}.`);
    }
    this.#makeRoom(cache, first + T);
    const x = this.#buffer("x", T * C); // the residual stream
    this.#embed(ids, cache, x);
    if (watch) Object.assign(watch, { attention: [], lens: [], norms: [] });
    this.#look(watch, x);
    for (let layer = 0; layer < this.nLayer; layer++) {
      // In the last layer, the tokens before the last one matter only for their keys and values.
      const from = all || layer < this.nLayer - 1 ? 0 : T - 1;
      this.#attend(layer, x, T, from, cache, watch, off);
      this.#transform(this.blocks[layer], x, T, from);
      this.#look(watch, x);
    }
    cache.length += T;
    return all ? ids.map((_, t) => this.#readOut(x, t)) : [this.#readOut(x, T - 1)];
  }

  /** Return a buffer of at least `length` numbers, which later calls with this name use again. */
  #buffer(name, length) {
    if (!(this.buffers[name]?.length >= length)) this.buffers[name] = new Float32Array(length);
    return this.buffers[name];
  }

  /** Make room for `count` ids in a cache, and for their angles of rotation. It doubles, up to the window. */
  #makeRoom(cache, count) {
    if (!this.blocks.length) return;
    const room = Math.min(Math.max(count, 2 * cache.room, 64), this.blockSize);
    if (count > cache.room) {
      for (const parts of [cache.keys, cache.values]) {
        for (let layer = 0; layer < this.nLayer; layer++) {
          const larger = new Float32Array(room * this.nKvHead * this.headSize);
          if (parts[layer]) larger.set(parts[layer]);
          parts[layer] = larger;
        }
      }
      cache.room = room;
    }
    if (this.rotations && count > this.rotations.count) {
      const [half, round] = [this.headSize / 2, Math.fround]; // angles rounded to float32 at each step, as in torch
      const [cos, sin] = [new Float32Array(room * half), new Float32Array(room * half)];
      for (let i = 0; i < half; i++) {
        const frequency = round(this.ropeBase ** -round(2 * i / this.headSize));
        for (let p = 0; p < room; p++) {
          const angle = round(p * frequency);
          [cos[p * half + i], sin[p * half + i]] = [Math.cos(angle), Math.sin(angle)];
        }
      }
      this.rotations = { cos, sin, count: room };
    }
  }

  /** Add the ids to the cache, and write their embeddings to x. */
  #embed(ids, cache, x) {
    const C = this.width;
    cache.ids.length = cache.length;
    for (const [t, id] of ids.entries()) {
      const position = cache.ids.push(id) - 1;
      const rows = [this.embedding.subarray(id * C, id * C + C)];
      if (this.ngrams.length) {
        const tableRows = BigInt(this.ngrams[0].length / C);
        let hash = BigInt(id);
        for (const [n, table] of this.ngrams.entries()) {
          hash = hash * HASH + BigInt(cache.ids[position - n - 1] ?? 0);
          const at = Number(hash % tableRows) * C;
          rows.push(table.subarray(at, at + C));
        }
      }
      if (this.positions) rows.push(this.positions.subarray(position * C, position * C + C));
      for (let i = 0; i < C; i++) {
        let sum = 0;
        for (const row of rows) sum += row[i];
        x[t * C + i] = sum;
      }
    }
  }

  /** Return a normalised copy of the first `count` vectors of x from vector `from` on. */
  #normalised(x, from, count, { weight, bias }) {
    const y = this.#buffer("normalised", count * this.width);
    y.set(x.subarray(from * this.width, (from + count) * this.width));
    normalise(y, count, this.width, this.eps, this.layerNorm, weight, bias);
    return y;
  }

  /** Normalise and rotate the queries or keys of `count` tokens, of which the first has this position. */
  #prepare(x, count, heads, position) {
    const D = this.headSize;
    if (this.qkNorm) normalise(x, count * heads, D, QK_EPS);
    if (!this.rotations) return;
    const { cos, sin } = this.rotations;
    for (let n = 0, at = 0; n < count * heads; n++, at += D) {
      for (let i = 0, angle = (position + Math.floor(n / heads)) * D / 2; i < D / 2; i++, angle++) {
        const [a, b] = [x[at + i], x[at + i + D / 2]];
        x[at + i] = a * cos[angle] - b * sin[angle];
        x[at + i + D / 2] = b * cos[angle] + a * sin[angle];
      }
    }
  }

  /** Attention of one layer: store the keys and values of all T tokens; add its output to tokens `from` to T - 1. */
  #attend(layer, x, T, from, cache, watch, off) {
    const { norm1, queries, keys, values, proj } = this.blocks[layer];
    const [H, KV, D, first, count] = [this.nHead, this.nKvHead, this.headSize, cache.length, T - from];
    const normalised = this.#normalised(x, 0, T, norm1);
    const q = this.#buffer("queries", count * H * D);
    const k = cache.keys[layer].subarray(first * KV * D), v = cache.values[layer].subarray(first * KV * D);
    linear(normalised, from, count, queries, q);
    linear(normalised, 0, T, keys, k);
    linear(normalised, 0, T, values, v);
    this.#prepare(q, count, H, first + from);
    this.#prepare(k, T, KV, first);
    const gathered = this.#buffer("gathered", count * H * D).fill(0, 0, count * H * D);
    const weights = this.#buffer("weights", cache.room + 3);
    for (let t = 0; t < count; t++) {
      const seen = first + from + t + 1; // the number of positions that this token sees
      for (let head = 0; head < H; head++) {
        const at = (t * H + head) * D, base = Math.floor(head / (H / KV)) * D;
        multiply(q, at, 1, cache.keys[layer], base, KV * D, seen, D, weights);
        softmaxOf(weights, seen, 1 / Math.sqrt(D));
        if (watch) (watch.attention[layer] ??= [])[head] = weights.slice(0, seen);
        if (!off?.has(layer * H + head)) addWeighted(weights, seen, cache.values[layer], base, KV * D, D, gathered, at);
      }
    }
    this.#addLayer(gathered, count, proj, x, from);
  }

  /** The MLP of one layer: add its output to tokens `from` to T - 1. */
  #transform({ norm2, up, gate, down }, x, T, from) {
    const [count, total] = [T - from, (T - from) * up.rows];
    const normalised = this.#normalised(x, from, count, norm2), hidden = this.#buffer("hidden", total);
    linear(normalised, 0, count, up, hidden);
    if (gate) {
      const scale = this.#buffer("scale", total);
      linear(normalised, 0, count, gate, scale);
      for (let i = 0; i < total; i++) hidden[i] *= silu(scale[i]);
    } else if (this.mlp === "gelu") {
      for (let i = 0; i < total; i++) hidden[i] = gelu(hidden[i]);
    } else {
      for (let i = 0; i < total; i++) hidden[i] = Math.max(hidden[i], 0) ** 2;
    }
    this.#addLayer(hidden, count, down, x, from);
  }

  /** Add the output of a linear layer to `count` vectors of the residual stream, from vector `from` on. */
  #addLayer(input, count, layer, x, from) {
    const [C, output] = [this.width, this.#buffer("output", count * this.width)];
    linear(input, 0, count, layer, output);
    for (let i = 0; i < count * C; i++) x[from * C + i] += output[i];
  }

  /** Return the logits after vector t of the residual stream. */
  #readOut(x, t) {
    const logits = new Float32Array(this.vocabSize);
    const last = this.norm ? this.#normalised(x, t, 1, this.norm) : x.subarray(t * this.width);
    linear(last, 0, 1, this.head, logits);
    const cap = this.softcap;
    if (cap) for (let i = 0; i < logits.length; i++) logits[i] = cap * Math.tanh(logits[i] / cap);
    return logits;
  }

  /** Note the logits and the length of the residual stream of a single token. */
  #look(watch, x) {
    watch?.lens.push(this.#readOut(x, 0));
    watch?.norms.push(Math.hypot(...x.subarray(0, this.width)));
  }
}

/** Replace the first `count` numbers times a scale by their softmax. */
function softmaxOf(x, count, scale) {
  let greatest = -Infinity, sum = 0;
  for (let i = 0; i < count; i++) if (x[i] > greatest) greatest = x[i];
  for (let i = 0; i < count; i++) sum += x[i] = Math.exp((x[i] - greatest) * scale);
  for (let i = 0; i < count; i++) x[i] /= sum;
}

/** Add to y the sum of `count` rows of v times their weights, four rows at a time. */
function addWeighted(weights, count, v, base, stride, width, y, at) {
  weights.fill(0, count, count + 3);
  for (let j = 0; j < count; j += 4) {
    const row = (n) => base + Math.min(j + n, count - 1) * stride;
    const [a, b, c, d] = [row(0), row(1), row(2), row(3)];
    const wa = weights[j], wb = weights[j + 1], wc = weights[j + 2], wd = weights[j + 3];
    for (let i = 0; i < width; i++) y[at + i] += wa * v[a + i] + wb * v[b + i] + wc * v[c + i] + wd * v[d + i];
  }
}
