// The strip chart: both levels against time on one canvas, mirrored at the middle line, the
// newest at the right where the two pens stand. An echo is seen as the shift between them.

import { FLOOR_DB } from "./meters.js";

const COLUMN_MS = 50;
const COLUMN_PX = 3;
const BAR_PX = 2;
const PEN_PX = 9;
const PEN_GAP_PX = 12;
const SCALE_PX = 26;
const GRID_DB = [-48, -36, -24, -12];
const LABELLED_DB = new Set([-36, -12]);
const TICK_S = 5;
// The figures in words change slower than the pens, to be readable.
const READING_COLUMNS = 4;

export class Strip {
  #canvas;
  #you;
  #far;
  #columns = [];
  #startedMs = 0;
  #colours = {};
  #frame = 0;
  #count = 0;

  /**
   * @param {HTMLCanvasElement} canvas
   * @param {import("./meters.js").LevelMeter} you
   * @param {import("./meters.js").LevelMeter} far
   */
  constructor(canvas, you, far) {
    this.#canvas = canvas;
    this.#you = you;
    this.#far = far;
    new ResizeObserver(() => this.#resize()).observe(canvas);
    const dark = matchMedia("(prefers-color-scheme: dark)");
    dark.addEventListener("change", () => { this.#readColours(); this.#draw(); });
    this.#readColours();
  }

  /** Starts a new chart. @param {() => void} onReading called a few times a second */
  start(onReading) {
    this.#columns = [];
    this.stop();
    this.#startedMs = performance.now();
    this.#count = 0;
    const step = (nowMs) => {
      this.#frame = requestAnimationFrame(step);
      const due = Math.floor((nowMs - this.#startedMs) / COLUMN_MS);
      if (due <= this.#count) return;
      this.#advance(due, nowMs);
      if (this.#count % READING_COLUMNS === 0) onReading();
    };
    this.#frame = requestAnimationFrame(step);
  }

  /** Stops; what was charted stays to be looked at. */
  stop() {
    cancelAnimationFrame(this.#frame);
    this.#draw();
  }

  #advance(due, nowMs) {
    this.#you.measure(nowMs, COLUMN_MS);
    this.#far.measure(nowMs, COLUMN_MS);
    // A hidden page gets no frames: the gap stays a gap.
    const missed = Math.min(due - this.#count - 1, this.#capacity());
    for (let i = 0; i < missed; i += 1) this.#columns.push([FLOOR_DB, FLOOR_DB]);
    this.#columns.push([this.#you.instantDb, this.#far.instantDb]);
    this.#columns.splice(0, this.#columns.length - this.#capacity());
    this.#count = due;
    this.#draw();
  }

  #plotWidth() {
    return this.#canvas.clientWidth - 2 * PEN_GAP_PX - PEN_PX - SCALE_PX;
  }

  #capacity() {
    return Math.max(1, Math.ceil(this.#plotWidth() / COLUMN_PX));
  }

  #readColours() {
    const style = getComputedStyle(document.documentElement);
    for (const name of ["you", "far", "ink", "muted", "hair", "grid", "figures"]) {
      this.#colours[name] = style.getPropertyValue(`--${name}`).trim();
    }
  }

  #resize() {
    const ratio = window.devicePixelRatio || 1;
    this.#canvas.width = Math.round(this.#canvas.clientWidth * ratio);
    this.#canvas.height = Math.round(this.#canvas.clientHeight * ratio);
    this.#draw();
  }

  #draw() {
    const { clientWidth: width, clientHeight: height } = this.#canvas;
    const context = this.#canvas.getContext("2d");
    const ratio = window.devicePixelRatio || 1;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    // Half a pixel: a hairline of one device pixel.
    const middle = Math.round(height / 2);
    const reach = middle - 10;
    this.#drawGrid(context, width, middle, reach);
    this.#drawBars(context, middle, reach);
    this.#drawPen(context, this.#you, this.#colours.you, middle, -reach);
    this.#drawPen(context, this.#far, this.#colours.far, middle, reach);
  }

  #drawGrid(context, width, middle, reach) {
    const { grid, hair, muted, figures } = this.#colours;
    const plot = this.#plotWidth();
    context.fillStyle = grid;
    for (const db of GRID_DB) {
      const offset = Math.round(reach * share(db));
      context.fillRect(0, middle - offset, plot, 1);
      context.fillRect(0, middle + offset, plot, 1);
    }
    const perTick = (TICK_S * 1_000) / COLUMN_MS;
    const phase = this.#count % perTick;
    for (let back = phase; back * COLUMN_PX < plot; back += perTick) {
      context.fillRect(Math.round(plot - back * COLUMN_PX), middle - reach, 1, 2 * reach);
    }
    context.fillStyle = hair;
    context.fillRect(0, middle, width, 1);
    context.fillStyle = muted;
    context.font = `10px ${figures}`;
    context.textAlign = "right";
    context.textBaseline = "middle";
    for (const db of GRID_DB.filter((value) => LABELLED_DB.has(value))) {
      const offset = Math.round(reach * share(db));
      context.fillText(`−${-db}`, width - 1, middle - offset);
      context.fillText(`−${-db}`, width - 1, middle + offset);
    }
  }

  #drawBars(context, middle, reach) {
    const plot = this.#plotWidth();
    const first = this.#columns.length;
    for (const [side, colour, sign] of [[0, this.#colours.you, -1], [1, this.#colours.far, 1]]) {
      context.fillStyle = colour;
      context.beginPath();
      for (let i = 0; i < first; i += 1) {
        const length = reach * share(this.#columns[i][side]);
        if (length < 1) continue;
        const x = plot - (first - i) * COLUMN_PX;
        if (x < 0) continue;
        if (sign < 0) context.rect(x, middle - length, BAR_PX, length);
        else context.rect(x, middle + 1, BAR_PX, length);
      }
      context.fill();
    }
  }

  #drawPen(context, meter, colour, middle, reach) {
    const x = this.#plotWidth() + PEN_GAP_PX;
    const sign = Math.sign(reach);
    const full = Math.abs(reach);
    const top = (length) => (sign < 0 ? middle - length : middle + 1);
    context.fillStyle = this.#colours.grid;
    context.fillRect(x, top(full), PEN_PX, full);
    context.fillStyle = colour;
    const length = full * share(meter.db);
    context.fillRect(x, top(length), PEN_PX, length);
    const held = Math.round(full * share(meter.heldDb));
    if (held > 1) context.fillRect(x, sign < 0 ? middle - held : middle + held - 1, PEN_PX, 2);
  }
}

/** Part of the scale that a level fills, 0 to 1. */
function share(db) {
  return (db - FLOOR_DB) / -FLOOR_DB;
}
