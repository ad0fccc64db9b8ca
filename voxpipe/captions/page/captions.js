// Live captions: server-sent events to lines of text that roll up. A line that is full does not change any more.
//
// ?stream=NAME (again for more)  ?columns=42  ?lines=3  ?clear=SECONDS  ?transparent
"use strict";

const query = new URLSearchParams(location.search);
const COLUMNS = number("columns", 42, 10, 200);
const LINES = number("lines", 3, 1, 20);
const CLEAR_S = number("clear", 0, 0, 3600); // of silence, after which the text goes; 0: it stays
const MAX_PANELS = 4; // the streams that spoke last
const ENDED_S = 10; // for which a stream that has ended stays beside others
const PAUSE_S = 2; // between two words, after which a new line begins
const RETRY_MS = 2000; // where the browser itself gives up

const WIDE = /[\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe4f\uff00-\uff60\uffe0-\uffe6\u{1f300}-\u{1faff}\u{20000}-\u{3fffd}]/u;
const NO_WIDTH = /[\p{M}\p{Cf}]/u;
const NO_SPACES = String.raw`[\p{sc=Han}\p{sc=Hiragana}\p{sc=Katakana}\p{sc=Thai}]`;
// what stays together: a word with its leading space, or a character of a script without spaces and its punctuation
const PIECES = new RegExp(
  String.raw`\s*(?:\p{Ps}*${NO_SPACES}\p{M}*[\u3001\u3002\uff01\uff0c\uff1a\uff1b\uff1f\p{Pe}]*|(?:(?!${NO_SPACES}|\p{Ps}*${NO_SPACES})\S)+)|\s+`,
  "gu",
);

const root = document.documentElement;
const main = document.getElementById("panels");
const state = document.getElementById("state");
const panels = new Map();

function number(name, standard, least, most) {
  const value = Number(query.get(name) ?? standard);
  return Number.isFinite(value) ? Math.min(most, Math.max(least, value)) : standard;
}

function width(text) {
  let n = 0;
  for (const one of text) n += NO_WIDTH.test(one) ? 0 : WIDE.test(one) ? 2 : 1;
  return n;
}

/** Lines of at most COLUMNS characters, in which no word is split; the last may be gone on with. */
function wrap(text) {
  const rows = [];
  let row = "";
  for (const piece of text.match(PIECES) ?? []) {
    if (row.trim() && width(row + piece.trimEnd()) > COLUMNS) {
      rows.push(row.trimEnd());
      row = "";
    }
    row = row ? row + piece : piece.trimStart();
  }
  return [...rows, row];
}

class Panel {
  constructor(name) {
    this.element = document.createElement("section");
    this.element.className = "panel";
    const title = document.createElement("h2");
    title.className = "name";
    title.textContent = name;
    this.rows = document.createElement("div");
    this.rows.className = "rows";
    this.element.append(title, this.rows);
    this.name = name;
    this.texts = [];
    this.end = null; // second of the stream at which its last word ended
    this.spokeAt = 0; // on this page's clock
    this.endedAt = null;
  }

  get visible() {
    return this.texts.some((text) => text.trim());
  }

  say(text, start, end) {
    const pause = this.end !== null && start !== undefined && start - this.end > PAUSE_S;
    const [before, row] = pause ? [this.texts, ""] : [this.texts.slice(0, -1), this.texts.at(-1) ?? ""];
    this.texts = [...before, ...wrap(row + text)];
    for (; this.texts.length > LINES; this.texts.shift()) this.rows.firstElementChild?.remove();
    this.end = end ?? this.end;
    this.spokeAt = performance.now();
    this.draw();
  }

  clear() {
    this.texts = [];
    this.draw();
  }

  /** Show the lines there are; those that did not change are left alone. */
  draw() {
    while (this.rows.childElementCount > this.texts.length) this.rows.firstElementChild.remove();
    this.texts.forEach((text, i) => {
      let row = this.rows.children[i];
      if (!row) {
        row = document.createElement("p");
        row.className = "row";
        row.dir = "auto";
        row.append(document.createElement("span"));
        this.rows.append(row);
      }
      const span = row.firstElementChild;
      if (span.textContent !== text) span.textContent = text;
    });
  }
}

/** Put the panels of those who spoke last on the page, in the order in which they appeared. */
function arrange() {
  const now = performance.now();
  const all = [...panels.values()].filter((panel) => panel.visible);
  const isOver = (panel) => panel.endedAt !== null && now - panel.endedAt > ENDED_S * 1000;
  const going = all.filter((panel) => !isOver(panel));
  const last = all.reduce((latest, panel) => (latest && latest.spokeAt > panel.spokeAt ? latest : panel), null);
  const loudest = (going.length ? going : last ? [last] : []).sort((a, b) => b.spokeAt - a.spokeAt).slice(0, MAX_PANELS);
  const shown = all.filter((panel) => loudest.includes(panel));
  for (const panel of panels.values()) panel.element.classList.toggle("ended", panel.endedAt !== null);
  const elements = shown.map((panel) => panel.element);
  if (elements.length !== main.childElementCount || elements.some((one, i) => main.children[i] !== one)) {
    main.replaceChildren(...elements);
  }
  main.classList.toggle("several", shown.length > 1);
  root.style.setProperty("--panels", Math.max(1, shown.length));
}

function open(one) {
  const panel = new Panel(one.stream);
  panel.endedAt = one.ended ? performance.now() : null;
  panels.delete(one.id);
  panels.set(one.id, panel);
  if (one.text) panel.say(one.text);
}

const take = {
  snapshot(message) {
    panels.clear();
    message.streams.forEach(open);
    take.feed(message);
  },
  start: open,
  delta(message) {
    panels.get(message.id)?.say(message.text, message.start, message.end);
  },
  done(message) {
    const panel = panels.get(message.id);
    if (panel) panel.endedAt = performance.now();
  },
  feed(message) {
    tell(message.live ? "" : "waiting for voxpipe");
  },
};

function tell(text) {
  state.textContent = text;
  state.hidden = !text;
}

function connect() {
  const streams = query.getAll("stream").map((name) => "stream=" + encodeURIComponent(name));
  const events = new EventSource("events?" + streams.join("&"));
  events.onmessage = (event) => {
    const message = JSON.parse(event.data);
    take[message.type]?.(message);
    arrange();
  };
  events.onerror = () => {
    tell("waiting for voxpipe");
    if (events.readyState === EventSource.CLOSED) setTimeout(connect, RETRY_MS);
  };
}

root.style.setProperty("--columns", COLUMNS);
root.style.setProperty("--lines", LINES);
root.classList.toggle("transparent", query.has("transparent"));
setInterval(() => {
  const now = performance.now();
  for (const [id, panel] of panels) {
    if (CLEAR_S && panel.visible && now - panel.spokeAt > CLEAR_S * 1000) panel.clear();
    if (panel.endedAt !== null && panels.size > 1 && now - panel.endedAt > 60_000) panels.delete(id);
  }
  arrange();
}, 500);
connect();
