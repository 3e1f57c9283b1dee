// Time: the curves, the samples and the snapshots of the training, with a slider over the steps.

panels.time = {
  playing: null,

  async refresh() {
    const { step } = model.sets[state.set];
    const left = model.left_out ? ` ${say("leftOut", { n: model.left_out })}` : "";
    byId("time-hint").textContent = model.sets.length > 1 ? say("timeHint") + left : say("noSnapshots") + left;
    byId("player").hidden = model.sets.length < 2;
    byId("moment").value = state.set;
    byId("step").textContent = say("step", { step: number(step) });
    byId("moment").setAttribute("aria-valuetext", byId("step").textContent);
    byId("play").textContent = say(this.playing ? "pause" : "play");
    byId("curve").replaceChildren(this.curve(step));
    const sample = model.samples.filter(([at]) => at <= step).at(-1) ?? model.samples[0];
    byId("sample-title").textContent = sample ? say("sampleOf", { step: number(sample[0]) }) : "";
    byId("sample").textContent = sample ? sample[1] : "";
    byId("sample").hidden = !sample;
    await panels.inside.picture(byId("time-picture"), byId("time-words"), 420);
  },

  // Return the curves as an SVG, with a line at a step.
  curve(step) {
    const { train, val, baselines } = model.curves;
    const points = [...train, ...val];
    if (!points.length) return document.createTextNode(say("noCurves"));
    const width = Math.max(300, Math.min(640, byId("curve").clientWidth));
    const [height, right, bottom] = [280, 124, 24];
    const lastStep = Math.max(...points.map(([at]) => at), step);
    const values = [...points.map(([, value]) => value), ...Object.values(baselines).filter((b) => b < points[0][1])];
    const worst = Math.min(Math.max(...values), 2 * points[0][1]); // where a training diverged, the curve is cut off
    const [least, most] = [Math.min(...values) * 0.95, worst * 1.02];
    const x = (at) => 34 + ((width - right - 34) * at) / lastStep;
    const y = (value) => 8 + ((height - bottom - 8) * (most - Math.min(value, most))) / (most - least || 1);
    const line = (curve, kind) => makeSVG("polyline", {
      class: kind, points: curve.map(([at, value]) => `${x(at).toFixed(1)},${y(value).toFixed(1)}`).join(" ") });
    const straight = (kind, x1, y1, x2, y2) => makeSVG("line", { class: kind, x1, y1, x2, y2 });
    const svg = makeSVG("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
    const text = (at, high, content, anchor = "start", kind = "") =>
      svg.append(makeSVG("text", { x: at, y: high, "text-anchor": anchor, class: kind }, content));
    const power = 10 ** Math.floor(Math.log10((most - least) / 3 || 1)); // between lines: 1, 2 or 5 times a power of 10
    const gap = power * [5, 2, 1].find((times) => times * power <= (most - least) / 3 || times === 1);
    for (let k = Math.ceil(least / gap); k * gap <= most; k++) {
      svg.append(straight("axis", 34, y(k * gap), width - right, y(k * gap)));
      text(28, y(k * gap) + 4, number(k * gap, Math.max(0, -Math.floor(Math.log10(gap)))), "end");
    }
    const labels = []; // [height, text, class] at the right, which are moved apart
    for (const [name, value] of Object.entries(baselines)) {
      if (value > most || value < least) continue;
      svg.append(straight("baseline", 34, y(value), width - right, y(value)));
      labels.push([y(value), say(name), ""]);
    }
    for (const [curve, kind] of [[train, "train"], [val, "val"]]) {
      if (!curve.length) continue;
      svg.append(line(curve, kind));
      labels.push([y(curve.at(-1)[1]), `${say(kind)} ${number(curve.at(-1)[1], 2)}`, "strong"]);
    }
    labels.sort((a, b) => a[0] - b[0]).reduce((free, label) => (label[0] = Math.max(label[0], free)) + 13, 10);
    for (const [high, content, kind] of labels) text(width - right + 6, high + 4, content, "start", kind);
    svg.append(straight("now", x(step), 8, x(step), height - bottom));
    text(x(step), height - 8, say("step", { step: number(step) }), step > lastStep / 2 ? "end" : "start", "strong");
    const [first, last] = [val[0] ?? train[0], val.at(-1) ?? train.at(-1)];
    const ends = { first: number(first[1], 2), last: number(last[1], 2) };
    svg.setAttribute("aria-label", say("curve", { n: number(lastStep), ...ends }));
    return svg;
  },

  // Go from snapshot to snapshot, from the first if the last is shown; a second press pauses.
  play() {
    if (this.playing) {
      clearInterval(this.playing);
      this.playing = null;
      return this.refresh();
    }
    const next = () => {
      if (state.set + 1 < model.sets.length) return useSet(state.set + 1);
      clearInterval(this.playing);
      this.playing = null;
      return this.refresh();
    };
    this.playing = setInterval(next, 900);
    return useSet(state.set + 1 < model.sets.length ? state.set + 1 : 0);
  },
};

let wanted = null; // the set that is to be used next
let using = false;

// Use the weights of a step everywhere on the page; while some are being read, only the latest wish counts.
async function useSet(index) {
  wanted = index;
  if (using) return;
  using = true;
  try {
    while (wanted !== null) {
      const set = wanted;
      wanted = null;
      const base64 = document.querySelector(`script[data-set="${set}"]`).textContent;
      const { description, specs, size } = model;
      await ask("use", { description, specs, size, step: model.sets[set].step, base64 });
      state.set = set;
      showFacts();
      if (state.ids.length && wanted === null) {
        await rescore();
        await refresh();
      }
    }
  } catch (error) {
    fail(error);
  }
  using = false;
}
