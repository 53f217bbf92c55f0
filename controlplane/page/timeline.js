// The set-up, drawn as a waterfall: what began when, and how long it took.

// A segment runs from one milestone of the call to another. Several may share a start.
const SEGMENTS = [
  { what: "Offer", from: null, to: "offer", title: "The browser writes its offer" },
  { what: "Answer", from: "offer", to: "answer", title: "HTTP: offer there, answer back" },
  { what: "ICE", from: "answer", to: "ice", title: "A path is found and checked" },
  { what: "DTLS", from: "ice", to: "dtls", title: "Keys are agreed" },
  { what: "First audio out", from: "dtls", to: "out", way: "out", title: "The first packet of your voice leaves" },
  { what: "First audio in", from: "dtls", to: "in", way: "in", title: "The first sound of the far end is played" },
];
const TICKS_AT_MOST = 6;
const SHORTEST_SPAN_MS = 100;

export class Timeline {
  #rows = new Map();
  #axis;
  #total;

  /** @param {HTMLElement} root @param {HTMLElement} total where the sum is said */
  constructor(root, total) {
    this.#total = total;
    const list = document.createElement("ol");
    for (const segment of SEGMENTS) list.append(this.#row(segment));
    this.#axis = element("div", "axis");
    this.#axis.setAttribute("aria-hidden", "true");
    root.replaceChildren(list, this.#axis);
    this.update({});
  }

  /** @param {Record<string, number>} milestones milliseconds from the start, by name */
  update(milestones) {
    const lastMs = Math.max(SHORTEST_SPAN_MS, ...SEGMENTS.map(({ to }) => milestones[to] ?? 0));
    const stepMs = niceCeiling(lastMs / TICKS_AT_MOST);
    const spanMs = stepMs * Math.ceil(lastMs / stepMs);
    for (const segment of SEGMENTS) {
      const { row, bar, when } = this.#rows.get(segment.to);
      const fromMs = segment.from === null ? 0 : milestones[segment.from];
      const toMs = milestones[segment.to];
      const done = fromMs !== undefined && toMs !== undefined;
      row.dataset.done = done ? "yes" : "no";
      row.dataset.ms = done ? toMs.toFixed(1) : "";
      when.textContent = done ? `${Math.round(toMs)} ms` : "–";
      bar.hidden = !done;
      if (!done) continue;
      bar.style.left = `${(100 * fromMs) / spanMs}%`;
      bar.style.width = `${(100 * Math.max(0, toMs - fromMs)) / spanMs}%`;
    }
    this.#drawAxis(spanMs, stepMs);
    this.#total.textContent = milestones.in === undefined
      ? "" : `first sound after ${Math.round(milestones.in)} ms`;
  }

  #row(segment) {
    const row = element("li");
    row.title = segment.title;
    row.dataset.milestone = segment.to;
    if (segment.way) row.dataset.way = segment.way;
    const lane = element("span", "lane");
    const bar = element("span", "bar");
    const when = element("span", "when");
    lane.append(bar);
    row.append(element("span", "what", segment.what), lane, when);
    this.#rows.set(segment.to, { row, bar, when });
    return row;
  }

  #drawAxis(spanMs, stepMs) {
    const ticks = [];
    for (let ms = 0; ms <= spanMs; ms += stepMs) {
      const tick = element("span", "", String(ms));
      tick.style.left = `${(100 * ms) / spanMs}%`;
      ticks.push(tick);
    }
    this.#axis.replaceChildren(...ticks);
  }
}

/** The next of 1, 2, 5 times a power of ten. */
function niceCeiling(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  const factor = [1, 2, 5, 10].find((candidate) => candidate * power >= value - 1e-9);
  return factor * power;
}

function element(name, className = "", text = "") {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}
