// Puts the page together and listens to its reader.

function render() {
  const absent = state.image != null && !rows.some((row) => row.id === state.image);
  const found = absent ? [] : matching();
  const pages = Math.max(1, Math.ceil(found.length / PAGE_SIZE));
  if (state.image != null && !absent) state.page = Math.floor(found.findIndex((row) => row.id === state.image) / PAGE_SIZE) + 1;
  state.page = Math.min(state.page, pages);
  const nothing = !rows.length ? (isCompared ? "No image of these datasets has a dialogue in either and is in both." : "There is no dialogue in this dataset.")
    : absent ? `“${state.image}” is not among the ${plural(rows.length, "image")} shown here.` : "No dialogue matches.";
  const first = (state.page - 1) * PAGE_SIZE;
  byId("cards").replaceChildren(...(found.length
    ? found.slice(first, first + PAGE_SIZE).map((row, place) => card(row, () => openZoom(found, first + place)))
    : [element("p", { class: "nothing" }, text(nothing))]));
  byId("found").textContent = found.length === rows.length ? plural(rows.length, "image") : `${number(found.length)} of ${plural(rows.length, "image")}`;
  byId("page").textContent = `${number(state.page)} / ${number(pages)}`;
  byId("previous").disabled = state.page === 1;
  byId("next").disabled = state.page === pages;
  byId("clear").disabled = !(state.q || state.show || state.gate || state.sort || state.image);
  for (const name of ["show", "gate"]) byId(name).value = state[name];
  byId("sort").value = orders.has(state.sort) ? state.sort : state.sort.startsWith("shuffle") ? "shuffle" : "";
  if (byId("search").value !== state.q) byId("search").value = state.q;
}

function goTo(page) {
  change({ page });
  byId("gallery").scrollIntoView();
}

function showTarget() {
  const target = document.querySelector(".card.target");
  target?.scrollIntoView({ block: "center" });
  target?.focus({ preventScroll: true });
}

let shuffles = 0;
const shuffle = () => change({ sort: `shuffle ${(shuffles += 1)}` });

function controls() {
  const fillSelect = (name, choices) => byId(name).append(...choices.map(([value, label]) => element("option", { value }, label)));
  fillSelect("show", [...filters].map(([value, { label }]) => [value, label]));
  const counts = gateNames.map((name) => [name, rows.filter((row) => row.markedBy.has(name)).length]).filter(([, count]) => count);
  fillSelect("gate", [["", "any gate"], ...counts.map(([name, count]) => [name, `${spaced(name)} (${number(count)})`])]);
  fillSelect("sort", [...[...orders].map(([value, { label }]) => [value, label]), ["shuffle", "shuffled"]]);
  byId("show").classList.toggle("hidden", filters.size === 1);
  byId("gate").classList.toggle("hidden", !counts.length);
  for (const name of ["show", "gate"]) byId(name).addEventListener("change", (event) => change({ [name]: event.target.value }));
  byId("sort").addEventListener("change", (event) => (event.target.value === "shuffle" ? shuffle() : change({ sort: event.target.value })));
  byId("shuffle").addEventListener("click", shuffle);
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("search").addEventListener("input", (event) => change({ q: event.target.value }));
  byId("clear").addEventListener("click", () => change({ q: "", show: "", gate: "", sort: "" }));
  byId("previous").addEventListener("click", () => goTo(state.page - 1));
  byId("next").addEventListener("click", () => goTo(state.page + 1));
  document.addEventListener("keydown", pressed);
  addEventListener("hashchange", () => {
    // The table of contents also uses fragments, which do not change the gallery.
    if (location.hash && !location.hash.includes("=")) return;
    readState();
    render();
    showTarget();
  });
}

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (byId("zoom").open) {
    if (by) { event.preventDefault(); moveZoom(by); }
    return; // the browser closes it by Esc
  }
  if (event.target === byId("search") && event.key === "Escape") {
    event.preventDefault();
    change({ q: "" });
    return byId("search").blur();
  }
  if (event.target.closest("input, select, textarea")) return;
  if (event.key === "/") { event.preventDefault(); byId("search").focus(); }
  else if (by && !byId(by < 0 ? "previous" : "next").disabled) goTo(state.page + by);
}

byId("verdict").textContent = data.line.replaceAll(" %", "\u00a0%");
summary();
findings();
numbers();
comparisons();
byId("contents").append(element("a", { href: "#gallery" }, "Samples"));
texts();
gates();
losses();
madeWith();
byId("sampled").textContent = rows.length < data.of ? `${number(rows.length)} of ${number(data.of)} images, drawn at random (seed ${gallery.seed})` : rows.length ? `all ${plural(rows.length, "image")}${isCompared ? " of both" : ""}` : "";
controls();
controlZoom();
readState();
render();
showTarget();
