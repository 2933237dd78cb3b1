// Which samples are shown, in which order. The state is in the URL's fragment: #q=...&show=...&gate=...&sort=...&page=... or #image=ID

const PAGE_SIZE = 12;

/** An index of the rows: what they are searched, filtered and sorted by. */
const rows = gallery.rows.map((row, index) => {
  const pairs = row.sides.flatMap((side, which) => (side.pairs ?? []).map((pair) => ({ ...pair, names: (pair.marks ?? []).map((mark) => sides[which].gates[mark].name), which })));
  const lines = row.lines ?? [];
  const told = row.sides.find((side) => side.id != null);
  const both = lines.filter(([a, b]) => a != null && b != null).map(([a, b]) => [row.sides[0].pairs[a], row.sides[1].pairs[b]]);
  return {
    ...row, index, id: told.id, caption: told.caption, url: row.sides.find((side) => side.url)?.url,
    words: [...row.sides.flatMap((side) => [side.id ?? "", side.caption ?? "", ...(side.raw ?? [])]), ...pairs.flatMap((pair) => [pair.user, pair.assistant, pair.statement ?? ""])].join("\n").toLowerCase(),
    markedBy: new Set(pairs.flatMap((pair) => pair.names)),
    marks: sum(pairs.map((pair) => pair.names.length)),
    chars: Math.max(0, ...pairs.map((pair) => pair.assistant.length)),
    logprob: Math.min(...pairs.map((pair) => pair.logprob ?? Infinity)),
    differing: both.filter(([a, b]) => !alike(a.assistant, b.assistant)).length,
    oneSided: row.sides.some((side) => side.status),
    pairs,
  };
});
const isGated = rows.some((row) => row.pairs.some((pair) => pair.scores));
const gateNames = [...new Set(sides.flatMap((side) => side.gates.map((gate) => gate.name)))];
let state = {};

/** Whether two answers are the same, without case and final punctuation. */
function alike(a, b) {
  const plain = (answer) => answer.toLowerCase().trim().replace(/[.!?]+$/, "").trimEnd();
  return plain(a) === plain(b);
}

/** The scores of a row's pairs by a gate. */
const scoresOf = (row, name) => row.pairs.map((pair) => pair.scores?.[sides[pair.which].gates.findIndex((gate) => gate.name === name)]).filter((score) => score != null);

/** The orders: name -> label and key, by which rows are sorted in descending order; rows without a key come last. */
const orders = new Map([["", { label: "dataset order" }]]);
if (isGated) orders.set("marked", { label: "most marked first", key: (row) => row.marks });
if (isCompared) orders.set("differing", { label: "most differing answers first", key: (row) => row.differing });
orders.set("longest", { label: "longest answer first", key: (row) => row.chars });
orders.set("shortest", { label: "shortest answer first", key: (row) => -row.chars });
if (rows.some((row) => row.logprob !== Infinity) && !gateNames.includes("logprob")) orders.set("unsure", { label: "lowest log-probability first", key: (row) => -row.logprob });
for (const name of gateNames) {
  const limits = sides.flatMap((side) => side.gates.filter((gate) => gate.name === name))[0];
  const extreme = (sign) => (row) => { const scores = scoresOf(row, name); return scores.length ? Math.max(...scores.map((score) => sign * score)) : -Infinity; };
  if (limits.min != null || limits.max == null) orders.set(`lowest ${name}`, { label: `lowest ${spaced(name)} first`, key: extreme(-1) });
  if (limits.max != null) orders.set(`highest ${name}`, { label: `highest ${spaced(name)} first`, key: extreme(1) });
}

/** Of the filter `show`: value -> label and test. */
const filters = new Map([["", { label: isCompared ? "all images" : "kept and marked", test: () => true }]]);
if (isGated) {
  filters.set("kept", { label: "only kept pairs", test: (row) => !row.marks });
  filters.set("marked", { label: "with a marked pair", test: (row) => row.marks });
}
if (isCompared) {
  filters.set("differing", { label: "answers differ", test: (row) => row.differing });
  filters.set("same", { label: "no answer differs", test: (row) => !row.differing && !row.oneSided });
  filters.set("lost", { label: "lost in one", test: (row) => row.oneSided });
}

function readState() {
  const fragment = new URLSearchParams(location.hash.slice(1));
  const image = fragment.get("image");
  // A link to an image ignores any filters in it.
  const part = (name) => (image == null ? fragment.get(name) ?? "" : "");
  state = { q: part("q"), show: filters.has(part("show")) ? part("show") : "", gate: part("gate"), sort: part("sort"), page: Math.max(1, parseInt(part("page"), 10) || 1), image };
}

function change(update) {
  state = { ...state, page: 1, image: null, ...update };
  const fragment = new URLSearchParams(Object.entries(state).filter(([name, value]) => value && !(name === "page" && value === 1)));
  history.replaceState(null, "", `#${fragment}`);
  render();
}

const searchTerms = () => state.q.toLowerCase().split(/\s+/).filter(Boolean);

/** A pseudorandom number for a row, which a seed changes: the same link shows the same order. */
function shuffled(seed, index) {
  let x = Math.imul(index + 1, 0x9e3779b1) ^ Math.imul(seed + 1, 0x85ebca6b);
  for (const factor of [0x7feb352d, 0x846ca68b]) x = Math.imul(x ^ (x >>> 15), factor);
  return (x ^ (x >>> 16)) >>> 0;
}

function matching() {
  const terms = searchTerms();
  const found = rows.filter((row) => terms.every((term) => row.words.includes(term)) && (!state.gate || row.markedBy.has(state.gate)) && filters.get(state.show).test(row));
  const seed = state.sort.match(/^shuffle (\d+)$/)?.[1];
  const key = seed ? (row) => shuffled(Number(seed), row.index) : orders.get(state.sort)?.key;
  if (!key) return found;
  return found.map((row) => [key(row), row]).sort(([a, x], [b, y]) => (a === b ? x.index - y.index : b > a ? 1 : -1)).map(([, row]) => row);
}
