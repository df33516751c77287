// Sorting and filtering, for every table.
const collator = new Intl.Collator("en", { numeric: true });

// Numbers by size (also those in text, with thousands), then words in natural order.
function comparable(value) {
  if (value === null || value === undefined || value === "" || value === "-") return null;
  if (typeof value === "number") return Number.isNaN(value) ? null : value;
  const found = Number(String(value).replace(/(\d),(?=\d{3})/g, "$1"));
  return Number.isNaN(found) || String(value).trim() === "" ? String(value) : found;
}

function compare(first, second) {
  if (typeof first !== typeof second) return typeof first === "number" ? -1 : 1;
  return typeof first === "number" ? first - second : collator.compare(first, second);
}

// A sorted copy; what has no value stands last in both directions, equals keep their order.
function sorted(items, value, down) {
  const keyed = items.map((item) => [item, comparable(value(item))]);
  return keyed.sort(([, first], [, second]) => {
    if (first === null || second === null) return (first === null) - (second === null);
    return (down ? -1 : 1) * compare(first, second);
  }).map(([item]) => item);
}

// Whether a text has all the words.
function has(text, words) {
  const low = text.toLowerCase();
  return words.toLowerCase().split(/\s+/).every((word) => low.includes(word));
}

// A column's heading: its button sorts up, then down.
function heading(column, sort, down, choose) {
  const now = sort === column.id ? (down ? "descending" : "ascending") : "none";
  const next = () => choose(column.id, sort === column.id ? !down : false);
  return make("th", { scope: "col", class: column.number ? "number" : null, "aria-sort": now },
    make("button", { type: "button", "data-focus": `sort ${column.id}`, click: next }, column.title),
    column.note ? make("span", { class: "small" }, column.note) : null);
}

const anyWhere = (group) => once(`text ${group.label} ${data.groups.indexOf(group)}`, () => [
  group.label, ...data.keys.map((key, place) => `${key}=${group.options[place]}`), ...Object.keys(group.states),
  ...group.runs.flatMap((run) => [run.message, run.source]),
].join("\n"));

// The places of the configurations that the filters let through, in the order of the table.
function chosen() {
  const all = data.groups.map((_, place) => place).filter((place) => {
    const group = data.groups[place];
    const options = [...state.options].every(([key, value]) => group.options[data.keys.indexOf(key)] === value);
    return options && has(anyWhere(group), state.text);
  });
  const column = allColumns().find((one) => one.id === state.sort);
  return column ? sorted(all, (place) => column.value(data.groups[place]), state.down) : all;
}
