"use strict";
(() => {
  const words = (cell, name) => (cell.dataset[name] || "").split(" ").filter(Boolean);
  const readout = document.querySelector(".readout");
  let kept = null;

  function clear() {
    for (const cell of document.querySelectorAll(".lit, .cur")) cell.classList.remove("lit", "cur");
    readout.textContent = "";
  }

  function light(cell) {
    clear();
    const section = cell.closest("section");
    const wanted = new Set(words(cell, cell.dataset.h ? "h" : "k"));
    for (const other of section.querySelectorAll("td[data-k]")) {
      if (words(other, "k").some((word) => wanted.has(word))) other.classList.add("lit");
    }
    cell.classList.add("cur");
    readout.textContent = told(cell, section);
  }

  // How the number under the pointer comes about from those that are lit up.
  function told(cell, section) {
    const figure = cell.closest("figure");
    const start = `${figure.dataset.step}: ${cell.textContent}`;
    if (!words(section, "of").includes(figure.dataset.step)) return start;
    const lit = (step) => [...section.querySelectorAll(`figure[data-step="${step}"] td.lit`)].map((td) => td.textContent);
    const bracket = (text) => (text.startsWith("−") ? `(${text})` : text);
    const [left, right] = words(section, "terms").map(lit);
    if (!left.length || (right && right.length !== left.length)) return start;
    // Part of a sum is no sum.
    for (const step of words(section, "terms")) {
      const cut = section.querySelector(`figure[data-step="${step}"]`).dataset.cut;
      if (right ? cut.includes("columns") : cut) return start;
    }
    const terms = left.map((text, i) => (right ? `${bracket(text)}·${bracket(right[i])}` : bracket(text)));
    const plus = figure.dataset.step === "product" ? [] : lit(section.dataset.plus).map(bracket);
    return `${figure.dataset.step} = ${[...terms, ...plus].join(" + ")} = ${cell.textContent}`;
  }

  function cells(table) {
    return [...table.rows].map((row) => [...row.querySelectorAll("td[data-k]")]).filter((row) => row.length);
  }

  const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  document.addEventListener("pointerover", (event) => {
    if (kept) return;
    const cell = event.target.closest("td[data-k]");
    if (cell) light(cell);
    else clear();
  });
  document.addEventListener("click", (event) => {
    const cell = event.target.closest("td[data-k]");
    kept = cell && cell !== kept ? cell : null;
    if (kept) light(kept);
    else clear();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      kept = null;
      clear();
    }
    const table = event.target.closest && event.target.closest("table[tabindex]");
    if (!table || !steps[event.key]) return;
    event.preventDefault();
    const rows = cells(table);
    const current = table.querySelector(".cur");
    let row = rows.findIndex((found) => found.includes(current));
    let column = row < 0 ? 0 : rows[row].indexOf(current) + steps[event.key][1];
    row = row < 0 ? 0 : row + steps[event.key][0];
    row = Math.max(0, Math.min(rows.length - 1, row));
    column = Math.max(0, Math.min(rows[row].length - 1, column));
    kept = rows[row][column];
    light(kept);
    kept.scrollIntoView({ block: "nearest", inline: "nearest" });
  });
})();
