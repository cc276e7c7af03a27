"use strict";
// A click on a header sorts its table: numbers by value, texts by the alphabet, empty cells last. A text filters rows.
const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
const key = (row, column) => {
  const cell = row.cells[column];
  return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent.trim();
};
for (const block of document.querySelectorAll(".table")) {
  const body = block.querySelector("tbody");
  const headers = [...block.querySelectorAll("th")];
  headers.forEach((header, column) => {
    header.firstElementChild.addEventListener("click", () => {
      const rising = header.getAttribute("aria-sort") !== "ascending";
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", rising ? "ascending" : "descending");
      const rows = [...body.rows].map((row) => [key(row, column), row]);
      rows.sort(([a], [b]) => (a === "") - (b === "") || (rising ? 1 : -1) * compare(a, b));
      body.append(...rows.map(([, row]) => row));
    });
  });
  block.querySelector("input")?.addEventListener("input", (event) => {
    const words = event.target.value.toLowerCase().split(/\s+/);
    for (const row of body.rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
}
