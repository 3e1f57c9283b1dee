// The text: what is written, which token is chosen, and the controls of writing.

const FULL_COLOUR_BITS = 6; // the surprise at which a token has the full colour
const SLIDERS = [
  // name, least, most, step, the value that turns it off, and the name of that value
  ["temperature", 0, 2, 0.05, null, ""], ["top_k", 0, 200, 1, 0, "all"], ["top_p", 0.05, 1, 0.05, 1, "all"],
  ["min_p", 0, 1, 0.01, 0, "all"], ["repetition_penalty", 1, 2, 0.05, 1, "off"], ["count", 1, 2000, 1, null, ""],
];

const state = {
  ids: [], // of the text, the prompt's first
  bits: [], // the surprise of each; null while it is not known, and for the first
  prompt: 0, // how many of them are the prompt's
  position: 0, // of the chosen token; `ids.length` for the one that comes next
  settings: {}, // the value of each slider, and the seed
  off: new Set(), // heads that are turned off, as layer * nHead + head
  set: 0, // the index of the weights in use
  tab: "why",
};
const panels = {}; // the panels of the tabs, each with `refresh`; filled by the files after this one
let model, tokenizer, decoder, worker;
const calls = new Map();
let lastCall = 0;

// Ask the worker for something; the promise fails with its error. `onTokens` hears the tokens of a text as they come.
function ask(name, args = {}, onTokens = null) {
  return new Promise((resolve, reject) => {
    calls.set(++lastCall, { resolve, reject, onTokens });
    worker.postMessage({ call: lastCall, name, args });
  });
}

function heard({ data: { call, tokens, result, error, done } }) {
  const { resolve, reject, onTokens } = calls.get(call);
  if (tokens) onTokens(tokens);
  if (!done) return;
  calls.delete(call);
  if (error) reject(new Error(error));
  else resolve(result);
}

function tell(text) {
  byId("notice").textContent = text;
}

function fail(error) {
  byId("problem").replaceChildren(say("failed", { error: error.message }));
  byId("problem").hidden = false;
}

// Return a token's name: its text with visible signs, or its bytes if they are a part of a character only.
function nameOf(id) {
  try {
    return visible(new TextDecoder("utf-8", { fatal: true }).decode(tokenizer.tokens[id])) || "∅";
  } catch {
    return Array.from(tokenizer.tokens[id], (byte) => `<${byte.toString(16).toUpperCase().padStart(2, "0")}>`).join("");
  }
}

// Return the end of the text before a position, for captions.
function contextAt(position) {
  return visible(tokenizer.decode(state.ids.slice(Math.max(0, position - 20), position)), 20);
}

// Return the sampling parameters that are on, under the names that `filterLogits` has.
function sampling() {
  const params = {};
  for (const [name, , , , off] of SLIDERS) {
    if (name !== "count") params[name] = state.settings[name] === off ? null : state.settings[name];
  }
  return params;
}

// Colour the span of a token by its surprise, and describe it in the reader's language.
function paint(span, id, bits) {
  span.style.setProperty("--surprise", Math.min((bits ?? 0) / FULL_COLOUR_BITS, 1).toFixed(3));
  span.title = bits === null ? nameOf(id) : say("token", { token: nameOf(id), bits: number(bits, 1) });
  span.setAttribute("aria-label", span.title);
}

// Describe the whole text again, after new surprises or in another language.
function paintAll() {
  [...byId("text").children].forEach((span, n) => paint(span, state.ids[n], state.bits[n]));
  byId("text").setAttribute("aria-label", say("text", { n: number(state.ids.length) }));
}

// Add [id, bits] tokens to the end of the text.
function append(tokens) {
  const text = byId("text");
  const follows = text.scrollHeight - text.scrollTop - text.clientHeight < 40;
  const spans = tokens.map(([id, bits]) => {
    const kind = state.ids.length < state.prompt ? "prompt" : null;
    const added = decoder.add(id); // empty for a part of a character, which the last part shows
    const isUnseen = /^[\p{C}\p{Zl}\p{Zp}]*$/u.test(added); // such as a line break: a sign makes it seen and clickable
    const sign = isUnseen ? visible(added) || "·" : null;
    const names = { role: "option", id: `token-${state.ids.length}`, class: kind, "aria-selected": "false" };
    const span = make("span", { ...names, "data-sign": sign }, added);
    paint(span, id, bits);
    state.ids.push(id);
    state.bits.push(bits);
    return span;
  });
  for (const span of spans) text.append(span);
  if (follows) text.scrollTop = text.scrollHeight;
  text.setAttribute("aria-label", say("text", { n: number(state.ids.length) }));
  if (state.tab === "inside" && model.bigram) panels.inside.light(state.ids[state.ids.length - 1]);
}

// Show other ids in place of the text, coloured by the model's surprise.
async function setText(ids, prompt) {
  byId("text").replaceChildren();
  Object.assign(state, { ids: [], bits: [], prompt });
  decoder = tokenizer.decoder();
  append(ids.map((id) => [id, null]));
  await rescore();
}

// Ask for the surprises of the text, by the weights in use.
async function rescore() {
  const { ids } = state;
  const bits = await ask("scores", { ids });
  if (ids !== state.ids) return; // another text is there by now
  bits.forEach((each, n) => (state.bits[n] = each)); // tokens that were written in the meantime have theirs
  paintAll();
}

// Choose the token at a position, and explain it.
function choose(position) {
  byId("text").querySelector("[aria-selected=true]")?.setAttribute("aria-selected", "false");
  state.position = Math.max(0, Math.min(position, state.ids.length));
  const span = byId(`token-${state.position}`);
  if (span) {
    span.setAttribute("aria-selected", "true");
    byId("text").setAttribute("aria-activedescendant", span.id);
    span.scrollIntoView({ block: "nearest" });
  } else byId("text").removeAttribute("aria-activedescendant");
  return refresh();
}

// Bring the visible panel up to date.
function refresh() {
  return model && state.ids.length ? panels[state.tab].refresh().catch(fail) : Promise.resolve();
}

let turn = 0; // the number of the latest request to write or to stop
let current = Promise.resolve(); // the work of the turn that has begun last

// Do some work on the text alone: what is being written is stopped, and of several requests only the latest is served.
async function takeTurn(work) {
  const mine = ++turn;
  byId("text").setAttribute("aria-busy", "true");
  await ask("stop");
  await current;
  if (mine !== turn) return;
  byId("stop").hidden = false;
  current = work(() => mine === turn).catch(fail);
  await current;
  if (mine !== turn) return;
  if (document.activeElement === byId("stop")) byId("write").focus();
  byId("stop").hidden = true;
  byId("text").setAttribute("aria-busy", "false");
}

const stop = () => takeTurn(async () => {});

// Continue the text by `count` tokens, as the sampling parameters say, unless the turn is over; then explain the token
// at a position, or the next one.
async function goOn(isMine, count = state.settings.count, position = null) {
  if (!isMine()) return;
  tell(say("writing"));
  const [began, before] = [performance.now(), state.ids.length];
  const pace = state.tab === "inside" && model.bigram ? 40 : 0; // slow enough to see the rows of the table light up
  const args = { ids: state.ids, count, params: sampling(), seed: state.settings.seed, off: state.off, pace };
  await ask("write", args, append);
  const [n, seconds] = [state.ids.length - before, (performance.now() - began) / 1000];
  const off = state.off.size ? ` ${say("headsOff", { n: state.off.size })}` : "";
  tell(say("speed", { n: number(n), speed: number(n / seconds) }) + off);
  await choose(position ?? state.ids.length);
}

const more = () => state.ids.length && takeTurn(goOn);

// Write from the prompt.
function write() {
  return takeTurn(async (isMine) => {
    const { ids, missing } = tokenizer.encode(tokenizer.clean(byId("prompt").value));
    const start = [...tokenizer.prefix, ...ids];
    if (!start.length) start.push(tokenizer.opening);
    await setText(start, start.length);
    await goOn(isMine);
    if (missing.length) tell(say("unknown", { tokens: missing.slice(0, 10).map((c) => visible(c)).join(" ") }));
    else if (!ids.length) tell(say("empty", { token: nameOf(start[0]) }));
  });
}

// Put another token at a position, and go on from there: to the length of a complete text, or after its end by as much
// as Go on does.
function whatIf(position, id) {
  return takeTurn(async (isMine) => {
    const [length, { count }] = [state.ids.length, state.settings];
    const end = position < length ? Math.max(length, state.prompt + count) : length + count;
    await setText([...state.ids.slice(0, position), id], Math.min(state.prompt, position));
    await goOn(isMine, Math.max(1, end - position - 1), position);
  });
}

function makeSliders() {
  const focused = document.activeElement?.id;
  const fields = SLIDERS.map(([name, least, most, step, off, offName]) => {
    const show = () => {
      const value = state.settings[name];
      output.textContent = value === off ? say(offName) : number(value, step < 1 ? 2 : 0);
    };
    const output = make("output", { for: `set-${name}` });
    const max = name === "top_k" ? Math.min(most, tokenizer.vocabSize) : most;
    const input = make("input", {
      id: `set-${name}`, type: "range", min: least, max, step,
      input: () => {
        state.settings[name] = Number(input.value);
        show();
        if (state.tab === "why") panels.why.redraw();
      },
    });
    input.value = state.settings[name];
    state.settings[name] = Number(input.value); // within the slider's range
    show();
    return make("label", { for: input.id }, say(name), output, input);
  });
  const seed = make("input", {
    type: "number", min: 0, step: 1, value: state.settings.seed,
    input: () => (state.settings.seed = Math.abs(Math.trunc(Number(seed.value))) || 0),
  });
  byId("sliders").replaceChildren(...fields, make("label", {}, say("seed"), make("span"), seed));
  if (focused) byId(focused)?.focus();
}

function onTextKey(event) {
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -20, ArrowDown: 20, Home: -1e9, End: 1e9 };
  if (!(event.key in steps)) return;
  event.preventDefault();
  choose(Math.min(state.position + steps[event.key], state.ids.length));
}
