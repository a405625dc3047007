// Tables that sort and numbers that tell what is behind them. No library, no request; without it a page still reads.
"use strict";

(() => {
  const MISSING = /^\s*(?:[–—-]|nan|none|n\/a)?\s*$/i;
  const DATE = /^\d{4}-\d{2}-\d{2}(?:[T ]\d{2}:\d{2}(?::\d{2})?)?/;
  // A number may be signed, grouped by commas and followed by what belongs to it (an interval, a per cent sign), but not
  // by a letter: "7B model", "3rd" and "1.2.3" are texts.
  const NUMBER = /^[\s[(<≤≥>~≈±]*([+−-]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:e[+-]?\d+)?)(?![\p{L}_\d]|[.,]\d)/iu;
  const PRODUCT = /^\s*(\d+)\s*×\s*(\d+)/;
  const NEXT = { "as written": "ascending", ascending: "descending", descending: "as written" };
  const FILTER_FROM = 15; // rows from which on a table has a filter

  /** What a text sorts by: a number, a text in lower case, or null for a missing value. */
  function sortKey(text) {
    if (MISSING.test(text)) return null;
    const date = text.trim().match(DATE);
    if (date) return Date.parse(date[0].length > 10 ? `${date[0].replace(" ", "T")}Z` : date[0]);
    const product = text.match(PRODUCT);
    if (product) return Number(product[1]) * Number(product[2]);
    const number = text.match(NUMBER);
    if (number && /\d/.test(number[1])) return Number(number[1].replace("−", "-").replaceAll(",", ""));
    return text.trim().toLowerCase();
  }

  function cellKey(cell) {
    return cell === undefined ? null : "sort" in cell.dataset ? Number(cell.dataset.sort) : sortKey(cell.textContent);
  }

  /** Order of two keys: numbers before texts, missing values last in either direction. */
  function compare(a, b, direction) {
    if (a === null || b === null) return (a === null) - (b === null);
    if (typeof a !== typeof b) return direction * (typeof a === "number" ? -1 : 1);
    return direction * (typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true }));
  }

  // --- Sorting ------------------------------------------------------------------------------------------------------

  /** The heading at the foot of each column: the lowest cell of the head that covers it alone and says something. */
  function columnHeadings(table) {
    const found = [];
    for (const row of table.tHead?.rows ?? []) {
      let column = 0;
      for (const cell of row.cells) {
        if (cell.colSpan === 1 && cell.textContent.trim()) found[column] = cell;
        column += cell.colSpan;
      }
    }
    return found;
  }

  /** pandas gives the names of the index a row of their own below the headings; they fit beside them. */
  function mergeIndexNames(table) {
    const rows = [...(table.tHead?.rows ?? [])];
    if (rows.length < 2) return;
    const [above, names] = rows.slice(-2);
    const cells = [...names.cells];
    const both = [...above.cells].every((cell, k) => cell.colSpan === 1 && !(cell.textContent.trim() && cells[k]?.textContent.trim()));
    const few = cells.filter((cell) => cell.textContent.trim()).length < cells.length;
    if (above.cells.length !== cells.length || !both || !few) return;
    cells.forEach((cell, k) => cell.textContent.trim() && above.cells[k].replaceChildren(...cell.childNodes));
    names.remove();
  }

  /** A label that covers several rows is repeated in each, so that rows can move. */
  function repeatLabels(body) {
    const rows = [...body.rows];
    rows.forEach((row, k) => {
      for (const cell of [...row.cells]) {
        const column = cell.cellIndex;
        for (let below = 1; below < cell.rowSpan && k + below < rows.length; below++) {
          const copy = cell.cloneNode(true);
          copy.rowSpan = 1;
          rows[k + below].insertBefore(copy, rows[k + below].cells[column] ?? null);
        }
        cell.rowSpan = 1;
      }
    });
  }

  /** Columns whose known values are mostly numbers are set flush right, heading and all. */
  function markNumbers(rows, headings) {
    headings.forEach((heading, column) => {
      const cells = rows.map((row) => row.cells[column]).filter((cell) => cell?.tagName === "TD");
      const keys = cells.map(cellKey).filter((key) => key !== null);
      if (keys.filter((key) => typeof key === "number").length * 2 > keys.length)
        for (const cell of [heading, ...cells]) cell.classList.add("number");
    });
  }

  function makeSortable(table) {
    const body = table.tBodies[0];
    const headings = columnHeadings(table);
    if (!body || body.rows.length < 2 || [...body.rows].some((row) => [...row.cells].some((cell) => cell.colSpan > 1))) return;
    repeatLabels(body);
    const original = [...body.rows];
    markNumbers(original, headings);
    headings.forEach((heading, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.append(...heading.childNodes);
      heading.append(button);
      button.addEventListener("click", () => {
        const next = NEXT[heading.getAttribute("aria-sort") ?? "as written"];
        for (const other of headings) other?.removeAttribute("aria-sort");
        const sorted = next !== "as written";
        if (sorted) heading.setAttribute("aria-sort", next);
        const rows = sorted
          ? original
              .map((row) => [cellKey(row.cells[column]), row])
              .sort(([a], [b]) => compare(a, b, next === "ascending" ? 1 : -1))
              .map(([, row]) => row)
          : original;
        body.append(...rows);
      });
    });
  }

  function addFilter(table) {
    const body = table.tBodies[0];
    if (!body || body.rows.length < FILTER_FROM) return;
    const input = document.createElement("input");
    input.type = "search";
    input.className = "filter";
    input.placeholder = `Filter ${body.rows.length} rows`;
    input.setAttribute("aria-label", input.placeholder);
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      for (const row of body.rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
    });
    (table.closest(".table-box, .table-wrapper") ?? table).before(input);
  }

  // --- What is behind a number --------------------------------------------------------------------------------------

  const tip = document.createElement("div");
  tip.id = "behind";
  tip.setAttribute("role", "tooltip");
  tip.hidden = true;
  let shownFor = null;
  let pinned = false;

  function describe(cell) {
    const table = cell.closest("table");
    const label = [...cell.parentElement.cells].filter((other) => other.tagName === "TH").map((other) => other.textContent.trim());
    const heading = columnHeadings(table)[cell.cellIndex]?.textContent.trim() ?? "";
    const title = document.createElement("strong");
    title.textContent = [...label, heading].filter(Boolean).join(", ");
    const list = document.createElement("dl");
    const add = (name, value) => {
      const term = document.createElement("dt");
      const text = document.createElement("dd");
      term.textContent = name;
      text.append(value);
      list.append(term, text);
      return text;
    };
    for (const line of (cell.dataset.behind ?? "").split("\n").filter(Boolean)) {
      const colon = line.indexOf(": ");
      add(line.slice(0, colon), line.slice(colon + 2));
    }
    const runs = (cell.dataset.runs ?? "").split(" ").filter(Boolean).map(decodeURIComponent);
    if (runs.length) {
      const target = add("runs", "");
      const root = document.documentElement.dataset.content_root ?? "./";
      runs.forEach((run, k) => {
        const link = document.createElement("a");
        link.href = `${root}runs.html#${encodeURIComponent(run)}`;
        link.textContent = run;
        target.append(k ? ", " : "", link);
      });
    }
    tip.replaceChildren(title, list);
  }

  function show(cell) {
    if (shownFor === cell) return;
    hide();
    describe(cell);
    shownFor = cell;
    cell.setAttribute("aria-describedby", tip.id);
    tip.hidden = false;
    const place = cell.getBoundingClientRect();
    const width = document.documentElement.clientWidth;
    const left = Math.max(8, Math.min(place.left + scrollX, scrollX + width - tip.offsetWidth - 8));
    const below = place.bottom + tip.offsetHeight + 8 < innerHeight || place.top < tip.offsetHeight + 8;
    tip.style.left = `${left}px`;
    tip.style.top = `${scrollY + (below ? place.bottom + 4 : place.top - tip.offsetHeight - 4)}px`;
  }

  function hide() {
    shownFor?.removeAttribute("aria-describedby");
    shownFor = null;
    pinned = false;
    tip.hidden = true;
  }

  /** Cells of a table that have something behind them: one of them is reached with Tab, the others with arrows. */
  function makeAskable(table) {
    const cells = [...table.querySelectorAll("td[title], td[data-runs]")];
    cells.forEach((cell, k) => {
      cell.dataset.behind = cell.title;
      cell.removeAttribute("title");
      cell.tabIndex = k ? -1 : 0;
      cell.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && !pinned && show(cell));
      cell.addEventListener("pointerleave", (event) => {
        if (event.pointerType === "mouse" && !pinned && !tip.contains(event.relatedTarget)) hide();
      });
      cell.addEventListener("focus", () => cell.matches(":focus-visible") && show(cell));
      cell.addEventListener("blur", (event) => !pinned && !tip.contains(event.relatedTarget) && hide());
      cell.addEventListener("click", () => {
        show(cell);
        pinned = true;
      });
      cell.addEventListener("keydown", (event) => move(event, cell, table));
    });
  }

  function move(event, cell, table) {
    const [rows, columns] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ?? [0, 0];
    if (event.key === "Enter") {
      show(cell);
      pinned = true;
      tip.querySelector("a")?.focus();
    }
    if (!rows && !columns) return;
    event.preventDefault();
    let row = cell.parentElement;
    let column = cell.cellIndex;
    for (;;) {
      if (rows) row = rows > 0 ? row.nextElementSibling : row.previousElementSibling;
      column += columns;
      const next = row?.cells[column];
      if (!next) return; // the table's edge
      if (next.dataset.behind === undefined) continue;
      for (const other of table.querySelectorAll("td[data-behind]")) other.tabIndex = -1;
      next.tabIndex = 0;
      hide();
      next.focus();
      next.scrollIntoView({ block: "nearest", inline: "nearest" });
      show(next);
      return;
    }
  }

  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || tip.hidden) return;
    if (tip.contains(document.activeElement)) shownFor.focus(); // which shows it again, so this comes first
    hide();
  });
  document.addEventListener("click", (event) => {
    if (!tip.contains(event.target) && !event.target.closest?.("td[data-behind]")) hide();
  });
  tip.addEventListener("pointerleave", () => !pinned && hide());

  // --- Start --------------------------------------------------------------------------------------------------------

  window.gpgReport = { sortKey, compare };
  document.addEventListener("DOMContentLoaded", () => {
    document.body.append(tip);
    for (const table of document.querySelectorAll("article table")) {
      if (table.parentElement.matches(".output.text_html")) table.classList.add("dataframe"); // a styled frame has no class
      mergeIndexNames(table);
      makeAskable(table);
      makeSortable(table);
      addFilter(table);
    }
    document.documentElement.dataset.tables = "ready";
  });
})();
