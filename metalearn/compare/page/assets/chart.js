// One chart as SVG: bands, single runs, means, axes.
function path(steps, values, x, y) {
  let text = "", down = false;
  for (let i = 0; i < steps.length; i += 1) {
    const across = x.at(steps[i]), up = y.at(values[i]);
    const there = Number.isFinite(across) && Number.isFinite(up);
    if (there) text += `${down ? "L" : "M"}${across.toFixed(1)},${up.toFixed(1)}`;
    down = there;
  }
  return text;
}

// A band in pieces, wherever both ends are finite; what a logarithm cannot show ends at the bottom.
function area(curve, x, y) {
  const top = [], bottom = [], pieces = [];
  const close = () => {
    if (top.length > 1) pieces.push(`M${top.join("L")}L${bottom.reverse().join("L")}Z`);
    top.length = bottom.length = 0;
  };
  for (let i = 0; i < curve.steps.length; i += 1) {
    const across = x.at(curve.steps[i]), high = y.at(curve.high[i]);
    if (!Number.isFinite(across) || !Number.isFinite(high) || Number.isNaN(curve.low[i])) { close(); continue; }
    top.push(`${across.toFixed(1)},${high.toFixed(1)}`);
    bottom.push(`${across.toFixed(1)},${y.at(Math.max(curve.low[i], y.low)).toFixed(1)}`);
  }
  close();
  return pieces.join("");
}

function frame(model) {
  const { curves, singles, logX, logY, width, height } = model;
  const lines = curves.map((curve) => [curve.steps, curve.mean]);
  const steps = extent(curves.map((curve) => [curve.steps, curve.steps]), logX);
  if (!steps) return null;
  const window = [Math.max(model.from ?? steps[0], logX ? steps[0] : -Infinity), model.to ?? steps[1]];
  if (!(window[0] < window[1])) [window[0], window[1]] = steps[0] < steps[1] ? steps : [steps[0] - 1, steps[0] + 1];
  const means = extent(lines, logY, window);
  if (!means) return null;
  const ends = model.bands ? curves.filter((curve) => curve.low).flatMap((curve) => [[curve.steps, curve.low], [curve.steps, curve.high]]) : [];
  const others = extent([...ends, ...singles.map((one) => [one.steps, one.values])], logY, window);
  const [low, high] = widened(means, others, logY);
  const upright = scale(low, high, height - 42, 10, logY, 7);
  const left = 26 + 7.2 * Math.max(...upright.ticks.map((tick) => plain(tick).length));
  return { x: scale(...window, left, width - 14, logX, Math.max(3, Math.floor((width - left) / 80))), y: upright, left };
}

function axes({ x, y, left }, { width, height, title }) {
  const floor = height - 42, right = width - 14;
  const marks = y.ticks.map((tick) => draw("g", {},
    draw("line", { class: "grid", x1: left, x2: right, y1: y.at(tick), y2: y.at(tick) }),
    draw("text", { x: left - 6, y: y.at(tick) + 4, "text-anchor": "end" }, plain(tick))));
  const below = x.ticks.map((tick) => draw("g", {},
    draw("line", { class: "axis", x1: x.at(tick), x2: x.at(tick), y1: floor, y2: floor + 4 }),
    draw("text", { x: x.at(tick), y: floor + 18, "text-anchor": "middle" }, plain(tick))));
  return [...marks, ...below,
    draw("path", { class: "axis", d: `M${left},10V${floor}H${right}` }),
    draw("text", { x: (left + right) / 2, y: height - 6, "text-anchor": "middle" }, "step"),
    draw("text", { transform: `translate(13 ${(floor + 10) / 2}) rotate(-90)`, "text-anchor": "middle" }, title)];
}

// The chart and its scales. model: {curves, singles, bands, logX, logY, from, to, width, height, title, label, picked}
function chart(model) {
  const { width, height } = model, found = frame(model);
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": model.label });
  if (!found) {
    const why = model.curves.length ? "no value that these axes can show" : "no curve is shown: choose some in the legend";
    svg.append(draw("text", { class: "empty", x: width / 2, y: height / 2, "text-anchor": "middle" }, why));
    return { svg, x: null };
  }
  const { x, y, left } = found;
  const faint = (group) => (model.picked.size && !model.picked.has(group) ? " faint" : "");
  const inner = draw("g", { "clip-path": "url(#inside)" });
  if (model.bands) {
    for (const curve of model.curves.filter((one) => one.low)) {
      inner.append(draw("path", { class: `band${faint(curve.group)}`, style: `fill:${colour(curve.group)}`, d: area(curve, x, y) }));
    }
  }
  for (const one of model.singles) {
    inner.append(draw("path", { class: `single${faint(one.group)}`, style: `stroke:${colour(one.group)}`, d: path(one.steps, one.values, x, y) }));
  }
  for (const curve of model.curves) {
    const strong = model.picked.has(curve.group) ? " strong" : "";
    inner.append(draw("path", {
      class: `mean${strong}${faint(curve.group)}`, "data-group": curve.group, "stroke-dasharray": dashes(curve.group),
      style: `stroke:${colour(curve.group)}`, d: path(curve.steps, curve.mean, x, y),
    }));
  }
  const clip = draw("clipPath", { id: "inside" }, draw("rect", { x: left, y: 8, width: width - 14 - left, height: height - 48 }));
  const cursor = draw("line", { class: "cursor", y1: 10, y2: height - 42, visibility: "hidden" });
  svg.append(draw("defs", {}, clip), ...axes(found, model), inner, cursor);
  return { svg, x, cursor, left };
}
