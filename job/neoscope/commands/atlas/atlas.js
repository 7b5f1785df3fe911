// The atlas in a browser: a table of each layer's neurons and a page of each neuron, by the address's hash.
// In: data/*.json, fetched as it is needed. It sends nothing, and asks no other server.

const COLUMNS = [
  ["neuron", "neuron", "number in its layer"],
  ["firing", "fires", "share of tokens at which it is above 0"],
  ["mean", "mean", "mean value", "wide"],
  ["std", "std", "standard deviation", "wide"],
  ["skewness", "skew", "skewness", "wide"],
  ["kurtosis", "kurtosis", "excess kurtosis: 0 for a normal distribution"],
  ["max", "max", "greatest value", "wide"],
  ["length_correlation", "r length", "correlation with the token's length in characters", "wide"],
  ["passage", "strongest passage", "where its value is greatest"],
];
const FACTS = { firing: "fires", mean: "mean", std: "std", skewness: "skewness", kurtosis: "kurtosis",
  min: "least", max: "greatest", length_correlation: "r with length" };
const KINDS = {
  all: ["all neurons", () => true],
  dead: ["never fire", (table, n) => table.firing[n] === 0],
  always: ["always fire", (table, n) => table.firing[n] === 1],
  rare: ["fire at less than 1 %", (table, n) => table.firing[n] < 0.01],
};
const ROWS = 150; // added to the table at a time

const main = document.getElementById("main");
const fetched = new Map();
let run, shown = {}, order = [], drawn = 0, chosen = 0;
let tableLeft = ""; // the address of the table that was last shown, with its order and filter

function get(path) {
  if (!fetched.has(path)) {
    const answer = fetch(path).then((found) => {
      if (!found.ok) throw new Error(`${path}: ${found.status} ${found.statusText}`);
      return found.json();
    });
    answer.catch(() => fetched.delete(path));
    fetched.set(path, answer);
  }
  return fetched.get(path);
}

// An element; `content` is text, an element, or a list of both.
function make(name, attributes = {}, content = []) {
  const svg = ["svg", "rect", "line", "text", "title"].includes(name);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", name)
    : document.createElement(name);
  for (const [key, value] of Object.entries(attributes))
    if (value !== null && value !== undefined && value !== false) element.setAttribute(key, value);
  element.append(...[content].flat());
  return element;
}

const number = (value, digits = 3) => value === null ? "–" : String(Number(value.toPrecision(digits))).replace("-", "−");
const percent = (share) => share === null ? "–"
  : share > 0 && share < 0.001 ? "<0.1 %" : share < 1 && share > 0.999 ? ">99.9 %" : `${(100 * share).toFixed(1)} %`;
const format = (name, value) => name === "firing" ? percent(value) : number(value);
const address = (layer, neuron) => neuron === undefined ? `#/layer/${layer}` : `#/layer/${layer}/neuron/${neuron}`;

// What the hash asks for: #/layer/3?sort=-std&find=the&kind=dead or #/layer/3/neuron/17
function asked(hash = location.hash) {
  const [path, query] = hash.replace(/^#/, "").split("?");
  const found = path.match(/^\/layer\/(\d+)(?:\/neuron\/(\d+))?$/);
  const options = new URLSearchParams(query);
  const layer = found ? Number(found[1]) : run.layers[0];
  return {
    layer: run.layers.includes(layer) ? layer : run.layers[0],
    neuron: found?.[2] && Number(found[2]) < run.neurons ? Number(found[2]) : null,
    sort: options.get("sort") ?? "-kurtosis", find: options.get("find") ?? "", kind: options.get("kind") ?? "all",
  };
}

async function show() {
  const want = asked();
  for (const link of document.querySelectorAll("nav a"))
    link.toggleAttribute("aria-current", link.dataset.layer === String(want.layer));
  try {
    const table = await get(`data/layer-${want.layer}.json`);
    const first = Math.floor((want.neuron ?? 0) / run.block) * run.block;
    const block = want.neuron === null ? null : await get(`data/layer-${want.layer}/${first}.json`);
    if (JSON.stringify(want) !== JSON.stringify(asked())) return; // another was asked for meanwhile
    const again = shown.layer === want.layer && shown.neuron === null && want.neuron === null;
    if (want.neuron === null && !again) chosen = order.length && shown.layer === want.layer ? chosen : 0;
    const before = shown;
    shown = want;
    if (!block) tableLeft = location.hash;
    if (block) showNeuron(table, block, want);
    else if (again && document.querySelector("tbody")) fill(table, want);
    else showTable(table, want, before);
  } catch (error) {
    main.replaceChildren(make("p", { class: "alarm" }, `${error.message}. A page opened from a file can fetch `
      + "nothing: serve the folder, with neoscope atlas --serve or any web server."));
  }
}

// The table of the layer that is shown, as it was left.
function back() {
  return tableLeft && asked(tableLeft).layer === shown.layer ? tableLeft : address(shown.layer);
}

function change(options) {
  const query = new URLSearchParams(Object.entries({ sort: shown.sort, find: shown.find, kind: shown.kind, ...options })
    .filter(([key, value]) => value && !(key === "sort" && value === "-kurtosis") && !(key === "kind" && value === "all")));
  history.replaceState(null, "", address(shown.layer) + (query.size ? `?${query}` : ""));
  show();
}

function sorted(table, want) {
  const find = want.find.toLowerCase(), kind = (KINDS[want.kind] ?? KINDS.all)[1];
  const name = want.sort.replace("-", ""), sign = want.sort.startsWith("-") ? -1 : 1;
  const key = name === "neuron" || !table[name] ? (n) => n : name === "passage" ? (n) => table.passage[n][1].trim().toLowerCase()
    : (n) => table[name][n];
  return [...table.firing.keys()]
    .filter((n) => kind(table, n) && (!find || String(n) === find || table.passage[n].join("").toLowerCase().includes(find)))
    .sort((a, b) => {
      const [one, other] = [key(a), key(b)];
      if (one === null || other === null) return (one === null) - (other === null) || a - b; // unknown ones last
      return sign * (one < other ? -1 : one > other ? 1 : 0) || a - b;
    });
}

function showTable(table, want, before) {
  document.title = `layer ${want.layer} of ${run.model}`;
  const find = make("input", { type: "search", "aria-label": "Filter", placeholder: "number, or words of the passage" });
  find.value = want.find;
  find.addEventListener("input", () => { chosen = 0; change({ find: find.value }); });
  const kind = make("select", { "aria-label": "Which neurons" },
    Object.entries(KINDS).map(([name, [words]]) => make("option", { value: name }, words)));
  kind.value = want.kind;
  kind.addEventListener("change", () => { chosen = 0; change({ kind: kind.value }); });
  const form = make("form", {}, [find, kind, make("span", { id: "count", class: "muted", role: "status" })]);
  form.addEventListener("submit", (event) => { event.preventDefault(); open(); });
  const head = COLUMNS.map(([name, words, title, wide]) => {
    const button = make("button", { type: "button", title }, words);
    button.addEventListener("click", () => {
      chosen = 0;
      change({ sort: shown.sort === `-${name}` ? name : shown.sort === name ? `-${name}`
        : ["neuron", "passage"].includes(name) ? name : `-${name}` });
    });
    return make("th", { scope: "col", "data-name": name, class: name === "passage" ? "text" : wide }, button);
  });
  const body = make("tbody");
  body.addEventListener("click", (event) => {
    const row = event.target.closest("tr");
    if (row && !event.target.closest("a")) location.hash = address(shown.layer, row.dataset.neuron);
  });
  main.replaceChildren(form, make("div", { class: "scroll" },
    make("table", {}, [make("thead", {}, make("tr", {}, head)), body])), make("div", { id: "end" }));
  new IntersectionObserver(([end]) => { if (end.isIntersecting) more(table); }, { rootMargin: "600px" })
    .observe(document.getElementById("end"));
  fill(table, want);
  if (before.neuron !== null && before.layer === want.layer) choose(order.indexOf(before.neuron));
}

function fill(table, want) {
  order = sorted(table, want);
  drawn = 0;
  for (const cell of document.querySelectorAll("th")) {
    if (cell.dataset.name === want.sort.replace("-", ""))
      cell.setAttribute("aria-sort", want.sort.startsWith("-") ? "descending" : "ascending");
    else cell.removeAttribute("aria-sort");
  }
  document.getElementById("count").textContent = `${order.length.toLocaleString("en")} of ${table.firing.length.toLocaleString("en")} neurons`;
  document.querySelector("tbody").replaceChildren();
  more(table);
  choose(Math.min(chosen, order.length - 1), false);
}

function more(table, upTo = drawn + ROWS) {
  const body = document.querySelector("tbody");
  if (!body) return;
  body.append(...order.slice(drawn, upTo).map((n) => make("tr", { "data-neuron": n },
    COLUMNS.map(([name, , , wide]) => {
      if (name === "neuron") return make("td", {}, make("a", { href: address(shown.layer, n) }, String(n)));
      if (name !== "passage") return make("td", { class: wide }, format(name, table[name][n]));
      const [before, peak, after] = table.passage[n].map(visible);
      return make("td", { class: "text" }, [make("span", { class: "wide" }, before.trimStart()), make("mark", {}, peak), after]);
    }))));
  drawn = Math.max(drawn, Math.min(upTo, order.length));
}

function choose(index, scroll = true) {
  if (index < 0 || index >= order.length) return;
  chosen = index;
  if (index >= drawn) fetched.get(`data/layer-${shown.layer}.json`).then((table) => { more(table, index + ROWS); choose(index, scroll); });
  document.querySelector("tr.chosen")?.classList.remove("chosen");
  const row = document.querySelectorAll("tbody tr")[index];
  row?.classList.add("chosen");
  if (scroll) row?.scrollIntoView({ block: "nearest" });
}

function open() {
  if (order.length) location.hash = address(shown.layer, order[chosen]);
}

function showNeuron(table, block, want) {
  const page = block.neurons[want.neuron - block.first];
  document.title = `layer ${want.layer}, neuron ${want.neuron} of ${run.model}`;
  const facts = make("dl", { class: "facts" }, Object.entries(FACTS).map(([name, words]) => {
    const value = table[name][want.neuron], all = table[name].filter((each) => each !== null);
    const rank = value === null ? null : all.filter((each) => each < value).length / all.length;
    return make("div", {}, [make("dt", {}, words), make("dd", {}, [format(name, value),
      make("small", {}, rank === null ? "not known" : `above ${(100 * rank).toFixed(0)} % of layer`)])]);
  }));
  const figures = [make("figure", {}, [make("h2", {}, "Values"), histogram(page.histogram)])];
  if (page.by_length) figures.push(make("figure", {}, [make("h2", {}, "Mean by token length"), byLength(page.by_length)]));
  main.replaceChildren(
    make("div", { class: "pager" }, [
      make("h2", {}, `layer ${want.layer}, neuron ${want.neuron}`),
      make("a", { href: back() }, "table"),
      ...(want.neuron ? [make("a", { href: address(want.layer, want.neuron - 1) }, "← previous")] : []),
      ...(want.neuron + 1 < run.neurons ? [make("a", { href: address(want.layer, want.neuron + 1) }, "next →")] : []),
    ]),
    facts, make("div", { class: "pair" }, figures),
    make("h2", {}, "Highest values, one of each sequence"), passages(page.highest, block),
    make("h2", {}, "Lowest values, one of each sequence"), passages(page.lowest, block));
  scrollTo(0, 0);
}

// Text in which line ends and what has no glyph can be seen.
function visible(text) {
  return text.replace(/\n/g, "↵").replace(/[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2060-\u206f]/g, "·");
}

function passages(found, block) {
  return make("ol", {}, found.map((passage) => {
    const tokens = passage.tokens.map((token, at) => {
      const level = passage.shades ? (passage.shades.charCodeAt(at) - run.zero) / run.levels
        : at === passage.peak ? Math.sign(passage.value) * 0.4 : 0;
      const value = passage.shades ? `about ${number(level * passage.most, 2)}` : null;
      const colour = level < 0 ? "--below" : "--above";
      return make("span", { style: `--s:${Math.abs(level).toFixed(2)};--c:var(${colour})`,
        class: at === passage.peak ? "peak" : null, title: at === passage.peak ? String(passage.value) : value },
      visible(block.tokens[token]));
    });
    const source = block.documents[passage.document];
    return make("li", {}, [make("b", {}, passage.value.toPrecision(4).replace("-", "−")), make("div", { class: "tokens" }, tokens),
      make("small", {}, `sequence ${passage.sequence}, position ${passage.position}` + (source ? `, document ${source}` : ""))]);
  }));
}

const WIDTH = 460, HEIGHT = 150, LEFT = 44, BOTTOM = 18;

function drawing(words) {
  return make("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT + BOTTOM}`, role: "img", "aria-label": words });
}

function text(x, y, words, anchor = "middle") {
  return make("text", { x, y, "text-anchor": anchor }, words);
}

function histogram({ left, right, counts }) {
  const svg = drawing("Histogram of the neuron's values"), most = Math.max(...counts, 1);
  const width = (WIDTH - LEFT) / Math.max(counts.length, 24); // a few bars are not made walls
  counts.forEach((count, at) => {
    if (!count) return;
    const height = Math.max(1, count / most * (HEIGHT - 12));
    const range = `${left[at] ?? "less"} to ${right[at] ?? "more"}: ${count.toLocaleString("en")} tokens`;
    svg.append(make("rect", { class: "bar", x: LEFT + at * width, y: HEIGHT - height,
      width: Math.max(width - 1, 0.5), height }, make("title", {}, range)));
    if (left[at] === 0 && at) svg.append(make("line", { class: "axis", x1: LEFT + at * width, x2: LEFT + at * width, y1: 0, y2: HEIGHT }));
  });
  const step = Math.ceil(counts.length / 8);
  left.forEach((edge, at) => { if (edge !== null && at % step === 0) svg.append(text(LEFT + at * width, HEIGHT + 13, number(edge))); });
  svg.append(text(LEFT - 6, 12, most.toLocaleString("en"), "end"), text(LEFT - 6, HEIGHT, "0", "end"),
    make("line", { class: "axis", x1: LEFT, x2: WIDTH, y1: HEIGHT, y2: HEIGHT }));
  return svg;
}

function byLength(means) {
  const svg = drawing("Mean value of the neuron at tokens of each length");
  const lengths = Object.keys(run.lengths).map(Number), few = Object.values(run.lengths);
  const low = Math.min(0, ...means), high = Math.max(0, ...means), span = high - low || 1;
  const y = (value) => 10 + (high - value) / span * (HEIGHT - 14);
  const width = (WIDTH - LEFT) / lengths.length;
  means.forEach((mean, at) => {
    const words = `${lengths[at]} characters: ${number(mean)} over ${few[at].toLocaleString("en")} tokens`;
    svg.append(make("rect", { class: mean < 0 ? "below" : "above", x: LEFT + at * width, y: Math.min(y(mean), y(0)),
      width: Math.max(width - 2, 1), height: Math.max(Math.abs(y(mean) - y(0)), 0.75), opacity: few[at] < 20 ? 0.35 : 1 },
    make("title", {}, words)));
    if (lengths.length < 26 || at % 2 === 0) svg.append(text(LEFT + (at + 0.5) * width, HEIGHT + 13, String(lengths[at])));
  });
  if (high > 0) svg.append(text(LEFT - 6, y(high) + 4, number(high, 2), "end"));
  if (low < 0) svg.append(text(LEFT - 6, y(low) + 2, number(low, 2), "end"));
  svg.append(make("line", { class: "axis", x1: LEFT, x2: WIDTH, y1: y(0), y2: y(0) }));
  return svg;
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const find = document.querySelector("input"), typing = event.target === find;
  const inTable = shown.neuron === null;
  const keys = {
    Escape: () => { if (typing) find.blur(); else if (!inTable) location.hash = back(); },
    ArrowDown: () => inTable && move(1), ArrowUp: () => inTable && move(-1),
    ...(typing ? {} : {
      "/": () => find?.focus(), j: () => inTable && move(1), k: () => inTable && move(-1),
      Enter: () => inTable && !event.target.closest("a, button, select") && open(),
      ArrowLeft: () => step(-1), ArrowRight: () => step(1),
    }),
  };
  if (!keys[event.key] || event.target.matches("select")) return;
  const up = event.key.startsWith("Arrow") && (event.key === "ArrowUp" || event.key === "ArrowDown");
  if ((up && !inTable) || (event.key === "Enter" && event.target.closest("a, button"))) return; // the browser's own
  event.preventDefault();
  keys[event.key]();
});

// To another row. Enter then opens it, and is no longer for a button that was pressed before.
function move(by) {
  if (!document.activeElement.matches("input")) document.activeElement.blur();
  choose(chosen + by);
}

// To the next neuron, or from a table to the next layer.
function step(by) {
  if (shown.neuron !== null) {
    const next = shown.neuron + by;
    if (next >= 0 && next < run.neurons) location.hash = address(shown.layer, next);
  } else {
    const next = run.layers[run.layers.indexOf(shown.layer) + by];
    if (next !== undefined) location.hash = address(next);
  }
}

async function begin() {
  try {
    run = await get("data/run.json");
  } catch (error) {
    main.replaceChildren(make("p", { class: "alarm" }, `${error.message}. A page opened from a file can fetch nothing: `
      + "serve the folder, with neoscope atlas --serve or any web server."));
    return;
  }
  document.querySelector("h1 a").textContent = `${run.model}: ${(run.layers.length * run.neurons).toLocaleString("en")} neurons`;
  document.getElementById("run").append(`Each value is ${run.hook}, at ${run.tokens.toLocaleString("en")} tokens of ${run.text}. `,
    ...(run.weights === "random" ? [make("span", { class: "alarm" }, "The weights are RANDOM: this says nothing about the published model.")] : []));
  document.getElementById("layers").append(...run.layers.map((layer) =>
    make("a", { href: address(layer), "data-layer": layer }, `layer ${layer}`)));
  addEventListener("hashchange", show);
  show();
}

begin();
