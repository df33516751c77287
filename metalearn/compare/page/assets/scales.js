// Axes: from values to pixels and back, and where their numbers stand.
function linearTicks(low, high, most) {
  const rough = (high - low) / most, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((times) => times * power).find((size) => size >= rough);
  const first = Math.ceil(low / step - 1e-9), last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, place) => Number(((first + place) * step).toPrecision(12)));
}

// Decades, thinned where there are many; 2 and 5 between where there are few.
function logTicks(low, high, most) {
  const first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high));
  const every = Math.max(1, Math.ceil((last - first) / most));
  const within = last - first <= 2 ? [1, 2, 5] : [1];
  const ticks = [];
  for (let power = first; power <= last; power += every) ticks.push(...within.map((times) => times * 10 ** power));
  const inside = ticks.filter((tick) => tick >= low * 0.999999 && tick <= high * 1.000001);
  return inside.length > 1 ? inside : linearTicks(low, high, most);
}

// {at, back, ticks}: value to pixel, pixel to value. In a logarithmic scale what is not positive has no pixel.
function scale(low, high, start, end, log, most) {
  const to = log ? Math.log10 : (value) => value;
  const from = log ? (value) => 10 ** value : (value) => value;
  const first = to(low), span = to(high) - first;
  const limit = 4 * Math.abs(end - start);
  return {
    low, high,
    at: (value) => {
      const place = log && value <= 0 ? NaN : ((to(value) - first) / span) * (end - start);
      return start + Math.max(-limit, Math.min(limit, place));
    },
    back: (pixel) => from(first + ((pixel - start) / (end - start)) * span),
    ticks: (log ? logTicks : linearTicks)(low, high, most),
  };
}

// The least and the greatest finite value at places with a step in [from, to]; positive ones alone for a logarithm.
function extent(curves, log, [from, to] = [-Infinity, Infinity]) {
  let low = Infinity, high = -Infinity;
  for (const [steps, values] of curves) {
    for (let i = 0; i < values.length; i += 1) {
      const value = values[i];
      if (steps[i] < from || steps[i] > to || !Number.isFinite(value) || (log && value <= 0)) continue;
      if (value < low) low = value;
      if (value > high) high = value;
    }
  }
  return low <= high ? [low, high] : null;
}

// The means' range; intervals widen it by half its size at most, so that one wide interval hides no mean.
function widened(means, others, log) {
  const to = log ? Math.log10 : (value) => value, from = log ? (value) => 10 ** value : (value) => value;
  let [low, high] = means.map(to);
  const size = high - low || Math.abs(high) * 0.1 || 1;
  if (others) {
    low = Math.max(Math.min(low, to(others[0])), low - size / 2);
    high = Math.min(Math.max(high, to(others[1])), high + size / 2);
  }
  const pad = (high - low) * 0.04 || size / 2;
  return [from(low - pad), from(high + pad)];
}
