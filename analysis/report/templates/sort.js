// A click on a heading sorts its table: numbers by value, everything else as text, unknown values last.
"use strict";
const number = (text) => parseFloat(text.replace(/,/g, ""));
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const ascending = head.getAttribute("aria-sort") !== "ascending";
    const rows = [...table.tBodies[0].rows];
    const text = (row) => row.cells[column].textContent.trim();
    const known = rows.map(text).filter((value) => value !== "–" && value !== "");
    const numeric = known.length > 0 && known.every((value) => !Number.isNaN(number(value)));
    const missing = (value) => value === "–" || value === "";
    rows.sort((a, b) => {
      const [x, y] = [text(a), text(b)];
      if (missing(x) || missing(y)) return missing(x) - missing(y);
      const order = numeric ? number(x) - number(y) : x.localeCompare(y, "en", { numeric: true });
      return ascending ? order : -order;
    });
    heads.forEach((other) => other.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    table.tBodies[0].append(...rows);
  }));
}
