// Why this token? The distribution at one position, before and after each sampling parameter.

panels.why = {
  stage: "all",
  logits: null, // at the chosen position

  async refresh() {
    const position = Math.max(1, state.position);
    const { logits, without } = await ask("predict", { ids: state.ids.slice(0, position), off: state.off });
    if (position !== Math.max(1, state.position)) return; // another token was chosen in the meantime
    this.logits = without ?? logits;
    this.position = position;
    this.redraw();
  },

  // Draw the bars again, after a sampling parameter or the language has changed.
  redraw() {
    if (!this.logits) return;
    const steps = filterSteps(this.logits, sampling(), state.ids.slice(0, this.position));
    const kept = (logits) => logits.reduce((n, x) => n + (x > -Infinity), 0);
    const stages = [{ name: "model", logits: this.logits }, ...steps];
    if (!stages.some(({ name }) => name === this.stage)) this.stage = "all";
    const buttons = [...stages.slice(1), { name: "all", logits: stages.at(-1).logits }].map(({ name, logits }, n) => {
      const cut = kept(name === "all" ? this.logits : stages[n].logits) - kept(logits);
      const label = `${name === "all" ? say("stageAll") : say(name)}${cut ? ` ${say("cut", { n: number(cut) })}` : ""}`;
      const chosen = name === this.stage;
      const pick = () => {
        this.stage = name;
        this.redraw();
        byId("stages").querySelector("[aria-checked=true]").focus();
      };
      return make("button", {
        type: "button", role: "radio", "aria-checked": String(chosen), tabindex: chosen ? "0" : "-1", click: pick,
      }, label);
    });
    byId("stages").replaceChildren(...buttons);
    const last = this.stage === "all" ? stages.length - 1 : stages.findIndex(({ name }) => name === this.stage);
    const first = this.stage === "all" ? 0 : last - 1;
    const where = say("whyWhere", { context: contextAt(this.position) });
    byId("why-where").textContent = state.position < this.position ? `${say("whyFirst")} ${where}` : where;
    const focused = byId("why-bars").contains(document.activeElement) ? document.activeElement.dataset.id : null;
    byId("why-bars").replaceChildren(bars({
      before: softmax(stages[Math.max(0, first)].logits), after: softmax(stages[last].logits),
      came: state.ids[this.position] ?? null, nameOf, choose: (id) => whatIf(this.position, id),
    }));
    if (focused) byId("why-bars").querySelector(`[data-id="${focused}"]`)?.focus();
  },
};
