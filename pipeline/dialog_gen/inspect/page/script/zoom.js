// One image enlarged, with all that is known about it. Arrows go to its neighbours, Esc closes.

let zoomed = { items: [], index: 0, returnTo: null };

function openZoom(items, index) {
  zoomed = { items, index, returnTo: document.activeElement };
  showZoomed();
  if (!byId("zoom").open) byId("zoom").showModal();
}

function showZoomed() {
  const { items, index } = zoomed;
  const row = items[index];
  const step = (by, label, sign) => {
    const button = element("button", { type: "button", "aria-label": label, class: "step" }, sign);
    button.disabled = !items[index + by];
    button.addEventListener("click", () => moveZoom(by));
    return button;
  };
  const close = element("button", { type: "button", "aria-label": "Close", class: "close" }, "×");
  close.addEventListener("click", () => byId("zoom").close());
  byId("zoom").replaceChildren(
    element("div", { class: "bar-of-zoom" }, items.length > 1 ? [step(-1, "Previous image", "‹"), element("span", {}, `${number(index + 1)} of ${number(items.length)}`), step(1, "Next image", "›")] : null, close),
    element("div", { class: "large" }, imagesOf(row).map((src) => image(src, row.caption || `Image ${row.id}`))),
    element("div", { class: "said" }, row.caption ? text(row.caption, "p", "caption") : null, dialogues(row, true), footer(row)));
  byId("zoom").scrollTop = 0;
}

function moveZoom(by) {
  if (!zoomed.items[zoomed.index + by]) return;
  zoomed.index += by;
  showZoomed();
}

function controlZoom() {
  const zoom = byId("zoom");
  // A click beside the content, on the backdrop, closes it.
  zoom.addEventListener("click", (event) => { if (event.target === zoom) zoom.close(); });
  zoom.addEventListener("click", (event) => { if (event.target.closest("footer a[href^='#']")) zoom.close(); });
  zoom.addEventListener("close", () => zoomed.returnTo?.focus?.({ preventScroll: true }));
}
