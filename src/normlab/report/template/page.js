"use strict";
// A click on a column heading sorts the table in ascending order, a second click in descending order.
for (const table of document.querySelectorAll("table:not(.effects)")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const ascending = head.getAttribute("aria-sort") !== "ascending";
    const key = (row) => row.cells[column].dataset.value;
    const rows = [...table.tBodies[0].rows];
    const numeric = rows.every((row) => key(row) === "" || !Number.isNaN(Number(key(row))));
    rows.sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const order = numeric ? Number(x) - Number(y) : x.localeCompare(y, "en", { numeric: true });
      return ascending ? order : -order;
    });
    table.tBodies[0].append(...rows);
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  }));
}
// A printed page has no way to expand a table, so all are expanded.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((each) => { each.open = true; }));
