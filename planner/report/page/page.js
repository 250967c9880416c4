"use strict";
// Tips on hover and focus, arrow keys from mark to mark, the filter. Without it the page shows every figure in its tables.
const tip = document.getElementById("tip");
const saidOf = (mark) => mark.dataset.tip || mark.getAttribute("aria-label");

let told = null;

function showTip(mark) {
  told = mark;
  tip.textContent = saidOf(mark);
  tip.hidden = false;
  const at = mark.getBoundingClientRect(), own = tip.getBoundingClientRect();
  const left = Math.min(Math.max(4, at.left + at.width / 2 - own.width / 2), innerWidth - own.width - 4);
  const above = at.top - own.height - 8;
  tip.style.left = `${left}px`;
  tip.style.top = `${above > 4 ? above : at.bottom + 8}px`;
}
const hideTip = () => { told = null; tip.hidden = true; };

const marks = "[data-roving] [role=img], [data-tip]";
for (const name of ["pointerover", "focusin"])
  document.addEventListener(name, (event) => { const mark = event.target.closest(marks); if (mark) showTip(mark); });
for (const name of ["pointerout", "focusout"]) document.addEventListener(name, hideTip);
addEventListener("scroll", () => { if (told) showTip(told); }, { passive: true });
addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });

// One stop of the tab key for each chart; arrows, Home and End go on from there, from left to right.
const middle = (mark) => { const box = mark.getBoundingClientRect(); return box.left + box.width / 2; };
const seen = (chart) => [...chart.querySelectorAll("[role=img]:not(.hidden)")].sort((a, b) => middle(a) - middle(b));
function stopAt(chart, mark) {
  for (const each of chart.querySelectorAll("[role=img]")) each.setAttribute("tabindex", each === mark ? "0" : "-1");
}
const firstStop = (chart) => stopAt(chart, chart.querySelector(".chosen:not(.hidden)") || seen(chart)[0]);
function rove(part) {
  for (const chart of part.querySelectorAll("[data-roving]")) {
    firstStop(chart);
    chart.addEventListener("keydown", (event) => {
      const all = seen(chart), here = all.indexOf(document.activeElement);
      const to = { ArrowRight: here + 1, ArrowDown: here + 1, ArrowLeft: here - 1, ArrowUp: here - 1, Home: 0, End: all.length - 1 }[event.key];
      if (to === undefined || here < 0) return;
      event.preventDefault();
      const mark = all[Math.min(Math.max(to, 0), all.length - 1)];
      stopAt(chart, mark);
      mark.focus();
    });
  }
}
rove(document);

const form = document.querySelector(".filter");
function filter() {
  const words = document.getElementById("filter").value.toLowerCase().split(/[\s,]+/).filter(Boolean);
  const engines = new Set([...form.querySelectorAll("[name=engine]:checked")].map((box) => box.value));
  const lost = form.querySelector("[name=lost]").checked;
  const rows = [...document.querySelectorAll("#candidates tbody tr")];
  let shown = 0;
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    const kept = engines.has(row.dataset.engine) && (lost || row.dataset.standing !== "lost")
      && (!words.length || words.some((word) => text.includes(word)));
    shown += kept;
    for (const each of document.querySelectorAll(`[data-row="${row.dataset.row}"]`)) each.classList.toggle("hidden", !kept);
  }
  document.querySelectorAll("#choices [data-roving]").forEach(firstStop);
  document.getElementById("shown").textContent = `${shown} of ${rows.length}`;
}
if (form) {
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
}
addEventListener("beforeprint", () => { for (const each of document.querySelectorAll("details")) each.open = true; });
