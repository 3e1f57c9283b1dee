// The start: the page in the reader's language, the worker, the first text.

const TABS = ["why", "inside", "time"];

function showFacts() {
  const { step, bits } = model.sets[state.set];
  const sizes = { parameters: number(model.parameters), step: number(step) };
  const facts = [say(step ? "facts" : "factsAlone", { class: model.description.class, ...sizes })];
  if (bits !== null) facts.push(say("bits", { bits: number(bits, 2) }));
  if (model.precision === "int8") {
    const isMeasured = model.cost !== null && state.set === model.start; // of the exported model alone
    const cost = model.cost < 0.001 ? `< ${number(0.001, 3)}` : number(model.cost, 3);
    facts.push(isMeasured ? say("cost", { cost }) : say("rounded"));
  }
  byId("facts").textContent = facts.join(" ");
}

function speak() {
  document.documentElement.lang = language;
  for (const element of document.querySelectorAll("[data-say]")) element.textContent = say(element.dataset.say);
  byId("language").textContent = say("other");
  byId("language").lang = language === "en" ? "fr" : "en";
  byId("moment").setAttribute("aria-label", say("moment"));
  byId("origin").textContent = [say("origin", { version: model.version }), model.licence ?? ""].join(" ").trim();
  showFacts();
  makeSliders();
  paintAll();
  tell(byId("stop").hidden ? "" : say("writing"));
}

function showTab(tab, focus = true) {
  state.tab = tab;
  for (const name of TABS) {
    const chosen = name === tab;
    byId(name).hidden = !chosen;
    byId(`tab-${name}`).setAttribute("aria-selected", String(chosen));
    byId(`tab-${name}`).tabIndex = chosen ? 0 : -1;
    if (chosen && focus) byId(`tab-${name}`).focus();
  }
  return refresh();
}

// Move in a group of buttons with the arrow keys.
function onGroupKey(event, pick) {
  const buttons = [...event.currentTarget.querySelectorAll("button")];
  const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
  const at = buttons.indexOf(document.activeElement);
  if (!step || at < 0) return;
  event.preventDefault();
  pick(buttons[(at + step + buttons.length) % buttons.length]);
}

function listen() {
  const on = (id, kind, act) => byId(id).addEventListener(kind, (event) => Promise.resolve(act(event)).catch(fail));
  on("write", "click", write);
  on("more", "click", more);
  on("stop", "click", stop);
  on("prompt", "keydown", (event) => event.key === "Enter" && (event.ctrlKey || event.metaKey) && write());
  on("text", "click", ({ target }) => target.id?.startsWith("token-") && choose(Number(target.id.slice(6))));
  on("text", "keydown", onTextKey);
  for (const name of TABS) on(`tab-${name}`, "click", () => showTab(name));
  on("moment", "input", () => useSet(Number(byId("moment").value)));
  on("play", "click", () => panels.time.play());
  on("inside-picture", "click", (event) => panels.inside.pickRow(event));
  on("language", "click", () => ((language = language === "en" ? "fr" : "en"), speak(), refresh()));
  document.querySelector("[role=tablist]").addEventListener("keydown", (event) => onGroupKey(event, (b) => b.click()));
  byId("stages").addEventListener("keydown", (event) => onGroupKey(event, (b) => b.click()));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", refresh);
  addEventListener("resize", () => state.tab !== "why" && refresh());
}

async function start() {
  const isNew = window.DecompressionStream && "".toWellFormed && CSS.supports("color", "color-mix(in srgb, red, blue)");
  if (!isNew) return;
  window.started = true;
  try {
    model = JSON.parse(byId("model").textContent);
    tokenizer = makeTokenizer(model.tokenizer);
    Object.assign(state.settings, model.sampling);
    state.set = model.start;
    byId("moment").max = model.sets.length - 1;
    byId("prompt").value = model.prompt;
    if (matchMedia("(max-width: 56rem)").matches) byId("parameters").open = false;
    speak();
    listen();
    tell(say("reading"));
    worker = new Worker(URL.createObjectURL(new Blob([byId("engine").textContent], { type: "text/javascript" })));
    worker.onmessage = heard;
    worker.onerror = (event) => fail(new Error(event.message));
    await useSet(state.set);
    showTab("why", false);
    await write();
  } catch (error) {
    fail(error);
  }
}

start();
