"use strict";

// All content comes from one JSON block and becomes text nodes: no data is ever parsed as HTML.
const data = JSON.parse(document.getElementById("data").textContent);
const { stats, gallery } = data;
const PAGE_SIZE = 24;
const TOP_SHOWN = 12;
const TINY_PIXELS = 128;

// Elements

const byId = (id) => document.getElementById(id);

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value != null) node.setAttribute(name, value);
  node.append(...children.flat(Infinity).filter((child) => child != null).map((child) => (child.nodeType ? child : String(child))));
  return node;
}

/** An element with text of the dataset, which keeps its own writing direction and line breaks. */
const text = (value, tag = "span") => element(tag, { class: "text", dir: "auto" }, value);

const number = new Intl.NumberFormat("en", { maximumFractionDigits: 2 }).format;
const percent = (part, whole) => (whole ? `${((100 * part) / whole).toFixed(1)} %` : "");
const about = (value, exact) => `${exact ? "" : "≈ "}${number(value)}`;
const plural = (count, noun) => `${number(count)} ${noun}${count === 1 ? "" : "s"}`;
const sum = (numbers) => numbers.reduce((total, value) => total + value, 0);

function bytes(count) {
  const unit = [[1e12, "TB"], [1e9, "GB"], [1e6, "MB"], [1e3, "kB"]].find(([size]) => count >= size);
  return unit ? `${(count / unit[0]).toPrecision(3)} ${unit[1]}` : `${count} bytes`;
}

/** A link for a web address, plain text for anything else. */
function link(address) {
  try {
    if (["http:", "https:"].includes(new URL(address).protocol))
      return element("a", { href: address, rel: "noopener noreferrer", target: "_blank", dir: "auto" }, address);
  } catch { /* not a URL */ }
  return text(address);
}

const facts = (entries) =>
  element("dl", { class: "facts" },
    entries.filter(([, value]) => value != null && value !== "").map(([name, value]) => [element("dt", {}, name), element("dd", {}, text(value))]));

// Charts

/** A bar chart of counts by name. It sorts them itself, because JavaScript objects put numeric names first. */
function bars(all, { whole = sum(Object.values(all)), least = false } = {}) {
  const counts = Object.entries(all).sort(([, a], [, b]) => b - a).slice(0, TOP_SHOWN);
  const longest = Math.max(1, ...counts.map(([, count]) => count));
  return element("dl", { class: "bars" },
    counts.map(([name, count]) => [
      element("dt", { title: name }, text(name || "(nothing)")),
      bar(count / longest),
      element("dd", {}, `${least ? "≥ " : ""}${number(count)} `, element("small", {}, percent(count, whole))),
    ]));
}

function bar(share) {
  const filled = element("span");
  filled.style.width = `${100 * share}%`;
  if (!share) filled.style.minWidth = 0;
  return element("div", { class: "bar" }, filled);
}

function histogram({ bins, count, mean, median, p95 }, noun) {
  const highest = Math.max(...bins.map((bin) => bin.count));
  const columns = bins.map(({ low, high, count: inBin }) => {
    const column = element("i");
    column.style.height = `${(100 * inBin) / highest}%`;
    if (inBin) column.style.minHeight = "1px";
    const range = high == null ? `${number(low)} and more` : high - low === 1 ? number(low) : `${number(low)} to ${number(high)}`;
    return element("span", { title: `${range} ${noun}: ${number(inBin)}, ${percent(inBin, count)}` }, column);
  });
  const last = bins.at(-1);
  const label = `${noun}: mean ${number(mean)}, median ${number(median)}, 95th percentile ${number(p95)}`;
  const figure = element("figure", { class: "histogram", role: "img", "aria-label": label },
    element("div", {}, columns),
    element("figcaption", {}, element("span", {}, number(bins[0].low)),
      bins.length > 1 ? element("span", {}, last.high == null ? `${number(last.low)} +` : number(last.high - last.low === 1 ? last.low : last.high)) : null));
  figure.style.maxWidth = `${3 * bins.length}rem`;
  return figure;
}

const chart = (title, note, content) => element("div", {}, element("h3", {}, title, " ", element("small", {}, note)), content);

function spreadChart(title, spread) {
  if (!spread.count) return null;
  return chart(title, `mean ${number(spread.mean)}, median ${number(spread.median)}, 95 % up to ${number(spread.p95)}`, histogram(spread, "words"));
}

// Sections

function fill(id, title, ...content) {
  const shown = content.filter((part) => part != null);
  byId(id).append(...shown);
  if (!shown.length) byId(id).classList.add("hidden");
  else if (title) byId("contents").append(element("a", { href: `#${id}` }, title));
}

function overview() {
  const { images, accepted, rejected, unreadable } = stats;
  const tiles = [
    ["Images read", number(images), `${bytes(stats.bytes)} of Parquet`],
    ["With a dialogue", number(accepted), `${percent(accepted, images)} of the images`],
    ["Question-answer pairs", number(stats.pairs), accepted ? `${number(stats.pairs / accepted)} per image` : ""],
    stats.pairs_gated ? ["Kept by all gates", number(stats.pairs_kept), `${percent(stats.pairs_kept, stats.pairs_gated)} of the pairs`] : null,
    ["Different questions", about(stats.questions.distinct, stats.questions.distinct_is_exact), percent(stats.questions.distinct, stats.pairs) && `${percent(stats.questions.distinct, stats.pairs)} of all`],
    ["Different answers", about(stats.answers.distinct, stats.answers.distinct_is_exact), percent(stats.answers.distinct, stats.pairs) && `${percent(stats.answers.distinct, stats.pairs)} of all`],
    data.run.images_per_second ? ["Images per second", number(data.run.images_per_second), "in the last run"] : null,
  ].filter(Boolean);
  const parts = [["accepted", accepted, "first"], ["rejected", rejected, "second"], ["unreadable", unreadable, "third"]];
  const stack = element("div", { class: "stack", "aria-hidden": "true" }, parts.filter(([, count]) => count).map(([, count, kind]) => {
    const part = element("span", { class: kind });
    part.style.flexGrow = count;
    return part;
  }));
  const legend = element("ul", { class: "legend" }, parts.map(([name, count, kind]) =>
    element("li", {}, element("i", { class: kind }), `${number(count)} ${name} `, element("small", {}, percent(count, images)))));
  fill("overview", null,
    element("dl", { class: "tiles" }, tiles.map(([name, value, note]) =>
      element("div", {}, element("dt", {}, name), element("dd", {}, element("b", {}, value), element("small", {}, note))))),
    stack, legend);
}

function texts() {
  if (!stats.pairs) return fill("texts", null);
  const { questions, answers, captions } = stats;
  const approximate = (utterances) => (utterances.top_undercount ? `(counts up to ${number(utterances.top_undercount)} too low)` : "");
  fill("texts", "Questions and answers",
    element("div", { class: "charts" }, ...[
      chart("How questions begin", `first two words ${approximate(questions)}`, bars(questions.top, { whole: stats.pairs, least: questions.top_undercount > 0 })),
      chart("Most frequent answers", approximate(answers), bars(answers.top, { whole: stats.pairs, least: answers.top_undercount > 0 })),
      chart("Kinds of answers", "yes/no by the first word", bars(stats.answer_types)),
      spreadChart("Words per question", questions.words),
      spreadChart("Words per answer", answers.words),
      spreadChart("Words per caption", captions),
    ].filter(Boolean)));
}

function gates() {
  const names = Object.keys(stats.gates);
  if (!names.length) return fill("gates", null);
  const rows = names.map((name) => {
    const gate = stats.gates[name];
    const { meaning, min, max } = data.gates[name];
    const limits = [min == null ? "" : `below ${number(min)}`, max == null ? "" : `above ${number(max)}`].filter(Boolean);
    const share = element("div", { class: "share" });
    share.append(bar(gate.marked / stats.pairs_gated));
    return element("tr", {},
      element("th", { scope: "row" }, name.replaceAll("_", " "), element("small", {}, meaning, limits.length ? `; marked ${limits.join(" or ")}` : "")),
      element("td", { class: "number", "data-label": "Pairs scored" }, element("span", {}, number(gate.scored))),
      element("td", { class: "number", "data-label": "Pairs marked" }, element("span", {}, `${number(gate.marked)} `, element("small", {}, percent(gate.marked, stats.pairs_gated)))),
      element("td", { class: "wide" }, share),
      element("td", { "data-label": `Scores, median ${number(gate.scores.median)}` }, gate.scores.count ? histogram(gate.scores, "score") : ""));
  });
  const head = element("tr", {}, ...["Gate", "Pairs scored", "Pairs marked", "", "Scores"].map((name, column) =>
    element("th", { scope: "col", class: column === 1 || column === 2 ? "number" : null }, name)));
  fill("gates", "Quality gates",
    element("p", {}, `${number(stats.pairs_gated)} pairs were scored: ${number(stats.pairs_kept)} (${percent(stats.pairs_kept, stats.pairs_gated)}) are kept by all gates. `,
      `${plural(stats.images_without_kept_pair, "image")} ${stats.images_without_kept_pair === 1 ? "has" : "have"} no pair left. A gate marks; nothing is deleted.`),
    element("table", {}, element("thead", {}, head), element("tbody", {}, rows)));
}

function losses() {
  const shown = data.rejects.map(({ status, reason, count, examples }) =>
    element("details", {},
      element("summary", {}, element("b", {}, text(reason.replaceAll("_", " "))), ` ${plural(count, "image")} `, element("small", {}, `${status}, ${percent(count, stats.images)}`)),
      examples.map((example) => element("article", {},
        element("div", {}, text(example.id), example.detail ? [": ", text(example.detail)] : null),
        example.raw.map((raw) => text(raw, "pre"))))));
  const rot = data.link_rot;
  const links = rot ? element("div", { class: "links" }, element("h3", {}, "Links ", element("small", {}, `${percent(rot.alive, 1)} of ${plural(rot.urls, "URL")} still led to an image`)), bars(rot.outcomes)) : null;
  const repeated = stats.repeated_images
    ? element("p", {}, `${about(stats.repeated_images, stats.repeated_images_is_exact)} of the accepted images have the bytes of an earlier one.`) : null;
  const rejects = shown.length ? element("div", {}, shown) : null;
  fill("losses", "Losses", ...(rejects || links || repeated ? [rejects ?? element("p", {}, "No image was rejected, and none was unreadable."), repeated, links] : []));
}

function madeWith() {
  const { config, run, versions } = data;
  const sizes = stats.image_sizes;
  const list = (counts) => Object.entries(counts).map(([name, count]) => `${name} (${number(count)})`).join(", ");
  fill("run", "How it was made", element("div", { class: "charts" },
    chart("Settings", "", facts([
      ["model", config.model ?? list(stats.models)], ["revision", config.model_revision], ["engine", [config.engine, data.engine_version].filter(Boolean).join(" ")],
      ["precision", config.dtype], ["protocol", config.protocol], ["temperature", config.temperature], ["top_p", config.top_p],
      ["max_tokens", config.max_tokens], ["attempts", config.attempts], ["seed", config.seed],
    ])),
    chart("Last run", "", facts([
      ["finished", data.finished_at], ["images", run.images == null ? null : number(run.images)],
      ["seconds", run.seconds == null ? null : number(run.seconds)], ["images/s", run.images_per_second == null ? null : number(run.images_per_second)],
      ["output tokens/s", run.output_tokens_per_second == null ? null : number(run.output_tokens_per_second)],
      ["engine start, s", run.engine_start_seconds == null ? null : number(run.engine_start_seconds)],
      ["versions", Object.entries(versions).map(([name, version]) => `${name} ${version}`).join(", ")],
    ])),
    sizes ? chart("Images", `headers of ${number(sizes.sampled)} images`, facts([
      ["median size", `${number(sizes.width)} × ${number(sizes.height)} pixels, ${bytes(sizes.bytes)}`],
      ["smallest", sizes.smallest.map(number).join(" × ")], ["largest", sizes.largest.map(number).join(" × ")], ["formats", list(sizes.formats)],
    ])) : chart("Images", "", element("p", { class: "soft" }, "The dataset was published without them."))));
}

// Gallery. Its state is in the URL's fragment: #q=...&show=...&gate=...&page=... or #image=ID

const rows = gallery.rows.map((row) => ({
  ...row,
  words: [row.id, row.caption ?? "", ...row.pairs.flatMap((pair) => [pair.user, pair.assistant])].join("\n").toLowerCase(),
  markedBy: new Set(row.pairs.flatMap((pair) => Object.keys(pair.marks ?? {}))),
}));
const gated = gallery.rows.some((row) => row.pairs.some((pair) => pair.marks));
let state = {};

function readState() {
  const fragment = new URLSearchParams(location.hash.slice(1));
  const image = fragment.get("image");
  // A link to an image ignores any filters in it.
  const filter = (name) => (image == null ? fragment.get(name) ?? "" : "");
  state = { q: filter("q"), show: filter("show"), gate: filter("gate"), page: Math.max(1, parseInt(filter("page"), 10) || 1), image };
}

function change(update) {
  state = { ...state, page: 1, image: null, ...update };
  const fragment = new URLSearchParams(Object.entries(state).filter(([name, value]) => value && !(name === "page" && value === 1)));
  history.replaceState(null, "", `#${fragment}`);
  render();
}

function matching() {
  const terms = searchTerms();
  return rows.filter((row) =>
    terms.every((term) => row.words.includes(term)) && (!state.gate || row.markedBy.has(state.gate)) &&
    (state.show !== "marked" || row.markedBy.size) && (state.show !== "kept" || !row.markedBy.size));
}

const searchTerms = () => state.q.toLowerCase().split(/\s+/).filter(Boolean);

/** The text with the search terms highlighted. */
function highlighted(value, tag, name) {
  const terms = searchTerms().map((term) => term.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  const parts = terms.length ? value.split(new RegExp(`(${terms.join("|")})`, "gi")) : [value];
  return element(tag, { class: `text${name ? ` ${name}` : ""}`, dir: "auto" }, parts.map((part, index) => (index % 2 ? element("mark", {}, part) : part)));
}

function picture(row) {
  if (!row.image) return element("div", { class: "picture" }, gallery.thumbnails ? "no usable image" : "published without images");
  const image = element("img", { src: row.image, alt: row.caption || `Image ${row.id}`, loading: "lazy", decoding: "async" });
  image.addEventListener("load", () => image.classList.toggle("tiny", Math.max(image.naturalWidth, image.naturalHeight) < TINY_PIXELS));
  return element("div", { class: "picture" }, image);
}

function card(row) {
  const pairs = row.pairs.map(({ user, assistant, marks }) => element("li", { class: Object.keys(marks ?? {}).length ? "marked" : null },
    highlighted(user, "p"), highlighted(assistant, "p", "answer"),
    Object.entries(marks ?? {}).map(([name, score]) => element("span", { class: "chip" }, text(name.replaceAll("_", " ")), score == null ? null : ` ${number(score)}`))));
  return element("article", { class: `card${row.id === state.image ? " target" : ""}`, tabindex: "-1", "data-id": row.id },
    picture(row),
    element("div", {},
      row.caption ? highlighted(row.caption, "p", "caption") : null,
      element("ul", { class: "pairs" }, pairs),
      element("footer", {},
        element("a", { href: `#image=${encodeURIComponent(row.id)}`, title: "Link to this image" }, highlighted(row.id, "span")),
        row.url ? link(row.url) : null, text(row.model))));
}

function render() {
  const absent = state.image != null && !rows.some((row) => row.id === state.image);
  const found = absent ? [] : matching();
  const pages = Math.max(1, Math.ceil(found.length / PAGE_SIZE));
  if (state.image != null && !absent) state.page = Math.floor(found.findIndex((row) => row.id === state.image) / PAGE_SIZE) + 1;
  state.page = Math.min(state.page, pages);
  const nothing = !rows.length ? "There is no dialogue in this dataset."
    : absent ? `“${state.image}” is not among the ${plural(rows.length, "image")} shown here.` : "No dialogue matches.";
  byId("cards").replaceChildren(...(found.length ? found.slice((state.page - 1) * PAGE_SIZE, state.page * PAGE_SIZE).map(card)
    : [element("p", { class: "nothing" }, text(nothing))]));
  byId("found").textContent = found.length === rows.length ? plural(rows.length, "image") : `${number(found.length)} of ${plural(rows.length, "image")}`;
  byId("page").textContent = `${number(state.page)} / ${number(pages)}`;
  byId("previous").disabled = state.page === 1;
  byId("next").disabled = state.page === pages;
  byId("clear").disabled = !(state.q || state.show || state.gate || state.image);
  for (const name of ["show", "gate"]) byId(name).value = state[name];
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

function controls() {
  const options = (choices) => choices.map(([value, label]) => element("option", { value }, label));
  byId("show").append(...options([["", "kept and marked"], ["kept", "only kept pairs"], ["marked", "with a marked pair"]]));
  const names = Object.keys(stats.gates).filter((name) => rows.some((row) => row.markedBy.has(name)));
  byId("gate").append(...options([["", "any gate"], ...names.map((name) => [name, `${name.replaceAll("_", " ")} (${number(rows.filter((row) => row.markedBy.has(name)).length)})`])]));
  for (const name of ["show", "gate"]) {
    byId(name).classList.toggle("hidden", !gated);
    byId(name).addEventListener("change", (event) => change({ [name]: event.target.value }));
  }
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("search").addEventListener("input", (event) => change({ q: event.target.value }));
  byId("clear").addEventListener("click", () => change({ q: "", show: "", gate: "" }));
  byId("previous").addEventListener("click", () => goTo(state.page - 1));
  byId("next").addEventListener("click", () => goTo(state.page + 1));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, button, textarea")) return;
    if (event.key === "/") { event.preventDefault(); byId("search").focus(); }
    else if (event.key === "ArrowLeft" && !byId("previous").disabled) goTo(state.page - 1);
    else if (event.key === "ArrowRight" && !byId("next").disabled) goTo(state.page + 1);
  });
  addEventListener("hashchange", () => {
    // The table of contents also uses fragments, which do not change the gallery.
    if (location.hash && !location.hash.includes("=")) return;
    readState();
    render();
    showTarget();
  });
}

byId("summary").replaceChildren("Question-answer dialogues about ", plural(stats.accepted, "image"), ", generated by ", text(Object.keys(stats.models).join(", ") || data.config.model || "no model"),
  " with the protocol ", text(Object.keys(stats.protocols).join(", ") || data.config.protocol || "none"), ".");
overview();
texts();
gates();
losses();
madeWith();
byId("contents").append(element("a", { href: "#gallery" }, "Gallery"));
byId("sampled").textContent = `${rows.length < stats.accepted ? `${number(rows.length)} of ${number(stats.accepted)} images, drawn uniformly (seed ${gallery.seed})` : `all ${plural(rows.length, "image")}`}${gallery.thumbnails ? `; thumbnails of up to ${gallery.thumbnails.side} pixels, WebP quality ${gallery.thumbnails.quality}` : ""}`;
controls();
readState();
render();
showTarget();
