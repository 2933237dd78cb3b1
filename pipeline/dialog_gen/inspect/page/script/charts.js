// Charts: bars of shares by name, and histograms with axes. Each takes one set of numbers, or two to compare.

const TOP_SHOWN = 10;
const FAR = 3;

function bar(share, kind = "") {
  const filled = placed(element("span"), { width: share });
  if (!share) filled.style.minWidth = 0;
  return element("div", { class: `bar ${kind}` }, filled);
}

/** Bars by name; `counts` and `wholes` have one entry a side. It sorts, because JavaScript puts numeric names first. */
function bars(counts, wholes, { least = [] } = {}) {
  const share = (side, name) => (counts[side][name] ?? 0) / (wholes[side] || 1);
  const most = (name) => Math.max(...counts.map((_, side) => share(side, name)));
  const names = [...new Set(counts.flatMap(Object.keys))].sort((a, b) => most(b) - most(a)).slice(0, TOP_SHOWN);
  const longest = Math.max(...names.map(most)) || 1;
  return element("dl", { class: "bars" }, names.map((name) => [
    element("dt", { title: name }, text(name || "(nothing)")),
    element("dd", {}, counts.map((of, side) => element("div", { class: "row" }, bar(share(side, name) / longest, SIDES[side].toLowerCase()),
      element("span", { class: "share" }, name in of ? percent(of[name], wholes[side]) : "–"),
      isCompared ? null : element("small", {}, `${least[side] ? "≥ " : ""}${number(of[name])}`)))),
  ]));
}

/** Numbers at nice steps, from low to high; about `wanted` of them. */
function ticks(low, high, wanted, least = 0) {
  const rough = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max(least, [1, 2, 5, 10].map((factor) => factor * power).find((width) => width >= rough * 0.999));
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.max(0, Math.floor(high / step + 1e-9) - first + 1) }, (_, index) => +((first + index) * step).toPrecision(12));
}

/** What a distribution says in a sentence; null if it needs a chart. */
function sentence({ count, lowest, highest, bins }, noun) {
  if (!count) return `No ${noun}.`;
  if (lowest === highest) return count === 1 ? `The only ${noun} is ${number(lowest)}.` : `All ${number(count)} ${noun}s are ${number(lowest)}.`;
  return bins.length === 1 ? `99 % or more of ${number(count)} ${noun}s are about ${number(bins[0].low)}; the highest is ${number(highest)}.` : null;
}

/** A histogram of each side's spread with axes, and with lines at the limits `min` and `max`; or sentences. A side may be null. */
function histogram(spreads, noun, { min = null, max = null } = {}) {
  const known = spreads.map((spread, side) => ({ ...spread, side })).filter((spread) => spread.bins);
  if (known.every((spread) => sentence(spread, noun))) return element("div", {}, known.map((spread) => element("p", { class: "sentence" }, letter(spread.side), sentence(spread, noun))));
  const drawn = known.filter((spread) => spread.count);
  const whole = drawn.every((spread) => spread.whole);
  // Whole numbers stand in the middle of their bars.
  const shift = whole ? 0.5 : 0;
  const widthOf = ({ bins }) => (bins[0].high ?? bins[0].low + 1) - bins[0].low;
  const unit = widthOf(drawn[0]);
  const end = (bin, width) => bin.high ?? bin.low + width;
  let low = Math.min(...drawn.map((spread) => spread.bins[0].low)) - shift;
  let high = Math.max(...drawn.map((spread) => end(spread.bins.at(-1), widthOf(spread)))) - shift;
  // A limit that is far from all values would squeeze them: then its place is only named.
  const reach = FAR * (high - low);
  const lines = [["min", min, -shift], ["max", max, shift]].filter(([, value]) => value != null).map(([name, value, by]) => ({ name, value, at: value + by }));
  for (const { at } of lines) if (at >= low - reach && at <= high + reach) [low, high] = [Math.min(low, at), Math.max(high, at)];
  const place = (value) => (value - low) / (high - low);

  const shares = drawn.flatMap((spread) => spread.bins.map((bin) => (bin.count / spread.count) * (unit / widthOf(spread))));
  const top = Math.max(...shares) * 1.04;
  const columns = drawn.flatMap((spread) => spread.bins.filter((bin) => bin.count).map((bin) => {
    const width = widthOf(spread);
    const range = bin.high == null ? `${number(bin.low)} and more` : whole && width === 1 ? number(bin.low) : `${number(bin.low)} to ${number(whole ? bin.high - 1 : bin.high)}`;
    const column = element("i", { class: `${SIDES[spread.side].toLowerCase()}${bin.high == null ? " rest" : ""}`, title: `${range}: ${plural(bin.count, noun)}, ${percent(bin.count, spread.count)}` });
    return placed(column, { left: place(bin.low - shift), width: (end(bin, width) - bin.low) / (high - low), height: ((bin.count / spread.count) * (unit / width)) / top });
  }));
  const across = ticks(0, top, 3).filter((share) => share > 0).map((share) =>
    placed(element("span", { class: "grid" }, element("small", {}, `${short(100 * share)} %`)), { bottom: share / top }));
  const last = drawn.find((spread) => spread.bins.at(-1).high == null)?.bins.at(-1).low;
  const below = ticks(low + shift, high - shift, 5, whole ? 1 : 0).filter((value) => last == null || value <= last).map((value) =>
    placed(element("span", { class: "tick" }, `${number(value)}${value === last ? " +" : ""}`), { left: place(value) }));
  const limits = lines.map(({ name, value, at }) => {
    const inside = at >= low && at <= high;
    const line = element("span", { class: `limit ${name}${inside ? "" : " outside"}${place(at) > 0.5 ? " right" : ""}`, title: name === "min" ? `Lower scores are marked` : `Higher scores are marked` },
      element("small", {}, `${inside ? "" : at > high ? "→ " : "← "}${name} ${number(value)}`));
    return placed(line, { left: Math.min(1, Math.max(0, place(at))) });
  });
  const label = drawn.map(({ side, mean, median, p95 }) => `${isCompared ? `${SIDES[side]}: ` : ""}mean ${number(mean)}, median ${number(median)}, 95th percentile ${number(p95)}`).join("; ");
  const figure = element("figure", { class: `histogram${lines.length ? " limited" : ""}`, role: "img", "aria-label": `Histogram of ${noun}s; ${label}` },
    element("div", { class: "plot" }, across, columns, limits), element("div", { class: "axis" }, below));
  // A few bars need not be broad.
  figure.style.maxWidth = `${Math.max(15, 4 + (3.5 * (high - low)) / unit)}rem`;
  return figure;
}

const chart = (title, note, ...content) => element("div", { class: "chart" }, element("h3", {}, title, note ? element("small", {}, note) : null), ...content);
