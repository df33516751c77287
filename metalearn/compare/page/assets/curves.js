// The chart's controls, its legend, and what the curves say at a step.
let drawing = null; // the chart on the page
let stops = []; // the steps at which a curve shown has a value

const shownCurves = () => chosen().filter((place) => !state.hidden.has(place)).map((place) => curveOf(place, state.metric)).filter(Boolean);
const given = (text) => (text === "" || Number.isNaN(Number(text)) ? null : Number(text));

function renderCurves() {
  if (!data.curved.length) return;
  const curves = shownCurves(), host = byId("chart"), width = Math.max(280, Math.floor(host.clientWidth) || 800);
  const singles = state.singles ? curves.flatMap((curve) => singlesOf(curve.group, state.metric).map((one) => ({ ...one, group: curve.group }))) : [];
  const shown = new Set(curves.map((curve) => curve.group));
  drawing = chart({
    curves, singles, bands: state.bands, logX: state.logX, logY: state.logY, from: given(state.from), to: given(state.to),
    width, height: width < 520 ? 300 : 440, title: state.metric, picked: new Set([...state.selected].filter((place) => shown.has(place))),
    label: `${state.metric} against steps, ${count(curves.length, "curve")}; the legend and the slider give the values`,
  });
  host.replaceChildren(drawing.svg);
  drawing.svg.addEventListener("pointermove", follow);
  stops = [...new Set(curves.flatMap((curve) => curve.steps))].sort((a, b) => a - b);
  const slider = byId("step");
  slider.max = Math.max(0, stops.length - 1);
  slider.disabled = stops.length < 2;
  byId("drawn").textContent = remarks(curves);
  readOut();
}

function remarks(curves) {
  const parts = [];
  const many = data.groups.filter((group) => group.curves[state.metric]).length;
  if (curves.length < many) parts.push(`${curves.length} of ${many} curves are shown.`);
  if (curves.some((curve) => curve.low) && state.bands) parts.push("Lines are means over seeds, bands 95 % t-intervals.");
  if (curves.some((curve) => !curve.low)) parts.push("A line without a band is one run.");
  if (state.logX && curves.some((curve) => curve.steps[0] <= 0)) parts.push("Steps of 0 have no place on a logarithmic axis.");
  if (state.logY && curves.some((curve) => curve.mean.some((value) => value <= 0))) parts.push("Values of 0 and below have no place on a logarithmic axis.");
  if (data.thinned) parts.push(`Long curves are thinned to ${data.thinned} points.`);
  if (data.stamps[state.metric]) parts.push(`${state.metric}: ${data.stamps[state.metric]}.`);
  return parts.join(" ");
}

// The place of the step nearest to a value.
function nearest(steps, value) {
  let low = 0, high = steps.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (steps[middle] <= value) low = middle; else high = middle;
  }
  return value - steps[low] <= steps[high] - value ? low : high;
}

function follow(event) {
  if (!drawing.x) return;
  const box = drawing.svg.getBoundingClientRect();
  const value = drawing.x.back(((event.clientX - box.left) / box.width) * drawing.svg.viewBox.baseVal.width);
  if (!(value >= drawing.x.low && value <= drawing.x.high)) return;
  readAt(stops[nearest(stops, value)]);
}

let waiting = 0;
function readAt(step) {
  state.step = String(step);
  readOut();
  clearTimeout(waiting);
  waiting = setTimeout(writeAddress, 200);
}

// The values at the step, in the legend and in words; a curve that has ended or not begun has none.
// Until a step is asked for, the last value of each.
function readOut() {
  const curves = new Map(shownCurves().map((curve) => [curve.group, curve]));
  const asked = given(state.step), place = stops.length ? nearest(stops, asked ?? stops[stops.length - 1]) : 0;
  const step = stops[place];
  byId("step").value = place;
  byId("step").setAttribute("aria-valuetext", asked === null ? "the end of each curve" : `step ${step}`);
  const values = new Map();
  for (const [group, curve] of curves) {
    const last = curve.steps.length - 1;
    if (asked !== null && (step < curve.steps[0] || step > curve.steps[last])) continue;
    values.set(group, [curve, asked === null ? last : nearest(curve.steps, step)]);
  }
  if (drawing.cursor && stops.length) {
    const across = drawing.x.at(step);
    const inside = asked !== null && Number.isFinite(across) && step >= drawing.x.low && step <= drawing.x.high;
    fill(drawing.cursor, { x1: across || 0, x2: across || 0, visibility: inside ? "visible" : "hidden" }, []);
  }
  renderLegend(values);
  const sign = data.goals[state.metric] === "max" ? -1 : 1;
  const ordered = sorted([...values], ([, [curve, at]]) => sign * curve.mean[at], false);
  const [group, [curve, at]] = ordered[0] || [null, [null, 0]];
  byId("read").textContent = curve
    ? `${asked === null ? "Last values" : `Step ${grouped(String(step))}`}: ${count(values.size, "curve")}; best: ${data.groups[group].label}, ${plain(curve.mean[at])}`
    : "No curve has a value here.";
}

function renderLegend(values) {
  const places = chosen().filter((place) => data.groups[place].curves[state.metric]);
  replace(byId("legend"), ...places.map((place) => {
    const shown = !state.hidden.has(place), found = values.get(place);
    const press = (event) => {
      if (event.shiftKey) state.hidden = new Set(data.groups.map((_, other) => other).filter((other) => other !== place));
      else toggle(state.hidden, place);
      refresh("curves");
    };
    const swatch = draw("svg", { viewBox: "0 0 36 10", "aria-hidden": "true" },
      draw("path", { d: "M1,5H35", style: `stroke:${colour(place)};stroke-width:2.4;fill:none`, "stroke-dasharray": dashes(place) }));
    const [curve, at] = found || [];
    const interval = curve?.low && state.bands && Number.isFinite(curve.low[at]) ? `${plain(curve.low[at])} to ${plain(curve.high[at])}` : "";
    return make("li", {}, make("button", {
      type: "button", "aria-pressed": String(shown), "data-focus": `curve ${place}`, "data-group": place, click: press,
      title: "Shows or hides the curve; with Shift it alone is shown",
    }, swatch, make("span", { class: "name" }, ...soft(data.groups[place].label)), make("span", { class: "value" }, found ? plain(curve.mean[at]) : ""),
    interval ? make("span", { class: "interval" }, interval) : null));
  }));
}

function bindCurves() {
  if (!data.curved.length) return;
  byId("metric").append(...data.curved.map((metric) => make("option", { value: metric }, metric)));
  const change = (id, field, read) => byId(id).addEventListener("input", (event) => { state[field] = read(event.target); refresh("curves"); });
  change("metric", "metric", (element) => element.value);
  for (const [id, field] of [["log-x", "logX"], ["log-y", "logY"], ["bands", "bands"], ["singles", "singles"]]) change(id, field, (box) => box.checked);
  for (const field of ["from", "to"]) change(field, field, (element) => element.value);
  byId("step").addEventListener("input", (event) => readAt(stops[Number(event.target.value)]));
  byId("whole").addEventListener("click", () => { state.from = state.to = ""; showControls(); refresh("curves"); });
  const every = data.groups.map((_, place) => place);
  const hide = (places) => { state.hidden = new Set(places); refresh("curves"); };
  byId("show-all").addEventListener("click", () => hide([]));
  byId("hide-all").addEventListener("click", () => hide(every));
  byId("show-selected").addEventListener("click", () => hide(every.filter((place) => !state.selected.has(place))));
  new ResizeObserver(() => { if (drawing && Math.abs(drawing.svg.viewBox.baseVal.width - byId("chart").clientWidth) > 1) renderCurves(); }).observe(byId("chart"));
}
