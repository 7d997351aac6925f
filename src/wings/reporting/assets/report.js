// The page at work: contents, theme, which runs are shown, and reading charts with pointer, keyboard and tables.
"use strict";

(() => {
  const report = JSON.parse(document.getElementById("report-data").textContent);
  const hidden = new Set(); // names of runs
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

  // What groups look like

  const SOLID = [];
  const kinds = [...new Set((report.charts.events?.panels || []).flatMap((panel) => panel.series.map((one) => one.group)))];

  function looks(chart) {
    const others = [...new Set(chart.panels.flatMap((panel) => panel.series.map((one) => one.group)))].filter((group) => !report.methods[group]);
    return (group) => {
      if (chart.kind === "events") return { colour: `var(--method-${kinds.indexOf(group) % 8})`, dashes: SOLID, shape: kinds.indexOf(group) };
      if (chart.colours === "region") return { colour: `var(--region-${group.replaceAll("_", "-")})`, dashes: SOLID };
      const style = report.methods[group];
      if (style) return { colour: `var(${style.colour})`, dashes: style.dashes };
      return { colour: "var(--muted)", dashes: others.indexOf(group) % 2 ? [1, 3] : [5, 3] };
    };
  }

  const plain = (group) => group.replaceAll("_", " ");

  // Charts

  const drawn = [];

  for (const figure of document.querySelectorAll("[data-chart]")) {
    const chart = report.charts[figure.dataset.chart];
    const look = looks(chart);
    const host = figure.querySelector(".panels");
    const groups = new Set(chart.panels.flatMap((panel) => panel.series.map((one) => one.group)));
    const named = chart.colours === "region" || chart.kind === "events" || [...groups].some((group) => !report.methods[group]);
    if (named) {
      const keys = [...groups].map((group) => element("li", {}, Charts.swatch(look(group)), plain(group)));
      host.before(element("ul", { className: "keys" }, ...keys));
    }
    for (const panel of chart.panels) {
      const box = element("div", { className: "panel" });
      const title = element("h4", {}, `${panel.title} `, element("small", { textContent: panel.unit }));
      const plot = element("div");
      const details = element("details", {}, element("summary", { textContent: "Table" }));
      details.addEventListener("toggle", () => fillTable(details, chart, panel));
      box.append(title, plot, details);
      host.append(box);
      drawn.push({ chart, panel, plot, details, look, width: 0 });
    }
  }

  const visible = (panel) => ({ ...panel, series: panel.series.filter((one) => !hidden.has(one.run)) });

  function redraw(one) {
    one.width = one.plot.clientWidth;
    one.plot.replaceChildren();
    const panel = visible(one.panel);
    if (!panel.series.length) {
      one.plot.append(element("p", { className: "note", textContent: "No run is shown." }));
      return;
    }
    const view = Charts.draw(one.chart.kind, one.plot, panel, one.look);
    const parts = [...Charts.grouped(panel.series).keys()].map(plain).join(", ");
    view.svg.setAttribute("role", "img");
    view.svg.setAttribute("tabindex", "0");
    view.svg.setAttribute("aria-label", `${panel.title}: ${parts}. Arrow keys read values.`);
    one.plot.append(view.svg);
    makeReadable(view, one.look);
  }

  // Reading values

  function makeReadable(view, look) {
    let index = -1;
    let unmark = () => {};

    function show(next, x, y, spoken) {
      if (next !== index || spoken) {
        unmark();
        index = next;
        unmark = view.mark(index);
        const rows = view.rows(index).slice(0, 12);
        const lines = rows.map((row) =>
          element("span", {}, Charts.swatch(look(row.group)), plain(row.group), element("b", { textContent: row.text }))
        );
        const notes = rows.filter((row) => row.note).map((row) => element("em", { textContent: row.note }));
        byId("readout").replaceChildren(element("strong", { textContent: view.name(index) }), ...lines, ...notes);
        if (spoken) {
          const told = rows.map((row) => `${plain(row.group)} ${row.text} ${row.note || ""}`.trim());
          byId("spoken").textContent = `${view.name(index)}: ${told.join("; ")}`;
        }
      }
      place(x, y);
    }

    function hide() {
      unmark();
      index = -1;
      byId("readout").hidden = true;
    }

    function local(event) {
      const box = view.svg.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    }

    view.svg.addEventListener("pointermove", (event) => show(view.nearest(...local(event)), event.clientX, event.clientY, false));
    view.svg.addEventListener("pointerdown", (event) => show(view.nearest(...local(event)), event.clientX, event.clientY, false));
    view.svg.addEventListener("pointerleave", hide);
    view.svg.addEventListener("blur", hide);
    view.svg.addEventListener("keydown", (event) => {
      const moves = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity };
      if (event.key === "Escape") hide();
      if (!(event.key in moves)) return;
      event.preventDefault();
      const last = view.places.length - 1;
      const next = index < 0 ? (moves[event.key] > 0 && event.key !== "End" ? 0 : last) : index + moves[event.key];
      const place = Math.max(0, Math.min(last, event.key === "Home" ? 0 : next));
      const [x, y] = view.anchor(place);
      const box = view.svg.getBoundingClientRect();
      show(place, box.left + x, box.top + y, true);
    });
  }

  function place(x, y) {
    const readout = byId("readout");
    readout.hidden = false;
    const box = readout.getBoundingClientRect();
    const right = x + 14 + box.width < window.innerWidth ? x + 14 : Math.max(4, x - 14 - box.width);
    const below = y + 14 + box.height < window.innerHeight ? y + 14 : Math.max(4, y - 14 - box.height);
    readout.style.left = `${right}px`;
    readout.style.top = `${below}px`;
  }

  // The same numbers as a table, made when it is opened

  function fillTable(details, chart, panel) {
    details.querySelector(".table")?.remove();
    if (!details.open) return;
    const shown = visible(panel).series;
    const regions = chart.colours === "region";
    const title = (one) => (regions ? `${plain(one.group)}${shown.some((other) => other.run !== one.run) ? `, ${one.run}` : ""}` : one.run || one.group);
    const first = chart.kind === "events" ? "Run and step" : panel.categories.length ? "Part" : "Rollout step";
    const head = element("tr", {}, ...[first, ...shown.map(title)].map((text) => element("th", { scope: "col", textContent: text })));
    const places = [...new Set(shown.flatMap((one) => one.x))].sort((a, b) => a - b);
    const rows = places.map((x) => {
      const name = chart.kind !== "events" && panel.categories.length ? panel.categories[x] : String(x);
      const cells = shown.map((one) => {
        const index = one.x.indexOf(x);
        const before = one.start.length && index >= 0 ? ` (before: ${Charts.number(one.start[index])})` : "";
        const text = index < 0 ? "–" : chart.kind === "events" ? plain(one.group) : Charts.number(one.y[index]) + before;
        return element("td", { className: "number", textContent: text });
      });
      return element("tr", {}, element("th", { scope: "row", textContent: name }), ...cells);
    });
    const table = element("table", {}, element("caption", { className: "hidden", textContent: panel.title }));
    table.append(element("thead", {}, head), element("tbody", {}, ...rows));
    details.append(element("div", { className: "table", tabIndex: 0 }, table));
  }

  // Which runs are shown: a button a method, and one a run where a method has several

  function legend() {
    const host = byId("legend");
    if (report.runs.length < 2) return;
    host.hidden = false;
    host.setAttribute("role", "group");
    host.setAttribute("aria-label", "Runs shown in charts");
    const update = [];

    function toggle(name, label, runs) {
      const button = element("button", { type: "button", title: label, ariaLabel: label }, ...name);
      button.addEventListener("click", () => {
        const hide = runs.some((run) => !hidden.has(run));
        for (const run of runs) hide ? hidden.add(run) : hidden.delete(run);
        update.forEach((refresh) => refresh());
        drawn.forEach((one) => {
          redraw(one);
          fillTable(one.details, one.chart, one.panel);
        });
      });
      update.push(() => button.setAttribute("aria-pressed", String(runs.some((run) => !hidden.has(run)))));
      return button;
    }

    const items = Object.entries(report.methods).map(([method, style]) => {
      const runs = report.runs.filter((run) => run.method === method);
      const names = runs.map((run) => run.name);
      const swatch = Charts.swatch({ colour: `var(${style.colour})`, dashes: style.dashes });
      const item = element("li", {}, toggle([swatch, method], `Show or hide ${method}`, names));
      if (runs.length > 1) {
        for (const run of runs) {
          const short = run.name.startsWith(`${method}-`) ? run.name.slice(method.length + 1) : run.name;
          item.append(toggle([short + (run.finished ? "" : "*")], `Show or hide ${run.name}${run.finished ? "" : ", unfinished"}`, [run.name]));
        }
      }
      return item;
    });
    host.append(element("ul", {}, ...items));
    update.forEach((refresh) => refresh());
  }

  legend();
  drawn.forEach(redraw);
  const below = () => (document.documentElement.style.scrollPaddingTop = `${byId("legend").offsetHeight + 4}px`);
  const fit = () => {
    below(); // headings that are jumped to stand below the legend
    drawn.filter((one) => one.plot.clientWidth !== one.width).forEach(redraw);
  };
  new ResizeObserver(() => requestAnimationFrame(fit)).observe(document.body);
})();
