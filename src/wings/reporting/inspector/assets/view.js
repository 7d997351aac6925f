// DOM of one prompt group. All text goes in as text, never as markup.

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children.filter((child) => child !== null));
  return node;
}

const STATE_MARKS = { same: "=", differs: "≠", missing: "−", extra: "+" };

function groupView(samples, group, matching) {
  const run = samples.runs[group.run];
  const prompt = samples.text(group.prompt);
  const target = samples.text(group.target);
  const some = matching.length < group.completions.length; // the filters leave some of the completions out
  return [
    el("h3", {}, `Step ${group.step} of ${run.name} (${run.method}), ${group.example}`),
    textBlock("Prompt", prompt === null ? "not logged" : prompt, false),
    ...(target ? [textBlock("Target", target, true)] : []), // tasks have none
    el(
      "ol",
      { class: "ri-cards", "aria-label": `${group.completions.length} completions, side by side` },
      ...group.completions.map((completion, position) =>
        card(samples, group, completion, position, some ? (matching.includes(position) ? "yes" : "no") : "all"),
      ),
    ),
  ];
}

function textBlock(title, text, open) {
  const content = el("pre", { tabindex: "0", role: "region", "aria-label": title }, text);
  const details = el("details", { class: "ri-block" }, el("summary", {}, title), content);
  details.open = open;
  return details;
}

function card(samples, group, completion, position, matches) {
  const kind = samples.kind(completion);
  return el(
    "li",
    { class: "ri-card", "data-match": matches, "data-position": position },
    el(
      "div",
      { class: "ri-head" },
      el("h4", {}, `Completion ${completion.index}`),
      el("span", { class: "ri-kind", "data-kind": kind === "correct" ? "correct" : "wrong" }, kind),
    ),
    ...(completion.episode ? episodeView(samples, completion, position) : answerView(samples, group, completion, position)),
  );
}

function answerView(samples, group, completion, position) {
  const [answer] = samples.answers(completion);
  return [
    ...tokensView(samples, completion, position, answer, ""),
    rewardView(samples, completion),
    ...group.comparisons[completion.comparison].map((pair) => callTable(samples, pair)),
  ];
}

// How an episode went, then its turns: what was observed, the answer, the calls that were read in it.
function episodeView(samples, completion, position) {
  const turns = samples.answers(completion).map((turn, number) => {
    const numbers = `earned ${brief(turn.earned, 4)}, advantage ${brief(turn.advantage, 4)}, ${turn.size} tokens`;
    const calls = turn.calls.map(([name, parameters]) => el("li", {}, el("code", {}, `${name} ${parameters}`)));
    return el(
      "li",
      { class: "ri-turn" },
      el("div", { class: "ri-head" }, el("h5", {}, `Turn ${number + 1}`), el("span", { class: "ri-earned" }, numbers)),
      ...turn.observed.flatMap(([speaker, text]) => observedView(speaker, samples.text(text))),
      turn.unseen ? el("p", { class: "ri-none" }, `${turn.unseen} more messages`) : null,
      el("p", { class: "ri-speaker" }, "policy"),
      ...tokensView(samples, completion, position, turn, `, turn ${number + 1}`),
      calls.length ? el("ul", { class: "ri-made", "aria-label": "Calls that were read" }, ...calls) : null,
      turn.uncalled ? el("p", { class: "ri-none" }, `${turn.uncalled} more calls`) : null,
    );
  });
  return [rewardView(samples, completion), endingView(completion.episode), el("ol", { class: "ri-turns" }, ...turns)];
}

function observedView(speaker, text) {
  const content = el("pre", { tabindex: "0", role: "region", "aria-label": speaker }, text);
  return [el("p", { class: "ri-speaker" }, speaker), content];
}

function endingView(episode) {
  const row = (name, value, wrong) =>
    el("div", { "data-part": name, ...(wrong ? { class: "ri-wrong" } : {}) }, el("dt", {}, spoken(name)), el("dd", {}, String(value)));
  return el(
    "dl",
    { class: "ri-reward ri-ending" },
    row("ended", episode.ending, false),
    row("turns", episode.turns.length, false),
    row("rewritten_histories", episode.rewrites, false),
    ...Object.entries(episode.faults).map(([name, count]) => row(name, count, true)),
  );
}

// The tokens [start, stop) of a completion, and their text where it reads otherwise.
function tokensView(samples, completion, position, answer, turn) {
  const regions = samples.regions(completion);
  const box = el("div", {
    class: "ri-tokens",
    role: "listbox",
    "aria-orientation": "horizontal",
    "aria-label": `Tokens of completion ${completion.index}${turn}`,
    "data-position": position,
  });
  samples.tokens(completion).slice(answer.start, answer.stop).forEach((token, place) => {
    const index = answer.start + place;
    const breaks = token.endsWith("\n");
    const node = el("span", {
      class: "ri-token",
      role: "option",
      "aria-selected": "false",
      tabindex: place === 0 ? "0" : "-1",
      "data-index": index,
      "data-region": regions[index],
    });
    node.textContent = breaks ? token.replace(/\n/g, "↵\n") : token === "" ? "∅" : token;
    box.append(node);
  });
  return answer.text ? [box, textBlock("As text", samples.answerText(completion, answer), false)] : [box];
}

function rewardView(samples, completion) {
  const list = el("dl", { class: "ri-reward" });
  samples.names.parts.forEach((name, index) => {
    const value = completion.parts[index];
    if (value === null && completion.episode) return; // an episode has no such part
    const bar = el("span", { class: "ri-bar", "aria-hidden": "true" });
    bar.style.setProperty("--part", value ?? 0);
    list.append(el("div", { "data-part": name }, el("dt", {}, spoken(name)), el("dd", {}, bar, brief(value, 4))));
  });
  const row = (name, title, value, attributes = {}) =>
    list.append(el("div", { "data-part": name, ...attributes }, el("dt", {}, title), el("dd", {}, brief(value, 4))));
  for (const [name, value] of Object.entries(completion.scores ?? {})) row(name, spoken(name), value);
  row("reward", "scaled total", completion.reward, { class: "ri-total" });
  if (!completion.episode) row("advantage", "advantage", completion.advantage); // else each turn has its own
  return list;
}

// A predicted call beside the gold call: the tool, then its parameters.
function callTable(samples, [predicted, gold, matched, rows]) {
  const name = predicted === null ? "missing" : gold === null ? "extra" : predicted === gold ? "same" : "differs";
  const title = { missing: "Missing call", extra: "Extra call" }[name] ?? (matched ? "Call" : "Call, not matched");
  const head = ["", "predicted", "gold"].map((text) => el("th", { scope: "col" }, text));
  return el(
    "table",
    { class: "ri-calls" },
    el("caption", {}, title),
    el("thead", {}, el("tr", {}, ...head)),
    el(
      "tbody",
      {},
      callRow("tool", predicted, gold, name, "tool"),
      ...rows.map(([parameter, found, wanted, state]) =>
        callRow(parameter, found, wanted, samples.names.states[state], "parameter"),
      ),
    ),
  );
}

function callRow(name, predicted, gold, state, kind) {
  const mark = el("span", { class: "ri-mark", "aria-hidden": "true" }, STATE_MARKS[state]);
  const cell = (text) => el("td", {}, text === null ? el("span", { class: "ri-none" }, "none") : el("code", {}, text));
  return el(
    "tr",
    { "data-state": state, "data-kind": kind },
    el("th", { scope: "row" }, mark, name, state === "same" ? null : el("span", { class: "ri-vh" }, ` (${state})`)),
    cell(predicted),
    cell(gold),
  );
}

// How much of a colour each token of the group gets: its share of the group's largest value.
function shadeTokens(cards, samples, group, column) {
  const values = group.completions.map((completion) => samples.column(completion, column));
  const size = (value) => (Number.isFinite(value) ? Math.abs(value) : 0);
  const largest = values.flatMap((list) => list ?? []).reduce((most, value) => Math.max(most, size(value)), 0);
  cards.querySelectorAll(".ri-tokens").forEach((box) => {
    Array.from(box.children).forEach((node) => {
      const value = values[box.dataset.position]?.[node.dataset.index] ?? 0;
      node.style.setProperty("--shade", largest ? (size(value) / largest).toFixed(3) : "0");
      node.dataset.sign = value < 0 ? "down" : "up";
    });
  });
  return values.some((list) => list !== null) ? largest : null;
}
