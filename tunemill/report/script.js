// What makes the page handier and is not needed to read it. No storage, no network; styles only through the object model,
// which the content security policy allows.
"use strict";
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const tip = document.getElementById("tip");
  const said = document.getElementById("said");

  // Colours: as the system, light, dark.
  const theme = document.getElementById("theme");
  const themes = ["", "light", "dark"];
  theme.hidden = false;
  theme.addEventListener("click", () => {
    const next = themes[(themes.indexOf(document.documentElement.dataset.theme ?? "") + 1) % themes.length];
    if (next) document.documentElement.dataset.theme = next;
    else delete document.documentElement.dataset.theme;
    theme.textContent = `Colours: ${next || "as the system"}`;
  });

  // Contents: always open where there is room, closed again on a phone once a chapter is chosen.
  const contents = document.getElementById("contents");
  const wide = matchMedia("(min-width: 75rem)");
  const fit = () => { contents.open = wide.matches; };
  fit();
  wide.addEventListener("change", fit);
  const links = new Map(all("a", contents).map(link => [link.hash.slice(1), link]));
  for (const link of links.values()) link.addEventListener("click", fit);
  const seen = new Set();
  const follow = new IntersectionObserver(entries => {
    for (const entry of entries) seen[entry.isIntersecting ? "add" : "delete"](entry.target);
    const here = all(".chapter").find(each => seen.has(each));
    for (const [id, link] of links) {
      if (here?.id === id) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
    contents.querySelector(".here").textContent = here ? links.get(here.id).textContent : "";
  }, { rootMargin: "-15% 0px -70% 0px" });
  all(".chapter").forEach(each => follow.observe(each));

  // Folds: all at once, but never what may offend.
  const unfold = document.getElementById("unfold");
  document.getElementById("tools").hidden = false;
  unfold.addEventListener("click", () => {
    const open = unfold.textContent.startsWith("Open");
    all("main details:not(.offensive, .veiled)").forEach(each => { each.open = open; });
    unfold.textContent = open ? "Close all folds" : "Open all folds";
  });

  // Figures of a mark: at the pointer, at the focus, and by arrow keys within a chart.
  const show = mark => {
    tip.textContent = mark.dataset.tip;
    tip.hidden = false;
    const box = mark.getBoundingClientRect(), own = tip.getBoundingClientRect();
    const left = Math.min(Math.max(8, box.x + box.width / 2 - own.width / 2), document.documentElement.clientWidth - own.width - 8);
    const above = box.y - own.height - 10;
    tip.style.left = `${left + scrollX}px`;
    tip.style.top = `${(above > 4 ? above : box.bottom + 10) + scrollY}px`;
  };
  const hide = () => {
    tip.hidden = true;
    all(".pointed").forEach(each => each.classList.remove("pointed"));
  };
  for (const title of all("svg title")) {
    title.parentNode.dataset.tip = title.textContent;
    title.remove();
  }
  document.addEventListener("pointerover", event => {
    const mark = event.target.closest("[data-tip]");
    if (mark) show(mark);
    else if (!tip.hidden) hide();
  });
  document.addEventListener("focusin", event => {
    const mark = event.target.closest("[data-tip]");
    if (mark) show(mark);
    else hide();
  });
  document.addEventListener("keydown", event => { if (event.key === "Escape") hide(); });
  for (const chart of all("svg[role=img]")) {
    if (!chart.querySelector("[data-tip]")) continue;
    chart.setAttribute("tabindex", "0");
    chart.setAttribute("aria-roledescription", "chart, arrow keys walk through its marks");
    let at = -1;
    chart.addEventListener("blur", () => { at = -1; hide(); });
    chart.addEventListener("keydown", event => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const marks = all("[data-tip]", chart).filter(each => !each.closest(".off"));
      if (!marks.length) return;
      at = at < 0 ? (step > 0 ? 0 : marks.length - 1) : (at + step + marks.length) % marks.length;
      hide();
      marks[at].classList.add("pointed");
      show(marks[at]);
      said.textContent = marks[at].dataset.tip;
    });
  }

  // Legends: each entry switches its series.
  for (const legend of all("[data-toggles]")) {
    for (const entry of all("[data-series]", legend)) {
      const button = document.createElement("button");
      button.type = "button";
      button.setAttribute("aria-pressed", "true");
      button.append(...entry.childNodes);
      entry.append(button);
      button.addEventListener("click", () => {
        const on = button.getAttribute("aria-pressed") !== "true";
        button.setAttribute("aria-pressed", String(on));
        all(`[data-series="${entry.dataset.series}"]`, legend.closest("figure"))
          .filter(each => each !== entry).forEach(each => each.classList.toggle("off", !on));
      });
    }
  }

  // Tables: sorted by a column, numbers as numbers, what is undefined last.
  const value = (row, column) => {
    const cell = row.cells[column], told = cell.dataset.value ?? cell.textContent.trim();
    const found = told.replace(/,/g, "").replace("−", "-").match(/^[+-]?\d+(\.\d+)?/);
    return column && found ? Number(found[0]) : column ? NaN : told;
  };
  for (const table of all("table[data-sort]")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") === "descending";
        heads.forEach(each => each.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const rows = [...table.tBodies[0].rows].map(row => [value(row, column), row]);
        rows.sort(([a], [b]) => {
          if (typeof a === "string") return (up ? 1 : -1) * a.localeCompare(b);
          if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
          return up ? a - b : b - a;
        });
        table.tBodies[0].append(...rows.map(([, row]) => row));
      });
    });
  }
})();
