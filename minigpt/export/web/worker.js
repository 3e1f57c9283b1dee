// The worker's part: it holds the network, and answers the page's requests, so that the page stays fluid.

const SHOWN = 48; // at most so many tokens at the end of a text have their attention shown
const LARGEST_TABLE = 60; // the rows and columns of a bigram's table
const SAMPLED = 512; // the rows whose mean says which tokens a large vocabulary expects most

// Return the bytes of a text in base64 that were deflated; at most `largest`, so that no file fills the memory.
async function inflate(base64, largest) {
  const packed = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const reader = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate")).getReader();
  const parts = [];
  let length = 0;
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    length += part.value.length;
    if (length > largest) throw new Error("The weights are longer than the file says.");
    parts.push(part.value);
  }
  const bytes = new Uint8Array(length);
  let end = 0;
  for (const part of parts) bytes.set(part, (end += part.length) - part.length);
  return bytes;
}

class Server {
  constructor(send) {
    this.send = send; // posts a part of an answer
    this.sets = new Map(); // step to network
    this.writing = 0; // the number of the latest text; another number stops the one before
    this.ready = Promise.resolve(); // kept when the weights that were asked for last are there
  }

  // Make the network of one set of weights the current one. What is written stops; what comes after waits for it.
  use(weights) {
    this.stop();
    const reading = this.read(weights);
    this.ready = reading.catch(() => {});
    return reading;
  }

  async read({ description, specs, size, step, base64 }) {
    if (!this.sets.has(step)) {
      this.sets.set(step, new Network(description, readWeights(specs, await inflate(base64, size))));
      if (this.sets.size > 4) this.sets.delete(this.sets.keys().next().value); // keep few sets in memory
    }
    this.network = this.sets.get(step);
  }

  stop() {
    this.writing++;
  }

  // Continue ids, sending [id, bits] of each new token, `pace` milliseconds apart; returns whether it was not stopped.
  async write({ ids, count, params, seed, off, pace }, call) {
    const mine = ++this.writing;
    await this.ready;
    const network = this.network;
    const random = makeRandom(seed);
    const all = [...ids];
    const cache = all.length <= network.blockSize ? network.newCache() : null;
    let logits = cache ? network.feed(all, cache, off) : network.predict(all, off);
    let drawn = [];
    let sent = performance.now();
    for (let n = 0; n < count && this.writing === mine; n++) {
      const id = draw(softmax(filterLogits(logits, params, all)), random);
      drawn.push([id, surprisal(logits, id)]);
      all.push(id);
      if (pace || performance.now() - sent > 30) {
        this.send({ call, tokens: drawn });
        drawn = [];
        await new Promise((resolve) => setTimeout(resolve, pace)); // hear `stop` and other requests
        sent = performance.now();
      }
      if (n + 1 < count) {
        const fits = cache && cache.length < network.blockSize;
        logits = fits ? network.step(id, cache, null, off) : network.predict(all, off);
      }
    }
    if (this.writing !== mine) return false;
    this.send({ call, tokens: drawn });
    return true;
  }

  // Return the surprise of each id in bits, seen with half a window before it at least; null for the first.
  scores({ ids }) {
    const { blockSize } = this.network;
    const bits = [null];
    for (let start = 0; bits.length < ids.length; start += Math.ceil(blockSize / 2)) {
      const logits = this.network.feed(ids.slice(start, start + blockSize), this.network.newCache(), null, true);
      const end = Math.min(start + blockSize + 1, ids.length);
      for (let n = bits.length; n < end; n++) bits.push(surprisal(logits[n - start - 1], ids[n]));
    }
    return bits;
  }

  // Return the logits after ids, without and with some heads turned off.
  predict({ ids, off }) {
    const window = ids.slice(-this.network.blockSize);
    return { logits: this.network.predict(window), without: off?.size ? this.network.predict(window, off) : null };
  }

  // Return what each layer predicts after ids, and the attention of its heads among the last tokens.
  inspect({ ids, off, most }) {
    const window = ids.slice(-this.network.blockSize);
    const first = Math.max(0, window.length - most);
    const shown = window.length - first;
    const { nLayer, nHead } = this.network;
    const cache = this.network.newCache();
    const maps = Array.from({ length: nLayer * nHead }, () => new Float32Array(shown * shown));
    if (first) this.network.feed(window.slice(0, first), cache, off);
    const watch = {};
    for (let row = 0; row < shown; row++) {
      this.network.step(window[first + row], cache, watch, off);
      watch.attention.flat().forEach((weights, n) => maps[n].set(weights.slice(first), row * shown));
    }
    return { maps, shown, lens: watch.lens };
  }

  // Return a bigram's table: the ids that it expects most, and the probabilities of each after each, row by row.
  table({ largest }) {
    const { vocabSize } = this.network;
    const rowOf = (id) => softmax(this.network.predict([id]));
    let ids = [...Array(vocabSize).keys()];
    if (vocabSize > largest) {
      const mean = new Float64Array(vocabSize);
      const n = Math.min(SAMPLED, vocabSize);
      for (let k = 0; k < n; k++) rowOf(Math.floor((k * vocabSize) / n)).forEach((p, id) => (mean[id] += p));
      ids = ids.sort((a, b) => mean[b] - mean[a]).slice(0, largest).sort((a, b) => a - b);
    }
    const rows = new Float32Array(ids.length ** 2);
    ids.forEach((id, row) => {
      const probabilities = rowOf(id);
      ids.forEach((other, column) => (rows[row * ids.length + column] = probabilities[other]));
    });
    return { ids, rows };
  }
}

if (typeof document === "undefined" && typeof postMessage === "function") {
  const server = new Server((message) => postMessage(message));
  onmessage = async ({ data: { call, name, args } }) => {
    try {
      postMessage({ call, result: await server[name](args, call), done: true });
    } catch (error) {
      postMessage({ call, error: error.message, done: true });
    }
  };
}
