"use strict";
// Adds sorting, search and choice of horizon and level to tables that are all in the page without it.
document.documentElement.classList.add("js");
addEventListener("DOMContentLoaded", () => {
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];
  const tools = document.querySelector(".tools");
  const fields = tools.elements;

  function keyOf(cell, isText) {
    const text = cell.textContent.trim();
    if (isText) return text === "–" ? null : text.toLowerCase();
    const found = text.startsWith("–") ? null : text.replaceAll(",", "").replaceAll("−", "-").match(/[-+]?\d*\.?\d+/);
    return found && Number(found[0]);
  }

  function compare(a, b) {
    return typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;
  }

  // Cells without a number stay last in both directions; equal ones keep their order.
  function sortTable(table, column, direction) {
    const isText = table.tHead.rows[0].cells[column].classList.contains("text");
    const rows = [...table.tBodies[0].rows].map(row => [keyOf(row.cells[column], isText), row]);
    rows.sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null) : direction * compare(a, b)));
    table.tBodies[0].append(...rows.map(([, row]) => row));
    [...table.tHead.rows[0].cells].forEach((cell, number) => {
      if (number === column) cell.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
      else cell.removeAttribute("aria-sort");
    });
  }

  function sortBy(head) {
    const isText = head.classList.contains("text");
    const before = head.getAttribute("aria-sort");
    const direction = before ? (before === "ascending" ? -1 : 1) : isText ? 1 : -1;
    const { kind } = head.closest("table").dataset;
    for (const table of all("table[data-kind]")) {
      if (table.dataset.kind === kind) sortTable(table, head.cellIndex, direction);
    }
  }

  for (const head of all("table[data-kind] thead th:not(.plot, .curve)")) {
    if (!head.textContent) continue;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sortBy(head));
    head.append(button);
  }

  const rows = all("table.targets tbody tr").map(row => [row, row.cells[0].textContent.toLowerCase()]);
  const chosen = name => fields[name]?.value;

  function filterRows() {
    const words = chosen("target").toLowerCase().split(/\s+/);
    const band = chosen("band") ?? "all";
    for (const [row, name] of rows) {
      const banded = band === "all" || !("band" in row.dataset) || row.dataset.band === band;
      const many = !fields.few?.checked || !("few" in row.dataset);
      row.classList.toggle("out", !(banded && many && words.every(word => name.includes(word))));
    }
    const main = document.querySelector(".group:not(.away) table.targets");
    if (!main) return;
    const shown = [...main.tBodies[0].rows];
    tools.querySelector("output").textContent =
      `${shown.filter(row => !row.classList.contains("out")).length} of ${shown.length}`;
    for (const count of all("[data-count]")) {
      const { count: band } = count.dataset;
      count.textContent = shown.filter(row => band === "all" || row.dataset.band === band).length;
    }
  }

  // Of each part shows the group that fits best: the level before the horizon, the first of equals.
  function chooseGroups() {
    const fit = (group, name) => !(name in group.dataset) || !chosen(name) || group.dataset[name] === chosen(name);
    for (const part of all("section")) {
      const groups = all(".group[data-level]", part);
      const fits = groups.map(group => 2 * fit(group, "level") + fit(group, "horizon"));
      const best = groups[fits.indexOf(Math.max(...fits))];
      for (const group of groups) group.classList.toggle("away", group !== best);
      if (best) best.open = true;
    }
    filterRows();
  }

  // What is unfolded at one horizon and level is so at all of them.
  for (const details of all("details.more")) {
    details.addEventListener("toggle", () => {
      for (const other of all("details.more")) {
        if (other.dataset.kind === details.dataset.kind) other.open = details.open;
      }
    });
  }

  tools.addEventListener("submit", event => event.preventDefault());
  tools.addEventListener("input", event => {
    if (["horizon", "level"].includes(event.target.name)) chooseGroups();
    else filterRows();
  });
  new ResizeObserver(() => {
    const isSticky = getComputedStyle(tools).position === "sticky";
    document.documentElement.style.setProperty("--bar", `${isSticky ? tools.offsetHeight : 0}px`);
  }).observe(tools);

  let unfolded = [];
  addEventListener("beforeprint", () => {
    unfolded = all("details:not([open])");
    for (const details of unfolded) details.open = true;
  });
  addEventListener("afterprint", () => {
    for (const details of unfolded) details.open = false;
  });
  tools.reset();
  chooseGroups();
});
