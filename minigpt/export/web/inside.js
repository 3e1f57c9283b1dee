// Inside: a bigram's table, or how a transformer's prediction comes about, layer by layer and head by head.

panels.inside = {
  layer: 0, // of the chosen head
  head: 0,
  row: null, // the row of the map that is described; null for the last
  table: null,

  async refresh() {
    const hint = model.bigram ? say("insideBigram") : say("insideGPT", { context: this.context() });
    byId("inside-hint").textContent = hint;
    await this.picture(byId("inside-picture"), byId("inside-words"), 520);
    if (!model.bigram) await this.showOff();
  },

  context: () => contextAt(Math.max(1, state.position)),
  before: () => state.ids.slice(0, Math.max(1, state.position)),

  // Draw the table or the map of the chosen head, for the model in use, and say what it shows.
  async picture(canvas, words, largest) {
    const size = Math.max(200, Math.min(largest, canvas.parentElement.clientWidth));
    if (model.bigram) {
      const largest = Math.min(LARGEST_TABLE, Math.floor(size / 10)); // so that the names can be read
      if (this.table?.set !== state.set || this.table.largest !== largest) {
        this.table = { set: state.set, largest, ...(await ask("table", { largest })) };
      }
      return this.drawTable(canvas, words, size, this.before().at(-1));
    }
    const asked = { ids: this.before(), off: state.off, most: Math.min(SHOWN, Math.floor(size / 10)) };
    const seen = await ask("inspect", asked);
    this.seen = { ...seen, ids: asked.ids.slice(-seen.shown) };
    if (canvas.id === "inside-picture") this.showFlow();
    this.drawHead(canvas, words, size);
  },

  // Draw the table with the row of an id framed, if it has one, and say which of all tokens follow this id.
  async drawTable(canvas, words, size, id) {
    const { ids, rows } = this.table;
    this.cell = drawMatrix(canvas, rows, ids.length, { names: ids.map(nameOf), row: ids.indexOf(id), size });
    this.drawn = { canvas, words, size };
    const { logits } = await ask("predict", { ids: [id] });
    words.textContent = say("follows", { token: nameOf(id), list: inWords(softmax(logits), nameOf) });
    canvas.setAttribute("aria-label", `${say("insideBigram")} ${words.textContent}`);
  },

  // Frame the row of a token while a text is written.
  light(id) {
    const { canvas, words, size } = this.drawn ?? {};
    if (this.table?.set === state.set && canvas) this.drawTable(canvas, words, size, id).catch(fail);
  },

  showFlow() {
    const { lens, maps, shown } = this.seen;
    const rows = lens.map((logits, n) => {
      const probabilities = softmax(logits);
      const best = likeliest(probabilities, 4).map((id) =>
        make("li", {}, make("b", {}, nameOf(id)), ` ${percent(probabilities[id])}`));
      const layer = make("div", { class: "layer" },
        make("h2", {}, n ? say("layer", { n }) : say("start")), make("ol", {}, ...best));
      const heads = Array.from({ length: n && model.nHead }, (_, head) => this.thumbnail(n - 1, head, maps, shown));
      if (n) layer.append(make("div", { class: "heads" }, ...heads));
      return layer;
    });
    const focused = document.activeElement?.dataset?.head;
    byId("flow").replaceChildren(...rows);
    if (focused) byId("flow").querySelector(`[data-head="${focused}"]`)?.focus();
    const key = this.layer * model.nHead + this.head;
    const box = make("input", {
      type: "checkbox", id: "turn-off",
      change: () => {
        state.off.has(key) ? state.off.delete(key) : state.off.add(key);
        refresh().then(() => byId("turn-off").focus());
      },
    });
    box.checked = state.off.has(key);
    byId("head").replaceChildren(make("h2", {}, say("head", { head: this.head + 1, layer: this.layer + 1 })),
      make("label", {}, box, say("turnOff")));
  },

  thumbnail(layer, head, maps, shown) {
    const key = layer * model.nHead + head;
    const canvas = make("canvas");
    drawMatrix(canvas, maps[key], shown, { size: 52 });
    const pick = () => {
      Object.assign(this, { layer, head, row: null });
      this.showFlow();
      this.drawHead(byId("inside-picture"), byId("inside-words"), this.drawn.size);
    };
    return make("button", {
      type: "button", class: state.off.has(key) ? "off" : null, "data-head": key, click: pick,
      "aria-label": say("head", { head: head + 1, layer: layer + 1 }),
      "aria-pressed": String(layer === this.layer && head === this.head),
    }, canvas);
  },

  drawHead(canvas, words, size) {
    const { maps, shown, ids } = this.seen;
    const row = Math.min(this.row ?? shown - 1, shown - 1);
    const map = maps[this.layer * model.nHead + this.head];
    const names = ids.map((id) => visible(nameOf(id), 6));
    this.cell = drawMatrix(canvas, map, shown, { names, row, size });
    this.drawn = { canvas, words, size };
    const weights = map.slice(row * shown, (row + 1) * shown);
    const list = inWords(weights, (n) => `${names[n]} (${number(n - row)})`, 4);
    words.textContent = say("looks", { token: names[row], list });
    const title = say("head", { head: this.head + 1, layer: this.layer + 1 });
    canvas.setAttribute("aria-label", `${title}. ${words.textContent}`);
  },

  // Choose the row of the picture at a height, by a click.
  pickRow(event) {
    const row = Math.floor((event.offsetY - this.cell.room) / this.cell.side);
    const rows = model.bigram ? this.table.ids.length : this.seen.shown;
    if (row < 0 || row >= rows) return;
    const { canvas, words, size } = this.drawn;
    if (model.bigram) return this.drawTable(canvas, words, size, this.table.ids[row]);
    this.row = row;
    this.drawHead(canvas, words, size);
  },

  // Show how the distribution changes without the heads that are turned off.
  async showOff() {
    const box = byId("off-bars");
    if (!state.off.size) return box.replaceChildren();
    const { logits, without } = await ask("predict", { ids: this.before(), off: state.off });
    box.replaceChildren(bars({ before: softmax(logits), after: softmax(without), caption: say("offTitle"), nameOf }));
  },
};
