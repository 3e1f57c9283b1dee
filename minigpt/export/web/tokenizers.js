"use strict";

// Text to ids and back, for all tokenizers of minigpt: their differences are in the definition.

/**
 * Make a tokenizer from what minigpt/export/web_tokenizer.py says about it. A text is cut into pieces. A piece that is
 * in `whole` is one id. Others are spelled in characters, or where these have no ids in bytes, and merged.
 * @param {Object} definition - `tokens`: the bytes of each id, each byte a character; `lower`, `nfc`: the cleaning;
 *   `prefix`: the ids before each text; `opening`: the id instead of an empty text; `special`, `whole`, `units`: ids
 *   that are found in a text before it is cut, as a piece, and as a character; `cuts`: regular expressions, whose
 *   matches and the text between them are pieces; `bytes`: the ids of the 256 bytes, null for a byte without one;
 *   `merges`: pairs of ids and what they become, the first pair first; `longest`: how many ids are merged at once.
 */
function makeTokenizer(definition) {
  check(definition && Array.isArray(definition.tokens), "it has no tokenizer");
  const { lower, nfc, prefix, opening, special, whole, units, bytes, cuts, merges, longest } = definition;
  const tokens = definition.tokens.map((token) => Uint8Array.from(String(token), (letter) => letter.charCodeAt(0)));
  const isId = (id) => Number.isInteger(id) && id >= 0 && id < tokens.length;
  const areIds = (ids) => Array.isArray(ids) && ids.every(isId);
  check([prefix, special, whole, units, [opening]].every(areIds), "its tokenizer has ids that are no tokens");
  check([bytes, cuts, merges].every(Array.isArray), "a part of its tokenizer is missing");
  check(bytes.every((id) => id === null || isId(id)), "its tokenizer has bytes that are no tokens");
  check(merges.every((merge) => merge?.length === 3 && areIds(merge)), "its tokenizer has merges that are no tokens");
  check(longest === null || isSize(longest), "its tokenizer has a wrong length");

  const textOf = (id) => new TextDecoder("utf-8", { ignoreBOM: true }).decode(tokens[id]);
  const byText = (ids) => new Map(ids.map((id) => [textOf(id), id]));
  const [specialIds, wholeIds, unitIds] = [special, whole, units].map(byText);
  const escaped = [...specialIds.keys()].filter(Boolean).sort((a, b) => b.length - a.length)
    .map((text) => text.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&"));
  let found, cutters;
  try {
    found = new RegExp(escaped.join("|") || "(?!)", "gu");
    cutters = cuts.map((source) => new RegExp(source, "gu"));
  } catch {
    check(false, "its tokenizer has a wrong regular expression");
  }
  const pairs = new Map(merges.map(([left, right, id], rank) => [left * tokens.length + right, { rank, id }]));
  const utf8 = new TextEncoder();

  /** Return the ids of a character; undefined if it cannot be spelled. */
  function spelled(character) {
    if (unitIds.has(character)) return [unitIds.get(character)];
    const ids = Array.from(utf8.encode(character), (byte) => bytes[byte] ?? null);
    return ids.includes(null) ? undefined : ids;
  }

  /** Return the matches of a regular expression in a text and the text between them. */
  function pieces(text, regex) {
    const parts = [];
    let end = 0;
    for (const { index, 0: match } of text.matchAll(regex)) {
      parts.push(text.slice(end, index), match);
      end = index + match.length;
    }
    return [...parts, text.slice(end)].filter(Boolean);
  }

  /** Merge pairs of ids, always the pair of the lowest rank, and of several the leftmost. */
  function merged(ids) {
    const pairAt = (left, right) => pairs.get(left * tokens.length + right);
    const rankOf = (left, right) => pairAt(left, right)?.rank ?? Infinity;
    for (;;) {
      const lowest = ids.reduce((rank, id, i) => Math.min(rank, rankOf(id, ids[i + 1])), Infinity);
      if (lowest === Infinity) return ids;
      const next = [];
      for (let i = 0, done = false; i < ids.length; i++) {
        next.push(ids[i]);
        if (done || rankOf(ids[i], ids[i + 1]) !== lowest) continue;
        next.push(pairAt(next.pop(), ids[++i]).id);
        done = Math.min(rankOf(next.at(-2), next.at(-1)), rankOf(next.at(-1), ids[i + 1])) < lowest;
      }
      ids = next;
    }
  }

  function encodePiece(piece) {
    if (wholeIds.has(piece)) return [wholeIds.get(piece)];
    const ids = Array.from(piece).flatMap(spelled);
    if (!pairs.size) return ids;
    const all = [];
    const size = longest ?? ids.length;
    for (let i = 0; i < ids.length; i += size) all.push(merged(ids.slice(i, i + size)));
    return all.flat();
  }

  /** Return the ids of a special token, or of a text without any. */
  function encodePart(part) {
    if (specialIds.has(part)) return [specialIds.get(part)];
    return cutters.reduce((all, cutter) => all.flatMap((piece) => pieces(piece, cutter)), [part]).flatMap(encodePiece);
  }

  const makeDecoder = () => {
    const stream = new TextDecoder("utf-8", { ignoreBOM: true });
    return { add: (id) => stream.decode(tokens[id], { stream: true }), rest: () => stream.decode() };
  };
  return {
    tokens, prefix, opening, vocabSize: tokens.length, decoder: makeDecoder,
    /** Clean a prompt as the training text was. */
    clean(text) {
      const compose = (string) => (nfc ? string.normalize("NFC") : string);
      text = compose(text.toWellFormed());
      return lower ? compose(text.toLowerCase()) : text;
    },
    /** Return the ids of a clean text, and the characters in it that no token can spell, which are left out. */
    encode(text) {
      const unspelled = (part) => (specialIds.has(part) ? [] : Array.from(part).filter((letter) => !spelled(letter)));
      const isKnown = pieces(text, found).every((part) => unspelled(part).length === 0);
      const missing = isKnown ? [] : [...new Set(Array.from(text).flatMap(unspelled))].sort();
      const parts = [""];
      for (const letter of text) missing.includes(letter) ? parts.push("") : parts.push(parts.pop() + letter);
      return { ids: parts.flatMap((part) => pieces(part, found)).flatMap(encodePart), missing };
    },
    decode(ids) {
      const stream = makeDecoder();
      return ids.map(stream.add).join("") + stream.rest();
    },
  };
}
