// The inspector's state: filters, the group that is shown, the token that is read out.

const root = document.getElementById("inspector");
const part = (name) => root.querySelector(`[data-ri="${name}"]`);
const samples = new Samples(JSON.parse(part("data").textContent));
const form = part("filters");
const list = part("groups");
const stage = part("stage");
const readout = part("readout");
const FIELDS = {
  token: (token) => visible(token.text),
  place: (token) => `${token.index + 1} of ${token.size}, completion ${token.completion.index}`,
  region: (token) => spoken(token.region),
  weight: (token) => token.number("weights"),
  entropy: (token) => token.number("entropies"),
  rollout_logprob: (token) => token.number("rollout_logprobs"),
  old_logprob: (token) => token.number("old_logprobs"),
  ratio: (token) => ratio(token),
  advantage: (token) => brief(samples.advantage(token.completion, token.index)),
  contribution: (token) => token.number("loss_terms"),
};

let found = []; // [{ group, positions }] that pass the filters
let current = null; // one of them

function ratio(token) {
  const [old, rollout] = [token.columns.old_logprobs, token.columns.rollout_logprobs];
  if (old === null || rollout === null) return "not logged";
  return brief(Math.exp(old[token.index] - rollout[token.index]));
}

// Filters

function readFilter() {
  const value = (name) => form.elements[name].value.trim();
  const bound = (name, otherwise) => (value(name) === "" ? otherwise : Number(value(name)));
  return {
    run: value("run"),
    source: value("source"),
    kind: value("kind"),
    text: value("text").toLowerCase(),
    fromStep: bound("fromStep", -Infinity),
    toStep: bound("toStep", Infinity),
    fromReward: bound("fromReward", -Infinity),
    toReward: bound("toReward", Infinity),
  };
}

function applyFilters() {
  const filter = readFilter();
  found = samples.groups
    .map((group) => ({ group, positions: samples.matching(group, filter) }))
    .filter(({ positions }) => positions.length > 0);
  const several = samples.runs.length > 1;
  list.replaceChildren(...found.map((match, index) => option(match, index, several)));
  const stays = Math.max(0, found.findIndex(({ group }) => group === current?.group));
  show(found.length ? stays : -1);
}

function option({ group, positions }, index, several) {
  const rewards = group.completions.map((completion) => completion.reward);
  const correct = group.completions.filter((completion) => samples.kind(completion) === "correct").length;
  const range = [Math.min(...rewards), Math.max(...rewards)].map((reward) => reward.toFixed(2)).join(" to ");
  const count = positions.length < rewards.length ? `${positions.length} of ${rewards.length} match` : null;
  const text = [
    `step ${String(group.step).padStart(4, "\u2007")}`,
    several ? samples.runs[group.run].name : null,
    `${correct}/${rewards.length} correct`,
    `reward ${range}`,
    count,
    group.example,
  ];
  return el("option", { value: index }, text.filter((piece) => piece !== null).join("  ·  "));
}

function fillSelect(name, values) {
  form.elements[name].append(...values.map(([value, label]) => el("option", { value }, label)));
}

function prepareForm() {
  const distinct = (values) => [...new Set(values)].sort();
  const kinds = new Set(samples.groups.flatMap((group) => group.completions.map((one) => samples.kind(one))));
  fillSelect("run", samples.runs.map((run, index) => [index, run.name]));
  fillSelect("source", distinct(samples.groups.map((group) => group.source)).map((name) => [name, name]));
  fillSelect("kind", samples.names.kinds.filter((kind) => kinds.has(kind)).map((kind) => [kind, kind]));
  const hint = (names, values) => {
    form.elements[names[0]].placeholder = Math.min(...values);
    form.elements[names[1]].placeholder = Math.max(...values);
  };
  hint(["fromStep", "toStep"], samples.groups.map((group) => group.step));
  const rewards = samples.groups.flatMap((group) => group.completions.map((completion) => completion.reward));
  hint(["fromReward", "toReward"], [Math.floor(Math.min(...rewards)), Math.ceil(Math.max(...rewards))]);
}

// Groups

function show(index) {
  current = index < 0 ? null : found[index];
  list.value = String(index);
  const shownAs = current ? `, number ${index + 1} is shown` : "";
  part("status").textContent = `${found.length} of ${samples.groups.length} groups match${shownAs}.`;
  part("previous").disabled = index <= 0;
  part("next").disabled = index < 0 || index >= found.length - 1;
  const nothing = el("p", { class: "ri-empty" }, "No group matches. Widen a filter, or reset all of them.");
  stage.replaceChildren(...(current ? groupView(samples, current.group, current.positions) : [nothing]));
  const cards = stage.querySelector(".ri-cards");
  const first = cards?.querySelector('[data-match="yes"]');
  if (first) cards.scrollLeft = first.offsetLeft - cards.clientLeft;
  readOut(null);
  applyShade();
}

function step(by) {
  const index = Number(list.value) + by;
  if (index < 0 || index >= found.length) return false;
  show(index);
  return true;
}

function applyShade() {
  const shade = part("shade").value;
  stage.dataset.shade = shade;
  part("regions").hidden = shade !== "region";
  part("scale").hidden = shade === "region";
  part("signs").hidden = shade !== "loss_terms";
  if (shade === "region" || !current) return;
  const largest = shadeTokens(stage, samples, current.group, shade);
  part("range").hidden = largest === null;
  part("lacking").hidden = largest !== null;
  part("largest").textContent = largest === null ? "" : brief(largest);
}

// Tokens

function tokenOf(node) {
  const box = node.closest(".ri-tokens");
  const completion = current.group.completions[Number(box.dataset.position)];
  box.columns ??= samples.columns(completion);
  const index = Number(node.dataset.index);
  return {
    completion,
    index,
    size: completion.tokens.length,
    text: samples.data.tokens[completion.tokens[index]],
    region: node.dataset.region,
    columns: box.columns,
    number: (name) => (box.columns[name] === null ? "not logged" : shown(box.columns[name][index])),
  };
}

function readOut(node) {
  stage.querySelectorAll(".ri-read").forEach((other) => other.classList.remove("ri-read"));
  readout.dataset.empty = node ? "no" : "yes";
  const token = node ? tokenOf(node) : null;
  for (const [name, text] of Object.entries(FIELDS)) {
    readout.querySelector(`[data-field="${name}"]`).textContent = token ? text(token) : "";
  }
  node?.classList.add("ri-read");
  return token;
}

function focusToken(node) {
  const box = node.closest(".ri-tokens");
  for (const other of box.querySelectorAll('[tabindex="0"]')) other.tabIndex = -1;
  for (const other of stage.querySelectorAll('[aria-selected="true"]')) other.setAttribute("aria-selected", "false");
  node.tabIndex = 0;
  node.setAttribute("aria-selected", "true");
  const token = readOut(node);
  const said = ["weight", "entropy", "rollout_logprob", "contribution"];
  const names = said.map((name) => `${readout.querySelector(`[data-name="${name}"]`).textContent} ${FIELDS[name](token)}`);
  node.setAttribute("aria-label", [FIELDS.token(token), FIELDS.region(token), ...names].join(", "));
}

function neighbour(node, key) {
  const box = node.closest(".ri-tokens");
  const boxes = Array.from(stage.querySelectorAll(".ri-tokens"));
  const index = Array.from(box.children).indexOf(node);
  const beside = (other) => other && other.children[Math.min(index, other.children.length - 1)];
  return {
    ArrowLeft: () => box.children[index - 1],
    ArrowRight: () => box.children[index + 1],
    ArrowUp: () => beside(boxes[boxes.indexOf(box) - 1]),
    ArrowDown: () => beside(boxes[boxes.indexOf(box) + 1]),
    Home: () => box.firstElementChild,
    End: () => box.lastElementChild,
    PageUp: () => (step(-1) ? stage.querySelector(".ri-token") : null),
    PageDown: () => (step(1) ? stage.querySelector(".ri-token") : null),
  }[key]?.();
}

// Events

const withToken = (handler) => (event) => {
  const node = event.target.closest?.(".ri-token");
  if (node) handler(node, event);
};

let waiting = 0;
form.addEventListener("input", (event) => {
  clearTimeout(waiting);
  waiting = setTimeout(applyFilters, event.target.name === "text" ? 200 : 0);
});
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(applyFilters));
list.addEventListener("change", () => show(Number(list.value)));
part("previous").addEventListener("click", () => step(-1));
part("next").addEventListener("click", () => step(1));
part("shade").addEventListener("change", applyShade);
stage.addEventListener("pointerover", withToken((node) => readOut(node)));
stage.addEventListener("focusin", withToken((node) => focusToken(node)));
stage.addEventListener("click", withToken((node) => node.focus()));
stage.addEventListener(
  "keydown",
  withToken((node, event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const next = neighbour(node, event.key);
    if (next === undefined && !/^(Arrow|Page|Home|End)/.test(event.key)) return;
    event.preventDefault();
    next?.focus();
  }),
);

prepareForm();
applyFilters();
