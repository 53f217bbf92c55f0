// Levels: how loud each side is, measured here and drawn by strip.js.

const FLOOR_DB = -60;
// Peak programme style: up at once, down 20 dB in a second and a half.
const FALL_DB_PER_S = 13;
const HOLD_MS = 1_200;
const FFT_SIZE = 2048;

/** One side's level. Silent until a stream is attached. */
export class LevelMeter {
  #analyser = null;
  #source = null;
  #samples = new Float32Array(FFT_SIZE);
  #lastMs = 0;
  #heldAtMs = 0;

  constructor() {
    this.reset();
  }

  reset() {
    this.#source?.disconnect();
    this.#source = null;
    this.#analyser = null;
    /** Ballistic level, the pen of the meter. dBFS. */
    this.db = FLOOR_DB;
    /** Highest level of the last second or so. dBFS. */
    this.heldDb = FLOOR_DB;
    /** Level of the last moments, without ballistics. dBFS. */
    this.instantDb = FLOOR_DB;
  }

  /** @param {AudioContext} context @param {MediaStream} stream with an audio track */
  attach(context, stream) {
    this.reset();
    this.#analyser = context.createAnalyser();
    this.#analyser.fftSize = FFT_SIZE;
    this.#source = context.createMediaStreamSource(stream);
    // The analyser goes nowhere: it must not be heard.
    this.#source.connect(this.#analyser);
  }

  get attached() { return this.#analyser !== null; }

  /** @param {number} nowMs @param {number} windowMs how much of the past to look at */
  measure(nowMs, windowMs) {
    const elapsedMs = Math.min(200, nowMs - this.#lastMs);
    this.#lastMs = nowMs;
    this.instantDb = this.#analyser ? this.#read(windowMs) : FLOOR_DB;
    this.db = Math.max(this.instantDb, this.db - (FALL_DB_PER_S * elapsedMs) / 1_000, FLOOR_DB);
    if (this.db >= this.heldDb) {
      this.heldDb = this.db;
      this.#heldAtMs = nowMs;
    } else if (nowMs - this.#heldAtMs > HOLD_MS) {
      this.heldDb = Math.max(this.db, this.heldDb - (2 * FALL_DB_PER_S * elapsedMs) / 1_000);
    }
  }

  #read(windowMs) {
    const { context } = this.#analyser;
    this.#analyser.getFloatTimeDomainData(this.#samples);
    const count = Math.min(FFT_SIZE, Math.ceil((windowMs / 1_000) * context.sampleRate));
    let sum = 0;
    for (let i = FFT_SIZE - count; i < FFT_SIZE; i += 1) sum += this.#samples[i] ** 2;
    // + 3 dB: a full-scale sine reads 0.
    const db = 10 * Math.log10((2 * sum) / count + 1e-12);
    return Math.max(FLOOR_DB, Math.min(0, db));
  }
}

export { FLOOR_DB };
