// The top of the page: what the data are, what stands out, four numbers; and what a comparison says.

/** A number of each side, with a note. */
function tile(name, ofSide) {
  return element("div", {}, element("dt", {}, name), sides.map((side, index) => {
    const [value, note] = ofSide(side.stats, side);
    return element("dd", {}, letter(index), element("b", { class: "value" }, value), element("small", {}, note));
  }));
}

function summary() {
  const told = (side) => {
    const { stats, config, finished_at: finished } = side;
    const fallbacks = Object.entries(stats.fallbacks).map(([name, count]) => `${name} (a fallback) made ${plural(count, "dialogue")}`);
    return [
      Object.keys(stats.models).join(", ") || config.model || "no model", `protocol ${Object.keys(stats.protocols).join(", ") || config.protocol || "none"}`,
      ...fallbacks, finished ? `finished on ${moment(finished).slice(0, 10)}` : null,
    ].filter(Boolean).join(" · ");
  };
  byId("summary").replaceChildren(...sides.map((side, index) =>
    element("span", { class: "made" }, letter(index), " ", isCompared ? [text(side.name, "b"), ": "] : null, text(told(side)))));
}

/** A sentence in which commands stand between backticks. */
const withCode = (said) => {
  const parts = said.split("`");
  return parts.length % 2 ? parts.map((part, place) => text(part, place % 2 ? "code" : "span")) : text(said);
};

function findings() {
  const found = sides.flatMap(({ verdict }, side) => verdict.findings.map((finding) => [finding, side]));
  byId("findings").append(...found.map(([{ text: said, about: section }, side]) =>
    element("li", {}, letter(side), isCompared ? " " : null, withCode(said), " ", element("a", { href: `#${section}`, "aria-label": `See ${section}` }, "look"))));
  byId("findings").classList.toggle("hidden", !found.length);
}

function numbers() {
  const distinct = ({ distinct, distinct_is_exact: exact }) => about(distinct, exact);
  byId("numbers").append(
    tile("Images with a dialogue", (stats) => [number(stats.accepted), stats.images ? `${percent(stats.accepted, stats.images)} of ${number(stats.images)} read` : "none read"]),
    tile("Question-answer pairs", (stats) => [number(stats.pairs), stats.accepted ? `${number(stats.pairs / stats.accepted)} per image` : ""]),
    tile("Kept by the gates", (stats) => (stats.pairs_gated ? [percent(stats.pairs_kept, stats.pairs_gated), `${number(stats.pairs_kept)} of ${plural(stats.pairs_gated, "pair")}`] : ["–", "no gate applied yet"])),
    tile("Different questions", (stats) => [distinct(stats.questions), `and ${distinct(stats.answers)} different answer${stats.answers.distinct === 1 ? "" : "s"}`]));
}

function comparisons() {
  if (!isCompared) return fill("comparison", null);
  const told = comparison;
  const [onlyA, onlyB] = told.only_with_dialogue;
  const lines = [
    `${number(told.found)} of ${number(told.looked_for)} images of A${told.all_of_first ? "" : ", drawn at random,"} ${told.found === 1 ? "is" : "are"} in B too${told.only_second == null ? "" : `; ${plural(told.only_second, "image")} of B ${told.only_second === 1 ? "is" : "are"} not in A`}.`,
    told.other_id ? `${plural(told.other_id, "image")} ${told.other_id === 1 ? "has" : "have"} another id in B and the same bytes.` : null,
    told.other_bytes ? `${plural(told.other_bytes, "image")} ${told.other_bytes === 1 ? "has" : "have"} the same id and other bytes: both images are shown, check that they are the same.` : null,
    onlyA ? `${plural(onlyA, "image")} ${onlyA === 1 ? "has" : "have"} a dialogue in A only.` : null,
    onlyB ? `${plural(onlyB, "image")} ${onlyB === 1 ? "has" : "have"} a dialogue in B only.` : null,
    told.asked_by_both ? `Among the images shown, both ask the same question ${number(told.asked_by_both)} times; ${number(told.answered_alike)} times (${percent(told.answered_alike, told.asked_by_both)}) they give the same answer.` : null,
  ].filter(Boolean);
  const shown = (value) => (value == null ? "–" : typeof value === "object" ? JSON.stringify(value) : String(value));
  const settings = told.settings.length
    ? element("table", { class: "settings" },
      element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "Setting that differs"), [0, 1].map((side) => element("th", { scope: "col" }, letter(side), " ", text(sides[side].name))))),
      element("tbody", {}, told.settings.map(([name, ...values]) => element("tr", {}, element("th", { scope: "row" }, text(name)), values.map((value) => element("td", {}, text(shown(value))))))))
    : element("p", {}, "Both were made with the same settings.");
  fill("comparison", "Compared", element("ul", { class: "lines" }, lines.map((line) => element("li", {}, line))), settings);
}
