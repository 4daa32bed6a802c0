/**
 * Elements from data. Text only ever becomes text: nothing here reads markup, and the page's policy forbids what would.
 */
const SVG = "http://www.w3.org/2000/svg";
const SVG_TAGS = new Set(["svg", "path", "rect", "line", "title"]);

/** `attributes` with null or false are left out; children are elements, text, numbers, or null for none. */
export function el(tag, attributes, ...children) {
  const element = SVG_TAGS.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value !== null && value !== undefined && value !== false)
      element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/**
 * Makes `target` hold `fresh`, and leaves alone what is the same already: a link that has the focus keeps it, text that is
 * being selected stays selected, and a screen reader hears only what changed.
 */
export function show(target, ...fresh) {
  const wanted = fresh.flat().filter((node) => node !== null && node !== undefined);
  wanted.forEach((node, index) => {
    const present = target.childNodes[index];
    const next = typeof node === "object" ? node : document.createTextNode(String(node));
    if (present === undefined) target.append(next);
    else update(present, next);
  });
  while (target.childNodes.length > wanted.length) target.lastChild.remove();
}

function update(present, next) {
  if (present.nodeName !== next.nodeName || present.dataset?.key !== next.dataset?.key) {
    present.replaceWith(next);
    return;
  }
  if (present.nodeType === Node.TEXT_NODE) {
    if (present.data !== next.data) present.data = next.data;
    return;
  }
  // A list that shrinks while it is walked would skip some.
  for (const name of present.getAttributeNames()) if (!next.hasAttribute(name)) present.removeAttribute(name);
  for (const { name, value } of next.attributes) {
    if (present.getAttribute(name) !== value) present.setAttribute(name, value);
  }
  show(present, [...next.childNodes]);
}

/** A table that scrolls by itself where it is too wide. `columns`: {name, number?, minor?, fill?}; rows of cells' contents. */
export function table(label, columns, rows) {
  return el(
    "div",
    { class: "scroll", role: "region", "aria-label": label, tabindex: "0" },
    el(
      "table",
      null,
      el(
        "thead",
        null,
        el(
          "tr",
          null,
          columns.map((column) => el("th", { scope: "col", class: classOf(column) }, column.name)),
        ),
      ),
      el(
        "tbody",
        null,
        rows.map((cells) =>
          el(
            "tr",
            null,
            cells.map((cell, index) => el("td", { class: classOf(columns[index]) }, cell)),
          ),
        ),
      ),
    ),
  );
}

const classOf = ({ number, minor, fill }) =>
  [number && "number", minor && "minor", fill && "fill"].filter(Boolean).join(" ") || null;

export const empty = (text) => el("p", { class: "empty" }, text);
