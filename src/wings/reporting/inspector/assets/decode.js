// The samples of the page, decoded when they are asked for: the inverse of encoding.py. Touches no DOM.

const COLUMNS = ["weights", "entropies", "rollout_logprobs", "old_logprobs", "loss_terms"];

class Samples {
  constructor(data) {
    this.data = data;
    this.runs = data.runs;
    this.groups = data.groups;
    this.names = data.names;
    this.lower = new Map(); // object -> its text in lower case, for the search
  }

  // A text from the table of lines; null stays null (not logged).
  text(lines) {
    return lines === null ? null : lines.map((index) => this.data.lines[index]).join("\n");
  }

  tokens(completion) {
    return completion.tokens.map((index) => this.data.tokens[index]);
  }

  // The answers of a completion, each of the tokens [start, stop): the turns of an episode, or the completion itself.
  answers(completion) {
    if (!completion.episode) return [{ text: completion.text, start: 0, stop: completion.tokens.length }];
    let stop = 0;
    return completion.episode.turns.map((turn) => ({ ...turn, start: stop, stop: (stop += turn.size) }));
  }

  answerText(completion, { text, start, stop }) {
    return text ? this.text(text) : this.tokens(completion).slice(start, stop).join("");
  }

  // Of a token: its turn's, in an episode.
  advantage(completion, index) {
    if (!completion.episode) return completion.advantage;
    return this.answers(completion).find(({ stop }) => index < stop).advantage;
  }

  // A column by name: numbers a token, or null where it was not logged.
  column(completion, name) {
    const encoded = completion[name];
    if (encoded === undefined) return null;
    if (Array.isArray(encoded)) return encoded.map((whole) => whole / this.names.unit);
    if (encoded.f) return encoded.f;
    return Array.from(encoded.c, (code) => encoded.v[this.names.codes.indexOf(code)]);
  }

  columns(completion) {
    return Object.fromEntries(COLUMNS.map((name) => [name, this.column(completion, name)]));
  }

  regions(completion) {
    return Array.from(completion.regions, (digit) => this.names.regions[Number(digit)]);
  }

  kind(completion) {
    return this.names.kinds[completion.kind];
  }

  // The positions of a group's completions that pass; none: the group does not.
  matching(group, filter) {
    if (filter.run !== "" && group.run !== Number(filter.run)) return [];
    if (filter.source !== "" && group.source !== filter.source) return [];
    if (group.step < filter.fromStep || group.step > filter.toStep) return [];
    const shared = filter.text === "" || this.sharedText(group).includes(filter.text);
    return group.completions
      .map((completion, position) => ({ completion, position }))
      .filter(({ completion }) => completion.reward >= filter.fromReward && completion.reward <= filter.toReward)
      .filter(({ completion }) => filter.kind === "" || this.kind(completion) === filter.kind)
      .filter(({ completion }) => shared || this.searched(completion).includes(filter.text))
      .map(({ position }) => position);
  }

  sharedText(group) {
    return this.cached(group, () => [group.example, this.text(group.prompt) ?? "", this.text(group.target)].join("\n"));
  }

  searched(completion) {
    const read = (answer) => (answer.observed ?? []).map(([speaker, text]) => `${speaker}\n${this.text(text)}`);
    const whole = (answer) => [...read(answer), this.answerText(completion, answer)];
    return this.cached(completion, () => this.answers(completion).flatMap(whole).join("\n"));
  }

  cached(key, text) {
    if (!this.lower.has(key)) this.lower.set(key, text().toLowerCase());
    return this.lower.get(key);
  }
}

// A number as it was logged.
function shown(value) {
  return value === null || value === undefined ? "not finite" : String(value);
}

function brief(value, digits = 6) {
  return value === null || value === undefined ? "not logged" : String(Number(value.toPrecision(digits)));
}

// What a token reads as where blanks must be seen: " add" -> "␣add".
function visible(token) {
  return token === "" ? "∅" : token.replace(/ /g, "␣").replace(/\n/g, "↵").replace(/\t/g, "⇥");
}

function spoken(label) {
  return label.replace(/_/g, " ");
}
