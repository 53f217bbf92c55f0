// Three figures that move, each with its last minute, and a few facts that do not.

const HISTORY = 60;
const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 100;
const HEIGHT = 30;

const FIGURES = [
  { key: "roundTripMs", name: "Round trip", unit: "ms", digits: 1, floor: 5 },
  { key: "loss", name: "Loss", unit: "%", digits: 1, floor: 2 },
  { key: "jitterBufferMs", name: "Jitter buffer", unit: "ms", digits: 0, floor: 50 },
];

export class Figures {
  #figures = new Map();
  #facts;

  /** @param {HTMLElement} root @param {HTMLElement} facts a dl */
  constructor(root, facts) {
    this.#facts = facts;
    root.replaceChildren(...FIGURES.map((figure) => this.#build(figure)));
    this.clear();
  }

  clear() {
    for (const part of this.#figures.values()) {
      part.history = [];
      part.value.textContent = "–";
      part.value.parentElement.dataset.empty = "yes";
      part.note.textContent = "";
      part.line.setAttribute("points", "");
    }
    this.#facts.replaceChildren();
  }

  /** @param {import("./stats.js").Sample} sample */
  update(sample) {
    const loss = worst(sample.lossInPercent, sample.lossOutPercent);
    this.#show("roundTripMs", sample.roundTripMs, "");
    this.#show("loss", loss, lossNote(sample));
    this.#show("jitterBufferMs", sample.jitterBufferMs,
      sample.jitterMs === null ? "" : `jitter ${sample.jitterMs.toFixed(0)} ms`);
  }

  /**
   * What stays: who and where.
   * @param {string} id @param {import("./stats.js").Sample} sample
   * @param {object|null} view the edge's own, when known
   */
  facts(id, sample, view) {
    this.#list([
      ["Call", id], ["Path", sample.path], ["Carried by", carriers(view)],
      ["Codec", sample.codec], ["Cipher", sample.cipher], ["Bit rate", bitRate(sample)],
    ]);
  }

  #list(pairs) {
    this.#facts.replaceChildren(...pairs.filter(([, value]) => value).flatMap(([name, value]) => {
      const term = document.createElement("dt");
      term.textContent = name;
      const description = document.createElement("dd");
      description.textContent = value;
      return [term, description];
    }));
  }

  #build({ key, name, unit, digits, floor }) {
    const root = part("div", "figure");
    root.dataset.figure = key;
    const value = part("span", "number");
    const line = document.createElementNS(SVG, "polyline");
    const note = part("p", "note");
    const reading = part("p", "value");
    reading.append(value, part("span", "unit", unit));
    root.append(part("p", "name", name), reading, note, sparkline(line));
    this.#figures.set(key, { value, note, line, digits, floor, history: [] });
    return root;
  }

  #show(key, value, note) {
    const figure = this.#figures.get(key);
    figure.value.textContent = value === null ? "–" : value.toFixed(figure.digits);
    figure.value.parentElement.dataset.empty = value === null ? "yes" : "no";
    figure.note.textContent = note;
    if (value === null) return;
    figure.history.push(value);
    if (figure.history.length > HISTORY) figure.history.shift();
    figure.line.setAttribute("points", points(figure.history, figure.floor));
  }
}

function carriers(view) {
  if (!view || typeof view.relay !== "number") return "–";
  return `relay ${view.relay}, transceiver ${view.worker}`;
}

function bitRate({ kbpsIn, kbpsOut }) {
  const ways = [[kbpsOut, "out"], [kbpsIn, "in"]].filter(([kbps]) => kbps !== null);
  return ways.map(([kbps, way]) => `${kbps.toFixed(0)} kb/s ${way}`).join(", ") || "–";
}

function worst(...values) {
  const known = values.filter((value) => value !== null);
  return known.length ? Math.max(...known) : null;
}

function lossNote({ lostIn, lostOut }) {
  return [[lostIn, "in"], [lostOut, "out"]]
    .filter(([packets]) => packets !== null)
    .map(([packets, way]) => `${packets} ${way}`)
    .join(", ");
}

/** From the left until a minute is full, then the newest at the right edge; the scale never closes in below `floor`. */
function points(history, floor) {
  const top = Math.max(floor, ...history);
  const step = WIDTH / (HISTORY - 1);
  return history
    .map((value, index) => `${(index * step).toFixed(1)},${(HEIGHT - (HEIGHT * value) / top).toFixed(1)}`)
    .join(" ");
}

function sparkline(line) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const floor = document.createElementNS(SVG, "line");
  floor.setAttribute("class", "floor");
  for (const [name, value] of [["x1", 0], ["x2", WIDTH], ["y1", HEIGHT], ["y2", HEIGHT]]) {
    floor.setAttribute(name, String(value));
  }
  svg.append(floor, line);
  return svg;
}

function part(name, className, text = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}
