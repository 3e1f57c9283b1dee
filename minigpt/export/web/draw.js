// Helpers that build elements and pictures. Texts become text nodes alone, since a model may write anything.

const SIGNS = { " ": "␣", "\n": "↵", "\t": "⇥", "\u00a0": "⍽", "\u202f": "⍽" };
const BARS = 10; // the candidates in a bar chart

const byId = (id) => document.getElementById(id);

// Return a new element with attributes (functions are listeners) and children (elements or texts).
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

function makeSVG(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// Return a text with signs in place of white space and control characters, which could not be seen or would turn the
// text around them, as those for scripts from right to left do.
function visible(text, longest = 24) {
  const code = (c) => `⟨${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`;
  const picture = (c) => (c < " " ? String.fromCharCode(0x2400 + c.charCodeAt(0)) : code(c));
  const signs = Array.from(text, (c) => SIGNS[c] ?? (/[\p{C}\p{Z}]/u.test(c) ? picture(c) : c));
  return signs.length > longest ? `…${signs.slice(1 - longest).join("")}` : signs.join("");
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

// Return the likeliest ids of a distribution, in descending order.
function likeliest(probabilities, n) {
  const best = [];
  probabilities.forEach((p, id) => {
    if (best.length === n && p <= probabilities[best[n - 1]]) return;
    let at = best.length;
    while (at && probabilities[best[at - 1]] < p) at--;
    best.splice(at, 0, id);
    best.length = Math.min(best.length, n);
  });
  return best;
}

// Return "␣ 41.2 %, e 20.1 %, …", the likeliest of a distribution in words.
function inWords(probabilities, nameOf, n = 5) {
  return likeliest(probabilities, n).map((id) => `${nameOf(id)} ${percent(probabilities[id])}`).join(", ");
}

// Return a table with two bars for each candidate: before (outlined) and after (filled); what is cut is struck out.
function bars({ before, after, came = null, caption = null, nameOf, choose = null }) {
  const ids = likeliest(before, BARS);
  for (const id of likeliest(after, 3)) if (after[id] > 0 && !ids.includes(id)) ids.push(id);
  if (came !== null && !ids.includes(came)) ids.push(came);
  const most = Math.max(...ids.map((id) => Math.max(before[id], after[id])), 1e-9);
  const rows = ids.map((id) => {
    const name = nameOf(id);
    const written = id === came ? `, ${say("came")}` : "";
    const label = `${name}${written}, ${say("before")} ${percent(before[id])}, ${say("after")} ${percent(after[id])}`;
    const token = choose
      ? make("button", { type: "button", click: () => choose(id), "aria-label": label, "data-id": id }, name) : name;
    const width = (p) => `width: ${((100 * p) / most).toFixed(2)}%`;
    const kinds = [after[id] === 0 ? "cut" : "", id === came ? "came" : ""].join(" ").trim();
    return make("tr", { class: kinds },
      make("th", { scope: "row", class: "token" }, token),
      make("td", { class: "sign" }, id === came ? "←" : ""),
      make("td", { class: "bar", "aria-hidden": "true" },
        make("i", { class: "before", style: width(before[id]) }),
        make("i", { class: "after", style: width(after[id]) })),
      make("td", { class: "number" }, percent(before[id])), make("td", { class: "number" }, percent(after[id])));
  });
  const head = (name) => make("th", { scope: "col", class: name === "candidate" ? "token" : "number" }, say(name));
  const heads = [head("candidate"), make("td"), make("td"), head("before"), head("after")];
  return make("table", { class: "bars" }, ...(caption ? [make("caption", {}, caption)] : []),
    make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows));
}

// Draw a matrix with values from 0 to 1 as squares, with names on both axes if there is room; returns a cell's side.
function drawMatrix(canvas, values, n, { names = null, row = -1, size = 480 }) {
  names = names?.map((name) => (name.length > 9 ? `${Array.from(name).slice(0, 8).join("")}…` : name));
  const longest = names ? Math.max(...names.map((name) => name.length)) : 0;
  const room = names ? Math.min(60, 8 + 7 * Math.max(longest, 1)) : 0;
  const side = (size - room) / n;
  const density = window.devicePixelRatio || 1;
  canvas.width = canvas.height = Math.round(size * density);
  canvas.style.width = `${size}px`;
  canvas.classList.toggle("dark", matchMedia("(prefers-color-scheme: dark)").matches);
  const context = canvas.getContext("2d");
  context.scale(density, density);
  context.fillStyle = colour("panel");
  context.fillRect(room, room, size - room, size - room);
  context.fillStyle = colour("accent");
  for (let y = 0; y < n; y++) {
    for (let x = 0; x < n; x++) {
      context.globalAlpha = Math.sqrt(Math.min(1, values[y * n + x])); // small values are seen too
      context.fillRect(room + x * side, room + y * side, side + 0.3, side + 0.3);
    }
  }
  context.globalAlpha = 1;
  if (names) {
    context.fillStyle = colour("ink");
    context.font = `${Math.max(6, Math.min(13, side * 0.95))}px system-ui, sans-serif`;
    context.textBaseline = "middle";
    names.forEach((name, k) => {
      context.textAlign = "right";
      context.fillText(name, room - 4, room + (k + 0.5) * side);
      context.save();
      context.translate(room + (k + 0.5) * side, room - 4);
      if (longest > 1) context.rotate(-Math.PI / 2);
      context.textAlign = longest > 1 ? "left" : "center";
      context.fillText(name, 0, 0);
      context.restore();
    });
  }
  if (row >= 0) {
    context.strokeStyle = colour("hot");
    context.lineWidth = 2;
    context.strokeRect(room, room + row * side, size - room - 1, side);
  }
  return { room, side };
}
