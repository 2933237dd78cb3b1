// The sections below the samples: texts, gates, losses, and how the data were made.

const LEAST_TYPES = 4;
const LEAST_SHARE = 0.005;
const of = (get) => sides.map((side) => get(side.stats));

function texts() {
  if (!sum(of((stats) => stats.pairs))) return fill("texts", null);
  const pairs = of((stats) => stats.pairs);
  const under = (get) => of((stats) => get(stats).top_undercount);
  const approximate = (get) => (sum(under(get)) ? `counts up to ${number(Math.max(...under(get)))} too low` : "");
  const spread = (title, get, noun) => {
    const spreads = of(get);
    if (!sum(spreads.map((found) => found.count))) return null;
    const note = isCompared ? "" : `mean ${number(spreads[0].mean)}, median ${number(spreads[0].median)}, 95 % up to ${number(spreads[0].p95)}`;
    const single = spreads.every((found) => sentence(found, noun));
    return chart(title, single ? "" : note, histogram(spreads, noun));
  };
  const top = (title, get, note) => chart(title, note, bars(of((stats) => get(stats).top), pairs, { least: under(get).map(Boolean) }));
  fill("texts", "Questions and answers",
    element("div", { class: "charts" },
      top("How questions begin", (stats) => stats.questions, ["first two words", approximate((stats) => stats.questions)].filter(Boolean).join("; ")),
      top("Most frequent answers", (stats) => stats.answers, ["whole answers", approximate((stats) => stats.answers)].filter(Boolean).join("; ")),
      chart("Kinds of answers", "yes/no by the first word", bars(of((stats) => stats.answer_types), pairs))),
    byQuestion(),
    element("div", { class: "charts" },
      [spread("Words per question", (stats) => stats.questions.words, "question"), spread("Words per answer", (stats) => stats.answers.words, "answer"),
        spread("Words per caption", (stats) => stats.captions, "caption")].filter(Boolean)));
}

/** What is answered to each type of question, as one bar of all its answers. */
function byQuestion() {
  const types = of((stats) => stats.by_question);
  const size = (name) => Math.max(...types.map((found, side) => (found[name]?.pairs ?? 0) / (sides[side].stats.pairs || 1)));
  const names = [...new Set(types.flatMap(Object.keys))].sort((a, b) => size(b) - size(a)).filter((name, place) => place < LEAST_TYPES || size(name) >= LEAST_SHARE);
  const gated = sum(of((stats) => stats.pairs_gated)) > 0;
  const answers = (found) => {
    const most = Object.entries(found.answers).sort(([, a], [, b]) => b - a);
    return element("div", { class: "split" }, most.map(([answer, count]) => {
      const part = placed(element("span", { title: `${answer || "(nothing)"}: ${number(count)}, ${percent(count, found.pairs)}` }, text(answer || "(nothing)")), { width: count / found.pairs });
      part.classList.toggle("bare", count < 0.03 * found.pairs);
      return part;
    }));
  };
  const row = (name) => element("tr", {},
    element("th", { scope: "row" }, text(name ? `${name} …` : "(nothing)")),
    element("td", { class: "number", "data-label": "Pairs" }, types.map((found, side) => element("div", {}, letter(side), " ", isCompared ? percent(found[name]?.pairs ?? 0, sides[side].stats.pairs) || "–" : number(found[name].pairs)))),
    element("td", { class: "fill" }, types.map((found) => (found[name] ? answers(found[name]) : element("div", { class: "split" })))),
    gated ? element("td", { class: "number", "data-label": "Marked" }, types.map((found) => element("div", {}, found[name] ? percent(found[name].marked, found[name].pairs) : "–"))) : null);
  return element("div", { class: "by-question" },
    element("h3", {}, "Answers by type of question", element("small", {}, "each bar is all answers to questions that begin so, the most frequent first")),
    element("table", {},
      element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "Question"), element("th", { scope: "col", class: "number" }, "Pairs"), element("th", { scope: "col" }, "Answers"), gated ? element("th", { scope: "col", class: "number" }, "Marked") : null)),
      element("tbody", {}, names.map(row))));
}

function gates() {
  const names = [...new Set(sides.flatMap((side) => side.gates.map((gate) => gate.name)))];
  if (!names.length) return fill("gates", null);
  const found = (name) => sides.map((side) => side.gates.find((gate) => gate.name === name));
  const share = (name) => Math.max(...found(name).map((gate, side) => (gate ? gate.marked / sides[side].stats.pairs_gated : 0)));
  const panels = [...names].sort((a, b) => share(b) - share(a)).map((name) => {
    const both = found(name);
    const first = both.find(Boolean);
    const sameLimits = both.every((gate) => !gate || (gate.min === first.min && gate.max === first.max));
    const limits = [first.min == null ? null : `below ${number(first.min)}`, first.max == null ? null : `above ${number(first.max)}`].filter(Boolean);
    const marked = both.map((gate, side) => {
      const whole = sides[side].stats.pairs_gated;
      return element("p", { class: "marked-share" }, letter(side), gate ? [element("b", { class: gate.marked ? "some" : "none" }, percent(gate.marked, whole)), ` ${plural(gate.marked, "pair")} marked`,
        gate.scored < whole ? element("small", {}, ` · ${number(gate.scored)} scored`) : null] : " not applied");
    });
    return element("div", { class: "chart gate" },
      element("h3", {}, text(spaced(name)), element("small", {}, text(first.meaning), limits.length && sameLimits ? `; marked ${limits.join(" or ")}` : null, sameLimits ? null : "; the limits differ")),
      marked, histogram(both.map((gate) => gate?.scores), "score", sameLimits ? first : {}));
  });
  const kept = sides.map(({ stats }, side) => (stats.pairs_gated
    ? element("p", {}, letter(side), " ", `${number(stats.pairs_gated)} pairs were scored: ${number(stats.pairs_kept)} (${percent(stats.pairs_kept, stats.pairs_gated)}) are kept by all gates. `,
      `${plural(stats.images_without_kept_pair, "image")} ${stats.images_without_kept_pair === 1 ? "has" : "have"} no pair left.${isCompared ? "" : " A gate marks; nothing is deleted."}`)
    : element("p", {}, letter(side), " No gate was applied.")));
  fill("gates", "Quality gates", kept, element("div", { class: "charts gates" }, panels));
}

function losses() {
  const blocks = sides.map((side, index) => {
    const { stats } = side;
    const shown = side.rejects.map(({ status, reason, count, examples }) =>
      element("details", {},
        element("summary", {}, element("b", {}, text(spaced(reason))), ` ${plural(count, "image")} `, element("small", {}, `${status}, ${percent(count, stats.images)}`)),
        examples.map((example) => element("article", { class: "lost" }, thumbnail({ images: example.images, sides: [example] }), element("div", {},
          element("p", {}, text(example.id, "b"), example.detail ? [": ", text(example.detail)] : null),
          example.raw.length ? example.raw.map((raw) => text(raw || "(nothing)", "pre")) : element("p", { class: "soft" }, "The model was not asked."))))));
    const rot = side.link_rot;
    const links = rot ? element("div", { class: "links" }, element("h3", {}, "Links", element("small", {}, `${percent(rot.alive, 1)} of ${plural(rot.urls, "URL")} still led to an image`)), bars([rot.outcomes], [rot.urls])) : null;
    if (!shown.length && !links && !stats.repeated_images) return null;
    return element("div", { class: "lost-of" }, isCompared ? element("h3", {}, letter(index), " ", text(side.name)) : null,
      shown.length ? [element("p", {}, `${plural(stats.rejected, "image")} rejected because of the answers, ${number(stats.unreadable)} unreadable, of ${number(stats.images)}.`), element("div", { class: "reasons" }, shown)]
        : element("p", {}, "No image was rejected, and none was unreadable."),
      links, repeated(side));
  });
  fill("losses", sides.some(({ stats }) => stats.repeated_images) ? "Losses and duplicates" : "Losses", blocks);
  if (sides.some(({ stats }) => stats.repeated_images)) byId("losses-title").textContent = "Losses and duplicates";
}

function repeated({ stats, repeats }) {
  if (!stats.repeated_images) return null;
  const one = stats.repeated_images === 1;
  return element("div", { class: "repeated" },
    element("h3", {}, "Duplicates", element("small", {}, `${about(stats.repeated_images, stats.repeated_images_is_exact)} of the accepted images ${one ? "has" : "have"} the bytes of an earlier one`)),
    element("div", { class: "groups" }, repeats.map(({ count, copies, images }) => element("details", {},
      element("summary", {}, images[0] ? element("img", { src: images[0], alt: "", loading: "lazy" }) : null, element("span", {}, element("b", {}, `${number(count)} copies`), " ", text(copies[0].caption || copies[0].id, "span", "soft"))),
      copies.map((copy) => element("article", {}, text(copy.id, "small"), element("ul", { class: "pairs" }, copy.pairs.map((pair) => element("li", {}, text(pair.user, "p"), text(pair.assistant, "p", "answer"))))))))));
}

function madeWith() {
  const list = (counts) => Object.entries(counts).map(([name, count]) => `${name} (${number(count)})`).join(", ");
  fill("run", "How it was made", sides.map(({ config, run, versions, stats, engine_version: version, finished_at: finished, name }, side) => {
    const sizes = stats.image_sizes;
    const figure = (value) => (value == null ? null : number(value));
    return [isCompared ? element("h3", { class: "of-side" }, letter(side), " ", text(name)) : null, element("div", { class: "charts" },
      chart("Settings", "", facts([
        ["model", config.model ?? list(stats.models)], ["revision", config.model_revision], ["engine", [config.engine, version].filter(Boolean).join(" ")],
        ["precision", config.dtype], ["protocol", config.protocol], ["temperature", config.temperature], ["top_p", config.top_p],
        ["max_tokens", config.max_tokens], ["attempts", config.attempts], ["seed", config.seed],
      ])),
      Object.keys(run).length || finished ? chart("Last run", "", facts([
        ["finished", finished ? moment(finished) : null], ["images", figure(run.images)], ["seconds", figure(run.seconds)], ["images per second", figure(run.images_per_second)],
        ["output tokens per second", figure(run.output_tokens_per_second)], ["engine start, seconds", figure(run.engine_start_seconds)],
        ["versions", Object.entries(versions).map(([library, value]) => `${library} ${value}`).join(", ")],
      ])) : null,
      chart("Files", sizes ? `headers of ${plural(sizes.sampled, "image")}` : "", sizes ? facts([
        ["median image", `${number(sizes.width)} × ${number(sizes.height)} pixels, ${bytes(sizes.bytes)}`],
        ["smallest", sizes.smallest.map(number).join(" × ")], ["largest", sizes.largest.map(number).join(" × ")], ["formats", list(sizes.formats)],
        ["Parquet", `${bytes(stats.bytes)} in ${plural(stats.shards, "shard")}`],
      ]) : element("p", { class: "soft" }, "The dataset was published without its images.")))];
  }).flat());
}
