// What is sorted, filtered, shown and hidden; the address after # holds all that is not as it was at first.
const MANY = 12; // configurations whose curves are all shown at first

function firstHidden() {
  return new Set(data.groups.map((_, place) => place).filter((place) => data.groups.length > MANY && place >= 10));
}

// The results and what they cost; options where the label does not tell them.
function firstColumns() {
  const few = data.metrics.slice(0, 6);
  const bested = data.metrics.filter((metric) => !metric.startsWith("test/") && data.curved.includes(metric));
  const columns = ["runs", ...few.map((metric) => `final:${metric}`), ...bested.slice(0, 2).map((metric) => `best:${metric}`)];
  const told = data.groups.every((group) => group.options.every((value) => group.label.includes(value)));
  if (!told && data.keys.length <= 4) columns.push(...data.keys.map((key) => `option:${key}`));
  if (data.groups.some((group) => group.parameters && group.parameters !== "-")) columns.push("parameters");
  columns.push("seconds");
  if (data.groups.some((group) => group.joules !== null)) columns.push("joules");
  return new Set(columns);
}

function fresh() {
  return {
    sort: "", down: false, text: "", options: new Map(), columns: firstColumns(), selected: new Set(), open: new Set(),
    hidden: firstHidden(), metric: firstMetric(), logX: false, logY: false, from: "", to: "", bands: true,
    singles: false, step: "", testText: "", verdict: "", testSort: "", testDown: false, look: "",
  };
}

// The first metric of which half the configurations have a curve, else the one of which most have.
function firstMetric() {
  return once("first metric", () => {
    const having = new Map(data.curved.map((metric) => [metric, data.groups.filter((group) => group.curves[metric]).length]));
    const common = data.curved.find((metric) => 2 * having.get(metric) >= data.groups.length);
    return common || sorted(data.curved, (metric) => having.get(metric), true)[0] || "";
  });
}

let state = null; // page.js reads it from the address

// {0, 1, 2, 5} as 0-2.5
function ranges(places) {
  const parts = [], ordered = [...places].sort((a, b) => a - b);
  for (let i = 0; i < ordered.length; i += 1) {
    const first = ordered[i];
    while (ordered[i + 1] === ordered[i] + 1) i += 1;
    parts.push(ordered[i] === first ? `${first}` : `${first}-${ordered[i]}`);
  }
  return parts.join(".");
}

function places(text) {
  const found = new Set();
  for (const part of text.split(".").filter(Boolean)) {
    const [first, last = first] = part.split("-").map(Number);
    for (let place = Math.max(0, first); place <= Math.min(last, data.groups.length - 1); place += 1) found.add(place);
  }
  return found;
}

const SETS = { hidden: "hide", selected: "select", open: "open" };
const WORDS = { sort: "sort", text: "filter", metric: "metric", from: "from", to: "to", step: "step", testText: "tests", verdict: "verdict", testSort: "tests-sort", look: "look" };
const FLAGS = { down: "down", logX: "log-x", logY: "log-y", bands: "bands", singles: "singles", testDown: "tests-down" };

function written() {
  const first = fresh(), params = new URLSearchParams();
  for (const [field, name] of Object.entries(WORDS)) if (state[field] !== first[field]) params.set(name, state[field]);
  for (const [field, name] of Object.entries(FLAGS)) if (state[field] !== first[field]) params.set(name, state[field] ? "1" : "0");
  for (const [field, name] of Object.entries(SETS)) {
    if (ranges(state[field]) !== ranges(first[field])) params.set(name, ranges(state[field]));
  }
  for (const [key, value] of state.options) params.set(`option:${key}`, value);
  for (const id of state.columns) if (!first.columns.has(id)) params.append("with", id);
  for (const id of first.columns) if (!state.columns.has(id)) params.append("without", id);
  return params.toString();
}

function readAddress() {
  const params = new URLSearchParams(location.hash.slice(1));
  state = fresh();
  for (const [field, name] of Object.entries(WORDS)) if (params.has(name)) state[field] = params.get(name);
  for (const [field, name] of Object.entries(FLAGS)) if (params.has(name)) state[field] = params.get(name) === "1";
  for (const [field, name] of Object.entries(SETS)) if (params.has(name)) state[field] = places(params.get(name));
  for (const key of data.keys) if (params.has(`option:${key}`)) state.options.set(key, params.get(`option:${key}`));
  for (const id of params.getAll("with")) state.columns.add(id);
  for (const id of params.getAll("without")) state.columns.delete(id);
  if (!data.curved.includes(state.metric)) state.metric = firstMetric();
}

function writeAddress() {
  const text = written();
  if (text === location.hash.slice(1)) return;
  try {
    history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search);
  } catch {
    location.hash = text; // a browser that lets no file change its address
  }
}
