// The page comes to life: controls follow the state, the state follows the address.
const RENDER = { table: renderTable, curves: renderCurves, tests: renderTests, settings: renderSettings };

// Draws the parts anew, all of them where none is named.
function refresh(...parts) {
  for (const part of parts.length ? parts : Object.keys(RENDER)) RENDER[part]();
  writeAddress();
}

function showControls() {
  byId("filter").value = state.text;
  byId("look").value = state.look;
  document.documentElement.dataset.look = state.look;
  if (data.pairs.length) [byId("test-filter").value, byId("verdict").value] = [state.testText, state.verdict];
  if (data.curved.length) {
    for (const [id, field] of [["log-x", "logX"], ["log-y", "logY"], ["bands", "bands"], ["singles", "singles"]]) byId(id).checked = state[field];
    for (const field of ["metric", "from", "to"]) byId(field).value = state[field];
  }
  renderChoices();
}

function bind() {
  const follow = (id, field, ...parts) => byId(id)?.addEventListener("input", (event) => { state[field] = event.target.value; refresh(...parts); });
  follow("filter", "text");
  follow("test-filter", "testText", "tests");
  follow("verdict", "verdict", "tests");
  byId("look").addEventListener("input", (event) => { state.look = event.target.value; showControls(); writeAddress(); });
  byId("clear").addEventListener("click", () => { state.text = ""; state.options.clear(); showControls(); refresh(); byId("filter").focus(); });
  byId("unfold").addEventListener("click", () => { state.open = new Set(state.open.size ? [] : chosen()); refresh("table"); });
  for (const anchor of document.querySelectorAll('a[href^="#"]')) {
    anchor.addEventListener("click", (event) => { // the address is the state's: an anchor would replace it
      const section = byId(anchor.getAttribute("href").slice(1));
      event.preventDefault();
      section.scrollIntoView();
      section.focus({ preventScroll: true });
    });
  }
  window.addEventListener("hashchange", () => { readAddress(); showControls(); refresh(); });
  bindCurves();
}

readAddress();
bind();
showControls();
renderShared();
refresh();
document.documentElement.dataset.ready = "yes";
