// The page at work: contents, theme, which methods are shown, and tables of the charts' numbers.
"use strict";

(() => {
  const numbers = JSON.parse(document.getElementById("report-data").textContent);
  const hidden = new Set(); // methods
  const byId = (id) => document.getElementById(id);

  function element(name, properties = {}, ...children) {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  }

  // Contents

  for (const section of document.querySelectorAll("main > section[id]")) {
    const heading = section.querySelector("h2");
    if (heading) byId("contents").append(element("li", {}, element("a", { href: `#${section.id}`, textContent: heading.textContent })));
  }

  // Theme: as the system's until chosen. A browser may refuse to remember it for a file.

  const THEMES = ["system", "light", "dark"];

  function remembered() {
    try {
      return localStorage.getItem("report-theme");
    } catch (error) {
      if (error instanceof DOMException) return null;
      throw error;
    }
  }

  function setTheme(theme) {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    byId("theme").textContent = `Theme: ${theme}`;
    try {
      localStorage.setItem("report-theme", theme);
    } catch (error) {
      if (!(error instanceof DOMException)) throw error;
    }
  }

  setTheme(THEMES.includes(remembered()) ? remembered() : "system");
  byId("theme").addEventListener("click", () => {
    const now = document.documentElement.dataset.theme || "system";
    setTheme(THEMES[(THEMES.indexOf(now) + 1) % THEMES.length]);
  });

  // The numbers of a chart's panel as a table, made when it is opened

  function number(value) {
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size >= 10000 || size < 0.001) return value.toExponential(1).replace("e+", "e").replace("-", "−").replace("e−", "e-");
    return value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3).replace("-", "−");
  }

  const plain = (group) => group.replaceAll("_", " ");

  function fillTable(details) {
    details.querySelector(".table")?.remove();
    if (!details.open) return;
    const chart = numbers[details.closest("[data-chart]").dataset.chart];
    const panel = chart.panels[details.dataset.panel];
    const shown = panel.series.filter((one) => !hidden.has(one.group));
    const title = (one) => (chart.regions ? `${plain(one.group)}${shown.some((other) => other.run !== one.run) ? `, ${one.run}` : ""}` : one.run || one.group);
    const first = panel.categories.length ? "Part" : "Rollout step";
    const head = element("tr", {}, ...[first, ...shown.map(title)].map((text) => element("th", { scope: "col", textContent: text })));
    const places = [...new Set(shown.flatMap((one) => one.x))].sort((a, b) => a - b);
    const rows = places.map((x) => {
      const cells = shown.map((one) => {
        const index = one.x.indexOf(x);
        const before = one.start.length && index >= 0 ? ` (before: ${number(one.start[index])})` : "";
        return element("td", { className: "number", textContent: index < 0 ? "–" : number(one.y[index]) + before });
      });
      return element("tr", {}, element("th", { scope: "row", textContent: panel.categories[x] ?? String(x) }), ...cells);
    });
    const table = element("table", {}, element("caption", { className: "hidden", textContent: panel.title }));
    table.append(element("thead", {}, head), element("tbody", {}, ...rows));
    details.append(element("div", { className: "table", tabIndex: 0 }, table));
  }

  const tables = document.querySelectorAll("[data-panel]");
  for (const details of tables) details.addEventListener("toggle", () => fillTable(details));

  // Which methods are shown in charts and their tables

  for (const button of document.querySelectorAll("[data-method]")) {
    const method = button.dataset.method;
    button.addEventListener("click", () => {
      const hide = !hidden.delete(method);
      if (hide) hidden.add(method);
      button.setAttribute("aria-pressed", String(!hide));
      for (const drawn of document.querySelectorAll(`[data-group="${CSS.escape(method)}"]`)) drawn.classList.toggle("off", hide);
      tables.forEach(fillTable);
    });
  }

  const below = () => (document.documentElement.style.scrollPaddingTop = `${(byId("legend")?.offsetHeight ?? 0) + 4}px`);
  new ResizeObserver(() => requestAnimationFrame(below)).observe(document.body); // headings that are jumped to stand below the legend
})();
