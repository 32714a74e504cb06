"use strict";
// Tables whose columns sort when their headings are clicked: up, down, and as written.

// The number that a cell begins with; null if it begins with none.
// "< 0.001" comes before 0.001; "0.82 [0.8, 0.9]" counts as 0.82.
function numberOf(text) {
  const found = /^\s*([<>≤≥≈]?)\s*([-−+]?)(\d[\d,]*(?:\.\d+)?|\.\d+)(?:e([-−+]?\d+))?/i.exec(text);
  if (!found) return null;
  const [, relation, sign, digits, exponent] = found;
  const power = exponent ? `e${exponent.replace("−", "-")}` : "";
  const size = Number(digits.replaceAll(",", "") + power);
  const nudge = {"<": -1, ">": 1}[relation] || 0;
  const value = sign === "-" || sign === "−" ? -size : size;
  return value + nudge * Math.max(Math.abs(value), 1e-300) * 1e-9;
}

function isMissing(text) {
  return text === "" || text === "–";
}

// A function that compares two cells' texts: as numbers if all of the column are.
function comparison(texts) {
  const there = texts.filter((text) => !isMissing(text));
  if (there.length && there.every((text) => numberOf(text) !== null)) {
    return (a, b) => numberOf(a) - numberOf(b);
  }
  return (a, b) => a.localeCompare(b, undefined, {numeric: true, sensitivity: "base"});
}

function sortBy(table, column, order) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const textOf = (row) => row.cells[column].textContent.trim();
  const compare = comparison(rows.map(textOf));
  rows.sort((a, b) => {
    const places = Number(a.dataset.place) - Number(b.dataset.place);
    if (order === "none") return places;
    const [first, second] = [textOf(a), textOf(b)];
    if (isMissing(first) || isMissing(second)) {   // last in both orders
      return isMissing(first) - isMissing(second) || places;
    }
    return (order === "ascending" ? 1 : -1) * compare(first, second) || places;
  });
  body.append(...rows);
}

function makeSortable(table) {
  const headings = [...table.tHead.rows[0].cells];
  [...table.tBodies[0].rows].forEach((row, place) => { row.dataset.place = place; });
  const next = {none: "ascending", ascending: "descending", descending: "none"};
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.title = "sort by this column";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const order = next[heading.getAttribute("aria-sort") || "none"];
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      if (order !== "none") heading.setAttribute("aria-sort", order);
      sortBy(table, column, order);
    });
  });
}

document.querySelectorAll("table").forEach(makeSortable);
