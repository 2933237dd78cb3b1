"use strict";

// All content comes from one JSON block and becomes text nodes: no data is ever parsed as HTML.
const data = JSON.parse(document.getElementById("data").textContent);
const { sides, comparison, gallery } = data;
const SIDES = ["A", "B"];
const isCompared = sides.length > 1;

const byId = (id) => document.getElementById(id);

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value != null) node.setAttribute(name, value);
  node.append(...children.flat(Infinity).filter((child) => child != null && child !== false).map((child) => (child.nodeType ? child : String(child))));
  return node;
}

/** An element at a place of its parent; the numbers are shares of the parent's size. */
function placed(node, style) {
  for (const [name, share] of Object.entries(style)) node.style[name] = `${100 * share}%`;
  return node;
}

/** An element with text of the dataset, which keeps its own writing direction and line breaks. */
const text = (value, tag = "span", name = "") => element(tag, { class: `text${name ? ` ${name}` : ""}`, dir: "auto" }, value);

/** The letter of a dataset, where there are two. */
const letter = (side) => (isCompared ? element("b", { class: `letter ${SIDES[side].toLowerCase()}`, title: sides[side].name }, SIDES[side]) : null);

const digits = new Intl.NumberFormat("en", { maximumFractionDigits: 2 }).format;
const number = (value) => digits(value).replace(/^-0$/, "0");
const short = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 }).format;
const about = (value, exact) => `${exact ? "" : "≈ "}${number(value)}`;
const plural = (count, noun) => `${number(count)} ${noun}${count === 1 ? "" : "s"}`;
const sum = (numbers) => numbers.reduce((total, value) => total + value, 0);
const spaced = (name) => name.replaceAll("_", " ");

/** A share in percent; 0 % and 100 % are exactly that. */
function percent(part, whole) {
  if (!whole) return "";
  const share = (100 * part) / whole;
  if (part === 0 || part === whole) return `${part ? 100 : 0}\u00a0%`;
  return share < 0.05 ? "<0.1\u00a0%" : share >= 99.95 && share < 100 ? ">99.9\u00a0%" : `${share.toFixed(1)}\u00a0%`;
}

function bytes(count) {
  const unit = [[1e12, "TB"], [1e9, "GB"], [1e6, "MB"], [1e3, "kB"]].find(([size]) => count >= size);
  return unit ? `${(count / unit[0]).toPrecision(3)} ${unit[1]}` : `${count} bytes`;
}

/** A moment such as 2026-11-27T09:08:12+00:00, as 2026-11-27 09:08 UTC; anything else as it is. */
const moment = (value) => String(value).replace(/^(\d{4}-\d\d-\d\d)T(\d\d:\d\d)\S*?(\+00:00|Z)$/, "$1 $2 UTC");

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

/** The content of a section, which is hidden if there is none. */
function fill(id, title, ...content) {
  const shown = content.flat().filter((part) => part != null && part !== false);
  byId(id).append(...shown);
  byId(id).classList.toggle("hidden", !shown.length);
  if (shown.length && title) byId("contents").append(element("a", { href: `#${id}` }, title));
}
