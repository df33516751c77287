// Paired tests, and the settings in which configurations differ.
const FIRST = 200; // tests shown until a filter asks for others

const TESTS = [
  { id: "metric", title: "metric", value: (pair) => pair.metric, cell: (pair) => [pair.kind === "best" ? `${pair.metric} (best)` : pair.metric, stamped(pair)] },
  { id: "first", title: "baseline", kind: "value", value: (pair) => pair.first, cell: (pair) => soft(pair.first) },
  { id: "second", title: "configuration", kind: "value", value: (pair) => pair.second, cell: (pair) => soft(pair.second) },
  { id: "verdict", title: "baseline is", value: (pair) => pair.verdict, cell: (pair) => [make("span", { class: `badge ${pair.verdict}` }, pair.verdict === "none" ? "no claim" : pair.verdict)] },
  { id: "difference", title: "difference", number: true, kind: "number", value: (pair) => pair.difference, cell: (pair) => [pair.text || "-"] },
  { id: "probability", title: "p", number: true, kind: "number", value: (pair) => pair.probability, cell: (pair) => [pair.probability === null ? "-" : plain(pair.probability)] },
  { id: "basis", title: "basis", value: (pair) => pair.basis, cell: (pair) => [pair.basis || pair.statement] },
];

const stamped = (pair) => (data.stamps[pair.metric] ? make("span", { class: "small" }, data.stamps[pair.metric]) : "");

// Where all tests have the same baseline it is told once.
function testColumns() {
  const alone = new Set(data.pairs.map((pair) => pair.first)).size === 1;
  return TESTS.filter((column) => column.id !== "first" || !alone);
}

function renderTests() {
  if (!data.pairs.length) return;
  const found = data.pairs.filter((pair) => (!state.verdict || pair.verdict === state.verdict)
    && has(`${pair.metric} ${pair.kind}\n${pair.first}\n${pair.second}\n${pair.statement}`, state.testText));
  const column = TESTS.find((one) => one.id === state.testSort);
  const rows = (column ? sorted(found, column.value, state.testDown) : found).slice(0, FIRST);
  const choose = (id, down) => { state.testSort = id; state.testDown = down; refresh("tests"); };
  const columns = testColumns();
  const head = make("tr", {}, ...columns.map((one) => heading(one, state.testSort, state.testDown, choose)));
  const body = rows.map((pair) => make("tr", {}, ...columns.map((one) => make("td", { class: one.kind }, ...one.cell(pair)))));
  replace(byId("test-table"), make("table", {}, make("thead", {}, head), make("tbody", {}, ...body)));
  const cut = rows.length < found.length ? `, the first ${rows.length} are shown` : "";
  byId("tests-counted").textContent = `${found.length} of ${count(data.pairs.length, "test")}${cut}${columns.length < TESTS.length ? `; the baseline is ${data.pairs[0].first}` : ""}`;
}

// The settings of the selected configurations, or of the first ones: a row for each that is not the same in all of them.
function renderSettings() {
  const rows = chosen(), picked = rows.filter((place) => state.selected.has(place));
  const columns = (picked.length ? picked : rows.slice(0, 4)).slice(0, 12);
  const differing = data.keys.map((key, place) => [key, columns.map((group) => data.groups[group].options[place] || "-")])
    .filter(([, values]) => new Set(values).size > 1);
  const whose = picked.length ? `the ${count(columns.length, "selected configuration")}` : columns.length < data.groups.length ? `the first ${columns.length} in the table; select rows there to choose others` : "all configurations";
  byId("settings-note").textContent = differing.length ? `${count(differing.length, "setting")} differ${differing.length === 1 ? "s" : ""} between ${whose}.` : data.groups.length < 2 ? "There is one configuration." : `No setting differs between ${whose}.`;
  if (!differing.length) return byId("settings").replaceChildren();
  const head = make("tr", {}, make("th", { scope: "col" }, "setting"), ...columns.map((group) => make("th", { scope: "col", class: "named" }, ...soft(data.groups[group].label))));
  const body = differing.map(([key, values]) => make("tr", {}, make("th", { scope: "row" }, ...soft(key)),
    ...values.map((value) => make("td", { class: value === values[0] ? "value" : "value differs" }, ...soft(value)))));
  return replace(byId("settings"), make("table", {}, make("thead", {}, head), make("tbody", {}, ...body)));
}

function renderShared() {
  const body = data.shared.map(([key, value]) => make("tr", {}, make("th", { scope: "row" }, key), make("td", { class: "value" }, value)));
  byId("shared").hidden = !body.length;
  replace(byId("shared").querySelector(".scroll"), make("table", {}, make("tbody", {}, ...body)));
  const origin = data.origin.map(([what, text]) => make("tr", {}, make("th", { scope: "row" }, what), make("td", {}, text)));
  replace(byId("origin-table"), make("table", {}, make("tbody", {}, ...origin)));
}
