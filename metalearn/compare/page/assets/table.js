// The table of configurations: columns to choose, rows to select and to open.
function estimates(kind) {
  return data.metrics.map((metric, place) => ({
    id: `${kind}:${metric}`, title: kind === "best" ? `${metric} (best)` : metric, number: true, kind, metric,
    note: data.stamps[metric], there: data.groups.some((group) => group[kind][place] && (kind === "final" || group.curves[metric])),
    value: (group) => group[kind][place] && Number(group[kind][place][0]),
    cell: (group) => estimate(group, group[kind][place]),
    run: (run) => plain(run[kind][place]),
  })).filter((column) => column.there);
}

function estimate(group, stored) {
  if (!stored) return ["-"];
  const [, text, interval, counted] = stored;
  const lacking = counted < group.runs.length ? ` (${counted} of ${group.runs.length})` : "";
  return [text + lacking, interval ? make("span", { class: "interval" }, interval) : ""];
}

function states(group) {
  return Object.entries(group.states).map(([name, many], place) => {
    const comma = place ? ", " : "";
    return make("span", { class: `state state-${name}` }, `${comma}${many} ${name}`);
  });
}

function allColumns() {
  return once("columns", () => [
    { id: "label", title: "configuration", value: (group) => group.label, cell: (group) => soft(group.label) },
    ...data.keys.map((key, place) => ({
      id: `option:${key}`, title: key, kind: "option",
      value: (group) => group.options[place], cell: (group) => soft(group.options[place] || "-"),
    })),
    { id: "runs", title: "runs", kind: "other", value: (group) => group.runs.length, cell: states },
    ...estimates("final"), ...estimates("best"),
    { id: "parameters", title: "parameters", number: true, kind: "other", value: (group) => group.parameters.split(" ")[0], cell: (group) => [group.parameters] },
    { id: "seconds", title: "time a run", number: true, kind: "other", value: (group) => group.seconds, cell: (group) => [group.time] },
    { id: "joules", title: "energy a run", number: true, kind: "other", value: (group) => group.joules, cell: (group) => [group.energy] },
  ]);
}

const shownColumns = () => allColumns().filter((column) => column.id === "label" || state.columns.has(column.id));

function toggle(set, item) {
  if (!set.delete(item)) set.add(item);
}

function renderTable() {
  const columns = shownColumns(), rows = chosen();
  const choose = (id, down) => { state.sort = id; state.down = down; refresh(); };
  const every = rows.length > 0 && rows.every((place) => state.selected.has(place));
  const pickAll = () => { rows.forEach((place) => (every ? state.selected.delete(place) : state.selected.add(place))); refresh(); };
  const head = make("tr", {},
    make("th", { scope: "col", class: "tight pick" }, make("input", { type: "checkbox", checked: every, "aria-label": "Select all shown", "data-focus": "all", change: pickAll })),
    make("th", { scope: "col", class: "tight expand-head" }, ""),
    ...columns.map((column) => heading(column, state.sort, state.down, choose)));
  const body = rows.flatMap((place) => [row(place, columns), ...(state.open.has(place) ? [runsOf(place, columns)] : [])]);
  replace(byId("table"), make("table", {}, make("thead", {}, head), make("tbody", {}, ...body)));
  const filtered = rows.length < data.groups.length ? ` of ${data.groups.length}` : "";
  const picked = state.selected.size ? `, ${state.selected.size} selected` : "";
  byId("counted").textContent = `${rows.length}${filtered} configuration${data.groups.length === 1 ? "" : "s"}${picked}`;
  byId("clear").hidden = !state.text && !state.options.size;
  byId("unfold").textContent = state.open.size ? "Close all runs" : "Open all runs";
}

function row(place, columns) {
  const group = data.groups[place], opened = state.open.has(place), picked = state.selected.has(place);
  const pick = () => { toggle(state.selected, place); refresh(); };
  const open = () => { toggle(state.open, place); refresh("table"); };
  const cells = columns.map((column) => column.id === "label"
    ? make("th", { scope: "row" }, ...column.cell(group))
    : make("td", { class: column.number ? "number" : column.kind === "option" ? "value" : null }, ...column.cell(group)));
  return make("tr", { class: picked ? "selected" : null, "data-group": place },
    make("td", { class: "tight pick" }, make("input", { type: "checkbox", checked: picked, "aria-label": `Select ${group.label}`, "data-focus": `pick ${place}`, change: pick })),
    make("td", { class: "tight" }, make("button", { type: "button", class: "expand", "aria-expanded": String(opened), "aria-label": `Runs of ${group.label}`, "data-focus": `open ${place}`, click: open })),
    ...cells);
}

function runsOf(place, columns) {
  const measures = columns.filter((column) => column.run);
  const heads = ["seed", "state", "step", ...measures.map((column) => column.title), "time", "energy", "run", "message"];
  const numbers = new Set(["step", "time", "energy", ...measures.map((column) => column.title)]);
  const body = data.groups[place].runs.map((run) => make("tr", {},
    make("td", {}, run.seed === null ? "-" : run.seed),
    make("td", { class: `state-${run.state}` }, run.state),
    make("td", { class: "number" }, grouped(String(run.step))),
    ...measures.map((column) => make("td", { class: "number" }, column.run(run))),
    make("td", { class: "number" }, run.time), make("td", { class: "number" }, run.energy),
    make("td", { class: "place" }, run.link ? make("a", { href: run.link, rel: "noreferrer" }, ...soft(run.place)) : make("span", {}, ...soft(run.place)), make("span", { class: "small" }, run.source)),
    make("td", { class: "message" }, run.message || "-")));
  const header = make("tr", {}, ...heads.map((text) => make("th", { scope: "col", class: numbers.has(text) ? "number" : null }, text)));
  return make("tr", {}, make("td", { class: "runs", colspan: columns.length + 2 }, make("table", {}, make("thead", {}, header), make("tbody", {}, ...body))));
}

function checkbox(text, checked, change) {
  return make("label", {}, make("input", { type: "checkbox", checked, change }), ` ${text}`);
}

function renderChoices() {
  const titles = { option: "Options", final: "Last values", best: "Best values", other: "Runs" };
  const choices = Object.entries(titles).flatMap(([kind, title]) => {
    const columns = allColumns().filter((column) => column.kind === kind);
    const boxes = columns.map((column) => checkbox(column.title, state.columns.has(column.id), () => { toggle(state.columns, column.id); refresh("table"); }));
    return boxes.length ? [make("b", {}, title), ...boxes] : [];
  });
  replace(byId("columns").querySelector(".choices"), ...choices);
  const menus = data.keys.map((key, place) => optionMenu(key, place));
  replace(byId("option-filters").querySelector(".choices"), ...menus);
  byId("option-filters").hidden = !data.keys.length;
}

function optionMenu(key, place) {
  const values = sorted([...new Set(data.groups.map((group) => group.options[place]))], (value) => value, false);
  const change = (event) => {
    if (event.target.selectedIndex === 0) state.options.delete(key);
    else state.options.set(key, values[event.target.selectedIndex - 1]);
    refresh();
  };
  const picked = state.options.has(key) ? values.indexOf(state.options.get(key)) : -1;
  const options = [make("option", {}, "any"), ...values.map((value, number) => make("option", { selected: number === picked }, value || "-"))];
  return make("label", {}, key, make("select", { change, "data-key": key }, ...options));
}
