// Line, bar, radar and event charts as inline SVG. `Charts.draw(host, panel, look)` fills an element and says how to read
// it: a chart has places (a rollout step, a category, a run), each with a line to mark it and rows of values.
"use strict";

const Charts = (() => {
  const NS = "http://www.w3.org/2000/svg";

  function node(name, attributes = {}, ...children) {
    const made = document.createElementNS(NS, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  function number(value) {
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size >= 10000 || size < 0.001) return value.toExponential(1).replace("e+", "e").replace("-", "−").replace("e−", "e-");
    return value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3).replace("-", "−");
  }

  // Round numbers that cover [low, high], about `count` of them.
  function ticks(low, high, count) {
    const raw = (high - low || Math.abs(high) || 1) / count;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= raw * 0.999);
    const found = [];
    for (let value = Math.floor(low / step + 1e-9) * step; value < high + step * 0.999; value += step) {
      found.push(Math.abs(value) < step * 1e-9 ? 0 : Number(value.toPrecision(12)));
    }
    return found;
  }

  // Rollout steps to write under an axis, the first among them.
  function steps(first, last, width) {
    const whole = ticks(first, last, Math.max(3, width / 75)).filter((x) => x > first && x <= last && Number.isInteger(x));
    const step = whole.length > 1 ? whole[1] - whole[0] : 1;
    return [first, ...whole.filter((x) => x - first >= step / 2)];
  }

  // All of an axis with as many digits as its steps need.
  function labels(marks) {
    const step = Math.abs(marks[1] - marks[0] || marks[0] || 1);
    const largest = Math.max(...marks.map(Math.abs));
    if (largest >= 100000 || (largest > 0 && largest < 0.001)) return marks.map(number);
    const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
    return marks.map((mark) => mark.toFixed(digits).replace("-", "−"));
  }

  function grouped(series) {
    const groups = new Map();
    for (const one of series) groups.set(one.group, [...(groups.get(one.group) || []), one]);
    return groups;
  }

  const at = (one, x, values = one.y) => values[one.x.indexOf(x)];
  const sum = (values) => values.reduce((total, value) => total + value, 0);

  // Mean, standard error and range over the runs that have a value.
  function summary(values) {
    const found = values.filter((value) => value !== undefined);
    if (!found.length) return null;
    const mean = sum(found) / found.length;
    const variance = found.length > 1 ? sum(found.map((value) => (value - mean) ** 2)) / (found.length - 1) : 0;
    return { mean, error: Math.sqrt(variance / found.length), count: found.length, low: Math.min(...found), high: Math.max(...found) };
  }

  // The runs that got furthest, which a mean is taken over: with one that ended early it would end or jump there.
  function furthest(found) {
    const end = Math.max(...found.flatMap((one) => one.x));
    return found.filter((one) => one.x[one.x.length - 1] >= 0.9 * end);
  }

  function sharedX(found) {
    const others = found.slice(1).map((one) => new Set(one.x));
    return found[0].x.filter((x) => others.every((set) => set.has(x)));
  }

  function path(points) {
    return points.map(([x, y], index) => `${index ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
  }

  function values(groups, x, members = (found) => found) {
    const rows = [];
    for (const [group, all] of groups) {
      const found = members(all);
      const of = summary(found.map((one) => at(one, x)));
      if (!of) continue;
      const spread = of.count > 1 ? ` (${of.count} runs, ${number(of.low)} to ${number(of.high)})` : "";
      rows.push({ group, value: of.mean, text: number(of.mean) + spread });
    }
    return rows.sort((a, b) => b.value - a.value);
  }

  function lines(host, panel, look) {
    const groups = grouped(panel.series);
    const width = host.clientWidth, height = 190, left = 42, right = 10, top = 8, bottom = 26;
    const xs = [...new Set(panel.series.flatMap((one) => one.x))].sort((a, b) => a - b);
    const ys = panel.series.flatMap((one) => one.y);
    let [low, high] = [Math.min(...ys), Math.max(...ys)];
    if (panel.unit.includes("share") && low >= 0 && low < 0.35 * high) low = 0;
    const marks = ticks(low, high, 4);
    [low, high] = [marks[0], marks[marks.length - 1]];
    const [first, last] = [xs[0], xs[xs.length - 1]];
    const px = (x) => left + ((x - first) / (last - first || 1)) * (width - left - right);
    const py = (y) => top + (1 - (y - low) / (high - low || 1)) * (height - top - bottom);
    const svg = node("svg", { viewBox: `0 0 ${width} ${height}`, height });
    labels(marks).forEach((label, index) => {
      const y = py(marks[index]);
      svg.append(node("line", { class: "grid", x1: left, x2: width - right, y1: y, y2: y }));
      svg.append(node("text", { x: left - 6, y: y + 4, "text-anchor": "end" }, label));
    });
    for (const mark of steps(first, last, width)) {
      const label = mark === first ? `step ${mark}` : String(mark);
      svg.append(node("text", { x: px(mark), y: height - 8, "text-anchor": "middle" }, label));
    }
    for (const [group, found] of groups) {
      const style = look(group);
      if (found.length > 1) {
        for (const one of found) {
          svg.append(node("path", { class: groups.size > 4 ? "one crowded" : "one", stroke: style.colour, d: path(one.x.map((x, i) => [px(x), py(one.y[i])])) }));
        }
      }
      const long = furthest(found);
      const means = sharedX(long).map((x) => [px(x), py(summary(long.map((one) => at(one, x))).mean)]);
      svg.append(node("path", { class: "mean", stroke: style.colour, "stroke-dasharray": style.dashes.join(" "), d: path(means) }));
      if (means.length < 12) {
        for (const [x, y] of means) svg.append(node("circle", { cx: x, cy: y, r: 2.5, fill: style.colour }));
      }
    }
    const cursor = svg.appendChild(node("line", { class: "cursor", y1: top, y2: height - bottom, visibility: "hidden" }));
    return {
      svg,
      places: xs,
      name: (index) => `rollout step ${xs[index]}`,
      rows: (index) => values(groups, xs[index], furthest),
      nearest: (x) => nearest(xs.map(px), x),
      mark: (index) => mark(cursor, { x1: px(xs[index]), x2: px(xs[index]) }),
      anchor: (index) => [px(xs[index]), top],
    };
  }

  function bars(host, panel, look) {
    const groups = grouped(panel.series);
    const thick = groups.size > 4 ? 7 : groups.size > 1 ? 9 : 13, gap = 9;
    const tall = thick * groups.size + gap, top = 4, bottom = 22, right = 48;
    const width = host.clientWidth, height = top + tall * panel.categories.length + bottom;
    const left = Math.min(150, width * 0.38, 12 + 6.2 * Math.max(...panel.categories.map((name) => name.length)));
    const high = Math.max(...panel.series.flatMap((one) => [...one.y, ...one.start])) > 0.5 ? 1 : 0.5;
    const px = (value) => left + (value / high) * (width - left - right);
    const svg = node("svg", { viewBox: `0 0 ${width} ${height}`, height });
    const marks = ticks(0, high, width > 420 ? 5 : 2);
    labels(marks).forEach((label, index) => {
      const x = px(marks[index]);
      svg.append(node("line", { class: "grid", x1: x, x2: x, y1: top, y2: height - bottom }));
      svg.append(node("text", { x, y: height - 7, "text-anchor": "middle" }, label));
    });
    panel.categories.forEach((category, index) => {
      const y0 = top + index * tall + gap / 2;
      const label = node("text", { class: "label", x: left - 7, y: y0 + (tall - gap) / 2 + 4, "text-anchor": "end" }, category);
      svg.append(label);
      [...groups].forEach(([group, found], row) => {
        const of = summary(found.map((one) => at(one, index)));
        if (!of) return;
        const y = y0 + row * thick;
        svg.append(node("rect", { x: px(0), y: y + 0.5, width: Math.max(0, px(of.mean) - px(0)), height: thick - 1, fill: look(group).colour }));
        if (of.count > 1 && of.error) {
          svg.append(node("line", { class: "whisker", x1: px(of.mean - of.error), x2: px(of.mean + of.error), y1: y + thick / 2, y2: y + thick / 2 }));
        }
        const before = summary(found.map((one) => (one.start.length ? at(one, index, one.start) : undefined)));
        if (before) svg.append(node("line", { class: "before", x1: px(before.mean), x2: px(before.mean), y1: y - 1, y2: y + thick + 1 }));
        if (groups.size < 5) {
          const end = px(Math.max(of.mean + (of.count > 1 ? of.error : 0), before ? before.mean : 0));
          svg.append(node("text", { x: end + 5, y: y + thick / 2 + 4 }, number(of.mean)));
        }
      });
    });
    const cursor = svg.appendChild(node("line", { class: "cursor", x1: left - 3, x2: left - 3, visibility: "hidden" }));
    const middle = (index) => top + (index + 0.5) * tall;
    return {
      svg,
      places: panel.categories,
      name: (index) => panel.categories[index],
      rows: (index) => values(groups, index),
      nearest: (x, y) => Math.max(0, Math.min(panel.categories.length - 1, Math.floor((y - top) / tall))),
      mark: (index) => mark(cursor, { y1: middle(index) - tall / 2 + 2, y2: middle(index) + tall / 2 - 2 }),
      anchor: (index) => [left + 40, middle(index)],
    };
  }

  function radar(host, panel, look) {
    const groups = grouped(panel.series);
    const width = host.clientWidth, height = 300, count = panel.categories.length;
    const cx = width / 2, cy = height / 2, radius = Math.min(height / 2 - 30, width / 2 - 75);
    const marks = ticks(0, Math.max(...panel.series.flatMap((one) => one.y), 0.01), 4);
    const high = marks[marks.length - 1];
    const angle = (index) => (2 * Math.PI * index) / count - Math.PI / 2;
    const point = (index, value) => [cx + Math.cos(angle(index)) * radius * (value / high), cy + Math.sin(angle(index)) * radius * (value / high)];
    const around = (value) => panel.categories.map((_, index) => point(index, value));
    const svg = node("svg", { viewBox: `0 0 ${width} ${height}`, height });
    for (const mark of marks.slice(1)) svg.append(node("path", { class: "grid", fill: "none", d: path(around(mark)) + "Z" }));
    panel.categories.forEach((category, index) => {
      const [x, y] = point(index, high);
      svg.append(node("line", { class: "grid", x1: cx, y1: cy, x2: x, y2: y }));
      const side = Math.cos(angle(index));
      const anchor = Math.abs(side) < 0.2 ? "middle" : side > 0 ? "start" : "end";
      const [tx, ty] = [cx + side * (radius + 9), cy + Math.sin(angle(index)) * (radius + 15)];
      svg.append(node("text", { class: "label", x: tx, y: ty + 4, "text-anchor": anchor }, category));
    });
    labels(marks).forEach((label, index) => {
      if (index) svg.append(node("text", { x: cx + 4, y: cy - (radius * marks[index]) / high + 11 }, label));
    });
    for (const [group, found] of groups) {
      const style = look(group);
      const means = panel.categories.map((_, index) => summary(found.map((one) => at(one, index))));
      if (means.includes(null)) continue;
      const d = path(means.map((of, index) => point(index, of.mean))) + "Z";
      svg.append(node("path", { class: "mean", stroke: style.colour, "stroke-dasharray": style.dashes.join(" "), d }));
    }
    const cursor = svg.appendChild(node("line", { class: "cursor", x1: cx, y1: cy, visibility: "hidden" }));
    const turn = (x, y) => Math.round(((Math.atan2(y - cy, x - cx) + Math.PI / 2) / (2 * Math.PI)) * count + count) % count;
    return {
      svg,
      places: panel.categories,
      name: (index) => panel.categories[index],
      rows: (index) => values(groups, index),
      nearest: turn,
      mark: (index) => mark(cursor, { x2: point(index, high)[0], y2: point(index, high)[1] }),
      anchor: (index) => point(index, high),
    };
  }

  const SHAPES = [
    (x, y) => `M${x - 4.5} ${y + 4}L${x} ${y - 5}L${x + 4.5} ${y + 4}Z`,
    (x, y) => `M${x - 4} ${y - 4}h8v8h-8Z`,
    (x, y) => `M${x} ${y - 5.5}L${x + 5.5} ${y}L${x} ${y + 5.5}L${x - 5.5} ${y}Z`,
    (x, y) => `M${x - 4} ${y}a4 4 0 1 0 8 0a4 4 0 1 0 -8 0`,
  ];

  function events(host, panel, look) {
    const rowHeight = 24, top = 6, bottom = 24, right = 14;
    const left = Math.min(160, 12 + 6.4 * Math.max(...panel.categories.map((name) => name.length)));
    const width = host.clientWidth, height = top + rowHeight * panel.categories.length + bottom;
    const points = panel.series.flatMap((one) => one.x.map((x, i) => ({ x, y: one.y[i], group: one.group, note: one.notes[i], run: one.run })));
    points.sort((a, b) => a.y - b.y || a.x - b.x);
    const last = Math.max(...points.map((one) => one.x), panel.last, 1);
    const px = (x) => left + (x / last) * (width - left - right);
    const py = (y) => top + (y + 0.5) * rowHeight;
    const svg = node("svg", { viewBox: `0 0 ${width} ${height}`, height });
    for (const mark of steps(0, last, width)) {
      svg.append(node("line", { class: "grid", x1: px(mark), x2: px(mark), y1: top, y2: height - bottom }));
      svg.append(node("text", { x: px(mark), y: height - 7, "text-anchor": "middle" }, mark ? String(mark) : "step 0"));
    }
    panel.categories.forEach((name, index) => {
      svg.append(node("line", { class: "grid", x1: left, x2: width - right, y1: py(index), y2: py(index) }));
      svg.append(node("text", { class: "label", x: left - 8, y: py(index) + 4, "text-anchor": "end" }, name));
    });
    for (const one of points) {
      const style = look(one.group);
      svg.append(node("path", { d: SHAPES[style.shape % SHAPES.length](px(one.x), py(one.y)), fill: style.colour }));
    }
    const cursor = svg.appendChild(node("circle", { class: "cursor", fill: "none", r: 9, visibility: "hidden" }));
    const distance = (one, x, y) => (px(one.x) - x) ** 2 + (py(one.y) - y) ** 2;
    return {
      svg,
      places: points,
      name: (index) => `${points[index].run}, rollout step ${points[index].x}`,
      rows: (index) => [{ group: points[index].group, text: "", note: points[index].note }],
      nearest: (x, y) => points.reduce((best, one, index) => (distance(one, x, y) < distance(points[best], x, y) ? index : best), 0),
      mark: (index) => mark(cursor, { cx: px(points[index].x), cy: py(points[index].y) }),
      anchor: (index) => [px(points[index].x), py(points[index].y)],
    };
  }

  function nearest(positions, x) {
    return positions.reduce((best, position, index) => (Math.abs(position - x) < Math.abs(positions[best] - x) ? index : best), 0);
  }

  function mark(cursor, attributes) {
    for (const [key, value] of Object.entries({ ...attributes, visibility: "visible" })) cursor.setAttribute(key, value);
    return () => cursor.setAttribute("visibility", "hidden");
  }

  // A short stroke or mark in a group's style, for legends.
  function swatch(style) {
    const svg = node("svg", { width: 20, height: 10, viewBox: "0 0 20 10", "aria-hidden": "true" });
    if (style.shape === undefined) {
      svg.append(node("line", { x1: 0, x2: 20, y1: 5, y2: 5, stroke: style.colour, "stroke-width": 2.5, "stroke-dasharray": style.dashes.join(" ") }));
    } else {
      svg.append(node("path", { d: SHAPES[style.shape % SHAPES.length](10, 5), fill: style.colour }));
    }
    return svg;
  }

  const kinds = { lines, bars, radar, events };
  return { draw: (kind, host, panel, look) => kinds[kind](host, panel, look), swatch, grouped, number };
})();
