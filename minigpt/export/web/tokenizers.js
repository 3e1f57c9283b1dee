"use strict";

// Text to ids and back, for all tokenizers of minigpt, whose differences are in their definitions.

/**
 * Make a tokenizer from what `definition_of` in minigpt/export/web_tokenizer.py returned. A text is cut into pieces. A
 * piece that is not an id as a whole is spelled in characters, or in bytes where these have no ids, and then merged.
 */
function makeTokenizer(definition) {
  const { lower, nfc, prefix, opening, special, whole, units, bytes, cuts, merges, longest } = definition ?? {};
  check([definition?.tokens, bytes, cuts, merges].every(Array.isArray), "a part of its tokenizer is missing");
  const tokens = definition.tokens.map((token) => Uint8Array.from(String(token), (letter) => letter.charCodeAt(0)));
  const areIds = (ids) => Array.isArray(ids) && ids.every((id) => isSize(id + 1) && id < tokens.length);
  const lists = [prefix, special, whole, units, [opening], bytes.filter((id) => id !== null), ...merges];
  check(lists.every(areIds) && merges.every(({ length }) => length === 3), "its tokenizer has ids without tokens");
  check(longest === null || isSize(longest), "its tokenizer has a wrong length");

  const utf8 = () => new TextDecoder("utf-8", { ignoreBOM: true });
  const byText = (ids) => new Map(ids.map((id) => [utf8().decode(tokens[id]), id]));
  const [specialIds, wholeIds, unitIds] = [special, whole, units].map(byText);
  const inRegex = (text) => text.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&");
  const longestFirst = [...specialIds.keys()].filter(Boolean).sort((a, b) => b.length - a.length).map(inRegex);
  let cutters, specialCutter;
  try {
    [specialCutter, ...cutters] = [longestFirst.join("|") || "(?!)", ...cuts].map((source) => new RegExp(source, "gu"));
  } catch {
    check(false, "its tokenizer has a wrong regular expression");
  }
  const keyOf = (left, right) => left * tokens.length + right;
  const pairs = new Map(merges.map(([left, right, id], rank) => [keyOf(left, right), { rank, id }]));
  const pairOf = (left, right) => pairs.get(keyOf(left, right)) ?? { rank: Infinity };

  /** Return the ids of a character; undefined if it has none. */
  function spelled(letter) {
    if (unitIds.has(letter)) return [unitIds.get(letter)];
    const ids = Array.from(new TextEncoder().encode(letter), (byte) => bytes[byte] ?? null);
    return ids.includes(null) ? undefined : ids;
  }

  /** Return the matches of a regular expression and the text between them. */
  function cut(text, regex) {
    const ends = Array.from(text.matchAll(regex), ({ index, 0: match }) => [index, index + match.length]).flat();
    return [...ends, text.length].map((end, n) => text.slice(n ? ends[n - 1] : 0, end)).filter(Boolean);
  }

  /** Merge pairs of ids, always the pair of the lowest rank, and of several the leftmost. */
  function merged(ids) {
    for (;;) {
      const lowest = ids.reduce((rank, id, i) => Math.min(rank, pairOf(id, ids[i + 1]).rank), Infinity);
      if (lowest === Infinity) return ids;
      const next = [];
      for (let i = 0, done = false; i < ids.length; i++) {
        next.push(ids[i]);
        if (done || pairOf(ids[i], ids[i + 1]).rank !== lowest) continue;
        next.push(pairOf(next.pop(), ids[++i]).id); // now there may be a pair of a lower rank
        done = Math.min(pairOf(next.at(-2), next.at(-1)).rank, pairOf(next.at(-1), ids[i + 1]).rank) < lowest;
      }
      ids = next;
    }
  }

  function encodePiece(piece) {
    if (wholeIds.has(piece)) return [wholeIds.get(piece)];
    const ids = Array.from(piece).flatMap(spelled), parts = [], size = longest ?? ids.length;
    for (let i = 0; i < ids.length; i += size) parts.push(merged(ids.slice(i, i + size)));
    return parts.flat();
  }

  /** Return the ids of a special token, or of a text without any. */
  function encodePart(part) {
    if (specialIds.has(part)) return [specialIds.get(part)];
    return cutters.reduce((all, cutter) => all.flatMap((piece) => cut(piece, cutter)), [part]).flatMap(encodePiece);
  }

  const decoder = () => {
    const stream = utf8();
    return { add: (id) => stream.decode(tokens[id], { stream: true }), rest: () => stream.decode() };
  };
  return {
    tokens, prefix, opening, vocabSize: tokens.length, decoder,
    decode(ids) {
      const { add, rest } = decoder();
      return ids.map(add).join("") + rest();
    },
    /** Clean a prompt as the training text was. */
    clean(text) {
      const compose = (string) => (nfc ? string.normalize("NFC") : string);
      return lower ? compose(compose(text.toWellFormed()).toLowerCase()) : compose(text.toWellFormed());
    },
    /** Return the ids of a clean text, and the characters in it that no token can spell, which are left out. */
    encode(text) {
      const unspelled = (part) => (specialIds.has(part) ? [] : Array.from(part).filter((letter) => !spelled(letter)));
      const isKnown = cut(text, specialCutter).every((part) => unspelled(part).length === 0);
      const missing = new Set(isKnown ? [] : Array.from(text).flatMap(unspelled));
      const parts = [""];
      for (const letter of text) missing.has(letter) ? parts.push("") : parts.push(parts.pop() + letter);
      const ids = parts.flatMap((part) => cut(part, specialCutter)).flatMap(encodePart);
      return { ids, missing: [...missing].sort() };
    },
  };
}
