// Elements, numbers and curves: labels and messages enter the page as text alone.
const data = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
const DASHES = ["", "7 3", "2 2.5", "9 3 2 3"];
const byId = (id) => document.getElementById(id);

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

const make = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const draw = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

// Replaces what an element holds; the button that had the keyboard's focus has it again.
function replace(parent, ...children) {
  const active = document.activeElement;
  const key = parent.contains(active) ? active.dataset.focus : undefined;
  const places = [parent.scrollLeft, parent.scrollTop];
  parent.replaceChildren(...children);
  [parent.scrollLeft, parent.scrollTop] = places;
  if (key !== undefined) parent.querySelector(`[data-focus="${CSS.escape(key)}"]`)?.focus({ preventScroll: true });
}

// Text that may break after / _ , = and dots before a word, and is copied without a trace of it.
const soft = (text) => String(text).split(/(?<=[/_,=]|\.(?=[a-z]))/).flatMap((part, place) => (place ? [make("wbr"), part] : [part]));

const grouped = (whole) => whole.replace(/\B(?=(\d{3})+$)/g, ",");

// Four significant digits: 2.761, 12,345, 1.2e-5.
function plain(given) {
  if (given === null || given === undefined) return "-";
  const value = Number(given), size = Math.abs(value);
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "nan" : value > 0 ? "inf" : "-inf";
  if (value === 0) return "0";
  if (size >= 1e4 && size < 1e8) return (value < 0 ? "-" : "") + grouped(size.toFixed(0));
  if (size >= 1e-3 && size < 1e4) return String(Number(value.toPrecision(4)));
  return value.toExponential(3).replace(/\.?0+e/, "e").replace("e+", "e");
}

const count = (number, noun) => `${grouped(String(number))} ${noun}${number === 1 ? "" : "s"}`;
const colour = (place) => `var(--series-${(place % 8) + 1})`;
const dashes = (place) => DASHES[(Math.floor(place / 4) + Math.floor(place / 16)) % 4];

// 24-bit floats in base64, as the page was written with them.
function unpacked(text) {
  const raw = atob(text), bits = new Uint32Array(raw.length / 3);
  for (let i = 0, j = 0; i < bits.length; i += 1, j += 3) {
    bits[i] = (raw.charCodeAt(j) << 8) | (raw.charCodeAt(j + 1) << 16) | (raw.charCodeAt(j + 2) << 24);
  }
  return new Float32Array(bits.buffer);
}

const known = new Map();
function once(key, build) {
  if (!known.has(key)) known.set(key, build());
  return known.get(key);
}

function axis(place) {
  return once(`axis ${place}`, () => {
    let step = 0;
    return data.steps[place].map((difference) => (step += difference));
  });
}

// The curve of a configuration: {steps, mean, low, high, runs}, or null.
function curveOf(group, metric) {
  return once(`curve ${group} ${metric}`, () => {
    const stored = data.groups[group].curves[metric];
    if (!stored) return null;
    const [runs, place, mean, low, high] = stored;
    return { group, runs, steps: axis(place), mean: unpacked(mean), low: low && unpacked(low), high: high && unpacked(high) };
  });
}

// The curves of its runs: [{steps, values}].
function singlesOf(group, metric) {
  return once(`single ${group} ${metric}`, () =>
    data.groups[group].runs.filter((run) => run.series[metric]).map((run) => {
      const [place, values] = run.series[metric];
      return { steps: axis(place), values: unpacked(values) };
    }));
}
