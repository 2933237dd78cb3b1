// How one sample is shown.

const TINY_PIXELS = 128;
const LONG_ANSWER = 60;

/** The text with the search terms highlighted. */
function highlighted(value, tag, name) {
  const terms = searchTerms().map((term) => term.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  const parts = terms.length ? value.split(new RegExp(`(${terms.join("|")})`, "gi")) : [value];
  return element(tag, { class: `text${name ? ` ${name}` : ""}`, dir: "auto" }, parts.map((part, index) => (index % 2 ? element("mark", {}, part) : part)));
}

function image(src, alt) {
  const shown = element("img", { src, alt, loading: "lazy", decoding: "async" });
  shown.addEventListener("load", () => shown.classList.toggle("tiny", Math.max(shown.naturalWidth, shown.naturalHeight) < TINY_PIXELS));
  return shown;
}

/** All images of a row: those of the second dataset, too, where their bytes are others. */
const imagesOf = (row) => [...row.images, ...row.sides.flatMap((side) => side.images ?? []).filter((src) => !row.images.includes(src))];

function picture(row, open) {
  const found = imagesOf(row);
  if (!found.length) return element("div", { class: "picture none" }, gallery.thumbnails ? "no usable image" : "published without images");
  const button = element("button", { class: "picture", type: "button", title: "Enlarge" }, found.map((src) => image(src, row.caption || `Image ${row.id}`)));
  button.addEventListener("click", open);
  return button;
}

/** The small image of a row outside the gallery. */
function thumbnail(row) {
  const shown = { ...row, ...row.sides[0] };
  return picture(shown, () => openZoom([shown], 0));
}

function chips(pair, side) {
  return (pair.marks ?? []).map((mark) => element("span", { class: "chip" }, text(spaced(sides[side].gates[mark].name)), pair.scores[mark] == null ? null : ` ${number(pair.scores[mark])}`));
}

function answer(pair, side, letters, detailed) {
  return [element("p", { class: `answer${pair.assistant.length > LONG_ANSWER ? " long" : ""}` }, letters, highlighted(pair.assistant, "span")),
    pair.statement ? highlighted(pair.statement, "p", "statement") : null, detailed ? scores(pair, side) : chips(pair, side)];
}

/** All scores of a pair. */
function scores(pair, side) {
  const known = (pair.scores ?? []).map((score, gate) => [sides[side].gates[gate].name, score, pair.marks.includes(gate)]).filter(([, score, marked]) => score != null || marked);
  if (!known.length) return null;
  return element("p", { class: "scores" }, known.map(([name, score, marked]) => element("span", { class: marked ? "chip" : "score" }, text(spaced(name)), score == null ? null : ` ${number(score)}`)));
}

/** One question with its answers: of one dataset, or of both if both ask it. */
function line(row, places, detailed) {
  const asked = places.map((place, side) => (place == null ? null : { pair: row.sides[side].pairs[place], side })).filter(Boolean);
  const isMarked = asked.some(({ pair }) => pair.marks?.length);
  const isSame = asked.length > 1 && alike(asked[0].pair.assistant, asked[1].pair.assistant);
  const together = isSame && !isMarked && !detailed && !asked.some(({ pair }) => pair.statement);
  return element("li", { class: [isMarked ? "marked" : "", asked.length > 1 && !isSame ? "differs" : ""].filter(Boolean).join(" ") || null },
    highlighted(asked[0].pair.user, "p"),
    together ? answer(asked[0].pair, asked[0].side, asked.map(({ side }) => letter(side)), false) : asked.map(({ pair, side }) => answer(pair, side, letter(side), detailed)));
}

/** The dialogues of a row, and why a dataset has none. */
function dialogues(row, detailed = false) {
  const lines = row.lines ?? (row.sides[0].pairs ?? []).map((_, place) => [place]);
  return [
    lines.length ? element("ul", { class: "pairs" }, lines.map((places) => line(row, places, detailed))) : null,
    row.sides.map((side) => (side.more ? element("p", { class: "soft" }, `and ${plural(side.more, "more pair")}`) : null)),
    row.sides.map((side, index) => (side.status ? element("div", { class: "no-dialogue" },
      element("p", {}, letter(index), " ", `${side.status}: `, text(spaced(side.reason)), side.detail ? [", ", text(side.detail)] : null),
      side.raw.map((raw) => text(raw || "(nothing)", "pre"))) : null)),
  ];
}

const KINDS = { 1: "same id, other bytes", 2: "same bytes, other id" };

function footer(row) {
  const other = row.kind === 2 ? row.sides[1].id : null;
  return element("footer", {},
    element("a", { href: `#image=${encodeURIComponent(row.id)}`, title: "Link to this image" }, highlighted(row.id, "span")),
    KINDS[row.kind] ? element("span", {}, KINDS[row.kind], other == null ? null : [": ", text(other)]) : null,
    row.url ? link(row.url) : null,
    !isCompared && Object.keys(sides[0].stats.models).length > 1 ? text(row.sides[0].model) : null);
}

function card(row, open) {
  return element("article", { class: `card${row.id === state.image ? " target" : ""}`, tabindex: "-1", "data-id": row.id },
    picture(row, open),
    element("div", { class: "said" }, row.caption ? highlighted(row.caption, "p", "caption") : null, dialogues(row), footer(row)));
}
